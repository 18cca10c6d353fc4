package posthorn

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// RetryPolicy says how often a failing delivery is attempted, and when.
type RetryPolicy struct {
	// Delays are the pauses between the end of one attempt and the start of the next: a run has at most one attempt more.
	Delays []time.Duration
	// Jitter spreads each delay evenly over plus and minus this share of it, so that what failed together does not
	// come back together. Between 0 and 1.
	Jitter float64
}

var retryPolicies = map[string]RetryPolicy{
	"musehub": {Delays: []time.Duration{time.Second, 2 * time.Second}},
	"standard": {
		Delays: []time.Duration{
			5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour,
			10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
		},
		Jitter: 0.2,
	},
	"none": {Delays: []time.Duration{}},
}

// RetryPolicyByName returns a policy: "musehub" (3 attempts, 1 s and 2 s between them), "standard" (10 attempts over three
// days, with jitter) or "none" (one attempt).
func RetryPolicyByName(name string) (RetryPolicy, error) {
	policy, ok := retryPolicies[name]
	if !ok {
		names := strings.Join(slices.Sorted(maps.Keys(retryPolicies)), ", ")
		return RetryPolicy{}, Errorf(CodeInvalid, "unknown retry policy %q: it is one of %s", name, names)
	}
	return policy, nil
}

// next returns how long after a failed attempt (1 for the first) the following one is due, and whether there is one.
func (p RetryPolicy) next(attempt int) (time.Duration, bool) {
	if attempt > len(p.Delays) {
		return 0, false
	}
	delay := p.Delays[attempt-1]
	if p.Jitter > 0 {
		delay += time.Duration((2*rand.Float64() - 1) * p.Jitter * float64(delay))
	}
	return delay, true
}

// longest returns the longest pause that the policy can ask for.
func (p RetryPolicy) longest() time.Duration {
	var longest time.Duration
	for _, d := range p.Delays {
		longest = max(longest, d)
	}
	return longest + time.Duration(p.Jitter*float64(longest))
}

func (p RetryPolicy) check() error {
	for _, d := range p.Delays {
		if d < 0 {
			return fmt.Errorf("a delay of the retry policy is negative: %v", d)
		}
	}
	if p.Jitter < 0 || p.Jitter > 1 {
		return fmt.Errorf("the retry policy's jitter is %v: it is between 0 and 1", p.Jitter)
	}
	return nil
}
