package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

type webhooksCmd struct {
	Create createWebhookCmd `cmd:"" help:"Subscribe a URL to events of a repo."`
	List   listWebhooksCmd  `cmd:"" help:"List the webhooks of a repo."`
	Get    getWebhookCmd    `cmd:"" help:"Show a webhook."`
	Update updateWebhookCmd `cmd:"" help:"Change a webhook."`
	Delete deleteWebhookCmd `cmd:"" help:"Delete a webhook, with what is queued for it and its delivery log."`
	Ping   pingWebhookCmd   `cmd:"" help:"Send a webhook an event of type ping."`
	Test   testWebhookCmd   `cmd:"" help:"Send a webhook an event that no other gets."`
}

// webhook is a webhook as the API gives it.
type webhook struct {
	WebhookID   string    `json:"webhookId"`
	RepoID      string    `json:"repoId"`
	URL         string    `json:"url"`
	Events      []string  `json:"events"`
	Active      bool      `json:"active"`
	Description string    `json:"description"`
	HasSecret   bool      `json:"hasSecret"`
	CreatedAt   time.Time `json:"createdAt"`
	UpdatedAt   time.Time `json:"updatedAt"`
	TLS         struct{ MinVersion, RootCAs, Certificate string }

	DisabledReason                     string
	FailingSince                       time.Time
	RetryPolicy, FinalStatuses, Filter string
	Ordering                           string
	KeepWhileInactive, Polled          bool
	Headers                            map[string]string
	GitHubSignature, IdempotencyKey    bool
	Timeout, MaxInFlight, MaxPerSecond int
}

func (w webhook) show() error {
	return details(
		field{"webhook", w.WebhookID},
		field{"repo", w.RepoID},
		field{"url", w.URL},
		field{"polled", ifTrue(w.Polled, "yes")},
		field{"events", strings.Join(w.Events, ",")},
		field{"active", yesNo(w.Active)},
		field{"signed", yesNo(w.HasSecret)},
		field{"disabled because", w.DisabledReason},
		field{"failing since", timestamp(w.FailingSince)},
		field{"description", w.Description},
		field{"filter", w.Filter},
		field{"ordering", w.Ordering},
		field{"keeps events", ifTrue(w.KeepWhileInactive, "while inactive")},
		field{"headers", strings.Join(slices.Sorted(maps.Keys(w.Headers)), ", ")},
		field{"also sends", strings.Join(w.also(), ", ")},
		field{"retry policy", w.RetryPolicy},
		field{"final statuses", w.FinalStatuses},
		field{"timeout", unlessZero(w.Timeout, " s")},
		field{"most in flight", unlessZero(w.MaxInFlight, "")},
		field{"most in a second", unlessZero(w.MaxPerSecond, "")},
		field{"least TLS", w.TLS.MinVersion},
		field{"authorities", subjects(w.TLS.RootCAs)},
		field{"shows certificate", subjects(w.TLS.Certificate)},
		field{"created", timestamp(w.CreatedAt)},
		field{"updated", timestamp(w.UpdatedAt)},
	)
}

// also are the headers that it is sent besides the usual ones.
func (w webhook) also() (names []string) {
	if w.GitHubSignature {
		names = append(names, "X-Hub-Signature-256")
	}
	if w.IdempotencyKey {
		names = append(names, "Idempotency-Key")
	}
	return names
}

func ifTrue(b bool, text string) string {
	if !b {
		return ""
	}
	return text
}

func unlessZero(n int, unit string) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n) + unit
}

type webhookPage struct {
	Webhooks   []webhook `json:"webhooks"`
	NextCursor string    `json:"nextCursor"`
}

func (p webhookPage) next() string { return p.NextCursor }

// webhookArg is the argument of the commands that work on one webhook.
type webhookArg struct {
	Webhook string `arg:"" help:"The webhook's ID, as webhooks list shows it."`
}

type createWebhookCmd struct {
	connection
	repoFlag
	URL            string   `name:"url" env:"-" xor:"url" required:"" placeholder:"URL" help:"Where the events are POSTed to."`
	Polled         bool     `env:"-" xor:"url" required:"" help:"The receiver asks for its events by posthorn poll, or the API, as one behind a firewall does."`
	Event          []string `short:"e" env:"-" required:"" placeholder:"TYPE" help:"Event type to subscribe to, a pattern such as 'issue.*', or '*' for all. Can be repeated."`
	Secret         string   `xor:"secret" placeholder:"SECRET" help:"Secret that signs the deliveries. Without one they are not signed."`
	GenerateSecret bool     `xor:"secret" env:"-" help:"Make a good secret and print it, this once."`
	GenerateKey    bool     `xor:"secret" env:"-" help:"Make an Ed25519 key and print its public part: the receiver can verify and not sign."`
	Description    string   `env:"-" placeholder:"TEXT" help:"What the webhook is for."`
	webhookOptions
}

// Help is what --help shows below the summary.
func (*createWebhookCmd) Help() string {
	return `From now on, events of these types are delivered there. Past ones are not.

    posthorn webhooks create --repo r1 --url https://example.com/hook -e push -e issue --generate-secret
    POSTHORN_SECRET=… posthorn webhooks create --repo r1 --url https://example.com/hook -e '*'

Better give a secret as POSTHORN_SECRET: on the command line it shows in the list of processes. What a receiver does with
it shows posthorn verify.`
}

// Run creates the webhook.
func (c *createWebhookCmd) Run() error {
	body := map[string]any{"events": c.Event, "description": c.Description}
	if c.Polled {
		body["polled"] = true
	} else {
		body["url"] = c.URL
	}
	if err := c.webhookOptions.add(body); err != nil {
		return err
	}
	switch {
	case c.GenerateSecret:
		body["generateSecret"] = "hmac"
	case c.GenerateKey:
		body["generateSecret"] = "ed25519"
	case c.Secret != "":
		body["secret"] = c.Secret
	}
	type created struct {
		webhook
		issued
	}
	return perform(c.connection, request{method: http.MethodPost, path: c.path("webhooks"), body: body}, func(w created) error {
		if err := w.webhook.show(); err != nil {
			return err
		}
		return w.issued.show()
	})
}

type listWebhooksCmd struct {
	connection
	repoFlag
	paging
}

// Run lists the webhooks, oldest first.
func (c *listWebhooksCmd) Run() error {
	return list(c.connection, c.paging, c.path("webhooks"), url.Values{}, func(p webhookPage) error {
		var rows [][]string
		for _, w := range p.Webhooks {
			rows = append(rows, []string{w.WebhookID, yesNo(w.Active), yesNo(w.HasSecret), strings.Join(w.Events, ","), cmp.Or(w.URL, "(polled)"), w.Description})
		}
		return table(os.Stdout, []string{"WEBHOOK", "ACTIVE", "SIGNED", "EVENTS", "URL", "DESCRIPTION"}, rows)
	})
}

type getWebhookCmd struct {
	connection
	repoFlag
	webhookArg
}

// Run shows the webhook.
func (c *getWebhookCmd) Run() error {
	return perform(c.connection, request{method: http.MethodGet, path: c.path("webhooks", c.Webhook)}, webhook.show)
}

type updateWebhookCmd struct {
	connection
	repoFlag
	webhookArg
	URL           *string        `name:"url" env:"-" placeholder:"URL" help:"Where the events are POSTed to from now on, what is queued included."`
	Event         []string       `short:"e" env:"-" placeholder:"TYPE" help:"Event type to subscribe to instead of the former ones, or '*' for all. Can be repeated."`
	Activate      bool           `xor:"active" env:"-" help:"Deliver again."`
	Deactivate    bool           `xor:"active" env:"-" help:"Deliver no more. What is queued waits until the webhook is active again."`
	Secret        *string        `env:"POSTHORN_NEW_SECRET" placeholder:"SECRET" help:"Secret that signs the deliveries from now on. The empty string: sign no more."`
	SecretOverlap *time.Duration `env:"-" placeholder:"DURATION" help:"How long the former secret goes on signing beside the new one (default 24h)."`
	Description   *string        `env:"-" placeholder:"TEXT" help:"What the webhook is for."`
	webhookOptions
	NoHeaders bool `env:"-" help:"Remove the headers of its own."`
	NoTLS     bool `name:"no-tls" env:"-" help:"Connect as to all others: remove what the webhook has of its own for TLS."`
}

// Help is what --help shows below the summary.
func (*updateWebhookCmd) Help() string {
	return `What isn't given stays as it is, but the flags for TLS replace all that there was for it. The key can be left out if
the certificate is the same.

    posthorn webhooks update --repo r1 WEBHOOK --deactivate
    posthorn webhooks update --repo r1 WEBHOOK --event push --event release
    POSTHORN_NEW_SECRET=… posthorn webhooks update --repo r1 WEBHOOK --secret-overlap 72h

While both secrets sign, receivers can change from the one to the other without refusing a delivery.`
}

// body is the patch, with the fields that were given.
func (c *updateWebhookCmd) body() (map[string]any, error) {
	body := map[string]any{}
	if err := c.webhookOptions.add(body); err != nil {
		return nil, err
	}
	if c.NoTLS {
		if body["tls"] != nil {
			return nil, errors.New("--no-tls does not go with other flags for TLS")
		}
		body["tls"] = tlsBody{}
	}
	if c.NoHeaders {
		if body["headers"] != nil {
			return nil, errors.New("--no-headers does not go with --header")
		}
		body["headers"] = map[string]string{}
	}
	given(body, "url", c.URL)
	if c.Event != nil {
		body["events"] = c.Event
	}
	if c.Activate || c.Deactivate {
		body["active"] = c.Activate
	}
	given(body, "secret", c.Secret)
	if c.SecretOverlap != nil {
		body["secretOverlap"] = wholeSeconds(*c.SecretOverlap)
	}
	given(body, "description", c.Description)
	return body, nil
}

// Validate refuses a command that would change nothing.
func (c *updateWebhookCmd) Validate() error {
	if body, err := c.body(); err != nil || len(body) == 0 {
		return cmp.Or(err, errors.New("nothing to change was given"))
	}
	if c.SecretOverlap != nil && c.Secret == nil {
		return errors.New("--secret-overlap goes with --secret")
	}
	return nil
}

// Run changes the webhook.
func (c *updateWebhookCmd) Run() error {
	body, err := c.body()
	if err != nil {
		return err
	}
	return perform(c.connection, request{method: http.MethodPatch, path: c.path("webhooks", c.Webhook), body: body}, webhook.show)
}

type deleteWebhookCmd struct {
	connection
	repoFlag
	webhookArg
}

// Run deletes the webhook.
func (c *deleteWebhookCmd) Run() error {
	api, err := c.connect()
	if err != nil {
		return err
	}
	answer, err := api.call(context.Background(), request{method: http.MethodDelete, path: c.path("webhooks", c.Webhook)})
	if err != nil {
		return err
	}
	return c.print(answer, func() error {
		_, err := fmt.Println("deleted", printable(c.Webhook))
		return err
	})
}

type pingWebhookCmd struct {
	connection
	repoFlag
	webhookArg
}

// Help is what --help shows below the summary.
func (*pingWebhookCmd) Help() string {
	return `The ping is delivered and retried like any event. What came of it is in the log: posthorn deliveries list.`
}

// Run sends the ping.
func (c *pingWebhookCmd) Run() error {
	return perform(c.connection, request{method: http.MethodPost, path: c.path("webhooks", c.Webhook, "ping")}, receipt.show)
}

type testWebhookCmd struct {
	connection
	repoFlag
	webhookArg
	Type    string `short:"t" env:"-" required:"" placeholder:"TYPE" help:"Type of the event: see posthorn event-types."`
	Payload string `arg:"" optional:"" help:"The payload: JSON, @FILE, or - for standard input. Without one it is the catalogue's first example of the type."`
}

// Help is what --help shows below the summary.
func (*testWebhookCmd) Help() string {
	return `The event is delivered and retried like any other, whatever the webhook subscribes to. What came of it is in the log:
posthorn deliveries list.

    posthorn webhooks test --repo r1 WEBHOOK --type push
    posthorn webhooks test --repo r1 WEBHOOK --type push '{"branch":"main"}'`
}

// Run sends the test.
func (c *testWebhookCmd) Run() error {
	var body any = map[string]any{"eventType": c.Type}
	if c.Payload != "" {
		payload, err := readPayload(c.Payload)
		if err != nil {
			return err
		}
		if body, err = eventBody(c.Type, "", "", payload); err != nil {
			return err
		}
	}
	return perform(c.connection, request{method: http.MethodPost, path: c.path("webhooks", c.Webhook, "test"), body: body}, receipt.show)
}

// receipt is the API's answer to an event.
type receipt struct {
	EventID    string `json:"eventId"`
	Deliveries int    `json:"deliveries"`
}

func (r receipt) show() error {
	return details(field{"event", r.EventID}, field{"deliveries", strconv.Itoa(r.Deliveries)})
}

type checkURLCmd struct {
	connection
	URL string `arg:"" help:"The URL."`
}

// Help is what --help shows below the summary.
func (*checkURLCmd) Help() string {
	return `The server looks the host up and connects to nothing. What it answers names the rule that decides, and the flag of
posthorn serve that would change it, if one would. The exit code is 1
if nothing would be sent, but with --json, where the answer says it.`
}

// Run asks the server.
func (c *checkURLCmd) Run() error {
	body := map[string]string{"url": c.URL}
	return perform(c.connection, request{method: http.MethodPost, path: "/check-url", body: body}, func(check struct {
		Deliverable                 bool
		Phase, Reason, Rule, Remedy string
	}) error {
		if !check.Deliverable {
			return fmt.Errorf("nothing would be sent: %s: %s", check.Phase, printable(check.Reason))
		}
		_, err := fmt.Println("requests would be sent")
		return err
	})
}
