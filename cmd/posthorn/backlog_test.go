package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// backlogStore is a store that the backlog is put into.
type backlogStore struct {
	flags func(t *testing.T, data string) []string
	// run runs a statement on the database that stands for a data folder.
	run func(t *testing.T, data, statement string) error
	// fill is a statement that makes so many entries, due for an hour, of the event that is queued for a webhook.
	fill string
}

// With a million due entries of a dead webhook in the queue another webhook gets its events as soon as with none, and the
// server has no need of more memory.
func TestBacklog(t *testing.T) { // not parallel: it measures, and sets variables of the environment
	needsProc(t)
	useBuilt(t)
	t.Setenv("POSTHORN_SECRET_KEYS", newKey(t))
	t.Setenv("POSTHORN_ADMIN_TOKEN", "backlog")
	t.Run("SQLite", func(t *testing.T) {
		testBacklog(t, backlogStore{
			flags: func(_ *testing.T, data string) []string {
				return []string{"--database", filepath.Join(data, "posthorn.db")}
			},
			run: runSQLite,
			fill: `WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < %d)
				INSERT INTO posthorn_queue (webhook, lane, due_at, event, run, attempt, trigger)
				SELECT q.webhook, 1, q.due_at - 3600000000 + n.n, q.event, n.n, 1, 'automatic'
				FROM posthorn_queue q CROSS JOIN n WHERE q.webhook = (SELECT seq FROM posthorn_webhooks WHERE id = '%s')`,
		})
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		testBacklog(t, backlogStore{
			flags: func(t *testing.T, data string) []string {
				return []string{"--database", testDatabaseOf(t, data).url, "--migrate"}
			},
			run: func(t *testing.T, data, statement string) error {
				_, err := postgresRows(t, data, statement, nil)
				return err
			},
			fill: `INSERT INTO posthorn_queue (webhook, due_at, event, run, attempt, trigger)
				SELECT q.webhook, q.due_at - interval '1 hour' + n * interval '1 microsecond', q.event, n, 1, 'automatic'
				FROM posthorn_queue q, generate_series(1, %d) n WHERE q.webhook = (SELECT seq FROM posthorn_webhooks WHERE id = '%s')`,
		})
	})
}

func testBacklog(t *testing.T, store backlogStore) {
	entries, cycles, tries := 1_000_000, 7, 3
	if testing.Short() {
		entries, cycles, tries = 50_000, 2, 5
	}
	start := func(data string) *server {
		return startContract(t, slices.Concat([]string{"--data", data, "--retry-policy", "standard"}, store.flags(t, data))...)
	}
	empty := newPunctual(t, start(memoryFolder(t)))

	// The backlog is that of a webhook whose receiver refuses connections. Beside it a retry is due, and an event was in flight
	// when the server was killed.
	s := start(memoryFolder(t))
	dead, left := in(t, s), in(t, s)
	deadHook := dead.hook("http://"+closedAddr(t), "push", "")
	dead.dispatch("push", `{}`, 1)
	dead.awaitFirst(deadHook)
	retried := newReceiver(t, script(answerStatus(http.StatusInternalServerError), answerStatus(http.StatusOK)))
	retriedHook := left.hook(retried.URL, "issue", "")
	left.dispatch("issue", `{}`, 1)
	left.awaitFirst(retriedHook)
	killed := newReceiver(t, script(answerHang(""), answerStatus(http.StatusOK)))
	left.hook(killed.URL, "release", "")
	left.dispatch("release", `{}`, 1)
	killed.await(1)
	s.kill()
	if err := store.run(t, s.data, fmt.Sprintf(store.fill, entries, deadHook)); err != nil {
		t.Fatal(err)
	}
	s = start(s.data)
	dead, left = dead.at(s), left.at(s)
	backlog := newPunctual(t, s)
	activate := func(active bool) {
		t.Helper()
		dead.ask(http.StatusOK, "PATCH", "/webhooks/"+deadHook, fmt.Sprintf(`{"active":%t}`, active))
	}

	left.dispatch("issue", `{}`, 1) // fails, and is due again in some seconds
	var none, million []time.Duration
	for try := 1; ; try++ {
		none, million = nil, nil
		for range cycles {
			activate(false)
			none = append(none, empty.measure(nil))
			activate(true)
			million = append(million, backlog.measure(nil))
		}
		t.Logf("p99 with an empty queue: %v", none)
		t.Logf("p99 with %d entries of a dead webhook: %v", entries, million)
		if limit := 2*median(none) + isolationSlack; median(million) <= limit {
			break
		} else if try == tries {
			t.Errorf("the p99 is %v, more than %v, in the last of %d comparisons", median(million), limit, tries)
			break
		}
	}
	retried.await(4)
	killed.await(2)
	attempts := read[struct{ Total int }](dead, dead.ask(http.StatusOK, "GET", "/webhooks/"+deadHook+"/deliveries?limit=1", "")).Total
	t.Logf("%d attempts were made of the dead webhook's entries", attempts)
	if attempts < 2*cycles {
		t.Error("the dead webhook's entries were not worked on: they prove nothing")
	}
	backlog.compareMemory(empty)
	s.stop()
	empty.server.stop()
}

// runSQLite runs a statement in a process of its own: SQLite is Go here, and with the race detector a million rows would take
// minutes.
func runSQLite(t *testing.T, data, statement string) error {
	program := filepath.Join(t.TempDir(), "main.go")
	err := os.WriteFile(program, []byte(`package main

import (
	"log"
	"os"

	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"
)

func main() {
	conn, err := sqlite.OpenConn(os.Args[1], sqlite.OpenReadWrite)
	if err == nil {
		err = sqlitex.Execute(conn, os.Args[2], nil)
	}
	if err != nil {
		log.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		log.Fatal(err)
	}
}
`), 0o600)
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "run", program, filepath.Join(data, "posthorn.db"), statement)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// compareMemory fails the test if the server takes much more memory than one with an empty queue that has had as much to do.
func (i *isolation) compareMemory(empty *isolation) {
	i.t.Helper()
	const most = 50 * mib
	more := func(name string) int64 { return i.server.memory(name) - empty.server.memory(name) }
	eventually(i.t, func() string { // what the work itself took for a while is given back
		if now := more("VmRSS"); now > most {
			return fmt.Sprintf("the server with the backlog takes %.1f MiB more than the one without, want at most %d", float64(now)/mib, most/mib)
		}
		return ""
	})
	now, peak := more("VmRSS"), more("VmHWM")
	i.t.Logf("the backlog takes %.1f MiB, and took %.1f more at the peak", float64(now)/mib, float64(peak)/mib)
	if peak > 2*most {
		i.t.Errorf("with the backlog the server took %.1f MiB more for a while, want at most %d", float64(peak)/mib, 2*most/mib)
	}
}

// newPunctual adds healthy webhooks to a server, to measure how soon they get their events.
func newPunctual(t *testing.T, s *server) *isolation {
	t.Helper()
	i := &isolation{t: t, server: s, sent: map[string]time.Time{}, changed: make(chan struct{}, 1)}
	i.healthy = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		at := time.Now()
		_, _ = io.Copy(io.Discard, r.Body)
		i.mu.Lock()
		i.latencies = append(i.latencies, at.Sub(i.sent[r.Header.Get("webhook-id")]))
		i.mu.Unlock()
		ring(i.changed)
	}))
	t.Cleanup(i.healthy.Close)
	for n := range isolationHooks {
		i.subscribe("r", fmt.Sprintf("%s/%d", i.healthy.URL, n))
	}
	i.measure(nil) // warms up
	return i
}
