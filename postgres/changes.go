package postgres

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn"
)

const (
	// keptChanges is how many changes the table keeps, and maxChanges how many are told one by one.
	keptChanges = 10_000
	maxChanges  = 1000
)

// changed records that webhooks, each of a repo, were created (by how many there are more for each: 1), changed (0) or deleted
// (-1). It comes last in a transaction: from here to its COMMIT it holds the lock that makes the order of versions that of
// commits, and other changes wait.
func (s *Store) changed(ctx context.Context, t *transaction, webhooks []int64, repos []string, each int64) error {
	return t.run(ctx, func(b *batch) {
		b.queue(`WITH new AS (UPDATE posthorn.counters SET last = last + cardinality($1::bigint[]) WHERE name = 'change' RETURNING last),
			old AS (DELETE FROM posthorn.changes USING new WHERE version <= new.last - $3)
			INSERT INTO posthorn.changes (version, webhook, repo_id)
			SELECT new.last - cardinality($1::bigint[]) + w.n, w.webhook, w.repo_id
			FROM new, unnest($1::bigint[], $2::text[]) WITH ORDINALITY AS w (webhook, repo_id, n)`,
			webhooks, repos, int64(keptChanges))
		if each != 0 {
			b.queue(countWebhooks, repos, each)
			b.queue(countWebhooks, slices.Repeat([]string{allRepos}, len(webhooks)), each)
			b.queue("DELETE FROM posthorn.webhook_counts WHERE repo_id = ANY ($1::text[]) AND webhooks = 0", repos)
		}
		b.queue("SELECT pg_notify($1, $2)", s.schema, changedPayload)
	})
}

// allRepos stands for all repos together, as in [posthorn.WebhookQuery]. No repo is called that.
const allRepos = ""

// countWebhooks changes the numbers of repos' webhooks, each time that one is named. Whoever does it has the lock of changed, so
// nobody waits for it.
const countWebhooks = `INSERT INTO posthorn.webhook_counts (repo_id, webhooks)
	SELECT repo_id, count(*) * $2::bigint FROM unnest($1::text[]) AS r (repo_id) GROUP BY repo_id
	ON CONFLICT (repo_id) DO UPDATE SET webhooks = webhook_counts.webhooks + excluded.webhooks`

// Changes implements [posthorn.Store].
func (s *Store) Changes(ctx context.Context, since int64) (posthorn.Changes, error) {
	var c posthorn.Changes
	err := s.get(ctx, func(b *batch) {
		b.queue("SELECT last FROM posthorn.counters WHERE name = 'change'").
			QueryRow(func(row pgx.Row) error { return row.Scan(&c.Version) })
		b.queue("SELECT webhook, repo_id FROM posthorn.changes WHERE version > $1 ORDER BY version LIMIT $2", since, maxChanges).
			Query(func(rows pgx.Rows) error {
				var w posthorn.ChangedWebhook
				_, err := pgx.ForEachRow(rows, []any{&w.Seq, &w.RepoID}, func() error {
					c.Webhooks = append(c.Webhooks, w)
					return nil
				})
				return err
			})
	})
	if err != nil {
		return posthorn.Changes{}, err
	}
	// Versions have no gaps: where the numbers don't agree, there are too many, or they are no longer kept, or the database
	// was restored to a time before that version.
	if int64(len(c.Webhooks)) != c.Version-since {
		c.Webhooks, c.All = nil, true
	}
	return c, nil
}

// Setting implements [posthorn.Store].
func (s *Store) Setting(ctx context.Context, name, initial string) (value string, err error) {
	get := func(b *batch) {
		b.queue("SELECT value FROM posthorn.settings WHERE name = $1", name).
			QueryRow(func(row pgx.Row) error { return found(row.Scan(&value), nil) })
	}
	err = s.get(ctx, get)
	if err != nil || value != "" || initial == "" {
		return value, err
	}
	err = s.write(ctx, func(ctx context.Context, t *transaction) error {
		return t.run(ctx, func(b *batch) {
			b.queue("INSERT INTO posthorn.settings (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING", name, initial)
			get(b) // a statement of its own sees what the one before had to wait for
		})
	})
	return value, err
}

// SetSetting implements [posthorn.Store].
func (s *Store) SetSetting(ctx context.Context, name, value string) error {
	return s.write(ctx, func(ctx context.Context, t *transaction) error {
		return t.run(ctx, func(b *batch) {
			b.queue("INSERT INTO posthorn.settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value", name, value)
		})
	})
}
