package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn"
)

const webhookColumns = "seq, id, repo_id, url, events, active, health, description, secrets, options, created_at, updated_at"

// CreateWebhooks implements [posthorn.Store]. [posthorn.CodeInvalid] for a text with a NUL character, which PostgreSQL has no
// place for.
func (s *Store) CreateWebhooks(ctx context.Context, webhooks ...*posthorn.Webhook) error {
	var ids, repos, urls, events, healths, descriptions, secrets, options []string
	var active []bool
	var created, updated []time.Time
	for _, w := range webhooks {
		e, s, o, err := webhookJSON(w)
		if err != nil {
			return err
		}
		events, secrets, options = append(events, e), append(secrets, s), append(options, o)
		ids, repos, urls = append(ids, w.ID), append(repos, w.RepoID), append(urls, w.URL)
		active, healths, descriptions = append(active, w.Active), append(healths, healthJSON(w)), append(descriptions, w.Description)
		created, updated = append(created, micros(w.CreatedAt)), append(updated, micros(w.UpdatedAt))
	}
	var seqs []int64
	err := s.write(ctx, func(ctx context.Context, t *transaction) error {
		var stored []string
		seqs = make([]int64, 0, len(webhooks))
		err := t.run(ctx, func(b *batch) {
			b.queue(`INSERT INTO posthorn.webhooks (id, repo_id, url, events, active, health, description, secrets, options, created_at, updated_at)
				SELECT id, repo_id, url, events, active, health, description, secrets, options, created_at, updated_at
				FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::boolean[], $6::text[], $7::text[], $8::text[],
					$9::text[], $10::timestamptz[], $11::timestamptz[])
					WITH ORDINALITY AS w (id, repo_id, url, events, active, health, description, secrets, options, created_at, updated_at, n)
				ORDER BY n ON CONFLICT (id) DO NOTHING RETURNING seq, id`,
				ids, repos, urls, events, active, healths, descriptions, secrets, options, created, updated,
			).Query(func(rows pgx.Rows) error {
				var seq int64
				var id string
				_, err := pgx.ForEachRow(rows, []any{&seq, &id}, func() error {
					seqs, stored = append(seqs, seq), append(stored, id)
					return nil
				})
				return err
			})
		})
		if err != nil {
			return err
		}
		for i, id := range ids {
			if i >= len(stored) || stored[i] != id {
				return posthorn.Errorf(posthorn.CodeConflict, "there is a webhook %s already", id)
			}
		}
		return s.changed(ctx, t, seqs, repos, 1)
	})
	if err != nil {
		return err
	}
	for i, w := range webhooks {
		w.Seq = seqs[i]
	}
	return nil
}

// UpdateWebhook implements [posthorn.Store]. It calls change anew if its transaction has to be made again.
func (s *Store) UpdateWebhook(ctx context.Context, repoID, id string, change func(*posthorn.Webhook) error) (posthorn.Webhook, error) {
	if !storable(repoID, id) {
		return posthorn.Webhook{}, errNoWebhook()
	}
	var w posthorn.Webhook
	var changeErr error
	err := s.write(ctx, func(ctx context.Context, t *transaction) error {
		var before posthorn.Webhook
		err := t.run(ctx, func(b *batch) {
			selectWebhook(b, repoID, id, " FOR UPDATE", &before)
			selectWebhook(b, repoID, id, "", &w) // one that shares nothing with the other
		})
		if err != nil {
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
		err = t.run(ctx, func(b *batch) {
			b.queue(`UPDATE posthorn.webhooks SET url = $1, events = $2, active = $3, health = $4, description = $5, secrets = $6,
				options = $7, updated_at = $8 WHERE seq = $9`, w.URL, events, w.Active, healthJSON(&w), w.Description, secrets, options, micros(w.UpdatedAt), w.Seq)
			selectWebhook(b, repoID, id, "", &w) // as it will be read from now on
		})
		if err != nil || posthorn.SameButFailing(before, w) {
			return err
		}
		return s.changed(ctx, t, []int64{w.Seq}, []string{w.RepoID}, 0)
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
	if !storable(repoID, id) {
		return errNoWebhook()
	}
	return s.write(ctx, func(ctx context.Context, t *transaction) error {
		var seq int64
		err := t.run(ctx, func(b *batch) {
			b.queue("UPDATE posthorn.webhooks SET deleted = true WHERE id = $1 AND repo_id = $2 AND NOT deleted RETURNING seq",
				id, repoID).QueryRow(func(row pgx.Row) error { return found(row.Scan(&seq), errNoWebhook()) })
		})
		if err != nil {
			return err
		}
		return s.changed(ctx, t, []int64{seq}, []string{repoID}, -1)
	})
}

// Webhook implements [posthorn.Store].
func (s *Store) Webhook(ctx context.Context, repoID, id string) (w posthorn.Webhook, err error) {
	if !storable(repoID, id) {
		return w, errNoWebhook()
	}
	err = s.get(ctx, func(b *batch) { selectWebhook(b, repoID, id, "", &w) })
	return w, err
}

const totalOfWebhooks = "SELECT coalesce((SELECT webhooks FROM posthorn.webhook_counts WHERE repo_id = $1), 0)"

// Each reads a page of webhooks. Those of one repo are not selected by an equality for the same reason as in selectEvents.
const (
	selectWebhooks = "SELECT " + webhookColumns + ` FROM posthorn.webhooks WHERE NOT deleted AND seq > $2
		ORDER BY seq LIMIT $1::bigint`
	selectWebhooksOf = "SELECT " + webhookColumns + ` FROM posthorn.webhooks
		WHERE NOT deleted AND (repo_id, seq) > ($3, $2) AND repo_id <= $3 ORDER BY repo_id, seq LIMIT $1::bigint`
)

// Webhooks implements [posthorn.Store].
func (s *Store) Webhooks(ctx context.Context, q posthorn.WebhookQuery) (page posthorn.Page[posthorn.Webhook], err error) {
	if !storable(q.RepoID) {
		return page, nil
	}
	list, args := selectWebhooks, []any{q.After}
	if q.RepoID != allRepos {
		list, args = selectWebhooksOf, append(args, q.RepoID)
	}
	err = s.get(ctx, func(b *batch) {
		b.queue(totalOfWebhooks, q.RepoID).QueryRow(func(row pgx.Row) error { return row.Scan(&page.Total) })
		b.queue(list, append([]any{pageRows(q.Limit)}, args...)...).Query(func(rows pgx.Rows) error {
			for rows.Next() {
				if q.Limit > 0 && len(page.Items) == q.Limit {
					page.Next = page.Items[q.Limit-1].Seq
					return nil
				}
				w, err := scanWebhook(rows)
				if err != nil {
					return err
				}
				page.Items = append(page.Items, w)
			}
			return nil
		})
	})
	if err != nil {
		return posthorn.Page[posthorn.Webhook]{}, err
	}
	return page, nil
}

// selectWebhook reads a webhook into w.
func selectWebhook(b *batch, repoID, id, lock string, w *posthorn.Webhook) {
	b.queue("SELECT "+webhookColumns+" FROM posthorn.webhooks WHERE id = $1 AND repo_id = $2 AND NOT deleted"+lock, id, repoID).
		QueryRow(func(row pgx.Row) (err error) {
			*w, err = scanWebhook(row)
			return found(err, errNoWebhook())
		})
}

func errNoWebhook() error {
	return posthorn.Errorf(posthorn.CodeNotFound, "Webhook not found")
}

// found replaces the error of a row that isn't there.
func found(err, missing error) error {
	if err == pgx.ErrNoRows { //nolint:errorlint // Scan's own
		return missing
	}
	return err
}

func scanWebhook(row pgx.Row) (w posthorn.Webhook, err error) {
	var events, secrets, options, health []byte
	err = row.Scan(&w.Seq, &w.ID, &w.RepoID, &w.URL, &events, &w.Active, &health, &w.Description, &secrets, &options, &w.CreatedAt, &w.UpdatedAt)
	if err != nil {
		return w, err
	}
	w.CreatedAt, w.UpdatedAt = w.CreatedAt.UTC(), w.UpdatedAt.UTC()
	if err := json.Unmarshal(events, &w.Events); err != nil {
		return w, fmt.Errorf("the events of webhook %s: %w", w.ID, err)
	}
	if err := json.Unmarshal(secrets, &w.Secrets); err != nil {
		return w, fmt.Errorf("the secrets of webhook %s: %w", w.ID, err)
	}
	if err := json.Unmarshal(options, &w.Options); err != nil {
		return w, fmt.Errorf("the options of webhook %s: %w", w.ID, err)
	}
	if err := json.Unmarshal(health, &w.Health); err != nil {
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
