package posthorn

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
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
		result := Result{Entry: e, Delivery: delivery, target: t.observed()}
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
// polled. The log has neither [Config.UserAgent] nor [Config.Brand]: they are those of this Dispatcher.
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

// Curl returns a command for a POSIX shell that makes a delivery's request again, without the headers that [Dispatcher.RequestHeader] masks; empty
// if the receiver polled, or the payload is no longer stored.
func (d *Dispatcher) Curl(delivery Delivery) string {
	if delivery.Exchange.URL == "" || delivery.Payload == nil {
		return ""
	}
	header := d.requestHeader(&delivery)
	if slices.Contains(delivery.Exchange.Extra, idempotencyKey) {
		header[idempotencyKey] = []string{delivery.EventID}
	}
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
	// The payload is no argument of curl's: Linux has arguments of at most 128 KiB, but for printf, which is the shell's own.
	command := "printf %s " + quote(string(delivery.Payload)) + " | curl --globoff --path-as-is -X POST " + quote(delivery.Exchange.URL) // as it is, whatever curl could see in it
	for _, name := range slices.Sorted(maps.Keys(header)) {
		command += " \\\n  -H " + quote(name+": "+header[name][0])
	}
	return command + " \\\n  --data-binary @-"
}
