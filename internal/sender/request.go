package sender

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

// A Request is one attempt to make. Its Header and Body must not be modified any more, not even once Send has
// returned: while a receiver answers early, the rest of the request may still be on its way.
type Request struct {
	// URL is where to POST to, as returned by [Sender.CheckURL]. Its path and query are sent as they are.
	URL *url.URL

	// Header is sent as it is, but for Idempotency-Key and X-Idempotency-Key, which go out in lower case. Host and
	// Content-Length are added to it, and take the place of what it has of them.
	Header http.Header

	Body []byte

	// TLS is what the connection has to be like, if it is one of https. Defaults to what the Sender's Config says.
	TLS TLS

	// Timeout limits this attempt. Defaults to Config.Timeout.
	Timeout time.Duration

	// Revoked, when it is set and true by the time that the request has a connection, stops the attempt: not a byte of
	// the request is written, and the Outcome is marked Canceled.
	Revoked *atomic.Bool
}

// Send makes one attempt and never fails: what went wrong is told by the Outcome.
func (s *Sender) Send(ctx context.Context, r *Request) Outcome {
	start, timeout := time.Now(), r.Timeout
	if timeout <= 0 {
		timeout = s.timeout
	}
	timed, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	// RoundTrip and not a Client's Do: no redirects, no cookies, less work.
	a := &attempt{start: start, timeout: timeout, revoked: r.Revoked, cancel: cancel}
	if s.httpsOnly && r.URL.Scheme != "https" { // of a webhook that is older than the setting
		return a.failure(ctx, "request", errHTTPSOnly)
	}
	conns, err := s.pool(r.TLS)
	if err != nil {
		return a.failure(ctx, "TLS", err)
	}
	resp, err := conns.RoundTrip(a.request(timed, r))
	for err != nil && a.reused && closedWhileIdle(err) && timed.Err() == nil {
		// The receiver had closed the kept connection before it got the request, so this is still the same attempt.
		// It ends with a new connection at the latest. The Transport may hold on to the old state.
		a = &attempt{start: start, timeout: timeout, revoked: r.Revoked, cancel: cancel}
		resp, err = conns.RoundTrip(a.request(timed, r))
	}
	if err != nil {
		phase := a.phase()
		if alert(err) != "" { // as with TLS 1.3, where a receiver says that it doesn't want a certificate only after the handshake
			phase = "TLS"
		}
		return a.failure(ctx, phase, err)
	}
	if a.stopped { // and yet a response, from a receiver that doesn't wait for the request
		resp.Body.Close()
		return a.failure(ctx, a.phase(), context.Canceled)
	}
	if resp.StatusCode < 100 { // net/http takes any three characters for a number, and a status of 0 would say that there was no response
		resp.Body.Close()
		code, _, _ := strings.Cut(resp.Status, " ")
		return a.failure(ctx, "response headers", fmt.Errorf("malformed HTTP status code %q", code))
	}
	body, err := readBody(resp)
	if err != nil && a.Err() != nil {
		return a.failure(ctx, "response body", err)
	}
	// Any other error is a body that is cut short or broken. The receiver has given its status all the same.
	return Outcome{
		Status:  resp.StatusCode,
		Body:    body,
		Header:  boundHeader(resp.Header),
		Timings: a.timings(),
		Remote:  a.remote,
	}
}

// closedWhileIdle reports whether the Transport saw the end of a kept connection while no request was under way on it,
// and yet gave it to one. It is a matter of luck whether that fails by itself or is noticed before anything was written,
// when the Transport takes another connection. net/http doesn't export the error.
func closedWhileIdle(err error) bool { return err.Error() == "http: server closed idle connection" }

// An attempt is the state of one Send. It is the request's context too, which spares an allocation for handing it to
// the dialer. The Transport's goroutines may hold on to it after Send has returned.
type attempt struct {
	context.Context

	start   time.Time
	timeout time.Duration
	body    bytes.Reader
	trace   httptrace.ClientTrace
	cancel  context.CancelFunc
	revoked *atomic.Bool
	marks   [numMarks]atomic.Int64

	// Written and read by the goroutine of Send only.
	reused  bool
	remote  string
	stopped bool // because it was revoked
}

// A mark is a moment of an attempt, kept as nanoseconds since its start, 0 while it has not been reached.
type mark int

const (
	dialing   mark = iota // looking up the name
	resolved              // connecting
	connected             // shaking hands for TLS
	ready                 // the new connection can take a request
	got                   // the request has a connection, new or reused
	wrote
	firstByte
	numMarks
)

type attemptKey struct{}

func (a *attempt) Value(key any) any {
	if key == (attemptKey{}) {
		return a
	}
	return a.Context.Value(key)
}

func (a *attempt) request(ctx context.Context, r *Request) *http.Request {
	a.trace = httptrace.ClientTrace{
		GotConn:              a.gotConn,
		WroteRequest:         a.wroteRequest,
		GotFirstResponseByte: a.gotFirstByte,
	}
	a.Context = httptrace.WithClientTrace(ctx, &a.trace)
	req := &http.Request{
		Method: http.MethodPost,
		URL:    r.URL,
		Header: literal(r.Header),
		Body:   http.NoBody,
		// With GetBody the Transport moves the request to a new connection when a kept one turns out to be dead
		// before anything was written to it.
		GetBody:       func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(r.Body)), nil },
		ContentLength: int64(len(r.Body)),
	}
	if len(r.Body) > 0 {
		// The Transport knows that a bytes.Reader is in memory, and sends it in one packet with the header.
		a.body.Reset(r.Body)
		req.Body = io.NopCloser(&a.body)
	}
	return req.WithContext(a)
}

// literal returns h or, where net/http would take it for more than what to send, a copy without that effect.
func literal(h http.Header) http.Header {
	_, userAgent := h["User-Agent"]
	_, key := h["Idempotency-Key"]
	_, xKey := h["X-Idempotency-Key"]
	if userAgent && !key && !xKey {
		return h
	}
	h2 := make(http.Header, len(h)+1)
	maps.Copy(h2, h)
	if !userAgent {
		h2["User-Agent"] = nil // or net/http sends one of its own
	}
	// Either of these keys lets the Transport send a request again when the connection breaks after the receiver may
	// have got it. It knows them in the canonical form only; to the receiver the case makes no difference (RFC 9110,
	// section 5.1).
	if key {
		h2["idempotency-key"] = h["Idempotency-Key"]
		delete(h2, "Idempotency-Key")
	}
	if xKey {
		h2["x-idempotency-key"] = h["X-Idempotency-Key"]
		delete(h2, "X-Idempotency-Key")
	}
	return h2
}

func (a *attempt) mark(m mark) {
	a.marks[m].Store(max(1, int64(time.Since(a.start))))
}

func (a *attempt) reached(m mark) bool {
	return a.marks[m].Load() != 0
}

func (a *attempt) gotConn(info httptrace.GotConnInfo) {
	a.reused = info.Reused
	if conn := kept(info.Conn); conn != nil {
		a.remote = conn.remote
		if a.reused {
			conn.awaitQuiet(a)
		}
	}
	a.mark(got)
	if a.revoked != nil && a.revoked.Load() {
		a.stopped = true
		// The Transport hands the request to a goroutine that writes it, whatever becomes of the context. A closed
		// connection is what keeps it from writing, and the end of the context from trying another one.
		info.Conn.Close()
		a.cancel()
	}
}

func (a *attempt) wroteRequest(info httptrace.WroteRequestInfo) {
	if info.Err == nil {
		a.mark(wrote)
	}
}

func (a *attempt) gotFirstByte() {
	a.mark(firstByte)
}

// phase names what an attempt without a response was doing.
func (a *attempt) phase() string {
	switch {
	case a.reached(wrote), a.reached(firstByte):
		return "response headers"
	case a.reached(got), a.reached(ready), !a.reached(dialing):
		return "request"
	case a.reached(connected):
		return "TLS"
	case a.reached(resolved):
		return "connect"
	default:
		return "DNS"
	}
}

// timings may run while a dial that the attempt did not need goes on, so what that dial marks late is cut off.
func (a *attempt) timings() Timings {
	now := int64(time.Since(a.start))
	t := Timings{Total: time.Duration(now), Reused: a.reused}
	end := now
	if v := a.marks[got].Load(); v != 0 {
		end = v
		if first := a.marks[firstByte].Load(); first > v {
			t.FirstByte = time.Duration(first - v)
		}
	}
	if a.reused || !a.reached(dialing) {
		return t
	}
	at := func(m mark) int64 {
		if v := a.marks[m].Load(); v != 0 {
			return min(v, end)
		}
		return end
	}
	t.DNS = time.Duration(at(resolved) - at(dialing))
	t.Connect = time.Duration(at(connected) - at(resolved))
	t.TLS = time.Duration(at(ready) - at(connected))
	return t
}
