package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/musehub/posthorn/signature"
)

var crashSeed = flag.Uint64("crash.seed", 0, "seed of TestCrash; 0 takes another one each time")

// The server is killed again and again, at any moment, while publishers go on. What was acknowledged is delivered, what
// is sent twice can be recognised, and the database stays whole.
func TestCrash(t *testing.T) {
	seed := *crashSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("to repeat the same choices: -run TestCrash -crash.seed %d", seed)
	rounds := 100
	if testing.Short() {
		rounds = 10
	}
	useBuilt(t)
	c := newCrash(t, seed)
	defer c.receiver.Close() // before the test ends, which its handler reports to

	c.start()
	for _, h := range c.hooks {
		h.id = in(t, c.server).inRepo("r").hook(c.receiver.URL+"/"+h.name, strings.Join(h.types, ","), h.secret)
	}
	t.Cleanup(c.publishers.Wait) // they end with the test's context at the latest
	for p := range 6 {
		c.publishers.Go(func() { c.publish(p) })
	}
	for p := range 2 {
		c.publishers.Go(func() { c.publishBatches(p) })
	}
	for range rounds {
		c.killAtAnyMoment()
		c.where.set(nil) // not before the kill: the publishers are at work when it comes
		c.server.kill()  // waits for its end
		for c.rng.IntN(5) == 0 {
			c.killStarting()
		}
		c.start()
	}
	c.stopping.Store(true)
	c.publishers.Wait()
	t.Logf("%d events were acknowledged, after %d posts that failed; of %d such batches everything was there", len(c.events), c.broken.Load(), c.again.Load())

	eventually(t, c.missing)
	for _, h := range c.hooks {
		eventually(t, func() string { return c.unfinished(h) })
	}
	c.server.stop()
	c.check()
	checkDatabase(t, c.data)
}

// inRepo returns access to another repo.
func (c *contract) inRepo(repo string) *contract { return &contract{t: c.t, s: c.s, repo: repo} }

// crashHook is a webhook of the crash test. Its name is the path of its URL.
type crashHook struct {
	name    string
	types   []string
	secret  string
	failing int           // how many of a hundred requests get a 500
	abort   int           // how many of a hundred get no answer
	slow    time.Duration // the longest that an answer takes

	id       string
	verifier *signature.Verifier
	log      []loggedDelivery // at the end
}

func crashHooks() []*crashHook {
	return []*crashHook{
		{name: "steady", types: []string{"push", "issue"}, secret: "steady-secret"},
		{name: "flaky", types: []string{"*"}, failing: 15},
		{name: "slow", types: []string{"push"}, secret: "slow-secret", slow: 20 * time.Millisecond},
		{name: "broken", types: []string{"issue"}, failing: 5, abort: 10},
	}
}

func (h *crashHook) subscribes(eventType string) bool {
	return h.types[0] == "*" || slices.Contains(h.types, eventType)
}

// crash is the state of the crash test.
type crash struct {
	t        *testing.T
	rng      *rand.Rand // of the test's goroutine
	data     string
	hooks    []*crashHook
	receiver *httptest.Server
	server   *server
	where    *whereabouts

	publishers sync.WaitGroup
	stopping   atomic.Bool
	broken     atomic.Int64 // posts that failed, because the server was killed
	again      atomic.Int64 // batches that had been accepted before such a post failed
	answered   fuse         // burns with the first byte of each answer to a post
	arrived    fuse         // burns with each arrival

	mu       sync.Mutex
	events   map[string]crashEvent
	arrivals map[string]map[string]map[string]int // how often by webhook, event and delivery
}

type crashEvent struct{ eventType, payload string }

func newCrash(t *testing.T, seed uint64) *crash {
	c := &crash{
		t: t, rng: rand.New(rand.NewPCG(seed, 0)), data: memoryFolder(t), hooks: crashHooks(),
		where: newWhereabouts(), answered: fuse{blown: make(chan struct{}, 1)}, arrived: fuse{blown: make(chan struct{}, 1)},
		events: map[string]crashEvent{}, arrivals: map[string]map[string]map[string]int{},
	}
	mux := http.NewServeMux()
	for i, h := range c.hooks {
		c.arrivals[h.name] = map[string]map[string]int{}
		if h.secret != "" {
			var err error
			if h.verifier, err = signature.NewVerifier(h.secret); err != nil {
				t.Fatal(err)
			}
		}
		var mu sync.Mutex
		rng := rand.New(rand.NewPCG(seed, uint64(i+1)))
		mux.HandleFunc("POST /"+h.name, func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			dice, slow := rng.IntN(100), time.Duration(rng.Int64N(int64(h.slow)+1))
			mu.Unlock()
			c.receive(h, w, r, dice, slow)
		})
	}
	c.receiver = httptest.NewServer(mux)
	return c
}

// flags are those that all servers of the test have.
func (c *crash) flags() []string {
	return []string{"--data", c.data, "--timeout", "30s", "--allow-target", c.receiver.Listener.Addr().String()}
}

func (c *crash) start() {
	c.server = startServer(c.t, c.flags()...)
	c.where.set(c.server)
}

// killStarting starts a server and kills it before it can be ready, or just when it is.
func (c *crash) killStarting() {
	p, err := startProcess(serveCommand(c.t, c.flags()...))
	if err != nil {
		c.t.Fatal(err)
	}
	<-time.After(time.Duration(c.rng.Int64N(int64(100 * time.Millisecond))))
	_ = p.cmd.Process.Kill()
	<-p.exited
}

// fuse kills a server the moment that something has happened so many times.
type fuse struct {
	left   atomic.Int64
	server atomic.Pointer[server]
	blown  chan struct{}
}

func (f *fuse) burn() {
	if f.left.Add(-1) == 0 {
		_ = f.server.Load().cmd.Process.Kill()
		f.blown <- struct{}{}
	}
}

// killAtAnyMoment kills the server after a while, upon an answer, or upon an arrival.
func (c *crash) killAtAnyMoment() {
	var f *fuse
	switch c.rng.IntN(4) {
	case 0:
		<-time.After(time.Duration(c.rng.Int64N(int64(150 * time.Millisecond))))
		_ = c.server.cmd.Process.Kill()
		return
	case 1:
		f = &c.arrived
	default:
		f = &c.answered
	}
	f.server.Store(c.server)
	f.left.Store(1 + c.rng.Int64N(40))
	select {
	case <-f.blown:
	case <-time.After(patience):
		c.t.Fatal("the server that was started again doesn't get on")
	}
}

// publish posts events until it is to stop, each until it is acknowledged.
func (c *crash) publish(p int) {
	for n := 0; !c.stopping.Load(); n++ {
		id, e := c.event(fmt.Sprintf("p%d", p), n)
		want := receipt{EventID: id, Deliveries: c.wanting(e)}
		posted := c.post("/events", eventJSON(e.eventType, id, e.payload), func(body []byte) bool {
			var got receipt
			return json.Unmarshal(body, &got) == nil && got == want
		})
		if !posted {
			return
		}
	}
}

// publishBatches posts batches until it is to stop, each until it is acknowledged. What a kill left of one is all or nothing.
func (c *crash) publishBatches(p int) {
	const size = 20
	for n := 0; !c.stopping.Load(); n += size {
		var items []string
		var want []batchReceipt
		for i := range size {
			id, e := c.event(fmt.Sprintf("b%d", p), n+i)
			items = append(items, eventJSON(e.eventType, id, e.payload))
			want = append(want, batchReceipt{EventID: id, Deliveries: c.wanting(e)})
		}
		posted := c.post("/events:batch", `{"events":[`+strings.Join(items, ",")+`]}`, func(body []byte) bool {
			var got struct{ Events []batchReceipt }
			if err := json.Unmarshal(body, &got); err != nil || len(got.Events) != size {
				return false
			}
			again := got.Events[0].Duplicate
			for i := range want {
				want[i].Duplicate = again
			}
			if again {
				c.again.Add(1)
			}
			return slices.Equal(got.Events, want)
		})
		if !posted {
			return
		}
	}
}

// batchReceipt is the answer for one event of a batch.
type batchReceipt struct {
	EventID    string
	Deliveries int
	Duplicate  bool
}

// event makes the n-th event of a publisher.
func (c *crash) event(publisher string, n int) (id string, e crashEvent) {
	id = fmt.Sprintf("%s-%d", publisher, n)
	e = crashEvent{eventType: "push", payload: fmt.Sprintf(`{ "id":%q,  "n": %d.0}`, id, n)}
	if n%4 == 0 {
		e.eventType = "issue"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events[id] = e
	return id, e
}

// wanting is how many webhooks want an event.
func (c *crash) wanting(e crashEvent) (n int) {
	for _, h := range c.hooks {
		if h.subscribes(e.eventType) {
			n++
		}
	}
	return n
}

// post posts a body until it is acknowledged, with an answer that is right. An error is fine if the server has been killed, and
// only then.
func (c *crash) post(path, body string, right func(answer []byte) bool) bool {
	ctx := httptrace.WithClientTrace(c.t.Context(), &httptrace.ClientTrace{GotFirstResponseByte: c.answered.burn})
	for {
		s, changed := c.where.get()
		if s == nil {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return false
			}
		}
		answer, err := s.send(ctx, "POST", "/api/v1/repos/r"+path, strings.NewReader(body))
		if err != nil {
			c.broken.Add(1)
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return false
			case <-time.After(patience):
				c.t.Errorf("%.300s: %v, and the server was not killed", body, err)
				return false
			}
		}
		if answer.Status != http.StatusAccepted && answer.Status != http.StatusOK || !right(answer.Body) {
			c.t.Errorf("%.300s was answered with %d: %.3000s", body, answer.Status, answer.Body)
			return false
		}
		return true
	}
}

// receive is the receiver's end of a webhook.
func (c *crash) receive(h *crashHook, w http.ResponseWriter, r *http.Request, dice int, slow time.Duration) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the server was killed before it had sent it all
	}
	id, deliveryID := r.Header.Get("webhook-id"), r.Header.Get("X-MuseHub-Delivery")
	c.mu.Lock()
	e, dispatched := c.events[id]
	if c.arrivals[h.name][id] == nil {
		c.arrivals[h.name][id] = map[string]int{}
	}
	c.arrivals[h.name][id][deliveryID]++
	c.mu.Unlock()
	switch {
	case !dispatched:
		c.t.Errorf("%s got an event %q that was never dispatched: %s", h.name, id, body)
	case !h.subscribes(e.eventType):
		c.t.Errorf("%s got %s, which is a %s", h.name, id, e.eventType)
	case string(body) != e.payload || r.Header.Get("X-MuseHub-Event") != e.eventType:
		c.t.Errorf("%s got %s as %s %s", h.name, id, r.Header.Get("X-MuseHub-Event"), body)
	case h.verifier != nil:
		if err := h.verifier.Verify(r.Header, body); err != nil {
			c.t.Errorf("%s got %s with a wrong signature: %v", h.name, id, err)
		}
	}
	c.arrived.burn()
	if slow > 0 {
		<-time.After(slow)
	}
	switch {
	case dice < h.abort:
		panic(http.ErrAbortHandler)
	case dice < h.abort+h.failing:
		w.WriteHeader(http.StatusInternalServerError)
	}
}

// missing names an acknowledged event that has not reached a webhook, or is empty.
func (c *crash) missing() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, e := range c.events {
		for _, h := range c.hooks {
			if h.subscribes(e.eventType) && len(c.arrivals[h.name][id]) == 0 {
				return fmt.Sprintf("event %s was acknowledged and has not reached %s", id, h.name)
			}
		}
	}
	return ""
}

// unfinished reads the log of a webhook and names an event of which that doesn't have the last attempt yet, or is empty.
func (c *crash) unfinished(h *crashHook) string {
	var total int
	h.log, total = in(c.t, c.server).inRepo("r").wholeLog(h.id)
	finished := map[string]bool{}
	for _, d := range h.log {
		if d.NextAttemptAt == nil {
			finished[d.EventID] = true
		}
	}
	for id, e := range c.events {
		if h.subscribes(e.eventType) && !finished[id] {
			return fmt.Sprintf("%s still has attempts to come for event %s", h.name, id)
		}
	}
	if total != len(h.log) {
		return fmt.Sprintf("the log of %s has %d deliveries, and the total is %d", h.name, len(h.log), total)
	}
	return ""
}

// check compares what arrived with the logs, and makes sure that the crashes hit something.
func (c *crash) check() {
	requests, repeats := c.compare()
	c.t.Logf("%d requests arrived, %d of them again", requests, repeats)
	if repeats == 0 && !testing.Short() {
		c.t.Error("no request was repeated: the crashes did not hit anything")
	}
}

// compare compares what arrived with the logs. It returns how many requests there were, and how many of them were repeats.
func (c *crash) compare() (requests, repeats int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	wrong := 0
	complain := func(format string, args ...any) {
		if wrong++; wrong <= 20 { // what is wrong often need not be said often
			c.t.Errorf(format, args...)
		}
	}
	for _, h := range c.hooks {
		logged := map[string][]loggedDelivery{}    // by event
		for _, d := range slices.Backward(h.log) { // the oldest first
			logged[d.EventID] = append(logged[d.EventID], d)
			if d.Payload == nil || *d.Payload != c.events[d.EventID].payload {
				complain("%s: the log has event %s with another payload", h.name, d.EventID)
			}
		}
		for _, id := range slices.Sorted(maps.Keys(c.arrivals[h.name])) {
			arrived, log := c.arrivals[h.name][id], logged[id]
			for _, n := range arrived {
				requests += n
				repeats += n - 1
			}
			// Every attempt is logged once, whatever was repeated, and arrived under the one ID that it has. The last one, and no
			// other, says that none follows.
			fits := len(log) > 0 && len(log) <= 3 && len(log) == len(arrived)
			for i, d := range log {
				fits = fits && d.Attempt == i+1 && arrived[d.DeliveryID] > 0 && (d.NextAttemptAt == nil) == (i == len(log)-1)
			}
			if !fits {
				complain("%s: event %s arrived as %v (how often by delivery), and the log has %s", h.name, id, arrived, asJSON(log))
			}
		}
		for id := range logged {
			if len(c.arrivals[h.name][id]) == 0 {
				complain("%s: the log has event %s, which has not arrived", h.name, id)
			}
		}
	}
	return requests, repeats
}
