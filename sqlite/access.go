package sqlite

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"time"

	"github.com/musehub/posthorn"
	"zombiezen.com/go/sqlite"
)

const tokenColumns = "seq, id, name, scopes, repos, all_repos, created_at, expires_at, last_used_at" //nolint:gosec // names of columns

// CreateToken implements [posthorn.Store].
func (s *Store) CreateToken(ctx context.Context, t *posthorn.Token, hash string) error {
	scopes, err := json.Marshal(t.Scopes)
	if err != nil {
		return posthorn.Errorf(posthorn.CodeInternal, "the scopes of token %s: %w", t.ID, err)
	}
	repos, err := json.Marshal(t.Repos)
	if err != nil {
		return posthorn.Errorf(posthorn.CodeInternal, "the repos of token %s: %w", t.ID, err)
	}
	var seq int64
	err = s.write(ctx, func(c *sqlite.Conn) error {
		err := exec(c, `INSERT INTO posthorn_tokens (id, hash, name, scopes, repos, all_repos, created_at, expires_at, last_used_at)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			t.ID, hash, t.Name, string(scopes), string(repos), t.AllRepos, t.CreatedAt, t.ExpiresAt, t.LastUsedAt)
		if resultCode(err) == sqlite.ResultConstraintUnique {
			return posthorn.Errorf(posthorn.CodeConflict, "there is a token %s already", t.ID)
		}
		seq = c.LastInsertRowID()
		return err
	})
	if err == nil {
		t.Seq = seq
	}
	return err
}

// TokenByHash implements [posthorn.Store].
func (s *Store) TokenByHash(ctx context.Context, hash string) (t posthorn.Token, err error) {
	err = s.read(ctx, func(c *sqlite.Conn) error {
		var scanErr error
		found, err := queryRow(c, func(st *sqlite.Stmt) { t, scanErr = scanToken(st) },
			"SELECT "+tokenColumns+" FROM posthorn_tokens WHERE hash = ?", hash)
		switch {
		case err != nil:
			return err
		case !found:
			return errNoToken()
		}
		return scanErr
	})
	return t, err
}

// Tokens implements [posthorn.Store].
func (s *Store) Tokens(ctx context.Context, q posthorn.TokenQuery) (page posthorn.Page[posthorn.Token], err error) {
	limit, rows := pageRows(q.Limit)
	err = s.read(ctx, func(c *sqlite.Conn) (err error) {
		if page.Total, err = queryInt(c, "SELECT count(*) FROM posthorn_tokens"); err != nil {
			return err
		}
		return query(c, func(st *sqlite.Stmt) error {
			if len(page.Items) == limit {
				page.Next = page.Items[limit-1].Seq
				return nil
			}
			t, err := scanToken(st)
			page.Items = append(page.Items, t)
			return err
		}, "SELECT "+tokenColumns+" FROM posthorn_tokens WHERE seq > ? ORDER BY seq LIMIT ?", q.After, rows)
	})
	if err != nil {
		return posthorn.Page[posthorn.Token]{}, err
	}
	return page, nil
}

// TouchToken implements [posthorn.Store].
func (s *Store) TouchToken(ctx context.Context, id string, at time.Time) error {
	return s.write(ctx, func(c *sqlite.Conn) error {
		return exec(c, "UPDATE posthorn_tokens SET last_used_at = max(last_used_at, ?) WHERE id = ?", at, id)
	})
}

// DeleteToken implements [posthorn.Store].
func (s *Store) DeleteToken(ctx context.Context, id string) error {
	return s.write(ctx, func(c *sqlite.Conn) error {
		if err := exec(c, "DELETE FROM posthorn_tokens WHERE id = ?", id); err != nil {
			return err
		}
		if c.Changes() == 0 {
			return errNoToken()
		}
		return nil
	})
}

func errNoToken() error { return posthorn.Errorf(posthorn.CodeNotFound, "Token not found") }

func scanToken(st *sqlite.Stmt) (posthorn.Token, error) {
	t := posthorn.Token{
		Seq: st.ColumnInt64(0), ID: st.ColumnText(1), Name: st.ColumnText(2), AllRepos: st.ColumnBool(5),
		CreatedAt: timeOf(st.ColumnInt64(6)), ExpiresAt: timeOf(st.ColumnInt64(7)), LastUsedAt: timeOf(st.ColumnInt64(8)),
	}
	if err := json.Unmarshal(bytesOf(st, 3), &t.Scopes); err != nil {
		return t, fmt.Errorf("the scopes of token %s: %w", t.ID, err)
	}
	if err := json.Unmarshal(bytesOf(st, 4), &t.Repos); err != nil {
		return t, fmt.Errorf("the repos of token %s: %w", t.ID, err)
	}
	return t, nil
}

func insertAudit(c *sqlite.Conn, e *posthorn.AuditEntry) error {
	return exec(c, "INSERT INTO posthorn_audit (at, actor, action, repo_id, subject, detail) VALUES (?, ?, ?, ?, ?, ?)",
		e.At, e.Actor, e.Action, e.RepoID, e.Subject, e.Detail)
}

// AuditLog implements [posthorn.Store].
func (s *Store) AuditLog(ctx context.Context, q posthorn.AuditQuery) (page posthorn.Page[posthorn.AuditEntry], err error) {
	where, args := "", []any{}
	if q.RepoID != "" {
		where, args = "repo_id = ? AND ", append(args, q.RepoID)
	}
	before := q.Before
	if before == 0 {
		before = math.MaxInt64
	}
	limit, rows := pageRows(q.Limit)
	err = s.read(ctx, func(c *sqlite.Conn) error {
		return query(c, func(st *sqlite.Stmt) error {
			if len(page.Items) == limit {
				page.Next = page.Items[limit-1].Seq
				return nil
			}
			page.Items = append(page.Items, posthorn.AuditEntry{
				Seq: st.ColumnInt64(0), At: timeOf(st.ColumnInt64(1)), Actor: st.ColumnText(2), Action: st.ColumnText(3),
				RepoID: st.ColumnText(4), Subject: st.ColumnText(5), Detail: st.ColumnText(6),
			})
			return nil
		}, "SELECT seq, at, actor, action, repo_id, subject, detail FROM posthorn_audit WHERE "+where+"seq < ? ORDER BY seq DESC LIMIT ?",
			append(args, before, rows)...)
	})
	if err != nil {
		return posthorn.Page[posthorn.AuditEntry]{}, err
	}
	return page, nil
}

// PruneAudit implements [posthorn.Store]. Entries are nearly in the order of their times: it stops at the first that stays.
func (s *Store) PruneAudit(ctx context.Context, before time.Time) (total int, err error) {
	for {
		n := 0
		err := s.write(ctx, func(c *sqlite.Conn) error {
			err := exec(c, `DELETE FROM posthorn_audit WHERE at < ?1 AND seq IN
				(SELECT seq FROM posthorn_audit ORDER BY seq LIMIT ?2)`, before, pruneChunk)
			n = c.Changes()
			return err
		})
		total += n
		if err != nil || n < pruneChunk {
			return total, err
		}
	}
}

// pageRows returns how many items a page has at most, and how many rows to read: one more tells whether there is another page.
func pageRows(limit int) (items, rows int) {
	if limit <= 0 {
		return -1, -1 // SQLite's way to say none
	}
	return limit, limit + 1
}
