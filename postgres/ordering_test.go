package postgres

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/pgtest"
)

// ordered is how an event of an ordering is committed.
func ordered(e *posthorn.AcceptedEvent, w posthorn.Webhook) posthorn.NewEvent {
	n := accepting(e, false, w)
	n.Targets[0].Ordering = 1
	return n
}

// TestFreedAfterCommit has a claim look at a webhook from its beginning while a COMMIT is under way that lets an entry go on far behind.
// The claim can't see it. Afterwards it is found all the same.
func TestFreedAfterCommit(t *testing.T) {
	s := open(t, pgtest.URL(t))
	w, node := newWebhook(t, s), newNode(t, s)
	fill(t, s, 10, w)
	now := start.Add(time.Hour)
	behind := newEvent(start.Add(-10 * time.Hour))
	commitBatch(t, s, posthorn.Batch{Node: node, Events: []posthorn.NewEvent{ordered(newEvent(start.Add(-11*time.Hour)), w), ordered(behind, w)}})
	first := claim(t, s, node, now, 1, w)[0]

	// The COMMIT of a delivery waits for a lock.
	execute(t, s, `CREATE FUNCTION posthorn.wait() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END'`)
	execute(t, s, `CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON posthorn.delivery_counts DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION posthorn.wait()`)
	lock := begin(t, s, pgx.ReadCommitted)
	if _, err := lock.Exec(t.Context(), "SELECT pg_advisory_xact_lock(4711)"); err != nil {
		t.Fatal(err)
	}
	committed := make(chan error, 1)
	go func() {
		_, err := s.Commit(t.Context(), posthorn.Batch{Node: node, Results: []posthorn.Result{delivered(first, start)}})
		committed <- err
	}()
	for number(t, s, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted") == 0 {
		select {
		case err := <-committed:
			t.Fatalf("it committed: %v", err)
		default:
		}
	}
	s.lanes.forget()
	if n := len(claim(t, s, node, now, 5, w)); n != 5 {
		t.Fatalf("%d entries", n)
	}
	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-committed; err != nil {
		t.Fatal(err)
	}
	if entries := claim(t, s, node, now, 1, w); len(entries) != 1 || entries[0].Event.ID != behind.ID {
		t.Errorf("claimed %+v", entries)
	}
}
