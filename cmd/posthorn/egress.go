package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/sender"
)

// egress is the flags that say how deliveries leave.
type egress struct {
	HTTPSOnly     bool   `group:"deliveries" name:"https-only" help:"Refuse webhooks whose URL is not https. Deliveries of those that there are fail."`
	TLSCAFile     string `group:"deliveries" name:"tls-ca-file" placeholder:"FILE" help:"Certificates in PEM of authorities that sign receivers' certificates, beside the system's."`
	TLSMinVersion string `group:"deliveries" name:"tls-min-version" default:"1.2" enum:"1.2,1.3" placeholder:"VERSION" help:"Least version of TLS with receivers: 1.2 or 1.3 (default ${default})."`
	TLSClientCert string `group:"deliveries" name:"tls-client-cert" placeholder:"FILE" help:"Certificate in PEM, with those between it and its root, for receivers that ask for one."`
	TLSClientKey  string `group:"deliveries" name:"tls-client-key" placeholder:"FILE" help:"The key of that certificate in PEM."`
	DNSServer     string `group:"deliveries" name:"dns-server" placeholder:"IP:PORT" help:"DNS server that looks up the hosts of webhooks, for example one that knows no internal names (default: those of the system)."`
	EgressProxy   string `group:"deliveries" placeholder:"URL" help:"Proxy that all deliveries go through: http://, https:// or socks5://HOST:PORT. Targets are judged here all the same. With a password, better given as POSTHORN_EGRESS_PROXY."`
}

func (e *egress) check() error {
	if (e.TLSClientCert == "") != (e.TLSClientKey == "") {
		return errors.New("--tls-client-cert and --tls-client-key go together")
	}
	if e.DNSServer != "" {
		if server, err := netip.ParseAddrPort(e.DNSServer); err != nil || server.Port() == 0 {
			return fmt.Errorf("--dns-server %q is not an address with a port such as 9.9.9.9:53", e.DNSServer)
		}
	}
	if e.EgressProxy != "" {
		if _, err := sender.ParseProxy(e.EgressProxy); err != nil {
			return fmt.Errorf("--egress-proxy: %w", err)
		}
	}
	return nil
}

// apply reads the files and puts everything into a configuration.
func (e *egress) apply(cfg *posthorn.Config) error {
	cfg.HTTPSOnly, cfg.EgressProxy = e.HTTPSOnly, e.EgressProxy
	if e.DNSServer != "" {
		cfg.Resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, e.DNSServer)
		}}
	}
	if e.TLSMinVersion == "1.3" {
		cfg.MinTLSVersion = tls.VersionTLS13
	}
	if e.TLSCAFile != "" {
		pem, err := os.ReadFile(e.TLSCAFile)
		if err != nil {
			return fmt.Errorf("--tls-ca-file: %w", err)
		}
		if cfg.RootCAs, err = x509.SystemCertPool(); err != nil {
			return fmt.Errorf("the system's certificate authorities: %w", err)
		}
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("--tls-ca-file %s has no certificate in PEM", e.TLSCAFile)
		}
	}
	if e.TLSClientCert != "" {
		pair, err := tls.LoadX509KeyPair(e.TLSClientCert, e.TLSClientKey)
		if err != nil {
			return fmt.Errorf("--tls-client-cert and --tls-client-key: %w", err)
		}
		cfg.ClientCertificate = &pair
	}
	return nil
}
