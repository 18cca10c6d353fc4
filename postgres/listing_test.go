package postgres

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn/internal/pgtest"
)

// TestEventsOfSmallRepo lists the events of repos that have few, in a database that is nearly all another repo's. The plan is
// one for all repos, as in the store's transactions.
func TestEventsOfSmallRepo(t *testing.T) {
	s := open(t, pgtest.URL(t))
	fill(t, s, 50_000)
	execute(t, s, "UPDATE posthorn.events SET repo_id = 'small' WHERE id IN ('filled-1', 'filled-2')")
	execute(t, s, "VACUUM ANALYZE posthorn.events")
	tx := begin(t, s, pgx.ReadCommitted)
	for _, statement := range []string{settings, "PREPARE page (text, bigint, integer) AS " + s.names.sql(selectEvents)} {
		if _, err := tx.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	for _, repo := range []string{"repo", "small", "nobody"} {
		if n := buffersIn(t, tx, fmt.Sprintf("EXECUTE page ('%s', %d, 50)", repo, before(0))); n > 150 {
			t.Errorf("a page of %s looks at %d pages of the database", repo, n)
		}
	}
}
