package posthorn

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Explanation says why a webhook got an event or didn't, and what happens next.
type Explanation struct {
	WebhookID string
	State     EventState
	Reason    string // the same in words, with what the next attempt waits for
	Attempts  int    // that were made when the event was dispatched, as far as they are still in the log, without redeliveries
	LastID    string // of the last of these deliveries; empty: none was made
	// NextAttemptAt is when the next one may be made, of a redelivery or a replay too, as far as this node knows. It is past where that only waits for
	// its turn. Zero: there is none, or it has no time yet, because something else has to happen first.
	NextAttemptAt time.Time
}

// EventState is what has become of an event for a webhook.
type EventState string

// The states of an event for a webhook.
const (
	EventDelivered     EventState = "delivered"
	EventFailed        EventState = "failed"         // and there is no further attempt
	EventRetrying      EventState = "retrying"       // the last attempt has failed, and there will be another
	EventPaused        EventState = "paused"         // the same, or the first one, once the webhook is active again
	EventWaiting       EventState = "waiting"        // for its first attempt
	EventBefore        EventState = "before"         // the webhook was made later
	EventNotSubscribed EventState = "not_subscribed" // to the event's type
	EventFiltered      EventState = "filtered"       // the webhook's filter isn't true for it
	EventMissed        EventState = "missed"         // the webhook was inactive, or didn't want it then
	EventForgotten     EventState = "forgotten"      // it is older than the retention: if there were deliveries, they are no longer in the log
)

// explainWebhooks is for how many webhooks one call explains an event.
const explainWebhooks = 200

// Explain says for one webhook of the event's repo, or with an empty webhookID for the first 200, what has become of the event, and in the latter case whether
// there are more webhooks. The log and the queue tell what was done and what is to come. What they don't tell is concluded from the webhook as it is now, and
// says so where it has changed since.
//
// CodeNotFound for an event that is not stored: it had no subscriber when it was dispatched (but see [Config.KeepAllEvents]), or is older than
// [Config.Retention].
func (d *Dispatcher) Explain(ctx context.Context, repoID, eventID, webhookID string) (explanations []Explanation, more bool, err error) {
	event, err := d.Event(ctx, repoID, eventID)
	if err != nil {
		return nil, false, err
	}
	var webhooks []Webhook
	if webhookID == "" {
		page, err := d.store.Webhooks(ctx, WebhookQuery{RepoID: repoID, Limit: explainWebhooks})
		if err != nil {
			return nil, false, err
		}
		webhooks, more = page.Items, page.Next != 0
	} else {
		w, err := d.store.Webhook(ctx, repoID, webhookID)
		if err != nil {
			return nil, false, err
		}
		webhooks = []Webhook{w}
	}
	explanations = make([]Explanation, len(webhooks))
	for i := range webhooks {
		if explanations[i], err = d.explain(ctx, &event, &webhooks[i]); err != nil {
			return nil, false, err
		}
	}
	return explanations, more, nil
}

func (d *Dispatcher) explain(ctx context.Context, event *AcceptedEvent, w *Webhook) (Explanation, error) {
	x := Explanation{WebhookID: w.ID}
	// The queue first: what goes from it meanwhile is in the log by the time that is read.
	entries, err := d.store.Queued(ctx, w.Seq, event)
	if err != nil {
		return x, err
	}
	outcomes, err := d.store.Outcomes(ctx, w.Seq, []*AcceptedEvent{event})
	if err != nil {
		return x, err
	}
	var last Delivery
	for attempt := 1; ; attempt++ { // at most as many as a policy has
		delivery, err := d.store.Delivery(ctx, event.RepoID, w.ID, DeliveryID(event, w.ID, 0, attempt))
		if ErrorCode(err) == CodeNotFound {
			break
		}
		if err != nil {
			return x, err
		}
		last = delivery
		x.Attempts, x.LastID, x.NextAttemptAt = attempt, delivery.ID, delivery.NextAttemptAt
	}
	outcome := outcomes[0]
	switch {
	case x.Attempts > 0:
		x.State, x.Reason = explainAttempts(&last)
	case outcome.Queued && !outcome.Delivered: // there is nothing to say but what is next
	case outcome.Attempts > 0 && !outcome.Delivered:
		x.State, x.Reason = EventFailed, "the attempts of a redelivery or a replay, or those that are still in the log, have failed"
	case event.CreatedAt.Before(d.kept(d.clock.now())):
		x.State, x.Reason = EventForgotten, "it is older than the retention (--retention, Config.Retention): what deliveries there may have been is no longer in the log"
	default:
		if x.State, x.Reason, err = d.explainNone(event, w); err != nil {
			return x, err
		}
		if w.UpdatedAt.After(event.CreatedAt) && x.State != EventBefore {
			x.Reason += fmt.Sprintf(" (as the webhook is now; it was changed after the event, at %s)", w.UpdatedAt.Format(time.RFC3339))
		}
	}
	if outcome.Delivered && x.State != EventDelivered {
		x.State, x.Reason = EventDelivered, "it was delivered by a redelivery or a replay; without these: "+x.Reason
	}
	switch {
	case !outcome.Queued:
	case len(entries) > 0:
		first := slices.MinFunc(entries, func(a, b QueuedEntry) int {
			return cmp.Or(cmp.Compare(a.blocked(w), b.blocked(w)), a.DueAt.Compare(b.DueAt))
		})
		d.explainNext(&x, event, w, first, outcome.Attempts > 0)
	case x.Attempts == 0: // it doesn't stand in the queue by itself
		d.explainNext(&x, event, w, QueuedEntry{Trigger: TriggerAutomatic, Attempt: 1, DueAt: event.CreatedAt, Leased: true}, outcome.Attempts > 0)
	}
	return x, nil
}

// explainAttempts is for an event of which there is a delivery.
func explainAttempts(last *Delivery) (state EventState, reason string) {
	answer := fmt.Sprintf("the receiver answered %d", last.ResponseStatus)
	if last.ResponseStatus == 0 {
		answer = last.ResponseBody
	}
	switch {
	case last.Success:
		return EventDelivered, fmt.Sprintf("%s at attempt %d", answer, last.Attempt)
	case last.NextAttemptAt.IsZero():
		return EventFailed, fmt.Sprintf("attempt %d was the last: %s", last.Attempt, answer)
	}
	return EventRetrying, fmt.Sprintf("attempt %d failed: %s", last.Attempt, answer)
}

// paused reports whether an entry has to wait until its webhook is active.
func (e *QueuedEntry) paused(w *Webhook) bool { return !w.Active && !e.Trigger.ByHand() }

// blocked is greater for an entry that has to wait for something that has no time.
func (e *QueuedEntry) blocked(w *Webhook) int {
	switch {
	case e.paused(w):
		return 2
	case e.Waiting, e.Behind != "":
		return 1
	}
	return 0
}

// explainNext adds what happens next: which entry of the event comes first, what it waits for and until when.
func (d *Dispatcher) explainNext(x *Explanation, event *AcceptedEvent, w *Webhook, e QueuedEntry, tried bool) {
	switch {
	case x.State == EventDelivered:
	case e.paused(w):
		x.State = EventPaused
	case tried:
		x.State = EventRetrying
	default:
		x.State = EventWaiting
	}
	var next []string
	if x.Reason != "" {
		next = append(next, x.Reason)
	}
	switch {
	case w.Polled:
	case e.Trigger == TriggerRedelivery, e.Trigger == TriggerReplay:
		next = append(next, fmt.Sprintf("attempt %d of a %s is yet to be made", e.Attempt, e.Trigger))
	case x.Attempts > 0: // the log says so
	case e.Attempt > 1:
		next = append(next, fmt.Sprintf("attempt %d is yet to be made, and those before it are no longer in the log (--retention, Config.Retention)", e.Attempt))
	default:
		next = append(next, "the first attempt is yet to be made")
	}
	now := d.clock.now()
	x.NextAttemptAt = time.Time{}
	switch {
	case e.paused(w):
		next = append(next, "it waits until the webhook is active again"+w.whyInactive())
	case e.Waiting:
		next = append(next, "its turn in the replay has yet to come")
	case w.Polled:
		next = append(next, "the receiver has yet to poll and acknowledge it")
	case e.Behind != "":
		next = append(next, fmt.Sprintf("it waits for event %s, which is before it in the webhook's order", e.Behind))
	default:
		x.NextAttemptAt = e.DueAt
		b := d.sched.busy(w.Seq, event.Seq, e.Trigger.ByHand())
		if until := d.clock.reading.Load().time(b.until); b.why != "" && until.After(now) && until.After(e.DueAt) {
			x.NextAttemptAt = until
			next = append(next, b.why)
		} else if !e.DueAt.After(now) {
			next = append(next, b.due(e.Leased))
		}
	}
	x.Reason = strings.Join(next, "; ")
}

// busy is what a node's scheduler has to do with a webhook before it gets to an event.
type busy struct {
	until    time.Time // no request to the webhook starts before that, by the node's clock
	why      string    // empty: nothing is put off
	queued   bool      // the event is in the node's memory
	before   int       // events in memory that come before it
	inFlight int       // requests under way
	blocked  bool      // results can't be recorded
}

// busy says what keeps an event from being sent to a webhook, as far as this node has a hand in it.
func (s *scheduler) busy(webhook, event int64, byHand bool) busy {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := busy{blocked: s.blocked}
	q := s.queues[webhook]
	if q == nil {
		return b
	}
	b.inFlight = q.used.inFlight
	list := q.automatic
	if byHand {
		list = q.byHand
	} else {
		b.before = len(q.byHand)
	}
	at := slices.IndexFunc(list, func(e *Entry) bool { return e.Event.Seq == event })
	if b.queued = at >= 0; !b.queued {
		at = len(list)
	}
	b.before += at
	switch {
	case !q.paused:
	case q.held:
		b.until = q.resume
		b.why = "nothing is sent to the webhook until then, because of what its receiver has answered (410, or 429 or 503 with Retry-After)"
	case q.flow.perSecond > 0:
		b.until = q.resume.Add(time.Duration(b.before) * q.flow.interval())
		b.why = fmt.Sprintf("the webhook gets requests at most %d times a second (maxPerSecond; events before it: %d)", q.flow.perSecond, b.before)
	}
	return b
}

// due says what an event that is due waits for.
func (b busy) due(leased bool) string {
	switch {
	case b.blocked:
		return "nothing is sent now, because results can't be recorded: see the log"
	case !leased || b.queued:
		return fmt.Sprintf("it is due (on this node, requests to the webhook under way: %d, events before it: %d)", b.inFlight, b.before)
	}
	return "it is being sent, or about to be"
}

// explainNone is for an event of which there is neither a delivery nor an entry in the queue.
func (d *Dispatcher) explainNone(event *AcceptedEvent, w *Webhook) (state EventState, reason string, err error) {
	switch {
	case w.CreatedAt.After(event.CreatedAt):
		return EventBefore, "the webhook was made after the event", nil
	case event.Test:
		return EventNotSubscribed, "the event is a test, which was for another webhook", nil
	case event.Type == EventPing:
		return EventNotSubscribed, "the event is a ping, which was for another webhook, or of a time when this one was not active", nil
	}
	if state, reason, err := d.unwantedBy(w, event); state != "" || err != nil {
		return state, reason, err
	}
	if !w.Active {
		return EventMissed, "the webhook is not active" + w.whyInactive() + ": it can be replayed once it is", nil
	}
	return EventMissed, "the webhook was not active when the event was dispatched, or did not want it: it can be replayed", nil
}

// unwantedBy says why a webhook doesn't want an event, active or not; an empty state: it wants it.
func (d *Dispatcher) unwantedBy(w *Webhook, event *AcceptedEvent) (state EventState, reason string, err error) {
	active := *w
	active.Active = true
	if !active.Subscribes(event.Type) {
		return EventNotSubscribed, fmt.Sprintf("the webhook does not subscribe to %s, but to %s", event.Type, strings.Join(w.Events, ", ")), nil
	}
	if w.Filter == "" || event.Type == EventPing {
		return "", "", nil
	}
	e, err := filterable(event)
	if err != nil {
		return "", "", err
	}
	switch matches, err := d.subscriptions.filter(w.Filter).Match(e); {
	case err != nil:
		return EventFiltered, "the webhook's filter can't be evaluated for the event: " + err.Error(), nil //nolint:nilerr // it is told
	case !matches:
		return EventFiltered, "the webhook's filter is not true for the event: " + w.Filter, nil
	}
	return "", "", nil
}

func (w *Webhook) whyInactive() string {
	if w.DisabledReason == "" {
		return ""
	}
	return " (" + w.DisabledReason + ")"
}
