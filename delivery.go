package posthorn

import (
	"context"
	"encoding/json"
	"net/http"
	"time"
)

// Trigger says why a delivery was made.
type Trigger string

// The triggers. What was asked for by hand goes before what is queued, and goes to inactive webhooks too.
const (
	TriggerAutomatic  Trigger = "automatic"  // an event was dispatched to the webhook's subscribers
	TriggerRedelivery Trigger = "redelivery" // a past delivery's event was sent again by hand
	TriggerPing       Trigger = "ping"       // a ping was asked for by hand
)

// Delivery is one HTTP attempt of one event to one webhook: a row of the delivery log.
type Delivery struct {
	Seq       int64  // the store's number for it, ascending in the order of recording
	ID        string // derived from event, webhook, run and attempt; sent as X-MuseHub-Delivery
	WebhookID string
	EventID   string
	EventType string
	Payload   json.RawMessage // the exact body; nil once the event has been pruned

	Trigger Trigger
	Run     int64 // zero: the event's own run; each redelivery is another
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
	Header  http.Header `json:"header,omitempty"`  // of the response
	Timings Timings     `json:"timings"`
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
