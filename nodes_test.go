package posthorn_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/sender"
	"github.com/musehub/posthorn/signature"
	"github.com/musehub/posthorn/sqlite"
)

var (
	errAway      = posthorn.Errorf(posthorn.CodeUnavailable, "the store can't be reached")
	errUncertain = posthorn.Errorf(posthorn.CodeUncertain, "the connection was lost during COMMIT")
)

// failing is a tamper under which the named calls fail, all of them without names.
func failing(calls ...string) tamper {
	return around(func(func() error) error { return errAway }, calls...)
}

// around is a tamper that has f around the named calls.
func around(f func(do func() error) error, calls ...string) tamper {
	return func(_ context.Context, call string, do func() error) error {
		if len(calls) == 0 {
			return f(do)
		}
		for _, c := range calls {
			if c == call {
				return f(do)
			}
		}
		return do()
	}
}

// once is a tamper for the first of the named calls only.
func once(f func(do func() error) error, calls ...string) tamper {
	var done atomic.Bool
	return around(func(do func() error) error {
		if done.Swap(true) {
			return do()
		}
		return f(do)
	}, calls...)
}

// both is a tamper outside of another.
func both(outer, inner tamper) tamper {
	return func(ctx context.Context, call string, do func() error) error {
		return outer(ctx, call, func() error { return inner(ctx, call, do) })
	}
}

// freeTx is a transaction of a host's that commits at once.
type freeTx struct{ store *sqlite.Store }

func (tx freeTx) Accept(ctx context.Context, e posthorn.NewEvent) (posthorn.Acceptance, error) {
	accepted, err := tx.store.Commit(ctx, posthorn.Batch{Events: []posthorn.NewEvent{e}})
	if err != nil {
		return posthorn.Acceptance{}, err
	}
	return accepted[0], nil
}

// dispatchFree accepts an event with an entry that any node may claim.
func (w *world) dispatchFree(repo, id string) {
	w.t.Helper()
	payload := []byte(fmt.Sprintf(`{"id":%q}`, id))
	r, err := w.DispatchTx(w.t.Context(), freeTx{w.store}, posthorn.Event{ID: id, RepoID: repo, Type: "push", Payload: payload})
	if err != nil || r.Deliveries == 0 || r.Duplicate {
		w.t.Fatalf("dispatch %s: %+v, %v", id, r, err)
	}
}

func (w *world) update(hook posthorn.Webhook, p posthorn.WebhookPatch) {
	w.t.Helper()
	if _, err := w.UpdateWebhook(w.t.Context(), hook.RepoID, hook.ID, p); err != nil {
		w.t.Fatal(err)
	}
}

// expectSent checks which events were sent, in which order; by holds the nodes, one for all or one for each.
func (w *world) expectSent(url, node string, want ...string) {
	w.t.Helper()
	got := []string{}
	for _, r := range w.seen(url) {
		got = append(got, r.eventID)
		if node != "" && r.node != node {
			w.t.Errorf("%s was sent by node %s, not %s", r.eventID, r.node, node)
		}
	}
	if diff := cmp.Diff(append([]string{}, want...), got); diff != "" {
		w.t.Errorf("sent to %s (-want +got):\n%s", url, diff)
	}
}

// expectIdle checks that a node holds nothing and takes work.
func (w *world) expectIdle() {
	w.t.Helper()
	if entries, bytes := w.Held(); entries != 0 || bytes != 0 {
		w.t.Errorf("node %s holds %d entries and %d bytes in the end", w.name, entries, bytes)
	}
	if err := w.Ready(); err != nil {
		w.t.Errorf("node %s: %v", w.name, err)
	}
}

// ids returns the delivery ids that each event was sent under, each once for each request.
func (w *world) ids(url string) map[string][]string {
	ids := map[string][]string{}
	for _, r := range w.seen(url) {
		ids[r.eventID] = append(ids[r.eventID], r.deliveryID)
	}
	return ids
}

// expectEach checks that n events arrived, each under one delivery id, and that none was repeated but those of which repeated
// says so. It returns how many were.
func (w *world) expectEach(n int, mayRepeat func(eventID string) bool) (repeats int) {
	w.t.Helper()
	ids := w.ids("")
	if len(ids) != n {
		w.t.Errorf("%d events arrived, want %d", len(ids), n)
	}
	for id, deliveries := range ids {
		for _, d := range deliveries[1:] {
			repeats++
			if d != deliveries[0] {
				w.t.Errorf("event %s was sent under %v", id, deliveries)
			}
			if !mayRepeat(id) {
				w.t.Errorf("event %s was sent %d times", id, len(deliveries))
			}
		}
	}
	return repeats
}

func never(string) bool { return false }

// What one node changes of a webhook is in force on the others within a second.
func TestChangesReachOtherNodes(t *testing.T) {
	const moved, secret, secret2 = "https://moved.example/hook", "first secret", "second secret"
	inWorld(t, posthorn.Config{MaxInFlightPerWebhook: 1}, func(t *testing.T, a *world) {
		b := a.another("B")
		hook := a.webhook("r1", good)
		pass(time.Second)
		b.dispatch("r1", "e1")
		pass(time.Second)
		b.expectSent(good, "B", "e1")

		url, first := moved, secret
		a.update(hook, posthorn.WebhookPatch{URL: &url, Secret: &first})
		pass(time.Second)
		b.dispatch("r1", "e2")
		pass(time.Second)
		b.expectSent(moved, "B", "e2")
		b.expectSigned(secret)

		second, overlap := secret2, time.Duration(0)
		a.update(hook, posthorn.WebhookPatch{Secret: &second, SecretOverlap: &overlap})
		pass(time.Second)
		b.dispatch("r1", "e3")
		pass(time.Second)
		b.expectSigned(secret2)

		a.webhook("r1", good)
		pass(time.Second)
		if r := b.dispatch("r1", "e4"); r.Deliveries != 2 {
			t.Errorf("dispatched for %d webhooks after another was created", r.Deliveries)
		}
		pass(time.Second)
		b.expectSent(good, "B", "e1", "e4")

		// Pause with entries of B's in memory.
		b.answers(func(request) sender.Outcome { pass(100 * time.Millisecond); return ok200 })
		for i := 5; i < 35; i++ {
			b.dispatch("r1", fmt.Sprintf("e%d", i))
		}
		no, yes := false, true
		a.update(hook, posthorn.WebhookPatch{Active: &no})
		pass(time.Second)
		sent := len(b.seen(moved))
		if sent < 5 || sent > 15 {
			t.Errorf("%d requests within a second", sent)
		}
		pass(time.Minute)
		if got := len(b.seen(moved)); got != sent {
			t.Errorf("%d requests to the paused webhook", got-sent)
		}
		if r := b.dispatch("r1", "e35"); r.Deliveries != 1 {
			t.Errorf("dispatched for %d webhooks after one was paused", r.Deliveries)
		}
		pass(time.Second)
		b.dispatch("r1", "e36")
		a.update(hook, posthorn.WebhookPatch{Active: &yes})
		pass(time.Second)
		if r := b.dispatch("r1", "e37"); r.Deliveries != 2 {
			t.Errorf("dispatched for %d webhooks after one was resumed", r.Deliveries)
		}
		pass(time.Minute)
		got := map[string]int{}
		for _, r := range b.seen(moved) {
			got[r.eventID]++
		}
		for i := 2; i <= 37; i++ {
			id, want := fmt.Sprintf("e%d", i), 1
			if i == 35 || i == 36 {
				want = 0
			}
			if got[id] != want {
				t.Errorf("%s was sent %d times, want %d", id, got[id], want)
			}
		}

		for i := 38; i < 68; i++ {
			b.dispatch("r1", fmt.Sprintf("e%d", i))
		}
		if err := a.DeleteWebhook(t.Context(), "r1", hook.ID); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		sent = len(b.seen(moved))
		if r := b.dispatch("r1", "e69"); r.Deliveries != 1 {
			t.Errorf("dispatched for %d webhooks after one was deleted", r.Deliveries)
		}
		pass(time.Minute)
		if got := len(b.seen(moved)); got != sent {
			t.Errorf("%d requests to the deleted webhook", got-sent)
		}
		a.expectIdle()
		b.expectIdle()
	})
}

// expectSigned checks the last request's signature.
func (w *world) expectSigned(secret string) {
	w.t.Helper()
	signer, err := signature.NewSigner(secret)
	if err != nil {
		w.t.Fatal(err)
	}
	all := w.seen("")
	last := all[len(all)-1]
	if got, want := last.header["X-MuseHub-Signature"], signer.Body([]byte(last.body)); len(got) != 1 || got[0] != want {
		w.t.Errorf("%s was signed %q, want %q", last.eventID, got, want)
	}
}

// A node that heard nothing of so many changes that the store doesn't keep them all takes any webhook for changed.
func TestManyChangesReachOtherNodes(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, a *world) {
		b := a.another("B")
		hook, other := a.webhook("r1", good), a.webhook("r2", bad)
		pass(time.Second)
		b.dispatch("r1", "e1")
		url := "https://moved.example/hook"
		a.update(hook, posthorn.WebhookPatch{URL: &url})
		for range 1001 {
			a.update(other, posthorn.WebhookPatch{})
		}
		pass(time.Second)
		b.dispatch("r1", "e2")
		pass(time.Second)
		b.expectSent(good, "B", "e1")
		b.expectSent(url, "B", "e2")
	})
}

// An entry may be of a webhook that the node has not heard of yet.
func TestEntryOfUnknownWebhook(t *testing.T) {
	// lag makes a world in which only B claims, and B has r1 in its cache from before what create does.
	lag := func(t *testing.T, test func(t *testing.T, a, b *world)) {
		inWorld(t, posthorn.Config{}, func(t *testing.T, a *world) {
			a.tamper(failing("Claim"))
			b := a.another("B")
			pass(100 * time.Millisecond)
			b.dispatch("r1", "unwanted")
			b.tamper(failing("Changes"))
			test(t, a, b)
			b.tamper(nil)
			pass(time.Minute)
			b.expectIdle()
		})
	}
	t.Run("created", func(t *testing.T) {
		lag(t, func(t *testing.T, a, b *world) {
			a.webhook("r1", good)
			a.dispatchFree("r1", "e1")
			pass(2 * time.Second)
			b.expectSent(good, "B", "e1")
		})
	})
	t.Run("created, and the store fails when asked for it", func(t *testing.T) {
		lag(t, func(t *testing.T, a, b *world) {
			b.tamper(failing("Changes", "Webhook"))
			a.webhook("r1", good)
			a.dispatchFree("r1", "e1")
			pass(2 * time.Second)
			b.expectSent(good, "B")
			b.tamper(failing("Changes"))
			pass(3 * time.Second)
			b.expectSent(good, "B", "e1")
		})
	})
	t.Run("created and deleted", func(t *testing.T) {
		lag(t, func(t *testing.T, a, b *world) {
			hook := a.webhook("r1", good)
			release := make(chan struct{})
			b.tamper(around(func(do func() error) error { err := do(); <-release; return err }, "Claim"))
			a.dispatchFree("r1", "e1")
			pass(2 * time.Second) // B has claimed it, and doesn't know yet
			if err := a.DeleteWebhook(t.Context(), "r1", hook.ID); err != nil {
				t.Fatal(err)
			}
			b.tamper(failing("Changes"))
			close(release)
			pass(10 * time.Second)
			b.expectSent(good, "B")
		})
	})
	t.Run("resumed", func(t *testing.T) {
		inWorld(t, posthorn.Config{}, func(t *testing.T, a *world) {
			b := a.another("B")
			hook := a.webhook("r1", good)
			no, yes := false, true
			a.update(hook, posthorn.WebhookPatch{Active: &no})
			pass(time.Second)
			if r := b.dispatch("r1", "unwanted"); r.Deliveries != 0 {
				t.Fatalf("receipt %+v", r)
			}
			b.tamper(failing("Changes"))
			a.tamper(failing("Claim"))
			a.update(hook, posthorn.WebhookPatch{Active: &yes})
			a.dispatchFree("r1", "e1")
			pass(1200 * time.Millisecond)
			b.expectSent(good, "B", "e1")
			b.tamper(nil)
			pass(time.Second)
			b.expectIdle()
		})
	})
}

// What a dead node had queued and in flight is taken over by another one that was there all the time.
func TestAnotherNodeTakesOver(t *testing.T) {
	inWorld(t, posthorn.Config{MaxInFlightPerWebhook: 4, MaxQueued: 32}, func(t *testing.T, a *world) {
		b := a.another("B")
		b.tamper(failing("Claim")) // for now, so that what A has spilled is A's to deliver
		a.webhook("r1", good)
		a.answers(func(request) sender.Outcome { pass(time.Second); return ok200 })
		for i := range 60 {
			a.dispatch("r1", fmt.Sprintf("e%d", i))
		}
		pass(9500 * time.Millisecond)
		inFlight := map[string]bool{}
		for _, r := range a.seen("") {
			if time.Since(r.at) < time.Second {
				inFlight[r.eventID] = true
			}
		}
		sent := len(a.seen(""))
		if len(inFlight) != 4 || sent < 20 {
			t.Fatalf("%d sent, %d in flight", sent, len(inFlight))
		}
		a.crash()
		b.tamper(nil)
		pass(15 * time.Second) // A renewed its lease for the last time at 10 s at most
		for _, r := range b.seen("")[sent:] {
			if inFlight[r.eventID] {
				t.Errorf("%s was repeated %v after the crash", r.eventID, 15*time.Second)
			}
		}
		pass(posthorn.LeaseFor + posthorn.LeaseFor/3)
		if n := b.expectEach(60, func(id string) bool { return inFlight[id] }); n != len(inFlight) {
			t.Errorf("%d repeats, want %d", n, len(inFlight))
		}
		b.expectIdle()
		a.start() // and a node that starts again has nothing to repeat
		pass(time.Minute)
		b.expectEach(60, func(id string) bool { return inFlight[id] })
	})
}

// Who waits for the end of a run hears of it also when it comes to its end on another node.
func TestWaitHearsOfOtherNodes(t *testing.T) {
	// run makes a past delivery and asks for it again on A.
	run := func(t *testing.T, test func(t *testing.T, patience context.Context, a, b *world, redeliver func() *posthorn.Redelivery)) {
		inWorld(t, posthorn.Config{MaxQueued: 1}, func(t *testing.T, a *world) {
			b := a.another("B")
			hook := a.webhook("r1", good)
			a.dispatch("r1", "e0")
			pass(time.Second)
			old := a.deliveries(hook)[0]
			patience, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			test(t, patience, a, b, func() *posthorn.Redelivery {
				r, err := a.Redeliver(t.Context(), "r1", hook.ID, old.ID)
				if err != nil {
					t.Fatal(err)
				}
				return r
			})
			a.tamper(nil)
			a.answers(func(request) sender.Outcome { return ok200 })
			pass(2 * time.Minute)
			a.expectIdle()
			b.expectIdle()
		})
	}
	t.Run("spilled", func(t *testing.T) {
		run(t, func(t *testing.T, patience context.Context, a, b *world, redeliver func() *posthorn.Redelivery) {
			a.answers(func(r request) sender.Outcome {
				if r.node == "A" {
					return hang(10 * time.Second)(r)
				}
				pass(3 * time.Second)
				return sender.Outcome{Status: 503}
			})
			a.tamper(failing("Claim"))
			for range 2 { // one in flight, and one that waits in memory
				redeliver()
			}
			start := time.Now()
			last, err := redeliver().Wait(patience)
			if err != nil || last.Success || last.Attempt != 3 {
				t.Errorf("the last delivery is %+v, %v", last, err)
			}
			// Three attempts of 3 s, 1 s and 2 s between them, the sweep that finds it and the look that sees the end.
			if took := time.Since(start); took > 15*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	})
	t.Run("lease lost", func(t *testing.T) {
		run(t, func(t *testing.T, patience context.Context, a, b *world, redeliver func() *posthorn.Redelivery) {
			a.answers(func(r request) sender.Outcome {
				if r.node == "A" {
					return hang(10 * time.Second)(r)
				}
				return ok200
			})
			r := redeliver()
			a.tamper(failing("Commit", "Lease", "Release", "Claim"))
			start := time.Now()
			last, err := r.Wait(patience)
			if err != nil || !last.Success || last.ID != r.DeliveryID {
				t.Errorf("the last delivery is %+v, %v", last, err)
			}
			if took := time.Since(start); took > posthorn.LeaseFor+posthorn.LeaseFor/3+2*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	})
	t.Run("deleted", func(t *testing.T) {
		run(t, func(t *testing.T, patience context.Context, a, b *world, redeliver func() *posthorn.Redelivery) {
			a.answers(hang(10 * time.Second))
			for range 2 {
				redeliver()
			}
			r := redeliver()
			a.tamper(failing("Changes", "Claim"))
			start := time.Now()
			go func() {
				pass(500 * time.Millisecond)
				if err := b.DeleteWebhook(t.Context(), "r1", r.WebhookID); err != nil {
					t.Error(err)
				}
			}()
			if _, err := r.Wait(patience); posthorn.ErrorCode(err) != posthorn.CodeUnavailable {
				t.Errorf("the error is %v", err)
			}
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	})
	t.Run("stopped", func(t *testing.T) {
		run(t, func(t *testing.T, patience context.Context, a, b *world, redeliver func() *posthorn.Redelivery) {
			a.answers(func(r request) sender.Outcome { pass(2 * time.Second); return sender.Outcome{Status: 503} })
			r := redeliver()
			go a.Stop(context.Background())
			if _, err := r.Wait(patience); posthorn.ErrorCode(err) != posthorn.CodeUnavailable {
				t.Errorf("the error is %v", err)
			}
			pass(10 * time.Second)
			if n := len(a.ids("")["e0"]); n != 4 { // once, and a run of three attempts that B ended
				t.Errorf("%d requests, want 4", n)
			}
			a.start()
		})
	})
}
