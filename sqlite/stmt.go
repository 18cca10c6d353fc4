package sqlite

import (
	"errors"
	"fmt"
	"time"

	"zombiezen.com/go/sqlite"
)

// Statements are prepared once for a connection and kept by their text. Whoever steps through one resets it before
// the transaction ends: an open one would keep its COMMIT from succeeding.

// exec runs a statement to its end.
func exec(c *sqlite.Conn, query string, args ...any) error {
	st, err := prepare(c, query, args...)
	if err != nil {
		return err
	}
	return run(st)
}

// query calls each for every row, until that returns an error.
func query(c *sqlite.Conn, each func(*sqlite.Stmt) error, query string, args ...any) error {
	st, err := prepare(c, query, args...)
	if err != nil {
		return err
	}
	return rows(st, each)
}

// rows calls each for every row of a bound statement, until that returns an error.
func rows(st *sqlite.Stmt, each func(*sqlite.Stmt) error) error {
	defer reset(st)
	for {
		if ok, err := st.Step(); !ok || err != nil {
			return err
		}
		if err := each(st); err != nil {
			return err
		}
	}
}

// queryRow calls scan with the first row, and reports whether there was one.
func queryRow(c *sqlite.Conn, scan func(*sqlite.Stmt), query string, args ...any) (bool, error) {
	st, err := prepare(c, query, args...)
	if err != nil {
		return false, err
	}
	defer reset(st)
	ok, err := st.Step()
	if ok && err == nil {
		scan(st)
	}
	return ok, err
}

// queryInt returns the first row's first column, zero where there is none.
func queryInt(c *sqlite.Conn, query string, args ...any) (n int64, err error) {
	_, err = queryRow(c, func(st *sqlite.Stmt) { n = st.ColumnInt64(0) }, query, args...)
	return n, err
}

const takeNumbers = "UPDATE posthorn_counters SET last = last + ? WHERE name = ? RETURNING last"

// nextNumbers takes n numbers that were never given out and returns the first.
func nextNumbers(c *sqlite.Conn, counter string, n int) (int64, error) {
	last, err := queryInt(c, takeNumbers, n, counter)
	return last - int64(n) + 1, err
}

// reset ends a statement. Its error is only that of the last step once more.
func reset(st *sqlite.Stmt) { _ = st.Reset() }

// run steps a bound statement to its end and makes it ready to be bound again.
func run(st *sqlite.Stmt) error {
	for {
		ok, err := st.Step()
		if err != nil {
			return err // Step has reset it
		}
		if !ok {
			return st.Reset()
		}
	}
}

func prepare(c *sqlite.Conn, query string, args ...any) (*sqlite.Stmt, error) {
	st, err := c.Prepare(query)
	if err != nil {
		return nil, err
	}
	for i, arg := range args {
		switch v := arg.(type) {
		case int64:
			st.BindInt64(i+1, v)
		case int:
			st.BindInt64(i+1, int64(v))
		case bool:
			st.BindBool(i+1, v)
		case string:
			st.BindText(i+1, v)
		case []byte:
			st.BindBytes(i+1, v)
		case time.Time:
			st.BindInt64(i+1, micros(v))
		case nil:
			st.BindNull(i + 1)
		default:
			return nil, fmt.Errorf("no way to bind a %T", arg)
		}
	}
	return st, nil
}

// setPragma sets a pragma, which takes no bound values, and doesn't keep the statement.
func setPragma(c *sqlite.Conn, query string, value any) error {
	if value != nil {
		query += fmt.Sprint(value)
	}
	st, _, err := c.PrepareTransient(query)
	if err != nil {
		return err
	}
	return errors.Join(run(st), st.Finalize())
}

// bytesOf copies a column, which is never nil.
func bytesOf(st *sqlite.Stmt, col int) []byte {
	b := make([]byte, st.ColumnLen(col))
	st.ColumnBytes(col, b)
	return b
}

// micros is how a time is stored.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func timeOf(micros int64) time.Time {
	if micros == 0 {
		return time.Time{}
	}
	return time.UnixMicro(micros).UTC()
}
