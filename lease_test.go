package posthorn_test

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/sender"
)

// Time is that of the store's clock, whatever the node's own says.
func TestStoresClock(t *testing.T) {
	for _, ahead := range []time.Duration{time.Hour, -time.Hour} {
		t.Run(ahead.String(), func(t *testing.T) {
			inWorld(t, posthorn.Config{}, func(t *testing.T, a *world) {
				a.Stop(t.Context())
				a.clock = ahead
				a.start()
				b := a.another("B")
				hook := a.webhook("r1", bad)
				a.answers(func(request) sender.Outcome { pass(100 * time.Millisecond); return sender.Outcome{Status: 500} })
				start := time.Now()
				storeStart := start.Add(ahead)
				a.dispatch("r1", "e1")
				pass(20 * time.Second)
				var at []time.Duration
				for _, r := range a.seen(bad) {
					at = append(at, r.at.Sub(start))
					sent := strconv.FormatInt(r.at.Add(ahead).Unix(), 10)
					if got := r.header["webhook-timestamp"]; len(got) != 1 || got[0] != sent {
						t.Errorf("webhook-timestamp %v, want %v", got, sent)
					}
				}
				if diff := cmp.Diff([]time.Duration{0, 1100 * time.Millisecond, 3200 * time.Millisecond}, at); diff != "" {
					t.Errorf("attempts (-want +got):\n%s", diff)
				}
				event, err := a.Event(t.Context(), "r1", "e1")
				if err != nil || !event.CreatedAt.Equal(storeStart) || !hook.CreatedAt.Equal(storeStart) {
					t.Errorf("the event was accepted at %v, the webhook created at %v, want %v: %v", event.CreatedAt, hook.CreatedAt, storeStart, err)
				}
				for _, d := range a.deliveries(hook) {
					sent := storeStart.Add(at[d.Attempt-1])
					if !d.Exchange.SentAt.Equal(sent) || !d.DeliveredAt.Equal(sent.Add(100*time.Millisecond)) {
						t.Errorf("attempt %d was sent at %v, delivered at %v, want %v", d.Attempt, d.Exchange.SentAt, d.DeliveredAt, sent)
					}
				}

				a.answers(func(r request) sender.Outcome {
					if r.node == "A" {
						return hang(10 * time.Second)(r)
					}
					return ok200
				})
				a.dispatch("r1", "e2")
				synctest.Wait()
				a.crash()
				pass(posthorn.LeaseFor*2/3 - time.Second)
				if n := len(a.ids("")["e2"]); n != 1 {
					t.Errorf("%d requests before A's lease ran out", n)
				}
				pass(posthorn.LeaseFor)
				if n := len(a.ids("")["e2"]); n != 2 {
					t.Errorf("%d requests after A's lease ran out, want 2", n)
				}
				b.expectIdle()
			})
		})
	}
}

// A node whose store takes long to say what time it is doesn't count on a lease that has run out for others.
func TestSlowAnswersOfTheClock(t *testing.T) {
	for name, now := range map[string]func(do func() error) error{
		"said early": func(do func() error) error { err := do(); pass(3 * time.Second); return err },
		"said late":  func(do func() error) error { pass(3 * time.Second); return do() },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, posthorn.Config{MaxInFlightPerWebhook: 1}, func(t *testing.T, a *world) {
				slow := around(now, "Now")
				a.tamper(slow)
				a.webhook("r1", good)
				pass(time.Minute)
				if err := a.Ready(); err != nil {
					t.Fatal(err)
				}
				a.answers(func(request) sender.Outcome { pass(100 * time.Millisecond); return ok200 })
				for i := range 600 {
					a.dispatch("r1", fmt.Sprintf("e%d", i))
				}
				pass(5 * time.Second)
				a.tamper(both(slow, failing("Lease", "Claim")))
				pass(50 * time.Millisecond) // to look between the starts of attempts
				var released time.Time      // for others
				for range 400 {
					if n, err := a.store.Release(t.Context(), 0, time.Now()); err != nil {
						t.Fatal(err)
					} else if n > 0 {
						released = time.Now()
						break
					}
					pass(100 * time.Millisecond)
				}
				if released.IsZero() {
					t.Fatal("the lease did not run out")
				}
				pass(time.Minute)
				seen := a.seen("")
				if last := seen[len(seen)-1].at; last.After(released) {
					t.Errorf("an attempt started %v after the lease had run out", last.Sub(released))
				} else if released.Sub(last) > 7*time.Second {
					t.Errorf("the last attempt started %v before the lease ran out", released.Sub(last))
				}
				a.tamper(slow)
				pass(3 * time.Minute)
				a.expectEach(600, func(string) bool { return true })
				a.expectIdle()
			})
		})
	}
}

// What comes back from the store after the lease was lost is not attempted: it is others' by then.
func TestLeaseLostMeanwhile(t *testing.T) {
	for _, call := range []string{"Commit", "Claim", "Enqueue"} {
		t.Run(call, func(t *testing.T) {
			inWorld(t, posthorn.Config{}, func(t *testing.T, a *world) {
				hook := a.webhook("r1", good)
				a.dispatch("r1", "e0")
				pass(time.Second)
				b := a.another("B")
				late := once(func(do func() error) error { err := do(); pass(70 * time.Second); return err }, call)
				a.tamper(both(late, failing("Lease")))
				time.AfterFunc(50*time.Second, func() { a.tamper(late) })
				want := 1
				switch call {
				case "Commit":
					if r := a.dispatch("r1", "e1"); r.Deliveries != 1 {
						t.Errorf("receipt %+v", r)
					}
				case "Claim":
					b.tamper(failing("Claim"))
					a.dispatchFree("r1", "e1")
					pass(10 * time.Second)
					b.tamper(nil)
					pass(70 * time.Second)
				case "Enqueue":
					r, err := a.Redeliver(t.Context(), "r1", hook.ID, a.deliveries(hook)[0].ID)
					if err != nil {
						t.Fatal(err)
					}
					ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
					defer cancel()
					last, err := r.Wait(ctx)
					if err != nil || last.ID != r.DeliveryID {
						t.Errorf("the last delivery is %+v, %v", last, err)
					}
					want = 0
				}
				pass(time.Minute)
				seen := a.seen("")
				if len(seen) != 2 || seen[1].node != "B" {
					t.Errorf("%d requests, want two of which the second is B's", len(seen))
				}
				if got := len(a.ids("")["e1"]); got != want {
					t.Errorf("%d requests of e1, want %d", got, want)
				}
				if got := len(a.deliveries(hook)); got != 2 {
					t.Errorf("%d deliveries, want 2", got)
				}
				a.dispatch("r1", "later")
				synctest.Wait()
				if n := len(a.ids("")["later"]); n != 1 {
					t.Errorf("%d requests of an event after it", n)
				}
				pass(time.Second)
				a.expectIdle()
				b.expectIdle()
			})
		})
	}
}

// What a node finds in its memory after it lost its lease is others': it attempts none of it.
func TestLeaseLostWithEntriesQueued(t *testing.T) {
	inWorld(t, posthorn.Config{MaxInFlightPerWebhook: 2}, func(t *testing.T, a *world) {
		b := a.another("B")
		a.webhook("r1", good)
		a.answers(func(request) sender.Outcome { pass(time.Second); return ok200 })
		for i := range 100 {
			a.dispatch("r1", fmt.Sprintf("e%d", i))
		}
		pass(time.Second)
		a.tamper(failing("Lease", "Release"))
		pass(posthorn.LeaseFor + posthorn.LeaseFor/3 + 5*time.Second)
		inFlight := map[string]bool{}
		for _, r := range a.seen("") {
			if r.node == "A" {
				inFlight[r.eventID] = true
			}
		}
		a.tamper(nil)
		pass(2 * time.Minute)
		if n := a.expectEach(100, func(id string) bool { return inFlight[id] }); n > 2 {
			t.Errorf("%d requests were repeated", n)
		}
		a.expectIdle()
		b.expectIdle()
	})
}

// A node takes work, and says so, from the moment that it is started.
func TestReadyAtOnce(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		if err := w.Ready(); err != nil {
			t.Error(err)
		}
	})
}
