package sqlite

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/musehub/posthorn"
	"zombiezen.com/go/sqlite"
)

// Outcomes implements [posthorn.Store].
func (s *Store) Outcomes(ctx context.Context, webhookSeq int64, events []*posthorn.AcceptedEvent) (outcomes []posthorn.Outcome, err error) {
	if len(events) == 0 {
		return nil, nil
	}
	outcomes = make([]posthorn.Outcome, len(events))
	err = s.read(ctx, func(c *sqlite.Conn) error {
		promised, err := promisedTo(c, webhookSeq, events)
		if err != nil {
			return err
		}
		logged, ms := map[int64]loggedEvent{}, int64(0)
		for i, e := range events {
			if at := e.CreatedAt.UnixMilli(); at != ms { // the ids of its deliveries begin with that, and so do others'
				ms = at
				if logged, err = loggedAt(c, webhookSeq, ms); err != nil {
					return err
				}
			}
			queued, err := queryRow(c, func(*sqlite.Stmt) {}, "SELECT 1 FROM posthorn_queue WHERE event = ? AND webhook = ?", e.Seq, webhookSeq)
			if err != nil {
				return err
			}
			l := logged[e.Seq]
			l.Queued = queued || promised[e.Seq] && !l.settled
			outcomes[i] = l.Outcome
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return outcomes, nil
}

// loggedEvent is what the log has of an event for a webhook.
type loggedEvent struct {
	posthorn.Outcome
	settled bool // its promise, if it was one
}

// loggedAt returns what the log has for a webhook of the events of a millisecond.
func loggedAt(c *sqlite.Conn, webhook, ms int64) (map[int64]loggedEvent, error) {
	logged := map[int64]loggedEvent{}
	err := query(c, func(st *sqlite.Stmt) error {
		l := logged[st.ColumnInt64(0)]
		l.Attempts++
		l.Delivered = l.Delivered || st.ColumnBool(1)
		l.settled = l.settled || st.ColumnInt64(2) == 0
		logged[st.ColumnInt64(0)] = l
		return nil
	}, "SELECT event, success, run FROM posthorn_deliveries WHERE id >= ? AND id < ? AND webhook = ?", idsFrom(uint64(ms)), idsFrom(uint64(ms+1)), webhook)
	return logged, err
}

// promisedTo returns which of the events were promised to a webhook by rows that are there still. Which promises are settled the
// log and the queue tell.
func promisedTo(c *sqlite.Conn, webhook int64, events []*posthorn.AcceptedEvent) (map[int64]bool, error) {
	first, last := events[0].Seq, events[0].Seq
	for _, e := range events {
		first, last = min(first, e.Seq), max(last, e.Seq)
	}
	promised := map[int64]bool{}
	var packed [][]byte
	err := query(c, func(st *sqlite.Stmt) error {
		packed = append(packed, bytesOf(st, 0))
		return nil
	}, "SELECT entries FROM posthorn_promises WHERE event <= ?", last)
	for _, p := range packed {
		batch, broken := unpackPromises(p)
		if broken != nil {
			return nil, broken
		}
		for _, promise := range batch.events {
			for _, to := range promise.webhooks {
				if to == webhook && promise.event >= first {
					promised[promise.event] = true
				}
			}
		}
	}
	return promised, err
}

// Queued implements [posthorn.Store].
func (s *Store) Queued(ctx context.Context, webhookSeq int64, event *posthorn.AcceptedEvent) (entries []posthorn.QueuedEntry, err error) {
	err = s.read(ctx, func(c *sqlite.Conn) error {
		return query(c, func(st *sqlite.Stmt) error {
			lane := st.ColumnInt(3)
			entries = append(entries, posthorn.QueuedEntry{
				Trigger: posthorn.Trigger(st.ColumnText(0)), Attempt: st.ColumnInt(1), DueAt: timeOf(st.ColumnInt64(2)),
				Leased: lane == laneLeased, Waiting: lane == laneWaiting, Behind: st.ColumnText(4),
			})
			return nil
		}, `SELECT q.trigger, q.attempt, q.due_at, q.lane, CASE WHEN q.lane = ? THEN
				(SELECT e.id FROM posthorn_queue f JOIN posthorn_events e ON e.seq = f.event
				WHERE f.webhook = q.webhook AND f.ordering = q.ordering AND f.ordering <> 0 ORDER BY f.event LIMIT 1) ELSE '' END
			FROM posthorn_queue q WHERE q.event = ? AND q.webhook = ? ORDER BY q.run`, laneBehind, event.Seq, webhookSeq)
	})
	if err != nil {
		return nil, err
	}
	return entries, nil
}

// CreateReplay implements [posthorn.Store].
func (s *Store) CreateReplay(ctx context.Context, r *posthorn.Replay) error {
	which, err := json.Marshal(r.ReplayRange)
	if err != nil {
		return posthorn.Errorf(posthorn.CodeInternal, "the range of replay %s: %w", r.ID, err)
	}
	var seq, run, hook int64
	err = s.write(ctx, func(c *sqlite.Conn) error {
		w, err := webhook(c, r.RepoID, r.WebhookID)
		if err != nil {
			return err
		}
		if run, err = nextNumbers(c, "run", 1); err != nil {
			return err
		}
		err = exec(c, `INSERT INTO posthorn_replays (id, webhook, run, version, state, range, before, examined, matched, succeeded, failed, created_at, ended_at)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, ?, 0)`,
			r.ID, w.Seq, run, r.Version, string(r.State), string(which), r.Before, r.Examined, r.Matched, r.CreatedAt)
		if resultCode(err) == sqlite.ResultConstraintUnique {
			return errReplaying()
		}
		seq, hook = c.LastInsertRowID(), w.Seq
		return err
	})
	if err == nil {
		r.Seq, r.Run, r.WebhookSeq = seq, run, hook
	}
	return err
}

func errReplaying() error {
	return posthorn.Errorf(posthorn.CodeConflict, "the webhook has a replay that has not ended: wait for that, or cancel it")
}

// A replay that has not ended is counted in the log.
const (
	replayColumns = `r.seq, r.id, w.repo_id, w.id, r.webhook, r.run, r.version, r.state, r.range, r.before, r.examined, r.matched, r.created_at, r.ended_at`
	replayCounts  = `, CASE WHEN r.ended_at <> 0 THEN r.succeeded ELSE ` + countSucceeded + ` END, CASE WHEN r.ended_at <> 0 THEN r.failed ELSE ` + countFailed + ` END`

	countSucceeded = "(SELECT count(*) FROM posthorn_deliveries d WHERE d.trigger = 'replay' AND d.run = r.run AND d.success = 1)"
	countFailed    = "(SELECT count(*) FROM posthorn_deliveries d WHERE d.trigger = 'replay' AND d.run = r.run AND d.success = 0 AND d.next_attempt_at = 0)"
	liveReplays    = " FROM posthorn_replays r JOIN posthorn_webhooks w ON w.seq = r.webhook AND w.deleted = 0"
)

func scanReplay(st *sqlite.Stmt) (posthorn.Replay, error) {
	r := posthorn.Replay{
		Seq: st.ColumnInt64(0), ID: st.ColumnText(1), RepoID: st.ColumnText(2), WebhookID: st.ColumnText(3), WebhookSeq: st.ColumnInt64(4),
		Run: st.ColumnInt64(5), Version: st.ColumnInt64(6), State: posthorn.ReplayState(st.ColumnText(7)),
		Before: st.ColumnInt64(9), Examined: st.ColumnInt64(10), Matched: st.ColumnInt64(11),
		CreatedAt: timeOf(st.ColumnInt64(12)), EndedAt: timeOf(st.ColumnInt64(13)),
	}
	if err := json.Unmarshal(bytesOf(st, 8), &r.ReplayRange); err != nil {
		return r, fmt.Errorf("the range of replay %s: %w", r.ID, err)
	}
	return r, nil
}

// Replays implements [posthorn.Store].
func (s *Store) Replays(ctx context.Context, q posthorn.ReplayQuery) (page posthorn.Page[posthorn.Replay], err error) {
	limit, rows := pageRows(q.Limit)
	where, which := " WHERE r.webhook = ? AND r.seq < ? ORDER BY r.seq DESC LIMIT ?", []any{before(q.Before), rows}
	if q.ID != "" { // which has an index of its own
		where, which = " WHERE r.webhook = ? AND r.id = ?", []any{q.ID}
	}
	err = s.read(ctx, func(c *sqlite.Conn) error {
		w, err := webhook(c, q.RepoID, q.WebhookID)
		if err != nil {
			return err
		}
		return query(c, func(st *sqlite.Stmt) error {
			if len(page.Items) == limit {
				page.Next = page.Items[limit-1].Seq
				return nil
			}
			r, err := scanReplay(st)
			r.Succeeded, r.Failed = st.ColumnInt64(14), st.ColumnInt64(15)
			page.Items = append(page.Items, r)
			return err
		}, "SELECT "+replayColumns+replayCounts+liveReplays+where, append([]any{w.Seq}, which...)...)
	})
	if err != nil {
		return posthorn.Page[posthorn.Replay]{}, err
	}
	return page, nil
}

// OpenReplays implements [posthorn.Store].
func (s *Store) OpenReplays(ctx context.Context, after int64, limit int) (open []posthorn.Replay, err error) {
	err = s.read(ctx, func(c *sqlite.Conn) error {
		return query(c, func(st *sqlite.Stmt) error {
			r, err := scanReplay(st)
			open = append(open, r)
			return err
		}, "SELECT "+replayColumns+liveReplays+" WHERE r.ended_at = 0 AND r.seq > ? ORDER BY r.seq LIMIT ?", after, limit)
	})
	if err != nil {
		return nil, err
	}
	return open, nil
}

// UpdateReplay implements [posthorn.Store].
func (s *Store) UpdateReplay(ctx context.Context, r *posthorn.Replay, events []*posthorn.AcceptedEvent) error {
	var next posthorn.Replay
	err := s.write(ctx, func(c *sqlite.Conn) error {
		next = *r
		next.Version++
		if err := sameReplay(c, r); err != nil {
			return err
		}
		for _, e := range events {
			n, err := queryInt(c, "SELECT count(*) FROM posthorn_events WHERE seq = ?", e.Seq)
			if err != nil {
				return err
			}
			if n == 0 {
				continue
			}
			next.Matched++
			err = exec(c, insertQueued, r.WebhookSeq, laneWaiting, e.CreatedAt, e.Seq, r.Run, 1, string(posthorn.TriggerReplay), 0, nil)
			if err != nil {
				return err
			}
		}
		return exec(c, `UPDATE posthorn_replays SET version = ?, state = ?, before = ?, examined = ?, matched = ?, succeeded = ?, failed = ?, ended_at = ?
			WHERE seq = ?`, next.Version, string(r.State), r.Before, r.Examined, next.Matched, r.Succeeded, r.Failed, r.EndedAt, r.Seq)
	})
	if err == nil {
		*r = next
	}
	return err
}

// sameReplay returns an error if a replay has changed or ended, or its webhook is gone.
func sameReplay(c *sqlite.Conn, r *posthorn.Replay) error {
	if _, ok, err := findWebhook(c, r.WebhookSeq); err != nil || !ok {
		return orNot(err, errNoWebhook())
	}
	same, err := queryRow(c, func(*sqlite.Stmt) {}, "SELECT 1 FROM posthorn_replays WHERE seq = ? AND version = ? AND ended_at = 0", r.Seq, r.Version)
	if err != nil || !same {
		return orNot(err, errReplayChanged())
	}
	return nil
}

func errReplayChanged() error {
	return posthorn.Errorf(posthorn.CodeConflict, "the replay has changed meanwhile")
}

// orNot returns an error, or where there is none another one.
func orNot(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// FreeReplayed implements [posthorn.Store]. Mostly there is nothing to free, and nothing is written then.
func (s *Store) FreeReplayed(ctx context.Context, r *posthorn.Replay, limit posthorn.ReplayLimit) (freed int, left bool, err error) {
	const of = "FROM posthorn_queue WHERE trigger = 'replay' AND run = ? "
	const untried = of + "AND attempt = 1 AND lane < 5"
	const retried = of + "AND attempt > 1"
	const waiting = "SELECT due_at, event " + of + "AND attempt = 1 AND lane = 5 ORDER BY event LIMIT ?"
	type entry struct{ dueAt, event int64 }
	var found []entry
	err = s.read(ctx, func(c *sqlite.Conn) error {
		n, err := queryInt(c, "SELECT count(*) FROM (SELECT 1 "+untried+" LIMIT ?)", r.Run, limit.Untried)
		if err != nil {
			return err
		}
		if left, err = queryRow(c, func(*sqlite.Stmt) {}, "SELECT 1 "+retried+" LIMIT 1", r.Run); err != nil {
			return err
		}
		left = left || n > 0
		room := limit.Untried - int(n)
		if limit.Alone && left {
			room = 0
		}
		if room == 0 { // which of those that wait is asked for all the same, whether there is one
			some, err := queryRow(c, func(*sqlite.Stmt) {}, waiting, r.Run, 1)
			left = left || some
			return err
		}
		return query(c, func(st *sqlite.Stmt) error {
			left = true
			found = append(found, entry{st.ColumnInt64(0), st.ColumnInt64(1)})
			return nil
		}, waiting, r.Run, room)
	})
	if err != nil || len(found) == 0 {
		return 0, left, err
	}
	lane := laneAutomatic
	if limit.Held {
		lane = laneHeld
	}
	err = s.write(ctx, func(c *sqlite.Conn) error {
		freed = 0
		if err := sameReplay(c, r); err != nil {
			return err
		}
		for _, e := range found {
			err := exec(c, "UPDATE posthorn_queue SET lane = ?, due_at = ? WHERE webhook = ? AND lane = ? AND due_at = ? AND event = ? AND run = ?",
				lane, limit.Now, r.WebhookSeq, laneWaiting, e.dueAt, e.event, r.Run)
			if err != nil {
				return err
			}
			freed += c.Changes()
		}
		return nil
	})
	return freed, left, err
}

// DropReplayed implements [posthorn.Store].
func (s *Store) DropReplayed(ctx context.Context, r *posthorn.Replay, limit int) (dropped int, left bool, err error) {
	err = s.write(ctx, func(c *sqlite.Conn) error {
		err := exec(c, `DELETE FROM posthorn_queue WHERE (webhook, lane, due_at, event, run) IN (
			SELECT webhook, lane, due_at, event, run FROM posthorn_queue WHERE trigger = 'replay' AND run = ? AND lane <> ? LIMIT ?)`, r.Run, laneLeased, limit)
		if err != nil {
			return err
		}
		dropped = c.Changes()
		left, err = queryRow(c, func(*sqlite.Stmt) {}, "SELECT 1 FROM posthorn_queue WHERE trigger = 'replay' AND run = ? LIMIT 1", r.Run)
		return err
	})
	return dropped, left, err
}

// pruneReplays removes replays that have ended.
func (s *Store) pruneReplays(ctx context.Context, before time.Time) error {
	for {
		n := 0
		err := s.write(ctx, func(c *sqlite.Conn) error {
			err := exec(c, `DELETE FROM posthorn_replays WHERE seq IN
				(SELECT seq FROM posthorn_replays WHERE ended_at > 0 AND ended_at < ? ORDER BY ended_at LIMIT ?)`, before, pruneChunk)
			n = c.Changes()
			return err
		})
		if err != nil || n < pruneChunk {
			return err
		}
	}
}
