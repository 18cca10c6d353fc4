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
// is that of testing/synctest: a world lives in a bubble. Several of them on one file are several nodes.
type world struct {
	*posthorn.Dispatcher
	*outside // the same for all nodes
	t        *testing.T
	store    *sqlite.Store
	// crashed makes the dispatcher's view of the store fail for ever, as for a process that was killed.
	crashed  *atomic.Bool
	tampered atomic.Pointer[tamper]
	path     string
	cfg      posthorn.Config
	name     string // of the node
}

// outside is what a node has to do with besides its store.
type outside struct {
	clock    time.Duration // how far the store's clock is ahead of the bubble's
	claimed  atomic.Int64  // entries, ever
	mu       sync.Mutex
	answer   func(request) sender.Outcome
	requests []request
	inFlight map[string]int // by URL
	most     map[string]int // of inFlight
	recorded []posthorn.Delivery
}

func newOutside() *outside {
	return &outside{
		answer:   func(request) sender.Outcome { return ok200 },
		inFlight: map[string]int{}, most: map[string]int{},
	}
}

// request is what a receiver saw.
type request struct {
	node, url, eventType, eventID, deliveryID string
	body                                      string
	header                                    map[string][]string
	tls                                       sender.TLS
	at                                        time.Time
	ctx                                       context.Context
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
		t.Cleanup(func() {
			if err := store.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
		w := &world{t: t, outside: newOutside(), store: store, path: path, cfg: cfg, name: "A"}
		w.start()
		t.Cleanup(w.end)
		test(t, w)
	})
}

// node makes another node of the same store, without a dispatcher yet.
func (w *world) node(name string) *world {
	return &world{t: w.t, outside: w.outside, store: w.store, path: w.path, cfg: w.cfg, name: name}
}

// another starts another node on the same store. It ends with the test.
func (w *world) another(name string) *world {
	w.t.Helper()
	other := w.node(name)
	other.start()
	w.t.Cleanup(other.end)
	return other
}

// end stops the dispatcher when the test is over.
func (w *world) end() {
	w.t.Helper()
	w.tamper(nil)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := w.Stop(ctx); err != nil && !w.crashed.Load() {
		w.t.Errorf("stop: %v", err)
	}
}

// start starts a dispatcher, as a new process would.
func (w *world) start() {
	w.t.Helper()
	w.prepare()
	if err := w.Start(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// prepare makes a dispatcher and does not start it.
func (w *world) prepare() {
	w.t.Helper()
	w.crashed = &atomic.Bool{}
	w.tamper(nil)
	cfg := w.cfg
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.OnDelivery = func(d posthorn.Delivery) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.recorded = append(w.recorded, d)
	}
	d, err := posthorn.New(mortal{w.store, w.clock, w.crashed, &w.tampered, &w.claimed}, cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	d.SetTransport(w.send)
	w.Dispatcher = d
}

// tamper has the node's calls of the store go through f, or no longer.
func (w *world) tamper(f tamper) { w.tampered.Store(&f) }

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
		node: w.name,
		url:  r.URL.String(), eventType: get("X-MuseHub-Event"), eventID: get("webhook-id"), deliveryID: get("X-MuseHub-Delivery"),
		body: string(r.Body), header: r.Header, tls: r.TLS, at: time.Now(), ctx: ctx,
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

// mortal is a store as a process sees it that may be killed, or fall out with the store.
type mortal struct {
	*sqlite.Store
	clock    time.Duration
	dead     *atomic.Bool
	tampered *atomic.Pointer[tamper]
	claimed  *atomic.Int64
}

// tamper is what happens to a node's call of a store's method. do is what should happen.
type tamper func(ctx context.Context, call string, do func() error) error

var errKilled = errors.New("killed")

func tampering[T any](ctx context.Context, m mortal, call string, do func() (T, error)) (got T, err error) {
	if m.dead.Load() {
		return got, errKilled
	}
	f := m.tampered.Load()
	if f == nil || *f == nil {
		return do()
	}
	if err := (*f)(ctx, call, func() (err error) { got, err = do(); return err }); err != nil {
		var none T
		return none, err
	}
	return got, nil
}

func (m mortal) Commit(ctx context.Context, b posthorn.Batch) ([]posthorn.Acceptance, error) {
	return tampering(ctx, m, "Commit", func() ([]posthorn.Acceptance, error) { return m.Store.Commit(ctx, b) })
}

func (m mortal) Enqueue(ctx context.Context, e *posthorn.Entry, node int64) error {
	_, err := tampering(ctx, m, "Enqueue", func() (struct{}, error) { return struct{}{}, m.Store.Enqueue(ctx, e, node) })
	return err
}

func (m mortal) Due(ctx context.Context, now time.Time, horizon time.Duration, after int64, limit int) ([]posthorn.DueWebhook, error) {
	var due []posthorn.DueWebhook // which counts beside an error, too
	_, err := tampering(ctx, m, "Due", func() (_ struct{}, err error) {
		due, err = m.Store.Due(ctx, now, horizon, after, limit)
		return struct{}{}, err
	})
	return due, err
}

func (m mortal) Claim(ctx context.Context, c posthorn.Claim) ([]*posthorn.Entry, error) {
	entries, err := tampering(ctx, m, "Claim", func() ([]*posthorn.Entry, error) { return m.Store.Claim(ctx, c) })
	m.claimed.Add(int64(len(entries)))
	return entries, err
}

func (m mortal) Lease(ctx context.Context, node int64, until time.Time) (int64, error) {
	return tampering(ctx, m, "Lease", func() (int64, error) { return m.Store.Lease(ctx, node, until) })
}

func (m mortal) Release(ctx context.Context, node int64, now time.Time) (int, error) {
	return tampering(ctx, m, "Release", func() (int, error) { return m.Store.Release(ctx, node, now) })
}

func (m mortal) Changes(ctx context.Context, since int64) (posthorn.Changes, error) {
	return tampering(ctx, m, "Changes", func() (posthorn.Changes, error) { return m.Store.Changes(ctx, since) })
}

func (m mortal) Webhook(ctx context.Context, repoID, id string) (posthorn.Webhook, error) {
	return tampering(ctx, m, "Webhook", func() (posthorn.Webhook, error) { return m.Store.Webhook(ctx, repoID, id) })
}

func (m mortal) Webhooks(ctx context.Context, q posthorn.WebhookQuery) (posthorn.Page[posthorn.Webhook], error) {
	return tampering(ctx, m, "Webhooks", func() (posthorn.Page[posthorn.Webhook], error) { return m.Store.Webhooks(ctx, q) })
}

func (m mortal) Delivery(ctx context.Context, repoID, webhookID, id string) (posthorn.Delivery, error) {
	return tampering(ctx, m, "Delivery", func() (posthorn.Delivery, error) { return m.Store.Delivery(ctx, repoID, webhookID, id) })
}

func (m mortal) Deliveries(ctx context.Context, q posthorn.DeliveryQuery) (posthorn.Page[posthorn.Delivery], error) {
	return tampering(ctx, m, "Deliveries", func() (posthorn.Page[posthorn.Delivery], error) { return m.Store.Deliveries(ctx, q) })
}

func (m mortal) Now(ctx context.Context) (time.Time, error) {
	return tampering(ctx, m, "Now", func() (time.Time, error) {
		now, err := m.Store.Now(ctx)
		return now.Add(m.clock), err
	})
}

func (m mortal) UpdateReplay(ctx context.Context, r *posthorn.Replay, events []*posthorn.AcceptedEvent) error {
	_, err := tampering(ctx, m, "UpdateReplay", func() (struct{}, error) { return struct{}{}, m.Store.UpdateReplay(ctx, r, events) })
	return err
}

func (m mortal) FreeReplayed(ctx context.Context, r *posthorn.Replay, limit posthorn.ReplayLimit) (freed int, left bool, err error) {
	_, err = tampering(ctx, m, "FreeReplayed", func() (struct{}, error) {
		freed, left, err = m.Store.FreeReplayed(ctx, r, limit)
		return struct{}{}, err
	})
	return freed, left, err
}

func (m mortal) TokenByHash(ctx context.Context, hash string) (posthorn.Token, error) {
	return tampering(ctx, m, "TokenByHash", func() (posthorn.Token, error) { return m.Store.TokenByHash(ctx, hash) })
}

func (m mortal) TouchToken(ctx context.Context, id string, at time.Time) error {
	_, err := tampering(ctx, m, "TouchToken", func() (struct{}, error) { return struct{}{}, m.Store.TouchToken(ctx, id, at) })
	return err
}

func (m mortal) Prune(ctx context.Context, before time.Time) (int, error) {
	return tampering(ctx, m, "Prune", func() (int, error) { return m.Store.Prune(ctx, before) })
}

// pass lets time pass. It is a bubble's, so it takes none.
func pass(d time.Duration) { time.Sleep(d) }
