package posthorn_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/sender"
)

// Each thing that can become of an event has its state and its reason.
func TestExplain(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		began, ids := time.Now(), map[string]string{}
		create := func(name string, events []string, o posthorn.Options) {
			t.Helper()
			hook, err := w.CreateWebhook(t.Context(), posthorn.NewWebhook{
				RepoID: "r1", URL: "https://" + name + ".example/", Events: events, Options: o,
			})
			if err != nil {
				t.Fatal(err)
			}
			ids[name] = hook.ID
		}
		push := []string{"push"}
		create("fine", push, posthorn.Options{})
		create("fails", push, posthorn.Options{RetryPolicy: "none"})
		create("hangs", push, posthorn.Options{RetryPolicy: "1s,1h"})
		create("gone", push, posthorn.Options{})
		create("stopped", push, posthorn.Options{RetryPolicy: "1h"})
		create("inactive", push, posthorn.Options{})
		create("other", []string{"issue", "tag"}, posthorn.Options{})
		create("filtered", push, posthorn.Options{Filter: "payload.n == 2"})
		create("broken", push, posthorn.Options{Filter: "payload.missing == 2"})
		create("slow", push, posthorn.Options{MaxPerSecond: 1})
		deactivate := func(name string) {
			t.Helper()
			if _, err := w.UpdateWebhook(t.Context(), "r1", ids[name], posthorn.WebhookPatch{Active: new(false)}); err != nil {
				t.Fatal(err)
			}
		}
		deactivate("inactive")
		w.answers(func(r request) sender.Outcome {
			switch {
			case strings.Contains(r.url, "fails"):
				return sender.Outcome{Status: 418}
			case strings.Contains(r.url, "hangs"):
				return sender.Outcome{Body: "timeout: response headers: too late"}
			case strings.Contains(r.url, "gone"):
				return sender.Outcome{Status: 410}
			case strings.Contains(r.url, "stopped"):
				return sender.Outcome{Status: 500}
			}
			return ok200
		})
		for _, id := range []string{"e0", "e1", "e2", "e3", "explained"} { // the slow one has to wait
			if _, err := w.Dispatch(t.Context(), posthorn.Event{ID: id, RepoID: "r1", Type: "push", Payload: json.RawMessage(`{"n":1}`)}); err != nil {
				t.Fatal(err)
			}
		}
		pass(2500 * time.Millisecond)
		deactivate("stopped")
		create("late", push, posthorn.Options{})

		all, _, err := w.Explain(t.Context(), "r1", "explained", "")
		if err != nil || len(all) != len(ids) {
			t.Fatalf("%+v, %v", all, err)
		}
		for name, want := range map[string]struct {
			state    posthorn.EventState
			reason   string
			attempts int
			next     time.Duration // from the last attempt, or from the dispatch
		}{
			"fine":     {posthorn.EventDelivered, "the receiver answered 200 at attempt 1", 1, 0},
			"fails":    {posthorn.EventFailed, "attempt 1 was the last: the receiver answered 418", 1, 0},
			"hangs":    {posthorn.EventRetrying, "attempt 2 failed: timeout: response headers: too late", 2, time.Hour},
			"stopped":  {posthorn.EventPaused, "attempt 1 failed: the receiver answered 500; it waits until the webhook is active again", 1, 0},
			"inactive": {posthorn.EventMissed, "the webhook is not active", 0, 0},
			"other":    {posthorn.EventNotSubscribed, "does not subscribe to push, but to issue, tag", 0, 0},
			"filtered": {posthorn.EventFiltered, "is not true for the event: payload.n == 2", 0, 0},
			"broken":   {posthorn.EventFiltered, "can't be evaluated for the event: no such key: missing", 0, 0},
			"slow":     {posthorn.EventWaiting, "the first attempt is yet to be made; the webhook gets requests at most 1 times a second (maxPerSecond; events before it: 1)", 0, 4 * time.Second},
			"late":     {posthorn.EventBefore, "the webhook was made after the event", 0, 0},
			"gone":     {posthorn.EventPaused, "it waits until the webhook is active again (the receiver answered 410 Gone)", 0, 0},
		} {
			one, _, err := w.Explain(t.Context(), "r1", "explained", ids[name])
			if err != nil || len(one) != 1 {
				t.Fatalf("%s: %+v, %v", name, one, err)
			}
			x := one[0]
			for _, other := range all {
				if other.WebhookID == x.WebhookID && other != x {
					t.Errorf("%s: alone %+v, among all %+v", name, x, other)
				}
			}
			if name == "gone" && (x.State == posthorn.EventFailed || x.State == posthorn.EventMissed) {
				continue // it was on its way before the webhook was disabled, or dispatched after that
			}
			if x.State != want.state || !strings.Contains(x.Reason, want.reason) || x.Attempts != want.attempts || (x.LastID == "") != (x.Attempts == 0) {
				t.Errorf("%s: %+v, want %+v", name, x, want)
			}
			if x.NextAttemptAt.IsZero() != (want.next == 0) || x.LastID == "" && want.next != 0 && x.NextAttemptAt.Sub(began) != want.next {
				t.Errorf("%s: the next attempt is due at %v", name, x.NextAttemptAt)
			}
			if x.LastID != "" {
				d, err := w.Delivery(t.Context(), "r1", ids[name], x.LastID)
				if err != nil || d.Attempt != x.Attempts || d.EventID != "explained" || want.next != 0 && x.NextAttemptAt.Sub(d.DeliveredAt) != want.next {
					t.Errorf("%s: the last delivery is %+v, %v", name, d, err)
				}
			}
		}
		for _, c := range [][3]string{{"r1", "unknown", ""}, {"r2", "explained", ""}, {"r1", "explained", "unknown"}} {
			if _, _, err := w.Explain(t.Context(), c[0], c[1], c[2]); posthorn.ErrorCode(err) != posthorn.CodeNotFound {
				t.Errorf("%v: %v", c, err)
			}
		}
	})
}

// What is sent again, and what the log has forgotten, is told apart from what is sent for the first time.
func TestExplainLater(t *testing.T) {
	inWorld(t, posthorn.Config{KeepAllEvents: true, Retention: time.Hour}, func(t *testing.T, w *world) {
		want := func(event string, hook posthorn.Webhook, state posthorn.EventState, reason string) {
			t.Helper()
			x, _, err := w.Explain(t.Context(), "r1", event, hook.ID)
			if err != nil || x[0].State != state || !strings.Contains(x[0].Reason, reason) {
				t.Errorf("%s: %+v, %v; want %s, %s", event, x, err, state, reason)
			}
		}
		create := func(url string, o posthorn.Options) posthorn.Webhook {
			t.Helper()
			n := posthorn.NewWebhook{RepoID: "r1", URL: url, Events: []string{"push"}, Options: o}
			if o.Polled {
				n.URL = ""
			}
			hook, err := w.CreateWebhook(t.Context(), n)
			if err != nil {
				t.Fatal(err)
			}
			return hook
		}
		w.answers(func(request) sender.Outcome { return sender.Outcome{Status: 500} })
		w.dispatch("r1", "early")
		pass(time.Second)
		hook := create(good, posthorn.Options{RetryPolicy: "none"})
		want("early", hook, posthorn.EventBefore, "made after the event")
		w.replay(hook, posthorn.ReplayMissed, nil)
		pass(time.Second)
		want("early", hook, posthorn.EventFailed, "a redelivery or a replay")

		w.dispatch("r1", "failed")
		pass(time.Second)
		want("failed", hook, posthorn.EventFailed, "attempt 1 was the last")
		w.answers(hang(10 * time.Second))
		w.replay(hook, posthorn.ReplayFailed, nil)
		pass(time.Second)
		want("early", hook, posthorn.EventRetrying, "attempt 1 of a replay is yet to be made; it is being sent, or about to be")
		want("failed", hook, posthorn.EventRetrying, "attempt 1 was the last: the receiver answered 500; attempt 1 of a replay is yet to be made; it is due (on this node, requests to the webhook under way: 1, events before it: 0)")
		pass(time.Minute)
		w.answers(func(request) sender.Outcome {
			w.update(hook, posthorn.WebhookPatch{Active: new(false)})
			return sender.Outcome{Status: 500}
		})
		w.replay(hook, posthorn.ReplayFailed, nil)
		pass(time.Second)
		want("failed", hook, posthorn.EventPaused, "attempt 1 of a replay is yet to be made; it waits until the webhook is active again")
		w.update(hook, posthorn.WebhookPatch{Active: new(true)})
		pass(time.Minute)

		later := create("https://later.example/", posthorn.Options{})
		w.answers(func(request) sender.Outcome { return ok200 })
		w.replay(later, posthorn.ReplayMissed, nil)
		pass(time.Second)
		want("early", later, posthorn.EventDelivered, "by a redelivery or a replay; without these: the webhook was made after the event")
		w.answers(hang(10 * time.Second))
		w.replay(later, posthorn.ReplayAll, nil)
		pass(time.Second)
		want("early", later, posthorn.EventDelivered, "the webhook was made after the event; attempt 1 of a replay is yet to be made")
		pass(time.Minute)

		w.answers(func(request) sender.Outcome { return sender.Outcome{Status: 500} })
		slow := create(bad, posthorn.Options{RetryPolicy: "50m,50m,50m"})
		polled := create("", posthorn.Options{Polled: true})
		w.dispatch("r1", "old")
		pass(130 * time.Minute)
		want("old", slow, posthorn.EventRetrying, "attempt 4 is yet to be made, and those before it are no longer in the log")
		want("old", polled, posthorn.EventWaiting, "the receiver has yet to poll")
		want("old", hook, posthorn.EventForgotten, "older than the retention (--retention")
	})
}

// explained is the explanation of one event for one webhook.
func (w *world) explained(event string, hook posthorn.Webhook) posthorn.Explanation {
	w.t.Helper()
	x, more, err := w.Explain(w.t.Context(), hook.RepoID, event, hook.ID)
	if err != nil || len(x) != 1 || more {
		w.t.Fatalf("%s: %+v, %v, %v", event, x, more, err)
	}
	return x[0]
}

// Where an event has yet to be sent, what it waits for is told, and until when.
func TestExplainNext(t *testing.T) {
	inWorld(t, posthorn.Config{KeepAllEvents: true}, func(t *testing.T, w *world) {
		began := time.Now()
		want := func(event string, hook posthorn.Webhook, state posthorn.EventState, reason string, next time.Duration) {
			t.Helper()
			x := w.explained(event, hook)
			at := x.NextAttemptAt.Sub(began)
			if x.NextAttemptAt.IsZero() {
				at = 0
			}
			if x.State != state || !strings.HasSuffix(x.Reason, reason) || at != next {
				t.Errorf("%s: %+v, %v after the beginning; want %s, %s, %v", event, x, at, state, reason, next)
			}
		}

		// An order: by key, and of all.
		w.answers(func(r request) sender.Outcome {
			if r.eventID == "x1" || strings.HasPrefix(r.eventID, "held") {
				return sender.Outcome{Status: 503, Header: map[string][]string{"Retry-After": {"30"}}}
			}
			return ok200
		})
		keyed := w.orderedWebhook(good, posthorn.OrderingKey)
		strict := w.orderedWebhook(bad, posthorn.OrderingStrict)
		w.about("x", "x1")
		w.about("x", "x2")
		w.about("y", "y1")
		pass(10 * time.Second)
		want("x1", keyed, posthorn.EventRetrying, "attempt 1 failed: the receiver answered 503", 30*time.Second)
		want("x2", keyed, posthorn.EventWaiting, "the first attempt is yet to be made; it waits for event x1, which is before it in the webhook's order", 0)
		want("y1", strict, posthorn.EventWaiting, "it waits for event x1, which is before it in the webhook's order", 0)
		// What isn't behind another has to wait as well: the receiver wants to be left alone.
		want("y1", keyed, posthorn.EventWaiting, "the first attempt is yet to be made; nothing is sent to the webhook until then, "+
			"because of what its receiver has answered (410, or 429 or 503 with Retry-After)", 30*time.Second)
		if err := w.DeleteWebhook(t.Context(), "r1", keyed.ID); err != nil {
			t.Fatal(err)
		}
		if err := w.DeleteWebhook(t.Context(), "r1", strict.ID); err != nil {
			t.Fatal(err)
		}

		// A redelivery has its own attempts, and so has a replay.
		pass(50 * time.Second)
		hook := w.webhook("r1", good)
		w.answers(func(request) sender.Outcome { return ok200 })
		w.dispatch("r1", "e1")
		pass(time.Second)
		w.answers(func(request) sender.Outcome { return sender.Outcome{Status: 500} })
		if _, err := w.Redeliver(t.Context(), "r1", hook.ID, w.deliveries(hook)[0].ID); err != nil {
			t.Fatal(err)
		}
		pass(1500 * time.Millisecond)
		want("e1", hook, posthorn.EventDelivered, "the receiver answered 200 at attempt 1; attempt 3 of a redelivery is yet to be made", 64*time.Second)
		pass(time.Minute)
		ordered := w.orderedWebhook(bad, posthorn.OrderingStrict)
		w.replay(ordered, posthorn.ReplayMissed, nil)
		pass(time.Second)
		want("x2", ordered, posthorn.EventWaiting, "attempt 1 of a replay is yet to be made; its turn in the replay has yet to come", 0)
	})
}

// Who asks about all webhooks is told where that is not all of them.
func TestExplainMany(t *testing.T) {
	inWorld(t, posthorn.Config{KeepAllEvents: true}, func(t *testing.T, w *world) {
		w.dispatch("r1", "e")
		for n := 1; n <= 201; n++ {
			w.webhook("r1", good, "issue")
			if n < 200 {
				continue
			}
			all, more, err := w.Explain(t.Context(), "r1", "e", "")
			if err != nil || len(all) != 200 || more != (n > 200) {
				t.Errorf("of %d webhooks %d are explained, more: %v, %v", n, len(all), more, err)
			}
		}
	})
}
