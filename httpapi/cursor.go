package httpapi

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/musehub/posthorn"
)

// listing makes the cursors of what is listed. One can't be taken from one listing to another.
type listing struct {
	dispatcher *posthorn.Dispatcher
	scope      string
}

// listing returns the listing of a kind, of where it is, and of the filters.
func (s *server) listing(parts ...string) listing {
	return listing{s.dispatcher, fmt.Sprintf("%q", parts)} // quoted, so that no two lists of parts have the same scope
}

// cursor returns the cursor of the page that starts at a position, nil for position zero, where the listing ends.
func (l listing) cursor(position int64) *string {
	if position == 0 {
		return nil
	}
	s := l.dispatcher.SealCursor(l.scope, binary.BigEndian.AppendUint64(nil, uint64(position)))
	return &s
}

// position returns where the page of a cursor starts, zero for the empty cursor of the first page.
func (l listing) position(cursor string) (int64, error) {
	if cursor == "" {
		return 0, nil
	}
	position, ok := l.dispatcher.OpenCursor(l.scope, cursor)
	if !ok {
		return 0, invalid("cursor", "it is none that this listing gave out: take the nextCursor of the same listing "+
			"with the same filters, or start without one")
	}
	return int64(binary.BigEndian.Uint64(position)), nil
}

// timestamp writes a time the way the API shows all of them.
func timestamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z") }
