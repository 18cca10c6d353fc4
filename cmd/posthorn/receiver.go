package main

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/musehub/posthorn/signature"
)

// receiver is a server that webhooks can be tried out with.
type receiver struct {
	verifier *signature.Verifier // nil: signatures are not checked
	brand    string
	status   int // of the answers
	failures int // how many requests of each event are answered with failStatus before
	failWith int
	delay    time.Duration
	arrived  func(arrival) // called for each request, also from several goroutines at a time

	mu   sync.Mutex
	seen map[string]int // requests by event
}

// arrival is a request that a receiver got.
type arrival struct {
	eventType  string
	eventID    string
	deliveryID string
	body       []byte
	wrong      error // with the signature
	status     int   // of the answer
}

const (
	maxReceived = 25 << 20
	maxSeen     = 100_000
)

// ServeHTTP answers a delivery. One whose signature is wrong gets a 401.
func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxReceived))
	if err != nil {
		http.Error(w, "the body can't be read", http.StatusBadRequest)
		return
	}
	a := arrival{
		eventType:  req.Header.Get("X-" + r.brand + "-Event"),
		eventID:    req.Header.Get(signature.HeaderID),
		deliveryID: req.Header.Get("X-" + r.brand + "-Delivery"),
		body:       body,
		status:     r.status,
	}
	if r.verifier != nil {
		a.wrong = r.verifier.Verify(req.Header, body)
	}
	switch {
	case req.Method != http.MethodPost:
		a.wrong = errors.New(req.Method + " is not how webhooks are delivered")
		a.status = http.StatusMethodNotAllowed
	case a.wrong != nil:
		a.status = http.StatusUnauthorized
	case r.count(a.eventID) <= r.failures:
		a.status = r.failWith
	}
	if r.delay > 0 {
		timer := time.NewTimer(r.delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-req.Context().Done():
		}
	}
	r.arrived(a)
	w.WriteHeader(a.status)
}

// count returns how many requests there were of an event, this one included.
func (r *receiver) count(eventID string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen == nil || len(r.seen) >= maxSeen {
		r.seen = map[string]int{}
	}
	r.seen[eventID]++
	return r.seen[eventID]
}
