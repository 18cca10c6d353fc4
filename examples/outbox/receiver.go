package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/musehub/posthorn/signature"
)

// receiver is what would be somebody else's server.
type receiver struct {
	*http.Server
	url    string
	bodies chan string // of requests whose signature is right, each event's once
}

func receive(ctx context.Context) (*receiver, error) {
	verifier, err := signature.NewVerifier(secret)
	if err != nil {
		return nil, err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &receiver{url: "http://" + listener.Addr().String(), bodies: make(chan string, 16)}
	var seen sync.Map // a crash may have an event sent twice, under the same id
	handler := func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if _, again := seen.LoadOrStore(req.Header.Get(signature.HeaderID), true); !again {
			r.bodies <- string(body)
		}
	}
	r.Server = &http.Server{Handler: verifier.Middleware(http.HandlerFunc(handler)), ReadHeaderTimeout: 10 * time.Second}
	go r.Serve(listener)
	return r, nil
}
