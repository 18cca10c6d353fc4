package main

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// Cases 25, 39 and 40: what holds for all routes. That each error is a problem is checked by send, for these tests and all
// others of the contract.
func TestContractRoutes(t *testing.T) {
	t.Parallel()
	sharing(t, startContract(t), map[string]func(*contract){
		"case 25 tokens":            contract25,
		"case 39 paths and methods": contract39,
		"case 39 bodies":            contract39Bodies,
		"case 40 problems":          contract40,
	})
}

// routes returns the methods by path that the API's description has, with the repo and some name in the place of the
// parameters.
func (c *contract) routes() map[string][]string {
	c.t.Helper()
	a, err := c.s.fetch(c.t.Context(), "GET", "/openapi.json", http.NoBody, "Authorization: ")
	if err != nil {
		c.t.Fatal(err)
	}
	var document struct {
		OpenAPI string
		Paths   map[string]map[string]json.RawMessage
	}
	if err := json.Unmarshal(a.Body, &document); err != nil || !strings.HasPrefix(document.OpenAPI, "3.1") {
		c.t.Fatalf("the description is %.300s: %v", a.Body, err)
	}
	routes := map[string][]string{}
	for path, operations := range document.Paths {
		path = strings.ReplaceAll(path, "{repoId}", c.repo)
		path = strings.NewReplacer("{webhookId}", "w", "{deliveryId}", "d", "{eventId}", "e", "{secretId}", "s").Replace(path)
		for method := range operations {
			routes[path] = append(routes[path], strings.ToUpper(method))
		}
		slices.Sort(routes[path])
	}
	for _, path := range []string{
		"/webhooks", "/webhooks/w", "/webhooks/w/deliveries", "/webhooks/w/deliveries/d", "/webhooks/w/deliveries/d/redeliver", "/events", "/events:batch",
	} {
		if routes[c.path(path)] == nil {
			c.t.Fatalf("the description has no %s: %v", c.path(path), routes)
		}
	}
	return routes
}

func contract25(c *contract) {
	wrong := []string{
		"", "Bearer", "Bearer ", "Bearer wrong", "Bearer " + c.s.token + "x", "Bearer " + c.s.token[:len(c.s.token)-1], "Bearer x" + c.s.token,
		"Bearer " + strings.ToUpper(c.s.token) + "!", "Basic " + c.s.token, "Basic dXNlcjpwYXNz", "Token " + c.s.token, c.s.token, "Bearer null",
	}
	for path, methods := range c.routes() {
		for _, method := range methods {
			for _, authorization := range wrong {
				body := `{"url":"https://example.com/","events":["push"]}`
				a, err := c.s.send(c.t.Context(), method, path, strings.NewReader(body), "Authorization: "+authorization)
				if err != nil {
					c.t.Error(err)
					continue
				}
				challenge := a.Header.Get("WWW-Authenticate")
				if a.Status != http.StatusUnauthorized || challenge != "Bearer" && !strings.HasPrefix(challenge, "Bearer ") {
					c.t.Errorf("%s %s with %q: status %d, WWW-Authenticate %q", method, path, authorization, a.Status, challenge)
				}
			}
		}
	}
	if page := read[shownWebhooks](c, c.ask(200, "GET", "/webhooks", "")); *page.Total != 0 {
		c.t.Errorf("%d webhooks were made without a token", *page.Total)
	}
	// The scheme's name has no case (RFC 9110, section 11.1).
	if a, err := c.s.send(c.t.Context(), "GET", c.path("/webhooks"), http.NoBody, "Authorization: bearer "+c.s.token); err != nil || a.Status != 200 {
		c.t.Errorf("bearer: status %d, %v", a.Status, err)
	}
	for _, path := range []string{"/healthz", "/readyz", "/openapi.json"} {
		for _, authorization := range []string{"", "Bearer wrong"} {
			a, err := c.s.fetch(c.t.Context(), "GET", path, http.NoBody, "Authorization: "+authorization)
			if err != nil || a.Status != 200 {
				c.t.Errorf("%s with %q: status %d, %v", path, authorization, a.Status, err)
			}
		}
	}
}

func contract39(c *contract) {
	for _, path := range []string{
		"/", "/nope", "/favicon.ico", "/api", "/api/", "/api/v1", "/api/v1/", "/api/v1/nope", "/api/v1/repos", "/api/v1/repos/" + c.repo,
		"/api/v2/repos/" + c.repo + "/webhooks", c.path("/webhooks/"), c.path("/nope"), c.path("/webhooks/w/nope"), c.path("//webhooks"),
		"//api/v1/repos/" + c.repo + "/webhooks", c.path("/./webhooks"), c.path("/webhooks/../webhooks"), "/api/v1/repos//webhooks",
		"/API/v1/repos/" + c.repo + "/webhooks", c.path("/webhooks/w/deliveries/d/redeliver/"), "/healthz/x",
	} {
		for _, method := range []string{"GET", "POST", "DELETE"} {
			a, err := c.s.send(c.t.Context(), method, path, http.NoBody)
			if err != nil || a.Status != http.StatusNotFound {
				c.t.Errorf("%s %s: status %d, %v", method, path, a.Status, err)
			}
		}
	}
	routes := c.routes()
	routes["/healthz"], routes["/readyz"], routes["/openapi.json"] = []string{"GET"}, []string{"GET"}, []string{"GET"}
	for path, allowed := range routes {
		for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"} {
			if slices.Contains(allowed, method) {
				continue
			}
			a, err := c.s.send(c.t.Context(), method, path, http.NoBody)
			if err != nil {
				c.t.Error(err)
				continue
			}
			allow := strings.Split(strings.ReplaceAll(a.Header.Get("Allow"), " ", ""), ",")
			allow = slices.DeleteFunc(allow, func(m string) bool { return m == "HEAD" }) // goes with GET
			slices.Sort(allow)
			if a.Status != http.StatusMethodNotAllowed || !slices.Equal(allow, allowed) {
				c.t.Errorf("%s %s: status %d, Allow %q, want %v", method, path, a.Status, a.Header.Get("Allow"), allowed)
			}
		}
	}
}

// contract39Bodies sends more than is allowed to each route that could take a body. The payload's limit is in
// TestContract39Sizes.
func contract39Bodies(c *contract) {
	hook := c.hook("https://example.com/", "push", "")
	big := `{"url":"https://example.com/","events":["push"],"description":"` + strings.Repeat("x", 200<<10) + `"}`
	for path, method := range map[string]string{"/webhooks": "POST", "/webhooks/" + hook: "PATCH"} {
		for _, body := range []string{big, strings.Repeat("[", 200<<10), strings.Repeat(" ", 200<<10)} {
			c.ask(http.StatusRequestEntityTooLarge, method, path, body)
		}
	}
	// Here there is nothing to read. Whatever is done about it is told like everything else.
	for _, path := range []string{"/webhooks/" + hook + "/deliveries/nope/redeliver", "/webhooks/nope/ping"} {
		a, err := c.s.send(c.t.Context(), "POST", c.path(path), strings.NewReader(big))
		if err != nil {
			c.t.Error(err)
		} else if a.Status != http.StatusRequestEntityTooLarge && a.Status != http.StatusNotFound {
			c.t.Errorf("POST %s: status %d", path, a.Status)
		}
	}
}

func contract40(c *contract) {
	hook := c.hook("https://example.com/", "push", "")
	taken := in(c.t, c.s)
	taken.hook(newReceiver(c.t, nil).URL, "push", "")
	taken.ask(http.StatusAccepted, "POST", "/events", eventJSON("push", "taken", "1"))
	for _, test := range []struct {
		a      apiAnswer
		status int
	}{
		{c.ask(400, "POST", "/webhooks", "{"), 400},
		{c.ask(400, "GET", "/webhooks?limit=%zz", ""), 400},
		{c.ask(401, "GET", "/webhooks", "", "Authorization: "), 401},
		{c.ask(404, "GET", "/webhooks/nope", ""), 404},
		{c.ask(404, "GET", "/nope", ""), 404},
		{c.ask(405, "PUT", "/webhooks/"+hook, ""), 405},
		{taken.ask(409, "POST", "/events", eventJSON("push", "taken", "2")), 409},
		{c.ask(413, "POST", "/webhooks", strings.Repeat(" ", 100<<10)), 413},
		{c.ask(415, "POST", "/webhooks", "{}", "Content-Type: text/plain"), 415},
		{c.ask(415, "POST", "/webhooks", "{}", "Content-Encoding: gzip"), 415},
		{c.ask(422, "POST", "/webhooks", "{}"), 422},
		{c.ask(422, "GET", "/webhooks?limit=0", ""), 422},
		{c.ask(422, "GET", "/webhooks?nope=1", ""), 422},
		{c.ask(422, "GET", "/webhooks?limit=1&limit=2", ""), 422},
	} {
		p := read[struct {
			Title, Detail string
			Status        int
		}](c, test.a)
		if p.Title != http.StatusText(test.status) || p.Status != test.status || p.Detail == "" || p.Detail == p.Title {
			c.t.Errorf("%d is %s", test.status, test.a.Body)
		}
		if ct := test.a.Header.Get("Content-Type"); ct != "application/problem+json" {
			c.t.Errorf("%d has the type %q", test.status, ct)
		}
	}
	// Whatever a client says that it accepts.
	c.ask(404, "GET", "/webhooks/nope", "", "Accept: text/html")
	c.ask(404, "GET", "/webhooks/nope", "", "Accept: application/cbor, application/xml;q=0.9")
}
