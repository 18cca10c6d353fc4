package main

import (
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Of a repo with many webhooks posthorn why explains the first ones, and says that there are more.
func TestWhyOfMany(t *testing.T) {
	t.Parallel()
	s := startServer(t, "--keep-all-events")
	s.call("POST", "/api/v1/repos/r1/events", `{"eventType":"push","eventId":"e1","payload":{}}`, http.StatusAccepted)
	for n := 1; n <= 201; n++ {
		s.call("POST", "/api/v1/repos/r1/webhooks", `{"url":"https://example.com/","events":["issue"]}`, http.StatusCreated)
		if n < 200 {
			continue
		}
		cmd := exec.Command("posthorn", "why", "--repo", "r1", "e1")
		cmd.Env = append(os.Environ(), "POSTHORN_SERVER="+s.url, "POSTHORN_TOKEN="+s.token)
		var hint strings.Builder
		cmd.Stderr = &hint
		table, err := cmd.Output()
		if lines := strings.Count(string(table), "\n"); err != nil || lines != 201 || (n > 200) != strings.Contains(hint.String(), "not all webhooks") {
			t.Errorf("of %d webhooks %d lines and %q, %v", n, lines, &hint, err)
		}
	}
}
