package httpapi

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/musehub/posthorn"
)

// deliveryJSON is a delivery as the API shows it. Request, Response and Timings are there where it stands alone.
type deliveryJSON struct {
	DeliveryID     string        `json:"deliveryId"`
	WebhookID      string        `json:"webhookId"`
	EventID        string        `json:"eventId"`
	EventType      string        `json:"eventType"`
	Payload        *string       `json:"payload" doc:"The exact bytes of the request's body; null once they are pruned"`
	Attempt        int           `json:"attempt" doc:"1 for the first of its run"`
	Trigger        string        `json:"trigger" enum:"automatic,redelivery,ping,test,replay" doc:"Why it was made"`
	Success        bool          `json:"success" doc:"Whether the response's status was a 2xx"`
	ResponseStatus int           `json:"responseStatus" doc:"0 when no response was received"`
	ResponseBody   string        `json:"responseBody" doc:"The first 512 characters, or what went wrong: timeout: …, request error: …, SSRF blocked: …"`
	DeliveredAt    string        `json:"deliveredAt" format:"date-time"`
	NextAttemptAt  *string       `json:"nextAttemptAt" format:"date-time" doc:"null when this was the last attempt of its run"`
	URL            string        `json:"url"`
	DurationMS     float64       `json:"durationMs" doc:"How long it took, in milliseconds"`
	Request        *requestJSON  `json:"request,omitempty" doc:"Not in listings"`
	Response       *responseJSON `json:"response,omitempty" doc:"Not in listings"`
	Timings        *timingsJSON  `json:"timings,omitempty" doc:"Not in listings"`
}

// requestJSON is what was sent besides the payload.
type requestJSON struct {
	URL     string      `json:"url"`
	Headers headersJSON `json:"headers" doc:"What was sent, with signatures masked. User-Agent and the names with the brand are those that the server has now"`
	Curl    string      `json:"curl,omitempty" doc:"A command for a POSIX shell that makes the same request, without the headers that are masked. Missing where the receiver polled, and once the payload is pruned"`
}

// responseJSON is what was received besides the body.
type responseJSON struct {
	Headers headersJSON `json:"headers" doc:"As they were received, with secrets masked; empty when there was no response"`
}

// timingsJSON says where an attempt's time went, in milliseconds.
type timingsJSON struct {
	DNSMS       float64 `json:"dnsMs"`
	ConnectMS   float64 `json:"connectMs"`
	TLSMS       float64 `json:"tlsMs"`
	FirstByteMS float64 `json:"firstByteMs" doc:"From having a connection to the first byte of the response"`
	TotalMS     float64 `json:"totalMs"`
	Reused      bool    `json:"reused" doc:"The connection was kept from an earlier request"`
	Remote      string  `json:"remoteAddressClass,omitempty" doc:"What kind of address the connection went to: public, or what of the rest was opened" example:"public"`
}

// headersJSON are the headers of a request or a response. An object by name, each with a list of values.
type headersJSON http.Header

// Schema describes them to huma.
func (headersJSON) Schema(huma.Registry) *huma.Schema {
	values := &huma.Schema{Type: huma.TypeArray, Items: &huma.Schema{Type: huma.TypeString}}
	return &huma.Schema{Type: huma.TypeObject, AdditionalProperties: values}
}

// deliveryListJSON is a page of deliveries.
type deliveryListJSON struct {
	Deliveries  []deliveryJSON `json:"deliveries" nullable:"false"`
	Total       int64          `json:"total" doc:"How many there are in all that match the filters"`
	TotalCapped bool           `json:"totalCapped,omitempty" doc:"total counts only what the newest rows hold"`
	NextCursor  *string        `json:"nextCursor" doc:"The cursor of the next page; null on the last one"`
}

// redeliveryJSON is the answer to a redelivery. What comes of it is missing while it isn't known yet.
type redeliveryJSON struct {
	OriginalDeliveryID string  `json:"originalDeliveryId"`
	DeliveryID         string  `json:"deliveryId" doc:"Of the last attempt; while the run is not at its end, of the first"`
	WebhookID          string  `json:"webhookId"`
	EventType          string  `json:"eventType"`
	Success            *bool   `json:"success,omitempty"`
	ResponseStatus     *int    `json:"responseStatus,omitempty"`
	ResponseBody       *string `json:"responseBody,omitempty"`
}

type listDeliveriesInput struct {
	RepoID    string `path:"repoId"`
	WebhookID string `path:"webhookId"`
	Success   string `query:"success" enum:"true,false" doc:"Only those that succeeded, or failed"`
	EventType string `query:"eventType" doc:"Only those of events of this type"`
	EventID   string `query:"eventId" doc:"Only those of this event"`
	Since     string `query:"since" format:"date-time" doc:"Only those made at this time or later"`
	Until     string `query:"until" format:"date-time" doc:"Only those made before this time"`
	Limit     int    `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"A page may hold fewer and not be the last"`
	Cursor    string `query:"cursor" doc:"The nextCursor of the page before, which had the same filters"`
}

// explanationJSON says why a webhook got an event or didn't.
type explanationJSON struct {
	WebhookID      string  `json:"webhookId"`
	State          string  `json:"state" enum:"delivered,failed,retrying,paused,waiting,before,not_subscribed,filtered,missed,forgotten"`
	Reason         string  `json:"reason" doc:"The same in words, with what the next attempt waits for"`
	Attempts       int     `json:"attempts" doc:"How many were made, as far as the log still has them, without redeliveries"`
	LastDeliveryID *string `json:"lastDeliveryId" doc:"The last of them; null if there was none"`
	NextAttemptAt  *string `json:"nextAttemptAt" format:"date-time" doc:"When the next one may be made, of a redelivery or a replay too; past if it only waits for its turn; null: there is none, or something else has to happen first"`
}

// explanationsJSON is the answer.
type explanationsJSON struct {
	EventID  string            `json:"eventId"`
	Webhooks []explanationJSON `json:"webhooks" nullable:"false"`
	More     bool              `json:"more" doc:"The repo has more webhooks than these: ask for them by webhookId"`
}

type explainInput struct {
	RepoID    string `path:"repoId"`
	EventID   string `path:"eventId"`
	WebhookID string `query:"webhookId" doc:"Only this webhook; otherwise the first 200 of the repo"`
}

type deliveryInput struct {
	RepoID     string `path:"repoId"`
	WebhookID  string `path:"webhookId"`
	DeliveryID string `path:"deliveryId"`
}

type redeliverInput struct {
	RepoID     string `path:"repoId"`
	WebhookID  string `path:"webhookId"`
	DeliveryID string `path:"deliveryId"`
	Prefer     string `header:"Prefer" doc:"respond-async: answer 202 at once" example:"respond-async"`

	async bool
}

// Resolve looks at all lines of Prefer, of which there may be several (RFC 7240, section 2).
func (in *redeliverInput) Resolve(ctx huma.Context) []error {
	ctx.EachHeader(func(name, value string) {
		if strings.EqualFold(name, "Prefer") && prefersAsync(value) {
			in.async = true
		}
	})
	return nil
}

type redeliverOutput struct {
	Status            int
	PreferenceApplied string `header:"Preference-Applied"`
	Body              redeliveryJSON
}

func (s *server) registerDeliveries() {
	tags := []string{"deliveries"}
	const deliveries = "/repos/{repoId}/webhooks/{webhookId}/deliveries"
	operation(s, huma.Operation{
		OperationID: "listDeliveries", Method: http.MethodGet, Path: deliveries, Tags: tags,
		Summary: "List deliveries", Description: "The newest first.",
	}, posthorn.ScopeDeliveriesRead, s.listDeliveries)
	operation(s, huma.Operation{
		OperationID: "explainEvent", Method: http.MethodGet, Path: "/repos/{repoId}/events/{eventId}/explain", Tags: tags,
		Summary:     "Explain an event",
		Description: "Why a webhook got an event or didn't, and what happens next and when. What the log and the queue don't tell is concluded from the webhook as it is now.",
	}, posthorn.ScopeDeliveriesRead, s.explainEvent)
	operation(s, huma.Operation{
		OperationID: "getDelivery", Method: http.MethodGet, Path: deliveries + "/{deliveryId}", Tags: tags,
		Summary:     "Get a delivery",
		Description: "With the headers of request and response, in which signatures and secrets are masked, a curl command that makes the request again, and the timings.",
	}, posthorn.ScopeDeliveriesRead, s.getDelivery)
	operation(s, huma.Operation{
		OperationID: "redeliver", Method: http.MethodPost, Path: deliveries + "/{deliveryId}/redeliver", Tags: tags,
		Summary: "Send a delivery's event again",
		Description: "Starts a new run of attempts, with the webhook's present URL and secret, also when it is inactive. The " +
			"answer comes at the end of the run, or at once with Prefer: respond-async. The run doesn't depend on that: it " +
			"goes on when the client hangs up and after a restart. Of a webhook that is polled the answer always comes at once. Without " +
			"a stored payload there is nothing to send: 422.",
		Responses: map[string]*huma.Response{
			"202": jsonResponse[redeliveryJSON](s, "The run is stored and will be made; success and response are not known yet"),
		},
		Middlewares: huma.Middlewares{notFromDelivery, withDeadline(0)},
	}, posthorn.ScopeDeliveriesWrite, s.redeliver)
}

// withDeadline gives a request that may wait for long so much time until its client has the answer, zero for any, in place of what
// the server gives. That for reading is over once the body is in.
func withDeadline(limit time.Duration) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		r, w := humago.Unwrap(ctx)
		// A body has no meaning here, and must not be waited for without a limit; and while it is there, nobody notices that the client is gone.
		n, err := io.Copy(io.Discard, io.LimitReader(r.Body, maxBody+1))
		switch {
		case n > maxBody:
			tooLarge(maxBody).write(w)
			return
		case err != nil:
			newProblem(http.StatusBadRequest, "there is a body, which means nothing here, and it did not arrive").write(w)
			return
		}
		var deadline time.Time
		if limit > 0 {
			deadline = time.Now().Add(limit)
		}
		_ = http.NewResponseController(w).SetWriteDeadline(deadline) // a server that can't do this has no limits either
		next(ctx)
	}
}

func (s *server) listDeliveries(ctx context.Context, in *listDeliveriesInput) (*output[deliveryListJSON], error) {
	list := s.listing("deliveries", in.RepoID, in.WebhookID, in.Success, in.EventType, in.EventID, in.Since, in.Until)
	before, err := list.position(in.Cursor)
	if err != nil {
		return nil, err
	}
	query := posthorn.DeliveryQuery{
		RepoID: in.RepoID, WebhookID: in.WebhookID, EventType: in.EventType, EventID: in.EventID,
		Before: before, Limit: in.Limit,
	}
	if in.Success != "" {
		success := in.Success == "true"
		query.Success = &success
	}
	if query.Since, err = parseTime("since", in.Since); err != nil {
		return nil, err
	}
	if query.Until, err = parseTime("until", in.Until); err != nil {
		return nil, err
	}
	page, err := s.dispatcher.Deliveries(ctx, query)
	if err != nil {
		return nil, err
	}
	if err := holdAll(ctx, s, page.Items, func(d *posthorn.Delivery) json.RawMessage { return d.Payload }); err != nil {
		return nil, err
	}
	return &output[deliveryListJSON]{deliveryListJSON{
		Deliveries: showAll(page.Items, showDelivery), Total: page.Total, TotalCapped: page.TotalCapped,
		NextCursor: list.cursor(page.Next),
	}}, nil
}

func parseTime(field, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, invalid(field, "it is not a time in RFC 3339, such as 2026-01-02T03:04:05Z")
	}
	return t, nil
}

func (s *server) getDelivery(ctx context.Context, in *deliveryInput) (*output[deliveryJSON], error) {
	delivery, err := s.dispatcher.Delivery(ctx, in.RepoID, in.WebhookID, in.DeliveryID)
	if err != nil {
		return nil, err
	}
	if err := s.hold(ctx, 2*payloadCopies*len(delivery.Payload)); err != nil { // twice: the command has it, too
		return nil, err
	}
	shown := showDelivery(&delivery)
	shown.Request = &requestJSON{delivery.Exchange.URL, headersJSON(s.dispatcher.RequestHeader(delivery)), s.dispatcher.Curl(delivery)}
	shown.Response = &responseJSON{maskHeader(delivery.Exchange.Header)}
	shown.Timings = showTimings(&delivery.Exchange)
	return &output[deliveryJSON]{shown}, nil
}

func (s *server) redeliver(ctx context.Context, in *redeliverInput) (*redeliverOutput, error) {
	run, err := s.dispatcher.Redeliver(ctx, in.RepoID, in.WebhookID, in.DeliveryID)
	if err != nil {
		return nil, err
	}
	shown := redeliveryJSON{
		OriginalDeliveryID: in.DeliveryID, DeliveryID: run.DeliveryID, WebhookID: in.WebhookID, EventType: run.EventType,
	}
	switch {
	case in.async:
		return &redeliverOutput{http.StatusAccepted, "respond-async", shown}, nil
	case run.Polled(): // nobody knows when the receiver asks for it
		return &redeliverOutput{http.StatusAccepted, "", shown}, nil
	}
	last, err := run.Wait(ctx)
	if err != nil { // the client hung up, or Posthorn stops; no Retry-After, because another one would be made beside it
		return nil, newProblem(http.StatusServiceUnavailable, "the redelivery has no end yet, but it is stored and goes on, "+
			"after the restart if Posthorn is stopping, until the webhook is deleted; its first delivery is %s", run.DeliveryID)
	}
	shown.DeliveryID = last.ID
	shown.Success, shown.ResponseStatus, shown.ResponseBody = &last.Success, &last.ResponseStatus, &last.ResponseBody
	return &redeliverOutput{http.StatusOK, "", shown}, nil
}

func showDelivery(d *posthorn.Delivery) deliveryJSON {
	shown := deliveryJSON{
		DeliveryID: d.ID, WebhookID: d.WebhookID, EventID: d.EventID, EventType: d.EventType,
		Attempt: d.Attempt, Trigger: string(d.Trigger),
		Success: d.Success, ResponseStatus: d.ResponseStatus, ResponseBody: d.ResponseBody,
		DeliveredAt: timestamp(d.DeliveredAt), URL: d.Exchange.URL, DurationMS: milliseconds(d.Exchange.Timings.Total),
	}
	if d.Payload != nil {
		payload := string(d.Payload)
		shown.Payload = &payload
	}
	shown.NextAttemptAt = optional(d.NextAttemptAt)
	return shown
}

func showTimings(x *posthorn.Exchange) *timingsJSON {
	t := x.Timings
	return &timingsJSON{
		milliseconds(t.DNS), milliseconds(t.Connect), milliseconds(t.TLS), milliseconds(t.FirstByte),
		milliseconds(t.Total), t.Reused, x.Remote,
	}
}

// milliseconds keeps three digits of the fraction.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// secretWords make a header's name one whose values are not shown.
var secretWords = []string{
	"authorization", "authentication-info", "auth-", "cookie", "token", "secret", "password", "credential", "session",
	"signature", "api-key", "apikey", "access-key", "private-key", "functions-key", "subscription-key",
}

// maskHeader returns a copy of a header without the values that may be secrets.
func maskHeader(h http.Header) headersJSON {
	masked := make(headersJSON, len(h))
	for name, values := range h {
		lower := strings.ToLower(name)
		if slices.ContainsFunc(secretWords, func(word string) bool { return strings.Contains(lower, word) }) {
			values = slices.Repeat([]string{"***"}, len(values))
		}
		masked[name] = values
	}
	return masked
}

// prefersAsync reports whether a Prefer header (RFC 7240) asks for an answer at once.
func prefersAsync(prefer string) bool {
	for preference := range strings.SplitSeq(prefer, ",") {
		name, _, _ := strings.Cut(preference, ";")
		if strings.EqualFold(strings.TrimSpace(name), "respond-async") {
			return true
		}
	}
	return false
}

func (s *server) explainEvent(ctx context.Context, in *explainInput) (*output[explanationsJSON], error) {
	explanations, more, err := s.dispatcher.Explain(ctx, in.RepoID, in.EventID, in.WebhookID)
	if err != nil {
		return nil, err
	}
	shown := showAll(explanations, func(x *posthorn.Explanation) explanationJSON {
		return explanationJSON{
			WebhookID: x.WebhookID, State: string(x.State), Reason: x.Reason, Attempts: x.Attempts,
			LastDeliveryID: ifSet(x.LastID), NextAttemptAt: optional(x.NextAttemptAt),
		}
	})
	return &output[explanationsJSON]{explanationsJSON{in.EventID, shown, more}}, nil
}
