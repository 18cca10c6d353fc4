package httpapi

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/musehub/posthorn"
)

// scope is what an operation needs its caller to be allowed to do.
type scope string

const (
	webhooksRead  scope = "webhooks:read" // and their deliveries
	webhooksWrite scope = "webhooks:write"
	eventsRead    scope = "events:read"
	eventsWrite   scope = "events:write"
)

// authorizer says whether the bearer of a token may do what needs the scope in a repo. The repo is empty for what
// concerns none in particular. It returns nil or a problem. Every operation asks it first.
type authorizer func(token, repoID string, need scope) error

// adminToken returns the authorizer for which one token may do everything in every repo.
func adminToken(want string) (authorizer, error) {
	if want == "" {
		return nil, posthorn.Errorf(posthorn.CodeInvalid, "Config.Token is empty: the API needs a token to be protected by")
	}
	for _, c := range []byte(want) {
		if c <= ' ' || c > '~' {
			return nil, posthorn.Errorf(posthorn.CodeInvalid,
				"Config.Token has a character that no request could send: use visible ASCII without spaces")
		}
	}
	// Hashes are compared in place of tokens, so that the time tells neither length nor content.
	hash := sha256.Sum256([]byte(want))
	return func(token, _ string, _ scope) error {
		got := sha256.Sum256([]byte(token))
		if subtle.ConstantTimeCompare(got[:], hash[:]) != 1 {
			return unauthorized(`Bearer error="invalid_token"`, "the bearer token is not valid")
		}
		return nil
	}, nil
}

// demand returns the middleware that lets through only who may do what needs the scope, in the repo of the path.
func (s *server) demand(need scope) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		r, w := humago.Unwrap(ctx)
		if err := s.permits(r, need); err != nil {
			problemFor(err).write(w)
			return
		}
		next(ctx)
	}
}

// permits returns nil if the caller may do what needs the scope, in the repo of the path.
func (s *server) permits(r *http.Request, need scope) error {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return unauthorized("Bearer", "no bearer token: send the header Authorization: Bearer <token>")
	}
	return s.authorize(token, r.PathValue("repoId"), need)
}

func unauthorized(challenge, detail string) *problem {
	p := newProblem(http.StatusUnauthorized, "%s", detail)
	p.header = http.Header{"Www-Authenticate": {challenge}}
	return p
}
