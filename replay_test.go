package posthorn_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/sender"
)

// replay starts a replay of all that was dispatched.
func (w *world) replay(hook posthorn.Webhook, only posthorn.ReplayOnly, change func(*posthorn.ReplayRange)) posthorn.Replay {
	w.t.Helper()
	of := posthorn.ReplayRange{Since: time.Now().Add(-365 * 24 * time.Hour), Only: only}
	if change != nil {
		change(&of)
	}
	r, err := w.StartReplay(w.t.Context(), hook.RepoID, hook.ID, of)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// idleReplay starts a replay that stays open and has nothing to do: nobody polls for it.
func (w *world) idleReplay() {
	w.t.Helper()
	polled := posthorn.NewWebhook{RepoID: "r1", Events: []string{"push"}, Options: posthorn.Options{Polled: true}}
	idle, err := w.CreateWebhook(w.t.Context(), polled)
	if err != nil {
		w.t.Fatal(err)
	}
	w.replay(idle, posthorn.ReplayMissed, nil)
}

// dispatchMany dispatches events of the ids e0, e1 and so on.
func (w *world) dispatchMany(n int) {
	w.t.Helper()
	w.dispatchAs("e", n)
}

func (w *world) dispatchAs(prefix string, n int) {
	w.t.Helper()
	var batch []posthorn.Event
	for i := range n {
		batch = append(batch, posthorn.Event{RepoID: "r1", ID: fmt.Sprint(prefix, i), Type: "push", Payload: json.RawMessage(`{}`)})
		if len(batch) == posthorn.MaxBatch || i == n-1 {
			if _, err := w.DispatchBatch(w.t.Context(), batch); err != nil {
				w.t.Fatal(err)
			}
			batch = nil
		}
	}
}

// replayed returns what has become of a replay.
func (w *world) replayed(r posthorn.Replay) posthorn.Replay {
	w.t.Helper()
	got, err := w.Replay(w.t.Context(), r.RepoID, r.WebhookID, r.ID)
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

func (w *world) wantReplay(r posthorn.Replay, state posthorn.ReplayState, matched, succeeded, failed int64) {
	w.t.Helper()
	if r.State != state || r.Matched != matched || r.Succeeded != succeeded || r.Failed != failed {
		w.t.Errorf("the replay is %s, %d matched, %d succeeded, %d failed; want %s, %d, %d, %d",
			r.State, r.Matched, r.Succeeded, r.Failed, state, matched, succeeded, failed)
	}
}

// What can be replayed is told apart: delivered, failed, and what a webhook never got.
func TestReplay(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		keeper := w.webhook("r1", bad, "push")
		inactive := false
		hook := w.webhook("r1", good, "push")
		w.answers(refusing("failed1", "failed2"))
		w.dispatch("r1", "ok1")
		w.dispatch("r1", "failed1")
		w.dispatch("r1", "failed2")
		pass(time.Minute)
		if _, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, posthorn.WebhookPatch{Active: &inactive}); err != nil {
			t.Fatal(err)
		}
		w.dispatch("r1", "missed1")
		w.dispatch("r1", "missed2")
		pass(time.Minute)
		_, err := w.StartReplay(t.Context(), "r1", hook.ID, posthorn.ReplayRange{Since: time.Now().Add(-time.Hour)})
		if posthorn.ErrorCode(err) != posthorn.CodeConflict {
			t.Errorf("of an inactive webhook: %v", err)
		}
		dry := w.replay(hook, posthorn.ReplayMissed, func(of *posthorn.ReplayRange) { of.DryRun = true })
		w.wantReplay(w.replayed(dry), posthorn.ReplayDone, 2, 0, 0)
		active := true
		if _, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, posthorn.WebhookPatch{Active: &active}); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		sent := len(w.seen(good))
		w.answers(func(r request) sender.Outcome { return ok200 })
		since := func() []string {
			var ids []string
			for _, r := range w.seen(good)[sent:] {
				ids = append(ids, r.eventID)
			}
			sent = len(w.seen(good))
			return ids
		}
		for _, test := range []struct {
			only posthorn.ReplayOnly
			dry  int64
			want string
		}{
			{posthorn.ReplayFailed, 2, "failed1 failed2"},
			{posthorn.ReplayFailed, 0, ""}, // they are delivered by now
			{posthorn.ReplayMissed, 2, "missed1 missed2"},
			{posthorn.ReplayAll, 5, "ok1 failed1 failed2 missed1 missed2"},
		} {
			dry := w.replay(hook, test.only, func(of *posthorn.ReplayRange) { of.DryRun = true })
			w.wantReplay(dry, posthorn.ReplayDone, test.dry, 0, 0)
			if got := since(); got != nil {
				t.Errorf("a dry run sent %q", got)
			}
			r := w.replay(hook, test.only, nil)
			pass(3 * time.Second)
			got := since()
			slices.Sort(got)
			want := strings.Fields(test.want)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("%s sent %q, want %q", test.only, got, want)
			}
			w.wantReplay(w.replayed(r), posthorn.ReplayDone, int64(len(want)), int64(len(want)), 0)
		}
		for _, r := range w.seen(good) {
			if id := r.header["webhook-id"]; len(id) != 1 || id[0] != r.eventID || r.body != fmt.Sprintf(`{"id":%q}`, r.eventID) {
				t.Errorf("the request was %+v", r)
			}
		}
		if got := w.deliveries(hook)[0]; got.Trigger != posthorn.TriggerReplay || got.Run == 0 {
			t.Errorf("the newest delivery is %+v", got)
		}
		if got := w.sentTo(bad); strings.Contains(got, "ok1 ok1") || len(strings.Fields(got)) != 9 {
			t.Errorf("the other webhook got %q", got)
		}
		page, err := w.Replays(t.Context(), posthorn.ReplayQuery{RepoID: "r1", WebhookID: hook.ID, Limit: 5})
		if err != nil || len(page.Items) != 5 || page.Next == 0 || page.Items[0].Only != posthorn.ReplayAll {
			t.Errorf("replays: %+v, %v", page, err)
		}
		if _, err := w.Replay(t.Context(), "r1", keeper.ID, page.Items[0].ID); posthorn.ErrorCode(err) != posthorn.CodeNotFound {
			t.Errorf("another webhook's: %v", err)
		}
	})
}

// Only what the webhook wants as it is now is replayed, and of that what is asked for.
func TestReplayRange(t *testing.T) {
	inWorld(t, posthorn.Config{EventTypes: []string{"push", "issue.opened", "issue.closed"}, KeepAllEvents: true}, func(t *testing.T, w *world) {
		dispatch := func(id, eventType, branch string) {
			t.Helper()
			_, err := w.Dispatch(t.Context(), posthorn.Event{RepoID: "r1", ID: id, Type: eventType, Payload: map[string]any{"branch": branch}})
			if err != nil {
				t.Fatal(err)
			}
			pass(time.Minute)
		}
		began := time.Now()
		dispatch("a", "push", "main")
		dispatch("b", "push", "dev")
		dispatch("c", "issue.opened", "main")
		dispatch("d", "issue.closed", "main")
		dispatch("e", "push", "main")
		hook, err := w.CreateWebhook(t.Context(), posthorn.NewWebhook{
			RepoID: "r1", URL: good, Events: []string{"push", "issue.*"}, Options: posthorn.Options{Filter: `payload.branch == "main"`},
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Ping(t.Context(), "r1", hook.ID); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		for _, test := range []struct {
			of   posthorn.ReplayRange
			want int64
		}{
			{posthorn.ReplayRange{Since: began}, 4},
			{posthorn.ReplayRange{Since: began.Add(time.Minute)}, 3},
			{posthorn.ReplayRange{Since: began.Add(2*time.Minute + time.Microsecond)}, 2},
			{posthorn.ReplayRange{Since: began, Until: began.Add(4 * time.Minute)}, 3},
			{posthorn.ReplayRange{Since: began, Until: began.Add(time.Hour)}, 4},
			{posthorn.ReplayRange{Since: began, EventTypes: []string{"push"}}, 2},
			{posthorn.ReplayRange{Since: began, EventTypes: []string{"issue.*", "push"}}, 4},
			{posthorn.ReplayRange{Since: began, EventTypes: []string{"issue.closed"}}, 1},
		} {
			for _, only := range []posthorn.ReplayOnly{posthorn.ReplayMissed, posthorn.ReplayAll} {
				test.of.Only, test.of.DryRun = only, true
				r, err := w.StartReplay(t.Context(), "r1", hook.ID, test.of)
				if err != nil {
					t.Fatal(err)
				}
				pass(time.Second)
				w.wantReplay(w.replayed(r), posthorn.ReplayDone, test.want, 0, 0)
			}
		}
		for field, of := range map[string]posthorn.ReplayRange{
			"since":      {},
			"only":       {Since: began, Only: "some"},
			"eventTypes": {Since: began, EventTypes: []string{"pusch"}},
		} {
			_, err := w.StartReplay(t.Context(), "r1", hook.ID, of)
			if posthorn.ErrorCode(err) != posthorn.CodeInvalid || !strings.Contains(err.Error(), field) {
				t.Errorf("%s: %v", field, err)
			}
		}
		if _, err := w.StartReplay(t.Context(), "r1", hook.ID, posthorn.ReplayRange{Since: began, Until: began}); posthorn.ErrorCode(err) != posthorn.CodeInvalid {
			t.Errorf("an empty range: %v", err)
		}
		if _, err := w.StartReplay(t.Context(), "r2", hook.ID, posthorn.ReplayRange{Since: began}); posthorn.ErrorCode(err) != posthorn.CodeNotFound {
			t.Errorf("another repo's: %v", err)
		}
	})
}

// What is on its way already is left out, and so is what another replay has sent.
func TestReplayLeavesOut(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook := w.webhook("r1", good)
		if _, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, posthorn.WebhookPatch{RetryPolicy: new("1h")}); err != nil {
			t.Fatal(err)
		}
		w.answers(refusing("retried"))
		w.dispatch("r1", "retried")
		pass(time.Second)
		w.answers(hang(10 * time.Second))
		w.dispatch("r1", "flying")
		pass(time.Second)
		for _, only := range []posthorn.ReplayOnly{posthorn.ReplayFailed, posthorn.ReplayMissed, posthorn.ReplayAll} {
			w.wantReplay(w.replay(hook, only, func(of *posthorn.ReplayRange) { of.DryRun = true }), posthorn.ReplayDone, 0, 0, 0)
		}
	})
}

// Events whose times are not in the order of their acceptance, as those of a node whose clock is behind, are found all the same.
func TestReplayFindsAll(t *testing.T) {
	inWorld(t, posthorn.Config{KeepAllEvents: true}, func(t *testing.T, w *world) {
		began := time.Now()
		w.dispatchMany(700)
		behind := w.node("B")
		behind.clock = -time.Hour
		behind.start()
		t.Cleanup(behind.end)
		behind.dispatch("r1", "old")
		pass(time.Minute)
		hook := w.webhook("r1", good)
		r := w.replay(hook, posthorn.ReplayMissed, func(of *posthorn.ReplayRange) { of.Since, of.DryRun = began, true })
		w.wantReplay(r, posthorn.ReplayDone, 700, 0, 0)
		if r.Examined != 700 {
			t.Errorf("it has examined %d", r.Examined)
		}
	})
}

// Events that nobody wants are kept if asked for, whichever way they come, and are recognised when they come again.
func TestKeepAllEvents(t *testing.T) {
	inWorld(t, posthorn.Config{KeepAllEvents: true}, func(t *testing.T, w *world) {
		for _, again := range []bool{false, true} {
			if r := w.dispatch("r1", "a"); r.Deliveries != 0 || r.Duplicate != again {
				t.Errorf("the receipt is %+v", r)
			}
		}
		event := posthorn.Event{RepoID: "r1", ID: "b", Type: "push", Payload: json.RawMessage(`{}`)}
		if r, err := w.DispatchBatch(t.Context(), []posthorn.Event{event}); err != nil || r[0].Deliveries != 0 {
			t.Errorf("the receipts are %+v, %v", r, err)
		}
		page, err := w.Events(t.Context(), posthorn.EventQuery{RepoID: "r1", Limit: 10})
		if err != nil || len(page.Items) != 2 {
			t.Fatalf("events: %+v, %v", page, err)
		}
		hook := w.webhook("r1", good)
		r := w.replay(hook, posthorn.ReplayMissed, nil)
		pass(time.Second)
		if got := w.sentTo(good); got != "a b" {
			t.Errorf("it got %q", got)
		}
		w.wantReplay(w.replayed(r), posthorn.ReplayDone, 2, 2, 0)
	})
}

// slowly answers 200 after a tenth of a second.
func slowly(request) sender.Outcome {
	pass(100 * time.Millisecond)
	return ok200
}

// New events wait behind few of those that are replayed.
func TestReplayBesideNewEvents(t *testing.T) {
	inWorld(t, posthorn.Config{KeepAllEvents: true, MaxInFlightPerWebhook: 4}, func(t *testing.T, w *world) {
		w.dispatchMany(700)
		hook := w.webhook("r1", good)
		w.answers(slowly)
		w.replay(hook, posthorn.ReplayAll, nil)
		pass(2 * time.Second)
		dispatched := time.Now()
		w.dispatch("r1", "new")
		pass(4 * time.Second)
		seen := w.seen(good)
		if len(seen) > 400 || !slices.ContainsFunc(seen, func(r request) bool { return r.eventID == "new" }) {
			t.Errorf("after %v %d requests were made, and the new event waits still", time.Since(dispatched), len(seen))
		}
	})
}

// A replay survives crashes in the middle of planning and of sending, and sends each event.
func TestReplaySurvives(t *testing.T) {
	inWorld(t, posthorn.Config{KeepAllEvents: true, MaxInFlightPerWebhook: 4}, func(t *testing.T, w *world) {
		const events = 700
		w.dispatchMany(events)
		hook := w.webhook("r1", good)
		w.answers(slowly)
		w.tamper(func(_ context.Context, call string, do func() error) error {
			if call == "UpdateReplay" { // it is planned no further than that
				return errKilled
			}
			return do()
		})
		r := w.replay(hook, posthorn.ReplayAll, nil)
		if r.State != posthorn.ReplayPlanning || r.Before != 0 {
			t.Errorf("it is %+v", r)
		}
		w.crash()
		w.start()
		pass(7 * time.Second)
		seen := len(w.seen(good))
		w.crash()
		b := w.another("B")
		w.start()
		pass(time.Second)
		if n := len(w.seen(good)); seen == 0 || n >= events {
			t.Errorf("%d and %d requests were made: a crash was not in the middle", seen, n)
		}
		pass(2 * time.Minute)
		w.wantReplay(b.replayed(r), posthorn.ReplayDone, events, events, 0)
		times := map[string]int{}
		for _, r := range w.seen(good) {
			times[r.eventID]++
		}
		if len(times) != events {
			t.Errorf("%d events were sent", len(times))
		}
		for id, n := range times {
			if n > 2 { // once more for the crash at most
				t.Errorf("%s was sent %d times", id, n)
			}
		}
		if w.most[good] > 2*4 {
			t.Errorf("%d at once", w.most[good])
		}
	})
}

// Each event has the whole retry policy. Of those that fail others don't wait for the end.
func TestReplayRetries(t *testing.T) {
	inWorld(t, posthorn.Config{KeepAllEvents: true}, func(t *testing.T, w *world) {
		for i := range 200 {
			w.dispatch("r1", fmt.Sprint("e", i))
		}
		hook := w.webhook("r1", good)
		policy := "1m,1m"
		if _, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, posthorn.WebhookPatch{RetryPolicy: &policy}); err != nil {
			t.Fatal(err)
		}
		w.answers(func(r request) sender.Outcome {
			if strings.HasSuffix(r.eventID, "7") {
				return sender.Outcome{Status: 500}
			}
			return ok200
		})
		r := w.replay(hook, posthorn.ReplayAll, nil)
		pass(30 * time.Second)
		w.wantReplay(w.replayed(r), posthorn.ReplayRunning, 200, 180, 0)
		pass(5 * time.Minute)
		w.wantReplay(w.replayed(r), posthorn.ReplayDone, 200, 180, 20)
		if n := len(w.seen(good)); n != 180+3*20 {
			t.Errorf("%d requests were made", n)
		}
	})
}

// A webhook that wants its events in order gets them so.
func TestReplayOrdered(t *testing.T) {
	inWorld(t, posthorn.Config{KeepAllEvents: true}, func(t *testing.T, w *world) {
		var want []string
		for i := range 20 {
			id := fmt.Sprint("e", i)
			w.dispatch("r1", id)
			want = append(want, id)
			if i == 3 {
				want = append(want, id, id)
			}
		}
		hook := w.orderedWebhook(good, posthorn.OrderingStrict)
		w.answers(refusing("e3"))
		r := w.replay(hook, posthorn.ReplayAll, nil)
		pass(time.Minute)
		if got := w.sentTo(good); got != strings.Join(want, " ") {
			t.Errorf("it got %q", got)
		}
		w.wantReplay(w.replayed(r), posthorn.ReplayDone, 20, 19, 1)
	})
}

// Two nodes that plan the same replay find the same events: the one that comes too late is told so, and leaves it to the other one.
func TestReplayPlannedTwice(t *testing.T) {
	var log bytes.Buffer
	cfg := posthorn.Config{KeepAllEvents: true, Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError}))}
	inWorld(t, cfg, func(t *testing.T, w *world) {
		w.dispatchMany(3000)
		hook := w.webhook("r1", good)
		w.idleReplay() // so that all nodes look each second
		var conflicts, others atomic.Int64
		slow := func(_ context.Context, call string, do func() error) error {
			if call != "UpdateReplay" {
				return do()
			}
			pass(300 * time.Millisecond)
			err := do()
			switch {
			case posthorn.ErrorCode(err) == posthorn.CodeConflict:
				conflicts.Add(1)
			case err != nil:
				others.Add(1)
			}
			return err
		}
		b := w.another("B")
		pass(20 * time.Second)
		w.tamper(slow)
		b.tamper(slow)
		r := w.replay(hook, posthorn.ReplayAll, nil)
		pass(time.Minute)
		w.wantReplay(w.replayed(r), posthorn.ReplayDone, 3000, 3000, 0)
		if n := conflicts.Load(); n < 1 || n > 3 || others.Load() > 0 || log.Len() > 0 {
			t.Errorf("%d conflicts, %d other errors: %s", n, others.Load(), log.String())
		}
	})
}

// Events whose times are older than their numbers say don't hide the ones before them.
func TestReplayNumberedLate(t *testing.T) {
	inWorld(t, posthorn.Config{KeepAllEvents: true}, func(t *testing.T, w *world) {
		began := time.Now()
		w.dispatchMany(100)
		behind := w.node("B")
		behind.clock = -30 * time.Second // as if it had taken that long to write them
		behind.start()
		t.Cleanup(behind.end)
		behind.dispatchAs("other", 1000)
		w.dispatch("r1", "new")
		hook := w.webhook("r1", good)
		r := w.replay(hook, posthorn.ReplayMissed, func(of *posthorn.ReplayRange) { of.Since, of.DryRun = began, true })
		w.wantReplay(r, posthorn.ReplayDone, 101, 0, 0)
	})
}

// What was delivered is not sent again because the log has forgotten it, while the event is kept for another webhook.
func TestReplayForgotten(t *testing.T) {
	inWorld(t, posthorn.Config{Retention: 10 * time.Minute}, func(t *testing.T, w *world) {
		hook := w.webhook("r1", good)
		polled := posthorn.NewWebhook{RepoID: "r1", Events: []string{"push"}, Options: posthorn.Options{Polled: true}}
		if _, err := w.CreateWebhook(t.Context(), polled); err != nil {
			t.Fatal(err)
		}
		w.dispatchMany(10)
		began := time.Now()
		pass(75 * time.Minute)
		for _, only := range []posthorn.ReplayOnly{posthorn.ReplayMissed, posthorn.ReplayAll} {
			r := w.replay(hook, only, func(of *posthorn.ReplayRange) { of.Since = began.Add(-time.Hour) })
			if !r.Since.Equal(r.CreatedAt.Add(-10 * time.Minute)) {
				t.Errorf("it is since %v", r.Since)
			}
			pass(time.Minute)
			w.wantReplay(w.replayed(r), posthorn.ReplayDone, 0, 0, 0)
		}
		pass(30 * time.Second) // and then it is pruned 30 s past the minute
		w.dispatchAs("at-the-edge", 1)
		pass(time.Second)
		w.dispatchAs("after-it", 500) // which the first page of the planning takes up
		pass(9*time.Minute + 50*time.Second)
		w.tamper(func(_ context.Context, call string, do func() error) error {
			if call == "UpdateReplay" {
				pass(25 * time.Second)
			}
			return do()
		})
		r := w.replay(hook, posthorn.ReplayMissed, nil)
		pass(5 * time.Minute)
		w.wantReplay(w.replayed(r), posthorn.ReplayDone, 0, 0, 0)
		if n := len(w.seen(good)); n != 511 {
			t.Errorf("it got %d requests", n)
		}
		_, err := w.StartReplay(t.Context(), "r1", hook.ID, posthorn.ReplayRange{Since: began.Add(-time.Hour), Until: began})
		if e, ok := errors.AsType[*posthorn.Error](err); !ok || e.Field != "until" || !strings.Contains(e.Message, "no longer stored (--retention") {
			t.Errorf("one that ends before what is stored: %v", err)
		}
	})
}

// A replay ends though the host says that there is no such repo any more.
func TestReplayOfGoneRepo(t *testing.T) {
	var gone atomic.Bool
	cfg := posthorn.Config{KeepAllEvents: true, RepoExists: func(context.Context, string) (bool, error) { return !gone.Load(), nil }}
	inWorld(t, cfg, func(t *testing.T, w *world) {
		w.dispatchMany(200)
		hook := w.webhook("r1", good)
		w.answers(slowly)
		r := w.replay(hook, posthorn.ReplayAll, nil)
		gone.Store(true)
		pass(time.Minute)
		gone.Store(false) // to look at it
		w.wantReplay(w.replayed(r), posthorn.ReplayDone, 200, 200, 0)
	})
}

// Replays that have nothing to do cost the others nothing.
func TestIdleReplays(t *testing.T) {
	inWorld(t, posthorn.Config{KeepAllEvents: true}, func(t *testing.T, w *world) {
		w.dispatchMany(500)
		for range 50 {
			w.idleReplay()
		}
		pass(10 * time.Second)
		calls := atomic.Int64{}
		w.tamper(func(_ context.Context, call string, do func() error) error {
			if call == "FreeReplayed" {
				calls.Add(1)
			}
			return do()
		})
		hook := w.webhook("r1", good)
		r := w.replay(hook, posthorn.ReplayMissed, nil)
		for w.replayed(r).State != posthorn.ReplayDone {
			pass(10 * time.Millisecond)
		}
		if n := calls.Load(); n > 500 {
			t.Errorf("%d calls for 500 events", n)
		}
	})
}

// Looking at replays that have nothing to do is over at some time, though it takes longer than a node does so in a row.
func TestIdleReplaysRest(t *testing.T) {
	inWorld(t, posthorn.Config{KeepAllEvents: true}, func(t *testing.T, w *world) {
		w.dispatchMany(100)
		for range 15 {
			w.idleReplay()
		}
		calls := atomic.Int64{}
		w.tamper(func(_ context.Context, call string, do func() error) error {
			if call == "FreeReplayed" {
				calls.Add(1)
				pass(20 * time.Millisecond)
			}
			return do()
		})
		pass(time.Minute)
		if n := calls.Load(); n < 14*60 || n > 16*60 {
			t.Errorf("%d calls in a minute, want one of each a second", n)
		}
	})
}

// A receiver that polls gets what is replayed.
func TestReplayPolled(t *testing.T) {
	inWorld(t, posthorn.Config{KeepAllEvents: true}, func(t *testing.T, w *world) {
		for i := range 150 {
			w.dispatch("r1", fmt.Sprint("e", i))
		}
		hook, err := w.CreateWebhook(t.Context(), posthorn.NewWebhook{RepoID: "r1", Events: []string{"push"}, Options: posthorn.Options{Polled: true}})
		if err != nil {
			t.Fatal(err)
		}
		r := w.replay(hook, posthorn.ReplayMissed, nil)
		got := 0
		for q := (posthorn.PollQuery{Limit: 50, Wait: time.Second}); ; {
			p, err := w.Poll(t.Context(), "r1", hook.ID, q)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range p.Events {
				if e.ID != fmt.Sprint("e", got) || e.Trigger != posthorn.TriggerReplay {
					t.Fatalf("event %d is %s, %s", got, e.ID, e.Trigger)
				}
				got++
			}
			if q.Cursor = p.Cursor; q.Cursor == "" {
				break
			}
		}
		if got != 150 {
			t.Errorf("%d events came", got)
		}
		pass(time.Second)
		w.wantReplay(w.replayed(r), posthorn.ReplayDone, 150, 150, 0)
	})
}
