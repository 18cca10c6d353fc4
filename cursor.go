package posthorn

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"strings"
)

// cursorKey is the name of the setting that has the key of the cursors.
const cursorKey = "cursor_key"

// openCursors returns what seals cursors. The key is kept by the store, in plain text, so that all nodes have the same one and
// a cursor outlives a restart: it hides nothing from who reads the database, which has all that cursors say.
func openCursors(ctx context.Context, store Store) (cipher.AEAD, error) {
	fresh := make([]byte, 16)
	_, _ = rand.Read(fresh) // never fails
	stored, err := store.Setting(ctx, cursorKey, base64.RawStdEncoding.EncodeToString(fresh))
	if err != nil {
		return nil, err
	}
	key, _ := base64.RawStdEncoding.DecodeString(stored) // if it is none, its length is wrong
	cursors, err := cursorsOf(key)
	if err != nil {
		return nil, Errorf(CodeInternal, "the setting %s of the store is no key: %w", cursorKey, err)
	}
	return cursors, nil
}

func cursorsOf(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// SealCursor returns a position as a text for a client, which it says nothing: positions count what all repos do. OpenCursor
// of the same scope, at any node of the store, is the way back.
func (d *Dispatcher) SealCursor(scope string, position []byte) string {
	return base64.RawURLEncoding.EncodeToString(d.cursors.Seal(nil, nil, position, []byte(scope))) //nolint:gosec // its nonce is random
}

// OpenCursor returns the position of a cursor. It is not ok if the text is none that SealCursor returned for the scope.
func (d *Dispatcher) OpenCursor(scope, cursor string) (position []byte, ok bool) {
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || strings.ContainsAny(cursor, "\r\n") { // which the decoder passes over
		return nil, false
	}
	position, err = d.cursors.Open(nil, nil, sealed, []byte(scope))
	return position, err == nil
}
