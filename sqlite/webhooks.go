package sqlite

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/musehub/posthorn"
	"zombiezen.com/go/sqlite"
)

const webhookColumns = "seq, id, repo_id, url, events, active, health, description, secrets, options, created_at, updated_at"

// CreateWebhooks implements [posthorn.Store].
func (s *Store) CreateWebhooks(ctx context.Context, webhooks ...*posthorn.Webhook) error {
	type row struct {
		events, secrets, options string
		seq                      int64
	}
	rows := make([]row, len(webhooks))
	for i, w := range webhooks {
		r := &rows[i]
		var err error
		if r.events, r.secrets, r.options, err = webhookJSON(w); err != nil {
			return err
		}
	}
	err := s.write(ctx, func(c *sqlite.Conn) error {
		for i, w := range webhooks {
			r := &rows[i]
			err := exec(c, `INSERT INTO posthorn_webhooks (id, repo_id, url, events, active, health, description, secrets, options, created_at, updated_at)
				VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
				w.ID, w.RepoID, w.URL, r.events, w.Active, healthJSON(w), w.Description, r.secrets, r.options, w.CreatedAt, w.UpdatedAt)
			if resultCode(err) == sqlite.ResultConstraintUnique {
				return posthorn.Errorf(posthorn.CodeConflict, "there is a webhook %s already", w.ID)
			}
			if err != nil {
				return err
			}
			r.seq = c.LastInsertRowID()
			if err := exec(c, "INSERT INTO posthorn_logs (webhook) VALUES (?)", r.seq); err != nil {
				return err
			}
			if err := changed(c, r.seq, w.RepoID); err != nil {
				return err
			}
			if err := countWebhooks(c, w.RepoID, 1); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i, w := range webhooks {
		w.Seq = rows[i].seq
	}
	return nil
}

// UpdateWebhook implements [posthorn.Store].
func (s *Store) UpdateWebhook(ctx context.Context, repoID, id string, change func(*posthorn.Webhook) error) (posthorn.Webhook, error) {
	var w posthorn.Webhook
	var changeErr error
	err := s.write(ctx, func(c *sqlite.Conn) (err error) {
		before, err := webhook(c, repoID, id)
		if err != nil {
			return err
		}
		if w, err = webhook(c, repoID, id); err != nil { // one that shares nothing with the other
			return err
		}
		if changeErr = change(&w); changeErr != nil {
			return posthorn.Errorf(posthorn.CodeInvalid, "%w", changeErr) // takes the transaction back
		}
		w.Seq, w.ID, w.RepoID, w.CreatedAt = before.Seq, before.ID, before.RepoID, before.CreatedAt
		events, secrets, options, err := webhookJSON(&w)
		if err != nil {
			return err
		}
		err = exec(c, `UPDATE posthorn_webhooks SET url = ?, events = ?, active = ?, health = ?, description = ?, secrets = ?,
			options = ?, updated_at = ? WHERE seq = ?`, w.URL, events, w.Active, healthJSON(&w), w.Description, secrets, options, w.UpdatedAt, w.Seq)
		if err != nil {
			return err
		}
		if w, err = webhook(c, repoID, id); err != nil || posthorn.SameButFailing(before, w) { // as it will be read from now on
			return err
		}
		return changed(c, w.Seq, repoID)
	})
	switch {
	case changeErr != nil:
		return posthorn.Webhook{}, changeErr
	case err != nil:
		return posthorn.Webhook{}, err
	}
	return w, nil
}

// DeleteWebhook implements [posthorn.Store]. It only marks the row: what belongs to the webhook may be a log of millions
// of deliveries, and goes in Prune.
func (s *Store) DeleteWebhook(ctx context.Context, repoID, id string) error {
	return s.write(ctx, func(c *sqlite.Conn) error {
		seq, err := queryInt(c, "UPDATE posthorn_webhooks SET deleted = 1 WHERE id = ? AND repo_id = ? AND deleted = 0 RETURNING seq", id, repoID)
		if err != nil {
			return err
		}
		if seq == 0 {
			return errNoWebhook()
		}
		if err := exec(c, "UPDATE posthorn_logs SET live = 0 WHERE webhook = ?", seq); err != nil {
			return err
		}
		if err := changed(c, seq, repoID); err != nil {
			return err
		}
		return countWebhooks(c, repoID, -1)
	})
}

// Webhook implements [posthorn.Store].
func (s *Store) Webhook(ctx context.Context, repoID, id string) (w posthorn.Webhook, err error) {
	err = s.read(ctx, func(c *sqlite.Conn) (err error) {
		w, err = webhook(c, repoID, id)
		return err
	})
	return w, err
}

// Webhooks implements [posthorn.Store].
func (s *Store) Webhooks(ctx context.Context, q posthorn.WebhookQuery) (page posthorn.Page[posthorn.Webhook], err error) {
	where, total, args := "deleted = 0", "SELECT sum(webhooks) FROM posthorn_repos", []any{}
	if q.RepoID != "" {
		where, total, args = where+" AND repo_id = ?", total+" WHERE repo_id = ?", []any{q.RepoID}
	}
	limit, rows := pageRows(q.Limit)
	err = s.read(ctx, func(c *sqlite.Conn) (err error) {
		if page.Total, err = queryInt(c, total, args...); err != nil {
			return err
		}
		return query(c, func(st *sqlite.Stmt) error {
			if len(page.Items) == limit {
				page.Next = page.Items[limit-1].Seq
				return nil
			}
			w, err := scanWebhook(st)
			page.Items = append(page.Items, w)
			return err
		}, "SELECT "+webhookColumns+" FROM posthorn_webhooks WHERE "+where+" AND seq > ? ORDER BY seq LIMIT ?",
			append(args, q.After, rows)...)
	})
	if err != nil {
		return posthorn.Page[posthorn.Webhook]{}, err
	}
	return page, nil
}

func webhook(c *sqlite.Conn, repoID, id string) (w posthorn.Webhook, err error) {
	var scanErr error
	found, err := queryRow(c, func(st *sqlite.Stmt) { w, scanErr = scanWebhook(st) },
		"SELECT "+webhookColumns+" FROM posthorn_webhooks WHERE id = ? AND repo_id = ? AND deleted = 0", id, repoID)
	switch {
	case err != nil:
		return w, err
	case !found:
		return w, errNoWebhook()
	}
	return w, scanErr
}

func errNoWebhook() error {
	return posthorn.Errorf(posthorn.CodeNotFound, "Webhook not found")
}

func scanWebhook(st *sqlite.Stmt) (posthorn.Webhook, error) {
	w := posthorn.Webhook{
		Seq:         st.ColumnInt64(0),
		ID:          st.ColumnText(1),
		RepoID:      st.ColumnText(2),
		URL:         st.ColumnText(3),
		Active:      st.ColumnBool(5),
		Description: st.ColumnText(7),
		CreatedAt:   timeOf(st.ColumnInt64(10)),
		UpdatedAt:   timeOf(st.ColumnInt64(11)),
	}
	if err := json.Unmarshal(bytesOf(st, 4), &w.Events); err != nil {
		return w, fmt.Errorf("the events of webhook %s: %w", w.ID, err)
	}
	if err := json.Unmarshal(bytesOf(st, 8), &w.Secrets); err != nil {
		return w, fmt.Errorf("the secrets of webhook %s: %w", w.ID, err)
	}
	if err := json.Unmarshal(bytesOf(st, 9), &w.Options); err != nil {
		return w, fmt.Errorf("the options of webhook %s: %w", w.ID, err)
	}
	if err := json.Unmarshal(bytesOf(st, 6), &w.Health); err != nil {
		return w, fmt.Errorf("the health of webhook %s: %w", w.ID, err)
	}
	return w, nil
}

func healthJSON(w *posthorn.Webhook) string {
	health := w.Health
	health.FailingSince = health.FailingSince.UTC().Truncate(time.Microsecond)
	text, _ := json.Marshal(health) // which never fails: there are strings, a time and a boolean in it
	return string(text)
}

func webhookJSON(w *posthorn.Webhook) (events, secrets, options string, err error) {
	e, err := json.Marshal(w.Events)
	if err != nil {
		return "", "", "", posthorn.Errorf(posthorn.CodeInternal, "the events of webhook %s: %w", w.ID, err)
	}
	stored := slices.Clone(w.Secrets)
	for i := range stored {
		stored[i].CreatedAt = stored[i].CreatedAt.UTC().Truncate(time.Microsecond)
		stored[i].ExpiresAt = stored[i].ExpiresAt.UTC().Truncate(time.Microsecond)
	}
	s, err := json.Marshal(stored)
	if err != nil {
		return "", "", "", posthorn.Errorf(posthorn.CodeInternal, "the secrets of webhook %s: %w", w.ID, err)
	}
	o, err := json.Marshal(w.Options)
	if err != nil {
		return "", "", "", posthorn.Errorf(posthorn.CodeInternal, "the options of webhook %s: %w", w.ID, err)
	}
	return string(e), string(s), string(o), nil
}

// keptChanges is how many changes are kept. Who is behind by more hears that any webhook may have changed.
const keptChanges = 1000

// changed notes that a webhook was created, changed or deleted.
func changed(c *sqlite.Conn, webhook int64, repoID string) error {
	version, err := nextNumbers(c, "change", 1)
	if err != nil {
		return err
	}
	if err := exec(c, "INSERT INTO posthorn_changes (version, webhook, repo_id) VALUES (?, ?, ?)", version, webhook, repoID); err != nil {
		return err
	}
	return exec(c, "DELETE FROM posthorn_changes WHERE version <= ?", version-keptChanges)
}

// Changes implements [posthorn.Store].
func (s *Store) Changes(ctx context.Context, since int64) (changes posthorn.Changes, err error) {
	err = s.read(ctx, func(c *sqlite.Conn) (err error) {
		if changes.Version, err = queryInt(c, "SELECT last FROM posthorn_counters WHERE name = 'change'"); err != nil {
			return err
		}
		if since < changes.Version-keptChanges {
			changes.All = true
			return nil
		}
		seen := map[int64]bool{}
		return query(c, func(st *sqlite.Stmt) error {
			w := posthorn.ChangedWebhook{Seq: st.ColumnInt64(0), RepoID: st.ColumnText(1)}
			if !seen[w.Seq] {
				changes.Webhooks = append(changes.Webhooks, w)
			}
			seen[w.Seq] = true
			return nil
		}, "SELECT webhook, repo_id FROM posthorn_changes WHERE version > ?", since)
	})
	if err != nil {
		return posthorn.Changes{}, err
	}
	return changes, nil
}

// liveWebhook is what the queue needs to know of a webhook.
type liveWebhook struct {
	id, repoID string
	active     bool
}

// findWebhook returns a webhook by its seq, and whether there is one that has not been deleted.
func findWebhook(c *sqlite.Conn, seq int64) (w liveWebhook, ok bool, err error) {
	ok, err = queryRow(c, func(st *sqlite.Stmt) {
		w = liveWebhook{id: st.ColumnText(0), repoID: st.ColumnText(1), active: st.ColumnBool(2)}
	}, "SELECT id, repo_id, active FROM posthorn_webhooks WHERE seq = ? AND deleted = 0", seq)
	return w, ok, err
}

// countWebhooks adds to the number of a repo's webhooks.
func countWebhooks(c *sqlite.Conn, repoID string, n int) error {
	return exec(c, `INSERT INTO posthorn_repos (repo_id, webhooks) VALUES (?, ?)
		ON CONFLICT DO UPDATE SET webhooks = webhooks + excluded.webhooks`, repoID, n)
}

// Setting implements [posthorn.Store].
func (s *Store) Setting(ctx context.Context, name, initial string) (string, error) {
	const get = "SELECT value FROM posthorn_settings WHERE name = ?"
	var value string
	scan := func(st *sqlite.Stmt) { value = st.ColumnText(0) }
	found := false
	err := s.read(ctx, func(c *sqlite.Conn) (err error) {
		found, err = queryRow(c, scan, get, name)
		return err
	})
	if err != nil || found || initial == "" {
		return value, err
	}
	err = s.write(ctx, func(c *sqlite.Conn) error {
		if err := exec(c, "INSERT INTO posthorn_settings (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING", name, initial); err != nil {
			return err
		}
		_, err := queryRow(c, scan, get, name)
		return err
	})
	return value, err
}

// SetSetting implements [posthorn.Store].
func (s *Store) SetSetting(ctx context.Context, name, value string) error {
	return s.write(ctx, func(c *sqlite.Conn) error {
		return exec(c, "INSERT INTO posthorn_settings (name, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", name, value)
	})
}
