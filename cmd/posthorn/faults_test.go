package main

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/musehub/posthorn/internal/secretbox"
)

// What stands in the place of the database or of a file beside it and is something else, is an error that names it.
func TestFaultNoDatabase(t *testing.T) {
	needsSQLite(t)
	t.Parallel()
	file := func(name string, content string) func(dir string) error {
		return func(dir string) error { return os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600) }
	}
	folder := func(name string) func(dir string) error {
		return func(dir string) error { return os.Mkdir(filepath.Join(dir, name), 0o700) }
	}
	for _, test := range []struct {
		name string
		data string // below the folder that make gets
		make func(dir string) error
		want string
	}{
		{"a folder in the database's place", "", folder("posthorn.db"), "posthorn.db"},
		{"no database", "", file("posthorn.db", strings.Repeat("this is no database\n", 1000)), "posthorn.db is not a SQLite database"},
		{"a folder in the lock's place", "", folder("posthorn.db.lock"), "posthorn.db"},
		{"a folder in the key file's place", "", folder("posthorn.db.key"), "posthorn.db.key"},
		{"no keys", "", file("posthorn.db.key", "\n"), "posthorn.db.key is empty"},
		{"a bad key", "", file("posthorn.db.key", "bad\n"), "secret key 1 of 1"},
		{"a folder in the token's place", "", folder(tokenFile), tokenFile},
		{"a file in the data folder's place", "data", file("data", ""), "data"},
		{"a file above the data folder", "file/data", file("file", ""), "file"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := test.make(dir); err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(serveFails(t, "--data", filepath.Join(dir, test.data))), "\n")
			if last := lines[len(lines)-1]; !strings.HasPrefix(last, "posthorn: ") || !strings.Contains(last, test.want) {
				t.Errorf("it says\n%s\nwant something with %q", strings.Join(lines, "\n"), test.want)
			}
		})
	}
}

// A second server on the same folder is refused, and the first doesn't notice.
func TestFaultSecondServer(t *testing.T) {
	needsSQLite(t)
	t.Parallel()
	receiver := newReceiver(t, nil)
	s := startContract(t)
	c := in(t, s)
	hook := c.hook(receiver.URL, "push", "")
	c.dispatch("push", `{}`, 1)
	for range 3 {
		if text := serveFails(t, "--data", s.data); !strings.Contains(text, "posthorn.db is in use by another process") {
			t.Errorf("the second server says %s", text)
		}
	}
	c.dispatch("push", `{}`, 1)
	for _, d := range c.awaitLog(hook, 2) {
		if !d.success() {
			t.Errorf("a delivery is logged as %d, %q", d.status(), d.body())
		}
	}
	s.stop()
	checkDatabase(t, s.data)
}

func newKey(t *testing.T) string {
	t.Helper()
	key, err := secretbox.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Without the keys of its database the server doesn't start, and says which it wants. With them it goes on.
func TestFaultWrongKeys(t *testing.T) { // not parallel: it sets variables of the environment
	needsSQLite(t)
	right, wrong := newKey(t), newKey(t)
	receiver := newReceiver(t, nil)
	t.Setenv("POSTHORN_SECRET_KEYS", right)
	s := startContract(t)
	c := in(t, s)
	c.hook(receiver.URL, "push", "s3cret")
	s.stop()
	for _, test := range []struct{ name, keys, want string }{
		{"another key", wrong, "POSTHORN_SECRET_KEYS"},
		{"no key", "", "posthorn.db.key is missing"},
		{"half a key", right[:20], "secret key 1 of 1"},
		{"half a key behind a whole one", right + "," + wrong[:20], "secret key 2 of 2"},
	} {
		t.Setenv("POSTHORN_SECRET_KEYS", test.keys)
		text := serveFails(t, "--data", s.data)
		if !strings.Contains(text, test.want) || strings.Contains(text, wrong[:20]) || strings.Contains(text, right[:20]) {
			t.Errorf("%s: it says %s", test.name, text)
		}
	}

	t.Setenv("POSTHORN_SECRET_KEYS", wrong+", "+right)
	s = startContract(t, "--data", s.data)
	c.at(s).dispatch("push", `{}`, 1)
	checkSigned(t, receiver.await(1)[0], "s3cret")
	s.stop()
}

// setSecrets writes a webhook's secrets past the server, which has stopped.
func setSecrets(t *testing.T, data, hook string, stored ...string) {
	t.Helper()
	secrets := []map[string]string{}
	for _, s := range stored {
		secrets = append(secrets, map[string]string{"sealed": s})
	}
	if n := len(sql(t, data, "UPDATE posthorn_webhooks SET secrets = ? WHERE id = ? RETURNING id", asJSON(secrets), hook)); n != 1 {
		t.Fatalf("%d webhooks have the ID %s", n, hook)
	}
}

// Case 16: a secret that can't be decrypted fails its webhook's deliveries, which say so, and nothing else.
func TestFaultUndecryptableSecret(t *testing.T) {
	t.Parallel()
	healthy, never := newReceiver(t, nil), newReceiver(t, nil)
	s := startContract(t, "--retry-policy", "none")
	c := in(t, s)
	good := c.hook(healthy.URL, "push", "s3cret")
	bad := map[string]string{}
	for _, name := range []string{"of another key", "tampered with", "of another key before a good one"} {
		bad[name] = c.hook(never.URL, "push", "s3cret")
	}
	s.stop()

	box, err := secretbox.New([]string{newKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := box.Seal("s3cret")
	if err != nil {
		t.Fatal(err)
	}
	var stored []struct{ Sealed string }
	if err := json.Unmarshal([]byte(sql(t, s.data, "SELECT secrets FROM posthorn_webhooks WHERE id = ?", good)[0]), &stored); err != nil {
		t.Fatal(err)
	}
	own := stored[0].Sealed
	tampered := []byte(own)
	if tampered[len(own)/2]++; tampered[len(own)/2] != 'B' {
		tampered[len(own)/2] = 'A'
	}
	setSecrets(t, s.data, bad["of another key"], foreign)
	setSecrets(t, s.data, bad["tampered with"], string(tampered))
	setSecrets(t, s.data, bad["of another key before a good one"], foreign, own)

	s = startContract(t, "--data", s.data, "--retry-policy", "none")
	c = c.at(s)
	const events = 3
	for range events {
		c.dispatch("push", `{}`, 1+len(bad))
	}
	for name, hook := range bad {
		for _, d := range c.awaitLog(hook, events) {
			if d.success() || d.status() != 0 || !strings.HasPrefix(d.body(), "request error: ") ||
				!strings.Contains(d.body(), "decrypt") || !strings.Contains(d.body(), "POSTHORN_SECRET_KEYS") ||
				strings.Contains(d.body(), "gAAAA") || strings.Contains(d.body(), "s3cret") {
				t.Errorf("a secret %s: it is logged as %d, %q", name, d.status(), d.body())
			}
		}
	}
	for _, r := range healthy.await(events) {
		checkSigned(t, r, "s3cret")
	}

	// Once it is set again, the secret signs.
	for _, hook := range bad {
		c.ask(http.StatusOK, "PATCH", "/webhooks/"+hook, `{"secret":"n3w","secretOverlap":0}`)
	}
	c.dispatch("push", `{}`, 1+len(bad))
	for _, r := range never.await(len(bad)) {
		checkSigned(t, r, "n3w")
	}
	s.stop()
	if n := len(never.got()); n != len(bad) {
		t.Errorf("%d requests arrived that could not be signed", n-len(bad))
	}
}

// A key that was added for secrets that can't be read is not removed before they are.
func TestFaultPruneBeforeRescue(t *testing.T) {
	needsSQLite(t)
	t.Parallel()
	s := startContract(t)
	hook := in(t, s).hook("https://example.com/", "push", "s3cret")
	s.stop()
	lost := newKey(t)
	box, err := secretbox.New([]string{lost})
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := box.SealFor(hook, "s3cret")
	if err != nil {
		t.Fatal(err)
	}
	setSecrets(t, s.data, hook, sealed)

	s = startContract(t, "--data", s.data)
	keys := filepath.Join(s.data, "posthorn.db.key")
	first, err := os.ReadFile(keys)
	if err != nil {
		t.Fatal(err)
	}
	both := string(first) + lost + "\n"
	if err := os.WriteFile(keys, []byte(both), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(command string) string {
		cmd := exec.CommandContext(t.Context(), "posthorn", "keys", command, "--data", s.data)
		cmd.Env = append(os.Environ(), "POSTHORN_SERVER="+s.url, "POSTHORN_TOKEN="+s.token)
		out, _ := cmd.CombinedOutput() // the output says whether it failed
		return string(out)
	}
	if out := run("status"); !strings.Contains(out, "Keep all keys") {
		t.Errorf("keys status: %s", out)
	}
	if out := run("prune"); !strings.Contains(out, "1 secrets can't be read: nothing was removed") {
		t.Errorf("keys prune: %s", out)
	}
	if left, err := os.ReadFile(keys); err != nil || string(left) != both {
		t.Fatalf("%d bytes of keys are left of %d, %v", len(left), len(both), err)
	}
	s.stop()
	s = startContract(t, "--data", s.data)
	eventually(t, func() string {
		if out := run("prune"); !strings.Contains(out, "removed 1 keys") {
			return "keys prune: " + out
		}
		return ""
	})
}

// Case 16: a ciphertext that has lost its end, as in a column that is too short, is no plaintext.
func TestFaultTruncatedSecret(t *testing.T) {
	t.Parallel()
	receiver := newReceiver(t, nil)
	s := startContract(t, "--retry-policy", "none")
	c := in(t, s)
	hook := c.hook(receiver.URL, "push", "s3cret")
	s.stop()
	var stored []struct{ Sealed string }
	if err := json.Unmarshal([]byte(sql(t, s.data, "SELECT secrets FROM posthorn_webhooks")[0]), &stored); err != nil {
		t.Fatal(err)
	}
	truncated := stored[0].Sealed[:len(stored[0].Sealed)-3]
	setSecrets(t, s.data, hook, truncated)

	s = startContract(t, "--data", s.data, "--retry-policy", "none")
	c = c.at(s)
	c.dispatch("push", `{}`, 1)
	if d := c.awaitLog(hook, 1)[0]; d.success() || d.status() != 0 || !strings.Contains(d.body(), "decrypt") {
		t.Errorf("it is logged as %d, %q", d.status(), d.body())
	}
	s.stop()
	for _, r := range receiver.got() {
		t.Errorf("something was signed with a ciphertext: %s", r.Raw)
	}
	if got := sql(t, s.data, "SELECT secrets FROM posthorn_webhooks")[0]; !strings.Contains(got, truncated) {
		t.Errorf("the ciphertext was encrypted as if it were a plaintext: %s", got)
	}
}

// A secret that an import brought in as plaintext signs, and is soon encrypted.
func TestFaultPlaintextSecret(t *testing.T) {
	t.Parallel()
	receiver := newReceiver(t, nil)
	s := startContract(t)
	c := in(t, s)
	hook := c.hook(receiver.URL, "push", "")
	s.stop()
	const plain = "imported as it was"
	setSecrets(t, s.data, hook, plain)

	for start := range 2 {
		s = startContract(t, "--data", s.data)
		c = c.at(s)
		c.dispatch("push", `{}`, 1)
		checkSigned(t, receiver.await(start + 1)[start], plain)
		eventually(t, func() string {
			if start == 0 && !strings.Contains(s.logs(), "encrypted signing secrets with the first key") {
				return "the server has not encrypted the secret"
			}
			return ""
		})
		s.stop()
		stored := sql(t, s.data, "SELECT secrets FROM posthorn_webhooks")[0]
		if strings.Contains(stored, plain) || !strings.Contains(stored, `"sealed":"gAAAA`) {
			t.Errorf("after start %d the database has the secret as %s", start+1, stored)
		}
		if logs := s.logs(); strings.Contains(logs, plain) {
			t.Errorf("the secret is in the log: %s", logs)
		}
	}
}
