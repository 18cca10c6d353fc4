package posthorn_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/sender"
	"github.com/musehub/posthorn/signature"
)

func TestCreateWebhookRefuses(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		valid := posthorn.NewWebhook{RepoID: "r1", URL: good, Events: []string{"push"}}
		for name, c := range map[string]struct {
			change func(*posthorn.NewWebhook)
			field  string
		}{
			"no repo":             {func(n *posthorn.NewWebhook) { n.RepoID = "" }, "repoId"},
			"no url":              {func(n *posthorn.NewWebhook) { n.URL = "" }, "url"},
			"long url":            {func(n *posthorn.NewWebhook) { n.URL = good + strings.Repeat("é", 2048) }, "url"},
			"other scheme":        {func(n *posthorn.NewWebhook) { n.URL = "ftp://example.com/" }, "url"},
			"user name":           {func(n *posthorn.NewWebhook) { n.URL = "https://user@example.com/" }, "url"},
			"private address":     {func(n *posthorn.NewWebhook) { n.URL = "https://10.0.0.1/" }, "url"},
			"no events":           {func(n *posthorn.NewWebhook) { n.Events = nil }, "events"},
			"unknown event":       {func(n *posthorn.NewWebhook) { n.Events = []string{"push", "Push"} }, "events"},
			"event twice":         {func(n *posthorn.NewWebhook) { n.Events = []string{"push", "push"} }, "events"},
			"bad whsec secret":    {func(n *posthorn.NewWebhook) { n.Secret = "whsec_!!" }, "secret"},
			"long secret":         {func(n *posthorn.NewWebhook) { n.Secret = strings.Repeat("s", 1025) }, "secret"},
			"long description":    {func(n *posthorn.NewWebhook) { n.Description = strings.Repeat("d", 1001) }, "description"},
			"secret not in UTF-8": {func(n *posthorn.NewWebhook) { n.Secret = "\xff" }, "secret"},
		} {
			n := valid
			c.change(&n)
			_, err := w.CreateWebhook(t.Context(), n)
			e, ok := errors.AsType[*posthorn.Error](err)
			if !ok || e.Code != posthorn.CodeInvalid || e.Field != c.field {
				t.Errorf("%s: %v, want an invalid %s", name, err, c.field)
			}
			if err != nil && n.Secret != "" && strings.Contains(err.Error(), n.Secret) {
				t.Errorf("%s: the error has the secret in it: %v", name, err)
			}
		}
		_, err := w.CreateWebhook(t.Context(), posthorn.NewWebhook{RepoID: "r1", URL: good, Events: []string{"psuh"}})
		if err == nil || !strings.Contains(err.Error(), `"psuh"`) || !strings.Contains(err.Error(), "pull_request") {
			t.Errorf("the error names neither the unknown type nor the valid ones: %v", err)
		}
	})
}

// What the node's settings refuse by now can't be set again, and doesn't keep a webhook from being changed otherwise.
func TestUpdateOfWhatIsRefusedByNow(t *testing.T) {
	inWorld(t, posthorn.Config{EventTypes: []string{"push", "old"}}, func(t *testing.T, w *world) {
		const plain = "http://plain.example/hook"
		hook := w.webhook("r1", plain, "old")
		w.cfg.HTTPSOnly, w.cfg.EventTypes = true, []string{"push"}
		w.restart()
		for _, row := range []struct {
			patch posthorn.WebhookPatch
			field string // at fault
		}{
			{posthorn.WebhookPatch{Active: new(false)}, ""},
			{posthorn.WebhookPatch{Headers: map[string]string{"X-A": "1"}}, ""},
			{posthorn.WebhookPatch{URL: new(plain), Events: []string{"old"}, Secret: new("s")}, ""}, // as they are
			{posthorn.WebhookPatch{URL: new(plain + "2")}, "url"},
			{posthorn.WebhookPatch{URL: new("")}, "url"},
			{posthorn.WebhookPatch{Events: []string{"old", "push"}}, "events"},
			{posthorn.WebhookPatch{Events: []string{}}, "events"},
			{posthorn.WebhookPatch{TLS: &posthorn.TLS{MinVersion: "1.3"}}, "tls"},
			{posthorn.WebhookPatch{URL: new(secure), TLS: &posthorn.TLS{MinVersion: "1.3"}}, ""},
			{posthorn.WebhookPatch{Events: []string{"push"}}, ""},
		} {
			_, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, row.patch)
			if e, ok := errors.AsType[*posthorn.Error](err); ok && e.Field != row.field || !ok && (err != nil || row.field != "") {
				t.Errorf("%+v: %v, want %q at fault", row.patch, err, row.field)
			}
		}
		for _, n := range []posthorn.NewWebhook{{RepoID: "r1", URL: plain, Events: []string{"push"}}, {RepoID: "r1", URL: secure, Events: []string{"old"}}} {
			if _, err := w.CreateWebhook(t.Context(), n); posthorn.ErrorCode(err) != posthorn.CodeInvalid {
				t.Errorf("a new one like it: %v", err)
			}
		}
	})
}

func TestSecretRotation(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook, err := w.CreateWebhook(t.Context(), posthorn.NewWebhook{RepoID: "r1", URL: good, Events: []string{"push"}, Secret: "old"})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range hook.Secrets {
			if strings.Contains(s.Sealed, "old") {
				t.Errorf("the secret is stored as %q", s.Sealed)
			}
		}
		// signedWith returns which secrets the next request is signed with.
		signedWith := func() (secrets []string) {
			id := fmt.Sprint("e", len(w.seen(good)))
			w.dispatch("r1", id)
			synctest.Wait()
			seen := w.seen(good)
			r := seen[len(seen)-1]
			for _, secret := range []string{"old", "new", "newest"} {
				v, err := signature.NewVerifier(secret)
				if err != nil {
					t.Fatal(err)
				}
				v.Now = time.Now
				if v.Verify(canonical(r.header), []byte(r.body)) == nil {
					secrets = append(secrets, secret)
				}
				if want, err := signature.NewSigner(secret); err == nil && want.Body([]byte(r.body)) == r.header["X-MuseHub-Signature"][0] {
					secrets = append(secrets, "MuseHub:"+secret)
				}
			}
			return secrets
		}
		change := func(secret string, overlap *time.Duration) {
			if _, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, posthorn.WebhookPatch{Secret: &secret, SecretOverlap: overlap}); err != nil {
				t.Fatal(err)
			}
		}
		expect := func(what string, want ...string) {
			t.Helper()
			if diff := cmp.Diff(want, signedWith()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", what, diff)
			}
		}
		expect("at first", "old", "MuseHub:old")
		overlap := time.Minute
		change("new", &overlap)
		expect("after a change", "old", "new", "MuseHub:new")
		pass(overlap - time.Second)
		expect("a second before the overlap ends", "old", "new", "MuseHub:new")
		pass(time.Second)
		expect("when the overlap ends", "new", "MuseHub:new")
		none := time.Duration(0)
		change("newest", &none)
		expect("after a change without overlap", "newest", "MuseHub:newest")
		change("old", nil)
		changed, err := w.Webhook(t.Context(), "r1", hook.ID)
		if err != nil || len(changed.Secrets) != 2 || !changed.Secrets[1].ExpiresAt.Equal(changed.UpdatedAt.Add(posthorn.DefaultSecretOverlap)) {
			t.Errorf("the overlap by default: %+v, %v", changed, err)
		}
		change("", nil)
		w.dispatch("r1", "unsigned")
		synctest.Wait()
		seen := w.seen(good)
		for _, name := range []string{"X-MuseHub-Signature", "webhook-signature"} {
			if v := seen[len(seen)-1].header[name]; v != nil {
				t.Errorf("without a secret there is %s: %s", name, v)
			}
		}
	})
}

func canonical(h map[string][]string) map[string][]string {
	c := map[string][]string{}
	for name, values := range h {
		for _, value := range values {
			http.Header(c).Add(name, value)
		}
	}
	return c
}

// Nothing is sent for lack of a key, and nobody else is harmed.
func TestUndecryptableSecret(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook := w.webhook("r1", bad)
		w.webhook("r1", good)
		const foreign = "gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA=="
		if _, err := w.store.UpdateWebhook(t.Context(), "r1", hook.ID, func(h *posthorn.Webhook) error {
			h.Secrets = []posthorn.Secret{{Sealed: foreign}}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := w.Stop(context.Background()); err != nil {
			t.Fatal(err)
		}
		w.start()
		w.dispatch("r1", "e1")
		pass(time.Minute)
		if n := len(w.seen(bad)); n != 0 {
			t.Errorf("%d requests were sent without the secret", n)
		}
		if n := len(w.seen(good)); n != 1 {
			t.Errorf("the other webhook got %d requests", n)
		}
		log := w.deliveries(hook)
		if len(log) != 3 || log[0].Success || !strings.HasPrefix(log[0].ResponseBody, "request error: ") || !strings.Contains(log[0].ResponseBody, "secret") {
			t.Errorf("log %+v", log)
		}
	})
}

func TestPlaintextSecretsAreSealed(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook := w.webhook("r1", good)
		if _, err := w.store.UpdateWebhook(t.Context(), "r1", hook.ID, func(h *posthorn.Webhook) error {
			h.Secrets = []posthorn.Secret{{Sealed: "imported"}}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := w.Stop(context.Background()); err != nil {
			t.Fatal(err)
		}
		w.start()
		synctest.Wait()
		got, err := w.Webhook(t.Context(), "r1", hook.ID)
		if err != nil || len(got.Secrets) != 1 || strings.Contains(got.Secrets[0].Sealed, "imported") {
			t.Errorf("after start: %+v, %v", got, err)
		}
		w.dispatch("r1", "e1")
		synctest.Wait()
		s, err := signature.NewSigner("imported")
		if err != nil {
			t.Fatal(err)
		}
		if r := w.seen(good)[0]; r.header["X-MuseHub-Signature"][0] != s.Body([]byte(r.body)) {
			t.Error("the request isn't signed with the imported secret")
		}
	})
}

func TestKeysThatDoNotFit(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		_, err := posthorn.New(w.store, posthorn.Config{SecretKeys: []string{"cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="}})
		if posthorn.ErrorCode(err) != posthorn.CodeInvalid || !strings.Contains(err.Error(), "do not fit") {
			t.Errorf("New with other keys: %v", err)
		}
	})
}

func TestRepoExists(t *testing.T) {
	cfg := posthorn.Config{RepoExists: func(_ context.Context, id string) (bool, error) {
		if id == "broken" {
			return false, errors.New("no answer")
		}
		return id == "r1", nil
	}}
	inWorld(t, cfg, func(t *testing.T, w *world) {
		w.webhook("r1", good)
		for repo, want := range map[string]posthorn.Code{"r2": posthorn.CodeNotFound, "broken": posthorn.CodeUnavailable} {
			_, create := w.CreateWebhook(t.Context(), posthorn.NewWebhook{RepoID: repo, URL: good, Events: []string{"push"}})
			_, dispatch := w.Dispatch(t.Context(), posthorn.Event{RepoID: repo, Type: "push", Payload: json.RawMessage(`1`)})
			_, list := w.Webhooks(t.Context(), posthorn.WebhookQuery{RepoID: repo})
			for _, err := range []error{create, dispatch, list} {
				if posthorn.ErrorCode(err) != want {
					t.Errorf("repo %s: %v, want %s", repo, err, want)
				}
			}
			if _, err := w.AuditLog(t.Context(), posthorn.AuditQuery{RepoID: repo, Limit: 1}); err != nil { // which outlives the repo
				t.Errorf("the audit log of repo %s: %v", repo, err)
			}
		}
	})
}

// A request that waits for its connection while the webhook is changed is not sent as it was.
func TestChangeBeforeTheRequestIsSent(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook := w.webhook("r1", bad)
		connected := make(chan struct{})
		w.SetTransport(func(ctx context.Context, r *sender.Request) sender.Outcome {
			if r.URL.String() == bad {
				<-connected
			}
			return w.send(ctx, r)
		})
		w.dispatch("r1", "e1")
		synctest.Wait()
		url := good
		if _, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, posthorn.WebhookPatch{URL: &url}); err != nil {
			t.Fatal(err)
		}
		close(connected)
		pass(time.Minute)
		if len(w.seen(bad)) != 0 || len(w.seen(good)) != 1 {
			t.Errorf("%d requests went to the old URL, %d to the new one", len(w.seen(bad)), len(w.seen(good)))
		}
		if log := w.deliveries(hook); len(log) != 1 || log[0].Exchange.URL != good {
			t.Errorf("log %+v", log)
		}
	})
}

// The same, when the webhook had been loaded anew in between because of another one of its repo.
func TestDeleteAfterAnotherChange(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook := w.webhook("r1", bad)
		connected := make(chan struct{})
		w.SetTransport(func(ctx context.Context, r *sender.Request) sender.Outcome {
			<-connected
			return w.send(ctx, r)
		})
		w.dispatch("r1", "e1")
		synctest.Wait()
		w.webhook("r1", good, "issue")
		if err := w.DeleteWebhook(t.Context(), "r1", hook.ID); err != nil {
			t.Fatal(err)
		}
		close(connected)
		pass(time.Minute)
		if n := len(w.seen(bad)); n != 0 {
			t.Errorf("%d requests after it was deleted", n)
		}
	})
}

// One slow webhook with big payloads doesn't use up the memory that others need.
func TestBigPayloads(t *testing.T) {
	inWorld(t, posthorn.Config{MaxQueuedBytes: 8 << 20}, func(t *testing.T, w *world) {
		w.webhook("slow", bad)
		w.webhook("r1", good)
		w.answers(func(r request) sender.Outcome {
			if r.url == bad {
				pass(5 * time.Second)
			}
			return ok200
		})
		w.dispatch("r1", "first")
		payload := json.RawMessage(`"` + strings.Repeat("x", 100_000) + `"`)
		for range 200 {
			if _, err := w.Dispatch(t.Context(), posthorn.Event{RepoID: "slow", Type: "push", Payload: payload}); err != nil {
				t.Fatal(err)
			}
		}
		pass(30 * time.Second)
		for i := range 10 {
			w.dispatch("r1", fmt.Sprint("e", i))
			pass(100 * time.Millisecond)
			if n := len(w.seen(good)); n != i+2 {
				t.Fatalf("the other webhook has %d requests, want %d", n, i+2)
			}
		}
	})
}

// What was accepted is known again when no webhook wants it any more.
func TestEventIDWithoutWebhook(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook := w.webhook("r1", good)
		w.dispatch("r1", "e1")
		no := false
		if _, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, posthorn.WebhookPatch{Active: &no}); err != nil {
			t.Fatal(err)
		}
		if got := w.dispatch("r1", "e1"); got != (posthorn.Receipt{EventID: "e1", Deliveries: 1, Duplicate: true}) {
			t.Errorf("the same again: %+v", got)
		}
		_, err := w.Dispatch(t.Context(), posthorn.Event{ID: "e1", RepoID: "r1", Type: "push", Payload: 1})
		if posthorn.ErrorCode(err) != posthorn.CodeConflict {
			t.Errorf("other content: %v", err)
		}
		if got := w.dispatch("r1", "e2"); got != (posthorn.Receipt{EventID: "e2"}) {
			t.Errorf("a new one: %+v", got)
		}
	})
}

// What waited while a webhook was inactive goes before what comes later.
func TestResumeKeepsTheOrder(t *testing.T) {
	inWorld(t, posthorn.Config{MaxInFlightPerWebhook: 1}, func(t *testing.T, w *world) {
		hook := w.webhook("r1", good)
		w.answers(func(request) sender.Outcome { pass(time.Second); return ok200 })
		for i := range 5 {
			w.dispatch("r1", fmt.Sprint("e", i))
		}
		for _, active := range []bool{false, true} {
			if _, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, posthorn.WebhookPatch{Active: &active}); err != nil {
				t.Fatal(err)
			}
			if !active {
				pass(10 * time.Second)
			}
		}
		w.dispatch("r1", "new")
		pass(time.Minute)
		var got []string
		for _, r := range w.seen(good) {
			got = append(got, r.eventID)
		}
		if diff := cmp.Diff([]string{"e0", "e1", "e2", "e3", "e4", "new"}, got); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
	})
}

// An entry that lies further ahead than any policy can put it was written before the clock went backwards. It doesn't
// wait until the clock is there again.
func TestClockWentBackwards(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook := w.webhook("r1", good)
		w.dispatch("r1", "e1")
		pass(time.Second)
		event, err := w.Event(t.Context(), "r1", "e1")
		if err != nil {
			t.Fatal(err)
		}
		for _, ahead := range []time.Duration{2 * time.Second, posthorn.MaxRetryDelay + time.Hour} {
			e := &posthorn.Entry{
				WebhookSeq: hook.Seq, WebhookID: hook.ID, Event: &event, Trigger: posthorn.TriggerRedelivery, Attempt: 1,
				DueAt: time.Now().Add(ahead),
			}
			if err := w.store.Enqueue(t.Context(), e, 0); err != nil {
				t.Fatal(err)
			}
		}
		pass(posthorn.SweepEvery)
		synctest.Wait()
		if n := len(w.seen(good)); n != 2 {
			t.Errorf("%d requests at first, want 2: the one due in a week is due now", n)
		}
		pass(2 * posthorn.SweepEvery)
		synctest.Wait()
		if n := len(w.seen(good)); n != 3 {
			t.Errorf("%d requests in the end, want 3", n)
		}
	})
}

// A node that was taken for dead goes on as another one.
func TestLeaseLost(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		w.webhook("r1", good)
		pass(time.Second)
		if n, err := w.store.Release(t.Context(), 0, time.Now().Add(time.Hour)); n != 1 || err != nil {
			t.Fatalf("release: %d, %v", n, err)
		}
		if _, err := w.Dispatch(t.Context(), posthorn.Event{ID: "e1", RepoID: "r1", Type: "push", Payload: 1}); posthorn.ErrorCode(err) != posthorn.CodeUnavailable {
			t.Errorf("dispatching without a lease: %v", err)
		}
		pass(posthorn.SweepEvery)
		w.dispatch("r1", "e1")
		synctest.Wait()
		if n := len(w.seen(good)); n != 1 {
			t.Errorf("%d requests, want 1", n)
		}
	})
}

// What is older than the retention goes, and can't be delivered again (case 35 of the contract).
func TestRetention(t *testing.T) {
	inWorld(t, posthorn.Config{Retention: 5 * time.Minute}, func(t *testing.T, w *world) {
		hook := w.webhook("r1", good)
		w.dispatch("r1", "e1")
		pass(4 * time.Minute)
		r, err := w.Redeliver(t.Context(), "r1", hook.ID, w.deliveries(hook)[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		last, err := r.Wait(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		pass(2 * time.Minute)
		log := w.deliveries(hook)
		if len(log) != 1 || log[0].ID != last.ID || log[0].Payload != nil {
			t.Fatalf("log %+v: want only the redelivery, without its payload", log)
		}
		if _, err := w.Redeliver(t.Context(), "r1", hook.ID, last.ID); posthorn.ErrorCode(err) != posthorn.CodeInvalid || !strings.Contains(err.Error(), "no longer stored") {
			t.Errorf("redelivering it: %v", err)
		}
	})
}

func TestConfigRefused(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		for field, cfg := range map[string]posthorn.Config{
			"Timeout":      {Timeout: -1},
			"MaxPayload":   {MaxPayload: posthorn.MaxPayloadLimit + 1},
			"MaxInFlight":  {MaxInFlight: math.MaxInt},
			"EventTypes":   {EventTypes: []string{"a b"}},
			"RetryPolicy":  {RetryPolicy: &posthorn.RetryPolicy{Jitter: 2}},
			"Brand":        {Brand: "Muse Hub"},
			"UserAgent":    {UserAgent: "a\r\nb"},
			"AllowTargets": {AllowTargets: []string{"10.0.0.0/33"}},
			"key":          {SecretKeys: []string{"short"}},
		} {
			if _, err := posthorn.New(w.store, cfg); posthorn.ErrorCode(err) != posthorn.CodeInvalid || !strings.Contains(err.Error(), field) {
				t.Errorf("%s: %v", field, err)
			}
		}
	})
}
