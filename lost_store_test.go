package posthorn_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/sender"
)

// A call of the store of which nobody knows whether it did what it should is settled by the node itself.
func TestUncertain(t *testing.T) {
	for _, happened := range []bool{true, false} {
		maybe := func(do func() error) error {
			if happened {
				if err := do(); err != nil {
					return err
				}
			}
			return errUncertain
		}
		name := func(call string) string { return fmt.Sprintf("%s/happened=%v", call, happened) }

		// settled lets the node come to itself and checks that it works as before.
		settled := func(t *testing.T, a *world, hooks []posthorn.Webhook, want int) {
			t.Helper()
			pass(5 * time.Second)
			if err := a.Ready(); err != nil {
				t.Error(err)
			}
			a.expectEach(want, never)
			a.dispatch("r1", "later")
			synctest.Wait()
			if len(a.ids("")["later"]) != 1 {
				t.Error("an event after it was not sent at once")
			}
			pass(time.Minute)
			a.expectEach(want+1, never)
			logged := 0
			for _, hook := range hooks {
				logged += len(a.deliveries(hook))
			}
			if logged != want+1 {
				t.Errorf("%d deliveries in the log, want %d", logged, want+1)
			}
			a.expectIdle()
		}

		t.Run(name("event"), func(t *testing.T) {
			inWorld(t, posthorn.Config{}, func(t *testing.T, a *world) {
				hook := a.webhook("r1", good)
				a.tamper(once(maybe, "Commit"))
				event := posthorn.Event{ID: "e1", RepoID: "r1", Type: "push", Payload: 1}
				if _, err := a.Dispatch(t.Context(), event); posthorn.ErrorCode(err) != posthorn.CodeUncertain {
					t.Fatalf("the error is %v", err)
				}
				r, err := a.Dispatch(t.Context(), event)
				for tries := 0; posthorn.ErrorCode(err) == posthorn.CodeUnavailable && tries < 10; tries++ {
					pass(100 * time.Millisecond) // it is becoming a new node
					r, err = a.Dispatch(t.Context(), event)
				}
				if err != nil || r.Deliveries != 1 || r.Duplicate != happened {
					t.Errorf("the same again: %+v, %v", r, err)
				}
				settled(t, a, []posthorn.Webhook{hook}, 1)
			})
		})
		t.Run(name("events without ids"), func(t *testing.T) {
			inWorld(t, posthorn.Config{}, func(t *testing.T, a *world) {
				a.webhook("r1", good)
				for _, n := range []int{2, 10, 10 + 2} {
					events := make([]posthorn.Event, n)
					for i := range events {
						events[i] = posthorn.Event{RepoID: "r1", Type: "push", Payload: 1}
					}
					events[0].ID = fmt.Sprint("named-", n)
					a.tamper(once(maybe, "Commit"))
					_, err := a.DispatchBatch(t.Context(), events)
					if posthorn.ErrorCode(err) != posthorn.CodeUncertain || strings.Contains(err.Error(), events[0].ID) {
						t.Fatalf("the error is %v", err)
					}
					if unnamed := n - 1; unnamed > 10 && !strings.Contains(err.Error(), fmt.Sprint(unnamed, " events had none")) {
						t.Errorf("the error of %d events doesn't say what has no ID: %v", n, err)
					}
					pass(5 * time.Second)
					if !happened || n > 10 {
						continue
					}
					page, listErr := a.Events(t.Context(), posthorn.EventQuery{RepoID: "r1", Limit: n - 1})
					if listErr != nil || len(page.Items) != n-1 {
						t.Fatalf("%+v, %v", page, listErr)
					}
					for _, e := range page.Items {
						if !strings.Contains(err.Error(), e.ID) {
							t.Errorf("the error doesn't name %s: %v", e.ID, err)
						}
					}
				}
			})
		})
		t.Run(name("result"), func(t *testing.T) {
			inWorld(t, posthorn.Config{}, func(t *testing.T, a *world) {
				hook := a.webhook("r1", good)
				a.answers(func(request) sender.Outcome { pass(100 * time.Millisecond); return ok200 })
				for i := range 10 {
					a.dispatch("r1", fmt.Sprintf("e%d", i))
				}
				a.tamper(once(maybe, "Commit")) // one request is in flight, and its result comes next
				settled(t, a, []posthorn.Webhook{hook}, 10)
			})
		})
		t.Run(name("result and events"), func(t *testing.T) {
			inWorld(t, posthorn.Config{}, func(t *testing.T, a *world) {
				hook := a.webhook("r1", good)
				other := a.webhook("r2", bad)
				a.answers(func(request) sender.Outcome { pass(100 * time.Millisecond); return ok200 })
				for i := range 10 {
					a.dispatch("r1", fmt.Sprintf("e%d", i))
				}
				a.tamper(once(maybe, "Commit"))
				pass(105 * time.Millisecond) // there is a result, and the event takes it along
				_, err := a.Dispatch(t.Context(), posthorn.Event{ID: "o", RepoID: "r2", Type: "push", Payload: 1})
				if posthorn.ErrorCode(err) != posthorn.CodeUncertain {
					t.Fatalf("the error is %v", err)
				}
				want := 10
				if happened {
					want++
				}
				settled(t, a, []posthorn.Webhook{hook, other}, want)
			})
		})
		t.Run(name("claim"), func(t *testing.T) {
			inWorld(t, posthorn.Config{}, func(t *testing.T, a *world) {
				hook := a.webhook("r1", good)
				a.tamper(once(maybe, "Claim"))
				for i := range 10 {
					a.dispatchFree("r1", fmt.Sprintf("e%d", i))
				}
				settled(t, a, []posthorn.Webhook{hook}, 10)
			})
		})
		t.Run(name("enqueue"), func(t *testing.T) {
			inWorld(t, posthorn.Config{}, func(t *testing.T, a *world) {
				hook := a.webhook("r1", good)
				a.dispatch("r1", "e0")
				pass(time.Second)
				a.tamper(once(maybe, "Enqueue"))
				_, err := a.Redeliver(t.Context(), "r1", hook.ID, a.deliveries(hook)[0].ID)
				if posthorn.ErrorCode(err) != posthorn.CodeUncertain {
					t.Fatalf("the error is %v", err)
				}
				pass(5 * time.Second)
				want := 1
				if happened {
					want++
				}
				if got := len(a.seen("")); got != want {
					t.Errorf("%d requests, want %d", got, want)
				}
				a.dispatch("r1", "later")
				pass(time.Minute)
				if got := len(a.deliveries(hook)); got != want+1 {
					t.Errorf("%d deliveries in the log, want %d", got, want+1)
				}
				a.expectIdle()
			})
		})
		t.Run(name("lease"), func(t *testing.T) {
			inWorld(t, posthorn.Config{}, func(t *testing.T, a *world) {
				hook := a.webhook("r1", good)
				for range 3 {
					a.tamper(once(maybe, "Lease"))
					pass(posthorn.LeaseFor / 3)
				}
				a.dispatch("r1", "e0")
				settled(t, a, []posthorn.Webhook{hook}, 1)
			})
		})
		t.Run(name("while it becomes a new node"), func(t *testing.T) {
			inWorld(t, posthorn.Config{}, func(t *testing.T, a *world) {
				hook := a.webhook("r1", good)
				releasing, leasing := once(maybe, "Release"), once(maybe, "Lease")
				claiming := once(maybe, "Claim")
				a.tamper(both(both(releasing, leasing), claiming))
				for i := range 10 {
					a.dispatchFree("r1", fmt.Sprintf("e%d", i))
				}
				settled(t, a, []posthorn.Webhook{hook}, 10)
			})
		})
	}
}

// A store may not answer a call at all, as when what is between the node and it swallows packets: it honours its context, and
// nothing else. A node gets over that by itself.
func TestStoreThatNeverAnswers(t *testing.T) {
	for _, call := range []string{"Commit", "Due", "Claim", "Lease", "Release", "Changes", "Webhook", "Prune"} {
		t.Run(call, func(t *testing.T) {
			inWorld(t, posthorn.Config{}, func(t *testing.T, a *world) {
				hook := a.webhook("r1", good)
				b := a.another("B") // of which A hears what it has to ask the store for
				pass(100 * time.Millisecond)
				var hung atomic.Int32
				hang := func(ctx context.Context, c string, do func() error) error {
					if c == call {
						hung.Add(1)
						<-ctx.Done()
						return ctx.Err()
					}
					return do()
				}
				a.tamper(hang)
				if call == "Webhook" { // which is asked for when A has not heard of one
					a.tamper(both(failing("Changes"), hang))
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				_, _ = a.Dispatch(ctx, posthorn.Event{RepoID: "r1", Type: "push", Payload: 1})
				b.tamper(failing("Claim"))
				other := b.webhook("r1", bad)
				b.dispatchFree("r1", "e1")
				pass(2 * time.Minute)
				if hung.Load() == 0 {
					t.Errorf("%s was not called", call)
				}
				a.tamper(nil)
				pass(2 * time.Minute)
				url := "https://moved.example/hook"
				b.update(hook, posthorn.WebhookPatch{URL: &url})
				if err := b.DeleteWebhook(t.Context(), "r1", other.ID); err != nil {
					t.Fatal(err)
				}
				pass(time.Second)
				if r := a.dispatch("r1", "e2"); r.Deliveries != 1 {
					t.Errorf("dispatched for %d webhooks, want 1", r.Deliveries)
				}
				b.dispatchFree("r1", "e3")
				pass(2 * time.Second)
				if got := len(a.seen(url)); got != 2 {
					t.Errorf("%d requests to the new URL, want 2", got)
				}
				for _, url := range []string{good, bad} {
					arrived := false
					for _, r := range a.seen(url) {
						arrived = arrived || r.eventID == "e1"
					}
					if !arrived {
						t.Errorf("e1 did not reach %s", url)
					}
				}
				b.tamper(nil)
				pass(time.Minute)
				a.expectIdle()
			})
		})
	}
}

// What a store finds due counts, even if it can't find all.
func TestDueBesideError(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, a *world) {
		a.webhook("r1", good)
		b := a.another("B") // of whose events A hears nothing
		b.tamper(failing("Claim"))
		a.tamper(around(func(do func() error) error { return errors.Join(do(), errAway) }, "Due"))
		b.dispatchFree("r1", "e1")
		pass(2 * posthorn.SweepEvery)
		a.expectSent(good, "A", "e1")
	})
}

// slowLog makes whoever logs an error wait a moment, in which all others go on.
type slowLog struct{ slog.Handler }

func (slowLog) Enabled(context.Context, slog.Level) bool { return true }

func (slowLog) Handle(_ context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		pass(time.Millisecond)
	}
	return nil
}

// A node that gives up its lease first records what was answered, also what is just being committed.
func TestNothingAnsweredIsRepeated(t *testing.T) {
	t.Run("a commit that failed", func(t *testing.T) {
		inWorld(t, posthorn.Config{Logger: slog.New(slowLog{slog.DiscardHandler})}, func(t *testing.T, a *world) {
			a.webhook("r1", good)
			a.dispatch("r1", "e0")
			synctest.Wait()
			a.tamper(once(func(func() error) error { return errUncertain }, "Commit"))
			pass(time.Minute)
			a.expectEach(1, never)
			a.expectIdle()
		})
	})
	t.Run("a commit under way", func(t *testing.T) {
		inWorld(t, posthorn.Config{}, func(t *testing.T, a *world) {
			hook := a.webhook("r1", good)
			a.dispatch("r1", "e0")
			synctest.Wait()
			committing := around(func(do func() error) error { pass(500 * time.Millisecond); return do() }, "Commit")
			claiming := once(func(func() error) error { return errUncertain }, "Claim")
			a.tamper(both(committing, claiming))
			pass(100 * time.Millisecond)
			a.update(hook, posthorn.WebhookPatch{Active: new(true)}) // makes it claim
			pass(time.Minute)
			a.expectEach(1, never)
			a.expectIdle()
		})
	})
}

// As long as results can't be recorded no more attempts start: they would have to be repeated if the node died, or lost its
// lease.
func TestNoAttemptsWhileResultsCantBeRecorded(t *testing.T) {
	const n, takes = 400, 100 * time.Millisecond
	inTrouble := func(t *testing.T, test func(t *testing.T, a *world)) {
		inWorld(t, posthorn.Config{MaxInFlightPerWebhook: 4}, func(t *testing.T, a *world) {
			a.webhook("r1", good)
			a.answers(func(request) sender.Outcome { pass(takes); return ok200 })
			for i := range n {
				a.dispatch("r1", fmt.Sprintf("e%d", i))
			}
			pass(time.Second)
			test(t, a)
		})
	}
	// startedBetween counts the requests that started in a time.
	startedBetween := func(w *world, from, to time.Time) (started int) {
		for _, r := range w.seen("") {
			if r.at.After(from) && r.at.Before(to) {
				started++
			}
		}
		return started
	}
	const enough = takes + 25*time.Millisecond // for the result that doesn't get recorded

	for _, fault := range []error{errAway, errUncertain, errors.New("defect")} {
		t.Run("commits fail/"+string(posthorn.ErrorCode(fault)), func(t *testing.T) {
			inTrouble(t, func(t *testing.T, a *world) {
				from := time.Now()
				a.tamper(around(func(func() error) error { return fault }, "Commit"))
				pass(70 * time.Second)
				to := time.Now()
				a.tamper(nil)
				if n := startedBetween(a, from.Add(enough), to); n != 0 {
					t.Errorf("%d attempts started while commits failed", n)
				}
				pass(time.Minute)
				a.expectEach(n, never) // the lease was renewed all the time
				a.expectIdle()
			})
		})
	}
	t.Run("commits take long", func(t *testing.T) {
		inTrouble(t, func(t *testing.T, a *world) {
			type span struct{ from, to time.Time }
			var spans []span
			a.tamper(around(func(do func() error) error {
				from := time.Now()
				pass(5 * time.Second)
				err := do()
				a.mu.Lock()
				defer a.mu.Unlock()
				spans = append(spans, span{from, time.Now()})
				return err
			}, "Commit"))
			pass(time.Minute)
			a.tamper(nil)
			pass(time.Minute)
			a.mu.Lock()
			done := slices.Clone(spans)
			a.mu.Unlock()
			if len(done) < 10 {
				t.Errorf("only %d commits", len(done))
			}
			for _, s := range done {
				if n := startedBetween(a, s.from.Add(time.Second), s.to); n != 0 {
					t.Errorf("%d attempts started during a slow commit", n)
				}
				if startedBetween(a, time.Time{}, s.to) < n && startedBetween(a, s.from, s.to) == 0 {
					t.Error("no attempts started in the first second of a slow commit")
				}
			}
			a.expectEach(n, never)
			a.expectIdle()
		})
	})
	t.Run("another node takes over", func(t *testing.T) {
		inTrouble(t, func(t *testing.T, a *world) {
			b := a.another("B")
			from := time.Now()
			unrecorded := map[string]bool{} // answered after the store was lost, or so shortly before that they weren't recorded
			for i := range n {
				unrecorded[fmt.Sprintf("e%d", i)] = true
			}
			a.mu.Lock()
			for _, d := range a.recorded {
				delete(unrecorded, d.EventID)
			}
			a.mu.Unlock()
			a.tamper(failing())
			pass(2 * posthorn.LeaseFor)
			if n := startedBetween(a, from.Add(enough), from.Add(posthorn.LeaseFor*2/3)); n != 0 {
				t.Errorf("%d attempts started while A was cut off", n)
			}
			a.tamper(nil)
			pass(time.Minute)
			repeats := a.expectEach(n, func(id string) bool { return unrecorded[id] })
			// Four were in flight, and as many again were started before the first of them could not be recorded.
			if repeats == 0 || repeats > 3*4 {
				t.Errorf("%d requests were repeated", repeats)
			}
			a.expectIdle()
			b.expectIdle()
		})
	})
}
