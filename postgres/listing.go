package postgres

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/musehub/posthorn"
)

// Deliveries implements [posthorn.Store].
func (s *Store) Deliveries(ctx context.Context, q posthorn.DeliveryQuery) (page posthorn.Page[posthorn.Delivery], err error) {
	if !storable(q.RepoID, q.WebhookID) {
		return page, errNoWebhook()
	}
	err = s.read(ctx, func(ctx context.Context, t *transaction) error {
		var w posthorn.Webhook
		if err := t.run(ctx, func(b *batch) { selectWebhook(b, q.RepoID, q.WebhookID, "", &w) }); err != nil {
			return err
		}
		if !storable(q.EventType, q.EventID) {
			return nil // nothing is like that
		}
		l := listing{t: t, q: q, webhook: w.Seq, page: &page}
		return l.list(ctx)
	})
	if err != nil {
		return posthorn.Page[posthorn.Delivery]{}, err
	}
	return page, nil
}

// listing makes one page of a webhook's log.
type listing struct {
	t       *transaction
	q       posthorn.DeliveryQuery
	webhook int64
	page    *posthorn.Page[posthorn.Delivery]
}

// condition is the rows of a listing: SQL for a WHERE clause, and its arguments.
type condition struct {
	where string
	args  []any
}

// and returns the condition with another one, whose %s stands for the argument.
func (c condition) and(where string, arg any) condition {
	args := slices.Concat(c.args, []any{arg})
	where = fmt.Sprintf(where, fmt.Sprintf("$%d", len(args)))
	if c.where != "" {
		where = c.where + " AND " + where
	}
	return condition{where, args}
}

func (l *listing) list(ctx context.Context) error {
	log := condition{}.and("d.webhook = %s", l.webhook)
	filtered := l.filter(log)
	if l.q.EventID != "" {
		if done, err := l.listEvent(ctx); done || err != nil {
			return err
		}
	}
	if err := l.total(ctx, log, filtered); err != nil {
		return err
	}
	// A filtered page ends at stop, a row that is not examined any more. A page without filters ends by itself.
	stop := int64(0)
	if len(filtered.args) > len(log.args) {
		var err error
		if stop, err = l.rowAfter(ctx, log, before(l.q.Before), posthorn.MaxScan); err != nil {
			return err
		}
	}
	if err := l.fill(ctx, filtered.and("d.seq > %s", stop), "d.seq"); err != nil {
		return err
	}
	if l.page.Next == 0 && stop != 0 {
		l.page.Next = stop + 1
	}
	return nil
}

// filter adds the query's filters to a condition.
func (l *listing) filter(c condition) condition {
	if l.q.Success != nil {
		c = c.and("d.success = %s", *l.q.Success)
	}
	if l.q.EventType != "" {
		c = c.and("d.event_type = %s", l.q.EventType)
	}
	if l.q.EventID != "" {
		c = c.and("d.event_id = %s", l.q.EventID)
	}
	if !l.q.Since.IsZero() {
		c = c.and("d.delivered_at >= %s", ceilMicros(l.q.Since))
	}
	if !l.q.Until.IsZero() {
		c = c.and("d.delivered_at < %s", ceilMicros(l.q.Until))
	}
	return c
}

// ceilMicros rounds up, so that comparing with stored times, which were rounded down, gives what comparing with the
// time itself would.
func ceilMicros(t time.Time) time.Time { return micros(t.Add(time.Microsecond - 1)) }

// fill adds the rows of the page from the newest on. The order is by d.seq, or by an expression of that value.
func (l *listing) fill(ctx context.Context, c condition, order string) error {
	limit := pageLimit(l.q.Limit)
	c = c.and("d.seq < %s", before(l.q.Before))
	var found []loggedDelivery
	err := l.t.run(ctx, func(b *batch) {
		b.queue(fmt.Sprintf("SELECT %s FROM posthorn.deliveries d WHERE %s ORDER BY %s DESC LIMIT $%d",
			deliveryColumns, c.where, order, len(c.args)+1),
			append(c.args, limit+1)...).Query(func(rows pgx.Rows) error {
			budget := pageBudget{}
			for rows.Next() {
				d, err := scanDelivery(rows, l.q.WebhookID)
				if err != nil {
					return err
				}
				if len(found) == limit || !budget.takes(d.size) {
					l.page.Next = found[len(found)-1].Seq
					return nil
				}
				found = append(found, d)
			}
			return nil
		})
	})
	if err != nil || len(found) == 0 {
		return err
	}
	events := make([]int64, len(found))
	for i := range found {
		events[i] = found[i].event
	}
	payloads, err := payloads(ctx, l.t, events)
	if err != nil {
		return err
	}
	for _, d := range found {
		d.Payload = payloads[d.event]
		l.page.Items = append(l.page.Items, d.Delivery)
	}
	return nil
}

// listEvent lists the deliveries of one event by the time that their ids share with it. It reports false when the event
// is unknown, because it has been pruned, or so many others share its time that the log itself is as good a place to look.
func (l *listing) listEvent(ctx context.Context) (bool, error) {
	var createdAt *time.Time
	err := l.t.run(ctx, func(b *batch) {
		b.queue("SELECT created_at FROM posthorn.events WHERE id = $1 AND repo_id = $2", l.q.EventID, l.q.RepoID).
			QueryRow(func(row pgx.Row) error { return found(row.Scan(&createdAt), nil) })
	})
	if err != nil || createdAt == nil {
		return false, err
	}
	ms := createdAt.UnixMilli()
	sameTime := condition{}.and("d.id >= %s", idsFrom(ms)).and("d.id < %s", idsFrom(ms+1))
	c := l.filter(sameTime.and("d.webhook + 0 = %s", l.webhook)) // not by the index of the log, which may be long
	many := false
	var total int64
	err = l.t.run(ctx, func(b *batch) {
		b.queue(fmt.Sprintf("SELECT true FROM posthorn.deliveries d WHERE %s OFFSET %d LIMIT 1", sameTime.where, posthorn.MaxScan), sameTime.args...).
			QueryRow(func(row pgx.Row) error { return found(row.Scan(&many), nil) })
	})
	if err != nil || many {
		return false, err
	}
	err = l.t.run(ctx, func(b *batch) {
		b.queue("SELECT count(*) FROM posthorn.deliveries d WHERE "+c.where, c.args...).
			QueryRow(func(row pgx.Row) error { return row.Scan(&total) })
	})
	if err != nil {
		return false, err
	}
	l.page.Total = total
	return true, l.fill(ctx, c, "d.seq + 0") // no index has that: it keeps the planner from reading the log in its order
}

// idsFrom returns where the ids of a millisecond begin.
func idsFrom(ms int64) pgtype.UUID {
	id := pgtype.UUID{Valid: true}
	binary.BigEndian.PutUint64(id.Bytes[:8], uint64(ms)<<16)
	return id
}

// total counts the listing: by counters, where the filter has them, and else in the newest rows.
func (l *listing) total(ctx context.Context, log, filtered condition) error {
	filters := len(filtered.args) - len(log.args)
	if filters == 0 || filters == 1 && l.q.Success != nil {
		var succeeded, failed int64
		err := l.t.run(ctx, func(b *batch) {
			b.queue(totalsOfLog, l.webhook).QueryRow(func(row pgx.Row) error { return row.Scan(&succeeded, &failed) })
		})
		if err != nil {
			return err
		}
		if filters == 0 || *l.q.Success {
			l.page.Total += succeeded
		}
		if filters == 0 || !*l.q.Success {
			l.page.Total += failed
		}
		return nil
	}
	stop, err := l.rowAfter(ctx, log, before(0), posthorn.MaxScan)
	if err != nil {
		return err
	}
	l.page.TotalCapped = stop != 0
	c := filtered.and("d.seq > %s", stop)
	return l.t.run(ctx, func(b *batch) {
		b.queue("SELECT count(*) FROM posthorn.deliveries d WHERE "+c.where, c.args...).
			QueryRow(func(row pgx.Row) error { return row.Scan(&l.page.Total) })
	})
}

// rowAfter returns the row that comes n rows after the newest one before the given seq, zero if the log ends sooner.
func (l *listing) rowAfter(ctx context.Context, log condition, seq int64, n int) (row int64, err error) {
	c := log.and("d.seq < %s", seq)
	err = l.t.run(ctx, func(b *batch) {
		b.queue(fmt.Sprintf("SELECT d.seq FROM posthorn.deliveries d WHERE %s ORDER BY d.seq DESC OFFSET %d LIMIT 1", c.where, n), c.args...).
			QueryRow(func(r pgx.Row) error { return found(r.Scan(&row), nil) })
	})
	return row, err
}
