package posthorn_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/sender"
)

// operational is what an operational event tells.
type operational struct {
	Type                                           string
	RepoID, WebhookID, Reason, EventID, DeliveryID string
	FailingSince, DisableAt                        time.Time
	Attempt, ResponseStatus                        int
}

const operator = "https://operator.example/"

// told returns the operational events so far.
func (w *world) told() (told []operational) {
	w.t.Helper()
	for _, r := range w.seen(operator) {
		o := operational{Type: r.eventType}
		if err := json.Unmarshal([]byte(r.body), &o); err != nil {
			w.t.Fatal(err)
		}
		told = append(told, o)
	}
	return told
}

// down refuses what goes to bad.
func down(r request) sender.Outcome {
	if r.url == bad {
		return sender.Outcome{Status: 500, Body: "down"}
	}
	return sender.Outcome{Status: 200}
}

func healthConfig() posthorn.Config {
	return posthorn.Config{
		DisableAfter: 10 * time.Minute, SystemRepo: "ops", RetryPolicy: &posthorn.RetryPolicy{Delays: []time.Duration{time.Second}},
	}
}

// A webhook that fails for long is disabled, after a warning, and the operator hears of both.
func TestDisableAfter(t *testing.T) {
	inWorld(t, healthConfig(), func(t *testing.T, w *world) {
		w.webhook("ops", operator, "webhook.*")
		hook := w.webhook("r1", bad)
		w.answers(down)
		began := time.Now()
		state := func() posthorn.Webhook {
			t.Helper()
			hook, err := w.Webhook(t.Context(), "r1", hook.ID)
			if err != nil {
				t.Fatal(err)
			}
			return hook
		}
		for i := 0; time.Since(began) < 7*time.Minute; i++ {
			w.dispatch("r1", fmt.Sprint("e", i))
			pass(15 * time.Second)
		}
		since := state().FailingSince
		if late := since.Sub(began); late < 0 || late > time.Minute || !state().Active || len(w.told()) != 0 {
			t.Fatalf("after 7 minutes: %+v, %+v", state().Health, w.told())
		}
		w.dispatch("r1", "another")
		pass(90 * time.Second)
		w.dispatch("r1", "warning")
		pass(15 * time.Second)
		told := w.told()
		if len(told) != 1 || told[0].Type != posthorn.EventWebhookFailing || told[0].RepoID != "r1" || told[0].WebhookID != hook.ID ||
			!told[0].FailingSince.Equal(since) || !told[0].DisableAt.Equal(since.Add(10*time.Minute)) || !state().Active || !state().Warned {
			t.Fatalf("after 8 minutes: %+v, %+v", state().Health, told)
		}
		pass(2 * time.Minute)
		w.dispatch("r1", "last")
		pass(15 * time.Second)
		told = w.told()
		if len(told) != 2 || told[1].Type != posthorn.EventWebhookDisabled || !strings.Contains(told[1].Reason, "all attempts have failed since") || told[1].ResponseStatus != 500 {
			t.Fatalf("at the end: %+v", told)
		}
		if h := state(); h.Active || h.DisabledReason != told[1].Reason || !h.FailingSince.IsZero() {
			t.Errorf("it is %+v", h)
		}
		log, err := w.AuditLog(t.Context(), posthorn.AuditQuery{RepoID: "r1", Limit: 10})
		if err != nil || log.Items[0].Action != "webhook.disable" {
			t.Errorf("the audit log has %+v, %v", log.Items, err)
		}
		if _, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, posthorn.WebhookPatch{Active: new(true)}); err != nil {
			t.Fatal(err)
		}
		if h := state(); h.Health != (posthorn.Health{}) {
			t.Errorf("once it is active again: %+v", h.Health)
		}
	})
}

// One with too few events is left alone, one that recovers is, too, and that is told if the failing was.
func TestRecovered(t *testing.T) {
	inWorld(t, healthConfig(), func(t *testing.T, w *world) {
		w.webhook("ops", operator, posthorn.AllEvents)
		hook := w.webhook("r1", bad)
		w.answers(down)
		for i := range 15 { // over 15 minutes
			w.dispatch("r1", fmt.Sprint("e", i))
			pass(time.Minute)
		}
		h, err := w.Webhook(t.Context(), "r1", hook.ID)
		if err != nil || !h.Active || h.FailingSince.IsZero() || !h.Warned {
			t.Errorf("it is %+v, %v", h, err)
		}
		w.answers(func(request) sender.Outcome { return sender.Outcome{Status: 200} })
		w.dispatch("r1", "good")
		pass(time.Second)
		if h, err = w.Webhook(t.Context(), "r1", hook.ID); err != nil || h.Health != (posthorn.Health{}) || !h.UpdatedAt.Equal(hook.UpdatedAt) {
			t.Errorf("once it has recovered: %+v, %v", h, err)
		}
		var types []string
		exhausted := 0
		for _, o := range w.told() {
			if o.Type != posthorn.EventDeliveryExhausted {
				types = append(types, o.Type)
				continue
			}
			exhausted++
			if o.Attempt != 2 || o.EventID == "" || o.DeliveryID == "" || o.WebhookID != hook.ID {
				t.Errorf("told %+v", o)
			}
		}
		if !slices.Equal(types, []string{posthorn.EventWebhookFailing, posthorn.EventWebhookRecovered}) || exhausted != 15 {
			t.Errorf("told of %v, and of %d events", types, exhausted)
		}
	})
}

// loads counts how often a repo's webhooks are read from now on.
func (w *world) loads() *atomic.Int32 {
	n := &atomic.Int32{}
	w.tamper(func(_ context.Context, call string, do func() error) error {
		if call == "Webhooks" {
			n.Add(1)
		}
		return do()
	})
	return n
}

// Many webhooks of a repo begin to fail, and recover: the repo isn't loaded anew for that, neither here nor at another node.
func TestHealthKeepsTheCache(t *testing.T) {
	cfg := healthConfig()
	cfg.SystemRepo = "" // which would be loaded, too
	inWorld(t, cfg, func(t *testing.T, w *world) {
		var hooks []posthorn.Webhook
		for i := range 20 {
			hooks = append(hooks, w.webhook("r1", fmt.Sprintf("https://bad-%d.example/", i)))
		}
		other := w.another("B")
		pass(time.Second) // both have heard of these
		for _, node := range []*world{w, other} {
			node.dispatch("r1", "first-"+node.name)
		}
		pass(time.Minute)
		here, there := w.loads(), other.loads()
		failing := func() (n int) {
			t.Helper()
			for _, hook := range hooks {
				h, err := w.Webhook(t.Context(), "r1", hook.ID)
				if err != nil {
					t.Fatal(err)
				}
				if !h.FailingSince.IsZero() {
					n++
				}
			}
			return n
		}
		w.answers(func(request) sender.Outcome { return sender.Outcome{Status: 500} })
		for i := range 4 {
			w.dispatch("r1", fmt.Sprint("down-", i))
			pass(time.Minute)
		}
		if n := failing(); n != len(hooks) {
			t.Errorf("%d fail", n)
		}
		w.answers(func(request) sender.Outcome { return sender.Outcome{Status: 200} })
		w.dispatch("r1", "up")
		pass(time.Minute)
		if n := failing(); n != 0 {
			t.Errorf("%d fail in the end", n)
		}
		other.dispatch("r1", "last")
		pass(time.Minute)
		if here.Load() != 0 || there.Load() != 0 {
			t.Errorf("the repo was loaded %d and %d times", here.Load(), there.Load())
		}
	})
}

// widen has r1's webhooks take several requests at a time.
func (w *world) widen() {
	w.t.Helper()
	w.answers(func(request) sender.Outcome {
		pass(100 * time.Millisecond)
		return sender.Outcome{Status: 200}
	})
	for i := range 60 {
		w.dispatch("r1", fmt.Sprint("good-", i))
	}
	pass(10 * time.Second)
}

// A webhook begins to fail while its repo is being loaded, with what it was before: that is not forgotten, so its next success ends it.
func TestHealthNotedWhileLoading(t *testing.T) {
	cfg := healthConfig()
	cfg.RetryPolicy = &posthorn.RetryPolicy{}
	inWorld(t, cfg, func(t *testing.T, w *world) {
		hook, other := w.webhook("r1", bad), w.webhook("r1", good)
		failing := func() bool {
			h, err := w.Webhook(t.Context(), "r1", hook.ID)
			return err != nil || !h.FailingSince.IsZero()
		}
		w.widen()
		w.answers(func(r request) sender.Outcome {
			pass(300 * time.Millisecond)
			return down(r)
		})
		for _, id := range []string{"a", "b", "c", "d", "e", "f"} {
			w.dispatch("r1", id)
		}
		synctest.Wait()
		w.update(other, posthorn.WebhookPatch{Description: new("changed")})
		w.tamper(func(_ context.Context, call string, do func() error) error {
			err := do()
			if call == "Webhooks" {
				pass(3 * time.Second)
			}
			return err
		})
		if _, err := w.Ping(t.Context(), "r1", other.ID); err != nil { // which loads
			t.Fatal(err)
		}
		pass(10 * time.Second)
		if !failing() {
			t.Error("it has not begun to fail: this test shows nothing")
		}
		w.answers(func(request) sender.Outcome { return sender.Outcome{Status: 200} })
		pass(5 * time.Minute)
		w.dispatch("r1", "good")
		pass(time.Second)
		if failing() {
			t.Error("its last attempt has succeeded, and it counts as one that fails")
		}
	})
}

// A request that is under way while its webhook begins to fail ends that with its success, though the repo was loaded anew meanwhile.
func TestRecoveredByWhatWasUnderWay(t *testing.T) {
	inWorld(t, healthConfig(), func(t *testing.T, w *world) {
		hook, other := w.webhook("r1", bad), w.webhook("r1", good)
		w.widen()
		release := make(chan struct{})
		w.answers(func(r request) sender.Outcome {
			switch {
			case r.eventID == "slow" && r.url == bad:
				<-release
				return sender.Outcome{Status: 200}
			case r.url == bad:
				pass(300 * time.Millisecond)
				return sender.Outcome{Status: 500}
			}
			return sender.Outcome{Status: 200}
		})
		for _, id := range []string{"slow", "a", "b", "c", "d", "e", "f"} {
			w.dispatch("r1", id)
		}
		synctest.Wait()
		w.update(other, posthorn.WebhookPatch{Description: new("changed")})
		w.dispatch("r1", "g")
		pass(2 * time.Second)
		failing := func() bool {
			h, err := w.Webhook(t.Context(), "r1", hook.ID)
			return err != nil || !h.FailingSince.IsZero()
		}
		if !failing() {
			t.Error("it has not begun to fail: this test shows nothing")
		}
		close(release)
		pass(time.Second)
		if failing() {
			t.Error("its last attempt has succeeded, and it counts as one that fails")
		}
	})
}

// All attempts of one node fail and those of another don't, of which the first one hears nothing: the webhook is neither disabled nor is anybody
// warned of that.
func TestSuccessElsewhere(t *testing.T) {
	cfg := healthConfig()
	cfg.RetryPolicy = &posthorn.RetryPolicy{}
	inWorld(t, cfg, func(t *testing.T, w *world) {
		w.webhook("ops", operator, "webhook.*")
		hook, other := w.webhook("r1", bad), w.another("B")
		for _, node := range []*world{w, other} { // by now both know the repo
			node.dispatch("r1", "first-"+node.name)
		}
		w.answers(func(r request) sender.Outcome {
			if r.url == bad && r.node == "A" {
				return sender.Outcome{Status: 500}
			}
			return sender.Outcome{Status: 200}
		})
		for i := range 30 { // over half an hour
			for n := range 3 {
				w.dispatch("r1", fmt.Sprintf("e%d-%d", i, n))
				pass(10 * time.Second)
			}
			other.dispatch("r1", fmt.Sprint("there-", i))
			pass(30 * time.Second)
		}
		h, err := w.Webhook(t.Context(), "r1", hook.ID)
		if err != nil || !h.Active || h.Warned || len(w.told()) != 0 {
			t.Errorf("it is %+v, %v; told %+v", h.Health, err, w.told())
		}
		if h.FailingSince.IsZero() {
			t.Error("it never began to fail: this test shows nothing")
		}
	})
}

// A webhook counts as failing from what another node has seen long ago. A node where it has succeeded since then, and begins to fail, says so at
// once: the log is asked, which has that success near its end, and not when the webhook has failed for long and the log may have thousands of
// failures behind it.
func TestFailingSinceElsewhere(t *testing.T) {
	cfg := healthConfig()
	cfg.RetryPolicy = &posthorn.RetryPolicy{}
	inWorld(t, cfg, func(t *testing.T, w *world) {
		w.webhook("ops", operator, "webhook.*")
		hook, b, c := w.webhook("r1", bad), w.another("B"), w.another("C")
		for _, node := range []*world{w, b, c} { // by now all know the repo
			node.dispatch("r1", "first-"+node.name)
		}
		var many []posthorn.Event // more than a page of the log
		for range posthorn.MaxScan {
			many = append(many, posthorn.Event{RepoID: "r1", Type: "push", Payload: "x"})
		}
		if _, err := w.DispatchBatch(t.Context(), many); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		health := func() posthorn.Health {
			t.Helper()
			h, err := w.Webhook(t.Context(), "r1", hook.ID)
			if err != nil {
				t.Fatal(err)
			}
			return h.Health
		}
		var reads atomic.Int32 // of the log
		failing := errors.New("the store fails")
		reading := func(err error) tamper {
			return func(_ context.Context, call string, do func() error) error {
				if call == "Deliveries" {
					if reads.Add(1); err != nil {
						return err
					}
				}
				return do()
			}
		}
		for _, node := range []*world{w, b, c} {
			node.tamper(reading(nil))
		}
		fail := func(node *world, id string) {
			for i := range 2 * posthorn.ProbeAfter {
				node.dispatch("r1", fmt.Sprint(id, i))
			}
			pass(time.Minute)
		}
		w.answers(func(r request) sender.Outcome {
			if r.node == "B" {
				return sender.Outcome{Status: 200}
			}
			return down(r)
		})
		fail(w, "a")
		since := health().FailingSince
		if n := reads.Load(); since.IsZero() || n != 0 {
			t.Errorf("failing since %v; the first to notice has read the log %d times", since, n)
		}
		fail(c, "c") // nothing has succeeded meanwhile
		if got, n := health().FailingSince, reads.Load(); !got.Equal(since) || n != 1 {
			t.Errorf("failing since %v, and before %v; the log was read %d times", got, since, n)
		}
		pass(6*time.Minute + 10*time.Second)
		w.dispatch("r1", "warning")
		pass(time.Second)
		if h := health(); !h.FailingSince.Equal(since) || !h.Warned {
			t.Errorf("after a warning: %+v", h)
		}
		b.dispatch("r1", "good")
		pass(time.Second)
		if h := health(); !h.FailingSince.Equal(since) {
			t.Errorf("after a success that counts for nothing yet: %+v", h)
		}
		w.answers(down)
		b.tamper(reading(failing))
		fail(b, "b")
		if h := health(); !h.FailingSince.Equal(since) {
			t.Errorf("while the log can't be read: %+v", h)
		}
		b.tamper(reading(nil))
		again := time.Now()
		b.dispatch("r1", "last")
		pass(time.Second)
		if h := health(); h.FailingSince.Before(again) || h.Warned {
			t.Errorf("failing again since %v: %+v", again, h)
		}
		var types []string
		for _, o := range w.told() {
			types = append(types, o.Type)
		}
		if !slices.Equal(types, []string{posthorn.EventWebhookFailing, posthorn.EventWebhookRecovered}) {
			t.Errorf("told of %v", types)
		}
	})
}

// Another URL starts all over: its first failure doesn't disable a webhook. The same URL again changes nothing.
func TestHealthOfAnotherURL(t *testing.T) {
	inWorld(t, healthConfig(), func(t *testing.T, w *world) {
		const moved = "https://moved.example/"
		hook := w.webhook("r1", bad)
		w.answers(func(request) sender.Outcome { return sender.Outcome{Status: 500} })
		for i := range 9 { // over 9 minutes
			for n := range 3 {
				w.dispatch("r1", fmt.Sprintf("e%d-%d", i, n))
			}
			pass(time.Minute)
		}
		health := func(url string) posthorn.Health {
			t.Helper()
			h, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, posthorn.WebhookPatch{URL: &url})
			if err != nil {
				t.Fatal(err)
			}
			return h.Health
		}
		if h := health(bad); h.FailingSince.IsZero() || !h.Warned {
			t.Errorf("with the same URL again: %+v", h)
		}
		if h := health(moved); h != (posthorn.Health{}) {
			t.Errorf("with another URL: %+v", h)
		}
		pass(2 * time.Minute)
		w.dispatch("r1", "first")
		pass(time.Minute)
		if h, err := w.Webhook(t.Context(), "r1", hook.ID); err != nil || !h.Active || len(w.seen(moved)) == 0 {
			t.Errorf("it is %+v, %v", h, err)
		}
	})
}

// Webhooks of other repos can't subscribe to operational events, and those of the system repo tell nothing of their own failures.
func TestSystemRepo(t *testing.T) {
	inWorld(t, healthConfig(), func(t *testing.T, w *world) {
		for _, event := range append(posthorn.OperationalEvents(), "webhook.*") {
			_, err := w.CreateWebhook(t.Context(), posthorn.NewWebhook{RepoID: "r1", URL: good, Events: []string{event}})
			if posthorn.ErrorCode(err) != posthorn.CodeInvalid {
				t.Errorf("%s: %v", event, err)
			}
			if _, err := w.Dispatch(t.Context(), posthorn.Event{RepoID: "ops", Type: event, Payload: struct{}{}}); posthorn.ErrorCode(err) != posthorn.CodeInvalid {
				t.Errorf("dispatch %s: %v", event, err)
			}
		}
		w.webhook("r1", good) // which gets all of r1
		w.webhook("ops", bad)
		w.webhook("r2", bad)
		w.answers(down)
		w.dispatch("r2", "e")
		pass(time.Minute)
		if len(w.seen(good)) != 0 || len(w.seen(bad)) != 4 { // two attempts of the event, two of what is told of it
			t.Errorf("%d requests to %s, %d to %s", len(w.seen(good)), good, len(w.seen(bad)), bad)
		}
	})
}
