package posthorn

import (
	"context"
	"maps"
	"sync"
	"sync/atomic"
	"time"
)

// Replay is a range of past events that are sent to one webhook. It is durable: any node goes on with it after a crash.
//
// First it is planned, from the newest event to the oldest: what is to be sent gets entries in the queue that wait. Then these are
// let go from the oldest on, a few at a time, so that new events of the webhook wait behind few of them. Each has the whole retry policy.
type Replay struct {
	Seq        int64 // the store's number for it, ascending in the order of creation
	ID         string
	RepoID     string
	WebhookID  string
	WebhookSeq int64
	Run        int64 // of all its deliveries
	Version    int64 // which the store counts up with each change
	CreatedAt  time.Time
	EndedAt    time.Time // zero: it has not ended

	ReplayRange

	State ReplayState
	// Before is up to where it is planned: the next events are those whose Seq is smaller. Zero: from the newest.
	Before    int64
	Examined  int64 // events of the range that were looked at
	Matched   int64 // of these, those to be sent
	Succeeded int64 // of these, those that were delivered
	Failed    int64 // of these, those whose last attempt has failed
}

// ReplayRange says which events are replayed. A webhook gets only what it wants as it is now: its types of events, and its filter. What is
// on its way to it already is left out, and so are pings and tests. A store keeps it as JSON.
type ReplayRange struct {
	Since      time.Time  `json:"since"`                // when the first events were accepted, inclusive
	Until      time.Time  `json:"until"`                // exclusive; zero, or later than now: now
	Only       ReplayOnly `json:"only"`                 // empty: [ReplayFailed]
	EventTypes []string   `json:"eventTypes,omitempty"` // of these types, or patterns, only; none: all that the webhook wants
	DryRun     bool       `json:"dryRun,omitempty"`     // find out how many there are, and send nothing
}

// ReplayOnly says which events of its range a replay sends.
type ReplayOnly string

// What a replay can send.
const (
	ReplayFailed ReplayOnly = "failed" // of which all attempts have failed
	// ReplayMissed are those that no attempt was made of: the webhook was made later, was inactive, or did not want them then. An event that no webhook
	// wanted is there only with [Config.KeepAllEvents].
	ReplayMissed ReplayOnly = "missed"
	ReplayAll    ReplayOnly = "all" // those that were delivered, too
)

// ReplayState is how far a replay has come.
type ReplayState string

// The states of a replay. It has ended when it is done or canceled.
const (
	ReplayPlanning  ReplayState = "planning"
	ReplayRunning   ReplayState = "running"
	ReplayCanceling ReplayState = "canceling"
	ReplayCanceled  ReplayState = "canceled"
	ReplayDone      ReplayState = "done"
)

// Ended reports whether it stays as it is.
func (s ReplayState) Ended() bool { return s == ReplayCanceled || s == ReplayDone }

// ReplayQuery selects replays of a webhook, newest first.
type ReplayQuery struct {
	RepoID    string
	WebhookID string
	ID        string // only this one; empty: all
	Before    int64  // only those whose Seq is smaller; zero: from the newest
	Limit     int
}

// Outcome is what the log and the queue have of an event for a webhook.
type Outcome struct {
	Attempts  int  // in the log, of all runs
	Delivered bool // one of them was a success
	Queued    bool // there is an entry
}

// ReplayLimit is how many entries of a replay may be let go.
type ReplayLimit struct {
	Now     time.Time // when they are due
	Untried int       // how many that no attempt was made of may be in the queue then, beside those that wait
	Alone   bool      // with none at all in the queue beside those that wait
	Held    bool      // they become held, and not free
}

const (
	// replayUntried is how many entries of a replay are let go ahead of their first attempts.
	replayUntried = 64
	// replayEvery is how often all replays are looked at, and findReplays how often while there are none.
	replayEvery = time.Second
	findReplays = 10 * time.Second
	// replayPause is the least time between two rounds.
	replayPause = 10 * time.Millisecond
	// replayLeft is for how long a replay is left to another node that plans it, too.
	replayLeft = 5 * time.Second
	// replayRound is about how long a node moves replays on until it asks again which there are, and which are canceled.
	replayRound = 200 * time.Millisecond
	// replayWait is for how long StartReplay waits for the end of planning.
	replayWait = 5 * time.Second

	// muchOlder is by how much all of a page has to be too old for there to be no younger events behind it: an event gets its number when it is
	// written, which may be storeTimeout after its time.
	muchOlder = 5 * time.Minute

	replayDrop = 500 // entries at a time
	replayPage = 100
)

// StartReplay sends past events of a range to a webhook. What it returns is durable, and has the number of events, in Matched, unless finding
// that out takes more than five seconds: then its State is [ReplayPlanning] still.
//
// CodeInvalid with the field at fault, CodeConflict for a webhook that is not active (but for a dry run) or has a replay that has not ended.
func (d *Dispatcher) StartReplay(ctx context.Context, repoID, webhookID string, of ReplayRange) (Replay, error) {
	w, err := d.Webhook(ctx, repoID, webhookID)
	if err != nil {
		return Replay{}, err
	}
	now := d.clock.now()
	if of.Until.IsZero() || of.Until.After(now) {
		of.Until = now.Add(time.Microsecond) // what was accepted at this very moment is there
	}
	of.Since, of.Until = of.Since.UTC().Truncate(time.Microsecond), of.Until.UTC().Truncate(time.Microsecond)
	if of.Only == "" {
		of.Only = ReplayFailed
	}
	kept := d.kept(now)
	if !of.Since.IsZero() && of.Since.Before(kept) && kept.Before(of.Until) {
		of.Since = kept
	}
	switch {
	case !w.Active && !of.DryRun:
		return Replay{}, Errorf(CodeConflict, "the webhook is not active%s: make it active, and then replay what it has missed", w.whyInactive())
	case of.Since.IsZero():
		return Replay{}, invalid("since", "it is missing")
	case !kept.Before(of.Until):
		return Replay{}, invalid("until", "what was before it is no longer stored (--retention, Config.Retention)")
	case !of.Since.Before(of.Until):
		return Replay{}, invalid("since", "it is not before until, nor before now")
	case of.Only != ReplayFailed && of.Only != ReplayMissed && of.Only != ReplayAll:
		return Replay{}, invalid("only", "%.32q is not one of %s, %s and %s", of.Only, ReplayFailed, ReplayMissed, ReplayAll)
	}
	if err := d.checkTypes("eventTypes", w.RepoID, of.EventTypes); err != nil {
		return Replay{}, err
	}
	r := Replay{ID: newID(now), RepoID: repoID, WebhookID: webhookID, CreatedAt: now, ReplayRange: of, State: ReplayPlanning}
	writing := ctx
	if !of.DryRun {
		writing = d.audited(ctx, AuditEntry{Action: "replay.create", RepoID: repoID, Subject: r.ID, Detail: "webhook " + webhookID + ", " + string(of.Only)})
	}
	if err := d.store.CreateReplay(writing, &r); err != nil {
		return Replay{}, err
	}
	d.replays.look()
	return d.planned(ctx, r), nil
}

// kept is since when events are stored with all of their deliveries. Of some that are older it is no longer known whether they were delivered.
func (d *Dispatcher) kept(now time.Time) time.Time {
	return now.Add(-d.cfg.Retention).Truncate(time.Microsecond)
}

// planned waits for a replay to be planned, if that takes no time.
func (d *Dispatcher) planned(ctx context.Context, r Replay) Replay {
	ctx, cancel := context.WithTimeout(ctx, replayWait)
	defer cancel()
	for r.State == ReplayPlanning && d.running() == nil {
		select {
		case <-ctx.Done():
			return r
		case <-time.After(2 * replayPause):
		}
		now, err := d.Replay(ctx, r.RepoID, r.WebhookID, r.ID)
		if ErrorCode(err) == CodeNotFound { // it went with its webhook
			return r
		}
		if err == nil {
			r = now
		}
	}
	return r
}

// Replay returns a replay of a webhook.
func (d *Dispatcher) Replay(ctx context.Context, repoID, webhookID, id string) (Replay, error) {
	if err := d.checkRepo(ctx, repoID); err != nil {
		return Replay{}, err
	}
	return d.counted(ctx, repoID, webhookID, id)
}

// counted returns a replay as the store counts it, whether or not the host still knows its repo.
func (d *Dispatcher) counted(ctx context.Context, repoID, webhookID, id string) (Replay, error) {
	page, err := d.store.Replays(ctx, ReplayQuery{RepoID: repoID, WebhookID: webhookID, ID: id, Limit: 1})
	if err == nil && len(page.Items) == 0 {
		err = Errorf(CodeNotFound, "Replay not found")
	}
	if err != nil {
		return Replay{}, err
	}
	return page.Items[0], nil
}

// Replays returns a page of a webhook's replays. Those that have ended are kept for [Config.Retention].
func (d *Dispatcher) Replays(ctx context.Context, q ReplayQuery) (Page[Replay], error) {
	if err := d.checkRepo(ctx, q.RepoID); err != nil {
		return Page[Replay]{}, err
	}
	return d.store.Replays(ctx, q)
}

// CancelReplay ends a replay: what waits, for its turn or for its next attempt, is not sent any more, within a second on all nodes. What is being sent at
// that moment still is. One that has ended stays as it is.
func (d *Dispatcher) CancelReplay(ctx context.Context, repoID, webhookID, id string) (Replay, error) {
	for {
		r, err := d.Replay(ctx, repoID, webhookID, id)
		if err != nil || r.State.Ended() || r.State == ReplayCanceling {
			return r, err
		}
		r.State = ReplayCanceling
		writing := d.audited(ctx, AuditEntry{Action: "replay.cancel", RepoID: repoID, Subject: id, Detail: "webhook " + webhookID})
		if err = d.store.UpdateReplay(writing, &r, nil); ErrorCode(err) != CodeConflict { // else it was being planned, or has ended
			d.replays.look()
			return r, err
		}
	}
}

// replayNews is what the node's other goroutines tell the one that moves replays on, and what that tells them.
type replayNews struct {
	signal chan struct{}                  // something was told
	known  atomic.Pointer[map[int64]bool] // runs of open replays; true: nothing of it is to be sent any more

	mu   sync.Mutex
	all  bool           // there is a reason to look at all replays
	runs map[int64]bool // those that something has happened to
}

func newReplayNews() *replayNews {
	return &replayNews{signal: make(chan struct{}, 1), runs: map[int64]bool{}}
}

// look has all replays looked at.
func (n *replayNews) look() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.all = true
	wake(n.signal)
}

// record tells that something has happened to a run: a result was recorded, or there is an entry of one that the node doesn't know.
func (n *replayNews) record(run int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.runs[run] = true
	wake(n.signal)
}

func (n *replayNews) take() (all bool, runs map[int64]bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	all, runs = n.all, n.runs
	n.all, n.runs = false, map[int64]bool{}
	return all, runs
}

// canceled reports whether nothing of a run is to be sent any more. It has a run looked for of which the node doesn't know yet.
func (n *replayNews) canceled(run int64) bool {
	var canceled, known bool
	if runs := n.known.Load(); runs != nil {
		canceled, known = (*runs)[run]
	}
	if !known {
		n.record(run)
	}
	return canceled
}

// openReplays is what the goroutine that moves replays on remembers of them.
type openReplays struct {
	any     bool
	last    int64               // Seq of the one that was moved on last
	left    int                 // how many are to be moved on until each has had its turn
	more    bool                // one of those before has more to do
	running map[int64]*Replay   // by run
	others  map[int64]time.Time // by Seq: those that another node is planning, and until when they are left to it
}

// keepReplaying moves replays on: all of them now and then, and at once those that something has happened to. Any node may do so with any of
// them: of two that do the same, the store lets one after the other, and the second finds it done.
func (d *Dispatcher) keepReplaying(ctx context.Context) {
	tick := time.NewTicker(replayEvery)
	defer tick.Stop()
	open := openReplays{others: map[int64]time.Time{}}
	all, looked := true, time.Time{}
	for {
		began := time.Now()
		asked, runs := d.replays.take()
		if asked {
			clear(open.others)
		}
		for run := range runs {
			r := open.running[run]
			if r == nil || time.Since(began) > replayRound || d.stepReplay(ctx, r, &open) {
				all = true // it is one that the node doesn't know, or there is more to do
			}
		}
		if all || asked {
			looked = began
			all = d.stepReplays(ctx, &open, asked)
		}
		select { // half of the time is left to what the store is for
		case <-ctx.Done():
			return
		case <-time.After(max(replayPause, time.Since(began))):
		}
		if all {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-d.replays.signal:
		case <-tick.C:
			all = open.any || time.Since(looked) >= findReplays
		}
	}
}

// stepReplays looks which replays are open, makes a step of each, or of those that there is time for, and reports whether there is more to do at once.
// It goes on where it was the last time, or has all of them before it.
func (d *Dispatcher) stepReplays(ctx context.Context, open *openReplays, all bool) (more bool) {
	replays, err := d.openReplays(ctx)
	if err != nil {
		open.any = true // for all it knows
		d.storeFailed("look for replays", err)
		return false
	}
	open.any, open.running = len(replays) > 0, map[int64]*Replay{}
	known := map[int64]bool{}
	next := 0 // after the one that was the last
	for i := range replays {
		r := &replays[i]
		known[r.Run] = r.State == ReplayCanceling
		if r.State == ReplayRunning {
			open.running[r.Run] = r
		}
		if r.Seq <= open.last {
			next = i + 1
		}
	}
	d.replays.known.Store(&known)
	maps.DeleteFunc(open.others, func(_ int64, until time.Time) bool { return time.Now().After(until) })
	if all || open.left == 0 {
		open.left, open.more = len(replays), false
	}
	open.left = min(open.left, len(replays))
	for began := time.Now(); open.left > 0; next++ {
		r := &replays[next%len(replays)]
		open.last = r.Seq
		open.left--
		if _, ok := open.others[r.Seq]; !ok && d.stepReplay(ctx, r, open) {
			open.more = true
		}
		if time.Since(began) > replayRound {
			break
		}
	}
	return open.left > 0 || open.more
}

// openReplays returns all replays that have not ended.
func (d *Dispatcher) openReplays(ctx context.Context) (replays []Replay, err error) {
	for after := int64(0); ; {
		page, err := d.store.OpenReplays(ctx, after, replayPage)
		if err != nil {
			return nil, err
		}
		replays = append(replays, page...)
		if len(page) < replayPage {
			return replays, nil
		}
		after = page[len(page)-1].Seq
	}
}

// stepReplay moves a replay on, and reports whether there is more to do at once.
func (d *Dispatcher) stepReplay(ctx context.Context, r *Replay, open *openReplays) (more bool) {
	planning := r.State == ReplayPlanning
	more, err := d.moveReplay(ctx, r)
	switch {
	case err == nil:
		return more
	case ErrorCode(err) == CodeConflict: // it has changed since it was read
		if planning {
			open.others[r.Seq] = time.Now().Add(replayLeft)
		}
	case ErrorCode(err) != CodeNotFound: // else it went with its webhook
		d.storeFailed("replay events", err)
	}
	return false
}

func (d *Dispatcher) moveReplay(ctx context.Context, r *Replay) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	var left bool
	dropped := 0
	switch r.State {
	case ReplayPlanning:
		return true, d.plan(ctx, r)
	case ReplayCanceling:
		dropped, left, err = d.store.DropReplayed(ctx, r, replayDrop)
	default:
		left, err = d.free(ctx, r)
	}
	if err != nil || left {
		return dropped > 0, err
	}
	counted, err := d.counted(ctx, r.RepoID, r.WebhookID, r.ID)
	if err != nil {
		return false, err
	}
	r.Succeeded, r.Failed = counted.Succeeded, counted.Failed
	if r.State == ReplayCanceling {
		r.State = ReplayCanceled
	} else {
		r.State = ReplayDone
	}
	r.EndedAt = d.clock.now()
	return false, d.store.UpdateReplay(ctx, r, nil)
}

// plan looks at the next events of a replay.
func (d *Dispatcher) plan(ctx context.Context, r *Replay) error {
	w, err := d.store.Webhook(ctx, r.RepoID, r.WebhookID)
	if err != nil {
		return err
	}
	page, err := d.store.Events(ctx, EventQuery{RepoID: r.RepoID, Until: r.Until, Before: r.Before, Limit: MaxScan})
	if err != nil {
		return err
	}
	var candidates []*AcceptedEvent
	tooOld := len(page.Items) > 0
	for i := range page.Items {
		e := &page.Items[i]
		if e.CreatedAt.Before(r.Since) {
			tooOld = tooOld && e.CreatedAt.Before(r.Since.Add(-muchOlder))
			continue
		}
		tooOld = false
		r.Examined++
		if e.Type == EventPing || e.Test || !r.covers(e.Type) {
			continue
		}
		state, _, err := d.unwantedBy(&w, e)
		if err != nil {
			return err
		}
		if state == "" {
			candidates = append(candidates, e)
		}
	}
	outcomes, err := d.store.Outcomes(ctx, w.Seq, candidates)
	if err != nil {
		return err
	}
	kept := d.kept(d.clock.now().Add(d.clock.slack())) // some may have been pruned from the log before it was asked
	var chosen []*AcceptedEvent
	for i, o := range outcomes {
		if r.Only.takes(o) && !candidates[i].CreatedAt.Before(kept) {
			chosen = append(chosen, candidates[i])
		}
	}
	r.Before = page.Next
	planned := page.Next == 0 || tooOld
	switch {
	case planned && r.DryRun:
		r.State, r.EndedAt = ReplayDone, d.clock.now()
	case planned:
		r.State = ReplayRunning
	}
	if r.DryRun {
		r.Matched += int64(len(chosen))
		chosen = nil
	}
	return d.store.UpdateReplay(ctx, r, chosen)
}

// covers reports whether events of a type are replayed.
func (r *ReplayRange) covers(eventType string) bool {
	for _, pattern := range r.EventTypes {
		if covers(pattern, eventType) {
			return true
		}
	}
	return len(r.EventTypes) == 0
}

func (o ReplayOnly) takes(got Outcome) bool {
	switch {
	case got.Queued:
		return false
	case o == ReplayFailed:
		return got.Attempts > 0 && !got.Delivered
	case o == ReplayMissed:
		return got.Attempts == 0
	}
	return true
}

// free lets the next entries of a replay go, and reports whether the queue has any of its entries. Where the webhook wants its events in an order,
// it is one at a time.
func (d *Dispatcher) free(ctx context.Context, r *Replay) (left bool, err error) {
	w, err := d.store.Webhook(ctx, r.RepoID, r.WebhookID)
	if err != nil {
		return false, err
	}
	limit := ReplayLimit{Now: d.clock.now(), Untried: replayUntried, Held: w.Polled}
	if w.Ordering != "" {
		limit.Untried, limit.Alone = 1, true
	}
	freed, left, err := d.store.FreeReplayed(ctx, r, limit)
	if err != nil || freed == 0 {
		return left, err
	}
	if w.Polled {
		d.polls.wake(w.Seq)
	} else {
		d.sched.wantRetry(w.Seq, false)
	}
	return left, nil
}
