package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn"
)

// Lease implements [posthorn.Store].
func (s *Store) Lease(ctx context.Context, node int64, until time.Time) (int64, error) {
	leased := node
	err := s.write(ctx, func(ctx context.Context, t *transaction) error {
		return t.run(ctx, func(b *batch) {
			if node == 0 {
				b.queue("INSERT INTO posthorn.nodes (lease_until) VALUES ($1) RETURNING node", micros(until)).
					QueryRow(func(row pgx.Row) error { return row.Scan(&leased) })
				return
			}
			b.queue("UPDATE posthorn.nodes SET lease_until = $1 WHERE node = $2 AND NOT ended RETURNING node", micros(until), node).
				QueryRow(func(row pgx.Row) error { return found(row.Scan(&leased), errNoLease(node)) })
		})
	})
	if err != nil {
		return 0, err
	}
	return leased, nil
}

func errNoLease(node int64) error {
	return posthorn.Errorf(posthorn.CodeConflict, "the lease of node %d has run out and its entries were released", node)
}

// fence makes sure that what is leased to a node will be released one day: Release waits for the lock, and afterwards there
// is nothing to lock. Renewing the lease waits for nobody. Node 0 stands for none and passes.
func fence(b *batch, node int64) {
	if node == 0 {
		return
	}
	b.queue("SELECT node FROM posthorn.nodes WHERE node = $1 AND NOT ended FOR KEY SHARE", node).
		QueryRow(func(row pgx.Row) error { return found(row.Scan(&node), errNoLease(node)) })
}
