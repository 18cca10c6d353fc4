package sqlite

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
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
func (s *Store) recordResults(c *sqlite.Conn, node int64, results []result) error {
	if len(results) == 0 {
		return nil
	}
	seq, err := nextNumbers(c, "delivery", len(results))
	if err != nil {
		return err
	}
	logs := map[int64]*webhookLog{}
	for i := range results {
		r := &results[i]
		e := r.Entry
		r.retryAt = r.RetryAt
		if e.Queued {
			if r.held, err = removeLeased(c, node, e); err != nil {
				return err
			}
		} else {
			r.held = s.promises.settle(node, e.Event.Seq, e.WebhookSeq)
			if r.held && r.Delivery == nil && r.RetryAt.IsZero() { // which leaves no trace elsewhere
				if err := s.promises.rewrite(c, e.Event.Seq); err != nil {
					return err
				}
			}
		}
		log := logs[e.WebhookSeq]
		if log == nil {
			if log, err = findLog(c, e.WebhookSeq); err != nil {
				return err
			}
			logs[e.WebhookSeq] = log
		}
		if !log.live {
			continue // its entry is gone, and its log takes no more
		}
		if r.Delivery != nil {
			if err := logDelivery(c, r, seq, log); err != nil {
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
	for webhook, log := range logs {
		if log.succeeded+log.failed == 0 {
			continue
		}
		if err := exec(c, "UPDATE posthorn_logs SET succeeded = succeeded + ?, failed = failed + ?, newest = ? WHERE webhook = ?",
			log.succeeded, log.failed, log.newest, webhook); err != nil {
			return err
		}
	}
	return nil
}

// webhookLog is what a batch adds to a webhook's log.
type webhookLog struct {
	live              bool
	newest            int64
	succeeded, failed int
}

func findLog(c *sqlite.Conn, webhook int64) (*webhookLog, error) {
	log := new(webhookLog)
	_, err := queryRow(c, func(st *sqlite.Stmt) { log.live, log.newest = true, st.ColumnInt64(0) },
		"SELECT newest FROM posthorn_logs WHERE webhook = ? AND live", webhook)
	return log, err
}

// logDelivery adds a row to the log, unless the log has it.
func logDelivery(c *sqlite.Conn, r *result, seq int64, log *webhookLog) error {
	st, err := c.Prepare(`INSERT INTO posthorn_deliveries (id, webhook, event, event_id, event_type, success, delivered_at, next_attempt_at,
		trigger, run, attempt, status, body, exchange, seq, previous) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING`)
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
	st.BindInt64(16, log.newest)
	if err := run(st); err != nil {
		return err
	}
	if c.Changes() == 0 {
		_, err = queryRow(c, func(st *sqlite.Stmt) { r.seq, r.retryAt = st.ColumnInt64(0), timeOf(st.ColumnInt64(1)) },
			"SELECT seq, next_attempt_at FROM posthorn_deliveries WHERE id = ?", r.id)
		return err
	}
	r.seq, log.newest = seq, seq
	if d.Success {
		log.succeeded++
	} else {
		log.failed++
	}
	return nil
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
