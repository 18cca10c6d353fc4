package httpapi

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musehub/posthorn"
)

// Cases 32 and 33.
func TestDeliveries(t *testing.T) {
	api := startAPI(t, posthorn.Config{})
	status := make(chan int, 2)
	url := receiver(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Set-Cookie", "session=s3cret")
		w.Header()["X-Api-Key"] = []string{"s3cret", "s3cret"}
		w.Header().Set("X-Request-Id", "42")
		w.WriteHeader(<-status)
		_, _ = w.Write([]byte("<ok>"))
	})
	path := api.webhook(`{"url": "`+url+`/hook", "events": ["push"], "secret": "s3cret"}`) + "/deliveries"
	if diff := cmp.Diff(map[string]any{"deliveries": []any{}, "total": 0.0, "nextCursor": nil}, api.do("GET", path, "").ok(http.StatusOK)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	status <- http.StatusTeapot
	status <- http.StatusOK
	api.do("POST", "/api/v1/repos/r1/events", `{"eventType": "push", "payload": {"a" :1}, "eventId": "e1"}`).ok(http.StatusAccepted)
	first, second := <-api.made, <-api.made

	a := api.do("GET", path, "")
	api.matches("listDeliveries", a)
	page := a.ok(http.StatusOK)
	rows := page["deliveries"].([]any)
	if page["total"] != 2.0 || page["totalCapped"] != nil || page["nextCursor"] != nil || len(rows) != 2 {
		t.Fatalf("%v", page)
	}
	newest, oldest := rows[0].(map[string]any), rows[1].(map[string]any)
	if newest["deliveryId"] != second.ID || newest["attempt"] != 2.0 || newest["success"] != true || newest["nextAttemptAt"] != nil {
		t.Errorf("%v", newest)
	}
	want := map[string]any{
		"deliveryId": first.ID, "webhookId": first.WebhookID, "eventId": "e1", "eventType": "push", "payload": `{"a" :1}`,
		"attempt": 1.0, "trigger": "automatic", "success": false, "responseStatus": 418.0, "responseBody": "<ok>",
		"deliveredAt": timestamp(first.DeliveredAt), "nextAttemptAt": timestamp(first.NextAttemptAt),
		"url": url + "/hook", "durationMs": milliseconds(first.Exchange.Timings.Total),
	}
	if diff := cmp.Diff(want, oldest); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}

	a = api.do("GET", path+"/"+first.ID, "")
	api.matches("getDelivery", a)
	if strings.Contains(string(a.body), "s3cret") {
		t.Errorf("a secret shows: %s", a.body)
	}
	one := a.ok(http.StatusOK)
	request, response, timings := one["request"].(map[string]any), one["response"].(map[string]any), one["timings"].(map[string]any)
	delete(one, "request")
	delete(one, "response")
	delete(one, "timings")
	if diff := cmp.Diff(want, one); diff != "" {
		t.Errorf("alone it is not as it is in the list: -want +got:\n%s", diff)
	}
	sent := request["headers"].(map[string]any)
	if request["url"] != url+"/hook" || first0(sent["X-MuseHub-Delivery"]) != first.ID || first0(sent["X-MuseHub-Signature"]) != "sha256=***" {
		t.Errorf("%v", request)
	}
	if curl, _ := request["curl"].(string); curl == "" || curl != api.dispatcher.Curl(first) || strings.Contains(curl, "***") {
		t.Errorf("%q", curl)
	}
	received := response["headers"].(map[string]any)
	masked := map[string]any{"Set-Cookie": []any{"***"}, "X-Api-Key": []any{"***", "***"}, "X-Request-Id": []any{"42"}}
	for name, values := range masked {
		if diff := cmp.Diff(values, received[name]); diff != "" {
			t.Errorf("%s: -want +got:\n%s", name, diff)
		}
	}
	if total, _ := timings["totalMs"].(float64); total <= 0 || timings["reused"] != false || timings["connectMs"].(float64) <= 0 {
		t.Errorf("%v", timings)
	}
	api.do("GET", path+"/nope", "").problem(http.StatusNotFound, "Delivery not found", "")
	api.do("GET", strings.Replace(path, "r1", "r2", 1)+"/"+first.ID, "").problem(http.StatusNotFound, "not found", "")
}

func first0(v any) any { return v.([]any)[0] }

func TestDeliveryFilters(t *testing.T) {
	api := startAPI(t, posthorn.Config{RetryPolicy: &posthorn.RetryPolicy{}})
	url := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-MuseHub-Event") == "tag" {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	path := api.webhook(`{"url": "`+url+`", "events": ["*"]}`) + "/deliveries"
	for id, eventType := range map[string]string{"e1": "push", "e2": "tag", "e3": "push"} {
		api.do("POST", "/api/v1/repos/r1/events", `{"eventType": "`+eventType+`", "payload": {}, "eventId": "`+id+`"}`).ok(http.StatusAccepted)
		<-api.made
	}
	for query, want := range map[string]int{
		"success=true":                             2,
		"success=false":                            1,
		"eventType=push":                           2,
		"eventType=push&success=false":             0,
		"eventId=e2":                               1,
		"since=2026-01-02T03:04:05Z":               3,
		"since=2026-01-02T03:04:05.000006%2B02:00": 3,
		"until=2000-01-02T03:04:05Z":               0,
		"since=2000-01-02T03:04:05Z&until=2000-01-03T00:00:00Z": 0,
	} {
		a := api.do("GET", path+"?"+query, "")
		api.matches("listDeliveries", a)
		if got := len(a.ok(http.StatusOK)["deliveries"].([]any)); got != want {
			t.Errorf("%s finds %d, want %d", query, got, want)
		}
	}
	for query, field := range map[string]string{
		"success=yes": "success", "success=1": "success", "since=yesterday": "since", "until=2026-01-02": "until", "since=1767322445": "since",
	} {
		api.do("GET", path+"?"+query, "").problem(http.StatusUnprocessableEntity, field+": ", field)
	}
	cursor := api.do("GET", path+"?eventType=push&limit=1", "").ok(http.StatusOK)["nextCursor"].(string)
	if got := api.do("GET", path+"?limit=5&eventType=push&cursor="+cursor, "").ok(http.StatusOK); len(got["deliveries"].([]any)) != 1 {
		t.Errorf("%v", got)
	}
	for _, other := range []string{
		"", "eventType=tag", "eventType=push&success=true", "eventType=push&eventId=e1",
		"eventType=push&since=2026-01-02T03:04:05Z", "eventType=push&until=2026-01-02T03:04:05Z",
	} {
		api.do("GET", path+"?"+other+"&cursor="+cursor, "").problem(http.StatusUnprocessableEntity, "same filters", "cursor")
	}
}

func TestPing(t *testing.T) {
	api := startAPI(t, posthorn.Config{})
	url := receiver(t, func(http.ResponseWriter, *http.Request) {})
	path := api.webhook(`{"url": "` + url + `", "events": ["push"]}`)
	a := api.do("POST", path+"/ping", "")
	api.matches("pingWebhook", a)
	receipt := a.ok(http.StatusAccepted)
	if d := <-api.made; d.EventID != receipt["eventId"] || d.EventType != posthorn.EventPing || !d.Success || receipt["deliveries"] != 1.0 {
		t.Errorf("%v, %+v", receipt, d)
	}
}

// Cases 34 and 36.
func TestRedeliver(t *testing.T) {
	api := startAPI(t, posthorn.Config{RetryPolicy: &posthorn.RetryPolicy{Delays: []time.Duration{time.Millisecond}}})
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("thanks")) }))
	defer target.Close()
	path := api.webhook(`{"url": "` + target.URL + `", "events": ["push"]}`)
	api.do("POST", "/api/v1/repos/r1/events", `{"eventType": "push", "payload": {}}`).ok(http.StatusAccepted)
	original := <-api.made
	redeliver := path + "/deliveries/" + original.ID + "/redeliver"

	a := api.do("POST", redeliver, "")
	api.matches("redeliver", a)
	made := <-api.made
	want := map[string]any{
		"originalDeliveryId": original.ID, "deliveryId": made.ID, "webhookId": original.WebhookID, "eventType": "push",
		"success": true, "responseStatus": 200.0, "responseBody": "thanks",
	}
	if diff := cmp.Diff(want, a.ok(http.StatusOK)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got := a.header.Get("Preference-Applied"); got != "" {
		t.Errorf("Preference-Applied %q", got)
	}

	for _, prefer := range []string{"respond-async", "wait=10, Respond-Async; x=1"} {
		a = api.do("POST", redeliver, "", "Prefer: "+prefer)
		api.matches("redeliver", a)
		want = map[string]any{
			"originalDeliveryId": original.ID, "deliveryId": (<-api.made).ID, "webhookId": original.WebhookID, "eventType": "push",
		}
		if diff := cmp.Diff(want, a.ok(http.StatusAccepted)); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		if got := a.header.Get("Preference-Applied"); got != "respond-async" {
			t.Errorf("Preference-Applied %q", got)
		}
	}

	req, err := http.NewRequestWithContext(t.Context(), "POST", api.url+redeliver, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"Authorization": {"Bearer " + token}, "Prefer": {"wait=10", "respond-async"}} // on two lines
	resp, err := api.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		t.Errorf("Prefer on two lines: %d", resp.StatusCode)
	}
	<-api.made

	target.Close() // a dead target
	got := api.do("POST", redeliver, "", "Prefer: respond-asynchronously").ok(http.StatusOK)
	<-api.made
	last := <-api.made
	if got["success"] != false || got["responseStatus"] != 0.0 || got["deliveryId"] != last.ID || last.Attempt != 2 {
		t.Errorf("%v", got)
	}
	api.do("POST", path+"/deliveries/nope/redeliver", "").problem(http.StatusNotFound, "Delivery not found", "")
}

// A client that hangs up doesn't stop a redelivery, and a Posthorn that stops tells those who wait.
func TestRedeliverWithoutEnd(t *testing.T) {
	api := startAPI(t, posthorn.Config{RetryPolicy: &posthorn.RetryPolicy{}})
	arrived, release := make(chan struct{}), make(chan struct{})
	url := receiver(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // only after that does the server notice who hangs up
		arrived <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	path := api.webhook(`{"url": "` + url + `", "events": ["push"]}`)
	api.do("POST", "/api/v1/repos/r1/events", `{"eventType": "push", "payload": {}}`).ok(http.StatusAccepted)
	<-arrived
	release <- struct{}{}
	redeliver := path + "/deliveries/" + (<-api.made).ID + "/redeliver"

	ctx, hangUp := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "POST", api.url+redeliver, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	gone := make(chan error, 1)
	go func() {
		resp, err := api.client.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		gone <- err
	}()
	<-arrived
	hangUp()
	if err := <-gone; err == nil {
		t.Error("there was an answer")
	}
	release <- struct{}{}
	if d := <-api.made; !d.Success || d.Trigger != posthorn.TriggerRedelivery {
		t.Errorf("%+v", d)
	}

	answers := make(chan answer, 1)
	go func() { answers <- api.do("POST", redeliver, "") }()
	<-arrived
	stopping, cancel := context.WithCancel(t.Context())
	cancel()
	_ = api.dispatcher.Stop(stopping) // cuts the attempt off
	a := <-answers
	a.problem(http.StatusServiceUnavailable, "goes on", "")
	if again := a.header.Get("Retry-After"); again != "" {
		t.Errorf("Retry-After %q has the client ask for one more", again)
	}
	if logged := api.logged.String(); logged != "" {
		t.Errorf("logged: %s", logged)
	}
}

// Case 35 as far as this package has a part in it: a payload that is pruned is null.
func TestShowDeliveryWithoutPayload(t *testing.T) {
	shown := showDelivery(&posthorn.Delivery{})
	if shown.Payload != nil || shown.NextAttemptAt != nil || shown.Request != nil || shown.Response != nil || shown.Timings != nil {
		t.Errorf("%+v", shown)
	}
}

func TestMaskHeader(t *testing.T) {
	h := http.Header{}
	secret := []string{
		"Set-Cookie", "Cookie", "Authorization", "Proxy-Authorization", "Authentication-Info", "X-Auth-Key", "X-Csrf-Token",
		"X-Api-Key", "Apikey", "X-Client-Secret", "X-Session-Id", "X-Signature", "X-Amz-Security-Token", "x-set-cookie",
	}
	open := []string{"Content-Type", "Www-Authenticate", "X-Author", "Date", "X-Request-Id", "Etag", "Idempotency-Key"}
	for _, name := range append(secret, open...) {
		h[name] = []string{"value"}
	}
	masked := maskHeader(h)
	for _, name := range secret {
		if masked[name][0] != "***" {
			t.Errorf("%s is shown", name)
		}
	}
	for _, name := range open {
		if masked[name][0] != "value" {
			t.Errorf("%s is masked", name)
		}
	}
	if h["Set-Cookie"][0] != "value" || len(h) != len(masked) {
		t.Error("the header itself was changed")
	}
	if masked = maskHeader(nil); masked == nil {
		t.Error("no header is null")
	}
}

// A redelivery may take longer than the server lets requests take.
func TestRedeliverOutlastsTheServersLimits(t *testing.T) {
	const limit = 100 * time.Millisecond
	api := startAPI(t, posthorn.Config{RetryPolicy: &posthorn.RetryPolicy{Delays: []time.Duration{4 * limit}}})
	failed := false
	url := receiver(t, func(w http.ResponseWriter, _ *http.Request) {
		if failed = !failed; failed {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	path := api.webhook(`{"url": "` + url + `", "events": ["push"]}`)
	api.do("POST", "/api/v1/repos/r1/events", `{"eventType": "push", "payload": {}}`).ok(http.StatusAccepted)
	original := <-api.made
	<-api.made
	s := httptest.NewUnstartedServer(api)
	s.Config.ReadTimeout, s.Config.WriteTimeout = limit, limit
	s.Config.ReadHeaderTimeout = time.Minute // the limits are about what follows, and on a busy machine they are over before
	s.Start()
	defer s.Close()
	api.url = s.URL
	got := api.do("POST", path+"/deliveries/"+original.ID+"/redeliver", "").ok(http.StatusOK)
	if got["success"] != true {
		t.Errorf("answer %v", got)
	}
	<-api.made
	<-api.made
}
