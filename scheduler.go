package posthorn

import (
	"sync"
	"time"

	"github.com/musehub/posthorn/internal/limit"
)

// scheduler decides which entry is attempted next. It holds in memory what the node has leased: a first-in-first-out
// queue for each webhook, of bounded length. Webhooks take turns, each with a limit of requests in flight.
//
// # Bad webhooks
//
// A webhook is proven once it has answered with success, failing once it has failed probeAfter times in a row, and
// unknown before. Failing ones together may have at most half of the node's requests in flight and bytes in memory, failing
// and unknown ones at most three quarters: a proven webhook never waits for others, and a new one not for failing ones.
// Within this, a webhook's own limit of requests in flight follows what the receiver can take (see limit). One that keeps failing
// is probed with one request at a time, and after pauses, so that a backlog of one that refuses at once doesn't keep the node
// and the store busy; and it holds next to nothing in memory. Nor does one whose receiver asks for a pause, which isn't proven again before that
// is over: receivers that limit rates may be good ones, but together they would fill the memory with what nobody may send yet.
//
// Proven webhooks may begin to hang, many at the same moment, with as many requests in flight as their limits allow.
// Therefore the last quarter of what proven ones may have in flight is for those that have none: they are never kept waiting
// by others that have several. The same goes for results that wait to be recorded: where the store can't keep up with a
// backlog, those with requests in flight stop first, and long before the others.
//
// # Backlogs
//
// What memory has no room for is committed as free entries ("spilled"), and from then on everything for that webhook is,
// until claims have caught up: first attempts keep their order. What has room, of entries and of bytes, is in queue.go. The
// scheduler lists the webhooks to claim for, and the claimer (see lease.go) does.
type scheduler struct {
	limits limits
	// attempt makes the attempt of an entry; its result goes to record. Both run on a worker's goroutine.
	attempt func(*Entry) Result
	record  func(Result)
	// signal wakes the claimer: there is something in claims.
	signal chan struct{}

	mu     sync.Mutex
	queues map[int64]*queue // by webhook: those with entries, requests in flight or something to remember
	// Queues that have an entry and may start a request, in the order of their turns, by standing.
	ready      [limit.Standings]ring
	waiting    ring           // queues of proven webhooks that have requests in flight and must leave room for those that have none
	last       limit.Standing // whose turn it was last
	used       [limit.Standings]usage
	unrecorded int  // deliveries that are not committed yet
	starved    bool // something had to wait for lack of bytes
	claims     []*queue
	node       int64 // that has the entries leased; 0 while there is no lease
	leaseUntil time.Time
	dropped    bool // entries were dropped that have yet to be freed
	blocked    bool // results can't be recorded now: what were sent meanwhile might be sent again
	stopped    bool
	idle       []chan<- turn // workers that wait for something to do
	workers    sync.WaitGroup
}

// turn is an entry to be attempted, and the queue that it was in.
type turn struct {
	queue *queue
	entry *Entry
}

const (
	probeAfter    = 5      // failures in a row make a webhook a failing one
	probeQueue    = 16     // entries that a webhook that is failing or held has in memory
	maxProbePause = 50     // milliseconds between the attempts of a failing webhook: one for each failure in a row, up to this
	entryBytes    = 256    // what an entry takes besides its payload, about
	maxRemembered = 10_000 // webhooks without entries whose state is kept
	maxIdle       = 1024   // workers that wait for work, which spares growing a new goroutine's stack for each request
)

func newScheduler(l limits, attempt func(*Entry) Result, record func(Result)) *scheduler {
	return &scheduler{
		limits: l, attempt: attempt, record: record,
		signal: make(chan struct{}, 1), queues: map[int64]*queue{},
	}
}

// list gives a queue a turn if it can use one.
func (s *scheduler) list(q *queue) {
	if q.listed || q.paused || len(q.byHand)+len(q.automatic) == 0 || q.limit.Reached(q.used.inFlight) {
		return
	}
	q.listed = true
	s.ready[q.standing].push(q)
}

// shared is how many more requests may start now to proven webhooks that have some in flight.
func (s *scheduler) shared() int {
	others := s.used[limit.Unknown].inFlight + s.used[limit.Failing].inFlight
	return min((s.limits.inFlight-others)*3/4-s.used[limit.Proven].inFlight, s.limits.fewUnrecorded()-s.unrecorded)
}

// next takes the entry whose turn it is. Without one its queue is nil.
func (s *scheduler) next() turn {
	for {
		now := time.Now()
		if s.stopped || s.blocked || s.unrecorded >= s.limits.maxUnrecorded() || !now.Before(s.leaseUntil) {
			return turn{}
		}
		for n := s.shared(); n > 0 && !s.waiting.empty(); n-- {
			q := s.waiting.pop()
			q.waiting = false
			s.list(q)
		}
		q := s.nextQueue()
		if q == nil {
			return turn{}
		}
		q.listed = false
		switch {
		case q.paused, len(q.byHand)+len(q.automatic) == 0, !q.limit.Allows(now, q.used.inFlight):
			// It has failed or fallen silent, or its entries were dropped, while it was listed.
			s.settle(q)
			continue
		case q.standing == limit.Proven && q.used.inFlight > 0 && s.shared() <= 0:
			if !q.waiting {
				q.waiting = true
				s.waiting.push(q)
			}
			continue
		}
		e := q.pop()
		s.addInFlight(q, 1)
		s.pause(q, q.flow.interval())
		s.list(q)
		if q.wanted {
			s.want(q)
		}
		return turn{q, e}
	}
}

// nextQueue takes the queue whose turn it is: the standings take turns, and within each its queues.
func (s *scheduler) nextQueue() *queue {
	for tried := limit.Standing(0); tried < limit.Standings; {
		s.last = (s.last + 1) % limit.Standings
		if !limit.MayUse(s.last, s.limits.inFlight, s.inFlight(), 1) {
			tried++
			continue
		}
		q := s.ready[s.last].pop()
		switch {
		case q == nil:
			tried++
		case q.standing != s.last: // it proved itself, or failed, while it was listed
			s.ready[q.standing].push(q)
			tried = 0
		default:
			return q
		}
	}
	return nil
}

// start gives each entry that may be attempted now to a worker.
func (s *scheduler) start() {
	for {
		t := s.next()
		if t.queue == nil {
			return
		}
		if n := len(s.idle); n > 0 {
			s.idle[n-1] <- t
			s.idle = s.idle[:n-1]
		} else {
			s.workers.Go(func() { s.work(t) })
		}
	}
}

// work attempts an entry and then whatever is next.
func (s *scheduler) work(t turn) {
	turns := make(chan turn, 1) // with room, so that start doesn't wait
	for ok := true; ok; {
		r := s.attempt(t.entry)
		s.mu.Lock()
		handedBack := s.finish(t.queue, &r)
		t = s.next()
		wait := t.queue == nil && !s.stopped && len(s.idle) < maxIdle
		if t.queue != nil {
			s.start()
		} else if wait {
			s.idle = append(s.idle, turns)
		}
		s.mu.Unlock()
		s.record(r)
		for _, e := range handedBack {
			s.record(Result{Entry: e, RetryAt: e.DueAt})
		}
		if wait {
			t, ok = <-turns
		} else {
			ok = t.queue != nil
		}
	}
}

// finish takes an attempt's result into account. It returns entries that the webhook may not hold in memory any longer;
// they are to be recorded as due again.
func (s *scheduler) finish(q *queue, r *Result) (handedBack []*Entry) {
	now := time.Now()
	s.addInFlight(q, -1)
	if r.Delivery != nil {
		s.unrecorded++
	}
	switch {
	case r.Delivery == nil:
		if !r.RetryAt.IsZero() {
			q.spilling++
		}
	case r.Delivery.Success:
		q.failures = 0
		q.limit.Succeeded(now, r.Delivery.took(), r.Delivery.latency())
		s.setStanding(q, limit.Proven)
		if q.regained > 0 {
			if q.regained++; q.regained >= s.limits.queued {
				q.regained = 0
			}
		}
	default:
		q.failures++
		q.limit.Failed(now, r.Delivery.took())
		if r.slow {
			q.limit.Cut(now)
		}
		if r.hold > 0 {
			handedBack = s.hold(q, r.hold)
		}
		if q.failures >= probeAfter {
			q.limit.Cut(now)
			s.setStanding(q, limit.Failing)
			handedBack = append(handedBack, s.shrink(q)...)
			s.pause(q, time.Duration(min(q.failures, maxProbePause))*time.Millisecond)
		}
	}
	if r.target != nil && q.flow != r.target.flow {
		s.setFlow(q, r.target.flow)
		s.pause(q, q.flow.interval()-r.Delivery.took())
	}
	s.list(q)
	if q.wanted {
		s.want(q)
	}
	r.failures = q.failures
	return handedBack
}

func (s *scheduler) setFlow(q *queue, f flow) {
	q.flow = f
	q.limit.SetMost(f.inFlight)
}

// changed says that a webhook was changed. Until an attempt tells what it wants now, it gets one request at a time.
func (s *scheduler) changed(webhook int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q := s.queues[webhook]; q != nil {
		s.setFlow(q, flow{inFlight: 1})
	}
}

// recorded says that results are committed. Only now are their bytes free: until then they are held in memory.
func (s *scheduler) recorded(results []Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range results {
		s.resultRecorded(r)
	}
	s.start()
}

func (s *scheduler) resultRecorded(r Result) {
	if r.Entry.Held {
		return
	}
	q := s.queues[r.Entry.WebhookSeq] // it is there as long as it has bytes
	s.addBytes(q, -cost(len(r.Entry.Event.Payload)))
	switch {
	case r.Delivery != nil:
		s.unrecorded--
		if r.Entry.Ordering != 0 && r.RetryAt.IsZero() { // the one behind it may be claimed now
			q.spilled = true
			s.want(q)
		}
	case !r.RetryAt.IsZero():
		s.spilled(q)
	case r.Entry.Trigger == TriggerReplay: // the replay was canceled
	default: // the webhook is gone
		q.failures = 0
		s.setStanding(q, limit.Unknown)
	}
	s.settle(q)
}

// block makes no more attempts start while results can't be recorded.
func (s *scheduler) block(blocked bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.blocked != blocked {
		s.blocked = blocked
		s.start()
	}
}

// stop makes the scheduler start no more attempts. The caller then waits for the workers.
func (s *scheduler) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	for _, turns := range s.idle {
		close(turns)
	}
	s.idle = nil
}

// ring is a first-in-first-out list of queues.
type ring struct {
	items []*queue
	head  int
}

func (r *ring) empty() bool { return r.head == len(r.items) }

func (r *ring) push(q *queue) {
	if r.head > 32 && r.head > len(r.items)/2 {
		r.items = append(r.items[:0], r.items[r.head:]...)
		r.head = 0
	}
	r.items = append(r.items, q)
}

func (r *ring) pop() *queue {
	if r.empty() {
		return nil
	}
	q := r.items[r.head]
	r.items[r.head] = nil
	r.head++
	return q
}
