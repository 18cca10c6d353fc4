package postgres

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn/internal/pgtest"
)

// TestCountsAreFound has counts of many repos and webhooks, new ones and folded ones: what reads those of one looks at few.
func TestCountsAreFound(t *testing.T) {
	s := open(t, pgtest.URL(t))
	execute(t, s, `INSERT INTO posthorn.repo_counts (repo_id, events, folded)
		SELECT 'repo-' || g % 20000, 1, g > 20000 FROM generate_series(1, 40000) g`)
	execute(t, s, `INSERT INTO posthorn.delivery_counts (webhook, day, recorded, succeeded, failed, folded)
		SELECT g % 20000, 1, 1, 2, 3, g > 20000 FROM generate_series(1, 40000) g`)
	execute(t, s, "VACUUM ANALYZE posthorn.repo_counts")
	execute(t, s, "VACUUM ANALYZE posthorn.delivery_counts")
	tx := begin(t, s, pgx.ReadCommitted)
	for _, statement := range []string{
		settings,
		"PREPARE events (text) AS " + s.names.sql(totalOfEvents), "PREPARE log (bigint) AS " + s.names.sql(totalsOfLog),
		"PREPARE repos (integer) AS " + s.names.sql(foldRepoCounts), "PREPARE webhooks (integer) AS " + s.names.sql(foldDeliveryCounts),
	} {
		if _, err := tx.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	for statement, want := range map[string]string{
		"events ('repo-7')": "[2]", "log (7)": "[4 6]", "repos (10)": "[10 20]", "webhooks (10)": "[10 20]",
	} {
		rows, err := tx.Query(t.Context(), "EXECUTE "+statement)
		if err != nil {
			t.Fatal(err)
		}
		got, err := pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (string, error) {
			values, err := row.Values()
			return fmt.Sprint(values), err
		})
		if err != nil || got != want {
			t.Errorf("%s is %s, %v; want %s", statement, got, err, want)
		}
		if n := buffersIn(t, tx, "EXECUTE "+statement); n > 200 {
			t.Errorf("%s looks at %d pages of the database", statement, n)
		}
	}
}
