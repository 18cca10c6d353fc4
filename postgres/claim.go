package postgres

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn"
)

// claimEntries takes the entries in some steps for each webhook, of which each is one range of the index, and stops when it
// has enough: by hand and due, by hand and beyond the horizon, and the same for the automatic ones, where those due come
// first from a position on and then from before it (see lanes). Entries that others have locked are left to them.
//
// Then it looks at the sizes of their events in the order of the wants, leases what fits, and returns it with the event; the
// payload only with the event's first entry.
const claimEntries = `WITH found AS MATERIALIZED (
		SELECT w.want, w.webhook, hook.id AS webhook_id, q.*
		FROM unnest($2::bigint[], $3::bigint[], $7::timestamptz[], $8::bigint[], $9::bigint[], $10::timestamptz[]) WITH ORDINALITY
			AS w (webhook, enough, due_at, event, run, near, want)
		CROSS JOIN LATERAL (SELECT * FROM posthorn.webhooks h WHERE h.seq = w.webhook AND NOT h.deleted OFFSET 0) hook
		CROSS JOIN LATERAL (
			SELECT * FROM (
				SELECT * FROM (SELECT ctid AS place, event, run, attempt, due_at, automatic, trigger, ordering FROM posthorn.queue
					WHERE webhook = w.webhook AND node IS NULL AND NOT automatic AND due_at <= $4
					ORDER BY due_at, event, run LIMIT w.enough FOR UPDATE SKIP LOCKED) a
				UNION ALL
				SELECT * FROM (SELECT ctid AS place, event, run, attempt, due_at, automatic, trigger, ordering FROM posthorn.queue
					WHERE webhook = w.webhook AND node IS NULL AND NOT automatic AND due_at > $5
					ORDER BY due_at, event, run LIMIT w.enough FOR UPDATE SKIP LOCKED) b
				UNION ALL
				SELECT * FROM (SELECT ctid AS place, event, run, attempt, due_at, automatic, trigger, ordering FROM posthorn.queue
					WHERE webhook = w.webhook AND node IS NULL AND automatic AND hook.active AND due_at <= $4
						AND (due_at, event, run) > (w.due_at, w.event, w.run)
					ORDER BY due_at, event, run LIMIT w.enough FOR UPDATE SKIP LOCKED) c
				UNION ALL
				SELECT * FROM (SELECT ctid AS place, event, run, attempt, due_at, automatic, trigger, ordering FROM posthorn.queue
					WHERE webhook = w.webhook AND node IS NULL AND automatic AND hook.active AND due_at <= $4
						AND due_at >= w.near AND (due_at, event, run) <= (w.due_at, w.event, w.run)
					ORDER BY due_at, event, run LIMIT w.enough FOR UPDATE SKIP LOCKED) d
				UNION ALL
				SELECT * FROM (SELECT ctid AS place, event, run, attempt, due_at, automatic, trigger, ordering FROM posthorn.queue
					WHERE webhook = w.webhook AND node IS NULL AND automatic AND hook.active AND due_at > $5
					ORDER BY due_at, event, run LIMIT w.enough FOR UPDATE SKIP LOCKED) e
			) steps LIMIT w.enough
		) q
	), sized AS MATERIALIZED (
		SELECT f.*, row_number() OVER wanted AS n,
			sum((SELECT octet_length(e.payload) FROM posthorn.events e WHERE e.seq = f.event)) OVER wanted
				- (SELECT octet_length(e.payload) FROM posthorn.events e WHERE e.seq = f.event) AS bytes_before
		FROM found f WINDOW wanted AS (ORDER BY f.want, f.automatic, f.due_at, f.event, f.run ROWS UNBOUNDED PRECEDING)
	), leased AS (
		UPDATE posthorn.queue SET node = $1 WHERE ctid = ANY (ARRAY(SELECT place FROM sized WHERE bytes_before <= $6))
		RETURNING event, webhook, run
	), taken AS MATERIALIZED (
		SELECT s.*, row_number() OVER (PARTITION BY s.event ORDER BY s.n) AS nth
		FROM sized s JOIN leased l USING (event, webhook, run)
	)
	SELECT t.webhook, t.webhook_id, t.run, t.attempt, t.due_at, t.trigger, t.ordering,
		e.seq, e.id, e.repo_id, e.type, e.created_at, e.deliveries, e.attributes, CASE WHEN t.nth = 1 THEN e.payload END
	FROM taken t CROSS JOIN LATERAL (SELECT * FROM posthorn.events e WHERE e.seq = t.event OFFSET 0) e
	ORDER BY t.n`

// Claim implements [posthorn.Store]. If hosts' transactions have left entries of the webhooks unplaced, it finds a place for them and
// begins anew, but not more than once.
func (s *Store) Claim(ctx context.Context, c posthorn.Claim) ([]*posthorn.Entry, error) {
	c.Wants = distinct(c.Wants)
	entries, unplaced, err := s.claim(ctx, c, false)
	if len(unplaced) > 0 {
		_ = s.place(ctx, unplaced) // where that fails, so does Due, which says so
		entries, _, err = s.claim(ctx, c, true)
	}
	return entries, err
}

var errUnplaced = posthorn.Errorf(posthorn.CodeInternal, "there are entries without a place")

// claim claims nothing while there are unplaced entries, and returns their webhooks, unless these are to be left alone.
func (s *Store) claim(ctx context.Context, c posthorn.Claim, leave bool) (entries []*posthorn.Entry, unplaced []int64, err error) {
	now := time.Now()
	looks := s.lanes.looks(c.Wants, now)
	err = s.write(ctx, func(ctx context.Context, t *transaction) error {
		unplaced = nil
		err := t.run(ctx, func(b *batch) {
			fence(b, c.Node)
			if !leave {
				b.queue(selectUnplacedOf, webhooksOf(looks)).Query(func(rows pgx.Rows) (err error) {
					unplaced, err = pgx.CollectRows(rows, pgx.RowTo[int64])
					return err
				})
			}
			b.queue(claimEntries, claimArgs(c, looks)...).Query(func(rows pgx.Rows) (err error) {
				entries, err = scanEntries(rows)
				return err
			})
		})
		if err == nil && len(unplaced) > 0 {
			err = errUnplaced // takes the claim back
		}
		return err
	})
	if err != nil {
		return nil, unplaced, err
	}
	s.lanes.claimed(c, looks, entries, now)
	return entries, nil, nil
}

// distinct leaves out webhooks that are wanted twice: their entries would be found twice.
func distinct(wants []posthorn.Want) []posthorn.Want {
	seen := make(map[int64]bool, len(wants))
	return slices.DeleteFunc(slices.Clone(wants), func(w posthorn.Want) bool {
		again := seen[w.WebhookSeq]
		seen[w.WebhookSeq] = true
		return again
	})
}

func claimArgs(c posthorn.Claim, looks []look) []any {
	enough := make([]int64, len(c.Wants))
	for i, w := range c.Wants {
		enough[i] = int64(max(w.Limit, 0))
	}
	due, event, run, near := lookColumns(looks)
	return []any{c.Node, webhooksOf(looks), enough, micros(c.Now), micros(c.Now.Add(c.Horizon)), c.MaxBytes, due, event, run, near}
}

func webhooksOf(looks []look) []int64 {
	webhooks := make([]int64, len(looks))
	for i, l := range looks {
		webhooks[i] = l.webhook
	}
	return webhooks
}

// lookColumns returns the rest of looks as columns.
func lookColumns(looks []look) (due []time.Time, event, run []int64, near []*time.Time) {
	for _, l := range looks {
		due = append(due, l.after.due)
		event = append(event, l.after.event)
		run = append(run, l.after.run)
		near = append(near, l.near)
	}
	return due, event, run, near
}

func scanEntries(rows pgx.Rows) (entries []*posthorn.Entry, err error) {
	events := map[int64]*posthorn.AcceptedEvent{}
	var e posthorn.Entry
	var event posthorn.AcceptedEvent
	var payload []byte
	_, err = pgx.ForEachRow(rows, []any{
		&e.WebhookSeq, &e.WebhookID, &e.Run, &e.Attempt, &e.DueAt, &e.Trigger, &e.Ordering,
		&event.Seq, &event.ID, &event.RepoID, &event.Type, &event.CreatedAt, &event.Deliveries, (*attributes)(&event.Attributes), &payload,
	}, func() error {
		shared := events[event.Seq]
		if shared == nil {
			first := event
			first.CreatedAt, first.Payload = first.CreatedAt.UTC(), slices.Clone(payload)
			shared = &first
			events[event.Seq] = shared
		}
		entry := e
		entry.Event, entry.DueAt, entry.Queued = shared, e.DueAt.UTC(), true
		entries = append(entries, &entry)
		return nil
	})
	return entries, err
}
