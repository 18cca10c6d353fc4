// Package postgres is a [posthorn.Store] on PostgreSQL 14 or newer, for any number of nodes that share one database and
// nothing else.
//
//	err := postgres.Migrate(ctx, url, postgres.Config{}) // or: posthorn migrate up
//	store, err := postgres.Open(ctx, url, postgres.Config{})
//	d, err := posthorn.New(store, posthorn.Config{SecretKeys: keys})
//
// The keys that encrypt webhooks' secrets are not kept in the database. All nodes need the same.
//
// # Schema and migrations
//
// The tables are in a schema of their own, "posthorn" unless [Config.Schema] says otherwise, so they can be in a host's
// database. [Migrate] makes and changes them, [Status] tells what there is to do, and [Open] only checks. A version works on
// its own schema and on the one a single migration behind. So for an upgrade the nodes come first, one after the other, and
// then the migration: an older version does not start on a newer schema.
//
// The role needs USAGE and CREATE on the schema, and must own the tables: a node makes and drops the log's partitions, one
// for each day of events. The database's encoding must be UTF8.
//
// # Nodes
//
// Every process that opens a store and starts a [posthorn.Dispatcher] on it is a node. Any of them takes events for all; each
// delivers what it accepted, and takes over what others can't: because they have no room for it, or because their lease ran
// out. They need no address of each other, only the same database, and go by its clock. Each takes up to
// [Config.MaxConns] connections and one more, to listen on. A node that can't listen, because a pooler is between or no
// connection is left, just finds by asking what others wrote, within a second or two.
//
// # Transactions of the host
//
// [Store.Tx] and [Store.SQLTx] put an event into a transaction of the host's own, beside what the event is about:
//
//	tx, err := pool.Begin(ctx)
//	// … the host's own statements …
//	receipt, err := d.DispatchTx(ctx, store.Tx(tx), event)
//	err = tx.Commit(ctx) // from here on it will be delivered
//
// Keep such transactions short. Whoever dispatches the same event while one is open waits for it, and gives up after some
// seconds with [posthorn.CodeUnavailable].
//
// # Errors
//
// The message of an error is for anyone, also over the network. Which server and database it is about, and what the driver
// said, is in its cause and in the log.
//
// # Durability
//
// A commit has been flushed to disk when it returns: where synchronous_commit is off, the store's transactions turn it on.
// With fsync=off nothing is durable, and that is the operator's choice. In a transaction of the host's (see [Store.Tx]) the
// host's settings count.
//
// # Transactions that stay open
//
// While any session of the same database holds a snapshot for long, or any transaction of any database of the server that has
// written something stays open, rows that were deleted since then can't be removed. The queue's table and indexes grow
// meanwhile by what passes through them. The store gets past that (it remembers up to where it has claimed), but the disk does
// not: watch for old transactions (xact_start in pg_stat_activity), prepared ones and replication slots, and for n_dead_tup of
// the table queue in pg_stat_user_tables. The table doesn't shrink by itself afterwards: VACUUM FULL does it, with the nodes
// stopped. And as long as a transaction uses the log, no day of it can be dropped; [Store.Prune] fails when one is overdue.
//
// # Poolers
//
// Through PgBouncer in transaction mode, with default_query_exec_mode=exec in the URL if it keeps no prepared statements,
// everything works but [Store.Listen] and [Migrate]. They need a direct connection.
package postgres

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/musehub/posthorn"
)

// Store keeps webhooks, events, the queue and the delivery log in a PostgreSQL database.
type Store struct {
	*database
	names *names
	pool  *pgxpool.Pool

	partitions partitions
	lanes      lanes
	replayed   replayed
	placing    atomic.Int64 // the webhook behind which Due looks for entries to place

	timeout, lockTimeout, dropPatience time.Duration // callTimeout and the constants of these names, but in tests

	closed context.Context // ends when the store is closed
	close  context.CancelFunc
}

var (
	_ posthorn.Store    = (*Store)(nil)
	_ posthorn.Notifier = (*Store)(nil)
)

// Open connects to a database that has been migrated. The error is [posthorn.CodeInvalid] for a URL that can't be, and
// [posthorn.CodeUnavailable] when the database can't be reached or used, or its schema is not this version's.
func Open(ctx context.Context, url string, cfg Config) (*Store, error) {
	d, err := parse(url, cfg)
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, d.pool)
	if err != nil {
		return nil, d.fault(ctx, err)
	}
	s := &Store{database: d, names: newNames(d.schema), pool: pool}
	s.timeout, s.lockTimeout, s.dropPatience = callTimeout, lockTimeout, dropPatience
	s.closed, s.close = context.WithCancel(context.Background())
	if err := s.check(ctx); err != nil {
		_ = s.Close() // it has no error
		return nil, err
	}
	return s, nil
}

// check makes sure that the database can be worked with.
func (s *Store) check(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := s.pool.Acquire(bounded)
	if err != nil {
		return s.fault(ctx, err)
	}
	defer conn.Release()
	if err := checkServer(conn.Conn().PgConn().ParameterStatus); err != nil {
		return s.failed(posthorn.CodeUnavailable, "can't be used", err)
	}
	has, err := schemaVersion(bounded, conn.Conn(), s.names)
	if err != nil {
		return s.fault(ctx, err)
	}
	newest, err := newestVersion()
	if err != nil {
		return err
	}
	if err := checkVersion(s.schema, has, newest); err != nil {
		return s.failed(posthorn.CodeUnavailable, "can't be used", err)
	}
	return nil
}

// oldestServer is the major version from which on a range of a table's pages can be read without the others (see Release).
const oldestServer = 14

// checkServer judges by what the server says of itself. A pooler may say nothing.
func checkServer(parameter func(string) string) error {
	version := parameter("server_version")
	major, _, _ := strings.Cut(version, ".")
	if n, err := strconv.Atoi(major); err == nil && n < oldestServer {
		return posthorn.Errorf(posthorn.CodeUnavailable, "the server is PostgreSQL %s, and Posthorn needs %d or newer", version, oldestServer)
	}
	if encoding := parameter("server_encoding"); encoding != "" && encoding != "UTF8" {
		return posthorn.Errorf(posthorn.CodeUnavailable, "its encoding is %s, and Posthorn needs UTF8", encoding)
	}
	return nil
}

// Close waits for the calls under way and closes the connections. Calls after it fail with [posthorn.CodeUnavailable].
func (s *Store) Close() error {
	s.close()
	s.pool.Close()
	return nil
}

func (s *Store) errClosed() error {
	return &posthorn.Error{Code: posthorn.CodeUnavailable, Message: "the store is closed", Err: errors.New(s.String())}
}

// Now implements [posthorn.Store].
func (s *Store) Now(ctx context.Context) (now time.Time, err error) {
	err = s.get(ctx, func(b *batch) {
		b.queue("SELECT clock_timestamp()").QueryRow(func(row pgx.Row) error { return row.Scan(&now) })
	})
	return now.UTC(), err
}

// micros is a time as it is stored. PostgreSQL would round it.
func micros(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }
