package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"time"
)

type deliveriesCmd struct {
	List      listDeliveriesCmd `cmd:"" help:"List the deliveries of a webhook, newest first."`
	Get       getDeliveryCmd    `cmd:"" help:"Show a delivery with its request and response."`
	Redeliver redeliverCmd      `cmd:"" help:"Send the event of a delivery again."`
	Tail      tailCmd           `cmd:"" help:"Follow the deliveries of a webhook as they happen."`
}

// delivery is a delivery as the API gives it.
type delivery struct {
	DeliveryID     string    `json:"deliveryId"`
	WebhookID      string    `json:"webhookId"`
	EventID        string    `json:"eventId"`
	EventType      string    `json:"eventType"`
	Payload        string    `json:"payload"`
	Attempt        int       `json:"attempt"`
	Trigger        string    `json:"trigger"`
	Success        bool      `json:"success"`
	ResponseStatus int       `json:"responseStatus"`
	ResponseBody   string    `json:"responseBody"`
	DeliveredAt    time.Time `json:"deliveredAt"`
	NextAttemptAt  time.Time `json:"nextAttemptAt"` // null: none
	URL            string    `json:"url"`
	DurationMS     float64   `json:"durationMs"`

	// Not in listings.
	Request struct {
		Headers http.Header
		Curl    string
	} `json:"request"`
	Response struct{ Headers http.Header } `json:"response"`
	Timings  *timings                      `json:"timings"`
}

// timings is where the time of a delivery went, in milliseconds.
type timings struct {
	DNS       float64 `json:"dnsMs"`
	Connect   float64 `json:"connectMs"`
	TLS       float64 `json:"tlsMs"`
	FirstByte float64 `json:"firstByteMs"`
	Total     float64 `json:"totalMs"`
	Reused    bool    `json:"reused"`
	Remote    string  `json:"remoteAddressClass"`
}

func (t *timings) fields() []field {
	if t == nil { // a server that doesn't tell
		return nil
	}
	connection := "new"
	if t.Reused {
		connection = "kept from an earlier request"
	}
	return []field{
		{"address", t.Remote},
		{"connection", connection},
		{"dns", milliseconds(t.DNS)},
		{"connect", milliseconds(t.Connect)},
		{"tls", milliseconds(t.TLS)},
		{"first byte", milliseconds(t.FirstByte)},
		{"total", milliseconds(t.Total)},
	}
}

func milliseconds(ms float64) string {
	return time.Duration(ms * float64(time.Millisecond)).Round(100 * time.Microsecond).String()
}

func (d delivery) duration() string { return milliseconds(d.DurationMS) }

func (d delivery) status() string {
	if d.ResponseStatus == 0 {
		return "-"
	}
	return strconv.Itoa(d.ResponseStatus)
}

func (d delivery) outcome() string { return outcome(d.Success, d.DeliveredAt, d.NextAttemptAt) }

// outcome says in words how a delivery ended.
func outcome(success bool, at, next time.Time) string {
	switch {
	case success:
		return "delivered"
	case next.IsZero():
		return "failed"
	default:
		return fmt.Sprintf("failed, again in %v", next.Sub(at).Round(100*time.Millisecond))
	}
}

type deliveryPage struct {
	Deliveries []delivery `json:"deliveries"`
	NextCursor string     `json:"nextCursor"`
}

func (p deliveryPage) next() string { return p.NextCursor }

func (p deliveryPage) show() error { return deliveryTable(p.Deliveries) }

func deliveryTable(deliveries []delivery) error {
	var rows [][]string
	for _, d := range deliveries {
		rows = append(rows, []string{
			timestamp(d.DeliveredAt), d.DeliveryID, d.EventType, d.Trigger, strconv.Itoa(d.Attempt), d.status(), d.duration(), d.outcome(),
		})
	}
	return table(os.Stdout, []string{"TIME", "DELIVERY", "TYPE", "TRIGGER", "ATTEMPT", "STATUS", "DURATION", "OUTCOME"}, rows)
}

// deliveryFilter is the flags that select deliveries.
type deliveryFilter struct {
	Failed    bool   `xor:"success" env:"-" help:"Only those that failed."`
	Succeeded bool   `xor:"success" env:"-" help:"Only those that succeeded."`
	EventType string `env:"-" placeholder:"TYPE" help:"Only those of events of this type."`
	EventID   string `env:"-" placeholder:"EVENT" help:"Only those of this event."`
}

func (f deliveryFilter) query() url.Values {
	query := url.Values{}
	if f.Failed || f.Succeeded {
		query.Set("success", strconv.FormatBool(f.Succeeded))
	}
	if f.EventType != "" {
		query.Set("eventType", f.EventType)
	}
	if f.EventID != "" {
		query.Set("eventId", f.EventID)
	}
	return query
}

func (f deliveryFilter) matches(d delivery) bool {
	return !(f.Failed && d.Success) && !(f.Succeeded && !d.Success) &&
		(f.EventType == "" || f.EventType == d.EventType) && (f.EventID == "" || f.EventID == d.EventID)
}

// moment is a point in time: RFC 3339, a date, Unix seconds, or a duration before now.
type moment struct{ time.Time }

// UnmarshalText parses a flag's value.
func (m *moment) UnmarshalText(text []byte) error {
	s := string(text)
	if seconds, err := strconv.ParseInt(s, 10, 64); err == nil {
		m.Time = time.Unix(seconds, 0)
		return nil
	}
	if ago, err := time.ParseDuration(s); err == nil {
		m.Time = time.Now().Add(-ago)
		return nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			m.Time = t
			return nil
		}
	}
	return fmt.Errorf("%q is not a time such as 2006-01-02T15:04:05Z, a date such as 2006-01-02 (UTC), or 90m for 90 minutes ago", s)
}

type listDeliveriesCmd struct {
	connection
	repoFlag
	webhookArg
	deliveryFilter
	Since moment `env:"-" placeholder:"TIME" help:"Only those since then: a time, a date, or a duration ago such as 1h."`
	Until moment `env:"-" placeholder:"TIME" help:"Only those before then."`
	paging
}

// Help is what --help shows below the summary.
func (*listDeliveriesCmd) Help() string {
	return `Each attempt is a delivery of its own, so that an event whose delivery was retried is here several times.

    posthorn deliveries list --repo r1 WEBHOOK --failed --since 24h
    posthorn deliveries list --repo r1 WEBHOOK --all --json | jq '.deliveries[].responseStatus'`
}

// Run lists the deliveries.
func (c *listDeliveriesCmd) Run() error {
	query := c.query()
	for name, m := range map[string]moment{"since": c.Since, "until": c.Until} {
		if !m.IsZero() {
			query.Set(name, m.UTC().Format(time.RFC3339Nano))
		}
	}
	return list(c.connection, c.paging, c.path("webhooks", c.Webhook, "deliveries"), query, deliveryPage.show)
}

// deliveryArg is the argument of the commands that work on one delivery.
type deliveryArg struct {
	Delivery string `arg:"" help:"The delivery's ID, as deliveries list shows it."`
}

type getDeliveryCmd struct {
	connection
	repoFlag
	webhookArg
	deliveryArg
	Curl bool `env:"-" help:"Print a curl command that makes the same request, but for what is secret."`
}

// Run shows the delivery.
func (c *getDeliveryCmd) Run() error {
	path := c.path("webhooks", c.Webhook, "deliveries", c.Delivery)
	if c.Curl {
		return perform(c.connection, request{method: http.MethodGet, path: path}, func(d delivery) error {
			if d.Request.Curl == "" {
				return errors.New("there is nothing to make again: the receiver polled, or the payload is no longer stored")
			}
			_, err := fmt.Println(d.Request.Curl)
			return err
		})
	}
	return perform(c.connection, request{method: http.MethodGet, path: path}, func(d delivery) error {
		fields := []field{
			{"delivery", d.DeliveryID},
			{"webhook", d.WebhookID},
			{"event", d.EventID},
			{"type", d.EventType},
			{"trigger", d.Trigger},
			{"attempt", strconv.Itoa(d.Attempt)},
			{"url", d.URL},
			{"time", timestamp(d.DeliveredAt)},
			{"duration", d.duration()},
			{"outcome", d.outcome()},
			{"next attempt", timestamp(d.NextAttemptAt)},
			{"status", d.status()},
			{"response", d.ResponseBody},
			{"payload", d.Payload},
		}
		fields = append(fields, d.Timings.fields()...)
		fields = append(fields, headerFields("> ", d.Request.Headers)...)
		fields = append(fields, headerFields("< ", d.Response.Headers)...)
		return details(fields...)
	})
}

// headerFields returns the headers in the order of their names.
func headerFields(prefix string, h http.Header) []field {
	var fields []field
	for _, name := range slices.Sorted(maps.Keys(h)) {
		for _, value := range h[name] {
			fields = append(fields, field{prefix + printable(name), value})
		}
	}
	return fields
}

// redelivery is the answer to a redelivery.
type redelivery struct {
	delivery
	Ended *bool `json:"success"` // nil: it has no end yet
}

type redeliverCmd struct {
	connection
	repoFlag
	webhookArg
	deliveryArg
	Async bool `env:"-" help:"Don't wait for the end of the run."`
}

// Help is what --help shows below the summary.
func (*redeliverCmd) Help() string {
	return `The event is sent to the webhook's present URL, signed with its present secret, and retried like any other, also when
the webhook is inactive. The command waits for the end of that and fails if all attempts did. With --async, or when it is
interrupted, the run goes on all the same: see posthorn deliveries list. For a webhook that is polled it waits for nothing: the
event comes with the next poll.`
}

// Run asks for the redelivery.
func (c *redeliverCmd) Run() error {
	r := request{method: http.MethodPost, path: c.path("webhooks", c.Webhook, "deliveries", c.Delivery, "redeliver"), wait: true}
	if c.Async {
		r.prefer = "respond-async"
	}
	api, err := c.connect()
	if err != nil {
		return err
	}
	answer, err := api.call(context.Background(), r)
	if err != nil {
		return err
	}
	return decode(answer, func(run redelivery) error {
		fields := []field{{"delivery", run.DeliveryID}}
		if run.Ended != nil {
			run.delivery.Success = *run.Ended
			fields = append(fields, field{"outcome", run.outcome()}, field{"status", run.status()}, field{"response", run.ResponseBody})
		}
		err := c.print(answer, func() error { return details(fields...) })
		if err == nil && run.Ended != nil && !*run.Ended {
			err = errors.New("the redelivery failed")
		}
		return err
	})
}
