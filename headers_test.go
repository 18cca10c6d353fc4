package posthorn_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musehub/posthorn"
)

// A webhook's own headers are sent as given, kept encrypted, changed together, and shown to nobody.
func TestWebhookHeaders(t *testing.T) {
	oldKey, newKey := generateKey(t), generateKey(t)
	inWorld(t, posthorn.Config{SecretKeys: []string{oldKey}, RetryPolicy: &posthorn.RetryPolicy{}}, func(t *testing.T, w *world) {
		hook, err := w.CreateWebhook(t.Context(), posthorn.NewWebhook{
			RepoID: "r1", URL: good, Events: []string{"push"}, Secret: "s3cret", Options: posthorn.Options{
				Headers: map[string]string{"Authorization": "Bearer abc", "x-api_KEY": ""}, SealedHeaders: map[string]string{"Made": "up"},
				GitHubSignature: true, IdempotencyKey: true,
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if hook.Headers != nil || len(hook.SealedHeaders) != 2 || strings.Contains(fmt.Sprint(hook.SealedHeaders), "abc") {
			t.Errorf("it is kept as %+v", hook.Options)
		}
		n := 0
		// sent returns the headers of the next request that are not on every request, and how the delivery went.
		sent := func() (map[string]string, posthorn.Delivery) {
			t.Helper()
			before := len(w.seen(good))
			w.dispatch("r1", fmt.Sprint("e", n))
			n++
			pass(time.Second)
			delivery := w.deliveries(hook)[0]
			own := map[string]string{}
			if seen := w.seen(good); len(seen) > before {
				for name, values := range seen[len(seen)-1].header {
					own[name] = strings.Join(values, "|")
				}
				if own["X-Hub-Signature-256"] != "" && own["X-Hub-Signature-256"] != own["X-MuseHub-Signature"] {
					t.Errorf("two signatures: %v", own)
				}
			}
			for _, usual := range []string{"Content-Type", "User-Agent", "X-MuseHub-Event", "X-MuseHub-Delivery", "X-MuseHub-Signature", "webhook-id", "webhook-timestamp", "webhook-signature"} {
				if own[usual] == "" && len(own) > 0 {
					t.Errorf("%s is missing", usual)
				}
				delete(own, usual)
			}
			return own, delivery
		}
		expect := func(what string, want map[string]string) {
			t.Helper()
			got, delivery := sent()
			shown := w.RequestHeader(delivery)
			for name, value := range got {
				masked := posthorn.MaskedHeader
				switch name {
				case "X-Hub-Signature-256":
					got[name], masked = "signed", "sha256=***"
				case "Idempotency-Key":
					masked = value
				}
				if s := shown[name]; len(s) != 1 || s[0] != masked {
					t.Errorf("%s: %s is shown as %q", what, name, s)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" || delivery.ResponseBody != "ok" {
				t.Errorf("%s: %q, -want +got:\n%s", what, delivery.ResponseBody, diff)
			}
		}
		update := func(p posthorn.WebhookPatch) error {
			changed, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, p)
			if err == nil {
				hook = changed
			}
			return err
		}
		all := map[string]string{"Authorization": "Bearer abc", "x-api_KEY": "", "X-Hub-Signature-256": "signed", "Idempotency-Key": "e0"}
		expect("as created", all)
		if err := update(posthorn.WebhookPatch{Headers: map[string]string{"Authorization": posthorn.MaskedHeader, "X-New": "1"}, GitHubSignature: new(false)}); err != nil {
			t.Fatal(err)
		}
		expect("after a change", map[string]string{"Authorization": "Bearer abc", "X-New": "1", "Idempotency-Key": "e1"})

		many, big := map[string]string{}, map[string]string{}
		for i := range 21 {
			many[fmt.Sprint("X-", i)] = "x"
		}
		for i := range 9 {
			big[fmt.Sprint("X-", i)] = strings.Repeat("x", 1000)
		}
		for _, headers := range []map[string]string{
			{"Host": "x"}, {"content-length": "1"}, {"Content-Type": "text/plain"}, {"Transfer-Encoding": "chunked"}, {"Connection": "close"}, {"TE": "x"},
			{"Proxy-Authorization": "x"}, {"webhook-id": "x"}, {"Webhook-Anything": "x"}, {"X-MuseHub-Event": "x"}, {"x-musehub-x": "x"}, {"Traceparent": "x"},
			{"User-Agent": "x"}, {"Idempotency-Key": "x"}, {"X-Hub-Signature-256": "x"}, {"Posthorn-Depth": "x"}, {"": "x"}, {"X Y": "x"}, {"X:": "x"}, {"Ü": "x"},
			{"X-A": "a\r\nX-B: b"}, {"X-A": "\x00"}, {"X-A": " padded"}, {"X-A": "\xff"}, {"X-A": "1", "x-a": "2"}, {"X-A": posthorn.MaskedHeader},
			{strings.Repeat("x", 129): "x"}, many, big,
		} {
			err := update(posthorn.WebhookPatch{Headers: headers})
			if e, ok := errors.AsType[*posthorn.Error](err); !ok || e.Code != posthorn.CodeInvalid || e.Field != "headers" {
				t.Errorf("%.100q: %v", fmt.Sprint(headers), err)
			}
		}

		w.cfg.SecretKeys = []string{newKey, oldKey}
		w.restart()
		if s, err := w.KeyStatus(t.Context()); err != nil || s.Left != 0 || s.Unreadable != 0 {
			t.Errorf("%+v, %v", s, err)
		}
		w.cfg.SecretKeys = []string{newKey}
		w.restart()
		expect("with another encryption key", map[string]string{"Authorization": "Bearer abc", "X-New": "1", "Idempotency-Key": "e2"})

		// Each value is bound to its name, and none is in plain text.
		if hook, err = w.Webhook(t.Context(), "r1", hook.ID); err != nil {
			t.Fatal(err)
		}
		for _, value := range []string{hook.SealedHeaders["Authorization"], "plain"} {
			if _, err := w.store.UpdateWebhook(t.Context(), "r1", hook.ID, func(w *posthorn.Webhook) error {
				w.SealedHeaders = maps.Clone(w.SealedHeaders)
				w.SealedHeaders["X-New"] = value
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			w.restart()
			if got, delivery := sent(); len(got) != 0 || !strings.Contains(delivery.ResponseBody, "header X-New was encrypted for another webhook") {
				t.Errorf("an exchanged value: %v, %q", got, delivery.ResponseBody)
			}
		}
		if err := update(posthorn.WebhookPatch{Headers: map[string]string{}, IdempotencyKey: new(false)}); err != nil {
			t.Fatal(err)
		}
		expect("without", map[string]string{})
	})
}

// With the Ed25519 key alone there is nothing that GitHub's scheme could sign with.
func TestGitHubSignatureNeedsSecret(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook := w.withOptions("r1", good, posthorn.Options{GitHubSignature: true})
		w.dispatch("r1", "e1")
		pass(time.Second)
		if h := w.seen(good)[0].header["X-Hub-Signature-256"]; h != nil {
			t.Errorf("an unsigned request has %q", h)
		}
		if h := w.RequestHeader(w.deliveries(hook)[0]); h["X-Hub-Signature-256"] != nil {
			t.Errorf("it is shown as %v", h)
		}
	})
}

// A shell that runs the command of a delivery gives curl what was sent, to the last byte, but for what is masked.
func TestCurl(t *testing.T) {
	stub := t.TempDir()
	script := "#!/bin/sh\nprintf '%s\\0' \"$@\"\ncat\n"
	if err := os.WriteFile(filepath.Join(stub, "curl"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	inWorld(t, posthorn.Config{UserAgent: "it's $HOME"}, func(t *testing.T, w *world) {
		const url = "https://good.example/a/../{b,c}?d=[1-9]&e='$HOME'"
		payload := "{\"a\": \"it's `id` $(id) $HOME \\\\ \\n % ä\",\r\n\t\"b\": \"'\\\"''\"}\n" + strings.Repeat(" ", 200<<10) // longer than an argument may be
		hook, err := w.CreateWebhook(t.Context(), posthorn.NewWebhook{
			RepoID: "r1", URL: url, Events: []string{"push"}, Secret: "s3cret",
			Options: posthorn.Options{Headers: map[string]string{"Authorization": "Bearer abc"}, GitHubSignature: true, IdempotencyKey: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.Dispatch(t.Context(), posthorn.Event{
			ID: "e1", RepoID: "r1", Type: "push", Payload: json.RawMessage(payload),
			Attributes: posthorn.Attributes{TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
		})
		if err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		sent, delivery := w.seen("")[0], w.deliveries(hook)[0]
		masked := []string{"Authorization", "X-Hub-Signature-256", "X-MuseHub-Signature", "webhook-signature"}
		want := []string{"--globoff", "--path-as-is", "-X", "POST", delivery.Exchange.URL}
		for _, name := range slices.Sorted(maps.Keys(sent.header)) {
			if !slices.Contains(masked, name) {
				want = append(want, "-H", name+": "+sent.header[name][0])
			}
		}
		want = append(want, "--data-binary", "@-", sent.body)
		cmd := exec.CommandContext(t.Context(), "sh")
		cmd.Stdin = strings.NewReader(w.Curl(delivery))
		cmd.Env = []string{"HOME=/elsewhere", "PATH=" + stub + string(os.PathListSeparator) + os.Getenv("PATH")}
		got, err := cmd.Output()
		if diff := cmp.Diff(want, strings.Split(string(got), "\x00")); diff != "" || err != nil {
			t.Errorf("curl gets (-want +got): %v\n%s", err, diff)
		}

		// What was polled was no request, and of what is pruned the body is missing.
		pruned, polled := delivery, delivery
		pruned.Payload, polled.Exchange.URL = nil, ""
		for _, d := range []posthorn.Delivery{pruned, polled} {
			if got := w.Curl(d); got != "" {
				t.Errorf("a command that makes another request: %s", got)
			}
		}
	})
}
