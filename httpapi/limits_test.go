package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musehub/posthorn"
)

// Rates, at times that are said and not waited for.
func TestEventRates(t *testing.T) {
	start := time.Now()
	l := eventRates{perToken: 10, perRepo: 4}
	take := func(at time.Duration, token, repo string, n int, retryAfter string) {
		t.Helper()
		err := l.take(start.Add(at), token, repo, n)
		p, refused := errors.AsType[*problem](err)
		switch {
		case retryAfter == "" && err != nil:
			t.Errorf("at %v: %v", at, err)
		case retryAfter != "" && (!refused || p.Status != http.StatusTooManyRequests || p.header.Get("Retry-After") != retryAfter):
			t.Errorf("at %v: %v, want a 429 with Retry-After %s", at, err, retryAfter)
		}
	}
	for range 4 {
		take(0, "a", "r1", 1, "")
	}
	take(0, "a", "r1", 1, "1") // the repo has had its four
	take(0, "b", "r1", 1, "1")
	for range 4 {
		take(0, "a", "r2", 1, "")
	}
	take(0, "a", "r3", 2, "")
	take(0, "a", "r4", 1, "1") // the token has had its ten, though the repo has had none
	take(0, "b", "r4", 4, "")
	take(250*time.Millisecond, "b", "r1", 1, "")
	take(250*time.Millisecond, "b", "r1", 1, "1")

	// A batch of more than a second's worth passes, and is made up for.
	take(time.Minute, "c", "r5", 100, "")
	take(time.Minute, "c", "r6", 1, "10") // 90 are borrowed, and one is to be there
	take(time.Minute, "d", "r5", 1, "25") // 96
	take(time.Minute+24*time.Second, "d", "r5", 1, "1")
	take(time.Minute+25*time.Second, "d", "r5", 1, "")

	// What is given back is as if it had not been taken, however much it was, and never more than that.
	take(2*time.Minute, "f", "r7", 100, "")
	take(2*time.Minute, "g", "r7", 1, "25")
	l.give(start.Add(2*time.Minute), "f", "r7", 98)
	take(2*time.Minute, "f", "r7", 2, "")
	take(2*time.Minute, "f", "r7", 1, "1")
	l.give(start.Add(3*time.Minute), "f", "r7", 2)
	take(3*time.Minute, "f", "r7", 4, "")
	take(3*time.Minute, "f", "r7", 1, "1")

	// Names cost no memory once they are idle.
	for i := range 10 * minSweep {
		take(time.Hour+time.Duration(i)*time.Millisecond, "e"+fmt.Sprint(i), fmt.Sprint(i), 1, "")
	}
	if n := len(l.buckets); n > 4*minSweep {
		t.Errorf("there are %d buckets", n)
	}

	unlimited := eventRates{}
	for range 100 {
		if err := unlimited.take(start, "a", "r1", 1000); err != nil || len(unlimited.buckets) != 0 {
			t.Fatalf("without limits: %v, %d buckets", err, len(unlimited.buckets))
		}
	}
}

func TestEventRatesOverHTTP(t *testing.T) {
	inBubble(t, func(t *testing.T, s *server, _ *tampered, connect func() net.Conn) { // where nothing is made up for while the machine is busy
		transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return connect(), nil }}
		defer transport.CloseIdleConnections()
		api := &testAPI{server: s, t: t, url: "http://api", client: &http.Client{Transport: transport}}
		api.rates.perRepo = 3
		// What is not accepted, or was before, costs nothing.
		for range 10 {
			api.do("POST", "/api/v1/repos/r1/events", `{"eventType":"nonsense","payload":1}`).problem(http.StatusUnprocessableEntity, "", "eventType")
		}
		const batch = `{"events":[{"eventType":"push","payload":1},{"eventType":"push","payload":2}]}`
		api.do("POST", "/api/v1/repos/r1/events:batch", batch).ok(http.StatusAccepted)
		api.do("POST", "/api/v1/repos/r1/events:batch", batch).ok(http.StatusAccepted) // one was left, and one is borrowed
		const event = `{"eventType":"push","payload":1}`
		for path, body := range map[string]string{"/api/v1/repos/r1/events:batch": batch, "/api/v1/repos/r1/events": event} {
			a := api.do("POST", path, body)
			a.problem(http.StatusTooManyRequests, "--max-events-per-second-per-repo", "")
			if a.header.Get("Retry-After") != "1" {
				t.Errorf("Retry-After %q", a.header.Get("Retry-After"))
			}
		}
		api.do("POST", "/api/v1/repos/r2/events", event).ok(http.StatusAccepted)
		api.do("GET", "/api/v1/repos/r1/webhooks", "").ok(http.StatusOK)
	})
}

// Events count from the moment on that they are about to be accepted: those that come meanwhile don't get past the limit.
func TestEventRatesAtOnce(t *testing.T) {
	store := &tampered{Store: openStore(t)}
	api := newTestAPIOver(t, store, posthorn.Config{})
	if err := api.dispatcher.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	api.webhook(`{"polled":true,"events":["push"]}`)
	api.rates.perRepo = 1
	committing, release := make(chan struct{}), make(chan struct{})
	store.onCommit(func(do commit) ([]posthorn.Acceptance, error) {
		close(committing)
		<-release
		return do()
	})
	batch := strings.Repeat(`{"eventType":"push","payload":1},`, 999) + `{"eventType":"push","payload":1}`
	posted := make(chan int, 1)
	go func() { posted <- api.do("POST", "/api/v1/repos/r1/events:batch", `{"events":[`+batch+`]}`).status }()
	<-committing
	// No webhook wants this one, so it doesn't wait for the commit.
	api.do("POST", "/api/v1/repos/r1/events", `{"eventType":"issue","payload":1}`).
		problem(http.StatusTooManyRequests, "--max-events-per-second-per-repo", "")
	close(release)
	if status := <-posted; status != http.StatusAccepted {
		t.Errorf("the batch was answered %d", status)
	}
}

// Of who hangs up, nobody knows what was accepted, so it counts.
func TestEventRatesHungUp(t *testing.T) {
	s := &server{rates: eventRates{perRepo: 1}}
	ctx, hangUp := context.WithCancel(t.Context())
	for range 2 {
		settle, err := s.count(ctx, "r1", 100)
		if err != nil {
			t.Fatal(err)
		}
		settle(0)
	}
	settle, err := s.count(ctx, "r1", 100)
	if err != nil {
		t.Fatal(err)
	}
	hangUp()
	settle(0)
	if _, err := s.count(t.Context(), "r1", 1); err == nil {
		t.Error("hanging up costs nothing")
	}
}

// Pings and tests are events, too.
func TestEventRatesByHand(t *testing.T) {
	for _, path := range []string{"/ping", "/test"} {
		api := startAPI(t, posthorn.Config{})
		api.rates.perRepo = 1
		path = api.webhook(`{"url":"https://example.com/","events":["push"]}`) + path
		began := time.Now()
		api.do("POST", path, `{"eventType":"push","payload":1}`).ok(http.StatusAccepted)
		if left := api.rates.bucket(began, rateKey{"r1", true}, 1).TokensAt(began); left != 0 {
			t.Errorf("%s leaves %v of one event", path, left)
		}
		api.rates.give(time.Now(), "", "r1", -100) // as if so many were posted
		api.do("POST", path, `{"eventType":"push","payload":1}`).problem(http.StatusTooManyRequests, "--max-events-per-second-per-repo", "")
	}
}

// When as many requests are under way as may be, others are told so, and whoever asks for the server's health is not.
func TestMaxRequests(t *testing.T) {
	api := startAPI(t, posthorn.Config{})
	api.slots, api.waiting = make(slots, 2), make(slots, 1)
	const path = "/api/v1/repos/r1/webhooks"
	for range 5 { // they come back
		api.do("GET", path, "").ok(http.StatusOK)
	}
	api.slots <- struct{}{}
	api.do("GET", path, "").ok(http.StatusOK)
	api.slots <- struct{}{}
	a := api.do("GET", path, "")
	a.problem(http.StatusServiceUnavailable, "2 requests are under way here", "")
	if a.header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After %q", a.header.Get("Retry-After"))
	}
	for _, free := range []string{"/healthz", "/readyz", "/docs"} {
		if a := api.do("GET", free, ""); a.status != http.StatusOK {
			t.Errorf("%s: %d", free, a.status)
		}
	}
	// Redeliveries are counted apart.
	redeliver := path + "/x/deliveries/x/redeliver"
	api.do("POST", redeliver, "").problem(http.StatusNotFound, "", "")
	api.waiting <- struct{}{}
	<-api.slots
	api.do("POST", redeliver, "").problem(http.StatusServiceUnavailable, "under way", "")
	api.do("GET", path, "").ok(http.StatusOK)
}

// Nobody alone takes up all that there is for requests.
func TestSharesOfRequests(t *testing.T) {
	s := shares{most: 2}
	for range 3 {
		for _, name := range []string{"a", "a", "b"} {
			if err := s.take(name); err != nil {
				t.Fatal(err)
			}
		}
		if p, ok := errors.AsType[*problem](s.take("a")); !ok || p.Status != http.StatusTooManyRequests || p.header.Get("Retry-After") != "1" {
			t.Errorf("a third: %+v", p)
		}
		s.give("a")
		s.give("a")
		s.give("b")
	}
	if len(s.byName) != 0 {
		t.Errorf("who has none under way is remembered: %v", s.byName)
	}
	api := newTestAPI(t, posthorn.Config{})
	api.shares.most = 1
	for range 3 { // they come back, also of what is refused
		api.do("GET", "/api/v1/repos/r1/webhooks", "").ok(http.StatusOK)
		api.do("GET", "/api/v1/repos/r1/webhooks/x", "").problem(http.StatusNotFound, "", "")
		api.do("POST", "/api/v1/repos/r1/events", "{").problem(http.StatusBadRequest, "", "")
	}
	if err := api.shares.take("admin token"); err != nil {
		t.Fatal(err)
	}
	for method, path := range map[string]string{"GET": "/api/v1/repos/r1/webhooks", "POST": "/api/v1/repos/r1/events"} {
		api.do(method, path, "{}").problem(http.StatusTooManyRequests, "half of what may be", "")
	}
}

// Large bodies share a bounded memory, whether they say their size or not.
func TestMemoryOfBodies(t *testing.T) {
	api := startAPI(t, posthorn.Config{MaxPayload: 1 << 20})
	api.memory.most = 1 << 20
	large := `{"eventType":"push","payload":"` + strings.Repeat("x", 100_000) + `"}`
	post := func() answer { return api.do("POST", "/api/v1/repos/r1/events", large) }
	post().ok(http.StatusAccepted)
	if err := api.memory.take("someone", 1<<20-50_000); err != nil {
		t.Fatal(err)
	}
	a := post()
	a.problem(http.StatusServiceUnavailable, "--max-api-memory", "")
	if a.header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After %q", a.header.Get("Retry-After"))
	}
	api.do("POST", "/api/v1/repos/r1/events", `{"eventType":"push","payload":1}`).ok(http.StatusAccepted) // small ones are in nobody's way
	api.memory.give("someone", 1<<20-50_000)
	post().ok(http.StatusAccepted)
	if n := api.memory.inUse(); n != 0 {
		t.Errorf("%d bytes are not given back", n)
	}
}

// Nobody alone takes up all of the memory.
func TestSharesOfMemory(t *testing.T) {
	m := memory{most: 100}
	for _, step := range []struct {
		name   string
		size   int64
		status int
	}{
		{"a", 60, 0}, {"a", 1, 429}, {"b", 30, 0}, {"b", 10, 0}, {"b", 1, 503}, {"c", 1, 503},
	} {
		err := m.take(step.name, step.size)
		if p, ok := errors.AsType[*problem](err); step.status == 0 && err != nil || step.status != 0 && (!ok || p.Status != step.status || p.header.Get("Retry-After") != "1") {
			t.Errorf("%d for %s: %v, want %d", step.size, step.name, err, step.status)
		}
	}
	m.give("a", 60)
	m.give("b", 30)
	if err := m.take("b", 40); err != nil {
		t.Error(err)
	}
	m.give("b", 50)
	if m.used != 0 || len(m.byName) != 0 {
		t.Errorf("%d bytes are not given back: %v", m.used, m.byName)
	}
	if err := m.take("a", 1000); err != nil {
		t.Errorf("a single one that is large: %v", err)
	}
}

// Answers with payloads share it with them, each by what it takes; small ones are free.
func TestMemoryOfAnswers(t *testing.T) {
	api := startAPI(t, posthorn.Config{})
	large := strings.Repeat("x", 100_000)
	webhooks := map[string]string{}
	for repo, payload := range map[string]string{"large": large, "small": "x"} {
		for _, receiving := range []string{`"polled":true`, `"url":"` + receiver(t, func(http.ResponseWriter, *http.Request) {}) + `"`} {
			w := api.do("POST", "/api/v1/repos/"+repo+"/webhooks", `{`+receiving+`,"events":["push"]}`).ok(http.StatusCreated)
			webhooks[repo+receiving[:8]] = "/webhooks/" + w["webhookId"].(string)
		}
		api.do("POST", "/api/v1/repos/"+repo+"/events", `{"eventType":"push","eventId":"e","payload":"`+payload+`"}`).ok(http.StatusAccepted)
		webhooks[repo+"delivery"] = (<-api.made).ID
	}
	api.memory.most = 100 << 20
	ask := func(repo string, refused bool) {
		t.Helper()
		sent := webhooks[repo+`"url":"h`] + "/deliveries"
		for _, path := range []string{"/events", "/events/e", sent, sent + "/" + webhooks[repo+"delivery"], webhooks[repo+`"polled"`] + "/poll"} {
			a := api.do("GET", "/api/v1/repos/"+repo+path, "")
			if !refused {
				a.ok(http.StatusOK)
				continue
			}
			a.problem(http.StatusServiceUnavailable, "--max-api-memory", "")
			if a.header.Get("Retry-After") != "1" {
				t.Errorf("%s: Retry-After %q", path, a.header.Get("Retry-After"))
			}
		}
	}
	test := func() answer { return api.do("POST", "/api/v1/repos/small/filter-test", `{"filter":"true"}`) }
	for _, step := range []struct {
		free                   int64
		refused, filterRefused bool
	}{
		{300_000, true, true}, {800_100, false, true}, {16 << 20, false, false}, {300_000, true, true},
	} {
		if err := api.memory.take("someone", api.memory.most-step.free); err != nil {
			t.Fatal(err)
		}
		ask("large", step.refused)
		ask("small", false)
		if a := test(); step.filterRefused {
			a.problem(http.StatusServiceUnavailable, "--max-api-memory", "")
		} else {
			a.ok(http.StatusOK)
		}
		api.memory.give("someone", api.memory.most-step.free)
		if n := api.memory.inUse(); n != 0 {
			t.Fatalf("%d bytes are not given back", n)
		}
	}
}

// An answer holds its memory until its client has it or is cut off, and a poll none while it waits.
func TestMemoryOfUnreadAnswers(t *testing.T) {
	inBubble(t, func(t *testing.T, api *server, _ *tampered, connect func() net.Conn) {
		hook, err := api.dispatcher.CreateWebhook(t.Context(), posthorn.NewWebhook{RepoID: "r1", Events: []string{"push"}, Options: posthorn.Options{Polled: true}})
		if err != nil {
			t.Fatal(err)
		}
		ask := func(path string) net.Conn {
			client := connect()
			fmt.Fprintf(client, "GET /api/v1/repos/r1%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer %s\r\n\r\n", path, token)
			synctest.Wait()
			return client
		}
		payload := json.RawMessage(`"` + strings.Repeat("x", 1<<16) + `"`)
		held := func(what string, answers int) {
			t.Helper()
			if n, want := api.memory.inUse(), int64(answers*payloadCopies*len(payload)); n != want {
				t.Errorf("%s: %d bytes are held, want %d", what, n, want)
			}
		}
		defer ask("/webhooks/" + hook.ID + "/poll?wait=60s").Close()
		held("while a poll waits", 0)
		if _, err := api.dispatcher.Dispatch(t.Context(), posthorn.Event{RepoID: "r1", Type: "push", Payload: payload}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		held("when it is answered", 1)
		defer ask("/events").Close()
		read := ask("/events")
		held("with two listings", 3)
		if _, err := io.Copy(io.Discard, read); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		held("when one of these was read", 2)
		time.Sleep(11 * time.Second)
		synctest.Wait()
		held("when the other was cut off", 1)
		time.Sleep(pollTime)
		synctest.Wait()
		held("when the poll was", 0)
	})
}

func TestMaxWebhooksPerRepo(t *testing.T) {
	api := startAPI(t, posthorn.Config{MaxWebhooksPerRepo: 3})
	const body = `{"url":"https://example.com/","events":["push"]}`
	results := make(chan int, 10)
	for range cap(results) {
		go func() { results <- api.do("POST", "/api/v1/repos/r1/webhooks", body).status }()
	}
	counts := map[int]int{}
	for range cap(results) {
		counts[<-results]++
	}
	if counts[http.StatusCreated] != 3 || counts[http.StatusConflict] != 7 {
		t.Errorf("ten at a time were answered %v", counts)
	}
	a := api.do("POST", "/api/v1/repos/r1/webhooks", body)
	a.problem(http.StatusConflict, "--max-webhooks-per-repo", "")
	api.do("POST", "/api/v1/repos/r2/webhooks", body).ok(http.StatusCreated)
	first := api.do("GET", "/api/v1/repos/r1/webhooks", "").ok(http.StatusOK)["webhooks"].([]any)[0].(map[string]any)["webhookId"].(string)
	api.do("DELETE", "/api/v1/repos/r1/webhooks/"+first, "").ok(http.StatusNoContent)
	api.do("POST", "/api/v1/repos/r1/webhooks", body).ok(http.StatusCreated)
}

func TestNewRefusesLimits(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	for name, cfg := range map[string]Config{
		"MaxRequests": {MaxRequests: -1}, "MaxMemory": {MaxMemory: -1}, "MaxEventsPerSecondPerToken": {MaxEventsPerSecondPerToken: -1},
		"MaxEventsPerSecondPerRepo": {MaxEventsPerSecondPerRepo: -1},
	} {
		cfg.Token = token
		if _, err := New(api.dispatcher, cfg); posthorn.ErrorCode(err) != posthorn.CodeInvalid || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func (m *memory) inUse() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used
}
