package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

type replaysCmd struct {
	Start  startReplayCmd  `cmd:"" help:"Send past events to a webhook."`
	List   listReplaysCmd  `cmd:"" help:"List the replays of a webhook, newest first."`
	Get    getReplayCmd    `cmd:"" help:"Show how far a replay has come."`
	Cancel cancelReplayCmd `cmd:"" help:"End a replay."`
}

// replay is a replay as the API gives it.
type replay struct {
	ReplayID, Only, State string
	EventTypes            []string
	DryRun                bool
	Examined, Matched     int64
	Succeeded, Failed     int64
	Since, Until          time.Time
	CreatedAt, EndedAt    time.Time // endedAt null: it has not ended
}

func (r replay) ended() bool { return !r.EndedAt.IsZero() }

func (r replay) show() error {
	return details(
		field{"replay", r.ReplayID},
		field{"state", r.State},
		field{"only", r.Only},
		field{"event types", strings.Join(r.EventTypes, ",")},
		field{"dry run", ifTrue(r.DryRun, "yes")},
		field{"since", timestamp(r.Since)},
		field{"until", timestamp(r.Until)},
		field{"examined", strconv.FormatInt(r.Examined, 10)},
		field{"matched", strconv.FormatInt(r.Matched, 10)},
		field{"succeeded", strconv.FormatInt(r.Succeeded, 10)},
		field{"failed", strconv.FormatInt(r.Failed, 10)},
		field{"created", timestamp(r.CreatedAt)},
		field{"ended", timestamp(r.EndedAt)},
	)
}

type replayPage struct {
	Replays    []replay `json:"replays"`
	NextCursor string   `json:"nextCursor"`
}

func (p replayPage) next() string { return p.NextCursor }

type startReplayCmd struct {
	connection
	repoFlag
	webhookArg
	Since     moment   `required:"" env:"-" placeholder:"TIME" help:"Events accepted since then: a time, a date, or a duration ago such as 24h."`
	Until     moment   `env:"-" placeholder:"TIME" help:"Events accepted before then (default now)."`
	Only      string   `env:"-" default:"failed" enum:"failed,missed,all" placeholder:"WHICH" help:"failed: those whose attempts have all failed; missed: those that the webhook never got; all: those that were delivered, too (default ${default})."`
	EventType []string `short:"e" env:"-" placeholder:"TYPE" help:"Only events of this type, or pattern. Can be repeated."`
	DryRun    bool     `env:"-" help:"Say how many events there are, and send nothing."`
	Wait      bool     `env:"-" help:"Wait for the end."`
}

// Help is what --help shows below the summary.
func (*startReplayCmd) Help() string {
	return `What the webhook wants as it is now is sent, the oldest event first, a few at a time beside new events, each under the whole
retry policy. Events that are on their way to it already are left out. It goes on when the command or the server ends.

    posthorn replays start --repo r1 WEBHOOK --since 24h --dry-run
    posthorn replays start --repo r1 WEBHOOK --since 2006-01-02T15:00:00Z --until 2006-01-02T18:00:00Z
    posthorn replays start --repo r1 WEBHOOK --since 720h --only missed

Missed are the events of the time before the webhook was made, while it was inactive, or while it did not want them. Those that no webhook
wanted are stored only by serve --keep-all-events.`
}

// Run starts the replay.
func (c *startReplayCmd) Run() error {
	body := map[string]any{"since": c.Since.UTC().Format(time.RFC3339Nano), "only": c.Only, "dryRun": c.DryRun}
	if !c.Until.IsZero() {
		body["until"] = c.Until.UTC().Format(time.RFC3339Nano)
	}
	if c.EventType != nil {
		body["eventTypes"] = c.EventType
	}
	start := request{method: http.MethodPost, path: c.path("webhooks", c.Webhook, "replays"), body: body}
	if !c.Wait {
		return perform(c.connection, start, replay.show)
	}
	api, err := c.connect()
	if err != nil {
		return err
	}
	ctx, stop := untilSignal()
	defer stop()
	answer, err := api.call(ctx, start)
	for err == nil {
		var r replay
		if err := decode(answer, func(got replay) error { r = got; return nil }); err != nil {
			return err
		}
		if r.ended() {
			err := c.print(answer, r.show)
			switch {
			case err != nil:
			case r.State == "canceled":
				err = errors.New("the replay was canceled")
			case r.Failed > 0:
				err = fmt.Errorf("%d of %d events could not be delivered", r.Failed, r.Matched)
			}
			return err
		}
		if err := pauseFor(ctx, time.Second); err != nil {
			return fmt.Errorf("interrupted: the replay %s goes on", r.ReplayID)
		}
		answer, err = api.call(ctx, request{method: http.MethodGet, path: c.path("webhooks", c.Webhook, "replays", r.ReplayID)})
	}
	return err
}

func pauseFor(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

type listReplaysCmd struct {
	connection
	repoFlag
	webhookArg
	paging
}

// Run lists the replays.
func (c *listReplaysCmd) Run() error {
	return list(c.connection, c.paging, c.path("webhooks", c.Webhook, "replays"), url.Values{}, func(p replayPage) error {
		var rows [][]string
		for _, r := range p.Replays {
			rows = append(rows, []string{
				timestamp(r.CreatedAt), r.ReplayID, r.Only, r.State + ifTrue(r.DryRun, " (dry run)"), strconv.FormatInt(r.Matched, 10),
				strconv.FormatInt(r.Succeeded, 10), strconv.FormatInt(r.Failed, 10),
			})
		}
		return table(os.Stdout, []string{"CREATED", "REPLAY", "ONLY", "STATE", "MATCHED", "SUCCEEDED", "FAILED"}, rows)
	})
}

// replayArg is the argument of the commands that work on one replay.
type replayArg struct {
	Replay string `arg:"" help:"The replay's ID, as replays list shows it."`
}

type getReplayCmd struct {
	connection
	repoFlag
	webhookArg
	replayArg
}

// Run shows the replay.
func (c *getReplayCmd) Run() error {
	return perform(c.connection, request{method: http.MethodGet, path: c.path("webhooks", c.Webhook, "replays", c.Replay)}, replay.show)
}

type cancelReplayCmd struct {
	connection
	repoFlag
	webhookArg
	replayArg
}

// Run cancels the replay.
func (c *cancelReplayCmd) Run() error {
	return perform(c.connection, request{method: http.MethodPost, path: c.path("webhooks", c.Webhook, "replays", c.Replay, "cancel")}, replay.show)
}
