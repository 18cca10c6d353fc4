package signature

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"strings"
)

const (
	privatePrefix   = "whsk_"
	publicPrefix    = "whpk_"
	ed25519Standard = "v1a,"
)

// GeneratePrivateKey returns a new Ed25519 key: "whsk_" and the base64 of 32
// random bytes. It is safe for concurrent use.
func GeneratePrivateKey() string {
	_, key, _ := ed25519.GenerateKey(nil) // never fails
	return privatePrefix + base64.StdEncoding.EncodeToString(key.Seed())
}

// PublicKey returns what receivers verify with, "whpk_" and the base64 of 32
// bytes, for a secret that is an Ed25519 key. For any other the error wraps
// [ErrSecret].
func PublicKey(privateKey string) (string, error) {
	encoded, ok := strings.CutPrefix(privateKey, privatePrefix)
	if !ok {
		return "", fmt.Errorf("%w: it does not start with %s", ErrSecret, privatePrefix)
	}
	key, err := decodePrivateKey(encoded)
	if err != nil {
		return "", err
	}
	return publicPrefix + base64.StdEncoding.EncodeToString(publicOf(key)), nil
}

// decodePrivateKey takes the 32 bytes that a key is derived from, and the 64
// that other programs write: the same and the public key.
func decodePrivateKey(encoded string) (ed25519.PrivateKey, error) {
	raw, ok := decodeKey(encoded)
	if !ok || len(raw) != ed25519.SeedSize && len(raw) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("%w: %s is not followed by the base64 of 32 or 64 bytes", ErrSecret, privatePrefix)
	}
	key := ed25519.NewKeyFromSeed(raw[:ed25519.SeedSize])
	// To sign with a public key that isn't the private one's would give the
	// private one away.
	if len(raw) == ed25519.PrivateKeySize && !bytes.Equal(raw, key) {
		return nil, fmt.Errorf("%w: the second half of the %s key is not the public key of the first", ErrSecret, privatePrefix)
	}
	return key, nil
}

func decodePublicKey(encoded string) (ed25519.PublicKey, error) {
	raw, ok := decodeKey(encoded)
	if !ok || len(raw) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("%w: %s is not followed by the base64 of 32 bytes", ErrSecret, publicPrefix)
	}
	return raw, nil
}

func publicOf(key ed25519.PrivateKey) ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }
