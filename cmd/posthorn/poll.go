package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"
)

type pollCmd struct {
	connection
	repoFlag
	webhookArg
	Follow bool          `short:"f" env:"-" help:"Go on for ever: print each event as a line of JSON and acknowledge it."`
	Wait   time.Duration `env:"-" default:"0s" placeholder:"DURATION" help:"How long to wait where there is no event, at most 1m (default ${default})."`
	Cursor string        `env:"-" placeholder:"CURSOR" help:"Acknowledges the events that an earlier poll has returned with it."`
	Limit  int           `env:"-" default:"50" placeholder:"N" help:"How many events at most, up to 200 (default ${default})."`
}

// Help is what --help shows below the summary.
func (*pollCmd) Help() string {
	return `For webhooks made with --polled. Each event is returned until it is acknowledged, so it comes at least once.

    posthorn poll --repo r1 WEBHOOK --json
    posthorn poll --repo r1 WEBHOOK --json --wait 30s --cursor CURSOR
    posthorn poll --repo r1 WEBHOOK --follow | while read -r event; do …; done

The first shows events and a cursor; the second acknowledges these events and asks for more. With --follow an event counts as done with as
soon as it has been printed.`
}

// polledPage is the API's answer to a poll. The events are passed on as they are.
type polledPage struct {
	Events []json.RawMessage
	Cursor string
}

// Run polls.
func (c *pollCmd) Run() error {
	if c.Follow {
		return c.follow()
	}
	return perform(c.connection, c.request(c.Cursor, c.Wait), func(page polledPage) error {
		var rows [][]string
		for _, raw := range page.Events {
			var e event
			if err := json.Unmarshal(raw, &e); err != nil {
				return err
			}
			rows = append(rows, []string{timestamp(e.CreatedAt), e.EventID, e.EventType, abbreviate(e.Payload, 60)})
		}
		if err := table(os.Stdout, []string{"TIME", "EVENT", "TYPE", "PAYLOAD"}, rows); err != nil || page.Cursor == "" {
			return err
		}
		_, err := fmt.Println("cursor:", page.Cursor)
		return err
	})
}

func (c *pollCmd) request(cursor string, wait time.Duration) request {
	query := url.Values{"wait": {wait.String()}, "limit": {strconv.Itoa(c.Limit)}}
	if cursor != "" {
		query.Set("cursor", cursor)
	}
	return request{method: http.MethodGet, path: c.path("webhooks", c.Webhook, "poll"), query: query, wait: true}
}

func (c *pollCmd) follow() error {
	api, err := c.connect()
	if err != nil {
		return err
	}
	ctx, stop := untilSignal()
	defer stop()
	cursor := c.Cursor
	for ctx.Err() == nil {
		answer, err := api.call(ctx, c.request(cursor, followWait))
		if ctx.Err() != nil && err != nil {
			break
		}
		if err != nil {
			return err
		}
		var page polledPage
		if err := json.Unmarshal(answer, &page); err != nil {
			return err
		}
		for _, e := range page.Events {
			if _, err := fmt.Printf("%s\n", e); err != nil {
				return err
			}
		}
		cursor = page.Cursor
	}
	if cursor == "" {
		return nil
	}
	// What was printed shall not come again. To acknowledge it twice does no harm.
	_, err = api.call(context.WithoutCancel(ctx), c.request(cursor, 0))
	return err
}

// followWait is how long one request of --follow waits.
const followWait = 30 * time.Second
