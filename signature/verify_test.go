package signature_test

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/musehub/posthorn/signature"
)

const museHubHeader = "X-MuseHub-Signature"

// newVerifier returns a Verifier whose clock stands at refTime.
func newVerifier(t testing.TB, secrets ...string) *signature.Verifier {
	t.Helper()
	v, err := signature.NewVerifier(secrets...)
	if err != nil {
		t.Fatal(err)
	}
	v.Now = func() time.Time { return refTime }
	return v
}

// standard returns the headers that Standard Webhooks asks for.
func standard(id string, ts time.Time, sig string) http.Header {
	h := http.Header{}
	h.Set("webhook-id", id)
	h.Set("webhook-timestamp", strconv.FormatInt(ts.Unix(), 10))
	h.Set("webhook-signature", sig)
	return h
}

func museHub(sig string) http.Header {
	h := http.Header{}
	h.Set(museHubHeader, sig)
	return h
}

func TestVerify(t *testing.T) {
	const (
		other = "v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc="
		// From the specification's example, which is signed with ed25519.
		v1a = "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
	)
	museSig := vectors[0].wantBody

	tests := []struct {
		name   string
		header func(h http.Header) // changes the reference's headers
		want   error
	}{
		{"valid", func(h http.Header) {}, nil},
		{"upper case names", func(h http.Header) { h.Set("WEBHOOK-ID", h.Get("webhook-id")) }, nil},
		{"both schemes", func(h http.Header) { h.Set(museHubHeader, museSig) }, nil},
		{"MuseHub alone", func(h http.Header) { clear(h); h.Set(museHubHeader, museSig) }, nil},
		{"MuseHub in upper case hex", func(h http.Header) {
			clear(h)
			h.Set(museHubHeader, "sha256="+strings.ToUpper(strings.TrimPrefix(museSig, "sha256=")))
		}, nil},
		{"MuseHub beside an id and a timestamp", func(h http.Header) {
			h.Del("webhook-signature")
			h.Set(museHubHeader, museSig)
		}, nil},

		{"one of several", func(h http.Header) {
			h.Set("webhook-signature", strings.Join([]string{other, "v2" + refSig[2:], refSig, other}, " "))
		}, nil},
		{"after another version", func(h http.Header) { h.Set("webhook-signature", v1a+" "+refSig) }, nil},
		{"after garbage", func(h http.Header) { h.Set("webhook-signature", "  v1 v1, ,x v1,AAAA "+refSig) }, nil},

		{"nothing", func(h http.Header) { clear(h) }, signature.ErrMissing},
		{"unsigned", func(h http.Header) { h.Del("webhook-signature") }, signature.ErrMissing},
		{"no id", func(h http.Header) { h.Del("webhook-id") }, signature.ErrID},
		{"no timestamp", func(h http.Header) { h.Del("webhook-timestamp") }, signature.ErrTimestamp},
		{"timestamp in words", func(h http.Header) { h.Set("webhook-timestamp", "yesterday") }, signature.ErrTimestamp},
		{"timestamp with fraction", func(h http.Header) { h.Set("webhook-timestamp", "1614265330.5") }, signature.ErrTimestamp},
		{"timestamp with space", func(h http.Header) { h.Set("webhook-timestamp", " 1614265330") }, signature.ErrTimestamp},
		{"timestamp in milliseconds", func(h http.Header) { h.Set("webhook-timestamp", "1614265330000") }, signature.ErrTooNew},
		{"timestamp out of range", func(h http.Header) { h.Set("webhook-timestamp", "9223372036854775808") }, signature.ErrTimestamp},
		{"largest timestamp", func(h http.Header) { h.Set("webhook-timestamp", "9223372036854775807") }, signature.ErrTooNew},
		{"smallest timestamp", func(h http.Header) { h.Set("webhook-timestamp", "-9223372036854775808") }, signature.ErrTooOld},
		{"timestamp with sign", func(h http.Header) { h.Set("webhook-timestamp", "+1614265330") }, signature.ErrMismatch},
		{"timestamp with zero", func(h http.Header) { h.Set("webhook-timestamp", "01614265330") }, signature.ErrMismatch},
		{"other timestamp", func(h http.Header) { h.Set("webhook-timestamp", "1614265331") }, signature.ErrMismatch},
		{"other id", func(h http.Header) { h.Set("webhook-id", "msg_2") }, signature.ErrMismatch},

		{"other signature", func(h http.Header) { h.Set("webhook-signature", other) }, signature.ErrMismatch},
		{"unknown version alone", func(h http.Header) { h.Set("webhook-signature", v1a) }, signature.ErrMalformed},
		{"version v2", func(h http.Header) { h.Set("webhook-signature", "v2"+refSig[2:]) }, signature.ErrMalformed},
		{"no version", func(h http.Header) { h.Set("webhook-signature", refSig[3:]) }, signature.ErrMalformed},
		{"empty signature", func(h http.Header) { h.Set("webhook-signature", "v1,") }, signature.ErrMalformed},
		{"no padding", func(h http.Header) { h.Set("webhook-signature", refSig[:len(refSig)-1]) }, signature.ErrMalformed},
		{"bits that base64 ignores", func(h http.Header) {
			h.Set("webhook-signature", strings.Replace(refSig, "OE=", "OF=", 1))
		}, signature.ErrMalformed},
		{"newline that base64 ignores", func(h http.Header) { h.Set("webhook-signature", refSig+"\n") }, signature.ErrMalformed},
		{"signature cut short", func(h http.Header) { h.Set("webhook-signature", "v1,g0hM9SsE") }, signature.ErrMalformed},
		{"commas as separators", func(h http.Header) { h.Set("webhook-signature", refSig+","+refSig) }, signature.ErrMalformed},
		{"MuseHub's form", func(h http.Header) { h.Set("webhook-signature", museSig) }, signature.ErrMalformed},

		// A signature that fails isn't made good by the weaker scheme.
		{"no fallback", func(h http.Header) {
			h.Set("webhook-signature", other)
			h.Set(museHubHeader, museSig)
		}, signature.ErrMismatch},
		{"no fallback when too old", func(h http.Header) {
			h.Set("webhook-timestamp", "1")
			h.Set(museHubHeader, museSig)
		}, signature.ErrTooOld},

		{"MuseHub's other signature", func(h http.Header) {
			clear(h)
			h.Set(museHubHeader, vectors[1].wantBody)
		}, signature.ErrMismatch},
		{"MuseHub without prefix", func(h http.Header) { clear(h); h.Set(museHubHeader, museSig[7:]) }, signature.ErrMalformed},
		{"MuseHub cut short", func(h http.Header) { clear(h); h.Set(museHubHeader, museSig[:70]) }, signature.ErrMalformed},
		{"MuseHub with fewer bytes", func(h http.Header) { clear(h); h.Set(museHubHeader, museSig[:69]) }, signature.ErrMalformed},
		{"MuseHub empty", func(h http.Header) { clear(h); h.Set(museHubHeader, "sha256=") }, signature.ErrMalformed},
		{"MuseHub's header of another brand", func(h http.Header) { clear(h); h.Set("X-Other-Signature", museSig) }, signature.ErrMissing},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := standard(refID, refTime, refSig)
			tt.header(h)
			err := newVerifier(t, refSecret).Verify(h, []byte(refBody))
			if !errors.Is(err, tt.want) || (tt.want == nil && err != nil) {
				t.Fatalf("Verify = %v, want %v", err, tt.want)
			}
			checkText(t, err)
		})
	}
}

// checkText checks that an error shows nothing that is secret.
func checkText(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	for _, secret := range []string{refSecret[6:], refSig[3:], vectors[0].wantBody[7:]} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("the error %q contains %q", err, secret)
		}
	}
}

func TestVerifyTolerance(t *testing.T) {
	sig := newSigner(t, refSecret)
	tests := []struct {
		tolerance time.Duration // 0 for the default
		now       time.Duration // after the timestamp
		want      error
	}{
		{0, 5 * time.Minute, nil},
		{0, 5*time.Minute + time.Second - 1, nil}, // the timestamp lacks its fraction
		{0, 5*time.Minute + time.Second, signature.ErrTooOld},
		{0, -5 * time.Minute, nil},
		{0, -5*time.Minute - 1, signature.ErrTooNew},
		{time.Second, time.Second, nil},
		{time.Second, 2 * time.Second, signature.ErrTooOld},
		{time.Second, -time.Second, nil},
		{time.Second, -time.Second - 1, signature.ErrTooNew},
		{24 * time.Hour, 24 * time.Hour, nil},
		{24 * time.Hour, 24*time.Hour + time.Second, signature.ErrTooOld},
	}
	for _, tt := range tests {
		v := newVerifier(t, refSecret)
		v.Tolerance = tt.tolerance
		v.Now = func() time.Time { return refTime.Add(tt.now) }
		h := standard(refID, refTime, sig.Standard(refID, refTime, []byte(refBody)))
		if err := v.Verify(h, []byte(refBody)); !errors.Is(err, tt.want) || (tt.want == nil && err != nil) {
			t.Errorf("tolerance %v, clock at %v: Verify = %v, want %v", tt.tolerance, tt.now, err, tt.want)
		}
	}
}

func TestVerifyDefaultClock(t *testing.T) {
	v, err := signature.NewVerifier(refSecret)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	h := standard(refID, now, newSigner(t, refSecret).Standard(refID, now, []byte(refBody)))
	if err := v.Verify(h, []byte(refBody)); err != nil {
		t.Error(err)
	}
	if err := v.Verify(standard(refID, refTime, refSig), []byte(refBody)); !errors.Is(err, signature.ErrTooOld) {
		t.Errorf("Verify = %v, want ErrTooOld", err)
	}
}

// TestVerifyRotation goes through every pairing of a sender and a receiver of
// which one or both know two secrets.
func TestVerifyRotation(t *testing.T) {
	older, newer, unrelated := vectors[0].secret, vectors[1].secret, vectors[2].secret
	tests := []struct {
		sender, receiver []string
		standard, body   bool // whether the scheme's signature is valid
	}{
		{[]string{older}, []string{older}, true, true},
		{[]string{newer, older}, []string{older}, true, false}, // MuseHub's is by the newest alone
		{[]string{newer, older}, []string{newer}, true, true},
		{[]string{older}, []string{newer, older}, true, true},
		{[]string{newer}, []string{newer, older}, true, true},
		{[]string{newer, older}, []string{newer, older}, true, true},
		{[]string{newer, older}, []string{unrelated}, false, false},
		{[]string{unrelated}, []string{newer, older}, false, false},
	}
	check := func(t *testing.T, err error, valid bool) {
		t.Helper()
		if valid && err != nil || !valid && !errors.Is(err, signature.ErrMismatch) {
			t.Errorf("Verify = %v, want valid: %v", err, valid)
		}
	}
	for _, tt := range tests {
		s, v := newSigner(t, tt.sender...), newVerifier(t, tt.receiver...)
		check(t, v.Verify(standard(refID, refTime, s.Standard(refID, refTime, []byte(refBody))), []byte(refBody)), tt.standard)
		check(t, v.Verify(museHub(s.Body([]byte(refBody))), []byte(refBody)), tt.body)
	}
}

func TestVerifyStandardOnly(t *testing.T) {
	v := newVerifier(t, refSecret)
	v.StandardOnly = true
	if err := v.Verify(museHub(vectors[0].wantBody), []byte(refBody)); !errors.Is(err, signature.ErrMissing) {
		t.Errorf("MuseHub's signature alone: Verify = %v, want ErrMissing", err)
	}
	h := standard(refID, refTime, refSig)
	h.Set(museHubHeader, "of no interest")
	if err := v.Verify(h, []byte(refBody)); err != nil {
		t.Errorf("both signatures: Verify = %v", err)
	}
}

func TestVerifyBrand(t *testing.T) {
	v := newVerifier(t, refSecret)
	v.Brand = "Acme"
	h := http.Header{}
	h.Set("X-Acme-Signature", vectors[0].wantBody)
	if err := v.Verify(h, []byte(refBody)); err != nil {
		t.Errorf("Acme's header: Verify = %v", err)
	}
	if err := v.Verify(museHub(vectors[0].wantBody), []byte(refBody)); !errors.Is(err, signature.ErrMissing) {
		t.Errorf("MuseHub's header: Verify = %v, want ErrMissing", err)
	}
}

// TestVerifySchemesApart checks that with a whsec_ secret a signature of one
// scheme is none of the other, even of the same bytes.
func TestVerifySchemesApart(t *testing.T) {
	mac, err := base64.StdEncoding.DecodeString(refSig[len("v1,"):])
	if err != nil {
		t.Fatal(err)
	}
	h := museHub("sha256=" + hex.EncodeToString(mac))
	err = newVerifier(t, refSecret).Verify(h, []byte(refID+".1614265330."+refBody))
	if !errors.Is(err, signature.ErrMismatch) {
		t.Errorf("Verify = %v, want ErrMismatch", err)
	}
}

// TestVerifyTampering changes each byte of a signed request in turn.
func TestVerifyTampering(t *testing.T) {
	v := newVerifier(t, refSecret)
	flips := []byte{1, 2, 4, 8, 16, 64, 128} // and not 32, the case of a hex digit

	headers := map[string]http.Header{
		"standard": standard(refID, refTime, refSig),
		"MuseHub":  museHub(vectors[0].wantBody),
	}
	for scheme, header := range headers {
		if err := v.Verify(header, []byte(refBody)); err != nil {
			t.Fatalf("%s: the original isn't valid: %v", scheme, err)
		}
		for i := range len(refBody) {
			for _, flip := range flips {
				body := []byte(refBody)
				body[i] ^= flip
				if err := v.Verify(header, body); !errors.Is(err, signature.ErrMismatch) {
					t.Errorf("%s, body %q: Verify = %v, want ErrMismatch", scheme, body, err)
				}
			}
			if err := v.Verify(header, []byte(refBody[:i])); !errors.Is(err, signature.ErrMismatch) {
				t.Errorf("%s, body %q: Verify = %v, want ErrMismatch", scheme, refBody[:i], err)
			}
		}
		if err := v.Verify(header, []byte(refBody+"\n")); !errors.Is(err, signature.ErrMismatch) {
			t.Errorf("%s, body with newline: Verify = %v, want ErrMismatch", scheme, err)
		}
		for name := range header {
			original := header.Get(name)
			for i := range len(original) {
				for _, flip := range flips {
					changed := []byte(original)
					changed[i] ^= flip
					h := header.Clone()
					h.Set(name, string(changed))
					if v.Verify(h, []byte(refBody)) == nil {
						t.Errorf("%s, %s %q is accepted", scheme, name, changed)
					}
				}
			}
		}
	}
}

func TestVerifyConcurrently(t *testing.T) {
	v := newVerifier(t, vectors[1].secret, refSecret)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				if err := v.Verify(standard(refID, refTime, refSig), []byte(refBody)); err != nil {
					t.Errorf("Verify = %v", err)
				}
				if err := v.Verify(museHub(vectors[0].wantBody), []byte("other")); !errors.Is(err, signature.ErrMismatch) {
					t.Errorf("Verify = %v, want ErrMismatch", err)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkVerify(b *testing.B) {
	v := newVerifier(b, refSecret)
	h := standard(refID, refTime, refSig)
	body := []byte(refBody)
	b.ReportAllocs()
	for b.Loop() {
		if err := v.Verify(h, body); err != nil {
			b.Fatal(err)
		}
	}
}
