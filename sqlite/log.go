package sqlite

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/musehub/posthorn"
	"zombiezen.com/go/sqlite"
)

const eventColumns = "seq, id, repo_id, type, created_at, deliveries, attributes, length(payload)"

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
	err = s.read(ctx, func(c *sqlite.Conn) error {
		var newest int64
		_, err := queryRow(c, func(st *sqlite.Stmt) { page.Total, newest = st.ColumnInt64(0), st.ColumnInt64(1) },
			"SELECT events, newest FROM posthorn_repos WHERE repo_id = ?", q.RepoID)
		if err != nil {
			return err
		}
		budget := pageBudget{}
		events := walk{c: c, table: "posthorn_events", owner: "repo_id", of: q.RepoID, columns: ", length(payload), created_at"}
		page.Next, err = events.from(newest, q.Before, func(seq int64, st *sqlite.Stmt) (bool, error) {
			if !q.Until.IsZero() && st.ColumnInt64(2) >= ceilMicros(q.Until) {
				return true, nil
			}
			if len(page.Items) == limit || !budget.takes(st.ColumnInt(1)) {
				return false, nil
			}
			e, err := eventBySeq(c, seq)
			if err == nil {
				page.Items = append(page.Items, *e)
			}
			return true, err
		})
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
	var invalid error
	found, err := queryRow(c, func(st *sqlite.Stmt) { e, invalid = scanEvent(st) }, "SELECT "+eventColumns+" FROM posthorn_events WHERE seq = ?", seq)
	if err == nil && !found {
		err = fmt.Errorf("event number %d is gone while the queue has entries of it", seq)
	}
	return &e, cmp.Or(err, invalid)
}

func scanEvent(st *sqlite.Stmt) (posthorn.AcceptedEvent, error) {
	attributes, err := posthorn.DecodeAttributes(st.ColumnText(6))
	return posthorn.AcceptedEvent{
		Attributes: attributes,
		Seq:        st.ColumnInt64(0),
		ID:         st.ColumnText(1),
		RepoID:     st.ColumnText(2),
		Type:       st.ColumnText(3),
		CreatedAt:  timeOf(st.ColumnInt64(4)),
		Deliveries: st.ColumnInt(5),
	}, err
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
	newest  int64
	budget  pageBudget
	page    *posthorn.Page[posthorn.Delivery]
}

func (l *listing) list() error {
	if l.q.EventID != "" {
		if done, err := l.listEvent(); done || err != nil {
			return err
		}
	}
	counted, err := l.total()
	if err != nil {
		return err
	}
	log := walk{c: l.c, table: "posthorn_deliveries", owner: "webhook", of: l.webhook, columns: loggedColumns}
	if !counted {
		rest, err := log.from(l.newest, 0, func(_ int64, st *sqlite.Stmt) (bool, error) {
			if l.matches(scanLogged(st)) {
				l.page.Total++
			}
			return true, nil
		})
		if err != nil {
			return err
		}
		l.page.TotalCapped = rest != 0
	}
	l.page.Next, err = log.from(l.newest, l.q.Before, func(seq int64, st *sqlite.Stmt) (bool, error) {
		if !l.matches(scanLogged(st)) {
			return true, nil
		}
		return l.add(seq)
	})
	return err
}

// matches reports whether a row passes the filters.
func (l *listing) matches(d logged) bool {
	return (l.q.Success == nil || *l.q.Success == d.success) &&
		(l.q.EventType == "" || l.q.EventType == d.eventType) &&
		(l.q.EventID == "" || l.q.EventID == d.eventID) &&
		(l.q.Since.IsZero() || d.deliveredAt >= ceilMicros(l.q.Since)) &&
		(l.q.Until.IsZero() || d.deliveredAt < ceilMicros(l.q.Until))
}

// filtered reports whether there is a filter, besides that of success.
func (l *listing) filtered() bool {
	return l.q.EventType != "" || l.q.EventID != "" || !l.q.Since.IsZero() || !l.q.Until.IsZero()
}

// ceilMicros rounds up, so that comparing with stored times, which were rounded down, gives what comparing with the
// time itself would.
func ceilMicros(t time.Time) int64 {
	return t.Add(time.Microsecond - 1).UnixMicro()
}

// add adds a row to the page, or reports false when the page is full.
func (l *listing) add(seq int64) (ok bool, err error) {
	if len(l.page.Items) == pageLimit(l.q.Limit) {
		return false, nil
	}
	err = query(l.c, func(st *sqlite.Stmt) error {
		if ok = l.budget.takes(st.ColumnInt(14)); !ok {
			return nil
		}
		d, err := scanDelivery(l.c, st, l.q.WebhookID)
		l.page.Items = append(l.page.Items, d)
		return err
	}, "SELECT "+deliveryColumns+" FROM posthorn_deliveries d WHERE d.seq = ?", seq)
	return ok, err
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
	var matching []int64
	err = query(l.c, func(st *sqlite.Stmt) error {
		if st.ColumnInt64(5) == l.webhook && l.matches(scanLogged(st)) {
			matching = append(matching, st.ColumnInt64(0))
		}
		return nil
	}, "SELECT seq"+loggedColumns+", webhook FROM posthorn_deliveries WHERE id >= ? AND id < ?", from, to)
	if err != nil {
		return false, err
	}
	slices.Sort(matching)
	l.page.Total = int64(len(matching))
	for _, seq := range slices.Backward(matching) {
		if seq >= before(l.q.Before) {
			continue
		}
		if ok, err := l.add(seq); err != nil {
			return false, err
		} else if !ok {
			l.page.Next = l.page.Items[len(l.page.Items)-1].Seq
			break
		}
	}
	return true, nil
}

// idsFrom returns where the ids of a millisecond begin.
func idsFrom(ms uint64) []byte {
	return binary.BigEndian.AppendUint64(nil, ms<<16)
}

// total takes the listing's total from the counters, where they have it.
func (l *listing) total() (bool, error) {
	var succeeded, failed int64
	_, err := queryRow(l.c, func(st *sqlite.Stmt) {
		l.newest, succeeded, failed = st.ColumnInt64(0), st.ColumnInt64(1), st.ColumnInt64(2)
	},
		"SELECT newest, succeeded, failed FROM posthorn_logs WHERE webhook = ?", l.webhook)
	switch {
	case err != nil || l.filtered():
		return false, err
	case l.q.Success == nil:
		l.page.Total = succeeded + failed
	case *l.q.Success:
		l.page.Total = succeeded
	default:
		l.page.Total = failed
	}
	return true, nil
}
