// Package jwtauth verifies JWTs that others have issued, and reads from them what their bearer may do.
//
// There are two kinds: MuseHub's access tokens, which are signed with a secret that it shares with us (HS256), and tokens of an
// issuer that publishes its keys (RS256, ES256 and EdDSA). Which algorithms there are is fixed, and each goes with one type of key: what
// a token says about itself only picks one of them.
package jwtauth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jws"
	"github.com/lestrrat-go/jwx/v3/jwt"
)

const (
	// minSecret is how many bytes a secret has at least (RFC 7518, section 3.2).
	minSecret = 32
	maxToken  = 8 << 10
	// maxSubject is how many bytes the claim "sub" may have, which is in the audit log.
	maxSubject = 255
)

// Config says whose tokens are good, and what for. Secret or one of JWKSURL and JWKSFile is needed.
type Config struct {
	Secret string // of MuseHub's access tokens

	JWKSURL  string // where the issuer's keys are: https, or http on this machine
	JWKSFile string // the same as a file, which is read again when it has changed
	Issuer   string // what the claim iss must be; needed with keys of an issuer, who may have others that sign with them
	Audience string // what the claim aud must have; needed for the same reason

	Leeway time.Duration // by how much clocks may differ

	ReposClaim    string   // the claim with the repos, a list or "*" for all
	ScopesClaim   string   // the claim with the scopes, a list or a text with spaces between them
	DefaultRepos  []string // of tokens without that claim; "*" for all
	DefaultScopes []string

	Logger *slog.Logger // is told that keys can't be read; slog.Default() if it isn't set

	now func() time.Time // time.Now, but for tests
}

// Claims is what a token says, once it is verified.
type Claims struct {
	Subject  string
	Issuer   string // of a token that the issuer's keys have signed
	Repos    []string
	AllRepos bool
	Scopes   []string // some may be unknown
}

// Verifier verifies tokens. It is safe for concurrent use.
type Verifier struct {
	cfg  Config
	keys *keySource // nil: none
}

// UnavailableError says that it could not be found out whether a token is good.
type UnavailableError struct{ Err error }

// Error is for whoever sent the token. The cause may name internal hosts, and is not in it.
func (e *UnavailableError) Error() string { return "the issuer's keys can't be read at the moment" }

// Unwrap returns the cause.
func (e *UnavailableError) Unwrap() error { return e.Err }

// New returns a Verifier. It reads no keys yet.
func New(cfg Config) (*Verifier, error) {
	if cfg.now == nil {
		cfg.now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	keys := cfg.JWKSURL != "" || cfg.JWKSFile != ""
	switch {
	case cfg.Secret == "" && !keys:
		return nil, errors.New("neither a secret nor keys to verify tokens with")
	case cfg.Secret != "" && len(cfg.Secret) < minSecret:
		return nil, fmt.Errorf("the secret of the tokens has %d bytes: at least %d", len(cfg.Secret), minSecret)
	case cfg.JWKSURL != "" && cfg.JWKSFile != "":
		return nil, errors.New("the keys come from a URL or a file, not from both")
	case keys && (cfg.Issuer == "" || cfg.Audience == ""):
		return nil, errors.New("issuer and audience are needed: without them tokens would be good that the same keys signed for others")
	case cfg.Leeway < 0:
		return nil, errors.New("the leeway is negative")
	}
	v := &Verifier{cfg: cfg}
	if keys {
		var err error
		if v.keys, err = newKeySource(cfg); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// Verify returns what a token says, if it is good. Otherwise its error says why, without quoting it; *UnavailableError where that
// can't be told.
func (v *Verifier) Verify(ctx context.Context, token string) (Claims, error) {
	if len(token) > maxToken {
		return Claims{}, fmt.Errorf("the token has more than %d bytes", maxToken)
	}
	if strings.Count(token, ".") != 2 || strings.ContainsAny(token, "{} \t\r\n") {
		return Claims{}, errors.New("the token is no JWT in the compact form")
	}
	message, err := jws.Parse([]byte(token), jws.WithCompact())
	if err != nil || len(message.Signatures()) != 1 {
		return Claims{}, errors.New("the token is no JWT")
	}
	header := message.Signatures()[0].ProtectedHeaders()
	if header.Has("crit") || header.Has("b64") {
		return Claims{}, errors.New("the token's header has extensions, which are not understood here")
	}
	alg, _ := header.Algorithm()
	kid, _ := header.KeyID()
	validate := []jwt.ParseOption{
		jwt.WithClock(jwt.ClockFunc(v.cfg.now)), jwt.WithAcceptableSkew(v.cfg.Leeway),
		jwt.WithRequiredClaim("exp"), jwt.WithRequiredClaim("sub"),
	}
	shared := alg == jwa.HS256() && v.cfg.Secret != ""
	switch {
	case shared:
		validate = append(validate, jwt.WithKey(alg, []byte(v.cfg.Secret)))
	case v.keys != nil && slices.Contains(keyAlgorithms, alg):
		key, err := v.keys.key(ctx, alg, kid)
		if err != nil {
			return Claims{}, err
		}
		validate = append(validate, jwt.WithKey(alg, key), jwt.WithIssuer(v.cfg.Issuer), jwt.WithAudience(v.cfg.Audience))
	default:
		return Claims{}, fmt.Errorf("tokens signed by %.20q are not accepted here", alg.String())
	}
	parsed, err := jwt.Parse([]byte(token), validate...)
	if err != nil {
		return Claims{}, reason(err)
	}
	if kind := ""; shared && (parsed.Get("type", &kind) != nil || kind != "access") {
		return Claims{}, errors.New(`the token's claim "type" is not "access"`)
	}
	claims, err := v.claims(parsed)
	if err == nil && !shared {
		claims.Issuer = v.cfg.Issuer
	}
	return claims, err
}

// reason says what is wrong with a token, as far as that is known, without quoting it.
func reason(err error) error {
	for _, r := range []struct {
		is   error
		text string
	}{
		{jwt.TokenExpiredError(), "the token has expired"},
		{jwt.TokenNotYetValidError(), "the token is not valid yet"},
		{jwt.InvalidIssuedAtError(), "the token is from the future"},
		{jwt.InvalidIssuerError(), "the token is of another issuer"},
		{jwt.InvalidAudienceError(), "the token is for somebody else"},
		{jwt.MissingRequiredClaimError(), `the token lacks the claim "exp" or "sub"`},
	} {
		if errors.Is(err, r.is) {
			return errors.New(r.text)
		}
	}
	return errors.New("the token's signature is not valid, or its claims are malformed")
}

func (v *Verifier) claims(token jwt.Token) (Claims, error) {
	var c Claims
	c.Subject, _ = token.Subject()
	if c.Subject == "" || len(c.Subject) > maxSubject {
		return Claims{}, fmt.Errorf(`the token's claim "sub" is empty or has more than %d bytes`, maxSubject)
	}
	repos, scopes := v.cfg.DefaultRepos, v.cfg.DefaultScopes
	var err error
	if token.Has(v.cfg.ReposClaim) {
		if repos, err = list(token, v.cfg.ReposClaim); err != nil {
			return Claims{}, err
		}
	}
	if token.Has(v.cfg.ScopesClaim) {
		if scopes, err = list(token, v.cfg.ScopesClaim); err != nil {
			return Claims{}, err
		}
	}
	c.AllRepos = slices.Equal(repos, []string{"*"})
	if !c.AllRepos {
		c.Repos = slices.Clone(repos)
	}
	c.Scopes = slices.Clone(scopes)
	return c, nil
}

// list reads a claim that is a list of texts, or one text with spaces between them.
func list(token jwt.Token, name string) ([]string, error) {
	var value any
	if err := token.Get(name, &value); err != nil {
		return nil, fmt.Errorf("the token's claim %.64q can't be read", name)
	}
	switch value := value.(type) {
	case string:
		return strings.Fields(value), nil
	case []string:
		return value, nil
	case []any:
		var texts []string
		for _, v := range value {
			text, ok := v.(string)
			if !ok {
				return nil, fmt.Errorf("the token's claim %.64q is no list of texts", name)
			}
			texts = append(texts, text)
		}
		return texts, nil
	default:
		return nil, fmt.Errorf("the token's claim %.64q is neither a text nor a list of texts", name)
	}
}
