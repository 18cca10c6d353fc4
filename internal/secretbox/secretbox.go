// Package secretbox seals the secrets of webhooks for storage, in the Fernet
// format (https://github.com/fernet/spec), so that a database whose secrets
// another Fernet implementation sealed stays readable. What is
// sealed for a webhook (SealFor) is of use only here.
package secretbox

import (
	"crypto/aes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/fernet/fernet-go"
)

// ErrUndecryptable is returned by Open for a value that has the shape of a
// sealed secret and that none of the box's keys opens: the key is missing, or
// the value was altered.
var ErrUndecryptable = errors.New("none of the keys opens the sealed secret")

// ErrForeign is returned by OpenFor for a secret that is not bound to the owner.
var ErrForeign = errors.New("the secret was not sealed for this owner")

// Layout of a Fernet token before base64: version, time, IV, ciphertext, HMAC.
const (
	tokenVersion  = 0x80
	tokenOverhead = 1 + 8 + aes.BlockSize + sha256.Size
	minTokenLen   = tokenOverhead + aes.BlockSize // padding fills at least one block

	// tokenPrefix is how every token starts for some thousand years: the version and the first bytes of a time in
	// seconds, in base64.
	tokenPrefix = "gAAAA"

	// mark stands before and behind the owner of a secret that is bound to one. It can't begin a secret that isn't, as no
	// text in UTF-8 has this byte.
	mark = "\xff"
)

// A Box seals and opens secrets with a fixed set of keys. It is safe for
// concurrent use, and never shows its keys when printed.
type Box struct {
	keys []*fernet.Key
}

// New returns a Box that seals with the first of keys and opens with any of
// them; to rotate keys, put the new one in front. A key is 32 bytes in URL-safe
// or standard base64 with padding, or in hexadecimal.
func New(keys []string) (*Box, error) {
	if len(keys) == 0 {
		return nil, errors.New("no secret key given; make one with `posthorn keys generate`")
	}
	b := &Box{keys: make([]*fernet.Key, len(keys))}
	for i, s := range keys {
		k, err := fernet.DecodeKey(s)
		if err != nil {
			// err is left out: it can quote a part of the key.
			return nil, fmt.Errorf("secret key %d of %d is not 32 bytes in base64; make one with `posthorn keys generate`",
				i+1, len(keys))
		}
		b.keys[i] = k
	}
	return b, nil
}

// GenerateKey returns a new random key in the form that New takes.
func GenerateKey() (string, error) {
	var k fernet.Key
	if err := k.Generate(); err != nil {
		return "", fmt.Errorf("generate secret key: %w", err)
	}
	return k.Encode(), nil
}

// Seal encrypts plaintext with the first key.
func (b *Box) Seal(plaintext string) (string, error) {
	token, err := fernet.EncryptAndSign([]byte(plaintext), b.keys[0])
	if err != nil {
		return "", fmt.Errorf("seal secret: %w", err)
	}
	return string(token), nil
}

// Open decrypts a value that Seal made with any of the keys, however long ago.
// A value that IsSealed denies is a secret that was never encrypted, as found
// in imported databases: it is returned as it is, with sealed false. The error
// is ErrUndecryptable or nil.
func (b *Box) Open(value string) (plaintext string, sealed bool, err error) {
	if !IsSealed(value) {
		return value, false, nil
	}
	// A ttl of 0 skips both checks of the token's time: secrets don't expire,
	// and a clock set back doesn't make them unreadable.
	msg := fernet.VerifyAndDecrypt([]byte(value), 0, b.keys)
	if msg == nil {
		return "", true, ErrUndecryptable
	}
	return string(msg), true, nil
}

// SealFor encrypts a secret, text in UTF-8, with the first key and binds it to its owner: OpenFor gives it to no other.
func (b *Box) SealFor(owner, secret string) (string, error) {
	return b.Seal(mark + owner + mark + secret)
}

// OpenFor decrypts what SealFor made for the owner. It reports whether the value is current, which is sealed with the first key. The
// error is ErrUndecryptable, ErrForeign or nil.
func (b *Box) OpenFor(owner, value string) (secret string, current bool, err error) {
	secret, bound, current, err := b.open(owner, value)
	if err == nil && !bound {
		return "", false, ErrForeign
	}
	return secret, current, err
}

// OpenImported does so too, and takes what is bound to nobody, as found in imported databases: another Fernet implementation's, or
// what was never encrypted. None of that is current.
func (b *Box) OpenImported(owner, value string) (secret string, current bool, err error) {
	secret, bound, current, err := b.open(owner, value)
	return secret, current && bound, err
}

// open reports with the secret whether the value is bound to the owner, and sealed with the first key.
func (b *Box) open(owner, value string) (secret string, bound, current bool, err error) {
	first := &Box{keys: b.keys[:1]}
	text, sealed, err := first.Open(value)
	current = sealed && err == nil
	if err != nil && len(b.keys) > 1 {
		text, _, err = b.Open(value)
	}
	if err != nil {
		return "", false, false, err
	}
	rest, bound := strings.CutPrefix(text, mark)
	if !bound || !sealed {
		return text, false, current, nil
	}
	of, secret, _ := strings.Cut(rest, mark)
	if of != owner {
		return "", false, false, ErrForeign
	}
	return secret, true, current, nil
}

// First returns the fingerprint of the key that seals.
func (b *Box) First() string { return fingerprint(b.keys[0]) }

// Len returns how many keys the box has.
func (b *Box) Len() int { return len(b.keys) }

// Fingerprint tells keys apart without showing them: 16 hexadecimal digits, the same for each form of a key.
func Fingerprint(key string) (string, error) {
	b, err := New([]string{key})
	if err != nil {
		return "", err
	}
	return b.First(), nil
}

func fingerprint(key *fernet.Key) string {
	sum := sha256.Sum256(key[:])
	return hex.EncodeToString(sum[:8])
}

// IsSealed reports whether value is a sealed secret or what is left of one: it starts like one, or has the version and a
// length of one. What a column cut short, say, must not be taken for a plaintext: then the ciphertext would sign. It
// doesn't tell whether any key opens it.
func IsSealed(value string) bool {
	raw, err := base64.URLEncoding.DecodeString(value)
	return strings.HasPrefix(value, tokenPrefix) ||
		err == nil &&
			len(raw) >= minTokenLen &&
			raw[0] == tokenVersion &&
			(len(raw)-tokenOverhead)%aes.BlockSize == 0
}

// Format implements fmt.Formatter: whatever the verb, the keys aren't shown.
func (b Box) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, b.String())
}

// String tells how many keys the box holds, and nothing else about them.
func (b Box) String() string {
	return fmt.Sprintf("secretbox.Box(%d keys)", len(b.keys))
}
