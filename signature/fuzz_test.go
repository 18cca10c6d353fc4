package signature_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/musehub/posthorn/signature"
)

// plainMAC is HMAC-SHA256 as simply as it can be written.
func plainMAC(key []byte, message string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(message))
	return h.Sum(nil)
}

// FuzzVerify checks that Verify, whatever the headers, doesn't panic, returns
// only errors of this package, and accepts a request only if the headers hold a
// signature that is made here once more from the specification.
func FuzzVerify(f *testing.F) {
	f.Add(refID, "1614265330", refSig, "", []byte(refBody))
	f.Add(refID, "1614265330", "v1a,AAAA v1, "+refSig+" v1", vectors[0].wantBody, []byte(refBody))
	f.Add("", "", "", vectors[0].wantBody, []byte(refBody))
	f.Add("", "", "", strings.ToUpper(vectors[0].wantBody), []byte(refBody))
	f.Add("", "1614265330", refSig, "sha256=", []byte{})
	f.Add(refID, "+1614265330", refSig, "sha256=zz", []byte(refBody))
	f.Add(refID, "-9223372036854775808", refSig+"\n", "", []byte(refBody))
	f.Add(refID, "1614265330", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OF=", "", []byte(refBody))
	f.Add("msg.1614265330", "1614265330", "v1,"+strings.Repeat("A", 43)+"=", "", []byte(nil))

	v := newVerifier(f, refSecret)
	key, err := base64.StdEncoding.DecodeString(refSecret[len("whsec_"):])
	if err != nil {
		f.Fatal(err)
	}
	known := []error{
		signature.ErrMissing, signature.ErrMalformed, signature.ErrID, signature.ErrTimestamp,
		signature.ErrTooOld, signature.ErrTooNew, signature.ErrMismatch,
	}
	f.Fuzz(func(t *testing.T, id, timestamp, sig, museSig string, body []byte) {
		h := http.Header{}
		h.Set("webhook-id", id)
		h.Set("webhook-timestamp", timestamp)
		h.Set("webhook-signature", sig)
		h.Set(museHubHeader, museSig)

		var signed bool
		if sig != "" {
			want := "v1," + base64.StdEncoding.EncodeToString(plainMAC(key, id+"."+timestamp+"."+string(body)))
			seconds, err := strconv.ParseInt(timestamp, 10, 64)
			signed = id != "" && err == nil && seconds >= refTime.Unix()-300 && seconds <= refTime.Unix()+300 &&
				slices.Contains(strings.Split(sig, " "), want)
		} else {
			encoded, ok := strings.CutPrefix(museSig, "sha256=")
			signed = ok && strings.EqualFold(encoded, hex.EncodeToString(plainMAC([]byte(refSecret), string(body))))
		}

		err := v.Verify(h, body)
		if (err == nil) != signed {
			t.Errorf("Verify = %v, want signed: %v", err, signed)
		}
		if err != nil && !slices.ContainsFunc(known, func(e error) bool { return errors.Is(err, e) }) {
			t.Errorf("Verify = %v, which is none of the package's errors", err)
		}
	})
}

// FuzzRoundTrip checks that what a Signer signs a Verifier accepts, and that it
// accepts no other body, id or time.
func FuzzRoundTrip(f *testing.F) {
	f.Add(refSecret, "old", refID, refTime.Unix(), []byte(refBody))
	f.Add(edSeed, edLong, refID, refTime.Unix(), []byte(refBody))
	f.Add("whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "whsec_AAEC", "evt_1", int64(0), []byte{})
	f.Add("hunter2 🎺", strings.Repeat("k", 100), "evt_1", int64(-62135596800), []byte{0, 0xff})
	f.Add("\x00", "whsec", "é", int64(253402300799), []byte(nil))

	f.Fuzz(func(t *testing.T, newer, older, id string, seconds int64, body []byte) {
		s, err := signature.NewSigner(newer, older)
		v, verr := signature.NewVerifier(older, newer)
		if (err == nil) != (verr == nil) {
			t.Fatalf("NewSigner: %v, NewVerifier: %v", err, verr)
		}
		const year = 366 * 24 * 3600
		if err != nil || id == "" || seconds < -10_000*year || seconds > 10_000*year {
			return
		}
		at := time.Unix(seconds, 0)
		v.Now = func() time.Time { return at }
		changed := append(slices.Clip(body), 'x')

		std := s.Standard(id, at, body)
		if err := v.Verify(standard(id, at, std), body); err != nil {
			t.Errorf("Standard: Verify = %v", err)
		}
		for _, sig := range strings.Split(std, " ") { // each is enough
			if err := v.Verify(standard(id, at, sig), body); err != nil {
				t.Errorf("Standard %q: Verify = %v", sig, err)
			}
		}
		if err := v.Verify(standard(id, at, std), changed); !errors.Is(err, signature.ErrMismatch) {
			t.Errorf("Standard, changed body: Verify = %v, want ErrMismatch", err)
		}
		if err := v.Verify(standard(id+"x", at, std), body); !errors.Is(err, signature.ErrMismatch) {
			t.Errorf("Standard, changed id: Verify = %v, want ErrMismatch", err)
		}
		if err := v.Verify(standard(id, at.Add(time.Second), std), body); !errors.Is(err, signature.ErrMismatch) {
			t.Errorf("Standard, changed time: Verify = %v, want ErrMismatch", err)
		}

		keysAlone := strings.HasPrefix(newer, "whsk_") && strings.HasPrefix(older, "whsk_")
		if keysAlone != (s.Body(body) == "") {
			t.Errorf("Body = %q", s.Body(body))
		}
		if keysAlone {
			return
		}
		if err := v.Verify(museHub(s.Body(body)), body); err != nil {
			t.Errorf("Body: Verify = %v", err)
		}
		if err := v.Verify(museHub(s.Body(body)), changed); !errors.Is(err, signature.ErrMismatch) {
			t.Errorf("Body, changed body: Verify = %v, want ErrMismatch", err)
		}
	})
}
