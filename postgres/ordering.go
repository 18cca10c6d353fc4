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
// claims for their webhook, or Due, finds a place for them behind those that are there by then.

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

// placeEntries gives turns to what hosts have left unplaced, in the order of the events. A batch of numbers is as much as it can give.
const placeEntries = `WITH gone AS (
		DELETE FROM posthorn.queue WHERE ctid = ANY (ARRAY(
			SELECT q.ctid FROM (SELECT DISTINCT webhook, ordering FROM unnest($1::bigint[], $2::bigint[]) AS g (webhook, ordering)) g
			CROSS JOIN LATERAL (SELECT q.ctid FROM posthorn.queue q WHERE q.webhook = g.webhook AND q.node = -1 AND q.ordering = g.ordering
				ORDER BY q.event LIMIT 65535) q))
		RETURNING event, webhook, run, attempt, trigger, due_at, ordering
	)
	INSERT INTO posthorn.queue (event, webhook, run, attempt, trigger, due_at, node, ordering, turn)
	SELECT event, webhook, run, attempt, trigger, due_at, 0, ordering,
		(SELECT nextval('posthorn.event_seq')) + row_number() OVER (PARTITION BY webhook, ordering ORDER BY event)
	FROM gone`

// place is the first of a transaction's statements on the queue, behind lock: what the transaction adds comes after what others have.
func (o *orderings) place(q *batch) {
	if len(o.webhooks) > 0 {
		q.queue(placeEntries, o.webhooks, o.numbers)
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

// selectUnplaced looks for entries that hosts' transactions have left unplaced.
const selectUnplaced = "SELECT DISTINCT webhook FROM posthorn.queue WHERE node = -1 LIMIT 512"

// selectUnplacedOf is the same for some webhooks.
const selectUnplacedOf = `SELECT w.seq FROM unnest($1::bigint[]) AS w (seq)
	WHERE (SELECT 1 FROM posthorn.queue q WHERE q.webhook = w.seq AND q.node = -1 LIMIT 1) IS NOT NULL`

// place puts the unplaced entries of some webhooks behind others, or lets them be claimed.
func (s *Store) place(ctx context.Context, webhooks []int64) error {
	var o orderings
	err := s.write(ctx, func(ctx context.Context, t *transaction) error {
		o = orderings{}
		err := t.run(ctx, func(b *batch) {
			lockOrderings(b, webhooks)
			b.queue("SELECT DISTINCT webhook, ordering FROM posthorn.queue WHERE node = -1 AND webhook = ANY ($1::bigint[])", webhooks).
				Query(func(rows pgx.Rows) error {
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
			o.place(b)
			o.advance(b, &s.lanes)
		})
	})
	if err == nil {
		o.tell(&s.lanes)
	}
	return err
}
