package httpapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/musehub/posthorn"
)

const base = "/api/v1"

// api is huma's API without what Posthorn doesn't have: other formats than JSON, and huma's own form of an error.
type api struct{ huma.API }

// newAPI returns an API without operations, whose routes go to mux.
func newAPI(mux *http.ServeMux, version string) api {
	names := func(t reflect.Type, hint string) string {
		return strings.TrimSuffix(huma.DefaultSchemaNamer(t, hint), "JSON")
	}
	cfg := huma.Config{OpenAPI: &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info: &huma.Info{
			Title:   "Posthorn",
			Version: version,
			Description: "Posthorn delivers webhooks. A webhook subscribes a URL to types of events of a repo. An event that is " +
				"posted here is stored, then sent to each webhook subscribed to it, and sent again while that fails. " +
				"Each attempt is a delivery in the webhook's log.",
		},
		Components: &huma.Components{
			Schemas: huma.NewMapRegistry("#/components/schemas/", names),
			SecuritySchemes: map[string]*huma.SecurityScheme{
				"bearer": {Type: "http", Scheme: "bearer", Description: "The admin token, which has every scope in every repo, or a token with some scopes, for some repos or all."},
			},
		},
		Tags: []*huma.Tag{
			{Name: "webhooks", Description: "Subscriptions: which events of a repo go to which URL."},
			{Name: "secrets", Description: "What deliveries are signed with, and the keys that encrypt that at rest."},
			{Name: "deliveries", Description: "The log of attempts, each one HTTP request of one event to one webhook."},
			{Name: "replays", Description: "Many past events that are sent to one webhook."},
			{Name: "events", Description: "What happened in a repo."},
			{Name: "tokens", Description: "Who may use this API, and for what."},
			{Name: "audit", Description: "Who changed what, and when."},
		},
		OnAddOperation: []huma.AddOpFunc{func(_ *huma.OpenAPI, op *huma.Operation) {
			op.RequestBody, _ = op.Metadata["body"].(*huma.RequestBody)
		}},
	}}
	// What the API answers may get more members in time, which clients must not trip over. Bodies of requests say
	// otherwise, each by itself.
	cfg.AllowAdditionalPropertiesByDefault = true
	return api{humago.New(mux, cfg)}
}

// Negotiate answers in JSON, whatever the request says that it accepts.
func (api) Negotiate(string) (string, error) { return "application/json", nil }

// Transform turns the errors that huma makes into problems.
func (api) Transform(_ huma.Context, _ string, v any) (any, error) {
	if m, ok := v.(*huma.ErrorModel); ok {
		return problemForModel(m), nil
	}
	return v, nil
}

// Marshal writes JSON. A client that is gone is no error.
func (api) Marshal(w io.Writer, _ string, v any) error {
	return huma.DefaultJSONFormat.Marshal(heedless{w}, v) // which writes all at once, if there is no error
}

// heedless writes to a client who may be gone.
type heedless struct{ to io.Writer }

// Write never fails.
func (w heedless) Write(b []byte) (int, error) {
	_, _ = w.to.Write(b)
	return len(b), nil
}

// operation adds an operation: its route, what it demands of the caller, and its part of the document.
func operation[I, O any](s *server, op huma.Operation, need posthorn.Scope, handler func(context.Context, *I) (*O, error)) {
	complete[I](s, &op, need)
	op.Middlewares = append(huma.Middlewares{s.demand(need), s.giveBack, checkQuery}, op.Middlewares...)
	huma.Register(s.api, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := handler(ctx, in)
		if err != nil {
			return nil, s.failed(ctx, op.OperationID, err)
		}
		return out, nil
	})
}

// complete adds to the description of an operation, whose input is I, what all have in common.
func complete[I any](s *server, op *huma.Operation, need posthorn.Scope) {
	schemas := s.api.OpenAPI().Components.Schemas
	op.Path = base + op.Path
	op.Security = []map[string][]string{{"bearer": {string(need)}}}
	op.RejectUnknownQueryParameters = true
	if op.Responses == nil {
		op.Responses = map[string]*huma.Response{}
	}
	op.Responses["default"] = &huma.Response{
		Description: "An error",
		Content: map[string]*huma.MediaType{
			"application/problem+json": {Schema: schemas.Schema(reflect.TypeFor[problem](), true, "")},
		},
	}
	if b, ok := any(new(I)).(interface {
		describe(huma.Registry) *huma.RequestBody
	}); ok {
		// Set as op.RequestBody at the very end, by OnAddOperation: huma would read and validate a body it knows of.
		op.Metadata = map[string]any{"body": b.describe(schemas)}
		if op.MaxBodyBytes == 0 {
			op.MaxBodyBytes = maxBody
		}
	}
}

// failed returns what to answer for an operation's error, and logs what that doesn't tell.
func (s *server) failed(ctx context.Context, operationID string, err error) *problem {
	p := problemFor(err)
	hungUp := ctx.Err() != nil && errors.Is(err, ctx.Err())
	if p.Status == http.StatusInternalServerError && !hungUp {
		s.log.ErrorContext(ctx, "a request failed", "operation", operationID, "error", err)
	}
	return p
}

// checkQuery lets through only requests whose query is well-formed.
func checkQuery(ctx huma.Context, next func(huma.Context)) {
	r, w := humago.Unwrap(ctx)
	if _, p := parseQuery(r); p != nil {
		p.write(w)
		return
	}
	next(ctx)
}

// parseQuery refuses queries of which huma would silently take a part: malformed ones, and repeated parameters.
func parseQuery(r *http.Request) (url.Values, *problem) {
	if r.URL.RawQuery == "" {
		return nil, nil
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, newProblem(http.StatusBadRequest, "the query is malformed: %v", err)
	}
	for name, values := range query {
		if len(values) > 1 {
			return nil, problemFor(invalid(name, "it is there twice"))
		}
	}
	return query, nil
}

// notFromDelivery refuses a request that is itself a delivery: what it asks for is sent to a webhook, and might lead back here
// for ever. Only events that are posted say how many deliveries have led to them.
func notFromDelivery(ctx huma.Context, next func(huma.Context)) {
	if ctx.Header("webhook-id") != "" {
		_, w := humago.Unwrap(ctx)
		problemFor(posthorn.Errorf(posthorn.CodeLoop, "a delivery of a webhook asks for this, and would lead to another: a webhook leads back to where it comes from. "+
			"If no delivery does, leave out the header webhook-id")).write(w)
		return
	}
	next(ctx)
}

// jsonResponse describes an answer besides the one for the operation's default status.
func jsonResponse[T any](s *server, description string) *huma.Response {
	schema := s.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[T](), true, "")
	return &huma.Response{
		Description: description,
		Content:     map[string]*huma.MediaType{"application/json": {Schema: schema}},
	}
}

// serveDocument adds the routes of the OpenAPI document and of the page that renders it. All operations are there.
func (s *server) serveDocument() error {
	document := s.api.OpenAPI()
	// huma puts its own error type into each document; nothing here answers with it.
	delete(document.Components.Schemas.Map(), "ErrorModel")
	delete(document.Components.Schemas.Map(), "ErrorDetail")
	raw, err := document.MarshalJSON()
	if err != nil {
		return posthorn.Errorf(posthorn.CodeInternal, "the OpenAPI document: %w", err)
	}
	page, err := renderDocs(document)
	if err != nil {
		return posthorn.Errorf(posthorn.CodeInternal, "the page /docs: %w", err)
	}
	s.mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(raw)
	})
	s.mux.HandleFunc("GET /docs", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", docsPolicy)
		_, _ = w.Write(page)
	})
	return nil
}
