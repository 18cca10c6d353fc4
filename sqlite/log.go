package sqlite

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"

	"github.com/musehub/posthorn"
	"zombiezen.com/go/sqlite"
)

const eventColumns = "seq, id, repo_id, type, created_at, deliveries, length(payload)"

// Event implements [posthorn.Store].
func (s *Store) Event(ctx context.Context, repoID, id string) (e posthorn.AcceptedEvent, err error) {
	err = s.read(ctx, func(c *sqlite.Conn) error {
		seq, err := queryInt(c, "SELECT seq FROM posthorn_events WHERE id = ? AND repo_id = ?", id, repoID)
		if err != nil {
			return err
		}
		if seq == 0 {
			return errNoEvent()
		}
		found, err := eventBySeq(c, seq)
		if err == nil {
			e = *found
		}
		return err
	})
	return e, err
}

// Events implements [posthorn.Store].
func (s *Store) Events(ctx context.Context, q posthorn.EventQuery) (page posthorn.Page[posthorn.AcceptedEvent], err error) {
	limit := pageLimit(q.Limit)
	err = s.read(ctx, func(c *sqlite.Conn) (err error) {
		if page.Total, err = queryInt(c, "SELECT events FROM posthorn_repo_counts WHERE repo_id = ?", q.RepoID); err != nil {
			return err
		}
		budget := pageBudget{}
		return query(c, func(st *sqlite.Stmt) error {
			if page.Next != 0 {
				return nil
			}
			if len(page.Items) == limit || !budget.takes(st.ColumnInt(6)) {
				page.Next = page.Items[len(page.Items)-1].Seq
				return nil
			}
			e := scanEvent(st)
			e.Payload, err = payload(c, e.Seq)
			page.Items = append(page.Items, e)
			return err
		}, "SELECT "+eventColumns+" FROM posthorn_events WHERE repo_id = ? AND seq < ? ORDER BY seq DESC LIMIT ?", q.RepoID, before(q.Before), limit+1)
	})
	if err != nil {
		return posthorn.Page[posthorn.AcceptedEvent]{}, err
	}
	return page, nil
}

func errNoEvent() error {
	return posthorn.Errorf(posthorn.CodeNotFound, "Event not found")
}

func eventBySeq(c *sqlite.Conn, seq int64) (*posthorn.AcceptedEvent, error) {
	e, err := eventHead(c, seq)
	if err == nil {
		e.Payload, err = payload(c, seq)
	}
	return e, err
}

// eventHead returns an event without its payload.
func eventHead(c *sqlite.Conn, seq int64) (*posthorn.AcceptedEvent, error) {
	var e posthorn.AcceptedEvent
	found, err := queryRow(c, func(st *sqlite.Stmt) { e = scanEvent(st) }, "SELECT "+eventColumns+" FROM posthorn_events WHERE seq = ?", seq)
	if err == nil && !found {
		err = fmt.Errorf("event number %d is gone while the queue has entries of it", seq)
	}
	return &e, err
}

func scanEvent(st *sqlite.Stmt) posthorn.AcceptedEvent {
	return posthorn.AcceptedEvent{
		Seq:        st.ColumnInt64(0),
		ID:         st.ColumnText(1),
		RepoID:     st.ColumnText(2),
		Type:       st.ColumnText(3),
		CreatedAt:  timeOf(st.ColumnInt64(4)),
		Deliveries: st.ColumnInt(5),
	}
}

// payload returns an event's payload, nil if the event has been pruned.
func payload(c *sqlite.Conn, event int64) (data json.RawMessage, err error) {
	_, err = queryRow(c, func(st *sqlite.Stmt) { data = bytesOf(st, 0) }, "SELECT payload FROM posthorn_events WHERE seq = ?", event)
	return data, err
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
	d.trigger, d.run, d.attempt, d.status, d.body, d.exchange, (SELECT length(e.payload) FROM posthorn_events e WHERE e.seq = d.event)`

// Delivery implements [posthorn.Store].
func (s *Store) Delivery(ctx context.Context, repoID, webhookID, id string) (d posthorn.Delivery, err error) {
	err = s.read(ctx, func(c *sqlite.Conn) error {
		w, err := webhook(c, repoID, webhookID)
		if err != nil {
			return err
		}
		notFound := posthorn.Errorf(posthorn.CodeNotFound, "Delivery not found")
		key, ok := parseUUID(id)
		if !ok {
			return notFound
		}
		found := false
		err = query(c, func(st *sqlite.Stmt) (err error) {
			found = true
			d, err = scanDelivery(c, st, webhookID)
			return err
		}, "SELECT "+deliveryColumns+" FROM posthorn_deliveries d WHERE d.id = ? AND d.webhook = ?", key[:], w.Seq)
		if err == nil && !found {
			return notFound
		}
		return err
	})
	return d, err
}

func scanDelivery(c *sqlite.Conn, st *sqlite.Stmt, webhookID string) (d posthorn.Delivery, err error) {
	d = posthorn.Delivery{
		Seq:            st.ColumnInt64(0),
		ID:             formatUUID(bytesOf(st, 1)),
		WebhookID:      webhookID,
		EventID:        st.ColumnText(3),
		EventType:      st.ColumnText(4),
		Success:        st.ColumnBool(5),
		DeliveredAt:    timeOf(st.ColumnInt64(6)),
		NextAttemptAt:  timeOf(st.ColumnInt64(7)),
		Trigger:        posthorn.Trigger(st.ColumnText(8)),
		Run:            st.ColumnInt64(9),
		Attempt:        st.ColumnInt(10),
		ResponseStatus: st.ColumnInt(11),
		ResponseBody:   st.ColumnText(12),
	}
	if err := json.Unmarshal(bytesOf(st, 13), &d.Exchange); err != nil {
		return d, fmt.Errorf("the exchange of delivery %s: %w", d.ID, err)
	}
	d.Payload, err = payload(c, st.ColumnInt64(2))
	return d, err
}

// Deliveries implements [posthorn.Store].
func (s *Store) Deliveries(ctx context.Context, q posthorn.DeliveryQuery) (page posthorn.Page[posthorn.Delivery], err error) {
	err = s.read(ctx, func(c *sqlite.Conn) error {
		w, err := webhook(c, q.RepoID, q.WebhookID)
		if err != nil {
			return err
		}
		l := listing{c: c, q: q, webhook: w.Seq, page: &page}
		return l.list()
	})
	if err != nil {
		return posthorn.Page[posthorn.Delivery]{}, err
	}
	return page, nil
}

// listing makes one page of a webhook's log.
type listing struct {
	c       *sqlite.Conn
	q       posthorn.DeliveryQuery
	webhook int64
	page    *posthorn.Page[posthorn.Delivery]

	where string // the filters
	args  []any
}

func (l *listing) list() error {
	l.filter()
	if l.q.EventID != "" {
		if done, err := l.listEvent(); done || err != nil {
			return err
		}
	}
	if err := l.total(); err != nil {
		return err
	}
	// A filtered page ends at stop, a row that is not examined any more. A page without filters ends by itself.
	stop := int64(0)
	if l.where != "" {
		var err error
		if stop, err = l.rowAfter(before(l.q.Before), posthorn.MaxScan); err != nil {
			return err
		}
	}
	if err := l.fill("posthorn_deliveries_by_webhook WHERE d.webhook = ? AND d.seq > ?", l.webhook, stop); err != nil {
		return err
	}
	if l.page.Next == 0 && stop != 0 {
		l.page.Next = stop + 1
	}
	return nil
}

// filter translates the query's filters to SQL.
func (l *listing) filter() {
	and := func(condition string, arg any) {
		l.where += " AND d." + condition + " ?"
		l.args = append(l.args, arg)
	}
	if l.q.Success != nil {
		and("success =", *l.q.Success)
	}
	if l.q.EventType != "" {
		and("event_type =", l.q.EventType)
	}
	if l.q.EventID != "" {
		and("event_id =", l.q.EventID)
	}
	if !l.q.Since.IsZero() {
		and("delivered_at >=", ceilMicros(l.q.Since))
	}
	if !l.q.Until.IsZero() {
		and("delivered_at <", ceilMicros(l.q.Until))
	}
}

// ceilMicros rounds up, so that comparing with stored times, which were rounded down, gives what comparing with the
// time itself would.
func ceilMicros(t time.Time) int64 {
	return t.Add(time.Microsecond - 1).UnixMicro()
}

// fill adds the rows of the page from the newest on. The index is named, because walking through another would read the
// whole log.
func (l *listing) fill(rows string, args ...any) error {
	limit := pageLimit(l.q.Limit)
	budget := pageBudget{}
	args = append(append(args, l.args...), before(l.q.Before), limit+1)
	return query(l.c, func(st *sqlite.Stmt) error {
		if l.page.Next != 0 {
			return nil
		}
		if len(l.page.Items) == limit || !budget.takes(st.ColumnInt(14)) {
			l.page.Next = l.page.Items[len(l.page.Items)-1].Seq
			return nil
		}
		d, err := scanDelivery(l.c, st, l.q.WebhookID)
		l.page.Items = append(l.page.Items, d)
		return err
	}, "SELECT "+deliveryColumns+" FROM posthorn_deliveries d INDEXED BY "+rows+l.where+" AND d.seq < ? ORDER BY d.seq DESC LIMIT ?", args...)
}

// listEvent lists the deliveries of one event by the time that their ids share with it. It reports false when the event
// is unknown, because it has been pruned, or so many others share its time that the log itself is as good a place to look.
func (l *listing) listEvent() (bool, error) {
	createdAt := int64(0)
	found, err := queryRow(l.c, func(st *sqlite.Stmt) { createdAt = st.ColumnInt64(0) },
		"SELECT created_at FROM posthorn_events WHERE id = ? AND repo_id = ?", l.q.EventID, l.q.RepoID)
	if err != nil || !found {
		return false, err
	}
	ms := uint64(timeOf(createdAt).UnixMilli())
	from, to := idsFrom(ms), idsFrom(ms+1)
	many, err := queryRow(l.c, func(*sqlite.Stmt) {}, "SELECT 1 FROM posthorn_deliveries WHERE id >= ? AND id < ? LIMIT 1 OFFSET ?", from, to, posthorn.MaxScan)
	if err != nil || many {
		return false, err
	}
	const rows = "posthorn_deliveries_by_id WHERE d.id >= ? AND d.id < ? AND d.webhook = ?"
	args := []any{from, to, l.webhook}
	l.page.Total, err = queryInt(l.c, "SELECT count(*) FROM posthorn_deliveries d INDEXED BY "+rows+l.where, append(args, l.args...)...)
	if err != nil {
		return false, err
	}
	return true, l.fill(rows, args...)
}

// idsFrom returns where the ids of a millisecond begin.
func idsFrom(ms uint64) []byte {
	return binary.BigEndian.AppendUint64(nil, ms<<16)
}

// total counts the listing: by counters, where the filter has them, and else in the newest rows.
func (l *listing) total() error {
	var succeeded, failed int64
	_, err := queryRow(l.c, func(st *sqlite.Stmt) { succeeded, failed = st.ColumnInt64(0), st.ColumnInt64(1) },
		"SELECT succeeded, failed FROM posthorn_delivery_counts WHERE webhook = ?", l.webhook)
	if err != nil {
		return err
	}
	switch onlySuccess := l.q.Success != nil && len(l.args) == 1; {
	case l.where == "":
		l.page.Total = succeeded + failed
		return nil
	case onlySuccess && *l.q.Success:
		l.page.Total = succeeded
		return nil
	case onlySuccess:
		l.page.Total = failed
		return nil
	}
	stop, err := l.rowAfter(before(0), posthorn.MaxScan)
	if err != nil {
		return err
	}
	l.page.TotalCapped = stop != 0
	l.page.Total, err = queryInt(l.c, "SELECT count(*) FROM posthorn_deliveries d INDEXED BY posthorn_deliveries_by_webhook WHERE d.webhook = ? AND d.seq > ?"+l.where,
		append([]any{l.webhook, stop}, l.args...)...)
	return err
}

// rowAfter returns the row that comes n rows after the newest one before the given seq, zero if the log ends sooner.
func (l *listing) rowAfter(seq int64, n int) (int64, error) {
	return queryInt(l.c, "SELECT seq FROM posthorn_deliveries WHERE webhook = ? AND seq < ? ORDER BY seq DESC LIMIT 1 OFFSET ?", l.webhook, seq, n)
}
