package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

// rest measures the REST API: a client process posts single events or batches over a number of connections.
func rest(batch, connections int) func(context.Context, *rig, time.Duration) (sample, error) {
	return func(ctx context.Context, r *rig, slice time.Duration) (sample, error) {
		repos, err := r.ordinaryRepos(ctx)
		if err != nil {
			return sample{}, err
		}
		if r.client == nil {
			if r.client, err = startChild(r.opts.Child(clientPart)); err != nil {
				return sample{}, fmt.Errorf("start the client: %w", err)
			}
		}
		url, stop, err := r.serve(ctx, batch)
		if err != nil {
			return sample{}, err
		}
		defer stop()
		post := func(ctx context.Context, d time.Duration) (int64, error) {
			l := r.store.measured
			before := l.total()
			_, err := call[clientAnswer](ctx, r.client, clientRequest{
				URL: url, Token: restToken, Repos: repos, Batch: batch, Connections: connections, Duration: d,
			})
			if err == nil {
				err = l.settled(ctx)
			}
			return l.total() - before, err
		}
		if _, err := post(ctx, warmUp(slice)); err != nil {
			return sample{}, err
		}
		return r.measure(ctx, ordinary, func(ctx context.Context) (int64, error) { return post(ctx, slice) })
	}
}

// restToken protects the API from nobody: it is there because clients send one.
const restToken = "bench"

// serve serves the REST API for posts of so many events each. Posts wait while too many deliveries are not yet recorded.
func (r *rig) serve(ctx context.Context, batch int) (url string, stop func(), err error) {
	api, err := r.opts.API(r.dispatcher, restToken)
	if err != nil {
		return "", nil, err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	server := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			l := r.store.measured
			if l.expect(q.Context(), batch) != nil {
				return // the client is gone
			}
			answer := &statusWriter{ResponseWriter: w}
			api.ServeHTTP(answer, q)
			if answer.status/100 != 2 {
				l.forget(batch)
			}
		}),
	}
	go func() { _ = server.Serve(listener) }() // until it is closed
	return "http://" + listener.Addr().String() + "/api/v1/repos/", func() { _ = server.Close() }, nil
}

// statusWriter knows the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// refused says why the API did not accept a post.
func refused(batch, status int, text string) error {
	if batch > 1 && status == http.StatusNotFound {
		return errors.New("the REST API has no route to post batches of events to (events:batch)")
	}
	return fmt.Errorf("the REST API answered %d to a post of %d events: %s", status, batch, strings.TrimSpace(text))
}
