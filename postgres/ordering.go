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
// A host's transaction must not hold that lock, because it may stay open for long. It leaves its entries unplaced, and who claims for their
// webhook, or Due, finds a place for them.

// orderings are those of which a transaction adds or settles entries, and what it lets go on.
type orderings struct {
	webhooks, numbers []int64
	freed             []freedEntry
}

type freedEntry struct {
	webhook int64
	due     time.Time
}

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

// advanceOrderings lets the first entry of each ordering be claimed, unless one of it can be, or is leased.
const advanceOrderings = `UPDATE posthorn.queue SET node = NULL WHERE ctid = ANY (ARRAY(
		SELECT q.ctid FROM (SELECT DISTINCT webhook, ordering FROM unnest($1::bigint[], $2::bigint[]) AS g (webhook, ordering)) g
		CROSS JOIN LATERAL (
			SELECT q.ctid FROM posthorn.queue q
			WHERE q.webhook = g.webhook AND q.ordering = g.ordering AND q.ordering <> 0 AND q.node = 0
			ORDER BY q.event LIMIT 1) q
		WHERE (SELECT 1 FROM posthorn.queue q WHERE q.webhook = g.webhook AND q.ordering = g.ordering AND q.ordering <> 0
			AND (q.node IS NULL OR q.node > 0) LIMIT 1) IS NULL))
	RETURNING webhook, due_at`

// advance is the last of a transaction's statements on the queue. What hosts have left unplaced is placed as well: it may be of an
// earlier event than what is added.
func (o *orderings) advance(q *batch) {
	if len(o.webhooks) == 0 {
		return
	}
	q.queue(`UPDATE posthorn.queue q SET node = 0 FROM unnest($1::bigint[], $2::bigint[]) AS g (webhook, ordering)
		WHERE q.webhook = g.webhook AND q.ordering = g.ordering AND q.node = -1`, o.webhooks, o.numbers)
	q.queue(advanceOrderings, o.webhooks, o.numbers).Query(func(rows pgx.Rows) error {
		var e freedEntry
		_, err := pgx.ForEachRow(rows, []any{&e.webhook, &e.due}, func() error {
			o.freed = append(o.freed, e)
			return nil
		})
		return err
	})
}

// tell is for after the commit: a claim that looked from the beginning before it would see nothing, and nobody would look again.
func (o *orderings) tell(lanes *lanes) {
	for _, e := range o.freed {
		lanes.freed(e.webhook, e.due)
	}
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
		return t.run(ctx, o.advance)
	})
	if err == nil {
		o.tell(&s.lanes)
	}
	return err
}
