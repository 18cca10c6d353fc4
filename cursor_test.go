package posthorn

import "testing"

// FuzzPollCursor has any position: whatever it is, reading it ends, and what was polled comes back from it.
func FuzzPollCursor(f *testing.F) {
	f.Add([]byte{1, 0, 0xff, 0xff, 3, 7})
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, position []byte) {
		if n := len(namedEntries(position)); n > len(position)/2 {
			t.Fatalf("%d bytes name %d entries", len(position), n)
		}
	})
}

// FuzzOpenCursor has any text for a cursor: it is the one that was given out, in the scope that it is of, or it is refused.
func FuzzOpenCursor(f *testing.F) {
	cursors, err := cursorsOf(make([]byte, 16))
	if err != nil {
		f.Fatal(err)
	}
	d := &Dispatcher{cursors: cursors}
	sealed := d.SealCursor("poll w", []byte("position"))
	f.Add("poll w", sealed)
	f.Add("poll w2", sealed)
	f.Add("poll w", sealed+"=")
	f.Add("poll w", sealed+"\n")
	f.Add("poll w", sealed[:len(sealed)-1])
	f.Add("poll w", "")
	f.Fuzz(func(t *testing.T, scope, cursor string) {
		position, ok := d.OpenCursor(scope, cursor)
		if ok && (scope != "poll w" || string(position) != "position") || !ok && scope == "poll w" && cursor == sealed || ok && len(cursor) != len(sealed) {
			t.Fatalf("%q, %v", position, ok)
		}
	})
}
