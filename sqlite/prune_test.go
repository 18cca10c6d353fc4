package sqlite

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/musehub/posthorn"
)

// TestPruneExactly has deliveries go to the microsecond, which the contract doesn't ask for.
func TestPruneExactly(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "posthorn.db"))
	w := newWorkload(t, s, 1)
	events, results := w.batch(4)
	now := time.Now().Truncate(time.Microsecond)
	for i := range events.Events {
		events.Events[i].Event.CreatedAt = now.Add(-time.Minute)
	}
	for i, r := range results.Results {
		r.Delivery.DeliveredAt = now.Add(time.Duration(i-2) * time.Microsecond)
	}
	w.commit(events)
	w.commit(results)
	for _, c := range []struct {
		before       time.Time
		pruned, left int
	}{{now.Add(-time.Hour), 0, 4}, {now, 2 + 4, 2}, {now, 0, 2}, {now.Add(time.Microsecond), 1, 1}, {now.Add(2 * time.Microsecond), 1, 0}} {
		n, err := s.Prune(t.Context(), c.before)
		if err != nil || n != c.pruned {
			t.Fatalf("%d rows pruned, %v, want %d", n, err, c.pruned)
		}
		log, err := s.Deliveries(t.Context(), posthorn.DeliveryQuery{RepoID: "repo-0", WebhookID: "webhook-0", Limit: 10})
		if err != nil || len(log.Items) != c.left || log.Total != int64(c.left) {
			t.Fatalf("%d deliveries left, total %d, %v, want %d", len(log.Items), log.Total, err, c.left)
		}
	}
}
