package postgres

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn"
)

// Enqueue implements [posthorn.Store].
func (s *Store) Enqueue(ctx context.Context, e *posthorn.Entry, node int64) error {
	var run int64
	holder := node
	if e.Held {
		holder = heldNode
	}
	err := s.write(ctx, func(ctx context.Context, t *transaction) error {
		return t.run(ctx, func(b *batch) {
			one := 0
			b.queue("SELECT 1 FROM posthorn.webhooks WHERE seq = $1 AND NOT deleted", e.WebhookSeq).
				QueryRow(func(row pgx.Row) error { return found(row.Scan(&one), errNoWebhook()) })
			// The lock keeps Prune from removing the event before the entry is there.
			b.queue("SELECT 1 FROM posthorn.events WHERE seq = $1 FOR KEY SHARE", e.Event.Seq).
				QueryRow(func(row pgx.Row) error { return found(row.Scan(&one), errNoEvent()) })
			fence(b, node)
			b.queue(`INSERT INTO posthorn.queue (event, webhook, run, attempt, trigger, due_at, node)
				VALUES ($1, $2, nextval('posthorn.run_seq'), $3, $4, $5, nullif($6::bigint, 0)) RETURNING run`,
				e.Event.Seq, e.WebhookSeq, e.Attempt, string(e.Trigger), micros(e.DueAt), holder).
				QueryRow(func(row pgx.Row) error { return row.Scan(&run) })
		})
	})
	if err == nil {
		e.Run, e.Queued = run, true
	}
	return err
}

// heldNode stands for the node that has what is held.
const heldNode = -2

const selectHeld = `WITH found AS MATERIALIZED (
		SELECT q.*, hook.id AS webhook_id FROM posthorn.webhooks hook
		CROSS JOIN LATERAL (SELECT * FROM posthorn.queue q WHERE q.webhook = hook.seq AND q.node = -2 ORDER BY q.due_at, q.event, q.run LIMIT $2) q
		WHERE hook.seq = $1 AND NOT hook.deleted
	), sized AS MATERIALIZED (
		SELECT f.*, sum((SELECT octet_length(e.payload) FROM posthorn.events e WHERE e.seq = f.event)) OVER earlier
			- (SELECT octet_length(e.payload) FROM posthorn.events e WHERE e.seq = f.event) AS bytes_before
		FROM found f WINDOW earlier AS (ORDER BY f.due_at, f.event, f.run ROWS UNBOUNDED PRECEDING)
	)
	SELECT s.webhook, s.webhook_id, s.run, s.attempt, s.due_at, s.trigger, s.ordering,
		e.seq, e.id, e.repo_id, e.type, e.created_at, e.deliveries, e.attributes, CASE WHEN $3 >= 0 THEN e.payload END
	FROM sized s CROSS JOIN LATERAL (SELECT * FROM posthorn.events e WHERE e.seq = s.event OFFSET 0) e
	WHERE $3 < 0 OR s.bytes_before <= $3 ORDER BY s.due_at, s.event, s.run`

// Held implements [posthorn.Store].
func (s *Store) Held(ctx context.Context, webhookSeq int64, limit, maxBytes int) (entries []*posthorn.Entry, err error) {
	err = s.get(ctx, func(b *batch) {
		b.queue(selectHeld, webhookSeq, limit, maxBytes).Query(func(rows pgx.Rows) (err error) {
			entries, err = scanEntries(rows)
			return err
		})
	})
	for _, e := range entries {
		e.Held = true
	}
	return entries, err
}

// duePage is how many webhooks one statement visits.
const duePage = 512

// queuedWebhooks visits the webhooks that have free entries, each by one seek in the index behind the one before: $1 is
// where it begins and $2 how many it visits. Those of $3, in ascending order, are visited without looking for them, and
// looked past (see lanes).
const queuedWebhooks = `WITH RECURSIVE queued (seq, n) AS (
		SELECT $1::bigint, 0
		UNION ALL
		SELECT coalesce(
			(SELECT q.webhook FROM posthorn.queue q WHERE q.node IS NULL AND q.webhook > p.seq AND q.webhook < p.known ORDER BY q.webhook LIMIT 1),
			nullif(p.known, 9223372036854775807)), p.n + 1
		FROM (SELECT seq, n, coalesce((SELECT min(k) FROM unnest($3::bigint[]) k WHERE k > seq), 9223372036854775807) AS known
			FROM queued WHERE seq IS NOT NULL AND n < $2::bigint) p
	) `

// selectDue looks at the two ends of a webhook's lanes: what is due, and what lies beyond the horizon. The comparisons with a
// subquery's value, where EXISTS would read better, leave the planner nothing to turn into a join.
const selectDue = queuedWebhooks + `SELECT v.seq, w.id, w.repo_id, first.due_at, w.id IS NOT NULL AND (
		(SELECT q.due_at FROM posthorn.queue q WHERE q.webhook = v.seq AND NOT q.automatic AND q.node IS NULL
			ORDER BY q.due_at LIMIT 1) <= $4
		OR (SELECT q.due_at FROM posthorn.queue q WHERE q.webhook = v.seq AND NOT q.automatic AND q.node IS NULL
			ORDER BY q.due_at DESC LIMIT 1) > $5
		OR w.active AND (first.due_at <= $4
			OR (SELECT q.due_at FROM posthorn.queue q WHERE q.webhook = v.seq AND q.automatic AND q.node IS NULL
				AND q.due_at >= k.near AND (q.due_at, q.event, q.run) <= (k.due_at, k.event, k.run) ORDER BY q.due_at LIMIT 1) <= $4
			OR (SELECT q.due_at FROM posthorn.queue q WHERE q.webhook = v.seq AND q.automatic AND q.node IS NULL
				ORDER BY q.due_at DESC LIMIT 1) > $5
		)) IS TRUE
	FROM queued v
	LEFT JOIN unnest($3::bigint[], $6::timestamptz[], $7::bigint[], $8::bigint[], $9::timestamptz[])
		AS k (webhook, due_at, event, run, near) ON k.webhook = v.seq
	LEFT JOIN LATERAL (SELECT * FROM posthorn.webhooks w WHERE w.seq = v.seq AND NOT w.deleted OFFSET 0) w ON true
	LEFT JOIN LATERAL (SELECT q.due_at FROM posthorn.queue q WHERE q.webhook = v.seq AND q.automatic AND q.node IS NULL
		AND (q.due_at, q.event, q.run) > (coalesce(k.due_at, '-infinity'), coalesce(k.event, 0), coalesce(k.run, 0))
		ORDER BY q.due_at, q.event, q.run LIMIT 1) first ON true
	WHERE v.n > 0 AND v.seq IS NOT NULL ORDER BY v.seq`

// Due implements [posthorn.Store]. The one thing that it writes is the places of entries that have none (see ordering.go). Where that fails, it
// says so, and returns what is due without them.
func (s *Store) Due(ctx context.Context, now time.Time, horizon time.Duration, after int64, limit int) ([]posthorn.DueWebhook, error) {
	var unplaced []int64
	err := s.get(ctx, func(b *batch) {
		b.queue(selectUnplaced, s.placing.Load(), placeFor).Query(func(rows pgx.Rows) (err error) {
			unplaced, err = pgx.CollectRows(rows, pgx.RowTo[int64])
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	next := int64(0) // from the first one again
	if len(unplaced) == placeFor {
		next = unplaced[placeFor-1]
	}
	s.placing.Store(next)
	var placing error
	if len(unplaced) > 0 {
		placing = s.place(ctx, unplaced)
	}
	var due []posthorn.DueWebhook
	for len(due) < limit {
		clock := time.Now()
		known := s.lanes.known(clock)
		visited := 0
		err := s.get(ctx, func(b *batch) {
			b.queue(selectDue, dueArgs(now, horizon, after, known)...).Query(func(rows pgx.Rows) error {
				var w posthorn.DueWebhook
				var id, repoID *string
				var first *time.Time
				var claimable bool
				_, err := pgx.ForEachRow(rows, []any{&w.Seq, &id, &repoID, &first, &claimable}, func() error {
					visited++
					after = w.Seq
					if claimable && len(due) < limit {
						due = append(due, posthorn.DueWebhook{Seq: w.Seq, ID: *id, RepoID: *repoID})
					}
					_, remembered := slices.BinarySearchFunc(known, w.Seq,
						func(l look, seq int64) int { return cmp.Compare(l.webhook, seq) })
					if !remembered {
						s.lanes.seen(w.Seq, first, clock)
					}
					return nil
				})
				return err
			})
		})
		if err != nil {
			return nil, err
		}
		if visited < duePage {
			break
		}
	}
	return due, placing
}

func dueArgs(now time.Time, horizon time.Duration, after int64, known []look) []any {
	due, event, run, near := lookColumns(known)
	return []any{after, duePage, webhooksOf(known), micros(now), micros(now.Add(horizon)), due, event, run, near}
}
