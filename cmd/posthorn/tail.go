package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"time"
)

type tailCmd struct {
	connection
	repoFlag
	webhookArg
	deliveryFilter
	Lines    int           `short:"n" env:"-" default:"10" placeholder:"N" help:"Past deliveries to begin with, at most 200 (default ${default})."`
	Interval time.Duration `env:"-" default:"1s" placeholder:"DURATION" help:"How often to look for new ones (default ${default})."`
}

// Help is what --help shows below the summary.
func (*tailCmd) Help() string {
	return `Prints new deliveries in the order of the log, until Ctrl-C. A server that is away for a while, as for a restart, is
waited for.

    posthorn deliveries tail --repo r1 WEBHOOK --failed`
}

// Validate refuses what the API would.
func (c *tailCmd) Validate() error {
	if c.Lines < 0 || c.Lines > 200 {
		return errors.New("--lines is between 0 and 200")
	}
	if c.Interval <= 0 {
		return errors.New("--interval must be more than zero")
	}
	return nil
}

// Run follows the log until a signal comes.
func (c *tailCmd) Run() error {
	api, err := c.connect()
	if err != nil {
		return err
	}
	ctx, stop := untilSignal()
	defer stop()
	t := tail{api: api, path: c.path("webhooks", c.Webhook, "deliveries")}
	deliveries, err := t.begin(ctx, c.query(), c.Lines)
	if err != nil {
		return unlessDone(ctx, err)
	}
	if !c.JSON {
		fmt.Printf(tailColumns, "TIME", "DELIVERY", "TYPE", "TRIGGER", "ATTEMPT", "STATUS", "DURATION", "OUTCOME")
	}
	tick := time.NewTicker(c.Interval)
	defer tick.Stop()
	for away := false; ; {
		for _, d := range deliveries {
			if err := c.show(d); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		deliveries, err = t.more(ctx)
		if no, ok := errors.AsType[*problem](err); ok && no.Status < 500 {
			return err
		}
		if err != nil && !away && ctx.Err() == nil {
			fmt.Fprintln(os.Stderr, "posthorn:", err)
		}
		away = err != nil
	}
}

// tailColumns is the format of a line about a delivery.
const tailColumns = "%-20s  %-36s  %-12s  %-10s  %-7s  %-6s  %-8s  %s\n"

// show prints a delivery, if it is one that was asked for.
func (c *tailCmd) show(raw json.RawMessage) error {
	return decode(raw, func(d delivery) error {
		if !c.matches(d) {
			return nil
		}
		return c.print(raw, func() error {
			_, err := fmt.Printf(tailColumns, timestamp(d.DeliveredAt), printable(d.DeliveryID),
				printable(d.EventType), d.Trigger, strconv.Itoa(d.Attempt), d.status(), d.duration(), d.outcome())
			return err
		})
	})
}

// tail reads a webhook's log forwards, which the API lists backwards.
type tail struct {
	api  *client
	path string
	last delivery // the newest that was read
}

// rawPage is a page of deliveries as the API gave them.
type rawPage struct {
	Deliveries []json.RawMessage `json:"deliveries"`
	NextCursor string            `json:"nextCursor"`
}

func (t *tail) page(ctx context.Context, query url.Values) (page rawPage, err error) {
	answer, err := t.api.call(ctx, request{method: http.MethodGet, path: t.path, query: query})
	if err != nil {
		return page, err
	}
	return page, json.Unmarshal(answer, &page)
}

// begin returns the newest deliveries that match, and perhaps some that came while it looked, oldest first. What more
// returns later comes after them.
func (t *tail) begin(ctx context.Context, query url.Values, lines int) ([]json.RawMessage, error) {
	newest, err := t.page(ctx, url.Values{"limit": {"1"}})
	if err != nil {
		return nil, err
	}
	for _, raw := range newest.Deliveries {
		if err := json.Unmarshal(raw, &t.last); err != nil {
			return nil, err
		}
	}
	if lines == 0 {
		return nil, nil
	}
	query.Set("limit", strconv.Itoa(lines))
	page, err := t.page(ctx, query)
	if err != nil {
		return nil, err
	}
	// What was logged between the two requests above is in both of these.
	later, err := t.more(ctx)
	if err != nil {
		return nil, err
	}
	past := slices.DeleteFunc(page.Deliveries, func(raw json.RawMessage) bool {
		return slices.ContainsFunc(later, func(l json.RawMessage) bool { return bytes.Equal(l, raw) })
	})
	slices.Reverse(past)
	return append(past, later...), nil
}

// more returns what was logged since the last call, oldest first.
func (t *tail) more(ctx context.Context) ([]json.RawMessage, error) {
	query := url.Values{"limit": {"10"}} // mostly little is new, and payloads may be large
	if !t.last.DeliveredAt.IsZero() {
		// The log is in the order of recording, from which that of the times differs a little.
		query.Set("since", t.last.DeliveredAt.Add(-10*time.Minute).Format(time.RFC3339Nano))
	}
	var found []json.RawMessage
	newest := t.last
	for first := true; ; {
		page, err := t.page(ctx, query)
		if err != nil {
			return nil, err
		}
		for _, raw := range page.Deliveries {
			var d delivery
			if err := json.Unmarshal(raw, &d); err != nil {
				return nil, err
			}
			if d.DeliveryID == t.last.DeliveryID {
				page.NextCursor = ""
				break
			}
			if first {
				first, newest = false, d
			}
			found = append(found, raw)
		}
		if page.NextCursor == "" {
			t.last = newest
			slices.Reverse(found)
			return found, nil
		}
		query.Set("cursor", page.NextCursor)
		query.Set("limit", "200")
	}
}
