package sqlite

import (
	"context"
	"database/sql"
	"errors"

	"github.com/musehub/posthorn"
)

// Tx makes a transaction of the host's one that events can be accepted in, so that they are sent if and only if it commits.
// It must be on the store's own file, opened as [Open] says, and is as durable as its connection's setting synchronous makes
// it: FULL unless the host lowers it.
func (s *Store) Tx(tx *sql.Tx) posthorn.Tx {
	return hostTx{store: s, tx: tx}
}

type hostTx struct {
	store *Store
	tx    *sql.Tx
}

func (h hostTx) Accept(ctx context.Context, e posthorn.NewEvent) (posthorn.Acceptance, error) {
	a, err := h.accept(ctx, e)
	return a, h.store.fault(ctx, err)
}

// accept is acceptEvents for one event and the other driver.
func (h hostTx) accept(ctx context.Context, n posthorn.NewEvent) (a posthorn.Acceptance, err error) {
	e, deliveries := n.Event, len(n.Targets)
	payload := append([]byte{}, e.Payload...) // this driver takes a nil slice for NULL
	var seq, newest int64
	var repoID string
	if err := h.tx.QueryRowContext(ctx, takeNumbers, 1, "event").Scan(&seq); err != nil {
		return a, err
	}
	if err := h.tx.QueryRowContext(ctx, selectRepos.one(), e.RepoID).Scan(&repoID, &newest); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return a, err
	}
	inserted, err := h.tx.ExecContext(ctx, insertEvents.one(), seq, newest, e.ID, e.RepoID, e.Type, micros(e.CreatedAt), deliveries,
		e.Attributes.Encode(), payload)
	if err != nil {
		return a, err
	}
	if rows, err := inserted.RowsAffected(); err != nil {
		return a, err
	} else if rows == 0 {
		var first firstEvent
		err := h.tx.QueryRowContext(ctx, selectSameEvent, e.Type, payload, e.ID, e.RepoID).Scan(&first.seq, &first.deliveries, &first.same)
		if err != nil {
			return a, err
		}
		return first.acceptance(e), nil
	}
	insert, err := h.tx.PrepareContext(ctx, insertQueued)
	if err != nil {
		return a, err
	}
	defer insert.Close()
	for _, t := range n.Targets {
		lane := freeLane(n.Trigger)
		if t.Held {
			lane = laneHeld
		}
		if t.Ordering != 0 {
			behind := 0
			if err := h.tx.QueryRowContext(ctx, countBefore, t.WebhookSeq, t.Ordering, seq).Scan(&behind); err != nil {
				return a, err
			}
			if behind > 0 {
				lane = laneBehind
			}
		}
		_, err := insert.ExecContext(ctx, t.WebhookSeq, lane, micros(e.CreatedAt), seq, 0, 1, string(n.Trigger), t.Ordering, nil)
		if err != nil {
			return a, err
		}
	}
	if _, err := h.tx.ExecContext(ctx, addEvents.one(), e.RepoID, 1, seq); err != nil {
		return a, err
	}
	e.Seq = seq
	return posthorn.Acceptance{Deliveries: deliveries}, nil
}
