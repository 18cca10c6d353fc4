package postgres

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/musehub/posthorn"
)

// An automatic first attempt that is leased in the same write as its event has no row in the queue: it is there for some
// milliseconds only, and a row for each, with its place in an index, would be much of what an event costs. Instead the node's
// promises stand together in rows of the table promises, one for each block of events, with those entries that are not settled
// yet. Everything else about them is known: they are of run 0 and attempt 1, and due when the event was created.
const (
	// promiseBlock is for how many events there is one row. It takes no part of the next block's: the numbers of a batch begin
	// with a block.
	promiseBlock = 64
	// maxPromised is how many webhooks an event can be promised to, so that a row stays small: it is written anew whenever
	// some of its entries are settled. The entries of other events have rows in the queue.
	maxPromised = 4
	// promisesAtOnce is how many rows are read at a time when a node is released.
	promisesAtOnce = 32
)

// promised reports whether the entries of an event become promises.
func promised(b *posthorn.Batch, e *posthorn.NewEvent) bool {
	// What Deliveries says is all that is known of an event when its results are recorded.
	many := max(len(e.Targets), e.Event.Deliveries) > maxPromised
	if b.Node == 0 || e.Trigger != posthorn.TriggerAutomatic || many {
		return false
	}
	for i, t := range e.Targets {
		// One that is named twice is decided about in the queue.
		same := func(other posthorn.Target) bool { return other.WebhookSeq == t.WebhookSeq }
		if !t.Leased || slices.ContainsFunc(e.Targets[:i], same) {
			return false
		}
	}
	return true
}

// lockPromises lets the results of a node be recorded by one transaction at a time: of two that write the same row anew, the
// second would not see what the first has made of it. Promising waits for nobody.
func lockPromises(q *batch, node int64) {
	q.queue("SELECT pg_advisory_xact_lock('posthorn.promises'::regclass::oid::integer, ($1::bigint % 2147483648)::integer)", node)
}

// keepPromises takes the rows of some blocks, and writes them anew without the entries that are settled. Those that are due
// again go into the queue. It returns how many of the entries the node had promised. The rows are all unpacked before they are
// joined: otherwise what is given would be read anew for each of them.
const keepPromises = `WITH given AS MATERIALIZED (
		SELECT * FROM unnest($2::bigint[], $3::bigint[], $4::timestamptz[], $5::int[]) AS g (event, webhook, retry_at, next)
	), gone AS (
		DELETE FROM posthorn.promises WHERE block = ANY ($6::bigint[]) AND node = $1 RETURNING block, events, webhooks
	), entries AS MATERIALIZED (
		SELECT held.*, g.event IS NOT NULL AS settled, g.retry_at, g.next
		FROM (SELECT block, unnest(events) AS event, unnest(webhooks) AS webhook FROM gone OFFSET 0) held
		LEFT JOIN given g USING (event, webhook)
	), kept AS (
		INSERT INTO posthorn.promises (block, node, events, webhooks)
		SELECT block, $1, array_agg(event), array_agg(webhook) FROM entries WHERE NOT settled GROUP BY block
	), retried AS (
		INSERT INTO posthorn.queue (event, webhook, run, attempt, trigger, due_at)
		SELECT e.event, e.webhook, 0, e.next, 'automatic', e.retry_at FROM entries e
		CROSS JOIN LATERAL (SELECT FROM posthorn.webhooks w WHERE w.seq = e.webhook AND NOT w.deleted OFFSET 0) w
		WHERE e.settled AND e.retry_at IS NOT NULL
	)
	SELECT count(*) FROM entries WHERE settled`

// settlePromised settles those of the results' entries that may be promises.
func (r *results) settlePromised(q *batch, node int64) {
	e := &r.promised
	if len(e.events) == 0 {
		return
	}
	var blocks []int64
	for _, event := range e.events { // in ascending order
		if block := event / promiseBlock; len(blocks) == 0 || blocks[len(blocks)-1] != block {
			blocks = append(blocks, block)
		}
	}
	q.queue(keepPromises, node, e.events, e.webhooks, e.retry, e.next, blocks).
		QueryRow(func(row pgx.Row) error { return row.Scan(&r.kept) })
}

// isPromise is whether an event e is promised to a webhook. A row has few entries.
const isPromise = `EXISTS (SELECT FROM posthorn.promises p WHERE p.block = e.seq / 64 AND e.seq = ANY (p.events) OFFSET 0)`

const selectPromised = `SELECT p.block, u.event, u.webhook, e.id, e.repo_id, e.created_at, w.id
	FROM (SELECT * FROM posthorn.promises WHERE node = $1 AND block > $2 ORDER BY block LIMIT $3) p
	CROSS JOIN LATERAL unnest(p.events, p.webhooks) AS u (event, webhook)
	LEFT JOIN LATERAL (SELECT * FROM posthorn.events WHERE seq = u.event OFFSET 0) e ON true
	LEFT JOIN LATERAL (SELECT * FROM posthorn.webhooks WHERE seq = u.webhook AND NOT deleted OFFSET 0) w ON true
	ORDER BY u.event, u.webhook`

// releasePromises frees the entries that a node has promised and not settled.
func (s *Store) releasePromises(ctx context.Context, node int64) error {
	for after := int64(-1); ; {
		var entries []leasedEntry
		err := s.get(ctx, func(b *batch) {
			b.queue(selectPromised, node, after, promisesAtOnce).Query(func(rows pgx.Rows) error {
				e := leasedEntry{attempt: 1, promised: true}
				var eventID, repoID, webhookID *string
				var createdAt *time.Time
				scan := []any{&after, &e.event, &e.webhook, &eventID, &repoID, &createdAt, &webhookID}
				_, err := pgx.ForEachRow(rows, scan, func() error {
					found := e
					found.find(eventID, repoID, createdAt, webhookID)
					if found.live {
						found.due = *createdAt
					}
					entries = append(entries, found)
					return nil
				})
				return err
			})
		})
		if err != nil || len(entries) == 0 {
			return err
		}
		for chunk := range slices.Chunk(entries, releaseChunk) {
			if err := s.free(ctx, node, chunk); err != nil {
				return err
			}
		}
	}
}

// find tells whether an entry's event and webhook are there, and the id of its attempt.
func (e *leasedEntry) find(eventID, repoID *string, createdAt *time.Time, webhookID *string) {
	if e.live = webhookID != nil && eventID != nil; !e.live {
		return
	}
	event := posthorn.AcceptedEvent{ID: *eventID, RepoID: *repoID, CreatedAt: createdAt.UTC()}
	id, _ := parseUUID(posthorn.DeliveryID(&event, *webhookID, e.run, int(e.attempt)))
	e.delivery = pgtype.UUID{Bytes: id, Valid: true}
}
