package sqlite

import (
	"context"
	"os"
	"time"

	"github.com/musehub/posthorn"
	"zombiezen.com/go/sqlite"
)

const (
	// busyTimeout is how long a write waits while someone else writes to the file: the host, through a connection of its
	// own in the same process, or an operator's shell.
	busyTimeout = 10 * time.Second

	writerCache = 8 << 10 // KiB of pages
	readerCache = 2 << 10

	// walLimit is how far the write-ahead log may grow before writers stop for a moment to let it start over. It starts
	// over by itself whenever no reader is in it, which under steady reading may never come.
	walLimit = 64 << 20
	// walCheckEvery is after how many writes the log's size is looked at.
	walCheckEvery = 64
)

// openConn opens one connection with the settings that all of them have.
func (s *Store) openConn(cacheKiB int) (*sqlite.Conn, error) {
	c, err := sqlite.OpenConn(s.path, sqlite.OpenReadWrite)
	if err != nil {
		return nil, err
	}
	c.SetBusyTimeout(busyTimeout)
	for _, pragma := range []struct {
		query string
		value any
	}{
		{"PRAGMA journal_mode = WAL", nil},
		{"PRAGMA synchronous = FULL", nil}, // a commit is on the disk when it returns
		{"PRAGMA foreign_keys = ON", nil},
		{"PRAGMA temp_store = MEMORY", nil},
		{"PRAGMA cache_size = ", -cacheKiB},
		{"PRAGMA journal_size_limit = ", walLimit},
		{"PRAGMA wal_autocheckpoint = ", 4000},
	} {
		if err := setPragma(c, pragma.query, pragma.value); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

// take gets a connection, or fails when the store is closed or the context is done first.
func (s *Store) take(ctx context.Context, from chan *sqlite.Conn) (*sqlite.Conn, error) {
	if err := s.usable(ctx); err != nil { // of several ready cases select picks any; these two go first
		return nil, err
	}
	select {
	case c := <-from:
		return c, nil
	case <-s.closed:
		return nil, s.errClosed()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// usable returns an error when the store is closed or the context is done.
func (s *Store) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case <-s.closed:
		return s.errClosed()
	default:
		return nil
	}
}

func (s *Store) errClosed() error {
	return posthorn.Errorf(posthorn.CodeUnavailable, "%s is closed", s.name)
}

// write runs fn in a transaction that commits, with an fsync, if fn returns nil. Writers take turns in the order in which
// they came. An error of fn's own, if it is no [posthorn.Error], must be kept out of write: it is taken for SQLite's.
func (s *Store) write(ctx context.Context, fn func(*sqlite.Conn) error) error {
	return s.withWriter(ctx, func(c *sqlite.Conn) error { return s.transact(ctx, c, fn) })
}

// withWriter runs fn, which makes one transaction, while nobody else writes.
func (s *Store) withWriter(ctx context.Context, fn func(*sqlite.Conn) error) error {
	c, err := s.take(ctx, s.writer)
	if err != nil {
		return err
	}
	defer func() { s.writer <- c }()
	if err := fn(c); err != nil {
		return s.fault(ctx, err)
	}
	s.wal.wrote(c, s.path+"-wal")
	return nil
}

func (s *Store) transact(ctx context.Context, c *sqlite.Conn, fn func(*sqlite.Conn) error) error {
	// The context can end everything but the COMMIT: one that has begun decides by itself.
	setInterrupt(ctx, c)
	defer c.SetInterrupt(nil)
	if err := begin(ctx, c); err != nil {
		return err
	}
	defer func() { // also when fn panics
		if !c.AutocommitEnabled() {
			c.SetInterrupt(nil)
			_ = exec(c, "ROLLBACK") // what failed before matters more
		}
	}()
	if err := fn(c); err != nil {
		return err
	}
	if entry := posthorn.AuditOf(ctx); entry != nil {
		if err := insertAudit(c, entry); err != nil {
			return err
		}
	}
	c.SetInterrupt(nil)
	return exec(c, "COMMIT")
}

// begin starts a write transaction. It waits in Go for a lock that someone else has, so that the wait ends with the
// context.
func begin(ctx context.Context, c *sqlite.Conn) error {
	c.SetBusyTimeout(0)
	var deadline time.Time
	for delay := time.Millisecond; ; delay = min(2*delay, 10*time.Millisecond) {
		err := exec(c, "BEGIN IMMEDIATE")
		if resultCode(err).ToPrimary() != sqlite.ResultBusy {
			return err
		}
		now := time.Now()
		if deadline.IsZero() {
			deadline = now.Add(busyTimeout)
		} else if now.After(deadline) {
			return err
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// read runs fn on one snapshot of the database.
func (s *Store) read(ctx context.Context, fn func(*sqlite.Conn) error) error {
	c, err := s.take(ctx, s.readers)
	if err != nil {
		return err
	}
	defer func() { s.readers <- c }()
	if c == nil {
		opened, err := s.openReader()
		if err != nil {
			return s.fault(ctx, err)
		}
		c = opened
	}
	setInterrupt(ctx, c)
	defer func() {
		c.SetInterrupt(nil)
		if !c.AutocommitEnabled() {
			_ = exec(c, "ROLLBACK") // nothing was written; this lets go of the snapshot
		}
	}()
	if err := exec(c, "BEGIN"); err != nil {
		return s.fault(ctx, err)
	}
	return s.fault(ctx, fn(c))
}

func (s *Store) openReader() (*sqlite.Conn, error) {
	c, err := s.openConn(readerCache)
	if err != nil {
		return nil, err
	}
	if err := setPragma(c, "PRAGMA query_only = ON", nil); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func setInterrupt(ctx context.Context, c *sqlite.Conn) {
	if done := ctx.Done(); done != nil { // one that never ends needs no goroutine to watch it
		c.SetInterrupt(done)
	}
}

// walWatch keeps the write-ahead log from growing without end while readers follow each other without a gap.
type walWatch struct {
	limit   int64 // walLimit, but in tests
	writes  int
	patient int64 // below this size nothing is done, because the last time someone was reading for too long
}

func (w *walWatch) wrote(c *sqlite.Conn, path string) {
	if w.writes++; w.writes%walCheckEvery != 0 {
		return
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() <= max(w.limit, w.patient) {
		return
	}
	// Readers that come now no longer use the log, once it has been copied; so this ends with the reads under way.
	c.SetBusyTimeout(time.Second)
	busy, err := queryInt(c, "PRAGMA wal_checkpoint(TRUNCATE)")
	if err != nil || busy != 0 {
		w.patient = 2 * info.Size() // don't make every writer wait
	} else {
		w.patient = 0
	}
}
