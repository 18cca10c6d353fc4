package sender

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // net/http tells there of receivers that talk out of turn
	goleak.VerifyTestMain(m)
}

// short is the first time limit of attempts that are meant to run into it, long the last.
const (
	short = 250 * time.Millisecond
	long  = 4 * time.Second
)

// patience is the time limit of all others: they must not run into it, however busy the machine is.
const patience = time.Minute

var loopback = mustTarget("127.0.0.1/32")

var discard = log.New(io.Discard, "", 0)

func mustTarget(s string) Target {
	t, err := ParseTarget(s)
	if err != nil {
		panic(err)
	}
	return t
}

// passed records the addresses that the guard let pass.
type passed struct {
	mu        sync.Mutex
	addresses []string
}

func (p *passed) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.addresses, " ")
}

// take returns the addresses and forgets them.
func (p *passed) take() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := strings.Join(p.addresses, " ")
	p.addresses = nil
	return all
}

var errNotLoopback = errors.New("tests connect to loopback only")

// newSender returns a Sender that, even if its guard were broken, sends nothing beyond 127.0.0.1.
func newSender(t testing.TB, cfg Config) (*Sender, *passed) {
	cfg.Timeout = cmp.Or(cfg.Timeout, patience)
	s := New(cfg)
	t.Cleanup(s.Close)
	p := new(passed)
	s.afterGuard = func(_, address string) error {
		p.mu.Lock()
		p.addresses = append(p.addresses, address)
		p.mu.Unlock()
		if netip.MustParseAddrPort(address).Addr() != netip.MustParseAddr("127.0.0.1") {
			return errNotLoopback
		}
		return nil
	}
	return s, p
}

// local returns a Sender that may connect to 127.0.0.1.
func local(t testing.TB) *Sender {
	s, _ := newSender(t, Config{AllowTargets: []Target{loopback}})
	return s
}

func mustURL(raw string) *url.URL {
	u, err := url.Parse(raw)
	if err != nil {
		panic(err)
	}
	return u
}

func header() http.Header {
	return http.Header{"Content-Type": {"application/json"}, "User-Agent": {"MuseHub-Webhook/1.0"}}
}

func post(t testing.TB, s *Sender, target string, timeout time.Duration) Outcome {
	t.Helper()
	o := s.Send(t.Context(), &Request{URL: mustURL(target), Header: header(), Body: []byte(`{"a":1}`), Timeout: timeout})
	if o.Timings.Total <= 0 {
		t.Errorf("Timings.Total is %v", o.Timings.Total)
	}
	return o
}

// timesOut makes attempts until one runs out of time in the phase, each with twice the time of the one before: on a
// busy machine it may take more than a short time to get there.
func timesOut(t testing.TB, s *Sender, r *Request, phase string) Outcome {
	t.Helper()
	for r.Timeout = short; ; r.Timeout *= 2 {
		o := s.Send(t.Context(), r)
		want := fmt.Sprintf("timeout: %s: not done within %v, the limit of the whole attempt", phase, r.Timeout)
		if o.Body == want && o.Timings.Total >= r.Timeout && o.Status == 0 && o.Header == nil && !o.Canceled {
			return o
		}
		if !strings.HasPrefix(o.Body, "timeout: ") || r.Timeout >= long {
			t.Errorf("%s: got %+v, want %q", r.URL, o, want)
			return o
		}
	}
}

// serve hands each connection to a listener on 127.0.0.1 to handle, and returns the URL of it. The connection is
// closed after handle, and at the end of the test at the latest.
func serve(t testing.TB, handle func(*bufio.ReadWriter)) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		ln.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer context.AfterFunc(ctx, func() { conn.Close() })()
				defer conn.Close()
				handle(bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn)))
			})
		}
	})
	return "http://" + ln.Addr().String()
}

// respond serves each request with the same bytes; then it closes the connection.
func respond(t testing.TB, response string) string {
	return serve(t, func(c *bufio.ReadWriter) {
		if _, err := readRequest(c); err == nil {
			write(c, response)
		}
	})
}

func write(c *bufio.ReadWriter, s string) error {
	c.WriteString(s)
	return c.Flush()
}

// hold keeps the connection open until the other side, or the end of the test, closes it.
func hold(c *bufio.ReadWriter) {
	io.Copy(io.Discard, c)
}

// readRequest returns a request as it is on the wire.
func readRequest(c *bufio.ReadWriter) (string, error) {
	var raw bytes.Buffer
	length := 0
	for {
		line, err := c.ReadString('\n')
		if err != nil {
			return "", err
		}
		raw.WriteString(line)
		if line == "\r\n" {
			break
		}
		if key, value, _ := strings.Cut(line, ":"); textproto.CanonicalMIMEHeaderKey(key) == "Content-Length" {
			if length, err = strconv.Atoi(strings.TrimSpace(value)); err != nil {
				return "", err
			}
		}
	}
	_, err := io.CopyN(&raw, c, int64(length))
	return raw.String(), err
}

func ok(body string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}
