package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
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
	const events, most = 100_000, 50 * mib
	hanging := newReceiver(t, func(*wireRequest) wireAnswer { return answerHang("") })
	healthy := newReceiver(t, nil)
	s := startContract(t, "--data", memoryFolder(t))
	dead := in(t, s)
	hook := dead.hook(hanging.URL, "push", "s3cret")
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
	var publishers sync.WaitGroup
	const connections = 50
	for range connections {
		publishers.Go(func() { postMany(t, s, dead.path("/events"), eventJSON("push", "", payload), events/connections) })
	}
	publishers.Wait()
	hanging.await(1)
	serve()
	check("with a backlog")
	s.kill() // with the lease of what it had in memory

	before := len(hanging.got())
	s = startContract(t, "--data", s.data)
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
	check("after a start with the backlog")
	s.kill()
	left := "SELECT count(*) FROM posthorn_queue WHERE webhook = (SELECT seq FROM posthorn_webhooks WHERE id = ?)"
	if n := sql(t, s.data, left, hook)[0]; n != strconv.Itoa(events) {
		t.Errorf("the queue has %s entries of the webhook that hangs, want %d", n, events)
	}
}

// postMany posts the same body again and again over one connection, without waiting for the answer to one before the next
// goes out: the test's own client would take longer than the server.
func postMany(t *testing.T, s *server, path, body string, n int) {
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	request := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: posthorn\r\nAuthorization: Bearer %s\r\n"+
		"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", path, s.token, len(body), body)
	answers := bufio.NewReader(conn)
	for n > 0 {
		some := min(n, 50)
		if _, err := io.WriteString(conn, strings.Repeat(request, some)); err != nil {
			t.Error(err)
			return
		}
		for range some {
			answer, err := http.ReadResponse(answers, nil) //nolint:bodyclose // it is read to its end below
			if err != nil || answer.StatusCode != http.StatusAccepted {
				t.Errorf("an event was answered with %v, %v", answer, err)
				return
			}
			_, _ = io.Copy(io.Discard, answer.Body)
		}
		n -= some
	}
}
