package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/sqlite"
)

const mib = 1 << 20

// memory returns what /proc says of a server's memory, in bytes: VmRSS, what it has now, or VmHWM, the most it has had.
func (s *server) memory(name string) int64 {
	s.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	found := regexp.MustCompile(name + `:\s+(\d+) kB`).FindSubmatch(b)
	if found == nil {
		s.t.Skipf("there is no %s in /proc/PID/status", name)
	}
	kib, err := strconv.ParseInt(string(found[1]), 10, 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return kib << 10
}

func needsProc(t *testing.T) {
	if _, err := os.Stat("/proc/self/status"); err != nil {
		t.Skip("there is no /proc to read the server's memory from")
	}
}

// A server that has nothing to do, but has done something, takes less than 40 MiB.
func TestMemoryIdle(t *testing.T) { // not parallel: it sets PATH
	needsProc(t)
	useBuilt(t)
	receiver := newReceiver(t, nil)
	s := startContract(t)
	c := in(t, s)
	hook := c.hook(receiver.URL, "push", "s3cret")
	for range 100 {
		c.dispatch("push", `{}`, 1)
	}
	c.awaitLog(hook, 100)
	rss, peak := s.memory("VmRSS"), s.memory("VmHWM")
	t.Logf("VmRSS %.1f MiB, VmHWM %.1f MiB", float64(rss)/mib, float64(peak)/mib)
	if rss >= 40*mib {
		t.Errorf("an idle server takes %.1f MiB, want less than 40", float64(rss)/mib)
	}
	s.stop()
}

// A backlog of 100,000 events for one webhook that hangs stays in the database: it takes at most 50 MiB, when it comes in,
// and when the server starts with it. Another webhook is served beside it.
func TestMemoryBacklog(t *testing.T) { // not parallel: it sets PATH
	needsProc(t)
	if testing.Short() {
		t.Skip("it takes long")
	}
	useBuilt(t)
	const posted, inAll, most = 20_000, 100_000, 50 * mib
	hanging := newReceiver(t, func(*wireRequest) wireAnswer { return answerHang("") })
	healthy := newReceiver(t, nil)
	s := startContract(t, "--data", memoryFolder(t))
	dead := in(t, s)
	dead.hook(hanging.URL, "push", "s3cret")
	alive := in(t, s)
	alive.hook(healthy.URL, "push", "s3cret")
	served := 0
	serve := func() {
		t.Helper()
		for range 20 {
			alive.dispatch("push", `{}`, 1)
		}
		served += 20
		healthy.await(served)
	}
	serve()
	idle := s.memory("VmRSS")
	check := func(when string) {
		t.Helper()
		var now, peak int64
		eventually(t, func() string { // what the work itself took for a while is given back
			now, peak = s.memory("VmRSS")-idle, s.memory("VmHWM")-idle
			if now > most {
				return fmt.Sprintf("%s the server takes %.1f MiB more than before, want at most %d", when, float64(now)/mib, most/mib)
			}
			return ""
		})
		t.Logf("%s: %.1f MiB more than %.1f, and %.1f more at the peak", when, float64(now)/mib, float64(idle)/mib, float64(peak)/mib)
		if peak > 2*most {
			t.Errorf("%s it took %.1f MiB more for a while, want at most %d", when, float64(peak)/mib, 2*most/mib)
		}
	}

	payload := `{"text":"` + strings.Repeat("x", 500) + `"}`
	var left atomic.Int64
	left.Store(posted)
	var publishers sync.WaitGroup
	for range 32 {
		publishers.Go(func() {
			for left.Add(-1) >= 0 {
				a, err := s.send(t.Context(), "POST", dead.path("/events"), strings.NewReader(eventJSON("push", "", payload)))
				if err != nil || a.Status != 202 {
					t.Errorf("%d %s, %v", a.Status, a.Body, err)
					return
				}
			}
		})
	}
	publishers.Wait()
	hanging.await(1)
	serve()
	check(fmt.Sprintf("when %d events had come in", posted))
	s.kill() // with the lease of what it had in memory
	addBacklog(t, s.data, dead.repo, payload, inAll-posted)

	s = startContract(t, "--data", s.data)
	before := len(hanging.got())
	alive = alive.at(s)
	serve()
	hanging.await(before + 1)
	// Over a few sweeps, which look for what is due, nothing gathers either.
	for sweeps := time.After(3 * time.Second); ; {
		serve()
		select {
		case <-sweeps:
		default:
			continue
		}
		break
	}
	check(fmt.Sprintf("after a start with a backlog of %d", inAll))
	s.kill()
	if n := sql(t, s.data, "SELECT count(*) FROM queue")[0]; n != strconv.Itoa(inAll) {
		t.Errorf("the queue has %s entries, want %d", n, inAll)
	}
}

// addBacklog adds events and their queue entries to the database of a server that has stopped.
func addBacklog(t *testing.T, data, repo, payload string, events int) {
	t.Helper()
	store, err := sqlite.Open(t.Context(), filepath.Join(data, "posthorn.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	page, err := store.Webhooks(t.Context(), posthorn.WebhookQuery{RepoID: repo})
	if err != nil {
		t.Fatal(err)
	}
	targets := []posthorn.Target{{WebhookSeq: page.Items[0].Seq}}
	for events > 0 {
		var b posthorn.Batch
		for range min(events, 10_000) {
			now := time.Now().UTC().Truncate(time.Microsecond)
			b.Events = append(b.Events, posthorn.NewEvent{
				Event: &posthorn.AcceptedEvent{
					ID: fmt.Sprint("backlog-", events), RepoID: repo, Type: "push", Payload: []byte(payload), CreatedAt: now, Deliveries: 1,
				},
				Targets: targets, Trigger: posthorn.TriggerAutomatic,
			})
			events--
		}
		if _, err := store.Commit(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
}
