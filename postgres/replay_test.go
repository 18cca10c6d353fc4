package postgres

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/pgtest"
)

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
			r := &posthorn.Replay{ID: "of " + w.ID, RepoID: w.RepoID, WebhookID: w.ID, CreatedAt: start, State: posthorn.ReplayPlanning}
			if err := s.CreateReplay(t.Context(), r); err != nil {
				t.Fatal(err)
			}
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
