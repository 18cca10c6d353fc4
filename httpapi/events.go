package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/rawjson"
)

// eventJSON is an event as the API shows it.
type eventJSON struct {
	EventID    string `json:"eventId"`
	RepoID     string `json:"repoId"`
	EventType  string `json:"eventType"`
	Payload    string `json:"payload" doc:"The exact bytes that were posted and are sent"`
	CreatedAt  string `json:"createdAt" format:"date-time"`
	Deliveries int    `json:"deliveries" doc:"How many webhooks it was accepted for"`

	OrderingKey string `json:"orderingKey,omitempty"`
	TraceParent string `json:"traceparent,omitempty" doc:"The header traceparent that it was posted with"`
	TraceState  string `json:"tracestate,omitempty"`
	Test        bool   `json:"test,omitempty" doc:"It was made to test one webhook"`
	Depth       int    `json:"depth,omitempty" doc:"How many deliveries have led to it, one from the other"`
}

func showEvent(e *posthorn.AcceptedEvent) eventJSON {
	return eventJSON{
		EventID: e.ID, RepoID: e.RepoID, EventType: e.Type, Payload: string(e.Payload),
		CreatedAt: timestamp(e.CreatedAt), Deliveries: e.Deliveries,
		OrderingKey: e.OrderingKey, TraceParent: e.TraceParent, TraceState: e.TraceState, Test: e.Test, Depth: e.Depth,
	}
}

// eventListJSON is a page of events.
type eventListJSON struct {
	Events      []eventJSON `json:"events" nullable:"false"`
	Total       int64       `json:"total" doc:"How many there are in all"`
	TotalCapped bool        `json:"totalCapped,omitempty" doc:"total counts only what the newest rows hold"`
	NextCursor  *string     `json:"nextCursor" doc:"The cursor of the next page; null on the last one"`
}

// newEventJSON is the body that posts an event.
type newEventJSON struct {
	_         struct{}        `additionalProperties:"false"`
	EventType string          `json:"eventType" example:"push"`
	Payload   json.RawMessage `json:"payload" doc:"Any JSON value, usually an object. Its bytes are sent unchanged to the last one"`
	EventID   *string         `json:"eventId,omitempty" minLength:"1" maxLength:"128" doc:"Names the event for ever, so that posting it again sends nothing twice. Letters, digits, _, - and :. A new UUID if it isn't given"`
	// OrderingKey needs no pointer: empty is none.
	OrderingKey string `json:"orderingKey,omitempty" maxLength:"256" doc:"What the event is about: webhooks with ordering key get those of one key one after the other"`
}

// receiptJSON is the answer to an accepted event.
type receiptJSON struct {
	EventID    string `json:"eventId"`
	Deliveries int    `json:"deliveries" doc:"How many webhooks it goes to; with none it is not stored, unless the server keeps all events"`
}

// newEventsJSON is the body that posts events together.
type newEventsJSON struct {
	_      struct{}       `additionalProperties:"false"`
	Events []newEventJSON `json:"events" minItems:"1" maxItems:"1000" nullable:"false"`
}

// batchReceiptJSON is the answer for one of them.
type batchReceiptJSON struct {
	EventID    string `json:"eventId"`
	Deliveries int    `json:"deliveries" doc:"How many webhooks it goes to; with none it is not stored, unless the server keeps all events"`
	Duplicate  bool   `json:"duplicate" doc:"It was posted before, or stands in the batch before: the first answer again"`
}

// batchReceiptsJSON is the answer to accepted events.
type batchReceiptsJSON struct {
	Events []batchReceiptJSON `json:"events" nullable:"false" doc:"In the order of the request"`
}

// eventTypesJSON lists the valid types of events.
type eventTypesJSON struct {
	EventTypes []string        `json:"eventTypes" nullable:"false"`
	Catalogue  []eventTypeJSON `json:"catalogue" nullable:"false" doc:"What is known of each, but for ping"`
}

// eventTypeJSON describes a type of events.
type eventTypeJSON struct {
	Name        string            `json:"name"`
	Description string            `json:"description,omitempty"`
	Schema      json.RawMessage   `json:"schema,omitempty" doc:"What payloads look like, in JSON Schema"`
	Examples    []json.RawMessage `json:"examples,omitempty" doc:"Payloads"`
}

// filterTestJSON is the body that asks what a filter makes of past events.
type filterTestJSON struct {
	_      struct{} `additionalProperties:"false"`
	Filter string   `json:"filter" maxLength:"2048" doc:"An expression in CEL on id, type and payload" example:"payload.branch == 'main'"`
	Limit  *int     `json:"limit,omitempty" minimum:"1" maximum:"200" doc:"How many of the newest events it is tried on; 100 if it isn't given"`
}

// filteredJSON is what it makes of one.
type filteredJSON struct {
	EventID   string `json:"eventId"`
	EventType string `json:"eventType"`
	CreatedAt string `json:"createdAt" format:"date-time"`
	Matches   bool   `json:"matches" doc:"A webhook with the filter would get it"`
	Error     string `json:"error,omitempty" doc:"Why that can't be told: the webhook would not get it"`
}

// filterTestedJSON is the answer.
type filterTestedJSON struct {
	Matched int            `json:"matched" doc:"How many it lets through"`
	Events  []filteredJSON `json:"events" nullable:"false" doc:"The newest first"`
}

type filterTestInput struct {
	RepoID string `path:"repoId"`
	jsonBody[filterTestJSON]
}

type listEventsInput struct {
	RepoID string `path:"repoId"`
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"A page may hold fewer and not be the last"`
	Cursor string `query:"cursor" doc:"The nextCursor of the page before"`
}

type eventInput struct {
	RepoID  string `path:"repoId"`
	EventID string `path:"eventId"`
}

func (s *server) registerEvents() {
	tags := []string{"events"}
	postOperation(s, huma.Operation{
		OperationID: "postEvent", Method: http.MethodPost, Path: "/repos/{repoId}/events", Tags: tags,
		Summary: "Post an event", DefaultStatus: http.StatusAccepted,
		MaxBodyBytes: int64(s.dispatcher.MaxPayload()) + maxEnvelope,
		Description: "The answer comes when the event is stored for good: from then on it will be delivered. " +
			"The same eventId with another type or payload is a conflict (409).",
		Responses: map[string]*huma.Response{
			"200": jsonResponse[receiptJSON](s, "The event was posted before: the first answer again"),
		},
	}, posthorn.ScopeEventsWrite, s.postEvent)
	postOperation(s, huma.Operation{
		OperationID: "postEvents", Method: http.MethodPost, Path: "/repos/{repoId}/events:batch", Tags: tags,
		Summary: "Post a batch of events", DefaultStatus: http.StatusAccepted,
		MaxBodyBytes: posthorn.MaxBatchBytes + maxBatchEnvelope,
		Description: "They are stored in one go, all or none. One that is invalid, too large or in conflict fails all, and the error's " +
			"field names it by its index, counted from 0: events[3].payload. Each payload has the limit that it has alone, and " +
			"all of them together 16 MiB and 100,000 deliveries. First attempts start in the order of the batch.",
		Responses: map[string]*huma.Response{
			"200": jsonResponse[batchReceiptsJSON](s, "Every event was posted before: the first answers again"),
		},
	}, posthorn.ScopeEventsWrite, s.postEvents)
	operation(s, huma.Operation{
		OperationID: "listEvents", Method: http.MethodGet, Path: "/repos/{repoId}/events", Tags: tags,
		Summary: "List events", Description: "The newest first.",
	}, posthorn.ScopeEventsRead, s.listEvents)
	operation(s, huma.Operation{
		OperationID: "getEvent", Method: http.MethodGet, Path: "/repos/{repoId}/events/{eventId}", Tags: tags,
		Summary: "Get an event",
	}, posthorn.ScopeEventsRead, s.getEvent)
	operation(s, huma.Operation{
		OperationID: "testFilter", Method: http.MethodPost, Path: "/repos/{repoId}/filter-test", Tags: tags,
		Summary: "Try a filter", Description: "Says which of the newest events that are stored the filter of a webhook would let through. Nothing is sent.",
	}, posthorn.ScopeEventsRead, s.testFilter)
	operation(s, huma.Operation{
		OperationID: "listEventTypes", Method: http.MethodGet, Path: "/event-types", Tags: tags,
		Summary: "List the types of events",
	}, posthorn.ScopeEventsRead, s.listEventTypes)
}

func (s *server) testFilter(ctx context.Context, in *filterTestInput) (*output[filterTestedJSON], error) {
	limit := 100
	if in.body.Limit != nil {
		limit = *in.body.Limit
	}
	if err := s.hold(ctx, filterCopies*max(posthorn.MaxPageBytes, s.dispatcher.MaxPayload())); err != nil {
		return nil, err
	}
	results, err := s.dispatcher.TestFilter(ctx, in.RepoID, in.body.Filter, limit)
	if err != nil {
		return nil, err
	}
	tested := filterTestedJSON{Events: make([]filteredJSON, len(results))}
	for i, r := range results {
		shown := filteredJSON{EventID: r.Event.ID, EventType: r.Event.Type, CreatedAt: timestamp(r.Event.CreatedAt), Matches: r.Matches}
		if r.Err != nil {
			shown.Error = r.Err.Error()
		}
		if r.Matches {
			tested.Matched++
		}
		tested.Events[i] = shown
	}
	return &output[filterTestedJSON]{tested}, nil
}

func (s *server) postEvent(ctx context.Context, in *postInput[newEventJSON]) (*postOutput[receiptJSON], error) {
	event, err := newEvent(in.RepoID, &in.body, in.attributes())
	if err != nil {
		return nil, err
	}
	settle, err := s.count(ctx, in.RepoID, 1)
	if err != nil {
		return nil, err
	}
	accepted := 0
	defer func() { settle(accepted) }()
	receipt, err := s.dispatcher.Dispatch(ctx, event)
	if err != nil {
		if event.ID != "" {
			err = repeatable(err)
		}
		return nil, err
	}
	status := http.StatusAccepted
	if receipt.Duplicate {
		status = http.StatusOK
	} else {
		accepted = 1
	}
	return &postOutput[receiptJSON]{status, receiptJSON{receipt.EventID, receipt.Deliveries}}, nil
}

func (s *server) postEvents(ctx context.Context, in *postInput[newEventsJSON]) (*postOutput[batchReceiptsJSON], error) {
	events := make([]posthorn.Event, len(in.body.Events))
	for i := range events {
		var err error
		if events[i], err = newEvent(in.RepoID, &in.body.Events[i], in.attributes()); err != nil {
			return nil, within(fmt.Sprintf("events[%d]", i), err)
		}
	}
	settle, err := s.count(ctx, in.RepoID, len(events))
	if err != nil {
		return nil, err
	}
	accepted := 0
	defer func() { settle(accepted) }()
	receipts, err := s.dispatcher.DispatchBatch(ctx, events)
	if err != nil {
		if e, ok := errors.AsType[*posthorn.Error](err); ok && e.Field == "events[0].repoId" { // it is that of all, and in the path
			ofAll := *e
			ofAll.Field = ""
			if e.Code == posthorn.CodeInvalid {
				ofAll.Field = "repoId"
			}
			return nil, &ofAll
		}
		if !slices.ContainsFunc(events, func(e posthorn.Event) bool { return e.ID == "" }) {
			err = repeatable(err)
		}
		return nil, err
	}
	out := &postOutput[batchReceiptsJSON]{http.StatusOK, batchReceiptsJSON{make([]batchReceiptJSON, len(receipts))}}
	for i, r := range receipts {
		out.Body.Events[i] = batchReceiptJSON{r.EventID, r.Deliveries, r.Duplicate}
		if !r.Duplicate {
			out.Status = http.StatusAccepted
			accepted++
		}
	}
	return out, nil
}

// count counts n events that the caller is about to post to a repo, unless one of them has to wait. settle must be called with how many
// were accepted: the others cost nothing.
func (s *server) count(ctx context.Context, repoID string, n int) (settle func(accepted int), err error) {
	actor := posthorn.ActorOf(ctx)
	if err := s.rates.take(time.Now(), actor, repoID, n); err != nil {
		return nil, err
	}
	return func(accepted int) {
		if ctx.Err() == nil { // otherwise nobody knows, and hanging up is to be no way around the limit
			s.rates.give(time.Now(), actor, repoID, n-accepted)
		}
	}, nil
}

// newEvent is the event that a body posts.
func newEvent(repoID string, body *newEventJSON, attributes posthorn.Attributes) (posthorn.Event, error) {
	attributes.OrderingKey = body.OrderingKey
	event := posthorn.Event{
		RepoID: repoID, Type: body.EventType, Attributes: attributes, Payload: rawjson.Checked(body.Payload), // decode has checked it
	}
	if body.EventID != nil {
		if *body.EventID == "" { // the dispatcher would take it for none
			return event, invalid("eventId", "it is empty: leave it out to get a new one")
		}
		event.ID = *body.EventID
	}
	return event, nil
}

func (s *server) listEvents(ctx context.Context, in *listEventsInput) (*output[eventListJSON], error) {
	list := s.listing("events", in.RepoID)
	before, err := list.position(in.Cursor)
	if err != nil {
		return nil, err
	}
	page, err := s.dispatcher.Events(ctx, posthorn.EventQuery{RepoID: in.RepoID, Before: before, Limit: in.Limit})
	if err != nil {
		return nil, err
	}
	if err := holdAll(ctx, s, page.Items, func(e *posthorn.AcceptedEvent) json.RawMessage { return e.Payload }); err != nil {
		return nil, err
	}
	return &output[eventListJSON]{eventListJSON{
		Events: showAll(page.Items, showEvent), Total: page.Total, TotalCapped: page.TotalCapped,
		NextCursor: list.cursor(page.Next),
	}}, nil
}

func (s *server) getEvent(ctx context.Context, in *eventInput) (*output[eventJSON], error) {
	event, err := s.dispatcher.Event(ctx, in.RepoID, in.EventID)
	if err != nil {
		return nil, err
	}
	if err := s.hold(ctx, payloadCopies*len(event.Payload)); err != nil {
		return nil, err
	}
	return &output[eventJSON]{showEvent(&event)}, nil
}

func (s *server) listEventTypes(context.Context, *struct{}) (*output[eventTypesJSON], error) {
	list := eventTypesJSON{EventTypes: s.dispatcher.EventTypes()}
	for _, t := range s.dispatcher.Catalogue() {
		list.Catalogue = append(list.Catalogue, eventTypeJSON(t))
	}
	return &output[eventTypesJSON]{list}, nil
}
