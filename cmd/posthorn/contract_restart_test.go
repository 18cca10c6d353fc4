package main

import (
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/musehub/posthorn/internal/secretbox"
)

// Cases 16, 18 and 35, and the crashes of cases 4 and 34: what is left when a server is started again.
func TestContractRestarts(t *testing.T) {
	t.Parallel()
	together(t, map[string]func(*testing.T){
		"case 04 and 18 crash":                contract18And04,
		"case 10 default, case 35 no payload": contract10And35,
		"case 16 undecryptable secret":        contract16,
		"case 34 crash":                       contract34Crash,
	})
}

// Case 18, one crash in the middle, and with it the part of case 4 that a crash shows. Each webhook has another reason to
// be in the middle of something.
func contract18And04(t *testing.T) {
	restarted := make(chan struct{})
	ok := answerStatus(http.StatusOK)
	receivers := map[string]*wireReceiver{
		"healthy": newReceiver(t, nil),
		"hanging": newReceiver(t, func(*wireRequest) wireAnswer { return answerWhen(restarted, ok) }),
		"failing": newReceiver(t, func(*wireRequest) wireAnswer {
			select {
			case <-restarted:
				return ok
			default:
				return answerStatus(http.StatusInternalServerError)
			}
		}),
	}
	// If it takes long until the crash, what hangs must go on hanging, and what fails must have attempts left. All of their rows
	// fit on a page of the log.
	const events, attempts = 20, 9
	flags := []string{"--timeout", "2m", "--retry-policy", "1s,2s,4s,8s,16s,32s,64s,128s"}
	s := startContract(t, flags...)
	c := in(t, s)
	hooks := map[string]string{}
	for name, receiver := range receivers {
		hooks[name] = c.hook(receiver.URL, "push", "s3cret")
	}
	var accepted []string
	for i := range events {
		accepted = append(accepted, c.dispatch("push", fmt.Sprintf(`{"n":%d.0}`, i), len(hooks)))
	}
	slices.Sort(accepted)
	receivers["healthy"].await(1)
	receivers["hanging"].await(1)
	receivers["failing"].await(1)
	s.kill() // before anything could be written because of the last dispatch
	hung := receivers["hanging"].got()
	close(restarted)

	c = c.at(startContract(t, slices.Concat(flags, []string{"--data", s.data})...))
	for name, hook := range hooks {
		ids := map[string]string{} // of deliveries, by event and attempt
		var delivered []string
		eventually(t, func() string {
			delivered = nil
			for _, row := range c.log(hook) {
				ids[fmt.Sprint(row.EventID, row.Attempt)] = row.DeliveryID
				if row.success() {
					delivered = append(delivered, row.EventID)
				}
			}
			if len(delivered) < events {
				return fmt.Sprintf("%s: %d events are delivered, want %d", name, len(delivered), events)
			}
			return ""
		})
		slices.Sort(delivered)
		if !slices.Equal(delivered, accepted) {
			t.Errorf("%s: it got the events\n%v\nwant\n%v", name, delivered, accepted)
		}
		// Whatever was sent, before and after the crash, has one of the log's delivery ids, and the same for the same attempt.
		for _, r := range receivers[name].got() {
			known := false
			for attempt := 1; attempt <= attempts; attempt++ {
				known = known || ids[fmt.Sprint(r.event(), attempt)] == r.delivery()
			}
			if !known {
				t.Errorf("%s: the delivery %s of the event %s is not in the log", name, r.delivery(), r.event())
			}
			checkSigned(t, r, "s3cret")
		}
	}
	// What was on the wire at the time of the crash is repeated, and can be recognised.
	again := receivers["hanging"].got()[len(hung):]
	for _, first := range hung {
		if !slices.ContainsFunc(again, func(r *wireRequest) bool {
			return r.event() == first.event() && r.delivery() == first.delivery() && string(r.Body) == string(first.Body)
		}) {
			t.Errorf("the delivery %s of the event %s was not repeated", first.delivery(), first.event())
		}
	}
	if rows := c.log(hooks["hanging"]); len(rows) != events || rows[len(rows)-1].Attempt != 1 {
		t.Errorf("the log of the hanging one has %d rows, want one for each event", len(rows))
	}
}

// Case 34, a crash in the middle of a redelivery: the run goes on after the restart where it was.
func contract34Crash(t *testing.T) {
	fail := answerStatus(http.StatusInternalServerError)
	killed := make(chan struct{})
	answers := []wireAnswer{answerStatus(200), fail, answerWhen(killed, fail), answerBody(200, "third")}
	var mu sync.Mutex
	var sent []string // deliveries: one that is sent again gets the same answer
	receiver := newReceiver(t, func(r *wireRequest) wireAnswer {
		mu.Lock()
		defer mu.Unlock()
		if !slices.Contains(sent, r.delivery()) {
			sent = append(sent, r.delivery())
		}
		return answers[min(slices.Index(sent, r.delivery()), len(answers)-1)]
	})
	s := startContract(t, "--timeout", "2m")
	c := in(t, s)
	hook := c.hook(receiver.URL, "push", "")
	event := c.dispatch("push", `{}`, 1)
	first := c.awaitLog(hook, 1)[0]
	c.ask(http.StatusAccepted, "POST", "/webhooks/"+hook+"/deliveries/"+first.DeliveryID+"/redeliver", "", "Prefer: respond-async")
	c.awaitLog(hook, 2) // the run's first attempt failed, its second is due in a second and ends after the crash
	s.kill()
	close(killed)

	c = c.at(startContract(t, "--data", s.data))
	rows := c.awaitLog(hook, 4)
	slices.Reverse(rows)
	for i, want := range []struct {
		attempt, status int
		trigger         string
	}{{1, 200, "automatic"}, {1, 500, "redelivery"}, {2, 500, "redelivery"}, {3, 200, "redelivery"}} {
		row := rows[i]
		if row.Attempt != want.attempt || row.status() != want.status || row.Trigger != want.trigger || row.EventID != event {
			t.Errorf("row %d is attempt %d of %s with %d, want %+v", i, row.Attempt, row.Trigger, row.status(), want)
		}
	}
	ids := map[string]bool{}
	for _, r := range receiver.got() {
		ids[r.delivery()] = true
	}
	for _, row := range rows {
		if !ids[row.DeliveryID] {
			t.Errorf("the delivery %s was never sent", row.DeliveryID)
		}
	}
	if len(ids) != 4 {
		t.Errorf("%d different deliveries were sent, want 4", len(ids))
	}
}

// Case 16: a secret that the server's keys don't decrypt.
func contract16(t *testing.T) {
	// The first start makes a key A. The database then gets a secret that needs B, as from an import or another node.
	s := startContract(t)
	c := in(t, s)
	receiver := newReceiver(t, nil)
	sealedByA := c.hook(receiver.URL+"/a", "push", "secret of a")
	sealedByB := c.hook(receiver.URL+"/b", "push", "another secret")
	unsigned := c.hook(receiver.URL+"/none", "push", "")
	s.stop()
	keyA := secretKey(t, s.data)
	out, err := exec.Command("posthorn", "keys", "generate").Output()
	if err != nil {
		t.Fatal(err)
	}
	keyB := strings.TrimSpace(string(out))
	box, err := secretbox.New([]string{keyB})
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := box.SealFor(sealedByB, "secret of b")
	if err != nil {
		t.Fatal(err)
	}
	sql(t, s.data, "UPDATE posthorn_webhooks SET secrets = ? WHERE id = ?", asJSON([]any{map[string]string{"sealed": sealed}}), sealedByB)
	restart := func(keys ...string) {
		t.Helper()
		setSecretKeys(t, s.data, keys...)
		s = startContract(t, "--data", s.data)
		c = c.at(s)
	}

	// Without B the one webhook's deliveries fail, and say why; the others get theirs.
	restart(keyA)
	event := c.dispatch("push", `{}`, 3)
	for _, r := range receiver.await(2) {
		if r.target() == "/a" {
			checkSigned(t, r, "secret of a")
		} else if r.target() == "/none" {
			checkSigned(t, r)
		}
	}
	for _, hook := range []string{sealedByA, unsigned} {
		if row := c.awaitLog(hook, 1)[0]; !row.success() {
			t.Errorf("it is logged as %d, %q", row.status(), row.body())
		}
	}
	rows := c.awaitLog(sealedByB, 3) // a failed delivery like any other
	for _, row := range rows {
		if row.success() || row.status() != 0 || !strings.HasPrefix(row.body(), "request error: ") ||
			!strings.Contains(row.body(), "secret can't be decrypted") || !strings.Contains(row.body(), "POSTHORN_SECRET_KEYS") {
			t.Errorf("it is logged as %d, %q", row.status(), row.body())
		}
	}
	for _, r := range receiver.got() {
		if r.target() == "/b" {
			t.Errorf("something was sent without the key:\n%s", r.Raw)
		}
	}
	s.stop()

	// With no key at all, or with a wrong one alone, it doesn't start.
	refuse := func(why string, keys ...string) {
		t.Helper()
		setSecretKeys(t, s.data, keys...)
		p, err := startProcess(serveCommand(t, "--data", s.data))
		if err != nil {
			t.Fatal(err)
		}
		defer p.cmd.Process.Kill() // it should have ended by itself
		if code, err := p.exitCode(); err != nil || code == exitOK || !strings.Contains(p.stderr.String(), why) {
			t.Errorf("%s: it ended with %d, %v, and wrote\n%s", why, code, err, p.stderr.String())
		}
	}
	refuse("do not fit", keyB)
	if onPostgres() {
		refuse("POSTHORN_SECRET_KEYS")
	} else {
		refuse("missing")
	}

	// With both keys again, what failed can be sent, rightly signed.
	restart(keyB, keyA)
	n := len(receiver.got())
	c.ask(200, "POST", "/webhooks/"+sealedByB+"/deliveries/"+rows[0].DeliveryID+"/redeliver", "")
	r := receiver.await(n + 1)[n]
	if r.target() != "/b" || r.event() != event {
		t.Errorf("%s got the event %s", r.target(), r.event())
	}
	checkSigned(t, r, "secret of b")
}

// Case 10, the default limit. The server is used for case 35 too.
func contract10And35(t *testing.T) {
	s := startContract(t, "--retry-policy", "none")
	c := in(t, s)
	receiver := newReceiver(t, func(*wireRequest) wireAnswer { return answerHang("") })
	hook := c.hook(receiver.URL, "push", "")
	event := c.dispatch("push", `{"a":1}`, 1)
	row := c.awaitLog(hook, 1)[0]
	if row.status() != 0 || !strings.HasPrefix(row.body(), "timeout: response headers: ") || !strings.Contains(row.body(), "10s") {
		t.Errorf("it is logged as %d, %q", row.status(), row.body())
	}
	if row.DurationMS < 9_500 || row.DurationMS > 40_000 {
		t.Errorf("it took %v ms, want about 10 s", row.DurationMS)
	}
	contractPruned(c, hook, event, row)
}

// Case 35. A server prunes when it starts: one whose retention ends between a delivery and its event, which is made older
// here, removes the event and keeps the delivery.
func contractPruned(c *contract, hook, event string, row loggedDelivery) {
	c.ask(200, "GET", "/events/"+event, "")
	// Not killed: after a crash, rows of an event are looked for from the event's time on, and this one's changes.
	c.s.stop()
	hour := "3600000000" // microseconds
	if onPostgres() {
		hour = "interval '1 hour'"
	}
	sql(c.t, c.s.data, "UPDATE posthorn_events SET created_at = created_at - "+hour+" WHERE id = ?", event)
	c = c.at(startContract(c.t, "--data", c.s.data, "--retention", "30m"))
	eventually(c.t, func() string {
		a, err := c.s.send(c.t.Context(), "GET", c.path("/events/"+event), http.NoBody)
		if err != nil || a.Status != http.StatusNotFound {
			return fmt.Sprintf("the event is still there: %d, %v", a.Status, err)
		}
		return ""
	})
	path := "/webhooks/" + hook + "/deliveries/" + row.DeliveryID
	if kept, _ := c.detail(hook, row.DeliveryID); kept.Payload != nil {
		c.t.Errorf("the delivery has the payload %q", *kept.Payload)
	}
	c.problem(c.ask(http.StatusUnprocessableEntity, "POST", path+"/redeliver", ""), "no longer stored", "--retention")
	c.problem(c.ask(http.StatusUnprocessableEntity, "POST", path+"/redeliver", "", "Prefer: respond-async"), "no longer stored")
	if n := len(c.log(hook)); n != 1 {
		c.t.Errorf("the log has %d rows after that, want the one of before", n)
	}
}
