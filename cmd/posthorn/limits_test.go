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

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/schema"
)

// Clients that are slow, or send too much, through the real binary.
func TestAPILimits(t *testing.T) {
	t.Parallel()
	s := startServer(t, "--header-timeout", "300ms", "--request-timeout", "600ms", "--idle-timeout", "300ms", "--max-header-size", "8KiB",
		"--max-api-requests", "1")
	dial := func(send string) *bufio.Reader {
		t.Helper()
		conn := dialServer(t, s)
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
	answer := func(what string, r *bufio.Reader, status int) error {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != status {
			return fmt.Errorf("%s: %d, want %d", what, resp.StatusCode, status)
		}
		return nil
	}
	// A busy machine may take a header for one that doesn't come: then there is no answer, and it is sent again.
	answered := func(what, send string, status int) (r *bufio.Reader) {
		t.Helper()
		eventually(t, func() string {
			r = dial(send)
			if _, err := r.Peek(1); err != nil {
				return fmt.Sprintf("%s: %v", what, err)
			}
			return ""
		})
		if err := answer(what, r, status); err != nil {
			t.Fatal(err)
		}
		return r
	}
	authorized := "Host: x\r\nAuthorization: Bearer " + s.token + "\r\n"
	ended("half a header", dial("GET /healthz HTTP/1.1\r\nHost: x\r\n"))
	ended("an idle connection", answered("a whole one", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 200))
	for size, status := range map[int]int{16 << 10: 431, 4 << 10: 200} {
		answered(fmt.Sprintf("a header of %d bytes", size), "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Large: "+strings.Repeat("x", size)+"\r\n\r\n", status)
	}

	// A body that doesn't come takes up the one request that may be under way, until its time is over.
	eventually(t, func() string {
		slow := dial("POST /api/v1/repos/r1/webhooks HTTP/1.1\r\n" + authorized + "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
		for range 100 { // it may take a moment until the slow one is under way. If it was refused itself, all begins anew.
			if answer("", dial("GET /api/v1/event-types HTTP/1.1\r\n"+authorized+"\r\n"), http.StatusServiceUnavailable) != nil {
				continue
			}
			if err := answer("half a body", slow, http.StatusRequestTimeout); err != nil {
				return err.Error()
			}
			return ""
		}
		return "no second request was refused"
	})
	// Nor does one that means nothing hold up a redelivery, whose answer may take as long as it likes.
	answered("a redelivery with half a body", "POST /api/v1/repos/r1/webhooks/w/deliveries/d/redeliver HTTP/1.1\r\n"+authorized+"Content-Length: 5\r\n\r\n{", 400)
	answered("afterwards", "GET /api/v1/event-types HTTP/1.1\r\n"+authorized+"\r\n", 200)
}

// More connections than there may be wait until one ends, and cost the server nothing.
func TestAPIConnections(t *testing.T) {
	t.Parallel()
	s := startServer(t, "--max-api-connections", "2")
	ask := func() (net.Conn, *bufio.Reader) {
		t.Helper()
		conn := dialServer(t, s)
		if _, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		return conn, bufio.NewReader(conn)
	}
	healthy := func(r *bufio.Reader) error {
		resp, err := http.ReadResponse(r, nil)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	// The await of startServer may have left a connection of the tests' own client.
	http.DefaultClient.CloseIdleConnections()
	contractClient.CloseIdleConnections()
	first, answer := ask()
	if err := healthy(answer); err != nil {
		t.Fatal(err)
	}
	_, answer = ask()
	if err := healthy(answer); err != nil {
		t.Fatal(err)
	}
	third, answer := ask()
	if err := third.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil { // long enough to be seen where the limit is gone
		t.Fatal(err)
	}
	if _, err := answer.Peek(1); err == nil {
		t.Error("a third connection was answered beside two others")
	}
	first.Close()
	if err := third.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if err := healthy(bufio.NewReader(third)); err != nil {
		t.Error(err)
	}
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
	for what, limit := range map[string]string{ // those without a flag, as far as the code names them
		"URL of a webhook":                                     fmt.Sprintf("%d,%03d characters", posthorn.MaxURLLength/1000, posthorn.MaxURLLength%1000),
		"id of a repo, of an event":                            fmt.Sprintf("%d bytes, %d characters", posthorn.MaxRepoIDLength, posthorn.MaxEventIDLength),
		"`orderingKey` of an event":                            fmt.Sprintf("%d bytes", posthorn.MaxOrderingKeyLength),
		"deliveries that led to an event, one after the other": fmt.Sprint(posthorn.MaxDepth),
		"schema of an event type, the file of `--catalogue`":   fmt.Sprintf("%d KiB, %d MiB", schema.MaxSize>>10, maxCatalogue>>20),
		"events of a poll, and how long it waits":              fmt.Sprintf("%d, %.0f s", posthorn.MaxPoll, posthorn.MaxPollWait.Seconds()),
		"name, scopes and repos of a token": fmt.Sprintf("%d characters, %d, and %d",
			posthorn.MaxTokenNameLength, len(posthorn.Scopes()), posthorn.MaxTokenRepos),
	} {
		if row := "\n| " + what + " | " + limit + " |"; !strings.Contains(string(document), row) {
			t.Errorf("docs/limits.md doesn't have the row %q", row)
		}
	}
}
