package httpapi

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"time"
)

// listing identifies what is listed, so that a cursor can't be taken from one listing to another: a hash of the kind,
// of where it is, and of the filters.
type listing [8]byte

func newListing(parts ...string) listing {
	h := sha256.New()
	for _, part := range parts { // each behind its length, so that no two lists of parts have the same bytes
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		h.Write([]byte(part))
	}
	return listing(h.Sum(nil)[:8])
}

// cursor returns the cursor of the page that starts at a position, nil for position zero, where the listing ends.
func (l listing) cursor(position int64) *string {
	if position == 0 {
		return nil
	}
	s := base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint64(l[:], uint64(position)))
	return &s
}

// position returns where the page of a cursor starts, zero for the empty cursor of the first page.
func (l listing) position(cursor string) (int64, error) {
	if cursor == "" {
		return 0, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(cursor)
	if err == nil && len(b) == len(l)+8 {
		position := int64(binary.BigEndian.Uint64(b[len(l):]))
		// There is one way to write a cursor. All others are refused, and with them those of other listings.
		if position > 0 && *l.cursor(position) == cursor {
			return position, nil
		}
	}
	return 0, invalid("cursor", "it is none that this listing gave out: take the nextCursor of the same listing "+
		"with the same filters, or start without one")
}

// timestamp writes a time the way the API shows all of them.
func timestamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z") }
