package main

import (
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// gauge is how many requests a receiver has at a time.
type gauge struct {
	mu        sync.Mutex
	now, most int
}

// okAfter answers a request after a while.
func (g *gauge) okAfter(takes time.Duration, r *wireRequest) wireAnswer {
	return func(conn net.Conn, ended <-chan struct{}) bool {
		g.mu.Lock()
		g.now++
		g.most = max(g.most, g.now)
		g.mu.Unlock()
		timer := time.NewTimer(takes)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ended:
		}
		g.mu.Lock()
		g.now-- // before the answer, which makes room for the next
		g.mu.Unlock()
		return always(http.StatusOK)(r)(conn, ended)
	}
}

func (g *gauge) peak() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.most
}

// A webhook's limits hold at the receiver, for requests that take their time, and everything arrives.
func TestFlowAtTheReceiver(t *testing.T) {
	t.Parallel()
	var narrow gauge
	receiver := newReceiver(t, func(r *wireRequest) wireAnswer {
		if !strings.HasPrefix(r.target(), "/narrow") {
			return always(http.StatusOK)(r)
		}
		return narrow.okAfter(20*time.Millisecond, r)
	})
	c := in(t, startContract(t))
	create := func(path, name string, n int) string {
		t.Helper()
		body := asJSON(map[string]any{"url": receiver.URL + path, "events": []string{"push"}, name: n})
		return read[struct{ WebhookID string }](c, c.ask(http.StatusCreated, "POST", "/webhooks", body)).WebhookID
	}
	const events, perSecond = 40, 20
	hooks := []string{create("/narrow", "maxInFlight", 2), create("/paced", "maxPerSecond", perSecond)}
	began := time.Now()
	for range events {
		c.dispatch("push", `{}`, len(hooks))
	}
	for _, hook := range hooks {
		for _, d := range c.awaitLog(hook, events) {
			if !d.success() || d.Attempt != 1 {
				t.Errorf("%s: attempt %d, %d %q", d.URL, d.Attempt, d.status(), d.body())
			}
		}
	}
	if most := narrow.peak(); most > 2 {
		t.Errorf("%d requests at a time, at most 2 were asked for", most)
	}
	var last time.Time
	for _, r := range receiver.got() {
		if strings.HasPrefix(r.target(), "/paced") && r.At.After(last) {
			last = r.At
		}
	}
	// The first starts after began, and the others not sooner than they may: noise only makes this longer.
	if least := (events - 1) * time.Second / perSecond; last.Sub(began) < least {
		t.Errorf("%d requests at %d in a second took %v, less than %v", events, perSecond, last.Sub(began), least)
	}
}

// A receiver that is gone for good is not asked again, and it is told why.
func TestGoneAtTheReceiver(t *testing.T) {
	t.Parallel()
	receiver := newReceiver(t, func(r *wireRequest) wireAnswer { return always(http.StatusGone)(r) })
	s := startContract(t)
	c := in(t, s)
	hook := c.hook(receiver.URL, "push", "")
	c.dispatch("push", `{}`, 1)
	if row := c.awaitLog(hook, 1)[0]; row.status() != http.StatusGone || row.NextAttemptAt != nil {
		t.Errorf("it is logged as %+v", row)
	}
	type shown struct {
		Active         bool
		DisabledReason string
	}
	get := func() shown { return read[shown](c, c.ask(http.StatusOK, "GET", "/webhooks/"+hook, "")) }
	eventually(t, func() string {
		if w := get(); w.Active || !strings.Contains(w.DisabledReason, "410") {
			return "it is not disabled"
		}
		return ""
	})
	c.dispatch("push", `{}`, 0)
	if _, err := s.process.await(regexp.MustCompile("disabled a webhook")); err != nil {
		t.Error("the log doesn't tell:", err)
	}
	c.ask(http.StatusOK, "PATCH", "/webhooks/"+hook, `{"active":true}`)
	if w := get(); !w.Active || w.DisabledReason != "" {
		t.Errorf("after it was made active: %+v", w)
	}
}
