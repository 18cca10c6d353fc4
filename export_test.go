package posthorn

import (
	"context"

	"github.com/musehub/posthorn/internal/sender"
)

// LastWords is lastWords.
const LastWords = lastWords

// SetTransport replaces the sockets, so that a test can have time pass as it likes.
func (d *Dispatcher) SetTransport(f func(context.Context, *sender.Request) sender.Outcome) {
	d.transport = f
}

// Held returns what the scheduler has in memory of all webhooks: entries and bytes.
func (d *Dispatcher) Held() (entries, bytes int) {
	d.sched.mu.Lock()
	defer d.sched.mu.Unlock()
	for _, q := range d.sched.queues {
		entries += len(q.byHand) + len(q.automatic) + q.used.inFlight
	}
	for _, n := range d.sched.bytes() {
		bytes += n
	}
	return entries, bytes
}

// Cached returns how many webhooks the cache has, and how many bytes that only attempts need.
func (d *Dispatcher) Cached() (webhooks, bytes int) {
	d.subscriptions.mu.Lock()
	defer d.subscriptions.mu.Unlock()
	for _, subs := range d.subscriptions.repos {
		webhooks += len(subs.targets)
		for _, t := range subs.targets {
			bytes += t.size()
		}
	}
	return webhooks, bytes
}

// Loading is for how many stripes it is noted how webhooks are, because one of their repos is being loaded.
func (d *Dispatcher) Loading() (n int) {
	d.subscriptions.mu.Lock()
	defer d.subscriptions.mu.Unlock()
	for i := range d.subscriptions.stripes {
		if d.subscriptions.stripes[i].noted != nil {
			n++
		}
	}
	return n
}

var MarshalPayload = marshalPayload

var (
	NewTokenText = newTokenText
	WellFormed   = wellFormed
)

const (
	LeaseFor   = leaseFor
	SweepEvery = sweepEvery
	ProbeAfter = probeAfter

	StoreTimeout = storeTimeout
)

// Reseal is a pass that encrypts secrets anew.
func (d *Dispatcher) Reseal(ctx context.Context) bool { return d.reseal(ctx) }

var RetryAfter = retryAfter

// Waiting is how many results wait to be committed.
func (d *Dispatcher) Waiting() int {
	d.commits.mu.Lock()
	defer d.commits.mu.Unlock()
	return len(d.commits.results)
}

// Kept returns how many bytes that only attempts need are in the targets of the results that wait to be committed.
func (d *Dispatcher) Kept() (bytes int) {
	d.commits.mu.Lock()
	defer d.commits.mu.Unlock()
	for _, r := range d.commits.results {
		t := r.target
		if t == nil {
			continue
		}
		bytes += t.size() + len(t.tls.RootCAs) + len(t.tls.Certificate) + len(t.tls.Key)
		for name, values := range t.headers {
			bytes += len(name) + len(values[0])
		}
	}
	return bytes
}

// Notified is what a Notifier calls.
func (d *Dispatcher) Notified(n Notification) { d.notified(n) }

// Failures returns how many attempts of a webhook have failed in a row, as far as the scheduler remembers.
func (d *Dispatcher) Failures(webhookSeq int64) int {
	d.sched.mu.Lock()
	defer d.sched.mu.Unlock()
	if q := d.sched.queues[webhookSeq]; q != nil {
		return q.failures
	}
	return 0
}
