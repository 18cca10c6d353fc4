package posthorn_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/sender"
)

// A canceled replay sends no more, neither first attempts nor retries, whatever nodes have in memory, and makes room for another one.
func TestCancelReplay(t *testing.T) {
	inWorld(t, posthorn.Config{KeepAllEvents: true, MaxInFlightPerWebhook: 4}, func(t *testing.T, w *world) {
		w.dispatchMany(700)
		hook := w.webhook("r1", good)
		if _, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, posthorn.WebhookPatch{RetryPolicy: new("20s,20s,20s")}); err != nil {
			t.Fatal(err)
		}
		b := w.another("B")
		w.answers(func(r request) sender.Outcome {
			pass(50 * time.Millisecond)
			if strings.ContainsAny(r.eventID[len(r.eventID)-1:], "02468") {
				return sender.Outcome{Status: 500}
			}
			return ok200
		})
		r := w.replay(hook, posthorn.ReplayAll, nil)
		pass(time.Second)
		_, err := w.StartReplay(t.Context(), "r1", hook.ID, posthorn.ReplayRange{Since: time.Now().Add(-time.Hour)})
		if posthorn.ErrorCode(err) != posthorn.CodeConflict {
			t.Errorf("a second one: %v", err)
		}
		pass(18 * time.Second)
		w.answers(hang(time.Second)) // and many retries become due
		pass(5 * time.Second)
		canceled := time.Now()
		answer, err := b.CancelReplay(t.Context(), "r1", hook.ID, r.ID)
		if err != nil || answer.State != posthorn.ReplayCanceling || answer.Succeeded < 100 {
			t.Errorf("canceling: %+v, %v", answer, err)
		}
		pass(10 * time.Minute)
		before, after := 0, 0
		for _, r := range w.seen(good) {
			if r.at.Sub(canceled) <= 1100*time.Millisecond {
				before++
			} else {
				after++
			}
		}
		if before < 300 || after > 0 {
			t.Errorf("%d requests were made before it was canceled, and %d a second later", before, after)
		}
		if r = w.replayed(r); r.State != posthorn.ReplayCanceled || r.EndedAt.IsZero() || r.Succeeded != answer.Succeeded {
			t.Errorf("it is %+v", r)
		}
		if again, err := w.CancelReplay(t.Context(), "r1", hook.ID, r.ID); err != nil || again.State != posthorn.ReplayCanceled {
			t.Errorf("canceling again: %+v, %v", again, err)
		}
		if second := w.replay(hook, posthorn.ReplayAll, nil); second.Matched != 700 {
			t.Errorf("the next one is %+v", second)
		}
	})
}

// One that is canceled while it is being planned ends at once.
func TestCancelPlannedReplay(t *testing.T) {
	inWorld(t, posthorn.Config{KeepAllEvents: true}, func(t *testing.T, w *world) {
		w.dispatchMany(700)
		hook := w.webhook("r1", good)
		var canceled time.Time
		w.tamper(func(_ context.Context, call string, do func() error) error {
			if call == "UpdateReplay" && canceled.IsZero() { // of the planning
				canceled = time.Now()
				page, err := w.Replays(t.Context(), posthorn.ReplayQuery{RepoID: "r1", WebhookID: hook.ID})
				if err == nil {
					_, err = w.CancelReplay(t.Context(), "r1", hook.ID, page.Items[0].ID)
				}
				if err != nil {
					t.Error(err)
				}
			}
			return do()
		})
		r := w.replay(hook, posthorn.ReplayAll, nil)
		pass(time.Second)
		if r = w.replayed(r); r.State != posthorn.ReplayCanceled || r.EndedAt.Sub(canceled) > time.Second || len(w.seen("")) > 0 {
			t.Errorf("it is %+v", r)
		}
	})
}

// Several are canceled while a third goes on: attempts ask all the time which are.
func TestCancelSeveralReplays(t *testing.T) {
	inWorld(t, posthorn.Config{KeepAllEvents: true}, func(t *testing.T, w *world) {
		w.dispatchMany(300)
		w.answers(slowly)
		var hooks []posthorn.Webhook
		var replays []posthorn.Replay
		for i := range 6 {
			hooks = append(hooks, w.webhook("r1", fmt.Sprintf("https://receiver-%d.example/", i)))
			replays = append(replays, w.replay(hooks[i], posthorn.ReplayAll, nil))
		}
		for i, r := range replays[1:] {
			if _, err := w.CancelReplay(t.Context(), "r1", hooks[i+1].ID, r.ID); err != nil {
				t.Error(err)
			}
		}
		pass(time.Minute)
		w.wantReplay(w.replayed(replays[0]), posthorn.ReplayDone, 300, 300, 0)
		for _, r := range replays[1:] {
			if r = w.replayed(r); r.State != posthorn.ReplayCanceled {
				t.Errorf("one is %s", r.State)
			}
		}
	})
}

// One is canceled while others are being planned, on a store that takes its time.
func TestCancelBesidePlanning(t *testing.T) {
	inWorld(t, posthorn.Config{KeepAllEvents: true, MaxInFlightPerWebhook: 4}, func(t *testing.T, w *world) {
		w.dispatchMany(5000)
		hook := w.webhook("r1", good)
		w.answers(func(request) sender.Outcome {
			pass(200 * time.Millisecond)
			return ok200
		})
		r := w.replay(hook, posthorn.ReplayAll, nil)
		w.tamper(func(_ context.Context, call string, do func() error) error {
			if call == "UpdateReplay" {
				pass(300 * time.Millisecond)
			}
			return do()
		})
		var others sync.WaitGroup
		for i := range 10 {
			other := w.webhook("r1", fmt.Sprintf("https://receiver-%d.example/", i))
			others.Go(func() { w.replay(other, posthorn.ReplayAll, func(of *posthorn.ReplayRange) { of.DryRun = true }) })
		}
		pass(time.Second)
		if _, err := w.CancelReplay(t.Context(), "r1", hook.ID, r.ID); err != nil {
			t.Fatal(err)
		}
		w.wantQuietSince(time.Now())
		others.Wait()
	})
}

// One is canceled of which a node that has not been asked about it has entries.
func TestCancelElsewhere(t *testing.T) {
	inWorld(t, posthorn.Config{KeepAllEvents: true, MaxInFlightPerWebhook: 32}, func(t *testing.T, w *world) {
		w.dispatchMany(600)
		hook := w.webhook("r1", good)
		b := w.another("B")
		w.answers(slowly)
		b.dispatchAs("other", 1000) // which lets it claim many at once
		pass(30 * time.Second)
		w.answers(func(request) sender.Outcome {
			pass(5 * time.Second)
			return ok200
		})
		w.tamper(func(_ context.Context, call string, do func() error) error {
			if call == "Claim" {
				return errKilled
			}
			return do()
		})
		r := w.replay(hook, posthorn.ReplayMissed, nil)
		pass(3500 * time.Millisecond)
		if _, err := w.CancelReplay(t.Context(), "r1", hook.ID, r.ID); err != nil {
			t.Fatal(err)
		}
		w.wantQuietSince(time.Now())
	})
}

// wantQuietSince waits until no more is sent to the good webhook, which is to be so a second after a replay was canceled.
func (w *world) wantQuietSince(canceled time.Time) {
	w.t.Helper()
	pass(time.Minute)
	before, late := 0, 0
	for _, r := range w.seen(good) {
		switch after := r.at.Sub(canceled); {
		case after > 1100*time.Millisecond:
			late++
		case after < 0:
			before++
		}
	}
	if before == 0 || late > 0 {
		w.t.Errorf("%d requests were made before, and %d more than a second after it was canceled", before, late)
	}
}

// That one was canceled says nothing about its receiver.
func TestCancelKeepsStanding(t *testing.T) {
	cfg := posthorn.Config{KeepAllEvents: true, MaxInFlightPerWebhook: 16, RetryPolicy: new(posthorn.RetryPolicy)}
	inWorld(t, cfg, func(t *testing.T, w *world) {
		hook := w.webhook("r1", good)
		w.answers(func(request) sender.Outcome {
			pass(20 * time.Millisecond)
			return sender.Outcome{Status: 500}
		})
		w.dispatchMany(500)
		pass(time.Minute)
		r := w.replay(hook, posthorn.ReplayAll, nil)
		pass(500 * time.Millisecond)
		failures := w.Failures(hook.Seq)
		if _, err := w.CancelReplay(t.Context(), "r1", hook.ID, r.ID); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		if got := w.Failures(hook.Seq); failures < 500 || got < failures {
			t.Errorf("%d attempts have failed in a row, and %d once it was canceled", failures, got)
		}
	})
}
