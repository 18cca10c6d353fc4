package signature

import (
	"cmp"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Errors of [Verifier.Verify], each for one thing that is wrong with a request.
// Use [errors.Is]; the errors that are returned may say more. No error contains
// a secret or the signature that was expected, so they can be logged and shown
// to the sender.
var (
	// ErrMissing means that no signature header is there, or only one that
	// [Verifier.StandardOnly] rules out.
	ErrMissing = errors.New("signature: no signature header")

	// ErrMalformed means that the signature header holds no signature that can
	// be checked: it is garbled, or all its signatures are of versions that the
	// Verifier has no key for.
	ErrMalformed = errors.New("signature: malformed signature header")

	// ErrID means that the webhook-id header is missing.
	ErrID = errors.New("signature: no webhook-id header")

	// ErrTimestamp means that the webhook-timestamp header is missing or isn't
	// a number of seconds.
	ErrTimestamp = errors.New("signature: missing or invalid webhook-timestamp header")

	// ErrTooOld means that the timestamp is too far in the past. The request is
	// a replay, or one of the two clocks is wrong.
	ErrTooOld = errors.New("signature: timestamp is too old")

	// ErrTooNew means that the timestamp is too far in the future. One of the
	// two clocks is wrong.
	ErrTooNew = errors.New("signature: timestamp is too new")

	// ErrMismatch means that no signature matches. The secret isn't the
	// sender's, or the id, the timestamp or the body isn't what was signed. A
	// usual cause is a body that was parsed and serialized again.
	ErrMismatch = errors.New("signature: no signature matches")
)

const (
	defaultBrand     = "MuseHub"
	defaultTolerance = 5 * time.Minute
	defaultMaxBody   = 25 << 20
)

// A Verifier checks the signatures of requests. Make it with [NewVerifier] and
// set the fields before its first use; from then on it is safe for concurrent
// use. It must not be copied.
type Verifier struct {
	// Tolerance is how far the timestamp may be from the present, into the past
	// and into the future, in whole seconds. Defaults to 5 minutes.
	Tolerance time.Duration

	// StandardOnly demands a Standard Webhooks signature. Without it a request
	// that has none is checked by its X-MuseHub-Signature header, which can be
	// replayed at any later time.
	StandardOnly bool

	// Brand is the middle of the header X-MuseHub-Signature, for senders that
	// are configured to go by another name. Defaults to "MuseHub".
	Brand string

	// MaxBody is the size in bytes up to which [Verifier.Middleware] reads a
	// request's body. Defaults to 25 MiB.
	MaxBody int64

	// Now is the clock, to be replaced in tests. Defaults to [time.Now].
	Now func() time.Time

	keys keyring
}

// NewVerifier returns a Verifier that accepts what is signed with any of the
// secrets. To rotate a secret, accept the old and the new one for a while.
// The public key of an Ed25519 key, "whpk_…", stands for it.
//
// A secret that is empty or malformed, and a list without secrets, give an
// error that wraps [ErrSecret].
func NewVerifier(secrets ...string) (*Verifier, error) {
	if len(secrets) == 0 {
		return nil, fmt.Errorf("%w: there is none", ErrSecret)
	}
	v := new(Verifier)
	if err := v.keys.init(secrets); err != nil {
		return nil, err
	}
	return v, nil
}

// Verify reports whether a request with these headers and this body was signed
// with one of the secrets. The body must be the bytes as they were received,
// and the header's keys canonical, as [net/http] makes them.
//
// If there is a webhook-signature header, it decides: the webhook-id must be
// there, the webhook-timestamp within the tolerance, and one of the signatures
// must match: of version v1 with a secret, of version v1a with an Ed25519 key.
// Those of other versions are ignored. Only if there is no such header does
// X-MuseHub-Signature count, and only if StandardOnly isn't set and there is a
// secret that isn't an Ed25519 key.
//
// The error is one of this package's, such as [ErrTooOld] or [ErrMismatch], or
// wraps one.
func (v *Verifier) Verify(header http.Header, body []byte) error {
	c, err := v.claim(header)
	if err != nil {
		return err
	}
	return v.check(c, body)
}

// A claim is what the headers say about a body that may not be read yet.
type claim struct {
	standard bool   // the scheme
	prefix   string // what was signed before the body
	macs     [][sha256.Size]byte
	ed25519s [][]byte
}

// maxEd25519 is how many Ed25519 signatures of a request are looked at: to check
// one takes as long as a hundred MACs, and anyone can send them.
const maxEd25519 = 20

// claim reads the headers and returns an error if no body can make them valid.
func (v *Verifier) claim(header http.Header) (claim, error) {
	if value := header.Get(HeaderSignature); value != "" {
		return v.standardClaim(header, value)
	}
	if v.StandardOnly || v.keys.hmacs == 0 {
		return claim{}, fmt.Errorf("%w: %s is required", ErrMissing, HeaderSignature)
	}
	name := "X-" + cmp.Or(v.Brand, defaultBrand) + "-Signature"
	value := header.Get(name)
	if value == "" {
		return claim{}, fmt.Errorf("%w: neither %s nor %s", ErrMissing, HeaderSignature, name)
	}
	encoded, ok := strings.CutPrefix(value, bodyPrefix)
	mac, err := hex.DecodeString(encoded)
	if !ok || err != nil || len(mac) != sha256.Size {
		return claim{}, fmt.Errorf("%w: %s", ErrMalformed, name)
	}
	return claim{macs: [][sha256.Size]byte{[sha256.Size]byte(mac)}}, nil
}

func (v *Verifier) standardClaim(header http.Header, value string) (claim, error) {
	id := header.Get(HeaderID)
	if id == "" {
		return claim{}, ErrID
	}

	timestamp := header.Get(HeaderTimestamp)
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil {
		return claim{}, ErrTimestamp // and not err, which quotes the header
	}
	clock := v.Now
	if clock == nil {
		clock = time.Now
	}
	now, tolerance := clock(), cmp.Or(v.Tolerance, defaultTolerance)
	// Whole seconds are compared because the sender has cut off the fraction.
	if seconds < now.Add(-tolerance).Unix() {
		return claim{}, ErrTooOld
	}
	if seconds > now.Add(tolerance).Unix() {
		return claim{}, ErrTooNew
	}

	// The prefix takes the header's text and not the parsed number, so that
	// only the very text that was signed is valid.
	c := claim{standard: true, prefix: id + "." + timestamp + "."}
	for signature := range strings.SplitSeq(value, " ") {
		if encoded, ok := strings.CutPrefix(signature, standardPrefix); ok && v.keys.hmacs > 0 {
			if mac := decodeSignature(encoded, sha256.Size); mac != nil {
				c.macs = append(c.macs, [sha256.Size]byte(mac))
			}
		}
		if encoded, ok := strings.CutPrefix(signature, ed25519Standard); ok && v.keys.ed25519s > 0 && len(c.ed25519s) < maxEd25519 {
			if sig := decodeSignature(encoded, ed25519.SignatureSize); sig != nil {
				c.ed25519s = append(c.ed25519s, sig)
			}
		}
	}
	if c.macs == nil && c.ed25519s == nil {
		versions := "v1"
		switch {
		case v.keys.hmacs == 0:
			versions = "v1a"
		case v.keys.ed25519s > 0:
			versions = "v1 or v1a"
		}
		return claim{}, fmt.Errorf("%w: no %s signature in %s", ErrMalformed, versions, HeaderSignature)
	}
	return c, nil
}

// decodeSignature returns size bytes, or nil if their base64 isn't what is there.
func decodeSignature(encoded string, size int) []byte {
	if len(encoded) != base64.StdEncoding.EncodedLen(size) {
		return nil
	}
	sig, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil || len(sig) != size {
		return nil
	}
	return sig
}

// check returns nil if one of the secrets signed the body with one of the
// claim's signatures, and ErrMismatch otherwise.
func (v *Verifier) check(c claim, body []byte) error {
	m := v.keys.get()
	defer v.keys.put(m)

	m.prefix = append(m.prefix[:0], c.prefix...)
	if len(c.ed25519s) > 0 {
		m.join(m.prefix, body)
	}
	for _, k := range m.keys {
		for _, sig := range c.ed25519s {
			if k.public != nil && ed25519.Verify(k.public, m.message, sig) {
				return nil
			}
		}
		if k.body == nil || len(c.macs) == 0 {
			continue
		}
		h := k.body
		if c.standard {
			h = k.standard
		}
		want := m.sum(h, m.prefix, body)
		for _, got := range c.macs {
			if hmac.Equal(got[:], want) {
				return nil
			}
		}
	}
	return ErrMismatch
}
