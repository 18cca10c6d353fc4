package sender

import (
	"context"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
)

const (
	// maxPools is how many of a Sender's pools are for TLS settings other than its own.
	maxPools = 256
	// maxPoolIdle is how many idle connections each of them keeps, so that all of them together stay within what a process may have.
	maxPoolIdle = 64
	// maxPEM is how many bytes one of the texts in TLS may have: some dozens of certificates.
	maxPEM = 64 << 10
	// maxRSABits is how long an RSA key may be, as crypto/tls has it for the certificates of receivers. To sign with one, or to verify, takes time
	// that grows with the third power of this: minutes for those that fit into maxPEM.
	maxRSABits = 8192
)

// TLS is what a webhook has of its own for its connections. What is empty is as the Sender has it.
type TLS struct {
	MinVersion  string // "1.2" or "1.3"; no lower one than the Sender's counts
	RootCAs     string // in PEM: only certificates that these have signed are trusted
	Certificate string // in PEM, with those between it and its root, for receivers that ask for one
	Key         string // of Certificate, in PEM
}

// Check says in words fit for who gave the settings why no connection can be made with them. They don't quote the settings.
func (t TLS) Check() error {
	_, err := t.apply(&tls.Config{MinVersion: tls.VersionTLS12})
	return err
}

// apply returns a copy of cfg with the settings.
func (t TLS) apply(cfg *tls.Config) (*tls.Config, error) {
	if max(len(t.RootCAs), len(t.Certificate), len(t.Key)) > maxPEM {
		return nil, errors.New("certificates and keys have at most 65536 bytes")
	}
	cfg = cfg.Clone()
	switch t.MinVersion {
	case "", "1.2":
	case "1.3":
		cfg.MinVersion = tls.VersionTLS13
	default:
		return nil, errors.New("the least version is 1.2 or 1.3")
	}
	if t.RootCAs != "" {
		pool, err := certPool(t.RootCAs)
		if err != nil {
			return nil, err
		}
		cfg.RootCAs = pool
	}
	if (t.Certificate == "") != (t.Key == "") {
		return nil, errors.New("a client certificate and its key go together")
	}
	if t.Certificate != "" {
		pair, err := tls.X509KeyPair([]byte(t.Certificate), []byte(t.Key))
		if err != nil {
			return nil, errors.New("the client certificate and its key: " + strings.TrimPrefix(err.Error(), "tls: "))
		}
		if err := checkSize(pair.Leaf); err != nil { // whose key the other one fits
			return nil, fmt.Errorf("the client certificate: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	// A session goes on with what was verified when it began, so it is for the same settings only.
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(maxPoolIdle)
	return cfg, nil
}

// certPool reads certificates in PEM. AppendCertsFromPEM would pass over what it can't read.
func certPool(text string) (*x509.CertPool, error) {
	pool, rest := x509.NewCertPool(), []byte(text)
	for len(strings.TrimSpace(string(rest))) > 0 {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("the authorities' certificates have something else in them than certificates in PEM")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, errors.New("one of the authorities' certificates can't be read: " + strings.TrimPrefix(err.Error(), "x509: "))
		}
		if err := checkSize(cert); err != nil {
			return nil, fmt.Errorf("one of the authorities' certificates: %w", err)
		}
		pool.AddCert(cert)
	}
	return pool, nil
}

func checkSize(cert *x509.Certificate) error {
	if key, ok := cert.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() > maxRSABits {
		return fmt.Errorf("its RSA key has %d bits: at most %d", key.N.BitLen(), maxRSABits)
	}
	return nil
}

// pool is connections that are shared by all requests with the same TLS settings, and by no others: a connection is as good
// as what was verified when it was made.
type pool struct {
	http.Transport
	tls *tls.Config
}

func (s *Sender) newPool(cfg *tls.Config, idle int) *pool {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	p := &pool{tls: cfg}
	p.Transport = http.Transport{
		Proxy: nil, // http.ProxyFromEnvironment would move the guard's decision to the proxy
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return s.dial(ctx, addr, nil)
		},
		DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return s.dial(ctx, addr, p.tls)
		},
		Protocols:              protocols,
		DisableCompression:     true,
		MaxIdleConns:           idle,
		MaxIdleConnsPerHost:    maxIdleConnsPerHost,
		IdleConnTimeout:        idleConnTimeout,
		MaxResponseHeaderBytes: maxHeaderBytes,
	}
	return p
}

// pool returns the connections to use with the settings.
func (s *Sender) pool(t TLS) (*pool, error) {
	if t == (TLS{}) {
		return s.shared, nil
	}
	s.mu.Lock()
	p := s.pools[t]
	s.mu.Unlock()
	if p != nil {
		return p, nil
	}
	cfg, err := t.apply(s.shared.tls) // which takes a while: nobody else waits for it
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.pools[t]; p != nil { // another attempt was faster
		return p, nil
	}
	for other, p := range s.pools {
		if len(s.pools) < maxPools {
			break
		}
		delete(s.pools, other) // any: the order of a map is random
		p.CloseIdleConnections()
	}
	p = s.newPool(cfg, maxPoolIdle)
	s.pools[t] = p
	return p, nil
}

// Close closes idle connections and ends the dials that no attempt waits for any more.
func (s *Sender) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shared.CloseIdleConnections()
	for _, p := range s.pools {
		p.CloseIdleConnections()
	}
}
