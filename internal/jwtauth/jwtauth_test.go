package jwtauth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Everything here is signed with the standard library, not with what verifies it.

const secret = "0123456789abcdef0123456789abcdef"

var (
	b64         = base64.RawURLEncoding
	now         = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	rsaKey, _   = rsa.GenerateKey(rand.Reader, 2048)
	ecKey, _    = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	_, edKey, _ = ed25519.GenerateKey(rand.Reader)
)

type object map[string]any

func with(o object, key string, value any) object {
	changed := object{}
	for k, v := range o {
		changed[k] = v
	}
	if value == nil {
		delete(changed, key)
	} else {
		changed[key] = value
	}
	return changed
}

func encode(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b64.EncodeToString(raw)
}

func hs256(key []byte) func(string) []byte {
	return func(input string) []byte {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(input))
		return mac.Sum(nil)
	}
}

func rs256(input string) []byte {
	digest := sha256.Sum256([]byte(input))
	signature, err := rsa.SignPKCS1v15(rand.Reader, rsaKey, crypto.SHA256, digest[:])
	if err != nil {
		panic(err)
	}
	return signature
}

func es256(input string) []byte {
	digest := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, ecKey, digest[:])
	if err != nil {
		panic(err)
	}
	return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
}

func eddsa(input string) []byte { return ed25519.Sign(edKey, []byte(input)) }

func sign(header, claims object, signer func(string) []byte) string {
	input := encode(header) + "." + encode(claims)
	return input + "." + b64.EncodeToString(signer(input))
}

func rsaJWK(key *rsa.PublicKey, id string) object {
	return object{"kty": "RSA", "kid": id, "use": "sig", "alg": "RS256", "n": b64.EncodeToString(key.N.Bytes()), "e": b64.EncodeToString(big.NewInt(int64(key.E)).Bytes())}
}

func ecJWK(id string) object {
	point, err := ecKey.PublicKey.Bytes()
	if err != nil {
		panic(err)
	}
	return object{"kty": "EC", "kid": id, "crv": "P-256", "x": b64.EncodeToString(point[1:33]), "y": b64.EncodeToString(point[33:])}
}

func edJWK(id string) object {
	return object{"kty": "OKP", "kid": id, "crv": "Ed25519", "x": b64.EncodeToString(edKey.Public().(ed25519.PublicKey))}
}

func keySet(keys ...object) string {
	raw, err := json.Marshal(object{"keys": keys})
	if err != nil {
		panic(err)
	}
	return string(raw)
}

// verifier is one for both kinds of tokens, at the time now.
func verifier(t testing.TB, change func(*Config)) *Verifier {
	t.Helper()
	file := filepath.Join(t.TempDir(), "keys.json")
	set := keySet(rsaJWK(&rsaKey.PublicKey, "rsa"), ecJWK("ec"), edJWK("ed"), object{"kty": "oct", "kid": "oct", "k": b64.EncodeToString([]byte(secret))})
	if err := os.WriteFile(file, []byte(set), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Secret: secret, JWKSFile: file, Issuer: "https://issuer", Audience: "posthorn", Leeway: 30 * time.Second,
		ReposClaim: "repos", ScopesClaim: "scope", now: func() time.Time { return now },
	}
	if change != nil {
		change(&cfg)
	}
	v, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

var (
	hsHeader = object{"alg": "HS256", "typ": "JWT"}
	hsClaims = object{"sub": "alice", "type": "access", "exp": now.Unix() + 60}
	rsHeader = object{"alg": "RS256", "kid": "rsa"}
	claims   = object{"sub": "bob", "iss": "https://issuer", "aud": []string{"other", "posthorn"}, "exp": now.Unix() + 60,
		"repos": []string{"r1", "r2"}, "scope": "webhooks:read  events:write"}
)

func TestVerify(t *testing.T) {
	bob := Claims{Subject: "bob", Issuer: "https://issuer", Repos: []string{"r1", "r2"}, Scopes: []string{"webhooks:read", "events:write"}}
	for name, c := range map[string]struct {
		token  string
		want   Claims
		change func(*Config)
	}{
		"MuseHub's": {sign(hsHeader, hsClaims, hs256([]byte(secret))), Claims{Subject: "alice"}, nil},
		"MuseHub's, with defaults": {
			sign(hsHeader, hsClaims, hs256([]byte(secret))), Claims{Subject: "alice", AllRepos: true, Scopes: []string{"webhooks:read"}},
			func(c *Config) { c.DefaultRepos, c.DefaultScopes = []string{"*"}, []string{"webhooks:read"} },
		},
		"RS256":               {sign(rsHeader, claims, rs256), bob, nil},
		"RS256 without kid":   {sign(object{"alg": "RS256"}, claims, rs256), bob, nil},
		"ES256":               {sign(object{"alg": "ES256", "kid": "ec"}, claims, es256), bob, nil},
		"EdDSA":               {sign(object{"alg": "EdDSA", "kid": "ed"}, claims, eddsa), bob, nil},
		"one audience":        {sign(rsHeader, with(claims, "aud", "posthorn"), rs256), bob, nil},
		"a scope's list":      {sign(rsHeader, with(claims, "scope", []string{"webhooks:read", "events:write"}), rs256), bob, nil},
		"expired just now":    {sign(rsHeader, with(claims, "exp", now.Unix()-29), rs256), bob, nil},
		"valid in a moment":   {sign(rsHeader, with(claims, "nbf", now.Unix()+29), rs256), bob, nil},
		"all repos":           {sign(rsHeader, with(claims, "repos", "*"), rs256), Claims{Subject: "bob", Issuer: "https://issuer", AllRepos: true, Scopes: bob.Scopes}, nil},
		"* among others":      {sign(rsHeader, with(claims, "repos", []string{"*", "r"}), rs256), Claims{Subject: "bob", Issuer: "https://issuer", Repos: []string{"*", "r"}, Scopes: bob.Scopes}, nil},
		"defaults are unused": {sign(rsHeader, claims, rs256), bob, func(c *Config) { c.DefaultRepos, c.DefaultScopes = []string{"*"}, []string{"admin"} }},
		"other claims' names": {sign(rsHeader, with(claims, "projects", "r9"), rs256), Claims{Subject: "bob", Issuer: "https://issuer", Repos: []string{"r9"}, Scopes: bob.Scopes},
			func(c *Config) { c.ReposClaim = "projects" }},
	} {
		got, err := verifier(t, c.change).Verify(t.Context(), c.token)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestVerifyRefuses(t *testing.T) {
	mine := hs256([]byte(secret))
	der, err := x509.MarshalPKIXPublicKey(&rsaKey.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	another, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	signed := sign(rsHeader, claims, rs256)
	parts := strings.Split(signed, ".")
	for name, token := range map[string]string{
		"nothing":                  "",
		"two parts":                parts[0] + "." + parts[1],
		"five parts":               signed + ".x.y",
		"garbage":                  "x.y.z",
		"JSON":                     `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
		"long":                     sign(rsHeader, with(claims, "x", strings.Repeat("x", 8<<10)), rs256),
		"alg none":                 encode(object{"alg": "none"}) + "." + encode(hsClaims) + ".",
		"alg nOnE":                 encode(object{"alg": "nOnE"}) + "." + encode(claims) + ".",
		"no alg":                   sign(object{"kid": "rsa"}, claims, rs256),
		"no signature":             parts[0] + "." + parts[1] + ".",
		"another's claims":         parts[0] + "." + encode(with(claims, "sub", "eve")) + "." + parts[2],
		"a changed signature":      parts[0] + "." + parts[1] + "." + b64.EncodeToString(make([]byte, 256)),
		"another secret":           sign(hsHeader, hsClaims, hs256([]byte("another secret of thirty-two bytes"))),
		"an empty secret":          sign(hsHeader, hsClaims, hs256(nil)),
		"confusion with the PEM":   sign(object{"alg": "HS256", "kid": "rsa"}, with(claims, "type", "access"), hs256(publicPEM)),
		"confusion with the DER":   sign(object{"alg": "HS256", "kid": "rsa"}, with(claims, "type", "access"), hs256(der)),
		"confusion with n":         sign(object{"alg": "HS256", "kid": "rsa"}, with(claims, "type", "access"), hs256(rsaKey.N.Bytes())),
		"HS512":                    sign(object{"alg": "HS512"}, hsClaims, mine),
		"RS256 by an EC key":       sign(object{"alg": "RS256", "kid": "ec"}, claims, es256),
		"ES256 by an RSA key":      sign(object{"alg": "ES256", "kid": "rsa"}, claims, rs256),
		"the set's symmetric key":  sign(object{"alg": "HS256", "kid": "oct"}, claims, mine),
		"an unknown key":           sign(object{"alg": "RS256", "kid": "other"}, claims, rs256),
		"a key in the header":      sign(object{"alg": "RS256", "jwk": rsaJWK(&another.PublicKey, "x"), "kid": "x"}, claims, rs256),
		"crit":                     sign(object{"alg": "RS256", "kid": "rsa", "crit": []string{"x"}, "x": 1}, claims, rs256),
		"b64":                      sign(object{"alg": "RS256", "kid": "rsa", "b64": false}, claims, rs256),
		"a refresh token":          sign(hsHeader, with(hsClaims, "type", "refresh"), mine),
		"no type":                  sign(hsHeader, with(hsClaims, "type", nil), mine),
		"a type that is no text":   sign(hsHeader, with(hsClaims, "type", []string{"access"}), mine),
		"HS256 without exp":        sign(hsHeader, with(hsClaims, "exp", nil), mine),
		"HS256 without sub":        sign(hsHeader, with(hsClaims, "sub", nil), mine),
		"HS256, expired":           sign(hsHeader, with(hsClaims, "exp", now.Unix()-31), mine),
		"an empty sub":             sign(hsHeader, with(hsClaims, "sub", ""), mine),
		"a long sub":               sign(hsHeader, with(hsClaims, "sub", strings.Repeat("x", maxSubject+1)), mine),
		"RS256 without exp":        sign(rsHeader, with(claims, "exp", nil), rs256),
		"exp as a text":            sign(rsHeader, with(claims, "exp", "never"), rs256),
		"expired":                  sign(rsHeader, with(claims, "exp", now.Unix()-31), rs256),
		"not valid yet":            sign(rsHeader, with(claims, "nbf", now.Unix()+31), rs256),
		"from the future":          sign(rsHeader, with(claims, "iat", now.Unix()+31), rs256),
		"another issuer":           sign(rsHeader, with(claims, "iss", "https://issuer/"), rs256),
		"no issuer":                sign(rsHeader, with(claims, "iss", nil), rs256),
		"for others":               sign(rsHeader, with(claims, "aud", []string{"other"}), rs256),
		"for nobody":               sign(rsHeader, with(claims, "aud", nil), rs256),
		"repos that are numbers":   sign(rsHeader, with(claims, "repos", []int{1}), rs256),
		"repos that are an object": sign(rsHeader, with(claims, "repos", object{"*": true}), rs256),
		"scopes that are a number": sign(rsHeader, with(claims, "scope", 1), rs256),
	} {
		got, err := verifier(t, nil).Verify(t.Context(), token)
		if err == nil {
			t.Errorf("%s: passes as %+v", name, got)
			continue
		}
		if _, ok := errors.AsType[*UnavailableError](err); ok {
			t.Errorf("%s: %v", name, err)
		}
		if len(token) > 40 && strings.Contains(err.Error(), token[:40]) {
			t.Errorf("%s: the error quotes the token: %v", name, err)
		}
	}
	// Neither kind is good where only the other one was asked for.
	onlySecret := verifier(t, func(c *Config) { c.JWKSFile = "" })
	if _, err := onlySecret.Verify(t.Context(), signed); err == nil {
		t.Error("RS256 passes where there is only a secret")
	}
	onlyKeys := verifier(t, func(c *Config) { c.Secret = "" })
	for _, key := range []string{"", secret} {
		if _, err := onlyKeys.Verify(t.Context(), sign(hsHeader, with(claims, "type", "access"), hs256([]byte(key)))); err == nil {
			t.Errorf("HS256 with the key %q passes where there are only keys", key)
		}
	}
}

// The example of RFC 8037, appendix A: a signature that others have made, and its key.
func TestVector(t *testing.T) {
	set := `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`
	keys, err := publicKeys([]byte(set))
	if err != nil || len(keys) != 1 {
		t.Fatalf("%v, %v", keys, err)
	}
	const input = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc"
	signature, err := b64.DecodeString("hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg")
	if err != nil || !ed25519.Verify(keys[0].key.(ed25519.PublicKey), []byte(input), signature) {
		t.Errorf("the key is read wrongly: %v", err)
	}
}

func TestPublicKeys(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		small = &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 1023), E: 65537}}
	}
	good := rsaJWK(&rsaKey.PublicKey, "good")
	for name, bad := range map[string]object{
		"symmetric":  {"kty": "oct", "k": b64.EncodeToString([]byte(secret))},
		"private":    with(edJWK("ed"), "d", b64.EncodeToString(edKey.Seed())),
		"small":      rsaJWK(&small.PublicKey, "small"),
		"encryption": with(good, "use", "enc"),
		"PS256":      with(good, "alg", "PS256"),
	} {
		keys, err := publicKeys([]byte(keySet(bad, good)))
		if err != nil || len(keys) != 1 || keys[0].id != "good" {
			t.Errorf("%s: %+v, %v", name, keys, err)
		}
		if _, err := publicKeys([]byte(keySet(bad))); err == nil {
			t.Errorf("%s: a set without a good key passes", name)
		}
	}
	for _, set := range []string{"", "{}", "[]", `{"keys":[]}`, "garbage"} {
		if _, err := publicKeys([]byte(set)); err == nil {
			t.Errorf("%q passes", set)
		}
	}
}

// Keys are read when they are needed, and not too often; those that are there stay while the issuer is away.
func TestKeysOfAURL(t *testing.T) {
	var set atomic.Value
	var asked atomic.Int64
	set.Store("")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		switch s := set.Load().(string); s {
		case "":
			http.Error(w, "away", http.StatusBadGateway)
		case "redirect":
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		default:
			_, _ = w.Write([]byte(s))
		}
	}))
	t.Cleanup(server.Close)
	clock := now
	v := verifier(t, func(c *Config) {
		c.JWKSFile, c.JWKSURL = "", server.URL
		c.Leeway, c.now = 24*time.Hour, func() time.Time { return clock }
	})
	try := func(what, kid string, signer func(string) []byte, alg string, good, unavailable bool, requests int64) {
		t.Helper()
		before := asked.Load()
		_, err := v.Verify(t.Context(), sign(object{"alg": alg, "kid": kid}, claims, signer))
		_, isUnavailable := errors.AsType[*UnavailableError](err)
		if (err == nil) != good || isUnavailable != unavailable || asked.Load()-before != requests {
			t.Errorf("%s: %v, and the issuer was asked %d times", what, err, asked.Load()-before)
		}
		if err != nil && strings.Contains(err.Error(), "127.0.0.1") {
			t.Errorf("%s: the error names the host: %v", what, err)
		}
	}
	try("no key was ever read", "rsa", rs256, "RS256", false, true, 1)
	try("none was read a moment ago", "rsa", rs256, "RS256", false, true, 0)
	clock = clock.Add(fetchFirstEvery)
	set.Store("redirect")
	try("a redirect", "rsa", rs256, "RS256", false, true, 1)
	clock = clock.Add(fetchFirstEvery)
	set.Store(strings.Repeat(" ", maxKeySet) + keySet(rsaJWK(&rsaKey.PublicKey, "rsa")))
	try("too large", "rsa", rs256, "RS256", false, true, 1)
	clock = clock.Add(fetchFirstEvery)
	set.Store(keySet(rsaJWK(&rsaKey.PublicKey, "rsa")))
	try("the first", "rsa", rs256, "RS256", true, false, 1)
	try("a known one", "rsa", rs256, "RS256", true, false, 0)
	try("an unknown one", "ed", eddsa, "EdDSA", false, false, 0) // keys were read a moment ago
	clock = clock.Add(fetchEvery)
	try("an unknown one, later", "ed", eddsa, "EdDSA", false, false, 1)
	try("an unknown one, again", "ed", eddsa, "EdDSA", false, false, 0)
	set.Store(keySet(edJWK("ed")))
	clock = clock.Add(fetchEvery)
	try("a new key", "ed", eddsa, "EdDSA", true, false, 1)
	try("the one before it", "rsa", rs256, "RS256", false, false, 0)
	set.Store("")
	clock = clock.Add(keysFresh)
	try("the issuer is away", "ed", eddsa, "EdDSA", true, false, 1)
	try("it is not asked for every token", "ed", eddsa, "EdDSA", true, false, 0)
	set.Store(keySet(rsaJWK(&rsaKey.PublicKey, "rsa")))
	clock = clock.Add(fetchEvery)
	try("a key that was withdrawn", "ed", eddsa, "EdDSA", false, false, 1)
}

// An issuer that hangs delays nobody whose key is known, but for the one who finds that it is time to ask again.
func TestHangingIssuer(t *testing.T) {
	var hangs atomic.Bool
	asked, answer := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if hangs.Load() {
			asked <- struct{}{}
			<-answer
		}
		_, _ = io.WriteString(w, keySet(edJWK("ed")))
	}))
	t.Cleanup(server.Close)
	var clock atomic.Int64 // seconds
	v := verifier(t, func(c *Config) {
		c.JWKSFile, c.JWKSURL, c.Leeway = "", server.URL, 24*time.Hour
		c.now = func() time.Time { return now.Add(time.Duration(clock.Load()) * time.Second) }
	})
	verify := func(kid string) error {
		_, err := v.Verify(t.Context(), sign(object{"alg": "EdDSA", "kid": kid}, claims, eddsa))
		return err
	}
	if err := verify("ed"); err != nil {
		t.Fatal(err)
	}
	hangs.Store(true)
	clock.Add(int64(keysFresh / time.Second))
	var waiting sync.WaitGroup
	waiting.Go(func() {
		if err := verify("ed"); err != nil {
			t.Error(err)
		}
	})
	<-asked
	for range 3 {
		if err := verify("ed"); err != nil {
			t.Error(err)
		}
	}
	waiting.Go(func() {
		if err := verify("unknown"); err == nil {
			t.Error("an unknown key is good")
		}
	})
	close(answer)
	waiting.Wait()
}

// While there are no keys, and the issuer hangs, few wait, each as long as it likes.
func TestWaitingForKeys(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		<-answer
		_, _ = io.WriteString(w, keySet(edJWK("ed")))
	}))
	t.Cleanup(server.Close)
	v := verifier(t, func(c *Config) { c.JWKSFile, c.JWKSURL = "", server.URL })
	verify := func(ctx context.Context) error {
		_, err := v.Verify(ctx, sign(object{"alg": "EdDSA", "kid": "ed"}, claims, eddsa))
		return err
	}
	var first sync.WaitGroup
	first.Go(func() {
		if err := verify(t.Context()); err != nil {
			t.Error(err)
		}
	})
	<-asked
	ctx, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	results := make(chan error, maxWaiting+5)
	for range cap(results) {
		go func() { results <- verify(ctx) }()
	}
	for i := range cap(results) {
		if i == 5 { // those for whom there was no room have their answer
			giveUp()
		}
		if _, ok := errors.AsType[*UnavailableError](<-results); !ok {
			t.Error("one who has to wait is not told that the keys are unavailable")
		}
	}
	close(answer)
	first.Wait()
}

func TestKeysOfAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys.json")
	write := func(set string, at time.Time) {
		t.Helper()
		if err := errors.Join(os.WriteFile(file, []byte(set), 0o600), os.Chtimes(file, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	clock := now
	v := verifier(t, func(c *Config) { c.JWKSFile, c.Leeway, c.now = file, time.Hour, func() time.Time { return clock } })
	verify := func() error {
		_, err := v.Verify(t.Context(), sign(object{"alg": "EdDSA", "kid": "ed"}, claims, eddsa))
		return err
	}
	if _, ok := errors.AsType[*UnavailableError](verify()); !ok {
		t.Error("a file that isn't there is not called unavailable")
	}
	write(keySet(edJWK("ed")), now)
	clock = clock.Add(fetchFirstEvery)
	if err := verify(); err != nil {
		t.Error(err)
	}
	write(keySet(rsaJWK(&rsaKey.PublicKey, "rsa")), now.Add(time.Minute))
	clock = clock.Add(fetchEvery)
	if verify() == nil {
		t.Error("a key that is no longer in the file is good")
	}
}

func TestNewRefuses(t *testing.T) {
	for name, cfg := range map[string]Config{
		"nothing":         {},
		"a short secret":  {Secret: secret[1:]},
		"two sources":     {JWKSURL: "https://x/", JWKSFile: "x", Issuer: "i", Audience: "a"},
		"no issuer":       {JWKSURL: "https://x/", Audience: "a"},
		"no audience":     {JWKSFile: "x", Issuer: "i"},
		"http elsewhere":  {JWKSURL: "http://example.com/", Issuer: "i", Audience: "a"},
		"no URL":          {JWKSURL: "keys", Issuer: "i", Audience: "a"},
		"a file's URL":    {JWKSURL: "file:///etc/passwd", Issuer: "i", Audience: "a"},
		"negative leeway": {Secret: secret, Leeway: -1},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s passes", name)
		} else if strings.Contains(err.Error(), secret[1:]) {
			t.Errorf("%s: the error quotes the secret", name)
		}
	}
}

// FuzzVerify: nothing passes but what was signed, whatever a token says about itself.
func FuzzVerify(f *testing.F) {
	v := verifier(f, nil)
	signed := map[string]bool{}
	for _, token := range []string{
		sign(hsHeader, hsClaims, hs256([]byte(secret))), sign(rsHeader, claims, rs256), sign(object{"alg": "ES256", "kid": "ec"}, claims, es256),
		sign(object{"alg": "EdDSA", "kid": "ed"}, claims, eddsa),
	} {
		input, _, _ := strings.Cut(token[strings.Index(token, ".")+1:], ".")
		signed[token[:strings.Index(token, ".")+1]+input] = true
		f.Add(token)
	}
	f.Add(encode(object{"alg": "none"}) + "." + encode(hsClaims) + ".")
	f.Fuzz(func(t *testing.T, token string) {
		if _, err := v.Verify(t.Context(), token); err == nil && !signed[token[:strings.LastIndex(token, ".")]] {
			t.Errorf("%q passes", token)
		}
	})
}
