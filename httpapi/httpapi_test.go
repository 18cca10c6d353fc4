package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"

	"github.com/musehub/posthorn"
)

func TestNewRefusesTokens(t *testing.T) {
	d := newTestAPI(t, posthorn.Config{}).dispatcher
	for _, bad := range []string{"", " ", "two words", "line\n", "höhö"} {
		if _, err := New(d, Config{Token: bad}); posthorn.ErrorCode(err) != posthorn.CodeInvalid {
			t.Errorf("New with the token %q: %v", bad, err)
		}
	}
}

func TestHealthAndReadiness(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	check := func(ready bool) {
		t.Helper()
		if got := api.do("GET", "/healthz", "").ok(http.StatusOK)["status"]; got != "alive" {
			t.Errorf("/healthz: %v", got)
		}
		a := api.do("GET", "/readyz", "")
		if ready {
			a.ok(http.StatusOK)
			return
		}
		a.problem(http.StatusServiceUnavailable, "dispatcher", "")
		if got := a.header.Get("Retry-After"); got != "1" {
			t.Errorf("Retry-After %q", got)
		}
	}
	check(false)
	if err := api.dispatcher.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	check(true)
	if err := api.dispatcher.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	check(false)
	api.do("POST", "/api/v1/repos/r1/events", `{"eventType": "push", "payload": {}}`).
		problem(http.StatusServiceUnavailable, "stopping", "")
}

// Cases 39 and 40: what is no route of the API.
func TestUnknownRoutes(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	for _, path := range []string{
		"/", "/api", "/api/v1", "/api/v2/event-types", "/docs/", "/openapi.yaml", "/schemas/Webhook.json",
		"/api/v1/repos/r1/webhooks/", "/api/v1/repos//webhooks", "/api/v1/repos/r1/../r1/webhooks", "/api/v1/./event-types",
	} {
		a := api.do("GET", path, "")
		a.problem(http.StatusNotFound, "nothing at this path", "")
		if got := a.header.Get("Location"); got != "" {
			t.Errorf("%s redirects to %q", path, got)
		}
	}
	for path, allow := range map[string]string{
		"/api/v1/repos/r1/webhooks":                         "GET, HEAD, POST",
		"/api/v1/repos/r1/webhooks/w1":                      "DELETE, GET, HEAD, PATCH",
		"/api/v1/repos/r1/webhooks/w1/deliveries/d1":        "GET, HEAD",
		"/api/v1/repos/r1/webhooks/w1/deliveries/redeliver": "GET, HEAD",
		"/healthz":      "GET, HEAD",
		"/openapi.json": "GET, HEAD",
	} {
		a := api.do("PUT", path, "")
		a.problem(http.StatusMethodNotAllowed, "PUT is not allowed here, but "+allow, "")
		if got := a.header.Get("Allow"); got != allow {
			t.Errorf("%s: Allow %q, want %q", path, got, allow)
		}
	}
}

func TestHeadHasNoBody(t *testing.T) {
	a := newTestAPI(t, posthorn.Config{}).do("HEAD", "/api/v1/event-types", "")
	if a.status != http.StatusOK || len(a.body) > 0 {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestAnswersInJSONWhateverIsAccepted(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	for _, accept := range []string{"", "*/*", "application/cbor", "json", "text/html;q=1, application/json;q=0", "application/problem+json"} {
		a := api.do("GET", "/api/v1/event-types", "", "Accept: "+accept)
		a.ok(http.StatusOK)
		if got := a.header.Get("Link"); got != "" {
			t.Errorf("Link %q", got)
		}
		api.do("GET", "/api/v1/repos/r1/webhooks?limit=0", "", "Accept: "+accept).
			problem(http.StatusUnprocessableEntity, "limit: ", "limit")
	}
}

func TestQueriesAreReadStrictly(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	const list = "/api/v1/repos/r1/webhooks"
	api.do("GET", list+"?limt=5", "").problem(http.StatusUnprocessableEntity, "limt: unknown", "limt")
	api.do("GET", list+"?limit=5&limit=6", "").problem(http.StatusUnprocessableEntity, "limit: it is there twice", "limit")
	api.do("GET", list+"?limit=%zz", "").problem(http.StatusBadRequest, "query is malformed", "")
	for _, post := range []string{"/api/v1/repos/r1/events", "/api/v1/repos/r1/events:batch"} { // which don't go through huma
		api.do("POST", post+"?dry=1", "").problem(http.StatusUnprocessableEntity, "dry: unknown", "dry")
		api.do("POST", post+"?dry=1&dry=1", "").problem(http.StatusUnprocessableEntity, "dry: it is there twice", "dry")
		api.do("POST", post+"?dry=%zz", "").problem(http.StatusBadRequest, "query is malformed", "")
		api.do("POST", post+"?&", "").problem(http.StatusBadRequest, "the body is empty", "")
		a := api.do("POST", post, `{"<>": 1}`)
		a.problem(http.StatusUnprocessableEntity, "<>", "")
		if !bytes.Contains(a.body, []byte("<>")) {
			t.Errorf("escapes what needs none: %s", a.body)
		}
	}
	for _, limit := range []string{"0", "201", "-1", "abc", "1.5", "1e2", "99999999999999999999", "true"} { // case 29
		for _, path := range []string{list, "/api/v1/repos/r1/events", list + "/w1/deliveries"} {
			api.do("GET", path+"?limit="+limit, "").problem(http.StatusUnprocessableEntity, "limit: ", "limit")
		}
	}
}

// Everything that a request body can be, besides what is in it.
func TestBodies(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{MaxPayload: 1000})
	const webhooks, events = "/api/v1/repos/r1/webhooks", "/api/v1/repos/r1/events"
	valid := `{"url": "https://example.com/", "events": ["push"]}`
	for _, ct := range []string{"", "application/json", "application/json; charset=UTF-8", "application/cloudevents+json"} {
		api.do("POST", webhooks, valid, "Content-Type: "+ct).ok(http.StatusCreated)
	}
	for _, ct := range []string{"text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin1", ";;", "text/x+json"} {
		api.do("POST", webhooks, valid, "Content-Type: "+ct).problem(http.StatusUnsupportedMediaType, "application/json", "")
	}
	api.do("POST", webhooks, valid, "Content-Encoding: gzip").problem(http.StatusUnsupportedMediaType, "Content-Encoding", "")

	pad := func(body string, size int) string { return strings.Repeat(" ", size-len(body)) + body }
	api.do("POST", webhooks, pad(valid, maxBody)).ok(http.StatusCreated)
	api.do("POST", webhooks, pad(valid, maxBody+1)).problem(http.StatusRequestEntityTooLarge, "65536", "")
	api.do("PATCH", webhooks+"/w1", pad(valid, maxBody+1)).problem(http.StatusRequestEntityTooLarge, "65536", "")
	event := `{"eventType": "push", "payload": 1}`
	api.do("POST", events, pad(event, 1000+maxEnvelope)).problem(http.StatusServiceUnavailable, "not started", "")
	api.do("POST", events, pad(event, 1000+maxEnvelope+1)).problem(http.StatusRequestEntityTooLarge, "66536", "")
	api.do("POST", events, `{"eventType": "push", "payload": "`+strings.Repeat("x", 1000)+`"}`).
		problem(http.StatusRequestEntityTooLarge, "payload: ", "payload")
	// A body whose length isn't announced.
	req, err := http.NewRequestWithContext(t.Context(), "POST", api.url+webhooks, struct{ *strings.Reader }{strings.NewReader(pad(valid, maxBody+1))})
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := api.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("without a length: %s", resp.Status)
	}
}

// A body that ends before its announced length.
func TestBodyEndsEarly(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	conn, err := net.Dial("tcp", strings.TrimPrefix(api.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /api/v1/repos/r1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nTransfer-Encoding: chunked\r\n\r\nx", token)
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	status := make([]byte, len("HTTP/1.1 400"))
	if _, err := conn.Read(status); err != nil || string(status) != "HTTP/1.1 400" {
		t.Errorf("%q, %v", status, err)
	}
	if logged := api.logged.String(); logged != "" {
		t.Errorf("a client's fault is in the log: %s", logged)
	}
}

func TestPanics(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	api.mux.HandleFunc("GET /panic", func(http.ResponseWriter, *http.Request) { panic("disk on fire") })
	api.mux.HandleFunc("GET /half", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("half of"))
		_ = http.NewResponseController(w).Flush()
		panic("disk on fire")
	})
	a := api.do("GET", "/panic", "")
	a.problem(http.StatusInternalServerError, "log", "")
	if strings.Contains(string(a.body), "on fire") {
		t.Errorf("the answer leaks the cause: %s", a.body)
	}
	logged := api.logged.String()
	if !strings.Contains(logged, "disk on fire") || !strings.Contains(logged, "httpapi_test.go") {
		t.Errorf("not in the log, or without its stack: %s", logged)
	}
	resp, err := api.client.Get(api.url + "/half")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := resp.Body.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if n, err := resp.Body.Read(make([]byte, 100)); err == nil || n > 0 || err.Error() == "EOF" {
		t.Errorf("half an answer looks like a whole one: %d, %v", n, err)
	}
}

// Whatever a handler returns is a problem; what is internal is logged and doesn't show.
func TestErrors(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	var fail error
	operation(api.server, huma.Operation{OperationID: "fail", Method: http.MethodGet, Path: "/fail"}, posthorn.ScopeWebhooksRead,
		func(context.Context, *struct{}) (*struct{}, error) { return nil, fail })
	cause := errors.New("disk on fire")
	for _, test := range []struct {
		err           error
		status        int
		detail, field string
	}{
		{&posthorn.Error{Code: posthorn.CodeInvalid, Field: "url", Message: "it is odd"}, 422, "url: it is odd", "url"},
		{posthorn.Errorf(posthorn.CodeInvalid, "100%% odd"), 422, "100% odd", ""},
		{posthorn.Errorf(posthorn.CodeNotFound, "Webhook not found"), 404, "Webhook not found", ""},
		{posthorn.Errorf(posthorn.CodeConflict, "other content"), 409, "other content", ""},
		{posthorn.Errorf(posthorn.CodeTooLarge, "too much"), 413, "too much", ""},
		{posthorn.Errorf(posthorn.CodeUnavailable, "not now"), 503, "not now", ""},
		{posthorn.Errorf(posthorn.CodeUncertain, "done or not"), 503, "done or not", ""},
		{posthorn.Errorf(posthorn.CodeInternal, "defect: %w", cause), 500, "log", ""},
		{posthorn.Errorf("new code", "defect: %w", cause), 500, "log", ""},
		{fmt.Errorf("wrapped: %w", posthorn.Errorf(posthorn.CodeNotFound, "Webhook not found")), 404, "Webhook not found", ""},
		{cause, 500, "log", ""},
		{context.Canceled, 503, "ended", ""},
	} {
		fail = test.err
		before := len(api.logged.String())
		a := api.do("GET", "/api/v1/fail", "")
		a.problem(test.status, test.detail, test.field)
		logged := api.logged.String()[before:]
		if strings.Contains(string(a.body), "on fire") || (test.status == 500) != strings.Contains(logged, "disk on fire") {
			t.Errorf("%v: answer %s, log %q", test.err, a.body, logged)
		}
		if got := a.header.Get("Retry-After"); posthorn.ErrorCode(test.err) == posthorn.CodeUnavailable != (got == "1") {
			t.Errorf("%v: Retry-After %q", test.err, got)
		}
	}
	for _, code := range []posthorn.Code{
		posthorn.CodeInvalid, posthorn.CodeNotFound, posthorn.CodeConflict, posthorn.CodeTooLarge, posthorn.CodeUnavailable, posthorn.CodeInternal,
	} {
		if statuses[code] == 0 {
			t.Errorf("no status for %q", code)
		}
	}
}
