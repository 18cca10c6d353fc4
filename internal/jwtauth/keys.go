package jwtauth

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwk"
)

const (
	maxKeySet = 1 << 20
	// fetchTimeout is how long the issuer may take.
	fetchTimeout = 5 * time.Second
	// keysFresh is after how long keys are read again, though they are all known.
	keysFresh = 15 * time.Minute
	// fetchEvery is how often they are read at most: anyone can make up a token with an unknown key.
	fetchEvery = 10 * time.Second
	// fetchFirstEvery is the same while there are none.
	fetchFirstEvery = time.Second
	// maxWaiting is how many may wait for keys: it costs nothing to make up tokens, and each who waits holds a request.
	maxWaiting = 16
	minRSABits = 2048
)

// keyAlgorithms are what tokens of an issuer may be signed by.
var keyAlgorithms = []jwa.SignatureAlgorithm{jwa.RS256(), jwa.ES256(), jwa.EdDSA()}

// keySource has the public keys of an issuer. Keys that it has stay good while new ones can't be read.
type keySource struct {
	url, file string
	now       func() time.Time
	client    *http.Client

	log *slog.Logger

	// reading has room for the one who reads keys, so that all who need them wait for the same, and waiting for those.
	reading, waiting chan struct{}
	tried            time.Time // when that was last done, or failed; of who is reading

	mu      sync.Mutex
	keys    []publicKey
	read    time.Time // when that was
	changed time.Time // the file, when it was read
}

type publicKey struct {
	id  string
	alg jwa.SignatureAlgorithm
	key any
}

func newKeySource(cfg Config) (*keySource, error) {
	s := &keySource{
		url: cfg.JWKSURL, file: cfg.JWKSFile, now: cfg.now, log: cfg.Logger,
		reading: make(chan struct{}, 1), waiting: make(chan struct{}, maxWaiting),
	}
	if s.url == "" {
		return s, nil
	}
	u, err := url.Parse(s.url)
	if err != nil || u.Host == "" || u.Scheme != "https" && (u.Scheme != "http" || !isLoopback(u.Hostname())) {
		return nil, errors.New("the URL of the issuer's keys must be https, or http on this machine")
	}
	s.client = &http.Client{
		Timeout:       fetchTimeout,
		Transport:     &http.Transport{DisableKeepAlives: true}, // it is asked once in a quarter of an hour; proxies of the environment are not used
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return s, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// key returns the key that a token says it was signed with. One without a key's ID is good if there is only one key that it can
// have been.
func (s *keySource) key(ctx context.Context, alg jwa.SignatureAlgorithm, id string) (any, error) {
	key, found, stale := s.find(alg, id)
	if found && !stale {
		return key, nil
	}
	select {
	case s.reading <- struct{}{}:
	default:
		if found { // only one has to wait for an issuer that hangs, when the key is known
			return key, nil
		}
		if err := s.wait(ctx); err != nil {
			return nil, err
		}
	}
	defer func() { <-s.reading }()
	every := fetchEvery
	if !s.any() {
		every = fetchFirstEvery
	}
	if s.tried.IsZero() || s.now().Sub(s.tried) >= every {
		err := s.refresh(ctx)
		s.tried = s.now()
		if err != nil {
			s.log.Warn("the keys of the token issuer can't be read; those that are known stay good", "error", err)
		}
	}
	if key, found, _ = s.find(alg, id); found {
		return key, nil
	}
	if !s.any() {
		return nil, &UnavailableError{errors.New("there are none yet")}
	}
	return nil, fmt.Errorf("the token's key is none of the issuer's for %s", alg)
}

// wait waits until it is the caller's turn to read keys.
func (s *keySource) wait(ctx context.Context) error {
	select {
	case s.waiting <- struct{}{}:
	default:
		return &UnavailableError{errors.New("too many wait for them")}
	}
	defer func() { <-s.waiting }()
	select {
	case s.reading <- struct{}{}:
		return nil
	case <-ctx.Done():
		return &UnavailableError{ctx.Err()}
	}
}

// any reports whether there are keys.
func (s *keySource) any() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.keys) > 0
}

// find looks for a key among those that there are, and reports whether they are to be read again.
func (s *keySource) find(alg jwa.SignatureAlgorithm, id string) (key any, found, stale bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stale = s.stale()
	for _, k := range s.keys {
		if k.alg != alg || id != "" && k.id != id {
			continue
		}
		if found {
			return nil, false, stale // it could be either
		}
		key, found = k.key, true
	}
	return key, found, stale
}

// stale reports whether the keys are to be read again. The caller holds mu.
func (s *keySource) stale() bool {
	if s.file != "" {
		info, err := os.Stat(s.file)
		return err == nil && !info.ModTime().Equal(s.changed)
	}
	return s.now().Sub(s.read) >= keysFresh
}

func (s *keySource) refresh(ctx context.Context) error {
	raw, changed, err := s.load(ctx)
	if err != nil {
		return err
	}
	keys, err := publicKeys(raw)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys, s.read, s.changed = keys, s.now(), changed
	return nil
}

// load reads the key set.
func (s *keySource) load(ctx context.Context) (raw []byte, changed time.Time, err error) {
	if s.file != "" {
		info, err := os.Stat(s.file)
		if err != nil {
			return nil, changed, err
		}
		raw, err = os.ReadFile(s.file)
		return raw, info.ModTime(), err
	}
	// It goes on for the others who wait for it when the one who came first is gone.
	req, err := http.NewRequestWithContext(context.WithoutCancel(ctx), http.MethodGet, s.url, nil)
	if err != nil {
		return nil, changed, err
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, changed, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, changed, fmt.Errorf("the issuer answers %s", resp.Status)
	}
	raw, err = io.ReadAll(io.LimitReader(resp.Body, maxKeySet+1))
	if len(raw) > maxKeySet {
		return nil, changed, fmt.Errorf("the issuer's key set has more than %d bytes", maxKeySet)
	}
	return raw, changed, err
}

// publicKeys returns those of a key set that can verify a token's signature. Others are passed over, symmetric ones above all.
func publicKeys(raw []byte) ([]publicKey, error) {
	var set struct{ Keys []json.RawMessage }
	if err := json.Unmarshal(raw, &set); err != nil {
		return nil, errors.New("the issuer's key set is no JSON object")
	}
	if set.Keys == nil {
		set.Keys = []json.RawMessage{raw} // perhaps a single key
	}
	var keys []publicKey
	for _, raw := range set.Keys {
		k, err := jwk.ParseKey(raw)
		if err != nil {
			continue // of a kind that is not known here
		}
		key := publicKey{}
		key.id, _ = k.KeyID()
		var exported any
		if usage, ok := k.KeyUsage(); ok && usage != "sig" || jwk.Export(k, &exported) != nil {
			continue
		}
		switch public := exported.(type) {
		case *rsa.PublicKey:
			if public.N.BitLen() < minRSABits {
				continue
			}
			key.alg = jwa.RS256()
		case *ecdsa.PublicKey:
			if public.Curve != elliptic.P256() {
				continue
			}
			key.alg = jwa.ES256()
		case ed25519.PublicKey:
			key.alg = jwa.EdDSA()
		default: // a symmetric or private key has no business here
			continue
		}
		if alg, ok := k.Algorithm(); ok && alg.String() != key.alg.String() {
			continue
		}
		key.key = exported
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errors.New("the issuer's key set has no key for RS256, ES256 or EdDSA")
	}
	return keys, nil
}
