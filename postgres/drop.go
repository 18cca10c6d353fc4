package postgres

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/musehub/posthorn"
)

const (
	// dropLockTimeout is how long a drop waits for the log at a time: those who come after it wait with it. So it doesn't wait
	// but tries often, for dropPatience in one Prune. What is not done by then is left to a later one.
	dropLockTimeout = 20 * time.Millisecond
	dropPause       = 100 * time.Millisecond
	dropPatience    = 2500 * time.Millisecond
)

// recorded is on which days the deliveries of one day's events were recorded, by the counts.
type recorded struct{ first, last day }

// pruneDeliveries removes what was recorded on days that were over before the given time. A partition that has nothing else
// is dropped. From one that has later rows too, because an event was retried for days or sent again, the old ones are
// deleted, as from one that is needed: for a day of events that are in the queue still, and will have deliveries. Whatever is
// put off because the log is in use, and put off again for more than a day, is an error.
func (s *Store) pruneDeliveries(ctx context.Context, before time.Time, needed map[day]bool) (int, error) {
	cutoff := dayAt(before) // the first day that stays
	counted, err := s.recordedDays(ctx)
	if err != nil {
		return 0, err
	}
	// The tables are looked for after the counts: a day that has counts has a table, or has lost it.
	tables, err := s.partitionStates(ctx, "deliveries\\_%")
	if err != nil {
		return 0, err
	}
	total := 0
	var overdue error
	patience := time.Now().Add(s.dropPatience)
	for _, d := range sortedDays(tables, counted) {
		r, hasRows := counted[d]
		last := d // when it was last needed
		if hasRows {
			last = r.last
		}
		state := tables[d]
		n := 0
		switch {
		case state == partitionMissing:
			err = s.forgetCounts(ctx, d)
		case !needed[d] && last < cutoff:
			n, err = s.dropPartition(ctx, d, cutoff, patience)
			if sqlState(err) == "55P03" {
				if last < cutoff-1 && overdue == nil {
					overdue = errOverdue(d, cutoff-1-last, err)
				}
				err = nil
			}
		case state == partitionDetached:
			err = s.makePartition(ctx, d)
		case hasRows && r.first < cutoff:
			n, err = s.deleteRecorded(ctx, d, cutoff)
		}
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, overdue
}

// errOverdue tells that a partition could not be dropped for longer than one would wait without a word.
func errOverdue(d, days day, cause error) error {
	message := fmt.Sprintf("the log's partition %s can't be dropped, %d days after its time: there is always someone who uses it; "+
		"look for transactions that stay open", d.table(), days)
	return &posthorn.Error{Code: posthorn.CodeUnavailable, Message: message, Err: cause}
}

func sortedDays(tables map[day]partitionState, counted map[day]recorded) []day {
	var days []day
	for d := range tables {
		days = append(days, d)
	}
	for d := range counted {
		if _, ok := tables[d]; !ok {
			days = append(days, d)
		}
	}
	slices.Sort(days)
	return days
}

// recordedDays returns what the counts say of each day, by some seeks in the index for each.
func (s *Store) recordedDays(ctx context.Context) (map[day]recorded, error) {
	counted := map[day]recorded{}
	err := s.get(ctx, func(b *batch) {
		b.queue(`WITH RECURSIVE days (day) AS (
				SELECT (SELECT day FROM posthorn.delivery_counts ORDER BY day LIMIT 1)
				UNION ALL
				SELECT (SELECT c.day FROM posthorn.delivery_counts c WHERE c.day > d.day ORDER BY c.day LIMIT 1) FROM days d WHERE d.day IS NOT NULL
			)
			SELECT day, (SELECT c.recorded FROM posthorn.delivery_counts c WHERE c.day = d.day ORDER BY c.recorded LIMIT 1),
				(SELECT c.recorded FROM posthorn.delivery_counts c WHERE c.day = d.day ORDER BY c.recorded DESC LIMIT 1)
			FROM days d WHERE day IS NOT NULL`).Query(func(rows pgx.Rows) error {
			var d day
			var r recorded
			_, err := pgx.ForEachRow(rows, []any{&d, &r.first, &r.last}, func() error {
				counted[d] = r
				return nil
			})
			return err
		})
	})
	return counted, err
}

// forgetCounts removes the counts of a day that has no table. The counts that the statement sees were committed before it
// looks for the table, and a table made since has others.
func (s *Store) forgetCounts(ctx context.Context, d day) error {
	return s.write(ctx, func(ctx context.Context, t *transaction) error {
		return t.run(ctx, func(b *batch) {
			b.queue("DELETE FROM posthorn.delivery_counts WHERE day = $1 AND to_regclass($2) IS NULL", d, s.names.quoted+"."+d.table())
		})
	})
}

// dropPartition drops a day's table and returns how many deliveries it had. It gives up when patience is over, with the error
// that the lock could not be had, but tries once at least.
func (s *Store) dropPartition(ctx context.Context, d, cutoff day, patience time.Time) (int, error) {
	s.partitions.set([]day{d}, false)
	for {
		n, err := s.tryDrop(ctx, d, cutoff)
		switch {
		case err == nil:
			return n, nil
		case sqlState(err) == "55P03" && time.Now().Before(patience):
		case overtaken(err):
			return 0, nil // another node is at it
		default:
			return 0, err
		}
		if err := pause(ctx, dropPause); err != nil {
			return 0, err
		}
	}
}

// tryDrop drops a day's table with its counts, in one transaction, unless something was recorded in it that is to stay.
//
// It locks the table first against autovacuum alone, which lets go of it only when someone has waited for a while; that is in
// nobody's way. Then it locks the log and, as everyone does, after it the table: nobody can record any more. It is not
// detached concurrently, because what interrupts that leaves it in a state in which nothing else can be detached.
func (s *Store) tryDrop(ctx context.Context, d, cutoff day) (n int, err error) {
	err = s.write(ctx, func(ctx context.Context, t *transaction) error {
		n = 0
		last := d
		err := t.run(ctx, func(b *batch) {
			b.queue("SELECT set_config('lock_timeout', $1, true), set_config('idle_in_transaction_session_timeout', $1, true)", fmt.Sprint(s.lockTimeout.Milliseconds()))
			b.Queue(s.names.replacer.Replace("LOCK TABLE posthorn." + d.table() + " IN SHARE UPDATE EXCLUSIVE MODE"))
			b.queue("SELECT set_config('lock_timeout', $1, true)", fmt.Sprint(dropLockTimeout.Milliseconds()))
			b.queue("LOCK TABLE ONLY posthorn.deliveries IN ACCESS EXCLUSIVE MODE")
			b.Queue(s.names.replacer.Replace("LOCK TABLE posthorn." + d.table() + " IN ACCESS EXCLUSIVE MODE"))
			b.queue("SELECT coalesce(max(recorded), $1) FROM posthorn.delivery_counts WHERE day = $1", d).
				QueryRow(func(row pgx.Row) error { return row.Scan(&last) })
		})
		if err != nil || last >= cutoff {
			return err
		}
		return t.run(ctx, func(b *batch) {
			b.Queue(s.names.replacer.Replace("DROP TABLE posthorn." + d.table()))
			b.queue(`WITH gone AS (DELETE FROM posthorn.delivery_counts WHERE day = $1 RETURNING succeeded + failed AS n)
				SELECT coalesce(sum(n), 0)::bigint FROM gone`, d).
				QueryRow(func(row pgx.Row) error { return row.Scan(&n) })
		})
	})
	return n, err
}

// deleteRecorded deletes the rows of a partition that were recorded before a day.
func (s *Store) deleteRecorded(ctx context.Context, d, cutoff day) (total int, err error) {
	statement := s.names.replacer.Replace(`WITH page AS MATERIALIZED (
			SELECT id, delivered_at < $1 AS old FROM posthorn.` + d.table() + ` WHERE id > $2 ORDER BY id LIMIT $3
		), gone AS (
			DELETE FROM posthorn.` + d.table() + ` WHERE id = ANY (ARRAY(SELECT id FROM page WHERE old)) RETURNING webhook, success, delivered_at
		), counted AS (
			INSERT INTO posthorn.delivery_counts (webhook, day, recorded, succeeded, failed)
			SELECT webhook, $4::integer, floor(extract(epoch FROM delivered_at) / 86400), -count(*) FILTER (WHERE success), -count(*) FILTER (WHERE NOT success)
			FROM gone GROUP BY 1, 2, 3
		)
		SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM page), (SELECT id FROM page ORDER BY id DESC LIMIT 1)`)
	for after := (pgtype.UUID{Valid: true}); ; {
		n, seen := 0, 0
		last := after
		err := s.write(ctx, func(ctx context.Context, t *transaction) error {
			return t.run(ctx, func(b *batch) {
				b.Queue(statement, cutoff.start(), after, pruneChunk, d).
					QueryRow(func(row pgx.Row) error { return row.Scan(&n, &seen, &last) })
			})
		})
		if overtaken(err) {
			return total, nil // it is being dropped
		}
		total += n
		if err != nil || seen < pruneChunk {
			return total, err
		}
		after = last
	}
}
