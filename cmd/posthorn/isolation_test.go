package main

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	isolationHooks = 10 // of each kind
	// isolationSlack is what two measurements may differ by besides the factor: on a busy machine a process waits for its
	// turn for a few slices of some milliseconds. A webhook that waits for a bad one waits for far longer.
	isolationSlack = 10 * time.Millisecond
	floodBacklog   = 4000
	slowBacklog    = 600
	hangingBurst   = 100
)

// Ten webhooks get their events as soon beside webhooks that hang, refuse, are slow or have a backlog as without them. The
// phases alternate, so that what else the machine does hits all alike.
func TestIsolation(t *testing.T) {
	cycles, tries := 7, 3
	if testing.Short() {
		cycles, tries = 2, 5
	}
	i := newIsolation(t)
	compare := i.bad
	for try := 1; len(compare) > 0; try++ {
		alone := make([]time.Duration, cycles)
		beside := map[*badHooks][]time.Duration{}
		for cycle := range cycles {
			alone[cycle] = i.measure(nil)
			for _, bad := range compare {
				beside[bad] = append(beside[bad], i.beside(bad))
			}
		}
		var again []*badHooks
		limit := 2*median(alone) + isolationSlack
		t.Logf("p99 alone: %v", alone)
		for _, bad := range compare {
			t.Logf("p99 beside %s: %v", bad.name, beside[bad])
			if p99 := median(beside[bad]); p99 <= limit {
				continue
			} else if try == tries {
				t.Errorf("beside %s the p99 is %v, more than %v, in the last of %d comparisons", bad.name, p99, limit, tries)
			} else {
				again = append(again, bad)
			}
		}
		compare = again
	}
	i.server.stop()
}

// isolation is the state of the test: a server, and the ten healthy webhooks.
type isolation struct {
	t       *testing.T
	server  *server
	healthy *httptest.Server
	bad     []*badHooks

	mu        sync.Mutex
	sent      map[string]time.Time // by event
	latencies []time.Duration
	changed   chan struct{} // gets something when there are latencies
	events    int
}

func newIsolation(t *testing.T) *isolation {
	useBuilt(t)
	i := &isolation{t: t, sent: map[string]time.Time{}, changed: make(chan struct{}, 1)}
	i.healthy = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		at := time.Now()
		_, _ = io.Copy(io.Discard, r.Body)
		i.mu.Lock()
		i.latencies = append(i.latencies, at.Sub(i.sent[r.Header.Get("webhook-id")]))
		i.mu.Unlock()
		ring(i.changed)
	}))
	t.Cleanup(i.healthy.Close)
	i.server = startContract(t, "--data", memoryFolder(t), "--max-in-flight", "256") // the bad ones could take them all
	for n := range isolationHooks {
		i.subscribe("r", fmt.Sprintf("%s/%d", i.healthy.URL, n))
	}

	hanging := newBadReceiver(t, func(open <-chan struct{}) {
		wait(100*time.Millisecond, nil) // also when it answers, so that requests wait for others and the limits grow
		<-open
	})
	slow := newBadReceiver(t, func(<-chan struct{}) { wait(time.Second, nil) })
	flooded := newBadReceiver(t, func(<-chan struct{}) { wait(500*time.Millisecond, nil) })
	i.bad = []*badHooks{
		{name: "hanging webhooks", receiver: hanging, repo: "hang", busy: 50, paths: i.subscribeBad("hang", hanging.URL, isolationHooks)},
		{name: "refusing webhooks", paths: i.subscribeBad("r", "http://"+closedAddr(t), isolationHooks)},
		{name: "slow webhooks", receiver: slow, repo: "slow", busy: 50, refill: 60, paths: i.subscribeBad("slow", slow.URL, isolationHooks)},
		{name: "webhooks with a backlog", receiver: flooded, repo: "flood", busy: 8, refill: 300, paths: i.subscribeBad("flood", flooded.URL, 1)},
	}
	for _, bad := range i.bad {
		bad.isolation = i
	}
	// These take what they can, slowly, until they have many requests in flight.
	i.postAll("slow", slowBacklog)
	i.postAll("flood", floodBacklog)
	for _, bad := range i.bad[2:] {
		bad.awaitBusy()
	}
	i.measure(nil)
	for _, bad := range i.bad {
		bad.stop()
	}
	return i
}

// subscribe makes a webhook and returns its path.
func (i *isolation) subscribe(repo, url string) string {
	c := in(i.t, i.server).inRepo(repo)
	return c.path("/webhooks/" + c.hook(url, "push", ""))
}

func (i *isolation) subscribeBad(repo, url string, n int) (paths []string) {
	for k := range n {
		paths = append(paths, i.subscribe(repo, fmt.Sprintf("%s/%d", url, k)))
	}
	return paths
}

// postAll posts events to a repo as fast as that goes.
func (i *isolation) postAll(repo string, events int64) {
	var publishers sync.WaitGroup
	var left atomic.Int64
	left.Store(events)
	for range 16 {
		publishers.Go(func() {
			for left.Add(-1) >= 0 {
				i.post(repo, "")
			}
		})
	}
	publishers.Wait()
}

func (i *isolation) post(repo, id string) {
	answer, err := i.server.send(i.t.Context(), "POST", "/api/v1/repos/"+repo+"/events", strings.NewReader(eventJSON("push", id, `{}`)))
	if err != nil || answer.Status != http.StatusAccepted {
		i.t.Errorf("an event was answered with %d %s, %v", answer.Status, answer.Body, err)
	}
}

// beside measures while bad webhooks are busy. Where they were not, because the machine was elsewhere, it proves nothing, and is
// done again.
func (i *isolation) beside(bad *badHooks) time.Duration {
	for try := 1; ; try++ {
		bad.start()
		p99 := i.measure(bad)
		bad.stop()
		switch {
		case bad.receiver == nil || median(bad.inFlight) >= bad.busy: // requests that take equally long end together, so one look says little
			return p99
		case try == 3:
			i.t.Fatalf("the %s have %d requests in flight, want mostly %d at least: they prove nothing", bad.name, bad.inFlight, bad.busy)
		}
	}
}

// measure dispatches events at a steady pace and returns the 99th percentile of the time from dispatch to receipt. It notes how
// many requests the bad webhooks, if any, have in flight meanwhile.
func (i *isolation) measure(bad *badHooks) time.Duration {
	const events, every = 30, 33 * time.Millisecond
	i.mu.Lock()
	i.latencies = nil
	i.mu.Unlock()
	var posts sync.WaitGroup
	tick := time.NewTicker(every)
	defer tick.Stop()
	if bad != nil {
		bad.inFlight = nil
	}
	for range events {
		<-tick.C
		if bad != nil && bad.receiver != nil {
			bad.inFlight = append(bad.inFlight, bad.receiver.inFlight.Load())
		}
		i.events++
		id := fmt.Sprint("e", i.events)
		posts.Go(func() {
			i.mu.Lock()
			i.sent[id] = time.Now()
			i.mu.Unlock()
			i.post("r", id)
		})
	}
	posts.Wait()
	for timeout := time.After(patience); ; {
		i.mu.Lock()
		sorted := slices.Sorted(slices.Values(i.latencies))
		i.mu.Unlock()
		if len(sorted) >= events*isolationHooks {
			return sorted[len(sorted)*99/100].Round(10 * time.Microsecond)
		}
		select {
		case <-i.changed:
		case <-timeout:
			i.t.Fatalf("%d of %d deliveries arrived at the healthy webhooks within %v", len(sorted), events*isolationHooks, patience)
		}
	}
}

// badHooks are webhooks of one kind.
type badHooks struct {
	*isolation
	name     string
	paths    []string
	receiver *badReceiver // nil: nobody listens there
	repo     string       // has a backlog for them
	busy     int64        // how many requests they mostly have in flight at least while they are bad
	refill   int64        // how many events make up for what they have worked off the last time
	inFlight []int64      // how many requests they had in flight during the last measurement
}

// start makes them active and bad. Those that hang answer at first, so that each of them may have many requests in flight.
func (b *badHooks) start() {
	b.activate(true)
	if b.repo != "hang" {
		b.postAll(b.repo, b.refill)
		if b.receiver != nil {
			b.awaitBusy()
		}
		return
	}
	all := b.receiver.served.Load() + hangingBurst*int64(len(b.paths))
	b.postAll(b.repo, hangingBurst)
	eventually(b.t, func() string {
		if n := b.receiver.served.Load(); n < all {
			return fmt.Sprintf("%d requests to the %s were answered, want %d", n, b.name, all)
		}
		return ""
	})
	b.idle() // some were left from the last time
	b.receiver.misbehave(true)
	b.postAll(b.repo, hangingBurst)
}

// stop makes them inactive and waits until no request is under way.
func (b *badHooks) stop() {
	b.t.Helper()
	if b.receiver == nil {
		b.activate(false)
		return
	}
	b.activate(false)
	b.receiver.misbehave(false)
	b.idle()
}

// awaitBusy waits until they have enough requests in flight.
func (b *badHooks) awaitBusy() {
	b.t.Helper()
	eventually(b.t, func() string {
		if n := b.receiver.inFlight.Load(); n < b.busy {
			return fmt.Sprintf("the %s have %d requests in flight, want %d", b.name, n, b.busy)
		}
		return ""
	})
}

// idle waits until they have no request in flight.
func (b *badHooks) idle() {
	b.t.Helper()
	eventually(b.t, func() string {
		if n := b.receiver.inFlight.Load(); n > 0 {
			return fmt.Sprintf("%d requests are in flight to the %s", n, b.name)
		}
		return ""
	})
}

func (b *badHooks) activate(active bool) {
	for _, path := range b.paths {
		b.server.call("PATCH", path, fmt.Sprintf(`{"active":%t}`, active), http.StatusOK)
	}
}

// badReceiver answers well, or badly.
type badReceiver struct {
	*httptest.Server
	inFlight atomic.Int64
	served   atomic.Int64
	mu       sync.Mutex
	open     chan struct{} // closed: it answers well
}

func newBadReceiver(t *testing.T, badly func(open <-chan struct{})) *badReceiver {
	r := &badReceiver{open: make(chan struct{})}
	close(r.open)
	r.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		r.inFlight.Add(1)
		defer r.inFlight.Add(-1)
		_, _ = io.Copy(io.Discard, req.Body)
		r.mu.Lock()
		open := r.open
		r.mu.Unlock()
		badly(open)
		r.served.Add(1)
	}))
	t.Cleanup(func() {
		r.misbehave(false)
		r.Close()
	})
	return r
}

func (r *badReceiver) misbehaving() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.open:
		return false
	default:
		return true
	}
}

func (r *badReceiver) misbehave(badly bool) {
	if r.misbehaving() == badly {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if badly {
		r.open = make(chan struct{})
	} else {
		close(r.open)
	}
}

// wait waits for a time, or until the channel is closed.
func wait(d time.Duration, open <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-open:
	}
}

func median[T cmp.Ordered](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
