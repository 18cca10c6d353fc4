package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/musehub/posthorn"
)

// polledJSON is the answer to a poll.
type polledJSON struct {
	Events []polledEventJSON `json:"events" nullable:"false" doc:"The oldest first; none if there was none in time"`
	Cursor *string           `json:"cursor" doc:"Acknowledges these events when it is given to the next poll; null where there are none"`
}

// polledEventJSON is an event for a webhook that is polled.
type polledEventJSON struct {
	eventJSON
	DeliveryID string `json:"deliveryId" doc:"The same each time that the event is returned"`
	Trigger    string `json:"trigger" enum:"automatic,redelivery,ping,test,replay"`
}

type pollInput struct {
	RepoID    string `path:"repoId"`
	WebhookID string `path:"webhookId"`
	Cursor    string `query:"cursor" maxLength:"8192" doc:"That of the poll before, once its events are done with"`
	Wait      string `query:"wait" default:"0s" example:"30s" doc:"For how long to wait where there is no event, up to 60s"`
	Limit     int    `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"How many events to return at most"`
}

// pollTime is how long a poll may take, until the client has the whole answer: it waits for events, before that for the store, and
// afterwards the client has as much time as answers usually have. One that doesn't read keeps nothing for longer.
const pollTime = posthorn.MaxPollWait + 4*time.Minute

func (s *server) registerPoll() {
	operation(s, huma.Operation{
		OperationID: "pollWebhook", Method: http.MethodGet, Path: "/repos/{repoId}/webhooks/{webhookId}/poll", Tags: []string{"deliveries"},
		Summary: "Poll a webhook",
		Description: "For a webhook that is polled: acknowledges the events of the poll before by its cursor, and returns the next ones. " +
			"Those that are not acknowledged are returned again, so each comes at least once. For one receiver at a time.",
		Middlewares: huma.Middlewares{withDeadline(pollTime)},
	}, posthorn.ScopeDeliveriesWrite, s.poll)
}

func (s *server) poll(ctx context.Context, in *pollInput) (*output[polledJSON], error) {
	wait, err := time.ParseDuration(in.Wait)
	if err != nil {
		return nil, invalid("wait", "it is not a duration such as 30s")
	}
	got, err := s.dispatcher.Poll(ctx, in.RepoID, in.WebhookID, posthorn.PollQuery{Cursor: in.Cursor, Limit: in.Limit, Wait: wait})
	if err != nil {
		return nil, err
	}
	// Not before: one that waits has nothing yet. Who is refused gets the same events again for the same cursor.
	if err := holdAll(ctx, s, got.Events, func(e *posthorn.PolledEvent) json.RawMessage { return e.Payload }); err != nil {
		return nil, err
	}
	shown := polledJSON{Events: make([]polledEventJSON, len(got.Events)), Cursor: ifSet(got.Cursor)}
	for i := range got.Events {
		e := &got.Events[i]
		shown.Events[i] = polledEventJSON{showEvent(&e.AcceptedEvent), e.DeliveryID, string(e.Trigger)}
	}
	return &output[polledJSON]{shown}, nil
}
