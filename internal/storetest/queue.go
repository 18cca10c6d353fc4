package storetest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/musehub/posthorn"
)

func testLeasedAreNotDue(s *suite) {
	w, node := s.webhook(), s.node()
	s.accept(node, s.event(), leased(w))
	s.equal("webhooks due", s.due(start.Add(time.Hour)), []int64{})
	s.wantEntries(s.claim(node, start.Add(time.Hour), w))
}

func testFreeTarget(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	e := s.event()
	s.accept(node, e, append(leased(w), free(other)...))
	s.equal("webhooks due too early", s.due(start.Add(-time.Microsecond)), []int64{})
	webhooks, err := s.Due(s.Context(), start, horizon, 0, 10)
	s.check(err)
	s.equal("webhooks due", webhooks, []posthorn.DueWebhook{{Seq: other.Seq, ID: other.ID, RepoID: repo}})
	s.wantEntries(s.claim(node, start.Add(-time.Microsecond), w, other))
	entries := s.claim(node, start, w, other)
	s.wantEntries(entries, queued(entryOf(other, e)))
	s.equal("the entry's event", *entries[0].Event, *e)
	s.equal("webhooks due once it is claimed", s.due(start.Add(time.Hour)), []int64{})
	s.wantEntries(s.claim(node, start.Add(time.Hour), w, other))
}

// testPing has entries that were asked for by hand and accepted with their event: they stand in the queue from the start.
func testPing(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	e := s.event()
	e.Type = posthorn.EventPing
	s.acceptAs(posthorn.TriggerPing, node, e, append(leased(w), free(other)...))
	s.equal("webhooks due", s.due(start), []int64{other.Seq})
	ping := queued(entryOf(w, e))
	ping.Trigger = posthorn.TriggerPing
	s.record(node, retried(ping, start, start.Add(second)))
	s.wantEntries(s.claim(node, start.Add(second), w), at(ping, 2, start.Add(second)))
	otherPing := queued(entryOf(other, e))
	otherPing.Trigger = posthorn.TriggerPing
	s.wantEntries(s.claim(node, start, other), otherPing)
}

func testDueOrder(s *suite) {
	var webhooks []posthorn.Webhook
	var want []int64
	for range 5 {
		w := s.webhook()
		webhooks = append(webhooks, w)
		want = append(want, w.Seq)
	}
	node := s.node()
	for i := range 5 { // the earliest due stand last
		e := s.event()
		e.CreatedAt = start.Add(-time.Duration(i) * second)
		s.accept(node, e, free(webhooks[i]))
	}
	s.equal("webhooks due", s.due(start), want)
	s.equal("webhooks due before", s.due(start.Add(-3*second)), want[3:])
}

func testDuePages(s *suite) {
	node := s.node()
	var want []int64
	for i := range 7 {
		w := s.webhook()
		if i%2 == 0 {
			s.accept(node, s.event(), free(w))
			s.accept(node, s.event(), free(w))
			want = append(want, w.Seq)
		}
	}
	var got []int64
	for after := int64(0); ; {
		page, err := s.Due(s.Context(), start, horizon, after, 2)
		s.check(err)
		if len(page) > 2 {
			s.Fatalf("%d webhooks on a page of 2", len(page))
		}
		if len(page) == 0 {
			break
		}
		for _, w := range page {
			got = append(got, w.Seq)
		}
		after = page[len(page)-1].Seq
	}
	s.equal("webhooks due", got, want)
}

// testDueHorizon has an entry that is due so late that its time must come from a clock that was wrong.
func testDueHorizon(s *suite) {
	w, node := s.webhook(), s.node()
	e := s.event()
	e.CreatedAt = start.Add(horizon + time.Hour)
	s.accept(node, e, free(w))
	s.equal("webhooks due", s.due(start), []int64{w.Seq})
	s.equal("webhooks due an hour later", s.due(start.Add(time.Hour)), []int64{})
	s.equal("webhooks due in the end", s.due(e.CreatedAt), []int64{w.Seq})
}

func testInactive(s *suite) {
	w, node := s.webhook(), s.node()
	e := s.event()
	s.accept(node, e, free(w))
	s.setActive(w, false)
	s.equal("webhooks due while inactive", s.due(start), []int64{})
	s.wantEntries(s.claim(node, start, w))
	s.setActive(w, true)
	s.equal("webhooks due", s.due(start), []int64{w.Seq})
	s.wantEntries(s.claim(node, start, w), queued(entryOf(w, e)))

	// An entry that fails while its webhook is inactive waits too.
	s.setActive(w, false)
	s.record(node, retried(queued(entryOf(w, e)), start, start.Add(second)))
	s.equal("webhooks due while inactive", s.due(start.Add(second)), []int64{})
	s.setActive(w, true)
	s.wantEntries(s.claim(node, start.Add(second), w), at(entryOf(w, e), 2, start.Add(second)))
}

// redelivery enqueues an event again by hand.
func (s *suite) redelivery(w posthorn.Webhook, e *posthorn.AcceptedEvent, due time.Time, node int64) *posthorn.Entry {
	s.Helper()
	entry := &posthorn.Entry{WebhookSeq: w.Seq, WebhookID: w.ID, Event: e, Trigger: posthorn.TriggerRedelivery, Attempt: 1, DueAt: due}
	s.check(s.Enqueue(s.Context(), entry, node))
	return entry
}

func testInactiveByHand(s *suite) {
	w, node := s.webhook(), s.node()
	e := s.event()
	s.accept(node, e, free(w))
	s.setActive(w, false)
	again := s.redelivery(w, e, start, 0)
	s.equal("webhooks due", s.due(start), []int64{w.Seq})
	s.wantEntries(s.claim(node, start, w), again)
	s.equal("webhooks due after that", s.due(start), []int64{})
}

func testDeletedWebhookQueue(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	e, unclaimed := s.event(), s.event()
	s.accept(node, e, free(w, other))
	held := s.claim(node, start, w)
	s.accept(node, unclaimed, free(w))
	s.redelivery(w, e, start, 0)
	s.check(s.DeleteWebhook(s.Context(), repo, w.ID))
	s.equal("webhooks due", s.due(start), []int64{other.Seq})
	s.wantEntries(s.claim(node, start, w))
	s.release(node, start)
	s.equal("webhooks due after release", s.due(start), []int64{other.Seq})
	fresh := s.node()
	s.wantEntries(s.claim(fresh, start, w))
	s.record(fresh, done(held[0], start))

	// Once nothing needs them the events can go.
	s.record(fresh, done(s.claim(fresh, start, other)[0], start))
	s.prune(start.Add(time.Hour))
	for _, id := range []string{e.ID, unclaimed.ID} {
		_, err := s.Event(s.Context(), repo, id)
		s.wantCode(err, posthorn.CodeNotFound)
	}
}

// testDeletedBeforeCommit accepts an event for a webhook which the node hadn't heard was deleted.
func testDeletedBeforeCommit(s *suite) {
	w, node := s.webhook(), s.node()
	s.check(s.DeleteWebhook(s.Context(), repo, w.ID))
	for range 2 {
		e, atHand := s.event(), s.event()
		_, err := s.Commit(s.Context(), posthorn.Batch{Node: node, Events: []posthorn.NewEvent{newEvent(e, free(w)), newEvent(atHand, leased(w))}})
		s.check(err)
		s.equal("webhooks due", s.due(start), []int64{})
		s.wantEntries(s.claim(node, start, w))
		s.record(node, done(entryOf(w, atHand), start))
		s.prune(start.Add(time.Hour))
		for _, id := range []string{e.ID, atHand.ID} {
			_, err = s.Event(s.Context(), repo, id)
			s.wantCode(err, posthorn.CodeNotFound)
		}
	}
}

func testClaimOrder(s *suite) {
	w, node := s.webhook(), s.node()
	var events []*posthorn.AcceptedEvent
	for _, seconds := range []int{3, 1, 2, 1, 4} {
		e := s.event()
		e.CreatedAt = start.Add(time.Duration(seconds) * second)
		s.accept(node, e, free(w))
		events = append(events, e)
	}
	byHand := s.redelivery(w, events[4], start.Add(3*second), 0)
	earlier := s.redelivery(w, events[4], start.Add(2*second), 0)
	s.redelivery(w, events[4], start.Add(4*second), 0) // not due
	s.wantEntries(s.claim(node, start.Add(3*second), w),
		earlier, byHand, queued(entryOf(w, events[1])), queued(entryOf(w, events[3])), queued(entryOf(w, events[2])), queued(entryOf(w, events[0])))
}

func testClaimLimit(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	var want []*posthorn.Entry
	for range 5 {
		e := s.event()
		s.accept(node, e, free(w, other))
		want = append(want, queued(entryOf(w, e)))
	}
	byHand := s.redelivery(w, want[0].Event, start, 0)
	claim := func(wants ...posthorn.Want) []*posthorn.Entry {
		entries, err := s.Claim(s.Context(), posthorn.Claim{Node: node, Now: start, Horizon: horizon, Wants: wants, MaxBytes: 1 << 20})
		s.check(err)
		return entries
	}
	s.wantEntries(claim(posthorn.Want{WebhookSeq: w.Seq, Limit: 0}))
	s.wantEntries(claim(posthorn.Want{WebhookSeq: 1 << 40, Limit: 9}))
	s.wantEntries(claim())
	s.wantEntries(claim(posthorn.Want{WebhookSeq: w.Seq, Limit: 3}), byHand, want[0], want[1])
	s.wantEntries(claim(posthorn.Want{WebhookSeq: w.Seq, Limit: 2}, posthorn.Want{WebhookSeq: other.Seq, Limit: 1}),
		want[2], want[3], queued(entryOf(other, want[0].Event)))
	s.wantEntries(claim(posthorn.Want{WebhookSeq: w.Seq, Limit: 9}), want[4])
	s.wantEntries(claim(posthorn.Want{WebhookSeq: w.Seq, Limit: 9}))
}

// testClaimBytes has payloads of 100 bytes: the entry that exceeds MaxBytes is the last.
func testClaimBytes(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	for range 6 {
		e := s.event()
		e.Payload = json.RawMessage(`"` + strings.Repeat("x", 98) + `"`)
		s.accept(node, e, free(w))
	}
	s.accept(node, s.event(), free(other))
	for _, c := range []struct{ bytes, want int }{{1, 1}, {150, 2}, {200, 3}} {
		entries, err := s.Claim(s.Context(), posthorn.Claim{
			Node: node, Now: start, Horizon: horizon, MaxBytes: c.bytes,
			Wants: []posthorn.Want{{WebhookSeq: w.Seq, Limit: 10}, {WebhookSeq: other.Seq, Limit: 10}},
		})
		s.check(err)
		s.equal(fmt.Sprintf("entries within %d bytes", c.bytes), len(entries), c.want)
	}
	s.equal("webhooks due", s.due(start), []int64{other.Seq})
}

func testClaimHorizon(s *suite) {
	w, node := s.webhook(), s.node()
	far, near := s.event(), s.event()
	far.CreatedAt = start.Add(horizon + time.Microsecond)
	near.CreatedAt = start.Add(horizon)
	s.accept(node, near, free(w))
	s.accept(node, far, free(w))
	s.wantEntries(s.claim(node, start, w), queued(entryOf(w, far)))
	s.wantEntries(s.claim(node, start.Add(horizon), w), queued(entryOf(w, near)))
}

func testClaimSharesEvents(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	s.accept(node, s.event(), free(w, other))
	entries := s.claim(node, start, w, other)
	if len(entries) != 2 || entries[0].Event != entries[1].Event {
		s.Fatal("the entries of one event don't share it")
	}
}

func testClaimWithoutLease(s *suite) {
	w, node := s.webhook(), s.node()
	e := s.event()
	s.accept(node, e, free(w))
	s.release(node, start)
	_, err := s.Claim(s.Context(), posthorn.Claim{
		Node: node, Now: start, Horizon: horizon, Wants: []posthorn.Want{{WebhookSeq: w.Seq, Limit: 1}}, MaxBytes: 1,
	})
	s.wantCode(err, posthorn.CodeConflict)
	s.wantEntries(s.claim(s.node(), start, w), queued(entryOf(w, e)))
}

// testClaimRace has nodes that claim at the same time: each entry goes to one of them, and none is left.
func testClaimRace(s *suite) {
	var webhooks []posthorn.Webhook
	for range 3 {
		webhooks = append(webhooks, s.webhook())
	}
	const events, nodes = 40, 4
	accepting := s.node()
	for range events {
		s.accept(accepting, s.event(), free(webhooks...))
	}
	var mu sync.Mutex
	var got []string
	var wg sync.WaitGroup
	for range nodes {
		node := s.node()
		wg.Go(func() {
			for {
				due, err := s.Due(s.Context(), start, horizon, 0, 10)
				if err != nil {
					s.Error(err)
				}
				if len(due) == 0 || err != nil {
					return
				}
				c := posthorn.Claim{Node: node, Now: start, Horizon: horizon, MaxBytes: 1 << 20}
				for _, w := range due {
					c.Wants = append(c.Wants, posthorn.Want{WebhookSeq: w.Seq, Limit: 3})
				}
				entries, err := s.Claim(s.Context(), c)
				if err != nil {
					s.Error(err)
					return
				}
				mu.Lock()
				for _, e := range entries {
					got = append(got, fmt.Sprint(e.WebhookSeq, " ", e.Event.ID))
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.Sort(got)
	s.equal("entries", len(got), events*len(webhooks))
	s.equal("different entries", len(slices.Compact(got)), events*len(webhooks))
}

func testEnqueue(s *suite) {
	w, node := s.webhook(), s.node()
	e := s.event()
	s.deliver(node, e, start, w)
	again := s.redelivery(w, e, start.Add(second), 0)
	if again.Run <= 0 || !again.Queued {
		s.Fatalf("entry is of run %d and queued: %v", again.Run, again.Queued)
	}
	s.equal("webhooks due too early", s.due(start), []int64{})
	s.equal("webhooks due", s.due(start.Add(second)), []int64{w.Seq})
	s.wantEntries(s.claim(node, start.Add(second), w), again)
	s.record(node, done(again, start.Add(second)))
	s.equal("the log", s.logged(w), []int{1, 1})
	d := s.log(w).Items[0]
	s.equal("run", d.Run, again.Run)
	s.equal("trigger", d.Trigger, posthorn.TriggerRedelivery)
	s.equal("webhooks due in the end", s.due(start.Add(time.Hour)), []int64{})
}

func testEnqueueLeased(s *suite) {
	w, node := s.webhook(), s.node()
	e := s.event()
	s.deliver(node, e, start, w)
	again := s.redelivery(w, e, start, node)
	s.equal("webhooks due", s.due(start), []int64{})
	s.release(node, start)
	s.wantEntries(s.claim(s.node(), start, w), again)

	entry := posthorn.Entry{WebhookSeq: w.Seq, WebhookID: w.ID, Event: e, Trigger: posthorn.TriggerRedelivery, Attempt: 1, DueAt: start}
	s.wantCode(s.Enqueue(s.Context(), &entry, node), posthorn.CodeConflict)
	s.equal("webhooks due after a conflict", s.due(start), []int64{})
}

func testEnqueueGone(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	kept, pruned := s.event(), s.event()
	s.deliver(node, kept, start, w)
	s.deliver(node, pruned, start, w)
	s.prune(start.Add(time.Hour))
	entry := posthorn.Entry{WebhookSeq: other.Seq, WebhookID: other.ID, Event: pruned, Trigger: posthorn.TriggerRedelivery, Attempt: 1, DueAt: start}
	s.wantCode(s.Enqueue(s.Context(), &entry, node), posthorn.CodeNotFound)

	s.check(s.DeleteWebhook(s.Context(), repo, w.ID))
	late := s.event()
	s.accept(node, late, free(other))
	entry = posthorn.Entry{WebhookSeq: w.Seq, WebhookID: w.ID, Event: late, Trigger: posthorn.TriggerRedelivery, Attempt: 1, DueAt: start}
	s.wantCode(s.Enqueue(s.Context(), &entry, node), posthorn.CodeNotFound)
	s.prune(start)
	s.wantCode(s.Enqueue(s.Context(), &entry, node), posthorn.CodeNotFound)
}

func testEnqueueRuns(s *suite) {
	w, node := s.webhook(), s.node()
	e := s.event()
	s.deliver(node, e, start, w)
	const n = 40
	runs := make([]int64, n)
	var wg sync.WaitGroup
	for i := range runs {
		wg.Go(func() {
			entry := posthorn.Entry{WebhookSeq: w.Seq, WebhookID: w.ID, Event: e, Trigger: posthorn.TriggerRedelivery, Attempt: 1, DueAt: start}
			if err := s.Enqueue(s.Context(), &entry, 0); err != nil {
				s.Error(err)
			}
			runs[i] = entry.Run
		})
	}
	wg.Wait()
	slices.Sort(runs)
	if len(slices.Compact(runs)) != n || runs[0] <= 0 {
		s.Fatalf("runs are not unique: %v", runs)
	}
	entries := s.claim(node, start, w)
	s.equal("entries", len(entries), n)
	var results []posthorn.Result
	for _, entry := range entries {
		results = append(results, done(entry, start))
	}
	s.record(node, results...)
	last := s.redelivery(w, e, start, 0)
	if slices.Contains(runs, last.Run) {
		s.Fatalf("run %d was given out twice", last.Run)
	}
}
