package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"
)

// slowReceiver is a receiver that answers when it is told to.
type slowReceiver struct {
	*httptest.Server
	arrived chan *http.Request // each request, when it is there
	answer  chan int           // the status of the next answer
}

func newSlowReceiver(t *testing.T) *slowReceiver {
	r := &slowReceiver{arrived: make(chan *http.Request, 16), answer: make(chan int, 16)}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		r.arrived <- req
		select {
		case status := <-r.answer:
			w.WriteHeader(status)
		case <-req.Context().Done():
		}
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *slowReceiver) await(t *testing.T) *http.Request {
	t.Helper()
	select {
	case req := <-r.arrived:
		return req
	case <-time.After(patience):
		t.Fatal("no request arrived")
		return nil
	}
}

// call makes a request of the API that must have the given answer.
func (s *server) call(method, path, body string, status int) []byte {
	s.t.Helper()
	req, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	if resp.StatusCode != status {
		s.t.Fatalf("%s %s: status %d, want %d: %s", method, path, resp.StatusCode, status, b)
	}
	return b
}

// subscribe makes a webhook for pushes of the repo r and returns its path.
func (s *server) subscribe(url string) string {
	s.t.Helper()
	var w webhook
	answer := s.call("POST", "/api/v1/repos/r/webhooks", fmt.Sprintf(`{"url":%q,"events":["push"]}`, url), http.StatusCreated)
	if err := json.Unmarshal(answer, &w); err != nil {
		s.t.Fatal(err)
	}
	return "/api/v1/repos/r/webhooks/" + w.WebhookID
}

func (s *server) push() {
	s.t.Helper()
	s.call("POST", "/api/v1/repos/r/events", `{"eventType":"push","payload":{}}`, http.StatusAccepted)
}

func (s *server) deliveries(webhookPath string) []delivery {
	s.t.Helper()
	var page deliveryPage
	if err := json.Unmarshal(s.call("GET", webhookPath+"/deliveries", "", http.StatusOK), &page); err != nil {
		s.t.Fatal(err)
	}
	return page.Deliveries
}

// awaitLogged waits until a webhook's log has n deliveries and returns them, newest first.
func (s *server) awaitLogged(webhookPath string, n int) []delivery {
	s.t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ; time.Now().Before(deadline); <-tick.C {
		if found := s.deliveries(webhookPath); len(found) >= n {
			return found
		}
	}
	s.t.Fatalf("the log did not get %d deliveries", n)
	return nil
}

func (s *server) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// awaitStatus asks a path until it answers with the status.
func (s *server) awaitStatus(path string, status int) {
	s.t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ; time.Now().Before(deadline); <-tick.C {
		resp, err := http.Get(s.url + path)
		if err != nil {
			s.t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == status {
			return
		}
	}
	s.t.Fatalf("GET %s did not answer %d", path, status)
}

func TestServeDrains(t *testing.T) {
	receiver := newSlowReceiver(t)
	s := startServer(t, "--allow-target", receiver.Listener.Addr().String())
	s.awaitStatus("/readyz", http.StatusOK)
	hook := s.subscribe(receiver.URL)
	s.push()
	receiver.await(t)

	// With a delivery under way it says that it is going, takes nothing more, and answers what it can.
	s.signal(syscall.SIGTERM)
	s.awaitStatus("/readyz", http.StatusServiceUnavailable)
	s.awaitStatus("/healthz", http.StatusOK)
	s.call("POST", "/api/v1/repos/r/events", `{"eventType":"push","payload":{}}`, http.StatusServiceUnavailable)
	s.call("GET", hook, "", http.StatusOK)

	receiver.answer <- http.StatusOK
	if err := s.wait(); err != nil {
		t.Fatalf("it ended with %v", err)
	}
	s = startServer(t, "--data", s.data)
	if d := s.deliveries(hook); len(d) != 1 || !d[0].Success {
		t.Errorf("the delivery that was under way is not logged: %+v", d)
	}
	s.stop()
}

func TestServeGivesUpDraining(t *testing.T) {
	receiver := newSlowReceiver(t)
	s := startServer(t, "--allow-target", receiver.Listener.Addr().String(), "--shutdown-timeout", "100ms")
	hook := s.subscribe(receiver.URL)
	s.push()
	first := receiver.await(t)

	s.signal(syscall.SIGTERM)
	if err := s.wait(); s.cmd.ProcessState.ExitCode() != exitFailure {
		t.Errorf("it ended with %v, want exit code 1", err)
	}
	if !strings.Contains(s.logs(), "cut off") {
		t.Error("it doesn't say that it cut something off")
	}

	// The next start makes the same attempt again.
	<-first.Context().Done() // the answer is not for this one
	receiver.answer <- http.StatusOK
	s = startServer(t, "--data", s.data, "--allow-target", receiver.Listener.Addr().String())
	second := receiver.await(t)
	for _, name := range []string{"Webhook-Id", "X-Musehub-Delivery"} {
		if a, b := first.Header.Get(name), second.Header.Get(name); a != b || a == "" {
			t.Errorf("%s is %q and then %q", name, a, b)
		}
	}
	s.stop()
	s = startServer(t, "--data", s.data)
	if d := s.deliveries(hook); len(d) != 1 || !d[0].Success {
		t.Errorf("want the one delivery: %+v", d)
	}
	s.stop()
}

func TestServeSecondSignal(t *testing.T) {
	receiver := newSlowReceiver(t)
	s := startServer(t, "--allow-target", receiver.Listener.Addr().String())
	s.subscribe(receiver.URL)
	s.push()
	receiver.await(t)

	s.signal(syscall.SIGTERM)
	s.awaitStatus("/readyz", http.StatusServiceUnavailable)
	s.signal(syscall.SIGINT)
	if err := s.wait(); s.cmd.ProcessState.ExitCode() != exitFailure {
		t.Errorf("it ended with %v, want exit code 1", err)
	}
}

// A client that waits for a redelivery doesn't hold the shutdown up for longer than the attempt under way takes.
func TestServeReleasesWaiting(t *testing.T) {
	receiver := newSlowReceiver(t)
	s := startServer(t, "--allow-target", receiver.Listener.Addr().String(), "--retry-policy", "standard")
	hook := s.subscribe(receiver.URL)
	s.push()
	receiver.await(t)
	receiver.answer <- http.StatusOK
	id := s.awaitLogged(hook, 1)[0].DeliveryID

	waited := make(chan error, 1)
	go func() {
		api := client{base: s.url + "/api/v1", token: s.token}
		_, err := api.call(context.Background(), request{
			method: http.MethodPost,
			path:   strings.TrimPrefix(hook, "/api/v1") + "/deliveries/" + id + "/redeliver",
		})
		waited <- err
	}()
	receiver.await(t)
	receiver.answer <- http.StatusInternalServerError // the next attempt is due in seconds
	s.awaitLogged(hook, 2)
	s.stop()
	no, ok := errors.AsType[*problem](<-waited)
	if !ok || no.Status != http.StatusServiceUnavailable || !strings.Contains(no.Detail, "goes on") {
		t.Errorf("the answer is %v", no)
	}
}
