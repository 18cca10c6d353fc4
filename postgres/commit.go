package postgres

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn"
)

// Commit implements [posthorn.Store]. It takes two round trips, of which the second is the COMMIT, unless something in the
// batch was there already. Where a group is at fault all is rolled back and done again without it.
func (s *Store) Commit(ctx context.Context, b posthorn.Batch) ([]posthorn.Acceptance, error) {
	r, err := encodeResults(b.Results)
	if err != nil {
		return nil, err
	}
	acceptances := make([]posthorn.Acceptance, len(b.Events))
	refused := map[int]bool{} // groups
	var a *newEvents
	for a == nil || errors.Is(err, errRefused) {
		a = encodeEvents(b, refused)
		err = s.withPartitions(ctx, r.days, func() error {
			return s.write(ctx, func(ctx context.Context, t *transaction) error {
				if err := writeBatch(ctx, t, b.Node, a, r); err != nil {
					return err
				}
				return a.refuse(refused, acceptances)
			})
		})
	}
	if err != nil {
		return nil, err
	}
	r.tell()
	for i, outcome := range a.outcomes {
		if outcome != nil {
			acceptances[i] = outcome.acceptance(b.Events[i].Event)
		}
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

// writeBatch does what there is to do within one transaction.
func writeBatch(ctx context.Context, t *transaction, node int64, a *newEvents, r *results) error {
	a.reset()
	r.reset()
	err := t.run(ctx, func(q *batch) {
		// A host's open transaction that has the same event must not hold up the whole batch.
		q.queue("SELECT set_config('lock_timeout', '2s', true)")
		fence(q, node)
		a.insert(q, node)
		r.settle(q, node)
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
}

// outcome is what a statement found out about one event.
type outcome struct {
	seq        int64
	deliveries int
	duplicate  bool
	same       bool // in type and payload, where it is a duplicate
	invalid    bool // PostgreSQL has no place for it
}

func (o *outcome) atFault() bool { return o.invalid || o.duplicate && !o.same }

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
	invalid  []int // the indexes of those that PostgreSQL has no place for
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

// encodeEvents leaves out the groups that are refused. Their events get no outcome.
func encodeEvents(b posthorn.Batch, refused map[int]bool) *newEvents {
	a := &newEvents{events: b.Events}
	type key struct{ id, repoID string }
	first := make(map[key]bool, len(b.Events))
	for i := range b.Events {
		if refused[b.Events[i].Group] {
			continue
		}
		e := b.Events[i].Event
		if !storable(e.ID, e.RepoID, e.Type) {
			a.invalid = append(a.invalid, i)
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
	for _, i := range a.invalid {
		a.outcomes[i] = &outcome{invalid: true}
	}
}

// errRefused is returned by a transaction that has to be done again without some groups.
var errRefused = posthorn.Errorf(posthorn.CodeInternal, "a group of events was refused")

// refuse adds the groups to refused that have an event at fault, and has the events' acceptances say so. It returns errRefused
// if there are any.
func (a *newEvents) refuse(refused map[int]bool, acceptances []posthorn.Acceptance) error {
	var err error
	var groups map[int64]int // of the events that were inserted, by their numbers
	for i, o := range a.outcomes {
		group := a.events[i].Group
		if group == 0 || o == nil || !o.atFault() {
			continue
		}
		if groups == nil {
			groups = a.inserted()
		}
		// The events of a refused group are not there the next time, and this one may be no conflict then.
		if o.duplicate && refused[groups[o.seq]] {
			continue
		}
		refused[group] = true
		acceptances[i] = o.acceptance(a.events[i].Event)
		err = errRefused
	}
	return err
}

func (a *newEvents) inserted() map[int64]int {
	groups := map[int64]int{}
	for i, o := range a.outcomes {
		if o != nil && !o.invalid && !o.duplicate {
			groups[o.seq] = a.events[i].Group
		}
	}
	return groups
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
