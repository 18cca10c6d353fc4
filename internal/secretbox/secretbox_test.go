package secretbox

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fernet/fernet-go"
)

const (
	specKey   = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="
	specToken = "gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA=="
)

func newBox(t testing.TB, keys ...string) *Box {
	t.Helper()
	b, err := New(keys)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func newKey(t testing.TB) string {
	t.Helper()
	k, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// The first vector is the Fernet specification's; the others were made by
// Python's cryptography package.
func TestOpenVectors(t *testing.T) {
	const pythonKey = "27nP4nROtthAZR6dSE-e4dWjru4fLk_IDbEbBaS5uJU="
	tests := []struct{ name, key, token, want string }{
		{"specification", specKey, specToken, "hello"},
		{"whsec", pythonKey, "gAAAAABrBDYdMl_a53ZNQl9Dp6LeWubPlYAVoq1JA0IlRuWh7Pabt31mWfnRJ1g85FyH-2gAHsQtkCegcFtyqF34Xkqg8HS_Y7C5J9O8YUI2dsZJVA_7-41etJt5h_l2iDQxyzdjgaf5", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"},
		{"beyond ASCII", pythonKey, "gAAAAABrBDYdL3ZYziI7_cIV3cnvy1_s67-bhktdh6fQwpmO4l7ey2FbaOteXlddHnQSMIsg7JMqETvESLwgJvU-EQhPP2KNyogmvHqLvi8h_cJDH1deYzI=", "päss wörd 📯"},
		{"empty", pythonKey, "gAAAAABrBDYdzGH61PteVKFFHc92dwLgHPZugvVKvc_LhC7CVQ2Y8EZSGTtDEesU6plKi90ZaZz3S_dCYfahBiCCN1w4XldYgw==", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, sealed, err := newBox(t, tt.key).Open(tt.token)
			if got != tt.want || !sealed || err != nil {
				t.Errorf("Open = %q, %v, %v; want %q, true, nil", got, sealed, err, tt.want)
			}
		})
	}
}

func TestSealOpen(t *testing.T) {
	b := newBox(t, newKey(t))
	for _, secret := range []string{"", "s", "s3cret", strings.Repeat("x", 16), strings.Repeat("é", 5000), "\x00\xff", specToken} {
		token, err := b.Seal(secret)
		if err != nil {
			t.Fatal(err)
		}
		if !IsSealed(token) {
			t.Errorf("IsSealed(Seal(%q)) = false", secret)
		}
		got, sealed, err := b.Open(token)
		if got != secret || !sealed || err != nil {
			t.Errorf("Open(Seal(%q)) = %q, %v, %v", secret, got, sealed, err)
		}
	}
}

func TestSealNeverRepeats(t *testing.T) {
	b := newBox(t, newKey(t))
	first, err1 := b.Seal("s3cret")
	second, err2 := b.Seal("s3cret")
	if first == second || err1 != nil || err2 != nil {
		t.Errorf("two seals of one secret: %v, %v; equal: %v", err1, err2, first == second)
	}
}

func TestKeyRotation(t *testing.T) {
	first, second := newKey(t), newKey(t)
	before, rotating, after := newBox(t, first), newBox(t, second, first), newBox(t, second)

	oldToken, err := before.Seal("s3cret")
	if err != nil {
		t.Fatal(err)
	}
	newToken, err := rotating.Seal("s3cret")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		box   *Box
		token string
		err   error
	}{
		{"both keys open the old token", rotating, oldToken, nil},
		{"both keys open the new token", rotating, newToken, nil},
		{"the first key sealed the new token", after, newToken, nil},
		{"the old key doesn't open the new token", before, newToken, ErrUndecryptable},
		{"the new key doesn't open the old token", after, oldToken, ErrUndecryptable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, sealed, err := tt.box.Open(tt.token)
			if !sealed || !errors.Is(err, tt.err) || (err == nil) != (got == "s3cret") {
				t.Errorf("Open = %q, %v, %v; want error %v", got, sealed, err, tt.err)
			}
		})
	}
}

func TestOpenTampered(t *testing.T) {
	b := newBox(t, specKey)
	raw, err := base64.URLEncoding.DecodeString(specToken)
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i < len(raw); i++ { // byte 0 is the version: without it, it's no token
		changed := slices.Clone(raw)
		changed[i] ^= 1
		value := base64.URLEncoding.EncodeToString(changed)
		got, sealed, err := b.Open(value)
		if got != "" || !sealed || !errors.Is(err, ErrUndecryptable) {
			t.Errorf("byte %d changed: Open = %q, %v, %v; want ErrUndecryptable", i, got, sealed, err)
		}
	}
	// From the specification's invalid tokens: well signed, badly padded.
	const badPadding = "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0ODz4LEpdELGQAad7aNEHbf-JkLPIpuiYRLQ3RtXatOYREu2FWke6CnJNYIbkuKNqOhw=="
	if got, sealed, err := b.Open(badPadding); got != "" || !sealed || !errors.Is(err, ErrUndecryptable) {
		t.Errorf("bad padding: Open = %q, %v, %v; want ErrUndecryptable", got, sealed, err)
	}
}

func TestOpenIgnoresTheTokensTime(t *testing.T) {
	b := newBox(t, specKey)
	for _, at := range []time.Time{time.Unix(0, 0), time.Now().Add(time.Hour), time.Now().AddDate(1000, 0, 0)} {
		token, err := fernet.EncryptAndSignAtTime([]byte("s3cret"), b.keys[0], at)
		if err != nil {
			t.Fatal(err)
		}
		if got, sealed, err := b.Open(string(token)); got != "s3cret" || !sealed || err != nil {
			t.Errorf("token of %v: Open = %q, %v, %v", at, got, sealed, err)
		}
	}
}

func TestOpenPlaintext(t *testing.T) {
	b := newBox(t, specKey)
	shape := func(version byte, length int) string {
		return base64.URLEncoding.EncodeToString(append([]byte{version}, make([]byte, length-1)...))
	}
	tests := []struct {
		name, value string
		sealed      bool
	}{
		{"empty", "", false},
		{"words", "correct horse battery staple", false},
		{"whsec", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", false},
		{"the prefix alone", "gAAAAAB", true},
		{"a key", specKey, false},
		{"hexadecimal", strings.Repeat("80ab", 32), false},
		{"a token in standard base64", strings.NewReplacer("-", "+", "_", "/").Replace(specToken), true},
		{"a token cut short", specToken[:len(specToken)-4], true},
		{"a token with words around it", "token " + specToken, false},
		{"no ciphertext", shape(0x80, 57), true},
		{"shortest", shape(0x80, 73), true},
		{"other version", shape(0x81, 73), false},
		{"between blocks", shape(0x80, 74), true},
		{"two blocks", shape(0x80, 89), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := IsSealed(tt.value); got != tt.sealed {
				t.Fatalf("IsSealed(%q) = %v, want %v", tt.value, got, tt.sealed)
			}
			got, sealed, err := b.Open(tt.value)
			if tt.sealed {
				if got != "" || !sealed || !errors.Is(err, ErrUndecryptable) {
					t.Errorf("Open = %q, %v, %v; want ErrUndecryptable", got, sealed, err)
				}
			} else if got != tt.value || sealed || err != nil {
				t.Errorf("Open = %q, %v, %v; want the value as it is", got, sealed, err)
			}
		})
	}
}

// A line break that slipped in behind a token must not turn the ciphertext into
// the secret that requests are signed with.
func TestOpenTokenWithLineBreak(t *testing.T) {
	got, sealed, err := newBox(t, specKey).Open(specToken + "\n")
	if got != "hello" || !sealed || err != nil {
		t.Errorf("Open = %q, %v, %v; want hello", got, sealed, err)
	}
}

func TestNewKeyForms(t *testing.T) {
	for _, key := range []string{
		specKey,
		"cw/0x689RpI+jtRR7oE8h/eQsKImvJapLeSbXpwF4e4=",
		"730ff4c7af3d46923e8ed451ee813c87f790b0a226bc96a92de49b5e9c05e1ee",
	} {
		if got, _, err := newBox(t, key).Open(specToken); got != "hello" || err != nil {
			t.Errorf("key %s: Open = %q, %v", key, got, err)
		}
	}
}

func TestNewRefusesBadKeys(t *testing.T) {
	tests := []struct {
		name string
		keys []string
		want string
	}{
		{"none", nil, "no secret key given"},
		{"empty", []string{""}, "secret key 1 of 1 "},
		{"no padding", []string{strings.TrimSuffix(specKey, "=")}, "secret key 1 of 1 "},
		{"a password", []string{specKey, "hunter2hunter2"}, "secret key 2 of 2 "},
		{"31 bytes", []string{specKey, base64.URLEncoding.EncodeToString(make([]byte, 31)), specKey}, "secret key 2 of 3 "},
		{"not quite hexadecimal", []string{strings.Repeat("z", 64)}, "secret key 1 of 1 "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, err := New(tt.keys)
			if b != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("New = %v, %v; want an error with %q", b, err, tt.want)
			}
			if !strings.Contains(err.Error(), "posthorn keys generate") {
				t.Errorf("error %q doesn't say how to make a key", err)
			}
			for _, k := range tt.keys {
				if k != "" && strings.Contains(err.Error(), k) {
					t.Errorf("error %q contains a key", err)
				}
			}
		})
	}
}

func TestGenerateKey(t *testing.T) {
	first, second := newKey(t), newKey(t)
	if first == second {
		t.Error("two generated keys are equal")
	}
	if raw, err := base64.URLEncoding.DecodeString(first); len(raw) != 32 || err != nil {
		t.Errorf("generated key has %d bytes, %v; want 32", len(raw), err)
	}
}

func TestPrintingShowsNoKeys(t *testing.T) {
	b := newBox(t, specKey, specKey)
	holder := struct{ box *Box }{b}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, v := range []any{b, *b} {
			if got := fmt.Sprintf(verb, v); got != "secretbox.Box(2 keys)" {
				t.Errorf("%s of %T = %q", verb, v, got)
			}
		}
		got := fmt.Sprintf(verb, holder)
		// The key's first bytes, as the verbs above would show them.
		for _, part := range []string{"cw_0", "730ff4", "115 15 244", "0x73, 0xf, 0xf4", `s\x0f\xf4`} {
			if strings.Contains(got, part) {
				t.Errorf("%s of a struct with a box = %q", verb, got)
			}
		}
	}
}

func FuzzOpen(f *testing.F) {
	b := newBox(f, specKey)
	for _, seed := range []string{"", "s3cret", specToken, specToken + "\n", specToken[:40], "gAAAAAB"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		got, sealed, err := b.Open(value)
		switch {
		case sealed != IsSealed(value):
			t.Errorf("Open(%q) says sealed=%v, IsSealed %v", value, sealed, !sealed)
		case !sealed && (got != value || err != nil):
			t.Errorf("Open(%q) = %q, %v; want it as it is", value, got, err)
		case err != nil && (got != "" || !errors.Is(err, ErrUndecryptable)):
			t.Errorf("Open(%q) = %q, %v", value, got, err)
		}
		token, err := b.Seal(value)
		if err != nil {
			t.Fatal(err)
		}
		if got, sealed, err := b.Open(token); got != value || !sealed || err != nil {
			t.Errorf("Open(Seal(%q)) = %q, %v, %v", value, got, sealed, err)
		}
	})
}
