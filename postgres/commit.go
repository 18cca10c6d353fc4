package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn"
)

// Commit implements [posthorn.Store]. It takes two round trips, of which the second is the COMMIT, unless something in the
// batch was there already, or entries that could be promises are none. Where a group is at fault all is rolled back and done again without it.
func (s *Store) Commit(ctx context.Context, b posthorn.Batch) ([]posthorn.Acceptance, error) {
	r, err := encodeResults(b.Results)
	if err != nil {
		return nil, err
	}
	if len(b.Events) > maxBatch {
		return nil, errBatch(len(b.Events), "events")
	}
	acceptances := make([]posthorn.Acceptance, len(b.Events))
	refused := map[int]bool{} // groups
	var a *newEvents
	var o orderings
	for a == nil || errors.Is(err, errRefused) {
		a = encodeEvents(b, refused)
		err = s.withPartitions(ctx, r.days, func() error {
			return s.write(ctx, func(ctx context.Context, t *transaction) error {
				if err := s.writeBatch(ctx, t, b.Node, a, r, &o); err != nil {
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
	o.tell(&s.lanes)
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
func (s *Store) writeBatch(ctx context.Context, t *transaction, node int64, a *newEvents, r *results, o *orderings) error {
	a.reset()
	r.reset()
	*o = orderings{}
	for i, webhook := range a.queued.webhooks {
		o.add(webhook, a.queued.ordering[i])
	}
	for i := range r.results {
		o.add(r.results[i].Entry.WebhookSeq, r.results[i].Entry.Ordering)
	}
	err := t.run(ctx, func(q *batch) {
		fence(q, node)
		o.lock(q)
		// A host's open transaction that has the same event must not hold up the whole batch.
		q.queue("SELECT set_config('lock_timeout', $1, true)", fmt.Sprint(s.lockTimeout.Milliseconds()))
		o.place(q)
		if len(r.promised.events) > 0 {
			lockPromises(q, node)
		}
		a.insert(q, node)
		r.settlePromised(q, node)
		r.queued.settle(q, node)
		r.held.settle(q, heldNode)
		o.advance(q, &s.lanes)
		r.log(q)
	})
	// Those in the queue are of events that not all webhooks had room for. Others are settled already, or somebody else's.
	others := r.kept < len(r.promised.events)
	if err != nil || len(a.repeated) == 0 && !r.unlogged() && !others {
		return err
	}
	err = t.run(ctx, func(q *batch) {
		a.compare(q)
		if others {
			r.promised.settle(q, node)
		}
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

// maxBatch is how many events or results a batch can have. They are numbered from a multiple of that on, so that one number
// of the sequences gives those of a whole batch.
const maxBatch = 1 << 16

func errBatch(n int, what string) error {
	return posthorn.Errorf(posthorn.CodeTooLarge, "a batch of %d %s is more than %d", n, what, maxBatch)
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
	sent     []int // the columns' rows, as indexes of events: the first of each ID, in the order of IDs and repos
	same     []int // the indexes of those whose ID another one of the batch has
	invalid  []int // the indexes of those that PostgreSQL has no place for
	outcomes []*outcome
	repeated []int // the indexes of those that were there already

	numbers           []int32 // the same as sent
	ids, repos, types []string
	times             []time.Time
	deliveries        []int32
	attributes        []string
	payloads          blob
	// The targets of events, by the events' indexes: those that become promises, and those that become entries in the queue.
	promised struct {
		rows     []int32
		webhooks []int64
	}
	queued struct {
		rows     []int32
		webhooks []int64
		leased   []bool
		held     []bool
		triggers []string
		ordering []int64
	}
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
	}
	// In the order of the keys: of two nodes that insert the same events one waits for the other, and not both.
	slices.SortFunc(a.sent, func(i, j int) int {
		e, f := b.Events[i].Event, b.Events[j].Event
		return cmp.Or(cmp.Compare(e.ID, f.ID), cmp.Compare(e.RepoID, f.RepoID))
	})
	size := 0
	for _, i := range a.sent {
		size += len(b.Events[i].Event.Payload)
	}
	a.payloads.bytes = make([]byte, 0, size)
	for _, i := range a.sent {
		a.add(&b, i)
	}
	return a
}

func (a *newEvents) add(b *posthorn.Batch, i int) {
	n := &b.Events[i]
	e := n.Event
	a.numbers = append(a.numbers, int32(i))
	a.ids = append(a.ids, e.ID)
	a.repos = append(a.repos, e.RepoID)
	a.types = append(a.types, e.Type)
	a.times = append(a.times, micros(e.CreatedAt))
	a.deliveries = append(a.deliveries, int32(len(n.Targets)))
	a.attributes = append(a.attributes, e.Attributes.Encode())
	a.payloads.add(e.Payload)
	if promised(b, n) {
		for _, t := range n.Targets {
			a.promised.rows = append(a.promised.rows, int32(i))
			a.promised.webhooks = append(a.promised.webhooks, t.WebhookSeq)
		}
		return
	}
	for _, t := range n.Targets {
		a.queued.rows = append(a.queued.rows, int32(i))
		a.queued.webhooks = append(a.queued.webhooks, t.WebhookSeq)
		a.queued.leased = append(a.queued.leased, t.Leased && b.Node != 0)
		a.queued.held = append(a.queued.held, t.Held)
		a.queued.triggers = append(a.queued.triggers, string(n.Trigger))
		a.queued.ordering = append(a.queued.ordering, t.Ordering)
	}
}

// blob is a column of byte strings in one piece. The driver and the server take that several times faster than an array.
type blob struct {
	bytes    []byte
	at, size []int32 // as substring counts, from 1
}

func (b *blob) add(s []byte) {
	b.bytes = append(b.bytes, s...)
	b.end(len(s))
}

// end ends a string whose bytes have been added.
func (b *blob) end(size int) {
	b.at = append(b.at, int32(len(b.bytes)-size+1))
	b.size = append(b.size, int32(size))
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

// insertEvents inserts in the order in which the columns are given, and returns the number that the batch's begin with and
// those of the events that were new. The columns are read side by side where they are selected, row by row: as a table they
// would be copied first, payloads and all.
//
// Targets whose webhooks are gone get no entry in the queue, and one that is named twice gets one, which is free if either is.
// A promise of one that is gone goes with its node's results.
const insertEvents = `WITH batch AS MATERIALIZED (
		SELECT nextval('posthorn.event_seq') AS base
	), new AS (
		INSERT INTO posthorn.events (seq, id, repo_id, type, created_at, deliveries, attributes, payload)
		SELECT (SELECT base FROM batch) + g.n, g.id, g.repo_id, g.type, g.created_at, g.deliveries, g.attributes, substring($7::bytea FROM g.at FOR g.size)
		FROM (SELECT unnest($1::int[]) AS n, unnest($2::text[]) AS id, unnest($3::text[]) AS repo_id, unnest($4::text[]) AS type,
			unnest($5::timestamptz[]) AS created_at, unnest($6::int[]) AS deliveries, unnest($15::int[]) AS at, unnest($16::int[]) AS size,
			unnest($17::text[]) AS attributes) g
		ON CONFLICT (id, repo_id) DO NOTHING RETURNING seq, created_at
	), promises AS (
		INSERT INTO posthorn.promises (block, node, events, webhooks)
		SELECT new.seq / 64, $8::bigint, array_agg(new.seq), array_agg(t.webhook)
		FROM unnest($9::int[], $10::bigint[]) AS t (n, webhook) JOIN new ON new.seq = (SELECT base FROM batch) + t.n
		GROUP BY 1
	), entries AS (
		INSERT INTO posthorn.queue (event, webhook, run, attempt, trigger, due_at, node, ordering, turn)
		SELECT new.seq, t.webhook, 0, 1, t.trigger, new.created_at,
			CASE WHEN t.leased THEN $8::bigint WHEN t.held THEN -2 WHEN t.ordering <> 0 THEN 0 END, t.ordering,
			CASE WHEN t.ordering <> 0 THEN new.seq END
		FROM unnest($11::int[], $12::bigint[], $13::boolean[], $14::text[], $18::bigint[], $19::boolean[])
			AS t (n, webhook, leased, trigger, ordering, held)
		JOIN new ON new.seq = (SELECT base FROM batch) + t.n
		CROSS JOIN LATERAL (SELECT FROM posthorn.webhooks w WHERE w.seq = t.webhook AND NOT w.deleted OFFSET 0) w
		ORDER BY new.seq, t.webhook, t.leased
		ON CONFLICT DO NOTHING
	)
	SELECT base, ARRAY(SELECT seq FROM new) FROM batch`

// countEvents adds differences to the counts.
const countEvents = `INSERT INTO posthorn.repo_counts (repo_id, events) SELECT unnest($1::text[]), unnest($2::bigint[])`

func (a *newEvents) insert(q *batch, node int64) {
	if len(a.sent) == 0 {
		return
	}
	q.queue(insertEvents, a.numbers, a.ids, a.repos, a.types, a.times, a.deliveries, a.payloads.bytes, node,
		a.promised.rows, a.promised.webhooks, a.queued.rows, a.queued.webhooks, a.queued.leased, a.queued.triggers,
		a.payloads.at, a.payloads.size, a.attributes, a.queued.ordering, a.queued.held,
	).QueryRow(func(row pgx.Row) error {
		var base int64
		var seqs []int64
		err := row.Scan(&base, &seqs)
		for _, seq := range seqs {
			i := seq - base
			a.outcomes[i] = &outcome{seq: seq, deliveries: len(a.events[i].Targets)}
		}
		for _, i := range a.sent {
			if a.outcomes[i] == nil {
				a.repeated = append(a.repeated, i)
			}
		}
		return err
	})
	a.count(q, a.sent, 1)
}

// count adds events, by their indexes, to the counts of their repos, or takes them off.
func (a *newEvents) count(q *batch, indexes []int, by int64) {
	n := map[string]int64{}
	for _, i := range indexes {
		n[a.events[i].Event.RepoID] += by
	}
	var repos []string
	var counts []int64
	for repo, count := range n {
		repos, counts = append(repos, repo), append(counts, count)
	}
	q.queue(countEvents, repos, counts)
}

// compare looks at the events that were there already. It is a statement of its own, which sees what the one before had to
// wait for.
func (a *newEvents) compare(q *batch) {
	if len(a.repeated) == 0 {
		return
	}
	if counted := a.repeated[len(a.same):]; len(counted) > 0 {
		a.count(q, counted, -1)
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
