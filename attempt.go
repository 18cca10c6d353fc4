package posthorn

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/musehub/posthorn/internal/sender"
)

// headerNames are the names of the headers that carry the brand. They are not in http.Header's canonical form, which
// would put X-Musehub-Event on the wire: receivers must not care about case (RFC 9110, section 5.1), but some do.
type headerNames struct{ event, delivery, signature string }

func brandedHeaders(brand string) headerNames {
	prefix := "X-" + brand + "-"
	return headerNames{event: prefix + "Event", delivery: prefix + "Delivery", signature: prefix + "Signature"}
}

// attempt makes the attempt that an entry stands for, once its webhook allows it, and says what became of the entry.
func (d *Dispatcher) attempt(ctx context.Context, e *Entry) Result {
	for {
		if e.Trigger == TriggerReplay && d.replays.canceled(e.Run) {
			return Result{Entry: e}
		}
		t, again, err := d.target(ctx, e)
		switch {
		case ErrorCode(err) == CodeNotFound:
			return Result{Entry: e} // the webhook is gone, and its queue with it
		case err != nil:
			d.storeFailed("read webhooks", err)
			return Result{Entry: e, RetryAt: d.clock.now().Add(storeRetry)}
		case again:
			continue
		case t == nil: // it waits in the store until the webhook is active again
			return Result{Entry: e, RetryAt: e.DueAt}
		case !d.sched.leased(): // reading took that long
			d.subscriptions.unuse(t)
			return Result{Entry: e, RetryAt: e.DueAt}
		}
		outcome, delivery := d.send(ctx, t, e)
		d.subscriptions.unuse(t)
		if outcome.Canceled {
			if ctx.Err() == nil && t.revoked.Load() {
				continue // the webhook was changed before anything was on the wire
			}
			return Result{Entry: e, RetryAt: e.DueAt}
		}
		result := Result{Entry: e, Delivery: delivery, target: t.target}
		if !delivery.Success {
			result.RetryAt, result.hold, result.slow = t.afterFailure(e.Attempt, delivery)
			delivery.NextAttemptAt = result.RetryAt
		}
		return result
	}
}

// target returns the webhook of an entry for use, nil if it is inactive and the entry has to wait for it in the store.
// CodeNotFound when it is gone. What the cache doesn't know, or knows as inactive, another node may have made or resumed a
// moment ago: then the cache is out of date, and the caller is to try again.
func (d *Dispatcher) target(ctx context.Context, e *Entry) (t *use, again bool, err error) {
	t, err = d.subscriptions.use(ctx, e.Event.RepoID, e.WebhookSeq)
	if err != nil || t != nil && (t.Active || e.Trigger.ByHand()) {
		return t, false, err
	}
	known := t != nil
	if known {
		d.subscriptions.unuse(t)
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	w, err := d.store.Webhook(ctx, e.Event.RepoID, e.WebhookID)
	if err != nil || known && !w.Active {
		return nil, false, err
	}
	d.subscriptions.invalidate(e.Event.RepoID, e.WebhookSeq)
	return nil, true, nil
}

// send makes one request and describes it as a delivery, unless it was cancelled.
func (d *Dispatcher) send(ctx context.Context, t *use, e *Entry) (sender.Outcome, *Delivery) {
	started := d.clock.now()
	delivery := &Delivery{
		ID:        DeliveryID(e.Event, t.ID, e.Run, e.Attempt),
		WebhookID: t.ID,
		EventID:   e.Event.ID,
		EventType: e.Event.Type,
		Payload:   e.Event.Payload,
		Trigger:   e.Trigger,
		Run:       e.Run,
		Attempt:   e.Attempt,
		Exchange:  Exchange{URL: t.URL, SentAt: started, Secrets: t.secrets, Ed25519: t.ed25519, Extra: t.extra, Event: e.Event.Attributes},
	}
	outcome := sender.Outcome{}
	if t.err != nil {
		outcome.Body = "request error: " + t.err.Error()
	} else {
		header := d.requestHeader(delivery)
		for name, value := range t.headers {
			header[name] = value
		}
		if t.IdempotencyKey {
			header[idempotencyKey] = []string{e.Event.ID}
		}
		if t.secrets > 0 {
			if t.secrets > t.ed25519 {
				header[d.headers.signature] = []string{t.signer.Body(e.Event.Payload)}
				if t.GitHubSignature {
					header[githubSignature] = header[d.headers.signature]
				}
			}
			header[standardSignature] = []string{t.signer.Standard(e.Event.ID, started, e.Event.Payload)}
		}
		outcome = d.transport(ctx, &sender.Request{
			URL: t.url, Header: header, Body: e.Event.Payload, Timeout: t.Timeout, Revoked: &t.revoked, TLS: t.tls,
		})
	}
	delivery.Success = outcome.Success()
	delivery.ResponseStatus = outcome.Status
	delivery.ResponseBody = outcome.Body
	delivery.DeliveredAt = d.clock.now()
	delivery.Exchange.Header = outcome.Header
	delivery.Exchange.Timings = Timings(outcome.Timings)
	delivery.Exchange.Remote = outcome.Remote
	return outcome, delivery
}

// The headers of Standard Webhooks 1.0.0, in lower case on the wire as the specification writes them.
const (
	standardID        = "webhook-id"
	standardTimestamp = "webhook-timestamp"
	standardSignature = "webhook-signature"
)

// Headers that a webhook can ask for.
const (
	githubSignature = "X-Hub-Signature-256"
	idempotencyKey  = "Idempotency-Key"
)

// Headers that come from an event's attributes.
const (
	traceParent = "traceparent"
	traceState  = "tracestate"
	depthHeader = "Posthorn-Depth"
)

// What a webhook's own headers can be at most.
const (
	maxHeaders    = 20
	maxHeaderSize = 8 << 10 // of all names and values, in bytes
)

// reservedHeaders are those that Posthorn, HTTP or the connection has a use for, in http.Header's canonical form. Those with a hyphen
// at the end are the beginnings of such names.
var reservedHeaders = []string{
	"Host", "Content-Type", "Content-Length", "Content-Encoding", "Transfer-Encoding", "Connection", "Keep-Alive", "Upgrade", "Te", "Trailer",
	"Expect", "Accept-Encoding", "User-Agent", "Idempotency-Key", "X-Idempotency-Key", "Traceparent", "Tracestate", "X-Hub-Signature",
	"X-Hub-Signature-256", "Proxy-", "Webhook-", "X-Musehub-", "Posthorn-",
}

// checkHeader says why a webhook can't have a header of its own.
func (d *Dispatcher) checkHeader(name, value string) error {
	canonical := http.CanonicalHeaderKey(name)
	if len(name) > 128 || !isToken(strings.ReplaceAll(name, "_", "-")) {
		return invalid("headers", "%.64q is no name of a header: use up to 128 letters, digits, '-' and '_'", name)
	}
	for _, reserved := range append(reservedHeaders, http.CanonicalHeaderKey("X-" + d.cfg.Brand + "-x")[:len("X-"+d.cfg.Brand+"-")]) {
		if canonical == reserved || strings.HasSuffix(reserved, "-") && strings.HasPrefix(canonical, reserved) {
			return invalid("headers", "%s is reserved", name)
		}
	}
	if !utf8.ValidString(value) || !isHeaderValue(value) || strings.TrimSpace(value) != value {
		return invalid("headers", "the value of %s has a character that no header may have, or space around it", name)
	}
	return nil
}

// setHeaders gives a webhook headers of its own, with their values encrypted.
func (d *Dispatcher) setHeaders(w *Webhook, headers map[string]string) error {
	if len(headers) > maxHeaders {
		return invalid("headers", "there are %d: at most %d", len(headers), maxHeaders)
	}
	size, seen, sealed := 0, map[string]bool{}, map[string]string{}
	for name, value := range headers {
		if err := d.checkHeader(name, value); err != nil {
			return err
		}
		canonical := http.CanonicalHeaderKey(name)
		if seen[canonical] {
			return invalid("headers", "%s stands in it twice", canonical)
		}
		seen[canonical] = true
		if size += len(name) + len(value); size > maxHeaderSize {
			return invalid("headers", "they have more than %d bytes", maxHeaderSize)
		}
		var err error
		if value != MaskedHeader {
			sealed[name], err = d.seal(headerOf(w.ID, name), value)
		} else if sealed[name] = w.SealedHeaders[name]; sealed[name] == "" {
			err = invalid("headers", "there is no %s yet, so %s can't stand for its value", name, MaskedHeader)
		}
		if err != nil {
			return err
		}
	}
	w.SealedHeaders = sealed
	if len(sealed) == 0 {
		w.SealedHeaders = nil
	}
	return nil
}

// requestHeader returns the headers of a delivery's request but for its signatures.
func (d *Dispatcher) requestHeader(delivery *Delivery) http.Header {
	header := http.Header{
		"Content-Type":     {"application/json"},
		"User-Agent":       {d.cfg.UserAgent},
		d.headers.event:    {delivery.EventType},
		d.headers.delivery: {delivery.ID},
		standardID:         {delivery.EventID},
		standardTimestamp:  {strconv.FormatInt(delivery.Exchange.SentAt.Unix(), 10)},
	}
	if event := &delivery.Exchange.Event; *event != (Attributes{}) {
		if event.TraceParent != "" {
			header[traceParent] = []string{event.TraceParent}
		}
		if event.TraceState != "" {
			header[traceState] = []string{event.TraceState}
		}
		if event.Depth > 0 {
			header[depthHeader] = []string{strconv.Itoa(event.Depth)}
		}
	}
	return header
}

// RequestHeader returns the headers that a delivery's request had, with its signatures and the webhook's own headers masked; none if the receiver
// polled.
func (d *Dispatcher) RequestHeader(delivery Delivery) http.Header {
	if delivery.Exchange.URL == "" {
		return http.Header{}
	}
	header := d.requestHeader(&delivery)
	if delivery.Payload != nil {
		header["Content-Length"] = []string{strconv.Itoa(len(delivery.Payload))}
	}
	secrets := max(0, delivery.Exchange.Secrets-delivery.Exchange.Ed25519)
	if secrets > 0 {
		header[d.headers.signature] = []string{"sha256=***"}
	}
	if delivery.Exchange.Secrets > 0 {
		masked := strings.Repeat("v1,*** ", secrets) + strings.Repeat("v1a,*** ", delivery.Exchange.Ed25519)
		header[standardSignature] = []string{strings.TrimSpace(masked)}
	}
	for _, name := range delivery.Exchange.Extra {
		switch name {
		case githubSignature:
			header[name] = []string{"sha256=***"}
		case idempotencyKey:
			header[name] = []string{delivery.EventID}
		default:
			header[name] = []string{MaskedHeader}
		}
	}
	return header
}

// What follows is for webhooks that are polled: their receivers make the requests.

const (
	// MaxPoll is how many events one poll returns at most.
	MaxPoll = 200
	// MaxPollWait is for how long a poll may wait for an event.
	MaxPollWait = time.Minute
)

// PollQuery asks for the events of a webhook that is polled.
type PollQuery struct {
	Cursor string        // what was returned with the events that the receiver has done with; empty: with none
	Limit  int           // from 1 to [MaxPoll]
	Wait   time.Duration // for how long to wait where there is none, up to [MaxPollWait]
}

// Polled is the answer.
type Polled struct {
	Events []PolledEvent // the oldest first; empty: there was none in time
	Cursor string        // acknowledges these events; empty where there are none
}

// PolledEvent is an event for a webhook that is polled.
type PolledEvent struct {
	AcceptedEvent
	DeliveryID string // derived as for a request: the same each time that the event is returned
	Trigger    Trigger
}

// Poll acknowledges the events that an earlier call has returned, and returns the next ones, at least once each: until they
// are acknowledged, every call returns them anew. Those acknowledged are in the delivery log, as delivered. A webhook is for one receiver at a time; of several
// that poll it, all get the same events.
//
// CodeConflict for a webhook that is not polled, or not active. CodeInvalid for a cursor that this webhook never gave. CodeUnavailable and an error
// of ctx leave open whether the events were acknowledged: the same cursor again settles it.
func (d *Dispatcher) Poll(ctx context.Context, repoID, webhookID string, q PollQuery) (Polled, error) {
	w, err := d.Webhook(ctx, repoID, webhookID)
	switch {
	case err != nil:
		return Polled{}, err
	case !w.Polled:
		return Polled{}, Errorf(CodeConflict, "the webhook is not polled: its events are sent to its URL")
	case !w.Active:
		return Polled{}, errInactive(&w)
	case q.Limit < 1 || q.Limit > MaxPoll:
		return Polled{}, invalid("limit", "it is from 1 to %d", MaxPoll)
	case q.Wait < 0 || q.Wait > MaxPollWait:
		return Polled{}, invalid("wait", "it is from 0s to %v", MaxPollWait)
	}
	if q.Cursor != "" {
		if err := d.acknowledge(ctx, &w, q.Cursor); err != nil {
			return Polled{}, err
		}
	}
	timeout := time.NewTimer(q.Wait)
	defer timeout.Stop()
	look := time.NewTicker(lookEvery) // for what other nodes and transactions of hosts have accepted
	defer look.Stop()
	for waited := false; ; waited = true {
		woken, forget := d.polls.wait(w.Seq)
		entries, err := d.store.Held(ctx, w.Seq, q.Limit, MaxPageBytes)
		if err == nil && len(entries) > 0 && waited { // it may have been made inactive meanwhile
			if w, err = d.store.Webhook(ctx, repoID, webhookID); err == nil && !w.Active {
				err = errInactive(&w)
			}
		}
		if err != nil || len(entries) > 0 {
			forget()
			if err != nil {
				return Polled{}, err
			}
			return polled(&w, entries), nil
		}
		select {
		case <-woken:
		case <-look.C:
		case <-timeout.C:
			forget()
			return Polled{}, nil
		case <-ctx.Done():
			forget()
			return Polled{}, ctx.Err()
		}
		forget()
		if d.state.Load() == stateStopped {
			return Polled{}, nil
		}
	}
}

// Polled reports whether the run is of a webhook that is polled: it ends once the receiver acknowledges the event, whenever that is.
func (r *Redelivery) Polled() bool { return r.entry.Held }

func errInactive(w *Webhook) error {
	return Errorf(CodeConflict, "the webhook is not active%s", w.whyInactive())
}

func polled(w *Webhook, entries []*Entry) (p Polled) {
	cursor := binary.AppendUvarint(nil, uint64(w.Seq))
	for _, e := range entries {
		p.Events = append(p.Events, PolledEvent{*e.Event, DeliveryID(e.Event, w.ID, e.Run, e.Attempt), e.Trigger})
		cursor = binary.AppendUvarint(binary.AppendUvarint(cursor, uint64(e.Event.Seq)), uint64(e.Run))
	}
	p.Cursor = base64.RawURLEncoding.EncodeToString(cursor)
	return p
}

// polledEntry is what a cursor names.
type polledEntry struct{ event, run int64 }

// parseCursor returns the entries that a cursor of a webhook stands for.
func parseCursor(w *Webhook, cursor string) (map[polledEntry]bool, error) {
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	next := func() int64 {
		v, n := binary.Uvarint(raw)
		if n <= 0 {
			err, raw = errors.New("cut short"), nil
			return 0
		}
		raw = raw[n:]
		return int64(v)
	}
	of, entries := int64(0), map[polledEntry]bool{}
	if err == nil {
		of = next()
	}
	for err == nil && len(raw) > 0 && len(entries) <= MaxPoll {
		entries[polledEntry{next(), next()}] = true
	}
	if err != nil || of != w.Seq || len(entries) == 0 || len(entries) > MaxPoll {
		return nil, invalid("cursor", "it is none that polling this webhook has returned")
	}
	return entries, nil
}

// acknowledge has the entries of a cursor recorded as delivered, those that are held still, and waits for that, but not for ever.
func (d *Dispatcher) acknowledge(ctx context.Context, w *Webhook, cursor string) error {
	named, err := parseCursor(w, cursor)
	if err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	noted, err := d.recordPolled(bounded, w, named)
	if err != nil {
		return err
	}
	for _, n := range noted {
		select {
		case <-n:
		case <-d.committing.ctx.Done(): // what can't be written by now waits for nobody
			return Errorf(CodeUnavailable, "the dispatcher is stopping; poll again with the same cursor")
		case <-bounded.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return Errorf(CodeUnavailable, "the store has not recorded within %v what is acknowledged; poll again with the same cursor", storeTimeout)
		}
	}
	return nil
}

// recordPolled has entries recorded as delivered. The channels are closed when that is done.
func (d *Dispatcher) recordPolled(ctx context.Context, w *Webhook, named map[polledEntry]bool) (noted []<-chan struct{}, err error) {
	d.accepting.RLock() // Stop waits for this
	defer d.accepting.RUnlock()
	if err := d.running(); err != nil {
		return nil, err
	}
	// They were the first ones. What has come before them since is little; what that hides is returned once more.
	entries, err := d.store.Held(ctx, w.Seq, len(named)+MaxPoll, -1)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !named[polledEntry{e.Event.Seq, e.Run}] {
			continue
		}
		done, first := d.polls.record(e)
		noted = append(noted, done)
		if !first {
			continue // an earlier poll has it recorded
		}
		now := d.clock.now()
		d.commits.record(Result{Entry: e, Delivery: &Delivery{
			ID: DeliveryID(e.Event, w.ID, e.Run, e.Attempt), WebhookID: w.ID, EventID: e.Event.ID, EventType: e.Event.Type,
			Trigger: e.Trigger, Run: e.Run, Attempt: e.Attempt, Success: true, ResponseStatus: http.StatusOK, ResponseBody: "acknowledged",
			DeliveredAt: now, Exchange: Exchange{SentAt: now, Event: e.Event.Attributes},
		}})
	}
	return noted, nil
}

// polls are those who wait for events of webhooks, and what they have acknowledged.
type polls struct {
	mu        sync.Mutex
	byWebhook map[int64]map[chan struct{}]struct{}
	recording map[recording]chan struct{} // closed when it is done
	stopped   bool
}

// recording is a held entry on its way to being recorded. It is once, however often it is acknowledged: while the store can't be written
// this bounds what waits for it.
type recording struct {
	webhook int64
	polledEntry
}

func recordingOf(e *Entry) recording { return recording{e.WebhookSeq, polledEntry{e.Event.Seq, e.Run}} }

// record returns what is closed once an entry is recorded, and whether the caller is the first and has to see to that.
func (p *polls) record(e *Entry) (done <-chan struct{}, first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c, ok := p.recording[recordingOf(e)]
	if !ok {
		if p.recording == nil {
			p.recording = map[recording]chan struct{}{}
		}
		c = make(chan struct{})
		p.recording[recordingOf(e)] = c
	}
	return c, !ok
}

// recorded tells that an entry is.
func (p *polls) recorded(e *Entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c, ok := p.recording[recordingOf(e)]; ok {
		delete(p.recording, recordingOf(e))
		close(c)
	}
}

// wait returns a channel that tells of new events, and what ends that.
func (p *polls) wait(webhook int64) (woken <-chan struct{}, forget func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := make(chan struct{}, 1)
	if p.stopped {
		c <- struct{}{}
	}
	if p.byWebhook == nil {
		p.byWebhook = map[int64]map[chan struct{}]struct{}{}
	}
	if p.byWebhook[webhook] == nil {
		p.byWebhook[webhook] = map[chan struct{}]struct{}{}
	}
	p.byWebhook[webhook][c] = struct{}{}
	return c, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if delete(p.byWebhook[webhook], c); len(p.byWebhook[webhook]) == 0 {
			delete(p.byWebhook, webhook)
		}
	}
}

// wake tells who waits for events of a webhook.
func (p *polls) wake(webhook int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.byWebhook[webhook] {
		wake(c)
	}
}

// stop tells all that there is nothing to wait for any more.
func (p *polls) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	for _, waiting := range p.byWebhook {
		for c := range waiting {
			wake(c)
		}
	}
}
