package postgres

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/pgtest"
)

// BenchmarkCommit commits batches of 256 events and then of their 256 results, into an empty store and into one with a
// long log. For one event it reports the time, and the CPU that this process and all of the server's take, if the server runs
// on this machine and nobody else uses it.
func BenchmarkCommit(b *testing.B) {
	const size = 256
	for _, webhooks := range []int{1, 1000} {
		for _, rows := range []int{0, 300_000} {
			if rows > 0 && testing.Short() {
				continue
			}
			b.Run(fmt.Sprintf("webhooks=%d/log=%d", webhooks, rows), func(b *testing.B) {
				w := newWorkload(b, open(b, pgtest.URL(b)), webhooks)
				for range 10 { // the server's plans are made and the connections are warm
					w.round(w.batch(size))
				}
				for w.made < rows {
					w.round(w.batch(2000))
				}
				var accepting, recording usage
				b.ReportAllocs()
				b.ResetTimer()
				for range b.N {
					events, results := w.batch(size)
					accepting.add(w, func() { w.commit(events) })
					recording.add(w, func() { w.commit(results) })
				}
				b.StopTimer()
				accepting.report(b, "events", size)
				recording.report(b, "results", size)
			})
		}
	}
}

// usage is what something has taken, all times for one event in the report.
type usage struct{ wall, client, server time.Duration }

func (u *usage) add(w *workload, fn func()) {
	server := w.serverCPU()
	client := cpuOfThreads()
	start := time.Now()
	fn()
	u.wall += time.Since(start)
	u.client += cpuOfThreads() - client
	u.server += w.serverCPU() - server
}

func (u *usage) report(b *testing.B, what string, size int) {
	each := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / float64(b.N) / float64(size) }
	b.ReportMetric(each(u.wall), what+"-ns/event")
	b.ReportMetric(each(u.client), what+"-client-cpu-ns/event")
	b.ReportMetric(each(u.server), what+"-server-cpu-ns/event")
}

// cpuOfThreads is that of this process.
func cpuOfThreads() (sum time.Duration) {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return 0
	}
	for _, thread := range threads {
		sum += cpuOf("self/task/" + thread.Name())
	}
	return sum
}

// cpuOf returns for how long a thread has been running, on Linux. It is 0 for one that has ended.
func cpuOf(thread string) time.Duration {
	data, err := os.ReadFile("/proc/" + thread + "/schedstat")
	if err != nil {
		return 0
	}
	ns, _, _ := strings.Cut(string(data), " ")
	n, _ := strconv.ParseInt(ns, 10, 64)
	return time.Duration(n)
}

// parentOf returns a process's parent, 0 if it is not known.
func parentOf(pid string) int {
	data, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	var state string
	parent := 0
	_, _ = fmt.Sscan(rest, &state, &parent)
	return parent
}

// workload commits what real traffic would.
type workload struct {
	*Store
	t        testing.TB
	webhooks []posthorn.Webhook
	node     int64
	made     int
	server   int // the process that is the parent of all others of the server's
}

func newWorkload(t testing.TB, s *Store, webhooks int) *workload {
	t.Helper()
	w := &workload{Store: s, t: t, node: newNode(t, s)}
	for i := range webhooks {
		hook := posthorn.Webhook{ID: fmt.Sprint("webhook-", i), RepoID: fmt.Sprint("repo-", i), Active: true}
		if err := s.CreateWebhooks(t.Context(), &hook); err != nil {
			t.Fatal(err)
		}
		w.webhooks = append(w.webhooks, hook)
	}
	w.server = parentOf(strconv.Itoa(number(t, s, "SELECT pg_backend_pid()")))
	return w
}

// serverCPU is that of all of the server's processes which are there now.
func (w *workload) serverCPU() (sum time.Duration) {
	if w.server == 0 {
		return 0
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", w.server))
	if err != nil {
		return 0
	}
	for pid := range strings.FieldsSeq(string(children)) {
		sum += cpuOf(pid)
	}
	return sum
}

var payload1K = json.RawMessage(`{"text":"` + strings.Repeat("x", 1000) + `"}`)

// batch returns one of new events and one of their results.
func (w *workload) batch(size int) (events, results posthorn.Batch) {
	events, results = posthorn.Batch{Node: w.node}, posthorn.Batch{Node: w.node}
	for range size {
		hook := w.webhooks[w.made%len(w.webhooks)]
		now := time.Now()
		e := &posthorn.AcceptedEvent{
			ID: fmt.Sprintf("%012x-%d", now.UnixMilli(), w.made), RepoID: hook.RepoID, Type: "push", Payload: payload1K, CreatedAt: now,
		}
		w.made++
		events.Events = append(events.Events, accepting(e, true, hook))
		r := delivered(leasedEntryOf(hook, e), now)
		r.Delivery.Exchange = posthorn.Exchange{
			URL: "https://example.com/hook", SentAt: now, Secrets: 1,
			Header:  http.Header{"Content-Type": {"text/plain; charset=utf-8"}, "Date": {"Mon, 02 Jan 2006 15:04:05 GMT"}, "Content-Length": {"2"}},
			Timings: posthorn.Timings{FirstByte: time.Millisecond, Total: 2 * time.Millisecond, Reused: true},
		}
		results.Results = append(results.Results, r)
	}
	return events, results
}

// round commits events and then their results.
func (w *workload) round(events, results posthorn.Batch) {
	w.t.Helper()
	w.commit(events)
	w.commit(results)
}

func (w *workload) commit(b posthorn.Batch) {
	w.t.Helper()
	commitBatch(w.t, w.Store, b)
}
