package posthorn

import (
	"context"
	"sync"
)

// Redelivery is a run of attempts asked for by hand.
type Redelivery struct {
	OriginalID string // the delivery that is sent again
	DeliveryID string // of the run's first attempt
	WebhookID  string
	EventID    string
	EventType  string

	end  <-chan Delivery
	stop func()
}

// Redeliver sends the event of a past delivery again: to the webhook's current URL, with its current secrets, under the
// full retry policy, even when the webhook is inactive. Once it has returned, the run is as durable as an event.
//
// CodeInvalid when the event's payload is no longer stored.
func (d *Dispatcher) Redeliver(ctx context.Context, repoID, webhookID, deliveryID string) (*Redelivery, error) {
	original, err := d.Delivery(ctx, repoID, webhookID, deliveryID)
	if err != nil {
		return nil, err
	}
	w, err := d.Webhook(ctx, repoID, webhookID)
	if err != nil {
		return nil, err
	}
	event, err := d.store.Event(ctx, repoID, original.EventID)
	if ErrorCode(err) == CodeNotFound {
		return nil, errPruned
	}
	if err != nil {
		return nil, err
	}
	d.accepting.RLock()
	defer d.accepting.RUnlock()
	if d.state.Load() != stateStarted {
		return nil, Errorf(CodeUnavailable, "the dispatcher is not running")
	}
	e := &Entry{WebhookSeq: w.Seq, WebhookID: w.ID, Event: &event, Trigger: TriggerRedelivery, Attempt: 1, DueAt: now()}
	webhook := []DueWebhook{{Seq: w.Seq, ID: w.ID, RepoID: repoID}}
	reserved := d.sched.reserve(e.Trigger, webhook, len(event.Payload))
	node := int64(0)
	if reserved[0] {
		node = d.node.Load()
	}
	end, err := d.waits.enqueue(func() (*Entry, error) { return e, d.store.Enqueue(ctx, e, node) })
	if err != nil {
		d.sched.unreserve(webhook, len(event.Payload), reserved)
		if ErrorCode(err) == CodeNotFound {
			return nil, errPruned
		}
		if ctx.Err() != nil {
			return nil, err
		}
		d.storeFailed("enqueue a redelivery", err)
		return nil, notNow(err)
	}
	r := &Redelivery{
		OriginalID: deliveryID, DeliveryID: DeliveryID(&event, w.ID, e.Run, 1),
		WebhookID: w.ID, EventID: event.ID, EventType: event.Type,
		end: end, stop: func() { d.waits.forget(e.Run) },
	}
	d.sched.enqueued(e, reserved[0])
	return r, nil
}

var errPruned = &Error{Code: CodeInvalid, Message: "the event's payload is no longer stored, so it can't be sent again (--retention, Config.Retention)"}

// Wait returns the last delivery of the run, at its end. It may be called once. When ctx ends first, or the Dispatcher
// stops (CodeUnavailable), the run goes on all the same, after a restart if need be.
func (r *Redelivery) Wait(ctx context.Context) (Delivery, error) {
	defer r.stop()
	select {
	case delivery, ok := <-r.end:
		if !ok {
			return Delivery{}, Errorf(CodeUnavailable, "the run has no end yet: the webhook was deleted, or the dispatcher is stopping and goes on with it when it is started again")
		}
		return delivery, nil
	case <-ctx.Done():
		return Delivery{}, ctx.Err()
	}
}

// waits are those who wait for the end of a run.
type waits struct {
	// enqueueing is held for reading while an entry is enqueued and its wait added: its run can't end in between.
	enqueueing sync.RWMutex
	mu         sync.Mutex
	byRun      map[int64]wait
}

type wait struct {
	webhookSeq int64
	end        chan Delivery // gets the last delivery, or is closed without one
}

// enqueue adds a wait for the run of the entry that f enqueues.
func (w *waits) enqueue(f func() (*Entry, error)) (<-chan Delivery, error) {
	w.enqueueing.RLock()
	defer w.enqueueing.RUnlock()
	e, err := f()
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.byRun == nil {
		w.byRun = map[int64]wait{}
	}
	end := make(chan Delivery, 1)
	w.byRun[e.Run] = wait{e.WebhookSeq, end}
	return end, nil
}

func (w *waits) forget(run int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.byRun, run)
}

// ended tells who waits for the result's run that it is over.
func (w *waits) ended(r Result) {
	w.enqueueing.Lock()
	defer w.enqueueing.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if wait, ok := w.byRun[r.Entry.Run]; ok {
		if r.Delivery != nil {
			wait.end <- *r.Delivery
		}
		close(wait.end)
		delete(w.byRun, r.Entry.Run)
	}
}

// cancel ends the waits for runs to a webhook, or with 0 all of them: these runs won't end here.
func (w *waits) cancel(webhookSeq int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for run, wait := range w.byRun {
		if webhookSeq == 0 || wait.webhookSeq == webhookSeq {
			close(wait.end)
			delete(w.byRun, run)
		}
	}
}
