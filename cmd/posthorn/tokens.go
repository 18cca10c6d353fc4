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

type tokensCmd struct {
	Create createTokenCmd `cmd:"" help:"Make a token and print it, this once."`
	List   listTokensCmd  `cmd:"" help:"List the tokens, without their texts."`
	Revoke revokeTokenCmd `cmd:"" help:"Revoke a token. It is refused at once."`
}

// apiToken is a token as the API gives it.
type apiToken struct {
	TokenID    string    `json:"tokenId"`
	Name       string    `json:"name"`
	Scopes     []string  `json:"scopes"`
	Repos      []string  `json:"repos"`
	AllRepos   bool      `json:"allRepos"`
	ExpiresAt  time.Time `json:"expiresAt"`
	LastUsedAt time.Time `json:"lastUsedAt"`
	Token      string    `json:"token"`
}

func (t apiToken) repos() string {
	if t.AllRepos {
		return "all"
	}
	return strings.Join(t.Repos, ",")
}

type createTokenCmd struct {
	connection
	Name     string   `env:"-" required:"" placeholder:"TEXT" help:"What the token is for."`
	Scope    []string `env:"-" required:"" placeholder:"SCOPE,…" help:"What it allows: webhooks:read, webhooks:write, deliveries:read, deliveries:write, events:read, events:write, audit:read, or admin for everything."`
	Repo     []string `env:"-" sep:"none" xor:"repos" placeholder:"REPO" help:"A repo that it is good for. Can be repeated."`
	AllRepos bool     `env:"-" xor:"repos" help:"It is good for all repos."`
	Expires  string   `env:"-" placeholder:"WHEN" help:"When it expires: 90d, 12h, or a time such as 2027-01-31T12:00:00Z (default never)."`
}

// Help is what --help shows below the summary.
func (*createTokenCmd) Help() string {
	return `This needs the admin token, or one with the scope admin.

    posthorn tokens create --name "CI" --repo r1 --scope webhooks:read,events:write --expires 90d
    posthorn tokens create --name "forge" --all-repos --scope events:write

Clients send it as "Authorization: Bearer …", the commands here take it as POSTHORN_TOKEN.`
}

// Validate refuses a token for nothing.
func (c *createTokenCmd) Validate() error {
	if len(c.Repo) == 0 && !c.AllRepos {
		return errors.New("--repo or --all-repos says what the token is good for")
	}
	_, err := expiry(c.Expires, time.Now())
	return err
}

// expiry returns the time that --expires means.
func expiry(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n > 0 && n < 100_000 {
			return now.AddDate(0, 0, n), nil
		}
	}
	if d, err := time.ParseDuration(text); err == nil && d > 0 {
		return now.Add(d), nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	return time.Time{}, fmt.Errorf("--expires %q is neither a duration such as 90d or 12h nor a time such as 2027-01-31T12:00:00Z", text)
}

// Run creates the token.
func (c *createTokenCmd) Run() error {
	body := map[string]any{"name": c.Name, "scopes": c.Scope}
	if c.AllRepos {
		body["allRepos"] = true
	} else {
		body["repos"] = c.Repo
	}
	at, err := expiry(c.Expires, time.Now())
	if err != nil {
		return err
	}
	if !at.IsZero() {
		body["expiresAt"] = timestamp(at)
	}
	return perform(c.connection, request{method: http.MethodPost, path: "/tokens", body: body}, func(t apiToken) error {
		err := details(field{"id", t.TokenID}, field{"name", t.Name}, field{"scopes", strings.Join(t.Scopes, ",")},
			field{"repos", t.repos()}, field{"expires", timestamp(t.ExpiresAt)}, field{"token", t.Token})
		if err == nil {
			_, err = fmt.Fprintln(os.Stderr, "Keep the token now: it can't be shown again.")
		}
		return err
	})
}

type listTokensCmd struct {
	connection
	paging
}

type tokenPage struct {
	Tokens     []apiToken
	NextCursor string
}

func (p tokenPage) next() string { return p.NextCursor }

// Run lists the tokens, oldest first.
func (c *listTokensCmd) Run() error {
	return list(c.connection, c.paging, "/tokens", url.Values{}, func(p tokenPage) error {
		var rows [][]string
		for _, t := range p.Tokens {
			rows = append(rows, []string{t.TokenID, t.Name, strings.Join(t.Scopes, ","), t.repos(), timestamp(t.ExpiresAt), timestamp(t.LastUsedAt)})
		}
		return table(os.Stdout, []string{"TOKEN", "NAME", "SCOPES", "REPOS", "EXPIRES", "LAST USED"}, rows)
	})
}

type revokeTokenCmd struct {
	connection
	ID string `arg:"" name:"token" env:"-" help:"The token's ID, as tokens list shows it."`
}

// Run revokes the token.
func (c *revokeTokenCmd) Run() error {
	api, err := c.connect()
	if err != nil {
		return err
	}
	answer, err := api.call(context.Background(), request{method: http.MethodDelete, path: "/tokens/" + url.PathEscape(c.ID)})
	if err != nil {
		return err
	}
	return c.print(answer, func() error {
		_, err := fmt.Println("revoked", printable(c.ID))
		return err
	})
}

type auditCmd struct {
	connection
	paging
	Repo string `placeholder:"REPO" help:"Only what was changed in this repo."`
}

type auditPage struct {
	Entries []struct {
		At                                     time.Time
		Actor, Action, RepoID, Subject, Detail string
	}
	NextCursor string
}

func (p auditPage) next() string { return p.NextCursor }

// Run lists the audit log, newest first.
func (c *auditCmd) Run() error {
	path := "/audit"
	if c.Repo != "" {
		path = repoFlag{c.Repo}.path("audit")
	}
	return list(c.connection, c.paging, path, url.Values{}, func(p auditPage) error {
		var rows [][]string
		for _, e := range p.Entries {
			rows = append(rows, []string{timestamp(e.At), e.Actor, e.Action, e.RepoID, e.Subject, e.Detail})
		}
		return table(os.Stdout, []string{"TIME", "ACTOR", "ACTION", "REPO", "SUBJECT", "DETAIL"}, rows)
	})
}
