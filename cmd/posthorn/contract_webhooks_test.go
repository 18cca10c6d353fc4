package main

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// Cases 20 to 24 and 26 to 31: the webhooks of the REST API.
func TestContractWebhooks(t *testing.T) {
	t.Parallel()
	sharing(t, startContract(t), map[string]func(*contract){
		"case 20 create":             contract20,
		"case 21 unknown types":      contract21,
		"case 22 wrong bodies":       contract22,
		"case 23 wrong urls":         contract23,
		"case 24 the same url":       contract24,
		"case 26 list":               contract26,
		"case 27 equal times":        contract27,
		"case 28 wrong cursors":      contract28,
		"case 29 wrong limits":       contract29,
		"case 30 get":                contract30,
		"case 31 delete":             contract31,
		"events and whom they reach": contractEvents,
	})
}

// shownWebhook is a webhook as the API shows it.
type shownWebhook struct {
	WebhookID, RepoID, URL string
	Events                 []string
	Active                 *bool
	CreatedAt              time.Time
}

type shownWebhooks struct {
	Webhooks   []shownWebhook
	Total      *int
	NextCursor *string
}

func contract20(c *contract) {
	const url = "https://example.com/hook?x=%2F" // nothing is sent to it
	events := []string{"tag", "push", "pull_request"}
	before := time.Now().Add(-time.Second)
	a := c.ask(http.StatusCreated, "POST", "/webhooks", asJSON(map[string]any{"url": url, "events": events, "secret": "hush-hush"}))
	w := read[shownWebhook](c, a)
	if w.WebhookID == "" || w.RepoID != c.repo || w.URL != url || !slices.Equal(w.Events, events) || w.Active == nil || !*w.Active {
		c.t.Errorf("the answer is %s", a.Body)
	}
	if w.CreatedAt.Before(before) || w.CreatedAt.After(time.Now().Add(time.Second)) {
		c.t.Errorf("createdAt is %v", w.CreatedAt)
	}
	for _, name := range []string{"webhookId", "repoId", "url", "events", "active", "createdAt"} {
		if !slices.Contains(a.members(), name) {
			c.t.Errorf("there is no %s: %s", name, a.Body)
		}
	}
	for _, a := range []apiAnswer{
		a, c.ask(200, "GET", "/webhooks/"+w.WebhookID, ""), c.ask(200, "GET", "/webhooks", ""),
		c.ask(200, "PATCH", "/webhooks/"+w.WebhookID, `{"active":false}`),
	} {
		if strings.Contains(string(a.Body), "hush") || slices.Contains(a.members(), "secret") {
			c.t.Errorf("the secret is in it: %s", a.Body)
		}
	}
}

func contract21(c *contract) {
	valid := []string{"push", "issue", "proposal", "pull_request", "release", "branch", "tag", "session", "analysis"}
	for _, unknown := range []string{"Push", "PUSH", "pushed", "push ", "", "**", "pull-request"} {
		body := asJSON(map[string]any{"url": "https://example.com/", "events": []string{"push", unknown}})
		a := c.ask(http.StatusUnprocessableEntity, "POST", "/webhooks", body)
		c.problem(a, append(valid, unknown)...)
		a = c.ask(http.StatusUnprocessableEntity, "POST", "/events", eventJSON(unknown, "", "{}"))
		c.problem(a, append(valid, unknown)...)
	}
	if page := read[shownWebhooks](c, c.ask(200, "GET", "/webhooks", "")); *page.Total != 0 {
		c.t.Errorf("%d webhooks were made", *page.Total)
	}
	c.hook("https://example.com/", strings.Join(valid, ","), "")
}

func contract22(c *contract) {
	const good = "https://example.com/"
	long := func(n int) string { return good + strings.Repeat("ü", n-len(good)) } // of n characters, of more bytes
	for body, field := range map[string]string{
		`{"url":"` + good + `","events":[]}`:                            "events",
		`{"url":"` + good + `"}`:                                        "events",
		`{"url":"` + good + `","events":null}`:                          "events",
		`{"url":"` + good + `","events":"push"}`:                        "events",
		`{"url":"` + good + `","events":[1]}`:                           "events",
		`{"url":"` + good + `","events":["push",null]}`:                 "events",
		`{"url":"` + good + `","events":{"0":"push"}}`:                  "events",
		`{"url":"","events":["push"]}`:                                  "url",
		`{"events":["push"]}`:                                           "url",
		`{"url":null,"events":["push"]}`:                                "url",
		`{"url":17,"events":["push"]}`:                                  "url",
		`{"url":["` + good + `"],"events":["push"]}`:                    "url",
		asJSON(map[string]any{"url": long(2049), "events": []int{}}):    "",
		`{"url":"` + long(2049) + `","events":["push"]}`:                "url",
		`{"url":"` + good + `","events":["push"],"secret":null}`:        "secret",
		`{"url":"` + good + `","events":["push"],"secret":17}`:          "secret",
		`{"url":"` + good + `","events":["push"],"secret":["s"]}`:       "secret",
		`{"url":"` + good + `","events":["push"],"secret":"whsec_%%%"}`: "secret",
		`["` + good + `"]`:                                              "object",
		`"text"`:                                                        "object",
		`null`:                                                          "object",
	} {
		c.problem(c.ask(http.StatusUnprocessableEntity, "POST", "/webhooks", body), field)
	}
	for _, body := range []string{
		"", "{", `{"url":"` + good + `","events":["push"]`, `{"url":"` + good + `","events":["push"]}}`, `{url:1}`, "\x00", "push",
		`{"url":"` + good + `","events":["push"],}`, `{"url":"` + good + "\xff" + `","events":["push"]}`,
	} {
		a, err := c.s.send(c.t.Context(), "POST", c.path("/webhooks"), strings.NewReader(body))
		if err != nil || a.Status != 400 && a.Status != 422 {
			c.t.Errorf("%q: status %d, %v", body, a.Status, err)
		}
	}
	if page := read[shownWebhooks](c, c.ask(200, "GET", "/webhooks", "")); *page.Total != 0 {
		c.t.Errorf("%d webhooks were made: %v", *page.Total, page.Webhooks)
	}
	c.hook(long(2048), "push", "")

	// What is changed is held to the same.
	hook := c.hook(good, "push", "")
	for body, field := range map[string]string{
		`{"events":[]}`: "events", `{"events":["nope"]}`: "events", `{"url":""}`: "url", `{"url":"ftp://example.com/"}`: "url",
		`{"secret":null}`: "secret", `{"active":null}`: "active", `{"active":"yes"}`: "active",
	} {
		c.problem(c.ask(http.StatusUnprocessableEntity, "PATCH", "/webhooks/"+hook, body), field)
	}
}

func contract23(c *contract) {
	for _, url := range []string{
		"example.com", "/hook", "//example.com/hook", "hook", " https://example.com/", "https://exa mple.com/", "https://example.com/a b",
		"ftp://example.com/", "file:///etc/passwd", "javascript:alert(1)", "mailto:a@example.com", "ws://example.com/", "httpx://example.com/",
		"http://", "http:///hook", "https://:443/", "http:example.com", "http://?x", "https://#x",
		"http://user:password@example.com/", "http://user@example.com/", "http://:pw@example.com/", "http://@example.com/",
		"http://example.com:0/", "http://example.com:65536/", "http://example.com:port/", "http://example.com:-1/", "http://example.com:+80/",
		"http://10.0.0.1/", "http://172.16.0.1/", "http://192.168.1.1:8080/", "http://127.0.0.2/", "http://0.0.0.0/", "http://169.254.169.254/",
		"http://100.64.0.1/", "http://224.0.0.1/", "http://255.255.255.255/", "https://192.0.2.1/", "http://198.18.0.1/",
		"http://[::1]/", "http://[::]/", "http://[fd00::1]/", "http://[fe80::1]/", "http://[fe80::1%25eth0]/", "http://[ff02::1]/",
		"http://[::ffff:10.0.0.1]/", "http://[::ffff:a00:1]/", "http://[64:ff9b::a00:1]/", "http://[::1", "http://::1/",
		"http://2130706434/", "http://0x7f000002/", "http://127.2/", "http://0177.0.0.2/", "http://10.0.0.1./",
		"http://example..com/", "http://.example.com/", "http://-%zz.com/", "http://exam\nple.com/", "http://ex\x00ample.com/",
	} {
		a, err := c.s.send(c.t.Context(), "POST", c.path("/webhooks"), strings.NewReader(asJSON(map[string]any{"url": url, "events": []string{"push"}})))
		if err != nil || a.Status != http.StatusUnprocessableEntity {
			c.t.Errorf("%q: status %d, %v", url, a.Status, err)
			continue
		}
		c.problem(a, "url")
	}
	// Nothing is looked up or sent here.
	for _, url := range []string{
		"https://example.com", "HTTPS://EXAMPLE.COM:8443/", "http://bücher.example/", "http://localhost/", "http://93.184.216.34/",
		"http://[2606:2800:220:1::1]:80/",
	} {
		c.hook(url, "push", "")
	}
}

func contract24(c *contract) {
	receiver := newReceiver(c.t, nil)
	first, second := c.hook(receiver.URL, "push", ""), c.hook(receiver.URL, "push", "")
	if first == second {
		c.t.Errorf("both are %s", first)
	}
	c.dispatch("push", `{}`, 2)
	requests := receiver.await(2)
	if requests[0].delivery() == requests[1].delivery() {
		c.t.Error("both deliveries have the same id")
	}
	c.awaitLog(first, 1)
	c.awaitLog(second, 1)
}

// hooks makes n webhooks and returns their IDs in the order of their creation.
func (c *contract) hooks(n int) (ids []string) {
	c.t.Helper()
	for i := range n {
		ids = append(ids, c.hook(fmt.Sprintf("https://example.com/%d", i), "push", ""))
	}
	return ids
}

// pages follows the cursors of a listing of webhooks and returns the IDs page by page.
func (c *contract) pages(limit int) (pages [][]string) {
	c.t.Helper()
	cursor := ""
	var last time.Time
	for {
		page := read[shownWebhooks](c, c.ask(200, "GET", fmt.Sprintf("/webhooks?limit=%d%s", limit, cursor), ""))
		var ids []string
		for _, w := range page.Webhooks {
			if w.CreatedAt.Before(last) {
				c.t.Errorf("%v comes after %v", w.CreatedAt, last)
			}
			last = w.CreatedAt
			ids = append(ids, w.WebhookID)
		}
		pages = append(pages, ids)
		if page.NextCursor == nil {
			return pages
		}
		if len(pages) > 100 {
			c.t.Fatal("the listing has no end")
		}
		cursor = "&cursor=" + *page.NextCursor
	}
}

func contract26(c *contract) {
	empty := c.ask(200, "GET", "/webhooks", "")
	if got := strings.TrimSpace(string(empty.Body)); got != `{"webhooks":[],"total":0,"nextCursor":null}` {
		c.t.Errorf("a repo without webhooks is %s", got)
	}
	ids := c.hooks(23)
	page := read[shownWebhooks](c, c.ask(200, "GET", "/webhooks", ""))
	if len(page.Webhooks) != 20 || *page.Total != 23 || page.NextCursor == nil {
		c.t.Errorf("without a limit there are %d of %d", len(page.Webhooks), *page.Total)
	}
	for _, limit := range []int{1, 5, 22, 23, 24, 200} {
		pages := c.pages(limit)
		if !slices.Equal(slices.Concat(pages...), ids) || len(pages) != (23+limit-1)/limit {
			c.t.Errorf("limit %d gives %v", limit, pages)
		}
	}
	page = read[shownWebhooks](c, c.ask(200, "GET", "/webhooks?limit=3&cursor="+*page.NextCursor, ""))
	if len(page.Webhooks) != 3 || page.Webhooks[0].WebhookID != ids[20] || *page.Total != 23 || page.NextCursor != nil {
		c.t.Errorf("the last page is %+v", page)
	}
	if other := in(c.t, c.s); len(other.pages(20)[0]) != 0 {
		c.t.Error("another repo shows them too")
	}
}

// That webhooks were made in the same microsecond can't be brought about over HTTP: internal/storetest has that.
func contract27(c *contract) {
	ids := c.hooks(6)
	pages := c.pages(2)
	if !slices.Equal(slices.Concat(pages...), ids) || len(pages) != 3 {
		c.t.Errorf("the pages are %v, want all of %v once", pages, ids)
	}
}

func contract28(c *contract) {
	other := in(c.t, c.s)
	other.hooks(2)
	hooks := c.hooks(2)
	next := func(c *contract, path string) string {
		page := read[struct{ NextCursor *string }](c, c.ask(200, "GET", path, ""))
		if page.NextCursor == nil {
			c.t.Fatalf("%s has no next page", path)
		}
		return *page.NextCursor
	}
	mine, others := next(c, "/webhooks?limit=1"), next(other, "/webhooks?limit=1")
	receiver := newReceiver(c.t, nil)
	delivered := c.hook(receiver.URL, "tag", "")
	for range 2 {
		c.dispatch("tag", "{}", 1)
	}
	c.awaitLog(delivered, 2)
	deliveries := next(c, "/webhooks/"+delivered+"/deliveries?limit=1")
	events := next(c, "/events?limit=1")
	for path, wrong := range map[string][]string{
		"/webhooks":                              {others, deliveries, events},
		"/webhooks/" + delivered + "/deliveries": {mine, events},
		"/webhooks/" + hooks[0] + "/deliveries":  {deliveries},
		"/events":                                {mine, deliveries},
	} {
		wrong = append(wrong, "garbage", "0", "-1", "%00", "%FF", "null", "AAAA", strings.Repeat("A", 5000), mine[1:], mine+"A", mine+"%3D",
			strings.ToUpper(mine)+"x", "2026-01-02T03:04:05.000000Z", "%27%20OR%201=1--")
		for _, cursor := range wrong {
			c.problem(c.ask(http.StatusUnprocessableEntity, "GET", path+"?cursor="+cursor, ""), "cursor")
		}
	}
}

func contract29(c *contract) {
	hook := c.hooks(1)[0]
	for _, path := range []string{"/webhooks", "/webhooks/" + hook + "/deliveries", "/events"} {
		for _, limit := range []string{"0", "201", "abc", "-1", "1.5", "1e2", "99999999999999999999", "%31%00", "0x10"} {
			c.problem(c.ask(http.StatusUnprocessableEntity, "GET", path+"?limit="+limit, ""), "limit")
		}
		c.ask(200, "GET", path+"?limit=1", "")
		c.ask(200, "GET", path+"?limit=200", "")
	}
}

func contract30(c *contract) {
	created := c.ask(http.StatusCreated, "POST", "/webhooks", `{"url":"https://example.com/","events":["*"],"secret":"s"}`)
	path := "/webhooks/" + read[shownWebhook](c, created).WebhookID
	if got := c.ask(200, "GET", path, ""); string(got.Body) != string(created.Body) {
		c.t.Errorf("it is\n%s\nafter it was made as\n%s", got.Body, created.Body)
	}
	other := in(c.t, c.s)
	other.hooks(1)
	for _, a := range []apiAnswer{other.ask(404, "GET", path, ""), c.ask(404, "GET", "/webhooks/nope", "")} {
		if detail := c.problem(a); detail != "Webhook not found" {
			c.t.Errorf("the detail is %q, want Webhook not found", detail)
		}
	}
	other.ask(404, "GET", path+"/deliveries", "")
	other.ask(404, "PATCH", path, `{"active":false}`)
	other.ask(404, "DELETE", path, "")
	if got := c.ask(200, "GET", path, ""); string(got.Body) != string(created.Body) {
		c.t.Errorf("another repo has changed it to %s", got.Body)
	}
}

func contract31(c *contract) {
	receiver := newReceiver(c.t, nil)
	kept, gone := c.hook(receiver.URL+"/kept", "push", ""), c.hook(receiver.URL+"/gone", "push", "")
	c.dispatch("push", `{}`, 2)
	row := c.awaitLog(gone, 1)[0]
	c.awaitLog(kept, 1)
	path := "/webhooks/" + gone
	if a := c.ask(http.StatusNoContent, "DELETE", path, ""); len(a.Body) > 0 {
		c.t.Errorf("204 has the body %q", a.Body)
	}
	c.ask(404, "DELETE", path, "")
	c.ask(404, "GET", path, "")
	c.ask(404, "PATCH", path, `{"active":true}`)
	c.ask(404, "GET", path+"/deliveries", "")
	c.ask(404, "GET", path+"/deliveries/"+row.DeliveryID, "")
	c.ask(404, "POST", path+"/deliveries/"+row.DeliveryID+"/redeliver", "")
	if page := read[shownWebhooks](c, c.ask(200, "GET", "/webhooks", "")); *page.Total != 1 || page.Webhooks[0].WebhookID != kept {
		c.t.Errorf("the listing has %+v", page.Webhooks)
	}
	c.dispatch("push", `{}`, 1)
	for _, r := range receiver.await(3)[2:] {
		if r.target() != "/kept" {
			c.t.Errorf("%s got a request", r.target())
		}
	}
	c.awaitLog(kept, 2)
}
