package postgres

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/pgtest"
)

// TestWebhookTotals has webhooks come, change and go in two repos.
func TestWebhookTotals(t *testing.T) {
	s := open(t, pgtest.URL(t))
	want := func(totals map[string]int64) {
		t.Helper()
		for repo, total := range totals {
			page, err := s.Webhooks(t.Context(), posthorn.WebhookQuery{RepoID: repo, Limit: 1})
			if err != nil || page.Total != total {
				t.Fatalf("a total of %d in repo %q, %v; want %d", page.Total, repo, err, total)
			}
		}
	}
	remove := func(w posthorn.Webhook) error { return s.DeleteWebhook(t.Context(), w.RepoID, w.ID) }
	want(map[string]int64{"": 0, "repo": 0})
	first, second := newWebhook(t, s), newWebhook(t, s)
	other := posthorn.Webhook{ID: "other", RepoID: "other"}
	if err := s.CreateWebhooks(t.Context(), &other); err != nil {
		t.Fatal(err)
	}
	want(map[string]int64{"": 3, "repo": 2, "other": 1})
	again := first
	wantCode(t, s.CreateWebhooks(t.Context(), &again), posthorn.CodeConflict)
	if _, err := s.UpdateWebhook(t.Context(), first.RepoID, first.ID, func(w *posthorn.Webhook) error { w.Active = false; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := remove(second); err != nil {
		t.Fatal(err)
	}
	wantCode(t, remove(second), posthorn.CodeNotFound)
	want(map[string]int64{"": 2, "repo": 1, "other": 1})
	if err := remove(other); err != nil {
		t.Fatal(err)
	}
	prune(t, s, start)
	want(map[string]int64{"": 1, "repo": 1, "other": 0})
	if n := number(t, s, "SELECT count(*) FROM posthorn.webhook_counts"); n != 2 {
		t.Errorf("%d counts are kept for one repo and for all", n)
	}
}

// TestWebhooksOfSmallRepo lists webhooks where nearly all are another repo's.
func TestWebhooksOfSmallRepo(t *testing.T) {
	s := open(t, pgtest.URL(t))
	execute(t, s, `INSERT INTO posthorn.webhooks (id, repo_id, url, events, active, health, description, secrets, options, created_at, updated_at)
		SELECT 'filled-' || g, CASE WHEN g > 49998 THEN 'small' ELSE 'repo' END, '', '[]', true, '{}', '', '[]', '{}', now(), now()
		FROM generate_series(1, 50000) g`)
	execute(t, s, "VACUUM ANALYZE posthorn.webhooks")
	tx := begin(t, s, pgx.ReadCommitted)
	for _, statement := range []string{
		settings,
		"PREPARE page (bigint, bigint, text) AS " + s.names.sql(selectWebhooksOf),
		"PREPARE everyone (bigint, bigint) AS " + s.names.sql(selectWebhooks),
		"PREPARE total (text) AS " + s.names.sql(totalOfWebhooks),
	} {
		if _, err := tx.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	statements := []string{"everyone (200, 0)", "everyone (200, 40000)", "total ('')"}
	for _, repo := range []string{"repo", "small", "nobody"} {
		statements = append(statements, fmt.Sprintf("page (200, 0, '%s')", repo), fmt.Sprintf("total ('%s')", repo))
	}
	for _, statement := range statements {
		if n := buffersIn(t, tx, "EXECUTE "+statement); n > 150 {
			t.Errorf("%s looks at %d pages of the database", statement, n)
		}
	}
}
