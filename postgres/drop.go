package postgres

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// detachTimeout is how long a partition may take to be detached. It has to wait for every transaction that uses the log, and
// nobody waits for it. What is not done by then is done by a later Prune.
const detachTimeout = 3 * time.Second

// recorded is on which days the deliveries of one day's events were recorded, by the counts.
type recorded struct{ first, last day }

// pruneDeliveries removes what was recorded on days that were over before the given time. A partition that has nothing else
// is dropped. From one that has later ones too, because an event was retried for days or sent again, the old rows are
// deleted.
func (s *Store) pruneDeliveries(ctx context.Context, before time.Time) (int, error) {
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
	for _, d := range sortedDays(tables, counted) {
		r, hasRows := counted[d]
		state := tables[d]
		n := 0
		switch {
		case state == partitionMissing:
			err = s.forgetCounts(ctx, d)
		case hasRows && r.last < cutoff, !hasRows && d < cutoff, state != partitionAttached:
			n, err = s.dropPartition(ctx, d, cutoff, state)
		case hasRows && r.first < cutoff:
			n, err = s.deleteRecorded(ctx, d, cutoff)
		}
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
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

// dropPartition detaches a day's partition and drops it, and returns how many deliveries it had. A delivery that was recorded
// in it while it was detached brings it back.
func (s *Store) dropPartition(ctx context.Context, d, cutoff day, state partitionState) (int, error) {
	s.partitions.set([]day{d}, false)
	statement := ""
	switch state {
	case partitionAttached:
		statement = "ALTER TABLE posthorn.deliveries DETACH PARTITION posthorn." + d.table() + " CONCURRENTLY"
	case partitionDetaching:
		statement = "ALTER TABLE posthorn.deliveries DETACH PARTITION posthorn." + d.table() + " FINALIZE"
	}
	if statement != "" {
		bounded, cancel := context.WithTimeout(ctx, detachTimeout)
		err := s.define(bounded, statement)
		cancel()
		switch {
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case errors.Is(err, context.DeadlineExceeded), overtaken(err):
			return 0, nil // someone has a transaction open, or another node is at it
		case err != nil:
			return 0, err
		}
	}
	n, kept, err := s.dropDetached(ctx, d, cutoff)
	if overtaken(err) {
		return 0, nil
	}
	if err == nil && kept {
		err = s.makePartition(ctx, d)
	}
	return n, err
}

// dropDetached drops a table that is no partition any more, with its counts, in one transaction. It reports that the table
// is kept if there was something recorded in it that is to stay.
func (s *Store) dropDetached(ctx context.Context, d, cutoff day) (n int, kept bool, err error) {
	err = s.write(ctx, func(ctx context.Context, t *transaction) error {
		n, kept = 0, false
		attached, last := false, (*day)(nil)
		err := t.run(ctx, func(b *batch) {
			b.queue("SELECT set_config('lock_timeout', '2s', true)")
			// From here on nobody can attach it.
			b.Queue(s.names.replacer.Replace("LOCK TABLE posthorn." + d.table() + " IN ACCESS EXCLUSIVE MODE"))
			b.queue("SELECT relispartition FROM pg_catalog.pg_class WHERE oid = to_regclass($1)", s.names.quoted+"."+d.table()).
				QueryRow(func(row pgx.Row) error { return row.Scan(&attached) })
			b.queue("SELECT max(recorded) FROM posthorn.delivery_counts WHERE day = $1", d).
				QueryRow(func(row pgx.Row) error { return row.Scan(&last) })
		})
		if err != nil || attached {
			return err
		}
		if kept = last != nil && *last >= cutoff || last == nil && d >= cutoff; kept {
			return nil
		}
		return t.run(ctx, func(b *batch) {
			b.Queue(s.names.replacer.Replace("DROP TABLE posthorn." + d.table()))
			b.queue(`WITH gone AS (DELETE FROM posthorn.delivery_counts WHERE day = $1 RETURNING succeeded + failed AS n)
				SELECT coalesce(sum(n), 0)::bigint FROM gone`, d).
				QueryRow(func(row pgx.Row) error { return row.Scan(&n) })
		})
	})
	return n, kept, err
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
