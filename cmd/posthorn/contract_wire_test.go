package main

import (
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/musehub"
	"github.com/musehub/posthorn/sqlite"
)

// Cases 1 to 6, what a subscriber receives, with those parts of others that show in the same bytes.
func TestContractWire(t *testing.T) {
	t.Parallel()
	sharing(t, startContract(t), map[string]func(*contract){
		"case 01 request":           contract01,
		"case 02 headers":           contract02,
		"case 03 signature":         contract03,
		"case 04 delivery id":       contract04,
		"case 05 Standard Webhooks": contract05,
		"case 06 body":              contract06,
	})
}

func contract01(c *contract) {
	receiver := newReceiver(c.t, nil)
	// What stands behind the host, and what must be on the wire for it where that is something else.
	targets := map[string]string{
		"":                        "/",
		"?q=1":                    "/?q=1",
		"/":                       "/",
		"/hook":                   "/hook",
		"/hook/":                  "/hook/",
		"//two//slashes":          "//two//slashes",
		"/a/../b/./c":             "/a/../b/./c",
		"/a%2Fb%2fc/%7Euser/%41":  "/a%2Fb%2fc/%7Euser/%41",
		"/a+b;x=1,2/@:$&'()*!":    "/a+b;x=1,2/@:$&'()*!",
		"/q?":                     "/q?",
		"/q?a=1&&a=2&b&=&c=%20+d": "/q?a=1&&a=2&b&=&c=%20+d",
		"/q?x=%2f%2F&y=/?&z=a;b":  "/q?x=%2f%2F&y=/?&z=a;b",
		"/q?x={1}|2^[3]":          "/q?x={1}|2^[3]",
		"/q#fragment":             "/q", // a fragment never goes over the wire (RFC 9110, section 4.2.5)
		// Here the path is none that RFC 3986 allows, so that the characters at fault may go out escaped; what is escaped
		// already stays as it is.
		"/a%2Fb|c":  "/a%2Fb%7Cc",
		"/a%2fb/é~": "/a%2fb/%C3%A9~",
	}
	for target := range targets {
		c.hook(receiver.URL+target, "push", "")
	}
	c.dispatch("push", `{}`, len(targets))
	missing := map[string]int{}
	for _, target := range targets {
		missing["POST "+target+" HTTP/1.1"]++
	}
	for _, r := range receiver.await(len(targets)) {
		line := r.Line
		if !strings.Contains(line, "?") {
			line = strings.ReplaceAll(line, "|", "%7C") // either is right
		}
		if missing[line]--; missing[line] < 0 {
			c.t.Errorf("the request line is %s", r.Line)
		}
	}
	for line, n := range missing {
		if n > 0 {
			c.t.Errorf("there is no request line %s", line)
		}
	}
}

// fieldNames are the names in the header of a request, as they were sent, sorted.
func fieldNames(r *wireRequest) string {
	var names []string
	for _, f := range r.Fields {
		names = append(names, f.Name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func contract02(c *contract) {
	receiver := newReceiver(c.t, nil)
	const unsigned = "Content-Length Content-Type Host User-Agent X-MuseHub-Delivery X-MuseHub-Event webhook-id webhook-timestamp"
	const signed = "Content-Length Content-Type Host User-Agent X-MuseHub-Delivery X-MuseHub-Event X-MuseHub-Signature " +
		"webhook-id webhook-signature webhook-timestamp"
	plain := c.hook(receiver.URL+"/plain", "pull_request", "")
	c.hook(receiver.URL+"/signed", "pull_request", "s3cret")
	const payload = `{"title":"Präludium 🎼"}`
	event := c.dispatch("pull_request", payload, 2)
	for _, r := range receiver.await(2) {
		want := unsigned
		if r.target() == "/signed" {
			want = signed
		}
		// The names in this very case, each once, and no other: no Accept-Encoding, Cookie or Connection.
		if got := fieldNames(r); got != want {
			c.t.Errorf("%s has the headers\n%s\nwant\n%s", r.target(), got, want)
		}
		for name, want := range map[string]string{
			"Host":            receiver.Addr,
			"Content-Type":    "application/json",
			"X-MuseHub-Event": "pull_request",
			"User-Agent":      "MuseHub-Webhook/1.0",
			"Content-Length":  strconv.Itoa(len(payload)),
			"webhook-id":      event,
		} {
			if got := r.Header.Get(name); got != want {
				c.t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		// The bytes after the header are the body and nothing else.
		if !strings.HasSuffix(string(r.Raw), "\r\n\r\n"+payload) {
			c.t.Errorf("the request is\n%s", r.Raw)
		}
	}
	requests := receiver.got()
	i := slices.IndexFunc(requests, func(r *wireRequest) bool { return r.target() == "/plain" })
	if id := c.awaitLog(plain, 1)[0].DeliveryID; requests[i].delivery() != id {
		c.t.Errorf("X-MuseHub-Delivery is %q, and the row's id %q", requests[i].delivery(), id)
	}
}

func TestContract02Brand(t *testing.T) {
	t.Parallel()
	s := startContract(t, "--brand", "Acme", "--user-agent", "Acme-Hooks/2 (x; y)")
	c := in(t, s)
	receiver := newReceiver(t, nil)
	hook := c.hook(receiver.URL, "push", "s3cret")
	c.dispatch("push", `{"a":1}`, 1)
	r := receiver.await(1)[0]
	want := "Content-Length Content-Type Host User-Agent X-Acme-Delivery X-Acme-Event X-Acme-Signature " +
		"webhook-id webhook-signature webhook-timestamp"
	if got := fieldNames(r); got != want {
		t.Errorf("the headers are\n%s\nwant\n%s", got, want)
	}
	for name, want := range map[string]string{
		"User-Agent":       "Acme-Hooks/2 (x; y)",
		"X-Acme-Event":     "push",
		"X-Acme-Signature": museHubSignature("s3cret", r.Body),
		"X-Acme-Delivery":  c.awaitLog(hook, 1)[0].DeliveryID,
	} {
		if got := r.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

func contract03(c *contract) {
	receiver := newReceiver(c.t, nil)
	const whsec = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	secrets := map[string]string{"/ascii": "s3cret", "/utf8": "pä55wörd 🎼 \x01", "/whsec": whsec, "/none": "", "/omitted": ""}
	for target, secret := range secrets {
		if target == "/none" { // given and empty, where hook leaves it out
			c.ask(http.StatusCreated, "POST", "/webhooks", asJSON(map[string]any{"url": receiver.URL + target, "events": []string{"*"}, "secret": ""}))
			continue
		}
		c.hook(receiver.URL+target, "*", secret)
	}
	c.dispatch("push", `{ "a" : "Ä" }`, len(secrets))
	for _, r := range receiver.await(len(secrets)) {
		want := ""
		if secret := secrets[r.target()]; secret != "" {
			want = museHubSignature(secret, r.Body) // the whole secret in UTF-8, whatever it starts with
		}
		if got := r.Header.Get("X-MuseHub-Signature"); got != want {
			c.t.Errorf("%s: X-MuseHub-Signature is %q, want %q", r.target(), got, want)
		}
		if _, ok := r.Header["Webhook-Signature"]; ok != (want != "") {
			c.t.Errorf("%s: there is a webhook-signature: %v", r.target(), ok)
		}
	}

	// While a secret is being rotated the newest signs X-MuseHub-Signature, and all sign webhook-signature.
	rotating := in(c.t, c.s)
	hook := rotating.hook(receiver.URL+"/rotating", "push", "first")
	path := "/webhooks/" + hook
	sent := func() *wireRequest {
		n := len(receiver.got())
		rotating.dispatch("push", `[1]`, 1)
		return receiver.await(n + 1)[n]
	}
	checkSigned(c.t, sent(), "first")
	rotating.ask(200, "PATCH", path, `{"secret":"second"}`)
	checkSigned(c.t, sent(), "second", "first")
	rotating.ask(200, "PATCH", path, `{"secret":"third"}`)
	checkSigned(c.t, sent(), "third", "second", "first")
	rotating.ask(200, "PATCH", path, `{"secret":"fourth","secretOverlap":0}`)
	checkSigned(c.t, sent(), "fourth")
	rotating.ask(200, "PATCH", path, `{"secret":""}`)
	checkSigned(c.t, sent())
}

// That a crash and a second run of the same attempt give the same id is in the test of case 18.
func contract04(c *contract) {
	receiver := newReceiver(c.t, always(http.StatusServiceUnavailable))
	hook, other := c.hook(receiver.URL+"/a", "push", ""), c.hook(receiver.URL+"/b", "push", "")
	c.dispatch("push", `{}`, 2)
	requests := receiver.await(6)
	ids := map[string]bool{}
	for _, r := range requests {
		ids[r.delivery()] = true
	}
	if len(ids) != 6 {
		c.t.Errorf("six attempts have %d delivery ids", len(ids))
	}
	for target, hook := range map[string]string{"/a": hook, "/b": other} {
		rows := c.awaitLog(hook, 3)
		slices.Reverse(rows)
		mine := slices.DeleteFunc(slices.Clone(requests), func(r *wireRequest) bool { return r.target() != target })
		for i, row := range rows {
			if row.DeliveryID != mine[i].delivery() || row.Attempt != i+1 {
				c.t.Errorf("attempt %d was sent as %q and is logged as attempt %d with %q", i+1, mine[i].delivery(), row.Attempt, row.DeliveryID)
			}
		}
	}
}

func contract05(c *contract) {
	fail, ok := answerStatus(http.StatusInternalServerError), answerStatus(http.StatusOK)
	receiver := newReceiver(c.t, script(fail, fail, ok))
	const whsec = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(whsec, "whsec_"))
	if err != nil {
		c.t.Fatal(err)
	}
	hook := c.hook(receiver.URL, "push", whsec)
	event := c.dispatch("push", `{"n":1.0}`, 1)
	receiver.await(3)
	row := c.awaitLog(hook, 3)[0]
	c.ask(200, "POST", "/webhooks/"+hook+"/deliveries/"+row.DeliveryID+"/redeliver", "")
	last := int64(0)
	requests := receiver.await(4)
	for i, r := range requests {
		if r.event() != event {
			c.t.Errorf("request %d: webhook-id is %q, want that of the event, %q", i, r.event(), event)
		}
		stamp, err := strconv.ParseInt(r.Header.Get("webhook-timestamp"), 10, 64)
		if age := r.At.Unix() - stamp; err != nil || age < -1 || age > int64(patience/time.Second) {
			c.t.Errorf("request %d: webhook-timestamp is %q at %d", i, r.Header.Get("webhook-timestamp"), r.At.Unix())
		}
		if stamp < last {
			c.t.Errorf("request %d: webhook-timestamp is %d after %d", i, stamp, last)
		}
		last = stamp
		if got, want := r.Header.Get("webhook-signature"), standardSignature(r, string(key)); got != want {
			c.t.Errorf("request %d: webhook-signature is %q, want %q", i, got, want)
		}
	}
	if a, b := requests[0].Header.Get("webhook-timestamp"), requests[2].Header.Get("webhook-timestamp"); a == b {
		c.t.Errorf("webhook-timestamp is %s on the first and on the third attempt, seconds later", a)
	}
	if prefix := "webhook-id: " + event + "\r\n"; !strings.Contains(string(requests[0].Raw), prefix) {
		c.t.Errorf("there is no line %q:\n%s", prefix, requests[0].Raw)
	}

	// Without a secret id and timestamp are there, and no signature; with several all sign, each by its own key.
	c = in(c.t, c.s)
	hook = c.hook(receiver.URL, "push", "")
	c.ask(200, "PATCH", "/webhooks/"+hook, `{"secret":"plain"}`)
	c.ask(200, "PATCH", "/webhooks/"+hook, asJSON(map[string]string{"secret": whsec}))
	event = c.dispatch("push", `{}`, 1)
	r := receiver.await(5)[4]
	if got, want := r.Header.Get("webhook-signature"), standardSignature(r, string(key), "plain"); got != want || r.event() != event {
		c.t.Errorf("webhook-signature is %q, want %q", got, want)
	}
}

// awkward are payloads that change when they are decoded and encoded again.
var awkward = []string{
	`{"a":1,"a":2,"":3}`,
	`{"float":1.0,"exp":1e5,"EXP":1E+05,"big":18446744073709551616,"small":-0.0,"long":0.1000000000000000055511151231257827}`,
	" \t{ \"spaces\" :\r\n [ 1 ,\t2 ] } ",
	"{\"raw\":\"\u2028\u2029\",\"escaped\":\"\\u2028\\u2029\"}",
	`{"html":"<script>&'</script>","slash":"\/","snake_case":{"repo_id":[{"head_commit_id":null}]}}`,
	`{"pair":"\ud83c\udfbc","raw":"🎼","lone":"\ud800","nul":"\u0000","bom":"` + "\ufeff" + `","del":"` + "\x7f" + `","b":"\b\f\n\r\t\"\\"}`,
	strings.Repeat(`[`, 5000) + strings.Repeat(`]`, 5000),
	`"text"`, `17`, `true`, `[]`, `{}`, `""`,
	`{"z":1,"y":2,"x":3}`,
	`{"pad":"` + strings.Repeat("é", 200_000) + `"}`,
}

func contract06(c *contract) {
	receiver := newReceiver(c.t, nil)
	hook := c.hook(receiver.URL, "push", "s3cret")
	want := map[string]string{} // by event
	for _, payload := range awkward {
		// The space around a value is no part of it.
		want[c.dispatch("push", payload, 1)] = strings.Trim(payload, " \t\r\n")
	}
	for _, r := range receiver.await(len(awkward)) {
		if string(r.Body) != want[r.event()] {
			c.t.Errorf("the body is\n%.300q\nwant\n%.300q", r.Body, want[r.event()])
		}
		checkSigned(c.t, r, "s3cret")
	}
	rows := c.awaitLog(hook, len(awkward))
	var again []string
	for _, row := range rows {
		if row.Payload == nil || *row.Payload != want[row.EventID] {
			c.t.Errorf("the row of %.100q doesn't have the payload", want[row.EventID])
		}
		again = append(again, row.DeliveryID)
	}
	for _, id := range again { // the same bytes once more
		c.ask(200, "POST", "/webhooks/"+hook+"/deliveries/"+id+"/redeliver", "")
	}
	for _, r := range receiver.await(2 * len(awkward))[len(awkward):] {
		if string(r.Body) != want[r.event()] {
			c.t.Errorf("redelivered, the body is\n%.300q\nwant\n%.300q", r.Body, want[r.event()])
		}
		checkSigned(c.t, r, "s3cret")
	}

	for _, payload := range []string{"\"\xff\"", "\"\xc3\x28\"", "\"\xed\xa0\x80\"", "{\"\xc0\x80\":1}"} {
		c.problem(c.ask(http.StatusUnprocessableEntity, "POST", "/events", eventJSON("push", "", payload)), "UTF-8")
	}
	for _, payload := range []string{"", "{", "nope", "{'a':1}", "01", "1.", "NaN", `"` + "\n" + `"`, `{"a":1,}`} {
		a, err := c.s.send(c.t.Context(), "POST", c.path("/events"), strings.NewReader(eventJSON("push", "", payload)))
		if err != nil || a.Status != 400 && a.Status != 422 {
			c.t.Errorf("the payload %q: %d, %v", payload, a.Status, err)
		}
	}
}

// Go values can't be given over HTTP, so this part of case 6 is tested where they can: at the library, with a real store
// and a real receiver.
func TestContract06GoValues(t *testing.T) {
	t.Parallel()
	store, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "posthorn.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	d, err := posthorn.New(store, posthorn.Config{AllowTargets: []string{"127.0.0.1"}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer d.Stop(t.Context())
	receiver := newReceiver(t, nil)
	if _, err := d.CreateWebhook(t.Context(), posthorn.NewWebhook{RepoID: "r", URL: receiver.URL, Events: []string{"*"}, Secret: "s3cret"}); err != nil {
		t.Fatal(err)
	}
	for i, test := range []struct {
		payload any
		want    string
	}{
		{json.RawMessage(`{"repo_id": 1.0,"repo_id":2}`), `{"repo_id": 1.0,"repo_id":2}`},
		{map[string]any{"repo_id": "r", "commit_list": []any{map[string]any{"head_commit_id": "<c>"}}, "a": map[string]any{"b_c": 1}},
			`{"a":{"bC":1},"commitList":[{"headCommitId":"<c>"}],"repoId":"r"}`},
		{musehub.PushPayload{RepoID: "r", Branch: "main", HeadCommitID: "c", PushedBy: "p", CommitCount: 3},
			`{"repoId":"r","branch":"main","headCommitId":"c","pushedBy":"p","commitCount":3}`},
		{musehub.PullRequestPayload{RepoID: "r", Action: "merged", PRID: "7", Title: "T", FromBranch: "f", ToBranch: "t", State: "s", MergeCommitID: "c9"},
			`{"repoId":"r","action":"merged","prId":"7","title":"T","fromBranch":"f","toBranch":"t","state":"s","mergeCommitId":"c9"}`},
		{musehub.ProposalPayload{RepoID: "r", Action: "opened", ProposalID: "7", Title: "T", FromBranch: "f", ToBranch: "t", State: "s"},
			`{"repoId":"r","action":"opened","proposalId":"7","title":"T","fromBranch":"f","toBranch":"t","state":"s"}`},
		{musehub.IssuePayload{RepoID: "r", Action: "closed", IssueID: "i", Number: 4, Title: "T", State: "s"},
			`{"repoId":"r","action":"closed","issueId":"i","number":4,"title":"T","state":"s"}`},
	} {
		if _, err := d.Dispatch(t.Context(), posthorn.Event{RepoID: "r", Type: "push", Payload: test.payload}); err != nil {
			t.Fatal(err)
		}
		r := receiver.await(i + 1)[i]
		if string(r.Body) != test.want {
			t.Errorf("the body is\n%s\nwant\n%s", r.Body, test.want)
		}
		checkSigned(t, r, "s3cret")
	}
}
