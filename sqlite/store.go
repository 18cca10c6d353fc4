// Package sqlite is a [posthorn.Store] on an embedded SQLite file. It needs no server and no cgo.
//
// The file may be the host's own: Posthorn's tables there begin with "posthorn_", and events can be accepted in the host's
// transactions (see Tx). It is set to journal_mode WAL.
//
// One process has the file at a time. Beside it stand the write-ahead log ("-wal" and "-shm", SQLite's own), a lock
// (".lock") and, unless the host keeps the keys elsewhere, the keys that encrypt webhooks' secrets (".key").
package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"github.com/musehub/posthorn"
	"zombiezen.com/go/sqlite"
)

// maxReaders is how many reads run side by side. Each has a connection, opened when it is first needed.
const maxReaders = 4

// Store keeps webhooks, events, the queue and the delivery log in one SQLite file. Writes go through one connection, one
// after the other; reads run beside them and never wait for a write.
type Store struct {
	path string // absolute
	name string // the path's last element, for messages
	lock *flock.Flock

	writer  chan *sqlite.Conn // has the connection that writes while nobody uses it
	readers chan *sqlite.Conn // those that read; nil stands for one that is not open yet
	// Used by who has the writer.
	wal      walWatch
	promises promises

	closing   sync.Once
	closed    chan struct{}
	closeErr  error
	keysGuard sync.Mutex // makes SecretKeys one at a time
}

var (
	_ posthorn.Store        = (*Store)(nil)
	_ posthorn.SecretKeeper = (*Store)(nil)
)

// Open opens the file at path, or creates it; the folder must exist. An older version's file is migrated. The error is
// [posthorn.CodeUnavailable] when another process has the file open, when it is a newer version's, and when it is no
// SQLite database.
//
// A host that has tables of its own in the file opens it besides, in the same process and with the driver of
// modernc.org/sqlite, for example as
//
//	sql.Open("sqlite", "file:host.db?_txlock=immediate&_pragma=busy_timeout(10000)")
//
// With another driver the process would have a second copy of SQLite, and as soon as one of the two closes the file, the
// system drops the locks of both. Without _txlock=immediate a transaction that reads before it writes fails when someone
// else has written in between. Transactions that write should be short: Posthorn's writes wait for them, and give up after
// 10 seconds.
func Open(ctx context.Context, path string) (_ *Store, err error) {
	if path == "" {
		return nil, posthorn.Errorf(posthorn.CodeInvalid, "the database's path is empty")
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, posthorn.Errorf(posthorn.CodeUnavailable, "the database's path: %w", err)
	}
	// The file is made here and not by SQLite, so that only its owner can read it, and so that a link to where there is
	// none yet can be followed. One that is there is left alone: closing a file gives up the process's locks on it.
	if _, err := os.Stat(abs); errors.Is(err, fs.ErrNotExist) { //nolint:gosec // the path is the caller's to choose
		if f, err := os.OpenFile(abs, os.O_CREATE|os.O_RDWR, 0o600); err == nil { //nolint:gosec // else what follows says what's wrong
			_ = f.Close()
		}
	}
	if target, err := filepath.EvalSymlinks(abs); err == nil {
		abs = target // where SQLite puts its files too; and one file has one lock, by whatever name it is opened
	}
	s := &Store{
		path:    abs,
		name:    filepath.Base(abs),
		writer:  make(chan *sqlite.Conn, 1),
		readers: make(chan *sqlite.Conn, maxReaders),
		wal:     walWatch{limit: walLimit},
		closed:  make(chan struct{}),
	}
	if err := s.takeLock(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = s.lock.Unlock() // it ends with the process at the latest
		}
	}()
	if err := s.migrate(ctx); err != nil {
		return nil, err
	}
	w, err := s.openConn(writerCache)
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	s.writer <- w
	for range maxReaders {
		s.readers <- nil
	}
	if err := s.endAllLeases(ctx); err != nil {
		w.Close()
		return nil, err
	}
	return s, nil
}

// takeLock makes this the one Store that has the file.
func (s *Store) takeLock() error {
	dir := filepath.Dir(s.path)
	if info, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return posthorn.Errorf(posthorn.CodeUnavailable, "%s can't be opened: its folder %s does not exist", s.name, dir)
	} else if err != nil {
		return posthorn.Errorf(posthorn.CodeUnavailable, "%s can't be opened: %w", s.name, err)
	} else if !info.IsDir() {
		return posthorn.Errorf(posthorn.CodeUnavailable, "%s can't be opened: %s is not a folder", s.name, dir)
	}
	s.lock = flock.New(s.path + ".lock")
	ok, err := s.lock.TryLock()
	if err != nil {
		return posthorn.Errorf(posthorn.CodeUnavailable, "%s can't be locked: %w", s.name, err)
	}
	if !ok {
		return posthorn.Errorf(posthorn.CodeUnavailable, "%s is in use by another process, or is open in this one already", s.name)
	}
	return nil
}

// endAllLeases ends the leases that were running when the file was last closed. The lock proves that none of those
// nodes is alive, so that nobody needs to wait for their leases to run out.
func (s *Store) endAllLeases(ctx context.Context) error {
	return s.write(ctx, func(c *sqlite.Conn) error {
		return exec(c, "UPDATE posthorn_nodes SET lease_until = ?", leaseEnded)
	})
}

// Now implements [posthorn.Store]. The store's clock is its process's: no other has the file open.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	if err := s.usable(ctx); err != nil {
		return time.Time{}, err
	}
	return time.Now().UTC().Truncate(time.Microsecond), nil
}

// Close waits for the calls under way and closes the file. Calls after it fail with [posthorn.CodeUnavailable].
func (s *Store) Close() error {
	s.closing.Do(func() {
		close(s.closed)
		var errs []error
		for range maxReaders {
			if c := <-s.readers; c != nil {
				errs = append(errs, c.Close())
			}
		}
		errs = append(errs, (<-s.writer).Close(), s.lock.Unlock())
		if err := errors.Join(errs...); err != nil {
			s.closeErr = fmt.Errorf("close %s: %w", s.name, err)
		}
	})
	return s.closeErr
}
