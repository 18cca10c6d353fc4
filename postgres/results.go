package postgres

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/musehub/posthorn"
)

// results are a batch's results on their way into the database, as columns.
type results struct {
	results []posthorn.Result
	days    []day // of the partitions that they need

	// What becomes of entries: those that are in the queue, those that may be promises, and those that are held.
	queued, promised entryColumns
	held             entryColumns
	kept             int // how many of promised were promises

	// What is logged, in the order of the ids.
	logged     []int   // the indexes of results
	numbers    []int32 // the same
	ids        []pgtype.UUID
	webhooks   []int64
	events     []int64
	eventIDs   []string
	eventTypes []string
	successes  []bool
	at         []time.Time
	next       []*time.Time
	triggers   []string
	runs       []int64
	attempts   []int32
	statuses   []int32
	partition  []int32 // the day of the id
	recorded   []int32 // the day of the delivery
	texts      blob    // of each the response's body, and then the exchange
	bodies     []int32 // how much of that the body is

	seqs  []int64    // by the indexes of results; zero: not logged
	entry []entryRef // by the indexes of results: where theirs stands
	// otherwise is set when the log had a delivery already, of a node that had the entry before, and says that the entry goes on
	// in another way than its result does. The entry's columns are set to that: the transaction has to start anew.
	otherwise bool
}

// entryColumns are entries in the order of their keys, so that of two commits one waits for the other, and not both.
type entryColumns struct {
	events, webhooks, runs []int64
	attempts, next         []int32 // the one that was made, and the one that follows
	due                    []time.Time
	retry                  []*time.Time // nil: it is done
}

// entryRef is where an entry stands. There are no columns for a result that is the second one of its entry.
type entryRef struct {
	columns *entryColumns
	at      int
}

func (c *entryColumns) add(event, webhook, run int64, attempt, next int32, due time.Time, retry *time.Time) {
	c.events = append(c.events, event)
	c.webhooks = append(c.webhooks, webhook)
	c.runs = append(c.runs, run)
	c.attempts = append(c.attempts, attempt)
	c.next = append(c.next, next)
	c.due = append(c.due, due)
	c.retry = append(c.retry, retry)
}

func encodeResults(given []posthorn.Result) (*results, error) {
	if len(given) > maxBatch {
		return nil, errBatch(len(given), "results")
	}
	r := &results{results: given, seqs: make([]int64, len(given))}
	type attempt struct {
		id    [16]byte
		index int
	}
	attempts := make([]attempt, 0, len(given))
	r.texts.bytes = make([]byte, 0, 512*len(given)) // of which most have less
	for i := range given {
		if d := given[i].Delivery; d != nil {
			id, ok := parseUUID(d.ID)
			if !ok {
				return nil, posthorn.Errorf(posthorn.CodeInternal, "the delivery id %q is not derived by DeliveryID", d.ID)
			}
			attempts = append(attempts, attempt{id, i})
		}
	}
	slices.SortStableFunc(attempts, func(a, b attempt) int { return bytes.Compare(a.id[:], b.id[:]) })
	for _, a := range attempts {
		if err := r.addDelivery(a.index, a.id); err != nil {
			return nil, err
		}
	}
	slices.Sort(r.days)
	r.days = slices.Compact(r.days)
	r.addEntries()
	return r, nil
}

func (r *results) addDelivery(i int, id [16]byte) error {
	e, d := r.results[i].Entry, r.results[i].Delivery
	partition, ok := dayOf(id)
	if !ok {
		return posthorn.Errorf(posthorn.CodeInternal, "the delivery id %q is of an impossible time", d.ID)
	}
	exchange := d.Exchange
	exchange.SentAt = micros(exchange.SentAt)
	r.bodies = append(r.bodies, int32(len(d.ResponseBody)))
	start := len(r.texts.bytes)
	r.texts.bytes = exchange.AppendJSON(append(r.texts.bytes, d.ResponseBody...))
	r.texts.end(len(r.texts.bytes) - start)
	r.days = append(r.days, partition)
	r.logged = append(r.logged, i)
	r.numbers = append(r.numbers, int32(i))
	r.ids = append(r.ids, pgtype.UUID{Bytes: id, Valid: true})
	r.webhooks = append(r.webhooks, e.WebhookSeq)
	r.events = append(r.events, e.Event.Seq)
	r.eventIDs = append(r.eventIDs, d.EventID)
	r.eventTypes = append(r.eventTypes, d.EventType)
	r.successes = append(r.successes, d.Success)
	r.at = append(r.at, micros(d.DeliveredAt))
	r.next = append(r.next, orNull(d.NextAttemptAt))
	r.triggers = append(r.triggers, string(d.Trigger))
	r.runs = append(r.runs, d.Run)
	r.attempts = append(r.attempts, int32(d.Attempt))
	r.statuses = append(r.statuses, int32(d.ResponseStatus))
	r.partition = append(r.partition, int32(partition))
	r.recorded = append(r.recorded, int32(dayAt(d.DeliveredAt)))
	return nil
}

// entryKey names an entry as it is leased.
type entryKey struct {
	event, webhook, run int64
	attempt             int
	due                 int64
}

// addEntries takes each entry once: of two results of the same one, the second finds it gone.
func (r *results) addEntries() {
	order := make([]int, 0, len(r.results))
	seen := make(map[entryKey]bool, len(r.results))
	r.entry = make([]entryRef, len(r.results))
	for i := range r.results {
		e := r.results[i].Entry
		k := entryKey{e.Event.Seq, e.WebhookSeq, e.Run, e.Attempt, e.DueAt.UnixMicro()}
		if !seen[k] {
			seen[k] = true
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(i, j int) int {
		a, b := r.results[i].Entry, r.results[j].Entry
		return cmp.Or(cmp.Compare(a.Event.Seq, b.Event.Seq), cmp.Compare(a.WebhookSeq, b.WebhookSeq), cmp.Compare(a.Run, b.Run))
	})
	for _, i := range order {
		result := &r.results[i]
		e := result.Entry
		next := e.Attempt
		if result.Delivery != nil {
			next++
		}
		c := &r.queued
		if e.Held {
			c = &r.held
		}
		if !e.Queued && !e.Held && e.Run == 0 && e.Attempt == 1 && e.Event.Deliveries <= maxPromised {
			c = &r.promised
		}
		r.entry[i] = entryRef{c, len(c.events)}
		c.add(e.Event.Seq, e.WebhookSeq, e.Run, int32(e.Attempt), int32(next), micros(e.DueAt), orNull(result.RetryAt))
	}
}

func orNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = micros(t)
	return &t
}

func (r *results) reset() {
	clear(r.seqs)
	r.otherwise = false
	r.kept = 0
}

// settleEntries takes the entries that the node holds from the queue, and puts those that are due again back, free. The
// rows are addressed by their place, because any other way to join them leaves the planner a choice.
const settleEntries = `WITH given AS MATERIALIZED (
		SELECT * FROM unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::int[], $6::timestamptz[], $7::timestamptz[], $8::int[])
			AS g (event, webhook, run, attempt, due_at, retry_at, next)
	), gone AS (
		DELETE FROM posthorn.queue WHERE ctid = ANY (ARRAY(
			SELECT q.ctid FROM given g CROSS JOIN LATERAL (
				SELECT q.ctid FROM posthorn.queue q
				WHERE q.event = g.event AND q.webhook = g.webhook AND q.run = g.run AND q.attempt = g.attempt AND q.due_at = g.due_at
					AND q.node = $1
				FOR UPDATE) q))
		RETURNING event, webhook, run, attempt, due_at, trigger, ordering, turn
	)
	INSERT INTO posthorn.queue (event, webhook, run, attempt, trigger, due_at, ordering, turn)
	SELECT g.event, g.webhook, g.run, g.next, gone.trigger, g.retry_at, gone.ordering, gone.turn
	FROM gone JOIN given g USING (event, webhook, run, attempt, due_at)
	CROSS JOIN LATERAL (SELECT FROM posthorn.webhooks w WHERE w.seq = g.webhook AND NOT w.deleted OFFSET 0) w
	WHERE g.retry_at IS NOT NULL`

func (c *entryColumns) settle(q *batch, node int64) {
	if len(c.events) > 0 {
		q.queue(settleEntries, node, c.events, c.webhooks, c.runs, c.attempts, c.due, c.retry, c.next)
	}
}

// logDeliveries inserts in the order in which the columns are given, as insertEvents does, and returns the number that the
// batch's begin with and those of what the log did not have. It counts everything: see uncount.
const logDeliveries = `WITH batch AS MATERIALIZED (
		SELECT nextval('posthorn.delivery_seq') AS base
	), live AS MATERIALIZED (
		SELECT w.seq FROM unnest($16::bigint[]) AS g (seq)
		CROSS JOIN LATERAL (SELECT w.seq FROM posthorn.webhooks w WHERE w.seq = g.seq AND NOT w.deleted OFFSET 0) w
	), new AS (
		INSERT INTO posthorn.deliveries (seq, id, webhook, event, event_id, event_type, success, delivered_at, next_attempt_at, trigger,
			run, attempt, status, body, exchange)
		SELECT (SELECT base FROM batch) + g.n, g.id, g.webhook, g.event, g.event_id, g.event_type, g.success, g.delivered_at,
			g.next_attempt_at, g.trigger, g.run, g.attempt, g.status,
			substring($14::bytea FROM g.at FOR g.body), substring($14::bytea FROM g.at + g.body FOR g.size - g.body)
		FROM (SELECT unnest($1::int[]) AS n, unnest($2::uuid[]) AS id, unnest($3::bigint[]) AS webhook, unnest($4::bigint[]) AS event,
			unnest($5::text[]) AS event_id, unnest($6::text[]) AS event_type, unnest($7::boolean[]) AS success,
			unnest($8::timestamptz[]) AS delivered_at, unnest($9::timestamptz[]) AS next_attempt_at, unnest($10::text[]) AS trigger,
			unnest($11::bigint[]) AS run, unnest($12::int[]) AS attempt, unnest($13::int[]) AS status, unnest($15::int[]) AS at, unnest($17::int[]) AS size,
			unnest($18::int[]) AS body) g
		WHERE g.webhook IN (SELECT seq FROM live)
		ON CONFLICT (id) DO NOTHING RETURNING seq
	)
	SELECT base, ARRAY(SELECT seq FROM new) FROM batch`

// countDeliveries adds differences to the counts.
const countDeliveries = `INSERT INTO posthorn.delivery_counts (webhook, day, recorded, succeeded, failed)
	SELECT unnest($1::bigint[]), unnest($2::int[]), unnest($3::int[]), unnest($4::bigint[]), unnest($5::bigint[])`

func (r *results) log(q *batch) {
	if len(r.logged) == 0 {
		return
	}
	live := slices.Clone(r.webhooks)
	slices.Sort(live)
	q.queue(logDeliveries, r.numbers, r.ids, r.webhooks, r.events, r.eventIDs, r.eventTypes, r.successes, r.at, r.next, r.triggers,
		r.runs, r.attempts, r.statuses, r.texts.bytes, r.texts.at, slices.Compact(live), r.texts.size, r.bodies,
	).QueryRow(func(row pgx.Row) error {
		var base int64
		var seqs []int64
		err := row.Scan(&base, &seqs)
		for _, seq := range seqs {
			r.seqs[seq-base] = seq
		}
		return err
	})
	r.count(q, 1, func(int) bool { return true })
}

// uncount takes back what log has counted without having logged it.
func (r *results) uncount(q *batch) {
	r.count(q, -1, func(n int) bool { return r.seqs[r.logged[n]] == 0 })
}

func (r *results) count(q *batch, by int64, which func(n int) bool) {
	type key struct {
		webhook       int64
		day, recorded int32
	}
	rows := map[key]int{}
	var webhooks, succeeded, failed []int64
	var days, recorded []int32
	for n, webhook := range r.webhooks {
		if !which(n) {
			continue
		}
		k := key{webhook, r.partition[n], r.recorded[n]}
		row, ok := rows[k]
		if !ok {
			row = len(webhooks)
			rows[k] = row
			webhooks, days, recorded = append(webhooks, k.webhook), append(days, k.day), append(recorded, k.recorded)
			succeeded, failed = append(succeeded, 0), append(failed, 0)
		}
		if r.successes[n] {
			succeeded[row] += by
		} else {
			failed[row] += by
		}
	}
	if len(webhooks) > 0 {
		q.queue(countDeliveries, webhooks, days, recorded, succeeded, failed)
	}
}

// unlogged reports whether there are deliveries that were not logged now.
func (r *results) unlogged() bool {
	return slices.ContainsFunc(r.logged, func(i int) bool { return r.seqs[i] == 0 })
}

// find looks for the deliveries that the log had already. It is a statement of its own, as compare is.
func (r *results) find(q *batch) {
	var missing []pgtype.UUID
	var webhooks []int64
	var indexes []int
	for n, i := range r.logged {
		if r.seqs[i] == 0 {
			missing = append(missing, r.ids[n])
			webhooks = append(webhooks, r.webhooks[n])
			indexes = append(indexes, i)
		}
	}
	if missing == nil {
		return
	}
	r.uncount(q)
	q.queue(`SELECT g.n, d.seq, d.next_attempt_at FROM unnest($1::uuid[], $2::bigint[]) WITH ORDINALITY AS g (id, webhook, n)
		CROSS JOIN LATERAL (SELECT d.seq, d.next_attempt_at FROM posthorn.deliveries d WHERE d.id = g.id OFFSET 0) d
		CROSS JOIN LATERAL (SELECT FROM posthorn.webhooks w WHERE w.seq = g.webhook AND NOT w.deleted OFFSET 0) w`, missing, webhooks,
	).Query(func(rows pgx.Rows) error {
		var n, seq int64
		var next *time.Time
		_, err := pgx.ForEachRow(rows, []any{&n, &seq, &next}, func() error {
			i := indexes[n-1]
			r.seqs[i] = seq
			if e := r.entry[i]; e.columns != nil && !sameTime(e.columns.retry[e.at], next) {
				r.otherwise = true
				e.columns.retry[e.at] = nil
				if next != nil {
					due := *next
					e.columns.retry[e.at] = &due
				}
			}
			return nil
		})
		return err
	})
}

func sameTime(a, b *time.Time) bool {
	return a == nil && b == nil || a != nil && b != nil && a.Equal(*b)
}

// tell sets the numbers of the deliveries that are in the log now.
func (r *results) tell() {
	for _, i := range r.logged {
		r.results[i].Delivery.Seq = r.seqs[i]
	}
}

// parseUUID accepts the one spelling that DeliveryID writes.
func parseUUID(s string) (id [16]byte, ok bool) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' || s != strings.ToLower(s) {
		return id, false
	}
	_, err := hex.Decode(id[:], slices.Concat([]byte(s[:8]), []byte(s[9:13]), []byte(s[14:18]), []byte(s[19:23]), []byte(s[24:])))
	return id, err == nil
}

func formatUUID(id [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}
