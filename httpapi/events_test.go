package httpapi

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/musehub/posthorn"
)

// Cases 6 and 37: a payload is received, logged and shown as the bytes that were posted.
func TestPayloadsStayAsTheyAre(t *testing.T) {
	api := startAPI(t, posthorn.Config{})
	bodies := make(chan string, 1)
	url := receiver(t, func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		bodies <- string(body)
	})
	path := api.webhook(`{"url": "` + url + `", "events": ["push"]}`)
	for _, payload := range payloads {
		a := api.do("POST", "/api/v1/repos/r1/events", `{"payload": `+payload+` , "eventType":"push"}`)
		api.matches("postEvent", a)
		receipt := a.ok(http.StatusAccepted)
		if receipt["deliveries"] != 1.0 {
			t.Errorf("%v", receipt)
		}
		if got := <-bodies; got != payload {
			t.Errorf("%q was received as %q", payload, got)
		}
		delivery := <-api.made
		event := api.do("GET", "/api/v1/repos/r1/events/"+receipt["eventId"].(string), "")
		api.matches("getEvent", event)
		if got := event.ok(http.StatusOK)["payload"]; got != payload {
			t.Errorf("%q is shown as %q", payload, got)
		}
		if got := api.do("GET", path+"/deliveries/"+delivery.ID, "").ok(http.StatusOK)["payload"]; got != payload {
			t.Errorf("%q is logged as %q", payload, got)
		}
	}
}

// Case 37.
func TestPostEvent(t *testing.T) {
	api := startAPI(t, posthorn.Config{})
	const path = "/api/v1/repos/r1/events"
	if got := api.do("POST", path, `{"eventType": "push", "payload": {}}`).ok(http.StatusAccepted)["deliveries"]; got != 0.0 {
		t.Errorf("%v deliveries without a webhook", got)
	}
	url := receiver(t, func(http.ResponseWriter, *http.Request) {})
	api.webhook(`{"url": "` + url + `", "events": ["push"]}`)
	want := map[string]any{"eventId": "e1", "deliveries": 1.0}
	body := `{"eventType": "push", "payload": {"a": 1}, "eventId": "e1"}`
	if diff := cmp.Diff(want, api.do("POST", path, body).ok(http.StatusAccepted)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	again := api.do("POST", path, body)
	if diff := cmp.Diff(want, again.ok(http.StatusOK)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	api.matches("postEvent", again)
	api.do("POST", path, `{"eventType": "push", "payload": {"a":1}, "eventId": "e1"}`).problem(http.StatusConflict, "e1", "")
	for body, field := range map[string]string{
		`{"payload": {}}`:                                        "eventType",
		`{"eventType": "push"}`:                                  "payload",
		`{"eventType": null, "payload": {}}`:                     "eventType",
		`{"eventType": "pull", "payload": {}}`:                   "eventType",
		`{"eventType": "push", "payload": {}, "eventId": ""}`:    "eventId",
		`{"eventType": "push", "payload": {}, "eventId": null}`:  "eventId",
		`{"eventType": "push", "payload": {}, "eventId": "a.b"}`: "eventId",
		`{"eventType": "push", "payload": {}, "payload": {}}`:    "payload",
	} {
		api.do("POST", path, body).problem(http.StatusUnprocessableEntity, field+": ", field)
	}
	api.do("POST", path, `{"eventType": "push", "payload": {}, "id": "e2"}`).
		problem(http.StatusUnprocessableEntity, `unknown field "id": the fields are eventType, payload, eventId`, "")
	api.do("POST", path, "{\"eventType\": \"push\", \"payload\": \"\xc3\"}").problem(http.StatusUnprocessableEntity, "UTF-8", "")
	<-api.made
}

func TestPostEvents(t *testing.T) {
	api := startAPI(t, posthorn.Config{MaxPayload: 1000})
	const path = "/api/v1/repos/r1/events:batch"
	bodies := make(chan string, len(payloads))
	url := receiver(t, func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		bodies <- string(body)
	})
	api.webhook(`{"url": "` + url + `", "events": ["push"]}`)

	// Payloads go out unchanged, whatever stands around them.
	var items, want, got []string
	for _, payload := range payloads {
		items = append(items, "{\n\t\"payload\" :  "+payload+`, "eventType":"p\u0075sh"}`)
		want = append(want, payload)
	}
	a := api.do("POST", path, ` {"events" : [ `+strings.Join(items, " , ")+` ]}`)
	api.matches("postEvents", a)
	if receipts := a.ok(http.StatusAccepted)["events"].([]any); len(receipts) != len(payloads) {
		t.Errorf("%d receipts", len(receipts))
	}
	for range payloads {
		got = append(got, <-bodies)
		<-api.made
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}

	post := func(status int, body, want string) {
		t.Helper()
		a := api.do("POST", path, body)
		api.matches("postEvents", a)
		a.ok(status)
		if got := strings.TrimSpace(string(a.body)); got != `{"events":[`+want+`]}` {
			t.Errorf("the answer is %s", got)
		}
	}
	const e1, lonely = `{"eventId":"e1","eventType":"push","payload":1}`, `{"eventId":"e0","eventType":"tag","payload":1}`
	post(http.StatusAccepted, `{"events":[`+lonely+`,`+e1+`,`+e1+`]}`, `{"eventId":"e0","deliveries":0,"duplicate":false},`+
		`{"eventId":"e1","deliveries":1,"duplicate":false},{"eventId":"e1","deliveries":1,"duplicate":true}`)
	<-api.made
	post(http.StatusOK, `{"events":[`+e1+`]}`, `{"eventId":"e1","deliveries":1,"duplicate":true}`)

	for _, test := range []struct {
		item   string
		status int
		field  string
	}{
		{`{"payload": {}}`, 422, ".eventType"},
		{`{"eventType": "push"}`, 422, ".payload"},
		{`{"eventType": null, "payload": {}}`, 422, ".eventType"},
		{`{"eventType": "pull", "payload": {}}`, 422, ".eventType"},
		{`{"eventType": "push", "payload": {}, "eventId": ""}`, 422, ".eventId"},
		{`{"eventType": "push", "payload": {}, "eventId": 1}`, 422, ".eventId"},
		{`{"eventType": "push", "payload": {}, "eventId": "a.b"}`, 422, ".eventId"},
		{`{"eventType": "push", "payload": {}, "payload": {}}`, 422, ".payload"},
		{`{"eventType": "push", "payload": {}, "id": "e2"}`, 422, ""},
		{`null`, 422, ""},
		{`[]`, 422, ""},
		{`{"eventType": "push", "payload": 2, "eventId": "e1"}`, 409, ".eventId"},
		{`{"eventType": "push", "payload": "` + strings.Repeat("x", 1000) + `"}`, 413, ".payload"},
	} {
		field := "events[1]" + test.field
		api.do("POST", path, `{"events":[{"eventType":"push","payload":1},`+test.item+`]}`).problem(test.status, field+": ", field)
	}
	for _, body := range []string{`{}`, `{"events":null}`, `{"events":{}}`, `{"events":"x"}`, `{"events":[]}`, `{"events":[` + strings.Repeat(e1+",", 1000) + e1 + `]}`} {
		api.do("POST", path, body).problem(http.StatusUnprocessableEntity, "events: ", "events")
	}
	api.do("POST", path, `[`+e1+`]`).problem(http.StatusUnprocessableEntity, "object", "")
	api.do("POST", path, `{"events":[`+e1+`,]}`).problem(http.StatusBadRequest, "not valid JSON", "")
	api.do("POST", path, strings.Repeat(" ", 17<<20)+"{}").problem(http.StatusRequestEntityTooLarge, "17825792", "")
	api.do("POST", "/api/v1/repos/"+strings.Repeat("x", 300)+"/events:batch", `{"events":[`+e1+`]}`).problem(http.StatusUnprocessableEntity, "repoId: ", "repoId")
	if n := api.do("GET", "/api/v1/repos/r1/events", "").ok(http.StatusOK)["total"]; n != float64(len(payloads)+1) {
		t.Errorf("%v events are stored", n)
	}
}

func TestListEvents(t *testing.T) {
	api := startAPI(t, posthorn.Config{})
	url := receiver(t, func(http.ResponseWriter, *http.Request) {})
	api.webhook(`{"url": "` + url + `", "events": ["*"]}`)
	const path = "/api/v1/repos/r1/events"
	for _, id := range []string{"e1", "e2", "e3"} {
		api.do("POST", path, `{"eventType": "push", "payload": {"<": 1.0}, "eventId": "`+id+`"}`).ok(http.StatusAccepted)
		<-api.made
	}
	var got []string
	for cursor := ""; ; {
		a := api.do("GET", path+"?limit=1&cursor="+cursor, "")
		api.matches("listEvents", a)
		page := a.ok(http.StatusOK)
		for _, e := range page["events"].([]any) {
			e := e.(map[string]any)
			got = append(got, e["eventId"].(string))
			if s := e["createdAt"].(string); !timePattern.MatchString(s) {
				t.Errorf("createdAt %s", s)
			}
			delete(e, "createdAt")
			delete(e, "eventId")
			want := map[string]any{"repoId": "r1", "eventType": "push", "payload": `{"<": 1.0}`, "deliveries": 1.0}
			if diff := cmp.Diff(want, e); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		}
		if page["total"] != 3.0 || page["totalCapped"] != nil {
			t.Errorf("total %v, capped %v", page["total"], page["totalCapped"])
		}
		var more bool
		if cursor, more = page["nextCursor"].(string); !more {
			break
		}
	}
	if !slices.Equal(got, []string{"e3", "e2", "e1"}) {
		t.Errorf("%v", got)
	}
	api.do("GET", path+"/nope", "").problem(http.StatusNotFound, "Event not found", "")
	api.do("GET", "/api/v1/repos/r2/events/e1", "").problem(http.StatusNotFound, "Event not found", "")
}

func TestEventTypes(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{EventTypes: []string{"build", "deploy"}})
	a := api.do("GET", "/api/v1/event-types", "")
	api.matches("listEventTypes", a)
	if diff := cmp.Diff(map[string]any{
		"eventTypes": []any{"build", "deploy", "ping"},
		"catalogue":  []any{map[string]any{"name": "build"}, map[string]any{"name": "deploy"}},
	}, a.ok(http.StatusOK)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// The memory that bodies are read into is used again while payloads still wait to be sent.
func TestPayloadsOutliveTheirBodies(t *testing.T) {
	api := startAPI(t, posthorn.Config{MaxInFlightPerWebhook: 1})
	bodies, release := make(chan string, 10), make(chan struct{})
	url := receiver(t, func(_ http.ResponseWriter, r *http.Request) {
		<-release
		body, _ := io.ReadAll(r.Body)
		bodies <- string(body)
	})
	api.webhook(`{"url": "` + url + `", "events": ["push"]}`)
	var want []string
	for i := range 10 {
		payload := `"` + strings.Repeat(string(rune('0'+i)), 100) + `"`
		api.do("POST", "/api/v1/repos/r1/events", `{"eventType":"push","payload":`+payload+`}`).ok(http.StatusAccepted)
		want = append(want, payload)
	}
	close(release)
	for i := range want {
		if got := <-bodies; got != want[i] {
			t.Errorf("%q was received as %q", want[i], got)
		}
		<-api.made
	}
}

// A filter is tried on what is stored, and says of each event whether a webhook would get it.
func TestFilterTest(t *testing.T) {
	api := startAPI(t, posthorn.Config{})
	url := receiver(t, func(http.ResponseWriter, *http.Request) {})
	api.do("POST", "/api/v1/repos/r1/webhooks", `{"url":"`+url+`","events":["push"]}`).ok(http.StatusCreated)
	for _, payload := range []string{`{"branch":"main"}`, `{"branch":"x"}`, `{}`} {
		api.do("POST", "/api/v1/repos/r1/events", `{"eventType":"push","payload":`+payload+`}`).ok(http.StatusAccepted)
		<-api.made
	}
	a := api.do("POST", "/api/v1/repos/r1/filter-test", `{"filter":"payload.branch == 'main'"}`)
	tested := a.ok(http.StatusOK)
	api.matches("testFilter", a)
	events := tested["events"].([]any)
	if tested["matched"] != 1.0 || len(events) != 3 {
		t.Fatalf("%s", a.body)
	}
	for i, want := range []struct {
		matches bool
		err     string
	}{{false, "no such key: branch"}, {false, ""}, {true, ""}} {
		e := events[i].(map[string]any)
		text, _ := e["error"].(string)
		if e["matches"] != want.matches || text != want.err || e["eventType"] != "push" || e["eventId"] == "" {
			t.Errorf("event %d: %v", i, e)
		}
	}
	try := func(repo, body string) answer { return api.do("POST", "/api/v1/repos/"+repo+"/filter-test", body) }
	if n := len(try("r1", `{"filter":"true","limit":2}`).ok(http.StatusOK)["events"].([]any)); n != 2 {
		t.Errorf("%d events with the limit 2", n)
	}
	if n := len(try("empty", `{"filter":"true"}`).ok(http.StatusOK)["events"].([]any)); n != 0 {
		t.Errorf("%d events in another repo", n)
	}
	for body, field := range map[string]string{
		`{"filter":"nonsense("}`: "filter", `{"filter":"1"}`: "filter", `{}`: "filter", `{"filter":""}`: "filter",
		`{"filter":"true","limit":0}`: "limit", `{"filter":"true","limit":201}`: "limit",
	} {
		try("r1", body).problem(http.StatusUnprocessableEntity, field+": ", field)
	}
}

// What has become of an event is told for one webhook or all of them.
func TestExplainEvent(t *testing.T) {
	api := startAPI(t, posthorn.Config{})
	url := receiver(t, func(http.ResponseWriter, *http.Request) {})
	create := func(events string) string {
		return api.do("POST", "/api/v1/repos/r1/webhooks", `{"url":"`+url+`","events":["`+events+`"]}`).ok(http.StatusCreated)["webhookId"].(string)
	}
	got, other := create("push"), create("issue")
	api.do("POST", "/api/v1/repos/r1/events", `{"eventType":"push","payload":1,"eventId":"e1"}`).ok(http.StatusAccepted)
	delivery := (<-api.made).ID
	const path = "/api/v1/repos/r1/events/e1/explain"
	a := api.do("GET", path, "")
	all := a.ok(http.StatusOK)
	api.matches("explainEvent", a)
	webhooks := all["webhooks"].([]any)
	if all["eventId"] != "e1" || len(webhooks) != 2 || all["more"] != false {
		t.Fatalf("%s", a.body)
	}
	first, second := webhooks[0].(map[string]any), webhooks[1].(map[string]any)
	if first["webhookId"] != got || first["state"] != "delivered" || first["lastDeliveryId"] != delivery || first["attempts"] != 1.0 || first["nextAttemptAt"] != nil {
		t.Errorf("%v", first)
	}
	if second["webhookId"] != other || second["state"] != "not_subscribed" || second["lastDeliveryId"] != nil || !strings.Contains(second["reason"].(string), "push") {
		t.Errorf("%v", second)
	}
	if one := api.do("GET", path+"?webhookId="+other, "").ok(http.StatusOK)["webhooks"].([]any); len(one) != 1 {
		t.Errorf("%v", one)
	}
	api.do("GET", path+"?webhookId=unknown", "").problem(http.StatusNotFound, "Webhook not found", "")
	api.do("GET", strings.Replace(path, "e1", "e2", 1), "").problem(http.StatusNotFound, "Event not found", "")
	api.do("GET", strings.Replace(path, "r1", "r2", 1)+"?webhookId="+got, "").problem(http.StatusNotFound, "Event not found", "")
}

// Where nobody knows whether an event was accepted, clients are told to repeat it only if that sends nothing twice.
func TestUncertainPosts(t *testing.T) {
	for body, repeatable := range map[string]bool{
		`{"eventType":"push","payload":1,"eventId":"e1"}`:                                               true,
		`{"eventType":"push","payload":1}`:                                                              false,
		`{"events":[{"eventType":"push","payload":1,"eventId":"e1"}]}`:                                  true,
		`{"events":[{"eventType":"push","payload":1,"eventId":"e1"},{"eventType":"push","payload":2}]}`: false,
	} {
		store := &tampered{Store: openStore(t)}
		api := newTestAPIOver(t, store, posthorn.Config{})
		if err := api.dispatcher.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		api.webhook(`{"polled":true,"events":["push"]}`)
		store.onCommit(func(do commit) ([]posthorn.Acceptance, error) {
			if _, err := do(); err != nil {
				return nil, err
			}
			return nil, posthorn.Errorf(posthorn.CodeUncertain, "the connection was lost during COMMIT")
		})
		path := "/api/v1/repos/r1/events"
		if strings.Contains(body, "events") {
			path += ":batch"
		}
		a := api.do("POST", path, body)
		a.problem(http.StatusServiceUnavailable, "the same eventId again settles it", "")
		if got := a.header.Get("Retry-After"); repeatable != (got == "1") {
			t.Errorf("%s: Retry-After %q", body, got)
		}
		if repeatable {
			continue
		}
		events := api.do("GET", "/api/v1/repos/r1/events", "").ok(http.StatusOK)["events"].([]any)
		if id := events[0].(map[string]any)["eventId"].(string); !strings.Contains(string(a.body), id) {
			t.Errorf("%s: the event is %s, which the answer doesn't say: %s", body, id, a.body)
		}
	}
}
