package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// connection is the flags that every command has which talks to a server.
type connection struct {
	Server string `group:"connection" default:"http://127.0.0.1:8080" placeholder:"URL" help:"The server (default ${default})."`
	Token  string `group:"connection" env:"POSTHORN_TOKEN,POSTHORN_ADMIN_TOKEN" placeholder:"TOKEN" help:"Bearer token. Without it, the one in the file admin-token of --data counts."`
	Data   string `group:"connection" default:"./posthorn-data" placeholder:"DIR" help:"The server's data folder, if it is on this machine (default ${default})."`
	JSON   bool   `group:"connection" name:"json" env:"-" help:"Print the API's JSON instead of a table."`
}

// repoFlag is the flag of the commands that work on one repo.
type repoFlag struct {
	Repo string `required:"" placeholder:"REPO" help:"The repo."`
}

// path returns the path of something in the repo. The parts are escaped.
func (f repoFlag) path(parts ...string) string {
	path := "/repos/" + url.PathEscape(f.Repo)
	for _, part := range parts {
		path += "/" + url.PathEscape(part)
	}
	return path
}

const (
	requestTimeout = time.Minute
	maxAnswer      = 256 << 20
)

// client calls the REST API.
type client struct {
	base  string // URL of the API, without a slash at the end
	token string
	from  string // where the token is from, for people
}

// connect finds the server and the token. It does not talk to the server yet.
func (c connection) connect() (*client, error) {
	server, err := url.Parse(c.Server)
	if err != nil || server.Scheme != "http" && server.Scheme != "https" || server.Host == "" {
		return nil, fmt.Errorf("--server %q is not a URL such as http://127.0.0.1:8080", c.Server)
	}
	api := &client{base: strings.TrimRight(c.Server, "/") + "/api/v1", token: c.Token, from: "--token or POSTHORN_TOKEN"}
	if api.token == "" {
		file := filepath.Join(c.Data, tokenFile)
		if api.token, err = readToken(file); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("no token: give --token or POSTHORN_TOKEN, or with --data the data folder of a server on this machine (there is no %s)", file)
		} else if err != nil {
			return nil, err
		}
		api.from = file
	}
	return api, checkToken(api.token)
}

// request is one call of the API.
type request struct {
	method string
	path   string // below /api/v1, escaped
	query  url.Values
	body   any // marshalled as JSON, or []byte; nil: none
	prefer string
	header map[string]string // more of it; empty values are left out
	wait   bool              // the answer may take as long as it takes
}

// problem is an answer that says no.
type problem struct {
	Status int    `json:"status"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
}

func (p *problem) Error() string {
	if p.Detail == "" {
		return fmt.Sprintf("the server answers %d %s", p.Status, p.Title)
	}
	return fmt.Sprintf("the server answers %d %s: %s", p.Status, p.Title, p.Detail)
}

// call makes a request and returns the body of a successful answer.
func (c *client) call(ctx context.Context, r request) ([]byte, error) {
	if !r.wait {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, requestTimeout)
		defer cancel()
	}
	target := c.base + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	body, ok := r.body.([]byte)
	if !ok && r.body != nil {
		var err error
		if body, err = json.Marshal(r.body); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	req.Header.Set("User-Agent", "posthorn/"+buildVersion())
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for name, value := range r.header {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	if r.prefer != "" {
		req.Header.Set("Prefer", r.prefer)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // without the long URL
		}
		return nil, fmt.Errorf("no answer from %s: %w\nIs the server running there? It is started with: posthorn serve", c.base, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return answer, nil
	}
	no := &problem{}
	_ = json.Unmarshal(answer, no) // what is no problem document leaves it empty
	no.Status = resp.StatusCode
	if no.Title == "" {
		no.Title = http.StatusText(resp.StatusCode)
	}
	if resp.StatusCode == http.StatusUnauthorized {
		no.Detail += " (the token came from " + c.from + ")"
	}
	return nil, no
}

// perform makes a request and prints the answer: as it is with --json, and otherwise as show does.
func perform[T any](c connection, r request, show func(T) error) error {
	api, err := c.connect()
	if err != nil {
		return err
	}
	answer, err := api.call(context.Background(), r)
	if err != nil {
		return err
	}
	return c.print(answer, func() error { return decode(answer, show) })
}

// paging is the flags of the commands that list.
type paging struct {
	Limit int  `env:"-" placeholder:"N" help:"Entries to list, 1 to 200."`
	All   bool `env:"-" help:"List everything. With --json, each page is a document of its own."`
}

// list prints a listing: the first page, or with --all one page after the other.
func list[T interface{ next() string }](c connection, p paging, path string, query url.Values, show func(T) error) error {
	api, err := c.connect()
	if err != nil {
		return err
	}
	if p.Limit != 0 {
		query.Set("limit", strconv.Itoa(p.Limit))
	} else if p.All {
		query.Set("limit", "200")
	}
	for {
		answer, err := api.call(context.Background(), request{method: http.MethodGet, path: path, query: query})
		if err != nil {
			return err
		}
		var page T
		err = decode(answer, func(v T) error {
			page = v
			return c.print(answer, func() error { return show(v) })
		})
		if err != nil || !p.All || page.next() == "" {
			return err
		}
		query.Set("cursor", page.next())
	}
}

func decode[T any](answer []byte, use func(T) error) error {
	var v T
	if err := json.Unmarshal(answer, &v); err != nil {
		return fmt.Errorf("the server's answer can't be read: %w", err)
	}
	return use(v)
}

// print prints an answer of the API, for a script or for a person.
func (c connection) print(answer []byte, forPeople func() error) error {
	if !c.JSON {
		return forPeople()
	}
	if len(answer) == 0 {
		return nil
	}
	_, err := fmt.Printf("%s\n", bytes.TrimSpace(answer))
	return err
}
