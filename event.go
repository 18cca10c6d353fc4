package posthorn

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/musehub/posthorn/internal/filter"
	"github.com/musehub/posthorn/internal/rawjson"
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

	Attributes
}

// Attributes are what an event may have beside its type and payload. They are no part of what makes two events the same.
type Attributes struct {
	// OrderingKey names what the event is about, such as an issue: a webhook whose Ordering is [OrderingKey] gets the events of one key
	// one after the other, in the order in which they were accepted. At most [MaxOrderingKeyLength] bytes.
	OrderingKey string `json:"orderingKey,omitempty"`
	// TraceParent and TraceState are sent on as the headers traceparent and tracestate (W3C Trace Context), so that the receiver's
	// part of a trace is found from the dispatcher's. What isn't valid is left out, as that specification has it.
	TraceParent string `json:"traceparent,omitempty"`
	TraceState  string `json:"tracestate,omitempty"`
	// Depth is how many deliveries have led to the event, one from the other; zero for what no delivery has led to. It is sent on as
	// Posthorn-Depth. With more than [MaxDepth] the event is refused: webhooks lead back to where they come from.
	Depth int `json:"depth,omitempty"`
	// Test says that the event was made by [Dispatcher.SendTest], for one webhook: it is never replayed. Dispatching ignores it.
	Test bool `json:"test,omitempty"`
}

const (
	// MaxOrderingKeyLength is how many bytes an event's OrderingKey may have.
	MaxOrderingKeyLength = 256
	// MaxDepth is how many deliveries may have led to an event.
	MaxDepth = 5

	maxTraceState = 512 // bytes, as the specification demands at least
)

// Encode returns the attributes for a store, which keeps them as a string; empty for none.
func (a Attributes) Encode() string {
	if a == (Attributes{}) {
		return ""
	}
	text, _ := json.Marshal(a) // which never fails: these are strings and a number
	return string(text)
}

// DecodeAttributes is the reverse of [Attributes.Encode].
func DecodeAttributes(text string) (a Attributes, err error) {
	if text == "" {
		return a, nil
	}
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		return a, Errorf(CodeInternal, "the attributes of an event can't be read: %w", err)
	}
	return a, nil
}

// check says what is wrong with the attributes, and leaves out what is no trace.
func (a *Attributes) check() error {
	switch {
	case len(a.OrderingKey) > MaxOrderingKeyLength:
		return invalid("orderingKey", "it has %d bytes: at most %d", len(a.OrderingKey), MaxOrderingKeyLength)
	case !utf8.ValidString(a.OrderingKey) || strings.ContainsRune(a.OrderingKey, 0):
		return invalid("orderingKey", "it is not UTF-8, or has a NUL character")
	case a.Depth < 0:
		return invalid("depth", "it is negative")
	case a.Depth > MaxDepth:
		return Errorf(CodeLoop, "%d deliveries have led to this event, one from the other: a webhook leads back to where its events "+
			"come from, which is stopped after %d", a.Depth, MaxDepth)
	}
	if !isTraceParent(a.TraceParent) {
		a.TraceParent = ""
	}
	if a.TraceParent == "" || len(a.TraceState) > maxTraceState || !isHeaderValue(a.TraceState) {
		a.TraceState = ""
	}
	return nil
}

// isTraceParent reports whether s is a traceparent of version 00, or of a later one that begins like it.
func isTraceParent(s string) bool {
	const length = len("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	if len(s) < length || len(s) > 2*length || s[:2] == "ff" || len(s) > length && (s[:2] == "00" || s[length] != '-') {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch dash := i == 2 || i == 35 || i == 52; {
		case dash && c == '-', i >= length && c > ' ' && c <= '~':
		case dash || i >= length || !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f'):
			return false
		}
	}
	return strings.Trim(s[3:35], "0") != "" && strings.Trim(s[36:52], "0") != ""
}

// What [Dispatcher.DispatchBatch] takes.
const (
	MaxBatch           = 1000     // events
	MaxBatchBytes      = 16 << 20 // of payload in all
	MaxBatchDeliveries = 100_000  // to webhooks in all; an event alone may have more
)

// Receipt is the answer to an accepted event: from here on it will be delivered, whatever crashes.
type Receipt struct {
	EventID    string
	Deliveries int  // how many webhooks it goes to; with none, nothing is stored (but see [Config.KeepAllEvents])
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

	Attributes
}

// EventQuery selects the events of a repo, newest first.
type EventQuery struct {
	RepoID string
	Until  time.Time // exclusive: only those that were accepted before it; zero: all
	Before int64     // only those whose Seq is smaller; zero: from the newest
	Limit  int
}

// Dispatch accepts an event: once it has returned without an error, the event and its queue entries are committed and
// fsynced, and every webhook of the repo that is active and subscribed gets it at least once.
//
// CodeInvalid with the field at fault, CodeTooLarge for the payload, CodeConflict for an ID that another event of the repo
// has, CodeUnavailable when the store can't be written, or before Start and after Stop. CodeUncertain, where the store was
// lost in the middle of a commit, and an error of ctx leave open whether the event was accepted; dispatching it again under
// the same ID settles it. Where ID is empty, the message of CodeUncertain names the one that the event has got.
func (d *Dispatcher) Dispatch(ctx context.Context, e Event) (Receipt, error) {
	event, err := d.prepare(ctx, e)
	if err != nil {
		return Receipt{}, err
	}
	webhooks, err := d.match(ctx, event)
	if err != nil {
		return Receipt{}, err
	}
	if len(webhooks) == 0 && !d.cfg.KeepAllEvents {
		if receipt, err := d.unwanted(ctx, event, e.ID != ""); err != nil || receipt.Duplicate {
			return receipt, err
		}
	}
	receipt, err := d.accept(ctx, event, TriggerAutomatic, webhooks)
	if err != nil && e.ID == "" {
		err = withNewIDs(err, []string{event.ID})
	}
	return receipt, err
}

// maxNewIDs is how many IDs an error names.
const maxNewIDs = 10

// withNewIDs says in an error that leaves open what became of events which IDs they have got where the caller gave none: only under
// these does dispatching them again settle it.
func withNewIDs(err error, ids []string) error {
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Code != CodeUncertain || len(ids) == 0 {
		return err
	}
	named := *e
	if len(ids) <= maxNewIDs {
		named.Message += "; events that had none have got, in this order: " + strings.Join(ids, ", ")
	} else {
		named.Message += fmt.Sprintf("; %d events had none, and would be new ones each time", len(ids))
	}
	return &named
}

// DispatchBatch is [Dispatcher.Dispatch] for 1 to [MaxBatch] events, of any repos, with at most [MaxBatchBytes] of payload and
// [MaxBatchDeliveries] in all: they are accepted in one commit, all or none. The receipts are in the order of the events, and so are first attempts.
//
// The error for a single event names its index, counted from 0, in front of the field: "events[3].payload". Where an ID is
// there twice with the same content, the second is a duplicate of the first. The message of CodeUncertain names the IDs that events
// have got which had none, up to ten; of more it says how many there are.
func (d *Dispatcher) DispatchBatch(ctx context.Context, events []Event) ([]Receipt, error) {
	if len(events) == 0 || len(events) > MaxBatch {
		return nil, invalid("events", "there are %d: a batch has 1 to %d", len(events), MaxBatch)
	}
	prepared, err := d.prepareAll(ctx, events)
	if err != nil {
		return nil, err
	}
	receipts := make([]Receipt, len(events))
	var wanted []acceptance
	var indexes []int // of those that are wanted
	var subs *subscribers
	deliveries := 0
	for i, event := range prepared {
		// Events of one repo, one after the other, go to the same webhooks, whatever is changed at this moment.
		if i == 0 || event.RepoID != prepared[i-1].RepoID {
			if subs, err = d.subscriptions.of(ctx, event.RepoID); err != nil {
				return nil, err
			}
		}
		webhooks, err := d.wanting(subs, event)
		if err != nil {
			return nil, err
		}
		if deliveries += len(webhooks); deliveries > MaxBatchDeliveries && len(wanted) > 0 && len(webhooks) > 0 {
			return nil, tooLarge("events", "they go to webhooks more than %d times in all: post fewer at once", MaxBatchDeliveries)
		}
		if len(webhooks) > 0 || d.cfg.KeepAllEvents {
			event.Deliveries = len(webhooks)
			wanted = append(wanted, acceptance{event: event, trigger: TriggerAutomatic, webhooks: webhooks})
			indexes = append(indexes, i)
		} else if receipts[i], err = d.unwanted(ctx, event, events[i].ID != ""); err != nil {
			return nil, ofBatch(i, err)
		}
	}
	if err := d.acceptAll(ctx, wanted); err != nil {
		if e, ok := errors.AsType[batchError](err); ok {
			return nil, ofBatch(indexes[e.index], e.error)
		}
		var ids []string
		for n, index := range indexes {
			if events[index].ID == "" {
				ids = append(ids, wanted[n].event.ID)
			}
		}
		return nil, withNewIDs(err, ids)
	}
	for i, index := range indexes {
		receipts[index] = wanted[i].receipt
	}
	return receipts, nil
}

// prepareAll checks the events of a batch and settles their ids, times and bytes.
func (d *Dispatcher) prepareAll(ctx context.Context, events []Event) ([]*AcceptedEvent, error) {
	type name struct{ repoID, id string }
	named := map[name]*AcceptedEvent{}
	prepared := make([]*AcceptedEvent, len(events))
	size := 0
	for i, e := range events {
		if i == 0 || e.RepoID != events[i-1].RepoID {
			if err := d.checkRepo(ctx, e.RepoID); err != nil {
				return nil, ofBatch(i, err)
			}
		}
		event, err := d.newEvent(e)
		if err != nil {
			return nil, ofBatch(i, err)
		}
		if size += len(event.Payload); size > MaxBatchBytes {
			return nil, tooLarge("events", "their payloads have more than %d bytes in all", MaxBatchBytes)
		}
		prepared[i] = event
		if e.ID == "" {
			continue
		}
		switch first := named[name{e.RepoID, e.ID}]; {
		case first == nil:
			named[name{e.RepoID, e.ID}] = event
		case !first.sameAs(event):
			return nil, ofBatch(i, errConflict("an event before it in the batch has this ID, with another type or payload"))
		}
	}
	return prepared, nil
}

// ofBatch names the event that an error is about. One that is about none stays what it is.
func ofBatch(index int, err error) error {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return err
	}
	field := e.Field
	switch e.Code {
	case CodeConflict:
		field = "eventId" // which a store doesn't name
	case CodeNotFound:
		field = "repoId"
	case CodeInvalid, CodeTooLarge:
	default:
		return err
	}
	named := *e
	if named.Field = fmt.Sprintf("events[%d]", index); field != "" {
		named.Field += "." + field
	}
	return &named
}

// DispatchTx accepts an event in a transaction of the host's own, which the store makes a [Tx] of: it is delivered if and
// only if that transaction commits, soon after that, and within a second or two by any node if this process dies then. The
// receipt counts from the commit on.
//
// It works without Start, too, in a process that leaves delivering to others. The errors are those of [Dispatcher.Dispatch];
// after one of CodeUnavailable, CodeUncertain or CodeInternal the transaction should be rolled back. Events accepted in
// transactions are claimed in the order of these calls, as far as they have committed by then. They are not ordered with those
// of Dispatch, nor between the nodes that claim them.
func (d *Dispatcher) DispatchTx(ctx context.Context, tx Tx, e Event) (Receipt, error) {
	event, err := d.prepare(ctx, e)
	if err != nil {
		return Receipt{}, err
	}
	if d.state.Load() != stateStarted { // nobody keeps clock and cache up to date
		if err := d.clock.set(ctx, d.store); err != nil {
			return Receipt{}, err
		}
		event.CreatedAt = d.clock.now()
		d.subscriptions.invalidate(e.RepoID, 0)
	}
	webhooks, err := d.match(ctx, event)
	if err != nil {
		return Receipt{}, err
	}
	if len(webhooks) == 0 && !d.cfg.KeepAllEvents {
		return d.unwanted(ctx, event, e.ID != "")
	}
	event.Deliveries = len(webhooks)
	accepting := NewEvent{Event: event, Trigger: TriggerAutomatic, Targets: make([]Target, len(webhooks))}
	for i, w := range webhooks {
		accepting.Targets[i] = w.target(TriggerAutomatic, event)
		accepting.Targets[i].Leased = false
	}
	accepted, err := tx.Accept(ctx, accepting)
	if err == nil {
		err = accepted.Err
	}
	if err != nil {
		return Receipt{}, err
	}
	if _, ok := d.store.(Notifier); !ok && d.state.Load() == stateStarted {
		d.claims.expect(webhooks)
	}
	return Receipt{EventID: event.ID, Deliveries: accepted.Deliveries, Duplicate: accepted.Duplicate}, nil
}

// match returns the webhooks that an event goes to. Nobody may modify them.
func (d *Dispatcher) match(ctx context.Context, event *AcceptedEvent) ([]recipient, error) {
	subs, err := d.subscriptions.of(ctx, event.RepoID)
	if err != nil {
		return nil, err
	}
	return d.wanting(subs, event)
}

func (d *Dispatcher) wanting(subs *subscribers, event *AcceptedEvent) ([]recipient, error) {
	return subs.wanting(event.Type).of(event, func(w recipient, err error) {
		d.complainAbout("filter", func() {
			d.log.Warn("the filter of a webhook can't be evaluated, so the webhook does not get the event",
				"repo", w.RepoID, "webhook", w.ID, "event", event.ID, "error", err)
		})
	})
}

// FilterResult is what a filter makes of a past event.
type FilterResult struct {
	Event   AcceptedEvent // without its payload: those of 200 events may be gigabytes
	Matches bool
	Err     error // why that can't be told; the webhook would not get the event
}

// TestFilter says which of the newest events of a repo that are stored, at most 200, a filter would let through. CodeInvalid if it can't be
// read (see [Options]).
func (d *Dispatcher) TestFilter(ctx context.Context, repoID, expression string, limit int) ([]FilterResult, error) {
	f, err := filter.Compile(expression)
	if err != nil {
		return nil, &Error{Code: CodeInvalid, Field: "filter", Message: err.Error(), Err: err}
	}
	if limit < 1 || limit > 200 {
		return nil, invalid("limit", "it is from 1 to 200")
	}
	var results []FilterResult
	for q := (EventQuery{RepoID: repoID, Limit: limit}); q.Limit > 0; q.Limit = limit - len(results) {
		page, err := d.Events(ctx, q)
		if err != nil {
			return nil, err
		}
		for i := range page.Items {
			event := &page.Items[i]
			e, err := filterable(event)
			if err != nil {
				return nil, err
			}
			event.Payload = nil
			r := FilterResult{Event: *event}
			r.Matches, r.Err = f.Match(e)
			results = append(results, r)
		}
		if q.Before = page.Next; q.Before == 0 {
			break
		}
	}
	return results, nil
}

// unwanted answers for an event that no webhook wants now, and for which nothing is stored. If its ID is the caller's, one
// may have wanted it when it was dispatched first.
func (d *Dispatcher) unwanted(ctx context.Context, event *AcceptedEvent, named bool) (Receipt, error) {
	if !named {
		return Receipt{EventID: event.ID}, nil
	}
	first, err := d.store.Event(ctx, event.RepoID, event.ID)
	switch {
	case ErrorCode(err) == CodeNotFound:
		return Receipt{EventID: event.ID}, nil
	case err != nil:
		return Receipt{}, err
	case !first.sameAs(event):
		return Receipt{}, errConflict("the repo has an event of this ID with another type or payload")
	}
	return Receipt{EventID: first.ID, Deliveries: first.Deliveries, Duplicate: true}, nil
}

// sameAs compares events that have the same ID.
func (e *AcceptedEvent) sameAs(other *AcceptedEvent) bool {
	return e.Type == other.Type && bytes.Equal(e.Payload, other.Payload)
}

func errConflict(message string) error {
	return &Error{Code: CodeConflict, Field: "eventId", Message: message}
}

// accept commits an event for webhooks. With none there is nothing to promise, and mostly nothing to keep.
func (d *Dispatcher) accept(ctx context.Context, event *AcceptedEvent, trigger Trigger, webhooks []recipient) (Receipt, error) {
	d.accepting.RLock()
	defer d.accepting.RUnlock()
	if err := d.running(); err != nil {
		return Receipt{}, err
	}
	if len(webhooks) == 0 && !d.cfg.KeepAllEvents {
		return Receipt{EventID: event.ID}, nil
	}
	event.Deliveries = len(webhooks)
	return d.commits.accept(ctx, event, trigger, webhooks)
}

// acceptAll is accept for several events, all or none.
func (d *Dispatcher) acceptAll(ctx context.Context, events []acceptance) error {
	d.accepting.RLock()
	defer d.accepting.RUnlock()
	if err := d.running(); err != nil || len(events) == 0 {
		return err
	}
	return d.commits.acceptAll(ctx, events)
}

func (d *Dispatcher) running() error {
	switch d.state.Load() {
	case stateNew:
		return Errorf(CodeUnavailable, "the dispatcher is not started")
	case stateStopped:
		return Errorf(CodeUnavailable, "the dispatcher is stopping")
	}
	return nil
}

// prepare checks an event and settles its id, time and bytes.
func (d *Dispatcher) prepare(ctx context.Context, e Event) (*AcceptedEvent, error) {
	if err := d.checkRepo(ctx, e.RepoID); err != nil {
		return nil, err
	}
	return d.newEvent(e)
}

// newEvent is prepare without a look at the repo.
func (d *Dispatcher) newEvent(e Event) (*AcceptedEvent, error) {
	if !d.knows(e.Type) {
		return nil, invalid("eventType", "unknown event type %.128q; the valid ones are %s", e.Type, strings.Join(d.EventTypes(), ", "))
	}
	event := &AcceptedEvent{ID: e.ID, RepoID: e.RepoID, Type: e.Type, CreatedAt: d.clock.now(), Attributes: e.Attributes}
	event.Test = false
	if err := event.check(); err != nil {
		return nil, err
	}
	if event.ID == "" {
		event.ID = newID(event.CreatedAt)
	} else if err := checkEventID(event.ID); err != nil {
		return nil, err
	}
	var err error
	if event.Payload, err = marshalPayload(e.Payload, d.cfg.MaxPayload); err != nil {
		return nil, err
	}
	if s := d.schemas[e.Type]; s != nil && d.cfg.EnforceSchemas {
		if err := s.Check(event.Payload); err != nil {
			return nil, invalid("payload", "it is not as the schema of %s says: %v", e.Type, err)
		}
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

// marshalPayload returns the bytes that will be signed and sent for a payload. See [Event.Payload].
func marshalPayload(payload any, limit int) (json.RawMessage, error) {
	var raw []byte
	checked := false
	switch p := payload.(type) {
	case nil:
		return nil, invalid("payload", "it is missing")
	case rawjson.Checked:
		raw, checked = bytes.Clone(p), true
	case json.RawMessage:
		raw = bytes.Clone(p)
	case []byte:
		raw = bytes.Clone(p)
	default:
		camel, err := rawjson.CamelKeys(payload)
		if err == nil {
			raw, err = marshal(camel)
		}
		if err != nil {
			return nil, &Error{Code: CodeInvalid, Field: "payload", Message: err.Error(), Err: err}
		}
	}
	if len(raw) > limit {
		return nil, tooLarge("payload", "it has %d bytes: at most %d (--max-payload, Config.MaxPayload)", len(raw), limit)
	}
	switch {
	case checked:
	case !utf8.Valid(raw):
		return nil, invalid("payload", "it is not valid UTF-8")
	case !rawjson.Valid(raw):
		return nil, invalid("payload", "it is not valid JSON")
	}
	return raw, nil
}

func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
