package signature_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/musehub/posthorn/signature"
)

// A key, and its signature of the reference's id, time and body, made apart
// from this package with Python's cryptography:
//
//	key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
//	public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
//	"whsk_" + b64encode(bytes(range(32)) + public).decode()
//	"v1a," + b64encode(key.sign(f"{id}.{timestamp}.".encode() + body)).decode()
//
// OpenSSL agrees:
//
//	openssl pkeyutl -sign -inkey key.pem -rawin -in message | base64 -w0
const (
	edSeed   = "whsk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	edLong   = "whsk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8DoQe/884Qvh1w3RjnS8CZZ+TWMJulDV8d3IZkElUxuA=="
	edPublic = "whpk_A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="
	edSig    = "v1a,yoUrgEkc12aGqm0n4Sydmdz55xJfTz4AsAgieHFjmkR7LJtqVCZOQYzvvHjI5kAey+r4iaBGxTFRrl2iBQxtDQ=="
	edEmpty  = "v1a,5uSaJ/HxJaK1mMpvh18fLXCVas7NZHtxC05Wm/OGHh8ptoCpRlOivwGqhhSNjQ6cZN5xtgOY0ggBi0SjgjEzBA==" // of evt_1 and no body
)

func TestEd25519Vectors(t *testing.T) {
	for _, secret := range []string{edSeed, edLong, strings.TrimRight(edSeed, "="), strings.TrimRight(edLong, "=")} {
		s := newSigner(t, secret)
		for range 3 { // what is used again gives the same
			if got := s.Standard(refID, refTime, []byte(refBody)); got != edSig {
				t.Errorf("Standard = %q, want %q", got, edSig)
			}
			if got := s.Standard("evt_1", refTime, nil); got != edEmpty {
				t.Errorf("Standard = %q, want %q", got, edEmpty)
			}
			if got := s.Body([]byte(refBody)); got != "" {
				t.Errorf("Body = %q, want nothing", got)
			}
		}
		if got, err := signature.PublicKey(secret); got != edPublic || err != nil {
			t.Errorf("PublicKey = %q, %v, want %q", got, err, edPublic)
		}
	}
}

// The test vectors of RFC 8032, section 7.1. Their messages are not those of a
// webhook, so the keys are what they show: each public key, in the form that is
// given to receivers, verifies its signature.
func TestPublicKeyRFC8032(t *testing.T) {
	for _, v := range []struct{ secret, public, message, sig string }{
		{
			"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
			"d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
			"",
			"e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
		},
		{
			"4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
			"3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
			"72",
			"92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
		},
		{
			"c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
			"fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
			"af82",
			"6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
		},
	} {
		got, err := signature.PublicKey("whsk_" + base64.StdEncoding.EncodeToString(unhex(t, v.secret)))
		if want := "whpk_" + base64.StdEncoding.EncodeToString(unhex(t, v.public)); got != want || err != nil {
			t.Errorf("PublicKey = %q, %v, want %q", got, err, want)
			continue
		}
		public, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(got, "whpk_"))
		if err != nil || !ed25519.Verify(public, unhex(t, v.message), unhex(t, v.sig)) {
			t.Errorf("the signature of %q doesn't verify: %v", v.message, err)
		}
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEd25519InvalidKeys(t *testing.T) {
	otherHalf := base64.StdEncoding.EncodeToString(append(make([]byte, 32), unhex(t, strings.Repeat("d7", 32))...))
	for _, secret := range []string{
		"whsk_", "whsk_not base64", "whsk_AAEC", edSeed + "=", edSeed[:len(edSeed)-1] + "\n", "whsk_" + otherHalf,
		"whpk_", "whpk_AAEC", "whpk_" + edLong[5:], "whpk_" + otherHalf,
	} {
		_, signerErr := signature.NewSigner(refSecret, secret)
		_, verifierErr := signature.NewVerifier(refSecret, secret)
		_, publicErr := signature.PublicKey(secret)
		for _, err := range []error{signerErr, verifierErr, publicErr} {
			if !errors.Is(err, signature.ErrSecret) {
				t.Errorf("secret %q: error %v, want ErrSecret", secret, err)
				continue
			}
			if rest := secret[5:]; len(rest) > 1 && strings.Contains(err.Error(), rest) {
				t.Errorf("secret %q is in the error %q", secret, err)
			}
		}
	}
	// A public key signs nothing, not even as a secret of many letters.
	if _, err := signature.NewSigner(edPublic); !errors.Is(err, signature.ErrSecret) {
		t.Errorf("NewSigner with a public key: error %v, want ErrSecret", err)
	}
	if _, err := signature.PublicKey(refSecret); !errors.Is(err, signature.ErrSecret) {
		t.Errorf("PublicKey of a secret: error %v, want ErrSecret", err)
	}
}

func TestGeneratePrivateKey(t *testing.T) {
	a, b := signature.GeneratePrivateKey(), signature.GeneratePrivateKey()
	if a == b {
		t.Error("two keys are the same")
	}
	if key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(a, "whsk_")); err != nil || len(key) != 32 || len(a) != len(edSeed) {
		t.Error("the key isn't whsk_ and 32 bytes in base64")
	}
	public, err := signature.PublicKey(a)
	if err != nil {
		t.Fatal(err)
	}
	sig := newSigner(t, a).Standard(refID, refTime, []byte(refBody))
	if err := newVerifier(t, public).Verify(standard(refID, refTime, sig), []byte(refBody)); err != nil {
		t.Errorf("Verify = %v", err)
	}
}

func TestVerifyEd25519(t *testing.T) {
	other := newSigner(t, signature.GeneratePrivateKey()).Standard(refID, refTime, []byte(refBody))
	museSig := vectors[0].wantBody
	many := strings.Repeat(other+" ", 20)
	// The same signature with a multiple of the group's order added to its second half, which a lax verifier takes.
	malleable := "v1a," + malleate(t, strings.TrimPrefix(edSig, "v1a,"))
	for _, tt := range []struct {
		name    string
		secrets []string
		sig     string
		want    error
	}{
		{"public key", []string{edPublic}, edSig, nil},
		{"private key", []string{edSeed}, edSig, nil},
		{"among others", []string{refSecret, edPublic}, other + " " + edSig + " " + refSig, nil},
		{"secret beside a public key", []string{edPublic, refSecret}, refSig, nil},
		{"of a key that is not the sender's", []string{edPublic}, other, signature.ErrMismatch},
		{"a secret's, to who has a public key alone", []string{edPublic}, refSig, signature.ErrMalformed},
		{"a key's, to who has a secret alone", []string{refSecret}, edSig, signature.ErrMalformed},
		{"a secret's of another", []string{edPublic, "other"}, refSig, signature.ErrMismatch},
		{"cut short", []string{edPublic}, edSig[:len(edSig)-4], signature.ErrMalformed},
		{"bits that base64 ignores", []string{edPublic}, strings.Replace(edSig, "DQ==", "DR==", 1), signature.ErrMalformed},
		{"as version v1", []string{edPublic, refSecret}, "v1" + edSig[3:], signature.ErrMalformed},
		{"malleated", []string{edPublic}, malleable, signature.ErrMismatch},
		{"behind so many that nobody sends", []string{edPublic}, many + edSig, signature.ErrMismatch},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := standard(refID, refTime, tt.sig)
			if err := newVerifier(t, tt.secrets...).Verify(h, []byte(refBody)); !errors.Is(err, tt.want) {
				t.Errorf("Verify = %v, want %v", err, tt.want)
			}
		})
	}

	v := newVerifier(t, edPublic)
	for name, h := range map[string][3]string{
		"id": {"msg_2", "1614265330", refBody}, "time": {refID, "1614265331", refBody}, "body": {refID, "1614265330", refBody + " "},
	} {
		header := standard(h[0], refTime, edSig)
		header.Set("webhook-timestamp", h[1])
		if err := v.Verify(header, []byte(h[2])); !errors.Is(err, signature.ErrMismatch) {
			t.Errorf("another %s: Verify = %v, want ErrMismatch", name, err)
		}
	}
	// The public key is known to all, so it must never be the key of an HMAC.
	forged := newSigner(t, "x"+edPublic).Body([]byte(refBody))
	for _, sig := range []string{museSig, forged} {
		if err := v.Verify(museHub(sig), []byte(refBody)); !errors.Is(err, signature.ErrMissing) {
			t.Errorf("MuseHub's signature: Verify = %v, want ErrMissing", err)
		}
	}
}

// malleate adds the order of the group to the scalar of a signature.
func malleate(t *testing.T, sig string) string {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(sig)
	if err != nil {
		t.Fatal(err)
	}
	order := unhex(t, "edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010")
	carry := 0
	for i, b := range order {
		carry += int(raw[32+i]) + int(b)
		raw[32+i], carry = byte(carry), carry>>8
	}
	return base64.StdEncoding.EncodeToString(raw)
}

// While a webhook changes from a secret to a key, both sign; X-MuseHub-Signature stays the secret's.
func TestSignerOfBothKinds(t *testing.T) {
	s := newSigner(t, edSeed, refSecret, "old")
	if got, want := s.Standard(refID, refTime, []byte(refBody)), edSig+" "+refSig+" "; !strings.HasPrefix(got, want) {
		t.Errorf("Standard = %q, want %q and one more", got, want)
	}
	if got := s.Body([]byte(refBody)); got != vectors[0].wantBody {
		t.Errorf("Body = %q, want the newest secret's %q", got, vectors[0].wantBody)
	}
	big := make([]byte, 1<<20)
	sig := s.Standard(refID, refTime, big)
	if err := newVerifier(t, edPublic).Verify(standard(refID, refTime, sig), big); err != nil {
		t.Errorf("a big body: Verify = %v", err)
	}
	if got := s.Standard(refID, refTime, []byte(refBody)); !strings.HasPrefix(got, edSig) {
		t.Errorf("after a big body: Standard = %q", got)
	}
}

func TestPrivateKeyStaysInside(t *testing.T) {
	s, v := newSigner(t, edSeed), newVerifier(t, edSeed)
	s.Standard(refID, refTime, nil)
	raw, err := base64.StdEncoding.DecodeString(edSeed[5:])
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []any{s, v} {
		text := fmt.Sprintf("%v %+v %#v", x, x, x)
		for _, form := range []string{edSeed[5:], strings.Trim(fmt.Sprint(raw), "[]"), strings.Trim(fmt.Sprintf("%#v", raw), "[]byte{}")} {
			if strings.Contains(text, form) {
				t.Errorf("%T shows its key: %s", x, text)
			}
		}
	}
}
