package posthorn

import (
	"context"
	"encoding/binary"
	"net/http"
	"sync"
	"time"
)

const (
	// MaxPoll is how many events one poll returns at most.
	MaxPoll = 200
	// MaxPollWait is for how long a poll may wait for an event.
	MaxPollWait = time.Minute
)

// PollQuery asks for the events of a webhook that is polled.
type PollQuery struct {
	Cursor string        // what was returned with the events that the receiver has done with; empty: with none
	Limit  int           // from 1 to [MaxPoll]
	Wait   time.Duration // for how long to wait where there is none, up to [MaxPollWait]
}

// Polled is the answer.
type Polled struct {
	Events []PolledEvent // the oldest first; empty: there was none in time
	Cursor string        // acknowledges these events; empty where there are none
}

// PolledEvent is an event for a webhook that is polled.
type PolledEvent struct {
	AcceptedEvent
	DeliveryID string // derived as for a request: the same each time that the event is returned
	Trigger    Trigger
}

// Poll acknowledges the events that an earlier call has returned, and returns the next ones, at least once each: until they
// are acknowledged, every call returns them anew. Those acknowledged are in the delivery log, as delivered. A webhook is for one receiver at a time; of several
// that poll it, all get the same events.
//
// CodeConflict for a webhook that is not polled, or not active. CodeInvalid for a cursor that this webhook never gave. CodeUnavailable and an error
// of ctx leave open whether the events were acknowledged: the same cursor again settles it.
func (d *Dispatcher) Poll(ctx context.Context, repoID, webhookID string, q PollQuery) (Polled, error) {
	w, err := d.Webhook(ctx, repoID, webhookID)
	switch {
	case err != nil:
		return Polled{}, err
	case !w.Polled:
		return Polled{}, Errorf(CodeConflict, "the webhook is not polled: its events are sent to its URL")
	case !w.Active:
		return Polled{}, errInactive(&w)
	case q.Limit < 1 || q.Limit > MaxPoll:
		return Polled{}, invalid("limit", "it is from 1 to %d", MaxPoll)
	case q.Wait < 0 || q.Wait > MaxPollWait:
		return Polled{}, invalid("wait", "it is from 0s to %v", MaxPollWait)
	}
	if q.Cursor != "" {
		if err := d.acknowledge(ctx, &w, q.Cursor); err != nil {
			return Polled{}, err
		}
	}
	timeout := time.NewTimer(q.Wait)
	defer timeout.Stop()
	look := time.NewTicker(lookEvery) // for what other nodes and transactions of hosts have accepted
	defer look.Stop()
	for waited := false; ; waited = true {
		woken, forget := d.polls.wait(w.Seq)
		entries, err := d.store.Held(ctx, w.Seq, q.Limit, MaxPageBytes)
		if err == nil && len(entries) > 0 && waited { // it may have been made inactive meanwhile
			if w, err = d.store.Webhook(ctx, repoID, webhookID); err == nil && !w.Active {
				err = errInactive(&w)
			}
		}
		if err != nil || len(entries) > 0 {
			forget()
			if err != nil {
				return Polled{}, err
			}
			return d.polled(&w, entries), nil
		}
		select {
		case <-woken:
		case <-look.C:
		case <-timeout.C:
			forget()
			return Polled{}, nil
		case <-ctx.Done():
			forget()
			return Polled{}, ctx.Err()
		}
		forget()
		if d.state.Load() == stateStopped {
			return Polled{}, nil
		}
	}
}

// Polled reports whether the run is of a webhook that is polled: it ends once the receiver acknowledges the event, whenever that is.
func (r *Redelivery) Polled() bool { return r.entry.Held }

func errInactive(w *Webhook) error {
	return Errorf(CodeConflict, "the webhook is not active%s", w.whyInactive())
}

// polled returns the entries to a receiver, and what acknowledges them.
func (d *Dispatcher) polled(w *Webhook, entries []*Entry) (p Polled) {
	var position []byte
	for _, e := range entries {
		p.Events = append(p.Events, PolledEvent{*e.Event, DeliveryID(e.Event, w.ID, e.Run, e.Attempt), e.Trigger})
		position = binary.AppendUvarint(binary.AppendUvarint(position, uint64(e.Event.Seq)), uint64(e.Run))
	}
	p.Cursor = d.SealCursor(pollScope(w), position)
	return p
}

func pollScope(w *Webhook) string { return "poll " + w.ID }

// polledEntry is what a cursor names.
type polledEntry struct{ event, run int64 }

// namedEntries returns the entries that the position of a cursor stands for.
func namedEntries(position []byte) map[polledEntry]bool {
	entries := map[polledEntry]bool{}
	for {
		event, n := binary.Uvarint(position)
		run, m := binary.Uvarint(position[max(n, 0):])
		if n <= 0 || m <= 0 {
			return entries
		}
		entries[polledEntry{int64(event), int64(run)}] = true
		position = position[n+m:]
	}
}

// acknowledge has the entries of a cursor recorded as delivered, those that are held still, and waits for that, but not for ever.
func (d *Dispatcher) acknowledge(ctx context.Context, w *Webhook, cursor string) error {
	position, ok := d.OpenCursor(pollScope(w), cursor)
	if !ok {
		return invalid("cursor", "it is none that polling this webhook has returned")
	}
	named := namedEntries(position)
	bounded, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	noted, err := d.recordPolled(bounded, w, named)
	if err != nil {
		return err
	}
	for _, n := range noted {
		select {
		case <-n:
		case <-d.committing.ctx.Done(): // what can't be written by now waits for nobody
			return Errorf(CodeUnavailable, "the dispatcher is stopping; poll again with the same cursor")
		case <-bounded.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return Errorf(CodeUnavailable, "the store has not recorded within %v what is acknowledged; poll again with the same cursor", storeTimeout)
		}
	}
	return nil
}

// recordPolled has entries recorded as delivered. The channels are closed when that is done.
func (d *Dispatcher) recordPolled(ctx context.Context, w *Webhook, named map[polledEntry]bool) (noted []<-chan struct{}, err error) {
	d.accepting.RLock() // Stop waits for this
	defer d.accepting.RUnlock()
	if err := d.running(); err != nil {
		return nil, err
	}
	// They were the first ones. What has come before them since is little; what that hides is returned once more.
	entries, err := d.store.Held(ctx, w.Seq, len(named)+MaxPoll, -1)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !named[polledEntry{e.Event.Seq, e.Run}] {
			continue
		}
		done, first := d.polls.record(e)
		noted = append(noted, done)
		if !first {
			continue // an earlier poll has it recorded
		}
		now := d.clock.now()
		d.commits.record(Result{Entry: e, Delivery: &Delivery{
			ID: DeliveryID(e.Event, w.ID, e.Run, e.Attempt), WebhookID: w.ID, EventID: e.Event.ID, EventType: e.Event.Type,
			Trigger: e.Trigger, Run: e.Run, Attempt: e.Attempt, Success: true, ResponseStatus: http.StatusOK, ResponseBody: "acknowledged",
			DeliveredAt: now, Exchange: Exchange{SentAt: now, Event: e.Event.Attributes},
		}})
	}
	return noted, nil
}

// polls are those who wait for events of webhooks, and what they have acknowledged.
type polls struct {
	mu        sync.Mutex
	byWebhook map[int64]map[chan struct{}]struct{}
	recording map[recording]chan struct{} // closed when it is done
	stopped   bool
}

// recording is a held entry on its way to being recorded. It is once, however often it is acknowledged: while the store can't be written
// this bounds what waits for it.
type recording struct {
	webhook int64
	polledEntry
}

func recordingOf(e *Entry) recording { return recording{e.WebhookSeq, polledEntry{e.Event.Seq, e.Run}} }

// record returns what is closed once an entry is recorded, and whether the caller is the first and has to see to that.
func (p *polls) record(e *Entry) (done <-chan struct{}, first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c, ok := p.recording[recordingOf(e)]
	if !ok {
		if p.recording == nil {
			p.recording = map[recording]chan struct{}{}
		}
		c = make(chan struct{})
		p.recording[recordingOf(e)] = c
	}
	return c, !ok
}

// recorded tells that an entry is.
func (p *polls) recorded(e *Entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c, ok := p.recording[recordingOf(e)]; ok {
		delete(p.recording, recordingOf(e))
		close(c)
	}
}

// wait returns a channel that tells of new events, and what ends that.
func (p *polls) wait(webhook int64) (woken <-chan struct{}, forget func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := make(chan struct{}, 1)
	if p.stopped {
		c <- struct{}{}
	}
	if p.byWebhook == nil {
		p.byWebhook = map[int64]map[chan struct{}]struct{}{}
	}
	if p.byWebhook[webhook] == nil {
		p.byWebhook[webhook] = map[chan struct{}]struct{}{}
	}
	p.byWebhook[webhook][c] = struct{}{}
	return c, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if delete(p.byWebhook[webhook], c); len(p.byWebhook[webhook]) == 0 {
			delete(p.byWebhook, webhook)
		}
	}
}

// wake tells who waits for events of a webhook.
func (p *polls) wake(webhook int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.byWebhook[webhook] {
		wake(c)
	}
}

// stop tells all that there is nothing to wait for any more.
func (p *polls) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	for _, waiting := range p.byWebhook {
		for c := range waiting {
			wake(c)
		}
	}
}
