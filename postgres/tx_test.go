package postgres

import (
	"context"
	"database/sql"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/pgtest"
)

// TestTxElsewhere has a host whose session finds none of Posthorn's names, and one that talks to the server in the simple
// protocol.
func TestTxElsewhere(t *testing.T) {
	s := open(t, pgtest.URL(t))
	w := newWebhook(t, s)
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		cfg := s.database.pool.ConnConfig.Copy()
		cfg.DefaultQueryExecMode = mode
		cfg.RuntimeParams["search_path"] = "elsewhere"
		conn, err := pgx.ConnectConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		e := newEvent(start)
		e.Payload = []byte(`"it's \u0000 “so”"`)
		for _, duplicate := range []bool{false, true} {
			a, err := s.Tx(tx).Accept(t.Context(), accepting(e, false, w))
			if err != nil || a != (posthorn.Acceptance{Duplicate: duplicate, Deliveries: 1}) {
				t.Fatalf("%v: %+v, %v", mode, a, err)
			}
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		got, err := s.Event(t.Context(), e.RepoID, e.ID)
		if err != nil || string(got.Payload) != string(e.Payload) || !got.CreatedAt.Equal(start) {
			t.Fatalf("%v: the event is %+v, %v", mode, got, err)
		}
	}
	if n := len(claim(t, s, newNode(t, s), start, 10, w)); n != 4 {
		t.Errorf("%d entries", n)
	}
}

// TestTxSerializable has the same event come from two transactions at a time that see nothing of each other: the second has
// to be made again, and then finds a duplicate.
func TestTxSerializable(t *testing.T) {
	s := open(t, pgtest.URL(t))
	w := newWebhook(t, s)
	e := newEvent(start)
	slow := begin(t, s, pgx.Serializable)
	if _, err := slow.Exec(t.Context(), "SELECT FROM pg_class"); err != nil { // from here on it sees nothing new
		t.Fatal(err)
	}
	fast := begin(t, s, pgx.Serializable)
	if _, err := s.Tx(fast).Accept(t.Context(), accepting(e, false, w)); err != nil {
		t.Fatal(err)
	}
	if err := fast.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := *e
	_, err := s.Tx(slow).Accept(t.Context(), accepting(&again, false, w))
	wantCode(t, err, posthorn.CodeUnavailable, "40001")
	if err := slow.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	third := begin(t, s, pgx.Serializable)
	a, err := s.Tx(third).Accept(t.Context(), accepting(&again, false, w))
	if err != nil || !a.Duplicate || again.Seq != e.Seq {
		t.Fatalf("made again: %+v, %v", a, err)
	}
}

// TestTxRole has a host whose role may do no more than docs/postgres.md grants it.
func TestTxRole(t *testing.T) {
	s := open(t, pgtest.URL(t))
	w := newWebhook(t, s)
	role := fmt.Sprintf("shop_%d", time.Now().UnixNano())
	execute(t, s, "CREATE ROLE "+role)
	t.Cleanup(func() {
		for _, sql := range []string{"DROP OWNED BY " + role, "DROP ROLE " + role} {
			if _, err := s.pool.Exec(context.Background(), sql); err != nil {
				t.Error(err)
			}
		}
	})
	if _, err := s.pool.Exec(t.Context(), "GRANT USAGE ON SCHEMA "+s.names.quoted+" TO "+role); err != nil {
		t.Fatal(err)
	}
	for _, grant := range []string{
		"USAGE ON SEQUENCE posthorn.event_seq", "SELECT (seq, deleted) ON posthorn.webhooks", "SELECT ON posthorn.events",
		"INSERT ON posthorn.events", "INSERT ON posthorn.queue", "INSERT ON posthorn.repo_counts",
	} {
		execute(t, s, "GRANT "+grant+" TO "+role)
	}
	tx := begin(t, s, pgx.ReadCommitted)
	if _, err := tx.Exec(t.Context(), "SET LOCAL ROLE "+role); err != nil {
		t.Fatal(err)
	}
	e := newEvent(start)
	for _, duplicate := range []bool{false, true} {
		a, err := s.Tx(tx).Accept(t.Context(), accepting(e, false, w))
		if err != nil || a.Err != nil || a.Duplicate != duplicate {
			t.Fatalf("%+v, %v", a, err)
		}
	}
}

// TestTxPruned has an event that is there for the first statement and gone for the second.
func TestTxPruned(t *testing.T) {
	s := open(t, pgtest.URL(t))
	for _, none := range []error{pgx.ErrNoRows, sql.ErrNoRows} {
		tx := hostTx{s, func(context.Context, string, ...any) scanner { return errorScanner{none} }}
		_, err := tx.Accept(t.Context(), accepting(newEvent(start), false))
		wantCode(t, err, posthorn.CodeUnavailable, "again")
	}
}

// TestTxNUL has an event that can't be stored. The transaction stays usable.
func TestTxNUL(t *testing.T) {
	s := open(t, pgtest.URL(t))
	w := newWebhook(t, s)
	tx := begin(t, s, pgx.ReadCommitted)
	bad := newEvent(start)
	bad.RepoID = "a\x00b"
	a, err := s.Tx(tx).Accept(t.Context(), accepting(bad, false, w))
	if err != nil || posthorn.ErrorCode(a.Err) != posthorn.CodeInvalid {
		t.Fatalf("%+v, %v", a, err)
	}
	if a, err := s.Tx(tx).Accept(t.Context(), accepting(newEvent(start), false, w)); err != nil || a.Err != nil {
		t.Fatalf("the next one: %+v, %v", a, err)
	}
}
