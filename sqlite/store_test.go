package sqlite

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/storetest"
	"go.uber.org/goleak"
	"zombiezen.com/go/sqlite"
)

func TestMain(m *testing.M) {
	child()
	goleak.VerifyTestMain(m)
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) posthorn.Store {
		s := open(t, filepath.Join(t.TempDir(), "posthorn.db"))
		s.onWriter(t, func(c *sqlite.Conn) error {
			return setPragma(c, "PRAGMA synchronous = OFF", nil) // the suite pulls no plugs; what does has tests of its own
		})
		return s
	})
}

// open opens a store that the test closes.
func open(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// onWriter does something to the connection that writes.
func (s *Store) onWriter(t testing.TB, fn func(*sqlite.Conn) error) {
	t.Helper()
	c, err := s.take(context.Background(), s.writer)
	if err == nil {
		err = fn(c)
		s.writer <- c
	}
	if err != nil {
		t.Fatal(err)
	}
}

func wantCode(t testing.TB, err error, code posthorn.Code, text ...string) {
	t.Helper()
	if posthorn.ErrorCode(err) != code {
		t.Fatalf("error %v has code %q, want %q", err, posthorn.ErrorCode(err), code)
	}
	for _, part := range text {
		if !strings.Contains(err.Error(), part) {
			t.Fatalf("error %q does not say %q", err, part)
		}
	}
}

// workload makes the batches of a busy store: events of 1 KiB that have one target each.
type workload struct {
	*Store
	t        testing.TB
	node     int64
	webhooks []posthorn.Webhook
	made     int
}

func newWorkload(t testing.TB, s *Store, webhooks int) *workload {
	t.Helper()
	w := &workload{Store: s, t: t}
	for i := range webhooks {
		hook := posthorn.Webhook{ID: fmt.Sprint("webhook-", i), RepoID: fmt.Sprint("repo-", i), Active: true}
		if err := s.CreateWebhooks(t.Context(), &hook); err != nil {
			t.Fatal(err)
		}
		w.webhooks = append(w.webhooks, hook)
	}
	node, err := s.Lease(t.Context(), 0, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	w.node = node
	return w
}

var payload1K = json.RawMessage(`{"text":"` + strings.Repeat("x", 1000) + `"}`)

// batch returns one of new events and one of their results.
func (w *workload) batch(size int) (events, results posthorn.Batch) {
	events, results = posthorn.Batch{Node: w.node}, posthorn.Batch{Node: w.node}
	for range size {
		hook := w.webhooks[w.made%len(w.webhooks)]
		now := time.Now()
		e := &posthorn.AcceptedEvent{
			ID: fmt.Sprintf("%012x-%d", now.UnixMilli(), w.made), RepoID: hook.RepoID, Type: "push", Payload: payload1K, CreatedAt: now,
		}
		w.made++
		events.Events = append(events.Events, posthorn.NewEvent{
			Event: e, Targets: []posthorn.Target{{WebhookSeq: hook.Seq, Leased: true}}, Trigger: posthorn.TriggerAutomatic,
		})
		results.Results = append(results.Results, resultOf(hook, e))
	}
	return events, results
}

// resultOf is a successful first attempt.
func resultOf(hook posthorn.Webhook, e *posthorn.AcceptedEvent) posthorn.Result {
	now := time.Now()
	entry := &posthorn.Entry{
		WebhookSeq: hook.Seq, WebhookID: hook.ID, Event: e, Trigger: posthorn.TriggerAutomatic, Attempt: 1, DueAt: e.CreatedAt,
	}
	return posthorn.Result{Entry: entry, Delivery: &posthorn.Delivery{
		ID: posthorn.DeliveryID(e, hook.ID, 0, 1), WebhookID: hook.ID, EventID: e.ID, EventType: e.Type,
		Trigger: posthorn.TriggerAutomatic, Attempt: 1, Success: true, ResponseStatus: 200, ResponseBody: "ok", DeliveredAt: now,
		Exchange: posthorn.Exchange{
			URL: "https://example.com/hook", SentAt: now, Secrets: 1,
			Header:  http.Header{"Content-Type": {"text/plain; charset=utf-8"}, "Date": {"Mon, 02 Jan 2006 15:04:05 GMT"}, "Content-Length": {"2"}},
			Timings: posthorn.Timings{FirstByte: time.Millisecond, Total: 2 * time.Millisecond, Reused: true},
		},
	}}
}

func (w *workload) commit(b posthorn.Batch) {
	w.t.Helper()
	if _, err := w.Commit(w.t.Context(), b); err != nil {
		w.t.Fatal(err)
	}
}

// free leaves a batch's entries for anyone to claim.
func (w *workload) free(b posthorn.Batch) posthorn.Batch {
	for i := range b.Events {
		for j := range b.Events[i].Targets {
			b.Events[i].Targets[j].Leased = false
		}
	}
	return b
}

// claim claims entries of all webhooks.
func (w *workload) claim(limit int) []*posthorn.Entry {
	w.t.Helper()
	c := posthorn.Claim{Node: w.node, Now: time.Now(), Horizon: time.Hour, MaxBytes: 1 << 30}
	for _, hook := range w.webhooks {
		c.Wants = append(c.Wants, posthorn.Want{WebhookSeq: hook.Seq, Limit: limit})
	}
	entries, err := w.Claim(w.t.Context(), c)
	if err != nil {
		w.t.Fatal(err)
	}
	return entries
}

// settle is the batch that records claimed entries as delivered.
func (w *workload) settle(entries []*posthorn.Entry) posthorn.Batch {
	b := posthorn.Batch{Node: w.node}
	for _, e := range entries {
		r := resultOf(posthorn.Webhook{Seq: e.WebhookSeq, ID: e.WebhookID}, e.Event)
		r.Entry = e
		b.Results = append(b.Results, r)
	}
	return b
}
