package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// The flags of limits that no other test sees at work, through the real binary: each row fails when its flag reaches nothing.
func TestLimitFlags(t *testing.T) {
	t.Parallel()
	s := startContract(t, "--retry-policy", "none", "--max-webhooks-per-repo", "8", "--max-in-flight", "4", "--disable-after", "3s",
		"--max-api-memory", "100KiB", "--max-events-per-second-per-token", "100", "--max-events-per-second-per-repo", "50")
	sharing(t, s, map[string]func(*contract){
		"--max-webhooks-per-repo": func(c *contract) {
			for range 8 {
				c.hook("https://example.com/", "push", "")
			}
			a := c.ask(http.StatusConflict, "POST", "/webhooks", `{"url":"https://example.com/","events":["push"]}`)
			c.problem(a, "--max-webhooks-per-repo")
		},
		"--max-events-per-second-per-token": func(c *contract) {
			another := in(c.t, c.s)
			var a apiAnswer
			eventually(c.t, func() string { // nine seconds after the batch one more is taken: then it shows nothing
				made := c.ask(http.StatusCreated, "POST", "/api/v1/tokens", `{"name":"x","scopes":["events:write"],"allRepos":true}`)
				as := "Authorization: Bearer " + read[struct{ Token string }](c, made).Token
				in(c.t, c.s).ask(http.StatusAccepted, "POST", "/events:batch", batchOf(1000), as)
				var err error
				if a, err = c.s.send(c.t.Context(), "POST", another.path("/events"), strings.NewReader(eventJSON("push", "", "1")), as); err != nil {
					c.t.Fatal(err)
				}
				if a.Status != http.StatusTooManyRequests {
					return fmt.Sprintf("the event after a batch was answered %d", a.Status)
				}
				return ""
			})
			c.problem(a, "100 events a second", "--max-events-per-second-per-token")
			if a.Header.Get("Retry-After") == "" {
				c.t.Error("it doesn't say when to try again")
			}
			another.dispatch("push", "1", 0) // whoever has another token is not concerned
		},
		"--max-events-per-second-per-repo": func(c *contract) {
			made := c.ask(http.StatusCreated, "POST", "/api/v1/tokens", `{"name":"x","scopes":["events:write"],"allRepos":true}`)
			as := "Authorization: Bearer " + read[struct{ Token string }](c, made).Token
			c.ask(http.StatusAccepted, "POST", "/events:batch", batchOf(1000), as)
			c.problem(c.ask(http.StatusTooManyRequests, "POST", "/events", eventJSON("push", "", "1")), "50 events a second", "--max-events-per-second-per-repo")
		},
		"--max-api-memory": maxAPIMemory,
		"--max-in-flight":  maxInFlight,
		"--disable-after":  disableAfter,
	})
	s.stop()

	// What is old goes at once when a server starts.
	s = startContract(t, "--data", s.data, "--audit-retention", "1ms", "--answer-timeout", "300ms")
	eventually(t, func() string {
		a, err := s.fetch(t.Context(), "GET", "/api/v1/audit", nil)
		if err != nil || a.Status != http.StatusOK {
			return fmt.Sprint("the audit log can't be read: ", a.Status, err)
		}
		if !strings.Contains(string(a.Body), `"entries":[]`) {
			return "with --audit-retention 1ms there are still entries"
		}
		return ""
	})

	// An answer that isn't there in time isn't sent.
	var conn net.Conn
	eventually(t, func() string {
		conn = dialServer(t, s)
		fmt.Fprintf(conn, "POST /api/v1/repos/r1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n", s.token)
		goOn := make([]byte, len("HTTP/1.1 100 Continue\r\n\r\n"))
		if _, err := io.ReadFull(conn, goOn); err != nil || !bytes.HasPrefix(goOn, []byte("HTTP/1.1 100 ")) { // its time was over before it was read
			return fmt.Sprintf("the server answers %q, %v", goOn, err)
		}
		return ""
	})
	if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Fatal("half a request was answered")
	}
	_, _ = io.WriteString(conn, strings.Repeat(" ", 100))
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(conn); len(answer) > 0 || err != nil && !isReset(err) {
		t.Errorf("after --answer-timeout there is %q, %v", answer, err)
	}
}

// batchOf is a batch of so many events that nobody subscribes to.
func batchOf(n int) string {
	return `{"events":[` + strings.TrimSuffix(strings.Repeat(eventJSON("push", "", "1")+",", n), ",") + `]}`
}

// While one large body is on its way there is no room for another.
func maxAPIMemory(c *contract) {
	large := eventJSON("push", "", `"`+strings.Repeat("x", 150<<10)+`"`)
	conn := dialServer(c.t, c.s)
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n",
		c.path("/events"), c.s.token, len(large))
	answer := bufio.NewReader(conn)
	for _, want := range []string{"HTTP/1.1 100 Continue\r\n", "\r\n"} { // once there is room for it
		if line, err := answer.ReadString('\n'); err != nil || line != want {
			c.t.Fatalf("the server answers %q, %v", line, err)
		}
	}
	a := c.ask(http.StatusServiceUnavailable, "POST", "/events", strings.Replace(large, "push", "issue", 1))
	c.problem(a, "--max-api-memory")
	_, _ = io.WriteString(conn, large)
	resp, err := http.ReadResponse(answer, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		c.t.Errorf("the first one was answered %d", resp.StatusCode)
	}
}

// However many webhooks there are, no more requests are under way than may be, and all arrive.
func maxInFlight(c *contract) {
	var all gauge
	receiver := newReceiver(c.t, func(r *wireRequest) wireAnswer { return all.okAfter(50*time.Millisecond, r) })
	const hooks, events = 8, 3
	for range hooks {
		c.hook(receiver.URL, "push", "")
	}
	for range events {
		c.dispatch("push", "1", hooks)
	}
	receiver.await(hooks * events)
	if most := all.peak(); most > 4 {
		c.t.Errorf("%d requests at a time, at most 4 may be", most)
	}
}

// A webhook whose attempts have all failed for long, of enough events, is disabled.
func disableAfter(c *contract) {
	receiver := newReceiver(c.t, always(http.StatusInternalServerError))
	hook := c.hook(receiver.URL, "push", "")
	type state struct {
		Active         bool
		DisabledReason string
	}
	get := func() state { return read[state](c, c.ask(http.StatusOK, "GET", "/webhooks/"+hook, "")) }
	c.ask(http.StatusAccepted, "POST", "/events:batch", batchOf(25))
	c.awaitLog(hook, 25)
	// Traffic goes on: the log is looked into once a minute, and at the first time too few of these may be in it.
	next := time.Now()
	eventually(c.t, func() string {
		now := get()
		switch {
		case !now.Active:
			_, reason, _ := strings.Cut(now.DisabledReason, "all attempts have failed since ")
			at, flag, _ := strings.Cut(reason, " ")
			since, err := time.Parse(time.RFC3339, at)
			if err != nil || time.Since(since) < 3*time.Second || !strings.Contains(flag, "--disable-after") {
				c.t.Fatalf("it is disabled: %s", now.DisabledReason)
			}
			return ""
		case time.Now().After(next):
			c.ask(http.StatusAccepted, "POST", "/events", eventJSON("push", "", "1"))
			next = time.Now().Add(time.Second)
		}
		return "it is not disabled"
	})
}
