package posthorn_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musehub/posthorn"
)

// polledWebhook is a webhook of r1 whose receiver asks for its events.
func (w *world) polledWebhook() posthorn.Webhook {
	w.t.Helper()
	hook, err := w.CreateWebhook(w.t.Context(), posthorn.NewWebhook{RepoID: "r1", Events: []string{"push"}, Options: posthorn.Options{Polled: true}})
	if err != nil {
		w.t.Fatal(err)
	}
	return hook
}

// poll returns the ids of the events that a poll returns, and its cursor.
func (w *world) poll(hook posthorn.Webhook, cursor string, wait time.Duration) (ids, next string) {
	w.t.Helper()
	got, err := w.Poll(w.t.Context(), "r1", hook.ID, posthorn.PollQuery{Cursor: cursor, Limit: 3, Wait: wait})
	if err != nil {
		w.t.Fatal(err)
	}
	var list []string
	for _, e := range got.Events {
		list = append(list, e.ID)
	}
	return strings.Join(list, " "), got.Cursor
}

// What is polled comes until it is acknowledged, whatever crashes, and from any node.
func TestPoll(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook := w.polledWebhook()
		w.webhook("r1", good)
		for i := range 5 {
			w.dispatch("r1", fmt.Sprint("e", i))
		}
		pass(time.Minute)
		if len(w.seen("")) != 5 {
			t.Errorf("%d requests were made, of which 5 to the other webhook", len(w.seen("")))
		}
		expect := func(cursor, want string) string {
			t.Helper()
			got, next := w.poll(hook, cursor, 0)
			if got != want || (next == "") != (got == "") {
				t.Fatalf("got %q, want %q; the cursor is %q", got, want, next)
			}
			return next
		}
		expect("", "e0 e1 e2")
		first := expect("", "e0 e1 e2")
		if len(w.deliveries(hook)) != 0 {
			t.Error("what is not acknowledged counts as delivered")
		}
		explained, _, err := w.Explain(t.Context(), "r1", "e0", hook.ID)
		if err != nil || explained[0].State != posthorn.EventWaiting || !strings.Contains(explained[0].Reason, "acknowledge") {
			t.Errorf("explained as %+v, %v", explained, err)
		}
		second := expect(first, "e3 e4")
		expect(first, "e3 e4") // once more is as good
		w.crash()
		w.start()
		expect("", "e3 e4")
		w = w.another("B")
		expect(second, "")
		log := w.deliveries(hook)
		if len(log) != 5 || !log[0].Success || log[0].EventID != "e4" || log[0].Trigger != posthorn.TriggerAutomatic || log[0].ResponseBody != "acknowledged" {
			t.Fatalf("the log has %+v", log)
		}
		explained, _, err = w.Explain(t.Context(), "r1", "e0", hook.ID)
		if err != nil || explained[0].State != posthorn.EventDelivered {
			t.Errorf("explained as %+v, %v", explained, err)
		}

		again, err := w.Redeliver(t.Context(), "r1", hook.ID, log[4].ID)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Ping(t.Context(), "r1", hook.ID); err != nil {
			t.Fatal(err)
		}
		got, err := w.Poll(t.Context(), "r1", hook.ID, posthorn.PollQuery{Limit: 10})
		if err != nil || len(got.Events) != 2 || got.Events[0].ID != "e0" || got.Events[0].Trigger != posthorn.TriggerRedelivery ||
			got.Events[0].DeliveryID != again.DeliveryID || got.Events[1].Type != posthorn.EventPing {
			t.Fatalf("got %+v, %v", got, err)
		}
		expect(got.Cursor, "")
		if last, err := again.Wait(t.Context()); err != nil || !last.Success {
			t.Errorf("the redelivery ended with %+v, %v", last, err)
		}
	})
}

// A poll waits for an event: of this node, of another, and not for ever.
func TestPollWait(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook, other := w.polledWebhook(), w.another("B")
		waited := func(dispatch func(), most time.Duration) {
			t.Helper()
			began := time.Now()
			go func() {
				pass(10 * time.Second)
				dispatch()
			}()
			got, cursor := w.poll(hook, "", 20*time.Second)
			if took := time.Since(began) - 10*time.Second; (got == "") != (most > 5*time.Second) || took < 0 || took > most {
				t.Errorf("got %q after %v", got, took)
			}
			w.poll(hook, cursor, 0)
		}
		waited(func() { w.dispatch("r1", "here") }, 500*time.Millisecond)
		waited(func() { other.dispatch("r1", "there") }, 2*time.Second)
		waited(func() {}, 11*time.Second)

		ctx, cancel := context.WithCancel(t.Context())
		go func() { pass(time.Second); cancel() }()
		if _, err := w.Poll(ctx, "r1", hook.ID, posthorn.PollQuery{Limit: 1, Wait: time.Minute}); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		go func() { pass(time.Second); w.end() }()
		began := time.Now()
		if got, _ := w.poll(hook, "", time.Minute); got != "" || time.Since(began) > 2*time.Second {
			t.Errorf("while it stops: %q after %v", got, time.Since(began))
		}
	})
}

// What a host's transaction has accepted is polled once its notification comes, and not only when a poll looks again.
func TestPollNotified(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook := w.polledWebhook()
		arrived := make(chan string, 1)
		go func() {
			got, _ := w.poll(hook, "", time.Minute)
			arrived <- got
		}()
		synctest.Wait() // it has looked, and no time passes in which it could look again
		w.dispatchFree("r1", "e")
		w.Notified(posthorn.Notification{Due: []int64{hook.Seq}})
		synctest.Wait()
		select {
		case got := <-arrived:
			if got != "e" {
				t.Errorf("got %q", got)
			}
		default:
			t.Error("the poll still waits")
		}
	})
}

// Acknowledging holds up no end, however the store is.
func TestPollStops(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook := w.polledWebhook()
		w.dispatch("r1", "e")
		_, cursor := w.poll(hook, "", 0)
		w.tamper(failing("Commit"))
		answers := make(chan error, 1)
		go func() {
			_, err := w.Poll(context.WithoutCancel(t.Context()), "r1", hook.ID, posthorn.PollQuery{Cursor: cursor, Limit: 1})
			answers <- err
		}()
		pass(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		began := time.Now()
		w.Stop(ctx)
		if took := time.Since(began); took > time.Minute {
			t.Errorf("it took %v to stop", took)
		}
		if err := <-answers; posthorn.ErrorCode(err) != posthorn.CodeUnavailable {
			t.Errorf("the poll ended with %v", err)
		}
	})
}

// While the store can't be written, those who acknowledge get an answer in the end, and however many they are, there is no more to be
// recorded for that. It is recorded once.
func TestPollUnwritable(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook := w.polledWebhook()
		for i := range 3 {
			w.dispatch("r1", fmt.Sprint("e", i))
		}
		_, cursor := w.poll(hook, "", 0)
		w.tamper(failing("Commit"))
		const polls = 50
		answers := make(chan error, polls)
		for range polls {
			go func() {
				_, err := w.Poll(t.Context(), "r1", hook.ID, posthorn.PollQuery{Cursor: cursor, Limit: 3})
				answers <- err
			}()
			pass(100 * time.Millisecond)
		}
		pass(posthorn.StoreTimeout)
		synctest.Wait()
		if len(answers) != polls {
			t.Fatalf("%d of %d polls have an answer", len(answers), polls)
		}
		for range polls {
			if err := <-answers; posthorn.ErrorCode(err) != posthorn.CodeUnavailable {
				t.Fatal(err)
			}
		}
		if n := w.Waiting(); n != 3 {
			t.Errorf("%d results wait for 3 events", n)
		}
		w.tamper(nil)
		if got, _ := w.poll(hook, cursor, 0); got != "" {
			t.Errorf("acknowledged in the end, but got %q", got)
		}
		synctest.Wait()
		w.mu.Lock()
		defer w.mu.Unlock()
		if n := len(w.deliveries(hook)); n != 3 || len(w.recorded) != 3 {
			t.Errorf("the log has %d deliveries, of which %d were told", n, len(w.recorded))
		}
	})
}

// A poll that waits returns nothing once its webhook was made inactive.
func TestPollInactiveMeanwhile(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook, err := w.CreateWebhook(t.Context(), posthorn.NewWebhook{
			RepoID: "r1", Events: []string{"push"}, Options: posthorn.Options{Polled: true, KeepWhileInactive: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			pass(time.Second)
			w.update(hook, posthorn.WebhookPatch{Active: new(false)})
			w.dispatch("r1", "e")
		}()
		got, err := w.Poll(t.Context(), "r1", hook.ID, posthorn.PollQuery{Limit: 1, Wait: time.Minute})
		if posthorn.ErrorCode(err) != posthorn.CodeConflict || len(got.Events) != 0 {
			t.Errorf("got %+v, %v", got, err)
		}
	})
}

// Polling asks for what is wrong in words, and so does making a webhook that is polled.
func TestPollRefused(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook, other, pushed := w.polledWebhook(), w.polledWebhook(), w.webhook("r1", good)
		w.dispatch("r1", "e")
		_, cursor := w.poll(other, "", 0)
		for name, test := range map[string]struct {
			hook string
			q    posthorn.PollQuery
			code posthorn.Code
		}{
			"not polled":          {pushed.ID, posthorn.PollQuery{Limit: 1}, posthorn.CodeConflict},
			"not there":           {"nope", posthorn.PollQuery{Limit: 1}, posthorn.CodeNotFound},
			"no limit":            {hook.ID, posthorn.PollQuery{}, posthorn.CodeInvalid},
			"too many":            {hook.ID, posthorn.PollQuery{Limit: 201}, posthorn.CodeInvalid},
			"too long":            {hook.ID, posthorn.PollQuery{Limit: 1, Wait: time.Hour}, posthorn.CodeInvalid},
			"no cursor":           {hook.ID, posthorn.PollQuery{Limit: 1, Cursor: "x!"}, posthorn.CodeInvalid},
			"an empty cursor":     {hook.ID, posthorn.PollQuery{Limit: 1, Cursor: "AQ"}, posthorn.CodeInvalid},
			"a cursor cut short":  {other.ID, posthorn.PollQuery{Limit: 1, Cursor: cursor[:len(cursor)-2]}, posthorn.CodeInvalid},
			"a cursor of another": {hook.ID, posthorn.PollQuery{Limit: 1, Cursor: cursor}, posthorn.CodeInvalid},
		} {
			if _, err := w.Poll(t.Context(), "r1", test.hook, test.q); posthorn.ErrorCode(err) != test.code {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, posthorn.WebhookPatch{Active: new(false)}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Poll(t.Context(), "r1", hook.ID, posthorn.PollQuery{Limit: 1}); posthorn.ErrorCode(err) != posthorn.CodeConflict {
			t.Errorf("inactive: %v", err)
		}
		for name, n := range map[string]posthorn.NewWebhook{
			"with a URL":      {URL: good, Options: posthorn.Options{Polled: true}},
			"with a secret":   {Secret: "s3cret", Options: posthorn.Options{Polled: true}},
			"with an order":   {Options: posthorn.Options{Polled: true, Ordering: posthorn.OrderingStrict}},
			"without a URL":   {},
			"with a header":   {Options: posthorn.Options{Polled: true, Headers: map[string]string{"A": "b"}}},
			"with bad filter": {Options: posthorn.Options{Polled: true, Filter: "("}},
		} {
			n.RepoID, n.Events = "r1", []string{"push"}
			if _, err := w.CreateWebhook(t.Context(), n); posthorn.ErrorCode(err) != posthorn.CodeInvalid {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, posthorn.WebhookPatch{URL: new(good)}); posthorn.ErrorCode(err) != posthorn.CodeInvalid {
			t.Errorf("given a URL: %v", err)
		}
		if _, err := w.RotateSecret(t.Context(), "r1", hook.ID, "s3cret", 0); posthorn.ErrorCode(err) != posthorn.CodeInvalid {
			t.Errorf("given a secret: %v", err)
		}
	})
}
