package posthorn

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"time"
)

// Identifiers are UUIDs of version 7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then randomness. Their order
// is nearly that of time, so that an index over them grows at its end.

// newID returns a new identifier.
func newID(now time.Time) string {
	var random [10]byte
	rand.Read(random[:]) // never fails: crypto/rand
	return formatUUID(now, random[:])
}

// DeliveryID derives the identifier of one attempt. The same attempt, made again after a crash, has the same one, which
// is how a receiver can tell. Its time is the event's, so that all deliveries of an event are near each other in an index.
func DeliveryID(event *AcceptedEvent, webhookID string, run int64, attempt int) string {
	h := sha256.New()
	var b [8]byte
	write := func(s string) { // each part behind its length, so that no two lists of parts have the same bytes
		h.Write(binary.BigEndian.AppendUint64(b[:0], uint64(len(s))))
		h.Write([]byte(s))
	}
	write(event.RepoID)
	write(event.ID)
	write(webhookID)
	h.Write(binary.BigEndian.AppendUint64(b[:0], uint64(run)))
	h.Write(binary.BigEndian.AppendUint64(b[:0], uint64(attempt)))
	return formatUUID(event.CreatedAt, h.Sum(nil))
}

func formatUUID(t time.Time, random []byte) string {
	var u [16]byte
	binary.BigEndian.PutUint64(u[:8], uint64(t.UnixMilli())<<16)
	copy(u[6:], random[:10])
	u[6] = u[6]&0x0f | 0x70 // version 7
	u[8] = u[8]&0x3f | 0x80 // the variant of RFC 9562
	var s [36]byte
	hex.Encode(s[:8], u[:4])
	s[8] = '-'
	hex.Encode(s[9:13], u[4:6])
	s[13] = '-'
	hex.Encode(s[14:18], u[6:8])
	s[18] = '-'
	hex.Encode(s[19:23], u[8:10])
	s[23] = '-'
	hex.Encode(s[24:], u[10:])
	return string(s[:])
}
