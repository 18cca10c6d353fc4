package main

import (
	"net/http"
	"strings"
	"testing"

	"github.com/musehub/posthorn/internal/guardtest"
)

// The rows of the guard's table that a URL alone decides: 422 at registration, with the rule and the setting (case 23).
func TestContract23GuardTable(t *testing.T) {
	s := startServer(t, "--nat64", "2600:64::/96")
	c := in(t, s)
	rows := append(guardtest.Rows(), guardtest.Row{URL: "http://[2600:64::7f00:1]/", Registration: "loopback 127.0.0.0/8, through NAT64"})
	for _, row := range rows {
		if row.Registration == "" {
			continue
		}
		a := c.ask(http.StatusUnprocessableEntity, "POST", "/webhooks", asJSON(map[string]any{"url": row.URL, "events": []string{"push"}}))
		c.problem(a, "url", row.Registration)
		if strings.HasPrefix(row.Registration, "refused") && !strings.Contains(row.URL, "%25") {
			c.problem(a, "--allow-target")
		}
	}
	for _, ip := range []string{"100.63.255.254", "100.128.0.1"} {
		c.hook("http://"+ip+"/", "push", "")
	}
}

// The server's own listener stays closed when loopback is open, unless it is named with its port.
func TestGuardOwnListener(t *testing.T) {
	s := startServer(t, "--allow-target", "127.0.0.0/8", "--retry-policy", "none")
	c := in(t, s)
	a := c.ask(http.StatusUnprocessableEntity, "POST", "/webhooks", asJSON(map[string]any{"url": s.url + "/x", "events": []string{"push"}}))
	c.problem(a, "Posthorn's own listener", "exactly this address and port")
	hook := c.hook(strings.Replace(s.url, "127.0.0.1", "localhost", 1)+"/x", "push", "")
	c.dispatch("push", `{}`, 1)
	if row := c.awaitLog(hook, 1)[0]; !strings.HasPrefix(row.body(), "SSRF blocked: ") {
		t.Errorf("it is logged as %d, %q", row.status(), row.body())
	}
}

// A webhook that was made while its address was open gets nothing once it isn't, also over no kept connection.
func TestGuardAllowListChanged(t *testing.T) {
	receiver := newReceiver(t, nil)
	s := startServer(t, "--allow-target", receiver.Addr, "--retry-policy", "none")
	c := in(t, s)
	hook := c.hook(receiver.URL, "push", "")
	c.dispatch("push", `{}`, 1)
	c.awaitLog(hook, 1)
	s.stop()
	c = c.at(startServer(t, "--data", s.data, "--retry-policy", "none"))
	c.dispatch("push", `{}`, 1)
	if row := c.awaitLog(hook, 2)[0]; !strings.HasPrefix(row.body(), "SSRF blocked: ") || !strings.Contains(row.body(), "--allow-target") {
		t.Errorf("it is logged as %d, %q", row.status(), row.body())
	}
	if n := len(receiver.got()); n != 1 {
		t.Errorf("%d requests arrived, want 1", n)
	}
}
