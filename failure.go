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

// The operational events: what an operator should know about webhooks. They are dispatched to the webhooks of [Config.SystemRepo],
// best effort: a node that dies at that moment takes the event with it. What they tell is in the webhook and the logs as well.
const (
	EventWebhookFailing    = "webhook.failing"    // all attempts have failed for four fifths of Config.DisableAfter
	EventWebhookDisabled   = "webhook.disabled"   // it was made inactive, and why
	EventWebhookRecovered  = "webhook.recovered"  // an attempt has succeeded after webhook.failing
	EventDeliveryExhausted = "delivery.exhausted" // an event's last attempt has failed; not told of webhooks of the system repo itself
)

// OperationalEvents returns the types of the operational events.
func OperationalEvents() []string {
	return []string{EventWebhookFailing, EventWebhookDisabled, EventWebhookRecovered, EventDeliveryExhausted}
}

const (
	goneReason = "the receiver answered 410 Gone"
	// disableAtLeast is how many events must have failed before a webhook is disabled.
	disableAtLeast = 20
	// observeEvery is how often one thing that is noticed about a webhook is looked into.
	observeEvery = time.Minute
	// inFlightAtMost is for how long a request may be under way, with the time to record it.
	inFlightAtMost = 2 * time.Minute
)

// observation is what a recorded attempt shows about its webhook.
type observation struct {
	target   *target
	event    string // the operational event that follows, if it does; empty: it has begun to fail
	reason   string // to disable the webhook
	delivery *Delivery
}

// observe looks at the result of an attempt. There is nothing to do for nearly all of them. If there is too much to do, or the store
// fails, a later attempt shows the same.
//
// It goes by what this node knows. That a webhook has begun or ended to fail is no change that other nodes hear of: they know it once they
// have a reason to read the webhook. Until then a success that only they see leaves FailingSince as it is; therefore follow asks the
// log, which has the attempts of all nodes, before it takes a webhook for one that has failed for long, and where one begins to fail here
// that counts as failing already.
func (d *Dispatcher) observe(r *Result) {
	x := observation{target: r.target, delivery: r.Delivery}
	health, at := x.target.health.Load(), r.Delivery.DeliveredAt
	since := health.FailingSince
	failing := at.Sub(since)
	switch {
	case r.Delivery.Success:
		if since.IsZero() {
			// The request may be older than its webhook's beginning to fail, and know nothing of that.
			if begun, ok := d.begun[x.target.Seq]; !ok || time.Since(begun) > inFlightAtMost {
				return
			}
		}
		delete(d.begun, x.target.Seq)
		x.event = EventWebhookRecovered
	case r.Delivery.ResponseStatus == http.StatusGone:
		x.event, x.reason = EventWebhookDisabled, goneReason
	case since.IsZero():
		if r.failures < probeAfter {
			break
		}
		if d.begun == nil || len(d.begun) >= maxRemembered {
			d.begun = map[int64]time.Time{}
		}
		d.begun[x.target.Seq] = time.Now()
		d.note(x)
	case d.cfg.DisableAfter < 0:
	case failing >= d.cfg.DisableAfter:
		x.event, x.reason = EventWebhookDisabled, fmt.Sprintf("all attempts have failed since %s (--disable-after, Config.DisableAfter)", since.Format(time.RFC3339))
	case failing >= d.cfg.DisableAfter/5*4 && !health.Warned:
		x.event = EventWebhookFailing
	}
	if x.event != "" {
		d.note(x)
	}
	if r.RetryAt.IsZero() && !r.Delivery.Success && d.cfg.SystemRepo != "" && x.target.RepoID != d.cfg.SystemRepo {
		d.note(observation{target: r.target, delivery: r.Delivery, event: EventDeliveryExhausted})
	}
}

func (d *Dispatcher) note(x observation) {
	delivery := *x.delivery
	delivery.Payload = nil // nobody asks for it here, and its memory counts no longer
	x.delivery = &delivery
	select {
	case d.observed <- x:
	default:
		d.complainAbout("observations", func() {
			d.log.Warn("too much happens to webhooks at once: not all of it is told as operational events")
		})
	}
}

// keepHealth does what follows from observations.
func (d *Dispatcher) keepHealth(ctx context.Context) {
	type key struct {
		webhook int64
		event   string
	}
	seen := map[key]time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case x := <-d.observed:
			k := key{x.target.Seq, x.event}
			often := x.event == "" || x.event == EventWebhookFailing || x.event == EventWebhookDisabled && x.reason != goneReason
			if last, ok := seen[k]; often && ok && time.Since(last) < observeEvery {
				continue
			}
			if len(seen) >= maxRemembered {
				clear(seen)
			}
			if often {
				seen[k] = time.Now()
			}
			was := x
			err := d.follow(ctx, &x)
			if err == nil && x.event != was.event { // it had recovered, as the log says, and may have begun to fail since
				err = d.follow(ctx, &was)
			}
			if err != nil {
				d.storeFailed("note how webhooks are", err)
				delete(seen, k)
			}
		}
	}
}

// follow changes the webhook as an observation demands, unless someone was quicker, and tells the operator.
func (d *Dispatcher) follow(ctx context.Context, x *observation) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	if x.event == EventDeliveryExhausted {
		return d.announce(ctx, x, &x.target.Webhook)
	}
	t := x.target
	current, err := d.store.Webhook(ctx, t.RepoID, t.ID)
	if err == nil && x.event == "" && !current.FailingSince.IsZero() {
		// Another node has noted that, maybe long ago, and knows nothing of successes here since then. They are near the end of the log now;
		// by the time that the webhook is to be disabled there may be thousands of failures behind them.
		err = d.succeeded(ctx, x, &current)
	}
	if err == nil {
		if changed := current; !x.change(&changed, d.cfg.DisableAfter) {
			// Another node may have changed it. What this one changes is noted once it is: until then attempts show the same again.
			d.subscriptions.setHealth(current)
			return nil
		}
	}
	if err == nil && (x.event == EventWebhookFailing || x.event == EventWebhookDisabled && x.reason != goneReason) {
		var doubt bool
		if doubt, err = d.doubt(ctx, x, &current); err == nil && doubt {
			return nil
		}
	}
	writing := ctx
	if x.event == EventWebhookDisabled {
		writing = d.audited(ctx, AuditEntry{Action: "webhook.disable", RepoID: t.RepoID, Subject: t.ID, Detail: x.reason})
	}
	var before, w Webhook
	if err == nil {
		w, err = d.store.UpdateWebhook(writing, t.RepoID, t.ID, func(w *Webhook) error {
			before = *w
			if !x.change(w, d.cfg.DisableAfter) {
				return errUnchanged
			}
			if x.event == EventWebhookDisabled {
				w.UpdatedAt = d.clock.now()
			}
			return nil
		})
	}
	switch {
	case err == errUnchanged || ErrorCode(err) == CodeNotFound: //nolint:errorlint // it comes back as it is
		return nil
	case err != nil:
		return err
	}
	if x.event == EventWebhookDisabled {
		d.subscriptions.invalidate(t.RepoID, w.Seq)
	} else {
		d.subscriptions.setHealth(w)
	}
	switch x.event {
	case "":
		return nil
	case EventWebhookRecovered:
		if !before.Warned { // nobody was told of its failures
			return nil
		}
		d.log.Info("a webhook has recovered", "repo", t.RepoID, "webhook", t.ID)
	case EventWebhookFailing:
		d.log.Warn("a webhook has failed for long, and is going to be disabled", "repo", t.RepoID, "webhook", t.ID, "since", w.FailingSince)
	case EventWebhookDisabled:
		d.log.Warn("disabled a webhook", "repo", t.RepoID, "webhook", t.ID, "reason", x.reason)
	}
	before.DisabledReason = x.reason
	return d.announce(ctx, x, &before)
}

// change makes the webhook what the observation demands, and reports whether there was anything to change.
func (x *observation) change(w *Webhook, disableAfter time.Duration) bool {
	at := x.delivery.DeliveredAt
	lasts := !w.FailingSince.IsZero() && at.After(w.FailingSince)
	switch {
	case !w.Active && x.event != EventWebhookRecovered, w.URL != x.target.URL: // it is not the one that was observed
		return false
	case x.event == "" && w.FailingSince.IsZero():
		w.FailingSince = at
	case x.event == EventWebhookRecovered && lasts:
		w.FailingSince, w.Warned = time.Time{}, false
	case x.event == EventWebhookFailing && lasts && !w.Warned:
		w.Warned = true
	case x.event == EventWebhookDisabled && (x.reason == goneReason || lasts && at.Sub(w.FailingSince) >= disableAfter):
		w.Active, w.Health = false, Health{DisabledReason: x.reason}
	default:
		return false
	}
	return true
}

// doubt looks in the log for whether a webhook has failed for long, and reports whether it has not, or not often enough to be disabled. If
// another node has had a success, that is what there is to follow.
func (d *Dispatcher) doubt(ctx context.Context, x *observation, w *Webhook) (bool, error) {
	if err := d.succeeded(ctx, x, w); err != nil || x.event != EventWebhookDisabled {
		return false, err
	}
	enough, err := d.manyFailed(ctx, w)
	return !enough, err
}

// succeeded looks in the log for whether an attempt has succeeded since a webhook began to fail. If so, that is what there is to follow.
func (d *Dispatcher) succeeded(ctx context.Context, x *observation, w *Webhook) error {
	succeeded := true
	// The last one decides, whenever it was: asking for those since then would read on through all that is older.
	q := DeliveryQuery{RepoID: w.RepoID, WebhookID: w.ID, Success: &succeeded, Limit: 1}
	for range 10 { // pages, of MaxScan attempts each
		page, err := d.store.Deliveries(ctx, q)
		if err != nil {
			return err
		}
		if len(page.Items) > 0 {
			if last := &page.Items[0]; last.DeliveredAt.After(w.FailingSince) {
				*x = observation{target: x.target, event: EventWebhookRecovered, delivery: last}
			}
			return nil
		}
		if q.Before = page.Next; q.Before == 0 {
			break
		}
	}
	return nil
}

// manyFailed reports whether enough events have failed since the webhook began to fail, as far as the log has them.
func (d *Dispatcher) manyFailed(ctx context.Context, w *Webhook) (bool, error) {
	failed, events := false, map[string]bool{}
	q := DeliveryQuery{RepoID: w.RepoID, WebhookID: w.ID, Success: &failed, Since: w.FailingSince, Limit: MaxScan}
	for range 10 { // pages: enough for any policy
		page, err := d.store.Deliveries(ctx, q)
		if err != nil {
			return false, err
		}
		for i := range page.Items {
			events[page.Items[i].EventID] = true
		}
		if q.Before = page.Next; len(events) >= disableAtLeast || q.Before == 0 {
			break
		}
	}
	return len(events) >= disableAtLeast, nil
}

// operationalPayload is the payload of operational events. A webhook's URL is not in it: it may have secrets.
type operationalPayload struct {
	RepoID         string     `json:"repoId"`
	WebhookID      string     `json:"webhookId"`
	Description    string     `json:"description,omitempty"`
	FailingSince   *time.Time `json:"failingSince,omitempty"`
	DisableAt      *time.Time `json:"disableAt,omitempty"` // the earliest
	Reason         string     `json:"reason,omitempty"`
	EventID        string     `json:"eventId"` // that whose attempt has led to this
	EventType      string     `json:"eventType"`
	DeliveryID     string     `json:"deliveryId"`
	Attempt        int        `json:"attempt"`
	ResponseStatus int        `json:"responseStatus"`
	ResponseBody   string     `json:"responseBody"`
}

// announce dispatches an operational event to those who subscribe to it.
func (d *Dispatcher) announce(ctx context.Context, x *observation, w *Webhook) error {
	if d.cfg.SystemRepo == "" {
		return nil
	}
	p := operationalPayload{
		RepoID: w.RepoID, WebhookID: w.ID, Description: w.Description, Reason: w.DisabledReason, EventID: x.delivery.EventID, EventType: x.delivery.EventType,
		DeliveryID: x.delivery.ID, Attempt: x.delivery.Attempt, ResponseStatus: x.delivery.ResponseStatus, ResponseBody: x.delivery.ResponseBody,
	}
	if !w.FailingSince.IsZero() && x.event != EventDeliveryExhausted {
		p.FailingSince = &w.FailingSince
		if x.event == EventWebhookFailing {
			at := w.FailingSince.Add(d.cfg.DisableAfter)
			p.DisableAt = &at
		}
	}
	raw, err := marshal(p)
	if err != nil {
		return err
	}
	now := d.clock.now()
	event := &AcceptedEvent{ID: newID(now), RepoID: d.cfg.SystemRepo, Type: x.event, Payload: raw, CreatedAt: now}
	webhooks, err := d.match(ctx, event)
	if err != nil {
		return err
	}
	_, err = d.accept(ctx, event, TriggerAutomatic, webhooks)
	return err
}

var errUnchanged = fmt.Errorf("nothing is to be changed")

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

// hold pauses a webhook because its receiver asked for that. Meanwhile it takes up no more than a failing one, so that others
// have room. It returns what it may not hold in memory any longer.
func (s *scheduler) hold(q *queue, d time.Duration) (handedBack []*Entry) {
	q.held, q.regained = true, probeQueue
	s.setStanding(q, q.earned)
	s.pause(q, d)
	return s.shrink(q)
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
		if q.held {
			q.held = false
			s.setStanding(q, q.earned)
		}
		s.list(q)
		s.settle(q)
		s.start()
	})
}

// shrink takes from the queue of a webhook that is failing or held what it may not hold in memory.
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
