package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// timedOut is how the row of an attempt starts whose time was over.
const timedOut = "0 timeout: "

// malicious is what a receiver does to harm, and how the row must start: with the status, a space and the body.
type malicious struct {
	answer wireAnswer
	want   string
}

func maliciousAnswers(t *testing.T) map[string]malicious {
	const okay = "HTTP/1.1 200 OK\r\n"
	much := strings.Repeat("0123456789abcdef", 4096)
	var member bytes.Buffer
	z := gzip.NewWriter(&member)
	if _, err := z.Write(make([]byte, mib)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	bomb := strings.Repeat(member.String(), 1000) // RFC 1952, section 2.2: members follow one another
	var lines strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&lines, "X-%d: %d\r\n", i, i)
	}
	const broken = "0 request error: "
	return map[string]malicious{
		"endless body":         {answerStream(okay+"\r\n", much, 0), "200 0123456789abcdef"},
		"endless chunk":        {answerStream(okay+"Transfer-Encoding: chunked\r\n\r\nffffffffffffff\r\n", much, 0), "200 0123456789abcdef"},
		"dripping body":        {answerStream(okay+"\r\n", "x", 50*time.Millisecond), timedOut},
		"dripping header":      {answerStream(okay, "X-A: a\r\n", 50*time.Millisecond), timedOut},
		"endless header":       {answerStream(okay, "X-A: "+much[:1000]+"\r\n", 0), broken},
		"endless header line":  {answerStream(okay+"X-A: ", much, 0), broken},
		"endless status line":  {answerStream("HTTP/1.1 200 ", much, 0), broken},
		"endless interims":     {answerStream("", "HTTP/1.1 103 Early Hints\r\n\r\n", 0), broken},
		"long status line":     {answerRaw("HTTP/1.1 200 " + strings.Repeat("x", mib) + "\r\n\r\n"), broken},
		"10,000 header lines":  {answerRaw(okay + lines.String() + "\r\n"), broken},
		"too long a length":    {answerRaw(okay + "Content-Length: 999999999999\r\n\r\nshort"), "200 short"},
		"too short a length":   {answerRaw(okay + "Content-Length: 5\r\n\r\nshort" + much), "200 short"},
		"two lengths":          {answerRaw(okay + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nshort"), broken},
		"a negative length":    {answerRaw(okay + "Content-Length: -1\r\n\r\n"), broken},
		"gzip bomb":            {answerBody(200, bomb, "Content-Encoding: gzip"), "200 "},
		"no HTTP":              {answerRaw("220 smtp.example.com ESMTP\r\n"), broken},
		"reset":                {answerReset(""), broken},
		"reset in the body":    {answerReset(okay + "Content-Length: 10\r\n\r\nhalf"), ""}, // the reset may overtake it
		"switching protocols":  {answerStream("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n", much, 0), "101 "},
		"silence":              {answerHang(""), timedOut},
		"silence in the body":  {answerHang(okay + "Content-Length: 10\r\n\r\nhalf"), timedOut},
		"silence in the chunk": {answerHang(okay + "Transfer-Encoding: chunked\r\n\r\n5\r\nhal"), timedOut},
	}
}

// answerReset writes what it is given and resets the connection.
func answerReset(raw string) wireAnswer {
	return func(conn net.Conn, _ <-chan struct{}) bool {
		_, _ = conn.Write([]byte(raw))
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		return false
	}
}

// openFiles counts the file descriptors of a server.
func openFiles(t *testing.T, s *server) int {
	t.Helper()
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// waitingWorker is in the stack of a worker that has nothing to do.
var waitingWorker = regexp.MustCompile(`\nruntime\.chanrecv2\(.*\n.*\ngithub\.com/musehub/posthorn\.\(\*scheduler\)\.work\(`)

// Whatever receivers do, other webhooks are served, memory stays within bounds, and no connection or goroutine is left.
func TestFaultMaliciousReceivers(t *testing.T) { // not parallel: it sets PATH
	needsProc(t)
	useBuilt(t)
	const events = 6
	s := startContract(t, "--timeout", "1m", "--retry-policy", "none")
	c := in(t, s)
	healthy := newReceiver(t, nil)
	first := c.hook(healthy.URL+"/first", "push", "s3cret")
	for range 20 {
		c.dispatch("push", `{}`, 1)
	}
	c.awaitLog(first, 20)
	contractClient.CloseIdleConnections()
	files, peak := openFiles(t, s), s.memory("VmHWM")

	answers := maliciousAnswers(t)
	receiver := newReceiver(t, func(r *wireRequest) wireAnswer {
		return answers[strings.ReplaceAll(r.target()[1:], "_", " ")].answer
	})
	hooks := map[string]string{}
	for name := range answers {
		hooks[name] = c.hook(receiver.URL+"/"+strings.ReplaceAll(name, " ", "_"), "push", "s3cret")
		if answers[name].want == timedOut {
			c.ask(http.StatusOK, "PATCH", "/webhooks/"+hooks[name], `{"timeout":1}`)
		}
	}
	last := c.hook(healthy.URL+"/last", "push", "s3cret")
	for range events {
		c.dispatch("push", `{}`, len(hooks)+2)
	}
	for _, hook := range []string{first, last} {
		eventually(t, func() string {
			rows, _ := c.wholeLog(hook)
			for _, d := range rows {
				if !d.success() {
					t.Fatalf("a healthy webhook's delivery is logged as %d, %q", d.status(), d.body())
				}
			}
			if len(rows) < events {
				return fmt.Sprintf("a healthy webhook has %d deliveries", len(rows))
			}
			return ""
		})
	}
	for name, hook := range hooks {
		for _, d := range c.awaitLog(hook, events) {
			if got := fmt.Sprintf("%d %s", d.status(), d.body()); !strings.HasPrefix(got, answers[name].want) || len(got) > 4*520 {
				t.Errorf("%s: it is logged as %q, want %q…", name, got, answers[name].want)
			}
		}
	}
	healthy.await(20 + 2*events)
	added := s.memory("VmHWM") - peak
	t.Logf("VmHWM %.1f MiB, then %.1f MiB more; %d open files", float64(peak)/mib, float64(added)/mib, files)
	if added > 32*mib {
		t.Errorf("they made the server take %.1f MiB", float64(added)/mib)
	}

	// A connection that is fine may be kept for a while; all others are closed.
	eventually(t, func() string {
		contractClient.CloseIdleConnections()
		if n := openFiles(t, s); n > files+5 {
			return fmt.Sprintf("%d files are open, %d were before", n, files)
		}
		return ""
	})
	if strings.Contains(s.logs(), "0123456789abcdef") {
		t.Error("what a receiver sent is in the log")
	}
	s.signal(syscall.SIGQUIT) // Go's answer to that is to print the stack of every goroutine
	<-s.process.exited
	stacks := s.logs()
	// Workers that wait for work are kept. There are as many as there were attempts at once, which differs from run to run.
	waiting := len(waitingWorker.FindAllString(stacks, -1))
	if n := strings.Count(stacks, "\ngoroutine ") - waiting; waiting == 0 || n <= 0 || n > 60 {
		t.Errorf("%d goroutines are left, and %d workers that wait", n, waiting)
	}
	if n := strings.Count(stacks, "persistConn).readLoop("); n > 5 {
		t.Errorf("%d connections have a goroutine", n)
	}
}
