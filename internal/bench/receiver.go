package bench

import (
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// receiverRequest is what the receiver process is asked to do. All answers are receiverAnswers.
type receiverRequest struct {
	Reset   string // the label whose latencies are forgotten
	Latency string // the label whose latencies are returned
	Hold    bool   // from now on requests to held paths wait
	Release bool   // until this
}

type receiverAnswer struct {
	Address string // host and port, always
	Latency *latency
}

// The paths of the receiver. Behind each stands the label that its latencies are counted under.
const (
	pathOK      = "/ok/"      // answers at once
	pathSlow    = "/slow/"    // answers after slowAnswer
	pathHanging = "/hanging/" // never answers
	pathFailing = "/failing/" // answers 500
	pathHeld    = "/held/"    // answers when it is released
)

const slowAnswer = 200 * time.Millisecond

// receiver gets the deliveries of a benchmark.
type receiver struct {
	mu     sync.RWMutex
	labels map[string]*histogram
	held   chan struct{} // closed when held requests may be answered; nil: they may
}

// RunReceiver is the receiver process: it receives on a port of its own on loopback and answers what the parent asks, until
// in ends.
func RunReceiver(in io.Reader, out io.Writer) error {
	r := &receiver{labels: map[string]*histogram{}}
	listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: r, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }() // until it is closed
	defer server.Close()
	return serveParent(in, out, func(q receiverRequest) (receiverAnswer, error) {
		r.control(q)
		a := receiverAnswer{Address: listener.Addr().String()}
		if q.Latency != "" {
			a.Latency = r.label(q.Latency).latency()
		}
		return a, nil
	})
}

func (r *receiver) control(q receiverRequest) {
	if q.Reset != "" {
		r.label(q.Reset).reset()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case q.Hold && r.held == nil:
		r.held = make(chan struct{})
	case q.Release && r.held != nil:
		close(r.held)
		r.held = nil
	}
}

func (r *receiver) label(name string) *histogram {
	r.mu.RLock()
	h := r.labels[name]
	r.mu.RUnlock()
	if h != nil {
		return h
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if h = r.labels[name]; h == nil {
		h = &histogram{}
		r.labels[name] = h
	}
	return h
}

var bodies = sync.Pool{New: func() any { return new([1024]byte) }}

// ServeHTTP takes one delivery.
func (r *receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	body := bodies.Get().(*[1024]byte)
	n, err := io.ReadFull(q.Body, body[:])
	now := time.Now()
	sent, ok := sentAt(body[:n])
	bodies.Put(body)
	if err != io.ErrUnexpectedEOF || !ok {
		http.Error(w, "the body is none of the benchmark's", http.StatusBadRequest)
		return
	}
	kind, label := q.URL.Path, ""
	if i := strings.IndexByte(kind[1:], '/'); i >= 0 {
		kind, label = kind[:i+2], kind[i+2:]
	}
	r.label(label).record(now.Sub(sent))
	switch kind {
	case pathSlow:
		time.Sleep(slowAnswer)
	case pathHanging:
		<-q.Context().Done()
		return
	case pathFailing:
		w.WriteHeader(http.StatusInternalServerError)
	case pathHeld:
		r.mu.RLock()
		held := r.held
		r.mu.RUnlock()
		if held == nil {
			break
		}
		select {
		case <-held:
		case <-q.Context().Done():
			return
		}
	}
	_, _ = io.WriteString(w, "ok")
}

// The payload of every event: about 300 bytes of JSON with the time of its dispatch, in nanoseconds.
const (
	payloadStart = `{"sentAt":`
	payloadRest  = `,"repoId":"6f1c2b60-5d2e-4f8e-9a57-0c1d9b7e4a11","branch":"main","headCommitId":"9f2c61e0c8b5417d9a4e6b20d3f7a85c1e9b4d02",` +
		`"pushedBy":"clara","commitCount":3,"message":"Retune the bridge by a semitone and let the second verse breathe before the strings come in again"}`
	timeDigits = 19 // until the year 2286
)

// payload returns a payload that is dispatched now.
func payload(now time.Time) []byte {
	b := make([]byte, 0, len(payloadStart)+timeDigits+len(payloadRest))
	b = append(b, payloadStart...)
	b = strconv.AppendInt(b, now.UnixNano(), 10)
	return append(b, payloadRest...)
}

func sentAt(body []byte) (time.Time, bool) {
	if len(body) < len(payloadStart)+timeDigits {
		return time.Time{}, false
	}
	ns, err := strconv.ParseInt(string(body[len(payloadStart):len(payloadStart)+timeDigits]), 10, 64)
	return time.Unix(0, ns), err == nil
}
