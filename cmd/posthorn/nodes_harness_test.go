package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/musehub/posthorn/internal/secretbox"
	"github.com/musehub/posthorn/postgres"
)

const nodeToken = "shared"

var nodeKey = sync.OnceValues(secretbox.GenerateKey)

// startNode starts posthorn serve, as it is released, on a PostgreSQL that has been migrated. Unlike startServer it doesn't
// need the test's own environment to be changed, so that tests can run together.
func startNode(t *testing.T, database string, args ...string) *server {
	t.Helper()
	dir, err := built()
	if err != nil {
		t.Fatal(err)
	}
	key, err := nodeKey()
	if err != nil {
		t.Fatal(err)
	}
	args = append([]string{"serve", "--listen", "127.0.0.1:0", "--log-format", "json", "--data", t.TempDir()}, args...)
	s := &server{t: t, token: nodeToken, cmd: exec.Command(filepath.Join(dir, "posthorn"), args...)}
	s.cmd.Env = append(os.Environ(),
		"POSTHORN_DATABASE="+database, "POSTHORN_SECRET_KEYS="+key, "POSTHORN_ADMIN_TOKEN="+nodeToken)
	if s.process, err = startProcess(s.cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			t.Logf("process %d logged:\n%s", s.cmd.Process.Pid, s.logs())
		}
	})
	found, err := s.process.await(regexp.MustCompile(`"url":"(http://[^"]+)"`))
	if err != nil {
		t.Fatal(err)
	}
	s.url = found[1]
	return s
}

func migrateNodes(t *testing.T, database string) {
	t.Helper()
	if err := postgres.Migrate(t.Context(), database, postgres.Config{}); err != nil {
		t.Fatal(err)
	}
}

// through returns the URL of a database by way of a proxy.
func through(t *testing.T, database, proxy string) string {
	t.Helper()
	u := parseURL(t, database)
	u.Host = proxy
	return u.String()
}

func parseURL(t *testing.T, raw string) *url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// nodes are servers on one PostgreSQL under load: webhooks and receiver are those of the crash test, and the publishers post
// to any node.
type nodes struct {
	*crash
	database string   // the URL of the database itself
	through  []string // by node: the URL that it has
	password string

	running  []*whereabouts // by node
	started  []*server      // ever
	named    int            // publishers
	accepted atomic.Int64   // posts that were acknowledged
	again    atomic.Int64   // those of them that had been accepted before

	// Guarded by crash.mu:
	acknowledged map[string]bool
	refusals     map[string]int // how often by detail
}

// newNodes starts a node on each of the URLs, which all lead to the database, and makes the webhooks.
func newNodes(t *testing.T, database string, through ...string) *nodes {
	t.Helper()
	migrateNodes(t, database)
	n := &nodes{
		crash: newCrash(t, uint64(time.Now().UnixNano())), database: database, through: through,
		acknowledged: map[string]bool{}, refusals: map[string]int{},
	}
	n.password, _ = parseURL(t, database).User.Password()
	t.Cleanup(n.receiver.Close) // when the nodes have been killed
	for i := range through {
		n.running = append(n.running, newWhereabouts())
		n.start(i)
		if i > 0 {
			continue
		}
		for _, h := range n.hooks { // before there are other nodes, which would have to hear of them first
			h.id = in(t, n.server).inRepo("r").hook(n.receiver.URL+"/"+h.name, strings.Join(h.types, ","), h.secret)
		}
	}
	t.Cleanup(n.publishers.Wait) // they end with the test's context at the latest
	return n
}

// start starts a node, for the first time or again.
func (n *nodes) start(i int) {
	n.t.Helper()
	n.server = startNode(n.t, n.through[i], "--timeout", "30s", "--allow-target", n.receiver.Listener.Addr().String())
	n.started = append(n.started, n.server)
	n.running[i].set(n.server)
}

// kill kills a node.
func (n *nodes) kill(i int) {
	n.t.Helper()
	s, _ := n.running[i].get()
	s.kill()
	n.running[i].set(nil) // not before the kill: the publishers are at work when it comes
}

// alive returns the nodes that run.
func (n *nodes) alive() (alive []*server) {
	for _, where := range n.running {
		if s, _ := where.get(); s != nil {
			alive = append(alive, s)
		}
	}
	return alive
}

// publish starts publishers, which end with finish. Each posts an event after each interval; those that give up post it once,
// whatever the answer is.
func (n *nodes) publish(publishers int, every time.Duration, giveUp bool) {
	for range publishers {
		n.named++
		p := n.named
		n.publishers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(p), 0))
			tick := time.NewTicker(every)
			defer tick.Stop()
			for k := 0; !n.stopping.Load(); k++ {
				id, e := n.event(fmt.Sprintf("p%d", p), k)
				if !n.postAnywhere(rng, id, e, giveUp) {
					return
				}
				select {
				case <-tick.C:
				case <-n.t.Context().Done():
					return
				}
			}
		})
	}
}

// postAnywhere posts an event to some node, and then to others until one acknowledges it, or only once. No answer at all is
// fine if the node has been killed, and only then. It reports whether to go on.
func (n *nodes) postAnywhere(rng *rand.Rand, id string, e crashEvent, once bool) bool {
	ctx := n.t.Context()
	for first := true; first || !once; first = false {
		s, changed := n.running[rng.IntN(len(n.running))].get()
		if s == nil {
			if !n.pause() {
				return false
			}
			continue
		}
		a, err := s.send(ctx, "POST", "/api/v1/repos/r/events", strings.NewReader(eventJSON(e.eventType, id, e.payload)))
		switch {
		case err != nil:
			n.broken.Add(1)
			select {
			case <-changed:
			case <-ctx.Done():
				return false
			case <-time.After(patience):
				n.t.Errorf("event %s: %v, and the node was not killed", id, err)
				return false
			}
		case a.Status == http.StatusServiceUnavailable:
			n.refused(id, a)
			if !n.pause() {
				return false
			}
		default:
			return n.acknowledge(id, e, a)
		}
	}
	return true
}

// pause waits before an event is posted again. It reports false when the test is over.
func (n *nodes) pause() bool {
	select {
	case <-time.After(50 * time.Millisecond):
		return true
	case <-n.t.Context().Done():
		return false
	}
}

// refused checks what a node says that can't accept an event now.
func (n *nodes) refused(id string, a apiAnswer) {
	var p struct{ Detail string }
	err := json.Unmarshal(a.Body, &p)
	if err != nil || a.Header.Get("Retry-After") == "" || n.tellsPassword(string(a.Body)) {
		n.t.Errorf("event %s was refused with %v %s", id, a.Header, a.Body)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refusals[p.Detail]++
}

func (n *nodes) tellsPassword(text string) bool {
	return n.password != "" && strings.Contains(text, n.password)
}

func (n *nodes) acknowledge(id string, e crashEvent, a apiAnswer) bool {
	want := receipt{EventID: id}
	for _, h := range n.hooks {
		if h.subscribes(e.eventType) {
			want.Deliveries++
		}
	}
	var got receipt
	err := json.Unmarshal(a.Body, &got)
	if err != nil || a.Status != http.StatusAccepted && a.Status != http.StatusOK || got != want {
		n.t.Errorf("event %s was answered with %d: %s", id, a.Status, a.Body)
		return false
	}
	if a.Status == http.StatusOK {
		n.again.Add(1)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.acknowledged[id] = true
	n.accepted.Add(1)
	return true
}

// awaitAccepted waits until so many more events have been accepted.
func (n *nodes) awaitAccepted(more int64) {
	n.t.Helper()
	want := n.accepted.Load() + more
	eventually(n.t, func() string {
		if got := n.accepted.Load(); got < want {
			return fmt.Sprintf("%d events were accepted, want %d", got, want)
		}
		return ""
	})
}

// finish stops the publishers, waits until all that was accepted has been settled, stops the nodes, and compares what was
// accepted, what has arrived and what is logged. It returns how many requests arrived again.
func (n *nodes) finish() (repeats int) {
	n.t.Helper()
	n.stopping.Store(true)
	n.publishers.Wait()
	db := n.connect()
	eventually(n.t, func() string {
		if left := query[int](n, db, "SELECT (SELECT count(*) FROM posthorn.queue) + (SELECT count(*) FROM posthorn.promises)")[0]; left > 0 {
			return fmt.Sprintf("the queue still has %d entries", left)
		}
		return ""
	})
	n.keepAccepted(query[string](n, db, "SELECT id FROM posthorn.events"))
	eventually(n.t, n.missing)
	n.server = n.alive()[0]
	for _, h := range n.hooks { // as nothing is queued any more, these are complete
		var total int
		if h.log, total = in(n.t, n.server).inRepo("r").wholeLog(h.id); total != len(h.log) {
			n.t.Errorf("the log of %s has %d deliveries, and the total is %d", h.name, len(h.log), total)
		}
	}
	for i, where := range n.running {
		if s, _ := where.get(); s != nil {
			s.stop()
			n.running[i].set(nil)
		}
	}
	for _, s := range n.started {
		if logs := s.logs(); n.tellsPassword(logs) || strings.Contains(logs, "goroutine ") {
			n.t.Errorf("a node logged the password, or a panic:\n%s", logs)
		}
	}
	requests, repeats := n.compare()
	n.t.Logf("%d events were acknowledged, %d of them again, after %d posts that failed; of %d requests %d arrived again; the refusals:\n%s",
		n.accepted.Load(), n.again.Load(), n.broken.Load(), requests, repeats, n.said())
	return repeats
}

// said returns what the nodes said when they refused events.
func (n *nodes) said() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var said strings.Builder
	for _, detail := range slices.Sorted(maps.Keys(n.refusals)) {
		fmt.Fprintf(&said, "%6d %s\n", n.refusals[detail], detail)
	}
	return said.String()
}

// keepAccepted checks that the database has what was acknowledged, and forgets the events that it doesn't have: they were
// refused, and must not have arrived.
func (n *nodes) keepAccepted(ids []string) {
	n.t.Helper()
	accepted := map[string]bool{}
	for _, id := range ids {
		accepted[id] = true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for id := range n.events {
		if accepted[id] {
			continue
		}
		if n.acknowledged[id] {
			n.t.Errorf("event %s was acknowledged, and the database doesn't have it", id)
		}
		for _, h := range n.hooks {
			if len(n.arrivals[h.name][id]) > 0 {
				n.t.Errorf("event %s reached %s, and the database doesn't have it", id, h.name)
			}
		}
		delete(n.events, id)
	}
}

// connect returns a connection to the database itself.
func (n *nodes) connect() *pgx.Conn {
	n.t.Helper()
	db, err := pgx.Connect(n.t.Context(), n.database)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { db.Close(context.Background()) })
	return db
}

// query returns the first column of what a query finds.
func query[T any](n *nodes, db *pgx.Conn, sql string) []T {
	n.t.Helper()
	rows, err := db.Query(n.t.Context(), sql)
	if err != nil {
		n.t.Fatal(err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[T])
	if err != nil {
		n.t.Fatal(err)
	}
	return found
}
