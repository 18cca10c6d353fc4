package postgres

import (
	"context"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/pgtest"
)

const soon = 20 * time.Second // far more than it takes

// listening calls Listen until the test ends, and returns what it tells.
func listening(t *testing.T, s *Store) <-chan posthorn.Notification {
	t.Helper()
	told := make(chan posthorn.Notification, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { s.Listen(ctx, func(n posthorn.Notification) { told <- n }) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	want(t, told, posthorn.Notification{}) // it listens from here on
	return told
}

func want(t *testing.T, told <-chan posthorn.Notification, n posthorn.Notification) {
	t.Helper()
	select {
	case got := <-told:
		if !reflect.DeepEqual(got, n) {
			t.Fatalf("told %+v, want %+v", got, n)
		}
	case <-time.After(soon):
		t.Fatalf("told nothing, want %+v", n)
	}
}

func TestListen(t *testing.T) {
	url := pgtest.URL(t)
	s, stranger := open(t, url), open(t, url)
	told := listening(t, openNode(t, url, Config{Schema: s.schema}))
	changed := posthorn.Notification{Changed: true}

	newWebhook(t, stranger) // of another schema: nothing is told
	w, other := newWebhook(t, s), newWebhook(t, s)
	want(t, told, changed)
	want(t, told, changed)
	if _, err := s.UpdateWebhook(t.Context(), w.RepoID, w.ID, func(w *posthorn.Webhook) error { w.Description = "changed"; return nil }); err != nil {
		t.Fatal(err)
	}
	want(t, told, changed)

	// What a node does for itself is told to nobody, what is rolled back neither.
	node := newNode(t, s)
	deliver(t, s, node, w, newEvent(start), start)
	commitBatch(t, s, posthorn.Batch{Node: node, Events: []posthorn.NewEvent{accepting(newEvent(start), false, w)}})
	claim(t, s, node, start, 1, w)
	for _, end := range []func(pgx.Tx, context.Context) error{pgx.Tx.Rollback, pgx.Tx.Commit} {
		tx := begin(t, s, pgx.ReadCommitted)
		if _, err := s.Tx(tx).Accept(t.Context(), accepting(newEvent(start), false, w, other)); err != nil {
			t.Fatal(err)
		}
		if err := end(tx, t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	want(t, told, posthorn.Notification{Due: []int64{w.Seq, other.Seq}})

	// Nor is what goes to nobody.
	tx := begin(t, s, pgx.ReadCommitted)
	if _, err := s.Tx(tx).Accept(t.Context(), accepting(newEvent(start), false)); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteWebhook(t.Context(), w.RepoID, w.ID); err != nil {
		t.Fatal(err)
	}
	want(t, told, changed)
}

// TestListenAgain has the connection cut: Listen makes another, and says that it may have missed something.
func TestListenAgain(t *testing.T) {
	url := pgtest.URL(t)
	s := open(t, url)
	told := listening(t, openNode(t, with(t, url, "application_name", "listener"), Config{Schema: s.schema}))
	for range 3 {
		if n := number(t, s, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'listener'`); n == 0 {
			t.Fatal("nobody listened")
		}
		want(t, told, posthorn.Notification{})
	}
	newWebhook(t, s)
	want(t, told, posthorn.Notification{Changed: true})
}

// TestListenEnds has Listen end with its store, and at once when there is nobody to connect to.
func TestListenEnds(t *testing.T) {
	s := open(t, pgtest.URL(t))
	told := make(chan posthorn.Notification, 10)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Listen(context.Background(), func(n posthorn.Notification) { told <- n })
	}()
	want(t, told, posthorn.Notification{})
	s.Close()
	select {
	case <-ended:
	case <-time.After(soon):
		t.Fatal("Listen goes on after Close")
	}
	s.Listen(t.Context(), func(n posthorn.Notification) { t.Errorf("a closed store tells %+v", n) })
}

func TestPayload(t *testing.T) {
	targets := func(n int, seq int64) (targets []posthorn.Target) {
		for i := range n {
			targets = append(targets, posthorn.Target{WebhookSeq: seq + int64(i)})
		}
		return targets
	}
	for _, n := range []int{1, 2, 400} {
		payload := duePayload(targets(n, 1<<60))
		if len(payload) > maxPayload {
			t.Fatalf("a payload of %d bytes for %d webhooks", len(payload), n)
		}
		got := parsePayload(payload)
		if got.Changed || n < 400 && (len(got.Due) != n || got.Due[n-1] != 1<<60+int64(n)-1) {
			t.Errorf("%d webhooks are told as %+v", n, got)
		}
	}
	if got := duePayload(targets(400, 1<<60)); got != anyPayload {
		t.Errorf("too many webhooks are told as %.40q", got)
	}
	for payload, want := range map[string]posthorn.Notification{
		"c": {Changed: true}, "q7": {Due: []int64{7}}, "q1,22": {Due: []int64{1, 22}},
		"": {}, "*": {}, "q": {}, "qx": {}, "q1,": {}, "cc": {}, "of a newer version": {}, strings.Repeat("q1,", 9): {},
	} {
		if got := parsePayload(payload); !reflect.DeepEqual(got, want) {
			t.Errorf("%q means %+v, want %+v", payload, got, want)
		}
	}
}
