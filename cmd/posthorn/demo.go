package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/musehub"
)

const (
	demoRepo = "demo"
	// demoPatience is how long the deliveries may take that the demo waits for.
	demoPatience = time.Minute
)

type demoCmd struct {
	Exit bool `env:"-" help:"End after the tables, with exit code 1 unless every event arrived and was verified."`
}

// Help is what --help shows below the summary.
func (*demoCmd) Help() string {
	return `Starts a server on a temporary database, and two receivers: one that answers at once, and one that fails twice before it
takes an event. It subscribes both, dispatches a few of MuseHub's events, and shows each delivery as it happens, the
retries included. All of it is real and goes over HTTP, on this machine.

After that the server goes on for you to try things out, until Ctrl-C. Nothing stays behind.`
}

// Run shows the demo.
func (c *demoCmd) Run() (err error) {
	limitMemory()
	ctx, stop := untilSignal()
	defer stop()
	dir, err := os.MkdirTemp("", "posthorn-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	d := &demo{deliveries: make(chan posthorn.Delivery, 1024)}
	defer d.close()
	if err = d.start(ctx, filepath.Join(dir, "data")); err == nil {
		err = d.show(ctx)
	}
	if c.Exit {
		return err
	}
	if err != nil {
		return unlessDone(ctx, err)
	}
	d.invite()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-d.server.failed:
			return err
		case delivery := <-d.deliveries:
			d.line(delivery)
		}
	}
}

// demo is a server with two receivers.
type demo struct {
	server     *daemon
	api        *client
	steady     *demoReceiver
	flaky      *demoReceiver
	deliveries chan posthorn.Delivery // as they are logged
}

func (d *demo) receivers() []*demoReceiver { return []*demoReceiver{d.steady, d.flaky} }

// start starts the receivers and the server, and subscribes the ones at the other.
func (d *demo) start(ctx context.Context, data string) (err error) {
	if d.steady, err = startDemoReceiver(ctx, "steady", 0); err != nil {
		return err
	}
	if d.flaky, err = startDemoReceiver(ctx, "flaky", 2); err != nil {
		return err
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	d.server, err = startDaemon(ctx, daemonConfig{
		listen: "127.0.0.1:0",
		data:   data,
		limits: apiLimits{HeaderTimeout: 10 * time.Second, RequestTimeout: time.Minute, AnswerTimeout: 2 * time.Minute, IdleTimeout: time.Minute},
		logger: logger,
		posthorn: posthorn.Config{
			AllowTargets: []string{d.steady.addr, d.flaky.addr},
			Logger:       logger,
			OnDelivery: func(delivery posthorn.Delivery) {
				select {
				case d.deliveries <- delivery:
				default: // recording must not wait for a terminal
				}
			},
		},
	})
	if err != nil {
		return err
	}
	if d.api, err = (connection{Server: d.server.url, Token: d.server.token}).connect(); err != nil {
		return err
	}
	fmt.Printf("The server listens on %s. It knows two webhooks of the repo %q:\n", d.server.url, demoRepo)
	for _, r := range d.receivers() {
		if err := d.subscribe(ctx, r); err != nil {
			return err
		}
		fmt.Printf("    %-7s %s  %s\n", r.name, r.url(), r.about)
	}
	return nil
}

func (d *demo) subscribe(ctx context.Context, r *demoReceiver) error {
	answer, err := d.api.call(ctx, request{
		method: http.MethodPost,
		path:   repoFlag{demoRepo}.path("webhooks"),
		body:   map[string]any{"url": r.url(), "events": []string{posthorn.AllEvents}, "secret": r.secret, "description": r.about},
	})
	if err != nil {
		return err
	}
	return decode(answer, func(w webhook) error {
		r.webhookID = w.WebhookID
		return nil
	})
}

// show dispatches the events and prints each delivery, and at the end the log of one webhook.
func (d *demo) show(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, demoPatience)
	defer cancel()
	events := demoEvents()
	fmt.Printf("Dispatching %d events:\n\n", len(events))
	fmt.Printf(demoColumns, "TIME", "EVENT", "WEBHOOK", "ATTEMPT", "STATUS", "DURATION", "OUTCOME")
	missing := map[string]string{} // event and webhook to words for it
	for _, e := range events {
		accepted, err := d.dispatch(ctx, e)
		if err != nil {
			return err
		}
		for _, r := range d.receivers() {
			missing[accepted.EventID+r.webhookID] = e.Type + " to " + r.name
		}
	}
	for len(missing) > 0 {
		select {
		case delivery := <-d.deliveries:
			d.line(delivery)
			r := d.receiver(delivery.WebhookID)
			if r == nil || !delivery.Success {
				break
			}
			if !r.hasVerified(delivery.EventID) {
				return fmt.Errorf("the receiver %q got no request for the event %s whose signature was right", r.name, delivery.EventID)
			}
			delete(missing, delivery.EventID+r.webhookID)
		case <-ctx.Done():
			return fmt.Errorf("not delivered: %s", strings.Join(slices.Sorted(maps.Values(missing)), ", "))
		case err := <-d.server.failed:
			return err
		}
	}
	fmt.Printf("\nAll have arrived, and the receivers have verified the signatures. The delivery log of %q, newest first:\n\n", d.flaky.name)
	answer, err := d.api.call(ctx, request{
		method: http.MethodGet,
		path:   repoFlag{demoRepo}.path("webhooks", d.flaky.webhookID, "deliveries"),
	})
	if err != nil {
		return err
	}
	return decode(answer, deliveryPage.show)
}

func (d *demo) dispatch(ctx context.Context, e posthorn.Event) (accepted receipt, err error) {
	payload, err := json.Marshal(e.Payload)
	if err != nil {
		return accepted, err
	}
	body, err := eventBody(e.Type, "", "", payload)
	if err != nil {
		return accepted, err
	}
	answer, err := d.api.call(ctx, request{method: http.MethodPost, path: repoFlag{demoRepo}.path("events"), body: body})
	if err != nil {
		return accepted, err
	}
	return accepted, json.Unmarshal(answer, &accepted)
}

// demoColumns is the format of a line about a delivery.
const demoColumns = "%-12s  %-12s  %-8s  %-7s  %-6s  %-8s  %s\n"

func (d *demo) line(delivery posthorn.Delivery) {
	name := abbreviate(delivery.WebhookID, 8)
	if r := d.receiver(delivery.WebhookID); r != nil {
		name = r.name
	}
	status := "-"
	if delivery.ResponseStatus != 0 {
		status = strconv.Itoa(delivery.ResponseStatus)
	}
	fmt.Printf(demoColumns, delivery.DeliveredAt.Local().Format("15:04:05.000"), delivery.EventType, name, strconv.Itoa(delivery.Attempt),
		status, delivery.Exchange.Timings.Total.Round(10*time.Microsecond),
		outcome(delivery.Success, delivery.DeliveredAt, delivery.NextAttemptAt))
}

func (d *demo) receiver(webhookID string) *demoReceiver {
	for _, r := range d.receivers() {
		if r.webhookID == webhookID {
			return r
		}
	}
	return nil
}

// invite says how to go on.
func (d *demo) invite() {
	fmt.Printf(`
The server goes on until Ctrl-C, and shows what it delivers.

    the API       %[1]s/api/v1
    its reference %[1]s/docs
    the token     %[2]s

Dispatch another event:

    curl -H 'Authorization: Bearer %[2]s' -H 'Content-Type: application/json' \
        -d '{"eventType":"push","payload":{"branch":"main"}}' %[1]s/api/v1/repos/%[3]s/events

or with the commands of posthorn, in another terminal:

    export POSTHORN_SERVER=%[1]s POSTHORN_TOKEN=%[2]s POSTHORN_REPO=%[3]s
    posthorn dispatch --type push '{"branch":"main"}'
    posthorn webhooks list
    posthorn deliveries list %[4]s

`, d.server.url, d.server.token, demoRepo, d.flaky.webhookID)
}

// close stops the server and the receivers, those that were started.
func (d *demo) close() {
	if d.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := d.server.stop(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "posthorn:", err)
		}
	}
	for _, r := range d.receivers() {
		if r != nil {
			r.server.Close()
		}
	}
}

// demoEvents returns what the demo dispatches.
func demoEvents() []posthorn.Event {
	return []posthorn.Event{
		{Type: musehub.Push, Payload: musehub.PushPayload{
			RepoID: demoRepo, Branch: "main", HeadCommitID: "9f2c61e0", PushedBy: "clara", CommitCount: 3,
		}},
		{Type: musehub.Issue, Payload: musehub.IssuePayload{
			RepoID: demoRepo, Action: "opened", IssueID: "i-17", Number: 17, Title: "The bridge is a semitone flat", State: "open",
		}},
		{Type: musehub.PullRequest, Payload: musehub.PullRequestPayload{
			RepoID: demoRepo, Action: "merged", PRID: "pr-4", Title: "Retune the bridge", FromBranch: "bridge", ToBranch: "main",
			State: "merged", MergeCommitID: "41d7aa93",
		}},
		{Type: musehub.Release, Payload: musehub.ReleasePayload{
			RepoID: demoRepo, Action: "published", ReleaseID: "r-2", Tag: "v2", Title: "Second mix",
		}},
	}
}
