package sqlite

import (
	"context"
	"time"

	"github.com/musehub/posthorn"
	"zombiezen.com/go/sqlite"
)

// The lanes of the queue. A webhook's free entries stand apart from the leased ones, so that to find what can be claimed
// is one seek, however many are leased, not due, or waiting for the webhook to become active again.
const (
	laneByHand    = 0
	laneAutomatic = 1
	laneLeased    = 2
	laneBehind    = 3 // entries that wait for an earlier one of their ordering
	laneHeld      = 4
	laneWaiting   = 5 // entries of a replay that are not let go yet
)

func freeLane(t posthorn.Trigger) int {
	if t.ByHand() {
		return laneByHand
	}
	return laneAutomatic
}

const insertQueued = "INSERT INTO posthorn_queue (webhook, lane, due_at, event, run, attempt, trigger, ordering, node) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"

// insertEntry puts an entry into the queue, leased to a node or, with node 0, free.
func insertEntry(c *sqlite.Conn, e *posthorn.Entry, node int64) error {
	st, err := c.Prepare(insertQueued)
	if err != nil {
		return err
	}
	lane := freeLane(e.Trigger)
	switch {
	case e.Held:
		lane, node = laneHeld, 0
	case node != 0:
		lane = laneLeased
	case e.Ordering != 0:
		behind, err := queryInt(c, countBefore, e.WebhookSeq, e.Ordering, e.Event.Seq)
		if err != nil {
			return err
		}
		if behind > 0 {
			lane = laneBehind
		}
	}
	if node != 0 {
		st.BindInt64(9, node)
	}
	st.BindInt64(1, e.WebhookSeq)
	st.BindInt64(2, int64(lane))
	st.BindInt64(3, micros(e.DueAt))
	st.BindInt64(4, e.Event.Seq)
	st.BindInt64(5, e.Run)
	st.BindInt64(6, int64(e.Attempt))
	st.BindText(7, string(e.Trigger))
	st.BindInt64(8, e.Ordering)
	return run(st)
}

// countBefore tells whether there is an entry before one of its ordering.
const countBefore = "SELECT count(*) FROM (SELECT 1 FROM posthorn_queue WHERE webhook = ? AND ordering = ? AND ordering <> 0 AND event < ? LIMIT 1)"

// advance makes the first entry of an ordering one that can be claimed, if it is waiting: the one before it is done.
func advance(c *sqlite.Conn, webhook, ordering int64) error {
	if ordering == 0 {
		return nil
	}
	return exec(c, `UPDATE posthorn_queue SET lane = ? WHERE (webhook, lane, due_at, event, run) = (
			SELECT webhook, lane, due_at, event, run FROM posthorn_queue WHERE webhook = ? AND ordering = ? AND ordering <> 0 ORDER BY event LIMIT 1
		) AND lane = ?`, laneAutomatic, webhook, ordering, laneBehind)
}

// removeLeased takes an entry out of the queue if the node holds it, and reports whether it did.
func removeLeased(c *sqlite.Conn, node int64, e *posthorn.Entry) (bool, error) {
	err := exec(c, `DELETE FROM posthorn_queue WHERE webhook = ? AND lane = ? AND due_at = ? AND event = ? AND run = ?
		AND node = ? AND attempt = ?`, e.WebhookSeq, laneLeased, e.DueAt, e.Event.Seq, e.Run, node, e.Attempt)
	return c.Changes() == 1, err
}

// removeHeld takes a held entry out of the queue, and reports whether it was there.
func removeHeld(c *sqlite.Conn, e *posthorn.Entry) (bool, error) {
	err := exec(c, "DELETE FROM posthorn_queue WHERE webhook = ? AND lane = ? AND due_at = ? AND event = ? AND run = ?",
		e.WebhookSeq, laneHeld, e.DueAt, e.Event.Seq, e.Run)
	return c.Changes() == 1, err
}

// Held implements [posthorn.Store].
func (s *Store) Held(ctx context.Context, webhookSeq int64, limit, maxBytes int) ([]*posthorn.Entry, error) {
	found := claimed{Claim: posthorn.Claim{MaxBytes: maxBytes}, events: map[int64]*posthorn.AcceptedEvent{}}
	err := s.read(ctx, func(c *sqlite.Conn) error {
		w, ok, err := findWebhook(c, webhookSeq)
		if err != nil || !ok {
			return err
		}
		return found.collect(c, webhookSeq, w.id, laneHeld, ">=", time.Time{}, limit)
	})
	return found.entries, err
}

// Enqueue implements [posthorn.Store].
func (s *Store) Enqueue(ctx context.Context, e *posthorn.Entry, node int64) error {
	var stored posthorn.Entry
	err := s.write(ctx, func(c *sqlite.Conn) error {
		if _, ok, err := findWebhook(c, e.WebhookSeq); err != nil {
			return err
		} else if !ok {
			return errNoWebhook()
		}
		if n, err := queryInt(c, "SELECT count(*) FROM posthorn_events WHERE seq = ?", e.Event.Seq); err != nil {
			return err
		} else if n == 0 {
			return errNoEvent()
		}
		if err := checkLease(c, node); err != nil {
			return err
		}
		run, err := nextNumbers(c, "run", 1)
		if err != nil {
			return err
		}
		stored = *e
		stored.Run, stored.Queued = run, true
		return insertEntry(c, &stored, node)
	})
	if err == nil {
		e.Run, e.Queued = stored.Run, true
	}
	return err
}

// Due implements [posthorn.Store].
func (s *Store) Due(ctx context.Context, now time.Time, horizon time.Duration, after int64, limit int) ([]posthorn.DueWebhook, error) {
	var due []posthorn.DueWebhook
	err := s.read(ctx, func(c *sqlite.Conn) error {
		for len(due) < limit {
			seq, err := nextQueued(c, after)
			if err != nil || seq == 0 {
				return err
			}
			after = seq
			w, ok, err := findWebhook(c, seq)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			claimable, err := hasDue(c, seq, laneByHand, now, horizon)
			if err == nil && !claimable && w.active {
				claimable, err = hasDue(c, seq, laneAutomatic, now, horizon)
			}
			if err != nil {
				return err
			}
			if claimable {
				due = append(due, posthorn.DueWebhook{Seq: seq, ID: w.id, RepoID: w.repoID})
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return due, nil
}

// nextQueued returns the first webhook after the given one that has an entry of any kind, zero if none has.
func nextQueued(c *sqlite.Conn, after int64) (int64, error) {
	return queryInt(c, "SELECT webhook FROM posthorn_queue WHERE webhook > ? ORDER BY webhook LIMIT 1", after)
}

// hasDue looks at the two ends of a lane: what is due, and what lies beyond the horizon.
//
// It runs for each webhook with a queue in every sweep. The +0 hide the parameters from SQLite's planner, which otherwise
// looks at their values for its estimates and then plans the statement anew whenever one changes: ten times the work.
func hasDue(c *sqlite.Conn, webhook int64, lane int, now time.Time, horizon time.Duration) (bool, error) {
	const first = "SELECT due_at FROM posthorn_queue WHERE webhook = ?+0 AND lane = ?+0 ORDER BY due_at LIMIT 1"
	const last = "SELECT due_at FROM posthorn_queue WHERE webhook = ?+0 AND lane = ?+0 ORDER BY due_at DESC LIMIT 1"
	found := false
	some, err := queryRow(c, func(st *sqlite.Stmt) { found = st.ColumnInt64(0) <= micros(now) }, first, webhook, lane)
	if !some || found || err != nil {
		return found, err
	}
	_, err = queryRow(c, func(st *sqlite.Stmt) { found = st.ColumnInt64(0) > micros(now.Add(horizon)) }, last, webhook, lane)
	return found, err
}

// Claim implements [posthorn.Store]. Entries and payloads are read before the transaction that leases them, so that many
// big payloads hold up no other writer. What another node claims in between is left out.
func (s *Store) Claim(ctx context.Context, claim posthorn.Claim) ([]*posthorn.Entry, error) {
	found := claimed{Claim: claim, events: map[int64]*posthorn.AcceptedEvent{}}
	if err := s.read(ctx, found.find); err != nil {
		return nil, err
	}
	if len(found.entries) == 0 {
		return nil, nil
	}
	var taken []*posthorn.Entry
	err := s.write(ctx, func(c *sqlite.Conn) error {
		if err := checkLease(c, claim.Node); err != nil {
			return err
		}
		for _, e := range found.entries {
			ok, err := leaseEntry(c, e, claim.Node)
			if err != nil {
				return err
			}
			if ok {
				taken = append(taken, e)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return taken, nil
}

// leaseEntry leases an entry if it is free still.
func leaseEntry(c *sqlite.Conn, e *posthorn.Entry, node int64) (bool, error) {
	err := exec(c, `UPDATE posthorn_queue SET lane = ?, node = ?
		WHERE webhook = ? AND lane = ? AND due_at = ? AND event = ? AND run = ? AND attempt = ?`,
		laneLeased, node, e.WebhookSeq, freeLane(e.Trigger), e.DueAt, e.Event.Seq, e.Run, e.Attempt)
	return c.Changes() == 1, err
}

// claimed is what a claim has found so far.
type claimed struct {
	posthorn.Claim
	entries []*posthorn.Entry
	events  map[int64]*posthorn.AcceptedEvent // shared between entries
	bytes   int
	full    bool
}

func (f *claimed) find(c *sqlite.Conn) error {
	for _, want := range f.Wants {
		w, ok, err := findWebhook(c, want.WebhookSeq)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		limit := want.Limit
		for _, lane := range []int{laneByHand, laneAutomatic} {
			if lane == laneAutomatic && !w.active {
				continue
			}
			for _, due := range []struct {
				condition string
				than      time.Time
			}{{"<=", f.Now}, {">", f.Now.Add(f.Horizon)}} {
				n := len(f.entries)
				if err := f.collect(c, want.WebhookSeq, w.id, lane, due.condition, due.than, limit); err != nil {
					return err
				}
				if f.full {
					return nil
				}
				limit -= len(f.entries) - n
			}
		}
	}
	return nil
}

// collect adds the entries of one lane, until the limit or MaxBytes is reached.
func (f *claimed) collect(c *sqlite.Conn, webhook int64, webhookID string, lane int, condition string, than time.Time, limit int) error {
	if limit <= 0 {
		return nil
	}
	return query(c, func(st *sqlite.Stmt) error {
		if f.full {
			return nil
		}
		seq := st.ColumnInt64(1)
		event := f.events[seq]
		if event == nil {
			var err error
			if f.MaxBytes < 0 {
				event, err = eventHead(c, seq)
			} else {
				event, err = eventBySeq(c, seq)
			}
			if err != nil {
				return err
			}
			f.events[seq] = event
		}
		f.entries = append(f.entries, &posthorn.Entry{
			WebhookSeq: webhook,
			WebhookID:  webhookID,
			Event:      event,
			DueAt:      timeOf(st.ColumnInt64(0)),
			Run:        st.ColumnInt64(2),
			Attempt:    st.ColumnInt(3),
			Trigger:    posthorn.Trigger(st.ColumnText(4)),
			Ordering:   st.ColumnInt64(5),
			Queued:     true,
			Held:       lane == laneHeld,
		})
		f.bytes += len(event.Payload)
		f.full = f.MaxBytes >= 0 && f.bytes > f.MaxBytes
		return nil
	}, "SELECT due_at, event, run, attempt, trigger, ordering FROM posthorn_queue WHERE webhook = ?+0 AND lane = ?+0 AND due_at "+condition+
		" ?+0 ORDER BY due_at, event, run LIMIT ?+0", webhook, lane, than, limit)
}
