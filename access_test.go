package posthorn_test

import (
	"context"
	"hash/crc32"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musehub/posthorn"
)

// The text of a token: what scanners look for, and a checksum worked out in another way.
func TestTokenText(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		text := posthorn.NewTokenText()
		if !regexp.MustCompile(`^posthorn_[A-Z2-7]{33}$`).MatchString(text) || seen[text] {
			t.Fatalf("the token %q", text)
		}
		seen[text] = true
		const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567" // RFC 4648, section 6
		sum, body := uint64(crc32.ChecksumIEEE([]byte(text[:len(text)-7])))<<3, ""
		for shift := 30; shift >= 0; shift -= 5 {
			body += string(digits[sum>>shift&31])
		}
		if text[len(text)-7:] != body {
			t.Fatalf("the token %q should end with %s", text, body)
		}
	}
}

// No token with one character changed, added or missing is taken for one.
func TestTokenMistyped(t *testing.T) {
	text := posthorn.NewTokenText()
	if !posthorn.WellFormed(text) {
		t.Fatalf("%q is refused", text)
	}
	for i := range text {
		for _, c := range "A7z_-\x00é" {
			if changed := text[:i] + string(c) + text[i+1:]; changed != text && posthorn.WellFormed(changed) {
				t.Errorf("%q passes for %q", changed, text)
			}
		}
		if posthorn.WellFormed(text[:i]+text[i+1:]) || posthorn.WellFormed(text[:i]+"A"+text[i:]) {
			t.Errorf("%q passes without or with a character at %d", text, i)
		}
	}
}

func FuzzTokenText(f *testing.F) {
	f.Add("")
	f.Add(posthorn.TokenPrefix)
	f.Add("posthorn_ABCDEFGHIJKLMNOPQRSTUVWXYZAAAAAAA")
	f.Fuzz(func(t *testing.T, text string) {
		if !posthorn.WellFormed(text) {
			return
		}
		if !strings.HasPrefix(text, posthorn.TokenPrefix) || len(text) != len(posthorn.NewTokenText()) {
			t.Errorf("%q is taken for a token", text)
		}
	})
}

// token makes a token for everything, changed.
func (w *world) token(change func(*posthorn.NewToken)) (posthorn.Token, string) {
	w.t.Helper()
	n := posthorn.NewToken{Name: "CI", Scopes: []posthorn.Scope{posthorn.ScopeAdmin}, AllRepos: true}
	if change != nil {
		change(&n)
	}
	token, text, err := w.CreateToken(w.t.Context(), n)
	if err != nil {
		w.t.Fatal(err)
	}
	return token, text
}

func (w *world) wantUnauthorized(text, words string) {
	w.t.Helper()
	_, err := w.Authenticate(w.t.Context(), text)
	if posthorn.ErrorCode(err) != posthorn.CodeUnauthorized || !strings.Contains(err.Error(), words) {
		w.t.Errorf("a token that should be refused as %q: %v", words, err)
	}
	if err != nil && len(text) > 1 && strings.Contains(err.Error(), text) {
		w.t.Errorf("the error quotes the token: %v", err)
	}
}

func (w *world) wantToken(text string, want posthorn.Token) {
	w.t.Helper()
	got, err := w.Authenticate(w.t.Context(), text)
	if err != nil {
		w.t.Fatal(err)
	}
	got.LastUsedAt = time.Time{}
	if diff := cmp.Diff(want, got); diff != "" {
		w.t.Errorf("tokens differ (-want +got):\n%s", diff)
	}
}

// asked is a tamper that counts calls of a method.
func asked(call string, n *atomic.Int64) tamper {
	return around(func(do func() error) error { n.Add(1); return do() }, call)
}

func TestAuthenticate(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		token, text := w.token(func(n *posthorn.NewToken) {
			n.Scopes, n.AllRepos, n.Repos = []posthorn.Scope{posthorn.ScopeWebhooksRead}, false, []string{"r1", "r2"}
			n.ExpiresAt = time.Now().Add(10 * time.Minute)
		})
		w.wantToken(text, token)

		var reads, touches atomic.Int64
		w.tamper(both(asked("TokenByHash", &reads), asked("TouchToken", &touches)))
		w.wantUnauthorized("", "no token")
		w.wantUnauthorized("x", "no token")
		w.wantUnauthorized(text[:len(text)-1]+"0", "no token")
		if reads.Load() != 0 {
			t.Error("the store was asked for what can't be a token")
		}
		w.wantUnauthorized(posthorn.NewTokenText(), "no such token")
		reads.Store(0)

		// The store is asked once a second, and hears of its use about once a minute.
		for range 150 {
			w.wantToken(text, token)
			w.wantToken(text, token)
			pass(time.Second)
		}
		if reads.Load() < 140 || reads.Load() > 151 || touches.Load() != 2 {
			t.Errorf("in 150 seconds the store was asked %d times, and heard of %d uses", reads.Load(), touches.Load())
		}
		page, err := w.Tokens(t.Context(), posthorn.TokenQuery{})
		if err != nil || time.Since(page.Items[0].LastUsedAt) > time.Minute+time.Second {
			t.Errorf("last used at %v, it is %v: %v", page.Items[0].LastUsedAt, time.Now(), err)
		}

		// That its use can't be noted is no reason to refuse it; that it can't be looked up is.
		w.tamper(failing("TouchToken"))
		pass(2 * time.Minute)
		w.wantToken(text, token)
		w.tamper(failing("TokenByHash"))
		pass(time.Second)
		if _, err := w.Authenticate(t.Context(), text); posthorn.ErrorCode(err) != posthorn.CodeUnavailable {
			t.Errorf("with the store away: %v", err)
		}
		w.tamper(nil)

		pass(time.Until(token.ExpiresAt) - time.Millisecond)
		w.wantToken(text, token)
		pass(time.Millisecond) // and it is still in the cache
		w.wantUnauthorized(text, "expired at")
	})
}

func TestRevokeToken(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, a *world) {
		b := a.another("B")
		token, text := a.token(nil)
		a.wantToken(text, token)
		b.wantToken(text, token)

		// B is reading the token while it is revoked there: it doesn't get into the cache any more.
		pass(2 * time.Second)
		b.tamper(once(func(do func() error) error {
			err := do()
			if err := b.RevokeToken(context.Background(), token.ID); err != nil {
				t.Error(err)
			}
			return err
		}, "TokenByHash"))
		b.wantToken(text, token) // it was good when this began
		b.wantUnauthorized(text, "revoked")

		// B takes long to note the use of one that is revoked elsewhere meanwhile: what it has read is not new by then.
		slow, text := a.token(nil)
		b.tamper(once(func(do func() error) error {
			if err := a.RevokeToken(context.Background(), slow.ID); err != nil {
				t.Error(err)
			}
			pass(2 * time.Second)
			return do()
		}, "TouchToken"))
		b.wantToken(text, slow)
		b.wantUnauthorized(text, "revoked")

		other, text := a.token(nil)
		a.wantToken(text, other)
		b.wantToken(text, other)
		if err := a.RevokeToken(t.Context(), other.ID); err != nil {
			t.Fatal(err)
		}
		a.wantUnauthorized(text, "revoked")
		pass(time.Second)
		b.wantUnauthorized(text, "revoked")
		if err := a.RevokeToken(t.Context(), other.ID); posthorn.ErrorCode(err) != posthorn.CodeNotFound {
			t.Errorf("revoked twice: %v", err)
		}
	})
}

// What the Dispatcher changes stands in the audit log with who did it, and what nobody asked for does not.
func TestAudit(t *testing.T) {
	inWorld(t, posthorn.Config{AuditRetention: 2 * time.Minute}, func(t *testing.T, w *world) {
		alice := posthorn.ContextWithActor(t.Context(), "user:\x00alice\xff")
		hook, err := w.CreateWebhook(alice, posthorn.NewWebhook{RepoID: "r1", URL: "http://a/", Events: []string{"push"}, Secret: "one"})
		if err != nil {
			t.Fatal(err)
		}
		w.rotate(hook, "two", time.Hour)
		w.Reseal(t.Context())
		w.dispatch("r1", "e1")
		pass(time.Second)
		if _, err := w.UpdateWebhook(alice, "r1", hook.ID, posthorn.WebhookPatch{}); err != nil {
			t.Fatal(err)
		}
		if err := w.DeleteWebhook(alice, "r1", hook.ID); err != nil {
			t.Fatal(err)
		}
		read := func() (lines []string) {
			page, err := w.AuditLog(t.Context(), posthorn.AuditQuery{})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range page.Items {
				lines = append(lines, strings.Join([]string{e.Actor, e.Action, e.RepoID, e.Subject, e.Detail}, " "))
				if time.Since(e.At) > time.Minute {
					t.Errorf("an entry of %v", e.At)
				}
			}
			return lines
		}
		want := []string{
			"user:alice\ufffd webhook.delete r1 " + hook.ID + " ",
			"user:alice\ufffd webhook.update r1 " + hook.ID + " ",
			" secret.rotate r1 " + hook.ID + " ",
			"user:alice\ufffd webhook.create r1 " + hook.ID + " ",
		}
		if diff := cmp.Diff(want, read()); diff != "" {
			t.Errorf("the audit log differs (-want +got):\n%s", diff)
		}
		pass(4 * time.Minute)
		if left := read(); left != nil {
			t.Errorf("after the retention there is still %v", left)
		}
	})
}
