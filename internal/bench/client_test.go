package bench

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// event is what the REST API takes.
type event struct {
	EventType string          `json:"eventType"`
	Payload   json.RawMessage `json:"payload"`
}

func TestClient(t *testing.T) {
	var posted atomic.Int64
	take := func(w http.ResponseWriter, r *http.Request, body any, events func() []event) {
		dec := json.NewDecoder(r.Body)
		dec.DisallowUnknownFields()
		if err := dec.Decode(body); err != nil || r.Header.Get("Authorization") != "Bearer token" {
			t.Errorf("%s: %v, with %v", r.URL, err, r.Header)
		}
		for _, e := range events() {
			if _, ok := sentAt(e.Payload); !ok || e.EventType != measured {
				t.Errorf("%s: the event is %+v", r.URL, e)
			}
			posted.Add(1)
		}
		w.WriteHeader(http.StatusAccepted)
	}
	api := http.NewServeMux()
	api.HandleFunc("POST /repos/a/events", func(w http.ResponseWriter, r *http.Request) {
		var e event
		take(w, r, &e, func() []event { return []event{e} })
	})
	api.HandleFunc("POST /repos/a/events:batch", func(w http.ResponseWriter, r *http.Request) {
		var batch struct {
			Events []event `json:"events"`
		}
		take(w, r, &batch, func() []event { return batch.Events })
	})
	server := httptest.NewServer(api)
	defer server.Close()
	post := func(repo string, batch int) (clientAnswer, error) {
		c := client{clientRequest{
			URL: server.URL + "/repos/", Token: "token", Repos: []string{repo}, Batch: batch, Connections: 2, Duration: 50 * time.Millisecond,
		}}
		return c.run(t.Context())
	}
	for _, batch := range []int{1, 100} {
		posted.Store(0)
		got, err := post("a", batch)
		if err != nil || got.Events == 0 || got.Events != posted.Load() || got.Events%int64(batch) != 0 {
			t.Errorf("in batches of %d: %+v, %v, and %d were posted", batch, got, err, posted.Load())
		}
	}
	if _, err := post("none", 100); err == nil || !strings.Contains(err.Error(), "no route to post batches") {
		t.Errorf("an API without batches gives %v", err)
	}
	if _, err := post("none", 1); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("an API that refuses gives %v", err)
	}
}
