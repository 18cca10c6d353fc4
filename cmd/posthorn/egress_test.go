package main

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/musehub/posthorn/internal/certtest"
	"github.com/musehub/posthorn/internal/guardtest"
)

// files writes texts into files and returns their paths.
func files(t *testing.T, texts ...string) (paths []string) {
	t.Helper()
	dir := t.TempDir()
	for i, text := range texts {
		path := filepath.Join(dir, string(rune('a'+i))+".pem")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	return paths
}

// demanding is the configuration of a receiver whose clients need a certificate of an authority.
func demanding(server, clients *certtest.Authority) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{server.Pair(certtest.Server("127.0.0.1"))},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: clients.Pool(),
	}
}

// The settings of the node count for webhooks that have none, those of a webhook for it alone, by the API and by the command.
func TestTLSOfNodeAndWebhook(t *testing.T) {
	t.Parallel()
	node, own := certtest.New(t), certtest.New(t)
	nodeCert, nodeKey := node.Client()
	ownCert, ownKey := own.Client()
	paths := files(t, node.PEM, nodeCert, nodeKey, own.PEM, ownCert, ownKey)
	nodes := newReceiverAt(t, "127.0.0.1:0", demanding(node, node), nil)
	owns := newReceiverAt(t, "127.0.0.1:0", demanding(own, own), nil)
	s := startContract(t, "--retry-policy", "none", "--tls-ca-file", paths[0], "--tls-client-cert", paths[1], "--tls-client-key", paths[2])
	c := in(t, s)
	settings := map[string]string{"minVersion": "1.3", "rootCAs": own.PEM, "certificate": ownCert, "key": ownKey}
	create := func(url string, settings any) string {
		t.Helper()
		a := c.ask(http.StatusCreated, "POST", "/webhooks", asJSON(map[string]any{"url": url, "events": []string{"push"}, "tls": settings}))
		if strings.Contains(string(a.Body), "PRIVATE KEY") {
			t.Errorf("the key is shown: %s", a.Body)
		}
		return read[struct{ WebhookID string }](c, a).WebhookID
	}
	run := func(args ...string) (w webhook) {
		t.Helper()
		if err := json.Unmarshal([]byte(runClient(t, s, append(args, "--repo", c.repo, "--json")...)), &w); err != nil {
			t.Fatal(err)
		}
		return w
	}
	byCommand := run("webhooks", "create", "--url", owns.URL, "--event", "push",
		"--tls-min-version", "1.3", "--tls-ca-file", paths[3], "--tls-client-cert", paths[4], "--tls-client-key", paths[5])
	if byCommand.TLS.MinVersion != "1.3" || byCommand.TLS.RootCAs != own.PEM || byCommand.TLS.Certificate != ownCert {
		t.Errorf("the command made %+v", byCommand)
	}
	const alert = "request error: TLS: the receiver ends TLS with the alert: "
	want := map[string]string{
		c.hook(nodes.URL, "push", ""):                           "",
		c.hook(owns.URL, "push", ""):                            "request error: TLS: the certificate is signed by an unknown authority",
		create(owns.URL, settings):                              "",
		byCommand.WebhookID:                                     "",
		create(nodes.URL, settings):                             "request error: TLS: the certificate is signed by an unknown authority",
		create(owns.URL, map[string]string{"rootCAs": own.PEM}): alert,
		create(nodes.URL, map[string]string{"certificate": ownCert, "key": ownKey}): alert,
	}
	c.dispatch("push", `{}`, len(want))
	for hook, text := range want {
		if d := c.awaitLog(hook, 1)[0]; d.success() != (text == "") || !strings.HasPrefix(d.body(), text) {
			t.Errorf("%s: %d %q, want %q", d.URL, d.status(), d.body(), text)
		}
	}

	// Removed and set again.
	if w := run("webhooks", "update", byCommand.WebhookID, "--no-tls"); w.TLS.RootCAs != "" || w.TLS.Certificate != "" {
		t.Errorf("--no-tls left %+v", w.TLS)
	}
	c.problem(c.ask(http.StatusUnprocessableEntity, "PATCH", "/webhooks/"+byCommand.WebhookID, asJSON(map[string]any{"tls": map[string]string{"certificate": ownCert}})), "tls")
	c.problem(c.ask(http.StatusUnprocessableEntity, "PATCH", "/webhooks/"+byCommand.WebhookID, `{"tls":{"minVersion":1}}`), "tls.minVersion")
	c.problem(c.ask(http.StatusUnprocessableEntity, "PATCH", "/webhooks/"+byCommand.WebhookID, `{"tls":null}`), "tls")
	c.problem(c.ask(http.StatusUnprocessableEntity, "POST", "/webhooks", `{"url":"http://example.com/","events":["push"],"tls":{"minVersion":"1.3"}}`), "tls")
}

// With --tls-min-version a receiver that has nothing newer than TLS 1.2 gets nothing.
func TestTLSMinVersionOfNode(t *testing.T) {
	t.Parallel()
	ca := certtest.New(t)
	old := demanding(ca, ca)
	old.ClientAuth, old.MaxVersion = tls.NoClientCert, tls.VersionTLS12
	receiver := newReceiverAt(t, "127.0.0.1:0", old, nil)
	paths := files(t, ca.PEM)
	for version, want := range map[string]string{"1.2": "", "1.3": "request error: TLS: "} {
		c := in(t, startContract(t, "--retry-policy", "none", "--tls-ca-file", paths[0], "--tls-min-version", version))
		hook := c.hook(receiver.URL, "push", "")
		c.dispatch("push", `{}`, 1)
		if d := c.awaitLog(hook, 1)[0]; d.success() != (want == "") || !strings.HasPrefix(d.body(), want) {
			t.Errorf("with %s: %d %q, want %q", version, d.status(), d.body(), want)
		}
	}
	if n := len(receiver.got()); n != 1 {
		t.Errorf("%d requests arrived, want 1", n)
	}
}

// With --https-only nothing goes out in the clear, whatever there is from before.
func TestHTTPSOnly(t *testing.T) {
	t.Parallel()
	receiver := newReceiver(t, nil)
	s := startContract(t, "--retry-policy", "none")
	c := in(t, s)
	hook := c.hook(receiver.URL, "push", "")
	s.stop()
	c = c.at(startContract(t, "--retry-policy", "none", "--data", s.data, "--https-only"))
	a := c.ask(http.StatusUnprocessableEntity, "POST", "/webhooks", asJSON(map[string]any{"url": receiver.URL, "events": []string{"push"}}))
	c.problem(a, "url", "only https is allowed here", "--https-only")
	c.hook("https://example.com/", "issue", "")
	c.dispatch("push", `{}`, 1)
	if d := c.awaitLog(hook, 1)[0]; d.success() || !strings.Contains(d.body(), "--https-only") {
		t.Errorf("%d %q", d.status(), d.body())
	}
	if n := len(receiver.got()); n != 0 {
		t.Errorf("%d requests arrived", n)
	}
}

// recordingProxy is an egress proxy on loopback that notes what it is asked to connect to, and connects to nothing.
type recordingProxy struct {
	addr  string
	mu    sync.Mutex
	asked []string
}

func newRecordingProxy(t *testing.T) *recordingProxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &recordingProxy{addr: ln.Addr().String()}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				req, err := http.ReadRequest(bufio.NewReader(conn))
				if err != nil {
					return
				}
				p.mu.Lock()
				p.asked = append(p.asked, req.Method+" "+req.RequestURI+" "+req.Header.Get("Proxy-Authorization"))
				p.mu.Unlock()
				_, _ = io.WriteString(conn, "HTTP/1.1 403 Forbidden\r\n\r\n")
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		serving.Wait()
	})
	return p
}

func (p *recordingProxy) take() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.asked)
}

// Every row of the guard's table at the dial of the real program, also those that no registration can know, and those whose webhook
// is older than the rule. Where the guard fails, a proxy on loopback is asked and connects to nothing, so that no packet leaves.
func TestGuardTableAtTheDial(t *testing.T) {
	t.Parallel()
	dns, proxy := guardtest.NewDNS(t, guardtest.Names), newRecordingProxy(t)
	flags := []string{
		"--retry-policy", "none", "--timeout", "60s", "--dns-server", dns.Addr(), "--egress-proxy", "http://posthorn:s3cret@" + proxy.addr,
	}
	s := startServer(t, flags...)
	c := in(t, s)
	rows := slices.DeleteFunc(guardtest.Rows(), func(r guardtest.Row) bool { return r.Delivery == "" })
	rows = append(rows, guardtest.Row{URL: "http://hanging.test/", Delivery: "timeout: DNS: "})
	hooks := make([]string, len(rows))
	for i := range rows {
		hooks[i] = c.hook("https://example.com/", "push", "")
	}
	c.ask(http.StatusOK, "PATCH", "/webhooks/"+hooks[len(rows)-1], `{"timeout":5}`)
	passing := c.hook("http://public.test/", "push", "")
	s.stop()
	for i, row := range rows {
		sql(t, s.data, "UPDATE posthorn_webhooks SET url = ? WHERE id = ?", row.URL, hooks[i])
	}
	c = c.at(startServer(t, append(flags, "--data", s.data)...))
	c.dispatch("push", `{}`, len(rows)+1)
	for i, row := range rows {
		if d := c.awaitLog(hooks[i], 1)[0]; d.status() != 0 || !strings.HasPrefix(d.body(), row.Delivery) {
			t.Errorf("%s: %d %q, want %q", row.URL, d.status(), d.body(), row.Delivery)
		}
	}
	if d := c.awaitLog(passing, 1)[0]; d.body() != "request error: connect: the egress proxy answers 403 Forbidden" {
		t.Errorf("http://public.test/: %q", d.body())
	}
	const user = "Basic cG9zdGhvcm46czNjcmV0"
	if asked := proxy.take(); !slices.Equal(asked, []string{"CONNECT 8.8.8.8:80 " + user}) {
		t.Errorf("the proxy was asked for %q", asked)
	}
	if strings.Contains(c.s.logs(), "s3cret") || strings.Contains(c.s.logs(), proxy.addr) {
		t.Error("the log has the proxy's password or address")
	}
}

// Names at the dial of the real program, without a proxy: one address of loopback stands for the public ones, another for the private
// ones. The second has a receiver, too, which a broken guard would reach.
func TestGuardNamesAtTheDial(t *testing.T) {
	t.Parallel()
	public := newReceiver(t, always(http.StatusOK))
	_, port, _ := net.SplitHostPort(public.Addr)
	private := newReceiverAt(t, "127.0.0.2:"+port, nil, nil)
	dns := guardtest.NewDNS(t, map[string]string{
		"public.test.": "127.0.0.1", "private.test.": "127.0.0.2", "mixed.test.": "127.0.0.1 127.0.0.2", "mixed2.test.": "127.0.0.2 127.0.0.1",
		"rebind.test.": "127.0.0.1 | 127.0.0.2", "failing.test.": "fail", "hanging.test.": "hang", "localhost.": "127.0.0.2",
	})
	s := startServer(t, "--allow-target", public.Addr, "--dns-server", dns.Addr(), "--retry-policy", "none", "--timeout", "60s")
	c := in(t, s)
	const refused = "SSRF blocked: connect: refused by the rule loopback 127.0.0.0/8"
	hooks := map[string]string{}
	for name := range map[string]bool{"public": true, "private": true, "mixed": true, "mixed2": true, "rebind": true, "failing": true, "hanging": true} {
		hooks[name] = c.hook("http://"+name+".test:"+port+"/"+name, "push", "")
	}
	c.ask(http.StatusOK, "PATCH", "/webhooks/"+hooks["hanging"], `{"timeout":5}`)
	expect := func(n int, want map[string]string) {
		t.Helper()
		c.dispatch("push", `{}`, len(hooks))
		for name, text := range want {
			if d := c.awaitLog(hooks[name], n)[0]; d.success() != (text == "") || !strings.HasPrefix(d.body(), text) {
				t.Errorf("%s: %d %q, want %q", name, d.status(), d.body(), text)
			}
		}
	}
	want := map[string]string{
		"public": "", "private": refused, "mixed": refused, "mixed2": refused, "rebind": "",
		"failing": "request error: DNS: the lookup failed", "hanging": "timeout: DNS: ",
	}
	expect(1, want)
	want["rebind"] = refused
	public.close() // and with it the kept connections, so that the name is looked up again
	delete(want, "public")
	expect(2, want)
	if n := len(private.got()); n != 0 {
		t.Errorf("%d requests arrived where none may", n)
	}
	c.problem(c.ask(http.StatusUnprocessableEntity, "POST", "/webhooks", `{"url":"http://127.0.0.2:`+port+`/","events":["push"]}`), "loopback")
}
