package storetest

import (
	"time"

	"github.com/musehub/posthorn"
)

func testResultDone(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	e := s.event()
	s.accept(node, e, append(leased(w), free(other)...))
	second := s.claim(node, start, other)[0]
	first := done(entryOf(w, e), start)
	last := failed(second, start.Add(time.Microsecond))
	s.record(node, first, last)
	s.equal("webhooks due", s.due(start.Add(time.Hour)), []int64{})
	s.release(node, start)
	s.equal("webhooks due after release", s.due(start.Add(time.Hour)), []int64{})
	if first.Delivery.Seq <= 0 || last.Delivery.Seq <= first.Delivery.Seq {
		s.Fatalf("deliveries have Seq %d and %d", first.Delivery.Seq, last.Delivery.Seq)
	}
	want := *first.Delivery
	want.Payload = e.Payload
	s.equal("the log", s.log(w), posthorn.Page[posthorn.Delivery]{Items: []posthorn.Delivery{want}, Total: 1})
}

func testResultRetry(s *suite) {
	w, node := s.webhook(), s.node()
	e := s.event()
	s.accept(node, e, leased(w))
	s.record(node, retried(entryOf(w, e), start, start.Add(second)))
	s.equal("webhooks due too early", s.due(start.Add(second-time.Microsecond)), []int64{})
	s.equal("webhooks due", s.due(start.Add(second)), []int64{w.Seq})
	entries := s.claim(node, start.Add(second), w)
	s.wantEntries(entries, at(entryOf(w, e), 2, start.Add(second)))
	s.record(node, retried(entries[0], start.Add(second), start.Add(3*second)))
	entries = s.claim(node, start.Add(3*second), w)
	s.wantEntries(entries, at(entryOf(w, e), 3, start.Add(3*second)))
	s.record(node, failed(entries[0], start.Add(3*second)))
	s.equal("webhooks due in the end", s.due(start.Add(time.Hour)), []int64{})
	s.equal("the log", s.logged(w), []int{3, 2, 1})
}

// testResultRetryAgain has a retry that is due at the very time of the attempt before.
func testResultRetryAgain(s *suite) {
	w, node := s.webhook(), s.node()
	e := s.event()
	s.accept(node, e, free(w))
	entry := s.claim(node, start, w)[0]
	r := retried(entry, start, start)
	s.record(node, r)
	s.record(node, r)
	s.wantEntries(s.claim(node, start, w), at(entryOf(w, e), 2, start))
	s.record(node, r)
	s.equal("webhooks due", s.due(start), []int64{})
}

// testResultWithoutDelivery has entries that were put off without an attempt.
func testResultWithoutDelivery(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	e := s.event()
	s.accept(node, e, append(leased(w), free(other)...))
	entry := s.claim(node, start, other)[0]
	s.record(node, posthorn.Result{Entry: entryOf(w, e), RetryAt: start.Add(second)}, posthorn.Result{Entry: entry, RetryAt: start})
	s.wantEntries(s.claim(node, start.Add(second), w, other), at(entryOf(w, e), 1, start.Add(second)), queued(entryOf(other, e)))
	s.equal("the log", s.logged(w), []int{})
}

func testResultDropped(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	e := s.event()
	s.accept(node, e, append(leased(w), free(other)...))
	entry := s.claim(node, start, other)[0]
	s.record(node, posthorn.Result{Entry: entryOf(w, e)}, posthorn.Result{Entry: entry})
	s.release(node, start)
	s.equal("webhooks due", s.due(start.Add(time.Hour)), []int64{})
	s.equal("what can be pruned", s.prune(start.Add(time.Hour)), 1)
}

// testResultDroppedLater has entries that were put off, or retried, before they were dropped, while others that were accepted
// with them are still held: they don't come back with these.
func testResultDroppedLater(s *suite) {
	w, node := s.webhook(), s.node()
	putOff, tried, kept := s.event(), s.event(), s.event()
	_, err := s.Commit(s.Context(), posthorn.Batch{Node: node, Events: []posthorn.NewEvent{
		newEvent(putOff, leased(w)), newEvent(tried, leased(w)), newEvent(kept, leased(w)),
	}})
	s.check(err)
	s.record(node, posthorn.Result{Entry: entryOf(w, putOff), RetryAt: start}, retried(entryOf(w, tried), start, start))
	var dropped []posthorn.Result
	for _, e := range s.claim(node, start, w) {
		dropped = append(dropped, posthorn.Result{Entry: e})
	}
	s.equal("entries dropped", len(dropped), 2)
	s.record(node, dropped...)
	s.release(node, start)
	s.wantEntries(s.claim(s.node(), start.Add(time.Hour), w), queued(entryOf(w, kept)))
}

// testResultFenced has results of a node that lost its lease before it recorded them.
func testResultFenced(s *suite) {
	w, other, slow := s.webhook(), s.webhook(), s.node()
	e := s.event()
	s.accept(slow, e, append(leased(w), free(other)...))
	promised, queuedEntry := entryOf(w, e), s.claim(slow, start, other)[0]
	s.release(slow, start)
	next, again := s.node(), s.node()
	held := s.claim(next, start, w, other)
	s.equal("entries", len(held), 2)

	// What is logged is logged, but the entries are not the node's to settle, whatever number it has now.
	s.record(again, done(promised, start), retried(queuedEntry, start, start.Add(second)))
	s.equal("the log", s.logged(w), []int{1})
	s.equal("the other's log", s.logged(other), []int{1})
	s.equal("webhooks due", s.due(start.Add(time.Hour)), []int64{})

	// The one that holds them settles them, as the log says, which has their deliveries already.
	s.record(next, retried(held[0], start, start.Add(2*second)), done(held[1], start))
	s.equal("the log", s.logged(w), []int{1})
	s.equal("the first one's success", s.log(w).Items[0].Success, true)
	s.equal("the other's log", s.logged(other), []int{1})
	s.equal("webhooks due", s.due(start.Add(time.Hour)), []int64{other.Seq})
	s.wantEntries(s.claim(next, start.Add(second), w, other), at(entryOf(other, e), 2, start.Add(second)))
}

// testResultOfAnotherNode has results of a node for entries that another one holds.
func testResultOfAnotherNode(s *suite) {
	w, other, node, stranger := s.webhook(), s.webhook(), s.node(), s.node()
	e, f := s.event(), s.event()
	s.accept(node, e, leased(w))
	s.accept(node, f, leased(w, other))
	s.record(stranger, posthorn.Result{Entry: entryOf(w, e), RetryAt: start}, posthorn.Result{Entry: entryOf(w, f), RetryAt: start})
	s.equal("webhooks due", s.due(start), []int64{})
	s.record(node, retried(entryOf(w, e), start, start), retried(entryOf(w, f), start, start))
	s.wantEntries(s.claim(node, start, w), at(entryOf(w, e), 2, start), at(entryOf(w, f), 2, start))
}

// testResultTwice has one batch with the same result twice.
func testResultTwice(s *suite) {
	w, node := s.webhook(), s.node()
	e := s.event()
	s.accept(node, e, leased(w))
	s.record(node, retried(entryOf(w, e), start, start.Add(second)), retried(entryOf(w, e), start, start.Add(second)))
	s.equal("the log", s.logged(w), []int{1})
	s.equal("total", s.log(w).Total, int64(1))
	s.wantEntries(s.claim(node, start.Add(second), w), at(entryOf(w, e), 2, start.Add(second)))
}

func testResultDeletedWebhook(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	e := s.event()
	s.accept(node, e, append(leased(w, other), free(w)...))
	entry := s.claim(node, start, w)[0]
	s.check(s.DeleteWebhook(s.Context(), repo, w.ID))
	lost := done(entryOf(w, e), start)
	s.record(node, lost, retried(entry, start, start.Add(second)), done(entryOf(other, e), start))
	s.equal("webhooks due", s.due(start.Add(time.Hour)), []int64{})
	s.equal("the other's log", s.logged(other), []int{1})
	s.equal("Seq of what was not logged", lost.Delivery.Seq, int64(0))
	s.equal("what can be pruned", s.prune(start.Add(3*day)), 2)
}

// testResultsOfOneEvent settles an event's targets in one batch, in another order than theirs, with one left over.
func testResultsOfOneEvent(s *suite) {
	a, b, c, node := s.webhook(), s.webhook(), s.webhook(), s.node()
	e, f := s.event(), s.event()
	s.accept(node, e, leased(a, b, c))
	s.accept(node, f, leased(b))
	s.record(node, done(entryOf(c, e), start), done(entryOf(b, f), start), done(entryOf(a, e), start))
	s.release(node, start)
	s.wantEntries(s.claim(s.node(), start, a, b, c), queued(entryOf(b, e)))
}
