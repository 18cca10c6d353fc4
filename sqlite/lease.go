package sqlite

import (
	"context"
	"time"

	"github.com/musehub/posthorn"
	"zombiezen.com/go/sqlite"
)

// leaseEnded marks the lease of a node whose entries are being freed. It can't be renewed, and nothing is leased to
// that node any more.
const leaseEnded = -1

// releaseChunk is how many entries are freed in one transaction.
const releaseChunk = 500

// Lease implements [posthorn.Store].
func (s *Store) Lease(ctx context.Context, node int64, until time.Time) (int64, error) {
	leased := node
	err := s.write(ctx, func(c *sqlite.Conn) error {
		if node == 0 {
			err := exec(c, "INSERT INTO posthorn_nodes (lease_until) VALUES (?)", until)
			leased = c.LastInsertRowID()
			return err
		}
		err := exec(c, "UPDATE posthorn_nodes SET lease_until = ? WHERE node = ? AND lease_until <> ?", until, node, leaseEnded)
		if err == nil && c.Changes() == 0 {
			return errNoLease(node)
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	return leased, nil
}

func errNoLease(node int64) error {
	return posthorn.Errorf(posthorn.CodeConflict, "the lease of node %d has run out and its entries were released", node)
}

// checkLease makes sure that what is leased to a node will be released one day. Node 0 stands for none and passes.
func checkLease(c *sqlite.Conn, node int64) error {
	if node == 0 {
		return nil
	}
	found, err := queryRow(c, func(*sqlite.Stmt) {}, "SELECT 1 FROM posthorn_nodes WHERE node = ? AND lease_until <> ?", node, leaseEnded)
	if err == nil && !found {
		return errNoLease(node)
	}
	return err
}

// Release implements [posthorn.Store].
func (s *Store) Release(ctx context.Context, node int64, now time.Time) (int, error) {
	var nodes []int64
	err := s.withWriter(ctx, func(c *sqlite.Conn) error {
		err := s.transact(ctx, c, func(c *sqlite.Conn) error {
			where, arg := "node = ?", any(node)
			if node == 0 {
				where, arg = "lease_until < ?", now
			}
			return query(c, func(st *sqlite.Stmt) error {
				nodes = append(nodes, st.ColumnInt64(0))
				return nil
			}, "UPDATE posthorn_nodes SET lease_until = -1 WHERE "+where+" RETURNING node", arg)
		})
		if err == nil {
			s.promises.forget(nodes)
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	released := 0
	for _, node := range nodes {
		ok, err := s.releaseNode(ctx, node)
		if err != nil {
			return released, err
		}
		if ok {
			released++
		}
	}
	return released, nil
}

// releaseNode frees the entries of a node whose lease has ended, in chunks, so that other writers get in between. The
// node's row goes last: whatever interrupts this, the next Release goes on with it. It reports false when another call
// was faster.
func (s *Store) releaseNode(ctx context.Context, node int64) (bool, error) {
	r := release{node: node, webhooks: map[int64]*liveWebhook{}}
	for {
		last := false
		err := s.write(ctx, func(c *sqlite.Conn) (err error) {
			next := r // an attempt that fails must leave no trace
			next.c, next.room = c, releaseChunk
			if err := next.promises(); err != nil {
				return err
			}
			if err := next.leased(); err != nil {
				return err
			}
			if next.room > 0 {
				if err := exec(c, "DELETE FROM posthorn_nodes WHERE node = ?", node); err != nil {
					return err
				}
				last, next.done = true, c.Changes() == 1
			}
			r = next
			return nil
		})
		if err != nil || last {
			return r.done && err == nil, err
		}
	}
}

// release is the state of freeing one node's entries.
type release struct {
	c        *sqlite.Conn
	node     int64
	room     int   // entries left in this chunk
	after    int64 // the webhook of which all entries have been freed, with those before
	webhooks map[int64]*liveWebhook
	done     bool
}

// promises turns the promises of the node, as far as they are not settled, into entries of their own.
func (r *release) promises() error {
	for r.room > 0 {
		var first int64
		var packed []byte
		found, err := queryRow(r.c, func(st *sqlite.Stmt) { first, packed = st.ColumnInt64(0), bytesOf(st, 1) },
			"SELECT event, entries FROM posthorn_promises WHERE node = ? ORDER BY event LIMIT 1", r.node)
		if err != nil || !found {
			return err
		}
		batch, err := unpackPromises(packed)
		if err != nil {
			return err
		}
		for len(batch.events) > 0 && r.room > 0 {
			if err := r.promise(batch.events[0]); err != nil {
				return err
			}
			if len(batch.events[0].webhooks) == 0 {
				batch.events = batch.events[1:]
			}
		}
		if len(batch.events) > 0 {
			return updatePromises(r.c, first, batch)
		}
		if err := exec(r.c, "DELETE FROM posthorn_promises WHERE event = ?", first); err != nil {
			return err
		}
	}
	return nil
}

// promise frees the entries of one event, as many as there is room for, and takes them from the promise.
func (r *release) promise(p *promise) error {
	e, err := eventHead(r.c, p.event)
	if err != nil {
		return err
	}
	n := min(len(p.webhooks), r.room)
	for _, webhook := range p.webhooks[:n] {
		entry := posthorn.Entry{WebhookSeq: webhook, Event: e, Trigger: posthorn.TriggerAutomatic, Attempt: 1, DueAt: e.CreatedAt}
		if err := r.free(&entry); err != nil {
			return err
		}
	}
	p.webhooks = p.webhooks[n:]
	r.room -= max(n, 1)
	return nil
}

// leased frees the entries that stand in the queue. It visits every webhook in the queue once, and needs no index by
// node, which every lease would have to keep up.
func (r *release) leased() error {
	for r.room > 0 {
		webhook, err := nextQueued(r.c, r.after)
		if err != nil || webhook == 0 {
			return err
		}
		entries, err := r.leasedOf(webhook)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if _, err := removeLeased(r.c, r.node, e); err != nil {
				return err
			}
			if err := r.free(e); err != nil {
				return err
			}
		}
		if r.room -= len(entries); r.room > 0 {
			r.after = webhook // there were fewer than asked for
		}
	}
	return nil
}

func (r *release) leasedOf(webhook int64) (entries []*posthorn.Entry, err error) {
	err = query(r.c, func(st *sqlite.Stmt) error {
		e, err := eventHead(r.c, st.ColumnInt64(1))
		if err != nil {
			return err
		}
		entries = append(entries, &posthorn.Entry{
			WebhookSeq: webhook,
			Event:      e,
			DueAt:      timeOf(st.ColumnInt64(0)),
			Run:        st.ColumnInt64(2),
			Attempt:    st.ColumnInt(3),
			Trigger:    posthorn.Trigger(st.ColumnText(4)),
			Ordering:   st.ColumnInt64(5),
		})
		return nil
	}, "SELECT due_at, event, run, attempt, trigger, ordering FROM posthorn_queue WHERE webhook = ? AND lane = ? AND node = ? LIMIT ?",
		webhook, laneLeased, r.node, r.room)
	return entries, err
}

// free puts an entry back into the queue. If the log has its attempt already (a node that had lost the entry before
// recorded it, or it is a promise that has been settled), the log decides how its run goes on, just as it would have with
// the entry at hand. A promise may also have been settled by an entry in the queue.
func (r *release) free(e *posthorn.Entry) error {
	w, err := r.webhook(e.WebhookSeq)
	if err != nil || w == nil {
		return err
	}
	for {
		id, _ := parseUUID(posthorn.DeliveryID(e.Event, w.id, e.Run, e.Attempt))
		var nextAt int64
		logged, err := queryRow(r.c, func(st *sqlite.Stmt) { nextAt = st.ColumnInt64(0) },
			"SELECT next_attempt_at FROM posthorn_deliveries WHERE id = ?", id[:])
		if err != nil {
			return err
		}
		if logged && nextAt == 0 {
			return advance(r.c, e.WebhookSeq, e.Ordering)
		}
		if !logged {
			break
		}
		e.Attempt++
		e.DueAt = timeOf(nextAt)
	}
	queued, err := queryRow(r.c, func(*sqlite.Stmt) {}, "SELECT 1 FROM posthorn_queue WHERE event = ? AND webhook = ? AND run = ?",
		e.Event.Seq, e.WebhookSeq, e.Run)
	if err != nil || queued {
		return err
	}
	return insertEntry(r.c, e, 0)
}

// webhook returns a webhook, nil if it is gone.
func (r *release) webhook(seq int64) (*liveWebhook, error) {
	if w, ok := r.webhooks[seq]; ok {
		return w, nil
	}
	var found *liveWebhook
	w, ok, err := findWebhook(r.c, seq)
	if err != nil {
		return nil, err
	}
	if ok {
		found = &w
	}
	r.webhooks[seq] = found
	return found, nil
}
