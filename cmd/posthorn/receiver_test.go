package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// wireReceiver is a receiver of webhooks on a loopback address that keeps each request as the bytes that came over the
// wire. What it answers is up to the test.
type wireReceiver struct {
	URL  string // of its root, without a slash at the end
	Addr string // HOST:PORT

	t        *testing.T
	listener net.Listener
	answer   func(*wireRequest) wireAnswer
	ended    chan struct{}
	serving  sync.WaitGroup

	mu       sync.Mutex
	requests []*wireRequest
	conns    int
	changed  chan struct{} // closed and replaced with each request
}

// wireRequest is a request as it came over the wire.
type wireRequest struct {
	At     time.Time // when the last byte of it was there
	Conn   int       // number of the connection it came over, from 1
	Nth    int       // how many requests the receiver had got by then, from 1
	Line   string    // the request line, without CRLF
	Fields []wireField
	Header http.Header // the fields by their canonical names
	Body   []byte
	Raw    []byte // all of it
}

// wireField is a line of a header, the name in the case it was sent in.
type wireField struct{ Name, Value string }

// target returns the path and query of the request.
func (r *wireRequest) target() string {
	_, rest, _ := strings.Cut(r.Line, " ")
	target, _, _ := strings.Cut(rest, " ")
	return target
}

// event returns the ID of the event that was delivered, and delivery that of the delivery.
func (r *wireRequest) event() string    { return r.Header.Get("webhook-id") }
func (r *wireRequest) delivery() string { return r.Header.Get("X-MuseHub-Delivery") }

// wireAnswer answers a request. It reports whether the connection can take another one; otherwise it is closed. The
// channel is closed when the receiver is: an answer that hangs must watch it.
type wireAnswer func(conn net.Conn, ended <-chan struct{}) (more bool)

// newReceiver starts a receiver on 127.0.0.1, which is closed at the end of the test. The function, which may be called
// by several goroutines at a time, says what to answer; nil answers everything with 200.
func newReceiver(t *testing.T, answer func(*wireRequest) wireAnswer) *wireReceiver {
	t.Helper()
	return newReceiverAt(t, "127.0.0.1:0", nil, answer)
}

// newReceiverAt is newReceiver on a given address and, with a configuration, over TLS.
func newReceiverAt(t *testing.T, addr string, secure *tls.Config, answer func(*wireRequest) wireAnswer) *wireReceiver {
	t.Helper()
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if answer == nil {
		answer = always(http.StatusOK)
	}
	r := &wireReceiver{
		Addr: listener.Addr().String(), URL: "http://" + listener.Addr().String(),
		t: t, listener: listener, answer: answer, ended: make(chan struct{}), changed: make(chan struct{}),
	}
	if secure != nil {
		r.listener, r.URL = tls.NewListener(listener, secure), "https://"+r.Addr
	}
	r.serving.Go(r.serve)
	t.Cleanup(r.close)
	return r
}

// close ends the receiver and its connections, and waits for its goroutines. It may be called more than once.
func (r *wireReceiver) close() {
	r.mu.Lock()
	select {
	case <-r.ended:
	default:
		close(r.ended)
		r.listener.Close()
	}
	r.mu.Unlock()
	r.serving.Wait()
}

func (r *wireReceiver) serve() {
	for {
		conn, err := r.listener.Accept()
		if err != nil {
			return
		}
		r.mu.Lock()
		r.conns++
		n := r.conns
		r.mu.Unlock()
		r.serving.Go(func() { r.serveConn(conn, n) })
	}
}

func (r *wireReceiver) serveConn(conn net.Conn, n int) {
	done := make(chan struct{})
	r.serving.Go(func() {
		select {
		case <-done:
		case <-r.ended:
		}
		conn.Close()
	})
	defer close(done)
	for br := bufio.NewReader(conn); ; {
		req, err := readWire(br)
		if err != nil {
			return // the sender closed the connection
		}
		req.Conn = n
		r.mu.Lock()
		r.requests = append(r.requests, req)
		req.Nth = len(r.requests)
		close(r.changed)
		r.changed = make(chan struct{})
		r.mu.Unlock()
		if !r.answer(req)(conn, r.ended) {
			return
		}
	}
}

// readWire reads one request to its last byte.
func readWire(br *bufio.Reader) (*wireRequest, error) {
	var raw bytes.Buffer
	r := &wireRequest{Header: http.Header{}}
	for first := true; ; first = false {
		line, err := br.ReadString('\n')
		if err != nil {
			return nil, err
		}
		raw.WriteString(line)
		line = strings.TrimSuffix(line, "\r\n")
		if line == "" {
			break
		}
		if first {
			r.Line = line
			continue
		}
		name, value, _ := strings.Cut(line, ": ")
		r.Fields = append(r.Fields, wireField{name, value})
		r.Header.Add(textproto.CanonicalMIMEHeaderKey(name), value)
	}
	// Without Content-Length there is no body: what the sender may write then is read as the next request, and shows.
	length, _ := strconv.Atoi(r.Header.Get("Content-Length"))
	r.Body = make([]byte, length)
	if _, err := io.ReadFull(br, r.Body); err != nil {
		return nil, err
	}
	raw.Write(r.Body)
	r.Raw, r.At = raw.Bytes(), time.Now()
	return r, nil
}

// got returns the requests so far, in the order of their arrival.
func (r *wireReceiver) got() []*wireRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*wireRequest(nil), r.requests...)
}

// await waits until there have been n requests and returns all that there have been by then.
func (r *wireReceiver) await(n int) []*wireRequest {
	r.t.Helper()
	timeout := time.After(patience)
	for {
		r.mu.Lock()
		changed, got := r.changed, len(r.requests)
		r.mu.Unlock()
		if got >= n {
			return r.got()
		}
		select {
		case <-changed:
		case <-timeout:
			r.t.Fatalf("%d requests arrived within %v, want %d", got, patience, n)
		}
	}
}

// always answers every request with the status.
func always(status int) func(*wireRequest) wireAnswer {
	return func(*wireRequest) wireAnswer { return answerStatus(status) }
}

// script answers each event's requests in turn, and those after the last answer as the last one.
func script(answers ...wireAnswer) func(*wireRequest) wireAnswer {
	var mu sync.Mutex
	seen := map[string]int{}
	return func(r *wireRequest) wireAnswer {
		mu.Lock()
		defer mu.Unlock()
		i := min(seen[r.event()], len(answers)-1)
		seen[r.event()]++
		return answers[i]
	}
}

// answerStatus answers with the status, an empty body, and keeps the connection.
func answerStatus(status int) wireAnswer { return answerBody(status, "") }

// answerBody answers with the status, a body and further lines of the header, and keeps the connection.
func answerBody(status int, body string, fields ...string) wireAnswer {
	head := fmt.Sprintf("HTTP/1.1 %d %s\r\n", status, http.StatusText(status))
	for _, f := range fields {
		head += f + "\r\n"
	}
	raw := head + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(body)) + body
	return func(conn net.Conn, _ <-chan struct{}) bool {
		_, err := io.WriteString(conn, raw)
		return err == nil
	}
}

// answerRaw writes what it is given and closes the connection. A whole response should say so with Connection: close, or
// the sender may just have started to write the next request to that connection.
func answerRaw(raw string) wireAnswer {
	return func(conn net.Conn, _ <-chan struct{}) bool {
		_, _ = io.WriteString(conn, raw)
		return false
	}
}

// answerHang writes nothing, or what it is given, and then keeps the connection open until the sender closes it.
func answerHang(raw string) wireAnswer {
	return func(conn net.Conn, _ <-chan struct{}) bool {
		_, _ = io.WriteString(conn, raw)
		_, _ = io.Copy(io.Discard, conn) // ended closes it too
		return false
	}
}

// answerWhen gives the answer once the channel is closed.
func answerWhen(open <-chan struct{}, answer wireAnswer) wireAnswer {
	return func(conn net.Conn, ended <-chan struct{}) bool {
		select {
		case <-open:
			return answer(conn, ended)
		case <-ended:
			return false
		}
	}
}

// answerStream writes a head and then the piece again and again until the sender has had enough: at once, or one piece
// with each interval.
func answerStream(head, piece string, interval time.Duration) wireAnswer {
	return func(conn net.Conn, ended <-chan struct{}) bool {
		if _, err := io.WriteString(conn, head); err != nil {
			return false
		}
		var tick <-chan time.Time
		if interval > 0 {
			ticker := time.NewTicker(interval)
			defer ticker.Stop()
			tick = ticker.C
		}
		for {
			if _, err := io.WriteString(conn, piece); err != nil {
				return false
			}
			if tick == nil {
				continue
			}
			select {
			case <-tick:
			case <-ended:
				return false
			}
		}
	}
}
