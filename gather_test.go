package posthorn

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// slowStore takes a while over each commit.
type slowStore struct{ noStore }

const commitTakes = time.Millisecond

func (s slowStore) Commit(ctx context.Context, b Batch) ([]Acceptance, error) {
	<-time.After(commitTakes)
	return s.noStore.Commit(ctx, b)
}

// Events wait for as many callers as the batch before had, and not for long. Where these were few they don't wait.
func TestEventsGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroupCommit(slowStore{}, func() int64 { return 1 })
		g.sched = benchScheduler(func(e *Entry) Result { return Result{Entry: e} }, g.record)
		g.committed = func(Result) {}
		committing := newStoppable()
		committing.run(g.run)
		webhook := benchWebhooks(1)
		accept := func(n int) (took func() time.Duration) {
			start := time.Now()
			var callers sync.WaitGroup
			for range n {
				callers.Go(func() {
					if _, err := g.accept(t.Context(), benchEvent(), TriggerAutomatic, webhook); err != nil {
						t.Error(err)
					}
				})
			}
			synctest.Wait() // they have submitted
			return func() time.Duration {
				callers.Wait()
				took := time.Since(start)
				<-time.After(time.Second) // the results are committed, too
				return took
			}
		}
		check := func(what string, got, want time.Duration) {
			t.Helper()
			if got != want {
				t.Errorf("%s waited for %v, want %v", what, got, want)
			}
		}

		const many = 2 * someSubmissions
		check("one", accept(1)(), commitTakes)
		check("another one", accept(1)(), commitTakes)
		first := accept(1)
		check("those who come during its commit", accept(many)(), 2*commitTakes)
		first()
		check("one after many", accept(1)(), maxEventDelay+commitTakes)
		check("one after that", accept(1)(), commitTakes)
		accept(many)()
		last := accept(1)
		committing.stop()
		check("one that waits for company when all ends", last(), commitTakes)
		g.sched.stop()
		g.sched.workers.Wait()
	})
}
