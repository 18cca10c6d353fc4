package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/musehub/posthorn"
)

type dispatchCmd struct {
	connection
	repoFlag
	Type        string `short:"t" env:"-" required:"" placeholder:"TYPE" help:"Type of the event: see posthorn event-types."`
	ID          string `name:"id" env:"-" placeholder:"ID" help:"The event's ID. Dispatching the same one again sends nothing twice (default a new one)."`
	Key         string `name:"ordering-key" env:"-" placeholder:"KEY" help:"What the event is about: webhooks with --ordering key get those of one key one after the other."`
	TraceParent string `name:"traceparent" env:"TRACEPARENT" placeholder:"TRACE" help:"W3C trace context that the receiver gets."`
	Payload     string `arg:"" optional:"" default:"{}" help:"The payload: JSON, @FILE, or - for standard input (default ${default})."`
}

// Help is what --help shows below the summary.
func (*dispatchCmd) Help() string {
	return `The payload becomes the body of the requests as it is, to the last byte.

    posthorn dispatch --repo r1 --type push '{"repoId":"r1","branch":"main","commitCount":3}'
    posthorn dispatch --repo r1 --type push @push.json
    make-payload | posthorn dispatch --repo r1 --type push --id build-4711 -`
}

// Run dispatches the event.
func (c *dispatchCmd) Run() error {
	payload, err := readPayload(c.Payload)
	if err != nil {
		return err
	}
	body, err := eventBody(c.Type, c.ID, c.Key, payload)
	if err != nil {
		return err
	}
	return perform(c.connection, request{method: http.MethodPost, path: c.path("events"), body: body, header: map[string]string{"traceparent": c.TraceParent}}, receipt.show)
}

// readPayload reads what a command was given as a payload.
func readPayload(given string) ([]byte, error) {
	if file, ok := strings.CutPrefix(given, "@"); ok {
		return os.ReadFile(file)
	}
	if given == "-" {
		return io.ReadAll(os.Stdin)
	}
	return []byte(given), nil
}

// eventBody returns the body of the request that dispatches an event. It is put together by hand because package json
// would reformat the payload.
func eventBody(eventType, id, key string, payload []byte) ([]byte, error) {
	if !json.Valid(payload) {
		return nil, errors.New("the payload is not valid JSON")
	}
	head, err := json.Marshal(struct {
		EventType string `json:"eventType"`
		EventID   string `json:"eventId,omitempty"`
		Key       string `json:"orderingKey,omitempty"`
	}{eventType, id, key})
	if err != nil {
		return nil, err
	}
	return slices.Concat(bytes.TrimSuffix(head, []byte("}")), []byte(`,"payload":`), payload, []byte("}")), nil
}

type eventsCmd struct {
	List listEventsCmd `cmd:"" help:"List the events of a repo, newest first."`
	Get  getEventCmd   `cmd:"" help:"Show an event with its payload."`
}

// event is an event as the API gives it.
type event struct {
	EventID    string    `json:"eventId"`
	RepoID     string    `json:"repoId"`
	EventType  string    `json:"eventType"`
	Payload    string    `json:"payload"`
	Deliveries int       `json:"deliveries"`
	CreatedAt  time.Time `json:"createdAt"`

	OrderingKey, TraceParent string
}

type eventPage struct {
	Events     []event `json:"events"`
	NextCursor string  `json:"nextCursor"`
}

func (p eventPage) next() string { return p.NextCursor }

type listEventsCmd struct {
	connection
	repoFlag
	paging
}

// Run lists the events.
func (c *listEventsCmd) Run() error {
	return list(c.connection, c.paging, c.path("events"), url.Values{}, func(p eventPage) error {
		var rows [][]string
		for _, e := range p.Events {
			rows = append(rows, []string{timestamp(e.CreatedAt), e.EventID, e.EventType, strconv.Itoa(e.Deliveries), abbreviate(e.Payload, 60)})
		}
		return table(os.Stdout, []string{"TIME", "EVENT", "TYPE", "WEBHOOKS", "PAYLOAD"}, rows)
	})
}

type getEventCmd struct {
	connection
	repoFlag
	Event string `arg:"" help:"The event's ID."`
}

// Run shows the event.
func (c *getEventCmd) Run() error {
	return perform(c.connection, request{method: http.MethodGet, path: c.path("events", c.Event)}, func(e event) error {
		return details(
			field{"event", e.EventID},
			field{"repo", e.RepoID},
			field{"type", e.EventType},
			field{"accepted", timestamp(e.CreatedAt)},
			field{"webhooks", strconv.Itoa(e.Deliveries)},
			field{"orderingKey", e.OrderingKey},
			field{"traceparent", e.TraceParent},
			field{"payload", e.Payload},
		)
	})
}

type whyCmd struct {
	connection
	repoFlag
	Event   string `arg:"" help:"The event's ID."`
	Webhook string `arg:"" optional:"" help:"The webhook's ID; without one, the first 200 of the repo."`
}

// Help is what --help shows below the summary.
func (*whyCmd) Help() string {
	return `For each webhook: whether it got the event, and why or why not, and what happens next and when.

    posthorn why --repo r1 EVENT
    posthorn why --repo r1 EVENT WEBHOOK

The delivery log and the queue tell what was done and is to come. What they don't tell is concluded from the webhook as it is now.`
}

// Run asks the server.
func (c *whyCmd) Run() error {
	query := url.Values{}
	if c.Webhook != "" {
		query.Set("webhookId", c.Webhook)
	}
	path := c.path("events", c.Event, "explain") + "?" + query.Encode()
	return perform(c.connection, request{method: http.MethodGet, path: path}, func(answer struct {
		Webhooks []struct {
			WebhookID, State, Reason string
			Attempts                 int
			NextAttemptAt            time.Time
		}
		More bool
	}) error {
		if answer.More {
			fmt.Fprintln(os.Stderr, "These are not all webhooks of the repo. Ask for another one by its ID.")
		}
		var rows [][]string
		for _, w := range answer.Webhooks {
			rows = append(rows, []string{w.WebhookID, w.State, strconv.Itoa(w.Attempts), timestamp(w.NextAttemptAt), w.Reason})
		}
		return table(os.Stdout, []string{"WEBHOOK", "STATE", "ATTEMPTS", "NEXT", "REASON"}, rows)
	})
}

type filterTestCmd struct {
	connection
	repoFlag
	Filter string `arg:"" help:"The expression."`
	Limit  int    `env:"-" default:"100" placeholder:"N" help:"How many of the newest events it is tried on, at most 200 (default ${default})."`
}

// Help is what --help shows below the summary.
func (*filterTestCmd) Help() string {
	return `An expression in CEL says which events a webhook wants (webhooks create --filter). It can name id, type and payload:

    posthorn filter-test --repo r1 'payload.branch == "main" && payload.commitCount > 1'
    posthorn filter-test --repo r1 'has(payload.labels) && payload.labels.exists(l, l == "bug")'

Where it can't be evaluated, as for a field that isn't there, the webhook would not get the event. Nothing is sent.`
}

// Run asks the server.
func (c *filterTestCmd) Run() error {
	body := map[string]any{"filter": c.Filter, "limit": c.Limit}
	return perform(c.connection, request{method: http.MethodPost, path: c.path("filter-test"), body: body}, func(tested struct {
		Matched int
		Events  []struct {
			EventID, EventType, Error string
			CreatedAt                 time.Time
			Matches                   bool
		}
	}) error {
		var rows [][]string
		for _, e := range tested.Events {
			rows = append(rows, []string{timestamp(e.CreatedAt), e.EventID, e.EventType, yesNo(e.Matches), abbreviate(e.Error, 60)})
		}
		return table(os.Stdout, []string{"TIME", "EVENT", "TYPE", "MATCHES", "ERROR"}, rows)
	})
}

type eventTypesCmd struct {
	connection
}

// Run lists the event types of the server.
func (c *eventTypesCmd) Run() error {
	return perform(c.connection, request{method: http.MethodGet, path: "/event-types"}, func(answer struct {
		EventTypes []string `json:"eventTypes"`
		Catalogue  []posthorn.EventType
	}) error {
		described := func(t posthorn.EventType) bool { return t.Description != "" || t.Schema != nil }
		if !slices.ContainsFunc(answer.Catalogue, described) {
			_, err := fmt.Println(strings.Join(answer.EventTypes, "\n"))
			return err
		}
		var rows [][]string
		for _, t := range answer.Catalogue {
			rows = append(rows, []string{t.Name, yesNo(t.Schema != nil), strconv.Itoa(len(t.Examples)), t.Description})
		}
		return table(os.Stdout, []string{"TYPE", "SCHEMA", "EXAMPLES", "DESCRIPTION"}, rows)
	})
}
