package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Sums over new and folded rows have to say that they want both: their index begins with that.
const (
	newAndFolded  = "folded = ANY ('{false,true}')"
	totalOfEvents = "SELECT coalesce(sum(events), 0)::bigint FROM posthorn.repo_counts WHERE repo_id = $1 AND " + newAndFolded
	totalsOfLog   = `SELECT coalesce(sum(succeeded), 0)::bigint, coalesce(sum(failed), 0)::bigint
		FROM posthorn.delivery_counts WHERE webhook = $1 AND ` + newAndFolded
)

// foldChunk is how many new rows are folded in one transaction.
const foldChunk = 5000

// Each takes some new rows and folds them, with all others of the same keys, into one row for each key. It reports how many
// new ones it found, and how many rows went. One that another node is folding is left to it, so that no row is in two sums.
const (
	foldRepoCounts = `WITH new AS MATERIALIZED (
			SELECT repo_id FROM posthorn.repo_counts WHERE NOT folded ORDER BY repo_id LIMIT $1
		), rows AS MATERIALIZED (
			SELECT r.place FROM (SELECT DISTINCT repo_id FROM new) k CROSS JOIN LATERAL (
				SELECT c.ctid AS place FROM posthorn.repo_counts c WHERE c.repo_id = k.repo_id AND ` + newAndFolded + ` FOR UPDATE SKIP LOCKED) r
		), gone AS (
			DELETE FROM posthorn.repo_counts WHERE ctid = ANY (ARRAY(SELECT place FROM rows)) RETURNING repo_id, events
		), sums AS (
			INSERT INTO posthorn.repo_counts (repo_id, events, folded)
			SELECT repo_id, sum(events), true FROM gone GROUP BY repo_id HAVING sum(events) <> 0
		)
		SELECT (SELECT count(*) FROM new), (SELECT count(*) FROM gone)`
	foldDeliveryCounts = `WITH new AS MATERIALIZED (
			SELECT webhook, day FROM posthorn.delivery_counts WHERE NOT folded ORDER BY webhook, day LIMIT $1
		), rows AS MATERIALIZED (
			SELECT r.place FROM (SELECT DISTINCT webhook, day FROM new) k CROSS JOIN LATERAL (
				SELECT c.ctid AS place FROM posthorn.delivery_counts c WHERE c.webhook = k.webhook AND c.day = k.day AND ` + newAndFolded + ` FOR UPDATE SKIP LOCKED) r
		), gone AS (
			DELETE FROM posthorn.delivery_counts WHERE ctid = ANY (ARRAY(SELECT place FROM rows))
			RETURNING webhook, day, recorded, succeeded, failed
		), sums AS (
			INSERT INTO posthorn.delivery_counts (webhook, day, recorded, succeeded, failed, folded)
			SELECT webhook, day, recorded, sum(succeeded), sum(failed), true FROM gone
			GROUP BY webhook, day, recorded HAVING sum(succeeded) <> 0 OR sum(failed) <> 0
		)
		SELECT (SELECT count(*) FROM new), (SELECT count(*) FROM gone)`
)

// foldCounts replaces the differences that commits have recorded by their sums.
func (s *Store) foldCounts(ctx context.Context) error {
	for _, fold := range []string{foldRepoCounts, foldDeliveryCounts} {
		for found, gone := foldChunk, 1; found == foldChunk && gone > 0; {
			err := s.write(ctx, func(ctx context.Context, t *transaction) error {
				return t.run(ctx, func(b *batch) {
					b.queue(fold, foldChunk).QueryRow(func(row pgx.Row) error { return row.Scan(&found, &gone) })
				})
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func rowsAffected(n *int) func(pgconn.CommandTag) error {
	return func(tag pgconn.CommandTag) error {
		*n = int(tag.RowsAffected())
		return nil
	}
}
