package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The contract_*_test.go files test the contract with MuseHub's subscribers, case by case, over HTTP against a server in a
// process of its own and receivers on loopback addresses. No packet leaves the machine. Each test names its case's number.
//
// Tests share a server where they can, each in repos of its own. That nothing arrives is shown by something later that
// has arrived, not by waiting.

// allowLoopback lets a server deliver to the receivers.
var allowLoopback = []string{"--allow-target", "127.0.0.1/32"}

// startContract starts a server for tests of the contract.
func startContract(t *testing.T, args ...string) *server {
	t.Helper()
	return startServer(t, slices.Concat(allowLoopback, args)...)
}

// together runs subtests at the same time, also where fewer may run in parallel: what they do most is wait.
func together(t *testing.T, tests map[string]func(*testing.T)) {
	t.Helper()
	var running sync.WaitGroup
	for name, test := range tests {
		running.Go(func() { t.Run(name, test) })
	}
	running.Wait()
}

// sharing runs subtests together that use one server, each in a repo of its own.
func sharing(t *testing.T, s *server, tests map[string]func(*contract)) {
	t.Helper()
	each := map[string]func(*testing.T){}
	for name, test := range tests {
		each[name] = func(t *testing.T) { test(in(t, s)) }
	}
	together(t, each)
}

// contract is one test's access to a repo of a server.
type contract struct {
	t    *testing.T
	s    *server
	repo string
}

var repos atomic.Int64

// in returns access to a repo that no other test has.
func in(t *testing.T, s *server) *contract {
	return &contract{t: t, s: s, repo: fmt.Sprintf("repo-%d", repos.Add(1))}
}

// at returns access to the same repo through another server, that which has taken over.
func (c *contract) at(s *server) *contract { return &contract{t: c.t, s: s, repo: c.repo} }

// apiAnswer is what the REST API answered.
type apiAnswer struct {
	Status int
	Header http.Header
	Body   []byte
}

// contractClient follows no redirects, and ignores the proxies that a test puts into the environment.
var contractClient = &http.Client{
	Transport:     &http.Transport{MaxIdleConnsPerHost: 64},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Timeout:       patience,
}

// ask makes a request of the repo's part of the API, or of any path that starts with /api, and fails the test unless
// the answer has the status and keeps the rules for all answers. Further arguments are headers, "Name: value".
func (c *contract) ask(status int, method, path, body string, header ...string) apiAnswer {
	c.t.Helper()
	if !strings.HasPrefix(path, "/api") {
		path = c.path(path)
	}
	a, err := c.s.send(c.t.Context(), method, path, strings.NewReader(body), header...)
	if err != nil {
		c.t.Fatal(err)
	}
	if a.Status != status {
		c.t.Fatalf("%s %s: status %d, want %d: %.2000s", method, path, a.Status, status, a.Body)
	}
	return a
}

// path returns the path of something in the repo, from "/webhooks" on.
func (c *contract) path(rest string) string { return "/api/v1/repos/" + c.repo + rest }

// send makes a request of the server. An answer that breaks a rule for all answers (case 40 of the contract among them)
// is an error. It may be called by any goroutine.
func (s *server) send(ctx context.Context, method, path string, body io.Reader, header ...string) (apiAnswer, error) {
	a, err := s.fetch(ctx, method, path, body, header...)
	if err != nil {
		return apiAnswer{}, err
	}
	if err := a.check(method); err != nil {
		return apiAnswer{}, fmt.Errorf("%s %s: status %d: %w\n%v\n%.2000s", method, path, a.Status, err, a.Header, a.Body)
	}
	return a, nil
}

// fetch is send for what is not of the API. A header without a value is left out.
func (s *server) fetch(ctx context.Context, method, path string, body io.Reader, header ...string) (a apiAnswer, err error) {
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, body)
	if err != nil {
		return a, err
	}
	req.Header.Set("Authorization", "Bearer "+s.token)
	req.Header.Set("Content-Type", "application/json")
	for _, h := range header {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Del(name)
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	resp, err := contractClient.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	a = apiAnswer{Status: resp.StatusCode, Header: resp.Header}
	a.Body, err = io.ReadAll(resp.Body)
	return a, err
}

// check holds an answer to the rules for all: JSON with names in camelCase and times to the microsecond, and each error
// a problem.
func (a apiAnswer) check(method string) error {
	want := "application/json"
	switch {
	case a.Status >= 300 && a.Status < 400:
		return errors.New("a redirect")
	case a.Status >= 400:
		want = "application/problem+json"
	case a.Status == http.StatusNoContent:
		if len(a.Body) > 0 {
			return errors.New("204 with a body")
		}
		return nil
	}
	mediaType, _, err := mime.ParseMediaType(a.Header.Get("Content-Type"))
	if err != nil || mediaType != want {
		return fmt.Errorf("Content-Type is %q, want %s", a.Header.Get("Content-Type"), want)
	}
	if method == http.MethodHead {
		return nil
	}
	var members map[string]any
	if err := json.Unmarshal(a.Body, &members); err != nil {
		return fmt.Errorf("it is no JSON object: %w", err)
	}
	if a.Status < 400 {
		return checkMembers(members)
	}
	title, _ := members["title"].(string)
	detail, _ := members["detail"].(string)
	status, _ := members["status"].(float64)
	if title == "" || detail == "" || int(status) != a.Status {
		return errors.New("a problem has title, status and detail")
	}
	return nil
}

var (
	camelName = regexp.MustCompile(`^[a-z][a-zA-Z0-9]*$`)
	timeForm  = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$`)
)

// checkMembers checks the names and times in an answer at every depth, but for the headers of a delivery.
func checkMembers(v any) error {
	switch v := v.(type) {
	case []any:
		for _, item := range v {
			if err := checkMembers(item); err != nil {
				return err
			}
		}
	case map[string]any:
		for name, value := range v {
			if !camelName.MatchString(name) {
				return fmt.Errorf("the name %q is not in camelCase", name)
			}
			if name == "headers" {
				continue
			}
			if s, ok := value.(string); ok && strings.HasSuffix(name, "At") && !timeForm.MatchString(s) {
				return fmt.Errorf("%s is %q, want UTC with microseconds", name, s)
			}
			if err := checkMembers(value); err != nil {
				return err
			}
		}
	}
	return nil
}

// read decodes an answer.
func read[T any](c *contract, a apiAnswer) (v T) {
	c.t.Helper()
	if err := json.Unmarshal(a.Body, &v); err != nil {
		c.t.Fatalf("%v: %.2000s", err, a.Body)
	}
	return v
}

// members returns the names in an answer that is an object, sorted.
func (a apiAnswer) members() []string {
	var m map[string]json.RawMessage
	_ = json.Unmarshal(a.Body, &m) // it is an object: send has seen to that
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// problem returns the detail of an error, which must contain all the words.
func (c *contract) problem(a apiAnswer, words ...string) string {
	c.t.Helper()
	p := read[struct{ Detail string }](c, a)
	for _, word := range words {
		if !strings.Contains(p.Detail, word) {
			c.t.Errorf("the detail doesn't name %q: %s", word, p.Detail)
		}
	}
	return p.Detail
}

// loggedDelivery is a row of the log as the API shows it.
type loggedDelivery struct {
	DeliveryID     string
	WebhookID      string
	EventID        string
	EventType      string
	Payload        *string
	Attempt        int
	Trigger        string
	Success        *bool
	ResponseStatus *int
	ResponseBody   *string
	DeliveredAt    time.Time
	NextAttemptAt  *time.Time
	URL            string
	DurationMS     float64

	Request  *struct{ Headers http.Header }
	Response *struct{ Headers http.Header }
	Timings  map[string]any
}

func (d loggedDelivery) success() bool { return d.Success != nil && *d.Success }
func (d loggedDelivery) status() int   { return *d.ResponseStatus }
func (d loggedDelivery) body() string  { return *d.ResponseBody }

// hook makes a webhook that subscribes to event types, separated by commas, and returns its ID.
func (c *contract) hook(url, events, secret string) string {
	c.t.Helper()
	body := map[string]any{"url": url, "events": strings.Split(events, ",")}
	if secret != "" {
		body["secret"] = secret
	}
	a := c.ask(http.StatusCreated, "POST", "/webhooks", asJSON(body))
	return read[struct{ WebhookID string }](c, a).WebhookID
}

func asJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// eventJSON is the body that posts an event, with the payload's bytes as they are.
func eventJSON(eventType, id, payload string) string {
	if id != "" {
		id = `,"eventId":` + asJSON(id)
	}
	return `{"eventType":` + asJSON(eventType) + id + `,"payload":` + payload + `}`
}

// dispatch posts an event that must be accepted for so many webhooks, and returns its ID.
func (c *contract) dispatch(eventType, payload string, deliveries int) string {
	c.t.Helper()
	a := c.ask(http.StatusAccepted, "POST", "/events", eventJSON(eventType, "", payload))
	r := read[struct {
		EventID    string
		Deliveries *int
	}](c, a)
	if r.EventID == "" || r.Deliveries == nil || *r.Deliveries != deliveries {
		c.t.Fatalf("the receipt is %s, want %d deliveries", a.Body, deliveries)
	}
	return r.EventID
}

// log returns a webhook's deliveries, the newest first. There are at most 200 of them in a test.
func (c *contract) log(hook string) []loggedDelivery {
	c.t.Helper()
	page := read[struct{ Deliveries []loggedDelivery }](c, c.ask(200, "GET", "/webhooks/"+hook+"/deliveries?limit=200", ""))
	return page.Deliveries
}

// awaitLog waits until a webhook's log has n rows, and returns them, the newest first.
func (c *contract) awaitLog(hook string, n int) (rows []loggedDelivery) {
	c.t.Helper()
	eventually(c.t, func() string {
		rows = c.log(hook)
		if len(rows) < n {
			return fmt.Sprintf("the log has %d rows, want %d", len(rows), n)
		}
		return ""
	})
	if len(rows) > n {
		c.t.Fatalf("the log has %d rows, want %d", len(rows), n)
	}
	return rows
}

// awaitFirst waits until a webhook's log has a row, and returns the oldest: more may follow at any time.
func (c *contract) awaitFirst(hook string) (first loggedDelivery) {
	c.t.Helper()
	eventually(c.t, func() string {
		rows := c.log(hook)
		if len(rows) == 0 {
			return "the log is empty"
		}
		first = rows[len(rows)-1]
		return ""
	})
	return first
}

// detail returns one delivery.
func (c *contract) detail(hook, id string) (loggedDelivery, apiAnswer) {
	c.t.Helper()
	a := c.ask(200, "GET", "/webhooks/"+hook+"/deliveries/"+id, "")
	return read[loggedDelivery](c, a), a
}

// eventually calls f until it returns "", or the test fails with what it returned last.
func eventually(t *testing.T, f func() string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(patience)
	for {
		missing := f()
		if missing == "" {
			return
		}
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("within %v: %s", patience, missing)
		}
	}
}

// hmac256 is HMAC-SHA256 of the parts joined by full stops.
func hmac256(key string, parts ...string) []byte {
	m := hmac.New(sha256.New, []byte(key))
	io.WriteString(m, strings.Join(parts, "."))
	return m.Sum(nil)
}

// museHubSignature is what X-MuseHub-Signature must be.
func museHubSignature(secret string, body []byte) string {
	return "sha256=" + hex.EncodeToString(hmac256(secret, string(body)))
}

// standardSignature is what webhook-signature must be for a request and the keys, the newest first.
func standardSignature(r *wireRequest, keys ...string) string {
	var all []string
	for _, key := range keys {
		sum := hmac256(key, r.event(), r.Header.Get("webhook-timestamp"), string(r.Body))
		all = append(all, "v1,"+base64.StdEncoding.EncodeToString(sum))
	}
	return strings.Join(all, " ")
}

// checkSigned checks that a request is signed with plain secrets, the newest first, or with none is not signed.
func checkSigned(t *testing.T, r *wireRequest, secrets ...string) {
	t.Helper()
	want := ""
	if len(secrets) > 0 {
		want = museHubSignature(secrets[0], r.Body)
	}
	if got := r.Header.Get("X-MuseHub-Signature"); got != want {
		t.Errorf("X-MuseHub-Signature is %q, want %q", got, want)
	}
	if got, want := r.Header.Get("webhook-signature"), standardSignature(r, secrets...); got != want {
		t.Errorf("webhook-signature is %q, want %q", got, want)
	}
}

// namesAddress reports whether a text has an IP address in it, other than as a network's.
func namesAddress(text string) bool {
	words := strings.FieldsFunc(text, func(r rune) bool { return !strings.ContainsRune("0123456789abcdefABCDEF.:/", r) })
	return slices.ContainsFunc(words, func(word string) bool {
		word = strings.Trim(word, ".")
		_, err := netip.ParseAddr(word)
		_, portErr := netip.ParseAddrPort(word)
		return err == nil || portErr == nil
	})
}
