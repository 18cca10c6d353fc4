package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
)

// Clients that are slow, or send too much, through the real binary.
func TestAPILimits(t *testing.T) {
	t.Parallel()
	s := startServer(t, "--header-timeout", "300ms", "--request-timeout", "600ms", "--idle-timeout", "300ms", "--max-header-size", "8KiB",
		"--max-api-requests", "1")
	address := strings.TrimPrefix(s.url, "http://")
	dial := func(send string) *bufio.Reader {
		t.Helper()
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, send); err != nil {
			t.Fatal(err)
		}
		return bufio.NewReader(conn)
	}
	ended := func(what string, r io.Reader) {
		t.Helper()
		if _, err := io.Copy(io.Discard, r); err != nil && !isReset(err) {
			t.Errorf("%s: the connection is still there: %v", what, err)
		}
	}
	answer := func(what string, r *bufio.Reader, status int) {
		t.Helper()
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != status {
			t.Errorf("%s: %d, want %d", what, resp.StatusCode, status)
		}
	}
	authorized := "Host: x\r\nAuthorization: Bearer " + s.token + "\r\n"
	ended("half a header", dial("GET /healthz HTTP/1.1\r\nHost: x\r\n"))
	idle := dial("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
	answer("a whole one", idle, 200)
	ended("an idle connection", idle)
	answer("a large header", dial("GET /healthz HTTP/1.1\r\nHost: x\r\nX-Large: "+strings.Repeat("x", 16<<10)+"\r\n\r\n"), 431)
	answer("a header within the limit", dial("GET /healthz HTTP/1.1\r\nHost: x\r\nX-Large: "+strings.Repeat("x", 4<<10)+"\r\n\r\n"), 200)

	// A body that doesn't come takes up the one request that may be under way, until its time is over.
	slow := dial("POST /api/v1/repos/r1/webhooks HTTP/1.1\r\n" + authorized + "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
	busy := false
	for range 100 { // it may take a moment until that is under way, and then it is over again soon
		r := dial("GET /api/v1/event-types HTTP/1.1\r\n" + authorized + "\r\n")
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if busy = resp.StatusCode == http.StatusServiceUnavailable; busy {
			break
		}
	}
	if !busy {
		t.Error("no second request was refused")
	}
	answer("half a body", slow, 408)
	s.call("GET", "/api/v1/event-types", "", 200)
}

// isReset reports whether the other side has closed a connection on which it had not read everything.
func isReset(err error) bool { return strings.Contains(err.Error(), "reset by peer") }

// docs/limits.md has each flag of the group "limits", with its default.
func TestLimitsAreDocumented(t *testing.T) {
	document, err := os.ReadFile(filepath.Join("..", "..", "docs", "limits.md"))
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `--([a-z0-9-]+)` \\| ([^|]+) \\|").FindAllStringSubmatch(string(document), -1) {
		documented[row[1]] = row[2]
	}
	serve := slices.IndexFunc(newParser().Model.Children, func(n *kong.Node) bool { return n.Name == "serve" })
	for _, flag := range newParser().Model.Children[serve].Flags {
		if flag.Group == nil || flag.Group.Key != "limits" {
			continue
		}
		if got := documented[flag.Name]; got != flag.Default {
			t.Errorf("docs/limits.md says of --%s that its default is %q, it is %q", flag.Name, got, flag.Default)
		}
		delete(documented, flag.Name)
	}
	if len(documented) > 0 {
		t.Errorf("docs/limits.md has flags that are no limits: %s", fmt.Sprint(documented))
	}
}
