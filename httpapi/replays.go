package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/musehub/posthorn"
)

// replayJSON is a replay as the API shows it.
type replayJSON struct {
	ReplayID   string   `json:"replayId"`
	WebhookID  string   `json:"webhookId"`
	Since      string   `json:"since" format:"date-time"`
	Until      string   `json:"until" format:"date-time" doc:"Exclusive"`
	Only       string   `json:"only" enum:"failed,missed,all"`
	EventTypes []string `json:"eventTypes" nullable:"false" doc:"None: all that the webhook wants"`
	DryRun     bool     `json:"dryRun"`
	State      string   `json:"state" enum:"planning,running,canceling,canceled,done" doc:"While it is planning, matched is still growing"`
	Examined   int64    `json:"examined" doc:"How many events of the range were looked at"`
	Matched    int64    `json:"matched" doc:"How many of these are to be sent, or would be"`
	Succeeded  int64    `json:"succeeded" doc:"How many of these were delivered"`
	Failed     int64    `json:"failed" doc:"Of how many of these the last attempt has failed"`
	CreatedAt  string   `json:"createdAt" format:"date-time"`
	EndedAt    *string  `json:"endedAt" format:"date-time" doc:"null while it is not done or canceled"`
}

func showReplay(r *posthorn.Replay) replayJSON {
	return replayJSON{
		ReplayID: r.ID, WebhookID: r.WebhookID, Since: timestamp(r.Since), Until: timestamp(r.Until), Only: string(r.Only),
		EventTypes: append([]string{}, r.EventTypes...), DryRun: r.DryRun, State: string(r.State),
		Examined: r.Examined, Matched: r.Matched, Succeeded: r.Succeeded, Failed: r.Failed,
		CreatedAt: timestamp(r.CreatedAt), EndedAt: optional(r.EndedAt),
	}
}

// newReplayJSON is the body that starts a replay.
type newReplayJSON struct {
	_          struct{} `additionalProperties:"false"`
	Since      string   `json:"since" format:"date-time" doc:"Only events that were accepted at this time or later"`
	Until      *string  `json:"until,omitempty" format:"date-time" doc:"Only events that were accepted before this time; until now if it isn't given"`
	Only       *string  `json:"only,omitempty" enum:"failed,missed,all" doc:"failed, the default: those whose attempts have all failed; missed: those that no attempt was made of, because the webhook was made later, was inactive or did not want them; all: both, and those that were delivered"`
	EventTypes []string `json:"eventTypes,omitempty" nullable:"false" minItems:"1" doc:"Only events of these types, or patterns of them"`
	DryRun     *bool    `json:"dryRun,omitempty" doc:"Find out how many events there are, and send nothing"`
}

// replayListJSON is a page of replays.
type replayListJSON struct {
	Replays    []replayJSON `json:"replays" nullable:"false"`
	NextCursor *string      `json:"nextCursor" doc:"The cursor of the next page; null on the last one"`
}

type newReplayInput struct {
	RepoID    string `path:"repoId"`
	WebhookID string `path:"webhookId"`
	jsonBody[newReplayJSON]
}

type listReplaysInput struct {
	RepoID    string `path:"repoId"`
	WebhookID string `path:"webhookId"`
	Limit     int    `query:"limit" minimum:"1" maximum:"200" default:"20"`
	Cursor    string `query:"cursor" doc:"The nextCursor of the page before"`
}

type replayInput struct {
	RepoID    string `path:"repoId"`
	WebhookID string `path:"webhookId"`
	ReplayID  string `path:"replayId"`
}

func (s *server) registerReplays() {
	tags := []string{"replays"}
	const replays = "/repos/{repoId}/webhooks/{webhookId}/replays"
	operation(s, huma.Operation{
		OperationID: "startReplay", Method: http.MethodPost, Path: replays, Tags: tags, DefaultStatus: http.StatusCreated,
		Summary: "Start a replay",
		Description: "Sends past events to the webhook: what it wants as it is now, and what is not on its way to it already. The oldest go first, a few at a time " +
			"beside new events, each under the whole retry policy. It goes on after a restart. The answer comes when the events are counted, or after five seconds.",
		Middlewares: huma.Middlewares{notFromDelivery},
	}, posthorn.ScopeDeliveriesWrite, s.startReplay)
	operation(s, huma.Operation{
		OperationID: "listReplays", Method: http.MethodGet, Path: replays, Tags: tags,
		Summary: "List replays", Description: "The newest first. Those that have ended are kept as long as events are.",
	}, posthorn.ScopeDeliveriesRead, s.listReplays)
	operation(s, huma.Operation{
		OperationID: "getReplay", Method: http.MethodGet, Path: replays + "/{replayId}", Tags: tags,
		Summary: "Get a replay",
	}, posthorn.ScopeDeliveriesRead, s.getReplay)
	operation(s, huma.Operation{
		OperationID: "cancelReplay", Method: http.MethodPost, Path: replays + "/{replayId}/cancel", Tags: tags,
		Summary: "Cancel a replay",
		Description: "What waits, for its turn or for its next attempt, is not sent, within a second on all nodes. What is being sent at that moment still is. " +
			"A replay that has ended stays as it is.",
	}, posthorn.ScopeDeliveriesWrite, s.cancelReplay)
}

func (s *server) startReplay(ctx context.Context, in *newReplayInput) (*output[replayJSON], error) {
	of := posthorn.ReplayRange{
		Only: posthorn.ReplayOnly(orZero(in.body.Only)), EventTypes: in.body.EventTypes, DryRun: orZero(in.body.DryRun),
	}
	if in.body.Only != nil && *in.body.Only == "" {
		return nil, invalid("only", "it is empty: leave it out for failed")
	}
	if in.body.EventTypes != nil && len(in.body.EventTypes) == 0 {
		return nil, invalid("eventTypes", "it is empty: leave it out for all that the webhook wants")
	}
	var err error
	if of.Since, err = parseTime("since", in.body.Since); err != nil {
		return nil, err
	}
	if of.Until, err = parseTime("until", orZero(in.body.Until)); err != nil {
		return nil, err
	}
	r, err := s.dispatcher.StartReplay(ctx, in.RepoID, in.WebhookID, of)
	if err != nil {
		return nil, err
	}
	return &output[replayJSON]{showReplay(&r)}, nil
}

func (s *server) listReplays(ctx context.Context, in *listReplaysInput) (*output[replayListJSON], error) {
	list := s.listing("replays", in.RepoID, in.WebhookID)
	before, err := list.position(in.Cursor)
	if err != nil {
		return nil, err
	}
	page, err := s.dispatcher.Replays(ctx, posthorn.ReplayQuery{RepoID: in.RepoID, WebhookID: in.WebhookID, Before: before, Limit: in.Limit})
	if err != nil {
		return nil, err
	}
	return &output[replayListJSON]{replayListJSON{showAll(page.Items, showReplay), list.cursor(page.Next)}}, nil
}

func (s *server) getReplay(ctx context.Context, in *replayInput) (*output[replayJSON], error) {
	r, err := s.dispatcher.Replay(ctx, in.RepoID, in.WebhookID, in.ReplayID)
	if err != nil {
		return nil, err
	}
	return &output[replayJSON]{showReplay(&r)}, nil
}

func (s *server) cancelReplay(ctx context.Context, in *replayInput) (*output[replayJSON], error) {
	r, err := s.dispatcher.CancelReplay(ctx, in.RepoID, in.WebhookID, in.ReplayID)
	if err != nil {
		return nil, err
	}
	return &output[replayJSON]{showReplay(&r)}, nil
}
