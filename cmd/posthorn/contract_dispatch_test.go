package main

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/musehub/posthorn/internal/guardtest"
)

// Cases 13, 14, 17a and 19: many webhooks, many events.
func TestContractDispatch(t *testing.T) {
	t.Parallel()
	// What receivers hold back must not run out of time, however long the rest takes.
	s := startContract(t, "--timeout", "2m", "--max-in-flight-per-webhook", fmt.Sprint(streamInFlight))
	sharing(t, s, map[string]func(*contract){
		"case 13 fan-out":                         contract13,
		"case 14 retries hold up nothing":         contract14,
		"case 17 cookies":                         contract17Cookies,
		"case 17a deleted":                        contract17aDeleted,
		"case 17a paused":                         contract17aPaused,
		"case 17a moved":                          contract17aMoved,
		"case 17a while a stream of events flows": contract17aStream,
		"case 19 many dispatches at a time":       contract19,
	})
}

func contract13(c *contract) {
	release := make(chan struct{})
	hanging := newReceiver(c.t, func(*wireRequest) wireAnswer { return answerWhen(release, answerStatus(200)) })
	failing := newReceiver(c.t, always(http.StatusInternalServerError))
	healthy := newReceiver(c.t, nil)
	var slow []string
	for range 5 { // the bad ones come first, as they would in the original
		slow = append(slow, c.hook(hanging.URL, "push", ""))
		c.hook(failing.URL, "push", "")
		c.hook("http://"+closedAddr(c.t), "push", "")
	}
	var good []string
	for range 3 {
		good = append(good, c.hook(healthy.URL, "push", ""))
	}
	for n := 1; n <= 4; n++ {
		c.dispatch("push", `{}`, 18)
		healthy.await(3 * n) // while the others hang
	}
	for _, hook := range good {
		c.awaitLog(hook, 4)
	}
	hanging.await(5) // they are all under way at the same time
	for _, hook := range slow {
		if n := len(c.log(hook)); n > 0 {
			c.t.Errorf("a hanging webhook has %d rows", n)
		}
	}
	close(release)
	for _, hook := range slow {
		c.awaitLog(hook, 4)
	}
}

func contract14(c *contract) {
	receiver := newReceiver(c.t, func(r *wireRequest) wireAnswer {
		if string(r.Body) == "0" {
			return answerStatus(http.StatusServiceUnavailable)
		}
		return answerStatus(http.StatusOK)
	})
	hook := c.hook(receiver.URL, "push", "")
	c.ask(200, "PATCH", "/webhooks/"+hook, `{"retryPolicy":"1m"}`)
	var dispatched, arrived []string
	for i := range 20 { // one after the other has got there, so that their order is what the receiver sees
		c.dispatch("push", fmt.Sprint(i), 1)
		dispatched = append(dispatched, fmt.Sprint(i))
		eventually(c.t, func() string {
			for _, r := range receiver.got() {
				if string(r.Body) == fmt.Sprint(i) {
					return ""
				}
			}
			return fmt.Sprintf("event %d has not arrived", i)
		})
	}
	for _, r := range receiver.got() {
		arrived = append(arrived, string(r.Body))
	}
	// Event 0 is due again a minute later: the next ones are there before.
	if !slices.Equal(arrived, dispatched) {
		c.t.Errorf("a retry held up later events: %v", arrived)
	}
	oldest := c.awaitLog(hook, 20)[19]
	if oldest.status() != http.StatusServiceUnavailable || oldest.NextAttemptAt == nil {
		c.t.Errorf("no retry is due: %+v", oldest)
	}
}

// Case 14, order: with one request in flight at a time a backlog arrives in the order of the dispatches. With more, those
// under way at the same time overtake one another on the wire; none is lost or doubled by that.
func TestContract14Order(t *testing.T) {
	t.Parallel()
	const events = 60
	tests := map[string]func(*testing.T){}
	for _, inFlight := range []int{1, 16} {
		tests[fmt.Sprintf("%d in flight", inFlight)] = func(t *testing.T) {
			c := in(t, startContract(t, "--timeout", "2m", "--max-in-flight-per-webhook", fmt.Sprint(inFlight)))
			release := make(chan struct{})
			receiver := newReceiver(t, func(*wireRequest) wireAnswer { return answerWhen(release, answerStatus(200)) })
			hook := c.hook(receiver.URL, "push", "")
			var dispatched, arrived []string
			for range events {
				dispatched = append(dispatched, c.dispatch("push", `{}`, 1))
			}
			close(release) // all are queued behind the first
			for _, r := range receiver.await(events) {
				arrived = append(arrived, r.event())
			}
			c.awaitLog(hook, events)
			if inFlight == 1 {
				if !slices.Equal(arrived, dispatched) {
					t.Errorf("they were dispatched as\n%v\nand arrived as\n%v", dispatched, arrived)
				}
				return
			}
			moved := 0
			for i := range arrived {
				if arrived[i] != dispatched[i] {
					moved++
				}
			}
			t.Logf("%d of %d arrived in another place", moved, events)
			slices.Sort(arrived)
			slices.Sort(dispatched)
			if !slices.Equal(arrived, dispatched) {
				t.Error("what arrived is not what was dispatched")
			}
		}
	}
	together(t, tests)
}

// contract17a changes a webhook while one request is on the wire, others are queued behind it and a retry is due soon, and
// shows that nothing more arrives where it went before.
func contract17a(c *contract, change func(hook string)) (string, *wireReceiver) {
	failing := answerStatus(http.StatusInternalServerError)
	release := make(chan struct{})
	receiver := newReceiver(c.t, func(r *wireRequest) wireAnswer {
		select {
		case <-release:
			return answerStatus(200)
		default:
			return answerWhen(release, failing)
		}
	})
	hook := c.hook(receiver.URL, "push", "old")
	for range 6 {
		c.dispatch("push", `{}`, 1)
	}
	receiver.await(1) // a new webhook is tried with one request first
	change(hook)
	sent := len(receiver.got())
	close(release)

	// The one that fails now is due again in 1 and 3 seconds. Another webhook, which fails later than that, is attempted
	// three times by then.
	control := newReceiver(c.t, always(http.StatusInternalServerError))
	other := in(c.t, c.s)
	other.hook(control.URL, "push", "")
	other.dispatch("push", `{}`, 1)
	control.await(3)
	if n := len(receiver.got()); sent != 1 || n != sent {
		c.t.Errorf("%d requests by the time of the answer, %d after it; want one, which was on the wire", sent, n)
	}
	return hook, receiver
}

func contract17aDeleted(c *contract) {
	contract17a(c, func(hook string) { c.ask(http.StatusNoContent, "DELETE", "/webhooks/"+hook, "") })
}

func contract17aPaused(c *contract) {
	hook, receiver := contract17a(c, func(hook string) { c.ask(200, "PATCH", "/webhooks/"+hook, `{"active":false}`) })
	c.ask(200, "PATCH", "/webhooks/"+hook, `{"active":true}`) // what was queued has waited, and the retry
	receiver.await(7)
}

func contract17aMoved(c *contract) {
	elsewhere := newReceiver(c.t, nil)
	contract17a(c, func(hook string) {
		c.ask(200, "PATCH", "/webhooks/"+hook, asJSON(map[string]string{"url": elsewhere.URL, "secret": "new"}))
	})
	for _, r := range elsewhere.await(6) {
		if got, want := r.Header.Get("X-MuseHub-Signature"), museHubSignature("new", r.Body); got != want {
			c.t.Errorf("X-MuseHub-Signature is %q, want the new secret's", got)
		}
	}
}

const streamInFlight = 16 // at most, to one webhook

func contract17aStream(c *contract) {
	receiver := newReceiver(c.t, nil)
	hook := c.hook(receiver.URL, "push", "")
	control := newReceiver(c.t, nil)
	c.hook(control.URL, "push", "")
	stop := make(chan struct{})
	var posting sync.WaitGroup
	for range 4 {
		posting.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				a, err := c.s.send(c.t.Context(), "POST", c.path("/events"), strings.NewReader(eventJSON("push", "", "{}")))
				if err != nil || a.Status != http.StatusAccepted {
					c.t.Errorf("status %d, %v", a.Status, err)
					return
				}
			}
		})
	}
	for n := 0; n < 3; n++ {
		receiver.await(len(receiver.got()) + 20)
		c.ask(200, "PATCH", "/webhooks/"+hook, `{"active":false}`)
		at := time.Now()
		before := len(receiver.got())
		control.await(len(control.got()) + 20) // the stream flows on
		// What was on the wire may be read by the receiver a moment later.
		if got := receiver.got(); len(got) > before+streamInFlight {
			c.t.Errorf("%d requests after the webhook was paused, the last %v later", len(got)-before, got[len(got)-1].At.Sub(at))
		}
		quiet := len(receiver.got())
		control.await(len(control.got()) + 20)
		if n := len(receiver.got()) - quiet; n > 0 {
			c.t.Errorf("%d more requests to a paused webhook", n)
		}
		c.ask(200, "PATCH", "/webhooks/"+hook, `{"active":true}`)
	}
	close(stop)
	posting.Wait()
}

func contract19(c *contract) {
	release := make(chan struct{})
	hanging := newReceiver(c.t, func(*wireRequest) wireAnswer { return answerWhen(release, answerStatus(200)) })
	healthy := newReceiver(c.t, nil)
	slow, good := c.hook(hanging.URL, "push", ""), c.hook(healthy.URL, "push", "")
	const at, rounds = 50, 3
	ids := make([][]string, at)
	var posting sync.WaitGroup
	for i := range at {
		posting.Go(func() {
			for range rounds {
				a, err := c.s.send(c.t.Context(), "POST", c.path("/events"), strings.NewReader(eventJSON("push", "", fmt.Sprint(i))))
				if err != nil || a.Status != http.StatusAccepted {
					c.t.Errorf("dispatch %d: status %d, %v: %s", i, a.Status, err, a.Body)
					return
				}
				ids[i] = append(ids[i], read[struct{ EventID string }](c, a).EventID)
			}
		})
	}
	posting.Wait()
	accepted := slices.Sorted(slices.Values(slices.Concat(ids...)))
	if len(slices.Compact(slices.Clone(accepted))) != at*rounds {
		c.t.Fatalf("%d events were accepted, want %d different ones", len(accepted), at*rounds)
	}
	logged := func(hook string) (events []string) {
		for _, row := range c.awaitLog(hook, at*rounds) {
			if !row.success() || row.Attempt != 1 {
				c.t.Errorf("a row is attempt %d with %d, %q", row.Attempt, row.status(), row.body())
			}
			events = append(events, row.EventID)
		}
		return slices.Sorted(slices.Values(events))
	}
	if !slices.Equal(logged(good), accepted) {
		c.t.Error("the log of the healthy webhook doesn't have the events that were accepted")
	}
	// All of that was written while a request hung. So is this.
	hanging.await(1)
	if n := len(c.log(slow)); n > 0 {
		c.t.Errorf("the hanging webhook has %d rows", n)
	}
	c.hook(healthy.URL, "tag", "")
	close(release)
	if !slices.Equal(logged(slow), accepted) {
		c.t.Error("the log of the webhook that hung doesn't have the events that were accepted")
	}
}

// Case 17: a proxy of the environment is not used. (Cookies are below, and redirects in the test of case 8.) Go's own
// clients use none for localhost and loopback addresses, but do for other names of them.
func TestContract17Proxies(t *testing.T) { // not parallel: it sets variables of the environment
	dns := guardtest.NewDNS(t, map[string]string{"receiver.test.": "127.0.0.1"})
	proxy := newReceiver(t, nil)
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"} {
		t.Setenv(name, proxy.URL)
	}
	for _, name := range []string{"NO_PROXY", "no_proxy"} {
		t.Setenv(name, "")
	}
	c := in(t, startServer(t, "--allow-target", "127.0.0.1", "--dns-server", dns.Addr(), "--retry-policy", "none"))
	receiver := newReceiver(t, nil)
	_, port, err := net.SplitHostPort(receiver.Addr)
	if err != nil {
		t.Fatal(err)
	}
	hook := c.hook("http://"+net.JoinHostPort("receiver.test", port)+"/a", "push", "")
	c.dispatch("push", `{}`, 1)
	if row := c.awaitLog(hook, 1)[0]; !row.success() {
		t.Errorf("it is logged as %d, %q", row.status(), row.body())
	}
	if r := receiver.await(1)[0]; r.Line != "POST /a HTTP/1.1" {
		t.Errorf("the request line is %q", r.Line)
	}
	if n := len(proxy.got()); n > 0 {
		t.Errorf("the proxy got %d requests", n)
	}
}

func contract17Cookies(c *contract) {
	receiver := newReceiver(c.t, func(*wireRequest) wireAnswer {
		return answerBody(200, "", "Set-Cookie: session=abc; Path=/", "Set-Cookie: b=2", `ETag: "1"`, "Alt-Svc: h2=\":1\"")
	})
	c.hook(receiver.URL+"/a", "push", "")
	c.hook(receiver.URL+"/b", "push", "")
	for n := 1; n <= 3; n++ {
		c.dispatch("push", `{}`, 2)
		receiver.await(2 * n)
	}
	for _, r := range receiver.got() {
		const want = "Content-Length Content-Type Host User-Agent X-MuseHub-Delivery X-MuseHub-Event webhook-id webhook-timestamp"
		if got := fieldNames(r); got != want {
			c.t.Errorf("the headers are\n%s\nwant\n%s", got, want)
		}
	}
}
