package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musehub/posthorn"
	"zombiezen.com/go/sqlite"
)

// TestDiskFull lets the file grow no more, which is what SQLite makes of a full disk.
func TestDiskFull(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "posthorn.db"))
	w := newWorkload(t, s, 1)
	first, firstResults := w.batch(4)
	w.commit(first)
	pages := func(n int64) {
		s.onWriter(t, func(c *sqlite.Conn) error {
			if n == 0 {
				var err error
				if n, err = queryInt(c, "PRAGMA page_count"); err != nil {
					return err
				}
			}
			return setPragma(c, "PRAGMA max_page_count = ", n)
		})
	}
	pages(0)

	events, results := w.batch(100)
	full := posthorn.Batch{Node: w.node, Events: events.Events, Results: firstResults.Results}
	for range 3 {
		_, err := s.Commit(t.Context(), full)
		wantCode(t, err, posthorn.CodeUnavailable, "the disk is full", "posthorn.db")
	}
	// Nothing of the batch was written, and what was there can be read.
	events1, err := s.Events(t.Context(), posthorn.EventQuery{RepoID: "repo-0", Limit: 1000})
	if err != nil || len(events1.Items) != 4 || events1.Total != 4 {
		t.Fatalf("%d events, total %d, %v", len(events1.Items), events1.Total, err)
	}
	log, err := s.Deliveries(t.Context(), posthorn.DeliveryQuery{RepoID: "repo-0", WebhookID: "webhook-0", Limit: 10})
	if err != nil || len(log.Items) != 0 || log.Total != 0 {
		t.Fatalf("%d deliveries, total %d, %v", len(log.Items), log.Total, err)
	}

	pages(1 << 30)
	acceptances, err := s.Commit(t.Context(), full)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range acceptances {
		if a != (posthorn.Acceptance{Deliveries: 1}) {
			t.Fatalf("acceptance %+v", a)
		}
	}
	w.commit(results)
	if log, err = s.Deliveries(t.Context(), posthorn.DeliveryQuery{RepoID: "repo-0", WebhookID: "webhook-0", Limit: 1}); err != nil || log.Total != 104 {
		t.Fatalf("total %d, %v", log.Total, err)
	}
}

// TestReadOnly has a connection that can't write, as on a file system that was remounted.
func TestReadOnly(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "posthorn.db"))
	w := newWorkload(t, s, 1)
	events, _ := w.batch(1)
	s.onWriter(t, func(c *sqlite.Conn) error { return setPragma(c, "PRAGMA query_only = ON", nil) })
	_, err := s.Commit(t.Context(), events)
	wantCode(t, err, posthorn.CodeUnavailable, "posthorn.db can't be written, it is read-only")
	if _, err := s.Webhooks(t.Context(), posthorn.WebhookQuery{}); err != nil {
		t.Fatal(err)
	}
	s.onWriter(t, func(c *sqlite.Conn) error { return setPragma(c, "PRAGMA query_only = OFF", nil) })
	w.commit(events)
}

// TestDamaged overwrites the file's pages behind the store's back.
func TestDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "posthorn.db")
	s := open(t, path)
	w := newWorkload(t, s, 1)
	events, _ := w.batch(500)
	w.commit(events)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	const kept = 48 * 8192 // the roots of tables and indexes stand before that, so that it can be opened
	garbage := make([]byte, info.Size()-kept)
	for i := range garbage {
		garbage[i] = 0x5a
	}
	if _, err := f.WriteAt(garbage, kept); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	_, err = s.Events(t.Context(), posthorn.EventQuery{RepoID: "repo-0", Limit: 1000})
	wantCode(t, err, posthorn.CodeUnavailable, "posthorn.db is damaged")
}

// TestPanic has a host's function panic in the middle of a transaction: the store goes on without it.
func TestPanic(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "posthorn.db"))
	newWorkload(t, s, 1)
	func() {
		defer func() {
			if recover() == nil {
				t.Fatal("the panic was swallowed")
			}
		}()
		_, _ = s.UpdateWebhook(t.Context(), "repo-0", "webhook-0", func(*posthorn.Webhook) error { panic("oops") })
	}()
	hook, err := s.UpdateWebhook(t.Context(), "repo-0", "webhook-0", func(w *posthorn.Webhook) error {
		w.URL = "https://example.com"
		return nil
	})
	if err != nil || hook.URL != "https://example.com" {
		t.Fatalf("%+v, %v", hook, err)
	}
}

// TestWaitForHost has the host's own connection hold the write lock. A write waits for it as long as its context lets
// it, but not for ever. It runs in a bubble, where waiting takes no time and a wait that can't end is found.
func TestWaitForHost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "posthorn.db")
	synctest.Test(t, func(t *testing.T) {
		s := open(t, path)
		w := newWorkload(t, s, 1)
		host, err := sql.Open("sqlite", path)
		if err != nil {
			t.Fatal(err)
		}
		defer host.Close()
		host.SetMaxOpenConns(1)
		must := func(query string) {
			t.Helper()
			if _, err := host.ExecContext(t.Context(), query); err != nil {
				t.Fatal(err)
			}
		}
		must("BEGIN IMMEDIATE")

		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		events, results := w.batch(1)
		from := time.Now()
		if _, err := s.Commit(ctx, events); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if waited := time.Since(from); waited != 3*time.Second {
			t.Fatalf("it waited for %v", waited)
		}

		from = time.Now()
		_, err = s.Commit(t.Context(), events)
		wantCode(t, err, posthorn.CodeUnavailable, "posthorn.db was locked by someone else for too long")
		if waited := time.Since(from); waited < busyTimeout || waited > busyTimeout+time.Second {
			t.Fatalf("it waited for %v", waited)
		}

		done := make(chan error)
		go func() {
			_, err := s.Commit(t.Context(), events)
			done <- err
		}()
		// Others in the queue behind it leave when their context ends, and readers are not held up at all.
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.Commit(short, events); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if _, err := s.Webhooks(t.Context(), posthorn.WebhookQuery{}); err != nil {
			t.Fatal(err)
		}
		must("COMMIT")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		w.commit(results)
	})
}

// TestInterrupt cancels a read and a write in the middle of long statements.
func TestInterrupt(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "posthorn.db"))
	const endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n WHERE i < 0"
	for name, run := range map[string]func(context.Context, func(*sqlite.Conn) error) error{"read": s.read, "write": s.write} {
		ctx, cancel := context.WithCancel(t.Context())
		err := run(ctx, func(c *sqlite.Conn) error {
			cancel()
			_, err := queryInt(c, endless)
			return err
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	newWorkload(t, s, 1)
}

// TestCommitIsNotInterrupted cancels a write when there is nothing left to do but to commit.
func TestCommitIsNotInterrupted(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "posthorn.db"))
	for i := range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		name := fmt.Sprint("setting-", i)
		err := s.write(ctx, func(c *sqlite.Conn) error {
			defer cancel()
			return exec(c, "INSERT INTO posthorn_settings VALUES (?, 'value')", name)
		})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Setting(t.Context(), name, ""); got != "value" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
	}
}
