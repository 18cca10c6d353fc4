package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/musehub/posthorn"
)

const eventColumns = "e.seq, e.id, e.repo_id, e.type, e.created_at, e.deliveries, e.attributes"

// selectEvents reads a page of a repo's events. With an equality the planner could as well read all repos' events in the order
// of their numbers, and would where it believes that there are few repos.
const selectEvents = "SELECT " + eventColumns + `, octet_length(e.payload) FROM posthorn.events e
	WHERE (e.repo_id, e.seq) < ($1, $2) AND e.repo_id >= $1 ORDER BY e.repo_id DESC, e.seq DESC LIMIT $3`

// Event implements [posthorn.Store].
func (s *Store) Event(ctx context.Context, repoID, id string) (e posthorn.AcceptedEvent, err error) {
	if !storable(repoID, id) {
		return e, errNoEvent()
	}
	err = s.get(ctx, func(b *batch) {
		b.queue("SELECT "+eventColumns+", e.payload FROM posthorn.events e WHERE e.id = $1 AND e.repo_id = $2", id, repoID).
			QueryRow(func(row pgx.Row) error {
				var payload []byte
				err := row.Scan(append(eventFields(&e), &payload)...)
				e.CreatedAt, e.Payload = e.CreatedAt.UTC(), payload
				return found(err, errNoEvent())
			})
	})
	return e, err
}

// Events implements [posthorn.Store].
func (s *Store) Events(ctx context.Context, q posthorn.EventQuery) (page posthorn.Page[posthorn.AcceptedEvent], err error) {
	if !storable(q.RepoID) {
		return page, nil
	}
	limit := pageLimit(q.Limit)
	err = s.read(ctx, func(ctx context.Context, t *transaction) error {
		err := t.run(ctx, func(b *batch) {
			b.queue(totalOfEvents, q.RepoID).QueryRow(func(row pgx.Row) error { return row.Scan(&page.Total) })
			b.queue(selectEvents, q.RepoID, before(q.Before), limit+1).Query(func(rows pgx.Rows) error {
				budget := pageBudget{}
				last := int64(0)
				for n := 0; rows.Next(); n++ {
					var e posthorn.AcceptedEvent
					var size int
					if err := rows.Scan(append(eventFields(&e), &size)...); err != nil {
						return err
					}
					wanted := q.Until.IsZero() || e.CreatedAt.Before(q.Until)
					if n == limit || wanted && !budget.takes(size) {
						page.Next = last
						return nil
					}
					last = e.Seq
					if wanted {
						e.CreatedAt = e.CreatedAt.UTC()
						page.Items = append(page.Items, e)
					}
				}
				return nil
			})
		})
		if err != nil {
			return err
		}
		seqs := make([]int64, len(page.Items))
		for i := range page.Items {
			seqs[i] = page.Items[i].Seq
		}
		payloads, err := payloads(ctx, t, seqs)
		for i := range page.Items {
			page.Items[i].Payload = payloads[page.Items[i].Seq]
		}
		return err
	})
	if err != nil {
		return posthorn.Page[posthorn.AcceptedEvent]{}, err
	}
	return page, nil
}

func errNoEvent() error {
	return posthorn.Errorf(posthorn.CodeNotFound, "Event not found")
}

// eventFields is where eventColumns are scanned to.
func eventFields(e *posthorn.AcceptedEvent) []any {
	return []any{&e.Seq, &e.ID, &e.RepoID, &e.Type, &e.CreatedAt, &e.Deliveries, (*attributes)(&e.Attributes)}
}

// attributes are those of an event, as a column.
type attributes posthorn.Attributes

// Scan implements [sql.Scanner].
func (a *attributes) Scan(column any) error {
	text, _ := column.(string)
	decoded, err := posthorn.DecodeAttributes(text)
	*a = attributes(decoded)
	return err
}

// payloads returns the payloads of events, as far as they have not been pruned.
func payloads(ctx context.Context, t *transaction, events []int64) (map[int64]json.RawMessage, error) {
	payloads := make(map[int64]json.RawMessage, len(events))
	if len(events) == 0 {
		return payloads, nil
	}
	err := t.run(ctx, func(b *batch) {
		b.queue("SELECT seq, payload FROM posthorn.events WHERE seq = ANY ($1::bigint[])", events).Query(func(rows pgx.Rows) error {
			for rows.Next() {
				var seq int64
				var payload []byte
				if err := rows.Scan(&seq, &payload); err != nil {
					return err
				}
				payloads[seq] = payload
			}
			return nil
		})
	})
	return payloads, err
}

// pageBudget keeps a page within [posthorn.MaxPageBytes].
type pageBudget struct{ used int }

// takes reports whether an item fits; the first always does.
func (b *pageBudget) takes(size int) bool {
	first := b.used == 0
	b.used += size
	return first || b.used <= posthorn.MaxPageBytes
}

// pageLimit and before replace what a query leaves open.
func pageLimit(limit int) int {
	if limit <= 0 {
		return posthorn.MaxScan
	}
	return limit
}

func before(seq int64) int64 {
	if seq <= 0 {
		return 1<<63 - 1
	}
	return seq
}

const deliveryColumns = `d.seq, d.id, d.event, d.event_id, d.event_type, d.success, d.delivered_at, d.next_attempt_at,
	d.trigger, d.run, d.attempt, d.status, d.body, d.exchange,
	coalesce((SELECT octet_length(e.payload) FROM posthorn.events e WHERE e.seq = d.event), 0)`

// loggedDelivery is a row of the log, whose payload has not been read yet.
type loggedDelivery struct {
	posthorn.Delivery
	event int64
	size  int // of the payload
}

func scanDelivery(row pgx.Row, webhookID string) (d loggedDelivery, err error) {
	var id pgtype.UUID
	var next *time.Time
	var body, exchange []byte
	err = row.Scan(&d.Seq, &id, &d.event, &d.EventID, &d.EventType, &d.Success, &d.DeliveredAt, &next,
		&d.Trigger, &d.Run, &d.Attempt, &d.ResponseStatus, &body, &exchange, &d.size)
	if err != nil {
		return d, err
	}
	d.ID, d.WebhookID, d.ResponseBody = formatUUID(id.Bytes), webhookID, string(body)
	d.DeliveredAt = d.DeliveredAt.UTC()
	if next != nil {
		d.NextAttemptAt = next.UTC()
	}
	if err := json.Unmarshal(exchange, &d.Exchange); err != nil {
		return d, fmt.Errorf("the exchange of delivery %s: %w", d.ID, err)
	}
	return d, nil
}

// Delivery implements [posthorn.Store].
func (s *Store) Delivery(ctx context.Context, repoID, webhookID, id string) (posthorn.Delivery, error) {
	if !storable(repoID, webhookID) {
		return posthorn.Delivery{}, errNoWebhook()
	}
	var d loggedDelivery
	err := s.read(ctx, func(ctx context.Context, t *transaction) error {
		var w posthorn.Webhook
		if err := t.run(ctx, func(b *batch) { selectWebhook(b, repoID, webhookID, "", &w) }); err != nil {
			return err
		}
		notFound := posthorn.Errorf(posthorn.CodeNotFound, "Delivery not found")
		key, ok := parseUUID(id)
		if !ok {
			return notFound
		}
		err := t.run(ctx, func(b *batch) {
			b.queue("SELECT "+deliveryColumns+" FROM posthorn.deliveries d WHERE d.id = $1 AND d.webhook = $2",
				pgtype.UUID{Bytes: key, Valid: true}, w.Seq,
			).QueryRow(func(row pgx.Row) (err error) {
				d, err = scanDelivery(row, webhookID)
				return found(err, notFound)
			})
		})
		if err != nil {
			return err
		}
		payloads, err := payloads(ctx, t, []int64{d.event})
		d.Payload = payloads[d.event]
		return err
	})
	if err != nil {
		return posthorn.Delivery{}, err
	}
	return d.Delivery, nil
}
