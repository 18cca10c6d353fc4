package postgres

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn"
)

// Commit implements [posthorn.Store]. It takes two round trips, of which the second is the COMMIT, unless something in the
// batch was there already.
func (s *Store) Commit(ctx context.Context, b posthorn.Batch) ([]posthorn.Acceptance, error) {
	r, err := encodeResults(b.Results)
	if err != nil {
		return nil, err
	}
	a := encodeEvents(b)
	err = s.withPartitions(ctx, r.days, func() error {
		return s.write(ctx, func(ctx context.Context, t *transaction) error {
			a.reset()
			r.reset()
			err := t.run(ctx, func(q *batch) {
				// A host's open transaction that has the same event must not hold up the whole batch.
				q.queue("SELECT set_config('lock_timeout', '2s', true)")
				fence(q, b.Node)
				a.insert(q, b.Node)
				r.settle(q, b.Node)
				r.log(q)
			})
			if err != nil || len(a.repeated) == 0 && !r.unlogged() {
				return err
			}
			err = t.run(ctx, func(q *batch) {
				a.compare(q)
				r.find(q)
			})
			if err == nil && slices.ContainsFunc(a.repeated, func(i int) bool { return a.outcomes[i] == nil }) {
				return errAgain // the first one was pruned meanwhile
			}
			if err == nil && r.otherwise {
				return errAgain
			}
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	r.tell()
	acceptances := make([]posthorn.Acceptance, len(b.Events))
	for i, outcome := range a.outcomes {
		acceptances[i] = outcome.acceptance(b.Events[i].Event)
	}
	for i := range b.Events {
		for _, t := range b.Events[i].Targets {
			if !t.Leased {
				s.lanes.freed(t.WebhookSeq, b.Events[i].Event.CreatedAt)
			}
		}
	}
	for _, result := range b.Results {
		if !result.RetryAt.IsZero() {
			s.lanes.freed(result.Entry.WebhookSeq, result.RetryAt)
		}
	}
	return acceptances, nil
}

// outcome is what a statement found out about one event.
type outcome struct {
	seq        int64
	deliveries int
	duplicate  bool
	same       bool // in type and payload, where it is a duplicate
	invalid    bool // PostgreSQL has no place for it
}

func (o *outcome) acceptance(e *posthorn.AcceptedEvent) posthorn.Acceptance {
	switch {
	case o.invalid:
		return posthorn.Acceptance{Err: posthorn.Errorf(posthorn.CodeInvalid, "the event's repo, ID or type is not UTF-8, or has a NUL character")}
	case o.duplicate && !o.same:
		return posthorn.Acceptance{Err: posthorn.Errorf(posthorn.CodeConflict,
			"there is an event %s already, with another type or payload", e.ID)}
	}
	e.Seq = o.seq
	return posthorn.Acceptance{Duplicate: o.duplicate, Deliveries: o.deliveries}
}

// newEvents are a batch's events on their way into the database, as columns.
type newEvents struct {
	events   []posthorn.NewEvent
	sent     []int // the columns' rows, as indexes of events: the first of each ID
	same     []int // the indexes of those whose ID another one of the batch has
	outcomes []*outcome
	repeated []int // the indexes of those that were there already

	ids, repos, types []string
	times             []time.Time
	deliveries        []int32
	payloads          [][]byte
	// The targets of all events.
	rows, webhooks []int64 // the event's row, from 1; the webhook
	leased         []bool
	triggers       []string
}

func encodeEvents(b posthorn.Batch) *newEvents {
	a := &newEvents{events: b.Events}
	type key struct{ id, repoID string }
	first := make(map[key]bool, len(b.Events))
	for i := range b.Events {
		e := b.Events[i].Event
		if !storable(e.ID, e.RepoID, e.Type) {
			continue
		}
		k := key{e.ID, e.RepoID}
		if first[k] {
			a.same = append(a.same, i)
			continue
		}
		first[k] = true
		a.sent = append(a.sent, i)
		a.ids = append(a.ids, e.ID)
		a.repos = append(a.repos, e.RepoID)
		a.types = append(a.types, e.Type)
		a.times = append(a.times, micros(e.CreatedAt))
		a.deliveries = append(a.deliveries, int32(len(b.Events[i].Targets)))
		a.payloads = append(a.payloads, payloadBytes(e))
		for _, t := range b.Events[i].Targets {
			a.rows = append(a.rows, int64(len(a.sent)))
			a.webhooks = append(a.webhooks, t.WebhookSeq)
			a.leased = append(a.leased, t.Leased && b.Node != 0)
			a.triggers = append(a.triggers, string(b.Events[i].Trigger))
		}
	}
	return a
}

// payloadBytes is a payload for the driver, which takes nil for NULL.
func payloadBytes(e *posthorn.AcceptedEvent) []byte {
	if e.Payload == nil {
		return []byte{}
	}
	return e.Payload
}

func (a *newEvents) reset() {
	a.repeated = slices.Clone(a.same)
	a.outcomes = make([]*outcome, len(a.events))
	for i := range a.outcomes {
		a.outcomes[i] = &outcome{invalid: true}
	}
	for _, i := range slices.Concat(a.sent, a.same) {
		a.outcomes[i] = nil
	}
}

// insertEvents takes the numbers in the order of the batch and inserts in that of the keys: of two nodes that insert the
// same events one waits for the other, and not both. Payloads are taken from their array late, so that no step in between
// copies them.
//
// Targets whose webhooks are gone get no entry, and one that is named twice gets one, which is free if either is.
const insertEvents = `WITH given AS MATERIALIZED (
		SELECT nextval('posthorn.event_seq') AS seq, g.* FROM (
			SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::int[]) WITH ORDINALITY
				AS g (id, repo_id, type, created_at, deliveries, n) ORDER BY n) g
	), new AS (
		INSERT INTO posthorn.events (seq, id, repo_id, type, created_at, deliveries, payload)
		SELECT g.seq, g.id, g.repo_id, g.type, g.created_at, g.deliveries, ($6::bytea[])[g.n]
		FROM (SELECT * FROM given ORDER BY id COLLATE "C", repo_id COLLATE "C") g
		ON CONFLICT (id, repo_id) DO NOTHING RETURNING seq
	), accepted AS MATERIALIZED (
		SELECT g.* FROM new JOIN given g USING (seq)
	), entries AS (
		INSERT INTO posthorn.queue (event, webhook, run, attempt, trigger, due_at, node)
		SELECT a.seq, t.webhook, 0, 1, t.trigger, a.created_at, CASE WHEN t.leased THEN $7::bigint END
		FROM unnest($8::bigint[], $9::bigint[], $10::boolean[], $11::text[]) AS t (n, webhook, leased, trigger)
		JOIN accepted a ON a.n = t.n
		CROSS JOIN LATERAL (SELECT FROM posthorn.webhooks w WHERE w.seq = t.webhook AND NOT w.deleted OFFSET 0) w
		ORDER BY a.seq, t.webhook, t.leased
		ON CONFLICT DO NOTHING
	), counted AS (
		INSERT INTO posthorn.repo_counts (repo_id, events) SELECT repo_id, count(*) FROM accepted GROUP BY repo_id
	)
	SELECT n, seq FROM accepted`

func (a *newEvents) insert(q *batch, node int64) {
	if len(a.sent) == 0 {
		return
	}
	q.queue(insertEvents, a.ids, a.repos, a.types, a.times, a.deliveries, a.payloads, node,
		a.rows, a.webhooks, a.leased, a.triggers,
	).Query(func(rows pgx.Rows) error {
		var n, seq int64
		_, err := pgx.ForEachRow(rows, []any{&n, &seq}, func() error {
			a.outcomes[a.sent[n-1]] = &outcome{seq: seq, deliveries: int(a.deliveries[n-1])}
			return nil
		})
		for _, i := range a.sent {
			if a.outcomes[i] == nil {
				a.repeated = append(a.repeated, i)
			}
		}
		return err
	})
}

// compare looks at the events that were there already. It is a statement of its own, which sees what the one before had to
// wait for.
func (a *newEvents) compare(q *batch) {
	if len(a.repeated) == 0 {
		return
	}
	var ids, repos, types []string
	var payloads [][]byte
	for _, i := range a.repeated {
		e := a.events[i].Event
		ids = append(ids, e.ID)
		repos = append(repos, e.RepoID)
		types = append(types, e.Type)
		payloads = append(payloads, payloadBytes(e))
	}
	q.queue(`SELECT g.n, e.seq, e.deliveries, e.type = g.type AND e.payload = ($4::bytea[])[g.n]
		FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS g (id, repo_id, type, n)
		CROSS JOIN LATERAL (SELECT * FROM posthorn.events e WHERE e.id = g.id AND e.repo_id = g.repo_id OFFSET 0) e`,
		ids, repos, types, payloads,
	).Query(func(rows pgx.Rows) error {
		var n int64
		var o outcome
		_, err := pgx.ForEachRow(rows, []any{&n, &o.seq, &o.deliveries, &o.same}, func() error {
			first := o
			first.duplicate = true
			a.outcomes[a.repeated[n-1]] = &first
			return nil
		})
		return err
	})
}
