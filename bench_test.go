package posthorn

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

// noStore has webhooks, and forgets everything else at once.
type noStore struct {
	Store
	webhooks []Webhook
}

func (s noStore) Webhooks(context.Context, WebhookQuery) (Page[Webhook], error) {
	return Page[Webhook]{Items: s.webhooks}, nil
}

func (noStore) Commit(_ context.Context, b Batch) ([]Acceptance, error) {
	return make([]Acceptance, len(b.Events)), nil
}

// BenchmarkMatch matches an event with the webhooks of its repo, all of which want it, from the cache.
func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{1, 20, 1000} {
		b.Run(fmt.Sprintf("webhooks=%d", n), func(b *testing.B) {
			store := noStore{}
			for i := range n {
				store.webhooks = append(store.webhooks, Webhook{
					Seq: int64(i + 1), RepoID: "r", ID: fmt.Sprint(i), URL: "https://example.com/", Events: []string{"push"}, Active: true,
				})
			}
			cfg, err := Config{}.withDefaults()
			if err != nil {
				b.Fatal(err)
			}
			d := &Dispatcher{store: store, subscriptions: newSubscriptions(store, nil, time.Now, &cfg)}
			d.subscriptions.follow(Changes{}, time.Now().Add(24*time.Hour)) // keeps the cache
			event := benchEvent()
			b.ReportAllocs()
			for b.Loop() {
				if got, err := d.match(b.Context(), event); err != nil || len(got) != n {
					b.Fatal(len(got), err)
				}
			}
		})
	}
}

// BenchmarkSchedule takes an entry through the scheduler: it is reserved, queued, taken, finished and recorded.
func BenchmarkSchedule(b *testing.B) {
	for _, n := range []int{1, 1000} {
		b.Run(fmt.Sprintf("webhooks=%d", n), func(b *testing.B) {
			s := benchScheduler(nil, nil)
			event := benchEvent()
			webhooks := benchWebhooks(n)
			delivery := &Delivery{Success: true}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				a := &acceptance{event: event, trigger: TriggerAutomatic, webhooks: webhooks[i%n : i%n+1]}
				a.reserved = s.reserve(a.trigger, targetsOf(a.webhooks), len(event.Payload))
				s.blocked = true // so that no worker takes it
				s.accepted(a, 1)
				s.blocked = false
				t := s.next()
				r := Result{Entry: t.entry, Delivery: delivery}
				s.finish(t.queue, &r)
				s.recorded([]Result{r})
			}
		})
	}
}

// BenchmarkCommit takes events all the way, but for the store and the network: group commit, the scheduler with its workers, and
// the recording of each delivery. Each goes to one of a thousand webhooks.
func BenchmarkCommit(b *testing.B) {
	webhooks := benchWebhooks(1000)
	delivery := &Delivery{Success: true}
	g := newGroupCommit(noStore{}, func() int64 { return 1 })
	g.sched = benchScheduler(func(e *Entry) Result { return Result{Entry: e, Delivery: delivery} }, g.record)
	var recorded atomic.Int64
	g.committed = func(Result) { recorded.Add(1) }
	committing := newStoppable()
	committing.run(g.run)
	defer committing.stop()
	var events atomic.Int64
	b.ReportAllocs()
	b.SetParallelism(32) // publishers for each processor
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			i := int(events.Add(1)) % len(webhooks)
			if _, err := g.accept(context.Background(), benchEvent(), TriggerAutomatic, webhooks[i:i+1]); err != nil {
				b.Error(err)
				return
			}
		}
	})
	g.sched.workers.Wait()
	committing.stop()
	if recorded.Load() != events.Load() {
		b.Errorf("%d of %d deliveries were recorded", recorded.Load(), events.Load())
	}
}

func benchEvent() *AcceptedEvent {
	return &AcceptedEvent{RepoID: "r", ID: "e", Type: "push", Payload: json.RawMessage(`{}`)}
}

func targetsOf(webhooks []recipient) []Target {
	targets := make([]Target, len(webhooks))
	for i, w := range webhooks {
		targets[i] = Target{WebhookSeq: w.Seq, Leased: true}
	}
	return targets
}

func benchWebhooks(n int) []recipient {
	webhooks := make([]recipient, n)
	for i := range webhooks {
		webhooks[i] = recipient{Seq: int64(i + 1), ID: fmt.Sprint(i), RepoID: "r"}
	}
	return webhooks
}

func benchScheduler(attempt func(*Entry) Result, record func(Result)) *scheduler {
	s := newScheduler(limits{inFlight: 1024, perWebhook: 64, queued: 1024, bytes: 64 << 20}, attempt, record)
	s.lease(1, time.Now().Add(24*time.Hour))
	return s
}
