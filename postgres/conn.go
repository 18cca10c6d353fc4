package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/musehub/posthorn"
)

const (
	// callTimeout is how long the database may take over one transaction, so that one which hangs holds up nobody for ever.
	callTimeout = 30 * time.Second
	// lockTimeout is how long a commit waits for the rows that somebody else has locked, and a drop for a vacuum. It is also how long
	// a drop that has its locks may say nothing.
	lockTimeout = 2 * time.Second
	// maxAttempts is how often a transaction is tried that loses against another one, or finds a partition missing.
	maxAttempts = 10
)

// settings are made for each transaction, and not for the connection: behind a pooler that is somebody else's by then.
//
// Accepted means durable, whatever the server's or the role's default is. And the planner must not choose by what it last knew
// of a table that goes from empty to a million rows and back within minutes: everything is found through an index, by a plan
// that is made once for all arguments. What that does to its estimates would make it compile every statement, if it were let.
//
// And the locks of a node that vanished between two round trips are not kept until the network notices.
const settings = `SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'
	ELSE current_setting('synchronous_commit') END, true), set_config('enable_seqscan', 'off', true),
	set_config('enable_bitmapscan', 'off', true), set_config('plan_cache_mode', 'force_generic_plan', true),
	set_config('jit', 'off', true), set_config('idle_in_transaction_session_timeout', '30s', true)`

var (
	// Whatever the server's default is: what a statement waited for, the next one sees.
	writing = pgx.TxOptions{IsoLevel: pgx.ReadCommitted}
	reading = pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
)

// transaction is one on its way. Its first batch opens it.
type transaction struct {
	conn    *pgx.Conn
	names   *names
	options pgx.TxOptions
	open    bool
}

// run sends the statements that queue adds to a batch and reads their results, in one round trip.
func (t *transaction) run(ctx context.Context, queue func(b *batch)) error {
	return t.send(ctx, queue, false)
}

func (t *transaction) send(ctx context.Context, queue func(b *batch), last bool) error {
	b := &batch{names: t.names}
	if !t.open {
		b.BeginTx(t.options)
		b.Queue(settings)
		t.open = true
	}
	queue(b)
	if last {
		b.Queue("COMMIT")
	}
	return t.conn.SendBatch(ctx, &b.Batch).Close()
}

// end makes the connection fit for the next one, if it can.
func (t *transaction) end() {
	if t.conn.IsClosed() || t.conn.PgConn().TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, _ = t.conn.Exec(ctx, "ROLLBACK") // if it fails the pool closes the connection, and that is a rollback too
}

// get runs one batch of statements that don't write, in one round trip.
func (s *Store) get(ctx context.Context, queue func(b *batch)) error {
	return s.with(ctx, reading, func(ctx context.Context, t *transaction) error {
		return t.send(ctx, queue, true)
	})
}

// read runs fn on one snapshot of the database.
func (s *Store) read(ctx context.Context, fn func(ctx context.Context, t *transaction) error) error {
	return s.with(ctx, reading, fn)
}

// write runs fn in a transaction that commits if fn returns nil. It may run it several times, so fn must start from nothing.
func (s *Store) write(ctx context.Context, fn func(ctx context.Context, t *transaction) error) error {
	for attempt := 1; ; attempt++ {
		err := s.with(ctx, writing, func(ctx context.Context, t *transaction) error {
			if err := fn(ctx, t); err != nil {
				return err
			}
			if entry := posthorn.AuditOf(ctx); entry != nil {
				if err := t.run(ctx, func(b *batch) { insertAudit(b, entry) }); err != nil {
					return err
				}
			}
			return commit(ctx, t.conn)
		})
		if err == nil || attempt == maxAttempts || !again(err) {
			return err
		}
		// Those who met here should not meet again.
		if err := pause(ctx, rand.N(10*time.Millisecond)); err != nil { //nolint:gosec // no secret
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// with lends fn a connection, and turns its error into the one that the store's caller gets.
func (s *Store) with(ctx context.Context, options pgx.TxOptions, fn func(ctx context.Context, t *transaction) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.closed.Err() != nil {
		return s.errClosed()
	}
	bounded, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	conn, err := s.pool.Acquire(bounded)
	if err != nil {
		switch {
		case s.closed.Err() != nil:
			return s.errClosed()
		case ctx.Err() == nil && bounded.Err() != nil:
			message := fmt.Sprintf("no connection to the PostgreSQL database was free, or could be made, within %v", s.timeout)
			return &posthorn.Error{Code: posthorn.CodeUnavailable, Message: message, Err: s.cause(err)}
		}
		return s.fault(ctx, err)
	}
	defer conn.Release()
	t := &transaction{conn: conn.Conn(), names: s.names, options: options}
	defer t.end()
	err = fn(bounded, t)
	if sqlState(err) == "25006" {
		s.pool.Reset() // they are all to a server that is a replica by now; others may find the primary
	}
	return s.fault(ctx, err)
}

// uncertainError is the failure of a COMMIT after which nobody knows what became of it.
type uncertainError struct{ error }

func (e uncertainError) Unwrap() error { return e.error }

// commit ends a transaction. That is where the database can be lost without anyone knowing what it has done. Only the server
// knows: of a connection that ends when the COMMIT has been sent, pgx may say that it was closed before (pgconn.SafeToRetry).
func commit(ctx context.Context, conn *pgx.Conn) error {
	if err := ctx.Err(); err != nil {
		return err // pgx would not send it
	}
	tag, err := conn.Exec(ctx, "COMMIT")
	if err == nil && tag.String() != "COMMIT" {
		return errors.New("the database rolled back a transaction instead of committing it")
	}
	if err != nil && !rolledBack(err) {
		return uncertainError{err}
	}
	return err
}

// rolledBack reports whether an error of a COMMIT is the server's word that nothing was written. What is worse than an ERROR
// ends the session, perhaps with the transaction committed; and a pooler that has lost the server may say so as an ERROR of
// class 08.
func rolledBack(err error) bool {
	server, ok := errors.AsType[*pgconn.PgError](err)
	return ok && server.SeverityUnlocalized == "ERROR" && !strings.HasPrefix(server.Code, "08")
}

// again reports whether a transaction should be tried once more: it lost against another one, and nothing was written.
func again(err error) bool {
	switch sqlState(err) {
	case "40001", "40P01": // serialization failure, deadlock
		return true
	}
	return errors.Is(err, errAgain)
}

// errAgain is returned by a transaction that was overtaken by another one.
var errAgain = posthorn.Errorf(posthorn.CodeUnavailable, "others changed the same rows again and again")
