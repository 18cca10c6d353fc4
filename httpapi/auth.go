package httpapi

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/musehub/posthorn"
)

// Principal is who sends a request, and what they may do.
type Principal struct {
	Name     string // for the audit log, such as "user:alice"; not empty, and of at most [MaxPrincipalName] bytes
	Scopes   []posthorn.Scope
	Repos    []string // what the scopes are good for, unless AllRepos
	AllRepos bool
}

// MaxPrincipalName is how many bytes the name of a [Principal] may have.
const MaxPrincipalName = 512

// Authorizer says who sends a request. Its error says why nobody knows, and becomes a 401 with its text, unless it is a
// [posthorn.Error] with [posthorn.CodeUnavailable] (503) or [posthorn.CodeInternal] (500). It must not read the body. It is called by many goroutines at a time.
//
// One that goes by cookies has to be protected against requests that other sites make a browser send: wrap the handler in
// [http.CrossOriginProtection].
type Authorizer func(r *http.Request) (Principal, error)

// may reports whether the principal has the scope. That of administrators is worth nothing to who is not good for all repos.
func (p *Principal) may(need posthorn.Scope) bool {
	if p.AllRepos && slices.Contains(p.Scopes, posthorn.ScopeAdmin) {
		return true
	}
	return need != posthorn.ScopeAdmin && slices.Contains(p.Scopes, need)
}

// knows reports whether the principal may know of the repo.
func (p *Principal) knows(repoID string) bool { return p.AllRepos || slices.Contains(p.Repos, repoID) }

// adminToken is the hash of the token that may do everything. Hashes are compared in place of tokens, so that the time
// tells neither length nor content.
type adminToken struct {
	hash [sha256.Size]byte
	set  bool
}

func newAdminToken(token string) (adminToken, error) {
	for _, c := range []byte(token) {
		if c <= ' ' || c > '~' {
			return adminToken{}, posthorn.Errorf(posthorn.CodeInvalid,
				"Config.Token has a character that no request could send: use visible ASCII without spaces")
		}
	}
	return adminToken{sha256.Sum256([]byte(token)), token != ""}, nil
}

func (a *adminToken) is(token string) bool {
	hash := sha256.Sum256([]byte(token))
	return a.set && subtle.ConstantTimeCompare(hash[:], a.hash[:]) == 1
}

// admin is who has the admin token.
var admin = Principal{Name: "admin token", Scopes: []posthorn.Scope{posthorn.ScopeAdmin}, AllRepos: true}

// demand returns the middleware that lets through only who may do what needs the scope, in the repo of the path.
func (s *server) demand(need posthorn.Scope) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		r, w := humago.Unwrap(ctx)
		allowed, err := s.permits(r, need)
		if err == nil {
			err = s.shares.take(posthorn.ActorOf(allowed))
		}
		if err != nil {
			s.failed(r.Context(), ctx.Operation().OperationID, err).write(w)
			return
		}
		defer s.shares.give(posthorn.ActorOf(allowed))
		next(huma.WithContext(ctx, allowed))
	}
}

// permits returns the context of a request whose sender may do what needs the scope, in the repo of the path. Who has nothing to do
// with that repo gets the same answer whether it has anything or not.
func (s *server) permits(r *http.Request, need posthorn.Scope) (context.Context, error) {
	p, err := s.principal(r)
	if err != nil {
		return nil, err
	}
	if repoID := r.PathValue("repoId"); repoID != "" && !p.knows(repoID) {
		return nil, posthorn.Errorf(posthorn.CodeNotFound, "Repo not found")
	}
	if !p.may(need) {
		refusal := newProblem(http.StatusForbidden, "this needs the scope %s, which the token doesn't have", need)
		refusal.header = http.Header{"Www-Authenticate": {fmt.Sprintf(`Bearer error="insufficient_scope", scope=%q`, need)}}
		return nil, refusal
	}
	return posthorn.ContextWithActor(r.Context(), p.Name), nil
}

// principal returns who sends a request.
func (s *server) principal(r *http.Request) (Principal, error) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	bearer := strings.EqualFold(scheme, "Bearer") && token != ""
	switch {
	case bearer && s.admin.is(token):
		return admin, nil
	case bearer && strings.HasPrefix(token, posthorn.TokenPrefix):
		t, err := s.dispatcher.Authenticate(r.Context(), token)
		if posthorn.ErrorCode(err) == posthorn.CodeUnauthorized {
			return Principal{}, unauthorized(bearer, err)
		}
		if err != nil { // the token could not be checked, which says nothing against it
			return Principal{}, err
		}
		return Principal{"token:" + t.ID + " " + t.Name, t.Scopes, t.Repos, t.AllRepos}, nil
	case s.authorizer != nil:
		p, err := s.authorizer(r)
		if err != nil {
			if code := posthorn.ErrorCode(err); code != posthorn.CodeUnavailable && code != posthorn.CodeInternal {
				err = errors.New(publicText(err)) // whatever it is, the caller is not known
			}
			return Principal{}, unauthorized(bearer, err)
		}
		if p.Name == "" || len(p.Name) > MaxPrincipalName { // without one the audit log would ascribe what they do to the program itself
			return Principal{}, posthorn.Errorf(posthorn.CodeInternal, "Config.Authorizer returned a Principal without a name, or with one of %d bytes", len(p.Name))
		}
		return p, nil
	case bearer:
		return Principal{}, unauthorized(bearer, errors.New("the bearer token is not valid"))
	default:
		return Principal{}, unauthorized(bearer, errors.New("no bearer token: send the header Authorization: Bearer <token>"))
	}
}

// publicText is what an error says to others.
func publicText(err error) string {
	if e, ok := errors.AsType[*posthorn.Error](err); ok {
		return e.Public()
	}
	return err.Error()
}

// unauthorized is the answer to credentials that are missing or wrong, unless the error says that they could not be checked.
func unauthorized(bearer bool, err error) error {
	if e, ok := errors.AsType[*posthorn.Error](err); ok && e.Code != posthorn.CodeUnauthorized {
		return err
	}
	p := newProblem(http.StatusUnauthorized, "%s", publicText(err))
	challenge := "Bearer"
	if bearer {
		challenge = `Bearer error="invalid_token"`
	}
	p.header = http.Header{"Www-Authenticate": {challenge}}
	return p
}
