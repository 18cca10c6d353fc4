package posthorn_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/musehub/posthorn"
)

func catalogue() []posthorn.EventType {
	return []posthorn.EventType{
		{
			Name: "push", Description: "Commits were pushed", Schema: json.RawMessage(`{"type":"object","required":["branch"]}`),
			Examples: []json.RawMessage{json.RawMessage(`{"branch":"main"}`)},
		},
		{Name: "tag"},
	}
}

// Payloads that are not as the schema of their type says are refused if that is asked for, however they are dispatched.
func TestSchemas(t *testing.T) {
	for _, enforced := range []bool{true, false} {
		inWorld(t, posthorn.Config{Catalogue: catalogue(), EnforceSchemas: enforced}, func(t *testing.T, w *world) {
			w.webhook("r1", good)
			for _, test := range []struct {
				eventType, payload string
				fits               bool
			}{
				{"push", `{"branch":"main"}`, true},
				{"push", `{}`, false},
				{"push", `[]`, false},
				{"tag", `[]`, true},
			} {
				event := posthorn.Event{RepoID: "r1", Type: test.eventType, Payload: json.RawMessage(test.payload)}
				_, err := w.Dispatch(t.Context(), event)
				_, batchErr := w.DispatchBatch(t.Context(), []posthorn.Event{{RepoID: "r1", Type: "tag", Payload: 1}, event})
				if test.fits || !enforced {
					if err != nil || batchErr != nil {
						t.Errorf("%s %s: %v, %v", test.eventType, test.payload, err, batchErr)
					}
					continue
				}
				if posthorn.ErrorCode(err) != posthorn.CodeInvalid || !strings.HasPrefix(err.Error(), "payload: it is not as the schema of push says: it: ") ||
					!strings.HasPrefix(batchErr.Error(), "events[1].payload: ") {
					t.Errorf("%s %s: %v, %v", test.eventType, test.payload, err, batchErr)
				}
			}
			if _, err := w.Ping(t.Context(), "r1", w.webhook("r1", good).ID); err != nil {
				t.Error(err)
			}
			if _, err := w.Dispatch(t.Context(), posthorn.Event{RepoID: "r1", Type: "issue", Payload: 1}); posthorn.ErrorCode(err) != posthorn.CodeInvalid {
				t.Errorf("a type that is not in the catalogue: %v", err)
			}
			if got := w.Catalogue(); len(got) != 2 || got[0].Description != "Commits were pushed" || got[1].Name != "tag" {
				t.Errorf("the catalogue is %+v", got)
			}
		})
	}
}

// A test goes to one webhook, with the payload given or the catalogue's example, and is never taken for an event of the others.
func TestSendTest(t *testing.T) {
	inWorld(t, posthorn.Config{Catalogue: catalogue(), EnforceSchemas: true}, func(t *testing.T, w *world) {
		hook, other := w.webhook("r1", good, "tag"), w.webhook("r1", bad, "push")
		for _, active := range []bool{false, true} {
			if _, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, posthorn.WebhookPatch{Active: &active}); err != nil {
				t.Fatal(err)
			}
			for _, payload := range []any{nil, json.RawMessage(`{"branch":"dev"}`)} {
				if r, err := w.SendTest(t.Context(), "r1", hook.ID, "push", payload); err != nil || r.Deliveries != 1 {
					t.Errorf("%+v, %v", r, err)
				}
			}
		}
		pass(time.Second)
		seen := w.seen("")
		if len(seen) != 4 || seen[0].url != good || seen[0].eventType != "push" || seen[0].body != `{"branch":"main"}` || seen[1].body != `{"branch":"dev"}` {
			t.Fatalf("requests %+v", seen)
		}
		if d := w.deliveries(hook)[0]; d.Trigger != posthorn.TriggerTest || !d.Success {
			t.Errorf("the delivery is %+v", d)
		}
		w.wantReplay(w.replay(other, posthorn.ReplayMissed, func(of *posthorn.ReplayRange) { of.DryRun = true }), posthorn.ReplayDone, 0, 0, 0)
		x, _, err := w.Explain(t.Context(), "r1", seen[0].eventID, other.ID)
		if err != nil || x[0].State != posthorn.EventNotSubscribed || !strings.Contains(x[0].Reason, "a test") {
			t.Errorf("explained as %+v, %v", x, err)
		}
		for field, send := range map[string]func() error{
			"eventType": func() error {
				_, err := w.SendTest(t.Context(), "r1", hook.ID, "issue", json.RawMessage(`{}`))
				return err
			},
			"unknown": func() error { _, err := w.SendTest(t.Context(), "r1", hook.ID, "issue", nil); return err },
			"payload": func() error { _, err := w.SendTest(t.Context(), "r1", hook.ID, "tag", nil); return err },
			"schema": func() error {
				_, err := w.SendTest(t.Context(), "r1", hook.ID, "push", json.RawMessage(`{}`))
				return err
			},
		} {
			if err := send(); posthorn.ErrorCode(err) != posthorn.CodeInvalid || !strings.Contains(err.Error(), field) {
				t.Errorf("%s: %v", field, err)
			}
		}
		if _, err := w.SendTest(t.Context(), "r2", hook.ID, "push", nil); posthorn.ErrorCode(err) != posthorn.CodeNotFound {
			t.Errorf("of another repo's webhook: %v", err)
		}
		// What is dispatched is no test, whatever it says.
		if _, err := w.Dispatch(t.Context(), posthorn.Event{RepoID: "r1", ID: "real", Type: "tag", Payload: 1, Attributes: posthorn.Attributes{Test: true}}); err != nil {
			t.Fatal(err)
		}
		if e, err := w.Event(t.Context(), "r1", "real"); err != nil || e.Test {
			t.Errorf("the event is %+v, %v", e, err)
		}
	})
}

// A catalogue that is wrong is refused at the start, and says where.
func TestCatalogueRefused(t *testing.T) {
	for want, change := range map[string]func(*posthorn.Config){
		`event type "tag": it is none of Config.EventTypes`:    func(c *posthorn.Config) { c.EventTypes = []string{"push"} },
		`event type "push": it stands there twice`:             func(c *posthorn.Config) { c.Catalogue[1].Name = "push" },
		`event type "push": the schema is not valid JSON`:      func(c *posthorn.Config) { c.Catalogue[0].Schema = json.RawMessage(`{`) },
		`event type "push": examples[0]: it: missing property`: func(c *posthorn.Config) { c.Catalogue[0].Examples[0] = json.RawMessage(`{}`) },
		`event type "push": examples[0]: it is not valid JSON`: func(c *posthorn.Config) { c.Catalogue[0].Examples[0] = json.RawMessage(`{`) },
		`Config.EventTypes: "a b": an event type has only`:     func(c *posthorn.Config) { c.Catalogue[1].Name = "a b" },
	} {
		cfg := posthorn.Config{Catalogue: catalogue()}
		change(&cfg)
		_, err := posthorn.New(nil, cfg)
		if posthorn.ErrorCode(err) != posthorn.CodeInvalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
