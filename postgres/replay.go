package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/musehub/posthorn"
)

// selectOutcomes looks for the deliveries of events by the times that their ids share with them: once for each millisecond, which may have many.
const selectOutcomes = `WITH logged AS MATERIALIZED (
		SELECT d.event, count(*) AS attempts, bool_or(d.success) AS delivered FROM unnest($3::uuid[], $4::uuid[]) AS ms (first, behind)
		CROSS JOIN LATERAL (SELECT d.event, d.success FROM posthorn.deliveries d
			WHERE d.id >= ms.first AND d.id < ms.behind AND d.webhook + 0 = $1 OFFSET 0) d
		GROUP BY d.event
	)
	SELECT coalesce(l.attempts, 0), coalesce(l.delivered, false),
		EXISTS (SELECT FROM posthorn.queue q WHERE q.event = g.event AND q.webhook = $1)
		OR EXISTS (SELECT FROM posthorn.promises p CROSS JOIN LATERAL unnest(p.events, p.webhooks) AS u (event, webhook)
			WHERE p.block = g.event / 64 AND u.event = g.event AND u.webhook = $1)
	FROM unnest($2::bigint[]) WITH ORDINALITY AS g (event, n) LEFT JOIN logged l USING (event) ORDER BY g.n`

// Outcomes implements [posthorn.Store].
func (s *Store) Outcomes(ctx context.Context, webhookSeq int64, events []*posthorn.AcceptedEvent) (outcomes []posthorn.Outcome, err error) {
	if len(events) == 0 {
		return nil, nil
	}
	seqs, times := make([]int64, len(events)), make([]int64, len(events))
	for i, e := range events {
		seqs[i], times[i] = e.Seq, e.CreatedAt.UnixMilli()
	}
	slices.Sort(times)
	var first, behind []pgtype.UUID
	for _, ms := range slices.Compact(times) {
		first, behind = append(first, idsFrom(ms)), append(behind, idsFrom(ms+1))
	}
	err = s.get(ctx, func(b *batch) {
		b.queue(selectOutcomes, webhookSeq, seqs, first, behind).Query(func(rows pgx.Rows) (err error) {
			outcomes, err = pgx.CollectRows(rows, pgx.RowToStructByPos[posthorn.Outcome])
			return err
		})
	})
	return outcomes, err
}

// Queued implements [posthorn.Store].
func (s *Store) Queued(ctx context.Context, webhookSeq int64, event *posthorn.AcceptedEvent) (entries []posthorn.QueuedEntry, err error) {
	err = s.get(ctx, func(b *batch) {
		b.queue(`SELECT q.trigger, q.attempt, q.due_at, coalesce(q.node > 0, false), coalesce(q.node = -3, false), coalesce(f.id, '')
			FROM posthorn.queue q LEFT JOIN LATERAL (
				SELECT e.id FROM posthorn.queue f JOIN posthorn.events e ON e.seq = f.event
				WHERE q.node IN (0, -1) AND f.webhook = q.webhook AND f.ordering = q.ordering AND f.ordering <> 0 AND (f.node IS NULL OR f.node > 0)
				ORDER BY f.turn LIMIT 1
			) f ON true
			WHERE q.event = $1 AND q.webhook = $2 ORDER BY q.run`, event.Seq, webhookSeq).Query(func(rows pgx.Rows) (err error) {
			entries, err = pgx.CollectRows(rows, pgx.RowToStructByPos[posthorn.QueuedEntry])
			return err
		})
	})
	for i := range entries {
		entries[i].DueAt = entries[i].DueAt.UTC()
	}
	return entries, err
}

// CreateReplay implements [posthorn.Store].
func (s *Store) CreateReplay(ctx context.Context, r *posthorn.Replay) error {
	if !storable(r.RepoID, r.WebhookID) {
		return errNoWebhook()
	}
	which, err := json.Marshal(r.ReplayRange)
	if err != nil {
		return posthorn.Errorf(posthorn.CodeInternal, "the range of replay %s: %w", r.ID, err)
	}
	var seq, run int64
	var w posthorn.Webhook
	err = s.write(ctx, func(ctx context.Context, t *transaction) error {
		if err := t.run(ctx, func(b *batch) { selectWebhook(b, r.RepoID, r.WebhookID, " FOR SHARE", &w) }); err != nil {
			return err
		}
		return t.run(ctx, func(b *batch) {
			b.queue(`INSERT INTO posthorn.replays (id, webhook, version, state, range, before, examined, matched, created_at)
				VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING RETURNING seq, run`,
				r.ID, w.Seq, r.Version, string(r.State), string(which), r.Before, r.Examined, r.Matched, micros(r.CreatedAt),
			).QueryRow(func(row pgx.Row) error {
				return found(row.Scan(&seq, &run), posthorn.Errorf(posthorn.CodeConflict,
					"the webhook has a replay that has not ended: wait for that, or cancel it"))
			})
		})
	})
	if err == nil {
		r.Seq, r.Run, r.WebhookSeq = seq, run, w.Seq
	}
	return err
}

// A replay that has not ended is counted in the log.
const (
	replayColumns = `r.seq, r.id, w.repo_id, w.id, r.webhook, r.run, r.version, r.state, r.range, r.before, r.examined, r.matched, r.created_at, r.ended_at`
	replayCounts  = `, CASE WHEN r.ended_at IS NOT NULL THEN r.succeeded ELSE ` + countSucceeded + ` END,
		CASE WHEN r.ended_at IS NOT NULL THEN r.failed ELSE ` + countFailed + ` END`

	countSucceeded = "(SELECT count(*) FROM posthorn.deliveries d WHERE d.trigger = 'replay' AND d.run = r.run AND d.success)"
	countFailed    = "(SELECT count(*) FROM posthorn.deliveries d WHERE d.trigger = 'replay' AND d.run = r.run AND NOT d.success AND d.next_attempt_at IS NULL)"
	liveReplays    = " FROM posthorn.replays r JOIN posthorn.webhooks w ON w.seq = r.webhook AND NOT w.deleted"
)

// scanReplay scans replayColumns and what comes after them.
func scanReplay(row pgx.Row, counts ...any) (r posthorn.Replay, err error) {
	var which string
	var ended *time.Time
	err = row.Scan(append([]any{&r.Seq, &r.ID, &r.RepoID, &r.WebhookID, &r.WebhookSeq, &r.Run, &r.Version, &r.State, &which, &r.Before,
		&r.Examined, &r.Matched, &r.CreatedAt, &ended}, counts...)...)
	if err != nil {
		return r, err
	}
	r.CreatedAt = r.CreatedAt.UTC()
	if ended != nil {
		r.EndedAt = ended.UTC()
	}
	if err := json.Unmarshal([]byte(which), &r.ReplayRange); err != nil {
		return r, fmt.Errorf("the range of replay %s: %w", r.ID, err)
	}
	return r, nil
}

// Replays implements [posthorn.Store].
func (s *Store) Replays(ctx context.Context, q posthorn.ReplayQuery) (page posthorn.Page[posthorn.Replay], err error) {
	if !storable(q.RepoID, q.WebhookID) {
		return page, errNoWebhook()
	}
	err = s.read(ctx, func(ctx context.Context, t *transaction) error {
		var w posthorn.Webhook
		if err := t.run(ctx, func(b *batch) { selectWebhook(b, q.RepoID, q.WebhookID, "", &w) }); err != nil || !storable(q.ID) {
			return err
		}
		where, which := " WHERE r.webhook = $1 AND r.seq < $2 ORDER BY r.seq DESC LIMIT $3::bigint", []any{w.Seq, before(q.Before), pageRows(q.Limit)}
		if q.ID != "" { // which has an index of its own
			where, which = " WHERE r.webhook = $1 AND r.id = $2", []any{w.Seq, q.ID}
		}
		return t.run(ctx, func(b *batch) {
			b.queue("SELECT "+replayColumns+replayCounts+liveReplays+where, which...).Query(func(rows pgx.Rows) error {
				for rows.Next() {
					if q.Limit > 0 && len(page.Items) == q.Limit {
						page.Next = page.Items[q.Limit-1].Seq
						return nil
					}
					var succeeded, failed int64
					r, err := scanReplay(rows, &succeeded, &failed)
					if err != nil {
						return err
					}
					r.Succeeded, r.Failed = succeeded, failed
					page.Items = append(page.Items, r)
				}
				return nil
			})
		})
	})
	if err != nil {
		return posthorn.Page[posthorn.Replay]{}, err
	}
	return page, nil
}

// OpenReplays implements [posthorn.Store].
func (s *Store) OpenReplays(ctx context.Context, after int64, limit int) (open []posthorn.Replay, err error) {
	err = s.get(ctx, func(b *batch) {
		b.queue("SELECT "+replayColumns+liveReplays+" WHERE r.ended_at IS NULL AND r.seq > $1 ORDER BY r.seq LIMIT $2", after, limit).
			Query(func(rows pgx.Rows) (err error) {
				open, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (posthorn.Replay, error) { return scanReplay(row) })
				return err
			})
	})
	return open, err
}

// updateReplay locks the events, so that Prune does not remove one before its entry is there.
const updateReplay = `WITH there AS MATERIALIZED (
		SELECT e.seq, e.created_at FROM posthorn.events e WHERE e.seq = ANY ($9::bigint[]) FOR KEY SHARE
	), waiting AS (
		INSERT INTO posthorn.queue (event, webhook, run, attempt, trigger, due_at, node)
		SELECT there.seq, $10, $11, 1, 'replay', there.created_at, -3 FROM there ORDER BY there.seq RETURNING 1
	)
	UPDATE posthorn.replays r SET version = r.version + 1, state = $2, before = $3, examined = $4, matched = $5 + (SELECT count(*) FROM waiting),
		ended_at = $6, succeeded = $7, failed = $8
	WHERE r.seq = $1 RETURNING version, matched`

// UpdateReplay implements [posthorn.Store].
func (s *Store) UpdateReplay(ctx context.Context, r *posthorn.Replay, events []*posthorn.AcceptedEvent) error {
	var next posthorn.Replay
	seqs := make([]int64, len(events))
	for i, e := range events {
		seqs[i] = e.Seq
	}
	err := s.write(ctx, func(ctx context.Context, t *transaction) error {
		next = *r
		if err := t.run(ctx, func(b *batch) { keepReplay(b, r) }); err != nil {
			return err
		}
		return t.run(ctx, func(b *batch) {
			b.queue(updateReplay, r.Seq, string(r.State), r.Before, r.Examined, r.Matched, nullTime(r.EndedAt), r.Succeeded, r.Failed,
				seqs, r.WebhookSeq, r.Run,
			).QueryRow(func(row pgx.Row) error { return row.Scan(&next.Version, &next.Matched) })
		})
	})
	if err == nil {
		*r = next
	}
	return err
}

func errReplayChanged() error {
	return posthorn.Errorf(posthorn.CodeConflict, "the replay has changed meanwhile")
}

// keepReplay keeps a replay from being changed by others, and its webhook from being deleted before the transaction's entries are there, which
// go with it. Of two that free entries at the same time, the second sees what the first has freed.
func keepReplay(b *batch, r *posthorn.Replay) {
	one := 0
	b.queue("SELECT 1 FROM posthorn.webhooks WHERE seq = $1 AND NOT deleted FOR SHARE", r.WebhookSeq).
		QueryRow(func(row pgx.Row) error { return found(row.Scan(&one), errNoWebhook()) })
	b.queue("SELECT 1 FROM posthorn.replays WHERE seq = $1 AND version = $2 AND ended_at IS NULL FOR UPDATE", r.Seq, r.Version).
		QueryRow(func(row pgx.Row) error { return found(row.Scan(&one), errReplayChanged()) })
}

// While some session keeps a transaction open, what a replay has let go and done with can't be removed from its indexes, and each look would
// walk past more of it than the one before. So the store remembers from which events on to look. Entries are let go in the order of their
// events and none is added meanwhile, so there is nothing before these; all the same it is looked at from the beginning after a while, and before
// it is said that there is nothing left. What is tried again has no such order, and is asked for only where nothing else decides.

// replayedFrom is from which events on a replay has entries that were let go and not tried, and such that wait.
type replayedFrom struct {
	untried, waiting int64
	whole            time.Time // when it was last looked at from the beginning
}

type replayed struct {
	mu    sync.Mutex
	byRun map[int64]replayedFrom
}

// maxReplayed is of how many replays it is remembered.
const maxReplayed = 1024

func (r *replayed) from(run int64, now time.Time) replayedFrom {
	r.mu.Lock()
	defer r.mu.Unlock()
	if from := r.byRun[run]; now.Sub(from.whole) < wholeEvery {
		return from
	}
	return replayedFrom{whole: now}
}

func (r *replayed) set(run int64, from replayedFrom) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byRun == nil {
		r.byRun = map[int64]replayedFrom{}
	}
	if _, ok := r.byRun[run]; !ok && len(r.byRun) >= maxReplayed {
		for other := range r.byRun { // any
			delete(r.byRun, other)
			break
		}
	}
	r.byRun[run] = from
}

// replayLook says of a replay how many of its entries were let go and not tried, from which event on, the first event that waits, and if there are
// none of these, or none of the first ones and $5, whether some are to be tried again.
const replayLook = `WITH untried AS MATERIALIZED (
		SELECT q.event FROM posthorn.queue q
		WHERE q.run = $1 AND q.trigger = 'replay' AND coalesce(q.node, 0) <> -3 AND q.attempt = 1 AND q.event >= $2 ORDER BY q.event LIMIT $4
	), waiting AS MATERIALIZED (
		SELECT q.event FROM posthorn.queue q WHERE q.run = $1 AND q.node = -3 AND q.event >= $3 ORDER BY q.event LIMIT 1
	), found AS (
		SELECT (SELECT count(*) FROM untried) untried, (SELECT min(event) FROM untried) first_untried, (SELECT event FROM waiting) first_waiting
	)
	SELECT untried, first_untried, first_waiting, CASE WHEN untried = 0 AND ($5 OR first_waiting IS NULL) THEN
		EXISTS (SELECT FROM posthorn.queue q WHERE q.run = $1 AND q.trigger = 'replay' AND coalesce(q.node, 0) <> -3 AND q.attempt > 1)
		ELSE false END FROM found`

// replayEntries is what a look at the entries of a replay has found.
type replayEntries struct {
	from    replayedFrom
	untried int  // at most as many as were asked for
	waiting bool // some
	retried bool // some, if that was asked for
}

func (e *replayEntries) left() bool { return e.untried > 0 || e.waiting || e.retried }

// look looks at the entries of a replay from e.from on, and moves that on.
func (e *replayEntries) look(b *batch, r *posthorn.Replay, limit posthorn.ReplayLimit) {
	b.queue(replayLook, r.Run, e.from.untried, e.from.waiting, limit.Untried, limit.Alone).QueryRow(func(row pgx.Row) error {
		var untried, waiting *int64
		if err := row.Scan(&e.untried, &untried, &waiting, &e.retried); err != nil {
			return err
		}
		if e.waiting = waiting != nil; e.waiting {
			e.from.waiting = *waiting
		}
		if e.from.untried = e.from.waiting; untried != nil {
			e.from.untried = *untried
		}
		return nil
	})
}

const freeReplayed = `UPDATE posthorn.queue SET node = $3, due_at = $4
	WHERE ctid = ANY (ARRAY(SELECT ctid FROM posthorn.queue WHERE run = $1 AND node = -3 AND event >= $5 ORDER BY event LIMIT $2 FOR UPDATE))`

// FreeReplayed implements [posthorn.Store]. Mostly there is nothing to free, and nothing is locked then.
func (s *Store) FreeReplayed(ctx context.Context, r *posthorn.Replay, limit posthorn.ReplayLimit) (freed int, left bool, err error) {
	found, err := s.lookReplayed(ctx, r, limit)
	if err != nil || found.room(limit) == 0 {
		return 0, found.left(), err
	}
	var node *int64
	if limit.Held {
		held := int64(heldNode)
		node = &held
	}
	err = s.write(ctx, func(ctx context.Context, t *transaction) error {
		freed = 0
		again := replayEntries{from: found.from}
		err := t.run(ctx, func(b *batch) {
			keepReplay(b, r)
			again.look(b, r, limit)
		})
		if err != nil || again.room(limit) == 0 {
			return err
		}
		return t.run(ctx, func(b *batch) {
			b.queue(freeReplayed, r.Run, again.room(limit), node, micros(limit.Now), again.from.waiting).Exec(rowsAffected(&freed))
		})
	})
	if freed > 0 {
		s.lanes.freed(r.WebhookSeq, limit.Now)
	}
	return freed, true, err
}

// room is how many more entries may be let go; none, if none waits.
func (e *replayEntries) room(limit posthorn.ReplayLimit) int {
	if !e.waiting || limit.Alone && (e.untried > 0 || e.retried) {
		return 0
	}
	return limit.Untried - e.untried
}

// lookReplayed looks at the entries of a replay, and remembers from where on to do so the next time.
func (s *Store) lookReplayed(ctx context.Context, r *posthorn.Replay, limit posthorn.ReplayLimit) (found replayEntries, err error) {
	now := time.Now()
	from := s.replayed.from(r.Run, now)
	for {
		found = replayEntries{from: from}
		if err := s.get(ctx, func(b *batch) { found.look(b, r, limit) }); err != nil {
			return replayEntries{}, err
		}
		if found.left() || from.untried == 0 && from.waiting == 0 {
			s.replayed.set(r.Run, found.from)
			return found, nil
		}
		from = replayedFrom{whole: now}
	}
}

const dropReplayed = `WITH page AS MATERIALIZED (
		SELECT * FROM (SELECT ctid AS place FROM posthorn.queue WHERE run = $1 AND node = -3 AND event >= $3 ORDER BY event LIMIT $2 FOR UPDATE SKIP LOCKED) waiting
		UNION ALL
		SELECT * FROM (SELECT ctid AS place FROM posthorn.queue WHERE run = $1 AND trigger = 'replay' AND coalesce(node, 0) <> -3
			AND coalesce(node, 0) <= 0 LIMIT $2 FOR UPDATE SKIP LOCKED) free
		LIMIT $2
	), gone AS (
		DELETE FROM posthorn.queue WHERE ctid = ANY (ARRAY(SELECT place FROM page)) RETURNING 1
	) SELECT count(*) FROM gone`

// DropReplayed implements [posthorn.Store].
func (s *Store) DropReplayed(ctx context.Context, r *posthorn.Replay, limit int) (dropped int, left bool, err error) {
	from := s.replayed.from(r.Run, time.Now())
	err = s.write(ctx, func(ctx context.Context, t *transaction) error {
		return t.run(ctx, func(b *batch) {
			b.queue(dropReplayed, r.Run, limit, from.waiting).QueryRow(func(row pgx.Row) error { return row.Scan(&dropped) })
		})
	})
	if err != nil {
		return 0, false, err
	}
	found, err := s.lookReplayed(ctx, r, posthorn.ReplayLimit{Untried: 1})
	return dropped, found.left(), err
}

// pruneReplays removes replays that have ended.
func (s *Store) pruneReplays(ctx context.Context, before time.Time) error {
	for {
		n := 0
		err := s.write(ctx, func(ctx context.Context, t *transaction) error {
			return t.run(ctx, func(b *batch) {
				b.queue(`DELETE FROM posthorn.replays WHERE seq = ANY (ARRAY(
					SELECT seq FROM posthorn.replays WHERE ended_at < $1 ORDER BY ended_at LIMIT $2))`, micros(before), pruneChunk).Exec(rowsAffected(&n))
			})
		})
		if err != nil || n < pruneChunk {
			return err
		}
	}
}
