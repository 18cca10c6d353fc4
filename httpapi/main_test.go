package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/sqlite"
)

const token = "t0ken"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testAPI is the API on a real server, over a real Dispatcher and store.
type testAPI struct {
	*server
	t      testing.TB
	url    string
	client *http.Client
	logged *logBuffer
	// made gets each delivery once it is in the log.
	made chan posthorn.Delivery
}

// startAPI starts everything. Deliveries may go to receivers on 127.0.0.1.
func startAPI(t testing.TB, cfg posthorn.Config) *testAPI {
	t.Helper()
	api := newTestAPI(t, cfg)
	if err := api.dispatcher.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return api
}

// newTestAPI is startAPI without starting the Dispatcher.
func newTestAPI(t testing.TB, cfg posthorn.Config) *testAPI {
	t.Helper()
	return newTestAPIOver(t, openStore(t), cfg)
}

// openStore returns an empty store.
func openStore(t testing.TB) *sqlite.Store {
	t.Helper()
	store, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "posthorn.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return store
}

// tampered is a store of which one commit of events can go wrong.
type tampered struct {
	*sqlite.Store
	instead atomic.Pointer[func(commit) ([]posthorn.Acceptance, error)]
}

// commit is what the store would do.
type commit func() ([]posthorn.Acceptance, error)

// onCommit has the next commit of events go through a function.
func (s *tampered) onCommit(instead func(commit) ([]posthorn.Acceptance, error)) {
	s.instead.Store(&instead)
}

// Commit implements [posthorn.Store].
func (s *tampered) Commit(ctx context.Context, b posthorn.Batch) ([]posthorn.Acceptance, error) {
	do := func() ([]posthorn.Acceptance, error) { return s.Store.Commit(ctx, b) }
	if len(b.Events) > 0 {
		if instead := s.instead.Swap(nil); instead != nil {
			return (*instead)(do)
		}
	}
	return do()
}

// newTestAPIOver is newTestAPI on a store that something may be wrong with.
func newTestAPIOver(t testing.TB, store posthorn.Store, cfg posthorn.Config) *testAPI {
	t.Helper()
	api := &testAPI{t: t, logged: &logBuffer{}, made: make(chan posthorn.Delivery, 100)}
	cfg.Logger = slog.New(slog.DiscardHandler)
	cfg.AllowTargets = []string{"127.0.0.1/32"}
	if cfg.Resolver == nil { // so that no name leads off the machine
		cfg.Resolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("there is no DNS in this test")
		}}
	}
	cfg.OnDelivery = func(d posthorn.Delivery) { api.made <- d }
	d, err := posthorn.New(store, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	handler, err := New(d, Config{Token: token, Logger: slog.New(slog.NewTextHandler(api.logged, nil)), Version: "1.2.3"})
	if err != nil {
		t.Fatal(err)
	}
	api.server = handler.(*server)
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	api.url, api.client = server.URL, server.Client()
	return api
}

// answer is what the API answered.
type answer struct {
	t      testing.TB
	status int
	header http.Header
	body   []byte
}

// do makes a request with the token. Headers are given as "Name: value"; an empty value removes one.
func (api *testAPI) do(method, path, body string, headers ...string) answer {
	api.t.Helper()
	req, err := http.NewRequestWithContext(api.t.Context(), method, api.url+path, strings.NewReader(body))
	if err != nil {
		api.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Del(name)
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	resp, err := api.client.Do(req)
	if err != nil {
		api.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		api.t.Fatal(err)
	}
	if resp.Header.Get("X-Content-Type-Options") != "nosniff" || resp.Header.Get("Cache-Control") != "no-store" {
		api.t.Errorf("%s %s: a header that each answer has is missing: %v", method, path, resp.Header)
	}
	return answer{api.t, resp.StatusCode, resp.Header, raw}
}

// ok demands a status and decodes the body.
func (a answer) ok(status int) map[string]any {
	a.t.Helper()
	if a.status != status {
		a.t.Fatalf("status %d, want %d: %s", a.status, status, a.body)
	}
	var v map[string]any
	if len(a.body) > 0 {
		if err := json.Unmarshal(a.body, &v); err != nil {
			a.t.Fatalf("%v: %s", err, a.body)
		}
		if ct := a.header.Get("Content-Type"); ct != "application/json" {
			a.t.Errorf("Content-Type %q", ct)
		}
	}
	return v
}

// problem demands a problem of a status whose detail has some words, and a field.
func (a answer) problem(status int, words, field string) {
	a.t.Helper()
	var p struct {
		Title, Detail, Field string
		Status               int
	}
	dec := json.NewDecoder(bytes.NewReader(a.body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil || dec.More() {
		a.t.Errorf("status %d, no problem or more than that: %v: %s", a.status, err, a.body)
		return
	}
	if ct := a.header.Get("Content-Type"); ct != "application/problem+json" {
		a.t.Errorf("Content-Type %q", ct)
	}
	if a.status != status || p.Status != status || p.Title != http.StatusText(status) || p.Field != field ||
		p.Detail == "" || !strings.Contains(p.Detail, words) {
		a.t.Errorf("status %d, want %d with %q and field %q: %s", a.status, status, words, field, a.body)
	}
}

// webhook creates a webhook and returns its path.
func (api *testAPI) webhook(body string) string {
	api.t.Helper()
	w := api.do("POST", "/api/v1/repos/r1/webhooks", body).ok(http.StatusCreated)
	return "/api/v1/repos/r1/webhooks/" + w["webhookId"].(string)
}

// receiver starts a server that deliveries can go to.
func receiver(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server.URL
}

// logBuffer keeps what was logged.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
