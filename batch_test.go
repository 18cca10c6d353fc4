package posthorn_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/musehub/posthorn"
)

func pushEvent(repo, id string) posthorn.Event {
	return posthorn.Event{ID: id, RepoID: repo, Type: "push", Payload: json.RawMessage(fmt.Sprintf(`{"id":%q}`, id))}
}

// wantRefused dispatches a batch that is refused with a code and a field.
func (w *world) wantRefused(events []posthorn.Event, code posthorn.Code, field string) {
	w.t.Helper()
	receipts, err := w.DispatchBatch(w.t.Context(), events)
	var got string
	if e, ok := err.(*posthorn.Error); ok { //nolint:errorlint // what a caller gets is not wrapped
		got = e.Field
	}
	if receipts != nil || posthorn.ErrorCode(err) != code || got != field {
		w.t.Errorf("receipts %v, error %v with the field %q, want %s of %q", receipts, err, got, code, field)
	}
}

func (w *world) total(repo string) int64 {
	w.t.Helper()
	page, err := w.Events(w.t.Context(), posthorn.EventQuery{RepoID: repo, Limit: 1})
	if err != nil {
		w.t.Fatal(err)
	}
	return page.Total
}

func TestDispatchBatch(t *testing.T) {
	inWorld(t, posthorn.Config{MaxInFlightPerWebhook: 1}, func(t *testing.T, w *world) {
		w.webhook("r1", "https://one.example/", "push", "tag")
		w.webhook("r2", "https://two.example/")
		w.dispatch("r1", "known")
		lonely := posthorn.Event{ID: "lonely", RepoID: "r1", Type: "issue", Payload: json.RawMessage("1")}
		receipts, err := w.DispatchBatch(t.Context(), []posthorn.Event{
			pushEvent("r1", "a"), pushEvent("r2", "a"), lonely, pushEvent("r1", "known"), pushEvent("r1", "b"), pushEvent("r1", "a"), lonely,
			{RepoID: "r2", Type: "push", Payload: map[string]int{"commit_count": 1}},
		})
		if err != nil {
			t.Fatal(err)
		}
		unnamed := receipts[7].EventID
		want := []posthorn.Receipt{
			{EventID: "a", Deliveries: 1}, {EventID: "a", Deliveries: 1}, {EventID: "lonely"}, {EventID: "known", Deliveries: 1, Duplicate: true},
			{EventID: "b", Deliveries: 1}, {EventID: "a", Deliveries: 1, Duplicate: true}, {EventID: "lonely"}, {EventID: unnamed, Deliveries: 1},
		}
		if diff := cmp.Diff(want, receipts); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		synctest.Wait()
		for url, want := range map[string][]string{"https://one.example/": {"known", "a", "b"}, "https://two.example/": {"a", unnamed}} {
			var got []string
			for _, r := range w.seen(url) {
				got = append(got, r.eventID)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s got (-want +got):\n%s", url, diff)
			}
		}
		if _, err := w.Event(t.Context(), "r1", "lonely"); posthorn.ErrorCode(err) != posthorn.CodeNotFound {
			t.Errorf("what nobody wants is stored: %v", err)
		}
	})
}

func TestDispatchBatchAllOrNone(t *testing.T) {
	inWorld(t, posthorn.Config{MaxPayload: 1 << 20}, func(t *testing.T, w *world) {
		w.webhook("r1", "https://one.example/", "push")
		w.dispatch("r1", "known")
		good := pushEvent("r1", "good")
		with := func(change func(*posthorn.Event)) []posthorn.Event {
			bad := pushEvent("r1", "bad")
			change(&bad)
			return []posthorn.Event{good, good, {RepoID: "r1", Type: "issue", Payload: 1}, bad, pushEvent("r1", "after")}
		}
		for _, test := range []struct {
			change func(*posthorn.Event)
			code   posthorn.Code
			field  string
		}{
			{func(e *posthorn.Event) { e.Type = "nothing" }, posthorn.CodeInvalid, "events[3].eventType"},
			{func(e *posthorn.Event) { e.ID = "a.b" }, posthorn.CodeInvalid, "events[3].eventId"},
			{func(e *posthorn.Event) { e.RepoID = "" }, posthorn.CodeInvalid, "events[3].repoId"},
			{func(e *posthorn.Event) { e.Payload = json.RawMessage("{") }, posthorn.CodeInvalid, "events[3].payload"},
			{func(e *posthorn.Event) { e.Payload = strings.Repeat("x", 1<<20) }, posthorn.CodeTooLarge, "events[3].payload"},
			{func(e *posthorn.Event) { e.ID = "known" }, posthorn.CodeConflict, "events[3].eventId"},                  // found by the store
			{func(e *posthorn.Event) { e.ID, e.Type = "known", "issue" }, posthorn.CodeConflict, "events[3].eventId"}, // nobody wants it
			{func(e *posthorn.Event) { e.ID = "good" }, posthorn.CodeConflict, "events[3].eventId"},
		} {
			w.wantRefused(with(test.change), test.code, test.field)
		}
		w.wantRefused(nil, posthorn.CodeInvalid, "events")
		conflict := posthorn.Event{ID: "known", RepoID: "r1", Type: "push", Payload: 1}
		w.wantRefused([]posthorn.Event{conflict}, posthorn.CodeConflict, "events[0].eventId")
		// The only one that anybody wants.
		w.wantRefused([]posthorn.Event{{RepoID: "r1", Type: "issue", Payload: 1}, conflict}, posthorn.CodeConflict, "events[1].eventId")

		// As many as there can be are not split: the last one decides about the first.
		many := make([]posthorn.Event, posthorn.MaxBatch+1)
		for i := range many {
			many[i] = pushEvent("r1", fmt.Sprint("many-", i))
		}
		w.wantRefused(many, posthorn.CodeInvalid, "events")
		many[posthorn.MaxBatch-1] = conflict
		w.wantRefused(many[:posthorn.MaxBatch], posthorn.CodeConflict, "events[999].eventId")

		big := make([]posthorn.Event, 17)
		for i := range big {
			big[i] = posthorn.Event{RepoID: "r1", Type: "push", Payload: strings.Repeat("x", 1<<20-2)}
		}
		w.wantRefused(big, posthorn.CodeTooLarge, "events")
		w.tamper(failing("Commit"))
		w.wantRefused(many[:2], posthorn.CodeUnavailable, "")
		w.tamper(nil)
		synctest.Wait()
		if n := w.total("r1"); n != 1 || len(w.seen("")) != 1 {
			t.Errorf("%d events are stored and %d were sent, want the one of before", n, len(w.seen("")))
		}
		if entries, bytes := w.Held(); entries != 0 || bytes != 0 {
			t.Errorf("%d entries and %d bytes are still held", entries, bytes)
		}

		receipts, err := w.DispatchBatch(t.Context(), many[:posthorn.MaxBatch-1])
		if err != nil || len(receipts) != posthorn.MaxBatch-1 {
			t.Fatalf("%d receipts, %v", len(receipts), err)
		}
		if _, err := w.DispatchBatch(t.Context(), big[:16]); err != nil {
			t.Error(err)
		}
		pass(posthorn.SweepEvery * 5)
		synctest.Wait()
		if n := w.total("r1"); n != posthorn.MaxBatch+16 || len(w.seen("")) != posthorn.MaxBatch+16 {
			t.Errorf("%d events are stored and %d were sent, want %d", n, len(w.seen("")), posthorn.MaxBatch+16)
		}
	})
}

// Batches and single events that are dispatched at the same time don't mix: each batch wins or loses all of its IDs.
func TestDispatchBatchesAtOnce(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		w.webhook("r1", "https://one.example/", "push")
		const batches = 20
		won := make([]bool, batches)
		var dispatching sync.WaitGroup
		for i := range batches {
			dispatching.Go(func() {
				var events []posthorn.Event
				for j := range 3 { // each has an ID with the next one in common
					events = append(events, posthorn.Event{ID: fmt.Sprint("e", (2*i+j)%(2*batches)), RepoID: "r1", Type: "push", Payload: i})
				}
				_, err := w.DispatchBatch(t.Context(), events)
				won[i] = err == nil
				if err != nil && posthorn.ErrorCode(err) != posthorn.CodeConflict {
					t.Error(err)
				}
			})
			dispatching.Go(func() { w.dispatch("r1", fmt.Sprint("single-", i)) })
		}
		dispatching.Wait()
		winners := 0
		for i := range won {
			next := (i + 1) % batches
			if won[i] {
				winners++
			}
			if won[i] && won[next] {
				t.Errorf("the batches %d and %d have both won", i, next)
			}
			if before := (i + batches - 1) % batches; !won[before] && !won[i] && !won[next] {
				t.Errorf("the batch %d has lost against nobody", i)
			}
		}
		synctest.Wait()
		if n := w.total("r1"); n != int64(3*winners+batches) {
			t.Errorf("%d events are stored, want the 3 of each of %d batches and %d single ones", n, winners, batches)
		}
		if n := len(w.seen("")); n != 3*winners+batches {
			t.Errorf("%d were sent, want %d", n, 3*winners+batches)
		}
	})
}

// Many events to many webhooks are too much for one commit. One event is not.
func TestDispatchBatchDeliveries(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		const webhooks = posthorn.MaxBatchDeliveries/posthorn.MaxBatch + 1
		for i := range webhooks {
			w.webhook("r1", fmt.Sprintf("https://%d.example/", i), "push")
		}
		events := make([]posthorn.Event, posthorn.MaxBatch)
		for i := range events {
			events[i] = pushEvent("r1", fmt.Sprint("e", i))
		}
		w.wantRefused(events, posthorn.CodeTooLarge, "events")
		if n := w.total("r1"); n != 0 {
			t.Errorf("%d events are stored", n)
		}
		if _, err := w.DispatchBatch(t.Context(), events[:10]); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if n := len(w.seen("")); n != 10*webhooks {
			t.Errorf("%d requests were made, want %d", n, 10*webhooks)
		}
	})
}

func TestDispatchBatchNotRunning(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		w.webhook("r1", "https://one.example/", "push")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := w.DispatchBatch(ctx, []posthorn.Event{pushEvent("r1", "a"), pushEvent("r1", "b")}); err == nil {
			t.Error("a batch was accepted whose caller was gone")
		}
		if err := w.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.wantRefused([]posthorn.Event{pushEvent("r1", "c")}, posthorn.CodeUnavailable, "")
	})
}
