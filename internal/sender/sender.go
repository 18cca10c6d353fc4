// Package sender makes one HTTP attempt of a delivery: it POSTs a body to a URL and says what came of it.
//
// It decides nothing about retries and keeps no state but its pools of connections. What it promises:
//
//   - No connection is opened to an address that the guard refuses, whatever a name resolves to at that moment.
//   - The body leaves this process at most once per [Sender.Send].
//   - An attempt ends in time, and takes a bounded amount of memory, whatever the receiver does.
//   - Everything in an [Outcome] is valid UTF-8 without NUL, so any database takes it.
package sender

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"sync"
	"time"

	"code.dny.dev/ssrf"
)

const (
	defaultTimeout = 10 * time.Second

	// Idle connections kept for reuse. Many webhooks can share one host, so one host may have as many as the node has
	// requests in flight: to open one costs more than the request itself.
	maxIdleConns        = 2048
	maxIdleConnsPerHost = 1024
	idleConnTimeout     = 30 * time.Second

	// What is read of a response, at most.
	maxHeaderBytes = 64 << 10
	maxBodyBytes   = 64 << 10
)

// Config sets up a [Sender]. Its zero value works.
type Config struct {
	// AllowTargets opens addresses that the guard refuses. Defaults to none.
	AllowTargets []Target

	// OwnAddresses are where this process listens. Only an entry of AllowTargets for exactly that address and port opens
	// one of them. An unspecified address stands for all that the machine has. Defaults to none.
	OwnAddresses []netip.AddrPort

	// NAT64 are the prefixes under which the network translates to IPv4. An address under one is judged by the IPv4
	// address in it. Defaults to none.
	NAT64 []netip.Prefix

	// RootCAs is who signs receivers' certificates. Defaults to the system's.
	RootCAs *x509.CertPool
	// MinVersion is the least version of TLS: tls.VersionTLS12 or tls.VersionTLS13. Defaults to 1.2.
	MinVersion uint16
	// Certificate is shown to receivers that ask for one. Defaults to none.
	Certificate *tls.Certificate
	// HTTPSOnly refuses URLs that are not https.
	HTTPSOnly bool

	// Proxy is what all connections go through. Defaults to none: proxies of the environment are not used.
	Proxy *Proxy

	// Timeout limits a whole attempt, from the DNS lookup to the last byte of the response. Defaults to 10 seconds.
	Timeout time.Duration

	// Resolver looks up hostnames. Defaults to net.DefaultResolver.
	Resolver *net.Resolver
}

// A Sender sends requests over pools of connections: one, and one for each set of TLS settings that webhooks have of their own. It
// is safe for concurrent use.
type Sender struct {
	timeout   time.Duration
	resolver  *net.Resolver
	allow     []Target
	own       []netip.AddrPort
	nat64     []netip.Prefix
	guardian  *ssrf.Guardian
	httpsOnly bool
	proxy     *Proxy
	shared    *pool

	mu    sync.Mutex
	pools map[TLS]*pool

	// afterGuard, when tests set it, has the last word on an address that the guard let pass.
	afterGuard func(network, address string) error
}

// New returns a Sender. Close it when nothing is to be sent any more.
func New(cfg Config) *Sender {
	s := &Sender{
		timeout:   cfg.Timeout,
		resolver:  cfg.Resolver,
		allow:     cfg.AllowTargets,
		own:       cfg.OwnAddresses,
		nat64:     cfg.NAT64,
		guardian:  ssrf.New(ssrf.WithAnyPort()),
		httpsOnly: cfg.HTTPSOnly,
		proxy:     cfg.Proxy,
		pools:     map[TLS]*pool{},
	}
	if s.timeout <= 0 {
		s.timeout = defaultTimeout
	}

	shared := &tls.Config{
		NextProtos: []string{"http/1.1"},
		RootCAs:    cfg.RootCAs,
		MinVersion: max(cfg.MinVersion, tls.VersionTLS12),
		// Receivers that close each connection are spared a full handshake the next time.
		ClientSessionCache: tls.NewLRUClientSessionCache(maxIdleConns),
	}
	if cfg.Certificate != nil {
		shared.Certificates = []tls.Certificate{*cfg.Certificate}
	}
	s.shared = s.newPool(shared, maxIdleConns)
	return s
}
