package sender

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/musehub/posthorn/internal/certtest"
)

// authority signs the certificates of receivers.
type authority struct {
	*certtest.Authority
	t *testing.T
}

func newAuthority(t *testing.T) *authority { return &authority{certtest.New(t), t} }

// receive starts a server with a certificate, to be changed by with.
func (a *authority) receive(template *x509.Certificate, with func(*httptest.Server)) (server *httptest.Server, url string) {
	server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := ""
		if len(r.TLS.PeerCertificates) > 0 {
			who = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		fmt.Fprintf(w, "%s %t %s", tls.VersionName(r.TLS.Version), r.TLS.DidResume, who)
	}))
	server.Config.ErrorLog = discard
	server.TLS = &tls.Config{Certificates: []tls.Certificate{a.Pair(template)}}
	if with != nil {
		with(server)
	}
	server.StartTLS()
	a.t.Cleanup(server.Close)
	return server, "https://localhost:" + mustURL(server.URL).Port() + "/"
}

// trusting returns a Sender that trusts the authority.
func (a *authority) trusting(cfg Config) *Sender {
	cfg.AllowTargets, cfg.RootCAs = []Target{loopback, mustTarget("::1")}, a.Pool()
	s, _ := newSender(a.t, cfg)
	return s
}

func postTLS(t *testing.T, s *Sender, url string, settings TLS) string {
	t.Helper()
	o := s.Send(t.Context(), &Request{URL: mustURL(url), Header: header(), Body: []byte(`{}`), TLS: settings})
	return o.Body
}

func TestCertificatesAreVerified(t *testing.T) {
	a := newAuthority(t)
	expired := certtest.Server("localhost")
	expired.NotAfter = time.Now().Add(-time.Hour)
	for _, row := range []struct {
		name     string
		template *x509.Certificate
		want     string
	}{
		{"good", certtest.Server("localhost"), "TLS 1.3 false "},
		{"expired", expired, "request error: TLS: the certificate is expired or not valid yet"},
		{"of another host", certtest.Server("other.test"), "request error: TLS: the certificate is for another host"},
		{"of a client", &x509.Certificate{DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, "request error: TLS: x509: certificate specifies an incompatible key usage"},
	} {
		_, url := a.receive(row.template, nil)
		if got := postTLS(t, a.trusting(Config{}), url, TLS{}); got != row.want {
			t.Errorf("%s: %q, want %q", row.name, got, row.want)
		}
	}
	_, url := a.receive(certtest.Server("localhost"), nil)
	if got := postTLS(t, newAuthority(t).trusting(Config{}), url, TLS{}); got != "request error: TLS: the certificate is signed by an unknown authority" {
		t.Errorf("of another authority: %q", got)
	}
}

// What a webhook has of its own: another authority, and with it not that of the node.
func TestAuthorityOfOne(t *testing.T) {
	node, own := newAuthority(t), newAuthority(t)
	_, nodeURL := node.receive(certtest.Server("localhost"), nil)
	_, ownURL := own.receive(certtest.Server("localhost"), nil)
	s := node.trusting(Config{})
	const unknown = "request error: TLS: the certificate is signed by an unknown authority"
	for range 2 { // also when there are connections to reuse
		for _, row := range []struct {
			url  string
			tls  TLS
			want string
		}{
			{nodeURL, TLS{}, "TLS 1.3"},
			{nodeURL, TLS{RootCAs: own.PEM}, unknown},
			{nodeURL, TLS{RootCAs: own.PEM + "\n" + node.PEM}, "TLS 1.3"},
			{ownURL, TLS{RootCAs: own.PEM}, "TLS 1.3"},
			{ownURL, TLS{}, unknown},
		} {
			if got := postTLS(t, s, row.url, row.tls); !strings.HasPrefix(got, row.want) {
				t.Errorf("%s with %d bytes of authorities: %q, want %q", row.url, len(row.tls.RootCAs), got, row.want)
			}
		}
	}
}

func TestClientCertificates(t *testing.T) {
	a := newAuthority(t)
	cert, key := a.Client()
	own, ownKey := a.Client()
	strange, strangeKey := newAuthority(t).Client()
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	ownPair, _ := tls.X509KeyPair([]byte(own), []byte(ownKey))
	name, ownName := pair.Leaf.Subject.CommonName, ownPair.Leaf.Subject.CommonName
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		_, url := a.receive(certtest.Server("localhost"), func(s *httptest.Server) {
			s.TLS.ClientAuth, s.TLS.ClientCAs, s.TLS.MaxVersion = tls.RequireAndVerifyClientCert, a.Pool(), version
		})
		without, with := a.trusting(Config{}), a.trusting(Config{Certificate: &pair})
		for range 2 {
			for _, row := range []struct {
				what string
				s    *Sender
				tls  TLS
				want string
			}{
				{"no certificate", without, TLS{}, ""},
				{"the node's", with, TLS{}, name},
				{"the webhook's", without, TLS{Certificate: own, Key: ownKey}, ownName},
				{"both", with, TLS{Certificate: own, Key: ownKey}, ownName},
				{"the node's, and other settings", with, TLS{MinVersion: "1.2"}, name},
				{"a strange one", with, TLS{Certificate: strange, Key: strangeKey}, ""},
			} {
				got := postTLS(t, row.s, url, row.tls)
				if row.want == "" && !strings.HasPrefix(got, "request error: TLS: the receiver ends TLS with the alert: ") ||
					row.want != "" && !strings.HasSuffix(got, " "+row.want) {
					t.Errorf("%s, %s: %q, want %q", tls.VersionName(version), row.what, got, row.want)
				}
			}
		}
	}
}

func TestLeastVersion(t *testing.T) {
	a := newAuthority(t)
	_, old := a.receive(certtest.Server("localhost"), func(s *httptest.Server) { s.TLS.MinVersion, s.TLS.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 })
	_, usual := a.receive(certtest.Server("localhost"), func(s *httptest.Server) { s.TLS.MaxVersion = tls.VersionTLS12 })
	lax, strict := a.trusting(Config{}), a.trusting(Config{MinVersion: tls.VersionTLS13})
	const refused = "request error: TLS: the receiver ends TLS with the alert: protocol version not supported"
	for _, row := range []struct {
		s    *Sender
		url  string
		tls  TLS
		want string
	}{
		{lax, old, TLS{}, refused},
		{lax, old, TLS{MinVersion: "1.2"}, refused},
		{lax, usual, TLS{}, "TLS 1.2 false "},
		{lax, usual, TLS{MinVersion: "1.2"}, "TLS 1.2 false "},
		{lax, usual, TLS{MinVersion: "1.3"}, refused},
		{strict, usual, TLS{}, refused},
		{strict, usual, TLS{MinVersion: "1.2"}, refused}, // it can't go below the node's
	} {
		if got := postTLS(t, row.s, row.url, row.tls); got != row.want {
			t.Errorf("%+v: %q, want %q", row.tls, got, row.want)
		}
	}
}

// A receiver that closes each connection gets the whole handshake once for each set of settings.
func TestSessionsAreResumed(t *testing.T) {
	a := newAuthority(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		server, url := a.receive(certtest.Server("localhost"), func(s *httptest.Server) { s.TLS.MaxVersion = version })
		server.Config.SetKeepAlivesEnabled(false)
		s := a.trusting(Config{})
		for _, settings := range []TLS{{}, {RootCAs: a.PEM}} {
			for i := range 4 {
				want := fmt.Sprintf("%s %t ", tls.VersionName(version), i > 0)
				if got := postTLS(t, s, url, settings); got != want {
					t.Errorf("request %d: %q, want %q", i, got, want)
				}
			}
		}
	}
}

func TestPoolsAreBounded(t *testing.T) {
	a := newAuthority(t)
	_, url := a.receive(certtest.Server("localhost"), nil)
	s := a.trusting(Config{})
	for i := range maxPools + 10 {
		if got := postTLS(t, s, url, TLS{RootCAs: a.PEM + strings.Repeat("\n", i)}); !strings.HasPrefix(got, "TLS 1.3") {
			t.Fatalf("settings %d: %q", i, got)
		}
	}
	if len(s.pools) != maxPools {
		t.Errorf("there are %d pools, want %d", len(s.pools), maxPools)
	}
}

func TestHTTPSOnly(t *testing.T) {
	a := newAuthority(t)
	_, url := a.receive(certtest.Server("localhost"), nil)
	s := a.trusting(Config{HTTPSOnly: true})
	if _, err := s.CheckURL(url); err != nil {
		t.Error(err)
	}
	if got := postTLS(t, s, url, TLS{}); got != "TLS 1.3 false " {
		t.Error(got)
	}
	plain := strings.Replace(respond(t, ok("hi")), "127.0.0.1", "localhost", 1)
	const want = "only https is allowed here (--https-only, Config.HTTPSOnly)"
	if _, err := s.CheckURL(plain); err == nil || err.Error() != want {
		t.Error(err)
	}
	if v := s.Explain(t.Context(), plain); v.Phase != "registration" || v.Reason != want {
		t.Errorf("%+v", v)
	}
	if got := postTLS(t, s, plain, TLS{}); got != "request error: request: "+want {
		t.Error(got)
	}
}

func TestCheckTLS(t *testing.T) {
	a := newAuthority(t)
	cert, key := a.Client()
	_, otherKey := a.Client()
	for _, row := range []struct {
		tls  TLS
		want string
	}{
		{TLS{}, ""},
		{TLS{MinVersion: "1.3", RootCAs: "\n" + a.PEM + a.PEM + "\n", Certificate: cert + a.PEM, Key: key}, ""},
		{TLS{MinVersion: "1.1"}, "the least version is 1.2 or 1.3"},
		{TLS{MinVersion: "top-secret"}, "the least version is 1.2 or 1.3"},
		{TLS{RootCAs: "top-secret"}, "the authorities' certificates have something else in them than certificates in PEM"},
		{TLS{RootCAs: a.PEM + key}, "the authorities' certificates have something else in them than certificates in PEM"},
		{TLS{RootCAs: "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"}, "one of the authorities' certificates can't be read: malformed tbs certificate"},
		{TLS{RootCAs: strings.Repeat(a.PEM, 200)}, "certificates and keys have at most 65536 bytes"},
		{TLS{Certificate: cert}, "a client certificate and its key go together"},
		{TLS{Key: key}, "a client certificate and its key go together"},
		{TLS{Certificate: cert, Key: otherKey}, "the client certificate and its key: private key does not match public key"},
		{TLS{Certificate: cert, Key: "top-secret"}, "the client certificate and its key: failed to find any PEM data in key input"},
		{TLS{Certificate: key, Key: cert}, "the client certificate and its key: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been switched"},
	} {
		got := ""
		if err := row.tls.Check(); err != nil {
			got = err.Error()
		}
		if got != row.want {
			t.Errorf("got %q, want %q", got, row.want)
		}
	}
}
