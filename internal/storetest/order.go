package storetest

import (
	"time"

	"github.com/musehub/posthorn"
)

// ordered is a target of an ordering.
func ordered(w posthorn.Webhook, number int64) []posthorn.Target {
	return []posthorn.Target{{WebhookSeq: w.Seq, Ordering: number}}
}

// turn is an entry of an ordering as a claim returns it.
func turn(w posthorn.Webhook, e *posthorn.AcceptedEvent, number int64) *posthorn.Entry {
	entry := queued(entryOf(w, e))
	entry.Ordering = number
	return entry
}

// testOrder has entries come one after the other, each once the one before is done, retries and all.
func testOrder(s *suite) {
	w, node := s.webhook(), s.node()
	var events []*posthorn.AcceptedEvent
	for i := range 4 {
		e := s.event()
		e.CreatedAt = start.Add(time.Duration(i%2) * time.Millisecond) // of the clocks of two nodes
		events = append(events, e)
	}
	s.accept(node, events[0], ordered(w, 7))
	batch := posthorn.Batch{Node: node}
	for _, e := range events[1:] {
		batch.Events = append(batch.Events, newEvent(e, ordered(w, 7)))
	}
	_, err := s.Commit(s.Context(), batch)
	s.check(err)
	now := start.Add(second)
	first := turn(w, events[0], 7)
	s.equal("webhooks due", s.due(now), []int64{w.Seq})
	s.wantEntries(s.claim(node, now, w), first)
	s.equal("webhooks due while one is leased", s.due(now), []int64{})
	s.wantEntries(s.claim(node, now, w))

	again := now.Add(time.Minute)
	s.record(node, retried(first, now, again))
	s.equal("webhooks due before the next attempt", s.due(again.Add(-second)), []int64{})
	s.wantEntries(s.claim(node, again.Add(-second), w))
	s.wantEntries(s.claim(node, again, w), at(first, 2, again))

	s.record(node, failed(at(first, 2, again), again))
	s.equal("webhooks due once it has failed for good", s.due(again), []int64{w.Seq})
	for _, e := range events[1:] {
		s.wantEntries(s.claim(node, again, w), turn(w, e, 7))
		s.record(node, done(turn(w, e, 7), again))
	}
	s.equal("webhooks due at the end", s.due(again.Add(time.Hour)), []int64{})

	late := s.event()
	s.accept(node, late, ordered(w, 7))
	s.wantEntries(s.claim(node, again, w), turn(w, late, 7))
}

// testOrders has orderings that don't wait for each other: of one webhook, of two, and what has none.
func testOrders(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	a, b, c, d := s.event(), s.event(), s.event(), s.event()
	s.accept(node, a, append(ordered(w, 1), ordered(other, 1)...))
	s.accept(node, b, ordered(w, -2))
	s.accept(node, c, append(ordered(w, 1), ordered(other, 3)...))
	s.accept(node, d, free(w))
	byHand := s.redelivery(w, c, start, 0)
	s.wantEntries(s.claim(node, start, w, other), byHand, turn(w, a, 1), turn(w, b, -2), queued(entryOf(w, d)), turn(other, a, 1), turn(other, c, 3))
	s.record(node, done(turn(w, b, -2), start), done(turn(other, a, 1), start))
	s.wantEntries(s.claim(node, start, w, other))
	s.record(node, done(turn(w, a, 1), start), done(byHand, start))
	s.wantEntries(s.claim(node, start, w, other), turn(w, c, 1))
}

// testOrderReleased has a node die that has the entry whose turn it is, before and after its attempt was logged.
func testOrderReleased(s *suite) {
	w, node, heir := s.webhook(), s.node(), s.node()
	a, b, c := s.event(), s.event(), s.event()
	for _, e := range []*posthorn.AcceptedEvent{a, b, c} {
		s.accept(node, e, ordered(w, 1))
	}
	s.wantEntries(s.claim(node, start, w), turn(w, a, 1))
	s.release(node, start)
	s.wantEntries(s.claim(heir, start, w), turn(w, a, 1))
	s.record(s.node(), done(turn(w, a, 1), start)) // by who doesn't have it: it is only logged
	s.wantEntries(s.claim(heir, start, w))
	s.release(heir, start)
	last := s.node()
	s.wantEntries(s.claim(last, start, w), turn(w, b, 1))

	// An entry that goes without an attempt, and one that comes back in the same way.
	s.record(last, posthorn.Result{Entry: turn(w, b, 1), RetryAt: start.Add(second)})
	s.wantEntries(s.claim(last, start, w))
	s.wantEntries(s.claim(last, start.Add(second), w), at(turn(w, b, 1), 1, start.Add(second)))
	s.record(last, posthorn.Result{Entry: at(turn(w, b, 1), 1, start.Add(second))})
	s.wantEntries(s.claim(last, start.Add(second), w), turn(w, c, 1))
}

// testOrderConcurrently has entries of an ordering come and go at the same time: none is forgotten, and never are two claimed.
func testOrderConcurrently(s *suite) {
	const events = 100
	w, node := s.webhook(), s.node()
	accepted := make(chan error, 2)
	for range 2 {
		of := make([]*posthorn.AcceptedEvent, events/2)
		for i := range of {
			of[i] = s.event()
		}
		go func() {
			var err error
			for _, e := range of {
				if err == nil {
					_, err = s.Commit(s.Context(), posthorn.Batch{Node: node, Events: []posthorn.NewEvent{newEvent(e, ordered(w, 1))}})
				}
			}
			accepted <- err
		}()
	}
	deadline := time.Now().Add(time.Minute)
	for n := 0; n < events; {
		entries := s.claim(node, start, w)
		if len(entries) > 1 || len(entries) == 0 && time.Now().After(deadline) {
			s.Fatalf("%d entries were claimed after %d", len(entries), n)
		}
		for _, e := range entries {
			s.record(node, done(e, start))
			n++
		}
	}
	s.check(<-accepted)
	s.check(<-accepted)
	s.wantEntries(s.claim(node, start.Add(time.Hour), w))
}

// testTxOrder has entries of an ordering that were accepted in transactions and otherwise.
func testTxOrder(s *txSuite) {
	w := s.webhook()
	a, b, c, d := s.event(), s.event(), s.event(), s.event()
	tx, commit, _ := s.begin()
	s.acceptIn(tx, a, ordered(w, 1))
	s.acceptIn(tx, b, ordered(w, 1))
	s.check(commit())
	s.commit(c, ordered(w, 1))
	tx, commit, _ = s.begin()
	s.acceptIn(tx, d, ordered(w, 1))
	s.check(commit())
	s.wantQueued(w, d, posthorn.QueuedEntry{Trigger: posthorn.TriggerAutomatic, Attempt: 1, DueAt: start, Behind: a.ID})
	for _, e := range []*posthorn.AcceptedEvent{a, b, c, d} {
		s.equal("webhooks due", s.due(start), []int64{w.Seq})
		s.wantEntries(s.claim(s.node, start, w), turn(w, e, 1))
		s.equal("webhooks due while one is leased", s.due(start), []int64{})
		s.record(s.node, done(turn(w, e, 1), start))
	}
	s.equal("webhooks due", s.due(start.Add(time.Hour)), []int64{})

	// Who was told of some claims at once, without asking what is due.
	e := s.event()
	tx, commit, _ = s.begin()
	s.acceptIn(tx, e, ordered(w, 1))
	s.acceptIn(tx, s.event(), ordered(w, 1))
	s.check(commit())
	s.wantEntries(s.claim(s.node, start, w), turn(w, e, 1))
	s.wantEntries(s.claim(s.node, start, w))
}
