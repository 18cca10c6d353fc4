package sqlite

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
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
			data, err := json.Marshal(exchange)
			if err != nil {
				return nil, posthorn.Errorf(posthorn.CodeInternal, "the exchange of delivery %s: %w", d.ID, err)
			}
			r.id, r.exchange = id[:], string(data)
		}
		encoded[i] = r
	}
	return encoded, nil
}

// recordResults logs what was delivered and takes the entries from the queue, or moves them on to their next attempt.
func recordResults(c *sqlite.Conn, node int64, results []result) error {
	if len(results) == 0 {
		return nil
	}
	if err := settlePromises(c, node, results); err != nil {
		return err
	}
	seq, err := nextNumbers(c, "delivery", len(results))
	if err != nil {
		return err
	}
	live := map[int64]bool{} // webhooks that still are there
	counts := map[int64]*[2]int{}
	for i := range results {
		r := &results[i]
		e := r.Entry
		r.retryAt = r.RetryAt
		if e.Queued {
			held, err := removeLeased(c, node, e)
			if err != nil {
				return err
			}
			r.held = held
		}
		alive, known := live[e.WebhookSeq]
		if !known {
			var err error
			if _, alive, err = findWebhook(c, e.WebhookSeq); err != nil {
				return err
			}
			live[e.WebhookSeq] = alive
		}
		if !alive {
			continue // its entry is gone, and its log takes no more
		}
		if r.Delivery != nil {
			if err := logDelivery(c, r, seq, counts); err != nil {
				return err
			}
			seq++
		}
		if r.held && !r.retryAt.IsZero() {
			next := *e
			next.DueAt = r.retryAt
			if r.Delivery != nil {
				next.Attempt++
			}
			if err := insertEntry(c, &next, 0); err != nil {
				return err
			}
		}
	}
	for webhook, n := range counts {
		if err := countDeliveries(c, webhook, n[0], n[1]); err != nil {
			return err
		}
	}
	return nil
}

// settlePromises takes the entries that their events carry from the node. All of one event are done together, because a
// fan-out of thousands has them in one row.
func settlePromises(c *sqlite.Conn, node int64, results []result) error {
	byEvent := map[int64][]*result{}
	var order []int64 // so that pages are visited in the order in which they stand
	for i := range results {
		if e := results[i].Entry; !e.Queued {
			if byEvent[e.Event.Seq] == nil {
				order = append(order, e.Event.Seq)
			}
			byEvent[e.Event.Seq] = append(byEvent[e.Event.Seq], &results[i])
		}
	}
	slices.Sort(order)
	for _, event := range order {
		if err := settleEvent(c, node, event, byEvent[event]); err != nil {
			return err
		}
	}
	return nil
}

func settleEvent(c *sqlite.Conn, node, event int64, results []*result) error {
	if len(results) == 1 { // and mostly the event has no other: then one statement does it
		st, err := c.Prepare("DELETE FROM posthorn_promises WHERE event = ? AND node = ? AND webhooks = ?")
		if err != nil {
			return err
		}
		st.BindInt64(1, event)
		st.BindInt64(2, node)
		st.BindBytes(3, binary.AppendUvarint(nil, uint64(results[0].Entry.WebhookSeq)))
		if err := run(st); err != nil {
			return err
		}
		if c.Changes() == 1 {
			results[0].held = true
			return nil
		}
	}
	var promised []int64
	found, err := queryRow(c, func(st *sqlite.Stmt) { promised = unpackSeqs(bytesOf(st, 0)) },
		"SELECT webhooks FROM posthorn_promises WHERE event = ? AND node = ?", event, node)
	if err != nil || !found {
		return err
	}
	left := make(map[int64]bool, len(promised))
	for _, webhook := range promised {
		left[webhook] = true
	}
	for _, r := range results {
		r.held = left[r.Entry.WebhookSeq]
		delete(left, r.Entry.WebhookSeq)
	}
	return keepPromised(c, event, slices.DeleteFunc(promised, func(webhook int64) bool { return !left[webhook] }))
}

// keepPromised replaces the webhooks of a promise by what is left of them.
func keepPromised(c *sqlite.Conn, event int64, left []int64) error {
	if len(left) == 0 {
		return exec(c, "DELETE FROM posthorn_promises WHERE event = ?", event)
	}
	var packed []byte
	for _, webhook := range left {
		packed = binary.AppendUvarint(packed, uint64(webhook))
	}
	return exec(c, "UPDATE posthorn_promises SET webhooks = ? WHERE event = ?", packed, event)
}

func unpackSeqs(packed []byte) []int64 {
	var seqs []int64
	for len(packed) > 0 {
		seq, n := binary.Uvarint(packed)
		if n <= 0 {
			break
		}
		seqs = append(seqs, int64(seq))
		packed = packed[n:]
	}
	return seqs
}

// logDelivery adds a row to the log, unless the log has it.
func logDelivery(c *sqlite.Conn, r *result, seq int64, counts map[int64]*[2]int) error {
	st, err := c.Prepare(`INSERT INTO posthorn_deliveries (id, webhook, event, event_id, event_type, success, delivered_at, next_attempt_at,
		trigger, run, attempt, status, body, exchange, seq) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING`)
	if err != nil {
		return err
	}
	d := r.Delivery
	st.BindBytes(1, r.id)
	st.BindInt64(2, r.Entry.WebhookSeq)
	st.BindInt64(3, r.Entry.Event.Seq)
	st.BindText(4, d.EventID)
	st.BindText(5, d.EventType)
	st.BindBool(6, d.Success)
	st.BindInt64(7, micros(d.DeliveredAt))
	st.BindInt64(8, micros(d.NextAttemptAt))
	st.BindText(9, string(d.Trigger))
	st.BindInt64(10, d.Run)
	st.BindInt64(11, int64(d.Attempt))
	st.BindInt64(12, int64(d.ResponseStatus))
	st.BindText(13, d.ResponseBody)
	st.BindText(14, r.exchange)
	st.BindInt64(15, seq)
	if err := run(st); err != nil {
		return err
	}
	if c.Changes() == 0 {
		_, err = queryRow(c, func(st *sqlite.Stmt) { r.seq, r.retryAt = st.ColumnInt64(0), timeOf(st.ColumnInt64(1)) },
			"SELECT seq, next_attempt_at FROM posthorn_deliveries WHERE id = ?", r.id)
		return err
	}
	r.seq = seq
	n := counts[r.Entry.WebhookSeq]
	if n == nil {
		n = new([2]int)
		counts[r.Entry.WebhookSeq] = n
	}
	if d.Success {
		n[0]++
	} else {
		n[1]++
	}
	return nil
}

// countDeliveries adds to a webhook's counters.
func countDeliveries(c *sqlite.Conn, webhook int64, succeeded, failed int) error {
	return exec(c, `INSERT INTO posthorn_delivery_counts (webhook, succeeded, failed) VALUES (?, ?, ?)
		ON CONFLICT DO UPDATE SET succeeded = succeeded + excluded.succeeded, failed = failed + excluded.failed`,
		webhook, succeeded, failed)
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
