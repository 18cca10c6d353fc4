package storetest

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/musehub/posthorn"
)

func testLease(s *suite) {
	node, other := s.node(), s.node()
	if node == 0 || other == 0 || node == other {
		s.Fatalf("nodes %d and %d", node, other)
	}
	renew := func(node int64, until time.Time) error {
		got, err := s.Lease(s.Context(), node, until)
		if err == nil {
			s.equal("the renewed node", got, node)
		}
		return err
	}
	s.check(renew(node, start.Add(-time.Hour)))
	s.check(renew(node, start.Add(time.Minute))) // it had run out, but nobody released it
	s.equal("nodes released", s.release(0, start.Add(time.Minute)), 0)
	s.equal("nodes released", s.release(0, start.Add(time.Minute+time.Microsecond)), 1)
	s.wantCode(renew(node, start.Add(time.Hour)), posthorn.CodeConflict)
	s.check(renew(other, start.Add(time.Hour)))
	s.equal("nodes released", s.release(other, start), 1)
	s.wantCode(renew(other, start.Add(time.Hour)), posthorn.CodeConflict)
	s.equal("nodes released again", s.release(other, start), 0)
	if third := s.node(); third == node || third == other || third == 0 {
		s.Fatalf("node %d was given out before", third)
	}
	s.wantCode(renew(1<<40, start), posthorn.CodeConflict)
}

func testReleaseNode(s *suite) {
	w, node, other := s.webhook(), s.node(), s.node()
	e, o := s.event(), s.event()
	s.accept(node, e, leased(w))
	s.accept(other, o, leased(w))
	s.equal("nodes released", s.release(node, start), 1)
	s.equal("webhooks due", s.due(start), []int64{w.Seq})
	s.wantEntries(s.claim(other, start, w), queued(entryOf(w, e)))
	s.record(other, done(entryOf(w, o), start), done(queued(entryOf(w, e)), start))
	s.equal("webhooks due in the end", s.due(start.Add(time.Hour)), []int64{})
}

func testReleaseExpired(s *suite) {
	w, other := s.webhook(), s.webhook()
	short, err := s.Lease(s.Context(), 0, start.Add(second))
	s.check(err)
	gone, err := s.Lease(s.Context(), 0, start.Add(2*second))
	s.check(err)
	alive := s.node()
	e, o, kept := s.event(), s.event(), s.event()
	s.accept(short, e, leased(w))
	s.accept(gone, o, leased(w, other))
	s.accept(alive, kept, leased(w))
	s.equal("nodes released too early", s.release(0, start.Add(second)), 0)
	s.equal("webhooks due", s.due(start.Add(time.Minute)), []int64{})
	s.equal("nodes released", s.release(0, start.Add(time.Minute)), 2)
	s.wantEntries(s.claim(alive, start, w, other), queued(entryOf(w, e)), queued(entryOf(w, o)), queued(entryOf(other, o)))
	s.equal("nodes released again", s.release(0, start.Add(time.Minute)), 0)
}

// testReleaseFanOut has an event for many webhooks of which some are settled before the node dies.
func testReleaseFanOut(s *suite) {
	var webhooks []posthorn.Webhook
	for range 1400 {
		webhooks = append(webhooks, s.webhook())
	}
	node := s.node()
	e := s.event()
	s.accept(node, e, leased(webhooks...))
	var results []posthorn.Result
	for i, w := range webhooks {
		switch i % 4 {
		case 1:
			results = append(results, done(entryOf(w, e), start))
		case 2:
			results = append(results, retried(entryOf(w, e), start, start.Add(second)))
		}
	}
	slices.Reverse(results)
	s.record(node, results[:1]...)
	s.record(node, results[1:300]...)
	s.record(node, results[200:]...) // the ones between for the second time
	s.release(node, start)

	var want []*posthorn.Entry
	var unsettled []int64
	for i, w := range webhooks {
		switch i % 4 {
		case 0, 3:
			want = append(want, queued(entryOf(w, e)))
			unsettled = append(unsettled, w.Seq)
		case 2:
			want = append(want, at(entryOf(w, e), 2, start.Add(second)))
		}
	}
	s.equal("webhooks due", s.due(start), unsettled)
	s.wantEntries(s.claim(s.node(), start.Add(second), webhooks...), want...)
}

// testReleaseSettled has an attempt that was logged by a node which had lost the entry, and that needs no other.
func testReleaseSettled(s *suite) {
	w, slow, next := s.webhook(), s.node(), s.node()
	e := s.event()
	s.accept(slow, e, leased(w))
	s.release(slow, start)
	s.claim(next, start, w)
	s.record(s.node(), done(entryOf(w, e), start)) // whoever was slow has another number now
	s.equal("the log", s.logged(w), []int{1})
	s.release(next, start)
	s.equal("webhooks due", s.due(start.Add(time.Hour)), []int64{})
	s.equal("rows pruned with the entry gone", s.prune(start.Add(3*day)), 2)
}

// testReleaseSettledRetry has the same with an attempt that failed and is to be followed by another: the run goes on.
func testReleaseSettledRetry(s *suite) {
	w, slow, next := s.webhook(), s.node(), s.node()
	e := s.event()
	s.accept(slow, e, leased(w))
	s.release(slow, start)
	s.claim(next, start, w)
	s.record(s.node(), retried(entryOf(w, e), start, start.Add(second)))
	s.equal("webhooks due while it is held", s.due(start.Add(time.Hour)), []int64{})
	s.release(next, start)
	s.equal("webhooks due too early", s.due(start), []int64{})
	s.wantEntries(s.claim(s.node(), start.Add(second), w), at(entryOf(w, e), 2, start.Add(second)))
}

// testReleaseQueued has all kinds of entries that stand in the queue by themselves.
func testReleaseQueued(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	e := s.event()
	s.accept(node, e, append(free(w), leased(other)...))
	first := s.claim(node, start, w)[0]
	s.record(node, retried(entryOf(other, e), start, start.Add(second)))
	retry := s.claim(node, start.Add(second), other)[0]
	byHand := s.redelivery(other, e, start.Add(-second), node)
	still := s.redelivery(w, e, start.Add(time.Minute), 0)
	s.release(node, start)
	fresh := s.node()
	s.wantEntries(s.claim(fresh, start.Add(time.Minute), w, other), still, first, byHand, retry)
}

// testReleaseLarge has more entries than a store may want to free at once.
func testReleaseLarge(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	batch := posthorn.Batch{Node: node}
	var want []*posthorn.Entry
	for i := range 1300 {
		e := s.event()
		targets := leased(w)
		if i%2 == 0 {
			targets = append(free(w), leased(other)...)
		}
		batch.Events = append(batch.Events, newEvent(e, targets))
		want = append(want, queued(entryOf(w, e)))
	}
	_, err := s.Commit(s.Context(), batch)
	s.check(err)
	s.equal("entries claimed", len(s.claim(node, start, w)), 650)
	s.equal("nodes released", s.release(node, start), 1)
	fresh := s.node()
	s.wantEntries(s.claim(fresh, start, w), want...)
	s.equal("the other's entries", len(s.claim(fresh, start, other)), 650)
}

// testReleaseBatches has batches of several events for many webhooks, which are settled in all ways and orders before the node
// dies, and some not at all.
func testReleaseBatches(s *suite) {
	var webhooks []posthorn.Webhook
	for range 7 {
		webhooks = append(webhooks, s.webhook())
	}
	node := s.node()
	want := map[int64][]*posthorn.Entry{}
	for range 3 {
		batch := posthorn.Batch{Node: node}
		var results []posthorn.Result
		for i := range 130 {
			e := s.event()
			batch.Events = append(batch.Events, newEvent(e, leased(webhooks...)))
			for j, w := range webhooks {
				entry := entryOf(w, e)
				switch (i + j) % 9 {
				case 0, 1:
					results = append(results, done(entry, start))
				case 2:
					results = append(results, posthorn.Result{Entry: entry})
				case 3:
					results = append(results, retried(entry, start, start))
					want[w.Seq] = append(want[w.Seq], at(entry, 2, start))
				case 4:
					results = append(results, posthorn.Result{Entry: entry, RetryAt: start})
					want[w.Seq] = append(want[w.Seq], queued(entry))
				default:
					want[w.Seq] = append(want[w.Seq], queued(entry))
				}
			}
		}
		_, err := s.Commit(s.Context(), batch)
		s.check(err)
		for i := 0; i < len(results); i += 2 { // half of them, so that the rest finds rows that have changed
			s.record(node, results[i])
		}
		slices.Reverse(results)
		s.record(node, results...)
	}
	s.equal("nodes released", s.release(node, start), 1)
	fresh := s.node()
	for _, w := range webhooks {
		s.wantEntries(s.claim(fresh, start, w), want[w.Seq]...)
	}
}

// testReleaseStray has attempts logged that a node made before it became another one, while its entries wait to be freed.
func testReleaseStray(s *suite) {
	w, node, next := s.webhook(), s.node(), s.node()
	a, b, c := s.event(), s.event(), s.event()
	_, err := s.Commit(s.Context(), posthorn.Batch{Node: node, Events: []posthorn.NewEvent{
		newEvent(a, leased(w)), newEvent(b, leased(w)), newEvent(c, leased(w)),
	}})
	s.check(err)
	s.record(next, done(entryOf(w, b), start), retried(entryOf(w, c), start, start.Add(second)))
	s.equal("webhooks due while they are held", s.due(start.Add(time.Hour)), []int64{})
	s.release(node, start)
	s.wantEntries(s.claim(next, start.Add(second), w), queued(entryOf(w, a)), at(entryOf(w, c), 2, start.Add(second)))
	s.equal("the log", s.logged(w), []int{1, 1})
}

// testReleaseConcurrently has several nodes find the same dead one.
func testReleaseConcurrently(s *suite) {
	w := s.webhook()
	node, err := s.Lease(s.Context(), 0, start)
	s.check(err)
	const n = 1200
	batch := posthorn.Batch{Node: node}
	for range n {
		batch.Events = append(batch.Events, newEvent(s.event(), leased(w)))
	}
	_, err = s.Commit(s.Context(), batch)
	s.check(err)
	var released atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			n, err := s.Release(s.Context(), 0, start.Add(second))
			if err != nil {
				s.Error(err)
			}
			released.Add(int64(n))
		})
	}
	wg.Wait()
	s.equal("nodes released in all", released.Load(), int64(1))
	s.equal("entries", len(s.claim(s.node(), start, w)), n)
}
