package main

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

// Case 34, a crash while a client waits for a redelivery: its attempt is made again, under the same delivery ID.
func TestCrashDuringRedelivery(t *testing.T) {
	var hanging atomic.Bool
	receiver := newReceiver(t, func(*wireRequest) wireAnswer {
		if hanging.Load() {
			return answerHang("")
		}
		return answerStatus(http.StatusOK)
	})
	s := startContract(t)
	c := in(t, s)
	hook := c.hook(receiver.URL, "push", "")
	c.dispatch("push", `{}`, 1)
	original := c.awaitLog(hook, 1)[0]

	hanging.Store(true)
	hungUp := make(chan error, 1)
	go func() {
		path := c.path("/webhooks/" + hook + "/deliveries/" + original.DeliveryID + "/redeliver")
		answer, err := s.send(t.Context(), "POST", path, strings.NewReader(""))
		if err == nil {
			t.Errorf("a redelivery that has no end was answered with %d: %s", answer.Status, answer.Body)
		}
		hungUp <- err
	}()
	cutOff := receiver.await(2)[1]
	s.kill()
	<-hungUp
	hanging.Store(false)

	s = startContract(t, "--data", s.data)
	again := receiver.await(3)[2]
	if again.event() != original.EventID || again.delivery() != cutOff.delivery() || again.delivery() == original.DeliveryID {
		t.Errorf("after the restart came delivery %s of event %s, before it %s, and the original is %s of %s",
			again.delivery(), again.event(), cutOff.delivery(), original.DeliveryID, original.EventID)
	}
	rows := c.at(s).awaitLog(hook, 2)
	if d := rows[0]; d.DeliveryID != again.delivery() || d.Trigger != "redelivery" || !d.success() {
		t.Errorf("it is logged as %s: %d, %s", d.DeliveryID, d.status(), d.Trigger)
	}
	s.stop()
	if n := len(receiver.got()); n != 3 {
		t.Errorf("%d requests arrived, want 3", n)
	}
	checkDatabase(t, s.data)
}
