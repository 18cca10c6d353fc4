package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// pruneChunk is how many rows are looked at or deleted in one transaction.
	pruneChunk = 1000
	// daysAhead is for how many days partitions are made before they are needed.
	daysAhead = 2
)

// Prune implements [posthorn.Store]. Several nodes may do it at once: each takes from the others what is left to do.
//
// It also makes the partitions of the log for the next days, and folds the counts. Deliveries go by days: all that were
// recorded on one, when that is over before the given time. Mostly these are a whole partition, which is dropped.
func (s *Store) Prune(ctx context.Context, before time.Time) (int, error) {
	if err := s.makePartitionsAhead(ctx); err != nil {
		return 0, err
	}
	total := 0
	for _, prune := range []func(context.Context, time.Time) (int, error){
		s.pruneDeleted, s.pruneDeliveries, s.pruneEvents, s.foldCounts,
	} {
		n, err := prune(ctx, before)
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

func (s *Store) makePartitionsAhead(ctx context.Context) error {
	now, err := s.Now(ctx)
	if err != nil {
		return err
	}
	var days []day
	for i := range day(daysAhead + 1) {
		days = append(days, dayAt(now)+i)
	}
	return s.makePartitions(ctx, days)
}

// pruneDeleted removes what deleted webhooks left behind. A webhook's mark stays until its log is gone. What is committed
// even later, by a node that had not heard of the deletion, is an entry that goes in the next Prune, or a delivery that goes
// with its day. Leased entries go with their nodes' results.
func (s *Store) pruneDeleted(ctx context.Context, _ time.Time) (int, error) {
	queued, err := s.queuedOfDeleted(ctx)
	if err != nil {
		return 0, err
	}
	for _, webhook := range queued {
		if _, err := s.deleteAll(ctx, `DELETE FROM posthorn.queue WHERE ctid = ANY (ARRAY(
			SELECT ctid FROM posthorn.queue WHERE webhook = $1 AND node IS NULL LIMIT $2 FOR UPDATE SKIP LOCKED))`, webhook); err != nil {
			return 0, err
		}
	}
	var deleted []int64
	err = s.get(ctx, func(b *batch) {
		b.queue("SELECT seq FROM posthorn.webhooks WHERE deleted ORDER BY seq").Query(func(rows pgx.Rows) (err error) {
			deleted, err = pgx.CollectRows(rows, pgx.RowTo[int64])
			return err
		})
	})
	if err != nil {
		return 0, err
	}
	total := 0
	for _, webhook := range deleted {
		n, err := s.deleteAll(ctx, `DELETE FROM posthorn.deliveries WHERE id = ANY (ARRAY(
			SELECT id FROM posthorn.deliveries WHERE webhook = $1 ORDER BY seq LIMIT $2))`, webhook)
		total += n
		if err != nil {
			return total, err
		}
		err = s.write(ctx, func(ctx context.Context, t *transaction) error {
			return t.run(ctx, func(b *batch) {
				b.queue("DELETE FROM posthorn.delivery_counts WHERE webhook = $1", webhook)
				b.queue("DELETE FROM posthorn.webhooks WHERE seq = $1 AND deleted", webhook)
			})
		})
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// queuedOfDeleted returns the webhooks that have free entries though they are gone.
func (s *Store) queuedOfDeleted(ctx context.Context) (gone []int64, err error) {
	for after := int64(0); ; {
		visited := 0
		err := s.get(ctx, func(b *batch) {
			b.queue(queuedWebhooks+`SELECT v.seq, w.seq IS NOT NULL FROM queued v
				LEFT JOIN LATERAL (SELECT w.seq FROM posthorn.webhooks w WHERE w.seq = v.seq AND NOT w.deleted OFFSET 0) w ON true
				WHERE v.n > 0 AND v.seq IS NOT NULL ORDER BY v.seq`, after, duePage, webhooksOf(s.lanes.known(time.Now())),
			).Query(func(rows pgx.Rows) error {
				var live bool
				_, err := pgx.ForEachRow(rows, []any{&after, &live}, func() error {
					visited++
					if !live {
						gone = append(gone, after)
					}
					return nil
				})
				return err
			})
		})
		if err != nil || visited < duePage {
			return gone, err
		}
	}
}

// deleteAll repeats a statement, which takes a webhook and a limit, until it finds no more rows.
func (s *Store) deleteAll(ctx context.Context, statement string, webhook int64) (total int, err error) {
	for {
		n := 0
		err := s.write(ctx, func(ctx context.Context, t *transaction) error {
			return t.run(ctx, func(b *batch) {
				b.queue(statement, webhook, pruneChunk).Exec(rowsAffected(&n))
			})
		})
		total += n
		if err != nil || n < pruneChunk {
			return total, err
		}
	}
}

// pruneEvents removes old events that nothing in the queue needs. Events are numbered nearly in the order of their times: it
// looks on until a whole chunk has nothing old.
func (s *Store) pruneEvents(ctx context.Context, before time.Time) (int, error) {
	total := 0
	for after := int64(0); ; {
		var old []int64
		last := after
		n := 0
		err := s.write(ctx, func(ctx context.Context, t *transaction) error {
			old, n = nil, 0
			err := t.run(ctx, func(b *batch) {
				b.queue("SELECT seq, created_at < $1 FROM posthorn.events WHERE seq > $2 ORDER BY seq LIMIT $3", micros(before), after, pruneChunk).
					Query(func(rows pgx.Rows) error {
						isOld := false
						_, err := pgx.ForEachRow(rows, []any{&last, &isOld}, func() error {
							if isOld {
								old = append(old, last)
							}
							return nil
						})
						return err
					})
			})
			if err != nil || len(old) == 0 {
				return err
			}
			// The lock keeps Enqueue from adding entries from here on; what it has added by now, the next statement sees. An
			// event that it has locked is left for the next time.
			const needed = "(SELECT q.event FROM posthorn.queue q WHERE q.event = e.seq LIMIT 1) IS NOT NULL"
			var locked []int64
			err = t.run(ctx, func(b *batch) {
				b.queue("SELECT e.seq FROM posthorn.events e WHERE e.seq = ANY ($1::bigint[]) AND NOT "+needed+" ORDER BY e.seq FOR UPDATE SKIP LOCKED", old).
					Query(func(rows pgx.Rows) (err error) {
						locked, err = pgx.CollectRows(rows, pgx.RowTo[int64])
						return err
					})
			})
			if err != nil || len(locked) == 0 {
				return err
			}
			return t.run(ctx, func(b *batch) {
				b.queue(`WITH gone AS (
						DELETE FROM posthorn.events e WHERE e.seq = ANY ($1::bigint[]) AND NOT `+needed+` RETURNING e.repo_id
					), counted AS (
						INSERT INTO posthorn.repo_counts (repo_id, events) SELECT repo_id, -count(*) FROM gone GROUP BY repo_id
					) SELECT count(*) FROM gone`, locked).
					QueryRow(func(row pgx.Row) error { return row.Scan(&n) })
			})
		})
		if err != nil {
			return total, err
		}
		total += n
		if len(old) == 0 {
			return total, nil
		}
		after = last
	}
}
