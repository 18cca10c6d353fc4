package posthorn_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/certtest"
	"github.com/musehub/posthorn/internal/sender"
)

// What is large about a webhook is in memory only while a request is made with it; all else is as with a small one.
func TestLargeWebhooks(t *testing.T) {
	inWorld(t, posthorn.Config{RetryPolicy: &posthorn.RetryPolicy{}}, func(t *testing.T, w *world) {
		a := certtest.New(t)
		roots := strings.Repeat(a.PEM, (60<<10)/len(a.PEM))
		var hook posthorn.Webhook
		for i := range 10 {
			var err error
			if hook, err = w.CreateWebhook(t.Context(), posthorn.NewWebhook{
				RepoID: "r1", URL: secure, Events: []string{"push"}, Secret: "s", Options: posthorn.Options{
					TLS: posthorn.TLS{RootCAs: roots}, Filter: fmt.Sprintf("id != %q && %d == 9", "unwanted", i),
				},
			}); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 200 { // they take more than one page
			w.webhook("r1", fmt.Sprint("https://small.example/", i), "issue")
		}
		if r := w.dispatch("r1", "unwanted"); r.Deliveries != 0 {
			t.Errorf("%+v", r)
		}
		if webhooks, bytes := w.Cached(); webhooks != 210 || bytes > 200*100 {
			t.Errorf("the cache has %d webhooks with %d bytes", webhooks, bytes)
		}
		for _, want := range []string{roots, a.PEM} { // as created, and changed
			if _, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, posthorn.WebhookPatch{TLS: &posthorn.TLS{RootCAs: want}}); err != nil {
				t.Fatal(err)
			}
			if got, body := w.sentWith(hook); got != (sender.TLS{RootCAs: want}) || body != "ok" {
				t.Errorf("sent with %d bytes of certificates, want %d: %s", len(got.RootCAs), len(want), body)
			}
			if sent := w.seen(secure); len(sent) == 0 || sent[len(sent)-1].header["webhook-signature"] == nil {
				t.Error("unsigned")
			}
		}
	})
}

// What is large about a webhook is not in the results that wait to be recorded, and they show all the same how it is.
func TestLargeWebhooksFail(t *testing.T) {
	cfg := healthConfig()
	cfg.RetryPolicy = &posthorn.RetryPolicy{}
	inWorld(t, cfg, func(t *testing.T, w *world) {
		w.webhook("ops", operator, posthorn.AllEvents)
		hook, err := w.CreateWebhook(t.Context(), posthorn.NewWebhook{
			RepoID: "r1", URL: bad, Events: []string{posthorn.AllEvents}, Secret: "s", Description: "a large one",
			Options: posthorn.Options{MaxPerSecond: 2, Headers: map[string]string{"X-Large": strings.Repeat("x", 4<<10)}},
		})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		w.answers(func(r request) sender.Outcome {
			if r.url == bad && len(r.header["X-Large"]) == 0 {
				t.Error("it was sent without its header")
			}
			return down(r)
		})
		var events []posthorn.Event
		for range 2 * posthorn.ProbeAfter {
			events = append(events, posthorn.Event{RepoID: "r1", Type: "push", Payload: "x"})
		}
		if _, err := w.DispatchBatch(t.Context(), events); err != nil {
			t.Fatal(err)
		}
		w.tamper(func(_ context.Context, call string, do func() error) error {
			if call == "Commit" {
				return errors.New("the store fails")
			}
			return do()
		})
		pass(100 * time.Millisecond)
		if n, bytes := w.Waiting(), w.Kept(); n == 0 || bytes > n*100 {
			t.Errorf("%d results wait, with %d bytes", n, bytes)
		}
		w.tamper(nil)
		pass(time.Minute)
		sent := w.seen(bad)
		if len(sent) != len(events) || sent[len(sent)-1].at.Sub(began) < 3*time.Second { // it was one at a time, and two a second
			t.Errorf("%d requests within %v", len(sent), time.Since(began))
		}
		if h, err := w.Webhook(t.Context(), "r1", hook.ID); err != nil || h.FailingSince.IsZero() {
			t.Errorf("it is %+v, %v", h.Health, err)
		}
		for _, r := range w.seen(operator) {
			if !strings.Contains(r.body, `"description":"a large one"`) {
				t.Errorf("told %s", r.body)
			}
		}
		if n := len(w.told()); n != len(events) {
			t.Errorf("told of %d events", n)
		}
	})
}

// Who waits while somebody else loads the repo waits no longer than it cares to.
func TestSlowLoad(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		w.webhook("r1", good)
		w.tamper(func(_ context.Context, call string, do func() error) error {
			if call == "Webhooks" {
				pass(3 * time.Second)
			}
			return do()
		})
		loaded := make(chan posthorn.Receipt)
		go func() { loaded <- w.dispatch("r1", "loads") }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		if _, err := w.Dispatch(ctx, posthorn.Event{RepoID: "r1", Type: "push", Payload: "x"}); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		if r := <-loaded; r.Deliveries != 1 {
			t.Errorf("%+v", r)
		}
	})
}

// How webhooks are is noted while a repo is loaded, and no longer, even if the load fails.
func TestFailedLoad(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		w.webhook("r1", good)
		noting := 0
		w.tamper(func(_ context.Context, call string, do func() error) error {
			if call == "Webhooks" {
				noting = w.Loading()
				return errors.New("the store fails")
			}
			return do()
		})
		if _, err := w.Dispatch(t.Context(), posthorn.Event{RepoID: "r1", Type: "push", Payload: "x"}); err == nil || noting != 1 {
			t.Errorf("the load did not fail (%v), or nothing was noted: this test shows nothing", err)
		}
		if n := w.Loading(); n != 0 {
			t.Errorf("it is still noted for %d stripes", n)
		}
	})
}
