package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/musehub/posthorn"
)

// tokenJSON is an API token as the API shows it: without its text.
type tokenJSON struct {
	TokenID    string   `json:"tokenId"`
	Name       string   `json:"name"`
	Scopes     []string `json:"scopes" nullable:"false"`
	Repos      []string `json:"repos" nullable:"false" doc:"What it is good for, unless allRepos"`
	AllRepos   bool     `json:"allRepos"`
	CreatedAt  string   `json:"createdAt" format:"date-time"`
	ExpiresAt  *string  `json:"expiresAt" format:"date-time" doc:"null: never"`
	LastUsedAt *string  `json:"lastUsedAt" format:"date-time" doc:"To about a minute; null: never"`
}

func showToken(t *posthorn.Token) tokenJSON {
	shown := tokenJSON{
		TokenID: t.ID, Name: t.Name, Repos: append([]string{}, t.Repos...), AllRepos: t.AllRepos,
		CreatedAt: timestamp(t.CreatedAt), ExpiresAt: optional(t.ExpiresAt), LastUsedAt: optional(t.LastUsedAt),
	}
	for _, s := range t.Scopes {
		shown.Scopes = append(shown.Scopes, string(s))
	}
	return shown
}

// optional shows a time that may be zero, which is null.
func optional(t time.Time) *string {
	if t.IsZero() {
		return nil
	}
	shown := timestamp(t)
	return &shown
}

// newTokenJSON is the body that creates a token.
type newTokenJSON struct {
	_         struct{} `additionalProperties:"false"`
	Name      string   `json:"name" minLength:"1" maxLength:"200" doc:"What it is for" example:"CI of the forge"`
	Scopes    []string `json:"scopes" minItems:"1" nullable:"false" doc:"webhooks:read, webhooks:write, deliveries:read, deliveries:write, events:read, events:write, audit:read, or admin, which includes all others and goes with allRepos only"`
	Repos     []string `json:"repos,omitempty" maxItems:"100" nullable:"false" doc:"The repos that it is good for"`
	AllRepos  bool     `json:"allRepos,omitempty" doc:"In place of repos"`
	ExpiresAt string   `json:"expiresAt,omitempty" format:"date-time" doc:"RFC 3339; never, if it isn't given"`
}

type newTokenAnswerJSON struct {
	tokenJSON
	Token string `json:"token" doc:"The token itself. It is shown this once"`
}

type tokenListJSON struct {
	Tokens     []tokenJSON `json:"tokens" nullable:"false"`
	Total      int64       `json:"total" doc:"How many there are in all"`
	NextCursor *string     `json:"nextCursor" doc:"The cursor of the next page; null on the last one"`
}

// auditEntryJSON is a line of the audit log.
type auditEntryJSON struct {
	At      string `json:"at" format:"date-time"`
	Actor   string `json:"actor" doc:"Who did it; empty: the program itself" example:"token:0193a5d2-… CI of the forge"`
	Action  string `json:"action" example:"webhook.update"`
	RepoID  string `json:"repoId" doc:"Empty: no repo in particular"`
	Subject string `json:"subject" doc:"The id of the webhook, token, delivery or replay"`
	Detail  string `json:"detail" doc:"Such as the names of the fields that were changed"`
}

func showAuditEntry(e *posthorn.AuditEntry) auditEntryJSON {
	return auditEntryJSON{
		At: timestamp(e.At), Actor: e.Actor, Action: e.Action, RepoID: e.RepoID, Subject: e.Subject, Detail: e.Detail,
	}
}

type auditLogJSON struct {
	Entries    []auditEntryJSON `json:"entries" nullable:"false"`
	NextCursor *string          `json:"nextCursor" doc:"The cursor of the next page; null on the last one"`
}

type createTokenInput struct {
	jsonBody[newTokenJSON]
}

type listTokensInput struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"50"`
	Cursor string `query:"cursor" doc:"The nextCursor of the page before"`
}

type tokenInput struct {
	TokenID string `path:"tokenId"`
}

type auditLogInput struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"50"`
	Cursor string `query:"cursor" doc:"The nextCursor of the page before"`
}

type repoAuditLogInput struct {
	RepoID string `path:"repoId"`
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"50"`
	Cursor string `query:"cursor" doc:"The nextCursor of the page before"`
}

func (s *server) registerAccess() {
	tokens, audit := []string{"tokens"}, []string{"audit"}
	operation(s, huma.Operation{
		OperationID: "createToken", Method: http.MethodPost, Path: "/tokens", Tags: tokens,
		Summary: "Create an API token", DefaultStatus: http.StatusCreated,
		Description: "The answer has its text, which is not stored and can't be shown again.",
	}, posthorn.ScopeAdmin, s.createToken)
	operation(s, huma.Operation{
		OperationID: "listTokens", Method: http.MethodGet, Path: "/tokens", Tags: tokens,
		Summary: "List the API tokens", Description: "In the order of their creation, expired ones too.",
	}, posthorn.ScopeAdmin, s.listTokens)
	operation(s, huma.Operation{
		OperationID: "revokeToken", Method: http.MethodDelete, Path: "/tokens/{tokenId}", Tags: tokens,
		Summary: "Revoke an API token", Description: "It is refused from then on, by other nodes within a second.",
	}, posthorn.ScopeAdmin, s.revokeToken)
	operation(s, huma.Operation{
		OperationID: "getAuditLog", Method: http.MethodGet, Path: "/audit", Tags: audit,
		Summary: "List who changed what",
		Description: "The newest first: webhooks, secrets and tokens that were created, changed or removed, webhooks that were disabled, redeliveries, " +
			"and replays that were started or canceled.",
	}, posthorn.ScopeAdmin, func(ctx context.Context, in *auditLogInput) (*output[auditLogJSON], error) {
		return s.auditLog(ctx, "", in.Limit, in.Cursor)
	})
	operation(s, huma.Operation{
		OperationID: "getRepoAuditLog", Method: http.MethodGet, Path: "/repos/{repoId}/audit", Tags: audit,
		Summary: "List who changed what in a repo", Description: "The newest first.",
	}, posthorn.ScopeAuditRead, func(ctx context.Context, in *repoAuditLogInput) (*output[auditLogJSON], error) {
		return s.auditLog(ctx, in.RepoID, in.Limit, in.Cursor)
	})
}

func (s *server) createToken(ctx context.Context, in *createTokenInput) (*output[newTokenAnswerJSON], error) {
	n := posthorn.NewToken{Name: in.body.Name, Repos: in.body.Repos, AllRepos: in.body.AllRepos}
	for _, scope := range in.body.Scopes {
		n.Scopes = append(n.Scopes, posthorn.Scope(scope))
	}
	if in.body.ExpiresAt != "" {
		var err error
		if n.ExpiresAt, err = time.Parse(time.RFC3339, in.body.ExpiresAt); err != nil {
			return nil, invalid("expiresAt", "it is not a time such as 2027-01-31T12:00:00Z")
		}
	}
	t, text, err := s.dispatcher.CreateToken(ctx, n)
	if err != nil {
		return nil, err
	}
	return &output[newTokenAnswerJSON]{newTokenAnswerJSON{showToken(&t), text}}, nil
}

func (s *server) listTokens(ctx context.Context, in *listTokensInput) (*output[tokenListJSON], error) {
	list := s.listing("tokens")
	after, err := list.position(in.Cursor)
	if err != nil {
		return nil, err
	}
	page, err := s.dispatcher.Tokens(ctx, posthorn.TokenQuery{After: after, Limit: in.Limit})
	if err != nil {
		return nil, err
	}
	return &output[tokenListJSON]{tokenListJSON{
		Tokens: showAll(page.Items, showToken), Total: page.Total, NextCursor: list.cursor(page.Next),
	}}, nil
}

func (s *server) revokeToken(ctx context.Context, in *tokenInput) (*struct{}, error) {
	return nil, s.dispatcher.RevokeToken(ctx, in.TokenID)
}

func (s *server) auditLog(ctx context.Context, repoID string, limit int, cursor string) (*output[auditLogJSON], error) {
	list := s.listing("audit", repoID)
	before, err := list.position(cursor)
	if err != nil {
		return nil, err
	}
	page, err := s.dispatcher.AuditLog(ctx, posthorn.AuditQuery{RepoID: repoID, Before: before, Limit: limit})
	if err != nil {
		return nil, err
	}
	return &output[auditLogJSON]{auditLogJSON{showAll(page.Items, showAuditEntry), list.cursor(page.Next)}}, nil
}
