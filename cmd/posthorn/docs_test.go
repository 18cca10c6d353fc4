package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// documents are those whose commands are run.
var documents = []string{"../../docs/delivery.md"}

// Each command of the documents works as it stands there, on a server that has what they talk of.
func TestDocumentedCommands(t *testing.T) {
	s := startServer(t, append(allowLoopback, "--system-repo", "ops")...)
	receiver := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(receiver.Close)
	field := func(answer []byte, name string) string {
		t.Helper()
		var fields map[string]any
		if err := json.Unmarshal(answer, &fields); err != nil {
			t.Fatal(err)
		}
		text, _ := fields[name].(string)
		return text
	}
	webhook := field(s.call("POST", "/api/v1/repos/r1/webhooks", fmt.Sprintf(`{"url":%q,"events":["push"],"secret":"s"}`, receiver.URL), http.StatusCreated), "webhookId")
	event := field(s.call("POST", "/api/v1/repos/r1/events", `{"eventType":"push","payload":{"branch":"main","commitCount":2}}`, http.StatusAccepted), "eventId")
	polled := field(s.call("POST", "/api/v1/repos/r1/webhooks", `{"polled":true,"events":["*"]}`, http.StatusCreated), "webhookId")
	log := "/api/v1/repos/r1/webhooks/" + webhook + "/deliveries"
	var page deliveryPage
	for len(page.Deliveries) == 0 {
		if err := json.Unmarshal(s.call("GET", log, "", http.StatusOK), &page); err != nil {
			t.Fatal(err)
		}
	}
	replay := field(s.call("POST", "/api/v1/repos/r1/webhooks/"+webhook+"/replays", `{"since":"2026-01-01T00:00:00Z","dryRun":true}`, http.StatusCreated), "replayId")
	stand := strings.NewReplacer("REPLAY", replay, "POLLED", polled, "WEBHOOK", webhook, "EVENT", event, "DELIVERY", page.Deliveries[0].DeliveryID)
	for _, document := range documents {
		ran := 0
		for _, command := range shellCommands(t, document) {
			serve := strings.HasPrefix(command, "posthorn serve")
			if serve { // its flags are looked at, and it ends
				command += " --max-payload 0"
			}
			cmd := exec.Command("sh", "-c", stand.Replace(command))
			cmd.Env = append(os.Environ(), "POSTHORN_SERVER="+s.url, "POSTHORN_TOKEN="+s.token)
			out, err := cmd.CombinedOutput()
			if failed := err != nil; failed != serve || serve && !strings.Contains(string(out), "--max-payload: ") {
				t.Errorf("%s: %s: %v: %s", document, command, err, out)
			}
			ran++
		}
		if ran == 0 {
			t.Errorf("%s has no commands", document)
		}
	}
}

// shellCommands returns the lines of a document's blocks of shell commands.
func shellCommands(t *testing.T, path string) (commands []string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	in := false
	for line := range strings.Lines(string(text)) {
		switch line = strings.TrimSpace(line); {
		case strings.HasPrefix(line, "```"):
			in = line == "```sh"
		case in && line != "":
			commands = append(commands, line)
		}
	}
	return commands
}

// Each link of the README into a document leads to a heading that is there.
func TestLinksOfREADME(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	links := regexp.MustCompile(`\]\((docs/[a-z]+\.md)#([a-z-]+)\)`).FindAllStringSubmatch(string(readme), -1)
	if len(links) == 0 {
		t.Error("there are none")
	}
	for _, link := range links {
		text, err := os.ReadFile("../../" + link[1])
		if err != nil {
			t.Fatal(err)
		}
		heading := func(line string) bool {
			title, ok := strings.CutPrefix(line, "## ")
			return ok && strings.ReplaceAll(strings.ToLower(title), " ", "-") == link[2]
		}
		if !slices.ContainsFunc(strings.Split(string(text), "\n"), heading) {
			t.Errorf("%s has no heading for #%s", link[1], link[2])
		}
	}
}
