package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/pgtest"
)

func TestDiagnose(t *testing.T) {
	for state, code := range map[string]posthorn.Code{
		"08006": posthorn.CodeUnavailable, "57P01": posthorn.CodeUnavailable, "57P03": posthorn.CodeUnavailable,
		"53100": posthorn.CodeUnavailable, "53300": posthorn.CodeUnavailable, "25006": posthorn.CodeUnavailable,
		"28P01": posthorn.CodeUnavailable, "3D000": posthorn.CodeUnavailable, "42P01": posthorn.CodeUnavailable,
		"55P03": posthorn.CodeUnavailable, "57014": posthorn.CodeUnavailable, "40P01": posthorn.CodeUnavailable,
		"58030": posthorn.CodeUnavailable, "XX001": posthorn.CodeUnavailable, "42501": posthorn.CodeUnavailable,
		"22021": posthorn.CodeInvalid, "42601": posthorn.CodeInternal, "23505": posthorn.CodeInternal, "XX000": posthorn.CodeInternal,
	} {
		d, err := parse("postgres://me:s3cr3t@127.0.0.1/db", Config{})
		if err != nil {
			t.Fatal(err)
		}
		err = d.fault(t.Context(), fmt.Errorf("doing: %w", &pgconn.PgError{Code: state, Message: "the server's words"}))
		wantCode(t, err, code, "the server's words", "127.0.0.1:5432", `"db"`)
		wantDiscreet(t, err, "the server's words", "127.0.0.1", "5432", `"db"`, "s3cr3t")
	}
}

// wantDiscreet checks that an error says the rest to the operator alone, and that on one line.
func wantDiscreet(t *testing.T, err error, names ...string) {
	t.Helper()
	e, ok := errors.AsType[*posthorn.Error](err)
	if !ok {
		t.Fatalf("%v is no error of Posthorn's", err)
	}
	for _, name := range names {
		if strings.Contains(e.Public(), name) {
			t.Errorf("anyone is told %q: %q", name, e.Public())
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("%q is more than one line", err)
	}
}

// TestDiscreet has a server that nobody reaches.
func TestDiscreet(t *testing.T) {
	direct := open(t, pgtest.URL(t))
	p := startProxy(t, direct)
	s := openNode(t, p.url, Config{Schema: direct.schema})
	p.refuse(true)
	if err := p.listener.Close(); err != nil {
		t.Fatal(err)
	}
	conn := s.database.pool.ConnConfig
	names := []string{"127.0.0.1", fmt.Sprint(conn.Port), conn.User, conn.Database}
	var fromTwo error
	for name, call := range map[string]func() error{
		"Now":      func() error { _, err := s.Now(t.Context()); return err },
		"the same": func() error { _, err := s.Now(t.Context()); return err },
		"Commit": func() error {
			e := newEvent(start)
			r := delivered(leasedEntryOf(posthorn.Webhook{Seq: 1, ID: "w"}, e), start)
			_, err := s.Commit(t.Context(), posthorn.Batch{Results: []posthorn.Result{r}})
			return err
		},
		"Tx": func() error {
			fail := func(context.Context, string, ...any) scanner { return errorScanner{fromTwo} }
			_, err := hostTx{s, fail}.Accept(t.Context(), accepting(newEvent(start), false))
			return err
		},
	} {
		_, fromTwo = pgx.Connect(t.Context(), "host=127.0.0.1,127.0.0.1 port=1 user=me dbname=db")
		err := call()
		wantCode(t, err, posthorn.CodeUnavailable, "can't be reached")
		wantDiscreet(t, err, names...)
		if name != "Tx" {
			wantCode(t, err, posthorn.CodeUnavailable, names[0], names[1], conn.Database)
		}
	}
	s.timeout = time.Nanosecond
	_, err := s.Now(t.Context())
	wantCode(t, err, posthorn.CodeUnavailable, names[0])
	wantDiscreet(t, err, names...)
	s.Close()
	_, err = s.Now(t.Context())
	wantCode(t, err, posthorn.CodeUnavailable, names[0], "closed")
	wantDiscreet(t, err, names...)
}

type errorScanner struct{ err error }

func (e errorScanner) Scan(...any) error { return e.err }

func TestRolledBack(t *testing.T) {
	for _, c := range []struct {
		severity, code string
		want           bool
	}{{"ERROR", "40001", true}, {"ERROR", "53100", true}, {"ERROR", "08006", false}, {"ERROR", "08P01", false}, {"FATAL", "57P01", false}} {
		err := fmt.Errorf("commit: %w", &pgconn.PgError{SeverityUnlocalized: c.severity, Code: c.code})
		if got := rolledBack(err); got != c.want {
			t.Errorf("%s %s is a rollback: %v", c.severity, c.code, got)
		}
	}
	if rolledBack(io.ErrUnexpectedEOF) {
		t.Error("a lost connection is a rollback")
	}
}

// TestReadOnly has a server that became a replica: the next call connects anew.
func TestReadOnly(t *testing.T) {
	url := pgtest.URL(t)
	first := open(t, url)
	s := openNode(t, url, Config{Schema: first.schema, MaxConns: 1})
	execute(t, s, "SET default_transaction_read_only = on")
	_, err := s.Lease(t.Context(), 0, start)
	wantCode(t, err, posthorn.CodeUnavailable, "target_session_attrs")
	newNode(t, s)
}

// TestVanishedNode has a node that says nothing more in the middle of a transaction: the server ends it.
func TestVanishedNode(t *testing.T) {
	s := open(t, pgtest.URL(t))
	err := s.write(t.Context(), func(ctx context.Context, tx *transaction) error {
		var limit string
		var backend int
		err := tx.run(ctx, func(b *batch) {
			b.queue("SELECT current_setting('idle_in_transaction_session_timeout'), pg_backend_pid()").
				QueryRow(func(row pgx.Row) error { return row.Scan(&limit, &backend) })
			b.queue("SELECT set_config('idle_in_transaction_session_timeout', '50ms', true)")
		})
		if err != nil || limit != "30s" {
			t.Errorf("the limit is %s, %v", limit, err)
		}
		for left := 1; left > 0; {
			row := s.pool.QueryRow(ctx, "SELECT count(*) FROM pg_stat_activity WHERE pid = $1", backend)
			if err := row.Scan(&left); err != nil {
				return err
			}
		}
		return tx.run(ctx, func(b *batch) { b.queue("SELECT 1") })
	})
	wantCode(t, err, posthorn.CodeUnavailable)
}

// TestCommitBesideTx has a host's open transaction with an event that others dispatch, too: they wait for it, but not long.
func TestCommitBesideTx(t *testing.T) {
	s := open(t, pgtest.URL(t))
	s.lockTimeout = lockTimeout
	w, node := newWebhook(t, s), newNode(t, s)
	e := newEvent(start)
	host := begin(t, s, pgx.ReadCommitted)
	if _, err := s.Tx(host).Accept(t.Context(), accepting(e, false, w)); err != nil {
		t.Fatal(err)
	}
	again := *e
	b := posthorn.Batch{Node: node, Events: []posthorn.NewEvent{accepting(&again, true, w)}}
	began := time.Now()
	_, err := s.Commit(t.Context(), b)
	wantCode(t, err, posthorn.CodeUnavailable, "waited too long for a lock; a transaction that dispatched the same event may be open")
	if took := time.Since(began); took > callTimeout/2 {
		t.Errorf("it took %v", took)
	}
	if err := host.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := commitBatch(t, s, b); !a[0].Duplicate {
		t.Fatalf("afterwards it is %+v", a[0])
	}
}

func TestClose(t *testing.T) {
	s := open(t, pgtest.URL(t))
	w, node := newWebhook(t, s), newNode(t, s)
	holder := begin(t, s, pgx.ReadCommitted)
	if _, err := holder.Exec(t.Context(), s.names.replacer.Replace("LOCK TABLE posthorn.queue")); err != nil {
		t.Fatal(err)
	}
	under := make(chan error, 1)
	go func() {
		_, err := s.Commit(context.Background(), posthorn.Batch{Node: node, Events: []posthorn.NewEvent{accepting(newEvent(start), true, w)}})
		under <- err
	}()
	waitForLock(t, s)
	closed := make(chan error, 2)
	for range 2 {
		go func() { closed <- s.Close() }()
	}
	<-s.closed.Done()
	_, err := s.Webhook(t.Context(), w.RepoID, w.ID)
	wantCode(t, err, posthorn.CodeUnavailable, "closed")
	if err := holder.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-under; err != nil {
		t.Errorf("the call under way failed: %v", err)
	}
	for range 2 {
		if err := <-closed; err != nil {
			t.Error(err)
		}
	}
	_, err = s.Now(t.Context())
	wantCode(t, err, posthorn.CodeUnavailable, "closed")
	_, err = s.Prune(t.Context(), start)
	wantCode(t, err, posthorn.CodeUnavailable, "closed")
}

// waitForLock waits until one of the database's sessions waits for another one's lock.
func waitForLock(t *testing.T, s *Store) {
	t.Helper()
	conn, err := pgx.ConnectConfig(t.Context(), s.database.pool.ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	for deadline := time.Now().Add(soon); ; {
		waiting := false
		err := conn.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock')`).Scan(&waiting)
		switch {
		case err != nil:
			t.Fatal(err)
		case waiting:
			return
		case time.Now().After(deadline):
			t.Fatal("nobody waits for a lock")
		}
	}
}

// TestHangingDatabase has calls that wait for somebody else's lock until their own time is over, or their caller's.
func TestHangingDatabase(t *testing.T) {
	s := open(t, pgtest.URL(t))
	w, node := newWebhook(t, s), newNode(t, s)
	// Each call loses its connection, and the next one must not spend its time on another.
	var conns []*pgxpool.Conn
	for range 3 {
		conn, err := s.pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	for _, conn := range conns {
		conn.Release()
	}
	s.timeout = 200 * time.Millisecond
	holder := begin(t, s, pgx.ReadCommitted)
	if _, err := holder.Exec(t.Context(), s.names.replacer.Replace("LOCK TABLE posthorn.events")); err != nil {
		t.Fatal(err)
	}
	e := newEvent(start)
	b := posthorn.Batch{Node: node, Events: []posthorn.NewEvent{accepting(e, true, w)}}
	_, err := s.Commit(t.Context(), b)
	wantCode(t, err, posthorn.CodeUnavailable, "didn't answer in time")
	_, err = s.Event(t.Context(), "repo", "any")
	wantCode(t, err, posthorn.CodeUnavailable, "didn't answer in time")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Commit(ctx, b); !errors.Is(err, context.DeadlineExceeded) || posthorn.ErrorCode(err) == posthorn.CodeUnavailable {
		t.Fatalf("with a context of its caller's that ran out: %v", err)
	}
	if err := holder.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.timeout = callTimeout
	if a := commitBatch(t, s, b); a[0].Duplicate || a[0].Err != nil {
		t.Fatalf("afterwards the event is %+v", a[0])
	}
}

// TestNoFreeConnection has a call that finds the only connection in use.
func TestNoFreeConnection(t *testing.T) {
	url := pgtest.URL(t)
	first := open(t, url)
	s := openNode(t, url, Config{Schema: first.schema, MaxConns: 1})
	s.timeout = 50 * time.Millisecond
	conn, err := s.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Now(t.Context())
	wantCode(t, err, posthorn.CodeUnavailable, "no connection", "was free")
	conn.Release()
	s.timeout = callTimeout
	if _, err = s.Now(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prune(t.Context(), start); err != nil { // nothing needs two
		t.Fatal(err)
	}
}

// TestServerSettings has defaults that would break the promises of a store which took them as they are.
func TestServerSettings(t *testing.T) {
	url := pgtest.URL(t)
	first := open(t, url)
	for _, setting := range []string{
		"default_transaction_isolation = 'serializable'", "synchronous_commit = off",
		"default_transaction_deferrable = on", "search_path = ''", "TimeZone = 'Pacific/Kiritimati'", "DateStyle = 'German'",
	} {
		name := first.pool.Config().ConnConfig.Database
		if _, err := first.pool.Exec(t.Context(), "ALTER DATABASE "+name+" SET "+setting); err != nil {
			t.Fatal(err)
		}
	}
	s := openNode(t, url, Config{Schema: first.schema})
	err := s.write(t.Context(), func(ctx context.Context, tx *transaction) error {
		var level, durable string
		err := tx.run(ctx, func(b *batch) {
			b.queue("SELECT current_setting('transaction_isolation'), current_setting('synchronous_commit')").
				QueryRow(func(row pgx.Row) error { return row.Scan(&level, &durable) })
		})
		if level != "read committed" || durable != "on" {
			t.Errorf("a transaction is %s, with synchronous_commit = %s", level, durable)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	w, node := newWebhook(t, s), newNode(t, s)
	deliver(t, s, node, w, newEvent(start), start)
	if d := logOf(t, s, w).Items[0]; !d.DeliveredAt.Equal(start) {
		t.Errorf("the delivery was at %v", d.DeliveredAt)
	}
	prune(t, s, start.Add(3*oneDay))
	wantLog(t, s, w, 0)
}

// TestStatementTimeout has a server that gives statements no time.
func TestStatementTimeout(t *testing.T) {
	url := pgtest.URL(t)
	s := open(t, url)
	impatient := openNode(t, url, Config{Schema: s.schema, MaxConns: 1})
	holder := begin(t, s, pgx.ReadCommitted)
	if _, err := holder.Exec(t.Context(), s.names.replacer.Replace("LOCK TABLE posthorn.events")); err != nil {
		t.Fatal(err)
	}
	execute(t, impatient, "SET statement_timeout = 100")
	_, err := impatient.Event(t.Context(), "repo", "any")
	wantCode(t, err, posthorn.CodeUnavailable, "statement timeout")
}

// TestTerminated has an operator end the sessions of a store while it is at work: what fails says so, and can be done again.
func TestTerminated(t *testing.T) {
	url := pgtest.URL(t)
	s, other := open(t, url), connectPool(t, url)
	w, node := newWebhook(t, s), newNode(t, s)
	var stop atomic.Bool // and no context: the server would go on with a statement that was cancelled
	var wg sync.WaitGroup
	wg.Go(func() {
		for !stop.Load() {
			_, err := other.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'posthorn'")
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	const n = 40
	failures := 0
	for range n {
		e := newEvent(start)
		for _, b := range []posthorn.Batch{
			{Node: node, Events: []posthorn.NewEvent{accepting(e, true, w)}},
			{Node: node, Results: []posthorn.Result{delivered(leasedEntryOf(w, e), start)}},
		} {
			for {
				_, err := s.Commit(t.Context(), b)
				if err == nil {
					break
				}
				failures++
				if code := posthorn.ErrorCode(err); code != posthorn.CodeUnavailable && code != posthorn.CodeUncertain {
					t.Fatalf("a session that was ended: %v", err)
				}
				if failures == 200 { // enough: let it get through
					stop.Store(true)
				}
			}
		}
	}
	stop.Store(true)
	wg.Wait()
	if failures == 0 {
		t.Error("nothing failed")
	}
	wantLog(t, openNode(t, url, Config{Schema: s.schema}), w, n) // s may still have sessions that were ended
}

// TestLostCommit cuts the connection when the COMMIT has been sent, before or after the server gets it. Nobody can know
// which, and the same batch again settles it.
func TestLostCommit(t *testing.T) {
	for name, arrives := range map[string]bool{"arrived": true, "did not arrive": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			direct := open(t, pgtest.URL(t))
			w, node := newWebhook(t, direct), newNode(t, direct)
			p := startProxy(t, direct)
			s := openNode(t, p.url, Config{Schema: direct.schema, MaxConns: 1})
			e := newEvent(start)
			b := posthorn.Batch{Node: node, Events: []posthorn.NewEvent{accepting(e, true, w)}}
			p.cutAt("COMMIT", arrives)
			_, err := s.Commit(t.Context(), b)
			wantCode(t, err, posthorn.CodeUncertain, "in the middle of a commit")
			if arrives {
				waitForEvent(t, direct, e)
			}
			if a := commitBatch(t, s, b); a[0] != (posthorn.Acceptance{Duplicate: arrives, Deliveries: 1}) {
				t.Fatalf("the same batch again: %+v", a[0])
			}

			// Lost before the COMMIT, nothing was written.
			b = posthorn.Batch{Node: node, Results: []posthorn.Result{delivered(leasedEntryOf(w, e), start)}}
			p.cutAt(e.ID, false)
			_, err = s.Commit(t.Context(), b)
			wantCode(t, err, posthorn.CodeUnavailable)
			wantLog(t, direct, w, 0)
			commitBatch(t, s, b)
			wantLog(t, direct, w, 1)
		})
	}
}

func waitForEvent(t *testing.T, s *Store, e *posthorn.AcceptedEvent) {
	t.Helper()
	for deadline := time.Now().Add(soon); time.Now().Before(deadline); {
		if _, err := s.Event(t.Context(), e.RepoID, e.ID); err == nil {
			return
		}
	}
	t.Fatal("the COMMIT did not arrive")
}

// TestLostServer has a server that is gone for a while.
func TestLostServer(t *testing.T) {
	direct := open(t, pgtest.URL(t))
	p := startProxy(t, direct)
	s := openNode(t, p.url, Config{Schema: direct.schema})
	w := newWebhook(t, s)
	p.refuse(true)
	for range 3 {
		_, err := s.Webhook(t.Context(), w.RepoID, w.ID)
		wantCode(t, err, posthorn.CodeUnavailable, "can't be reached")
	}
	p.refuse(false)
	if _, err := s.Webhook(t.Context(), w.RepoID, w.ID); err != nil {
		t.Fatal(err)
	}
}

// proxy stands between a store and the server, and can cut connections.
type proxy struct {
	url      string
	listener net.Listener
	wg       sync.WaitGroup

	mu      sync.Mutex
	conns   map[net.Conn]bool
	cut     []byte // cut the connection on which this comes
	arrives bool   // but send it on first
	refused bool
}

func startProxy(t *testing.T, s *Store) *proxy {
	t.Helper()
	conn := s.database.pool.ConnConfig
	network, address := "tcp", net.JoinHostPort(conn.Host, fmt.Sprint(conn.Port))
	if strings.HasPrefix(conn.Host, "/") {
		network, address = "unix", fmt.Sprintf("%s/.s.PGSQL.%d", conn.Host, conn.Port)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: listener, conns: map[net.Conn]bool{}}
	p.url = fmt.Sprintf("host=127.0.0.1 port=%d user=%s password='%s' dbname=%s sslmode=disable",
		listener.Addr().(*net.TCPAddr).Port, conn.User, conn.Password, conn.Database)
	p.wg.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(client, network, address) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		p.refuse(true)
		p.wg.Wait()
	})
	return p
}

// cutAt cuts the next connection on which the client sends a text.
func (p *proxy) cutAt(text string, arrives bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut, p.arrives = []byte(text), arrives
}

// refuse cuts all connections and takes no others for now.
func (p *proxy) refuse(refused bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused = refused
	if refused {
		for conn := range p.conns {
			conn.Close()
		}
	}
}

func (p *proxy) serve(client net.Conn, network, address string) {
	defer client.Close()
	server, err := net.Dial(network, address)
	if err != nil {
		return
	}
	defer server.Close()
	p.mu.Lock()
	refused := p.refused
	p.conns[client] = true
	p.mu.Unlock()
	if refused {
		return
	}
	defer func() {
		p.mu.Lock()
		delete(p.conns, client)
		p.mu.Unlock()
	}()
	p.wg.Go(func() {
		defer client.Close()
		io.Copy(client, server)
	})
	buf := make([]byte, 64<<10)
	for {
		n, err := client.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		cut := len(p.cut) > 0 && bytes.Contains(buf[:n], p.cut)
		arrives := p.arrives
		if cut {
			p.cut = nil
		}
		p.mu.Unlock()
		if cut {
			client.Close() // before the server can answer
			if arrives {
				server.Write(buf[:n])
			}
			return
		}
		if _, err := server.Write(buf[:n]); err != nil {
			return
		}
	}
}
