package storetest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/musehub/posthorn"
)

// token stores a token, under the hash that is its id with a letter in front.
func (s *suite) token(change func(*posthorn.Token)) posthorn.Token {
	s.Helper()
	t := posthorn.Token{ID: s.uuid(), Name: "CI", Scopes: []posthorn.Scope{posthorn.ScopeEventsWrite}, AllRepos: true, CreatedAt: start}
	change(&t)
	s.check(s.CreateToken(s.Context(), &t, "h"+t.ID))
	return t
}

func testToken(s *suite) {
	first := s.token(func(*posthorn.Token) {})
	t := s.token(func(t *posthorn.Token) {
		t.Name, t.Scopes = "Übung “quoted” 😀", []posthorn.Scope{posthorn.ScopeWebhooksRead, posthorn.ScopeAuditRead}
		t.Repos, t.AllRepos = []string{`a,b"{}\`, "r/2", ""}, false
		t.CreatedAt, t.ExpiresAt = start.Add(9*time.Nanosecond), start.Add(time.Hour).In(time.FixedZone("there", 3600))
	})
	if first.Seq <= 0 || t.Seq <= first.Seq {
		s.Fatalf("Seqs are %d and %d", first.Seq, t.Seq)
	}
	want := t
	want.CreatedAt, want.ExpiresAt = start, start.Add(time.Hour)
	get := func() posthorn.Token {
		s.Helper()
		got, err := s.TokenByHash(s.Context(), "h"+t.ID)
		s.check(err)
		return got
	}
	s.equal("tokens", get(), want)
	s.equal("whether it is another's", first.ID == get().ID, false)

	// Its last use only grows.
	s.check(s.TouchToken(s.Context(), t.ID, start.Add(time.Minute+9)))
	s.check(s.TouchToken(s.Context(), t.ID, start))
	want.LastUsedAt = start.Add(time.Minute)
	s.equal("tokens", get(), want)
	s.check(s.TouchToken(s.Context(), s.uuid(), start))

	for _, hash := range []string{"", "h", "h" + s.uuid(), "H" + t.ID} {
		_, err := s.TokenByHash(s.Context(), hash)
		s.wantCode(err, posthorn.CodeNotFound)
	}
	twin := t
	s.wantCode(s.CreateToken(s.Context(), &twin, "another"), posthorn.CodeConflict)
	twin.ID = s.uuid()
	s.wantCode(s.CreateToken(s.Context(), &twin, "h"+t.ID), posthorn.CodeConflict)

	s.check(s.DeleteToken(s.Context(), t.ID))
	_, err := s.TokenByHash(s.Context(), "h"+t.ID)
	s.wantCode(err, posthorn.CodeNotFound)
	for _, id := range []string{t.ID, "", "\x00", "\xff"} {
		s.wantCode(s.DeleteToken(s.Context(), id), posthorn.CodeNotFound)
	}
	page, err := s.Tokens(s.Context(), posthorn.TokenQuery{})
	s.check(err)
	s.equal("what is left", page, posthorn.Page[posthorn.Token]{Items: []posthorn.Token{first}, Total: 1})
}

func testTokenPages(s *suite) {
	var all []posthorn.Token
	for range 5 { // of the same moment
		all = append(all, s.token(func(*posthorn.Token) {}))
	}
	var got []posthorn.Token
	q := posthorn.TokenQuery{Limit: 2}
	for {
		page, err := s.Tokens(s.Context(), q)
		s.check(err)
		s.equal("the total", page.Total, int64(5))
		got = append(got, page.Items...)
		if q.After = page.Next; q.After == 0 {
			break
		}
	}
	s.equal("tokens", got, all)
}

// audited returns a context whose write leaves an entry in the audit log, and the entry.
func (s *suite) audited(repoID, action string) (context.Context, posthorn.AuditEntry) {
	e := posthorn.AuditEntry{
		At: start.Add(time.Duration(s.made) * time.Second), Actor: "user:“Ü” 😀", Action: action, RepoID: repoID, Subject: s.uuid(),
		Detail: `a "detail"`,
	}
	return posthorn.WithAudit(s.Context(), e), e
}

func (s *suite) auditLog(repoID string) []posthorn.AuditEntry {
	s.Helper()
	page, err := s.AuditLog(s.Context(), posthorn.AuditQuery{RepoID: repoID})
	s.check(err)
	return page.Items
}

// testAudit writes in every way that can leave an entry, each once so that it comes to nothing.
func testAudit(s *suite) {
	node := s.node()
	w, event := s.webhook(), s.event()
	s.deliver(node, event, start, w)
	entry := posthorn.Entry{WebhookSeq: w.Seq, WebhookID: w.ID, Event: event, Trigger: posthorn.TriggerRedelivery, Attempt: 1, DueAt: start}
	t := s.token(func(*posthorn.Token) {})
	replay, stale := posthorn.Replay{ID: s.uuid(), RepoID: repo, WebhookID: w.ID, CreatedAt: start, State: posthorn.ReplayPlanning}, posthorn.Replay{}
	if left := s.auditLog(""); len(left) != 0 {
		s.Fatalf("writes without an entry left %v", left)
	}
	fresh := func() *posthorn.Webhook {
		return &posthorn.Webhook{ID: s.uuid(), RepoID: repo, Events: []string{"push"}, CreatedAt: start, UpdatedAt: start}
	}
	change := func(err error) func(*posthorn.Webhook) error { return func(*posthorn.Webhook) error { return err } }
	refusal := errors.New("no")
	var want []posthorn.AuditEntry
	for _, write := range []struct {
		action     string
		good, fail func(ctx context.Context) error
	}{
		{
			"create webhooks",
			func(ctx context.Context) error { return s.CreateWebhooks(ctx, fresh(), fresh()) },
			func(ctx context.Context) error { return s.CreateWebhooks(ctx, fresh(), &w) },
		},
		{
			"update",
			func(ctx context.Context) error { _, err := s.UpdateWebhook(ctx, repo, w.ID, change(nil)); return err },
			func(ctx context.Context) error {
				_, err := s.UpdateWebhook(ctx, repo, w.ID, change(refusal))
				return err
			},
		},
		{
			"update none", nil,
			func(ctx context.Context) error {
				_, err := s.UpdateWebhook(ctx, "another", w.ID, change(nil))
				return err
			},
		},
		{
			"enqueue",
			func(ctx context.Context) error { return s.Enqueue(ctx, &entry, node) },
			func(ctx context.Context) error { return s.Enqueue(ctx, &entry, node+1) },
		},
		{
			"create replay",
			func(ctx context.Context) error { return s.CreateReplay(ctx, &replay) },
			func(ctx context.Context) error { again := replay; return s.CreateReplay(ctx, &again) },
		},
		{
			"update replay",
			func(ctx context.Context) error { stale = replay; return s.UpdateReplay(ctx, &replay, nil) },
			func(ctx context.Context) error { return s.UpdateReplay(ctx, &stale, nil) },
		},
		{
			"create token",
			func(ctx context.Context) error {
				return s.CreateToken(ctx, &posthorn.Token{ID: s.uuid(), AllRepos: true, CreatedAt: start}, "fresh")
			},
			func(ctx context.Context) error { return s.CreateToken(ctx, &t, "again") },
		},
		{
			"delete token",
			func(ctx context.Context) error { return s.DeleteToken(ctx, t.ID) },
			func(ctx context.Context) error { return s.DeleteToken(ctx, s.uuid()) },
		},
		{
			"delete webhook",
			func(ctx context.Context) error { return s.DeleteWebhook(ctx, repo, w.ID) },
			func(ctx context.Context) error { return s.DeleteWebhook(ctx, "another", w.ID) },
		},
	} {
		if write.good != nil {
			ctx, e := s.audited(repo, write.action)
			s.check(write.good(ctx))
			want = append([]posthorn.AuditEntry{e}, want...)
		}
		ctx, _ := s.audited(repo, "not to "+write.action)
		if write.fail(ctx) == nil {
			s.Fatalf("%s did not fail", write.action)
		}
		got := s.auditLog("")
		last := int64(0)
		for i := range got {
			if i > 0 && got[i].Seq >= last {
				s.Errorf("Seq %d follows %d", got[i].Seq, last)
			}
			last, got[i].Seq = got[i].Seq, 0
		}
		s.equal("the audit log after "+write.action, got, want)
	}
}

func testAuditPages(s *suite) {
	const entries = 7
	for i := range entries {
		ctx, _ := s.audited([]string{repo, "another", ""}[i%3], fmt.Sprint(i))
		s.check(s.CreateToken(ctx, &posthorn.Token{ID: s.uuid(), AllRepos: true, CreatedAt: start}, fmt.Sprint(i)))
	}
	for repoID, want := range map[string][]string{
		"": {"6", "5", "4", "3", "2", "1", "0"}, repo: {"6", "3", "0"}, "another": {"4", "1"}, "none": nil, "\x00": nil,
	} {
		var got []string
		q := posthorn.AuditQuery{RepoID: repoID, Limit: 2}
		for pages := 0; ; pages++ {
			page, err := s.AuditLog(s.Context(), q)
			s.check(err)
			if len(page.Items) > q.Limit || pages > entries {
				s.Fatalf("%d items, after %d pages", len(page.Items), pages)
			}
			for _, e := range page.Items {
				got = append(got, e.Action)
			}
			if q.Before = page.Next; q.Before == 0 {
				break
			}
		}
		s.equal(fmt.Sprintf("the audit log of %q", repoID), got, want)
	}
}

func testPruneAudit(s *suite) {
	const entries = 250
	for i := range entries {
		ctx := posthorn.WithAudit(s.Context(), posthorn.AuditEntry{At: start.Add(time.Duration(i) * time.Second), Action: fmt.Sprint(i)})
		s.check(s.TouchToken(ctx, "none", start))
	}
	prune := func(before time.Time, want, left int) {
		s.Helper()
		n, err := s.PruneAudit(s.Context(), before)
		s.check(err)
		got := s.auditLog("")
		if n != want || len(got) != left || got[left-1].Action != fmt.Sprint(entries-left) {
			s.Fatalf("%d went and %d are left, want %d and %d", n, len(got), want, left)
		}
	}
	prune(start, 0, entries)
	prune(start.Add(240*time.Second), 240, 10)
	prune(start.Add(240*time.Second), 0, 10)
}
