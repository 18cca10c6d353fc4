package posthorn_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/secretbox"
	"github.com/musehub/posthorn/signature"
)

// signedWebhook makes a webhook with a secret.
func (w *world) signedWebhook(repoID, url, secret string) posthorn.Webhook {
	w.t.Helper()
	hook, err := w.CreateWebhook(w.t.Context(), posthorn.NewWebhook{RepoID: repoID, URL: url, Events: []string{"push"}, Secret: secret})
	if err != nil {
		w.t.Fatal(err)
	}
	return hook
}

// signatures dispatches an event and returns the last request's two headers with signatures, and which of the keys verify it.
func (w *world) signatures(repoID, url string, keys ...string) (own, standard string, verifying []string) {
	w.t.Helper()
	w.dispatch(repoID, fmt.Sprintf("e%d-%d", len(w.seen(url)), time.Now().UnixNano()))
	synctest.Wait()
	seen := w.seen(url)
	if len(seen) == 0 {
		w.t.Fatal("no request was sent")
	}
	r := seen[len(seen)-1]
	header := canonical(r.header)
	for _, key := range keys {
		v, err := signature.NewVerifier(key)
		if err != nil {
			w.t.Fatal(err)
		}
		v.StandardOnly = true
		if v.Verify(header, []byte(r.body)) == nil {
			verifying = append(verifying, key)
		}
	}
	return strings.Join(r.header["X-MuseHub-Signature"], ""), strings.Join(r.header["webhook-signature"], ""), verifying
}

func (w *world) rotate(hook posthorn.Webhook, secret string, overlap time.Duration) posthorn.Secret {
	w.t.Helper()
	s, err := w.RotateSecret(w.t.Context(), hook.RepoID, hook.ID, secret, overlap)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) restart() {
	w.t.Helper()
	if err := w.Stop(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	w.start()
	synctest.Wait()
}

func TestRotateAndRevokeSecrets(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook := w.signedWebhook("r1", good, "one")
		two := w.rotate(hook, "two", time.Hour)
		three := w.rotate(hook, "three", 2*time.Hour)
		expect := func(what string, want ...string) {
			t.Helper()
			_, _, got := w.signatures("r1", good, "one", "two", "three", "four")
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", what, diff)
			}
		}
		expect("after two rotations", "one", "two", "three")
		secrets, err := w.Secrets(t.Context(), "r1", hook.ID)
		if err != nil || len(secrets) != 3 || secrets[0].ID != three.ID || secrets[1].ID != two.ID {
			t.Fatalf("secrets %+v, %v", secrets, err)
		}
		if got := secrets[2].ExpiresAt.Sub(two.CreatedAt); got != time.Hour {
			t.Errorf("a longer overlap made the first secret sign for %v", got)
		}

		revoke := func(id string) error { return w.RevokeSecret(t.Context(), "r1", hook.ID, id) }
		if err := revoke(two.ID); err != nil {
			t.Fatal(err)
		}
		expect("after revoking", "one", "three")
		if err := revoke(two.ID); posthorn.ErrorCode(err) != posthorn.CodeNotFound {
			t.Errorf("revoking it again: %v", err)
		}
		// The last one for good is not revoked, or all would be unsigned in an hour.
		if err := revoke(three.ID); posthorn.ErrorCode(err) != posthorn.CodeConflict {
			t.Errorf("revoking the newest: %v", err)
		}
		expect("after a refusal", "one", "three")
		pass(time.Hour)
		expect("after an hour", "three")
		if secrets, err := w.Secrets(t.Context(), "r1", hook.ID); err != nil || len(secrets) != 1 {
			t.Errorf("secrets %+v, %v", secrets, err)
		}
		w.rotate(hook, "four", 0)
		expect("without an overlap", "four")

		_, err = w.RotateSecret(t.Context(), "r1", hook.ID, "five", -time.Second)
		if posthorn.ErrorCode(err) != posthorn.CodeInvalid {
			t.Errorf("a negative overlap: %v", err)
		}
		for _, bad := range []string{"", "whsk_x", "whpk_A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="} {
			if _, err := w.RotateSecret(t.Context(), "r1", hook.ID, bad, 0); posthorn.ErrorCode(err) != posthorn.CodeInvalid {
				t.Errorf("the secret %q: %v", bad, err)
			}
		}
		if _, err := w.RotateSecret(t.Context(), "r2", hook.ID, "x", 0); posthorn.ErrorCode(err) != posthorn.CodeNotFound {
			t.Errorf("in another repo: %v", err)
		}
		expect("in the end", "four")
	})
}

func TestAtMostTenSecrets(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook := w.signedWebhook("r1", good, "s0")
		for i := range posthorn.MaxSecrets - 1 {
			w.rotate(hook, fmt.Sprint("s", i+1), time.Hour)
		}
		_, err := w.RotateSecret(t.Context(), "r1", hook.ID, "one more", time.Hour)
		if posthorn.ErrorCode(err) != posthorn.CodeConflict || !strings.Contains(err.Error(), "10 secrets") {
			t.Errorf("the eleventh: %v", err)
		}
		if _, standard, _ := w.signatures("r1", good); strings.Count(standard, "v1,") != 10 {
			t.Errorf("signed %q", standard)
		}
		pass(time.Hour) // those that have expired don't count
		w.rotate(hook, "one more", time.Hour)
		for i := range posthorn.MaxSecrets - 2 {
			w.rotate(hook, fmt.Sprint("again", i), time.Hour)
		}
		w.rotate(hook, "the only one", 0)
		if secrets, err := w.Secrets(t.Context(), "r1", hook.ID); err != nil || len(secrets) != 1 {
			t.Errorf("%d secrets, %v", len(secrets), err)
		}
	})
}

func TestEd25519Webhook(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		private := signature.GeneratePrivateKey()
		public, err := signature.PublicKey(private)
		if err != nil {
			t.Fatal(err)
		}
		hook := w.signedWebhook("r1", good, private)
		own, standard, verifying := w.signatures("r1", good, public)
		if own != "" || !strings.HasPrefix(standard, "v1a,") || len(verifying) != 1 {
			t.Errorf("signed %q and %q, verified by %q", own, standard, verifying)
		}
		masked := func() string {
			pass(time.Second)
			synctest.Wait()
			header := w.RequestHeader(w.deliveries(hook)[0])
			return fmt.Sprint(header["X-MuseHub-Signature"], header["webhook-signature"]) //nolint:staticcheck // as it is sent
		}
		if got := masked(); got != "[] [v1a,***]" {
			t.Errorf("the log shows %s", got)
		}
		keys, err := w.PublicKeys(t.Context(), "r1", hook.ID)
		if err != nil || len(keys) != 1 || keys[0].Key != public || keys[0].ID != hook.Secrets[0].ID || keys[0].Kind != posthorn.SecretEd25519 {
			t.Errorf("public keys %+v, %v", keys, err)
		}

		// Changing over: both sign, and MuseHub's header is the secret's.
		w.rotate(hook, "s3cret", time.Hour)
		own, standard, verifying = w.signatures("r1", good, public, "s3cret")
		if !strings.HasPrefix(own, "sha256=") || !strings.HasPrefix(standard, "v1,") || len(verifying) != 2 {
			t.Errorf("signed %q and %q, verified by %q", own, standard, verifying)
		}
		if got := masked(); got != "[sha256=***] [v1,*** v1a,***]" {
			t.Errorf("the log shows %s", got)
		}
		pass(time.Hour)
		if keys, err := w.PublicKeys(t.Context(), "r1", hook.ID); err != nil || len(keys) != 0 {
			t.Errorf("after the overlap: public keys %+v, %v", keys, err)
		}
	})
}

// setSecrets writes the secrets of a webhook into the store, past the dispatcher.
func (w *world) setSecrets(hook posthorn.Webhook, secrets ...posthorn.Secret) {
	w.t.Helper()
	if _, err := w.store.UpdateWebhook(w.t.Context(), hook.RepoID, hook.ID, func(h *posthorn.Webhook) error {
		h.Secrets = secrets
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
}

// Who exchanges ciphertexts between two webhooks gets neither to sign with the other's secret (case 16).
func TestExchangedSecrets(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		mine, other := w.signedWebhook("r1", bad, "mine"), w.signedWebhook("r1", good, signature.GeneratePrivateKey())
		w.setSecrets(mine, other.Secrets...)
		w.restart()
		w.dispatch("r1", "e1")
		pass(time.Minute)
		if n := len(w.seen(bad)); n != 0 {
			t.Errorf("%d requests were sent with another webhook's secret", n)
		}
		log := w.deliveries(mine)
		if len(log) != 3 || log[0].Success || !strings.HasPrefix(log[0].ResponseBody, "request error: ") || !strings.Contains(log[0].ResponseBody, "another webhook") {
			t.Errorf("log %+v", log)
		}
		if len(w.seen(good)) != 1 {
			t.Error("the other webhook was harmed")
		}
		if keys, err := w.PublicKeys(t.Context(), "r1", mine.ID); posthorn.ErrorCode(err) != posthorn.CodeUnavailable {
			t.Errorf("public keys %+v, %v", keys, err)
		}
		if s, err := w.KeyStatus(t.Context()); err != nil || s.Unreadable != 1 || s.Left != 0 {
			t.Errorf("status %+v, %v", s, err)
		}
		w.rotate(mine, "again", time.Hour)
		if _, _, verifying := w.signatures("r1", bad, "again"); len(verifying) != 1 {
			t.Error("a new secret doesn't sign")
		}
	})
}

// What was meant to be signed is not sent unsigned when all secrets have expired, as only an import can have it.
func TestAllSecretsExpired(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook := w.signedWebhook("r1", bad, "s3cret")
		expired := hook.Secrets[0]
		expired.ExpiresAt = time.Now().Add(-time.Second)
		w.setSecrets(hook, expired)
		w.restart()
		w.dispatch("r1", "e1")
		pass(time.Minute)
		if log := w.deliveries(hook); len(w.seen(bad)) != 0 || len(log) == 0 || !strings.Contains(log[0].ResponseBody, "expired") {
			t.Errorf("%d requests, log %+v", len(w.seen(bad)), log)
		}
	})
}

// Keys are changed with the old one behind the new one: then all is encrypted with the new one, imported secrets and half-done
// work included, and the old one isn't needed any more.
func TestKeysAreChanged(t *testing.T) {
	const foreign = "gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA=="
	oldKey, newKey := generateKey(t), generateKey(t)
	old, err := secretbox.New([]string{oldKey})
	if err != nil {
		t.Fatal(err)
	}
	token, err := old.Seal("original")
	if err != nil {
		t.Fatal(err)
	}
	inWorld(t, posthorn.Config{SecretKeys: []string{oldKey}}, func(t *testing.T, w *world) {
		hooks := map[string]posthorn.Webhook{}
		for _, name := range []string{"bound", "plain", "original", "lost", "expired"} {
			hooks[name] = w.signedWebhook(name, good, "old-"+name)
		}
		for i := range 250 { // more than a page
			w.signedWebhook("many", bad, fmt.Sprint("s", i))
		}
		w.setSecrets(hooks["plain"], posthorn.Secret{Sealed: "plain"})
		w.setSecrets(hooks["original"], posthorn.Secret{Sealed: token})
		w.setSecrets(hooks["lost"], posthorn.Secret{Sealed: foreign})
		w.rotate(hooks["expired"], "new", time.Second)
		pass(2 * time.Second)

		var log bytes.Buffer
		w.cfg.SecretKeys, w.cfg.Logger = []string{newKey, oldKey}, slog.New(slog.NewTextHandler(&log, nil))
		if err := w.Stop(context.Background()); err != nil {
			t.Fatal(err)
		}
		w.prepare()
		before, err := w.KeyStatus(t.Context())
		if err != nil || before.Keys != 2 || before.Left != 255 || before.Unreadable != 1 { // 254 of 255 webhooks, and the check
			t.Errorf("before: %+v, %v", before, err)
		}
		if want, err := secretbox.Fingerprint(newKey); before.First != want || err != nil {
			t.Errorf("the first key is %q, want %q", before.First, want)
		}

		// The first pass is interrupted after a page; the next one goes on.
		pages := 0
		w.tamper(func(_ context.Context, call string, do func() error) error {
			if call == "Webhooks" {
				if pages++; pages > 1 {
					return errors.New("the disk is gone")
				}
			}
			return do()
		})
		if w.Reseal(t.Context()) {
			t.Error("an interrupted pass says that it got to the end")
		}
		w.tamper(nil)
		if s, err := w.KeyStatus(t.Context()); err != nil || s.Left == 0 || s.Left >= before.Left {
			t.Errorf("after an interruption: %+v, %v", s, err)
		}
		if err := w.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		after, err := w.KeyStatus(t.Context())
		if err != nil || after.Left != 0 || after.Unreadable != 1 {
			t.Errorf("after: %+v, %v", after, err)
		}
		for part, want := range map[string]bool{"encrypted signing secrets": true, "can't be decrypted": true, "the others can be removed": false} {
			if strings.Contains(log.String(), part) != want {
				t.Errorf("whether the log says %q: want %t:\n%s", part, want, &log)
			}
		}

		w.cfg.SecretKeys, w.cfg.Logger = []string{newKey}, nil
		w.restart()
		for name, secret := range map[string]string{"bound": "old-bound", "plain": "plain", "original": "original", "expired": "new"} {
			if _, _, verifying := w.signatures(name, good, secret); len(verifying) != 1 {
				t.Errorf("%s: not signed with %q", name, secret)
			}
			secrets, err := w.Secrets(t.Context(), name, hooks[name].ID)
			if err != nil || len(secrets) != 1 || secrets[0].ID == "" || secrets[0].Kind != posthorn.SecretHMAC {
				t.Errorf("%s: %+v, %v", name, secrets, err)
			}
		}
		if stored, err := w.store.Webhook(t.Context(), "expired", hooks["expired"].ID); err != nil || len(stored.Secrets) != 1 {
			t.Errorf("an expired secret is kept: %+v, %v", stored.Secrets, err)
		}
		_, err = posthorn.New(w.store, posthorn.Config{SecretKeys: []string{oldKey}})
		if posthorn.ErrorCode(err) != posthorn.CodeInvalid {
			t.Errorf("New with the old key alone: %v", err)
		}
	})
}

// What another node encrypts with an older key, or an import brings in while the node runs, is found within the hour.
func TestSecretsAreLookedThroughAgain(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook := w.webhook("r1", good)
		synctest.Wait()
		w.setSecrets(hook, posthorn.Secret{Sealed: "imported"})
		pass(61 * time.Minute)
		synctest.Wait()
		if s, err := w.KeyStatus(t.Context()); err != nil || s.Left != 0 {
			t.Errorf("%+v, %v", s, err)
		}
	})
}
