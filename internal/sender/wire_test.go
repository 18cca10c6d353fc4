package sender

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// A record serves every request with the same response and keeps what came, as it was on the wire.
type record struct {
	response string // defaults to a 200

	mu       sync.Mutex
	requests []string
	conns    int
}

func (r *record) handle(c *bufio.ReadWriter) {
	r.mu.Lock()
	r.conns++
	r.mu.Unlock()
	for {
		raw, err := readRequest(c)
		if err != nil {
			return
		}
		r.mu.Lock()
		r.requests = append(r.requests, raw)
		r.mu.Unlock()
		if write(c, cmp.Or(r.response, ok("hi"))) != nil {
			return
		}
	}
}

func (r *record) last() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.requests[len(r.requests)-1]
}

func (r *record) count() (conns, requests int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conns, len(r.requests)
}

func TestRequestOnTheWire(t *testing.T) {
	var rec record
	base := serve(t, rec.handle)
	host := mustURL(base).Host
	s := local(t)

	for _, test := range []struct{ url, requestURI string }{
		{"", "/"},
		{"?", "/?"},
		{"?a=1", "/?a=1"},
		{"/", "/"},
		{"/hook?b=2&a=1&a&=&+%20%2b#fragment", "/hook?b=2&a=1&a&=&+%20%2b"},
		{"/%2F%2f/a%7eb/~/%41/.././/x;y=1,2:@!$&'()*+/", "/%2F%2f/a%7eb/~/%41/.././/x;y=1,2:@!$&'()*+/"},
		{"//x", "//x"},
		{"/a|b\"ü", "/a%7Cb%22%C3%BC"}, // no characters of a request line (RFC 9112, section 3.2; RFC 3986, section 3.3)
	} {
		u, err := s.CheckURL(base + test.url)
		if err != nil {
			t.Fatal(err)
		}
		h := http.Header{
			"Content-Type":      {"application/json"},
			"User-Agent":        {"MuseHub-Webhook/1.0"},
			"X-Musehub-Event":   {"push"},
			"X-Custom":          {"one", "two"},
			"webhook-id":        {"evt_1"}, // the case of a key is kept
			"Webhook-Signature": {"v1,abc v1,def"},
		}
		body := `{"repoId":"r1","text":"ü\u0000"}` + "\n"
		if o := s.Send(t.Context(), &Request{URL: u, Header: h, Body: []byte(body)}); o.Status != 200 || o.Body != "hi" {
			t.Fatalf("%s: %+v", test.url, o)
		}
		want := "POST " + test.requestURI + " HTTP/1.1\r\n" +
			"Host: " + host + "\r\n" +
			"User-Agent: MuseHub-Webhook/1.0\r\n" +
			fmt.Sprintf("Content-Length: %d\r\n", len(body)) +
			"Content-Type: application/json\r\n" +
			"Webhook-Signature: v1,abc v1,def\r\n" +
			"X-Custom: one\r\n" +
			"X-Custom: two\r\n" +
			"X-Musehub-Event: push\r\n" +
			"webhook-id: evt_1\r\n" +
			"\r\n" + body
		if got := rec.last(); got != want {
			t.Errorf("%s: got\n%q, want\n%q", test.url, got, want)
		}
	}
	if conns, _ := rec.count(); conns != 1 {
		t.Errorf("%d connections", conns)
	}
}

func TestNothingIsAddedToTheRequest(t *testing.T) {
	var rec record
	base := serve(t, rec.handle)
	s := local(t)
	for _, h := range []http.Header{nil, {}, {"User-Agent": nil}} {
		before := len(h)
		if o := s.Send(t.Context(), &Request{URL: mustURL(base), Header: h}); o.Status != 200 {
			t.Fatalf("%+v", o)
		}
		want := "POST / HTTP/1.1\r\nHost: " + mustURL(base).Host + "\r\nContent-Length: 0\r\n\r\n"
		if got := rec.last(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if len(h) != before {
			t.Errorf("the caller's header became %v", h)
		}
	}
}

func TestLargeBody(t *testing.T) {
	var rec record
	base := serve(t, rec.handle)
	body := strings.Repeat("0123456789abcdef", 25<<20/16)
	o := local(t).Send(t.Context(), &Request{URL: mustURL(base), Header: header(), Body: []byte(body)})
	if o.Status != 200 || !strings.HasSuffix(rec.last(), "\r\n\r\n"+body) {
		t.Errorf("%+v", o)
	}
}

func TestConnectionIsReused(t *testing.T) {
	var rec record
	base := serve(t, rec.handle)
	s := local(t)
	first, second := post(t, s, base, 0), post(t, s, base+"/other", 0)
	if a := first.Timings; first.Status != 200 || a.Reused || a.Connect <= 0 || a.FirstByte <= 0 || a.DNS+a.Connect+a.TLS+a.FirstByte > a.Total {
		t.Errorf("first: %+v", first)
	}
	if b := second.Timings; second.Status != 200 || !b.Reused || b.DNS+b.Connect+b.TLS != 0 || b.FirstByte <= 0 || b.FirstByte > b.Total {
		t.Errorf("second: %+v", second)
	}
	if conns, requests := rec.count(); conns != 1 || requests != 2 {
		t.Errorf("%d requests on %d connections", requests, conns)
	}
}

func TestConcurrentSends(t *testing.T) {
	var rec record
	base := serve(t, rec.handle)
	s := local(t)
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for range 20 {
				if o := post(t, s, base, 0); o.Status != 200 || o.Body != "hi" {
					t.Errorf("%+v", o)
				}
			}
		})
	}
	wg.Wait()
	if _, requests := rec.count(); requests != 32*20 {
		t.Errorf("%d requests", requests)
	}
}

// A connection that the receiver closes once it has the request may mean that it was processed. The Transport would
// send it again if a header calls it idempotent.
func TestRequestIsNotSentTwice(t *testing.T) {
	for _, key := range []string{"X-Other", "Idempotency-Key", "X-Idempotency-Key"} {
		for _, body := range []string{"{}", ""} {
			var requests atomic.Int32
			base := serve(t, func(c *bufio.ReadWriter) {
				for {
					if _, err := readRequest(c); err != nil || requests.Add(1) == 2 {
						return
					}
					write(c, ok("hi"))
				}
			})
			s := local(t)
			r := &Request{URL: mustURL(base), Header: http.Header{key: {"1"}}, Body: []byte(body)}
			if o := s.Send(t.Context(), r); o.Status != 200 {
				t.Fatalf("%+v", o)
			}
			o := s.Send(t.Context(), r)
			if o.Status != 0 || !strings.HasPrefix(o.Body, "request error: response headers: ") || !o.Timings.Reused {
				t.Errorf("%s: %+v", key, o)
			}
			if requests.Load() != 2 {
				t.Errorf("%s: %d requests", key, requests.Load())
			}
		}
	}
}

// A deadConn fails from the second request on, before it has written anything.
type deadConn struct {
	net.Conn
	writes int
}

func (c *deadConn) Write(b []byte) (int, error) {
	if c.writes++; c.writes > 1 {
		return 0, errors.New("dead")
	}
	return c.Conn.Write(b)
}

func TestDeadConnectionIsReplaced(t *testing.T) {
	var rec record
	base := serve(t, rec.handle)
	s := local(t)
	dial := s.shared.DialContext
	s.shared.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		return &deadConn{Conn: c}, err
	}
	for range 3 {
		if o := post(t, s, base, 0); o.Status != 200 || o.Timings.Reused {
			t.Errorf("%+v", o)
		}
	}
	if conns, requests := rec.count(); conns != 3 || requests != 3 {
		t.Errorf("%d requests on %d connections", requests, conns)
	}
	if !strings.HasSuffix(rec.last(), "\r\n\r\n"+`{"a":1}`) {
		t.Errorf("got %q", rec.last())
	}
}

func TestProxyOfEnvironmentIsIgnored(t *testing.T) {
	for _, key := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"} {
		t.Setenv(key, "http://127.0.0.1:1")
	}
	// net/http reads the environment once per process, so a request alone would prove nothing.
	s := local(t)
	if s.shared.Proxy != nil {
		t.Error("the transport has a proxy")
	}
	if o := post(t, s, respond(t, ok("hi")), 0); o.Status != 200 {
		t.Errorf("%+v", o)
	}
}

func TestNoCookies(t *testing.T) {
	rec := record{response: "HTTP/1.1 200 OK\r\nSet-Cookie: a=b; Path=/\r\nContent-Length: 0\r\n\r\n"}
	base := serve(t, rec.handle)
	s := local(t)
	post(t, s, base, 0)
	o := post(t, s, base, 0)
	if o.Header.Get("Set-Cookie") != "a=b; Path=/" || strings.Contains(rec.last(), "ookie") {
		t.Errorf("%+v, %q", o, rec.last())
	}
}

// Requests that can't be made are outcomes too.
func TestBadRequest(t *testing.T) {
	s, _ := newSender(t, Config{})
	for _, r := range []*Request{
		{},
		{URL: &url.URL{}},
		{URL: mustURL("ftp://example.com/")},
		{URL: mustURL("http:///")},
		{URL: mustURL("http://example.com/"), Header: http.Header{"X-A": {"a\r\nb"}}},
		{URL: mustURL("http://example.com/"), Header: http.Header{"X A": {"a"}}},
		{URL: mustURL("http://example.com:99999/")},
	} {
		if o := s.Send(t.Context(), r); o.Status != 0 || o.Canceled || !strings.HasPrefix(o.Body, "request error: request: ") {
			t.Errorf("%+v", o)
		}
	}
}
