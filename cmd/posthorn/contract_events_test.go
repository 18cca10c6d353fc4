package main

import (
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
)

// contractEvents is the contract's section on events, which has no number.
func contractEvents(c *contract) {
	receiver := newReceiver(c.t, nil)
	types := []string{"push", "issue", "proposal", "pull_request", "release", "branch", "tag", "session", "analysis"}
	for _, eventType := range types {
		c.hook(receiver.URL+"/"+eventType, eventType, "")
	}
	c.hook(receiver.URL+"/all", "*", "")
	c.hook(receiver.URL+"/two", "tag,push", "")
	want := 0
	for _, eventType := range types {
		n := 2 // its own, and the one for all
		if eventType == "tag" || eventType == "push" {
			n = 3
		}
		c.dispatch(eventType, `{}`, n)
		want += n
	}
	for _, r := range receiver.await(want) {
		got := r.Header.Get("X-MuseHub-Event")
		ok := r.target() == "/"+got || r.target() == "/all" || r.target() == "/two" && (got == "tag" || got == "push")
		if !ok {
			c.t.Errorf("%s got an event of the type %s", r.target(), got)
		}
	}
	// A ping reaches each, whatever it subscribes to.
	c.dispatch("ping", `{"zen":1}`, len(types)+2)
	for _, r := range receiver.await(want + len(types) + 2)[want:] {
		if r.Header.Get("X-MuseHub-Event") != "ping" || string(r.Body) != `{"zen":1}` {
			c.t.Errorf("%s got\n%s", r.target(), r.Raw)
		}
	}

	// Without a subscriber an event is accepted and stored nowhere.
	c = in(c.t, c.s)
	c.hook(receiver.URL, "push", "")
	for range 2 { // with the same id it is no repetition either
		a := c.ask(http.StatusAccepted, "POST", "/events", eventJSON("tag", "lonely", "{}"))
		if got := strings.TrimSpace(string(a.Body)); got != `{"eventId":"lonely","deliveries":0}` {
			c.t.Errorf("the receipt is %s", got)
		}
	}
	c.ask(404, "GET", "/events/lonely", "")
	if page := read[struct{ Total *int }](c, c.ask(200, "GET", "/events", "")); page.Total == nil || *page.Total != 0 {
		c.t.Error("it is listed")
	}
}

// The set of types is configurable.
func TestContractEventTypes(t *testing.T) {
	t.Parallel()
	c := in(t, startContract(t, "--event-types", "order.paid,order:Shipped"))
	receiver := newReceiver(t, nil)
	c.hook(receiver.URL+"/paid", "order.paid", "")
	c.hook(receiver.URL+"/all", "*", "")
	c.dispatch("order:Shipped", "{}", 1)
	c.dispatch("order.paid", "{}", 2)
	receiver.await(3)
	c.problem(c.ask(422, "POST", "/events", eventJSON("push", "", "{}")), "push", "order.paid", "order:Shipped")
	c.problem(c.ask(422, "POST", "/events", eventJSON("order:shipped", "", "{}")), "order:shipped", "order:Shipped")
	c.problem(c.ask(422, "POST", "/webhooks", `{"url":"https://example.com/","events":["push"]}`), "push", "order.paid", "order:Shipped")
}

// Cases 37 and 38: events of the REST API.
func TestContractAccepting(t *testing.T) {
	t.Parallel()
	sharing(t, startContract(t), map[string]func(*contract){
		"case 37 idempotency":         contract37,
		"case 37 at the same time":    contract37Concurrent,
		"case 37 many in one request": contract37Batch,
		"case 38 nobody is to get it": contract38,
	})
}

func contract37(c *contract) {
	receiver := newReceiver(c.t, nil)
	hook := c.hook(receiver.URL, "push,tag", "")
	const id, payload = "evt:42_A-b", `{"a":1.0, "a":2}`
	post := func(status int, eventType, payload string) string {
		c.t.Helper()
		return strings.TrimSpace(string(c.ask(status, "POST", "/events", eventJSON(eventType, id, payload)).Body))
	}
	const receipt = `{"eventId":"evt:42_A-b","deliveries":1}`
	if got := post(http.StatusAccepted, "push", payload); got != receipt {
		c.t.Errorf("the receipt is %s, want %s", got, receipt)
	}
	c.awaitLog(hook, 1)
	later := c.hook(receiver.URL+"/later", "push", "")
	for range 3 { // the first answer, whatever has changed since
		if got := post(http.StatusOK, "push", payload); got != receipt {
			c.t.Errorf("posted again, the receipt is %s, want %s", got, receipt)
		}
	}
	c.problem(c.ask(http.StatusConflict, "POST", "/events", eventJSON("push", id, `{"a":2}`)), id)
	c.problem(c.ask(http.StatusConflict, "POST", "/events", eventJSON("push", id, `{"a":1.0,"a":2}`)), id) // other bytes
	c.problem(c.ask(http.StatusConflict, "POST", "/events", eventJSON("tag", id, payload)), id)

	// IDs are a repo's own.
	other := in(c.t, c.s)
	other.hook(receiver.URL+"/other", "push", "")
	other.ask(http.StatusAccepted, "POST", "/events", eventJSON("push", id, payload))

	// Without an ID each is an event of its own. When it has arrived everywhere, so would have the others.
	first, second := c.dispatch("push", payload, 2), c.dispatch("push", payload, 2)
	if first == second {
		c.t.Errorf("both events are %s", first)
	}
	c.awaitLog(later, 2)
	if rows := c.awaitLog(hook, 3); rows[2].EventID != id {
		c.t.Errorf("the oldest row is of the event %s, want %s", rows[2].EventID, id)
	}
	sent := map[string]int{}
	for _, r := range receiver.await(6) {
		sent[r.target()+" "+r.event()]++
		if string(r.Body) != payload {
			c.t.Errorf("%s got %s", r.target(), r.Body)
		}
	}
	if sent["/ "+id] != 1 || sent["/other "+id] != 1 || len(sent) != 6 {
		c.t.Errorf("what was sent is %v", sent)
	}

	for _, id := range []string{"", "a.b", "ä", "a b", "a/b", "a\nb", strings.Repeat("x", 129)} { // can't be sent as webhook-id
		c.problem(c.ask(422, "POST", "/events", eventJSON("push", "", payload+`,"eventId":`+asJSON(id))), "eventId")
	}
	for _, body := range []string{`{"eventType":"push"}`, `{"payload":{}}`, `{"eventType":null,"payload":{}}`, `{"eventType":1,"payload":{}}`,
		`{"eventType":"push","payload":{},"eventId":null}`, `{"eventType":"push","payload":{},"eventId":7}`} {
		c.ask(422, "POST", "/events", body)
	}
	c.ask(http.StatusAccepted, "POST", "/events", eventJSON("push", strings.Repeat("x", 128), payload))
}

func contract37Concurrent(c *contract) {
	receiver := newReceiver(c.t, nil)
	hook := c.hook(receiver.URL, "push", "")
	post := func(n int, body func(i int) string) map[int]int {
		var mu sync.Mutex
		statuses, bodies := map[int]int{}, map[string]bool{}
		var posting sync.WaitGroup
		for i := range n {
			posting.Go(func() {
				a, err := c.s.send(c.t.Context(), "POST", c.path("/events"), strings.NewReader(body(i)))
				if err != nil {
					c.t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				statuses[a.Status]++
				if a.Status < 300 {
					bodies[string(a.Body)] = true
				}
			})
		}
		posting.Wait()
		if len(bodies) != 1 {
			c.t.Errorf("the receipts are %v, want one", bodies)
		}
		return statuses
	}
	got := post(20, func(int) string { return eventJSON("push", "same", `{"a":1}`) })
	if got[http.StatusAccepted] != 1 || got[http.StatusOK] != 19 {
		c.t.Errorf("20 times the same: %v, want one 202 and 19 times 200", got)
	}
	got = post(20, func(i int) string { return eventJSON("push", "different", fmt.Sprint(i)) })
	if got[http.StatusAccepted] != 1 || got[http.StatusConflict] != 19 {
		c.t.Errorf("20 contents under one id: %v, want one 202 and 19 times 409", got)
	}
	last := c.dispatch("push", `"last"`, 1)
	eventually(c.t, func() string {
		if !slices.ContainsFunc(c.log(hook), func(row loggedDelivery) bool { return row.EventID == last }) {
			return "the last one was not delivered"
		}
		return ""
	})
	c.awaitLog(hook, 3)
	if n := len(receiver.got()); n != 3 {
		c.t.Errorf("%d requests for three events", n)
	}
}

// contract37Batch posts events in batches, of which each is accepted as a whole or not at all.
func contract37Batch(c *contract) {
	receiver := newReceiver(c.t, nil)
	hook := c.hook(receiver.URL, "push", "")
	batch := func(events ...string) string { return `{"events":[` + strings.Join(events, ",") + `]}` }
	post := func(status int, body, want string) {
		c.t.Helper()
		if got := strings.TrimSpace(string(c.ask(status, "POST", "/events:batch", body).Body)); got != `{"events":[`+want+`]}` {
			c.t.Errorf("the receipts are %.2000s", got)
		}
	}
	odd := `{"a":1.0, "a":2 , "b":"\u00e9\\\""}`
	first := batch(eventJSON("push", "e1", odd), eventJSON("tag", "e2", "{}"), eventJSON("push", "e3", "[ ]"), eventJSON("push", "e1", odd))
	post(http.StatusAccepted, first, `{"eventId":"e1","deliveries":1,"duplicate":false},{"eventId":"e2","deliveries":0,"duplicate":false},`+
		`{"eventId":"e3","deliveries":1,"duplicate":false},{"eventId":"e1","deliveries":1,"duplicate":true}`)
	post(http.StatusOK, batch(eventJSON("push", "e3", "[ ]")), `{"eventId":"e3","deliveries":1,"duplicate":true}`)
	c.awaitLog(hook, 2)

	good := eventJSON("push", "lost", "{}")
	for _, test := range []struct {
		status int
		event  string
		words  string
	}{
		{409, eventJSON("push", "e1", `{"a":1.0,"a":2}`), "events[2].eventId"},
		{409, eventJSON("push", "lost", "{ }"), "events[2].eventId"},
		{422, eventJSON("pull", "", "{}"), "events[2].eventType"},
		{422, `{"eventType":"push"}`, "events[2].payload"},
		{422, eventJSON("push", "a.b", "{}"), "events[2].eventId"},
		{413, eventJSON("push", "", `"`+strings.Repeat("x", 1<<20)+`"`), "events[2].payload"},
	} {
		c.problem(c.ask(test.status, "POST", "/events:batch", batch(good, eventJSON("push", "", "1"), test.event, good)), test.words)
	}
	c.problem(c.ask(422, "POST", "/events:batch", batch()), "events")
	c.problem(c.ask(422, "POST", "/events:batch", batch(slices.Repeat([]string{good}, 1001)...)), "events", "1000")
	c.ask(404, "GET", "/events/lost", "")

	large := eventJSON("push", "", `"`+strings.Repeat("x", 1<<20-2)+`"`)
	c.problem(c.ask(413, "POST", "/events:batch", batch(append(slices.Repeat([]string{large}, 16), good)...)), "events: their payloads")

	var many []string
	for i := range 1000 {
		many = append(many, eventJSON("push", fmt.Sprint("many-", i), fmt.Sprint(i)))
	}
	receipts := read[struct{ Events []struct{ EventID *string } }](c, c.ask(http.StatusAccepted, "POST", "/events:batch", batch(many...)))
	if n := len(receipts.Events); n != 1000 || *receipts.Events[0].EventID != "many-0" || *receipts.Events[999].EventID != "many-999" {
		c.t.Errorf("%d receipts", n)
	}
	got := map[string]string{}
	for _, r := range receiver.await(1002) {
		got[r.event()] = string(r.Body)
	}
	if got["e1"] != odd || got["e3"] != "[ ]" || got["many-999"] != "999" || len(got) != 1002 {
		c.t.Errorf("%d events were sent; e1 is %s, e3 is %s", len(got), got["e1"], got["e3"])
	}
}

func contract38(c *contract) {
	receiver := newReceiver(c.t, nil)
	inactive, unsubscribed := c.hook(receiver.URL+"/inactive", "*", ""), c.hook(receiver.URL+"/tag", "tag", "")
	c.ask(200, "PATCH", "/webhooks/"+inactive, `{"active":false}`)
	c.dispatch("push", `{}`, 0)
	c.dispatch("issue", `{}`, 0)
	control := c.hook(receiver.URL+"/control", "push", "")
	c.dispatch("push", `{}`, 1)
	c.awaitLog(control, 1)
	// An event that was dispatched while a webhook was inactive isn't made up for.
	c.ask(200, "PATCH", "/webhooks/"+inactive, `{"active":true}`)
	c.dispatch("push", `"last"`, 2)
	c.awaitLog(control, 2)
	if rows := c.awaitLog(inactive, 1); *rows[0].Payload != `"last"` {
		c.t.Errorf("it got %s", *rows[0].Payload)
	}
	c.awaitLog(unsubscribed, 0)
	for _, r := range receiver.got() {
		if r.target() == "/tag" || r.target() == "/inactive" && string(r.Body) != `"last"` {
			c.t.Errorf("%s got %s", r.target(), r.Body)
		}
	}
}

// Case 39, the size of a payload. The limit counts the payload alone, which comes in with what is around it.
func TestContract39Sizes(t *testing.T) {
	t.Parallel()
	sized := func(n int) string { return `"` + strings.Repeat("x", n-2) + `"` }
	s := startContract(t)
	c := in(t, s)
	receiver := newReceiver(t, nil)
	c.hook(receiver.URL, "push", "")
	c.dispatch("push", sized(1<<20), 1)
	if r := receiver.await(1)[0]; string(r.Body) != sized(1<<20) {
		t.Errorf("a body of %d bytes was sent", len(r.Body))
	}
	c.ask(http.StatusRequestEntityTooLarge, "POST", "/events", eventJSON("push", "", sized(1<<20+1)))
	c.ask(http.StatusRequestEntityTooLarge, "POST", "/events", eventJSON("push", "", sized(3<<20)))
	unknown := io.MultiReader(strings.NewReader(eventJSON("push", "", sized(3<<20)))) // of unknown length: sent in chunks
	if a, err := s.send(t.Context(), "POST", c.path("/events"), unknown); err != nil || a.Status != http.StatusRequestEntityTooLarge {
		t.Errorf("in chunks: status %d, %v", a.Status, err)
	}
	large := asJSON(map[string]any{"url": "https://example.com/", "events": []string{"push"}, "description": strings.Repeat("x", 2<<20)})
	c.ask(http.StatusRequestEntityTooLarge, "POST", "/webhooks", large)
	if n := len(receiver.got()); n != 1 {
		t.Errorf("%d requests", n)
	}
	s.stop()

	// The limit can be raised to 25 MiB. The race detector makes reading that much take long.
	most := 25 << 20
	if raceDetector() {
		most = 2 << 20
	}
	s = startContract(t, "--data", s.data, "--max-payload", fmt.Sprint(most))
	c = c.at(s)
	c.dispatch("push", sized(most), 1)
	if r := receiver.await(2)[1]; string(r.Body) != sized(most) {
		t.Errorf("a body of %d bytes was sent", len(r.Body))
	}
	c.ask(http.StatusRequestEntityTooLarge, "POST", "/events", eventJSON("push", "", sized(most+1)))
	s.stop()
	out, err := exec.Command("posthorn", "serve", "--data", s.data, "--max-payload", "26214401").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "25MiB") {
		t.Errorf("with a limit of more it ended with %v, and wrote %s", err, out)
	}
	c.at(startContract(t, "--data", s.data, "--max-payload", "25MiB")).dispatch("push", `{}`, 1)
}

func raceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}
