package sqlite

import (
	"errors"

	"github.com/musehub/posthorn"
	"zombiezen.com/go/sqlite"
)

// walk goes through the rows of one webhook's log, or one repo's events, newest first: each row knows the one before it.
type walk struct {
	c       *sqlite.Conn
	table   string
	owner   string // the column that says whose rows they are
	of      any    // whose rows are walked through
	columns string // what visit gets, behind previous
}

// from starts at the newest row or, with before, at the newest whose number is smaller. It ends when visit returns false, or
// after as many rows as one page may examine; then it returns the number that the next page is to start before, else 0.
func (w walk) from(newest, before int64, visit func(seq int64, st *sqlite.Stmt) (bool, error)) (next int64, err error) {
	row := "SELECT previous" + w.columns + " FROM " + w.table + " WHERE seq = ? AND " + w.owner + " = ?"
	seq, next := newest, before
	if before > 0 && before <= newest {
		seq = before // if there is no such row, looking for it finds the next one
		_, err := queryRow(w.c, func(st *sqlite.Stmt) { seq = st.ColumnInt64(0) }, row, before, w.of)
		if err != nil {
			return 0, err
		}
	}
	for n := 0; seq != 0; n++ {
		if n >= posthorn.MaxScan {
			return next, nil
		}
		var previous int64
		more, visitErr := true, error(nil)
		found, err := queryRow(w.c, func(st *sqlite.Stmt) {
			previous = st.ColumnInt64(0)
			more, visitErr = visit(seq, st)
		}, row, seq, w.of)
		switch {
		case err != nil || visitErr != nil:
			return 0, errors.Join(err, visitErr)
		case !more:
			return next, nil
		case found:
			next, seq = seq, previous
		default:
			var examined int
			if seq, next, examined, err = w.below(seq, posthorn.MaxScan-n); seq == 0 {
				return next, err
			}
			n += examined - 1
		}
	}
	return 0, nil
}

// below looks for the newest row before a number that was pruned, by going through everyone's, but no more than a limit. Hardly
// any are as old: what the queue needs, and what was recorded before the clock was set back. It returns 0 if it found none.
// Where it can look again is below next: just above what it found, else at the last row that it examined, 0 if there are no more.
func (w walk) below(seq int64, limit int) (found, next int64, examined int, err error) {
	next = seq
	err = query(w.c, func(st *sqlite.Stmt) error {
		examined++
		if st.ColumnBool(1) {
			found = st.ColumnInt64(0)
			return errFound
		}
		next = st.ColumnInt64(0)
		return nil
	}, "SELECT seq, "+w.owner+" = ? FROM "+w.table+" WHERE seq < ? ORDER BY seq DESC LIMIT ?", w.of, seq, limit)
	switch {
	case errors.Is(err, errFound):
		return found, next, examined, nil
	case err != nil:
		return 0, 0, examined, err
	case examined < limit:
		next = 0
	}
	return 0, next, examined, nil
}

var errFound = errors.New("found")

// logged is what filters look at in a row of the log.
type logged struct {
	success     bool
	eventType   string
	eventID     string
	deliveredAt int64
}

const loggedColumns = ", success, event_type, event_id, delivered_at"

func scanLogged(st *sqlite.Stmt) logged {
	return logged{success: st.ColumnBool(1), eventType: st.ColumnText(2), eventID: st.ColumnText(3), deliveredAt: st.ColumnInt64(4)}
}
