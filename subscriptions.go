package posthorn

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/musehub/posthorn/internal/filter"
	"github.com/musehub/posthorn/internal/secretbox"
	"github.com/musehub/posthorn/internal/sender"
	"github.com/musehub/posthorn/signature"
)

const (
	// maxCached is how many webhooks the cache holds in all; a repo without any counts as one.
	maxCached = 20_000
	// maxKept is how many bytes one of them may have that only an attempt needs. With more, such as certificates, these are not kept but read
	// again for each attempt, so that neither the cache has more than 40 MiB of them, nor a large repo has to be read again as a whole.
	maxKept = 2 << 10
	// maxStale is for how long the cache is good if nobody can tell what other nodes have changed meanwhile.
	maxStale = 2 * time.Second
)

// subscriptions caches the webhooks of each repo, ready for matching and sending.
//
// A change is effective on this node once it is answered: whoever changed a webhook calls invalidate before answering. That
// forgets the repo, sees to it that a load which may have read the old rows is not kept, and revokes the uses of the webhook, so
// that requests which are about to be made are not, but look at the webhook again (see attempt). Changes that other nodes made
// come by follow, some times a second; while they don't come, nothing is kept for longer than maxStale.
type subscriptions struct {
	store Store
	cfg   *Config
	box   *secretbox.Box
	now   func() time.Time // the store's

	mu       sync.RWMutex
	repos    map[string]*subscribers
	size     int
	followed time.Time // when the store was last asked for changes, and answered

	changes atomic.Uint64 // of all repos
	useMu   sync.Mutex
	uses    map[*use]struct{}

	filterMu sync.Mutex
	filters  map[string]*filter.Filter // by their text: a repo is loaded again with each change, and compiling takes a while

	stripes [64]stripe // each for the repos whose hash it has
	seed    maphash.Seed
}

type stripe struct {
	loading chan struct{} // has room for one, who loads a repo: so it is loaded once, and who waits longer than it cares to may leave
	changes atomic.Uint64 // what was loaded before one is not kept after it
	// noted is, while a repo is loaded, how webhooks are by what was noted meanwhile: the load may have read the old rows. Guarded by
	// subscriptions.mu.
	noted map[int64]*Health
}

// subscribers are the webhooks of one repo.
type subscribers struct {
	targets []*target
	bySeq   map[int64]*target
	loaded  time.Time // when the load began
	expires time.Time // when the first of their secrets expires, which makes all of this stale; zero: never
	byType  sync.Map  // of an event, to the webhooks that want it as wanted
}

// recipient is a webhook that an event goes to.
type recipient struct {
	Seq      int64
	ID       string
	RepoID   string
	ordering string
	inactive bool // it keeps the event for later
	polled   bool
}

// target is what the event's entry for the webhook is to be: leased, if there is room.
func (r *recipient) target(trigger Trigger, event *AcceptedEvent) Target {
	if r.polled {
		return Target{WebhookSeq: r.Seq, Held: true}
	}
	t := Target{WebhookSeq: r.Seq, Ordering: r.order(trigger, event)}
	t.Leased = t.Ordering == 0 && !(r.inactive && trigger == TriggerAutomatic)
	return t
}

// order is the number that the webhook's entries have in common which are to be delivered one after the other; zero: this one needs
// no order.
func (r *recipient) order(trigger Trigger, event *AcceptedEvent) int64 {
	switch {
	case trigger != TriggerAutomatic:
	case r.ordering == OrderingStrict:
		return 1
	case r.ordering == OrderingKey && event.OrderingKey != "":
		hash := sha256.Sum256([]byte(event.OrderingKey)) // two keys of one number would only wait for each other
		return int64(binary.BigEndian.Uint64(hash[:]) | 2)
	}
	return 0
}

// wanted are the webhooks that want events of a type.
type wanted struct {
	webhooks []recipient
	filters  []*filter.Filter // of each, nil for none; all nil: there is nothing to filter
}

// wanting returns the webhooks that want events of a type, one of those known.
func (s *subscribers) wanting(eventType string) wanted {
	if known, ok := s.byType.Load(eventType); ok {
		return known.(wanted)
	}
	var w wanted
	filtered := false
	for _, t := range s.targets {
		if !t.Subscribes(eventType) {
			continue
		}
		w.webhooks = append(w.webhooks, recipient{Seq: t.Seq, ID: t.ID, RepoID: t.RepoID, ordering: t.Ordering, inactive: !t.Active, polled: t.Polled})
		f := t.filter
		if eventType == EventPing {
			f = nil
		}
		filtered = filtered || f != nil
		w.filters = append(w.filters, f)
	}
	if !filtered {
		w.filters = nil
	}
	s.byType.Store(eventType, w)
	return w
}

// of returns those whose filter, if they have one, is true for an event. What can't be told is told to failed.
func (w wanted) of(event *AcceptedEvent, failed func(recipient, error)) ([]recipient, error) {
	if w.filters == nil {
		return w.webhooks, nil
	}
	e, err := filterable(event)
	if err != nil {
		return nil, err
	}
	var passed []recipient
	for i, f := range w.filters {
		if f == nil {
			passed = append(passed, w.webhooks[i])
			continue
		}
		matches, err := f.Match(e)
		if err != nil {
			failed(w.webhooks[i], err)
		}
		if matches {
			passed = append(passed, w.webhooks[i])
		}
	}
	return passed, nil
}

func filterable(event *AcceptedEvent) (filter.Event, error) {
	payload, err := filter.Decode(event.Payload)
	if err != nil {
		return filter.Event{}, Errorf(CodeInternal, "read the payload of event %s for filters: %w", event.ID, err)
	}
	return filter.Event{ID: event.ID, Type: event.Type, Payload: payload}, nil
}

// target is a webhook ready to be sent to.
type target struct {
	Webhook
	partial bool                   // it is an outline, which nothing can be sent to
	health  atomic.Pointer[Health] // as this node knows it by now, and not as it was when this was loaded
	retry   RetryPolicy
	filter  *filter.Filter
	flow    flow
	url     *url.URL
	tls     sender.TLS
	headers http.Header // of its own
	extra   []string    // the names of what it asked for
	signer  *signature.Signer
	secrets int   // that sign
	ed25519 int   // of these, Ed25519 keys
	err     error // why nothing can be sent to it: nothing is ever unsigned for lack of a key
}

// flow is how a webhook wants its requests.
type flow struct {
	inFlight  int // at most
	perSecond int // to start; zero: any number
}

// interval is the time between two requests.
func (f flow) interval() time.Duration {
	if f.perSecond == 0 {
		return 0
	}
	return time.Second / time.Duration(f.perSecond)
}

// use is a target that a request is being made with.
type use struct {
	*target
	once    bool        // the target was read for this request: it is large, and the cache has an outline of it
	revoked atomic.Bool // the webhook was changed or deleted since
}

// observed is the target for the result of the request. Thousands of results may wait to be recorded, so what is large is not in it.
func (u *use) observed() *target {
	if !u.once {
		return u.target
	}
	t := &target{flow: u.flow, Webhook: Webhook{Seq: u.Seq, ID: u.ID, RepoID: u.RepoID, URL: u.URL, Description: u.Description}}
	t.health.Store(u.health.Load())
	return t
}

func newSubscriptions(store Store, box *secretbox.Box, now func() time.Time, cfg *Config) *subscriptions {
	s := &subscriptions{store: store, cfg: cfg, box: box, now: now, repos: map[string]*subscribers{}, uses: map[*use]struct{}{}, seed: maphash.MakeSeed()}
	for i := range s.stripes {
		s.stripes[i].loading = make(chan struct{}, 1)
	}
	return s
}

func (s *subscriptions) of(ctx context.Context, repoID string) (*subscribers, error) {
	now := s.now()
	if subs := s.cached(repoID, now); subs != nil {
		return subs, nil
	}
	stripe := s.stripe(repoID)
	select {
	case stripe.loading <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-stripe.loading }()
	now = s.now()
	if subs := s.cached(repoID, now); subs != nil {
		return subs, nil
	}
	changes, loaded := stripe.changes.Load(), time.Now()
	s.mu.Lock()
	stripe.noted = map[int64]*Health{}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, storeTimeout) // others wait for this load, too
	defer cancel()
	subs := &subscribers{loaded: loaded, bySeq: map[int64]*target{}}
	err := eachWebhook(ctx, s.store, repoID, func(w Webhook, _ int64) error {
		var t *target
		if w.size() > maxKept {
			t = s.outline(w)
		} else {
			t = s.prepare(w, now, subs)
		}
		subs.targets = append(subs.targets, t)
		subs.bySeq[w.Seq] = t
		return nil
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	noted := stripe.noted
	stripe.noted = nil
	if err != nil {
		return nil, err
	}
	for seq, health := range noted {
		if t := subs.bySeq[seq]; t != nil {
			t.health.Store(health)
		}
	}
	if stripe.changes.Load() != changes {
		return subs, nil // good for who asked before the change, and for nobody else
	}
	s.forget(repoID)
	for other := range s.repos {
		if s.size+1+len(subs.targets) <= maxCached {
			break
		}
		s.forget(other) // any: the order of a map is random
	}
	s.repos[repoID] = subs
	s.size += 1 + len(subs.targets)
	return subs, nil
}

func (s *subscriptions) cached(repoID string, now time.Time) *subscribers {
	s.mu.RLock()
	defer s.mu.RUnlock()
	subs := s.repos[repoID]
	if subs == nil || !subs.expires.IsZero() && !now.Before(subs.expires) {
		return nil
	}
	if time.Since(s.followed) > maxStale && time.Since(subs.loaded) > maxStale {
		return nil
	}
	return subs
}

// stale reports whether the store has not told for a while what has changed.
func (s *subscriptions) stale() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return time.Since(s.followed) > 2*maxStale
}

// forget drops a repo from the cache. The caller holds mu.
func (s *subscriptions) forget(repoID string) {
	if subs := s.repos[repoID]; subs != nil {
		s.size -= 1 + len(subs.targets)
		delete(s.repos, repoID)
	}
}

// use returns the target of a webhook for making a request with it, nil if it is gone. It is given back by unuse.
func (s *subscriptions) use(ctx context.Context, repoID string, webhookSeq int64) (*use, error) {
	for {
		changes := s.changes.Load()
		subs, err := s.of(ctx, repoID)
		if err != nil {
			return nil, err
		}
		t := subs.bySeq[webhookSeq]
		if t == nil {
			return nil, nil
		}
		u := &use{target: t, once: t.partial}
		if u.once {
			if u.target, err = s.whole(ctx, t); err != nil {
				return nil, err
			}
		}
		s.useMu.Lock()
		s.uses[u] = struct{}{}
		s.useMu.Unlock()
		if s.changes.Load() == changes { // else a change may have missed it
			return u, nil
		}
		s.unuse(u)
	}
}

func (s *subscriptions) unuse(u *use) {
	s.useMu.Lock()
	defer s.useMu.Unlock()
	delete(s.uses, u)
}

// invalidate makes a change of a webhook effective.
func (s *subscriptions) invalidate(repoID string, webhookSeq int64) {
	s.stripe(repoID).changes.Add(1)
	s.mu.Lock()
	s.forget(repoID)
	s.mu.Unlock()
	s.revoke(func(u *use) bool { return u.Seq == webhookSeq })
}

// setHealth notes how a webhook is. What is sent to whom doesn't depend on that: the repo stays in the cache, because many of its
// webhooks may begin to fail at once, and the others shall not wait for it to be loaded anew each time.
func (s *subscriptions) setHealth(w Webhook) {
	health := new(w.Health)
	s.mu.Lock()
	defer s.mu.Unlock()
	if noted := s.stripe(w.RepoID).noted; noted != nil {
		noted[w.Seq] = health
	}
	if subs := s.repos[w.RepoID]; subs != nil && subs.bySeq[w.Seq] != nil {
		subs.bySeq[w.Seq].health.Store(health)
	}
}

func (s *subscriptions) revoke(which func(*use) bool) {
	s.changes.Add(1)
	s.useMu.Lock()
	defer s.useMu.Unlock()
	for u := range s.uses {
		if which(u) {
			u.revoked.Store(true)
		}
	}
}

// follow makes changes effective that were made by this node or another. The store was asked for them at the given time.
func (s *subscriptions) follow(changes Changes, asked time.Time) {
	for _, w := range changes.Webhooks {
		s.invalidate(w.RepoID, w.Seq)
	}
	if changes.All {
		for i := range s.stripes {
			s.stripes[i].changes.Add(1)
		}
		s.mu.Lock()
		clear(s.repos)
		s.size = 0
		s.mu.Unlock()
		s.revoke(func(*use) bool { return true })
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.followed = asked
}

func (s *subscriptions) stripe(repoID string) *stripe {
	return &s.stripes[maphash.String(s.seed, repoID)%uint64(len(s.stripes))]
}

// maxFilters is how many compiled filters are kept.
const maxFilters = 10_000

// filter compiles a filter. One that can't be compiled, which no webhook was given in this way, wants nothing.
func (s *subscriptions) filter(text string) *filter.Filter {
	s.filterMu.Lock()
	defer s.filterMu.Unlock()
	if f := s.filters[text]; f != nil {
		return f
	}
	f, err := filter.Compile(text)
	if err != nil {
		f = filter.Nothing(err)
	}
	if s.filters == nil || len(s.filters) >= maxFilters {
		s.filters = map[string]*filter.Filter{}
	}
	s.filters[text] = f
	return f
}

// size is how many bytes a webhook has, about, that only an attempt needs.
func (w *Webhook) size() int {
	n := len(w.URL) + len(w.Description) + len(w.DisabledReason) + len(w.RetryPolicy) + len(w.FinalStatuses)
	n += len(w.TLS.RootCAs) + len(w.TLS.Certificate) + len(w.TLS.SealedKey)
	for name, value := range w.SealedHeaders {
		n += len(name) + len(value)
	}
	for _, secret := range w.Secrets {
		n += len(secret.Sealed)
	}
	return n
}

// outline is what decides which events a webhook gets.
func (s *subscriptions) outline(w Webhook) *target {
	t := &target{partial: true, Webhook: Webhook{
		Seq: w.Seq, ID: w.ID, RepoID: w.RepoID, Events: w.Events, Active: w.Active,
		Options: Options{KeepWhileInactive: w.KeepWhileInactive, Polled: w.Polled, Ordering: w.Ordering},
	}}
	t.health.Store(new(w.Health)) // a pointer into w would keep all of it
	if w.Filter != "" {
		t.filter = s.filter(w.Filter)
	}
	return t
}

// whole reads the webhook of an outline. CodeNotFound when it is gone.
func (s *subscriptions) whole(ctx context.Context, t *target) (*target, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	w, err := s.store.Webhook(ctx, t.RepoID, t.ID)
	if err != nil {
		return nil, err
	}
	return s.prepare(w, s.now(), new(subscribers)), nil
}

// prepare makes a webhook ready to be sent to. What can't be read makes its deliveries fail and nothing else.
func (s *subscriptions) prepare(w Webhook, now time.Time, subs *subscribers) *target {
	t := &target{
		Webhook: w, retry: *s.cfg.RetryPolicy, flow: flow{s.cfg.MaxInFlightPerWebhook, w.MaxPerSecond},
		tls: sender.TLS{MinVersion: w.TLS.MinVersion, RootCAs: w.TLS.RootCAs, Certificate: w.TLS.Certificate},
	}
	t.health.Store(new(w.Health))
	if policy, err := ParseRetryPolicy(w.RetryPolicy); w.RetryPolicy != "" && err == nil {
		t.retry = policy
	}
	if w.MaxInFlight > 0 {
		t.flow.inFlight = min(w.MaxInFlight, t.flow.inFlight)
	}
	t.FinalStatuses = cmp.Or(w.FinalStatuses, s.cfg.FinalStatuses)
	t.Timeout = cmp.Or(w.Timeout, s.cfg.Timeout)
	if w.Filter != "" {
		t.filter = s.filter(w.Filter)
	}
	if t.url, _ = sender.ParseURL(w.URL); t.url == nil {
		t.err = errors.New("the webhook's URL can't be parsed") // an import has brought it in unchecked
		return t
	}
	if w.TLS.SealedKey != "" {
		key, _, err := s.box.OpenFor(tlsKeyOf(w.ID), w.TLS.SealedKey)
		if err != nil {
			t.err = secretError("key of the client certificate", err)
			return t
		}
		t.tls.Key = key
	}
	for _, name := range slices.Sorted(maps.Keys(w.SealedHeaders)) {
		value, _, err := s.box.OpenFor(headerOf(w.ID, name), w.SealedHeaders[name])
		if err != nil {
			t.err = secretError("header "+name, err)
			return t
		}
		if t.headers == nil {
			t.headers = http.Header{}
		}
		t.headers[name] = []string{value}
		t.extra = append(t.extra, name)
	}
	if w.IdempotencyKey {
		t.extra = append(t.extra, idempotencyKey)
	}
	var plain []string
	ed25519 := 0
	for _, secret := range w.Secrets {
		if !secret.ExpiresAt.IsZero() {
			if !now.Before(secret.ExpiresAt) {
				continue
			}
			if subs.expires.IsZero() || secret.ExpiresAt.Before(subs.expires) {
				subs.expires = secret.ExpiresAt
			}
		}
		text, _, err := s.box.OpenImported(w.ID, secret.Sealed)
		if err != nil {
			t.err = secretError("signing secret", err)
			return t
		}
		plain = append(plain, text)
		if kindOf(text) == SecretEd25519 {
			ed25519++
		}
	}
	if len(plain) == 0 && len(w.Secrets) > 0 { // nothing is sent unsigned that was meant to be signed
		t.err = errors.New("all signing secrets of the webhook have expired; set a new one")
		return t
	}
	if t.signer, t.err = signature.NewSigner(plain...); t.err == nil {
		t.secrets, t.ed25519 = len(plain), ed25519
		if w.GitHubSignature && t.secrets > t.ed25519 {
			t.extra = append(t.extra, githubSignature)
		}
	}
	return t
}
