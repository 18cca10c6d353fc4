package postgres

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// Of the entries of one ordering ([posthorn.Target]) one can be claimed, and the others stand behind it: in the columns of the queue
// as if node 0 had them. Whoever adds or settles some of them lets the next one go on, in the same transaction. Two that do so at a
// time could each take the other's entry for the one whose turn it is, or for one that is still there; therefore a lock lets them
// do it one after the other.
//
// Their order is that of their turns, which are numbers that ascend under the lock. So all that comes is behind all that was there, and
// all before the one that can be claimed is gone for ever. That matters while some session keeps a transaction open and the dead rows stay
// in the indexes: the store remembers of each ordering whose turn it was last, and looks from there, as it does with lanes.
//
// A host's transaction must not hold that lock, because it may stay open for long. It leaves its entries unplaced, without a turn, and who
// claims for their webhook, or Due, finds a place for them behind those that are there by then. Nor may who does that hold it for long: each
// time only so many get their place, and the others the next time, behind what came meanwhile.

// orderings are those of which a transaction adds or settles entries, and what it has found out about them.
type orderings struct {
	webhooks, numbers []int64
	at                time.Time // when that was
	found             []turn
}

// turn is the entry of an ordering that can be claimed, or is leased.
type turn struct {
	orderingKey
	turn int64
	due  *time.Time // of one that can be claimed from now on; otherwise nil
}

type orderingKey struct{ webhook, number int64 }

func (o *orderings) add(webhook, number int64) {
	if number != 0 {
		o.webhooks, o.numbers = append(o.webhooks, webhook), append(o.numbers, number)
	}
}

// orderingLocks is how many locks there are for all webhooks together. A transaction may have to do with many webhooks, and the server has
// room for some thousand locks in all.
const orderingLocks = 64

// lock waits for others with the same webhooks. It comes before the statements that have to see what those have done.
func (o *orderings) lock(q *batch) {
	lockOrderings(q, o.webhooks)
}

func lockOrderings(q *batch, webhooks []int64) {
	if len(webhooks) == 0 {
		return
	}
	locks := make([]int32, len(webhooks))
	for i, webhook := range webhooks {
		locks[i] = int32(webhook % orderingLocks)
	}
	slices.Sort(locks) // so that of two one waits for the other, and not both
	q.queue("SELECT pg_advisory_xact_lock('posthorn.queue'::regclass::oid::integer, g) FROM unnest($1::integer[]) AS g", slices.Compact(locks))
}

// placesAtOnce is how many entries one transaction places. That takes it about a tenth of a second.
const placesAtOnce = 8192

// placeEntries gives turns to what hosts have left unplaced, in the order of the events: up to $3 of each ordering, and $4 in all. They are
// fewer than a batch of numbers has.
const placeEntries = `WITH gone AS (
		DELETE FROM posthorn.queue WHERE ctid = ANY (ARRAY(
			SELECT q.ctid FROM (SELECT DISTINCT webhook, ordering FROM unnest($1::bigint[], $2::bigint[]) AS g (webhook, ordering)) g
			CROSS JOIN LATERAL (SELECT q.ctid FROM posthorn.queue q WHERE q.webhook = g.webhook AND q.node = -1 AND q.ordering = g.ordering
				ORDER BY q.event LIMIT $3) q LIMIT $4))
		RETURNING event, webhook, run, attempt, trigger, due_at, ordering
	)
	INSERT INTO posthorn.queue (event, webhook, run, attempt, trigger, due_at, node, ordering, turn)
	SELECT event, webhook, run, attempt, trigger, due_at, 0, ordering,
		(SELECT nextval('posthorn.event_seq')) + row_number() OVER (PARTITION BY webhook, ordering ORDER BY event)
	FROM gone`

// place is the first of a transaction's statements on the queue, behind lock: what the transaction adds comes after what others have.
func (o *orderings) place(q *batch) { o.placeEach(q, placesAtOnce) }

func (o *orderings) placeEach(q *batch, limit int) {
	if len(o.webhooks) > 0 {
		q.queue(placeEntries, o.webhooks, o.numbers, limit, placesAtOnce)
	}
}

// advanceOrderings lets the first entry of each ordering be claimed, unless one of it can be, or is leased. It looks from a turn on. It
// returns whose turn it is now.
const advanceOrderings = `WITH given AS MATERIALIZED (
		SELECT DISTINCT webhook, ordering, turn FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS g (webhook, ordering, turn)
	), found AS MATERIALIZED (
		SELECT g.*, (SELECT q.turn FROM posthorn.queue q WHERE q.webhook = g.webhook AND q.ordering = g.ordering AND q.ordering <> 0
			AND (q.node IS NULL OR q.node > 0) AND q.turn >= g.turn ORDER BY q.turn LIMIT 1) AS now
		FROM given g
	), next AS (
		UPDATE posthorn.queue SET node = NULL WHERE ctid = ANY (ARRAY(
			SELECT q.ctid FROM found g CROSS JOIN LATERAL (
				SELECT q.ctid FROM posthorn.queue q
				WHERE q.webhook = g.webhook AND q.ordering = g.ordering AND q.ordering <> 0 AND q.node = 0 AND q.turn >= g.turn
				ORDER BY q.turn LIMIT 1) q
			WHERE g.now IS NULL))
		RETURNING webhook, ordering, turn, due_at
	)
	SELECT webhook, ordering, turn, due_at FROM next
	UNION ALL SELECT webhook, ordering, now, NULL FROM found WHERE now IS NOT NULL`

// advance is the last of a transaction's statements on the queue.
func (o *orderings) advance(q *batch, lanes *lanes) {
	if len(o.webhooks) == 0 {
		return
	}
	o.at = time.Now()
	q.queue(advanceOrderings, o.webhooks, o.numbers, lanes.turnsOf(o)).Query(func(rows pgx.Rows) error {
		var t turn
		_, err := pgx.ForEachRow(rows, []any{&t.webhook, &t.number, &t.turn, &t.due}, func() error {
			o.found = append(o.found, t)
			return nil
		})
		return err
	})
}

// tell is for after the commit: a claim that looked from the beginning before it would see nothing, and nobody would look again.
func (o *orderings) tell(lanes *lanes) {
	for _, t := range o.found {
		if t.due != nil {
			lanes.freed(t.webhook, *t.due)
		}
	}
	lanes.setTurns(o)
}

// placeFor is for how many webhooks one look places entries.
const placeFor = 512

// selectUnplaced visits the webhooks for which hosts' transactions have left entries unplaced, as queuedWebhooks does.
const selectUnplaced = `WITH RECURSIVE unplaced (seq, n) AS (
		SELECT $1::bigint, 0
		UNION ALL
		SELECT (SELECT q.webhook FROM posthorn.queue q WHERE q.node = -1 AND q.webhook > p.seq ORDER BY q.webhook LIMIT 1), p.n + 1
		FROM unplaced p WHERE p.seq IS NOT NULL AND p.n < $2
	)
	SELECT seq FROM unplaced WHERE n > 0 AND seq IS NOT NULL`

// selectUnplacedOf is the same for some webhooks.
const selectUnplacedOf = `SELECT w.seq FROM unnest($1::bigint[]) AS w (seq)
	WHERE (SELECT 1 FROM posthorn.queue q WHERE q.webhook = w.seq AND q.node = -1 LIMIT 1) IS NOT NULL`

// selectUnplacedOrderings looks for the orderings of the first $2 unplaced entries of each webhook.
const selectUnplacedOrderings = `SELECT DISTINCT w.seq, q.ordering FROM unnest($1::bigint[]) AS w (seq)
	CROSS JOIN LATERAL (SELECT q.ordering FROM posthorn.queue q WHERE q.webhook = w.seq AND q.node = -1 ORDER BY q.ordering LIMIT $2) q`

// place puts unplaced entries of some webhooks behind others, or lets them be claimed. Each webhook has its share of those that it can place
// at once, so that one with many holds up no other.
func (s *Store) place(ctx context.Context, webhooks []int64) error {
	share := max(1, placesAtOnce/2/len(webhooks)) // half: of the last of its orderings, a webhook may have as many again
	var o orderings
	err := s.write(ctx, func(ctx context.Context, t *transaction) error {
		o = orderings{}
		err := t.run(ctx, func(b *batch) {
			lockOrderings(b, webhooks)
			b.queue(selectUnplacedOrderings, webhooks, share).Query(func(rows pgx.Rows) error {
				var webhook, number int64
				_, err := pgx.ForEachRow(rows, []any{&webhook, &number}, func() error {
					o.add(webhook, number)
					return nil
				})
				return err
			})
		})
		if err != nil {
			return err
		}
		return t.run(ctx, func(b *batch) {
			o.placeEach(b, share)
			o.advance(b, &s.lanes)
		})
	})
	if err == nil {
		o.tell(&s.lanes)
	}
	return err
}
