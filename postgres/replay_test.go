package postgres

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/pgtest"
)

func newReplay(t *testing.T, s *Store, w posthorn.Webhook, state posthorn.ReplayState) *posthorn.Replay {
	t.Helper()
	r := &posthorn.Replay{ID: "of " + w.ID, RepoID: w.RepoID, WebhookID: w.ID, CreatedAt: start, State: state}
	if err := s.CreateReplay(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestReplayOfWebhookBeingDeleted has what adds to a webhook's entries wait for the transaction that deletes it, and find it gone:
// entries that came after it would belong to nobody.
func TestReplayOfWebhookBeingDeleted(t *testing.T) {
	s := open(t, pgtest.URL(t))
	node := newNode(t, s)
	for name, step := range map[string]func(r *posthorn.Replay, e *posthorn.AcceptedEvent) error{
		"create": func(r *posthorn.Replay, _ *posthorn.AcceptedEvent) error {
			another := *r
			another.ID = "another of " + r.ID
			return s.CreateReplay(t.Context(), &another)
		},
		"update": func(r *posthorn.Replay, e *posthorn.AcceptedEvent) error {
			return s.UpdateReplay(t.Context(), r, []*posthorn.AcceptedEvent{e})
		},
		"free": func(r *posthorn.Replay, _ *posthorn.AcceptedEvent) error {
			_, _, err := s.FreeReplayed(t.Context(), r, posthorn.ReplayLimit{Untried: 100, Now: start})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, e, other := newWebhook(t, s), newEvent(start), newEvent(start)
			commitBatch(t, s, posthorn.Batch{Node: node, Events: []posthorn.NewEvent{accepting(e, false), accepting(other, false)}})
			r := newReplay(t, s, w, posthorn.ReplayPlanning)
			if err := s.UpdateReplay(t.Context(), r, []*posthorn.AcceptedEvent{e}); err != nil {
				t.Fatal(err)
			}
			deleting := begin(t, s, pgx.ReadCommitted)
			if _, err := deleting.Exec(t.Context(), s.names.replacer.Replace("UPDATE posthorn.webhooks SET deleted = true WHERE seq = $1"), w.Seq); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- step(r, other) }()
			waitForLock(t, s)
			if err := deleting.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			wantCode(t, <-done, posthorn.CodeNotFound, "Webhook not found")
			if n := number(t, s, "SELECT count(*) FROM posthorn.queue WHERE webhook = $1 AND node = -3", w.Seq); n != 1 {
				t.Errorf("%d entries wait, want the one that was there before", n)
			}
		})
	}
}

// TestReplayBesideLongTransaction has a replay, half of whose entries are done, beside a session that keeps a transaction open: what is gone stays in
// the indexes, and is not walked past again and again.
func TestReplayBesideLongTransaction(t *testing.T) {
	s := open(t, pgtest.URL(t))
	w := newWebhook(t, s)
	r := newReplay(t, s, w, posthorn.ReplayRunning)
	const all, atOnce = 20_000, 1000
	execute(t, s, `INSERT INTO posthorn.queue (event, webhook, run, attempt, trigger, due_at, node)
		SELECT g, $1, $3, 1, 'replay', $2, -3 FROM generate_series(1, $4::bigint) g`, w.Seq, start, r.Run, all)
	if _, err := begin(t, s, pgx.RepeatableRead).Exec(t.Context(), "SELECT FROM pg_class"); err != nil {
		t.Fatal(err)
	}
	limit := posthorn.ReplayLimit{Now: start, Untried: atOnce}
	looks := func(from replayedFrom) int {
		return buffers(t, s, replayLook, []any{r.Run, from.untried, from.waiting, 1, false})
	}
	for done := 0; done < all/2; done += atOnce {
		if freed, left, err := s.FreeReplayed(t.Context(), r, limit); freed != atOnce || !left || err != nil {
			t.Fatalf("%d were freed, some are left: %v, %v", freed, left, err)
		}
		if freed, left, err := s.FreeReplayed(t.Context(), r, limit); freed != 0 || !left || err != nil {
			t.Fatalf("%d more were freed, some are left: %v, %v", freed, left, err)
		}
		execute(t, s, "DELETE FROM posthorn.queue WHERE node IS NULL")
	}
	if remembered, whole := looks(s.replayed.from(r.Run, time.Now())), looks(replayedFrom{}); remembered*5 > whole {
		t.Errorf("a look reads %d pages, and one from the beginning %d", remembered, whole)
	}
	dropped := 0
	for left := true; left; {
		var n int
		var err error
		if n, left, err = s.DropReplayed(t.Context(), r, atOnce); err != nil || n == 0 {
			t.Fatalf("%d were dropped, %v", n, err)
		}
		dropped += n
		if from := s.replayed.from(r.Run, time.Now()); left && from.waiting != int64(all/2+dropped+1) {
			t.Errorf("after %d were dropped it looks from %+v", dropped, from)
		}
	}
	if dropped != all/2 {
		t.Errorf("%d were dropped", dropped)
	}
}

// TestReplayLooksFromTheBeginning has an entry where none is looked for any more: it is found before it is said that nothing is left.
func TestReplayLooksFromTheBeginning(t *testing.T) {
	s := open(t, pgtest.URL(t))
	w := newWebhook(t, s)
	r := newReplay(t, s, w, posthorn.ReplayRunning)
	execute(t, s, `INSERT INTO posthorn.queue (event, webhook, run, attempt, trigger, due_at, node) VALUES (7, $1, $3, 1, 'replay', $2, -3)`, w.Seq, start, r.Run)
	s.replayed.set(r.Run, replayedFrom{untried: 1000, waiting: 1000, whole: time.Now().Add(time.Hour)})
	if freed, left, err := s.FreeReplayed(t.Context(), r, posthorn.ReplayLimit{Now: start, Untried: 64}); freed != 1 || !left || err != nil {
		t.Fatalf("%d were freed, some are left: %v, %v", freed, left, err)
	}
	execute(t, s, "DELETE FROM posthorn.queue")
	if freed, left, err := s.FreeReplayed(t.Context(), r, posthorn.ReplayLimit{Now: start, Untried: 64}); freed != 0 || left || err != nil {
		t.Fatalf("%d were freed, some are left: %v, %v", freed, left, err)
	}
}
