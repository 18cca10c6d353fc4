package httpapi

import (
	"context"
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"golang.org/x/time/rate"

	"github.com/musehub/posthorn"
)

const (
	// defaultMaxRequests is what Config.MaxRequests defaults to.
	defaultMaxRequests = 1024
	// defaultMaxMemory is what Config.MaxMemory defaults to.
	defaultMaxMemory = 256 << 20
)

// slots has one element for each request that is under way.
type slots chan struct{}

// take returns a problem if there is no room for one more request. Otherwise give must be called after it.
func (s slots) take() *problem {
	select {
	case s <- struct{}{}:
		return nil
	default:
		p := newProblem(http.StatusServiceUnavailable, "%d requests are under way here, the most that may be (--max-api-requests): try again", cap(s))
		p.header = http.Header{"Retry-After": {"1"}}
		return p
	}
}

func (s slots) give() { <-s }

// shares sees to it that nobody alone takes up all of the slots: each has at most half of them.
type shares struct {
	most int

	mu     sync.Mutex
	byName map[string]int // requests under way
}

// take returns a problem if who has the name has as many requests under way as they may. Otherwise give must be called after it.
func (s *shares) take(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byName[name] >= s.most {
		p := newProblem(http.StatusTooManyRequests,
			"%d requests of yours are under way here, half of what may be in all (--max-api-requests): wait for some of them", s.most)
		p.header = http.Header{"Retry-After": {"1"}}
		return p
	}
	if s.byName == nil {
		s.byName = map[string]int{}
	}
	s.byName[name]++
	return nil
}

func (s *shares) give(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byName[name]--; s.byName[name] == 0 {
		delete(s.byName, name)
	}
}

// memory is what large bodies and answers may take together, in bytes. Nobody alone takes up all of it: each has at most half.
type memory struct {
	most int64

	mu     sync.Mutex
	used   int64
	byName map[string]int64
}

// take returns a problem if there is no room for a body or an answer of who has the name. Otherwise give must be called after it.
func (m *memory) take(name string, size int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var p *problem
	switch mine := m.byName[name]; { // a single one always gets through
	case m.used > 0 && m.used+size > m.most:
		p = newProblem(http.StatusServiceUnavailable, "large bodies and answers take up as much memory as they may (--max-api-memory): try again")
	case mine > 0 && mine+size > m.most/2:
		p = newProblem(http.StatusTooManyRequests,
			"large bodies and answers of yours take up half of the memory that may be in all (--max-api-memory): wait for some of them")
	default:
		if m.byName == nil {
			m.byName = map[string]int64{}
		}
		m.used += size
		m.byName[name] += size
		return nil
	}
	p.header = http.Header{"Retry-After": {"1"}}
	return p
}

func (m *memory) give(name string, size int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used -= size
	if m.byName[name] -= size; m.byName[name] == 0 {
		delete(m.byName, name)
	}
}

const (
	// payloadCopies is how often a payload is in memory at the worst while it is answered: as the store returned it, as a string, and
	// encoded, in a buffer that doubles as it grows. (Escaping adds a little, and to one that is all quotes as much again.)
	payloadCopies = 4
	// filterCopies is the same while a filter is tried on a page of payloads, of which one at a time is decoded.
	filterCopies = 2
)

// heldKey is for how many bytes of the memory a request holds.
type heldKey struct{}

// giveBack is the middleware that gives back what a request holds of the memory, when its client has the answer or is gone.
func (s *server) giveBack(ctx huma.Context, next func(huma.Context)) {
	held := new(int64)
	defer func() {
		if *held > 0 {
			s.memory.give(posthorn.ActorOf(ctx.Context()), *held)
		}
	}()
	next(huma.WithValue(ctx, heldKey{}, held))
}

// hold takes so many bytes of the memory for the answer to a request, or returns a problem if there is no room. Small ones are free,
// as small bodies are.
func (s *server) hold(ctx context.Context, size int) error {
	if size <= maxBody {
		return nil
	}
	if err := s.memory.take(posthorn.ActorOf(ctx), int64(size)); err != nil {
		return err
	}
	*ctx.Value(heldKey{}).(*int64) += int64(size) //nolint:forcetypeassert // nothing else is in it
	return nil
}

// holdAll is hold for the payloads of a page. That they have been read by then matters little: most pages are small, and a store
// reads few at a time.
func holdAll[T any](ctx context.Context, s *server, items []T, payload func(*T) json.RawMessage) error {
	size := 0
	for i := range items {
		size += len(payload(&items[i]))
	}
	return s.hold(ctx, payloadCopies*size)
}

// eventRates holds tokens and repos to so many events a second. Whoever has some left may post a batch of more than that, and
// then waits until it is made up for.
type eventRates struct {
	perToken, perRepo int // 0: no limit

	mu      sync.Mutex
	buckets map[rateKey]*rate.Limiter
	sweepAt int // how many there are when the idle ones are looked for
}

// rateKey is a token, by the name of who has it, or a repo.
type rateKey struct {
	name   string
	isRepo bool
}

// minSweep is how many buckets there are before idle ones are dropped.
const minSweep = 1024

// rateLimit is what holds a token or a repo.
type rateLimit struct {
	key       rateKey
	perSecond int
	what      string
}

// limits are those that there are for a token and a repo.
func (l *eventRates) limits(token, repo string) (limits []rateLimit) {
	if l.perToken > 0 {
		limits = append(limits, rateLimit{rateKey{token, false}, l.perToken, "token may post (--max-events-per-second-per-token)"})
	}
	if l.perRepo > 0 {
		limits = append(limits, rateLimit{rateKey{repo, true}, l.perRepo, "repo may get (--max-events-per-second-per-repo)"})
	}
	return limits
}

// take counts n events that are about to be posted, or returns a problem if the token or the repo has to wait. Those that are not
// accepted are to be given back. They are counted before, so that requests that come at the same moment see each other.
func (l *eventRates) take(now time.Time, token, repo string, n int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, limit := range l.limits(token, repo) {
		if missing := 1 - l.bucket(now, limit.key, limit.perSecond).TokensAt(now); missing > 0 {
			p := newProblem(http.StatusTooManyRequests, "more than %d events a second, which is what a %s: wait, and send the same again",
				limit.perSecond, limit.what)
			p.header = http.Header{"Retry-After": {strconv.Itoa(max(1, int(math.Ceil(missing/float64(limit.perSecond)))))}}
			return p
		}
	}
	l.charge(now, token, repo, n)
	return nil
}

// give takes back that n events were counted.
func (l *eventRates) give(now time.Time, token, repo string, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.charge(now, token, repo, -n)
}

// charge counts n events, or takes that back where n is negative. Cancelling a reservation would not do: that gives back only what has not begun.
func (l *eventRates) charge(now time.Time, token, repo string, n int) {
	for _, limit := range l.limits(token, repo) {
		bucket := l.bucket(now, limit.key, limit.perSecond)
		for left := n; left != 0; { // what exceeds the burst is borrowed from the time to come
			part := min(left, bucket.Burst())
			bucket.ReserveN(now, part)
			left -= part
		}
	}
}

func (l *eventRates) bucket(now time.Time, key rateKey, perSecond int) *rate.Limiter {
	bucket := l.buckets[key]
	if bucket != nil {
		return bucket
	}
	if len(l.buckets) >= max(minSweep, l.sweepAt) { // one that is full is as good as none
		for key, idle := range l.buckets {
			if idle.TokensAt(now) >= float64(idle.Burst()) {
				delete(l.buckets, key)
			}
		}
		l.sweepAt = 2 * len(l.buckets)
	}
	if l.buckets == nil {
		l.buckets = map[rateKey]*rate.Limiter{}
	}
	bucket = rate.NewLimiter(rate.Limit(perSecond), perSecond)
	l.buckets[key] = bucket
	return bucket
}

func checkLimits(cfg *Config) error {
	for name, n := range map[string]int{
		"MaxRequests": cfg.MaxRequests, "MaxMemory": int(cfg.MaxMemory), "MaxEventsPerSecondPerToken": cfg.MaxEventsPerSecondPerToken,
		"MaxEventsPerSecondPerRepo": cfg.MaxEventsPerSecondPerRepo,
	} {
		if n < 0 {
			return invalid("", "Config.%s is negative", name)
		}
	}
	return nil
}
