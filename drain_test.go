package posthorn

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// What an event is committed with is about as much as itself, or little, however many results wait; and these don't starve.
func TestEventsWaitForFewResults(t *testing.T) {
	for name, c := range map[string]struct{ events, results, want int }{
		"few results":             {1, enoughResults, enoughResults},
		"more":                    {1, enoughResults + 100, enoughResults},
		"a slow store":            {1, 3 * enoughResults, 3 * enoughResults / 2},
		"a very slow one":         {1, 10 * maxBatchResults, maxBatchResults},
		"many events":             {enoughResults, 4 * enoughResults, resultsPerEvent * enoughResults},
		"results alone":           {0, enoughResults + 100, enoughResults},
		"more events than fit in": {maxBatchEvents + 1, maxBatchResults + 1, maxBatchResults},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGroupCommit(noStore{}, func() int64 { return 1 })
			for range c.events {
				if err := g.add(&submission{events: []acceptance{{event: benchEvent()}}}); err != nil {
					t.Fatal(err)
				}
			}
			for range c.results {
				g.record(Result{})
			}
			_, events, results, more := g.take()
			if want := min(c.events, maxBatchEvents); events != want || len(results) != c.want {
				t.Errorf("the batch has %d events and %d results, want %d and %d", events, len(results), want, c.want)
			}
			taken := len(results)
			for more {
				_, _, results, more = g.take()
				taken += len(results)
			}
			if taken != c.results {
				t.Errorf("all batches have %d results, want %d", taken, c.results)
			}
		})
	}
}

// Events for many webhooks each are not all committed together. One is never split.
func TestBatchTargets(t *testing.T) {
	g := newGroupCommit(noStore{}, func() int64 { return 1 })
	for _, targets := range []int{maxBatchTargets - 1, 1, 1, maxBatchTargets + 1, 1} {
		if err := g.add(&submission{events: []acceptance{{event: benchEvent()}}, targets: targets}); err != nil {
			t.Fatal(err)
		}
	}
	var got []int
	for more := true; more; {
		var submissions []*submission
		submissions, _, _, more = g.take()
		got = append(got, len(submissions))
	}
	if want := []int{2, 1, 1, 1}; !slices.Equal(got, want) {
		t.Errorf("the batches have %v events, want %v", got, want)
	}
}

// A webhook with a backlog makes do with one request at a time while the store can't keep up with its results, and those
// without requests in flight go on as if nothing was. When the store has caught up, so does the webhook.
func TestBacklogWaitsForTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const takes = 10 * time.Millisecond
		var mu sync.Mutex
		attempts := map[int64]int{} // by webhook
		var results []Result
		s := benchScheduler(func(e *Entry) Result {
			mu.Lock()
			attempts[e.WebhookSeq]++
			mu.Unlock()
			<-time.After(takes)
			return Result{Entry: e, Delivery: &Delivery{Success: true}}
		}, func(r Result) {
			mu.Lock()
			defer mu.Unlock()
			results = append(results, r)
		})
		const backlog = 2 * maxBatchResults
		s.limits.queued = backlog
		webhooks := benchWebhooks(2)
		accept := func(w []recipient) {
			a := &acceptance{event: benchEvent(), trigger: TriggerAutomatic, webhooks: w}
			a.reserved = s.reserve(a.trigger, targetsOf(w), len(a.event.Payload))
			s.accepted(a, 1)
		}
		accept(webhooks[1:]) // which makes it a proven one
		for range backlog {
			accept(webhooks[:1])
		}
		<-time.After(time.Second)
		synctest.Wait()
		if got, most := attempts[1], maxBatchResults+s.limits.perWebhook+int(time.Second/takes); got < maxBatchResults || got > most {
			t.Errorf("%d attempts were made while nothing was recorded, want %d to %d", got, maxBatchResults, most)
		}
		accept(webhooks[1:])
		synctest.Wait()
		if attempts[2] != 2 {
			t.Error("a webhook without requests in flight waits for the results of another one")
		}
		for attempts[1] < backlog {
			mu.Lock()
			recorded := results
			results = nil
			mu.Unlock()
			if len(recorded) == 0 {
				t.Fatalf("only %d attempts were made", attempts[1])
			}
			s.recorded(recorded)
			<-time.After(5 * takes)
			synctest.Wait()
		}
		s.stop()
		s.workers.Wait()
	})
}
