package sqlite

import (
	"path/filepath"
	"testing"

	"zombiezen.com/go/sqlite"
)

// TestChangesKept has more changes than are kept. Who asks for more than there are learns that.
func TestChangesKept(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "posthorn.db"))
	const all = keptChanges + 100
	s.onWriter(t, func(c *sqlite.Conn) error {
		for i := range all {
			if err := changed(c, int64(1+i%2), "repo"); err != nil {
				return err
			}
		}
		if n, err := queryInt(c, "SELECT count(*) FROM posthorn_changes"); err != nil || n != keptChanges {
			t.Errorf("%d rows, %v", n, err)
		}
		return nil
	})
	for _, c := range []struct {
		since    int64
		webhooks int
		all      bool
	}{
		{0, 0, true}, {all - keptChanges - 1, 0, true}, {all - keptChanges, 2, false}, {all - 1, 1, false}, {all, 0, false},
	} {
		got, err := s.Changes(t.Context(), c.since)
		if err != nil || got.Version != all || len(got.Webhooks) != c.webhooks || got.All != c.all {
			t.Errorf("since %d: %+v, %v", c.since, got, err)
		}
	}
}
