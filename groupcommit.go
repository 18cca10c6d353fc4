package posthorn

import (
	"context"
	"errors"
	"sync"
	"time"
)

const (
	// Results may wait this long for company; what was promised is durable without them. Events never wait.
	maxResultDelay = 20 * time.Millisecond
	// slowCommit is how long a commit may take before no more attempts start: as long as their results can't be recorded
	// they would have to be made again if the node died, or lost its lease.
	slowCommit = time.Second
	// storeRetry is how long to wait after the store failed.
	storeRetry = time.Second
	// storeTimeout is for how long the store may take over a call. One with a shorter limit of its own knows better what has
	// happened then.
	storeTimeout = 40 * time.Second

	enoughResults   = 256 // don't wait for more
	maxBatchEvents  = 512
	maxBatchResults = 1024
	maxBatchBytes   = 16 << 20 // of the events' payloads
	// What may wait for its commit. More is refused, until the store has caught up.
	maxWaitingEvents = 16 * maxBatchEvents
	maxWaitingBytes  = 4 * maxBatchBytes
)

// groupCommit writes events and results to the store, many in one transaction: while one batch is being committed the
// next one gathers. A batch that fails fails its events; its results are kept and committed with a later one.
type groupCommit struct {
	store Store
	sched *scheduler
	node  func() int64
	// failed is called when a commit failed.
	failed func(doing string, err error)
	// committed is called for each result once it is committed, in the order of the log.
	committed func(Result)

	signal chan struct{} // something was added
	mu     sync.Mutex
	events []*acceptance
	bytes  int  // of the events' payloads
	alone  bool // results are to be tried without events, one of which may be at fault
	ended  bool // nobody commits any more
	// results are those that wait to be committed; the scheduler's limit of unrecorded ones bounds them.
	results []Result
}

// acceptance is an event on its way into the store.
type acceptance struct {
	event    *AcceptedEvent
	trigger  Trigger
	webhooks []DueWebhook
	reserved []bool // by webhook: there is a place for its entry in memory
	answer   chan answer
}

type answer struct {
	receipt Receipt
	err     error
}

func newGroupCommit(store Store, node func() int64) *groupCommit {
	return &groupCommit{store: store, node: node, signal: make(chan struct{}, 1)}
}

// accept commits an event for webhooks, of which there is at least one.
func (g *groupCommit) accept(ctx context.Context, event *AcceptedEvent, trigger Trigger, webhooks []DueWebhook) (Receipt, error) {
	a := &acceptance{event: event, trigger: trigger, webhooks: webhooks, answer: make(chan answer, 1)}
	if err := g.add(a); err != nil {
		return Receipt{}, err
	}
	g.wake()
	select {
	case answer := <-a.answer:
		return answer.receipt, answer.err
	case <-ctx.Done():
		return Receipt{}, ctx.Err() // it may be accepted all the same
	}
}

func (g *groupCommit) add(a *acceptance) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.ended:
		return Errorf(CodeUnavailable, "the dispatcher is stopping")
	case len(g.events) >= maxWaitingEvents, g.bytes > maxWaitingBytes:
		return Errorf(CodeUnavailable, "too many events wait to be written: the store is slower than they come")
	}
	g.events = append(g.events, a)
	g.bytes += len(a.event.Payload)
	return nil
}

// record adds a result. It does not wait.
func (g *groupCommit) record(r Result) {
	g.mu.Lock()
	g.results = append(g.results, r)
	n := len(g.results)
	g.mu.Unlock()
	if n == 1 || n == enoughResults {
		g.wake()
	}
}

func (g *groupCommit) wake() { wake(g.signal) }

// run commits until the context ends, and then what is left, unless the store fails.
func (g *groupCommit) run(ctx context.Context) {
	var pause <-chan time.Time // before results are tried again, or to let them gather
	for {
		select {
		case <-ctx.Done():
			g.drain()
			return
		case <-pause:
			pause = nil
		case <-g.signal:
			if !g.urgent() {
				if pause == nil {
					pause = time.After(maxResultDelay)
				}
				continue
			}
		}
		for more := true; more; {
			var err error
			if more, err = g.commit(); err != nil {
				pause = time.After(storeRetry)
				more = g.hasEvents() // each gets its answer by trying
			}
		}
	}
}

// urgent reports whether what there is to commit should not wait for more.
func (g *groupCommit) urgent() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.events) > 0 || len(g.results) >= enoughResults
}

func (g *groupCommit) hasEvents() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.events) > 0
}

// drain commits what is left at the end, for as long as the store takes it. Afterwards no event is left without an answer.
func (g *groupCommit) drain() {
	deadline := time.Now().Add(lastWords)
	for more := true; more && time.Now().Before(deadline); {
		var err error
		// As for results that can't be written: the lease ends, and what was sent is sent again under the same delivery ids.
		if more, err = g.commit(); err != nil {
			more = g.hasEvents()
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = true
	for _, a := range g.events {
		a.answer <- answer{err: Errorf(CodeUnavailable, "the dispatcher is stopping")}
	}
	g.events = nil
}

// notNow makes the store's failure to write a batch, or its refusal because the node's lease was lost, an error for
// those who had something in it: it is no fault of theirs, and may work the next time.
func notNow(err error) error {
	switch {
	case ErrorCode(err) == CodeUnavailable:
		return err
	case isUncertain(err):
		return &Error{Code: CodeUncertain, Err: err, Message: "the store was lost in the middle of a commit, so it may have been " +
			"accepted or not; the same eventId again settles it"}
	}
	return &Error{Code: CodeUnavailable, Err: err, Message: "nothing was accepted, because the store failed"}
}

// isUncertain reports whether what a failed call was to write may have been written.
func isUncertain(err error) bool {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code == CodeUncertain
	}
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// commit commits one batch and reports whether there was more than fits into one.
func (g *groupCommit) commit() (more bool, err error) {
	events, results, more := g.take()
	if len(events)+len(results) == 0 {
		return false, nil
	}
	// Not even Stop interrupts a commit: whether it was one would be unknown.
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	batch := Batch{Node: g.node(), Results: results}
	for _, a := range events {
		a.reserved = g.sched.reserve(a.trigger, a.webhooks, len(a.event.Payload))
		targets := make([]Target, len(a.webhooks))
		for i, w := range a.webhooks {
			targets[i] = Target{WebhookSeq: w.Seq, Leased: a.reserved[i]}
		}
		batch.Events = append(batch.Events, NewEvent{Event: a.event, Targets: targets, Trigger: a.trigger})
	}
	committing := true // guarded by mu
	slow := time.AfterFunc(slowCommit, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if committing {
			g.sched.block(true)
		}
	})
	acceptances, err := g.store.Commit(ctx, batch)
	slow.Stop()
	g.mu.Lock()
	committing = false
	g.sched.block(err != nil && len(results) > 0) // these are tried again until it works, which ends it
	g.mu.Unlock()
	if err != nil {
		g.mu.Lock()
		g.results = append(results, g.results...)
		g.alone = len(results) > 0 && len(events) > 0
		g.mu.Unlock()
		g.failed("commit events and results", err)
		for _, a := range events {
			g.sched.unreserve(a.webhooks, len(a.event.Payload), a.reserved)
			a.answer <- answer{err: notNow(err)}
		}
		return more, err
	}
	for i, a := range events {
		got := acceptances[i]
		if got.Err != nil || got.Duplicate {
			g.sched.unreserve(a.webhooks, len(a.event.Payload), a.reserved)
		} else {
			g.sched.accepted(a, batch.Node)
		}
		a.answer <- answer{Receipt{EventID: a.event.ID, Deliveries: got.Deliveries, Duplicate: got.Duplicate}, got.Err}
	}
	for _, r := range results {
		g.committed(r)
	}
	g.sched.recorded(results)
	return more, nil
}

// take takes what goes into one batch.
func (g *groupCommit) take() (events []*acceptance, results []Result, more bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	n, bytes := 0, 0
	alone := g.alone && len(g.results) > 0
	g.alone = false
	for !alone && n < len(g.events) && n < maxBatchEvents && bytes < maxBatchBytes {
		bytes += len(g.events[n].event.Payload)
		n++
	}
	events, g.events = g.events[:n:n], g.events[n:]
	g.bytes -= bytes
	if len(g.events) == 0 {
		g.events = nil // lets go of the array
	}
	n = min(len(g.results), maxBatchResults)
	results, g.results = g.results[:n:n], g.results[n:]
	if len(g.results) == 0 {
		g.results = nil
	}
	return events, results, len(g.events)+len(g.results) > 0
}
