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
