package posthorn

import (
	"context"
	"crypto/cipher"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/musehub/posthorn/internal/schema"
	"github.com/musehub/posthorn/internal/secretbox"
	"github.com/musehub/posthorn/internal/sender"
)

const (
	pruneEvery = time.Minute
	// resealEvery is how often the secrets are looked through: others may have brought some into the store, or encrypted
	// them with another key.
	resealEvery = time.Hour
	// changesEvery is how often the store is asked for changes that other nodes made to webhooks.
	changesEvery = 500 * time.Millisecond
	// lastWords is for how long at least a stopping node tries to write what is left, if its context has ended or has no end.
	lastWords = 5 * time.Second
	// complainEvery is how often the log mentions that a store fails at the same thing.
	complainEvery = 10 * time.Second
)

// Dispatcher accepts events and delivers them. Its methods are safe for concurrent use.
//
// Webhooks, deliveries and events can be read and changed from New on; events are accepted between Start and Stop.
type Dispatcher struct {
	cfg       Config
	schemas   map[string]*schema.Schema // by the type of the event
	store     Store
	log       *slog.Logger
	headers   headerNames
	box       *secretbox.Box
	cursors   cipher.AEAD
	sender    *sender.Sender
	transport func(context.Context, *sender.Request) sender.Outcome // sender.Send, but for tests

	subscriptions *subscriptions
	sched         *scheduler
	commits       *groupCommit
	claims        *claimer
	clock         *clock
	node          atomic.Int64
	uncertain     atomic.Bool   // something may have been leased to the node of which it doesn't know
	lost          chan struct{} // the store says that the lease was released, or it is uncertain
	changed       chan struct{} // webhooks may have changed
	release       chan struct{} // there may be entries of dead nodes to free
	replays       *replayNews
	givenMu       sync.Mutex
	given         []int64 // nodes that this one has been, and whose entries it has yet to free

	lifecycle              sync.Mutex // held by Start and Stop
	state                  atomic.Int32
	accepting              sync.RWMutex // held for reading while an event is accepted
	background, committing *stoppable
	attempts               context.Context // ended to cut off requests in flight
	cutOff                 context.CancelFunc

	observed chan observation
	begun    map[int64]time.Time // webhooks to when it was noted that they fail; for who commits results
	tokens   tokenCache
	creating sync.Mutex // held while a webhook is counted and created
	waits    waits
	polls    polls
	complain sync.Map // what failed to when that was logged last
}

const (
	stateNew = iota
	stateStarted
	stateStopped
)

// stoppable is a group of goroutines that end when they are told to.
type stoppable struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func newStoppable() *stoppable {
	s := &stoppable{}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

func (s *stoppable) run(f func(ctx context.Context)) { s.wg.Go(func() { f(s.ctx) }) }

func (s *stoppable) stop() {
	s.cancel()
	s.wg.Wait()
}

// New returns a Dispatcher on a store, which it does not close. It fails when the configuration is invalid, and when
// the secret keys are not those that the store's secrets were encrypted with.
func New(store Store, cfg Config) (*Dispatcher, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	sending, err := cfg.sender()
	if err != nil {
		return nil, err
	}
	schemas, err := cfg.schemas()
	if err != nil {
		return nil, err
	}
	box, err := openBox(store, cfg.SecretKeys)
	if err != nil {
		return nil, err
	}
	cursors, err := openCursors(context.Background(), store)
	if err != nil {
		return nil, err
	}
	clock := &clock{}
	if err := clock.set(context.Background(), store); err != nil {
		return nil, err
	}
	d := &Dispatcher{
		cfg: cfg, schemas: schemas, store: store, log: cfg.Logger, box: box, cursors: cursors, headers: brandedHeaders(cfg.Brand), clock: clock,
		sender:        sender.New(sending),
		subscriptions: newSubscriptions(store, box, clock.now, &cfg),
		lost:          make(chan struct{}, 1),
		changed:       make(chan struct{}, 1),
		release:       make(chan struct{}, 1),
		replays:       newReplayNews(),
		observed:      make(chan observation, 256),
		background:    newStoppable(),
		committing:    newStoppable(),
	}
	d.transport = d.sender.Send
	d.attempts, d.cutOff = context.WithCancel(context.Background())
	d.commits = newGroupCommit(store, d.node.Load)
	d.sched = newScheduler(
		limits{cfg.MaxInFlight, cfg.MaxInFlightPerWebhook, cfg.MaxQueued, cfg.MaxQueuedBytes},
		func(e *Entry) Result { return d.attempt(d.attempts, e) },
		d.commits.record,
	)
	d.commits.sched = d.sched
	d.commits.failed = d.leaseFailed
	d.commits.committed = d.committed
	d.commits.held = d.polls.wake
	d.claims = &claimer{
		store: store, sched: d.sched, now: clock.now, failed: d.storeFailed, leaseFailed: d.leaseFailed, horizon: MaxRetryDelay + leaseFor,
		early: make(chan struct{}, 1), sweepNow: make(chan struct{}, 1),
	}
	return d, nil
}

// Start joins the store's nodes, takes over what dead ones left, and starts delivering. The work goes on until Stop,
// whatever becomes of ctx once Start has returned. Starting twice does nothing; a stopped Dispatcher can't be started again.
func (d *Dispatcher) Start(ctx context.Context) error {
	d.lifecycle.Lock()
	defer d.lifecycle.Unlock()
	switch d.state.Load() {
	case stateStarted:
		return nil
	case stateStopped:
		return Errorf(CodeUnavailable, "the dispatcher was stopped: make a new one")
	}
	if err := d.join(ctx); err != nil {
		return err
	}
	if err := d.takeOver(ctx, leaseFor/3); err != nil {
		d.storeFailed("free the entries of dead nodes", err) // it is tried again
	}
	d.committing.run(d.commits.run)
	d.background.run(d.keepLease)
	d.background.run(d.keepTakingOver)
	d.claims.sweep(context.WithoutCancel(ctx)) // before new events can overtake what is in the store
	d.background.run(d.claims.run)
	d.subscriptions.follow(Changes{All: true}, time.Now()) // nobody has followed them until now
	d.background.run(d.followChanges)
	if notifier, ok := d.store.(Notifier); ok {
		d.background.run(func(ctx context.Context) { notifier.Listen(ctx, d.notified) })
	}
	d.background.run(d.maintain)
	d.background.run(d.keepSealed)
	d.background.run(d.keepHealth)
	d.background.run(d.keepReplaying)
	d.state.Store(stateStarted)
	return nil
}

// Stop ends the work: no more events are accepted, no more attempts start, requests in flight finish, and what is left
// stays in the store for the next Start of any node. When ctx ends first, requests in flight are cut off; they will be made
// again under the same delivery ids. Stopping twice, or what was never started, does nothing.
func (d *Dispatcher) Stop(ctx context.Context) error {
	d.lifecycle.Lock()
	defer d.lifecycle.Unlock()
	was := d.state.Swap(stateStopped)
	defer d.sender.Close()
	defer d.cutOff()
	if was != stateStarted {
		return nil
	}
	d.sched.stop()
	d.waits.cancel(0) // runs that are not over go on after the next start
	d.polls.stop()
	finished := make(chan struct{})
	go func() {
		d.accepting.Lock()   // waits for events on their way in; those after see the state
		d.accepting.Unlock() //nolint:staticcheck // empty on purpose
		d.sched.workers.Wait()
		close(finished)
	}()
	var err error
	select {
	case <-finished:
	case <-ctx.Done():
		err = Errorf(CodeUnavailable, "requests in flight were cut off and will be made again: %w", context.Cause(ctx))
		d.cutOff()
		d.sched.workers.Wait()
	}
	d.background.stop()
	d.committing.stop()
	<-finished // by now every event on its way in has its answer
	if end, ok := ctx.Deadline(); !ok || ctx.Err() != nil || time.Until(end) < lastWords {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), lastWords)
		defer cancel()
	}
	d.give(d.node.Load())
	if releaseErr := d.releaseGiven(ctx); releaseErr != nil {
		err = errors.Join(err, releaseErr) // the lease runs out by itself
	}
	d.waits.cancel(0)
	return err
}

// Ready returns nil while the Dispatcher takes work, and otherwise the reason why it doesn't.
func (d *Dispatcher) Ready() error {
	if err := d.running(); err != nil {
		return err
	}
	if !d.sched.leased() {
		return Errorf(CodeUnavailable, "the node has no lease: the store can't be written, see the log")
	}
	if d.subscriptions.stale() {
		return Errorf(CodeUnavailable, "the store can't be read, see the log")
	}
	return nil
}

// followChanges makes changes of webhooks effective that other nodes made.
func (d *Dispatcher) followChanges(ctx context.Context) {
	tick := time.NewTicker(changesEvery)
	defer tick.Stop()
	for version := int64(0); ; {
		asked := time.Now()
		bounded, cancel := context.WithTimeout(ctx, maxStale)
		changes, err := d.store.Changes(bounded, version)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			d.storeFailed("look for changes of webhooks", err)
		default:
			version = changes.Version
			d.subscriptions.follow(changes, asked)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-d.changed:
		}
	}
}

// notified takes up what a [Notifier] tells.
func (d *Dispatcher) notified(n Notification) {
	for _, webhook := range n.Due {
		d.sched.wantRetry(webhook, false)
		d.polls.wake(webhook)
	}
	if n.Changed || len(n.Due) == 0 {
		wake(d.changed)
	}
	if !n.Changed && len(n.Due) == 0 {
		wake(d.claims.sweepNow)
	}
}

// keepSealed encrypts anew the secrets for which that is due.
func (d *Dispatcher) keepSealed(ctx context.Context) {
	for {
		again := resealEvery
		if !d.reseal(ctx) {
			again = pruneEvery
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(again):
		}
	}
}

// maintain removes what is older than the retention.
func (d *Dispatcher) maintain(ctx context.Context) {
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	for {
		n, err := d.store.Prune(ctx, d.clock.now().Add(-d.cfg.Retention))
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			d.storeFailed("prune old events and deliveries", err)
		case n > 0:
			d.log.Info("pruned events and deliveries older than the retention", "rows", n, "retention", d.cfg.Retention.String())
		}
		if _, err := d.store.PruneAudit(ctx, d.clock.now().Add(-d.cfg.AuditRetention)); err != nil && ctx.Err() == nil {
			d.storeFailed("prune the audit log", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// leaseFailed is storeFailed for what leases entries to the node.
func (d *Dispatcher) leaseFailed(doing string, err error) {
	switch {
	case isUncertain(err):
		d.uncertain.Store(true)
		wake(d.lost)
	case ErrorCode(err) == CodeConflict:
		wake(d.lost)
	}
	d.storeFailed(doing, err)
}

// storeFailed logs an error of the store, and each kind not too often.
func (d *Dispatcher) storeFailed(doing string, err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	d.complainAbout(doing, func() { d.log.Error("the store fails; trying again", "doing", doing, "error", err) })
}

// complainAbout logs something, and not too often.
func (d *Dispatcher) complainAbout(what string, log func()) {
	last, _ := d.complain.Load(what)
	if t, ok := last.(time.Time); ok && time.Since(t) < complainEvery {
		return
	}
	d.complain.Store(what, time.Now())
	log()
}

// committed tells a recorded result to those who wait for it.
func (d *Dispatcher) committed(r Result) {
	if !r.RetryAt.IsZero() && r.Delivery != nil {
		d.claims.retryAt(r.RetryAt, r.Entry.WebhookSeq, r.Entry.Trigger.ByHand())
	}
	if r.RetryAt.IsZero() && r.Entry.Run != 0 {
		d.waits.ended(r)
	}
	if r.Entry.Trigger == TriggerReplay {
		d.replays.record(r.Entry.Run)
	}
	if r.Entry.Held {
		d.polls.recorded(r.Entry)
	}
	if r.Delivery != nil && r.target != nil {
		d.observe(&r)
	}
	if r.Delivery != nil && r.Delivery.Seq != 0 && d.cfg.OnDelivery != nil { // 0: its webhook is gone, and its log
		d.cfg.OnDelivery(*r.Delivery)
	}
}

// wake tells who waits on the channel, which has room for one, that there is something to do.
func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
