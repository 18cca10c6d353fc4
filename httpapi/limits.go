package httpapi

import (
	"math"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// defaultMaxRequests is what Config.MaxRequests defaults to.
const defaultMaxRequests = 1024

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

// take counts n events. If the token or the repo has to wait, it counts none and returns a problem.
func (l *eventRates) take(now time.Time, token, repo string, n int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var buckets []*rate.Limiter
	for _, limit := range []struct {
		key       rateKey
		perSecond int
		flag      string
	}{
		{rateKey{token, false}, l.perToken, "token may post (--max-events-per-second-per-token)"},
		{rateKey{repo, true}, l.perRepo, "repo may get (--max-events-per-second-per-repo)"},
	} {
		if limit.perSecond == 0 {
			continue
		}
		bucket := l.bucket(now, limit.key, limit.perSecond)
		if missing := 1 - bucket.TokensAt(now); missing > 0 {
			p := newProblem(http.StatusTooManyRequests, "more than %d events a second, which is what a %s: wait, and send the same again",
				limit.perSecond, limit.flag)
			p.header = http.Header{"Retry-After": {strconv.Itoa(max(1, int(math.Ceil(missing/float64(limit.perSecond)))))}}
			return p
		}
		buckets = append(buckets, bucket)
	}
	for _, bucket := range buckets {
		for left := n; left > 0; left -= bucket.Burst() { // what exceeds it is borrowed from the time to come
			bucket.ReserveN(now, min(left, bucket.Burst()))
		}
	}
	return nil
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
		"MaxRequests": cfg.MaxRequests, "MaxEventsPerSecondPerToken": cfg.MaxEventsPerSecondPerToken,
		"MaxEventsPerSecondPerRepo": cfg.MaxEventsPerSecondPerRepo,
	} {
		if n < 0 {
			return invalid("", "Config.%s is negative", name)
		}
	}
	return nil
}
