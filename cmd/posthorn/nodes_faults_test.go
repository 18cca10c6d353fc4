package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/musehub/posthorn/internal/pgtest"
)

// What can go wrong between several servers, the nodes, on one PostgreSQL, and between them and it. Every event that was
// accepted is counted at its receivers. The tests run together, since most of what they do is wait: leases last for 30
// seconds.
func TestNodes(t *testing.T) {
	t.Parallel()
	together(t, map[string]func(*testing.T){
		"KilledInTurn":     testNodesKilledInTurn,
		"DatabaseStopped":  func(t *testing.T) { testDatabaseStops(t, (*pgtest.Cluster).Stop) },
		"DatabaseKilled":   func(t *testing.T) { testDatabaseStops(t, (*pgtest.Cluster).Kill) },
		"DatabaseSlow":     testDatabaseSlow,
		"ConnectionStorms": testConnectionStorms,
		"Failover":         testFailover,
		"LateFailure":      testLateFailure,
		"CutOff":           func(t *testing.T) { testNodeCutOff(t, false) },
		"CutOffSilently":   func(t *testing.T) { testNodeCutOff(t, true) },
	})
}

// For a minute one of three nodes is killed and started again each second. In the end one is killed for good: the others take
// over what it had.
func testNodesKilledInTurn(t *testing.T) {
	database := pgtest.URL(t)
	n := newNodes(t, database, database, database, database)
	n.publish(8, 50*time.Millisecond, false)
	seconds := 60
	if testing.Short() {
		seconds = 10
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for i := range seconds {
		<-tick.C
		n.kill(i % 3)
		n.start(i % 3)
	}
	n.awaitAccepted(50)
	n.kill(0)
	n.awaitAccepted(50)
	if repeats := n.finish(); repeats == 0 && !testing.Short() {
		t.Error("no request arrived again: the kills did not hit anything")
	}
	if nodes := query[int](n, n.connect(), "SELECT count(*) FROM posthorn.nodes")[0]; nodes > 0 {
		t.Errorf("in the end the database still has %d nodes", nodes)
	}
}

// While the database is away nothing is accepted, each request is answered so that one knows why, and the log stays short. When
// it is back all goes on by itself.
func testDatabaseStops(t *testing.T, stop func(*pgtest.Cluster)) {
	outage := 20 * time.Second
	if testing.Short() {
		outage = 3 * time.Second
	}
	cluster := pgtest.StartCluster(t)
	database := cluster.URL("postgres")
	n := newNodes(t, database, database, database)
	n.publish(4, 50*time.Millisecond, false)
	n.awaitAccepted(100)

	logged := map[*server]int{}
	for _, s := range n.alive() {
		logged[s] = len(s.logs())
	}
	stop(cluster)
	over := time.After(outage)
	for k := 0; over != nil; k++ {
		select {
		case <-over:
			over = nil
		case <-time.After(100 * time.Millisecond):
		}
		for i, s := range n.alive() {
			c := in(t, s).inRepo("r")
			for _, request := range [][3]string{
				{"POST", "/events", eventJSON("push", fmt.Sprintf("outage-%d-%d", i, k), `{}`)},
				{"POST", "/webhooks", fmt.Sprintf(`{"url":%q,"events":["push"]}`, n.receiver.URL)},
				{"GET", "/webhooks/" + n.hooks[0].id + "/deliveries", ""},
			} {
				a := c.ask(http.StatusServiceUnavailable, request[0], request[1], request[2])
				if detail := c.problem(a, "PostgreSQL"); n.tellsPassword(detail) || a.Header.Get("Retry-After") == "" {
					t.Errorf("%s %s was answered with %v %s", request[0], request[1], a.Header, a.Body)
				}
			}
		}
	}
	for _, s := range n.alive() {
		s.awaitStatus("/healthz", http.StatusOK)
	}
	for s, before := range logged {
		logs := s.logs()[before:]
		if lines := strings.Count(logs, "\n"); lines == 0 || lines >= 60 {
			t.Errorf("a node logged %d lines while the database was away for %v:\n%s", lines, outage, logs)
		}
	}
	if err := cluster.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.awaitEach()
	for _, s := range n.alive() {
		s.awaitStatus("/readyz", http.StatusOK)
	}
	n.awaitAccepted(100)
	n.finish()
}

// awaitEach waits until each node has accepted an event.
func (n *nodes) awaitEach() {
	n.t.Helper()
	for _, s := range n.alive() {
		n.named++
		id := fmt.Sprintf("each-%d", n.named)
		e := crashEvent{eventType: "issue", payload: fmt.Sprintf(`{"id":%q}`, id)}
		n.mu.Lock()
		n.events[id] = e
		n.mu.Unlock()
		eventually(n.t, func() string {
			a, err := s.send(n.t.Context(), "POST", "/api/v1/repos/r/events", strings.NewReader(eventJSON(e.eventType, id, e.payload)))
			switch {
			case err != nil:
				return err.Error()
			case a.Status == http.StatusServiceUnavailable:
				return fmt.Sprintf("a node refuses events: %s", a.Body)
			}
			n.acknowledge(id, e, a)
			return ""
		})
	}
}

// A slow database makes slow what needs it. Nothing is lost or repeated.
func testDatabaseSlow(t *testing.T) {
	events := int64(300)
	if testing.Short() {
		events = 50
	}
	database := pgtest.URL(t)
	proxy, slow := newToxiproxy(t, database)
	addToxic(t, proxy, "latency", `{"latency":100,"jitter":50}`) // there and back again: up to 300 ms
	addToxic(t, proxy, "bandwidth", `{"rate":100}`)              // KB/s, of each connection
	n := newNodes(t, database, slow, slow)
	n.publish(8, 50*time.Millisecond, false)
	n.awaitAccepted(events)
	if repeats := n.finish(); repeats > 0 {
		t.Errorf("%d requests arrived again", repeats)
	}
}

// Others take all connections that the database has, or end those of the nodes again and again. Events are accepted, or refused.
func testConnectionStorms(t *testing.T) {
	rounds, storm := 3, 20
	if testing.Short() {
		rounds, storm = 1, 5
	}
	cluster := pgtest.StartCluster(t, "max_connections=60") // the nodes take about half of them
	database := cluster.URL("postgres")
	n := newNodes(t, database, database, database)
	n.publish(4, 50*time.Millisecond, false)
	n.awaitAccepted(50)
	db := n.connect()
	endAll := func() {
		query[bool](n, db, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'posthorn'")
	}
	for range rounds {
		release := takeConnections(t, database)
		before := n.refusedFor("max_connections")
		eventually(t, func() string {
			endAll()
			if n.refusedFor("max_connections") == before {
				return "no event was refused because the database has no connection left:\n" + n.said()
			}
			return ""
		})
		release()
		n.awaitEach()
		n.awaitAccepted(50)
	}
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for range storm {
		<-tick.C
		endAll()
	}
	n.awaitEach()
	n.awaitAccepted(50)
	n.finish()
}

// takeConnections takes all connections that a database has, and each that becomes free, until it is told to release them.
func takeConnections(t *testing.T, database string) (release func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	full := make(chan struct{}, 1)
	var taking sync.WaitGroup
	for range 4 {
		taking.Go(func() {
			var taken []*pgx.Conn
			for ctx.Err() == nil {
				conn, err := pgx.Connect(ctx, database)
				if err == nil {
					taken = append(taken, conn)
					continue
				}
				ring(full)
				select {
				case <-time.After(5 * time.Millisecond):
				case <-ctx.Done():
				}
			}
			for _, conn := range taken {
				conn.Close(context.Background())
			}
		})
	}
	release = func() {
		cancel()
		taking.Wait()
	}
	t.Cleanup(release)
	select {
	case <-full:
	case <-time.After(patience):
		t.Fatal("the database still has connections")
	}
	return release
}

// refusedFor counts the posts that were refused with a detail that has the words.
func (n *nodes) refusedFor(words string) (refused int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for detail, times := range n.refusals {
		if strings.Contains(detail, words) {
			refused += times
		}
	}
	return refused
}

// The database is lost in the middle of commits, before or after it has done what it was asked to. An event is accepted and
// sent, or refused; the same event again settles it. Some publishers never ask again.
func testFailover(t *testing.T) {
	rounds := 30
	if testing.Short() {
		rounds = 6
	}
	database := pgtest.URL(t)
	proxies := []*commitProxy{newCommitProxy(t, database), newCommitProxy(t, database)}
	n := newNodes(t, database, through(t, database, proxies[0].addr), through(t, database, proxies[1].addr))
	n.publish(4, 20*time.Millisecond, false)
	n.publish(2, 20*time.Millisecond, true)
	for round := range rounds {
		n.awaitAccepted(10)
		moment := beforeCommit
		if round/2%2 == 1 {
			moment = afterCommit
		}
		proxies[round%2].breakNext(t, moment)
	}
	n.awaitEach()
	n.finish()
	if n.refusedFor("in the middle of a commit") == 0 || n.again.Load() == 0 {
		t.Errorf("%d posts turned out to have been accepted before, want some; the refusals:\n%s", n.again.Load(), n.said())
	}
}

// A request is in flight when its node is cut off. Another node makes it again, and while that is in flight too the first one
// comes back and reports a failure. The log and the queue agree on whether an attempt follows.
func testLateFailure(t *testing.T) {
	database := pgtest.URL(t)
	migrateNodes(t, database)
	proxy, proxied := newToxiproxy(t, database)
	failure, success := make(chan struct{}), make(chan struct{})
	receiver := newReceiver(t, script(
		answerWhen(failure, answerStatus(http.StatusInternalServerError)), answerWhen(success, answerStatus(http.StatusOK))))
	args := slices.Concat(allowLoopback, []string{"--timeout", "5m"})
	c := in(t, startNode(t, proxied, args...))
	hook := c.hook(receiver.URL, "push", "")
	c.dispatch("push", `{}`, 1)
	receiver.await(1)
	proxy.Stop()
	c = c.at(startNode(t, database, args...))
	if r := receiver.await(2); r[0].delivery() != r[1].delivery() {
		t.Errorf("the event arrived as %s and as %s", r[0].delivery(), r[1].delivery())
	}
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	close(failure)
	c.awaitLog(hook, 1)
	close(success)
	eventually(t, func() string {
		if log := c.log(hook); log[0].NextAttemptAt != nil {
			return "the log says that another attempt is to come, and it does not: " + asJSON(log)
		}
		return ""
	})
}

// A node is cut off from the database past its lease, while requests of it are in flight. Another one takes over; only what was
// in flight is sent again, under the same ids. When the node reaches the database again it goes on.
func testNodeCutOff(t *testing.T, silently bool) {
	database := pgtest.URL(t)
	migrateNodes(t, database)
	proxy, proxied := newToxiproxy(t, database)
	// The requests stay in flight all the while.
	flags := slices.Concat(allowLoopback, []string{"--timeout", "5m", "--max-in-flight-per-webhook", "16"})
	cutOff, other := startNode(t, proxied, flags...), startNode(t, database, flags...)

	// Two webhooks hold what is not to warm them up until they are let go, and one does not.
	hold := func(open <-chan struct{}) func(*wireRequest) wireAnswer {
		return func(r *wireRequest) wireAnswer {
			if strings.HasPrefix(r.event(), "held-") {
				return answerWhen(open, answerStatus(http.StatusOK))
			}
			return answerStatus(http.StatusOK)
		}
	}
	openLong, openShort := make(chan struct{}), make(chan struct{})
	long, short, healthy := newReceiver(t, hold(openLong)), newReceiver(t, hold(openShort)), newReceiver(t, nil)
	a, b := in(t, cutOff), in(t, other)
	longHook, shortHook := a.hook(long.URL, "push", "s3cret"), a.hook(short.URL, "issue", "s3cret")
	b.hook(healthy.URL, "push", "")
	post := func(c *contract, eventType, name string, n int) {
		t.Helper()
		var events []string
		for i := range n {
			events = append(events, eventJSON(eventType, fmt.Sprintf("%s-%d", name, i), `{}`))
		}
		c.ask(http.StatusAccepted, "POST", "/events:batch", `{"events":[`+strings.Join(events, ",")+`]}`)
	}
	// A backlog brings the webhooks' limits up, to 16 or, where the machine is busy, to less.
	const warm, held, answered = 100, 26, 8
	post(a, "push", "warm-long", warm)
	post(a, "issue", "warm-short", warm)
	a.awaitLog(longHook, warm)
	a.awaitLog(shortHook, warm)
	post(a, "push", "held-long", held)
	post(a, "issue", "held-short", answered)
	long.await(warm + 1)
	short.await(warm + 1)

	if silently {
		addToxic(t, proxy, "timeout", `{"timeout":0}`) // nothing comes through, and nobody is told
	} else {
		proxy.Stop() // all is closed and refused
	}
	close(openShort) // these are answered, and the node can't record it
	posted := 0
	var mayRepeat map[string]bool // what had arrived before the other node took over
	eventually(t, func() string {
		refused := a.ask(http.StatusServiceUnavailable, "POST", "/events", eventJSON("push", "cut-off", `{}`))
		if refused.Header.Get("Retry-After") == "" {
			t.Errorf("there is no Retry-After: %v", refused.Header)
		}
		posted++
		post(b, "push", fmt.Sprint("meanwhile-", posted), 1)
		healthy.await(posted)
		arrived := map[string]bool{}
		for _, r := range long.got()[warm:] {
			if arrived[r.event()] {
				mayRepeat = arrived
				return ""
			}
			arrived[r.event()] = true
		}
		return "the other node has not taken over"
	})
	cutOff.awaitStatus("/readyz", http.StatusServiceUnavailable)
	if len(mayRepeat) == held {
		t.Errorf("all %d requests were in flight, want some to wait", held)
	}
	for i := range answered {
		mayRepeat[fmt.Sprintf("held-short-%d", i)] = true
	}
	close(openLong)
	a = a.at(other)
	a.awaitLog(longHook, warm+held)
	a.awaitLog(shortHook, warm+answered)

	if silently {
		proxy.Toxics.ResetToxics(t.Context())
	} else if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	a = a.at(cutOff)
	eventually(t, func() string {
		answer, err := cutOff.send(t.Context(), "POST", a.path("/events"), strings.NewReader(eventJSON("push", "healed", `{}`)))
		if err != nil || answer.Status != http.StatusAccepted {
			return fmt.Sprintf("the node can reach the database again, and answers %d %s, %v", answer.Status, answer.Body, err)
		}
		return ""
	})
	cutOff.awaitStatus("/readyz", http.StatusOK)
	for _, d := range a.awaitLog(longHook, warm+held+1) {
		if !d.success() || d.Attempt != 1 {
			t.Errorf("event %s is logged with attempt %d, %s", d.EventID, d.Attempt, d.body())
		}
	}
	if !strings.Contains(cutOff.logs(), "goes on as a new") {
		t.Error("the node that was cut off doesn't say that it goes on as a new one")
	}
	cutOff.stop()
	other.stop()

	repeats := 0
	ids := map[string]string{} // by event
	for _, r := range slices.Concat(long.got(), short.got(), healthy.got()) {
		first, again := ids[r.event()]
		ids[r.event()] = r.delivery()
		if !again {
			continue
		}
		repeats++
		if !mayRepeat[r.event()] || first != r.delivery() {
			t.Errorf("event %s arrived as %s and again as %s; may: %t", r.event(), first, r.delivery(), mayRepeat[r.event()])
		}
	}
	t.Logf("%d requests were in flight or not recorded, and %d arrived again", len(mayRepeat), repeats)
	if repeats == 0 || repeats > len(mayRepeat) {
		t.Errorf("%d requests were in flight or not recorded, and %d arrived again", len(mayRepeat), repeats)
	}
	if want := 2*warm + held + answered + posted + 1; len(ids) != want {
		t.Errorf("%d events arrived, want %d", len(ids), want)
	}
}
