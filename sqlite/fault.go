package sqlite

import (
	"context"
	"errors"

	"github.com/musehub/posthorn"
	"zombiezen.com/go/sqlite"
)

// fault turns an error of SQLite's into the one that the store's caller gets. A [posthorn.Error] stays what it is, and
// what a cancelled context caused becomes the context's error.
func (s *Store) fault(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*posthorn.Error](err); ok {
		return err
	}
	if ctxErr := ctx.Err(); ctxErr != nil && (errors.Is(err, ctxErr) || resultCode(err).ToPrimary() == sqlite.ResultInterrupt) {
		return ctxErr
	}
	unavailable := func(format string) error {
		return posthorn.Errorf(posthorn.CodeUnavailable, format+": %w", s.name, err)
	}
	if resultCode(err) == sqlite.ResultBusySnapshot { // a transaction of the host's
		return unavailable("%s was written to after the transaction had read it, begin it with _txlock=immediate")
	}
	switch resultCode(err).ToPrimary() {
	case sqlite.ResultFull:
		return unavailable("the disk is full, %s can't grow")
	case sqlite.ResultIOErr:
		return unavailable("the disk failed to read or write %s")
	case sqlite.ResultReadOnly:
		return unavailable("%s can't be written, it is read-only")
	case sqlite.ResultCantOpen, sqlite.ResultPerm, sqlite.ResultAuth:
		return unavailable("%s, or a file beside it, can't be opened")
	case sqlite.ResultCorrupt:
		return unavailable("%s is damaged, restore it from a backup")
	case sqlite.ResultNotADB:
		return unavailable("%s is not a SQLite database")
	case sqlite.ResultBusy, sqlite.ResultLocked, sqlite.ResultProtocol:
		return unavailable("%s was locked by someone else for too long")
	case sqlite.ResultNoMem:
		return unavailable("there is no memory left to work on %s")
	}
	return posthorn.Errorf(posthorn.CodeInternal, "%s: %w", s.name, err)
}

// resultCode returns SQLite's code of an error that came from either of its two drivers.
func resultCode(err error) sqlite.ResultCode {
	if err == nil {
		return sqlite.ResultOK
	}
	if coded, ok := errors.AsType[interface {
		error
		Code() int
	}](err); ok { // database/sql's driver
		return sqlite.ResultCode(coded.Code())
	}
	return sqlite.ErrCode(err)
}
