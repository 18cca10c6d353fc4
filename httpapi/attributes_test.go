package httpapi

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/musehub/posthorn"
)

const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// A trace travels from who posts an event to the receiver, and one that isn't valid doesn't.
func TestTrace(t *testing.T) {
	api := startAPI(t, posthorn.Config{})
	got := make(chan http.Header, 10)
	api.webhook(fmt.Sprintf(`{"url":%q,"events":["*"]}`, receiver(t, func(_ http.ResponseWriter, r *http.Request) { got <- r.Header })))
	for name, test := range map[string]struct{ parent, state, wantParent, wantState string }{
		"both":             {trace, "vendor=a,other=b", trace, "vendor=a,other=b"},
		"no state":         {trace, "", trace, ""},
		"no parent":        {"", "vendor=a", "", ""},
		"upper case":       {strings.ToUpper(trace), "vendor=a", "", ""},
		"no trace id":      {"00-00000000000000000000000000000000-b7ad6b7169203331-01", "", "", ""},
		"no span id":       {"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", "", "", ""},
		"too long":         {trace + "-1", "", "", ""},
		"a later version":  {"cc" + trace[2:] + "-what.the-future", "", "cc" + trace[2:] + "-what.the-future", ""},
		"no version":       {"ff" + trace[2:], "", "", ""},
		"misplaced dashes": {strings.Replace(trace, "-", "0", 1), "", "", ""},
		"a long state":     {trace, "a=" + strings.Repeat("b", 600), trace, ""},
	} {
		t.Run(name, func(t *testing.T) {
			posted := api.do("POST", "/api/v1/repos/r1/events", `{"eventType":"push","payload":{},"orderingKey":"k"}`,
				"traceparent: "+test.parent, "tracestate: "+test.state).ok(http.StatusAccepted)
			header := <-got
			if header.Get("traceparent") != test.wantParent || header.Get("tracestate") != test.wantState || header.Get("Posthorn-Depth") != "" {
				t.Errorf("the receiver got %v", header)
			}
			d := <-api.made
			event := api.do("GET", "/api/v1/repos/r1/events/"+d.EventID, "").ok(http.StatusOK)
			parent, _ := event["traceparent"].(string)
			if parent != test.wantParent || event["orderingKey"] != "k" || event["eventId"] != posted["eventId"] {
				t.Errorf("the event is %v", event)
			}
			if shown := api.dispatcher.RequestHeader(d)[strings.ToLower("Traceparent")]; strings.Join(shown, "") != test.wantParent {
				t.Errorf("the delivery shows %v", shown)
			}
		})
	}
	api.do("POST", "/api/v1/repos/r1/events", `{"eventType":"push","payload":{},"orderingKey":"`+strings.Repeat("k", 257)+`"}`).
		problem(http.StatusUnprocessableEntity, "at most 256", "orderingKey")
}

// A webhook that leads back to where its events come from is stopped, and its log says why.
func TestLoop(t *testing.T) {
	api := startAPI(t, posthorn.Config{RetryPolicy: &posthorn.RetryPolicy{}})
	payload := `{}`
	for range 10 {
		payload = `{"eventType":"push","payload":` + payload + `}`
	}
	api.webhook(fmt.Sprintf(`{"url":"%s/api/v1/repos/r1/events","events":["*"],"headers":{"Authorization":"Bearer %s"}}`, api.url, token))
	api.do("POST", "/api/v1/repos/r1/events", payload).ok(http.StatusAccepted)
	failed := 0
	for range posthorn.MaxDepth + 1 { // in no certain order
		d := <-api.made
		if d.Exchange.Remote != "loopback" {
			t.Errorf("the remote address is %q", d.Exchange.Remote)
		}
		if d.Success {
			continue
		}
		failed++
		if d.ResponseStatus != http.StatusLoopDetected || !strings.Contains(d.ResponseBody, "a webhook leads back") {
			t.Errorf("%d %s", d.ResponseStatus, d.ResponseBody)
		}
	}
	if events := api.do("GET", "/api/v1/repos/r1/events", "").ok(http.StatusOK); failed != 1 || events["total"] != float64(posthorn.MaxDepth+1) {
		t.Errorf("%d deliveries failed, and there are %v events", failed, events["total"])
	}
}

// A webhook whose URL is an operation that sends to it gets one delivery, and no other.
func TestLoopByHand(t *testing.T) {
	for _, operation := range []string{"ping", "test", "replays", "deliveries/{delivery}/redeliver"} {
		t.Run(operation, func(t *testing.T) {
			api := startAPI(t, posthorn.Config{RetryPolicy: &posthorn.RetryPolicy{}})
			hook := api.webhook(fmt.Sprintf(`{"url":"%s/","events":["push"],"headers":{"Authorization":"Bearer %s","Prefer":"respond-async"}}`, api.url, token))
			api.do("POST", hook+"/ping", "").ok(http.StatusAccepted)
			first := <-api.made
			path := hook + "/" + strings.ReplaceAll(operation, "{delivery}", first.ID)
			api.do("PATCH", hook, fmt.Sprintf(`{"url":"%s%s"}`, api.url, path)).ok(http.StatusOK)
			api.do("POST", "/api/v1/repos/r1/events", `{"eventType":"push","payload":{}}`).ok(http.StatusAccepted)
			if d := <-api.made; d.ResponseStatus != http.StatusLoopDetected || !strings.Contains(d.ResponseBody, "a webhook leads back") {
				t.Errorf("%d %s", d.ResponseStatus, d.ResponseBody)
			}
		})
	}
}
