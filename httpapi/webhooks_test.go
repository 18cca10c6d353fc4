package httpapi

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musehub/posthorn"
)

var timePattern = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$`)

// Cases 20, 24 and 30.
func TestCreateAndGetWebhook(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	body := `{"url": "https://example.com/a?b=c", "events": ["tag", "push", "ping"], "secret": "s3cret", "description": "<d>"}`
	a := api.do("POST", "/api/v1/repos/r1/webhooks", body)
	created := a.ok(http.StatusCreated)
	api.matches("createWebhook", a)
	if strings.Contains(string(a.body), "s3cret") {
		t.Errorf("the answer has the secret: %s", a.body)
	}
	for _, name := range []string{"createdAt", "updatedAt"} {
		if s, _ := created[name].(string); !timePattern.MatchString(s) {
			t.Errorf("%s is %v", name, created[name])
		}
	}
	want := map[string]any{
		"webhookId": created["webhookId"], "repoId": "r1", "url": "https://example.com/a?b=c", "events": []any{"tag", "push", "ping"},
		"active": true, "description": "<d>", "hasSecret": true, "createdAt": created["createdAt"], "updatedAt": created["createdAt"],
	}
	if diff := cmp.Diff(want, created); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	path := "/api/v1/repos/r1/webhooks/" + created["webhookId"].(string)
	a = api.do("GET", path, "")
	if diff := cmp.Diff(created, a.ok(http.StatusOK)); diff != "" {
		t.Errorf("-created +got:\n%s", diff)
	}
	api.matches("getWebhook", a)

	again := api.do("POST", "/api/v1/repos/r1/webhooks", `{"url": "https://example.com/a?b=c", "events": ["*"]}`).ok(http.StatusCreated)
	if again["webhookId"] == created["webhookId"] || again["hasSecret"] != false {
		t.Errorf("%v", again)
	}
	api.do("GET", strings.Replace(path, "r1", "r2", 1), "").problem(http.StatusNotFound, "Webhook not found", "")
	api.do("GET", "/api/v1/repos/r1/webhooks/nope", "").problem(http.StatusNotFound, "Webhook not found", "")
}

// Cases 21 to 23: what the dispatcher refuses names its field in the detail.
func TestCreateWebhookRefuses(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	for body, want := range map[string]string{
		`{"url": "https://example.com/", "events": ["pull"]}`:                                  `events: unknown event type "pull"`,
		`{"url": "https://example.com/", "events": ["Push"]}`:                                  "push, issue, proposal",
		`{"url": "https://example.com/", "events": [null]}`:                                    "events: ",
		`{"url": "https://example.com/", "events": []}`:                                        "events: ",
		`{"url": "", "events": ["push"]}`:                                                      "url: ",
		`{"url": "https://example.com/` + strings.Repeat("x", 2048) + `", "events": ["push"]}`: "url: ",
		`{"url": "ftp://example.com/", "events": ["push"]}`:                                    "url: ",
		`{"url": "http://10.0.0.1/", "events": ["push"]}`:                                      "url: ",
	} {
		api.do("POST", "/api/v1/repos/r1/webhooks", body).
			problem(http.StatusUnprocessableEntity, want, regexp.MustCompile(`url|events`).FindString(want+"events"))
	}
}

// The repo is any string, a slash in it included.
func TestRepoIDs(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	for escaped, repo := range map[string]string{
		"a%2Fb": "a/b", "a%2F..%2Fb": "a/../b", "%2E%2E": "..", "a%20%C3%A4": "a ä", "%25": "%", "a+b": "a+b", "%7Bx%7D": "{x}",
	} {
		path := "/api/v1/repos/" + escaped + "/webhooks"
		w := api.do("POST", path, `{"url": "https://example.com/", "events": ["*"]}`).ok(http.StatusCreated)
		if w["repoId"] != repo {
			t.Errorf("%s is the repo %q", escaped, w["repoId"])
		}
		if got := api.do("GET", path, "").ok(http.StatusOK)["total"]; got != 1.0 {
			t.Errorf("%s has %v webhooks", escaped, got)
		}
	}
	api.do("GET", "/api/v1/repos/"+strings.Repeat("x", 1000)+"/webhooks", "").problem(http.StatusUnprocessableEntity, "repoId: ", "repoId")
	api.do("GET", "/api/v1/repos/%FF/webhooks", "").problem(http.StatusUnprocessableEntity, "repoId: ", "repoId")
}

// Cases 26 to 28.
func TestListWebhooks(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	const path = "/api/v1/repos/r1/webhooks"
	a := api.do("GET", path, "")
	if diff := cmp.Diff(map[string]any{"webhooks": []any{}, "total": 0.0, "nextCursor": nil}, a.ok(http.StatusOK)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	var want []string
	for i := range 21 {
		w := api.webhook(fmt.Sprintf(`{"url": "https://example.com/%d", "events": ["*"]}`, i))
		want = append(want, w[strings.LastIndex(w, "/")+1:])
	}
	var got []string
	cursor := ""
	for pages := 1; ; pages++ {
		a := api.do("GET", path+"?limit=2&cursor="+cursor, "")
		api.matches("listWebhooks", a)
		page := a.ok(http.StatusOK)
		if page["total"] != 21.0 {
			t.Errorf("total %v", page["total"])
		}
		for _, w := range page["webhooks"].([]any) {
			got = append(got, w.(map[string]any)["webhookId"].(string))
		}
		var more bool
		if cursor, more = page["nextCursor"].(string); !more {
			if pages != 11 {
				t.Errorf("%d pages", pages)
			}
			break
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	page := api.do("GET", path, "").ok(http.StatusOK)
	cursor = page["nextCursor"].(string)
	if n := len(page["webhooks"].([]any)); n != 20 {
		t.Errorf("%d webhooks without a limit", n)
	}
	if n := len(api.do("GET", path+"?limit=200", "").ok(http.StatusOK)["webhooks"].([]any)); n != 21 {
		t.Errorf("%d webhooks with the limit 200", n)
	}
	for _, bad := range []string{path + "?cursor=garbage", "/api/v1/repos/r2/webhooks?cursor=" + cursor, "/api/v1/repos/r1/events?cursor=" + cursor} {
		api.do("GET", bad, "").problem(http.StatusUnprocessableEntity, "cursor: ", "cursor")
	}
}

func TestUpdateWebhook(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	path := api.webhook(`{"url": "https://example.com/", "events": ["push"]}`)
	want := api.do("GET", path, "").ok(http.StatusOK)
	for _, step := range []struct {
		body string
		sets map[string]any
	}{
		{`{}`, nil},
		{`{"url": "https://example.org/"}`, map[string]any{"url": "https://example.org/"}},
		{`{"events": ["tag", "*"]}`, map[string]any{"events": []any{"tag", "*"}}},
		{`{"active": false}`, map[string]any{"active": false}},
		{`{"secret": "s3cret"}`, map[string]any{"hasSecret": true}},
		{`{"secret": "n3w", "secretOverlap": 0, "description": "d"}`, map[string]any{"description": "d"}},
		{`{"secret": "", "secretOverlap": 31536000, "active": true}`, map[string]any{"hasSecret": false, "active": true}},
	} {
		a := api.do("PATCH", path, step.body)
		got := a.ok(http.StatusOK)
		api.matches("updateWebhook", a)
		maps.Copy(want, step.sets)
		want["updatedAt"] = got["updatedAt"]
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: -want +got:\n%s", step.body, diff)
		}
	}
	for body, field := range map[string]string{
		`{"url": ""}`:                                          "url",
		`{"events": []}`:                                       "events",
		`{"events": ["pull"]}`:                                 "events",
		`{"active": null}`:                                     "active",
		`{"secretOverlap": 60}`:                                "secretOverlap",
		`{"secret": "x", "secretOverlap": -1}`:                 "secretOverlap",
		`{"secret": "x", "secretOverlap": 1e3}`:                "secretOverlap",
		`{"secret": "x", "secretOverlap": "60"}`:               "secretOverlap",
		`{"secret": "x", "secretOverlap": 31536001}`:           "secretOverlap",
		`{"description": "` + strings.Repeat("x", 1001) + `"}`: "description",
	} {
		api.do("PATCH", path, body).problem(http.StatusUnprocessableEntity, field+": ", field)
	}
	api.do("PATCH", path, `{"webhookId": "w2"}`).problem(http.StatusUnprocessableEntity, `"webhookId"`, "")
	api.do("PATCH", path, ``).problem(http.StatusBadRequest, "empty", "")
	api.do("PATCH", path+"x", `{}`).problem(http.StatusNotFound, "Webhook not found", "")
	if diff := cmp.Diff(want, api.do("GET", path, "").ok(http.StatusOK)); diff != "" {
		t.Errorf("a refused change left something: -want +got:\n%s", diff)
	}
}

// What a webhook has of its own is shown while it has it.
func TestWebhookOptions(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	options := map[string]any{
		"retryPolicy": "5s,1m±20%", "finalStatuses": "400-407,422", "timeout": 5.0, "maxInFlight": 3.0, "maxPerSecond": 7.0,
		"filter": `payload.branch == "main"`, "githubSignature": true, "idempotencyKey": true, "ordering": "strict", "keepWhileInactive": true,
	}
	body := map[string]any{"url": "https://example.com/", "events": []string{"push"}}
	maps.Copy(body, options)
	encode := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	check := func(what string, shown map[string]any, want map[string]any) {
		t.Helper()
		for name := range options {
			if shown[name] != want[name] {
				t.Errorf("%s: %s is %v, want %v", what, name, shown[name], want[name])
			}
		}
	}
	a := api.do("POST", "/api/v1/repos/r1/webhooks", encode(body))
	created := a.ok(http.StatusCreated)
	api.matches("createWebhook", a)
	check("created", created, options)
	path := "/api/v1/repos/r1/webhooks/" + created["webhookId"].(string)
	for _, patch := range []map[string]any{
		{"retryPolicy": "none"}, {"finalStatuses": "410"}, {"timeout": 60.0}, {"maxInFlight": 1.0}, {"filter": "true"}, {"maxPerSecond": 10_000.0},
	} {
		maps.Copy(options, patch)
		a := api.do("PATCH", path, encode(patch))
		check(encode(patch), a.ok(http.StatusOK), options)
		api.matches("updateWebhook", a)
	}
	unset := api.do("PATCH", path, `{"retryPolicy":"","finalStatuses":"","timeout":0,"maxInFlight":0,"maxPerSecond":0,"filter":"","githubSignature":false,"idempotencyKey":false,"ordering":"","keepWhileInactive":false}`).ok(http.StatusOK)
	check("unset", unset, nil)
	for name, bad := range map[string][]string{
		"retryPolicy": {`"often"`, `null`, `5`}, "finalStatuses": {`"4xx"`, `[404]`}, "timeout": {`61`, `-1`, `0.5`, `"5"`, `9223372036854775807`},
		"maxInFlight": {`-1`, `10001`, `true`}, "maxPerSecond": {`-1`, `10001`, `1.5`},
		"filter": {`"branch == 1"`, `1`}, "headers": {`{"Host":"x"}`, `{"A":1}`, `["A"]`, `null`, `{"A":"***"}`,
			`{"A":null}`, `{"A":"x","B":null}`, `{"A":{}}`, `{"A":["x"]}`, `{"A":"x","A":"y"}`, `{"A":"x","B":"y","\u0041":"z"}`},
		"githubSignature": {`1`}, "idempotencyKey": {`"yes"`}, "ordering": {`"fifo"`}, "keepWhileInactive": {`1`},
	} {
		for _, value := range bad {
			api.do("PATCH", path, `{"`+name+`":`+value+`}`).problem(http.StatusUnprocessableEntity, name+": ", name)
			api.do("POST", "/api/v1/repos/r1/webhooks", `{"url":"https://example.com/","events":["push"],"`+name+`":`+value+`}`).
				problem(http.StatusUnprocessableEntity, name+": ", name)
		}
	}
}

func TestHeadersAreMasked(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	a := api.do("POST", "/api/v1/repos/r1/webhooks", `{"url":"https://example.com/","events":["push"],"headers":{"Authorization":"Bearer hush"}}`)
	path := "/api/v1/repos/r1/webhooks/" + a.ok(http.StatusCreated)["webhookId"].(string)
	for want, again := range map[string]answer{
		`{"Authorization":"***"}`:             api.do("GET", path, ""),
		`{"Authorization":"***","X-B":"***"}`: api.do("PATCH", path, `{"headers":{"Authorization":"***","X-B":"hush"}}`),
	} {
		again.ok(http.StatusOK)
		if !strings.Contains(string(again.body), want) || strings.Contains(string(again.body), "hush") {
			t.Errorf("%s, want %s", again.body, want)
		}
	}
	// What is no text changes nothing, and is not taken for an empty one.
	api.do("PATCH", path, `{"headers":{"Authorization":null}}`).problem(http.StatusUnprocessableEntity, "values are strings", "headers")
	api.do("PATCH", path, `{"headers":{"X-B":"a" , "\u0058-B":"b"}}`).problem(http.StatusUnprocessableEntity, `"X-B" is there twice`, "headers")
	kept := `{"headers":{ "Authorization" : "***","X-\u0042":"\u002a**"} }`
	if shown := api.do("PATCH", path, kept).ok(http.StatusOK)["headers"].(map[string]any); len(shown) != 2 {
		t.Errorf("what there was is now %v", shown)
	}
	if shown := api.do("PATCH", path, `{"headers":{}}`).ok(http.StatusOK); shown["headers"] != nil {
		t.Errorf("after their removal: %v", shown["headers"])
	}
}

func TestSecretOverlap(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	for field, want := range map[string]time.Duration{
		"":                            posthorn.DefaultSecretOverlap,
		`, "secretOverlap": 90`:       90 * time.Second,
		`, "secretOverlap": 31536000`: 365 * 24 * time.Hour,
	} {
		path := api.webhook(`{"url": "https://example.com/", "events": ["push"], "secret": "old"}`)
		api.do("PATCH", path, `{"secret": "new"`+field+`}`).ok(http.StatusOK)
		w, err := api.dispatcher.Webhook(t.Context(), "r1", path[strings.LastIndex(path, "/")+1:])
		if err != nil || len(w.Secrets) != 2 {
			t.Fatalf("%+v, %v", w, err)
		}
		if got := w.Secrets[1].ExpiresAt.Sub(w.UpdatedAt); got != want {
			t.Errorf("%q: the old secret signs for %v, want %v", field, got, want)
		}
	}
}

// Case 31.
func TestDeleteWebhook(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	path := api.webhook(`{"url": "https://example.com/", "events": ["push"]}`)
	if a := api.do("DELETE", path, ""); a.status != http.StatusNoContent || len(a.body) > 0 {
		t.Errorf("%d %s", a.status, a.body)
	}
	for _, method := range []string{"DELETE", "GET"} {
		api.do(method, path, "").problem(http.StatusNotFound, "Webhook not found", "")
	}
	api.do("GET", path+"/deliveries", "").problem(http.StatusNotFound, "Webhook not found", "")
	api.do("POST", path+"/ping", "").problem(http.StatusNotFound, "Webhook not found", "")
}

// A test goes to one webhook, with the bytes given.
func TestTestWebhook(t *testing.T) {
	api := startAPI(t, posthorn.Config{})
	bodies := make(chan string, 1)
	url := receiver(t, func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		bodies <- string(body)
	})
	path := api.webhook(`{"url":"`+url+`","events":["tag"]}`) + "/test"
	a := api.do("POST", path, `{"eventType":"push","payload":{"a": 1.0}}`)
	api.matches("testWebhook", a)
	if got := a.ok(http.StatusAccepted); got["deliveries"] != 1.0 {
		t.Errorf("answered %v", got)
	}
	if body := <-bodies; body != `{"a": 1.0}` {
		t.Errorf("sent %s", body)
	}
	if d := <-api.made; d.Trigger != posthorn.TriggerTest {
		t.Errorf("delivered as %+v", d)
	}
	api.do("POST", path, `{"eventType":"push"}`).problem(http.StatusUnprocessableEntity, "no example of push", "payload")
	api.do("POST", path, `{"eventType":"pull","payload":1}`).problem(http.StatusUnprocessableEntity, "unknown event type", "eventType")
	api.do("POST", path, `{"payload":1}`).problem(http.StatusUnprocessableEntity, "", "eventType")
}
