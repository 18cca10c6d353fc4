package posthorn_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/sender"
)

// orderedWebhook is a webhook of r1 that wants its events in an order.
func (w *world) orderedWebhook(url, ordering string) posthorn.Webhook {
	w.t.Helper()
	hook, err := w.CreateWebhook(w.t.Context(), posthorn.NewWebhook{
		RepoID: "r1", URL: url, Events: []string{"push"}, Options: posthorn.Options{Ordering: ordering},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return hook
}

// about dispatches an event with an ordering key.
func (w *world) about(key, id string) {
	w.t.Helper()
	_, err := w.Dispatch(w.t.Context(), posthorn.Event{
		RepoID: "r1", ID: id, Type: "push", Payload: json.RawMessage(`{}`), Attributes: posthorn.Attributes{OrderingKey: key},
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// sentTo are the ids of the events that a URL got, in the order of the requests.
func (w *world) sentTo(url string) string {
	var ids []string
	for _, r := range w.seen(url) {
		ids = append(ids, r.eventID)
	}
	return strings.Join(ids, " ")
}

// refusing answers 500 to the events named.
func refusing(ids ...string) func(request) sender.Outcome {
	return func(r request) sender.Outcome {
		pass(10 * time.Millisecond)
		for _, id := range ids {
			if r.eventID == id {
				return sender.Outcome{Status: 500}
			}
		}
		return sender.Outcome{Status: 200}
	}
}

// A failing event holds back those behind it until its last attempt was made, of a webhook that wants strict order, and no other.
func TestStrictOrder(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		strict := w.orderedWebhook(good, posthorn.OrderingStrict)
		w.webhook("r1", bad)
		w.answers(refusing("b"))
		for _, id := range []string{"a", "b", "c", "d"} {
			w.dispatch("r1", id)
		}
		pass(900 * time.Millisecond)
		if got := w.sentTo(good); got != "a b" {
			t.Errorf("before the retry it got %q", got)
		}
		if got := w.sentTo(bad); len(strings.Fields(got)) != 4 {
			t.Errorf("the other got %q", got)
		}
		if _, err := w.Ping(t.Context(), "r1", strict.ID); err != nil {
			t.Fatal(err)
		}
		pass(100 * time.Millisecond)
		if seen := w.seen(good); seen[len(seen)-1].eventType != posthorn.EventPing {
			t.Error("a ping waits behind what failed")
		}
		pass(time.Minute)
		w.dispatch("r1", "e")
		pass(2 * time.Second)
		got := strings.Fields(w.sentTo(good))
		got = append(got[:2], got[3:]...) // without the ping
		if strings.Join(got, " ") != "a b b b c d e" {
			t.Errorf("it got %q", got)
		}
		if most := w.most[good]; most != 1 {
			t.Errorf("%d at once", most)
		}
	})
}

// A failing event holds back those of its key, of a webhook that wants order by key.
func TestOrderByKey(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		w.orderedWebhook(good, posthorn.OrderingKey)
		w.answers(refusing("x1"))
		for _, e := range []string{"x1", "x2", "y1", "y2", "-1", "-2"} {
			w.about(strings.Trim(e[:1], "-"), e)
		}
		pass(900 * time.Millisecond)
		got := w.sentTo(good)
		if strings.Contains(got, "x2") || len(strings.Fields(got)) != 5 || strings.Index(got, "y1") > strings.Index(got, "y2") {
			t.Errorf("before the retry it got %q", got)
		}
		pass(time.Minute)
		if got = w.sentTo(good); !strings.HasSuffix(got, "x1 x1 x2") {
			t.Errorf("it got %q", got)
		}
	})
}

// The order holds when a node dies, and with several of them.
func TestOrderAcrossNodes(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		w.orderedWebhook(good, posthorn.OrderingStrict)
		b := w.another("B")
		w.answers(refusing("e3", "e17"))
		const events = 40
		for i := range events {
			[]*world{w, b}[i%2].dispatch("r1", fmt.Sprint("e", i))
			if i == events/2 {
				pass(time.Second)
				b.crash()
				b = w.another("C")
			}
		}
		pass(2 * time.Minute)
		last, sent := "", 0
		for _, id := range strings.Fields(w.sentTo(good)) {
			if id == last { // a retry, or what the dead node had sent already
				continue
			}
			if want := fmt.Sprint("e", sent); id != want {
				t.Fatalf("%s came instead of %s: %s", id, want, w.sentTo(good))
			}
			last = id
			sent++
		}
		if sent != events {
			t.Errorf("%d of %d events came: %s", sent, events, w.sentTo(good))
		}
	})
}

// A webhook keeps what is dispatched while it is inactive, if it is told to.
func TestKeepWhileInactive(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		keeps, err := w.CreateWebhook(t.Context(), posthorn.NewWebhook{
			RepoID: "r1", URL: good, Events: []string{"push"}, Options: posthorn.Options{KeepWhileInactive: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		forgets := w.webhook("r1", bad)
		set := func(active bool) {
			t.Helper()
			for _, hook := range []posthorn.Webhook{keeps, forgets} {
				if _, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, posthorn.WebhookPatch{Active: &active}); err != nil {
					t.Fatal(err)
				}
			}
		}
		set(false)
		for i := range 100 {
			if r := w.dispatch("r1", fmt.Sprint("e", i)); r.Deliveries != 1 {
				t.Fatalf("it goes to %d webhooks", r.Deliveries)
			}
		}
		pass(time.Minute)
		if w.sentTo(good) != "" {
			t.Error("something was sent while it is inactive")
		}
		explained, _, err := w.Explain(t.Context(), "r1", "e0", keeps.ID)
		if err != nil || explained[0].State != posthorn.EventPaused || !strings.Contains(explained[0].Reason, "it waits until the webhook is active again") {
			t.Errorf("explained as %+v, %v", explained, err)
		}
		set(true)
		pass(10 * time.Second)
		if got := len(w.seen(good)); got != 100 || w.sentTo(bad) != "" {
			t.Errorf("%d were sent, and to the other %q", got, w.sentTo(bad))
		}
	})
}
