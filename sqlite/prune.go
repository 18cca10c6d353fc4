package sqlite

import (
	"context"
	"time"

	"github.com/musehub/posthorn"
	"zombiezen.com/go/sqlite"
)

const (
	// pruneChunk is how many rows are deleted in one transaction, and pruneBytes how many bytes of payload, because a
	// payload's pages are freed one by one.
	pruneChunk = 100
	pruneBytes = 4 << 20
)

// Prune implements [posthorn.Store]. Rows are found by readers and deleted in short transactions.
func (s *Store) Prune(ctx context.Context, before time.Time) (int, error) {
	total := 0
	if err := s.pruneReplays(ctx, before); err != nil {
		return 0, err
	}
	for _, prune := range []func(context.Context, time.Time) (int, error){s.pruneDeleted, s.pruneDeliveries, s.pruneEvents} {
		n, err := prune(ctx, before)
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// pruneDeleted removes what deleted webhooks left behind. A webhook's mark stays until its log is gone. An entry for it
// that is committed even later, by a node that had not heard of the deletion, goes in the next Prune.
func (s *Store) pruneDeleted(ctx context.Context, _ time.Time) (int, error) {
	var queued, deleted []int64
	err := s.read(ctx, func(c *sqlite.Conn) error {
		for webhook := int64(0); ; {
			var err error
			if webhook, err = nextQueued(c, webhook); err != nil {
				return err
			}
			if webhook == 0 {
				break
			}
			if _, live, err := findWebhook(c, webhook); err != nil {
				return err
			} else if !live {
				queued = append(queued, webhook)
			}
		}
		return query(c, func(st *sqlite.Stmt) error {
			deleted = append(deleted, st.ColumnInt64(0))
			return nil
		}, "SELECT seq FROM posthorn_webhooks WHERE deleted = 1")
	})
	if err != nil {
		return 0, err
	}
	for _, webhook := range queued {
		_, err := s.deleteAll(ctx, `DELETE FROM posthorn_queue WHERE (webhook, lane, due_at, event, run) IN
			(SELECT webhook, lane, due_at, event, run FROM posthorn_queue WHERE webhook = ? LIMIT ?)`, webhook)
		if err != nil {
			return 0, err
		}
	}
	total := 0
	for _, webhook := range deleted {
		n, err := s.deleteLog(ctx, webhook)
		total += n
		if err != nil {
			return total, err
		}
		err = s.write(ctx, func(c *sqlite.Conn) error {
			if err := exec(c, "DELETE FROM posthorn_logs WHERE webhook = ?", webhook); err != nil {
				return err
			}
			if err := exec(c, "DELETE FROM posthorn_replays WHERE webhook = ?", webhook); err != nil {
				return err
			}
			return exec(c, "DELETE FROM posthorn_webhooks WHERE seq = ?", webhook)
		})
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// deleteAll repeats a statement, which takes a webhook and a limit, until it finds no more rows.
func (s *Store) deleteAll(ctx context.Context, statement string, webhook int64) (total int, err error) {
	for {
		n := 0
		err := s.write(ctx, func(c *sqlite.Conn) error {
			err := exec(c, statement, webhook, pruneChunk)
			n = c.Changes()
			return err
		})
		if err != nil {
			return total, err
		}
		total += n
		if n < pruneChunk {
			return total, nil
		}
	}
}

// deleteLog deletes the deliveries of a webhook from the newest on.
func (s *Store) deleteLog(ctx context.Context, webhook int64) (total int, err error) {
	for more := true; more; {
		n := 0
		err := s.write(ctx, func(c *sqlite.Conn) error {
			n = 0
			seq, err := queryInt(c, "SELECT newest FROM posthorn_logs WHERE webhook = ?", webhook)
			for found := true; found && seq != 0 && n < pruneChunk && err == nil; {
				row := seq
				found, err = queryRow(c, func(st *sqlite.Stmt) { seq = st.ColumnInt64(0) },
					"DELETE FROM posthorn_deliveries WHERE seq = ? AND webhook = ? RETURNING previous", row, webhook)
				if found {
					n++
				} else if err == nil { // it was pruned, but older ones may be there
					log := walk{c: c, table: "posthorn_deliveries", owner: "webhook", of: webhook}
					var next int64
					if seq, next, _, err = log.below(row, posthorn.MaxScan); seq == 0 {
						seq = next
					}
				}
			}
			if err != nil {
				return err
			}
			more = seq != 0
			return exec(c, "UPDATE posthorn_logs SET newest = ? WHERE webhook = ?", seq, webhook)
		})
		if err != nil {
			return total, err
		}
		total += n
	}
	return total, nil
}

// oldRow is a row that a reader found old enough to go.
type oldRow struct {
	seq     int64
	webhook int64  // a delivery's
	success bool   // a delivery's
	repoID  string // an event's
}

// settledDeliveries makes the promises' rows forget what is settled, and returns the newest delivery that isn't needed to know
// that any more, nor are those before it. It is 0 as long as rows of a node that has ended wait to be freed.
func (s *Store) settledDeliveries(ctx context.Context) (newest int64, err error) {
	err = s.withWriter(ctx, func(c *sqlite.Conn) error {
		err := s.transact(ctx, c, func(c *sqlite.Conn) (err error) {
			if err := s.promises.deleteSettled(c); err != nil {
				return err
			}
			if err := s.promises.reduceAll(c); err != nil {
				return err
			}
			newest, err = queryInt(c, `SELECT last FROM posthorn_counters WHERE name = 'delivery'
				AND NOT EXISTS (SELECT 1 FROM posthorn_nodes WHERE lease_until = ?)`, leaseEnded)
			return err
		})
		s.promises.end(err == nil)
		return err
	})
	return newest, err
}

// pruneDeliveries removes the old end of the log. Rows are recorded nearly in the order of their times: it looks on until
// a whole chunk has nothing old.
func (s *Store) pruneDeliveries(ctx context.Context, before time.Time) (int, error) {
	newest, err := s.settledDeliveries(ctx)
	if err != nil {
		return 0, err
	}
	total := 0
	for after := int64(0); ; {
		var old []oldRow
		err := s.read(ctx, func(c *sqlite.Conn) error {
			return query(c, func(st *sqlite.Stmt) error {
				after = st.ColumnInt64(0)
				if st.ColumnInt64(1) < micros(before) {
					old = append(old, oldRow{seq: after, webhook: st.ColumnInt64(2), success: st.ColumnBool(3)})
				}
				return nil
			}, "SELECT seq, delivered_at, webhook, success FROM posthorn_deliveries WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
				after, newest, pruneChunk)
		})
		if err != nil || len(old) == 0 {
			return total, err
		}
		n := 0
		err = s.write(ctx, func(c *sqlite.Conn) (err error) {
			n, err = deleteDeliveries(c, old)
			return err
		})
		if err != nil {
			return total, err
		}
		total += n
	}
}

func deleteDeliveries(c *sqlite.Conn, rows []oldRow) (int, error) {
	n := 0
	gone := map[int64]*[2]int{}
	for _, row := range rows {
		if err := exec(c, "DELETE FROM posthorn_deliveries WHERE seq = ?", row.seq); err != nil {
			return 0, err
		}
		if c.Changes() == 0 {
			continue // another Prune was faster
		}
		n++
		if gone[row.webhook] == nil {
			gone[row.webhook] = new([2]int)
		}
		if row.success {
			gone[row.webhook][0]++
		} else {
			gone[row.webhook][1]++
		}
	}
	for webhook, g := range gone {
		if err := exec(c, "UPDATE posthorn_logs SET succeeded = succeeded - ?, failed = failed - ? WHERE webhook = ?", g[0], g[1], webhook); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// promisedEvents returns the events in batches of promises, of which some may be settled, and the newest event of all: none up
// to that will ever be promised again.
func (s *Store) promisedEvents(ctx context.Context) (promised map[int64]bool, newest int64, err error) {
	promised = map[int64]bool{}
	var packed [][]byte
	err = s.read(ctx, func(c *sqlite.Conn) (err error) {
		if newest, err = queryInt(c, "SELECT last FROM posthorn_counters WHERE name = 'event'"); err != nil {
			return err
		}
		return query(c, func(st *sqlite.Stmt) error {
			packed = append(packed, bytesOf(st, 0))
			return nil
		}, "SELECT entries FROM posthorn_promises")
	})
	if err != nil {
		return nil, 0, err
	}
	for _, p := range packed {
		batch, err := unpackPromises(p)
		if err != nil {
			return nil, 0, err
		}
		for _, promise := range batch.events {
			promised[promise.event] = true
		}
	}
	return promised, newest, nil
}

// pruneEvents removes old events that nothing in the queue needs.
func (s *Store) pruneEvents(ctx context.Context, before time.Time) (int, error) {
	const queued = "EXISTS (SELECT 1 FROM posthorn_queue q WHERE q.event = e.seq)"
	promised, newest, err := s.promisedEvents(ctx)
	if err != nil {
		return 0, err
	}
	total := 0
	for after := int64(0); ; {
		var old []oldRow
		seen, bytes := 0, 0
		err := s.read(ctx, func(c *sqlite.Conn) error {
			return query(c, func(st *sqlite.Stmt) error {
				if bytes > pruneBytes {
					return nil
				}
				after = st.ColumnInt64(0)
				if st.ColumnInt64(1) >= micros(before) {
					return nil
				}
				seen++
				if !st.ColumnBool(4) && !promised[after] {
					old = append(old, oldRow{seq: after, repoID: st.ColumnText(2)})
					bytes += st.ColumnInt(3)
				}
				return nil
			}, "SELECT e.seq, e.created_at, e.repo_id, length(e.payload), "+queued+
				" FROM posthorn_events e WHERE e.seq > ? AND e.seq <= ? ORDER BY e.seq LIMIT ?", after, newest, pruneChunk)
		})
		if err != nil || seen == 0 {
			return total, err
		}
		if len(old) == 0 {
			continue
		}
		n := 0
		err = s.write(ctx, func(c *sqlite.Conn) error {
			n = 0
			gone := map[string]int{}
			for _, row := range old {
				if err := exec(c, "DELETE FROM posthorn_events AS e WHERE e.seq = ? AND NOT "+queued, row.seq); err != nil {
					return err
				}
				gone[row.repoID] += c.Changes()
				n += c.Changes()
			}
			for repoID, g := range gone {
				if err := exec(c, "UPDATE posthorn_repos SET events = events - ? WHERE repo_id = ?", g, repoID); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return total, err
		}
		total += n
	}
}
