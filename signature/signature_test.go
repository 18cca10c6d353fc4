package signature_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/musehub/posthorn/signature"
)

// The example that the reference libraries of Standard Webhooks test with.
const (
	refSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	refID     = "msg_p5jXN8AQM9LWM0D4loKWxJek"
	refBody   = `{"test": 2432232314}`
	refSig    = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
)

var refTime = time.Unix(1614265330, 0)

// The signatures below were made apart from this package, with Python:
//
//	base64.b64encode(hmac.new(key, f"{id}.{timestamp}.".encode() + body, hashlib.sha256).digest())
//	hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
//
// where key is base64.b64decode(secret[6:]) for whsec_ secrets and otherwise
// secret.encode(). OpenSSL agrees:
//
//	printf '%s' "$body" | openssl dgst -sha256 -hmac "$secret"
var vectors = []struct {
	name, secret, id, body string
	wantBody, wantStandard string
}{
	{
		name: "reference", secret: refSecret, id: refID, body: refBody,
		wantBody:     "sha256=80ec8a89ce3cd22133a1066caecb4d04fea7467657c8514d717ec42c38a5c94c",
		wantStandard: refSig,
	},
	{
		name: "plain secret", secret: "hunter2 🎺", id: "evt_1", body: refBody,
		wantBody:     "sha256=9228e34d063ecc28b32fb69d6ecae88ee074e0d03a943a3ee7e83f6293e14b5d",
		wantStandard: "v1,qw6C4njVdTgEG8kfwN/vB5HHkFw+T0jm3XggaqxWjyc=",
	},
	{
		name: "padded, empty body", secret: "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", id: "evt_1",
		wantBody:     "sha256=3869a63cbe73c747431cf9ff4d38cbaa6ad6adb0541c4753e1c90f7b6920620f",
		wantStandard: "v1,2/NuF8clW2gD2I0wGhzUixHB9eEluHNMAzQLVHdGG4Y=",
	},
}

func TestSigner(t *testing.T) {
	for _, tt := range vectors {
		t.Run(tt.name, func(t *testing.T) {
			s := newSigner(t, tt.secret)
			for range 3 { // a hash that is used again gives the same
				if got := s.Body([]byte(tt.body)); got != tt.wantBody {
					t.Errorf("Body = %q, want %q", got, tt.wantBody)
				}
				if got := s.Standard(tt.id, refTime, []byte(tt.body)); got != tt.wantStandard {
					t.Errorf("Standard = %q, want %q", got, tt.wantStandard)
				}
			}
		})
	}
}

// TestBodyRFC4231 checks Body against the HMAC-SHA-256 vectors of RFC 4231,
// without test case 5, whose result is truncated.
func TestBodyRFC4231(t *testing.T) {
	tests := []struct{ key, data, want string }{
		{
			strings.Repeat("\x0b", 20),
			"Hi There",
			"b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
		},
		{
			"Jefe",
			"what do ya want for nothing?",
			"5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
		},
		{
			strings.Repeat("\xaa", 20),
			strings.Repeat("\xdd", 50),
			"773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
		},
		{
			"\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19",
			strings.Repeat("\xcd", 50),
			"82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
		},
		{
			strings.Repeat("\xaa", 131),
			"Test Using Larger Than Block-Size Key - Hash Key First",
			"60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
		},
		{
			strings.Repeat("\xaa", 131),
			"This is a test using a larger than block-size key and a larger than block-size data. " +
				"The key needs to be hashed before being used by the HMAC algorithm.",
			"9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
		},
	}
	for _, tt := range tests {
		if got, want := newSigner(t, tt.key).Body([]byte(tt.data)), "sha256="+tt.want; got != want {
			t.Errorf("Body(%q) = %s, want %s", tt.data, got, want)
		}
	}
}

func TestSignerSeveralSecrets(t *testing.T) {
	var secrets, standard []string
	for _, v := range vectors {
		secrets = append(secrets, v.secret)
		standard = append(standard, newSigner(t, v.secret).Standard(refID, refTime, []byte(refBody)))
	}
	s := newSigner(t, secrets...)
	secrets[0] = "changed afterwards"

	if got, want := s.Body([]byte(refBody)), vectors[0].wantBody; got != want {
		t.Errorf("Body = %q, want the newest secret's %q", got, want)
	}
	if got, want := s.Standard(refID, refTime, []byte(refBody)), strings.Join(standard, " "); got != want {
		t.Errorf("Standard = %q, want %q", got, want)
	}
}

func TestSignerWithoutSecrets(t *testing.T) {
	for name, s := range map[string]*signature.Signer{"zero": {}, "none": newSigner(t)} {
		if got := s.Body([]byte(refBody)); got != "" {
			t.Errorf("%s: Body = %q, want nothing", name, got)
		}
		if got := s.Standard(refID, refTime, []byte(refBody)); got != "" {
			t.Errorf("%s: Standard = %q, want nothing", name, got)
		}
	}
}

// TestSecretPadding checks that padding makes no difference to the key of
// Standard Webhooks, and that it does to the key of MuseHub's scheme.
func TestSecretPadding(t *testing.T) {
	const padded = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	a, b := newSigner(t, padded), newSigner(t, strings.TrimSuffix(padded, "="))
	if a.Standard(refID, refTime, nil) != b.Standard(refID, refTime, nil) {
		t.Error("Standard differs with and without padding")
	}
	if a.Body(nil) == b.Body(nil) {
		t.Error("Body is the same with and without padding")
	}
}

func TestInvalidSecrets(t *testing.T) {
	for _, secret := range []string{
		"",
		"whsec_",
		"whsec_=",
		"whsec_not base64",
		"whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8==",
		"whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8\n",
		"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLa-_",
		"whsec_M",
	} {
		_, signerErr := signature.NewSigner(refSecret, secret)
		_, verifierErr := signature.NewVerifier(refSecret, secret)
		for _, err := range []error{signerErr, verifierErr} {
			if !errors.Is(err, signature.ErrSecret) {
				t.Errorf("secret %q: error %v, want ErrSecret", secret, err)
				continue
			}
			if rest := strings.TrimPrefix(secret, "whsec_"); len(rest) > 1 && strings.Contains(err.Error(), rest) {
				t.Errorf("secret %q is in the error %q", secret, err)
			}
		}
	}
	if _, err := signature.NewVerifier(); !errors.Is(err, signature.ErrSecret) {
		t.Errorf("NewVerifier without secrets: error %v, want ErrSecret", err)
	}
}

func TestGenerateSecret(t *testing.T) {
	a, b := signature.GenerateSecret(), signature.GenerateSecret()
	if a == b {
		t.Error("two secrets are the same")
	}
	encoded, ok := strings.CutPrefix(a, "whsec_")
	key, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil || len(key) != 32 {
		t.Error("the secret isn't whsec_ and 32 bytes in base64")
	}
	newSigner(t, a)
}

func TestSignerConcurrently(t *testing.T) {
	s := newSigner(t, refSecret)
	body := make([]byte, 16<<10) // long enough for goroutines to get in each other's way
	wantBody, wantStandard := s.Body(body), s.Standard(refID, refTime, body)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				if got := s.Body(body); got != wantBody {
					t.Errorf("Body = %q, want %q", got, wantBody)
				}
			}
		})
		wg.Go(func() {
			for range 200 {
				if got := s.Standard(refID, refTime, body); got != wantStandard {
					t.Errorf("Standard = %q, want %q", got, wantStandard)
				}
			}
		})
	}
	wg.Wait()
}

// TestSecretsStayInside checks that printing a Signer or a Verifier, in a log
// line perhaps, doesn't show its secrets.
func TestSecretsStayInside(t *testing.T) {
	const secret = "hunter2"
	s, v := newSigner(t, secret), newVerifier(t, secret)
	s.Body(nil) // so that there is a keyed hash
	for _, x := range []any{s, v} {
		text := fmt.Sprintf("%v %+v %#v", x, x, x)
		for _, form := range []string{secret, fmt.Sprint([]byte(secret)), fmt.Sprintf("%#v", []byte(secret))} {
			if strings.Contains(text, form) {
				t.Errorf("%T shows its secret: %s", x, text)
			}
		}
	}
}

func newSigner(t testing.TB, secrets ...string) *signature.Signer {
	t.Helper()
	s, err := signature.NewSigner(secrets...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func BenchmarkSigner(b *testing.B) {
	for _, size := range []int{256, 4 << 10, 64 << 10} {
		s := newSigner(b, refSecret)
		body := make([]byte, size)
		b.Run(fmt.Sprintf("Body/%d", size), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				s.Body(body)
			}
		})
		b.Run(fmt.Sprintf("Standard/%d", size), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				s.Standard(refID, refTime, body)
			}
		})
	}
}

func BenchmarkSignerParallel(b *testing.B) {
	s := newSigner(b, refSecret)
	body := make([]byte, 256)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			s.Body(body)
			s.Standard(refID, refTime, body)
		}
	})
}
