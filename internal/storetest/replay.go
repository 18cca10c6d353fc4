package storetest

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/musehub/posthorn"
)

// testOutcomes has one event for each thing that can have become of it, all of the same moment, some of them in one batch of promises.
func testOutcomes(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	var events []*posthorn.AcceptedEvent
	var batch []posthorn.NewEvent
	var want []posthorn.Outcome
	add := func(targets []posthorn.Target, o posthorn.Outcome) *posthorn.AcceptedEvent {
		e := s.event()
		events, want = append(events, e), append(want, o)
		batch = append(batch, newEvent(e, targets))
		return e
	}
	add(nil, posthorn.Outcome{})
	add(leased(other), posthorn.Outcome{})
	add(leased(w, other), posthorn.Outcome{Queued: true})
	add(free(w), posthorn.Outcome{Queued: true})
	add(held(w), posthorn.Outcome{Queued: true})
	delivered := add(leased(w, other), posthorn.Outcome{Attempts: 1, Delivered: true})
	retrying := add(leased(w), posthorn.Outcome{Attempts: 1, Queued: true})
	exhausted := add(leased(other, w), posthorn.Outcome{Attempts: 1})
	again := add(leased(w), posthorn.Outcome{Attempts: 2, Delivered: true})
	failedAgain := add(leased(w), posthorn.Outcome{Attempts: 2})
	dropped := add(leased(w, other), posthorn.Outcome{})
	_, err := s.Commit(s.Context(), posthorn.Batch{Node: node, Events: batch})
	s.check(err)
	s.record(node, done(entryOf(w, delivered), start), failed(entryOf(other, delivered), start), retried(entryOf(w, retrying), start, start.Add(second)),
		failed(entryOf(w, exhausted), start), failed(entryOf(w, again), start), failed(entryOf(w, failedAgain), start), posthorn.Result{Entry: entryOf(w, dropped)})
	for _, e := range []*posthorn.AcceptedEvent{again, failedAgain} {
		entry := &posthorn.Entry{WebhookSeq: w.Seq, WebhookID: w.ID, Event: e, Trigger: posthorn.TriggerRedelivery, Attempt: 1, DueAt: start}
		s.check(s.Enqueue(s.Context(), entry, node))
		if e == again {
			s.record(node, done(entry, start))
		} else {
			s.record(node, failed(entry, start))
		}
	}
	outcomes := func() []posthorn.Outcome {
		s.Helper()
		got, err := s.Outcomes(s.Context(), w.Seq, events)
		s.check(err)
		return got
	}
	s.equal("outcomes", outcomes(), want)
	s.release(node, start)
	s.equal("outcomes once the node is gone", outcomes(), want)
	got, err := s.Outcomes(s.Context(), w.Seq, nil)
	s.check(err)
	s.equal("of no events", len(got), 0)
}

func (s *suite) wantQueued(w posthorn.Webhook, e *posthorn.AcceptedEvent, want ...posthorn.QueuedEntry) {
	s.Helper()
	got, err := s.Queued(s.Context(), w.Seq, e)
	s.check(err)
	s.equal("entries of "+e.ID, append([]posthorn.QueuedEntry{}, got...), append([]posthorn.QueuedEntry{}, want...))
}

// testQueued has one event for each thing that an entry can wait for.
func testQueued(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	first := posthorn.QueuedEntry{Trigger: posthorn.TriggerAutomatic, Attempt: 1, DueAt: start}
	promised, kept, polled, retrying := s.event(), s.event(), s.event(), s.event()
	s.accept(node, promised, leased(w))
	s.accept(node, kept, append(free(w), free(other)...))
	s.accept(node, polled, held(w))
	s.accept(node, retrying, leased(w))
	s.record(node, retried(entryOf(w, retrying), start, start.Add(second)))
	s.wantQueued(w, promised)
	s.wantQueued(w, kept, first)
	s.wantQueued(w, polled, first)
	again := first
	again.Attempt, again.DueAt = 2, start.Add(second)
	s.wantQueued(w, retrying, again)

	// One of each run.
	s.redelivery(w, retrying, start.Add(time.Minute), node)
	byHand := posthorn.QueuedEntry{Trigger: posthorn.TriggerRedelivery, Attempt: 1, DueAt: start.Add(time.Minute), Leased: true}
	s.wantQueued(w, retrying, again, byHand)
	s.release(node, start)
	byHand.Leased = false
	s.wantQueued(w, retrying, again, byHand)
	s.wantQueued(other, retrying)

	r := s.replay(other)
	s.check(s.UpdateReplay(s.Context(), r, []*posthorn.AcceptedEvent{polled}))
	replayed := posthorn.QueuedEntry{Trigger: posthorn.TriggerReplay, Attempt: 1, DueAt: start, Waiting: true}
	s.wantQueued(other, polled, replayed)
	s.wantFree(r, posthorn.ReplayLimit{Now: start.Add(second), Untried: 1}, 1, true)
	replayed.Waiting, replayed.DueAt = false, start.Add(second)
	s.wantQueued(other, polled, replayed)
}

// testQueuedBehind has entries that stand behind others of their ordering, and know whose turn it is.
func testQueuedBehind(s *suite) {
	w, node := s.webhook(), s.node()
	x, a, b, c := s.event(), s.event(), s.event(), s.event()
	s.accept(node, x, ordered(w, 2))
	for _, e := range []*posthorn.AcceptedEvent{a, b, c} {
		s.accept(node, e, ordered(w, 1))
	}
	turn := posthorn.QueuedEntry{Trigger: posthorn.TriggerAutomatic, Attempt: 1, DueAt: start}
	behind := func(e *posthorn.AcceptedEvent) posthorn.QueuedEntry {
		entry := turn
		entry.Behind = e.ID
		return entry
	}
	s.wantQueued(w, a, turn)
	s.wantQueued(w, b, behind(a))
	s.wantQueued(w, c, behind(a))
	s.wantQueued(w, x, turn)
	entry := s.claim(node, start, w)[1]
	leased := turn
	leased.Leased = true
	s.wantQueued(w, a, leased)
	s.wantQueued(w, c, behind(a))
	s.record(node, done(entry, start))
	s.wantQueued(w, a)
	s.wantQueued(w, b, turn)
	s.wantQueued(w, c, behind(b))
}

func (s *suite) replay(w posthorn.Webhook) *posthorn.Replay {
	s.Helper()
	r := &posthorn.Replay{
		ID: s.uuid(), RepoID: w.RepoID, WebhookID: w.ID, CreatedAt: start, State: posthorn.ReplayPlanning,
		ReplayRange: posthorn.ReplayRange{Since: start, Until: start.Add(day), Only: posthorn.ReplayMissed, EventTypes: []string{"push", "a.*"}},
	}
	s.check(s.CreateReplay(s.Context(), r))
	return r
}

func (s *suite) replays(q posthorn.ReplayQuery) []posthorn.Replay {
	s.Helper()
	page, err := s.Replays(s.Context(), q)
	s.check(err)
	return page.Items
}

func (s *suite) open() []posthorn.Replay {
	s.Helper()
	open, err := s.OpenReplays(s.Context(), 0, 100)
	s.check(err)
	return open
}

// end ends a replay, with the counts of the log.
func (s *suite) end(r *posthorn.Replay, at time.Time) {
	s.Helper()
	counted := s.replays(posthorn.ReplayQuery{RepoID: r.RepoID, WebhookID: r.WebhookID, ID: r.ID})[0]
	r.Succeeded, r.Failed, r.State, r.EndedAt = counted.Succeeded, counted.Failed, posthorn.ReplayDone, at
	s.check(s.UpdateReplay(s.Context(), r, nil))
}

// testReplays has replays as rows: each webhook has one open at a time, and of two that change one the second is told.
func testReplays(s *suite) {
	w, other := s.webhook(), s.webhook()
	r, second := s.replay(w), s.replay(other)
	if r.Seq <= 0 || second.Seq <= r.Seq || r.Run == second.Run || r.WebhookSeq != w.Seq {
		s.Errorf("the replays are %+v and %+v", r, second)
	}
	of := posthorn.ReplayQuery{RepoID: repo, WebhookID: w.ID}
	s.equal("replays", s.replays(of), []posthorn.Replay{*r})
	s.equal("open ones", s.open(), []posthorn.Replay{*r, *second})
	page, err := s.OpenReplays(s.Context(), r.Seq, 100)
	s.check(err)
	s.equal("those after the first", page, []posthorn.Replay{*second})
	s.wantCode(s.CreateReplay(s.Context(), &posthorn.Replay{ID: s.uuid(), RepoID: repo, WebhookID: w.ID}), posthorn.CodeConflict)
	s.wantCode(s.CreateReplay(s.Context(), &posthorn.Replay{ID: s.uuid(), RepoID: "repo-2", WebhookID: w.ID}), posthorn.CodeNotFound)

	stale := *r
	r.State, r.Before, r.Examined, r.Matched = posthorn.ReplayRunning, 7, 8, 9
	version := r.Version
	s.check(s.UpdateReplay(s.Context(), r, nil))
	s.equal("whether the version has changed", r.Version != version, true)
	s.equal("replays", s.replays(of), []posthorn.Replay{*r})
	s.wantCode(s.UpdateReplay(s.Context(), &stale, nil), posthorn.CodeConflict)
	s.end(r, start.Add(time.Hour))
	s.wantCode(s.UpdateReplay(s.Context(), r, nil), posthorn.CodeConflict)
	s.equal("ended ones", s.replays(of), []posthorn.Replay{*r})
	s.equal("open ones", s.open(), []posthorn.Replay{*second})

	third := s.replay(w)
	s.equal("replays", s.replays(of), []posthorn.Replay{*third, *r})
	of.Limit = 1
	first, err := s.Replays(s.Context(), of)
	s.check(err)
	s.equal("the first page", first, posthorn.Page[posthorn.Replay]{Items: []posthorn.Replay{*third}, Next: third.Seq})
	of.Before = first.Next
	last, err := s.Replays(s.Context(), of)
	s.check(err)
	s.equal("the last page", last, posthorn.Page[posthorn.Replay]{Items: []posthorn.Replay{*r}})
	s.equal("one of them", s.replays(posthorn.ReplayQuery{RepoID: repo, WebhookID: w.ID, ID: r.ID, Limit: 1}), []posthorn.Replay{*r})
	s.equal("one of another", len(s.replays(posthorn.ReplayQuery{RepoID: repo, WebhookID: w.ID, ID: second.ID, Limit: 1})), 0)

	s.prune(start.Add(time.Hour))
	s.equal("replays left", s.replays(posthorn.ReplayQuery{RepoID: repo, WebhookID: w.ID}), []posthorn.Replay{*third, *r})
	s.prune(start.Add(2 * time.Hour))
	s.equal("replays left", s.replays(posthorn.ReplayQuery{RepoID: repo, WebhookID: w.ID}), []posthorn.Replay{*third})
	s.check(s.DeleteWebhook(s.Context(), repo, w.ID))
	s.equal("open ones", s.open(), []posthorn.Replay{*second})
	s.wantCode(s.UpdateReplay(s.Context(), third, nil), posthorn.CodeNotFound)
	_, err = s.Replays(s.Context(), posthorn.ReplayQuery{RepoID: repo, WebhookID: w.ID})
	s.wantCode(err, posthorn.CodeNotFound)
}

// replayed is an entry of a replay as a claim returns it.
func replayed(r *posthorn.Replay, w posthorn.Webhook, e *posthorn.AcceptedEvent, due time.Time) *posthorn.Entry {
	entry := queued(entryOf(w, e))
	entry.Trigger, entry.Run, entry.DueAt = posthorn.TriggerReplay, r.Run, due
	return entry
}

func (s *suite) free(r *posthorn.Replay, limit posthorn.ReplayLimit) (freed int, left bool) {
	s.Helper()
	freed, left, err := s.FreeReplayed(s.Context(), r, limit)
	s.check(err)
	return freed, left
}

func (s *suite) wantFree(r *posthorn.Replay, limit posthorn.ReplayLimit, freed int, left bool) {
	s.Helper()
	gotFreed, gotLeft := s.free(r, limit)
	s.equal("how many were freed", gotFreed, freed)
	s.equal("whether any are left", gotLeft, left)
}

// testReplayed has the entries of a replay from their beginning to their end. They are added from the newest event to the oldest, and freed in the
// other order.
func testReplayed(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	r := s.replay(w)
	var events []*posthorn.AcceptedEvent
	for range 5 {
		e := s.event()
		e.CreatedAt = start.Add(-time.Duration(len(events)) * second) // whatever their times say
		s.accept(node, e, nil)
		events = append(events, e)
	}
	gone := &posthorn.AcceptedEvent{Seq: 1 << 40, CreatedAt: start}
	s.check(s.UpdateReplay(s.Context(), r, []*posthorn.AcceptedEvent{events[4], gone, events[3]}))
	s.check(s.UpdateReplay(s.Context(), r, []*posthorn.AcceptedEvent{events[2], events[1], events[0]}))
	s.equal("how many matched", r.Matched, int64(5))
	stale := *r
	stale.Version--
	s.wantCode(s.UpdateReplay(s.Context(), &stale, []*posthorn.AcceptedEvent{events[0], events[1]}), posthorn.CodeConflict)
	s.equal("replays after one that came too late", s.replays(posthorn.ReplayQuery{RepoID: repo, WebhookID: w.ID}), []posthorn.Replay{*r})
	_, _, err := s.FreeReplayed(s.Context(), &stale, posthorn.ReplayLimit{Now: start, Untried: 1})
	s.wantCode(err, posthorn.CodeConflict)

	now := start.Add(time.Minute)
	s.equal("webhooks due", s.due(now.Add(48*horizon)), []int64{})
	s.wantEntries(s.claim(node, now, w))
	s.wantEntries(s.held(w, 10, 1<<20))
	s.equal("rows pruned", s.prune(now), 0)
	outcomes, err := s.Outcomes(s.Context(), w.Seq, events[:1])
	s.check(err)
	s.equal("outcomes", outcomes, []posthorn.Outcome{{Queued: true}})

	two := posthorn.ReplayLimit{Now: now, Untried: 2}
	s.wantFree(r, two, 2, true)
	s.wantFree(r, two, 0, true)
	s.equal("webhooks due", s.due(now), []int64{w.Seq})
	s.setActive(w, false)
	s.equal("webhooks due while it is inactive", s.due(now), []int64{})
	s.wantEntries(s.claim(node, now, w))
	s.setActive(w, true)
	first, next := replayed(r, w, events[0], now), replayed(r, w, events[1], now)
	s.wantEntries(s.claim(node, now, w), first, next)
	s.wantFree(r, two, 0, true)

	// One that is tried again makes room for another, unless it is to be alone.
	s.record(node, retried(first, now, now.Add(second)))
	s.wantFree(r, posthorn.ReplayLimit{Now: now, Untried: 2, Alone: true}, 0, true)
	s.wantFree(r, two, 1, true)
	third := replayed(r, w, events[2], now)
	s.wantEntries(s.claim(node, now.Add(second), w), third, at(first, 2, now.Add(second)))
	s.record(node, done(next, now), failed(third, now), failed(at(first, 2, now.Add(second)), now))
	one := s.replays(posthorn.ReplayQuery{RepoID: repo, WebhookID: w.ID})[0]
	s.equal("how many were delivered", []int64{one.Succeeded, one.Failed}, []int64{1, 2})
	s.wantFree(r, posthorn.ReplayLimit{Now: now, Untried: 2, Alone: true}, 2, true)
	s.wantEntries(s.claim(node, now, w), replayed(r, w, events[3], now), replayed(r, w, events[4], now))
	s.record(node, done(replayed(r, w, events[3], now), now))
	s.wantFree(r, two, 0, true)
	s.record(node, done(replayed(r, w, events[4], now), now))
	s.wantFree(r, two, 0, false)
	s.end(r, now)
	s.equal("how many were delivered", []int64{r.Succeeded, r.Failed}, []int64{3, 2})
	s.equal("the ended replay", s.replays(posthorn.ReplayQuery{RepoID: repo, WebhookID: w.ID}), []posthorn.Replay{*r})

	// Others' replays have their own.
	s.wantFree(s.replay(other), two, 0, false)
}

// testReplayConcurrently has several free entries of one replay at the same time: together they free no more than one may.
func testReplayConcurrently(s *suite) {
	w, node := s.webhook(), s.node()
	r := s.replay(w)
	var events []*posthorn.AcceptedEvent
	for range 40 {
		e := s.event()
		s.accept(node, e, nil)
		events = append(events, e)
	}
	s.check(s.UpdateReplay(s.Context(), r, events))
	for i := range events {
		limit := posthorn.ReplayLimit{Now: start, Untried: 1 + i%2, Alone: i%2 == 0}
		var freed atomic.Int64
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				n, _, err := s.FreeReplayed(s.Context(), r, limit)
				if err != nil {
					s.Errorf("unexpected error: %v", err)
				}
				freed.Add(int64(n))
			})
		}
		all.Wait()
		claimed := s.claim(node, start, w)
		if freed.Load() > int64(limit.Untried) || len(claimed) != int(freed.Load()) {
			s.Fatalf("%d were freed and %d claimed, where %d may be", freed.Load(), len(claimed), limit.Untried)
		}
		for _, e := range claimed {
			if e.Event.ID != events[0].ID {
				s.Fatalf("event %s is claimed before %s", e.Event.ID, events[0].ID)
			}
			events = events[1:]
			s.record(node, done(e, start))
		}
		if len(events) == 0 {
			break
		}
	}
	s.equal("events left", len(events), 0)
	stale := *r
	stale.Version--
	s.wantFree(&stale, posthorn.ReplayLimit{Now: start, Untried: 1}, 0, false)
}

// testReplayHeld has a replay of a webhook that is polled.
func testReplayHeld(s *suite) {
	w, node := s.webhook(), s.node()
	r := s.replay(w)
	e, later := s.event(), s.event()
	s.accept(node, e, nil)
	s.accept(node, later, nil)
	s.check(s.UpdateReplay(s.Context(), r, []*posthorn.AcceptedEvent{later, e}))
	limit := posthorn.ReplayLimit{Now: start.Add(second), Untried: 1, Held: true}
	s.wantFree(r, limit, 1, true)
	entry := replayed(r, w, e, start.Add(second))
	entry.Held = true
	s.wantEntries(s.held(w, 10, 1<<20), entry)
	s.wantFree(r, limit, 0, true)
	s.record(0, done(entry, start.Add(second)))
	s.wantFree(r, limit, 1, true)
}

// testReplayDropped has one that is canceled: what a node has is not taken from it.
func testReplayDropped(s *suite) {
	w, node := s.webhook(), s.node()
	r := s.replay(w)
	var events []*posthorn.AcceptedEvent
	for range 6 {
		e := s.event()
		s.accept(node, e, nil)
		events = append(events, e)
	}
	s.accept(node, s.event(), free(w)) // which is of no replay
	s.check(s.UpdateReplay(s.Context(), r, events))
	s.wantFree(r, posthorn.ReplayLimit{Now: start, Untried: 1}, 1, true)
	claimed := s.claim(node, start, w)
	s.equal("how many were claimed", len(claimed), 2)
	s.wantFree(r, posthorn.ReplayLimit{Now: start, Untried: 2}, 1, true)
	drop := func(limit, dropped int, left bool) {
		s.Helper()
		gotDropped, gotLeft, err := s.DropReplayed(s.Context(), r, limit)
		s.check(err)
		s.equal("how many were dropped", gotDropped, dropped)
		s.equal("whether any are left", gotLeft, left)
	}
	drop(2, 2, true)
	drop(10, 3, true)
	drop(10, 0, true)
	for _, e := range claimed {
		if e.Trigger == posthorn.TriggerReplay {
			s.record(node, retried(e, start, start.Add(second)))
		}
	}
	drop(10, 1, false)
	s.wantEntries(s.claim(node, start.Add(time.Hour), w))
}

// testReplayDeleted has a webhook that is deleted in the middle: nothing of it stays.
func testReplayDeleted(s *suite) {
	w, node := s.webhook(), s.node()
	r := s.replay(w)
	var events []*posthorn.AcceptedEvent
	for range 3 {
		e := s.event()
		s.accept(node, e, nil)
		events = append(events, e)
	}
	s.check(s.UpdateReplay(s.Context(), r, events))
	s.wantFree(r, posthorn.ReplayLimit{Now: start, Untried: 1}, 1, true)
	s.check(s.DeleteWebhook(s.Context(), repo, w.ID))
	s.wantCode(s.UpdateReplay(s.Context(), r, events), posthorn.CodeNotFound)
	_, _, err := s.FreeReplayed(s.Context(), r, posthorn.ReplayLimit{Now: start, Untried: 2})
	s.wantCode(err, posthorn.CodeNotFound)
	s.equal("rows pruned", s.prune(start.Add(4*day)), 3)
	_, left := s.free(r, posthorn.ReplayLimit{Now: start, Untried: 1})
	s.equal("whether any are left", left, false)
}

// testEventsUntil leaves out the newest events.
func testEventsUntil(s *suite) {
	node := s.node()
	var events []posthorn.AcceptedEvent
	for i := range 5 {
		e := s.event()
		e.CreatedAt = start.Add(time.Duration(i) * time.Microsecond)
		s.accept(node, e, nil)
		events = append(events, *e)
	}
	for i := range 6 {
		until := start.Add(time.Duration(i)*time.Microsecond - 1)
		var got []posthorn.AcceptedEvent
		for q := (posthorn.EventQuery{RepoID: repo, Until: until, Limit: 2}); ; {
			page, err := s.Events(s.Context(), q)
			s.check(err)
			s.equal("the total", page.Total, int64(5))
			got = append(got, page.Items...)
			if q.Before = page.Next; q.Before == 0 {
				break
			}
		}
		s.equal("how many there are", len(got), i)
		for j := range got {
			s.equal("the event", got[j], events[i-1-j])
		}
	}
}
