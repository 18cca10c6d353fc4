package postgres

import (
	"database/sql"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/pgtest"
	"github.com/musehub/posthorn/internal/storetest"
	"go.uber.org/goleak"
)

// patience is how long a store of these tests waits for a connection, for a lock (though no longer than a transaction may take), and
// until what others are in the way of can be dropped.
const patience = time.Minute

func TestMain(m *testing.M) {
	os.Setenv("PGCONNECT_TIMEOUT", fmt.Sprint(patience.Seconds())) // for whatever URL doesn't say it
	goleak.VerifyTestMain(m)
}

func TestStore(t *testing.T) {
	url := pgtest.URL(t)
	storetest.Run(t, func(t *testing.T) posthorn.Store { return open(t, url) })
}

func TestTx(t *testing.T) {
	url := pgtest.URL(t)
	storetest.RunTx(t, func(t *testing.T) (posthorn.Store, func() (posthorn.Tx, func() error, func() error)) {
		s := open(t, url)
		host := connectPool(t, url)
		return s, func() (posthorn.Tx, func() error, func() error) {
			tx, err := host.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return s.Tx(tx), func() error { return tx.Commit(t.Context()) }, func() error { return tx.Rollback(t.Context()) }
		}
	})
}

func TestSQLTx(t *testing.T) {
	url := pgtest.URL(t)
	storetest.RunTx(t, func(t *testing.T) (posthorn.Store, func() (posthorn.Tx, func() error, func() error)) {
		s := open(t, url)
		host := openSQL(t, url)
		return s, func() (posthorn.Tx, func() error, func() error) {
			tx, err := host.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			return s.SQLTx(tx), tx.Commit, tx.Rollback
		}
	})
}

// TestQueryExecModes has the driver talk to the server in the ways that a pooler may ask for.
func TestQueryExecModes(t *testing.T) {
	url := pgtest.URL(t)
	for _, mode := range []string{"cache_describe", "describe_exec", "exec", "simple_protocol"} {
		t.Run(mode, func(t *testing.T) {
			s := open(t, with(t, url, "default_query_exec_mode", mode))
			w, node := newWebhook(t, s), newNode(t, s)
			e := newEvent(start)
			e.Payload = []byte("\x00'\\\xff") // whatever a caller takes for a payload
			commitBatch(t, s, posthorn.Batch{Node: node, Events: []posthorn.NewEvent{accepting(e, false, w)}})
			if a := commitBatch(t, s, posthorn.Batch{Node: node, Events: []posthorn.NewEvent{accepting(e, false, w)}}); !a[0].Duplicate {
				t.Errorf("the same again is %+v", a[0])
			}
			entries := claim(t, s, node, start, 10, w)
			if len(entries) != 1 || string(entries[0].Event.Payload) != string(e.Payload) || !entries[0].DueAt.Equal(start) {
				t.Fatalf("claimed %+v", entries)
			}
			r := delivered(entries[0], start)
			r.RetryAt, r.Delivery.NextAttemptAt = start.Add(time.Second), start.Add(time.Second)
			commitBatch(t, s, posthorn.Batch{Node: node, Results: []posthorn.Result{r}})
			if due, err := s.Due(t.Context(), start.Add(time.Second), oneDay, 0, 10); err != nil || len(due) != 1 {
				t.Fatalf("due are %+v, %v", due, err)
			}
			commitBatch(t, s, posthorn.Batch{Node: node, Results: []posthorn.Result{delivered(claim(t, s, node, start.Add(time.Second), 1, w)[0], start)}})
			entry := leasedEntryOf(w, e)
			entry.Trigger = posthorn.TriggerRedelivery
			if err := s.Enqueue(t.Context(), entry, node); err != nil {
				t.Fatal(err)
			}
			if n, err := s.Release(t.Context(), node, start); n != 1 || err != nil {
				t.Fatalf("released %d, %v", n, err)
			}
			prune(t, s, start.Add(3*oneDay))
			wantLog(t, s, w, 0)
			if c, err := s.Changes(t.Context(), 0); err != nil || len(c.Webhooks) != 1 {
				t.Fatalf("changes are %+v, %v", c, err)
			}
		})
	}
}

// oddNames are schemas that anything but a quoted identifier would get wrong.
var oddNames = []string{"posthorn", "MixedCase", `with"quote`, "it's", "with space", "dotted.name", "posthorn.queue", "select", "größe", "$1", "%s;--"}

var schemas atomic.Int64

// newSchema returns the name of a schema that no other test has, and that is odd in one way or another.
func newSchema() string {
	n := schemas.Add(1)
	return fmt.Sprintf("%s%d", oddNames[int(n)%len(oddNames)], n)
}

// open opens a store in a schema of its own, which the test closes.
func open(t testing.TB, url string) *Store {
	t.Helper()
	cfg := Config{Schema: newSchema()}
	if err := Migrate(t.Context(), url, cfg); err != nil {
		t.Fatal(err)
	}
	return openNode(t, url, cfg)
}

// openNode opens another store on a schema. It waits for locks far longer than others keep them, however slow the machine is. Tests
// of what it does when that takes too long give it less time.
func openNode(t testing.TB, url string, cfg Config) *Store {
	t.Helper()
	s, err := Open(t.Context(), url, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if s.timeout != callTimeout || s.lockTimeout != lockTimeout || s.dropPatience != dropPatience {
		t.Fatalf("it waits for %v, %v and %v", s.timeout, s.lockTimeout, s.dropPatience)
	}
	s.lockTimeout, s.dropPatience = patience, patience
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func connectPool(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func openSQL(t testing.TB, url string) *sql.DB {
	t.Helper()
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	db := stdlib.OpenDB(*cfg)
	t.Cleanup(func() { db.Close() })
	return db
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
