package httpapi

import (
	"net/http"
	"strings"
	"testing"

	"github.com/musehub/posthorn"
)

// A receiver asks for its events, and acknowledges them with the next request.
func TestPoll(t *testing.T) {
	api := startAPI(t, posthorn.Config{})
	path := api.webhook(`{"polled":true,"events":["push"]}`)
	shown := api.do("GET", path, "").ok(http.StatusOK)
	if shown["polled"] != true || shown["url"] != "" {
		t.Errorf("the webhook is shown as %v", shown)
	}
	a := api.do("GET", path+"/poll", "")
	api.matches("pollWebhook", a)
	if got := a.ok(http.StatusOK); len(got["events"].([]any)) != 0 || got["cursor"] != nil {
		t.Errorf("got %v", got)
	}
	posted := api.do("POST", "/api/v1/repos/r1/events", `{"eventType":"push","payload":{"a": 1}}`).ok(http.StatusAccepted)
	a = api.do("GET", path+"/poll?wait=30s", "")
	api.matches("pollWebhook", a)
	got := a.ok(http.StatusOK)
	event := got["events"].([]any)[0].(map[string]any)
	if event["eventId"] != posted["eventId"] || event["payload"] != `{"a": 1}` || event["trigger"] != "automatic" || event["deliveryId"] == "" {
		t.Errorf("got %v", event)
	}
	next := api.do("GET", path+"/poll?cursor="+got["cursor"].(string), "").ok(http.StatusOK)
	if len(next["events"].([]any)) != 0 {
		t.Errorf("once it is acknowledged: %v", next)
	}
	if d := <-api.made; d.ID != event["deliveryId"] || !d.Success {
		t.Errorf("the log has %+v", d)
	}
	logged := api.do("GET", path+"/deliveries/"+event["deliveryId"].(string), "").ok(http.StatusOK)
	if headers := logged["request"].(map[string]any)["headers"].(map[string]any); len(headers) != 0 {
		t.Errorf("nothing was requested, with the headers %v", headers)
	}
	for query, field := range map[string]string{"wait=long": "wait", "wait=2m": "wait", "limit=0": "limit", "limit=201": "limit", "cursor=AQ": "cursor"} {
		api.do("GET", path+"/poll?"+query, "").problem(http.StatusUnprocessableEntity, "", field)
	}
	api.do("POST", "/api/v1/repos/r1/webhooks", `{"events":["push"]}`).problem(http.StatusUnprocessableEntity, "it is missing", "url")
	api.do("GET", strings.Replace(path, "r1", "r2", 1)+"/poll", "").problem(http.StatusNotFound, "Webhook not found", "")
	api.do("GET", api.webhook(`{"url":"http://127.0.0.1:9/","events":["push"]}`)+"/poll", "").problem(http.StatusConflict, "not polled", "")
}
