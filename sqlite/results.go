package sqlite

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/musehub/posthorn"
	"zombiezen.com/go/sqlite"
)

// result is a [posthorn.Result] on its way into the database.
type result struct {
	*posthorn.Result
	id       []byte    // the delivery's
	exchange string    // JSON
	held     bool      // the node had the entry, and it has been taken from it
	seq      int64     // the delivery's row
	retryAt  time.Time // when the entry is due again
}

func encodeResults(results []posthorn.Result) ([]result, error) {
	encoded := make([]result, len(results))
	for i := range results {
		r := result{Result: &results[i]}
		if d := r.Delivery; d != nil {
			id, ok := parseUUID(d.ID)
			if !ok {
				return nil, posthorn.Errorf(posthorn.CodeInternal, "the delivery id %q is not derived by DeliveryID", d.ID)
			}
			exchange := d.Exchange
			exchange.SentAt = exchange.SentAt.UTC().Truncate(time.Microsecond)
			r.id, r.exchange = id[:], string(exchange.AppendJSON(nil))
		}
		encoded[i] = r
	}
	return encoded, nil
}

var (
	insertDeliveries = newMany(`INSERT INTO posthorn_deliveries (seq, previous, id, webhook, event, event_id, event_type, success, delivered_at,
		next_attempt_at, trigger, run, attempt, status, body, exchange) VALUES `,
		"(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", " ON CONFLICT (id) DO NOTHING")
	selectLogs    = newMany("SELECT webhook, newest FROM posthorn_logs WHERE live AND webhook IN (", "?", ")")
	addDeliveries = newMany("INSERT INTO posthorn_logs (webhook, succeeded, failed, newest) VALUES ", "(?, ?, ?, ?)",
		" ON CONFLICT DO UPDATE SET succeeded = succeeded + excluded.succeeded, failed = failed + excluded.failed, newest = excluded.newest")
)

// recording is the state of recording the results of a batch.
type recording struct {
	c     *sqlite.Conn
	logs  map[int64]*webhookLog
	order []*webhookLog
}

// webhookLog is what a batch adds to a webhook's log.
type webhookLog struct {
	webhook           int64
	live              bool
	newest            int64
	succeeded, failed int64
}

// recordResults logs what was delivered and takes the entries from the queue, or moves them on to their next attempt.
func (s *Store) recordResults(c *sqlite.Conn, node int64, results []result) error {
	if len(results) == 0 {
		return nil
	}
	for i := range results {
		if err := s.takeEntry(c, node, &results[i]); err != nil {
			return err
		}
	}
	r := recording{c: c}
	if err := r.findLogs(results); err != nil {
		return err
	}
	if err := r.logDeliveries(results); err != nil {
		return err
	}
	for i := range results {
		if err := r.retry(&results[i]); err != nil {
			return err
		}
	}
	return addDeliveries.each(c, len(r.order), func(st *sqlite.Stmt, from, size int) error {
		p := params{Stmt: st}
		for _, log := range r.order[from : from+size] {
			p.int(log.webhook)
			p.int(log.succeeded)
			p.int(log.failed)
			p.int(log.newest)
		}
		return run(st)
	})
}

// takeEntry takes the entry of a result from the node, if it has it.
func (s *Store) takeEntry(c *sqlite.Conn, node int64, r *result) (err error) {
	e := r.Entry
	r.retryAt = r.RetryAt
	if e.Held {
		r.held, err = removeHeld(c, e)
		return err
	}
	if e.Queued {
		if r.held, err = removeLeased(c, node, e); err != nil {
			return err
		}
	} else {
		r.held = s.promises.settle(node, e.Event.Seq, e.WebhookSeq)
	}
	if r.held && r.Delivery == nil && r.RetryAt.IsZero() && e.Run == 0 {
		return dropPromised(c, e.Event.Seq, e.WebhookSeq)
	}
	return nil
}

// findLogs reads which webhooks are there still, and what the newest rows of their logs are. Order has only these.
func (r *recording) findLogs(results []result) error {
	r.logs = make(map[int64]*webhookLog, len(results))
	for i := range results {
		webhook := results[i].Entry.WebhookSeq
		if r.logs[webhook] == nil {
			r.logs[webhook] = &webhookLog{webhook: webhook}
			r.order = append(r.order, r.logs[webhook])
		}
	}
	err := selectLogs.each(r.c, len(r.order), func(st *sqlite.Stmt, from, size int) error {
		p := params{Stmt: st}
		for _, log := range r.order[from : from+size] {
			p.int(log.webhook)
		}
		return rows(st, func(st *sqlite.Stmt) error {
			log := r.logs[st.ColumnInt64(0)]
			log.live, log.newest = true, st.ColumnInt64(1)
			return nil
		})
	})
	r.order = slices.DeleteFunc(r.order, func(log *webhookLog) bool { return !log.live })
	return err
}

// logDeliveries adds rows to the log, except those that it has.
func (r *recording) logDeliveries(results []result) error {
	made := make([]*result, 0, len(results))
	for i := range results {
		if results[i].Delivery != nil && r.logs[results[i].Entry.WebhookSeq].live {
			made = append(made, &results[i])
		}
	}
	seq, err := nextNumbers(r.c, "delivery", len(made))
	if err != nil {
		return err
	}
	links := make([]link, len(made))
	for i := range links {
		links[i].seq = seq + int64(i)
	}
	newest := func(i int) *int64 { return &r.logs[made[i].Entry.WebhookSeq].newest }
	err = insertLinks(r.c, insertDeliveries, "posthorn_deliveries", links, newest, func(p *params, i int) { made[i].bind(p) })
	if err != nil {
		return err
	}
	for i, made := range made {
		log := r.logs[made.Entry.WebhookSeq]
		switch {
		case links[i].skipped:
			_, err := queryRow(r.c, func(st *sqlite.Stmt) { made.seq, made.retryAt = st.ColumnInt64(0), timeOf(st.ColumnInt64(1)) },
				"SELECT seq, next_attempt_at FROM posthorn_deliveries WHERE id = ?", made.id)
			if err != nil {
				return err
			}
			continue
		case made.Delivery.Success:
			log.succeeded++
		default:
			log.failed++
		}
		made.seq = links[i].seq
	}
	return nil
}

func (r *result) bind(p *params) {
	d := r.Delivery
	p.bytes(r.id)
	p.int(r.Entry.WebhookSeq)
	p.int(r.Entry.Event.Seq)
	p.text(d.EventID)
	p.text(d.EventType)
	if d.Success {
		p.int(1)
	} else {
		p.int(0)
	}
	p.int(micros(d.DeliveredAt))
	p.int(micros(d.NextAttemptAt))
	p.text(string(d.Trigger))
	p.int(d.Run)
	p.int(int64(d.Attempt))
	p.int(int64(d.ResponseStatus))
	p.text(d.ResponseBody)
	p.text(r.exchange)
}

// retry puts an entry that the node had back into the queue, if it is due again. The log of a webhook that is gone takes no
// more, and its entry is gone too. What is done makes room for the next one of its ordering.
func (r *recording) retry(result *result) error {
	e := result.Entry
	if !result.held || !r.logs[e.WebhookSeq].live {
		return nil
	}
	if result.retryAt.IsZero() {
		return advance(r.c, e.WebhookSeq, e.Ordering)
	}
	next := *e
	next.DueAt = result.retryAt
	if result.Delivery != nil {
		next.Attempt++
	}
	return insertEntry(r.c, &next, 0)
}

// parseUUID accepts the one spelling that DeliveryID writes.
func parseUUID(s string) (id [16]byte, ok bool) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' || s != strings.ToLower(s) {
		return id, false
	}
	var digits [32]byte
	n := copy(digits[:], s[:8])
	n += copy(digits[n:], s[9:13])
	n += copy(digits[n:], s[14:18])
	n += copy(digits[n:], s[19:23])
	copy(digits[n:], s[24:])
	_, err := hex.Decode(id[:], digits[:])
	return id, err == nil
}

func formatUUID(id []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}
