package bench

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// A ledger counts deliveries that are expected and those that are recorded.
type ledger struct {
	bound       int
	mu          sync.Mutex
	changed     sync.Cond // L is mu
	waiters     int
	outstanding int
	recorded    int64
	failed      string // what became of a delivery that failed, the last one
}

func newLedger(bound int) *ledger {
	l := &ledger{bound: bound}
	l.changed.L = &l.mu
	return l
}

// expect counts n deliveries that are about to be accepted, once there are fewer than the bound.
func (l *ledger) expect(ctx context.Context, n int) error {
	return l.wait(ctx, func() bool { return l.outstanding < l.bound }, n)
}

// add counts n deliveries that are about to be accepted, however many there are.
func (l *ledger) add(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.outstanding += n
}

// settled waits until all that was expected is recorded. It fails when nothing is for long.
func (l *ledger) settled(ctx context.Context) error {
	for {
		before := l.total()
		bounded, cancel := context.WithTimeout(ctx, patience)
		err := l.wait(bounded, func() bool { return l.outstanding <= 0 }, 0)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		if l.total() == before {
			return fmt.Errorf("deliveries that were accepted have not been recorded, and none was within %v", patience)
		}
	}
}

// patience is how long there may be nothing recorded while something is expected, and how long a measured request may take.
const patience = time.Minute

// clear forgets what is expected.
func (l *ledger) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.outstanding = 0
	l.failed = ""
}

func (l *ledger) wait(ctx context.Context, ready func() bool, n int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !ready() {
		defer context.AfterFunc(ctx, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.changed.Broadcast()
		})()
		l.waiters++
		defer func() { l.waiters-- }()
		for !ready() {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			l.changed.Wait()
		}
	}
	l.outstanding += n
	return nil
}

// record counts n deliveries that are recorded.
func (l *ledger) record(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.outstanding -= n
	l.recorded += int64(n)
	if l.waiters > 0 {
		l.changed.Broadcast()
	}
}

// forget takes back what was expected and did not come to be.
func (l *ledger) forget(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.outstanding -= n
	if l.waiters > 0 {
		l.changed.Broadcast()
	}
}

// fault returns an error if a delivery has failed since it was asked last.
func (l *ledger) fault() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	what := l.failed
	l.failed = ""
	if what != "" {
		return fmt.Errorf("a delivery failed, so the figures would be wrong: %s", what)
	}
	return nil
}

func (l *ledger) fail(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = what
}

// total returns how many were recorded, ever.
func (l *ledger) total() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.recorded
}
