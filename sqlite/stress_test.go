package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/musehub/posthorn"
	"zombiezen.com/go/sqlite"
)

// TestStress has 64 publishers, readers, a Prune and a connection of the host's at the same time: not one of them is told
// that the database is busy, and nothing is lost.
func TestStress(t *testing.T) {
	path := filepath.Join(t.TempDir(), "posthorn.db")
	s := open(t, path)
	s.onWriter(t, func(c *sqlite.Conn) error { return setPragma(c, "PRAGMA synchronous = OFF", nil) })
	w := newWorkload(t, s, 4)
	publishers, each := 64, 10
	if testing.Short() {
		each = 3
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	check := func(what string, err error) {
		if err != nil && ctx.Err() == nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	var publishing, rest sync.WaitGroup
	for p := range publishers {
		publishing.Go(func() {
			hook := w.webhooks[p%len(w.webhooks)]
			for i := range each {
				e := &posthorn.AcceptedEvent{
					ID: fmt.Sprint(p, "-", i), RepoID: hook.RepoID, Type: "push", Payload: payload1K, CreatedAt: time.Now(),
				}
				b := posthorn.Batch{Node: w.node, Events: []posthorn.NewEvent{
					{Event: e, Targets: []posthorn.Target{{WebhookSeq: hook.Seq, Leased: true}}, Trigger: posthorn.TriggerAutomatic},
				}}
				_, err := s.Commit(ctx, b)
				check("events", err)
				_, err = s.Commit(ctx, posthorn.Batch{Node: w.node, Results: []posthorn.Result{resultOf(hook, e)}})
				check("results", err)
			}
		})
	}
	var reads atomic.Int64
	for i := range 4 {
		rest.Go(func() {
			for ; ctx.Err() == nil; reads.Add(1) {
				_, err := s.Deliveries(ctx, posthorn.DeliveryQuery{RepoID: "repo-0", WebhookID: "webhook-0", EventType: "push", Limit: 10})
				check("deliveries", err)
				_, err = s.Due(ctx, time.Now(), time.Hour, 0, 10)
				check("due", err)
				if i == 0 {
					_, err = s.Prune(ctx, time.Now().Add(-time.Second))
					check("prune", err)
				}
			}
		})
	}
	host, err := sql.Open("sqlite", path+"?_pragma=busy_timeout(60000)")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	rest.Go(func() {
		_, err := host.ExecContext(ctx, "CREATE TABLE hosts (n INTEGER)")
		check("the host's table", err)
		for range 100 {
			_, err := host.ExecContext(ctx, "INSERT INTO hosts VALUES (1)")
			check("the host's row", err)
		}
	})
	publishing.Wait()
	stop()
	rest.Wait()
	t.Logf("%d rounds of reading beside %d commits", reads.Load(), 2*publishers*each)

	if _, err := s.Prune(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	s.onWriter(t, func(c *sqlite.Conn) error {
		for _, table := range []string{"posthorn_events", "posthorn_promises", "posthorn_queue", "posthorn_deliveries"} {
			if n, err := queryInt(c, "SELECT count(*) FROM "+table); err != nil || n != 0 {
				t.Errorf("%d rows left in %s, %v", n, table, err)
			}
		}
		n, err := queryInt(c, "SELECT sum(events) + (SELECT sum(succeeded + failed) FROM posthorn_logs) FROM posthorn_repos")
		if n != 0 {
			t.Errorf("the counts come to %d without a row", n)
		}
		return err
	})
}

// TestLogGrowth writes while there always is a reader in the write-ahead log: it starts over all the same.
func TestLogGrowth(t *testing.T) {
	path := filepath.Join(t.TempDir(), "posthorn.db")
	s := open(t, path)
	s.onWriter(t, func(c *sqlite.Conn) error { return setPragma(c, "PRAGMA synchronous = OFF", nil) })
	w := newWorkload(t, s, 1)
	const limit = 4 << 20
	s.onWriter(t, func(*sqlite.Conn) error {
		s.wal.limit = limit
		return nil
	})

	// Readers take turns: one leaves only when the next is in, and not before something was committed or a while is over.
	hold := func() (leave func()) {
		in, out := make(chan struct{}), make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			err := s.read(context.Background(), func(c *sqlite.Conn) error {
				_, err := queryInt(c, "SELECT count(*) FROM posthorn_settings") // it takes a statement to be in
				close(in)
				<-out
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
		<-in
		return func() {
			close(out)
			wg.Wait()
		}
	}
	committed, done := make(chan struct{}, 1), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		leave := hold()
		for {
			select {
			case <-committed:
			case <-time.After(5 * time.Millisecond):
			case <-done:
				leave()
				return
			}
			next := hold()
			leave()
			leave = next
		}
	})
	defer wg.Wait()
	defer close(done)

	largest := int64(0)
	for range 400 {
		events, _ := w.batch(32)
		w.commit(events)
		select {
		case committed <- struct{}{}:
		default:
		}
		info, err := os.Stat(path + "-wal")
		if err != nil {
			t.Fatal(err)
		}
		largest = max(largest, info.Size())
	}
	t.Logf("the log grew to %d KiB", largest>>10)
	// It is looked at from time to time only; and where a reader could not leave for a second, as on a busy machine, not before it is twice as
	// large. Without that it would be ten times the limit.
	if largest > 6*limit {
		t.Fatalf("the log grew to %d KiB", largest>>10)
	}
}

// TestPlans holds the statements of the hot paths to their indexes: a scan would only be noticed in a store that is full.
func TestPlans(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "posthorn.db"))
	w := newWorkload(t, s, 2)
	events, _ := w.batch(8)
	w.commit(w.free(events))
	w.commit(w.settle(w.claim(8)))
	leased, _ := w.batch(8)
	w.commit(leased)
	events, _ = w.batch(16)
	w.commit(w.free(events))
	w.claim(2)
	ctx := t.Context()
	yes := true
	for _, q := range []posthorn.DeliveryQuery{
		{}, {Success: &yes}, {EventID: leased.Events[0].Event.ID}, {EventID: "pruned"}, {EventType: "push", Since: time.Now(), Until: time.Now()},
	} {
		q.RepoID, q.WebhookID, q.Limit = "repo-0", "webhook-0", 10
		if _, err := s.Deliveries(ctx, q); err != nil {
			t.Fatal(err)
		}
	}
	_, err1 := s.Due(ctx, time.Now(), time.Hour, 0, 10)
	_, err2 := s.Events(ctx, posthorn.EventQuery{RepoID: "repo-0", Limit: 1})
	_, err3 := s.Webhooks(ctx, posthorn.WebhookQuery{RepoID: "repo-0", Limit: 1})
	_, err4 := s.Release(ctx, w.node, time.Now())
	err5 := s.DeleteWebhook(ctx, "repo-0", "webhook-0")
	_, err6 := s.Prune(ctx, time.Now().Add(time.Hour))
	_, err7 := s.Changes(ctx, 1)
	for _, err := range []error{err1, err2, err3, err4, err5, err6, err7} {
		if err != nil {
			t.Fatal(err)
		}
	}
	// Tables that are small: nodes, promises (what nodes have in memory), and what is deleted but not pruned yet.
	allowed := []string{"SCAN posthorn_nodes", "SCAN posthorn_promises", "SCAN posthorn_webhooks USING COVERING INDEX posthorn_webhooks_deleted"}
	explain := func(c *sqlite.Conn) error {
		for _, text := range statements(c) {
			err := query(c, func(st *sqlite.Stmt) error {
				step := st.ColumnText(3)
				if (strings.HasPrefix(step, "SCAN") || strings.Contains(step, "TEMP B-TREE")) &&
					!slices.Contains(allowed, step) && !strings.HasSuffix(step, "-ROW VALUES CLAUSE") {
					t.Errorf("%s\n\tfor %s", step, text)
				}
				return nil
			}, "EXPLAIN QUERY PLAN "+text)
			if err != nil {
				return err
			}
		}
		return nil
	}
	s.onWriter(t, explain)
	if err := s.read(ctx, explain); err != nil {
		t.Fatal(err)
	}
}

// statements returns the texts of the statements that a connection has prepared.
func statements(c *sqlite.Conn) []string {
	var texts []string
	for _, key := range reflect.ValueOf(c).Elem().FieldByName("stmts").MapKeys() {
		if text := key.String(); !strings.HasPrefix(text, "PRAGMA") {
			texts = append(texts, text)
		}
	}
	return texts
}
