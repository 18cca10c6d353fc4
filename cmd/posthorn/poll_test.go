package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Who follows a polled webhook and is interrupted before what was printed is acknowledged has that done at the end.
func TestFollowInterrupted(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	var hook webhook
	if err := json.Unmarshal(s.call("POST", "/api/v1/repos/r1/webhooks", `{"polled":true,"events":["push"]}`, http.StatusCreated), &hook); err != nil {
		t.Fatal(err)
	}
	s.call("POST", "/api/v1/repos/r1/events", `{"eventType":"push","eventId":"e1","payload":1}`, http.StatusAccepted)
	target, err := url.Parse(s.url)
	if err != nil {
		t.Fatal(err)
	}
	var arrived atomic.Bool
	acknowledging, forward := make(chan struct{}), httputil.NewSingleHostReverseProxy(target)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("cursor") != "" && !arrived.Swap(true) { // this one doesn't get through
			close(acknowledging)
			<-r.Context().Done()
			return
		}
		forward.ServeHTTP(w, r)
	}))
	defer proxy.Close()
	cmd := exec.Command("posthorn", "poll", "--repo", "r1", hook.WebhookID, "--follow")
	cmd.Env = append(os.Environ(), "POSTHORN_SERVER="+proxy.URL, "POSTHORN_TOKEN="+s.token)
	follow, err := startProcess(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	select {
	case <-acknowledging:
	case <-time.After(patience):
		t.Fatalf("it acknowledges nothing: %s%s", &follow.stdout, &follow.stderr)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	code, err := follow.exitCode()
	if printed := follow.stdout.String(); err != nil || code != exitOK || strings.Count(printed, `"eventId":"e1"`) != 1 {
		t.Errorf("it ended with %d, %v, and printed %s%s", code, err, printed, &follow.stderr)
	}
	if left := s.call("GET", "/api/v1/repos/r1/webhooks/"+hook.WebhookID+"/poll", "", http.StatusOK); strings.Contains(string(left), "e1") {
		t.Errorf("what was printed comes again: %s", left)
	}
}
