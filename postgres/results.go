package postgres

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
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

	// What becomes of entries, in the order of their keys, so that of two commits one waits for the other, and not both.
	entries struct {
		events, webhooks, runs []int64
		attempts, next         []int32 // the one that was made, and the one that follows
		due                    []time.Time
		retry                  []*time.Time // nil: it is done
	}
	// What is logged, in the order of the batch.
	logged     []int // the indexes of results
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
	bodies     [][]byte
	exchanges  []string

	seqs  []int64 // by the indexes of results; zero: not logged
	entry []int   // by the indexes of results: where in entries theirs stands
	// otherwise is set when the log had a delivery already, of a node that had the entry before, and says that the entry goes on
	// in another way than its result does. The entry's columns are set to that: the transaction has to start anew.
	otherwise bool
}

func encodeResults(given []posthorn.Result) (*results, error) {
	r := &results{results: given}
	for i := range given {
		if d := given[i].Delivery; d != nil {
			if err := r.addDelivery(i, given[i].Entry, d); err != nil {
				return nil, err
			}
		}
	}
	slices.Sort(r.days)
	r.days = slices.Compact(r.days)
	r.addEntries()
	return r, nil
}

func (r *results) addDelivery(i int, e *posthorn.Entry, d *posthorn.Delivery) error {
	id, ok := parseUUID(d.ID)
	if !ok {
		return posthorn.Errorf(posthorn.CodeInternal, "the delivery id %q is not derived by DeliveryID", d.ID)
	}
	partition, ok := dayOf(id)
	if !ok {
		return posthorn.Errorf(posthorn.CodeInternal, "the delivery id %q is of an impossible time", d.ID)
	}
	exchange := d.Exchange
	exchange.SentAt = micros(exchange.SentAt)
	data, err := json.Marshal(exchange)
	if err != nil {
		return posthorn.Errorf(posthorn.CodeInternal, "the exchange of delivery %s: %w", d.ID, err)
	}
	r.days = append(r.days, partition)
	r.logged = append(r.logged, i)
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
	r.bodies = append(r.bodies, []byte(d.ResponseBody))
	r.exchanges = append(r.exchanges, string(data))
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
	r.entry = make([]int, len(r.results))
	for i := range r.results {
		e := r.results[i].Entry
		k := entryKey{e.Event.Seq, e.WebhookSeq, e.Run, e.Attempt, e.DueAt.UnixMicro()}
		r.entry[i] = -1
		if !seen[k] {
			seen[k] = true
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(i, j int) int {
		a, b := r.results[i].Entry, r.results[j].Entry
		return cmp.Or(cmp.Compare(a.Event.Seq, b.Event.Seq), cmp.Compare(a.WebhookSeq, b.WebhookSeq), cmp.Compare(a.Run, b.Run))
	})
	for at, i := range order {
		r.entry[i] = at
		result := &r.results[i]
		e := result.Entry
		next := e.Attempt
		if result.Delivery != nil {
			next++
		}
		r.entries.events = append(r.entries.events, e.Event.Seq)
		r.entries.webhooks = append(r.entries.webhooks, e.WebhookSeq)
		r.entries.runs = append(r.entries.runs, e.Run)
		r.entries.attempts = append(r.entries.attempts, int32(e.Attempt))
		r.entries.next = append(r.entries.next, int32(next))
		r.entries.due = append(r.entries.due, micros(e.DueAt))
		r.entries.retry = append(r.entries.retry, orNull(result.RetryAt))
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
	r.seqs = make([]int64, len(r.results))
	r.otherwise = false
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
		RETURNING event, webhook, run, attempt, due_at, trigger
	)
	INSERT INTO posthorn.queue (event, webhook, run, attempt, trigger, due_at)
	SELECT g.event, g.webhook, g.run, g.next, gone.trigger, g.retry_at
	FROM gone JOIN given g USING (event, webhook, run, attempt, due_at)
	CROSS JOIN LATERAL (SELECT FROM posthorn.webhooks w WHERE w.seq = g.webhook AND NOT w.deleted OFFSET 0) w
	WHERE g.retry_at IS NOT NULL`

func (r *results) settle(q *batch, node int64) {
	if e := &r.entries; len(e.events) > 0 {
		q.queue(settleEntries, node, e.events, e.webhooks, e.runs, e.attempts, e.due, e.retry, e.next)
	}
}

// logDeliveries takes the numbers in the order of the batch and inserts in that of the ids, as insertEvents does.
const logDeliveries = `WITH given AS MATERIALIZED (
		SELECT nextval('posthorn.delivery_seq') AS seq, g.* FROM (
			SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::boolean[], $7::timestamptz[],
				$8::timestamptz[], $9::text[], $10::bigint[], $11::int[], $12::int[], $13::int[], $14::int[]) WITH ORDINALITY
				AS g (id, webhook, event, event_id, event_type, success, delivered_at, next_attempt_at, trigger, run, attempt, status,
				day, recorded, n) ORDER BY n) g
		CROSS JOIN LATERAL (SELECT FROM posthorn.webhooks w WHERE w.seq = g.webhook AND NOT w.deleted OFFSET 0) w
	), new AS (
		INSERT INTO posthorn.deliveries (seq, id, webhook, event, event_id, event_type, success, delivered_at, next_attempt_at, trigger,
			run, attempt, status, body, exchange)
		SELECT g.seq, g.id, g.webhook, g.event, g.event_id, g.event_type, g.success, g.delivered_at, g.next_attempt_at, g.trigger,
			g.run, g.attempt, g.status, ($15::bytea[])[g.n], ($16::text[])[g.n]
		FROM (SELECT * FROM given ORDER BY id) g
		ON CONFLICT (id) DO NOTHING RETURNING seq
	), logged AS MATERIALIZED (
		SELECT g.* FROM new JOIN given g USING (seq)
	), counted AS (
		INSERT INTO posthorn.delivery_counts (webhook, day, recorded, succeeded, failed)
		SELECT webhook, day, recorded, count(*) FILTER (WHERE success), count(*) FILTER (WHERE NOT success)
		FROM logged GROUP BY webhook, day, recorded
	)
	SELECT n, seq FROM logged`

func (r *results) log(q *batch) {
	if len(r.logged) == 0 {
		return
	}
	q.queue(logDeliveries, r.ids, r.webhooks, r.events, r.eventIDs, r.eventTypes, r.successes, r.at, r.next, r.triggers, r.runs,
		r.attempts, r.statuses, r.partition, r.recorded, r.bodies, r.exchanges,
	).Query(func(rows pgx.Rows) error {
		var n, seq int64
		_, err := pgx.ForEachRow(rows, []any{&n, &seq}, func() error {
			r.seqs[r.logged[n-1]] = seq
			return nil
		})
		return err
	})
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
	q.queue(`SELECT g.n, d.seq, d.next_attempt_at FROM unnest($1::uuid[], $2::bigint[]) WITH ORDINALITY AS g (id, webhook, n)
		CROSS JOIN LATERAL (SELECT d.seq, d.next_attempt_at FROM posthorn.deliveries d WHERE d.id = g.id OFFSET 0) d
		CROSS JOIN LATERAL (SELECT FROM posthorn.webhooks w WHERE w.seq = g.webhook AND NOT w.deleted OFFSET 0) w`, missing, webhooks,
	).Query(func(rows pgx.Rows) error {
		var n, seq int64
		var next *time.Time
		_, err := pgx.ForEachRow(rows, []any{&n, &seq, &next}, func() error {
			i := indexes[n-1]
			r.seqs[i] = seq
			if at := r.entry[i]; at >= 0 && !sameTime(r.entries.retry[at], next) {
				r.otherwise = true
				r.entries.retry[at] = nil
				if next != nil {
					due := *next
					r.entries.retry[at] = &due
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
