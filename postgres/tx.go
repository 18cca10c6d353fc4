package postgres

import (
	"context"
	"database/sql"
	"errors"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn"
)

// Tx makes a transaction of the host's one that events can be accepted in, so that they are sent if and only if it commits.
// It must be on the store's own database, with whatever role and search_path; the role needs USAGE on the schema and on the
// sequence event_seq, SELECT on events and on the columns seq and deleted of webhooks, and INSERT on events, queue and
// repo_counts. Keep it short: who dispatches the same event meanwhile waits for it, and soon gives up. The event is as durable
// as the host's setting synchronous_commit makes it. In a transaction that is REPEATABLE READ or SERIALIZABLE, two of the same
// event at a time are a serialization failure, which the host knows how to take: it makes the transaction again.
func (s *Store) Tx(tx pgx.Tx) posthorn.Tx {
	return hostTx{s, func(ctx context.Context, sql string, args ...any) scanner { return tx.QueryRow(ctx, sql, args...) }}
}

// SQLTx is [Store.Tx] for a transaction of database/sql's, on any of its drivers for PostgreSQL.
func (s *Store) SQLTx(tx *sql.Tx) posthorn.Tx {
	return hostTx{s, func(ctx context.Context, sql string, args ...any) scanner {
		return tx.QueryRowContext(ctx, sql, args...)
	}}
}

type scanner interface{ Scan(...any) error }

type hostTx struct {
	store    *Store
	queryRow func(ctx context.Context, sql string, args ...any) scanner
}

// acceptOne is insertEvents for a single event, in a form that every driver understands: no arrays. It tells who listens, if the event
// goes to anyone, which happens when the transaction commits, and returns a row only if the event is new.
const acceptOne = `WITH new AS (
		INSERT INTO posthorn.events (seq, id, repo_id, type, created_at, deliveries, attributes, payload)
		VALUES (nextval('posthorn.event_seq'), $1::text, $2::text, $3::text, $4::timestamptz, $5::integer, $11::text, $6::bytea)
		ON CONFLICT (id, repo_id) DO NOTHING RETURNING seq
	), entries AS (
		INSERT INTO posthorn.queue (event, webhook, run, attempt, trigger, due_at, node, ordering)
		SELECT new.seq, t.webhook, 0, 1, $7::text, $4::timestamptz, CASE WHEN t.held <> 0 THEN -2 WHEN t.ordering <> 0 THEN -1 END, t.ordering
		FROM new CROSS JOIN unnest($8::text::bigint[], $12::text::bigint[], $13::text::bigint[]) AS t (webhook, ordering, held)
		CROSS JOIN LATERAL (SELECT FROM posthorn.webhooks w WHERE w.seq = t.webhook AND NOT w.deleted OFFSET 0) w
		ON CONFLICT DO NOTHING
	), counted AS (
		INSERT INTO posthorn.repo_counts (repo_id, events) SELECT $2::text, 1 FROM new
	)
	SELECT seq, CASE WHEN $8::text = '{}' THEN false ELSE pg_notify($9::text, $10::text) IS NULL END FROM new`

// Accept implements [posthorn.Tx].
func (h hostTx) Accept(ctx context.Context, n posthorn.NewEvent) (posthorn.Acceptance, error) {
	if err := ctx.Err(); err != nil {
		return posthorn.Acceptance{}, err
	}
	o, err := h.accept(ctx, n)
	if err != nil {
		return posthorn.Acceptance{}, h.store.fault(ctx, err)
	}
	return o.acceptance(n.Event), nil
}

func (h hostTx) accept(ctx context.Context, n posthorn.NewEvent) (*outcome, error) {
	e, payload := n.Event, payloadBytes(n.Event)
	if !storable(e.ID, e.RepoID, e.Type) {
		return &outcome{invalid: true}, nil
	}
	o := outcome{deliveries: len(n.Targets)}
	told := false
	err := h.queryRow(ctx, h.store.names.sql(acceptOne), e.ID, e.RepoID, e.Type, micros(e.CreatedAt), len(n.Targets), payload,
		string(n.Trigger), array(n.Targets, func(t posthorn.Target) int64 { return t.WebhookSeq }), h.store.schema, duePayload(n.Targets),
		e.Attributes.Encode(), array(n.Targets, func(t posthorn.Target) int64 { return t.Ordering }), array(n.Targets, heldNumber)).Scan(&o.seq, &told)
	if !errors.Is(err, pgx.ErrNoRows) && !errors.Is(err, sql.ErrNoRows) {
		return &o, err
	}
	o.duplicate = true
	err = h.queryRow(ctx, h.store.names.sql(`SELECT seq, deliveries, type = $3::text AND payload = $4::bytea
		FROM posthorn.events WHERE id = $1::text AND repo_id = $2::text`), e.ID, e.RepoID, e.Type, payload).Scan(&o.seq, &o.deliveries, &o.same)
	if errors.Is(err, pgx.ErrNoRows) || errors.Is(err, sql.ErrNoRows) {
		return nil, posthorn.Errorf(posthorn.CodeUnavailable, "the first event of this ID was pruned at this moment; dispatch it again")
	}
	return &o, err
}

func heldNumber(t posthorn.Target) int64 {
	if t.Held {
		return 1
	}
	return 0
}

// array is an array of PostgreSQL's as text.
func array(targets []posthorn.Target, of func(posthorn.Target) int64) string {
	numbers := make([]string, len(targets))
	for i, t := range targets {
		numbers[i] = strconv.FormatInt(of(t), 10)
	}
	return "{" + strings.Join(numbers, ",") + "}"
}
