package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/musehub/posthorn"
)

// webhookJSON is a webhook as the API shows it: without its secrets.
type webhookJSON struct {
	WebhookID   string   `json:"webhookId"`
	RepoID      string   `json:"repoId"`
	URL         string   `json:"url"`
	Events      []string `json:"events" nullable:"false" doc:"Types of events in the order given, or * for all"`
	Active      bool     `json:"active" doc:"Whether events are sent to it"`
	Description string   `json:"description"`
	HasSecret   bool     `json:"hasSecret" doc:"Whether deliveries are signed"`
	CreatedAt   string   `json:"createdAt" format:"date-time"`
	UpdatedAt   string   `json:"updatedAt" format:"date-time"`
	Polled      bool     `json:"polled,omitempty" doc:"It has no URL: the receiver asks for its events"`
	// DisabledReason is there if nobody has made it inactive but the server itself.
	DisabledReason string   `json:"disabledReason,omitempty" doc:"Why the server has made it inactive"`
	FailingSince   *string  `json:"failingSince,omitempty" format:"date-time" doc:"Since when all attempts fail; only there if they do"`
	TLS            *tlsJSON `json:"tls,omitempty" doc:"What its connections have of their own"`
	optionsJSON
}

// optionsJSON is what a webhook can have in place of what the server has, in bodies and as it is shown: only what there is.
type optionsJSON struct {
	RetryPolicy     *string           `json:"retryPolicy,omitempty" doc:"musehub, standard, none, or delays such as 5s,1m,2h±20%. Empty: the server's" example:"5s,1m,2h±20%"`
	FinalStatuses   *string           `json:"finalStatuses,omitempty" doc:"Statuses after which nothing is tried again. Empty: the server's" example:"400-407,422"`
	Timeout         *int64            `json:"timeout,omitempty" minimum:"0" maximum:"60" doc:"How many seconds an attempt may take. 0: the server's"`
	MaxInFlight     *int              `json:"maxInFlight,omitempty" minimum:"0" maximum:"10000" doc:"How many requests may be under way at once, within what the server allows. 0: just that"`
	Filter          *string           `json:"filter,omitempty" maxLength:"2048" doc:"An expression in CEL on id, type and payload: only events for which it is true are sent. Empty: all" example:"payload.branch == 'main'"`
	Headers         map[string]string `json:"headers,omitempty" doc:"Sent with each request beside Posthorn's own. Values are stored encrypted and shown as ***, which in a change stands for the value that there is. A change replaces all; {} removes them" example:"{\"Authorization\":\"Bearer abc\"}"`
	GitHubSignature *bool             `json:"githubSignature,omitempty" doc:"Sends X-Hub-Signature-256, too, for receivers built for GitHub"`
	IdempotencyKey  *bool             `json:"idempotencyKey,omitempty" doc:"Sends the event's id as Idempotency-Key, too"`
	Ordering        *string           `json:"ordering,omitempty" enum:",strict,key" doc:"strict: one event after the other, in the order in which they were posted; one that fails holds back those behind it. key: the same for the events of each orderingKey. Empty: no order"`
	KeepInactive    *bool             `json:"keepWhileInactive,omitempty" doc:"Keeps the events that are posted while it is inactive, and sends them once it is active again"`
	MaxPerSecond    *int              `json:"maxPerSecond,omitempty" minimum:"0" maximum:"10000" doc:"How many requests may start in a second, evenly spread. 0: any number"`
}

func showOptions(o *posthorn.Options) optionsJSON {
	return optionsJSON{
		RetryPolicy: ifSet(o.RetryPolicy), FinalStatuses: ifSet(string(o.FinalStatuses)), Timeout: ifSet(int64(o.Timeout / time.Second)),
		MaxInFlight: ifSet(o.MaxInFlight), MaxPerSecond: ifSet(o.MaxPerSecond), Filter: ifSet(o.Filter),
		GitHubSignature: ifSet(o.GitHubSignature), IdempotencyKey: ifSet(o.IdempotencyKey), Headers: masked(o.SealedHeaders),
		Ordering: ifSet(o.Ordering), KeepInactive: ifSet(o.KeepWhileInactive),
	}
}

// masked has the names, and nothing of the values.
func masked(headers map[string]string) map[string]string {
	if len(headers) == 0 {
		return nil
	}
	shown := make(map[string]string, len(headers))
	for name := range headers {
		shown[name] = posthorn.MaskedHeader
	}
	return shown
}

// ifSet is nil for the zero value.
func ifSet[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

// options are those that the body gives.
func (o *optionsJSON) options() posthorn.Options {
	return posthorn.Options{
		RetryPolicy: orZero(o.RetryPolicy), FinalStatuses: posthorn.Statuses(orZero(o.FinalStatuses)), Timeout: seconds(orZero(o.Timeout)),
		MaxInFlight: orZero(o.MaxInFlight), MaxPerSecond: orZero(o.MaxPerSecond), Filter: orZero(o.Filter),
		GitHubSignature: orZero(o.GitHubSignature), IdempotencyKey: orZero(o.IdempotencyKey), Headers: o.Headers,
		Ordering: orZero(o.Ordering), KeepWhileInactive: orZero(o.KeepInactive),
	}
}

func orZero[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// patch has a patch change what the body gives.
func (o *optionsJSON) patch(p *posthorn.WebhookPatch) {
	given := o.options()
	p.RetryPolicy, p.MaxInFlight, p.MaxPerSecond, p.Filter = o.RetryPolicy, o.MaxInFlight, o.MaxPerSecond, o.Filter
	p.Ordering, p.KeepWhileInactive = o.Ordering, o.KeepInactive
	p.GitHubSignature, p.IdempotencyKey, p.Headers = o.GitHubSignature, o.IdempotencyKey, o.Headers
	if o.FinalStatuses != nil {
		p.FinalStatuses = &given.FinalStatuses
	}
	if o.Timeout != nil {
		p.Timeout = &given.Timeout
	}
}

// seconds is a number of seconds, or one that is refused if it is out of range.
func seconds(n int64) time.Duration { return time.Duration(min(max(n, -1), 1e6)) * time.Second }

func showWebhook(w *posthorn.Webhook) webhookJSON {
	shown := webhookJSON{
		WebhookID: w.ID, RepoID: w.RepoID, URL: w.URL, Events: w.Events, Active: w.Active, Description: w.Description,
		HasSecret: len(w.Secrets) > 0, CreatedAt: timestamp(w.CreatedAt), UpdatedAt: timestamp(w.UpdatedAt),
		Polled: w.Polled, DisabledReason: w.DisabledReason, FailingSince: optional(w.FailingSince), optionsJSON: showOptions(&w.Options),
	}
	if t := w.TLS; t != (posthorn.TLS{}) {
		shown.TLS = &tlsJSON{t.MinVersion, t.RootCAs, t.Certificate}
	}
	return shown
}

// tlsJSON is a webhook's settings for TLS as the API shows them: without the key.
type tlsJSON struct {
	MinVersion  string `json:"minVersion,omitempty" enum:"1.2,1.3"`
	RootCAs     string `json:"rootCAs,omitempty" doc:"Certificates in PEM"`
	Certificate string `json:"certificate,omitempty" doc:"What is shown to the receiver, in PEM"`
}

// newTLSJSON is the settings for TLS in a body.
type newTLSJSON struct {
	_           struct{} `additionalProperties:"false"`
	MinVersion  string   `json:"minVersion,omitempty" enum:"1.2,1.3" doc:"The least version; it can't go below the node's"`
	RootCAs     string   `json:"rootCAs,omitempty" doc:"Certificates in PEM: only what these have signed is trusted, instead of what the node trusts"`
	Certificate string   `json:"certificate,omitempty" doc:"What is shown to a receiver that asks for it, in PEM, with those between it and its root"`
	Key         string   `json:"key,omitempty" doc:"The certificate's key in PEM. It is stored encrypted, and never shown"`
}

func (t *newTLSJSON) settings() *posthorn.TLS {
	if t == nil {
		return nil
	}
	return &posthorn.TLS{MinVersion: t.MinVersion, RootCAs: t.RootCAs, Certificate: t.Certificate, Key: t.Key}
}

// webhookListJSON is a page of webhooks.
type webhookListJSON struct {
	Webhooks   []webhookJSON `json:"webhooks" nullable:"false"`
	Total      int64         `json:"total" doc:"How many there are in all"`
	NextCursor *string       `json:"nextCursor" doc:"The cursor of the next page; null on the last one"`
}

// newWebhookJSON is the body that creates a webhook. The dispatcher checks what the values may be; the limits here
// document that.
type newWebhookJSON struct {
	_      struct{} `additionalProperties:"false"`
	URL    string   `json:"url,omitempty" minLength:"1" maxLength:"2048" doc:"Where to send the events: http or https. Only a webhook that is polled has none" example:"https://example.com/hook"`
	Polled bool     `json:"polled,omitempty" doc:"The receiver asks for its events, as one behind a firewall does. It has events, a filter and keepWhileInactive, and nothing else"`
	Events []string `json:"events" nullable:"false" minItems:"1" doc:"Types of events, patterns such as issue.*, or * for all"`
	Secret string   `json:"secret,omitempty" doc:"Signs the deliveries; without one they go out unsigned. whsec_… is base64-decoded to the key"`
	// GenerateSecret stands in the place of Secret.
	GenerateSecret string      `json:"generateSecret,omitempty" enum:"hmac,ed25519" doc:"Generates the secret: hmac, which the answer shows this once, or an Ed25519 key, of which it shows the public one"`
	Description    string      `json:"description,omitempty" maxLength:"1000"`
	TLS            *newTLSJSON `json:"tls,omitempty" doc:"What its connections have of their own, for a URL with https"`
	optionsJSON
}

// createdJSON is a webhook that was created, with what is shown of a generated secret once.
type createdJSON struct {
	webhookJSON
	issuedJSON
}

// webhookPatchJSON is the body that changes a webhook.
type webhookPatchJSON struct {
	_             struct{}    `additionalProperties:"false"`
	URL           *string     `json:"url,omitempty" minLength:"1" maxLength:"2048"`
	Events        []string    `json:"events,omitempty" nullable:"false" minItems:"1"`
	Active        *bool       `json:"active,omitempty" doc:"An inactive webhook gets no events; what is queued for it waits"`
	Secret        *string     `json:"secret,omitempty" doc:"Replaces the secret; the empty string removes all secrets"`
	SecretOverlap *int64      `json:"secretOverlap,omitempty" minimum:"0" maximum:"31536000" doc:"For how many seconds the secrets before the new one go on signing as well, so that receivers can change over; 86400 if it isn't given"`
	Description   *string     `json:"description,omitempty" maxLength:"1000"`
	TLS           *newTLSJSON `json:"tls,omitempty" doc:"Replaces all of the settings for TLS; {} removes them. Without a key, the one that is there stays if its certificate does"`
	optionsJSON
}

// maxSecretOverlap is a year, in seconds.
const maxSecretOverlap = 365 * 24 * 60 * 60

type createWebhookInput struct {
	RepoID string `path:"repoId"`
	jsonBody[newWebhookJSON]
}

type listWebhooksInput struct {
	RepoID string `path:"repoId"`
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"20"`
	Cursor string `query:"cursor" doc:"The nextCursor of the page before"`
}

type webhookInput struct {
	RepoID    string `path:"repoId"`
	WebhookID string `path:"webhookId"`
}

// testEventJSON is the body that sends a test.
type testEventJSON struct {
	_         struct{}        `additionalProperties:"false"`
	EventType string          `json:"eventType" example:"push"`
	Payload   json.RawMessage `json:"payload,omitempty" doc:"Any JSON value. The first example that the catalogue has of the type if it isn't given"`
}

type testWebhookInput struct {
	RepoID    string `path:"repoId"`
	WebhookID string `path:"webhookId"`
	jsonBody[testEventJSON]
}

type updateWebhookInput struct {
	RepoID    string `path:"repoId"`
	WebhookID string `path:"webhookId"`
	jsonBody[webhookPatchJSON]
}

// checkedURLJSON is the body that asks about a URL.
type checkedURLJSON struct {
	_   struct{} `additionalProperties:"false"`
	URL string   `json:"url" example:"https://example.com/hook"`
}

// urlCheckJSON is what would become of a URL.
type urlCheckJSON struct {
	Deliverable bool   `json:"deliverable" doc:"A request would be sent to it"`
	Phase       string `json:"phase,omitempty" enum:"registration,DNS,connect" doc:"Where it ends otherwise"`
	Reason      string `json:"reason,omitempty" doc:"The same in words" example:"refused by the rule loopback 127.0.0.0/8; --allow-target (Config.AllowTargets) opens it"`
	Rule        string `json:"rule,omitempty" doc:"The rule of the guard, where that decides" example:"loopback 127.0.0.0/8"`
	Remedy      string `json:"remedy,omitempty" doc:"The setting that would change the rule's decision" example:"--allow-target (Config.AllowTargets) opens it"`
}

type checkURLInput struct {
	jsonBody[checkedURLJSON]
}

// output is what an operation answers whose status and headers are always the same.
type output[T any] struct{ Body T }

func (s *server) registerWebhooks() {
	tags := []string{"webhooks"}
	operation(s, huma.Operation{
		OperationID: "createWebhook", Method: http.MethodPost, Path: "/repos/{repoId}/webhooks", Tags: tags,
		Summary: "Create a webhook", DefaultStatus: http.StatusCreated,
		Description: "The URL is checked as far as that is possible without calling it. The same URL may be given to several webhooks.",
	}, posthorn.ScopeWebhooksWrite, s.createWebhook)
	operation(s, huma.Operation{
		OperationID: "listWebhooks", Method: http.MethodGet, Path: "/repos/{repoId}/webhooks", Tags: tags,
		Summary: "List webhooks", Description: "In the order of their creation.",
	}, posthorn.ScopeWebhooksRead, s.listWebhooks)
	operation(s, huma.Operation{
		OperationID: "getWebhook", Method: http.MethodGet, Path: "/repos/{repoId}/webhooks/{webhookId}", Tags: tags,
		Summary: "Get a webhook",
	}, posthorn.ScopeWebhooksRead, s.getWebhook)
	operation(s, huma.Operation{
		OperationID: "updateWebhook", Method: http.MethodPatch, Path: "/repos/{repoId}/webhooks/{webhookId}", Tags: tags,
		Summary: "Change a webhook", Description: "Changes the fields that are given.",
	}, posthorn.ScopeWebhooksWrite, s.updateWebhook)
	operation(s, huma.Operation{
		OperationID: "deleteWebhook", Method: http.MethodDelete, Path: "/repos/{repoId}/webhooks/{webhookId}", Tags: tags,
		Summary:     "Delete a webhook",
		Description: "Its queue and its deliveries go with it. Nothing is sent to it any more, except what is on the wire.",
	}, posthorn.ScopeWebhooksWrite, s.deleteWebhook)
	operation(s, huma.Operation{
		OperationID: "checkUrl", Method: http.MethodPost, Path: "/check-url", Tags: tags,
		Summary: "Check a URL",
		Description: "Says whether a webhook with the URL could be created, and whether requests would be sent to it; and if not, " +
			"which rule decides and the setting that would change it. The host is looked up, and nothing is connected to.",
	}, posthorn.ScopeWebhooksWrite, s.checkURL)
	operation(s, huma.Operation{
		OperationID: "pingWebhook", Method: http.MethodPost, Path: "/repos/{repoId}/webhooks/{webhookId}/ping", Tags: tags,
		Summary: "Send a ping", DefaultStatus: http.StatusAccepted,
		Description: "Sends an event of the type ping, whatever the webhook subscribes to. Its deliveries show how it went.",
		Middlewares: huma.Middlewares{notFromDelivery},
	}, posthorn.ScopeWebhooksWrite, s.pingWebhook)
	operation(s, huma.Operation{
		OperationID: "testWebhook", Method: http.MethodPost, Path: "/repos/{repoId}/webhooks/{webhookId}/test", Tags: tags,
		Summary: "Send a test", DefaultStatus: http.StatusAccepted,
		Description: "Sends an event to this webhook and to no other, whatever it subscribes to. Its deliveries show how it went. Tests are never replayed.",
		Middlewares: huma.Middlewares{notFromDelivery},
	}, posthorn.ScopeWebhooksWrite, s.testWebhook)
}

func (s *server) createWebhook(ctx context.Context, in *createWebhookInput) (*output[createdJSON], error) {
	secret, shown := in.body.Secret, issuedJSON{}
	if kind := in.body.GenerateSecret; kind != "" {
		var err error
		switch secret, shown, err = issue("", kind); {
		case in.body.Secret != "":
			return nil, invalid("generateSecret", "there is a secret already")
		case err != nil:
			return nil, invalid("generateSecret", "it is hmac or ed25519")
		}
	} else if secret != "" {
		_, shown, _ = issue(secret, "") // one that is malformed is refused below
	}
	n := posthorn.NewWebhook{
		RepoID: in.RepoID, URL: in.body.URL, Events: in.body.Events, Secret: secret, Description: in.body.Description,
		Options: in.body.options(),
	}
	n.Polled = in.body.Polled
	if in.body.TLS != nil {
		n.TLS = *in.body.TLS.settings()
	}
	w, err := s.dispatcher.CreateWebhook(ctx, n)
	if err != nil {
		return nil, err
	}
	return &output[createdJSON]{createdJSON{showWebhook(&w), shown}}, nil
}

func (s *server) listWebhooks(ctx context.Context, in *listWebhooksInput) (*output[webhookListJSON], error) {
	list := s.listing("webhooks", in.RepoID)
	after, err := list.position(in.Cursor)
	if err != nil {
		return nil, err
	}
	page, err := s.dispatcher.Webhooks(ctx, posthorn.WebhookQuery{RepoID: in.RepoID, After: after, Limit: in.Limit})
	if err != nil {
		return nil, err
	}
	return &output[webhookListJSON]{webhookListJSON{
		Webhooks: showAll(page.Items, showWebhook), Total: page.Total, NextCursor: list.cursor(page.Next),
	}}, nil
}

func (s *server) getWebhook(ctx context.Context, in *webhookInput) (*output[webhookJSON], error) {
	w, err := s.dispatcher.Webhook(ctx, in.RepoID, in.WebhookID)
	if err != nil {
		return nil, err
	}
	return &output[webhookJSON]{showWebhook(&w)}, nil
}

func (s *server) updateWebhook(ctx context.Context, in *updateWebhookInput) (*output[webhookJSON], error) {
	patch := posthorn.WebhookPatch{
		URL: in.body.URL, Events: in.body.Events, Active: in.body.Active,
		Secret: in.body.Secret, Description: in.body.Description, TLS: in.body.TLS.settings(),
	}
	in.body.patch(&patch)
	if in.body.SecretOverlap != nil {
		overlap, err := overlapOf("secretOverlap", in.body.SecretOverlap)
		if err != nil {
			return nil, err
		}
		patch.SecretOverlap = &overlap
	}
	w, err := s.dispatcher.UpdateWebhook(ctx, in.RepoID, in.WebhookID, patch)
	if err != nil {
		return nil, err
	}
	return &output[webhookJSON]{showWebhook(&w)}, nil
}

func (s *server) deleteWebhook(ctx context.Context, in *webhookInput) (*struct{}, error) {
	return nil, s.dispatcher.DeleteWebhook(ctx, in.RepoID, in.WebhookID)
}

func (s *server) checkURL(ctx context.Context, in *checkURLInput) (*output[urlCheckJSON], error) {
	check, err := s.dispatcher.CheckURL(ctx, in.body.URL)
	if err != nil {
		return nil, err
	}
	return &output[urlCheckJSON]{urlCheckJSON(check)}, nil
}

func (s *server) pingWebhook(ctx context.Context, in *webhookInput) (*output[receiptJSON], error) {
	return s.sendByHand(ctx, in.RepoID, func() (posthorn.Receipt, error) { return s.dispatcher.Ping(ctx, in.RepoID, in.WebhookID) })
}

// sendByHand sends an event that counts as one that was posted.
func (s *server) sendByHand(ctx context.Context, repoID string, send func() (posthorn.Receipt, error)) (*output[receiptJSON], error) {
	settle, err := s.count(ctx, repoID, 1)
	if err != nil {
		return nil, err
	}
	accepted := 0
	defer func() { settle(accepted) }()
	receipt, err := send()
	if err != nil {
		return nil, err
	}
	accepted = 1
	return &output[receiptJSON]{receiptJSON{receipt.EventID, receipt.Deliveries}}, nil
}

func (s *server) testWebhook(ctx context.Context, in *testWebhookInput) (*output[receiptJSON], error) {
	var payload any
	if in.body.Payload != nil {
		payload = in.body.Payload
	}
	return s.sendByHand(ctx, in.RepoID, func() (posthorn.Receipt, error) {
		return s.dispatcher.SendTest(ctx, in.RepoID, in.WebhookID, in.body.EventType, payload)
	})
}

// showAll shows the items of a page. It never returns nil, which would be null.
func showAll[T, J any](items []T, show func(*T) J) []J {
	shown := make([]J, len(items))
	for i := range items {
		shown[i] = show(&items[i])
	}
	return shown
}
