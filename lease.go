package posthorn

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"
)

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
