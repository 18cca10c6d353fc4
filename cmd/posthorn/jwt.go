package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/httpapi"
	"github.com/musehub/posthorn/internal/jwtauth"
)

// jwtFlags is the flags that say which JWTs are good beside Posthorn's own tokens. docs/access.md explains them.
type jwtFlags struct {
	JWTSecret        string        `group:"access" name:"jwt-secret" placeholder:"SECRET" help:"Secret of at least 32 bytes that MuseHub signs its access tokens with (HS256). Better given as POSTHORN_JWT_SECRET."`
	JWKSURL          string        `group:"access" name:"jwks-url" placeholder:"URL" help:"Where the public keys of a token issuer are (RS256, ES256, EdDSA)."`
	JWKSFile         string        `group:"access" name:"jwks-file" placeholder:"FILE" help:"The same as a file, which is read again when it changes."`
	JWTIssuer        string        `group:"access" name:"jwt-issuer" placeholder:"TEXT" help:"What the claim iss of the issuer's tokens must be."`
	JWTAudience      string        `group:"access" name:"jwt-audience" placeholder:"TEXT" help:"What the claim aud of the issuer's tokens must have."`
	JWTLeeway        time.Duration `group:"access" name:"jwt-leeway" default:"30s" placeholder:"DURATION" help:"By how much the issuer's clock may differ from ours (default ${default})."`
	JWTReposClaim    string        `group:"access" name:"jwt-repos-claim" default:"repos" placeholder:"NAME" help:"The claim with the repos that a token is good for: a list, or '*' for all (default ${default})."`
	JWTScopesClaim   string        `group:"access" name:"jwt-scopes-claim" default:"scope" placeholder:"NAME" help:"The claim with its scopes: a list, or a text with spaces between them (default ${default})."`
	JWTDefaultRepos  []string      `group:"access" name:"jwt-default-repos" placeholder:"REPO,…" help:"Repos of tokens without that claim, '*' for all (default none)."`
	JWTDefaultScopes []string      `group:"access" name:"jwt-default-scopes" placeholder:"SCOPE,…" help:"Scopes of tokens without that claim (default none)."`
}

// authorizer returns what tells who has a JWT, or nil if no flag says so.
func (f *jwtFlags) authorizer(logger *slog.Logger) (httpapi.Authorizer, error) {
	keys := f.JWKSURL != "" || f.JWKSFile != ""
	switch {
	case !keys && (f.JWTIssuer != "" || f.JWTAudience != ""):
		return nil, errors.New("--jwt-issuer and --jwt-audience go with --jwks-url or --jwks-file")
	case !keys && f.JWTSecret == "" && (len(f.JWTDefaultRepos) > 0 || len(f.JWTDefaultScopes) > 0):
		return nil, errors.New("--jwt-default-repos and --jwt-default-scopes go with --jwt-secret, --jwks-url or --jwks-file")
	case !keys && f.JWTSecret == "":
		return nil, nil
	case len(f.JWTDefaultRepos) > 1 && slices.Contains(f.JWTDefaultRepos, "*"):
		return nil, errors.New("--jwt-default-repos: '*' stands for all, so nothing goes beside it")
	}
	for _, scope := range f.JWTDefaultScopes {
		if !slices.Contains(posthorn.Scopes(), posthorn.Scope(scope)) {
			return nil, fmt.Errorf("--jwt-default-scopes: there is no scope %q; there are %v", scope, posthorn.Scopes())
		}
	}
	verifier, err := jwtauth.New(jwtauth.Config{
		Secret: f.JWTSecret, JWKSURL: f.JWKSURL, JWKSFile: f.JWKSFile, Issuer: f.JWTIssuer, Audience: f.JWTAudience, Leeway: f.JWTLeeway,
		Logger: logger, ReposClaim: f.JWTReposClaim, ScopesClaim: f.JWTScopesClaim, DefaultRepos: f.JWTDefaultRepos, DefaultScopes: f.JWTDefaultScopes,
	})
	if err != nil {
		return nil, fmt.Errorf("--jwt-… and --jwks-…: %w", err)
	}
	return func(r *http.Request) (httpapi.Principal, error) {
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		token = strings.TrimSpace(token)
		if !strings.EqualFold(scheme, "Bearer") || token == "" {
			return httpapi.Principal{}, errors.New("no bearer token: send the header Authorization: Bearer <token>")
		}
		claims, err := verifier.Verify(r.Context(), token)
		if e, ok := errors.AsType[*jwtauth.UnavailableError](err); ok {
			return httpapi.Principal{}, &posthorn.Error{Code: posthorn.CodeUnavailable, Message: e.Error(), Err: e.Err}
		}
		if err != nil {
			return httpapi.Principal{}, err
		}
		name := "jwt:" + claims.Subject
		if claims.Issuer != "" { // who may have a user of the same name as MuseHub
			name += " of " + claims.Issuer
		}
		p := httpapi.Principal{Name: name, Repos: claims.Repos, AllRepos: claims.AllRepos}
		for _, scope := range claims.Scopes {
			p.Scopes = append(p.Scopes, posthorn.Scope(scope))
		}
		return p, nil
	}, nil
}
