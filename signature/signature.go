// Package signature signs webhook deliveries and verifies what was received.
//
// A receiver has a URL that anyone can POST to. The signature is how it knows
// that a request was made by someone who holds the secret, and that no byte of
// the body was changed on the way. Receivers import just this package; it needs
// nothing but the standard library. Wrapping a handler is enough:
//
//	v, err := signature.NewVerifier(os.Getenv("WEBHOOK_SECRET"))
//	...
//	http.Handle("POST /hook", v.Middleware(handler))
//
// # Two schemes
//
// Every delivery to a webhook with a secret is signed twice, unless the secret
// is an Ed25519 key (see below), and a receiver needs to check only one of them.
//
// Standard Webhooks 1.0.0 (https://www.standardwebhooks.com) is the one to
// prefer, for it also signs the event's id and the time of the attempt, and so
// an old request can't be sent again later:
//
//	webhook-id: evt_2KWPBgLlAfxdpx2AI54pPJ85f4W
//	webhook-timestamp: 1674087231
//	webhook-signature: v1,<base64 of HMAC-SHA256(key, id "." timestamp "." body)>
//
// While a secret is being rotated the header carries one signature for each
// secret, separated by spaces.
//
// MuseHub's own scheme covers the body alone and is signed with the newest
// secret alone that isn't an Ed25519 key:
//
//	X-MuseHub-Signature: sha256=<hex of HMAC-SHA256(secret, body)>
//
// It has no protection against replay: who has once seen such a request can
// repeat it for as long as the secret is valid. [Verifier.StandardOnly] turns
// it off.
//
// # Secrets
//
// A secret is any string that isn't empty. In Standard Webhooks a secret that
// starts with "whsec_" stands for the bytes that the rest encodes in base64,
// with or without padding; the bytes of any other secret are themselves the
// key. In MuseHub's scheme the key is always the bytes of the whole string,
// prefix included. [GenerateSecret] makes a good secret. The two schemes then
// have different keys, and nothing signed for one can be passed off as signed
// for the other.
//
// # Public keys
//
// A secret that starts with "whsk_" is an Ed25519 key: the rest is the base64
// of its 32 bytes, or of 64 that end in the public key. It signs by Standard
// Webhooks and nothing else:
//
//	webhook-signature: v1a,<base64 of Ed25519(key, id "." timestamp "." body)>
//
// A receiver verifies that with the public key, "whpk_" and the base64 of 32
// bytes, with which nobody can sign. [GeneratePrivateKey] makes such a secret,
// and [PublicKey] says what its public key is.
//
// # Duplicates
//
// A valid signature doesn't mean that the event is new. Deliveries are repeated
// after timeouts and crashes, so a receiver should remember the webhook-id of
// what it has handled.
package signature

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The headers of Standard Webhooks, in the form that [net/http] keeps them in.
// Header names have no case on the wire.
const (
	HeaderID        = "Webhook-Id"
	HeaderTimestamp = "Webhook-Timestamp"
	HeaderSignature = "Webhook-Signature"
)

const (
	secretPrefix   = "whsec_"
	bodyPrefix     = "sha256="
	standardPrefix = "v1,"
)

// ErrSecret is returned for a secret that can't be a key: it is empty, or it
// starts with "whsec_", "whsk_" or "whpk_" and what follows isn't such a key in
// base64. The error's text doesn't contain the secret.
var ErrSecret = errors.New("signature: invalid secret")

// GenerateSecret returns a new secret: "whsec_" and the base64 of 32 random
// bytes. It is safe for concurrent use.
func GenerateSecret() string {
	key := make([]byte, 32)
	rand.Read(key) // never fails
	return secretPrefix + base64.StdEncoding.EncodeToString(key)
}

// A Signer signs with a fixed list of secrets. It keeps the keyed hashes and
// uses them again, so make one for each webhook and not for each delivery.
//
// The zero Signer has no secrets and signs nothing. A Signer is safe for
// concurrent use and must not be copied.
type Signer struct {
	keys keyring
}

// NewSigner returns a Signer for the secrets, the newest first. There is more
// than one while a secret is being rotated. Without secrets it signs nothing.
//
// An empty secret is an error and not the same as no secret, so that a secret
// that was lost never leads to deliveries without a signature. That, a malformed
// "whsec_" or "whsk_" secret, and a public key, which can't sign, give an error
// that wraps [ErrSecret].
func NewSigner(secrets ...string) (*Signer, error) {
	for _, secret := range secrets {
		if strings.HasPrefix(secret, publicPrefix) {
			return nil, fmt.Errorf("%w: %s is a public key, which verifies and can't sign", ErrSecret, publicPrefix)
		}
	}
	s := new(Signer)
	if err := s.keys.init(secrets); err != nil {
		return nil, err
	}
	return s, nil
}

// Body returns the value of the X-MuseHub-Signature header, the body's
// signature by the newest secret that isn't an Ed25519 key, or "" if the Signer
// has none.
func (s *Signer) Body(body []byte) string {
	if s.keys.hmacs == 0 {
		return ""
	}
	m := s.keys.get()
	defer s.keys.put(m)

	for _, k := range m.keys {
		if k.body != nil {
			m.text = append(m.text[:0], bodyPrefix...)
			m.text = hex.AppendEncode(m.text, m.sum(k.body, nil, body))
			break
		}
	}
	return string(m.text)
}

// Standard returns the value of the webhook-signature header: a signature of
// id, time and body by each secret, separated by spaces, or "" if the Signer
// has no secrets. The receiver needs the same id in the webhook-id header and
// t.Unix() in decimal in webhook-timestamp.
//
// The id must not contain a full stop. What is signed joins the parts with full
// stops, and with one inside the id the same signature would be valid for a
// message cut at another place.
func (s *Signer) Standard(id string, t time.Time, body []byte) string {
	if s.keys.hmacs+s.keys.ed25519s == 0 {
		return ""
	}
	m := s.keys.get()
	defer s.keys.put(m)

	m.prefix = append(m.prefix[:0], id...)
	m.prefix = append(m.prefix, '.')
	m.prefix = strconv.AppendInt(m.prefix, t.Unix(), 10)
	m.prefix = append(m.prefix, '.')

	m.text = m.text[:0]
	for i, k := range m.keys {
		if i > 0 {
			m.text = append(m.text, ' ')
		}
		if k.private != nil {
			m.text = append(m.text, ed25519Standard...)
			m.text = base64.StdEncoding.AppendEncode(m.text, ed25519.Sign(k.private, m.join(m.prefix, body)))
			continue
		}
		m.text = append(m.text, standardPrefix...)
		m.text = base64.StdEncoding.AppendEncode(m.text, m.sum(k.standard, m.prefix, body))
	}
	return string(m.text)
}

// A keyring lends out the keys of a list of secrets. Keying a hash costs more
// than signing a short body, so the hashes are pooled and reset. The keys
// themselves live only in the pool's closure, out of reach of a %+v.
type keyring struct {
	hmacs, ed25519s int // keys of each kind
	pool            sync.Pool
}

// macs is one set of keys, for one goroutine at a time.
type macs struct {
	keys []key // one for each secret, newest first

	prefix, text, mac, message []byte // scratch space
}

// key is a secret's: two keyed hashes, or a key of Ed25519.
type key struct {
	body, standard hash.Hash          // nil for Ed25519
	private        ed25519.PrivateKey // nil for a public key
	public         ed25519.PublicKey
}

func (r *keyring) init(secrets []string) error {
	recipes := make([]func() key, len(secrets))
	for i, secret := range secrets {
		var err error
		if recipes[i], err = r.recipe(secret); err != nil {
			return err
		}
	}
	r.pool.New = func() any {
		m := &macs{keys: make([]key, len(recipes))}
		for i, recipe := range recipes {
			m.keys[i] = recipe()
		}
		return m
	}
	return nil
}

// recipe checks a secret, counts it, and returns what makes its key.
func (r *keyring) recipe(secret string) (func() key, error) {
	if secret == "" {
		return nil, fmt.Errorf("%w: it is empty", ErrSecret)
	}
	if encoded, ok := strings.CutPrefix(secret, privatePrefix); ok {
		private, err := decodePrivateKey(encoded)
		if err != nil {
			return nil, err
		}
		r.ed25519s++
		return func() key { return key{private: private, public: publicOf(private)} }, nil
	}
	if encoded, ok := strings.CutPrefix(secret, publicPrefix); ok {
		public, err := decodePublicKey(encoded)
		if err != nil {
			return nil, err
		}
		r.ed25519s++
		return func() key { return key{public: public} }, nil
	}
	var standard []byte // nil where it is the secret itself
	if encoded, ok := strings.CutPrefix(secret, secretPrefix); ok {
		if standard, ok = decodeKey(encoded); !ok {
			return nil, fmt.Errorf("%w: %s is not followed by base64", ErrSecret, secretPrefix)
		}
	}
	r.hmacs++
	return func() key {
		body := hmac.New(sha256.New, []byte(secret))
		if standard == nil {
			return key{body: body, standard: body}
		}
		return key{body: body, standard: hmac.New(sha256.New, standard)}
	}, nil
}

// maxScratch is how much of a message that was signed is kept for the next.
const maxScratch = 64 << 10

func (r *keyring) get() *macs { return r.pool.Get().(*macs) }

func (r *keyring) put(m *macs) {
	if cap(m.message) > maxScratch {
		m.message = nil
	}
	r.pool.Put(m)
}

// join returns prefix and body as one, as Ed25519 reads its message twice. It
// is valid until the next call.
func (m *macs) join(prefix, body []byte) []byte {
	m.message = append(append(m.message[:0], prefix...), body...)
	return m.message
}

// sum returns the MAC of prefix and body. It is valid until the next call.
func (m *macs) sum(h hash.Hash, prefix, body []byte) []byte {
	h.Reset()
	h.Write(prefix)
	h.Write(body)
	m.mac = h.Sum(m.mac[:0])
	return m.mac
}

// decodeKey decodes base64, padded or not, that stands for at least one byte.
func decodeKey(s string) (key []byte, ok bool) {
	if strings.ContainsAny(s, "\r\n") { // which the decoder would skip
		return nil, false
	}
	enc := base64.RawStdEncoding
	if strings.HasSuffix(s, "=") {
		enc = base64.StdEncoding
	}
	key, err := enc.DecodeString(s)
	return key, err == nil && len(key) > 0
}
