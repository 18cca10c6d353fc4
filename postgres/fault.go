package postgres

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/musehub/posthorn"
)

// fault turns an error of the driver's into the one that the store's caller gets. A [posthorn.Error] stays what it is, and
// what the end of the caller's context caused becomes the context's error.
func (d *database) fault(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*posthorn.Error](err); ok {
		return err
	}
	state := sqlState(err)
	if ctxErr := ctx.Err(); ctxErr != nil && (state == "" || state == "57014") { // 57014: cancelled
		return ctxErr
	}
	if _, ok := errors.AsType[uncertainError](err); ok {
		return d.failed(posthorn.CodeUncertain, "was lost in the middle of a commit", err)
	}
	if state == "" {
		switch {
		case late(err):
			return d.failed(posthorn.CodeUnavailable, "didn't answer in time", err)
		case lost(err):
			return d.failed(posthorn.CodeUnavailable, "can't be reached", err)
		}
		return d.failed(posthorn.CodeInternal, "failed", err)
	}
	code, what := diagnose(state)
	return d.failed(code, what, err)
}

// failed returns an error whose message is for anyone. Which database it is, and what the driver said, is in the cause.
func (d *database) failed(code posthorn.Code, what string, cause error) error {
	return &posthorn.Error{Code: code, Message: "the PostgreSQL database " + what, Err: d.cause(cause)}
}

// cause tells the operator which database an error is of.
func (d *database) cause(err error) error { return &causeError{d.String(), err} }

type causeError struct {
	where string
	err   error
}

// Error is one line. The driver's own may have one for each attempt to connect, many of them the same.
func (e *causeError) Error() string {
	var lines []string
	for line := range strings.SplitSeq(e.err.Error(), "\n") {
		if line = strings.TrimRight(strings.TrimSpace(line), ":"); !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return e.where + ": " + strings.Join(lines, "; ")
}

// Unwrap returns the driver's error.
func (e *causeError) Unwrap() error { return e.err }

// diagnose says what an SQLSTATE means to a store's caller.
func diagnose(state string) (code posthorn.Code, what string) {
	switch state {
	case "22021", "22P05": // a byte sequence or a character that the encoding doesn't have
		return posthorn.CodeInvalid, "can't store a text with a NUL character or one that is not UTF-8"
	case "25006":
		return posthorn.CodeUnavailable, "is read-only; if it is a replica, connect to the primary (target_session_attrs=read-write)"
	case "3D000":
		return posthorn.CodeUnavailable, "does not exist; create it first"
	case "3F000", "42P01", "42703":
		return posthorn.CodeUnavailable, "lacks tables of this version; run posthorn migrate up, or serve --migrate"
	case "40001", "40P01":
		return posthorn.CodeUnavailable, "had too many transactions on the same rows"
	case "42501":
		return posthorn.CodeUnavailable, "refused a permission that Posthorn's role needs"
	case "53100":
		return posthorn.CodeUnavailable, "has no disk space left"
	case "53300":
		return posthorn.CodeUnavailable, "has no connection left (max_connections); lower the number that Posthorn takes"
	case "55P03":
		return posthorn.CodeUnavailable, "waited too long for a lock; a transaction that dispatched the same event may be open"
	case "57014", "25P03", "25P04":
		return posthorn.CodeUnavailable, "took longer than its settings allow"
	}
	switch state[:2] {
	case "08", "57":
		return posthorn.CodeUnavailable, "ended the connection, or takes none now"
	case "28":
		return posthorn.CodeUnavailable, "refused the login; check user, password and pg_hba.conf"
	case "53", "58":
		return posthorn.CodeUnavailable, "has run out of something"
	}
	switch state {
	case "XX001", "XX002":
		return posthorn.CodeUnavailable, "is damaged; restore it from a backup"
	}
	return posthorn.CodeInternal, "failed"
}

// sqlState returns the server's code of an error, which every driver's error tells, "" if it is none of the server's.
func sqlState(err error) string {
	server, ok := errors.AsType[interface {
		error
		SQLState() string
	}](err)
	if !ok || len(server.SQLState()) != 5 {
		return ""
	}
	return server.SQLState()
}

// late reports whether an error means that the server was reached, and had no answer in time.
func late(err error) bool {
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return false
	}
	network, ok := errors.AsType[net.Error](err)
	return pgconn.Timeout(err) || ok && network.Timeout() || errors.Is(err, context.DeadlineExceeded)
}

// lost reports whether an error means that the server wasn't reached, or is gone.
func lost(err error) bool {
	if pgconn.SafeToRetry(err) {
		return true
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	return slices.ContainsFunc([]error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, driver.ErrBadConn, context.Canceled},
		func(target error) bool { return errors.Is(err, target) })
}

// storable reports whether PostgreSQL can keep texts: they are UTF-8 and have no NUL character. Nothing has a name that is
// not.
func storable(texts ...string) bool {
	for _, text := range texts {
		if strings.Contains(text, "\x00") || !utf8.ValidString(text) {
			return false
		}
	}
	return true
}
