package posthorn

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Explanation says why a webhook got an event or didn't, and what happens next.
type Explanation struct {
	WebhookID string
	State     EventState
	Reason    string // the same in words
	Attempts  int    // that were made when the event was dispatched, as far as they are still in the log, without redeliveries
	LastID    string // of the last of these deliveries; empty: none was made
	// NextAttemptAt is when the next one is due; zero: there is none, or it isn't known because the first is yet to be made.
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

// Explain says for one webhook of the event's repo, or with an empty webhookID for the first 200, what has become of the event. The log
// tells what was done. What it doesn't tell is concluded from the webhook as it is now, and says so where it has changed since.
//
// CodeNotFound for an event that is not stored: it had no subscriber when it was dispatched (but see [Config.KeepAllEvents]), or is older than
// [Config.Retention].
func (d *Dispatcher) Explain(ctx context.Context, repoID, eventID, webhookID string) ([]Explanation, error) {
	event, err := d.Event(ctx, repoID, eventID)
	if err != nil {
		return nil, err
	}
	var webhooks []Webhook
	if webhookID == "" {
		page, err := d.store.Webhooks(ctx, WebhookQuery{RepoID: repoID, Limit: 200})
		if err != nil {
			return nil, err
		}
		webhooks = page.Items
	} else {
		w, err := d.store.Webhook(ctx, repoID, webhookID)
		if err != nil {
			return nil, err
		}
		webhooks = []Webhook{w}
	}
	explanations := make([]Explanation, len(webhooks))
	for i := range webhooks {
		if explanations[i], err = d.explain(ctx, &event, &webhooks[i]); err != nil {
			return nil, err
		}
	}
	return explanations, nil
}

func (d *Dispatcher) explain(ctx context.Context, event *AcceptedEvent, w *Webhook) (Explanation, error) {
	x := Explanation{WebhookID: w.ID}
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
	forgotten := event.CreatedAt.Before(d.kept(d.clock.now()))
	switch {
	case x.Attempts > 0:
		x.State, x.Reason = w.explainAttempts(&last)
		if x.State == EventFailed && outcome.Queued {
			x.State, x.Reason = EventRetrying, x.Reason+"; a redelivery or a replay is to send it again"
			if !w.Active {
				x.State, x.Reason = EventPaused, x.Reason+", a replay once the webhook is active"
			}
		}
	case outcome.Queued && !outcome.Delivered:
		x.State, x.Reason = w.explainQueued(&outcome, forgotten)
	case outcome.Attempts > 0 && !outcome.Delivered:
		x.State, x.Reason = EventFailed, "the attempts of a redelivery or a replay, or those that are still in the log, have failed"
	case forgotten:
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
		if outcome.Queued && x.Attempts == 0 {
			x.Reason += "; it is to be sent again"
		}
	}
	return x, nil
}

// explainAttempts is for an event of which there is a delivery.
func (w *Webhook) explainAttempts(last *Delivery) (state EventState, reason string) {
	answer := fmt.Sprintf("the receiver answered %d", last.ResponseStatus)
	if last.ResponseStatus == 0 {
		answer = last.ResponseBody
	}
	switch {
	case last.Success:
		return EventDelivered, fmt.Sprintf("%s at attempt %d", answer, last.Attempt)
	case last.NextAttemptAt.IsZero():
		return EventFailed, fmt.Sprintf("attempt %d was the last: %s", last.Attempt, answer)
	case !w.Active:
		return EventPaused, fmt.Sprintf("attempt %d failed: %s; the next one waits until the webhook is active again%s", last.Attempt, answer, w.whyInactive())
	}
	return EventRetrying, fmt.Sprintf("attempt %d failed: %s", last.Attempt, answer)
}

// explainQueued is for an event that is still to be sent, and of which none of the attempts is in the log that were made when it was dispatched.
func (w *Webhook) explainQueued(o *Outcome, forgotten bool) (state EventState, reason string) {
	switch {
	case !w.Active:
		return EventPaused, "the webhook is not active" + w.whyInactive() + ": the event is kept until it is"
	case w.Polled:
		return EventWaiting, "the receiver has yet to poll and acknowledge it"
	case o.Attempts > 0:
		return EventRetrying, "another attempt is yet to be made, of a redelivery or a replay, or after some that are no longer in the log"
	case forgotten:
		return EventWaiting, "an attempt is yet to be made; if there were any before, they are no longer in the log (--retention, Config.Retention)"
	}
	return EventWaiting, "the first attempt is yet to be made"
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
