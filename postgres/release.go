package postgres

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

const (
	// pagesAtOnce is how many pages of the queue one statement reads, so that it has time enough however big the table is.
	pagesAtOnce = 50_000
	// releaseChunk is how many entries are freed in one transaction.
	releaseChunk = 500
)

// Release implements [posthorn.Store].
func (s *Store) Release(ctx context.Context, node int64, now time.Time) (int, error) {
	defer s.lanes.forget() // what becomes free was due before what has been claimed since
	var nodes []int64
	err := s.write(ctx, func(ctx context.Context, t *transaction) error {
		nodes = nil
		// FOR UPDATE waits for those who have the node's row locked as their fence, which the UPDATE alone would not. A dead
		// node whose last transaction is still open must not keep the others from being released.
		where, arg := "node = $1 FOR UPDATE", any(node)
		if node == 0 {
			where, arg = "ended OR lease_until < $1 ORDER BY node FOR UPDATE SKIP LOCKED", micros(now)
		}
		return t.run(ctx, func(b *batch) {
			b.queue(`UPDATE posthorn.nodes SET ended = true
				WHERE node = ANY (ARRAY(SELECT node FROM posthorn.nodes WHERE `+where+`)) RETURNING node`, arg).
				Query(func(rows pgx.Rows) error {
					var node int64
					_, err := pgx.ForEachRow(rows, []any{&node}, func() error {
						nodes = append(nodes, node)
						return nil
					})
					return err
				})
		})
	})
	if err != nil {
		return 0, err
	}
	released := 0
	for _, node := range nodes {
		ok, err := s.releaseNode(ctx, node)
		if err != nil {
			return released, err
		}
		if ok {
			released++
		}
	}
	return released, nil
}

// releaseNode frees the entries of a node whose lease has ended. Nothing can be leased to it any more, so that one pass over
// its promises and one over the queue find them all: until they are freed they stay where they are. The node's row goes last:
// whatever interrupts this, the next Release goes on with it. It reports false when another call was faster.
func (s *Store) releaseNode(ctx context.Context, node int64) (bool, error) {
	if err := s.releasePromises(ctx, node); err != nil {
		return false, err
	}
	for {
		file, pages, err := s.queueFile(ctx)
		if err != nil {
			return false, err
		}
		for from := int64(0); from < pages; from += pagesAtOnce {
			if err := s.releasePages(ctx, node, from); err != nil {
				return false, err
			}
		}
		// Whoever has rewritten the table meanwhile (VACUUM FULL, pg_repack) has moved them all.
		if now, _, err := s.queueFile(ctx); err != nil {
			return false, err
		} else if now == file {
			break
		}
	}
	removed := 0
	err := s.write(ctx, func(ctx context.Context, t *transaction) error {
		return t.run(ctx, func(b *batch) {
			b.queue("DELETE FROM posthorn.nodes WHERE node = $1", node).Exec(rowsAffected(&removed))
		})
	})
	return removed == 1, err
}

// queueFile returns which file the queue's table is in, and how many pages that has.
func (s *Store) queueFile(ctx context.Context) (file uint32, pages int64, err error) {
	err = s.get(ctx, func(b *batch) {
		b.queue(`SELECT pg_catalog.pg_relation_filenode('posthorn.queue'),
			pg_catalog.pg_relation_size('posthorn.queue') / current_setting('block_size')::bigint`).
			QueryRow(func(row pgx.Row) error { return row.Scan(&file, &pages) })
	})
	return file, pages, err
}

// releasePages frees the entries of a node that are in some pages, in chunks.
func (s *Store) releasePages(ctx context.Context, node, from int64) error {
	entries, err := s.leasedTo(ctx, node, from)
	if err != nil {
		return err
	}
	for chunk := range slices.Chunk(entries, releaseChunk) {
		if err := s.free(ctx, node, chunk); err != nil {
			return err
		}
	}
	return nil
}

// leasedEntry is an entry of a node that is to be freed.
type leasedEntry struct {
	event, webhook, run int64
	ordering            int64
	attempt             int32
	due                 time.Time
	live                bool        // its webhook is
	delivery            pgtype.UUID // the id of its attempt
	promised            bool        // it has no row in the queue
}

// selectLeased reads a part of the table itself: there is no index by node, which every lease would have to keep up.
const selectLeased = `SELECT q.event, q.webhook, q.run, q.attempt, q.due_at, q.ordering, e.id, e.repo_id, e.created_at, w.id
	FROM (SELECT * FROM posthorn.queue WHERE node = $1 AND ctid >= format('(%s,0)', $2::bigint)::tid
		AND ctid < format('(%s,0)', $2::bigint + $3::bigint)::tid OFFSET 0) q
	LEFT JOIN LATERAL (SELECT * FROM posthorn.events WHERE seq = q.event OFFSET 0) e ON true
	LEFT JOIN LATERAL (SELECT * FROM posthorn.webhooks WHERE seq = q.webhook AND NOT deleted OFFSET 0) w ON true
	ORDER BY q.event, q.webhook, q.run`

// leasedTo returns the entries of a node that are in some pages.
func (s *Store) leasedTo(ctx context.Context, node, from int64) (entries []leasedEntry, err error) {
	err = s.get(ctx, func(b *batch) {
		b.queue(selectLeased, node, from, pagesAtOnce).Query(func(rows pgx.Rows) error {
			var e leasedEntry
			var eventID, repoID, webhookID *string
			var createdAt *time.Time
			scan := []any{&e.event, &e.webhook, &e.run, &e.attempt, &e.due, &e.ordering, &eventID, &repoID, &createdAt, &webhookID}
			_, err := pgx.ForEachRow(rows, scan, func() error {
				e.find(eventID, repoID, createdAt, webhookID)
				entries = append(entries, e)
				return nil
			})
			return err
		})
	})
	return entries, err
}

// free frees entries of a node, unless others have done so. If the log has an entry's attempt already (a node that had lost
// the entry before recorded it), the log decides how its run goes on, just as it would have with the entry at hand.
func (s *Store) free(ctx context.Context, node int64, entries []leasedEntry) error {
	var o orderings // which Release has no need to tell of: it makes all claims look from the beginning
	return s.write(ctx, func(ctx context.Context, t *transaction) error {
		type settled struct{ next *time.Time }
		log := map[[16]byte]settled{}
		o = orderings{}
		for i := range entries {
			o.add(entries[i].webhook, entries[i].ordering)
		}
		err := t.run(ctx, func(b *batch) {
			o.lock(b)
			var ids []pgtype.UUID
			for _, e := range entries {
				if e.live {
					ids = append(ids, e.delivery)
				}
			}
			b.queue(`SELECT d.id, d.next_attempt_at FROM unnest($1::uuid[]) AS g (id)
				CROSS JOIN LATERAL (SELECT * FROM posthorn.deliveries d WHERE d.id = g.id OFFSET 0) d`, ids).
				Query(func(rows pgx.Rows) error {
					var id pgtype.UUID
					var next *time.Time
					_, err := pgx.ForEachRow(rows, []any{&id, &next}, func() error {
						log[id.Bytes] = settled{next}
						return nil
					})
					return err
				})
		})
		if err != nil {
			return err
		}
		var r results // every entry is settled, as its node would have done
		for i := range entries {
			e := &entries[i]
			attempt, due := e.attempt, &e.due
			if s, ok := log[e.delivery.Bytes]; ok && e.live {
				attempt, due = attempt+1, s.next
			}
			if !e.live {
				due = nil
			}
			columns := &r.queued
			if e.promised {
				columns = &r.promised
			}
			columns.add(e.event, e.webhook, e.run, e.attempt, attempt, e.due, due)
		}
		return t.run(ctx, func(b *batch) {
			o.place(b)
			lockPromises(b, node)
			r.settlePromised(b, node)
			r.queued.settle(b, node)
			o.advance(b, &s.lanes)
		})
	})
}
