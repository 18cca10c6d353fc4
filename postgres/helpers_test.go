package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn"
)

// start is when tests begin; time is what a test says it is.
var start = time.Date(2026, 3, 4, 5, 6, 7, 891_234_000, time.UTC)

const oneDay = 24 * time.Hour

// with returns a URL with one more parameter.
func with(t testing.TB, to, parameter, value string) string {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set(parameter, value)
	u.RawQuery = q.Encode()
	return u.String()
}

// execute runs a statement on the store's database; it names the schema as the store's own do.
func execute(t testing.TB, s *Store, statement string, args ...any) {
	t.Helper()
	if _, err := s.pool.Exec(t.Context(), s.names.replacer.Replace(statement), args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// number returns what a statement selects.
func number(t testing.TB, s *Store, statement string, args ...any) (n int) {
	t.Helper()
	if err := s.pool.QueryRow(t.Context(), s.names.replacer.Replace(statement), args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	return n
}

func newWebhook(t testing.TB, s *Store) posthorn.Webhook {
	t.Helper()
	w := posthorn.Webhook{ID: fmt.Sprint("webhook-", schemas.Add(1)), RepoID: "repo", Active: true, CreatedAt: start, UpdatedAt: start}
	if err := s.CreateWebhooks(t.Context(), &w); err != nil {
		t.Fatal(err)
	}
	return w
}

func newNode(t testing.TB, s *Store) int64 {
	t.Helper()
	node, err := s.Lease(t.Context(), 0, start.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return node
}

// newEvent returns an event that has not been accepted.
func newEvent(at time.Time) *posthorn.AcceptedEvent {
	return &posthorn.AcceptedEvent{
		ID: fmt.Sprint("event-", schemas.Add(1)), RepoID: "repo", Type: "push", Payload: json.RawMessage("{}"), CreatedAt: at,
	}
}

// accepting is how an automatic event is committed.
func accepting(e *posthorn.AcceptedEvent, leased bool, webhooks ...posthorn.Webhook) posthorn.NewEvent {
	n := posthorn.NewEvent{Event: e, Trigger: posthorn.TriggerAutomatic}
	for _, w := range webhooks {
		n.Targets = append(n.Targets, posthorn.Target{WebhookSeq: w.Seq, Leased: leased})
	}
	return n
}

// delivered is the result of an entry whose attempt succeeded.
func delivered(e *posthorn.Entry, at time.Time) posthorn.Result {
	return posthorn.Result{Entry: e, Delivery: &posthorn.Delivery{
		ID:        posthorn.DeliveryID(e.Event, e.WebhookID, e.Run, e.Attempt),
		WebhookID: e.WebhookID, EventID: e.Event.ID, EventType: e.Event.Type, Trigger: e.Trigger, Run: e.Run, Attempt: e.Attempt,
		Success: true, ResponseStatus: 200, ResponseBody: "ok", DeliveredAt: at,
	}}
}

// leasedEntryOf is the entry by which a node knows a target that was leased to it in the same write as its event.
func leasedEntryOf(w posthorn.Webhook, e *posthorn.AcceptedEvent) *posthorn.Entry {
	return &posthorn.Entry{
		WebhookSeq: w.Seq, WebhookID: w.ID, Event: e, Trigger: posthorn.TriggerAutomatic, Attempt: 1, DueAt: e.CreatedAt,
	}
}

func commitBatch(t testing.TB, s *Store, b posthorn.Batch) []posthorn.Acceptance {
	t.Helper()
	a, err := s.Commit(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// deliver accepts an event and records at a time that it reached its webhook.
func deliver(t testing.TB, s *Store, node int64, w posthorn.Webhook, e *posthorn.AcceptedEvent, at time.Time) {
	t.Helper()
	commitBatch(t, s, posthorn.Batch{Node: node, Events: []posthorn.NewEvent{accepting(e, true, w)}})
	commitBatch(t, s, posthorn.Batch{Node: node, Results: []posthorn.Result{delivered(leasedEntryOf(w, e), at)}})
}

func claim(t testing.TB, s *Store, node int64, now time.Time, limit int, webhooks ...posthorn.Webhook) []*posthorn.Entry {
	t.Helper()
	entries, err := s.Claim(t.Context(), claimOf(node, now, limit, webhooks...))
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func claimOf(node int64, now time.Time, limit int, webhooks ...posthorn.Webhook) posthorn.Claim {
	c := posthorn.Claim{Node: node, Now: now, Horizon: oneDay, MaxBytes: 1 << 30}
	for _, w := range webhooks {
		c.Wants = append(c.Wants, posthorn.Want{WebhookSeq: w.Seq, Limit: limit})
	}
	return c
}

func logOf(t testing.TB, s *Store, w posthorn.Webhook) posthorn.Page[posthorn.Delivery] {
	t.Helper()
	page, err := s.Deliveries(t.Context(), posthorn.DeliveryQuery{RepoID: w.RepoID, WebhookID: w.ID, Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	return page
}

func wantLog(t testing.TB, s *Store, w posthorn.Webhook, n int) {
	t.Helper()
	if page := logOf(t, s, w); len(page.Items) != n || page.Total != int64(n) {
		t.Fatalf("the log has %d rows and a total of %d, want %d", len(page.Items), page.Total, n)
	}
}

// begin opens a transaction of somebody else's, which ends with the test.
func begin(t testing.TB, s *Store, level pgx.TxIsoLevel) pgx.Tx {
	t.Helper()
	conn, err := pgx.ConnectConfig(t.Context(), s.database.pool.ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	tx, err := conn.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: level})
	if err != nil {
		t.Fatal(err)
	}
	return tx
}
