package sender

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	PEM  string
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	cert, key := a.sign(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	a.cert, a.key, a.PEM = pair.Leaf, pair.PrivateKey.(*ecdsa.PrivateKey), cert
	return a
}

// sign returns a certificate, and its key, in PEM. The first one signs itself.
func (a *authority) sign(template *x509.Certificate) (cert, keyPEM string) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.Subject = pkix.Name{CommonName: fmt.Sprint("test ", template.SerialNumber)}
	template.NotBefore = time.Now().Add(-48 * time.Hour)
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(time.Hour)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}

func (a *authority) server(names ...string) *x509.Certificate {
	return &x509.Certificate{DNSNames: names, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
}

func (a *authority) client() (cert, key string) {
	return a.sign(&x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
}

// receive starts a server with a certificate, to be changed by with.
func (a *authority) receive(template *x509.Certificate, with func(*httptest.Server)) (server *httptest.Server, url string) {
	cert, key := a.sign(template)
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		a.t.Fatal(err)
	}
	server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := ""
		if len(r.TLS.PeerCertificates) > 0 {
			who = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		fmt.Fprintf(w, "%s %t %s", tls.VersionName(r.TLS.Version), r.TLS.DidResume, who)
	}))
	server.Config.ErrorLog = discard
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	if with != nil {
		with(server)
	}
	server.StartTLS()
	a.t.Cleanup(server.Close)
	return server, "https://localhost:" + mustURL(server.URL).Port() + "/"
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// trusting returns a Sender that trusts the authority.
func (a *authority) trusting(cfg Config) *Sender {
	cfg.AllowTargets, cfg.RootCAs = []Target{loopback, mustTarget("::1")}, a.pool()
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
	expired := a.server("localhost")
	expired.NotAfter = time.Now().Add(-time.Hour)
	for _, row := range []struct {
		name     string
		template *x509.Certificate
		want     string
	}{
		{"good", a.server("localhost"), "TLS 1.3 false "},
		{"expired", expired, "request error: TLS: the certificate is expired or not valid yet"},
		{"of another host", a.server("other.test"), "request error: TLS: the certificate is for another host"},
		{"of a client", &x509.Certificate{DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, "request error: TLS: x509: certificate specifies an incompatible key usage"},
	} {
		_, url := a.receive(row.template, nil)
		if got := postTLS(t, a.trusting(Config{}), url, TLS{}); got != row.want {
			t.Errorf("%s: %q, want %q", row.name, got, row.want)
		}
	}
	_, url := a.receive(a.server("localhost"), nil)
	if got := postTLS(t, newAuthority(t).trusting(Config{}), url, TLS{}); got != "request error: TLS: the certificate is signed by an unknown authority" {
		t.Errorf("of another authority: %q", got)
	}
}

// What a webhook has of its own: another authority, and with it not that of the node.
func TestAuthorityOfOne(t *testing.T) {
	node, own := newAuthority(t), newAuthority(t)
	_, nodeURL := node.receive(node.server("localhost"), nil)
	_, ownURL := own.receive(own.server("localhost"), nil)
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
	cert, key := a.client()
	own, ownKey := a.client()
	strange, strangeKey := newAuthority(t).client()
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	ownPair, _ := tls.X509KeyPair([]byte(own), []byte(ownKey))
	name, ownName := pair.Leaf.Subject.CommonName, ownPair.Leaf.Subject.CommonName
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		_, url := a.receive(a.server("localhost"), func(s *httptest.Server) {
			s.TLS.ClientAuth, s.TLS.ClientCAs, s.TLS.MaxVersion = tls.RequireAndVerifyClientCert, a.pool(), version
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
	_, old := a.receive(a.server("localhost"), func(s *httptest.Server) { s.TLS.MinVersion, s.TLS.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 })
	_, usual := a.receive(a.server("localhost"), func(s *httptest.Server) { s.TLS.MaxVersion = tls.VersionTLS12 })
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
		server, url := a.receive(a.server("localhost"), func(s *httptest.Server) { s.TLS.MaxVersion = version })
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
	_, url := a.receive(a.server("localhost"), nil)
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
	_, url := a.receive(a.server("localhost"), nil)
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
	cert, key := a.client()
	_, otherKey := a.client()
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
