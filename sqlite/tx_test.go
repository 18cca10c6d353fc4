package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/storetest"
)

// openHost opens a file as a host does.
func openHost(t testing.TB, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate&_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// hostHandle is a [sql.DB] or a [sql.Tx].
type hostHandle interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

func hostExec(t testing.TB, h hostHandle, query string, args ...any) {
	t.Helper()
	if _, err := h.ExecContext(t.Context(), query, args...); err != nil {
		t.Fatal(err)
	}
}

func hostQuery(t testing.TB, h hostHandle, query string) (value string) {
	t.Helper()
	if err := h.QueryRowContext(t.Context(), query).Scan(&value); err != nil {
		t.Fatal(err)
	}
	return value
}

func beginTx(t testing.TB, host *sql.DB) *sql.Tx {
	t.Helper()
	tx, err := host.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

func TestTx(t *testing.T) {
	storetest.RunTx(t, func(t *testing.T) (posthorn.Store, func() (posthorn.Tx, func() error, func() error)) {
		path := filepath.Join(t.TempDir(), "host.db")
		s := open(t, path)
		host := openHost(t, path)
		return s, func() (posthorn.Tx, func() error, func() error) {
			tx := beginTx(t, host)
			return s.Tx(tx), tx.Commit, tx.Rollback
		}
	})
}

// TestTxWithHostsRows has an event and a row of the host's be committed or not, together.
func TestTxWithHostsRows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "host.db")
	host := openHost(t, path)
	hostExec(t, host, "CREATE TABLE orders (event TEXT)")
	s := open(t, path)
	w := newWorkload(t, s, 1)
	events, _ := w.batch(10)
	for i, n := range events.Events {
		tx := beginTx(t, host)
		hostExec(t, tx, "INSERT INTO orders VALUES (?)", n.Event.ID)
		if _, err := s.Tx(tx).Accept(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		end := tx.Commit
		if i%3 == 0 {
			end = tx.Rollback
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	}
	entries := w.claim(100)
	if len(entries) != 6 {
		t.Fatalf("%d entries", len(entries))
	}
	for _, e := range entries {
		var n int
		err := host.QueryRowContext(t.Context(), "SELECT count(*) FROM orders WHERE event = ?", e.Event.ID).Scan(&n)
		if err != nil || n != 1 {
			t.Fatalf("%d orders with event %s, %v", n, e.Event.ID, err)
		}
	}
	if got := hostQuery(t, host, "SELECT count(*) FROM orders"); got != "6" {
		t.Fatalf("%s orders", got)
	}
	// The numbers that were given out are those that are there.
	if got := hostQuery(t, host, "SELECT last - (SELECT max(seq) FROM posthorn_events) FROM posthorn_counters WHERE name = 'event'"); got != "0" {
		t.Fatalf("the counter is %s ahead", got)
	}
	if got := hostQuery(t, host, "PRAGMA synchronous"); got != "2" {
		t.Fatalf("the host's commits are not durable: synchronous is %s", got)
	}
}

// TestTxHoldsUpWrites has a host's transaction stay open: a write waits for it, and after that works.
func TestTxHoldsUpWrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "host.db")
	synctest.Test(t, func(t *testing.T) {
		s := open(t, path)
		w := newWorkload(t, s, 1)
		host := openHost(t, path)
		mine, _ := w.batch(1)
		theirs, _ := w.batch(1)

		tx := beginTx(t, host)
		if _, err := s.Tx(tx).Accept(t.Context(), theirs.Events[0]); err != nil {
			t.Fatal(err)
		}
		from := time.Now()
		go func() {
			time.Sleep(busyTimeout / 2)
			if err := tx.Commit(); err != nil {
				t.Error(err)
			}
		}()
		w.commit(mine)
		if waited := time.Since(from); waited < busyTimeout/2 || waited > busyTimeout/2+time.Second {
			t.Fatalf("it waited for %v", waited)
		}
		if a, b := theirs.Events[0].Event.Seq, mine.Events[0].Event.Seq; b != a+1 {
			t.Fatalf("number %d after %d", b, a)
		}
		if n := len(w.claim(10)); n != 1 { // the other is leased
			t.Fatalf("%d entries", n)
		}
	})
}

// TestTxErrors has transactions that can't take an event.
func TestTxErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "host.db")
	s := open(t, path)
	w := newWorkload(t, s, 1)
	host := openHost(t, path)
	events, _ := w.batch(1)
	accept := func(tx *sql.Tx) error {
		t.Helper()
		_, err := s.Tx(tx).Accept(t.Context(), events.Events[0])
		return err
	}

	ended := beginTx(t, host)
	if err := ended.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := accept(ended); !errors.Is(err, sql.ErrTxDone) {
		t.Fatal(err)
	}

	elsewhere := beginTx(t, openHost(t, filepath.Join(t.TempDir(), "other.db")))
	wantCode(t, accept(elsewhere), posthorn.CodeInternal, "no such table: posthorn_counters")
	if err := elsewhere.Rollback(); err != nil {
		t.Fatal(err)
	}

	// One that has read, without the lock that writing takes, what has been written to since.
	late, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	stale := beginTx(t, late)
	hostQuery(t, stale, "SELECT count(*) FROM posthorn_events")
	w.commit(events)
	wantCode(t, accept(stale), posthorn.CodeUnavailable, "_txlock=immediate")
	if err := stale.Rollback(); err != nil {
		t.Fatal(err)
	}
}
