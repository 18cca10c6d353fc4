package sender

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/musehub/posthorn/internal/guardtest"
)

func TestTimeout(t *testing.T) {
	names := map[string]string{"hook.test.": "127.0.0.1", "hang.test.": "hang"}
	drip := func(c *bufio.ReadWriter, s string) {
		tick := time.NewTicker(short / 10)
		defer tick.Stop()
		for write(c, s) == nil {
			<-tick.C
		}
	}
	sent := make(chan struct{}) // the request that nobody reads is over
	for _, test := range []struct {
		phase, scheme, host string
		body                int
		handle              func(*bufio.ReadWriter)
	}{
		{"DNS", "http", "hang.test", 2, hold},
		{"TLS", "https", "127.0.0.1", 2, hold},
		{"request", "http", "127.0.0.1", 32 << 20, func(*bufio.ReadWriter) { <-sent }},
		{"response headers", "http", "127.0.0.1", 2, hold},
		{"response headers", "http", "hook.test", 2, hold},
		{"response headers", "http", "127.0.0.1", 2, func(c *bufio.ReadWriter) {
			readRequest(c)
			write(c, "HTTP/1.1 200 OK\r\n")
			drip(c, "A: b\r\n")
		}},
		{"response headers", "http", "127.0.0.1", 2, func(c *bufio.ReadWriter) {
			readRequest(c)
			drip(c, "HTTP/1.1 100 Continue\r\n\r\n")
		}},
		{"response body", "http", "127.0.0.1", 2, func(c *bufio.ReadWriter) {
			readRequest(c)
			write(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nh")
			hold(c)
		}},
		{"response body", "http", "127.0.0.1", 2, func(c *bufio.ReadWriter) {
			readRequest(c)
			write(c, "HTTP/1.1 200 OK\r\n\r\n"+strings.Repeat("b", 3000))
			hold(c)
		}},
		{"response body", "http", "127.0.0.1", 2, func(c *bufio.ReadWriter) {
			readRequest(c)
			write(c, "HTTP/1.1 200 OK\r\n\r\n")
			drip(c, "b")
		}},
	} {
		t.Run(test.phase, func(t *testing.T) {
			t.Parallel()
			s, _ := newSender(t, Config{AllowTargets: []Target{loopback}, Resolver: guardtest.NewDNS(t, names).Resolver()})
			u := mustURL(serve(t, test.handle))
			u.Scheme, u.Host = test.scheme, net.JoinHostPort(test.host, u.Port())
			o := timesOut(t, s, &Request{URL: u, Header: header(), Body: make([]byte, test.body)}, test.phase)
			if test.phase == "request" {
				close(sent)
			}
			// The time has gone by in the phase that is named.
			in := map[string]time.Duration{"DNS": o.Timings.DNS, "TLS": o.Timings.TLS}
			if spent, ok := in[test.phase]; ok && (spent <= 0 || spent < o.Timings.Connect) {
				t.Errorf("%+v", o.Timings)
			}
		})
	}
}

func TestTimeoutOfConnect(t *testing.T) {
	s := local(t)
	over := make(chan struct{})
	defer close(over)
	s.afterGuard = func(string, string) error {
		<-over
		return errNotLoopback
	}
	o := timesOut(t, s, &Request{URL: mustURL("http://127.0.0.1:1/"), Header: header()}, "connect")
	if o.Timings.DNS != 0 || o.Timings.Connect <= 0 {
		t.Errorf("%+v", o.Timings)
	}
}

// The system may give up sooner than the attempt.
func TestTimeoutOfTheSystem(t *testing.T) {
	s := local(t)
	s.afterGuard = func(string, string) error { return os.NewSyscallError("connect", syscall.ETIMEDOUT) }
	o := post(t, s, "http://127.0.0.1:1/", 0)
	if want := "timeout: connect: " + syscall.ETIMEDOUT.Error(); o.Status != 0 || o.Body != want {
		t.Errorf("got %+v, want %q", o, want)
	}
}

func TestDefaultTimeout(t *testing.T) {
	s := New(Config{})
	defer s.Close()
	if s.timeout != 10*time.Second {
		t.Errorf("it is %v", s.timeout)
	}
}

// The caller gives up at each stage; that is no failure of the receiver.
func TestCancel(t *testing.T) {
	for _, test := range []struct{ name, response string }{
		{"response headers", ""},
		{"response body", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nh"},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		target := serve(t, func(c *bufio.ReadWriter) {
			readRequest(c)
			write(c, test.response)
			cancel()
			hold(c)
		})
		o := local(t).Send(ctx, &Request{URL: mustURL(target), Header: header(), Body: []byte("{}")})
		if o.Status != 0 || !o.Canceled || !strings.HasPrefix(o.Body, "request error: response ") || !strings.HasSuffix(o.Body, ": canceled") {
			t.Errorf("%s: %+v", test.name, o)
		}
	}

	for name, ctx := range map[string]func() (context.Context, context.CancelFunc){
		"canceled before": func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			return ctx, cancel
		},
		"deadline of the caller": func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(t.Context(), short)
		},
	} {
		ctx, cancel := ctx()
		o := local(t).Send(ctx, &Request{URL: mustURL(serve(t, hold)), Header: header()})
		cancel()
		if o.Status != 0 || !o.Canceled {
			t.Errorf("%s: %+v", name, o)
		}
	}
}

// A response that is complete counts, whatever the caller's context does.
func TestCancelAfterResponse(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := local(t)
	o := s.Send(ctx, &Request{URL: mustURL(respond(t, ok("hi"))), Header: header()})
	cancel()
	if o.Status != 200 || o.Canceled {
		t.Errorf("%+v", o)
	}
}

// A dial that is left alone ends with the time of its attempt, or with Close.
func TestAbandonedDial(t *testing.T) {
	for timeout := short; !abandon(t, timeout, func(*Sender) {}); timeout *= 2 {
		if timeout >= long {
			t.Fatal("no dial was abandoned")
		}
	}
	if !abandon(t, time.Hour, (*Sender).Close) {
		t.Error("no dial was abandoned")
	}
}

// abandon cancels an attempt in its handshake and waits for the end of that. It returns false if the attempt ran out
// of time before.
func abandon(t *testing.T, timeout time.Duration, then func(*Sender)) bool {
	s, _ := newSender(t, Config{AllowTargets: []Target{loopback}, Timeout: timeout})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	closed := make(chan struct{})
	target := mustURL(serve(t, func(c *bufio.ReadWriter) {
		c.ReadByte() // the handshake has begun
		cancel()
		hold(c)
		close(closed)
	}))
	target.Scheme = "https"
	if o := s.Send(ctx, &Request{URL: target, Header: header()}); !o.Canceled {
		return false
	}
	then(s)
	<-closed
	return true
}

// A connection that can't be used is not left open.
func TestFailedHandshakeCloses(t *testing.T) {
	closed := make(chan struct{})
	target := mustURL(serve(t, func(c *bufio.ReadWriter) {
		write(c, "SSH-2.0-OpenSSH\r\n")
		hold(c)
		close(closed)
	}))
	target.Scheme = "https"
	o := post(t, local(t), target.String(), 0)
	if o.Body != "request error: TLS: first record does not look like a TLS handshake" {
		t.Errorf("%+v", o)
	}
	<-closed
}

func TestTLS(t *testing.T) {
	var protocol string
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		protocol = r.Proto
		w.Write([]byte("hi"))
	}))
	server.EnableHTTP2 = true
	server.Config.ErrorLog = discard
	server.StartTLS()
	defer server.Close()
	port := mustURL(server.URL).Port()

	resolver := guardtest.NewDNS(t, map[string]string{"example.com.": "127.0.0.1", "other.test.": "127.0.0.1"}).Resolver()
	s, _ := newSender(t, Config{AllowTargets: []Target{loopback}, Resolver: resolver})
	if o := post(t, s, server.URL, 0); o.Body != "request error: TLS: the certificate is signed by an unknown authority" || o.Timings.TLS <= 0 {
		t.Errorf("%+v", o)
	}

	s.shared.tls.RootCAs = server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	// The certificate of httptest is for 127.0.0.1 and example.com.
	for _, host := range []string{"127.0.0.1", "example.com"} {
		o := post(t, s, "https://"+net.JoinHostPort(host, port), 0)
		if o.Status != 200 || o.Body != "hi" || o.Timings.TLS <= 0 || o.Timings.Reused || protocol != "HTTP/1.1" {
			t.Errorf("%s: %+v", host, o)
		}
		if o := post(t, s, "https://"+net.JoinHostPort(host, port), 0); o.Status != 200 || !o.Timings.Reused {
			t.Errorf("%s: %+v", host, o)
		}
	}
	o := post(t, s, "https://"+net.JoinHostPort("other.test", port), 0)
	if o.Status != 0 || o.Body != "request error: TLS: the certificate is for another host" {
		t.Errorf("%+v", o)
	}
}
