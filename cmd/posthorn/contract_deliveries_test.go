package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Cases 32, 33, 34 and 36: the log and redeliveries. Case 35 and the crash of case 34 are in
// TestContractRestarts.
func TestContractDeliveries(t *testing.T) {
	t.Parallel()
	sharing(t, startContract(t, "--timeout", "2m"), map[string]func(*contract){
		"case 32 list":                   contract32,
		"case 32 filters and foreigners": contract32Foreign,
		"case 33 get":                    contract33,
		"case 34 current url and secret": contract34Current,
		"case 34 full policy, inactive":  contract34Policy,
		"case 34 respond-async":          contract34Async,
		"case 34 client hangs up":        contract34HangUp,
		"case 36 dead target":            contract36,
	})
}

func contract32(c *contract) {
	receiver := newReceiver(c.t, func(r *wireRequest) wireAnswer { return answerBody(http.StatusAccepted, "thanks") })
	hook := c.hook(receiver.URL+"/x", "push", "s3cret")
	path := "/webhooks/" + hook + "/deliveries"
	empty := c.ask(200, "GET", path, "")
	if got := strings.TrimSpace(string(empty.Body)); got != `{"deliveries":[],"total":0,"nextCursor":null}` {
		c.t.Errorf("without deliveries it is %s", got)
	}
	const events = 53
	payloads := map[string]string{}
	var mu sync.Mutex
	var posting sync.WaitGroup
	post := func(i int) string {
		payload := fmt.Sprintf(`{"n" : %d.0, "s":"\u2028`+"\u2028"+`"}`, i)
		a, err := c.s.send(c.t.Context(), "POST", c.path("/events"), strings.NewReader(eventJSON("push", "", payload)))
		var receipt struct{ EventID string }
		if err := errors.Join(err, json.Unmarshal(a.Body, &receipt)); err != nil {
			c.t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		payloads[receipt.EventID] = payload
		return receipt.EventID
	}
	// Those that are under way at the same time are logged in the order in which their goroutines get to it. Some at each end are
	// not: their places in the log are known.
	const ordered = 5
	var want, got []string
	for i := range ordered {
		want = append(want, post(i))
		c.awaitLog(hook, i+1)
	}
	for i := ordered; i < events-ordered; i++ {
		posting.Go(func() { post(i) })
	}
	posting.Wait()
	for i := events - ordered; i < events; i++ {
		c.awaitLog(hook, i)
		want = append(want, post(i))
	}
	rows := c.awaitLog(hook, events)
	for _, row := range slices.Concat(rows[:ordered], rows[events-ordered:]) {
		got = append(got, row.EventID)
	}
	if slices.Reverse(got); !slices.Equal(got, want) {
		c.t.Errorf("at its ends the log has the events %v, want %v", got, want)
	}
	sent := map[string]string{} // events by delivery
	for _, r := range receiver.await(events) {
		sent[r.delivery()] = r.event()
	}
	for _, row := range rows {
		if row.WebhookID != hook || row.EventType != "push" || row.Attempt != 1 || !row.success() || row.status() != 202 || row.body() != "thanks" ||
			sent[row.DeliveryID] != row.EventID || row.Payload == nil || *row.Payload != payloads[row.EventID] || row.URL != receiver.URL+"/x" {
			c.t.Errorf("a row is %+v", row)
		}
	}
	type rowList struct {
		Deliveries []json.RawMessage
		Total      int
		NextCursor *string
	}
	page := read[rowList](c, c.ask(200, "GET", path, ""))
	if len(page.Deliveries) != 50 || page.Total != events || page.NextCursor == nil {
		c.t.Errorf("without a limit there are %d of %d", len(page.Deliveries), page.Total)
	}
	members := apiAnswer{Body: page.Deliveries[0]}.members()
	for _, name := range []string{"deliveryId", "webhookId", "eventId", "eventType", "payload", "attempt",
		"success", "responseStatus", "responseBody", "deliveredAt"} {
		if !slices.Contains(members, name) {
			c.t.Errorf("a row has no %s but %v", name, members)
		}
	}
	for _, limit := range []int{1, 20, 52, 53, 200} {
		var got []string
		for cursor := ""; ; {
			page := read[struct {
				Deliveries []loggedDelivery
				Total      int
				NextCursor *string
			}](c, c.ask(200, "GET", fmt.Sprintf("%s?limit=%d%s", path, limit, cursor), ""))
			if len(page.Deliveries) > limit || page.Total != events {
				c.t.Errorf("limit %d: a page of %d, of %d in all", limit, len(page.Deliveries), page.Total)
			}
			for _, row := range page.Deliveries {
				got = append(got, row.DeliveryID)
			}
			if page.NextCursor == nil || len(got) > events {
				break
			}
			cursor = "&cursor=" + *page.NextCursor
		}
		if !slices.EqualFunc(got, rows, func(id string, row loggedDelivery) bool { return id == row.DeliveryID }) {
			c.t.Errorf("limit %d: the pages are not the log: %d rows", limit, len(got))
		}
	}
}

func contract32Foreign(c *contract) {
	receiver := newReceiver(c.t, nil)
	mine, twin := c.hook(receiver.URL, "push", ""), c.hook(receiver.URL, "push", "")
	c.dispatch("push", `{}`, 2)
	row := c.awaitLog(mine, 1)[0]
	c.awaitLog(twin, 1)
	other := in(c.t, c.s)
	foreign := other.hook(receiver.URL, "push", "")
	c.ask(404, "GET", "/webhooks/nope/deliveries", "")
	c.ask(404, "GET", "/webhooks/"+foreign+"/deliveries", "")
	other.ask(404, "GET", "/webhooks/"+mine+"/deliveries", "")
	// A delivery is its webhook's own.
	for _, path := range []string{
		"/webhooks/" + twin + "/deliveries/" + row.DeliveryID, "/webhooks/" + mine + "/deliveries/nope",
		"/webhooks/" + mine + "/deliveries/" + row.EventID,
	} {
		if detail := c.problem(c.ask(404, "GET", path, "")); detail != "Delivery not found" {
			c.t.Errorf("GET %s: the detail is %q, want Delivery not found", path, detail)
		}
		c.ask(404, "POST", path+"/redeliver", "")
	}
	other.ask(404, "GET", "/webhooks/"+mine+"/deliveries/"+row.DeliveryID, "")
	other.ask(404, "GET", "/webhooks/"+foreign+"/deliveries/"+row.DeliveryID, "")
	other.ask(404, "POST", "/webhooks/"+mine+"/deliveries/"+row.DeliveryID+"/redeliver", "")
	if n := len(receiver.got()); n != 2 {
		c.t.Errorf("%d requests, want 2", n)
	}
}

func contract33(c *contract) {
	answer := answerBody(200, "fine", "Set-Cookie: session=hushhush", "Authorization: Bearer hushhush", "X-Api-Key: hushhush",
		"X-Secret-Thing: hushhush", "X-Hub-Signature: hushhush", "X-Plain: visible", "X-Plain: too")
	receiver := newReceiver(c.t, func(*wireRequest) wireAnswer { return answer })
	hook := c.hook(receiver.URL+"/x?y=1", "push", "hushhush")
	c.ask(200, "PATCH", "/webhooks/"+hook, `{"secret":"hushhush-too"}`)
	c.dispatch("push", `{"a":1}`, 1)
	request := receiver.await(1)[0]
	listed := c.awaitLog(hook, 1)[0]
	row, a := c.detail(hook, listed.DeliveryID)
	if row.DeliveryID != request.delivery() || row.DeliveryID != listed.DeliveryID || *row.Payload != `{"a":1}` || row.status() != 200 {
		c.t.Errorf("it is %s", a.Body)
	}
	for _, name := range []string{"X-MuseHub-Signature", "webhook-signature"} {
		_, signature, _ := strings.Cut(strings.ReplaceAll(request.Header.Get(name), "=", ","), ",")
		if len(signature) < 40 || strings.Contains(string(a.Body), signature[:20]) {
			c.t.Errorf("the %s is in it: %s", name, a.Body)
		}
	}
	if strings.Contains(string(a.Body), "hushhush") {
		c.t.Errorf("a secret is in it: %s", a.Body)
	}
	if row.Request == nil || row.Response == nil || len(row.Timings) == 0 {
		c.t.Fatalf("it has no request, response or timings: %s", a.Body)
	}
	// All that was sent is shown, under the names it was sent with, and the signatures are there without being readable.
	for _, f := range request.Fields {
		values := row.Request.Headers[f.Name]
		if f.Name == "Host" {
			continue // it is in the URL
		}
		signature := strings.HasSuffix(strings.ToLower(f.Name), "signature")
		if len(values) != 1 || values[0] != f.Value && !signature || signature && !strings.Contains(values[0], "***") {
			c.t.Errorf("the request's %s, %q, is shown as %q", f.Name, f.Value, values)
		}
	}
	if got := row.Response.Headers["X-Plain"]; !slices.Equal(got, []string{"visible", "too"}) {
		c.t.Errorf("the response's X-Plain is shown as %q", got)
	}
	if got := row.Response.Headers["Set-Cookie"]; len(got) != 1 || got[0] == "" {
		c.t.Errorf("the response's Set-Cookie is shown as %q", got)
	}
	total, _ := row.Timings["totalMs"].(float64)
	if total <= 0 || total != row.DurationMS {
		c.t.Errorf("the timings are %v, and durationMs %v", row.Timings, row.DurationMS)
	}
}

// redeliver asks for a redelivery and returns the answer to it.
func (c *contract) redeliver(status int, hook, delivery string, header ...string) (loggedDelivery, apiAnswer) {
	c.t.Helper()
	a := c.ask(status, "POST", "/webhooks/"+hook+"/deliveries/"+delivery+"/redeliver", "", header...)
	return read[loggedDelivery](c, a), a
}

func contract34Current(c *contract) {
	old := newReceiver(c.t, nil)
	current := newReceiver(c.t, func(*wireRequest) wireAnswer { return answerBody(http.StatusCreated, "new place") })
	hook := c.hook(old.URL, "push", "old")
	const payload = `{"a":1.0, "a":2}`
	event := c.dispatch("push", payload, 1)
	first := c.awaitLog(hook, 1)[0]
	_, before := c.detail(hook, first.DeliveryID)
	c.ask(200, "PATCH", "/webhooks/"+hook, asJSON(map[string]any{"url": current.URL + "/now", "secret": "new", "secretOverlap": 0}))

	_, a := c.redeliver(200, hook, first.DeliveryID)
	answer := read[map[string]any](c, a)
	for name, want := range map[string]any{
		"originalDeliveryId": first.DeliveryID, "webhookId": hook, "eventType": "push",
		"success": true, "responseStatus": 201.0, "responseBody": "new place",
	} {
		if answer[name] != want {
			c.t.Errorf("%s is %v, want %v", name, answer[name], want)
		}
	}
	r := current.await(1)[0]
	if r.target() != "/now" || string(r.Body) != payload || r.event() != event || r.delivery() == first.DeliveryID {
		c.t.Errorf("what was sent again is\n%s", r.Raw)
	}
	checkSigned(c.t, r, "new")
	rows := c.awaitLog(hook, 2)
	if rows[0].DeliveryID != r.delivery() || rows[0].EventID != event || rows[0].URL != current.URL+"/now" || rows[0].Attempt != 1 {
		c.t.Errorf("the new row is %+v", rows[0])
	}
	if _, after := c.detail(hook, first.DeliveryID); !bytes.Equal(before.Body, after.Body) {
		c.t.Errorf("the old row was\n%s\nand is\n%s", before.Body, after.Body)
	}
	// That row can be the origin of another one.
	c.redeliver(200, hook, rows[0].DeliveryID)
	if r := current.await(2)[1]; r.delivery() == rows[0].DeliveryID || r.event() != event {
		c.t.Errorf("once more, it is the delivery %s of %s", r.delivery(), r.event())
	}
	if n := len(old.got()); n != 1 {
		c.t.Errorf("%d requests to the old URL", n)
	}
}

func contract34Policy(c *contract) {
	fail := answerBody(http.StatusBadGateway, "no")
	receiver := newReceiver(c.t, script(answerBody(500, "first"), answerBody(200, "ok"), fail, fail, answerBody(200, "third")))
	hook := c.hook(receiver.URL, "push", "")
	c.dispatch("push", `{}`, 1)
	failed := c.awaitLog(hook, 2)[1] // what failed once can be sent again as well as what succeeded
	c.ask(200, "PATCH", "/webhooks/"+hook, `{"active":false}`)
	answer, a := c.redeliver(200, hook, failed.DeliveryID)
	if !answer.success() || answer.status() != 200 || answer.body() != "third" {
		c.t.Errorf("the answer is %s", a.Body)
	}
	rows := c.awaitLog(hook, 5) // the answer came at the end of the run, with all of it in the log
	for i, want := range []int{200, 502, 502} {
		if row := rows[i]; row.status() != want || row.Attempt != 3-i || row.Trigger != "redelivery" {
			c.t.Errorf("row %d is attempt %d with %d, %s", i, row.Attempt, row.status(), row.Trigger)
		}
	}
	if rows[1].DeliveredAt.Sub(rows[2].DeliveredAt) < time.Second || rows[0].DeliveredAt.Sub(rows[1].DeliveredAt) < 2*time.Second {
		c.t.Errorf("the attempts ended at %v, %v, %v", rows[2].DeliveredAt, rows[1].DeliveredAt, rows[0].DeliveredAt)
	}
	ids := map[string]bool{}
	for _, r := range receiver.got() {
		ids[r.delivery()] = true
	}
	if len(ids) != 5 {
		c.t.Errorf("five attempts have %d delivery ids", len(ids))
	}
	// It is inactive all the same.
	c.dispatch("push", `{}`, 0)
}

func contract34Async(c *contract) {
	release := make(chan struct{})
	receiver := newReceiver(c.t, script(answerStatus(200), answerWhen(release, answerStatus(204))))
	hook := c.hook(receiver.URL, "push", "")
	c.dispatch("push", `{}`, 1)
	row := c.awaitLog(hook, 1)[0]
	answer, a := c.redeliver(http.StatusAccepted, hook, row.DeliveryID, "Prefer: respond-async, wait=10") // before there is a response
	if answer.Success != nil || answer.ResponseStatus != nil || answer.WebhookID != hook || answer.EventType != "push" ||
		read[map[string]any](c, a)["originalDeliveryId"] != row.DeliveryID {
		c.t.Errorf("the answer is %s", a.Body)
	}
	receiver.await(2)
	if n := len(c.log(hook)); n != 1 {
		c.t.Errorf("the log has %d rows while the request hangs", n)
	}
	close(release)
	if rows := c.awaitLog(hook, 2); rows[0].status() != 204 || rows[0].DeliveryID != answer.DeliveryID {
		c.t.Errorf("it is logged as %d, %s; announced was %s", rows[0].status(), rows[0].DeliveryID, answer.DeliveryID)
	}
}

func contract34HangUp(c *contract) {
	hungUp := make(chan struct{})
	receiver := newReceiver(c.t, script(answerStatus(200), answerWhen(hungUp, answerStatus(500)), answerStatus(500), answerStatus(202)))
	hook := c.hook(receiver.URL, "push", "")
	c.dispatch("push", `{}`, 1)
	row := c.awaitLog(hook, 1)[0]
	ctx, hangUp := context.WithCancel(c.t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := c.s.send(ctx, "POST", c.path("/webhooks/"+hook+"/deliveries/"+row.DeliveryID+"/redeliver"), http.NoBody)
		gone <- err
	}()
	receiver.await(2) // the run's first attempt is there
	hangUp()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		c.t.Fatalf("the client got %v, before it hung up", err)
	}
	close(hungUp)
	rows := c.awaitLog(hook, 4)
	if rows[0].status() != 202 || rows[0].Attempt != 3 {
		c.t.Errorf("the last row is attempt %d with %d", rows[0].Attempt, rows[0].status())
	}
}

func contract36(c *contract) {
	addr := closedAddr(c.t)
	hook := c.hook("http://"+addr, "push", "")
	c.dispatch("push", `{}`, 1)
	row := c.awaitLog(hook, 3)[0]
	answer, a := c.redeliver(200, hook, row.DeliveryID)
	if answer.Success == nil || *answer.Success || answer.ResponseStatus == nil || *answer.ResponseStatus != 0 ||
		answer.ResponseBody == nil || !strings.HasPrefix(*answer.ResponseBody, "request error: connect: ") {
		c.t.Errorf("the answer is %s", a.Body)
	}
	if rows := c.awaitLog(hook, 6); rows[0].Attempt != 3 || rows[2].Attempt != 1 || rows[2].Trigger != "redelivery" {
		c.t.Errorf("the run is logged as %+v", rows[:3])
	}
}
