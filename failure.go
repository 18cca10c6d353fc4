package posthorn

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/musehub/posthorn/internal/limit"
)

// RetryPolicy says how often a failing delivery is attempted, and when.
type RetryPolicy struct {
	// Delays are the pauses between the end of one attempt and the start of the next: a run has at most one attempt more. At most 50,
	// each of at most [MaxRetryDelay] with its jitter.
	Delays []time.Duration
	// Jitter spreads each delay evenly over plus and minus this share of it, so that what failed together does not
	// come back together. Between 0 and 1.
	Jitter float64
}

const (
	// MaxRetryDelay is how long the pause before a retry may be.
	MaxRetryDelay = 7 * 24 * time.Hour
	// MaxRetryAfter is for how long a receiver can put off the next attempt by Retry-After.
	MaxRetryAfter = 24 * time.Hour

	maxRetries = 50
	// maxHold is for how long a receiver can keep back all that there is for it, before it is asked again with one request.
	maxHold = time.Minute
	// goneHold is how long nothing is sent to a webhook that answered 410, while it is being disabled.
	goneHold = 5 * time.Second
)

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

// ParseRetryPolicy reads a policy: "musehub" (3 attempts, 1 s and 2 s between them), "standard" (10 attempts over three
// days, with jitter), "none" (one attempt), or a list of delays such as "5s,1m,2h", with "±20%" (or "+-20%") behind it for jitter.
func ParseRetryPolicy(text string) (RetryPolicy, error) {
	if policy, ok := retryPolicies[text]; ok {
		return policy, nil
	}
	var policy RetryPolicy
	list, jitter, spread := strings.Cut(strings.Replace(text, "+-", "±", 1), "±")
	if spread {
		percent, err := strconv.ParseUint(strings.TrimSuffix(jitter, "%"), 10, 8)
		if err != nil || !strings.HasSuffix(jitter, "%") {
			return RetryPolicy{}, Errorf(CodeInvalid, "the jitter of retry policy %.64q is not a share such as ±20%%", text)
		}
		policy.Jitter = float64(percent) / 100
	}
	for part := range strings.SplitSeq(list, ",") {
		delay, err := time.ParseDuration(strings.TrimSpace(part))
		if err != nil {
			return RetryPolicy{}, Errorf(CodeInvalid, "unknown retry policy %.64q: it is one of %s, or a list of delays such as 5s,1m,2h±20%%",
				text, strings.Join(slices.Sorted(maps.Keys(retryPolicies)), ", "))
		}
		policy.Delays = append(policy.Delays, delay)
	}
	if err := policy.check(); err != nil {
		return RetryPolicy{}, Errorf(CodeInvalid, "%w", err)
	}
	return policy, nil
}

func (p RetryPolicy) check() error {
	if len(p.Delays) > maxRetries {
		return fmt.Errorf("the retry policy has %d delays: at most %d", len(p.Delays), maxRetries)
	}
	if !(p.Jitter >= 0 && p.Jitter <= 1) { // NaN is neither
		return fmt.Errorf("the retry policy's jitter is %v: it is between 0 and 1", p.Jitter)
	}
	for _, d := range p.Delays {
		if d < 0 || d > MaxRetryDelay || d+time.Duration(p.Jitter*float64(d)) > MaxRetryDelay {
			return fmt.Errorf("the retry policy has a delay of %v: it is between 0 and %v, with its jitter", d, MaxRetryDelay)
		}
	}
	return nil
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

// Statuses is a set of HTTP statuses in words, such as "404" or "400-407,422". The zero value is empty.
type Statuses string

// Check says what is wrong with the words.
func (s Statuses) Check() error {
	if len(s) > 256 {
		return Errorf(CodeInvalid, "a list of statuses has at most 256 characters")
	}
	for part := range s.parts() {
		if first, last := parseStatuses(part); first == 0 || first > last {
			return Errorf(CodeInvalid, "%.32q is neither a status such as 404 nor a range such as 400-407, between 100 and 999", part)
		}
	}
	return nil
}

// Has reports whether a status is in the set.
func (s Statuses) Has(status int) bool {
	for part := range s.parts() {
		if first, last := parseStatuses(part); first != 0 && first <= status && status <= last {
			return true
		}
	}
	return false
}

func (s Statuses) parts() func(func(string) bool) {
	if s == "" {
		return func(func(string) bool) {}
	}
	return strings.SplitSeq(string(s), ",")
}

// parseStatuses reads a status or a range; zeros if it is none.
func parseStatuses(text string) (first, last int) {
	from, to, isRange := strings.Cut(strings.TrimSpace(text), "-")
	if !isRange {
		to = from
	}
	first, err := strconv.Atoi(from)
	last, err2 := strconv.Atoi(to)
	if err != nil || err2 != nil || min(first, last) < 100 || max(first, last) > 999 {
		return 0, 0
	}
	return first, last
}

// retryAfter returns how long a receiver wants to be left alone: what its header Retry-After says, in seconds or as a date (RFC 9110,
// section 10.2.3), within [MaxRetryAfter]. Zero where it says nothing that can be understood.
func retryAfter(value string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(value, 10, 64); err == nil {
		return time.Duration(min(seconds, uint64(MaxRetryAfter/time.Second))) * time.Second
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	return min(max(0, at.Sub(now)), MaxRetryAfter)
}

// afterFailure says what follows from a failed attempt.
func (t *target) afterFailure(attempt int, failed *Delivery) (retryAt time.Time, hold time.Duration, slow bool) {
	wait := retryAfter(failed.Exchange.Header.Get("Retry-After"), failed.DeliveredAt)
	switch failed.ResponseStatus {
	case http.StatusGone:
		return time.Time{}, goneHold, true
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		hold = min(wait, maxHold)
		slow = hold > 0 || failed.ResponseStatus == http.StatusTooManyRequests
	case http.StatusBadGateway, http.StatusGatewayTimeout:
		slow = true
	}
	if delay, again := t.retry.next(attempt); again && !t.FinalStatuses.Has(failed.ResponseStatus) {
		retryAt = failed.DeliveredAt.Add(max(delay, wait))
	}
	return retryAt, hold, slow
}

// disabling is a webhook that is to be disabled.
type disabling struct {
	repoID, id, url string
	reason          string
}

const goneReason = "the receiver answered 410 Gone"

// disable has a webhook disabled soon. If there are too many, or the store fails, the next answer of the kind does it.
func (d *Dispatcher) disable(t *target, reason string) {
	select {
	case d.toDisable <- disabling{t.RepoID, t.ID, t.URL, reason}:
	default:
	}
}

// keepDisabling disables webhooks for which there is a reason.
func (d *Dispatcher) keepDisabling(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case w := <-d.toDisable:
			if err := d.disableNow(ctx, w); err != nil {
				d.storeFailed("disable a webhook", err)
			}
		}
	}
}

func (d *Dispatcher) disableNow(ctx context.Context, x disabling) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	current, err := d.store.Webhook(ctx, x.repoID, x.id)
	if ErrorCode(err) == CodeNotFound || err == nil && !x.concerns(&current) {
		return nil
	}
	if err != nil {
		return err
	}
	disabled := false
	writing := d.audited(ctx, AuditEntry{Action: "webhook.disable", RepoID: x.repoID, Subject: x.id, Detail: x.reason})
	w, err := d.store.UpdateWebhook(writing, x.repoID, x.id, func(w *Webhook) error {
		if !x.concerns(w) { // someone was quicker
			return errUnchanged
		}
		disabled = true
		w.Active, w.Health, w.UpdatedAt = false, Health{DisabledReason: x.reason}, d.clock.now()
		return nil
	})
	switch {
	case err == errUnchanged || ErrorCode(err) == CodeNotFound: //nolint:errorlint // it comes back as it is
		return nil
	case err != nil:
		return err
	}
	d.subscriptions.invalidate(x.repoID, w.Seq)
	if disabled {
		d.log.Warn("disabled a webhook", "repo", x.repoID, "webhook", x.id, "reason", x.reason)
	}
	return nil
}

var errUnchanged = fmt.Errorf("nothing is to be changed")

// concerns reports whether the webhook is still the one that there was a reason to disable.
func (x *disabling) concerns(w *Webhook) bool { return w.Active && w.URL == x.url }

// What follows is the scheduler's side of failures.

// pause keeps a webhook from its next attempt for a while, or for longer if it is paused already.
func (s *scheduler) pause(q *queue, d time.Duration) {
	if d <= 0 {
		return
	}
	if resume := time.Now().Add(d); resume.After(q.resume) {
		q.resume = resume
	}
	if !q.paused {
		q.paused = true
		s.resumeLater(q)
	}
}

func (s *scheduler) resumeLater(q *queue) {
	time.AfterFunc(time.Until(q.resume), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if time.Now().Before(q.resume) && !s.stopped {
			s.resumeLater(q)
			return
		}
		q.paused = false
		s.list(q)
		s.settle(q)
		s.start()
	})
}

// shrink takes from a failing webhook's queue what it may not hold in memory.
func (s *scheduler) shrink(q *queue) (handedBack []*Entry) {
	keep := probeQueue
	if !limit.MayUse(limit.Failing, s.limits.bytes, s.bytes(), 0) {
		keep = 1
	}
	if len(q.automatic) <= keep {
		return nil
	}
	handedBack = append(handedBack, q.automatic[keep:]...)
	q.automatic = append([]*Entry(nil), q.automatic[:keep]...)
	q.spilling += len(handedBack)
	return handedBack
}
