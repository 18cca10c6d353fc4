package postgres

import (
	"context"
	"errors"
	"maps"
	"math"
	"slices"
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
	if err := s.pruneReplays(ctx, before); err != nil {
		return 0, err
	}
	deleted, err := s.pruneDeleted(ctx)
	if err != nil {
		return deleted, err
	}
	events, needed, err := s.pruneEvents(ctx, before)
	if err != nil {
		return deleted + events, err
	}
	deliveries, err := s.pruneDeliveries(ctx, before, needed)
	if foldErr := s.foldCounts(ctx); err == nil {
		err = foldErr
	}
	return deleted + events + deliveries, err
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
func (s *Store) pruneDeleted(ctx context.Context) (int, error) {
	queued, err := s.queuedOfDeleted(ctx)
	if err != nil {
		return 0, err
	}
	for _, webhook := range queued {
		if err := s.deleteEntries(ctx, webhook); err != nil {
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
		if err := s.deleteEntries(ctx, webhook); err != nil {
			return total, err
		}
		n, err := s.deleteAll(ctx, deleteLogged, webhook, 0)
		total += n
		if err != nil {
			return total, err
		}
		err = s.write(ctx, func(ctx context.Context, t *transaction) error {
			return t.run(ctx, func(b *batch) {
				b.queue("DELETE FROM posthorn.delivery_counts WHERE webhook = $1 AND "+newAndFolded, webhook)
				b.queue("DELETE FROM posthorn.replays WHERE webhook = $1", webhook)
				b.queue("DELETE FROM posthorn.webhooks WHERE seq = $1 AND deleted", webhook)
			})
		})
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// deleteEntries deletes the entries of a webhook that no node has.
func (s *Store) deleteEntries(ctx context.Context, webhook int64) error {
	_, err := s.deleteAll(ctx, deleteWaiting, webhook, 0)
	if err == nil {
		_, err = s.deleteAll(ctx, deleteBehind, webhook, math.MinInt64, 0)
	}
	if err == nil {
		_, err = s.deleteAll(ctx, deleteHeld, webhook, time.Time{}, 0, 0)
	}
	if err == nil {
		_, err = s.deleteAll(ctx, deleteQueued, webhook, false, time.Time{}, 0, 0)
	}
	return err
}

// queuedOfDeleted returns the webhooks that have free or held entries though they are gone: some may have been committed even after the
// webhook's row went.
func (s *Store) queuedOfDeleted(ctx context.Context) ([]int64, error) {
	free, err := s.gone(ctx, queuedWebhooks, webhooksOf(s.lanes.known(time.Now())))
	if err != nil {
		return nil, err
	}
	held, err := s.gone(ctx, heldWebhooks)
	return append(free, held...), err
}

// heldWebhooks visits the webhooks that have held entries, as queuedWebhooks does.
const heldWebhooks = `WITH RECURSIVE queued (seq, n) AS (
		SELECT $1::bigint, 0
		UNION ALL
		SELECT (SELECT q.webhook FROM posthorn.queue q WHERE q.node = -2 AND q.webhook > p.seq ORDER BY q.webhook LIMIT 1), p.n + 1
		FROM queued p WHERE p.seq IS NOT NULL AND p.n < $2::bigint
	) `

// gone visits webhooks and returns those that are none any more.
func (s *Store) gone(ctx context.Context, visit string, args ...any) (gone []int64, err error) {
	for after := int64(0); ; {
		visited := 0
		err := s.get(ctx, func(b *batch) {
			b.queue(visit+`SELECT v.seq, w.seq IS NOT NULL FROM queued v
				LEFT JOIN LATERAL (SELECT w.seq FROM posthorn.webhooks w WHERE w.seq = v.seq AND NOT w.deleted OFFSET 0) w ON true
				WHERE v.n > 0 AND v.seq IS NOT NULL ORDER BY v.seq`, append([]any{after, duePage}, args...)...,
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

// Each deletes a webhook's rows that come after a key, which begins with $3, up to a number of them. It returns how many went,
// and the key of the last one, or nothing if there was none.
const (
	deleteQueued = `WITH page AS MATERIALIZED (
			SELECT ctid AS place, automatic, due_at, event, run FROM posthorn.queue
			WHERE webhook = $1 AND node IS NULL AND (automatic, due_at, event, run) > ($3, $4, $5, $6)
			ORDER BY automatic, due_at, event, run LIMIT $2 FOR UPDATE SKIP LOCKED
		), gone AS (
			DELETE FROM posthorn.queue WHERE ctid = ANY (ARRAY(SELECT place FROM page)) RETURNING 1
		)
		SELECT (SELECT count(*) FROM gone), automatic, due_at, event, run FROM page
		ORDER BY automatic DESC, due_at DESC, event DESC, run DESC LIMIT 1`
	deleteBehind = `WITH page AS MATERIALIZED (
			SELECT ctid AS place, ordering, turn FROM posthorn.queue
			WHERE webhook = $1 AND ordering <> 0 AND node = 0 AND (ordering, turn) > ($3, $4)
			ORDER BY ordering, turn LIMIT $2 FOR UPDATE SKIP LOCKED
		), gone AS (
			DELETE FROM posthorn.queue WHERE ctid = ANY (ARRAY(SELECT place FROM page)) RETURNING 1
		)
		SELECT (SELECT count(*) FROM gone), ordering, turn FROM page ORDER BY ordering DESC, turn DESC LIMIT 1`
	deleteHeld = `WITH page AS MATERIALIZED (
			SELECT ctid AS place, due_at, event, run FROM posthorn.queue
			WHERE webhook = $1 AND node = -2 AND (due_at, event, run) > ($3, $4, $5)
			ORDER BY due_at, event, run LIMIT $2 FOR UPDATE SKIP LOCKED
		), gone AS (
			DELETE FROM posthorn.queue WHERE ctid = ANY (ARRAY(SELECT place FROM page)) RETURNING 1
		)
		SELECT (SELECT count(*) FROM gone), due_at, event, run FROM page ORDER BY due_at DESC, event DESC, run DESC LIMIT 1`
	deleteWaiting = `WITH page AS MATERIALIZED (
			SELECT ctid AS place, event FROM posthorn.queue
			WHERE run = (SELECT run FROM posthorn.replays WHERE webhook = $1 AND ended_at IS NULL) AND node = -3 AND event > $3
			ORDER BY event LIMIT $2 FOR UPDATE -- nobody finds later what is left now
		), gone AS (
			DELETE FROM posthorn.queue WHERE ctid = ANY (ARRAY(SELECT place FROM page)) RETURNING 1
		)
		SELECT (SELECT count(*) FROM gone), event FROM page ORDER BY event DESC LIMIT 1`
	deleteLogged = `WITH page AS MATERIALIZED (
			SELECT id, seq FROM posthorn.deliveries WHERE webhook = $1 AND seq > $3 ORDER BY seq LIMIT $2
		), gone AS (
			DELETE FROM posthorn.deliveries WHERE id = ANY (ARRAY(SELECT id FROM page)) RETURNING 1
		)
		SELECT (SELECT count(*) FROM gone), seq FROM page ORDER BY seq DESC LIMIT 1`
)

// deleteAll repeats a statement until it finds no more rows. It goes on from the last key: while some session keeps a
// transaction open, the index still has the rows that went before.
func (s *Store) deleteAll(ctx context.Context, statement string, webhook int64, key ...any) (total int, err error) {
	for {
		var last []any // how many went, and the key of the last one
		err := s.write(ctx, func(ctx context.Context, t *transaction) error {
			last = nil
			return t.run(ctx, func(b *batch) {
				b.queue(statement, append([]any{webhook, pruneChunk}, key...)...).Query(func(rows pgx.Rows) (err error) {
					for rows.Next() {
						last, err = rows.Values()
					}
					return errors.Join(err, rows.Err())
				})
			})
		})
		if err != nil || last == nil {
			return total, err
		}
		total += int(last[0].(int64))
		key = last[1:]
	}
}

// inQueue is whether an entry needs an event e.
const inQueue = "((SELECT q.event FROM posthorn.queue q WHERE q.event = e.seq LIMIT 1) IS NOT NULL OR " + isPromise + ")"

// pruneEvents removes old events that nothing in the queue needs, and returns the days of those that are needed still. Events
// are numbered nearly in the order of their times: it looks on until a whole chunk has nothing old.
func (s *Store) pruneEvents(ctx context.Context, before time.Time) (total int, needed map[day]bool, err error) {
	needed = map[day]bool{}
	for after := int64(0); ; {
		old := map[int64]day{} // those that may go
		anyOld := false
		last := after
		err := s.get(ctx, func(b *batch) {
			b.queue("SELECT e.seq, e.created_at, e.created_at < $1, e.created_at < $1 AND "+inQueue+`
				FROM posthorn.events e WHERE e.seq > $2 ORDER BY e.seq LIMIT $3`, micros(before), after, pruneChunk,
			).Query(func(rows pgx.Rows) error {
				var at time.Time
				var isOld, isNeeded bool
				_, err := pgx.ForEachRow(rows, []any{&last, &at, &isOld, &isNeeded}, func() error {
					anyOld = anyOld || isOld
					switch {
					case isNeeded:
						needed[dayAt(at)] = true
					case isOld:
						old[last] = dayAt(at)
					}
					return nil
				})
				return err
			})
		})
		if err != nil || !anyOld {
			return total, needed, err
		}
		after = last
		if len(old) == 0 {
			continue
		}
		gone, err := s.deleteEvents(ctx, slices.Sorted(maps.Keys(old)))
		if err != nil {
			return total, needed, err
		}
		total += len(gone)
		for _, seq := range gone {
			delete(old, seq)
		}
		for _, d := range old {
			needed[d] = true
		}
	}
}

// deleteEvents deletes those events that the queue doesn't need, and returns which.
func (s *Store) deleteEvents(ctx context.Context, seqs []int64) (gone []int64, err error) {
	collect := func(seqs *[]int64) func(pgx.Rows) error {
		return func(rows pgx.Rows) (err error) {
			*seqs, err = pgx.CollectRows(rows, pgx.RowTo[int64])
			return err
		}
	}
	err = s.write(ctx, func(ctx context.Context, t *transaction) error {
		// The lock keeps Enqueue from adding entries from here on; what it has added by now, the next statement sees. An
		// event that it has locked is left for the next time.
		var locked []int64
		gone = nil
		err := t.run(ctx, func(b *batch) {
			b.queue(`SELECT e.seq FROM posthorn.events e WHERE e.seq = ANY ($1::bigint[]) AND NOT `+inQueue+`
				ORDER BY e.seq FOR UPDATE SKIP LOCKED`, seqs).Query(collect(&locked))
		})
		if err != nil || len(locked) == 0 {
			return err
		}
		return t.run(ctx, func(b *batch) {
			b.queue(`WITH gone AS (
					DELETE FROM posthorn.events e WHERE e.seq = ANY ($1::bigint[]) AND NOT `+inQueue+` RETURNING e.seq, e.repo_id
				), counted AS (
					INSERT INTO posthorn.repo_counts (repo_id, events) SELECT repo_id, -count(*) FROM gone GROUP BY repo_id
				) SELECT seq FROM gone`, locked).Query(collect(&gone))
		})
	})
	return gone, err
}
