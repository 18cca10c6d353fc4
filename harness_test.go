package posthorn_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/sender"
	"github.com/musehub/posthorn/sqlite"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a dispatcher on a real SQLite file. Its requests go to a function instead of a socket, because time in it
// is that of testing/synctest: a world lives in a bubble.
type world struct {
	*posthorn.Dispatcher
	t     *testing.T
	store *sqlite.Store
	// crashed makes the dispatcher's view of the store fail for ever, as for a process that was killed.
	crashed *atomic.Bool
	path    string
	cfg     posthorn.Config

	mu       sync.Mutex
	answer   func(request) sender.Outcome
	requests []request
	inFlight map[string]int // by URL
	most     map[string]int // of inFlight
	recorded []posthorn.Delivery
}

// request is what a receiver saw.
type request struct {
	url, eventType, eventID, deliveryID string
	body                                string
	header                              map[string][]string
	at                                  time.Time
	ctx                                 context.Context
}

var ok200 = sender.Outcome{Status: 200, Body: "ok"}

// inWorld runs a test in a bubble of its own with a started dispatcher.
func inWorld(t *testing.T, cfg posthorn.Config, test func(t *testing.T, w *world)) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "posthorn.db")
	synctest.Test(t, func(t *testing.T) {
		store, err := sqlite.Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		w := &world{
			t: t, store: store, path: path, cfg: cfg,
			answer:   func(request) sender.Outcome { return ok200 },
			inFlight: map[string]int{}, most: map[string]int{},
		}
		w.start()
		test(t, w)
		if err := w.Stop(context.Background()); err != nil && !w.crashed.Load() {
			t.Errorf("stop: %v", err)
		}
		if err := w.store.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
}

// start starts a dispatcher, as a new process would.
func (w *world) start() {
	w.t.Helper()
	w.crashed = &atomic.Bool{}
	cfg := w.cfg
	cfg.Logger = slog.New(slog.DiscardHandler)
	cfg.OnDelivery = func(d posthorn.Delivery) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.recorded = append(w.recorded, d)
	}
	d, err := posthorn.New(mortal{w.store, w.crashed}, cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	d.SetTransport(w.send)
	w.Dispatcher = d
	if err := d.Start(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// crash ends the dispatcher as a kill does: nothing is written any more, and its lease stays.
func (w *world) crash() {
	w.crashed.Store(true)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	w.Stop(ctx)
}

func (w *world) send(ctx context.Context, r *sender.Request) sender.Outcome {
	if r.Revoked.Load() { // as the real one does once it has a connection
		return sender.Outcome{Canceled: true}
	}
	get := func(name string) string {
		if v := r.Header[name]; len(v) > 0 {
			return v[0]
		}
		return ""
	}
	req := request{
		url: r.URL.String(), eventType: get("X-MuseHub-Event"), eventID: get("webhook-id"), deliveryID: get("X-MuseHub-Delivery"),
		body: string(r.Body), header: r.Header, at: time.Now(), ctx: ctx,
	}
	w.mu.Lock()
	w.requests = append(w.requests, req)
	w.inFlight[req.url]++
	w.most[req.url] = max(w.most[req.url], w.inFlight[req.url])
	answer := w.answer
	w.mu.Unlock()
	outcome := answer(req)
	w.mu.Lock()
	w.inFlight[req.url]--
	w.mu.Unlock()
	if ctx.Err() != nil {
		outcome.Canceled = true
	}
	return outcome
}

// answers sets what receivers answer.
func (w *world) answers(f func(request) sender.Outcome) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = f
}

// seen returns the requests to a URL so far, all of them for an empty one.
func (w *world) seen(url string) (seen []request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.requests {
		if url == "" || r.url == url {
			seen = append(seen, r)
		}
	}
	return seen
}

func (w *world) webhook(repo, url string, events ...string) posthorn.Webhook {
	w.t.Helper()
	if len(events) == 0 {
		events = []string{posthorn.AllEvents}
	}
	hook, err := w.CreateWebhook(w.t.Context(), posthorn.NewWebhook{RepoID: repo, URL: url, Events: events})
	if err != nil {
		w.t.Fatal(err)
	}
	return hook
}

func (w *world) dispatch(repo, id string) posthorn.Receipt {
	w.t.Helper()
	receipt, err := w.Dispatch(w.t.Context(), posthorn.Event{
		ID: id, RepoID: repo, Type: "push", Payload: json.RawMessage(fmt.Sprintf(`{"id":%q}`, id)),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return receipt
}

func (w *world) deliveries(hook posthorn.Webhook) []posthorn.Delivery {
	w.t.Helper()
	page, err := w.Deliveries(w.t.Context(), posthorn.DeliveryQuery{RepoID: hook.RepoID, WebhookID: hook.ID, Limit: 200})
	if err != nil {
		w.t.Fatal(err)
	}
	return page.Items
}

// hang holds a request until it times out.
func hang(timeout time.Duration) func(request) sender.Outcome {
	return func(r request) sender.Outcome {
		timer := time.NewTimer(timeout)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.ctx.Done():
		}
		return sender.Outcome{Body: "timeout: response headers: not done within 10s"}
	}
}

// mortal is a store as a process sees it that may be killed.
type mortal struct {
	*sqlite.Store
	dead *atomic.Bool
}

var errKilled = errors.New("killed")

func (m mortal) Commit(ctx context.Context, b posthorn.Batch) ([]posthorn.Acceptance, error) {
	if m.dead.Load() {
		return nil, errKilled
	}
	return m.Store.Commit(ctx, b)
}

func (m mortal) Claim(ctx context.Context, c posthorn.Claim) ([]*posthorn.Entry, error) {
	if m.dead.Load() {
		return nil, errKilled
	}
	return m.Store.Claim(ctx, c)
}

func (m mortal) Lease(ctx context.Context, node int64, until time.Time) (int64, error) {
	if m.dead.Load() {
		return 0, errKilled
	}
	return m.Store.Lease(ctx, node, until)
}

func (m mortal) Release(ctx context.Context, node int64, now time.Time) (int, error) {
	if m.dead.Load() {
		return 0, errKilled
	}
	return m.Store.Release(ctx, node, now)
}

// pass lets time pass. It is a bubble's, so it takes none.
func pass(d time.Duration) { time.Sleep(d) }
