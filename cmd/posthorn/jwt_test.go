package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
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
