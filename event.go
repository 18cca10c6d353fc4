package posthorn

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"time"
)

// EventPing is the type of the event that [Dispatcher.Ping] sends. It reaches a webhook whatever it subscribes to.
const EventPing = "ping"

// Event is something that happened in a repo, as it is given to [Dispatcher.Dispatch].
type Event struct {
	// ID names the event for ever; receivers see it as webhook-id. Defaults to a new UUIDv7. Dispatching the same ID
	// in the same repo again is answered with the first receipt and sends nothing. At most 128 characters, each a
	// letter, a digit, '_', '-' or ':'.
	ID     string
	RepoID string
	Type   string // one of [Config.EventTypes], or [EventPing]

	// Payload becomes the body of the requests. A json.RawMessage or []byte goes out unchanged to the last byte and must
	// be valid JSON in UTF-8. A Go map gets camelCase keys at every depth (repo_id becomes repoId), sorted. Everything
	// else is marshalled compactly by encoding/json, without escaping HTML.
	Payload any
}

// Receipt is the answer to an accepted event: from here on it will be delivered, whatever crashes.
type Receipt struct {
	EventID    string
	Deliveries int  // how many webhooks it goes to; with none, nothing is stored
	Duplicate  bool // the event was accepted before; this is the first answer again
}

// AcceptedEvent is an event as it is stored.
type AcceptedEvent struct {
	Seq        int64 // the store's number for it, ascending in the order of acceptance
	ID         string
	RepoID     string
	Type       string
	Payload    json.RawMessage // the exact bytes of every request's body; never modified
	CreatedAt  time.Time       // when it was accepted, to the microsecond
	Deliveries int             // how many webhooks it was accepted for
}

// EventQuery selects the events of a repo, newest first.
type EventQuery struct {
	RepoID string
	Before int64 // only those whose Seq is smaller; zero: from the newest
	Limit  int
}

// Dispatch accepts an event: once it has returned without an error, the event and its queue entries are committed and
// fsynced, and every webhook of the repo that is active and subscribed gets it at least once.
//
// CodeInvalid with the field at fault, CodeTooLarge for the payload, CodeConflict for an ID that another event of the repo
// has, CodeUnavailable when the store can't be written, or before Start and after Stop. An error of ctx leaves open
// whether the event was accepted; dispatching it again under the same ID settles it.
func (d *Dispatcher) Dispatch(ctx context.Context, e Event) (Receipt, error) {
	event, err := d.prepare(ctx, e)
	if err != nil {
		return Receipt{}, err
	}
	subs, err := d.subscriptions.of(ctx, e.RepoID)
	if err != nil {
		return Receipt{}, err
	}
	var webhooks []DueWebhook
	for _, t := range subs.targets {
		if t.Subscribes(e.Type) {
			webhooks = append(webhooks, DueWebhook{Seq: t.Seq, ID: t.ID, RepoID: t.RepoID})
		}
	}
	if len(webhooks) == 0 && e.ID != "" {
		return d.acceptedBefore(ctx, event)
	}
	return d.accept(ctx, event, TriggerAutomatic, webhooks)
}

// acceptedBefore answers for an event that no webhook wants now. One may have when it was dispatched first.
func (d *Dispatcher) acceptedBefore(ctx context.Context, event *AcceptedEvent) (Receipt, error) {
	first, err := d.store.Event(ctx, event.RepoID, event.ID)
	switch {
	case ErrorCode(err) == CodeNotFound:
		return d.accept(ctx, event, TriggerAutomatic, nil)
	case err != nil:
		return Receipt{}, err
	case first.Type != event.Type || !bytes.Equal(first.Payload, event.Payload):
		return Receipt{}, &Error{
			Code: CodeConflict, Field: "eventId", Message: "the repo has an event of this ID with another type or payload",
		}
	}
	return Receipt{EventID: first.ID, Deliveries: first.Deliveries, Duplicate: true}, nil
}

// Ping sends an event of type [EventPing] to one webhook, whatever it subscribes to and even when it is inactive.
func (d *Dispatcher) Ping(ctx context.Context, repoID, webhookID string) (Receipt, error) {
	w, err := d.Webhook(ctx, repoID, webhookID)
	if err != nil {
		return Receipt{}, err
	}
	event, err := d.prepare(ctx, Event{RepoID: repoID, Type: EventPing, Payload: pingPayload{repoID, webhookID, w.Events}})
	if err != nil {
		return Receipt{}, err
	}
	return d.accept(ctx, event, TriggerPing, []DueWebhook{{Seq: w.Seq, ID: w.ID, RepoID: w.RepoID}})
}

type pingPayload struct {
	RepoID    string   `json:"repoId"`
	WebhookID string   `json:"webhookId"`
	Events    []string `json:"events"`
}

// accept commits an event for webhooks. With none there is nothing to promise, and nothing is stored.
func (d *Dispatcher) accept(ctx context.Context, event *AcceptedEvent, trigger Trigger, webhooks []DueWebhook) (Receipt, error) {
	d.accepting.RLock()
	defer d.accepting.RUnlock()
	switch d.state.Load() {
	case stateNew:
		return Receipt{}, Errorf(CodeUnavailable, "the dispatcher is not started")
	case stateStopped:
		return Receipt{}, Errorf(CodeUnavailable, "the dispatcher is stopping")
	}
	if len(webhooks) == 0 {
		return Receipt{EventID: event.ID}, nil
	}
	event.Deliveries = len(webhooks)
	return d.commits.accept(ctx, event, trigger, webhooks)
}

// prepare checks an event and settles its id, time and bytes.
func (d *Dispatcher) prepare(ctx context.Context, e Event) (*AcceptedEvent, error) {
	if err := d.checkRepo(ctx, e.RepoID); err != nil {
		return nil, err
	}
	if !d.knows(e.Type) {
		return nil, invalid("eventType", "unknown event type %.128q; the valid ones are %s", e.Type, strings.Join(d.EventTypes(), ", "))
	}
	event := &AcceptedEvent{ID: e.ID, RepoID: e.RepoID, Type: e.Type, CreatedAt: now()}
	if event.ID == "" {
		event.ID = newID(event.CreatedAt)
	} else if err := checkEventID(event.ID); err != nil {
		return nil, err
	}
	var err error
	if event.Payload, err = marshalPayload(e.Payload, d.cfg.MaxPayload); err != nil {
		return nil, err
	}
	return event, nil
}

// checkEventID refuses what can't be sent as webhook-id. A dot in particular: it separates the parts of what
// Standard Webhooks signs.
func checkEventID(id string) error {
	if len(id) > MaxEventIDLength {
		return invalid("eventId", "it has %d characters: at most %d", len(id), MaxEventIDLength)
	}
	for i := range len(id) {
		c := id[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-' || c == ':') {
			return invalid("eventId", "it may only have letters, digits, '_', '-' and ':'")
		}
	}
	return nil
}

// MaxEventIDLength is how many characters an event's ID may have.
const MaxEventIDLength = 128

// MaxPayload returns how many bytes a payload may have: [Config.MaxPayload].
func (d *Dispatcher) MaxPayload() int { return d.cfg.MaxPayload }

// Event returns an event of a repo.
func (d *Dispatcher) Event(ctx context.Context, repoID, id string) (AcceptedEvent, error) {
	if err := d.checkRepo(ctx, repoID); err != nil {
		return AcceptedEvent{}, err
	}
	return d.store.Event(ctx, repoID, id)
}

// Events returns a page of a repo's events.
func (d *Dispatcher) Events(ctx context.Context, q EventQuery) (Page[AcceptedEvent], error) {
	if err := d.checkRepo(ctx, q.RepoID); err != nil {
		return Page[AcceptedEvent]{}, err
	}
	return d.store.Events(ctx, q)
}
