package postgres

import (
	"context"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/musehub/posthorn"
)

const tokenColumns = "seq, id, name, scopes, repos, all_repos, created_at, expires_at, last_used_at" //nolint:gosec // names of columns

// CreateToken implements [posthorn.Store].
func (s *Store) CreateToken(ctx context.Context, t *posthorn.Token, hash string) error {
	repos := append([]string{}, t.Repos...) // a nil slice would be NULL
	var seq int64
	err := s.write(ctx, func(ctx context.Context, tx *transaction) error {
		return tx.run(ctx, func(b *batch) {
			b.queue(`INSERT INTO posthorn.tokens (id, hash, name, scopes, repos, all_repos, created_at, expires_at, last_used_at)
				VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING RETURNING seq`,
				t.ID, hash, t.Name, append([]posthorn.Scope{}, t.Scopes...), repos, t.AllRepos, micros(t.CreatedAt), nullTime(t.ExpiresAt), nullTime(t.LastUsedAt),
			).QueryRow(func(row pgx.Row) error {
				return found(row.Scan(&seq), posthorn.Errorf(posthorn.CodeConflict, "there is a token %s already", t.ID))
			})
		})
	})
	if err == nil {
		t.Seq = seq
	}
	return err
}

// TokenByHash implements [posthorn.Store].
func (s *Store) TokenByHash(ctx context.Context, hash string) (t posthorn.Token, err error) {
	err = s.get(ctx, func(b *batch) {
		b.queue("SELECT "+tokenColumns+" FROM posthorn.tokens WHERE hash = $1", hash).QueryRow(func(row pgx.Row) (err error) {
			t, err = scanToken(row)
			return found(err, errNoToken())
		})
	})
	return t, err
}

// Tokens implements [posthorn.Store].
func (s *Store) Tokens(ctx context.Context, q posthorn.TokenQuery) (page posthorn.Page[posthorn.Token], err error) {
	err = s.get(ctx, func(b *batch) {
		b.queue("SELECT count(*) FROM posthorn.tokens").QueryRow(func(row pgx.Row) error { return row.Scan(&page.Total) })
		b.queue("SELECT "+tokenColumns+" FROM posthorn.tokens WHERE seq > $1 ORDER BY seq LIMIT $2::bigint", q.After, pageRows(q.Limit)).
			Query(func(rows pgx.Rows) error {
				for rows.Next() {
					if q.Limit > 0 && len(page.Items) == q.Limit {
						page.Next = page.Items[q.Limit-1].Seq
						return nil
					}
					t, err := scanToken(rows)
					if err != nil {
						return err
					}
					page.Items = append(page.Items, t)
				}
				return nil
			})
	})
	if err != nil {
		return posthorn.Page[posthorn.Token]{}, err
	}
	return page, nil
}

// TouchToken implements [posthorn.Store].
func (s *Store) TouchToken(ctx context.Context, id string, at time.Time) error {
	return s.write(ctx, func(ctx context.Context, t *transaction) error {
		return t.run(ctx, func(b *batch) {
			b.queue("UPDATE posthorn.tokens SET last_used_at = greatest(last_used_at, $2) WHERE id = $1", id, micros(at))
		})
	})
}

// DeleteToken implements [posthorn.Store].
func (s *Store) DeleteToken(ctx context.Context, id string) error {
	if !storable(id) {
		return errNoToken()
	}
	return s.write(ctx, func(ctx context.Context, t *transaction) error {
		return t.run(ctx, func(b *batch) {
			b.queue("DELETE FROM posthorn.tokens WHERE id = $1 RETURNING seq", id).QueryRow(func(row pgx.Row) error {
				var seq int64
				return found(row.Scan(&seq), errNoToken())
			})
		})
	})
}

func errNoToken() error { return posthorn.Errorf(posthorn.CodeNotFound, "Token not found") }

func scanToken(row pgx.Row) (t posthorn.Token, err error) {
	var expires, used *time.Time
	err = row.Scan(&t.Seq, &t.ID, &t.Name, &t.Scopes, &t.Repos, &t.AllRepos, &t.CreatedAt, &expires, &used)
	if err != nil {
		return t, err
	}
	if len(t.Repos) == 0 {
		t.Repos = nil
	}
	t.CreatedAt = t.CreatedAt.UTC()
	if expires != nil {
		t.ExpiresAt = expires.UTC()
	}
	if used != nil {
		t.LastUsedAt = used.UTC()
	}
	return t, nil
}

func nullTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = micros(t)
	return &t
}

// insertAudit adds an entry to the audit log.
func insertAudit(b *batch, e *posthorn.AuditEntry) {
	b.queue("INSERT INTO posthorn.audit (at, actor, action, repo_id, subject, detail) VALUES ($1, $2, $3, $4, $5, $6)",
		micros(e.At), e.Actor, e.Action, e.RepoID, e.Subject, e.Detail)
}

// Each reads a page of the audit log. Those of one repo are not selected by an equality for the same reason as in selectEvents.
const (
	auditColumns  = "seq, at, actor, action, repo_id, subject, detail"
	selectAudit   = "SELECT " + auditColumns + ` FROM posthorn.audit WHERE seq < $2 ORDER BY seq DESC LIMIT $1::bigint`
	selectAuditOf = "SELECT " + auditColumns + ` FROM posthorn.audit
		WHERE (repo_id, seq) < ($3, $2) AND repo_id >= $3 ORDER BY repo_id DESC, seq DESC LIMIT $1::bigint`
)

// AuditLog implements [posthorn.Store].
func (s *Store) AuditLog(ctx context.Context, q posthorn.AuditQuery) (page posthorn.Page[posthorn.AuditEntry], err error) {
	if !storable(q.RepoID) {
		return page, nil
	}
	before := q.Before
	if before == 0 {
		before = math.MaxInt64
	}
	list, args := selectAudit, []any{pageRows(q.Limit), before}
	if q.RepoID != "" {
		list, args = selectAuditOf, append(args, q.RepoID)
	}
	err = s.get(ctx, func(b *batch) {
		b.queue(list, args...).Query(func(rows pgx.Rows) error {
			for rows.Next() {
				if q.Limit > 0 && len(page.Items) == q.Limit {
					page.Next = page.Items[q.Limit-1].Seq
					return nil
				}
				var e posthorn.AuditEntry
				if err := rows.Scan(&e.Seq, &e.At, &e.Actor, &e.Action, &e.RepoID, &e.Subject, &e.Detail); err != nil {
					return err
				}
				e.At = e.At.UTC()
				page.Items = append(page.Items, e)
			}
			return nil
		})
	})
	if err != nil {
		return posthorn.Page[posthorn.AuditEntry]{}, err
	}
	return page, nil
}

// PruneAudit implements [posthorn.Store]. Entries are nearly in the order of their times: it stops at the first that stays.
func (s *Store) PruneAudit(ctx context.Context, before time.Time) (total int, err error) {
	for {
		var n int64
		err := s.write(ctx, func(ctx context.Context, t *transaction) error {
			return t.run(ctx, func(b *batch) {
				b.queue(`DELETE FROM posthorn.audit WHERE at < $1 AND seq IN
					(SELECT seq FROM posthorn.audit ORDER BY seq LIMIT $2)`, micros(before), pruneChunk).Exec(func(tag pgconn.CommandTag) error {
					n = tag.RowsAffected()
					return nil
				})
			})
		})
		total += int(n)
		if err != nil || n < pruneChunk {
			return total, err
		}
	}
}

// pageRows returns how many rows to read for a page: one more than it has tells whether there is another page. Nil is no limit.
func pageRows(limit int) any {
	if limit <= 0 {
		return nil
	}
	return limit + 1
}
