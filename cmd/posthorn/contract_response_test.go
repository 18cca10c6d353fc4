package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"unicode/utf8"
)

// hostile is an answer that a receiver can give, and what the row must say.
type hostile struct {
	answer wireAnswer
	status int
	body   string // "*": any of at most 512 characters
}

// hostiles are answers with a status that was received whole, whatever follows.
func hostiles(t *testing.T, written *atomic.Int64) map[string]hostile {
	const okay = "HTTP/1.1 200 OK\r\n"
	var member bytes.Buffer
	z := gzip.NewWriter(&member)
	_, err := z.Write(make([]byte, 1<<20))
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	bomb := strings.Repeat(member.String(), 300) // 300 MiB (RFC 1952, section 2.2: members follow one another)
	mib := strings.Repeat("0123456789abcdef", 1<<16)
	const closing = "Connection: close\r\n"
	snippet := strings.Repeat("0123456789abcdef", 32)
	const interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
	return map[string]hostile{
		"/empty":  {answerBody(200, ""), 200, ""},
		"/512":    {answerBody(200, strings.Repeat("x", 512)), 200, strings.Repeat("x", 512)},
		"/513":    {answerBody(500, strings.Repeat("x", 513)), 500, strings.Repeat("x", 512)},
		"/wide":   {answerBody(200, strings.Repeat("é", 600)), 200, strings.Repeat("é", 512)},
		"/astral": {answerBody(404, strings.Repeat("🎼", 600)), 404, strings.Repeat("🎼", 512)},
		"/bad":    {answerBody(200, "a\xffb\xc3("), 200, "a\ufffdb\ufffd("},
		"/only":   {answerBody(500, strings.Repeat("\xff", 5000)), 500, strings.Repeat("\ufffd", 512)},
		// U+FFFD for NUL too, which not every database can store.
		"/nul":          {answerBody(200, "a\x00b"), 200, "a\ufffdb"},
		"/charset":      {answerBody(200, "caf\xe9", "Content-Type: text/html; charset=klingon-8"), 200, "caf\ufffd"},
		"/utf16":        {answerBody(422, "\xff\xfea\x00", "Content-Type: text/plain; charset=utf-16"), 422, "\ufffd\ufffda\ufffd"},
		"/type":         {answerBody(200, "ok", "Content-Type: \xff;;;=", "X-Odd: caf\xe9\xff"), 200, "ok"},
		"/gzip":         {answerBody(500, bomb, "Content-Encoding: gzip"), 500, "*"},
		"/not-gzip":     {answerBody(200, "plain", "Content-Encoding: gzip"), 200, "plain"},
		"/not-brotli":   {answerBody(200, "plain", "Content-Encoding: br, nonsense"), 200, "plain"},
		"/short":        {answerRaw(okay + "Content-Length: 100\r\n\r\nfive!"), 200, "five!"},
		"/none":         {answerRaw("HTTP/1.1 503 No\r\nContent-Length: 100\r\n\r\n"), 503, ""},
		"/chunk":        {answerRaw(okay + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nZZZ\r\n"), 200, "hello"},
		"/half-chunk":   {answerRaw("HTTP/1.1 409 C\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel"), 409, "hel"},
		"/old":          {answerRaw("HTTP/1.0 200 OK\r\n\r\nold"), 200, "old"},
		"/reason":       {answerRaw("HTTP/1.1 200 \xff\xfe\r\n" + closing + "\r\n"), 200, ""},
		"/interim":      {answerRaw(interim + okay + closing + "\r\nlast"), 200, "last"},
		"/204":          {answerRaw("HTTP/1.1 204 No Content\r\n" + closing + "\r\nwhat body?"), 204, ""},
		"/many-headers": {answerBody(200, "ok", "X-A: "+strings.Repeat("a", 40_000)), 200, "ok"},
		"/300mb":        {counted(okay+"Content-Length: 314572800\r\n\r\n", mib, written), 200, snippet},
		"/endless":      {counted("HTTP/1.1 418 I\r\n\r\n", mib, written), 418, snippet},
		"/chunks": {counted("HTTP/1.1 202 A\r\nTransfer-Encoding: chunked\r\n\r\n",
			fmt.Sprintf("%x\r\n%s\r\n", len(mib), mib), written), 202, snippet},
	}
}

// counted is answerStream at full speed, and adds up what was written.
func counted(head, piece string, written *atomic.Int64) wireAnswer {
	return func(conn net.Conn, ended <-chan struct{}) bool {
		return answerStream(head, piece, 0)(countedConn{conn, written}, ended)
	}
}

type countedConn struct {
	net.Conn
	written *atomic.Int64
}

func (c countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.written.Add(int64(n))
	return n, err
}

// Case 12: the answers of receivers.
func TestContract12(t *testing.T) {
	t.Parallel()
	together(t, map[string]func(*testing.T){
		"case 12 responses": contract12,
		"case 12 headers":   contract12Headers,
		"case 12 smuggled":  contract12Smuggled,
	})
}

func contract12(t *testing.T) {
	s := startContract(t, "--retry-policy", "none", "--timeout", "1m")
	c := in(t, s)
	var written atomic.Int64
	answers := hostiles(t, &written)
	receiver := newReceiver(t, func(r *wireRequest) wireAnswer {
		target, _, _ := strings.Cut(r.target(), "?")
		return answers[target].answer
	})
	healthy := newReceiver(t, nil)
	first := c.hook(healthy.URL, "push", "")
	hooks := map[string]string{}
	for target := range answers {
		hooks[target] = c.hook(receiver.URL+target, "push", "")
	}
	for _, endless := range []string{"/300mb", "/endless", "/chunks"} { // several at once
		for i := range 5 {
			hooks[fmt.Sprintf("%s?%d", endless, i)] = c.hook(fmt.Sprintf("%s%s?%d", receiver.URL, endless, i), "push", "")
		}
	}
	last := c.hook(healthy.URL, "push", "")
	before, measured := peakMemory(t, s)
	const events = 2
	for range events { // the second may go over connections that the first has left
		c.dispatch("push", `{}`, len(hooks)+2)
	}
	for hook, target := range invert(hooks) {
		target, _, _ := strings.Cut(target, "?")
		want := answers[target]
		for _, row := range c.awaitLog(hook, events) {
			if row.status() != want.status || row.success() != (want.status/100 == 2) {
				t.Errorf("%s, %d, is logged as %d, success %v, %q", target, want.status, row.status(), row.success(), row.body())
			}
			if want.body != "*" && row.body() != want.body {
				t.Errorf("%s: the snippet is\n%q\nwant\n%q", target, row.body(), want.body)
			}
			if n := utf8.RuneCountInString(row.body()); n > 512 {
				t.Errorf("%s: the snippet has %d characters", target, n)
			}
			c.detail(hook, row.DeliveryID) // it can be read
		}
	}
	if row := c.awaitLog(hooks["/gzip"], events)[0]; !strings.HasPrefix(row.body(), "\x1f\ufffd\b") {
		t.Errorf("the gzip bomb is logged as %q, want its bytes as they came", row.body())
	}
	for _, hook := range []string{first, last} {
		for _, row := range c.awaitLog(hook, events) {
			if !row.success() {
				t.Errorf("the healthy one is logged as %d, %q", row.status(), row.body())
			}
		}
	}
	// 36 endless bodies: what the sockets' buffers took, and no more.
	if n := written.Load(); n > 36*16<<20 {
		t.Errorf("the receiver got rid of %d MiB", n>>20)
	}
	if after, ok := peakMemory(t, s); ok && measured {
		t.Logf("peak memory: %d MiB before, %d MiB after", before>>20, after>>20)
		if after-before > 128<<20 {
			t.Errorf("the server's peak memory went from %d to %d MiB", before>>20, after>>20)
		}
	}
}

func invert(m map[string]string) map[string]string {
	inverse := make(map[string]string, len(m))
	for k, v := range m {
		inverse[v] = k
	}
	return inverse
}

// Case 12, headers that have no end or no meaning. Whether the status counts then as received is open; the row must say
// either the status or that there was no response, be whole, and nothing else may be touched.
func contract12Headers(t *testing.T) {
	s := startContract(t, "--retry-policy", "none", "--timeout", "1m")
	c := in(t, s)
	const okay = "HTTP/1.1 200 OK\r\n"
	answers := map[string]wireAnswer{
		"/endless":   answerStream(okay, "X-A: "+strings.Repeat("a", 1000)+"\r\n", 0),
		"/one-line":  answerStream(okay+"X-A: ", strings.Repeat("a", 1000), 0),
		"/status":    answerStream("HTTP/1.1 200 ", strings.Repeat("a", 1000), 0),
		"/interim":   answerStream("", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", 0),
		"/no-colon":  answerRaw(okay + "nonsense\r\n\r\n"),
		"/nul":       answerRaw(okay + "X-\x00: \x00\r\nConnection: close\r\n\r\n"),
		"/length":    answerRaw(okay + "Content-Length: abc\r\n\r\nbody"),
		"/lengths":   answerRaw(okay + "Content-Length: 1\r\nContent-Length: 4\r\n\r\nbody"),
		"/negative":  answerRaw(okay + "Content-Length: -1\r\n\r\nbody"),
		"/transfer":  answerRaw(okay + "Transfer-Encoding: nonsense\r\n\r\nbody"),
		"/too-large": answerBody(200, "ok", "X-A: "+strings.Repeat("a", 200_000)),
	}
	receiver := newReceiver(t, func(r *wireRequest) wireAnswer { return answers[r.target()] })
	healthy := newReceiver(t, nil)
	good := c.hook(healthy.URL, "push", "")
	hooks := map[string]string{}
	for target := range answers {
		hooks[c.hook(receiver.URL+target, "push", "")] = target
	}
	before, measured := peakMemory(t, s)
	for range 2 {
		c.dispatch("push", `{}`, len(hooks)+1)
	}
	for _, row := range c.awaitLog(good, 2) {
		if !row.success() {
			t.Errorf("the healthy one is logged as %d, %q", row.status(), row.body())
		}
	}
	for hook, target := range hooks {
		for _, row := range c.awaitLog(hook, 2) {
			received := row.status() == 200 && row.success()
			failed := row.status() == 0 && !row.success() && strings.HasPrefix(row.body(), "request error: response headers: ")
			if !received && !failed {
				t.Errorf("%s is logged as %d, success %v, %q", target, row.status(), row.success(), row.body())
			}
			if row.DurationMS > 50_000 { // not by the time limit
				t.Errorf("%s took %v ms", target, row.DurationMS)
			}
			c.detail(hook, row.DeliveryID)
		}
	}
	if after, ok := peakMemory(t, s); ok && measured && after-before > 128<<20 {
		t.Errorf("the server's peak memory went from %d to %d MiB", before>>20, after>>20)
	}
}

// Case 12, an answer with more to it than Content-Length says: the rest must not be taken for the answer to what another
// webhook is sent over the same connection.
func contract12Smuggled(t *testing.T) {
	s := startContract(t, "--retry-policy", "none", "--timeout", "1m")
	c := in(t, s)
	smuggled := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 500 No\r\nContent-Length: 8\r\n\r\nsmuggled"
	receiver := newReceiver(t, func(r *wireRequest) wireAnswer {
		if r.target() == "/evil" {
			return func(conn net.Conn, ended <-chan struct{}) bool {
				answerRaw(smuggled)(conn, ended)
				return true
			}
		}
		return answerBody(http.StatusAccepted, "mine")
	})
	const events = 50
	evil, good := c.hook(receiver.URL+"/evil", "push", ""), c.hook(receiver.URL+"/good", "push", "")
	for range events {
		c.dispatch("push", `{}`, 2)
	}
	for _, row := range c.awaitLog(good, events) {
		if row.status() != http.StatusAccepted || row.body() != "mine" {
			t.Errorf("the other webhook's delivery is logged as %d, %q", row.status(), row.body())
		}
	}
	for _, row := range c.awaitLog(evil, events) {
		if row.status() != http.StatusOK || row.body() != "ok" {
			t.Errorf("its own delivery is logged as %d, %q", row.status(), row.body())
		}
	}
}

// peakMemory returns the most memory that a server has had so far, where the system tells.
func peakMemory(t *testing.T, s *server) (int64, bool) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		t.Logf("the memory of the server is unknown: %v", err)
		return 0, false
	}
	for _, name := range []string{"VmHWM", "VmRSS"} { // of now, where there is no peak
		if m := regexp.MustCompile(name + `:\s+(\d+) kB`).FindSubmatch(b); m != nil {
			kib, err := strconv.ParseInt(string(m[1]), 10, 64)
			return kib << 10, err == nil
		}
	}
	return 0, false
}
