package bench

import (
	"context"
	"fmt"

	"github.com/musehub/posthorn"
)

// Event types, by which the ledgers tell what is measured from what only runs beside it.
const (
	measured = "push"
	beside   = "session"
)

// store counts what a store records: entries that are done, with the delivery that ended them.
type store struct {
	posthorn.Store
	measured, beside *ledger
}

// notifier is a store that is also a Notifier.
type notifier struct {
	*store
	posthorn.Notifier
}

// dispatched returns the store as a Dispatcher is to have it: with all that the one below can do. The secret keys that it may
// keep are given to the Dispatcher as a setting.
func (s *store) dispatched() posthorn.Store {
	if n, ok := s.Store.(posthorn.Notifier); ok {
		return notifier{s, n}
	}
	return s
}

// Commit implements posthorn.Store.
func (s *store) Commit(ctx context.Context, b posthorn.Batch) ([]posthorn.Acceptance, error) {
	acceptances, err := s.Store.Commit(ctx, b)
	if err != nil {
		return acceptances, err
	}
	main, other := 0, 0
	for _, r := range b.Results {
		if d := r.Delivery; d != nil && !d.Success && d.EventType == measured {
			s.measured.fail(fmt.Sprintf("status %d, %s", d.ResponseStatus, d.ResponseBody))
		}
		switch {
		case r.Delivery == nil || !r.RetryAt.IsZero():
		case r.Delivery.EventType == measured:
			main++
		default:
			other++
		}
	}
	if main > 0 {
		s.measured.record(main)
	}
	if other > 0 {
		s.beside.record(other)
	}
	return acceptances, nil
}
