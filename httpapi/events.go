package httpapi

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/musehub/posthorn"
)

// eventJSON is an event as the API shows it.
type eventJSON struct {
	EventID    string `json:"eventId"`
	RepoID     string `json:"repoId"`
	EventType  string `json:"eventType"`
	Payload    string `json:"payload" doc:"The exact bytes that were posted and are sent"`
	CreatedAt  string `json:"createdAt" format:"date-time"`
	Deliveries int    `json:"deliveries" doc:"How many webhooks it was accepted for"`
}

func showEvent(e *posthorn.AcceptedEvent) eventJSON {
	return eventJSON{
		EventID: e.ID, RepoID: e.RepoID, EventType: e.Type, Payload: string(e.Payload),
		CreatedAt: timestamp(e.CreatedAt), Deliveries: e.Deliveries,
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
}

// receiptJSON is the answer to an accepted event.
type receiptJSON struct {
	EventID    string `json:"eventId"`
	Deliveries int    `json:"deliveries" doc:"How many webhooks it goes to; with none, nothing is stored"`
}

// eventTypesJSON lists the valid types of events.
type eventTypesJSON struct {
	EventTypes []string `json:"eventTypes" nullable:"false"`
}

type postEventInput struct {
	RepoID string `path:"repoId"`
	jsonBody[newEventJSON]
}

type postEventOutput struct {
	Status int
	Body   receiptJSON
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
	operation(s, huma.Operation{
		OperationID: "postEvent", Method: http.MethodPost, Path: "/repos/{repoId}/events", Tags: tags,
		Summary: "Post an event", DefaultStatus: http.StatusAccepted,
		MaxBodyBytes: int64(s.dispatcher.MaxPayload()) + maxEnvelope,
		Description: "The answer comes when the event is stored for good: from then on it will be delivered. " +
			"The same eventId with another type or payload is a conflict (409).",
		Responses: map[string]*huma.Response{
			"200": jsonResponse[receiptJSON](s, "The event was posted before: the first answer again"),
		},
	}, eventsWrite, s.postEvent)
	operation(s, huma.Operation{
		OperationID: "listEvents", Method: http.MethodGet, Path: "/repos/{repoId}/events", Tags: tags,
		Summary: "List events", Description: "The newest first.",
	}, eventsRead, s.listEvents)
	operation(s, huma.Operation{
		OperationID: "getEvent", Method: http.MethodGet, Path: "/repos/{repoId}/events/{eventId}", Tags: tags,
		Summary: "Get an event",
	}, eventsRead, s.getEvent)
	operation(s, huma.Operation{
		OperationID: "listEventTypes", Method: http.MethodGet, Path: "/event-types", Tags: tags,
		Summary: "List the types of events",
	}, eventsRead, s.listEventTypes)
}

func (s *server) postEvent(ctx context.Context, in *postEventInput) (*postEventOutput, error) {
	event := posthorn.Event{RepoID: in.RepoID, Type: in.body.EventType, Payload: in.body.Payload}
	if id := in.body.EventID; id != nil {
		if *id == "" { // the dispatcher would take it for none
			return nil, invalid("eventId", "it is empty: leave it out to get a new one")
		}
		event.ID = *id
	}
	receipt, err := s.dispatcher.Dispatch(ctx, event)
	if err != nil {
		return nil, err
	}
	status := http.StatusAccepted
	if receipt.Duplicate {
		status = http.StatusOK
	}
	return &postEventOutput{status, receiptJSON{receipt.EventID, receipt.Deliveries}}, nil
}

func (s *server) listEvents(ctx context.Context, in *listEventsInput) (*output[eventListJSON], error) {
	list := newListing("events", in.RepoID)
	before, err := list.position(in.Cursor)
	if err != nil {
		return nil, err
	}
	page, err := s.dispatcher.Events(ctx, posthorn.EventQuery{RepoID: in.RepoID, Before: before, Limit: in.Limit})
	if err != nil {
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
	return &output[eventJSON]{showEvent(&event)}, nil
}

func (s *server) listEventTypes(context.Context, *struct{}) (*output[eventTypesJSON], error) {
	return &output[eventTypesJSON]{eventTypesJSON{s.dispatcher.EventTypes()}}, nil
}
