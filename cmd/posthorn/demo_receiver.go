package main

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/musehub/posthorn/signature"
)

// demoReceiver is a receiver of the demo, on a port of its own.
type demoReceiver struct {
	name      string
	about     string
	addr      string // host and port
	secret    string
	webhookID string // once it is subscribed
	server    *http.Server

	mu       sync.Mutex
	verified map[string]bool // IDs of the events it took
}

// startDemoReceiver starts a receiver that answers the first requests for each event with 503.
func startDemoReceiver(ctx context.Context, name string, failures int) (*demoReceiver, error) {
	r := &demoReceiver{name: name, about: "answers at once", secret: signature.GenerateSecret(), verified: map[string]bool{}}
	if failures > 0 {
		r.about = "fails twice before it takes an event"
	}
	verifier, err := signature.NewVerifier(r.secret)
	if err != nil {
		return nil, err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r.addr = listener.Addr().String()
	r.server = &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: &receiver{
			verifier: verifier, brand: "MuseHub", status: http.StatusOK,
			failures: failures, failWith: http.StatusServiceUnavailable,
			arrived: r.arrived,
		},
	}
	go func() { _ = r.server.Serve(listener) }() // until it is closed
	return r, nil
}

func (r *demoReceiver) url() string { return "http://" + r.addr + "/hooks" }

func (r *demoReceiver) arrived(a arrival) {
	if a.status == http.StatusOK { // and so the signature was right
		r.mu.Lock()
		defer r.mu.Unlock()
		r.verified[a.eventID] = true
	}
}

func (r *demoReceiver) hasVerified(eventID string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.verified[eventID]
}
