package main

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

// MuseHub's access tokens, through the real binary.
func TestJWT(t *testing.T) {
	t.Parallel()
	const secret = "a secret of MuseHub's, which has more than 32 bytes"
	s := startServer(t, "--jwt-secret", secret, "--jwt-default-repos", "r1", "--jwt-default-scopes", "webhooks:read")
	b64 := base64.RawURLEncoding
	sign := func(alg, key string, claims string) string {
		input := b64.EncodeToString([]byte(`{"alg":"`+alg+`","typ":"JWT"}`)) + "." + b64.EncodeToString([]byte(claims))
		mac := hmac.New(sha256.New, []byte(key))
		mac.Write([]byte(input))
		return input + "." + b64.EncodeToString(mac.Sum(nil))
	}
	claims := fmt.Sprintf(`{"sub":"alice","type":"access","exp":%d}`, time.Now().Add(time.Hour).Unix())
	good := sign("HS256", secret, claims)
	unsigned := sign("none", secret, claims)
	unsigned = unsigned[:strings.LastIndex(unsigned, ".")+1]
	for name, c := range map[string]struct {
		token, method, path string
		status              int
	}{
		"its repo":            {good, "GET", "/api/v1/repos/r1/webhooks", 200},
		"another repo":        {good, "GET", "/api/v1/repos/r2/webhooks", 404},
		"another scope":       {good, "GET", "/api/v1/repos/r1/events", 403},
		"tokens":              {good, "GET", "/api/v1/tokens", 403},
		"alg none":            {unsigned, "GET", "/api/v1/repos/r1/webhooks", 401},
		"another secret":      {sign("HS256", secret+"!", claims), "GET", "/api/v1/repos/r1/webhooks", 401},
		"no token":            {"", "GET", "/api/v1/repos/r1/webhooks", 401},
		"the admin's own":     {s.token, "GET", "/api/v1/tokens", 200},
		"a refresh token":     {sign("HS256", secret, strings.Replace(claims, "access", "refresh", 1)), "GET", "/api/v1/repos/r1/webhooks", 401},
		"what it says itself": {sign("HS256", secret, strings.Replace(claims, "{", `{"repos":"*","scope":"admin",`, 1)), "GET", "/api/v1/tokens", 200},
	} {
		req, err := http.NewRequest(c.method, s.url+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.token != "" {
			req.Header.Set("Authorization", "Bearer "+c.token)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != c.status {
			t.Errorf("%s: %d, want %d", name, resp.StatusCode, c.status)
		}
	}
	if strings.Contains(s.logs(), secret) || strings.Contains(s.logs(), good) {
		t.Error("the log has the secret or a token")
	}
}

// Tokens of an issuer with a key set, in a file and at a URL, with and without the flags that have defaults.
func TestJWKS(t *testing.T) {
	t.Parallel()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding
	set := fmt.Sprintf(`{"keys":[{"kty":"OKP","kid":"k1","crv":"Ed25519","x":%q}]}`, b64.EncodeToString(public))
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, set) }))
	t.Cleanup(issuer.Close)
	audience := []string{"--jwt-issuer", "https://id.example/", "--jwt-audience", "posthorn"}
	file := startServer(t, slices.Concat(audience, []string{"--jwks-file", files(t, set)[0], "--jwt-leeway", "10m", "--jwt-repos-claim", "tenants", "--jwt-scopes-claim", "may"})...)
	url := startServer(t, slices.Concat(audience, []string{"--jwks-url", issuer.URL})...)
	type claims map[string]any
	sign := func(change claims) string {
		c := claims{"sub": "bob", "iss": "https://id.example/", "aud": "posthorn", "exp": time.Now().Add(time.Hour).Unix()}
		maps.Copy(c, change)
		input := b64.EncodeToString([]byte(`{"alg":"EdDSA","kid":"k1"}`)) + "." + b64.EncodeToString([]byte(asJSON(c)))
		return input + "." + b64.EncodeToString(ed25519.Sign(private, []byte(input)))
	}
	ago := func(d time.Duration) int64 { return time.Now().Add(-d).Unix() }
	eventually(t, func() string { // where the machine stalls, the issuer may seem to be down
		a, err := url.send(t.Context(), "GET", "/api/v1/repos/r1/webhooks", nil, "Authorization: Bearer "+sign(nil))
		if err != nil || a.Status == http.StatusServiceUnavailable {
			return fmt.Sprintf("there are no keys: %d, %v: %s", a.Status, err, a.Body)
		}
		return ""
	})
	for name, c := range map[string]struct {
		claims    claims
		file, url int // the status of a listing of r1's webhooks
	}{
		"claims of the default names": {claims{"repos": []string{"r1"}, "scope": "webhooks:read"}, 404, 200},
		"claims of own names":         {claims{"tenants": []string{"r1"}, "may": "events:read webhooks:read"}, 200, 404},
		"both":                        {claims{"repos": "*", "scope": "webhooks:read", "tenants": "*", "may": []string{"webhooks:read"}}, 200, 200},
		"another repo":                {claims{"repos": "r2", "scope": "webhooks:read", "tenants": "r2", "may": "webhooks:read"}, 404, 404},
		"another scope":               {claims{"repos": "r1", "scope": "events:read", "tenants": "r1", "may": "events:read"}, 403, 403},
		"another audience":            {claims{"aud": "others", "repos": "*", "scope": "webhooks:read", "tenants": "*", "may": "webhooks:read"}, 401, 401},
		"another issuer":              {claims{"iss": "https://evil.example/", "repos": "*", "scope": "webhooks:read", "tenants": "*", "may": "webhooks:read"}, 401, 401},
		"expired for five minutes":    {claims{"exp": ago(5 * time.Minute), "repos": "*", "scope": "webhooks:read", "tenants": "*", "may": "webhooks:read"}, 200, 401},
		"expired for 15 minutes":      {claims{"exp": ago(15 * time.Minute), "repos": "*", "scope": "webhooks:read", "tenants": "*", "may": "webhooks:read"}, 401, 401},
	} {
		for s, want := range map[*server]int{file: c.file, url: c.url} {
			a, err := s.send(t.Context(), "GET", "/api/v1/repos/r1/webhooks", nil, "Authorization: Bearer "+sign(c.claims))
			if err != nil || a.Status != want {
				t.Errorf("%s: %d, %v, want %d: %s", name, a.Status, err, want, a.Body)
			}
		}
	}
}
