package storetest

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/musehub/posthorn"
)

func testWebhook(s *suite) {
	w := posthorn.Webhook{
		ID: s.uuid(), RepoID: repo, URL: "https://example.com/a?b=c#d", Events: []string{"push", "*", "issue"}, Active: true,
		Description: "Übung “quoted” 😀",
		Health:      posthorn.Health{DisabledReason: "answered 410", FailingSince: start.Add(9), Warned: true},
		Secrets: []posthorn.Secret{
			{ID: "s2", Kind: posthorn.SecretEd25519, Sealed: "new", CreatedAt: start.Add(time.Second + 9).Local()},
			{ID: "s1", Kind: posthorn.SecretHMAC, Sealed: "old", CreatedAt: start, ExpiresAt: start.Add(time.Hour).In(time.FixedZone("there", 3600))},
			{Sealed: "imported"},
		},
		Options: posthorn.Options{
			TLS:         posthorn.TLS{MinVersion: "1.3", RootCAs: "-----“\n", Certificate: "cert", Key: "never stored", SealedKey: "sealed"},
			RetryPolicy: "5s,1m±20%", FinalStatuses: "400-407,422", Timeout: 7 * time.Second, MaxInFlight: 3, MaxPerSecond: 4,
			Filter: "true", Headers: map[string]string{"A": "never stored"}, SealedHeaders: map[string]string{"A": "sealed", "b": "“"},
			GitHubSignature: true, IdempotencyKey: true, Ordering: "key", KeepWhileInactive: true,
		},
		CreatedAt: start.Add(123 * time.Nanosecond), UpdatedAt: start.Add(time.Minute).Local(),
	}
	s.check(s.CreateWebhooks(s.Context(), &w))
	if w.Seq <= 0 {
		s.Fatalf("Seq is %d", w.Seq)
	}
	want := w
	want.CreatedAt, want.UpdatedAt = start, start.Add(time.Minute)
	want.TLS.Key, want.Headers, want.FailingSince = "", nil, start
	want.Secrets = []posthorn.Secret{
		{ID: "s2", Kind: posthorn.SecretEd25519, Sealed: "new", CreatedAt: start.Add(time.Second)},
		{ID: "s1", Kind: posthorn.SecretHMAC, Sealed: "old", CreatedAt: start, ExpiresAt: start.Add(time.Hour)},
		{Sealed: "imported"},
	}
	got, err := s.Webhook(s.Context(), repo, w.ID)
	s.check(err)
	s.equal("webhooks", got, want)

	_, err = s.Webhook(s.Context(), "another repo", w.ID)
	s.wantCode(err, posthorn.CodeNotFound)
	_, err = s.Webhook(s.Context(), repo, s.uuid())
	s.wantCode(err, posthorn.CodeNotFound)
}

// testWebhooksTogether stores several webhooks at once, of two repos, and some that can't be.
func testWebhooksTogether(s *suite) {
	first := s.webhook()
	made := make([]posthorn.Webhook, 5)
	var pointers []*posthorn.Webhook
	for i := range made {
		// Neither IDs nor repos are in the order in which they are given.
		made[i] = posthorn.Webhook{ID: fmt.Sprint(9 - i), RepoID: []string{"z", repo}[i%2], Events: []string{"push"}, CreatedAt: start, UpdatedAt: start}
		pointers = append(pointers, &made[i])
	}
	before, err := s.Changes(s.Context(), 0)
	s.check(err)
	s.check(s.CreateWebhooks(s.Context(), pointers...))
	want := posthorn.Changes{Version: before.Version + int64(len(made))}
	last := first.Seq
	for i, w := range made {
		if w.Seq <= last {
			s.Errorf("Seq %d follows %d", w.Seq, last)
		}
		last = w.Seq
		want.Webhooks = append(want.Webhooks, posthorn.ChangedWebhook{Seq: w.Seq, RepoID: w.RepoID})
		got, err := s.Webhook(s.Context(), w.RepoID, w.ID)
		s.check(err)
		s.equal("webhooks", got, made[i])
	}
	s.equal("changes", s.changes(before.Version), want)
	listed := func(repoID string, want ...posthorn.Webhook) {
		s.Helper()
		page, err := s.Webhooks(s.Context(), posthorn.WebhookQuery{RepoID: repoID})
		s.check(err)
		s.equal("the webhooks of "+repoID, page, posthorn.Page[posthorn.Webhook]{Items: want, Total: int64(len(want))})
	}
	all := func() {
		s.Helper()
		listed("z", made[0], made[2], made[4])
		listed(repo, first, made[1], made[3])
		listed("", first, made[0], made[1], made[2], made[3], made[4])
	}
	all()

	version := s.changes(0).Version
	s.check(s.CreateWebhooks(s.Context()))
	fresh := posthorn.Webhook{ID: s.uuid(), RepoID: repo, CreatedAt: start, UpdatedAt: start}
	again := made[2]
	s.wantCode(s.CreateWebhooks(s.Context(), &fresh, &again), posthorn.CodeConflict)
	twin := fresh
	s.wantCode(s.CreateWebhooks(s.Context(), &fresh, &twin), posthorn.CodeConflict)
	all()
	s.equal("the version after what came to nothing", s.changes(0).Version, version)
}

func testWebhookUpdate(s *suite) {
	w := s.webhook()
	later := start.Add(time.Minute)
	got, err := s.UpdateWebhook(s.Context(), repo, w.ID, func(u *posthorn.Webhook) error {
		s.equal("what change is given", *u, w)
		u.Seq, u.ID, u.RepoID, u.CreatedAt = 77, "other", "other", later // none of which can change
		u.URL, u.Events, u.Active, u.DisabledReason, u.Description = "http://example.org", []string{"tag"}, false, "gone", "why"
		u.TLS.RootCAs = "roots"
		u.Secrets, u.UpdatedAt = []posthorn.Secret{{Sealed: "s"}}, later.Add(7*time.Nanosecond)
		return nil
	})
	s.check(err)
	want := posthorn.Webhook{
		Seq: w.Seq, ID: w.ID, RepoID: repo, URL: "http://example.org", Events: []string{"tag"}, Health: posthorn.Health{DisabledReason: "gone"}, Description: "why",
		Secrets: []posthorn.Secret{{Sealed: "s"}}, CreatedAt: start, UpdatedAt: later,
		Options: posthorn.Options{TLS: posthorn.TLS{RootCAs: "roots"}},
	}
	s.equal("what UpdateWebhook returns", got, want)
	got, err = s.Webhook(s.Context(), repo, w.ID)
	s.check(err)
	s.equal("what is stored", got, want)

	refusal := errors.New("no")
	_, err = s.UpdateWebhook(s.Context(), repo, w.ID, func(u *posthorn.Webhook) error {
		u.URL, u.Events[0], u.Secrets[0].Sealed = "lost", "lost", "lost"
		return refusal
	})
	if err != refusal { //nolint:errorlint // it is to come back as it is
		s.Fatalf("error of change came back as %v", err)
	}
	got, err = s.Webhook(s.Context(), repo, w.ID)
	s.check(err)
	s.equal("what is stored after a refusal", got, want)

	never := func(*posthorn.Webhook) error {
		s.Error("change was called without a webhook")
		return nil
	}
	_, err = s.UpdateWebhook(s.Context(), "another repo", w.ID, never)
	s.wantCode(err, posthorn.CodeNotFound)
	_, err = s.UpdateWebhook(s.Context(), repo, s.uuid(), never)
	s.wantCode(err, posthorn.CodeNotFound)

	// Updates at the same time are made one after the other.
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			_, err := s.UpdateWebhook(s.Context(), repo, w.ID, func(u *posthorn.Webhook) error {
				u.Description += "x"
				return nil
			})
			if err != nil {
				s.Error(err)
			}
		})
	}
	wg.Wait()
	got, err = s.Webhook(s.Context(), repo, w.ID)
	s.check(err)
	s.equal("description", got.Description, "whyxxxxxxxxxxxxxxxxxxxx")
}

func testWebhookDelete(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	e := s.event()
	s.deliver(node, e, start, w, other)
	id := s.log(w).Items[0].ID

	s.wantCode(s.DeleteWebhook(s.Context(), "another repo", w.ID), posthorn.CodeNotFound)
	s.check(s.DeleteWebhook(s.Context(), repo, w.ID))

	_, err := s.Webhook(s.Context(), repo, w.ID)
	s.wantCode(err, posthorn.CodeNotFound)
	_, err = s.UpdateWebhook(s.Context(), repo, w.ID, func(*posthorn.Webhook) error { return nil })
	s.wantCode(err, posthorn.CodeNotFound)
	_, err = s.Deliveries(s.Context(), posthorn.DeliveryQuery{RepoID: repo, WebhookID: w.ID, Limit: 10})
	s.wantCode(err, posthorn.CodeNotFound)
	_, err = s.Delivery(s.Context(), repo, w.ID, id)
	s.wantCode(err, posthorn.CodeNotFound)
	s.wantCode(s.DeleteWebhook(s.Context(), repo, w.ID), posthorn.CodeNotFound)

	page, err := s.Webhooks(s.Context(), posthorn.WebhookQuery{RepoID: repo})
	s.check(err)
	s.equal("webhooks", page, posthorn.Page[posthorn.Webhook]{Items: []posthorn.Webhook{other}, Total: 1})
	s.equal("the other one's log", s.logged(other), []int{1})
	_, err = s.Event(s.Context(), repo, e.ID)
	s.check(err)
}

// testWebhookPages has six webhooks, five of them made in the same microsecond.
func testWebhookPages(s *suite) {
	var want []posthorn.Webhook
	for i := range 6 {
		w := posthorn.Webhook{ID: s.uuid(), RepoID: repo, URL: "http://example.com", Events: []string{"push"}, CreatedAt: start, UpdatedAt: start}
		if i == 2 {
			w.CreatedAt = start.Add(-time.Hour) // Seq decides the order, not the time
		}
		s.check(s.CreateWebhooks(s.Context(), &w))
		s.webhookIn("another repo")
		want = append(want, w)
	}
	for limit := range 8 {
		q := posthorn.WebhookQuery{RepoID: repo, Limit: limit}
		var got []posthorn.Webhook
		for pages := 1; ; pages++ {
			page, err := s.Webhooks(s.Context(), q)
			s.check(err)
			s.equal("total", page.Total, int64(6))
			if limit > 0 && len(page.Items) > limit {
				s.Fatalf("%d webhooks on a page of %d", len(page.Items), limit)
			}
			got = append(got, page.Items...)
			if page.Next == 0 {
				if limit > 0 {
					s.equal(fmt.Sprintf("pages of %d", limit), pages, (6+limit-1)/limit)
				}
				break
			}
			q.After = page.Next
		}
		s.equal("webhooks", got, want)
	}
	page, err := s.Webhooks(s.Context(), posthorn.WebhookQuery{RepoID: "nobody's", Limit: 5})
	s.check(err)
	s.equal("an unknown repo", page, posthorn.Page[posthorn.Webhook]{})
}

func testWebhookPagesOfAllRepos(s *suite) {
	var want []posthorn.Webhook
	for i := range 5 {
		want = append(want, s.webhookIn(fmt.Sprint("repo-", i%2)))
	}
	page, err := s.Webhooks(s.Context(), posthorn.WebhookQuery{Limit: 3})
	s.check(err)
	s.equal("the first page", page.Items, want[:3])
	s.equal("total", page.Total, int64(5))
	page, err = s.Webhooks(s.Context(), posthorn.WebhookQuery{After: page.Next})
	s.check(err)
	s.equal("the second page", page.Items, want[3:])
	s.equal("next", page.Next, int64(0))
}

func testWebhookSeqGrows(s *suite) {
	last := int64(0)
	for range 3 {
		w := s.webhook()
		if w.Seq <= last {
			s.Fatalf("Seq %d after %d", w.Seq, last)
		}
		last = w.Seq
		s.check(s.DeleteWebhook(s.Context(), repo, w.ID))
		s.prune(start)
	}
}

// changes returns what changed since a version, each webhook once and in ascending order of Seq.
func (s *suite) changes(since int64) posthorn.Changes {
	s.Helper()
	c, err := s.Changes(s.Context(), since)
	s.check(err)
	slices.SortFunc(c.Webhooks, func(a, b posthorn.ChangedWebhook) int { return cmp.Compare(a.Seq, b.Seq) })
	c.Webhooks = slices.Compact(c.Webhooks)
	return c
}

func testChanges(s *suite) {
	version := s.changes(0).Version
	want := func(since int64, webhooks ...posthorn.Webhook) {
		s.Helper()
		var changed []posthorn.ChangedWebhook
		for _, w := range webhooks {
			changed = append(changed, posthorn.ChangedWebhook{Seq: w.Seq, RepoID: w.RepoID})
		}
		got := s.changes(since)
		s.equal("changes", got, posthorn.Changes{Version: got.Version, Webhooks: changed})
		if (got.Version > since) != (len(webhooks) > 0) || got.Version < since {
			s.Fatalf("version %d after %d and %d changes", got.Version, since, len(webhooks))
		}
		version = got.Version
	}
	want(version)
	empty := version
	w, other := s.webhook(), s.webhookIn("another repo")
	want(empty, w, other)
	created := version
	want(created)
	s.setActive(w, false)
	want(created, w)
	s.setActive(w, true)
	want(created, w)
	want(version)
	_, err := s.UpdateWebhook(s.Context(), repo, w.ID, func(*posthorn.Webhook) error { return errors.New("no") })
	if err == nil {
		s.Fatal("a refusal was lost")
	}
	want(version)
	updated := version
	s.check(s.DeleteWebhook(s.Context(), "another repo", other.ID))
	want(updated, other)
	s.prune(start)
	want(updated, other)
	want(empty, w, other)
	want(version)
}

// testChangesHealth has webhooks begin and end to fail, which nobody needs to hear of, and be disabled for that, which is a change.
func testChangesHealth(s *suite) {
	w := s.webhook()
	version := s.changes(0).Version
	update := func(change func(*posthorn.Webhook)) posthorn.Changes {
		s.Helper()
		var want posthorn.Webhook
		_, err := s.UpdateWebhook(s.Context(), repo, w.ID, func(w *posthorn.Webhook) error {
			change(w)
			want = *w
			return nil
		})
		s.check(err)
		got, err := s.Webhook(s.Context(), repo, w.ID)
		s.check(err)
		s.equal("the webhook", got, want)
		return s.changes(version)
	}
	none := posthorn.Changes{Version: version}
	s.equal("changes", update(func(w *posthorn.Webhook) { w.FailingSince = start }), none)
	s.equal("changes", update(func(w *posthorn.Webhook) { w.Warned = true }), none)
	s.equal("changes", update(func(w *posthorn.Webhook) { w.Health = posthorn.Health{} }), none)
	one := posthorn.Changes{Version: version + 1, Webhooks: []posthorn.ChangedWebhook{{Seq: w.Seq, RepoID: repo}}}
	s.equal("changes", update(func(w *posthorn.Webhook) { w.DisabledReason, w.FailingSince = "it failed", start }), one)
	version++
	one.Version++
	s.equal("changes", update(func(w *posthorn.Webhook) { w.Events[0], w.Warned = "changed in place", true }), one)
}

// testChangesMany has so many changes that a store may name none of them.
func testChangesMany(s *suite) {
	version := s.changes(0).Version
	var want []posthorn.ChangedWebhook
	for range 1100 {
		w := s.webhook()
		want = append(want, posthorn.ChangedWebhook{Seq: w.Seq, RepoID: repo})
	}
	got := s.changes(version)
	if !got.All {
		s.equal("changes", got.Webhooks, want)
	}
	s.equal("changes after that", s.changes(got.Version), posthorn.Changes{Version: got.Version})
}

// testChangesConcurrently keeps a copy of all webhooks by their changes, as a node does, while they change: what changed
// last is not missed.
func testChangesConcurrently(s *suite) {
	const repos, rounds = 8, 15
	repoID := func(i int) string { return fmt.Sprint("repo-", i) }
	read := func(repoID string) []posthorn.Webhook {
		page, err := s.Webhooks(s.Context(), posthorn.WebhookQuery{RepoID: repoID})
		if err != nil {
			s.Error(err)
		}
		return page.Items
	}
	copies := map[string][]posthorn.Webhook{}
	version := int64(0)
	follow := func() error {
		c, err := s.Changes(s.Context(), version)
		if err != nil {
			return err
		}
		if c.All {
			for i := range repos {
				copies[repoID(i)] = read(repoID(i))
			}
		}
		for _, w := range c.Webhooks {
			copies[w.RepoID] = read(w.RepoID)
		}
		version = c.Version
		return nil
	}
	changeAll := func(repoID string) error {
		for i := range rounds {
			w := posthorn.Webhook{ID: fmt.Sprint(repoID, "-", i), RepoID: repoID, CreatedAt: start, UpdatedAt: start}
			if err := s.CreateWebhooks(s.Context(), &w); err != nil {
				return err
			}
			_, err := s.UpdateWebhook(s.Context(), repoID, w.ID, func(w *posthorn.Webhook) error {
				w.Description = "changed"
				return nil
			})
			if err != nil {
				return err
			}
			if i%3 == 0 {
				if err := s.DeleteWebhook(s.Context(), repoID, w.ID); err != nil {
					return err
				}
			}
		}
		return nil
	}
	var changing, following sync.WaitGroup
	for i := range repos {
		changing.Go(func() {
			if err := changeAll(repoID(i)); err != nil {
				s.Error(err)
			}
		})
	}
	changed := make(chan struct{})
	following.Go(func() {
		for {
			select {
			case <-changed:
				return
			default:
				if err := follow(); err != nil {
					s.Error(err)
					return
				}
			}
		}
	})
	changing.Wait()
	close(changed)
	following.Wait()
	s.check(follow())
	for i := range repos {
		s.equal("the copy", copies[repoID(i)], read(repoID(i)))
	}
}

func testNow(s *suite) {
	first, err := s.Now(s.Context())
	s.check(err)
	if diff := time.Since(first).Abs(); diff > time.Hour {
		s.Fatalf("the store's clock says %v, %v from this one's", first, diff)
	}
	s.equal("its zone", first.Location().String(), "UTC")
	s.equal("it in microseconds", first, first.Truncate(time.Microsecond))
	next, err := s.Now(s.Context())
	s.check(err)
	if next.Before(first) {
		s.Fatalf("%v comes after %v", next, first)
	}
}

func testSetting(s *suite) {
	get := func(name, initial, want string) {
		s.Helper()
		got, err := s.Setting(s.Context(), name, initial)
		s.check(err)
		s.equal("setting", got, want)
	}
	get("a", "", "")
	get("a", "first", "first")
	get("a", "second", "first")
	get("a", "", "first")
	get("b", "", "")
	set := func(name, value string) {
		s.Helper()
		s.check(s.SetSetting(s.Context(), name, value))
	}
	set("a", "other")
	set("c", "new")
	get("a", "third", "other")
	get("c", "", "new")
	get("b", "", "")
}

func testSettingRace(s *suite) {
	values := make([]string, 16)
	var wg sync.WaitGroup
	for i := range values {
		wg.Go(func() {
			var err error
			if values[i], err = s.Setting(s.Context(), "name", fmt.Sprint("from ", i)); err != nil {
				s.Error(err)
			}
		})
	}
	wg.Wait()
	for _, v := range values {
		if v == "" || v != values[0] {
			s.Fatalf("different values: %q", values)
		}
	}
}
