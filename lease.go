package posthorn

import (
	"container/heap"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// What a node works on: its lease, and the claims by which it gets entries from the store.

const (
	// A node's lease lasts leaseFor and is renewed every leaseFor/3. While it is not, the node starts no attempts; once it
	// has run out, others take its entries over.
	leaseFor = 30 * time.Second
	// releaseTimeout is how long it may take to free the entries of dead nodes, before it is tried again.
	releaseTimeout = 5 * time.Minute
	// maxAhead is how far ahead of the store's clock the node's idea of it may be.
	maxAhead = time.Second
)

// join gets a lease as a new node.
func (d *Dispatcher) join(ctx context.Context) error {
	if err := d.clock.set(ctx, d.store); err != nil {
		return err
	}
	return d.lease(ctx, 0)
}

// lease gets a lease, or renews a node's.
func (d *Dispatcher) lease(ctx context.Context, node int64) error {
	until := time.Now().Add(leaseFor - d.clock.slack()) // others may see the end that much earlier
	node, err := d.store.Lease(ctx, node, d.clock.now().Add(leaseFor))
	if err != nil {
		return err
	}
	d.sched.lease(node, until)
	d.node.Store(node) // what is leased to an old one meanwhile is refused, or freed with it
	return nil
}

// keepLease renews the node's lease, and joins anew when the node itself was taken for dead.
func (d *Dispatcher) keepLease(ctx context.Context) {
	tick := time.NewTicker(leaseFor / 3)
	defer tick.Stop()
	retry := time.NewTimer(leaseFor)
	retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-retry.C:
		case <-d.lost:
		}
		err := d.renew(ctx)
		if err != nil && ctx.Err() == nil {
			d.storeFailed("renew the node's lease", err)
		}
		if err != nil || d.uncertain.Load() {
			retry.Reset(storeRetry)
		}
	}
}

func (d *Dispatcher) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, leaseFor/3)
	defer cancel()
	if err := d.clock.set(ctx, d.store); err != nil {
		return err
	}
	if d.uncertain.Load() {
		return d.rejoin(ctx)
	}
	switch err := d.lease(ctx, d.node.Load()); {
	case ErrorCode(err) == CodeConflict:
		d.log.Warn("the node's lease ran out and others took its entries over; it goes on as a new node", "lease", leaseFor.String())
		d.sched.drop()
		if err := d.join(ctx); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	wake(d.release)
	return nil
}

// rejoin frees all that is leased to the node, and goes on as a new one: the store was lost in the middle of a commit, and
// may have leased to the node what that has not got. Until what is in flight is recorded no more attempts start, and the node
// keeps its lease.
func (d *Dispatcher) rejoin(ctx context.Context) error {
	d.sched.drop()
	old := d.node.Load()
	if d.sched.owes() { // as long as the node keeps its lease, what is in flight need not be sent again
		if _, err := d.store.Lease(ctx, old, d.clock.now().Add(leaseFor)); ErrorCode(err) != CodeConflict {
			return err
		}
	}
	d.give(old)
	d.uncertain.Store(false) // from here on it is about the new node
	if err := d.join(ctx); err != nil {
		d.uncertain.Store(true)
		return err
	}
	d.log.Warn("a write of which nobody knows whether it was done: the node gave up its lease and goes on as a new one")
	wake(d.release)
	return nil
}

// keepTakingOver frees the entries of dead nodes after each renewal of the lease. That doesn't wait for it: to free many may
// take longer than a lease lasts.
func (d *Dispatcher) keepTakingOver(ctx context.Context) {
	for retry := (<-chan time.Time)(nil); ; {
		select {
		case <-ctx.Done():
			return
		case <-d.release:
		case <-retry:
		}
		retry = nil
		if err := d.takeOver(ctx, releaseTimeout); err != nil && ctx.Err() == nil {
			d.storeFailed("free the entries of dead nodes", err)
			retry = time.After(storeRetry)
		}
	}
}

// takeOver frees the entries of the nodes that this one has been, and of dead ones.
func (d *Dispatcher) takeOver(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	given := d.releaseGiven(ctx)
	n, err := d.store.Release(ctx, 0, d.clock.now())
	if n > 0 {
		d.log.Info("took over the entries of dead nodes", "nodes", n)
		wake(d.claims.sweepNow)
	}
	return errors.Join(given, err)
}

// give notes a node that this one has been.
func (d *Dispatcher) give(node int64) {
	d.givenMu.Lock()
	defer d.givenMu.Unlock()
	if !slices.Contains(d.given, node) {
		d.given = append(d.given, node)
	}
}

// releaseGiven frees the entries of the nodes that this one has been. If it can't, their leases run out.
func (d *Dispatcher) releaseGiven(ctx context.Context) error {
	for {
		d.givenMu.Lock()
		given := d.given
		d.givenMu.Unlock()
		if len(given) == 0 {
			d.sched.released()
			return nil
		}
		if _, err := d.store.Release(ctx, given[0], d.clock.now()); err != nil {
			return err
		}
		d.givenMu.Lock()
		d.given = slices.DeleteFunc(slices.Clone(d.given), func(node int64) bool { return node == given[0] })
		d.givenMu.Unlock()
		wake(d.claims.sweepNow)
	}
}

// What follows is the scheduler's side of leases.

// lease sets whose lease the entries are under and until when it lasts. Without one no attempt starts.
func (s *scheduler) lease(node int64, until time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.node, s.leaseUntil = node, until
	s.start()
	if len(s.claims) > 0 {
		s.wake()
	}
}

// owes reports whether there are requests in flight, or results that are not recorded.
func (s *scheduler) owes() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	inFlight := 0
	for _, u := range s.used {
		inFlight += u.inFlight
	}
	return inFlight+s.unrecorded > 0
}

func (s *scheduler) leased() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Before(s.leaseUntil)
}

// drop forgets the lease and all entries that are not in flight: they are no longer the node's own, or will soon not be.
func (s *scheduler) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.node, s.leaseUntil, s.dropped = 0, time.Time{}, true
	for _, q := range s.queues {
		for _, entries := range [][]*Entry{q.byHand, q.automatic} {
			for _, e := range entries {
				s.addBytes(q, -cost(len(e.Event.Payload)))
			}
		}
		if len(q.byHand)+len(q.automatic) > 0 { // these come back from the store, before anything later
			q.spilled = true
			s.want(q)
		}
		q.byHand, q.automatic = nil, nil
		s.settle(q)
	}
}

// released says that what was dropped is free, to be claimed before anything later.
func (s *scheduler) released() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.dropped {
		return
	}
	s.dropped = false
	for _, q := range s.queues {
		if q.spilled {
			s.want(q)
		}
	}
}

// clock tells the time of the store, whatever the node's own clock says. It is ahead of the store's by no more than maxAhead,
// and behind by no more than the store's answer took. It goes back only when the store's does, by more than maxAhead.
type clock struct{ reading atomic.Pointer[clockReading] }

type clockReading struct {
	store time.Time     // what the store said
	at    time.Time     // when, by the node's monotonic clock
	took  time.Duration // to get its answer
}

// set asks the store what time it is.
func (c *clock) set(ctx context.Context, store Store) error {
	asked := time.Now()
	t, err := store.Now(ctx)
	if err != nil {
		return err
	}
	answered := time.Now()
	if old := c.reading.Load(); old != nil && c.now().After(t) && old.time(asked).Sub(t) <= maxAhead {
		return nil // this answer took longer than the last one, and would put the clock back
	}
	c.reading.Store(&clockReading{t, answered, answered.Sub(asked)})
	return nil
}

// now is the time as stores keep it: UTC, to the microsecond.
func (c *clock) now() time.Time { return c.reading.Load().time(time.Now()) }

// time is the store's time at one of the node's.
func (r *clockReading) time(node time.Time) time.Time {
	return r.store.Add(node.Sub(r.at)).UTC().Truncate(time.Microsecond)
}

// slack is how far the clocks of two nodes may be apart.
func (c *clock) slack() time.Duration { return maxAhead + c.reading.Load().took }

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
func (c *claimer) expect(webhooks []recipient) {
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
// sweep goes on behind the last one, with a page at least: those that crowd it must not hide all others for ever.
func (c *claimer) sweep(ctx context.Context) {
	for first := true; !c.sched.crowded() || first && !c.sched.full(); first = false {
		due, err := c.due(ctx)
		if err != nil {
			c.failed("look for what is due", err)
		}
		if err != nil && len(due) == 0 {
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

// claimNow asks for a claim for a webhook that has something to be sent by hand, however full its queue is.
func (s *scheduler) claimNow(q *queue) {
	q.urgent = q.claiming // that may have looked already
	s.claimSoon(q)
}

// wantRetry asks for a claim for a webhook that has a retry due, at once if that is of a run asked for by hand.
func (s *scheduler) wantRetry(webhook int64, byHand bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queue(webhook)
	if byHand {
		s.claimNow(q)
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

// full reports whether so many of these wait for room in memory that there is no use in more.
func (s *scheduler) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.claims) > maxRemembered
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
		q.wanted, q.urgent = false, false
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
		q.urgent = q.urgent || e.Trigger.ByHand() // there may be more of these, and they come first
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
		if q.urgent {
			s.claimSoon(q)
		}
		s.settle(q)
	}
	s.start()
}
