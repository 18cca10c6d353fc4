package posthorn

import (
	"context"
	"errors"
	"sync"
	"time"
)

const (
	// Results may wait this long for company; what was promised is durable without them.
	maxResultDelay = 20 * time.Millisecond
	// Submissions wait this long where the batch before had some number of them, in the hope of as many again: those who got
	// their answer are about to come back. It makes the batches larger, and so each event cheaper, under load.
	maxEventDelay   = 10 * time.Millisecond
	someSubmissions = 8
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
	maxBatchTargets = 16 * 1024 // webhooks that the events of a batch go to
	// Results have nobody waiting, but an event that comes while they are written has: it waits for them, and for those that go
	// with it. Therefore a batch takes no more of them than pays for its fsync, or than match its events, each of which may
	// go to several webhooks; and half of those that wait, so that a store with a slow fsync gets larger ones.
	maxBatchResults = 1024
	resultsPerEvent = 2
	// What may wait for its commit. More is refused, until the store has caught up.
	maxWaitingEvents = 16 * maxBatchEvents
	maxWaitingBytes  = 4 * MaxBatchBytes
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
	// held is called for each webhook that has a new held entry.
	held func(webhookSeq int64)

	signal  chan struct{} // something was added
	mu      sync.Mutex
	waiting []*submission
	events  int  // of those
	bytes   int  // of the events' payloads
	enough  int  // submissions that are worth a commit at once
	alone   bool // results are to be tried without events, one of which may be at fault
	ended   bool // nobody commits any more
	// results are those that wait to be committed. Those of attempts are bounded by the scheduler's limit of unrecorded ones; of what is
	// acknowledged there is each entry once (see polls.record), of the first few hundred of a webhook.
	results []Result
}

// submission is what a caller waits for: an event, or several that are accepted all or none.
type submission struct {
	events  []acceptance
	one     [1]acceptance // what events is made of where it is one
	bytes   int           // of the events' payloads
	targets int           // webhooks that they go to
	answer  chan error    // once the events have their receipts, or won't get any
}

// acceptance is an event on its way into the store.
type acceptance struct {
	event    *AcceptedEvent
	trigger  Trigger
	webhooks []recipient
	reserved []bool // by webhook: there is a place for its entry in memory
	receipt  Receipt
}

// batchError is what was wrong with one event of a submission, by its index.
type batchError struct {
	index int
	error
}

func newGroupCommit(store Store, node func() int64) *groupCommit {
	return &groupCommit{store: store, node: node, signal: make(chan struct{}, 1)}
}

// accept commits an event for webhooks, of which there is at least one.
func (g *groupCommit) accept(ctx context.Context, event *AcceptedEvent, trigger Trigger, webhooks []recipient) (Receipt, error) {
	s := &submission{one: [1]acceptance{{event: event, trigger: trigger, webhooks: webhooks}}}
	s.events = s.one[:]
	err := g.submit(ctx, s)
	if e, ok := errors.AsType[batchError](err); ok {
		err = e.error
	}
	if err != nil {
		return Receipt{}, err
	}
	return s.one[0].receipt, nil
}

// acceptAll commits events for webhooks, all or none. Each gets its receipt, unless there is an error; that of a single event
// is a batchError.
func (g *groupCommit) acceptAll(ctx context.Context, events []acceptance) error {
	return g.submit(ctx, &submission{events: events})
}

func (g *groupCommit) submit(ctx context.Context, s *submission) error {
	s.answer = make(chan error, 1)
	for i := range s.events {
		s.bytes += len(s.events[i].event.Payload)
		s.targets += len(s.events[i].webhooks)
	}
	if err := g.add(s); err != nil {
		return err
	}
	select {
	case err := <-s.answer:
		return err
	case <-ctx.Done():
		return ctx.Err() // it may be accepted all the same
	}
}

func (g *groupCommit) add(s *submission) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.ended:
		return Errorf(CodeUnavailable, "the dispatcher is stopping")
	case g.events >= maxWaitingEvents, g.bytes > maxWaitingBytes:
		return Errorf(CodeUnavailable, "too many events wait to be written: the store is slower than they come")
	}
	g.waiting = append(g.waiting, s)
	g.events += len(s.events)
	g.bytes += s.bytes
	if len(g.waiting) == 1 || len(g.waiting) >= g.enough {
		g.wake()
	}
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
	var pause <-chan time.Time  // before results are tried again, or to let them gather
	var gather <-chan time.Time // to let events gather
	for {
		select {
		case <-ctx.Done():
			g.drain()
			return
		case <-pause:
			pause = nil
		case <-gather:
		case <-g.signal:
			switch {
			case g.urgent():
			case g.hasEvents():
				if gather == nil {
					gather = time.After(maxEventDelay)
				}
				continue
			default:
				if pause == nil {
					pause = time.After(maxResultDelay)
				}
				continue
			}
		}
		gather = nil
		for more := true; more; {
			var err error
			if more, err = g.commit(); err != nil {
				pause = time.After(storeRetry)
				more = g.hasEvents() // each gets its answer by trying
			}
		}
		if g.hasEvents() {
			g.wake()
		}
	}
}

// urgent reports whether what there is to commit should not wait for more.
func (g *groupCommit) urgent() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.waiting) > 0 && len(g.waiting) >= g.enough || len(g.results) >= enoughResults
}

func (g *groupCommit) hasEvents() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.waiting) > 0
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
	for _, s := range g.waiting {
		s.answer <- Errorf(CodeUnavailable, "the dispatcher is stopping")
	}
	g.waiting = nil
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
	submissions, events, results, more := g.take()
	if events+len(results) == 0 {
		return false, nil
	}
	// Not even Stop interrupts a commit: whether it was one would be unknown.
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	batch := Batch{Node: g.node(), Results: results, Events: make([]NewEvent, 0, events)}
	for n, s := range submissions {
		group := 0
		if len(s.events) > 1 {
			group = n + 1
		}
		for i := range s.events {
			batch.Events = append(batch.Events, g.newEvent(&s.events[i], group))
		}
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
	if n := len(submissions); n >= someSubmissions {
		g.enough = n
	} else if n > 0 {
		g.enough = 0
	}
	g.sched.block(err != nil && len(results) > 0) // these are tried again until it works, which ends it
	g.mu.Unlock()
	if err != nil {
		g.mu.Lock()
		g.results = append(results, g.results...)
		g.alone = len(results) > 0 && events > 0
		g.mu.Unlock()
		g.failed("commit events and results", err)
		for _, s := range submissions {
			g.unreserve(s)
			s.answer <- notNow(err)
		}
		return more, err
	}
	for _, s := range submissions {
		n := len(s.events)
		s.answer <- g.settle(s, acceptances[:n], batch.Node)
		acceptances = acceptances[n:]
	}
	for _, r := range results {
		g.committed(r)
	}
	g.sched.recorded(results)
	return more, nil
}

// newEvent reserves places for an event's entries, as far as there are any.
func (g *groupCommit) newEvent(a *acceptance, group int) NewEvent {
	targets := make([]Target, len(a.webhooks))
	for i, w := range a.webhooks {
		targets[i] = w.target(a.trigger, a.event)
	}
	a.reserved = g.sched.reserve(a.trigger, targets, len(a.event.Payload))
	for i := range targets {
		targets[i].Leased = a.reserved[i]
	}
	return NewEvent{Event: a.event, Targets: targets, Trigger: a.trigger, Group: group}
}

func (g *groupCommit) unreserve(s *submission) {
	for i := range s.events {
		a := &s.events[i]
		g.sched.unreserve(a.webhooks, len(a.event.Payload), a.reserved)
	}
}

// settle hands over to the scheduler what became of a submission's events, and returns what to answer.
func (g *groupCommit) settle(s *submission, got []Acceptance, node int64) error {
	for i := range got {
		if err := got[i].Err; err != nil {
			g.unreserve(s)
			return batchError{i, err}
		}
	}
	for i := range s.events {
		a := &s.events[i]
		if got[i].Duplicate {
			g.sched.unreserve(a.webhooks, len(a.event.Payload), a.reserved)
		} else {
			g.sched.accepted(a, node)
			for _, w := range a.webhooks {
				if w.polled {
					g.held(w.Seq)
				}
			}
		}
		a.receipt = Receipt{EventID: a.event.ID, Deliveries: got[i].Deliveries, Duplicate: got[i].Duplicate}
	}
	return nil
}

// take takes what goes into one batch. No submission is split, so one alone may be more than fits otherwise.
func (g *groupCommit) take() (submissions []*submission, events int, results []Result, more bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	n, bytes, targets := 0, 0, 0
	alone := g.alone && len(g.results) > 0
	g.alone = false
	for !alone && n < len(g.waiting) && bytes < MaxBatchBytes {
		s := g.waiting[n]
		if n > 0 && (events+len(s.events) > maxBatchEvents || targets+s.targets > maxBatchTargets) {
			break
		}
		events += len(s.events)
		bytes += s.bytes
		targets += s.targets
		n++
	}
	submissions, g.waiting = g.waiting[:n:n], g.waiting[n:]
	g.events -= events
	g.bytes -= bytes
	if len(g.waiting) == 0 {
		g.waiting = nil // lets go of the array
	}
	n = min(len(g.results), maxBatchResults, max(enoughResults, resultsPerEvent*events, len(g.results)/2))
	results, g.results = g.results[:n:n], g.results[n:]
	if len(g.results) == 0 {
		g.results = nil
	}
	return submissions, events, results, len(g.waiting)+len(g.results) > 0
}
