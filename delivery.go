package posthorn

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Trigger says why a delivery was made.
type Trigger string

// The triggers.
const (
	TriggerAutomatic  Trigger = "automatic"  // an event was dispatched to the webhook's subscribers
	TriggerRedelivery Trigger = "redelivery" // a past delivery's event was sent again by hand
	TriggerPing       Trigger = "ping"       // a ping was asked for by hand
	TriggerTest       Trigger = "test"       // a test was asked for by hand
	TriggerReplay     Trigger = "replay"     // a past event was among many that are sent again ([Dispatcher.StartReplay])
)

// ByHand reports whether it was for this one delivery: those go before what is queued, and go to inactive webhooks too.
func (t Trigger) ByHand() bool { return t == TriggerRedelivery || t == TriggerPing || t == TriggerTest }

// Delivery is one HTTP attempt of one event to one webhook: a row of the delivery log.
type Delivery struct {
	Seq       int64  // the store's number for it, ascending in the order of recording
	ID        string // derived from event, webhook, run and attempt; sent as X-MuseHub-Delivery
	WebhookID string
	EventID   string
	EventType string
	Payload   json.RawMessage // the exact body; nil once the event has been pruned, and in OnDelivery if it was polled

	Trigger Trigger
	Run     int64 // zero: the event's own run; each redelivery is another, and each replay has one for all its events
	Attempt int   // 1 for the first of its run

	Success        bool
	ResponseStatus int    // zero when no response was received
	ResponseBody   string // the first 512 characters, or "timeout: …", "request error: …", "SSRF blocked: …"
	DeliveredAt    time.Time
	NextAttemptAt  time.Time // zero: this was the last attempt of its run

	Exchange Exchange
}

// Exchange is what went over the wire besides the payload and the response's body.
type Exchange struct {
	URL     string      `json:"url"`
	SentAt  time.Time   `json:"sentAt"`            // when the attempt started; to the second, it is webhook-timestamp
	Secrets int         `json:"secrets,omitempty"` // how many secrets signed the request
	Ed25519 int         `json:"ed25519,omitempty"` // how many of them were Ed25519 keys
	Extra   []string    `json:"extra,omitempty"`   // the names of the headers that the webhook asked for; read-only
	Header  http.Header `json:"header,omitempty"`  // of the response
	Timings Timings     `json:"timings"`
	// Event has what the event's attributes made of the request.
	Event Attributes `json:"event,omitzero"`
	// Remote is what kind of address the connection was made to ("public", "private", "loopback" …); empty if there was none.
	Remote string `json:"remote,omitempty"`
}

// Timings says where an attempt's time went. A phase that did not happen is zero, as on a kept connection.
type Timings struct {
	DNS       time.Duration `json:"dns,omitempty"`
	Connect   time.Duration `json:"connect,omitempty"`
	TLS       time.Duration `json:"tls,omitempty"`
	FirstByte time.Duration `json:"firstByte,omitempty"` // from having a connection to the first byte of the response
	Total     time.Duration `json:"total"`
	Reused    bool          `json:"reused,omitempty"` // the connection was kept from an earlier request
}

// took is how long the attempt took.
func (d *Delivery) took() time.Duration { return d.DeliveredAt.Sub(d.Exchange.SentAt) }

// latency is how long the receiver took over the request, without the making of a connection.
func (d *Delivery) latency() time.Duration {
	t := d.Exchange.Timings
	return max(0, d.took()-t.DNS-t.Connect-t.TLS)
}

// AppendJSON appends what encoding/json makes of x, for stores: each delivery's is written once, on the hot path, and
// this is quicker.
func (x *Exchange) AppendJSON(b []byte) []byte {
	b = appendString(append(b, `{"url":`...), x.URL)
	b = append(x.SentAt.AppendFormat(append(b, `,"sentAt":"`...), time.RFC3339Nano), '"')
	if x.Secrets != 0 {
		b = strconv.AppendInt(append(b, `,"secrets":`...), int64(x.Secrets), 10)
	}
	if x.Ed25519 != 0 {
		b = strconv.AppendInt(append(b, `,"ed25519":`...), int64(x.Ed25519), 10)
	}
	if len(x.Extra) > 0 {
		b = appendStrings(append(b, `,"extra":`...), x.Extra)
	}
	if len(x.Header) > 0 {
		b = appendHeader(append(b, `,"header":`...), x.Header)
	}
	b = append(b, `,"timings":{`...)
	t := &x.Timings
	for _, phase := range [...]struct {
		name string
		took time.Duration
	}{{`"dns":`, t.DNS}, {`"connect":`, t.Connect}, {`"tls":`, t.TLS}, {`"firstByte":`, t.FirstByte}} {
		if phase.took != 0 {
			b = append(strconv.AppendInt(append(b, phase.name...), int64(phase.took), 10), ',')
		}
	}
	b = strconv.AppendInt(append(b, `"total":`...), int64(t.Total), 10)
	if t.Reused {
		b = append(b, `,"reused":true`...)
	}
	b = append(b, '}')
	if x.Event != (Attributes{}) {
		b = append(append(b, `,"event":`...), x.Event.Encode()...)
	}
	if x.Remote != "" {
		b = appendString(append(b, `,"remote":`...), x.Remote)
	}
	return append(b, '}')
}

func appendHeader(b []byte, header http.Header) []byte {
	b = append(b, '{')
	var few [8]string
	keys := few[:0]
	for key := range header {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for i, key := range keys {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendString(b, key), ':')
		if header[key] == nil {
			b = append(b, "null"...)
			continue
		}
		b = appendStrings(b, header[key])
	}
	return append(b, '}')
}

func appendStrings(b []byte, list []string) []byte {
	b = append(b, '[')
	for i, s := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, s)
	}
	return append(b, ']')
}

// appendString appends a string as JSON.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			quoted, _ := json.Marshal(s) // which never fails for a string
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

// DeliveryQuery selects deliveries of a webhook, newest first. Zero filters match everything.
type DeliveryQuery struct {
	RepoID    string
	WebhookID string
	Success   *bool
	EventType string
	EventID   string
	Since     time.Time // inclusive
	Until     time.Time // exclusive
	Before    int64     // only those whose Seq is smaller; zero: from the newest
	Limit     int
}

// Delivery returns one delivery of a webhook.
func (d *Dispatcher) Delivery(ctx context.Context, repoID, webhookID, id string) (Delivery, error) {
	if err := d.checkRepo(ctx, repoID); err != nil {
		return Delivery{}, err
	}
	return d.store.Delivery(ctx, repoID, webhookID, id)
}

// Deliveries returns a page of a webhook's log.
func (d *Dispatcher) Deliveries(ctx context.Context, q DeliveryQuery) (Page[Delivery], error) {
	if err := d.checkRepo(ctx, q.RepoID); err != nil {
		return Page[Delivery]{}, err
	}
	return d.store.Deliveries(ctx, q)
}

// Ping sends an event of type [EventPing] to one webhook, whatever it subscribes to and even when it is inactive.
func (d *Dispatcher) Ping(ctx context.Context, repoID, webhookID string) (Receipt, error) {
	w, err := d.Webhook(ctx, repoID, webhookID)
	if err != nil {
		return Receipt{}, err
	}
	event, err := d.prepare(ctx, Event{RepoID: repoID, Type: EventPing, Payload: pingPayload{repoID, webhookID, w.Events}})
	if err != nil {
		return Receipt{}, err
	}
	return d.accept(ctx, event, TriggerPing, []recipient{{Seq: w.Seq, ID: w.ID, RepoID: w.RepoID, polled: w.Polled}})
}

// SendTest sends an event of a type to one webhook and to nobody else, whatever it subscribes to and even when it is inactive. With a nil payload
// it is the first example that [Config.Catalogue] has of the type: CodeInvalid where there is none.
func (d *Dispatcher) SendTest(ctx context.Context, repoID, webhookID, eventType string, payload any) (Receipt, error) {
	w, err := d.Webhook(ctx, repoID, webhookID)
	if err != nil {
		return Receipt{}, err
	}
	if payload == nil && d.knows(eventType) {
		if payload, err = d.example(eventType); err != nil {
			return Receipt{}, err
		}
	}
	event, err := d.prepare(ctx, Event{RepoID: repoID, Type: eventType, Payload: payload})
	if err != nil {
		return Receipt{}, err
	}
	event.Test = true
	return d.accept(ctx, event, TriggerTest, []recipient{{Seq: w.Seq, ID: w.ID, RepoID: w.RepoID, polled: w.Polled}})
}

func (d *Dispatcher) example(eventType string) (any, error) {
	for _, t := range d.cfg.Catalogue {
		if t.Name == eventType && len(t.Examples) > 0 {
			return t.Examples[0], nil
		}
	}
	return nil, invalid("payload", "it is missing, and the catalogue has no example of %.128s (--catalogue, Config.Catalogue)", eventType)
}

type pingPayload struct {
	RepoID    string   `json:"repoId"`
	WebhookID string   `json:"webhookId"`
	Events    []string `json:"events"`
}

// Redelivery is a run of attempts asked for by hand.
type Redelivery struct {
	OriginalID string // the delivery that is sent again
	DeliveryID string // of the run's first attempt
	WebhookID  string
	EventID    string
	EventType  string

	d       *Dispatcher
	entry   *Entry
	attempt int // the first that was not in the log when that was looked at last
}

// Redeliver sends the event of a past delivery again: to the webhook's current URL, with its current secrets, under the
// full retry policy, even when the webhook is inactive. Once it has returned, the run is as durable as an event.
//
// CodeInvalid when the event's payload is no longer stored.
func (d *Dispatcher) Redeliver(ctx context.Context, repoID, webhookID, deliveryID string) (*Redelivery, error) {
	original, err := d.Delivery(ctx, repoID, webhookID, deliveryID)
	if err != nil {
		return nil, err
	}
	w, err := d.Webhook(ctx, repoID, webhookID)
	if err != nil {
		return nil, err
	}
	event, err := d.store.Event(ctx, repoID, original.EventID)
	if ErrorCode(err) == CodeNotFound {
		return nil, errPruned
	}
	if err != nil {
		return nil, err
	}
	d.accepting.RLock()
	defer d.accepting.RUnlock()
	if d.state.Load() != stateStarted {
		return nil, Errorf(CodeUnavailable, "the dispatcher is not running")
	}
	e := &Entry{WebhookSeq: w.Seq, WebhookID: w.ID, Event: &event, Trigger: TriggerRedelivery, Attempt: 1, DueAt: d.clock.now(), Held: w.Polled}
	webhook := []recipient{{Seq: w.Seq, ID: w.ID, RepoID: repoID, polled: w.Polled}}
	reserved := d.sched.reserve(e.Trigger, []Target{{WebhookSeq: w.Seq, Leased: !w.Polled, Held: w.Polled}}, len(event.Payload))
	node := int64(0)
	if reserved[0] {
		node = d.node.Load()
	}
	// A caller who goes away doesn't interrupt this: whether it was done would be unknown.
	enqueueing, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	writing := d.audited(enqueueing, AuditEntry{
		Action: "delivery.redeliver", RepoID: repoID, Subject: deliveryID, Detail: "webhook " + webhookID,
	})
	if err := d.store.Enqueue(writing, e, node); err != nil {
		d.sched.unreserve(webhook, len(event.Payload), reserved)
		switch {
		case ErrorCode(err) == CodeNotFound:
			return nil, errPruned
		case node == 0:
			d.storeFailed("enqueue a redelivery", err)
		default:
			d.leaseFailed("enqueue a redelivery", err)
		}
		if isUncertain(err) {
			return nil, &Error{Code: CodeUncertain, Err: err, Message: "the store was lost in the middle of a commit, so it may be " +
				"sent again or not: look at the log before asking once more"}
		}
		return nil, notNow(err)
	}
	d.sched.enqueued(e, node)
	d.polls.wake(w.Seq)
	return &Redelivery{
		OriginalID: deliveryID, DeliveryID: DeliveryID(&event, w.ID, e.Run, 1),
		WebhookID: w.ID, EventID: event.ID, EventType: event.Type,
		d: d, entry: e, attempt: 1,
	}, nil
}

var errPruned = &Error{Code: CodeInvalid, Message: "the event's payload is no longer stored, so it can't be sent again (--retention, Config.Retention)"}

// Wait returns the last delivery of the run, at its end. It may be called once. When ctx ends first, or the Dispatcher
// stops (CodeUnavailable), the run goes on all the same, after a restart if need be.
func (r *Redelivery) Wait(ctx context.Context) (Delivery, error) {
	end := r.d.waits.add(r.entry)
	defer r.d.waits.forget(r.entry.Run)
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		// It may have ended before anybody waited, or another node may have taken it over and ended it.
		delivery, err := r.look(ctx)
		if err != nil || !delivery.DeliveredAt.IsZero() {
			return delivery, err
		}
		if r.d.state.Load() == stateStopped {
			return Delivery{}, errNoEnd
		}
		select {
		case delivery, ok := <-end:
			if !ok {
				return Delivery{}, errNoEnd
			}
			return delivery, nil
		case <-look.C:
		case <-ctx.Done():
			return Delivery{}, ctx.Err()
		}
	}
}

// lookEvery is how often the log is asked for the end of a run that someone waits for.
const lookEvery = time.Second

var errNoEnd = &Error{Code: CodeUnavailable, Message: "the run has no end yet: the webhook was deleted, or the dispatcher is stopping and goes on with it when it is started again"}

// look returns the last delivery of the run if the log has it. That the store can't say now is no error.
func (r *Redelivery) look(ctx context.Context) (Delivery, error) {
	for {
		repoID, id := r.entry.Event.RepoID, DeliveryID(r.entry.Event, r.WebhookID, r.entry.Run, r.attempt)
		delivery, err := r.d.store.Delivery(ctx, repoID, r.WebhookID, id)
		switch {
		case ErrorCode(err) == CodeNotFound:
			if _, err := r.d.store.Webhook(ctx, repoID, r.WebhookID); ErrorCode(err) == CodeNotFound {
				return Delivery{}, errNoEnd
			}
			return Delivery{}, nil
		case err != nil:
			return Delivery{}, nil //nolint:nilerr // the next look may do better
		case delivery.NextAttemptAt.IsZero():
			return delivery, nil
		}
		r.attempt++
	}
}

// waits are those who wait for the end of a run.
type waits struct {
	mu    sync.Mutex
	byRun map[int64]wait
}

type wait struct {
	webhookSeq int64
	end        chan Delivery // gets the last delivery, or is closed without one
}

// add adds a wait for the run of an entry.
func (w *waits) add(e *Entry) <-chan Delivery {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.byRun == nil {
		w.byRun = map[int64]wait{}
	}
	end := make(chan Delivery, 1)
	w.byRun[e.Run] = wait{e.WebhookSeq, end}
	return end
}

func (w *waits) forget(run int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.byRun, run)
}

// ended tells who waits for the result's run that it is over.
func (w *waits) ended(r Result) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if wait, ok := w.byRun[r.Entry.Run]; ok {
		if r.Delivery != nil {
			wait.end <- *r.Delivery
		}
		close(wait.end)
		delete(w.byRun, r.Entry.Run)
	}
}

// cancel ends the waits for runs to a webhook, or with 0 all of them: these runs won't end here.
func (w *waits) cancel(webhookSeq int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for run, wait := range w.byRun {
		if webhookSeq == 0 || wait.webhookSeq == webhookSeq {
			close(wait.end)
			delete(w.byRun, run)
		}
	}
}

// Identifiers are UUIDs of version 7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then randomness. Their order
// is nearly that of time, so that an index over them grows at its end.

// newID returns a new identifier.
func newID(now time.Time) string {
	var random [10]byte
	rand.Read(random[:]) // never fails: crypto/rand
	return formatUUID(now, random[:])
}

// DeliveryID derives the identifier of one attempt. The same attempt, made again after a crash, has the same one, which
// is how a receiver can tell. Its time is the event's, so that all deliveries of an event are near each other in an index.
func DeliveryID(event *AcceptedEvent, webhookID string, run int64, attempt int) string {
	var array [256]byte
	b := array[:0]
	for _, part := range [...]string{event.RepoID, event.ID, webhookID} {
		b = binary.BigEndian.AppendUint64(b, uint64(len(part))) // so that no two lists of parts have the same bytes
		b = append(b, part...)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(run))
	b = binary.BigEndian.AppendUint64(b, uint64(attempt))
	hash := sha256.Sum256(b)
	return formatUUID(event.CreatedAt, hash[:])
}

func formatUUID(t time.Time, random []byte) string {
	var u [16]byte
	binary.BigEndian.PutUint64(u[:8], uint64(t.UnixMilli())<<16)
	copy(u[6:], random[:10])
	u[6] = u[6]&0x0f | 0x70 // version 7
	u[8] = u[8]&0x3f | 0x80 // the variant of RFC 9562
	var s [36]byte
	hex.Encode(s[:8], u[:4])
	s[8] = '-'
	hex.Encode(s[9:13], u[4:6])
	s[13] = '-'
	hex.Encode(s[14:18], u[6:8])
	s[18] = '-'
	hex.Encode(s[19:23], u[8:10])
	s[23] = '-'
	hex.Encode(s[24:], u[10:])
	return string(s[:])
}
