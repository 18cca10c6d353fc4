package httpapi

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/musehub/posthorn"
)

// A webhook that was made later gets what it has missed.
func TestReplays(t *testing.T) {
	api := startAPI(t, posthorn.Config{KeepAllEvents: true})
	since := time.Now().Add(-time.Minute).UTC().Format(time.RFC3339)
	for i := range 3 {
		api.do("POST", "/api/v1/repos/r1/events", fmt.Sprintf(`{"eventType":"push","eventId":"e%d","payload":{}}`, i)).ok(http.StatusAccepted)
	}
	url := receiver(t, func(http.ResponseWriter, *http.Request) {})
	hook := api.webhook(`{"url":"` + url + `","events":["push"]}`)
	path := hook + "/replays"
	dry := api.do("POST", path, `{"since":"`+since+`","only":"missed","dryRun":true}`)
	api.matches("startReplay", dry)
	if got := dry.ok(http.StatusCreated); got["matched"] != 3.0 || got["state"] != "done" || got["succeeded"] != 0.0 || got["dryRun"] != true {
		t.Errorf("a dry run says %v", got)
	}
	made := api.do("POST", path, `{"since":"`+since+`","until":"2999-01-01T00:00:00Z","only":"missed","eventTypes":["push"]}`).ok(http.StatusCreated)
	for range 3 {
		if d := <-api.made; d.Trigger != posthorn.TriggerReplay || !d.Success {
			t.Errorf("delivered %+v", d)
		}
	}
	var one map[string]any
	for one["state"] != "done" {
		a := api.do("GET", path+"/"+made["replayId"].(string), "")
		api.matches("getReplay", a)
		one = a.ok(http.StatusOK)
	}
	if one["matched"] != 3.0 || one["succeeded"] != 3.0 || one["failed"] != 0.0 || one["endedAt"] == nil || one["only"] != "missed" {
		t.Errorf("in the end it is %v", one)
	}
	a := api.do("GET", path+"?limit=1", "")
	api.matches("listReplays", a)
	first := a.ok(http.StatusOK)
	if list := first["replays"].([]any); len(list) != 1 || list[0].(map[string]any)["replayId"] != made["replayId"] {
		t.Errorf("listed: %v", first)
	}
	last := api.do("GET", path+"?limit=1&cursor="+first["nextCursor"].(string), "").ok(http.StatusOK)
	if list := last["replays"].([]any); len(list) != 1 || last["nextCursor"] != nil {
		t.Errorf("the second page: %v", last)
	}
	a = api.do("POST", path+"/"+made["replayId"].(string)+"/cancel", "")
	api.matches("cancelReplay", a)
	if got := a.ok(http.StatusOK); got["state"] != "done" {
		t.Errorf("canceled when it was over: %v", got)
	}
	log := api.do("GET", hook+"/deliveries", "").ok(http.StatusOK)
	if d := log["deliveries"].([]any)[0].(map[string]any); d["trigger"] != "replay" {
		t.Errorf("the log has %v", d)
	}

	for body, field := range map[string]string{
		`{}`:                                             "since",
		`{"since":"yesterday"}`:                          "since",
		`{"since":"2999-01-01T00:00:00Z"}`:               "since",
		`{"since":"` + since + `","only":""}`:            "only",
		`{"since":"` + since + `","only":"some"}`:        "only",
		`{"since":"` + since + `","until":"x"}`:          "until",
		`{"since":"` + since + `","eventTypes":[]}`:      "eventTypes",
		`{"since":"` + since + `","eventTypes":["pus"]}`: "eventTypes",
	} {
		api.do("POST", path, body).problem(http.StatusUnprocessableEntity, "", field)
	}
	other := strings.Replace(path, "r1", "r2", 1)
	api.do("POST", other, `{"since":"`+since+`"}`).problem(http.StatusNotFound, "Webhook not found", "")
	api.do("GET", other, "").problem(http.StatusNotFound, "Webhook not found", "")
	api.do("GET", path+"/unknown", "").problem(http.StatusNotFound, "Replay not found", "")
	api.do("POST", path+"/unknown/cancel", "").problem(http.StatusNotFound, "Replay not found", "")
	api.do("GET", path+"?cursor=x", "").problem(http.StatusUnprocessableEntity, "", "cursor")
	api.do("PATCH", hook, `{"active":false}`).ok(http.StatusOK)
	api.do("POST", path, `{"since":"`+since+`"}`).problem(http.StatusConflict, "the webhook is not active", "")
}
