package posthorn_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/sender"
)

const (
	good = "https://good.example/hook"
	bad  = "https://bad.example/hook"
)

func TestDeliversOnceAndLogs(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook := w.webhook("r1", good, "push")
		w.webhook("r1", bad, "issue")
		w.webhook("r2", bad, "push")
		if got := w.dispatch("r1", "e1"); got != (posthorn.Receipt{EventID: "e1", Deliveries: 1}) {
			t.Errorf("receipt %+v", got)
		}
		pass(time.Minute)
		requests := w.seen("")
		if len(requests) != 1 || requests[0].url != good || requests[0].body != `{"id":"e1"}` || requests[0].eventType != "push" {
			t.Fatalf("requests %+v", requests)
		}
		log := w.deliveries(hook)
		if len(log) != 1 || log[0].ID != requests[0].deliveryID || !log[0].Success || log[0].ResponseStatus != 200 ||
			log[0].Attempt != 1 || string(log[0].Payload) != requests[0].body || log[0].EventID != "e1" {
			t.Errorf("log %+v", log)
		}
		if entries, bytes := w.Held(); entries != 0 || bytes != 0 {
			t.Errorf("%d entries and %d bytes are left in memory", entries, bytes)
		}
	})
}

func TestRetriesAtOneAndTwoSeconds(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook := w.webhook("r1", bad)
		w.answers(func(request) sender.Outcome { return sender.Outcome{Status: 500} })
		start := time.Now()
		w.dispatch("r1", "e1")
		pass(time.Minute)
		var at []time.Duration
		ids := map[string]bool{}
		for _, r := range w.seen(bad) {
			at = append(at, r.at.Sub(start))
			ids[r.deliveryID] = true
		}
		if diff := cmp.Diff([]time.Duration{0, time.Second, 3 * time.Second}, at); diff != "" {
			t.Errorf("attempts (-want +got):\n%s", diff)
		}
		if len(ids) != 3 {
			t.Errorf("%d delivery ids for three attempts", len(ids))
		}
		for i, d := range w.deliveries(hook) { // newest first
			if d.Attempt != 3-i || d.Success || d.NextAttemptAt.IsZero() != (i == 0) {
				t.Errorf("delivery %d: %+v", i, d)
			}
		}
	})
}

func TestEventIDs(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		w.webhook("r1", good)
		w.webhook("r2", good)
		w.dispatch("r1", "e1")
		if got := w.dispatch("r1", "e1"); got != (posthorn.Receipt{EventID: "e1", Deliveries: 1, Duplicate: true}) {
			t.Errorf("the same again: %+v", got)
		}
		if got := w.dispatch("r2", "e1"); got.Duplicate {
			t.Errorf("the same id in another repo: %+v", got)
		}
		_, err := w.Dispatch(t.Context(), posthorn.Event{ID: "e1", RepoID: "r1", Type: "push", Payload: json.RawMessage(`1`)})
		if posthorn.ErrorCode(err) != posthorn.CodeConflict {
			t.Errorf("other content under the same id: %v", err)
		}
		for _, id := range []string{"a.b", "a b", "é", strings.Repeat("a", 129)} {
			_, err := w.Dispatch(t.Context(), posthorn.Event{ID: id, RepoID: "r1", Type: "push", Payload: json.RawMessage(`1`)})
			if posthorn.ErrorCode(err) != posthorn.CodeInvalid {
				t.Errorf("id %q: %v", id, err)
			}
		}
		pass(time.Minute)
		if n := len(w.seen("")); n != 2 {
			t.Errorf("%d requests, want 2", n)
		}
	})
}

// First attempts keep the order of dispatch, also of what did not fit into memory.
func TestOrderOfFirstAttempts(t *testing.T) {
	inWorld(t, posthorn.Config{MaxQueued: 8, MaxInFlightPerWebhook: 1}, func(t *testing.T, w *world) {
		w.webhook("r1", good)
		var want []string
		for i := range 200 {
			id := fmt.Sprintf("e%d", i)
			want = append(want, id)
			w.dispatch("r1", id)
			if i%50 == 0 {
				pass(30 * time.Millisecond)
			}
		}
		pass(time.Minute)
		var got []string
		for _, r := range w.seen(good) {
			got = append(got, r.eventID)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
	})
}

// What memory has no room for waits in the store, and memory stays bounded meanwhile.
func TestBacklogIsNotInMemory(t *testing.T) {
	inWorld(t, posthorn.Config{MaxQueued: 32}, func(t *testing.T, w *world) {
		w.webhook("r1", bad)
		w.answers(hang(10 * time.Second))
		const n = 1000
		for i := range n {
			w.dispatch("r1", fmt.Sprintf("e%d", i))
		}
		pass(2 * time.Minute)
		if entries, _ := w.Held(); entries > 32+16 {
			t.Errorf("%d entries in memory", entries)
		}
		w.answers(func(request) sender.Outcome { return ok200 })
		pass(5 * time.Minute)
		arrived := map[string]bool{}
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, d := range w.recorded {
			if d.Success || d.NextAttemptAt.IsZero() {
				arrived[d.EventID] = true
			}
		}
		if len(arrived) != n {
			t.Errorf("%d of %d events came to an end", len(arrived), n)
		}
	})
}

// A webhook gets at most its limit of requests at a time, and one at a time while it keeps failing.
func TestInFlight(t *testing.T) {
	inWorld(t, posthorn.Config{MaxInFlightPerWebhook: 8}, func(t *testing.T, w *world) {
		w.webhook("r1", good)
		w.webhook("r2", bad)
		w.answers(func(r request) sender.Outcome {
			if r.url == bad {
				return hang(10 * time.Second)(r)
			}
			pass(100 * time.Millisecond)
			return ok200
		})
		for i := range 200 {
			w.dispatch("r1", fmt.Sprintf("e%d", i))
			w.dispatch("r2", fmt.Sprintf("e%d", i))
		}
		pass(25 * time.Second)
		w.mu.Lock()
		if w.most[good] != 8 {
			t.Errorf("the good webhook had up to %d requests in flight, want 8", w.most[good])
		}
		if w.inFlight[bad] != 1 {
			t.Errorf("%d probes of the bad webhook are in flight, want 1", w.inFlight[bad])
		}
		w.most[bad] = 0
		w.mu.Unlock()
		pass(time.Minute)
		w.mu.Lock()
		if w.most[bad] != 1 {
			t.Errorf("up to %d probes of the bad webhook were in flight, want 1", w.most[bad])
		}
		w.answer = func(request) sender.Outcome { pass(100 * time.Millisecond); return ok200 }
		w.mu.Unlock()
		pass(time.Minute)
		w.mu.Lock()
		if w.most[bad] != 8 {
			t.Errorf("the webhook that answers again had up to %d requests in flight, want 8", w.most[bad])
		}
		w.mu.Unlock()
	})
}

// Hundreds of hanging webhooks don't delay those that answer.
func TestHangingWebhooksDelayNobody(t *testing.T) {
	inWorld(t, posthorn.Config{MaxInFlight: 64}, func(t *testing.T, w *world) {
		w.answers(func(r request) sender.Outcome {
			if strings.HasPrefix(r.url, "https://bad") {
				return hang(10 * time.Second)(r)
			}
			return ok200
		})
		w.webhook("r2", good)
		w.dispatch("r2", "first")
		pass(time.Second)
		for i := range 100 {
			w.webhook("r1", fmt.Sprintf("https://bad%d.example/", i))
		}
		for i := 1; i <= 10; i++ {
			w.dispatch("r1", fmt.Sprintf("e%d", i))
			start := time.Now()
			w.dispatch("r2", fmt.Sprintf("e%d", i))
			synctest.Wait()
			if n := len(w.seen(good)); n != i+1 {
				t.Fatalf("event %d was not sent at once: %d requests", i, n)
			}
			if late := w.seen(good)[i].at.Sub(start); late > 0 {
				t.Errorf("event %d was sent %v late", i, late)
			}
			pass(time.Second)
		}
		pass(3 * time.Minute) // by now the bad ones are known
		w.webhook("r3", "https://new.example/hook")
		w.dispatch("r3", "new")
		synctest.Wait()
		if len(w.seen("https://new.example/hook")) != 1 {
			t.Error("a new webhook waits for the failing ones")
		}
	})
}

// Proven webhooks that begin to hang at the same moment, each with a backlog and as many requests in flight as it may have,
// don't delay others.
func TestProvenWebhooksBeginToHang(t *testing.T) {
	const hanging, healthy = 40, 10
	inWorld(t, posthorn.Config{MaxInFlight: 256}, func(t *testing.T, w *world) {
		isBad := func(r request) bool { return strings.HasPrefix(r.url, "https://bad") }
		quick := func(request) sender.Outcome { pass(20 * time.Millisecond); return ok200 }
		w.answers(quick)
		for i := range hanging {
			w.webhook("bad", fmt.Sprintf("https://bad%d.example/", i))
		}
		for i := range healthy {
			w.webhook("good", fmt.Sprintf("https://good%d.example/", i))
		}
		for i := range 100 {
			w.dispatch("bad", fmt.Sprintf("warm%d", i))
			w.dispatch("good", fmt.Sprintf("warm%d", i))
		}
		pass(time.Minute)
		w.mu.Lock()
		w.requests = nil
		w.mu.Unlock()
		w.answers(func(r request) sender.Outcome {
			if isBad(r) {
				return hang(10 * time.Second)(r)
			}
			return quick(r)
		})
		for i := range 30 {
			w.dispatch("bad", fmt.Sprintf("b%d", i))
		}
		sent := map[string]time.Time{}
		for i := range 100 { // for ten seconds
			id := fmt.Sprintf("g%d", i)
			sent[id] = time.Now()
			w.dispatch("good", id)
			pass(100 * time.Millisecond)
			if i == 5 {
				w.mu.Lock()
				n := 0
				for _, m := range w.inFlight {
					n += m
				}
				if n < 180 {
					t.Errorf("%d requests are in flight: this proves nothing", n)
				}
				w.mu.Unlock()
			}
		}
		got := 0
		for _, r := range w.seen("") {
			if isBad(r) {
				continue
			}
			got++
			if late := r.at.Sub(sent[r.eventID]); late > 0 {
				t.Errorf("event %s was sent %v late", r.eventID, late)
			}
		}
		if want := len(sent) * healthy; got != want {
			t.Errorf("%d requests to the others, want %d", got, want)
		}
	})
}

// A proven webhook that falls silent gets no more than it has.
func TestSilentWebhookGetsNoMore(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		w.webhook("r1", bad)
		w.answers(func(request) sender.Outcome { pass(20 * time.Millisecond); return ok200 })
		for i := range 100 {
			w.dispatch("r1", fmt.Sprintf("warm%d", i))
		}
		pass(time.Minute)
		w.mu.Lock()
		if w.most[bad] < 16 {
			t.Errorf("up to %d requests were in flight: this proves nothing", w.most[bad])
		}
		w.most[bad] = 0
		w.mu.Unlock()
		w.answers(hang(10 * time.Second))
		for i := range 90 {
			w.dispatch("r1", fmt.Sprintf("e%d", i))
			pass(100 * time.Millisecond)
		}
		w.mu.Lock()
		if w.most[bad] > 11 { // those of the first second
			t.Errorf("%d requests were sent while nothing was answered", w.most[bad])
		}
		w.mu.Unlock()
		w.answers(func(request) sender.Outcome { pass(20 * time.Millisecond); return ok200 })
		pass(time.Minute)
		if n := len(w.ids("")); n != 190 {
			t.Errorf("%d of 190 events arrived", n)
		}
	})
}

func TestStopLeavesTheRestPending(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook := w.webhook("r1", good)
		w.answers(func(r request) sender.Outcome { pass(time.Second); return ok200 })
		for i := range 100 {
			w.dispatch("r1", fmt.Sprintf("e%d", i))
		}
		if err := w.Stop(context.Background()); err != nil {
			t.Fatal(err)
		}
		sent := len(w.seen(good))
		if sent == 0 || sent >= 100 || len(w.recorded) != sent {
			t.Fatalf("%d sent and %d recorded before the stop", sent, len(w.recorded))
		}
		if _, err := w.Dispatch(t.Context(), posthorn.Event{RepoID: "r1", Type: "push", Payload: 1}); posthorn.ErrorCode(err) != posthorn.CodeUnavailable {
			t.Errorf("dispatch after stop: %v", err)
		}
		if err := w.Stop(context.Background()); err != nil {
			t.Errorf("second stop: %v", err)
		}
		w.start()
		pass(2 * time.Minute)
		if got := len(w.seen(good)); got != 100 {
			t.Errorf("%d requests in all, want 100", got)
		}
		if got := len(w.deliveries(hook)); got != 100 {
			t.Errorf("%d deliveries, want 100", got)
		}
	})
}

// Stop waits no longer than its context for requests in flight, which are made again under the same delivery ids.
func TestStopCutsOff(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		w.webhook("r1", good)
		w.answers(hang(10 * time.Second))
		w.dispatch("r1", "e1")
		pass(time.Second)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := w.Stop(ctx); posthorn.ErrorCode(err) != posthorn.CodeUnavailable {
			t.Errorf("stop: %v", err)
		}
		w.answers(func(request) sender.Outcome { return ok200 })
		w.start()
		pass(time.Minute)
		seen := w.seen(good)
		if len(seen) != 2 || seen[0].deliveryID != seen[1].deliveryID {
			t.Errorf("requests %+v", seen)
		}
	})
}

// A store that is slow to let go of a node's lease has until the end of Stop's context, and a few seconds at least.
func TestStopOnSlowStore(t *testing.T) {
	const takes = 2 * posthorn.LastWords
	for given, want := range map[time.Duration]time.Duration{0: posthorn.LastWords, time.Second: posthorn.LastWords, 3 * takes: takes} {
		inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
			w.tamper(func(ctx context.Context, call string, do func() error) error {
				if call != "Release" {
					return do()
				}
				select {
				case <-time.After(takes):
					return do()
				case <-ctx.Done():
					return ctx.Err()
				}
			})
			ctx := context.Background()
			if given > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, given)
				defer cancel()
			}
			began := time.Now()
			if err := w.Stop(ctx); (err == nil) != (want == takes) || time.Since(began) != want {
				t.Errorf("with %v it took %v: %v", given, time.Since(began), err)
			}
		})
	}
}

// What a killed node had leased is taken over once its lease has run out, and repeated under the same delivery ids.
func TestTakeOver(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		w.webhook("r1", good)
		w.answers(func(r request) sender.Outcome { pass(time.Second); return ok200 })
		for i := range 50 {
			w.dispatch("r1", fmt.Sprintf("e%d", i))
		}
		pass(2500 * time.Millisecond)
		w.crash()
		w.start()
		pass(posthorn.LeaseFor + time.Minute)
		ids := map[string]string{}
		for _, r := range w.seen(good) {
			if was, ok := ids[r.eventID]; ok && was != r.deliveryID {
				t.Errorf("event %s was repeated with delivery id %s after %s", r.eventID, r.deliveryID, was)
			}
			ids[r.eventID] = r.deliveryID
		}
		if len(ids) != 50 {
			t.Errorf("%d of 50 events arrived", len(ids))
		}
	})
}

func TestPauseAndResume(t *testing.T) {
	inWorld(t, posthorn.Config{MaxInFlightPerWebhook: 1}, func(t *testing.T, w *world) {
		hook := w.webhook("r1", good)
		w.answers(func(request) sender.Outcome { pass(time.Second); return ok200 })
		for i := range 20 {
			w.dispatch("r1", fmt.Sprintf("e%d", i))
		}
		pass(3500 * time.Millisecond)
		no, yes := false, true
		if _, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, posthorn.WebhookPatch{Active: &no}); err != nil {
			t.Fatal(err)
		}
		sent := len(w.seen(good))
		if r := w.dispatch("r1", "while-paused"); r.Deliveries != 0 {
			t.Errorf("dispatched to a paused webhook: %+v", r)
		}
		pass(5 * time.Minute)
		if got := len(w.seen(good)); got != sent {
			t.Errorf("%d requests while it was paused", got-sent)
		}
		if _, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, posthorn.WebhookPatch{Active: &yes}); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		var got []string
		for _, r := range w.seen(good) {
			got = append(got, r.eventID)
		}
		var want []string
		for i := range 20 {
			want = append(want, fmt.Sprintf("e%d", i))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("requests (-want +got):\n%s", diff)
		}
	})
}

func TestDelete(t *testing.T) {
	inWorld(t, posthorn.Config{MaxInFlightPerWebhook: 1}, func(t *testing.T, w *world) {
		hook := w.webhook("r1", good)
		w.answers(func(request) sender.Outcome { pass(time.Second); return sender.Outcome{Status: 500} })
		for i := range 20 {
			w.dispatch("r1", fmt.Sprintf("e%d", i))
		}
		pass(3500 * time.Millisecond)
		if err := w.DeleteWebhook(t.Context(), "r1", hook.ID); err != nil {
			t.Fatal(err)
		}
		sent := len(w.seen(good))
		pass(5 * time.Minute)
		if got := len(w.seen(good)); got != sent {
			t.Errorf("%d requests after it was deleted", got-sent)
		}
		if err := w.DeleteWebhook(t.Context(), "r1", hook.ID); posthorn.ErrorCode(err) != posthorn.CodeNotFound {
			t.Errorf("deleting it again: %v", err)
		}
	})
}

func TestRedeliver(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook := w.webhook("r1", bad)
		w.answers(func(request) sender.Outcome { return sender.Outcome{Status: 500} })
		w.dispatch("r1", "e1")
		pass(time.Minute)
		old := w.deliveries(hook)
		no, url := false, good
		if _, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, posthorn.WebhookPatch{Active: &no, URL: &url}); err != nil {
			t.Fatal(err)
		}
		tries := 0
		w.answers(func(request) sender.Outcome {
			if tries++; tries < 3 {
				return sender.Outcome{Status: 500}
			}
			return ok200
		})
		r, err := w.Redeliver(t.Context(), "r1", hook.ID, old[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		last, err := r.Wait(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !last.Success || last.Attempt != 3 || last.Trigger != posthorn.TriggerRedelivery {
			t.Errorf("last delivery %+v", last)
		}
		seen := w.seen(good)
		if len(seen) != 3 || seen[0].deliveryID != r.DeliveryID || seen[0].eventID != "e1" || seen[0].body != `{"id":"e1"}` {
			t.Errorf("requests %+v", seen)
		}
		log := w.deliveries(hook)
		if diff := cmp.Diff(old, log[3:]); diff != "" || len(log) != 6 {
			t.Errorf("%d rows, the old ones changed (-want +got):\n%s", len(log), diff)
		}
	})
}

// A redelivery goes before a backlog, and who waits for one hears of it when the webhook is deleted.
func TestRedeliverBesideBacklog(t *testing.T) {
	inWorld(t, posthorn.Config{MaxQueued: 32}, func(t *testing.T, w *world) {
		hook := w.webhook("r1", bad)
		w.answers(hang(10 * time.Second))
		for i := range 500 {
			w.dispatch("r1", fmt.Sprintf("e%d", i))
		}
		pass(5 * time.Minute)
		r, err := w.Redeliver(t.Context(), "r1", hook.ID, w.deliveries(hook)[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := r.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		// The request before it and, of its own, three attempts, each after at most one other probe, and two pauses.
		if took := time.Since(start); took > (1+3+2)*10*time.Second+3*time.Second+posthorn.SweepEvery {
			t.Errorf("the run took %v", took)
		}
		r, err = w.Redeliver(t.Context(), "r1", hook.ID, w.deliveries(hook)[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		if err := w.DeleteWebhook(t.Context(), "r1", hook.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Wait(t.Context()); posthorn.ErrorCode(err) != posthorn.CodeUnavailable {
			t.Errorf("waiting for a run of a deleted webhook: %v", err)
		}
	})
}

func TestPing(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook := w.webhook("r1", good, "push")
		no := false
		if _, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, posthorn.WebhookPatch{Active: &no}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Ping(t.Context(), "r1", hook.ID); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		seen := w.seen(good)
		want := fmt.Sprintf(`{"repoId":"r1","webhookId":%q,"events":["push"]}`, hook.ID)
		if len(seen) != 1 || seen[0].eventType != "ping" || seen[0].body != want {
			t.Errorf("requests %+v", seen)
		}
		if _, err := w.Ping(t.Context(), "r2", hook.ID); posthorn.ErrorCode(err) != posthorn.CodeNotFound {
			t.Errorf("pinging another repo's webhook: %v", err)
		}
	})
}
