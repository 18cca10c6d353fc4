package posthorn

import (
	"container/heap"
	"context"
	"slices"
	"sync"
	"time"
)

const (
	// sweepEvery is how often the store is asked for whatever is due. It is what finds every entry after any crash.
	// Everything else that leads to a claim only saves time.
	sweepEvery = time.Second
	// A retry that is due within hintHorizon is claimed on time; one further away by the first sweep after.
	hintHorizon = time.Minute
	maxHints    = 100_000
	maxExpected = 16 // webhooks

	claimWebhooks = 256     // in one claim, at most
	claimEntries  = 512     // in one claim, about; while they are leased, events wait for the store
	claimBytes    = 8 << 20 // in one claim, about
	sweepPage     = 512
)

// claimer brings entries from the store into the scheduler's queues: what was spilled, retries that have become due, and
// what dead nodes left.
type claimer struct {
	store   Store
	sched   *scheduler
	now     func() time.Time // the store's
	horizon time.Duration
	failed  func(doing string, err error)
	// leaseFailed is called instead when something may have been leased all the same.
	leaseFailed func(doing string, err error)
	after       int64         // the webhook at which the last sweep stopped
	sweepNow    chan struct{} // something may be due of which nobody has heard

	mu    sync.Mutex
	hints hints
	early chan struct{} // a hint became the first
}

// hint says that a webhook has an entry due at a time.
type hint struct {
	at      time.Time
	webhook int64
	byHand  bool
}

// retryAt tells when a webhook has an entry due.
func (c *claimer) retryAt(at time.Time, webhook int64, byHand bool) {
	if at.Sub(c.now()) > hintHorizon {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.hints) >= maxHints {
		return
	}
	heap.Push(&c.hints, hint{at, webhook, byHand})
	if c.hints[0].at.Equal(at) {
		wake(c.early)
	}
}

// expect has webhooks claimed for several times soon: a transaction of the host's has entries for them, and nobody tells
// when it commits. What commits later is found by the sweep.
func (c *claimer) expect(webhooks []DueWebhook) {
	if len(webhooks) > maxExpected {
		return
	}
	soon := c.now()
	for after := 5 * time.Millisecond; after < sweepEvery/2; after *= 4 {
		for _, w := range webhooks {
			c.retryAt(soon.Add(after), w.Seq, false)
		}
	}
}

// followHints has the webhooks of the hints that are due claimed for, and returns how long it is until the next one.
func (c *claimer) followHints() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.hints) > 0 {
		wait := c.hints[0].at.Sub(c.now())
		if wait > 0 {
			return wait
		}
		h := heap.Pop(&c.hints).(hint)
		c.sched.wantRetry(h.webhook, h.byHand)
	}
	return hintHorizon
}

func (c *claimer) run(ctx context.Context) {
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	next := time.NewTimer(hintHorizon)
	defer next.Stop()
	for {
		c.claim(ctx)
		select {
		case <-ctx.Done():
			return
		case <-c.sched.signal:
		case <-c.early:
		case <-next.C:
		case <-sweep.C:
			c.sweep(ctx)
		case <-c.sweepNow:
			c.sweep(ctx)
		}
		next.Reset(c.followHints())
	}
}

// sweep makes the scheduler want whatever webhook has something due. Where that is more than it has room for, the next
// sweep goes on behind the last one.
func (c *claimer) sweep(ctx context.Context) {
	for !c.sched.crowded() {
		due, err := c.due(ctx)
		if err != nil {
			c.failed("look for what is due", err)
			return
		}
		for _, w := range due {
			c.sched.wantSpilled(w.Seq)
		}
		c.claim(ctx)
		if len(due) < sweepPage {
			c.after = 0
			return
		}
		c.after = due[len(due)-1].Seq
	}
}

func (c *claimer) due(ctx context.Context) ([]DueWebhook, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	return c.store.Due(ctx, c.now(), c.horizon, c.after, sweepPage)
}

// claim claims for the webhooks that are wanted and have room, until there is none left or the store fails.
func (c *claimer) claim(ctx context.Context) {
	for ctx.Err() == nil {
		plan, node := c.sched.planClaim()
		if len(plan) == 0 {
			return
		}
		wants := make([]Want, len(plan))
		for i, p := range plan {
			wants[i] = Want{WebhookSeq: p.queue.seq, Limit: p.limit}
		}
		limit := min(claimBytes, max(1, c.sched.limits.bytes/8))
		bounded, cancel := context.WithTimeout(ctx, storeTimeout)
		entries, err := c.store.Claim(bounded, Claim{
			Node: node, Now: c.now(), Horizon: c.horizon, Wants: wants, MaxBytes: limit,
		})
		cancel()
		c.sched.claimed(plan, node, entries, limit, err)
		if err != nil {
			c.leaseFailed("claim what is due", err)
			return
		}
	}
}

// hints is a heap, the earliest first.
type hints []hint

func (h hints) Len() int           { return len(h) }
func (h hints) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h hints) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *hints) Push(x any)        { *h = append(*h, x.(hint)) }
func (h *hints) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	*h = (*h)[:last]
	return x
}

// What follows is the scheduler's side of claiming.

// planned is a webhook that is being claimed for.
type planned struct {
	queue  *queue
	limit  int // the entries asked for; as many places are reserved
	spills int // the queue's when the claim was planned
}

// want asks for a claim for a webhook once at least half of its queue is free.
func (s *scheduler) want(q *queue) {
	q.wanted = true
	if s.room(q) >= (s.capacity(q)+1)/2 {
		s.claimSoon(q)
	}
}

func (s *scheduler) claimSoon(q *queue) {
	if !q.claiming && !s.stopped {
		q.claiming = true
		s.claims = append(s.claims, q)
		s.wake()
	}
}

// wantRetry asks for a claim for a webhook that has a retry due, at once if that is of a run asked for by hand.
func (s *scheduler) wantRetry(webhook int64, byHand bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queue(webhook)
	if byHand {
		s.claimSoon(q)
	}
	s.want(q)
}

// wantSpilled asks for a claim for a webhook that has free entries, which later ones must not overtake.
func (s *scheduler) wantSpilled(webhook int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queue(webhook)
	q.spilled = true
	s.want(q)
}

// crowded reports whether the scheduler has more webhooks than it should.
func (s *scheduler) crowded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queues) > 2*maxRemembered
}

func (s *scheduler) wake() { wake(s.signal) }

// planClaim takes webhooks to claim for and reserves places for their entries. It returns the node to claim them for, too.
func (s *scheduler) planClaim() (plan []planned, node int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped || !time.Now().Before(s.leaseUntil) {
		return nil, 0
	}
	var waiting []*queue
	share := max(probeQueue, claimEntries/max(1, min(len(s.claims), claimWebhooks)))
	for i, q := range s.claims {
		if len(plan) == claimWebhooks {
			waiting = append(waiting, s.claims[i:]...)
			break
		}
		if !s.hasBytes(q, 1) {
			waiting = append(waiting, q)
			continue
		}
		p := planned{queue: q, limit: min(share, max(1, s.room(q))), spills: q.spills}
		q.wanted = false
		q.reserved += p.limit
		plan = append(plan, p)
	}
	s.claims = waiting
	return plan, s.node
}

// claimed puts entries that were claimed for a node into their queues.
func (s *scheduler) claimed(plan []planned, node int64, entries []*Entry, maxBytes int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	got := make(map[int64]int, len(plan))
	for _, e := range entries {
		q := s.queues[e.WebhookSeq]
		got[q.seq]++
		n := len(e.Event.Payload)
		maxBytes -= n
		s.addBytes(q, cost(n))
		s.add(q, e, node)
	}
	// Who got least comes first the next time: one webhook with big payloads must not use up every claim's bytes.
	slices.SortStableFunc(plan, func(a, b planned) int { return got[a.queue.seq] - got[b.queue.seq] })
	for _, p := range plan {
		q := p.queue
		q.reserved -= p.limit
		q.claiming = false
		switch {
		case err != nil: // tried again after the next sweep
			q.wanted, q.claiming = true, true
			s.claims = append(s.claims, q)
		case got[q.seq] == p.limit || maxBytes <= 0: // there may be more
			q.spilled = true
			s.want(q)
		case q.wanted || q.spills != p.spills: // something was committed meanwhile
			s.want(q)
		default: // there is no more, but for what is being committed, and what another node was just looking at
			q.spilled = q.spilling > 0 || s.dropped
		}
		s.settle(q)
	}
	s.start()
}
