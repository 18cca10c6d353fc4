package posthorn_test

import (
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/certtest"
	"github.com/musehub/posthorn/internal/secretbox"
	"github.com/musehub/posthorn/internal/sender"
)

const secure = "https://secure.example/hook"

// sentWith dispatches an event to the webhook of a repo and returns the settings for TLS of the request, and how the delivery went.
func (w *world) sentWith(hook posthorn.Webhook) (settings sender.TLS, body string) {
	w.t.Helper()
	before := len(w.seen(""))
	w.dispatch(hook.RepoID, rand.Text())
	pass(time.Second) // until it is in the log
	deliveries := w.deliveries(hook)
	if len(deliveries) == 0 {
		w.t.Fatal("nothing was delivered")
	}
	if seen := w.seen(""); len(seen) > before {
		settings = seen[len(seen)-1].tls
	}
	return settings, deliveries[0].ResponseBody
}

func TestWebhookTLS(t *testing.T) {
	oldKey, newKey := generateKey(t), generateKey(t)
	inWorld(t, posthorn.Config{SecretKeys: []string{oldKey}, RetryPolicy: &posthorn.RetryPolicy{}}, func(t *testing.T, w *world) {
		a := certtest.New(t)
		cert, key := a.Client()
		otherCert, otherKey := a.Client()
		all := sender.TLS{MinVersion: "1.3", RootCAs: a.PEM, Certificate: cert, Key: key}
		hook, err := w.CreateWebhook(t.Context(), posthorn.NewWebhook{
			RepoID: "r1", URL: secure, Events: []string{"push"}, Secret: "s",
			Options: posthorn.Options{TLS: posthorn.TLS{MinVersion: "1.3", RootCAs: a.PEM, Certificate: cert, Key: key, SealedKey: "made up"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if hook.TLS.Key != "" || hook.TLS.SealedKey == "" || strings.Contains(hook.TLS.SealedKey, "KEY") {
			t.Errorf("the key is kept as %q and %q", hook.TLS.Key, hook.TLS.SealedKey)
		}
		expect := func(what string, want sender.TLS) {
			t.Helper()
			got, body := w.sentWith(hook)
			if diff := cmp.Diff(want, got); diff != "" || body != "ok" {
				t.Errorf("%s: %q, -want +got:\n%s", what, body, diff)
			}
		}
		update := func(p posthorn.WebhookPatch) error {
			changed, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, p)
			if err == nil {
				hook = changed
			}
			return err
		}
		refused := func(what, field string, p posthorn.WebhookPatch) {
			t.Helper()
			err := update(p)
			e, ok := errors.AsType[*posthorn.Error](err)
			if !ok || e.Code != posthorn.CodeInvalid || e.Field != field || strings.Contains(err.Error(), "BEGIN") {
				t.Errorf("%s: %v", what, err)
			}
		}
		expect("as created", all)

		// The key stays with its certificate, and with no other.
		if err := update(posthorn.WebhookPatch{TLS: &posthorn.TLS{Certificate: cert}}); err != nil {
			t.Fatal(err)
		}
		expect("the certificate alone", sender.TLS{Certificate: cert, Key: key})
		refused("another certificate without its key", "tls", posthorn.WebhookPatch{TLS: &posthorn.TLS{Certificate: otherCert}})
		refused("another key", "tls", posthorn.WebhookPatch{TLS: &posthorn.TLS{Certificate: cert, Key: otherKey}})
		refused("no such version", "tls", posthorn.WebhookPatch{TLS: &posthorn.TLS{MinVersion: "1.1"}})
		const plain = "http://plain.example/hook"
		refused("a plain URL", "tls", posthorn.WebhookPatch{URL: new(plain)})
		expect("after refusals", sender.TLS{Certificate: cert, Key: key})
		if err := update(posthorn.WebhookPatch{TLS: &posthorn.TLS{Certificate: otherCert, Key: otherKey}}); err != nil {
			t.Fatal(err)
		}
		expect("another pair", sender.TLS{Certificate: otherCert, Key: otherKey})
		if _, err := w.CreateWebhook(t.Context(), posthorn.NewWebhook{
			RepoID: "r1", URL: plain, Events: []string{"push"}, Options: posthorn.Options{TLS: posthorn.TLS{MinVersion: "1.3"}},
		}); posthorn.ErrorCode(err) != posthorn.CodeInvalid {
			t.Errorf("settings for a plain URL: %v", err)
		}

		// Another encryption key: the webhook's key is among what is encrypted anew.
		if err := update(posthorn.WebhookPatch{TLS: &posthorn.TLS{MinVersion: "1.3", RootCAs: a.PEM, Certificate: cert, Key: key}}); err != nil {
			t.Fatal(err)
		}
		w.cfg.SecretKeys = []string{newKey, oldKey}
		w.restart()
		if s, err := w.KeyStatus(t.Context()); err != nil || s.Left != 0 || s.Unreadable != 0 {
			t.Errorf("%+v, %v", s, err)
		}
		w.cfg.SecretKeys = []string{newKey}
		w.restart()
		expect("with another encryption key", all)

		// It is bound to its webhook, and to being that key.
		exchange := func(change func(*posthorn.Webhook)) {
			t.Helper()
			if _, err := w.store.UpdateWebhook(t.Context(), "r1", hook.ID, func(w *posthorn.Webhook) error { change(w); return nil }); err != nil {
				t.Fatal(err)
			}
			w.restart()
		}
		foreign, err := w.CreateWebhook(t.Context(), posthorn.NewWebhook{
			RepoID: "r2", URL: secure, Events: []string{"push"}, Options: posthorn.Options{TLS: posthorn.TLS{Certificate: cert, Key: otherKey}},
		})
		if posthorn.ErrorCode(err) != posthorn.CodeInvalid {
			t.Errorf("a key that isn't the certificate's: %v", err)
		}
		if foreign, err = w.CreateWebhook(t.Context(), posthorn.NewWebhook{
			RepoID: "r2", URL: secure, Events: []string{"push"}, Options: posthorn.Options{TLS: posthorn.TLS{Certificate: cert, Key: key}},
		}); err != nil {
			t.Fatal(err)
		}
		if hook, err = w.Webhook(t.Context(), "r1", hook.ID); err != nil {
			t.Fatal(err)
		}
		sealed, secrets := hook.TLS.SealedKey, slices.Clone(hook.Secrets)
		for what, change := range map[string]func(*posthorn.Webhook){
			"another webhook's": func(w *posthorn.Webhook) { w.TLS.SealedKey = foreign.TLS.SealedKey },
			"its secret":        func(w *posthorn.Webhook) { w.TLS.SealedKey = secrets[0].Sealed },
			"in plain text":     func(w *posthorn.Webhook) { w.TLS.SealedKey = key },
		} {
			exchange(change)
			if got, body := w.sentWith(hook); got != (sender.TLS{}) || !strings.Contains(body, "key of the client certificate was encrypted for another webhook") {
				t.Errorf("%s: %q", what, body)
			}
			refused(what+", and the same certificate", "tls", posthorn.WebhookPatch{TLS: &posthorn.TLS{Certificate: cert}})
		}
		exchange(func(w *posthorn.Webhook) { w.TLS.SealedKey, w.Secrets[0].Sealed = sealed, sealed })
		if _, body := w.sentWith(hook); !strings.Contains(body, "signing secret was encrypted for another webhook") {
			t.Errorf("the key as a secret: %q", body)
		}
		exchange(func(w *posthorn.Webhook) { w.TLS.SealedKey, w.Secrets = sealed, secrets })

		if err := update(posthorn.WebhookPatch{TLS: &posthorn.TLS{}, URL: new(plain)}); err != nil {
			t.Fatal(err)
		}
		expect("without settings", sender.TLS{})
		audit, err := w.AuditLog(t.Context(), posthorn.AuditQuery{RepoID: "r1", Limit: 1})
		if err != nil || len(audit.Items) != 1 || audit.Items[0].Detail != "url, tls" {
			t.Errorf("the audit log has %+v, %v", audit.Items, err)
		}
	})
}

func generateKey(t *testing.T) string {
	t.Helper()
	key, err := secretbox.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}
