package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Cases 7, 8, 9, 11 and 15, and 10 but for the default limit: what becomes of an attempt.
func TestContractOutcomes(t *testing.T) {
	t.Parallel()
	together(t, map[string]func(*testing.T){
		"case 07 and 08 statuses":           contract07And08,
		"case 09 and 10 timeouts":           contract09And10,
		"case 09 and 15 transport failures": contract09And15,
		"case 09 refused addresses":         contract09Refused,
		"case 11 retries":                   contract11,
		"case 11 other policies":            contract11Others,
	})
}

// Which answers are a success.
func contract07And08(t *testing.T) {
	s := startContract(t, "--retry-policy", "none")
	c := in(t, s)
	canary := newReceiver(t, nil) // where Location points
	receiver := newReceiver(t, func(r *wireRequest) wireAnswer {
		status, _ := strconv.Atoi(strings.TrimPrefix(r.target(), "/"))
		raw := fmt.Sprintf("HTTP/1.1 %d Some Reason\r\nConnection: close\r\nLocation: %s/stolen\r\n", status, canary.URL)
		if status == http.StatusNoContent || status == http.StatusNotModified {
			return answerRaw(raw + "\r\n")
		}
		return answerRaw(raw + "Content-Length: 4\r\n\r\nbody")
	})
	hooks := map[int]string{}
	for _, status := range []int{
		101, 200, 201, 202, 203, 204, 205, 206, 207, 226, 299, 300, 301, 302, 303, 304, 305, 307, 308, 399,
		400, 401, 403, 404, 408, 409, 410, 418, 422, 429, 451, 499, 500, 501, 502, 503, 504, 599, 600, 999,
	} {
		hooks[status] = c.hook(fmt.Sprintf("%s/%d", receiver.URL, status), "push", "")
	}
	c.dispatch("push", `{}`, len(hooks))
	for status, hook := range hooks {
		row := c.awaitLog(hook, 1)[0]
		if row.status() != status {
			t.Errorf("%d is logged as %d, %q", status, row.status(), row.body())
		}
		if want := status >= 200 && status <= 299; row.success() != want {
			t.Errorf("success of %d is %v, want %v", status, row.success(), want)
		}
		if row.NextAttemptAt != nil {
			t.Errorf("%d is to be attempted again, with the retry policy none", status)
		}
	}
	if n := len(receiver.got()); n != len(hooks) {
		t.Errorf("%d requests for %d webhooks", n, len(hooks))
	}
	if n := len(canary.got()); n > 0 {
		t.Errorf("Location was requested %d times", n)
	}
}

// failure is a way in which no response is received, and how the row tells that.
type failure struct{ prefix, phase string }

// Cases 9 and 10, the time limit: the text starts "timeout: ", the limit is that of the whole attempt.
func contract09And10(t *testing.T) {
	s := startContract(t, "--retry-policy", "none", "--timeout", "1s", "--max-payload", "25MiB")
	c := in(t, s)
	const head = "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n"
	ways := map[string]wireAnswer{
		"/response headers/none":     answerHang(""),
		"/response headers/some":     answerHang("HTTP/1.1 200 OK\r\nContent-"),
		"/response headers/dripping": answerStream("HTTP/1.1 200 OK\r\n", "A: b\r\n", 100*time.Millisecond),
		"/response body/none":        answerHang(head + "\r\n"),
		"/response body/some":        answerHang(head + "\r\nsome"),
		"/response body/dripping":    answerStream(head+"\r\n", "x", 100*time.Millisecond),
	}
	receiver := newReceiver(t, func(r *wireRequest) wireAnswer { return ways[strings.ReplaceAll(r.target(), "%20", " ")] })
	hooks := map[string]string{}
	for way := range ways {
		hooks[way] = c.hook(receiver.URL+strings.ReplaceAll(way, " ", "%20"), "push", "")
	}
	silent := listen(t) // accepts, and never reads or writes
	hooks["/TLS/"] = c.hook("https://"+silent, "push", "")
	c.dispatch("push", `{}`, len(hooks))
	big := c.hook("http://"+silent, "tag", "")
	c.dispatch("tag", `"`+strings.Repeat("x", 5<<20)+`"`, 1) // more than the sockets' buffers take
	hooks["/request/"] = big
	for way, hook := range hooks {
		row := c.awaitLog(hook, 1)[0]
		phase, limit := strings.Split(way, "/")[1], time.Second
		if early(row, phase) {
			limit = 30 * time.Second
			c.ask(200, "PATCH", "/webhooks/"+hook, `{"timeout":30}`)
			c.redeliver(200, hook, row.DeliveryID)
			row = c.awaitLog(hook, 2)[0]
		}
		if row.success() || row.status() != 0 || !strings.HasPrefix(row.body(), "timeout: "+phase+": ") {
			t.Errorf("%s is logged as %d, %q", way, row.status(), row.body())
		}
		if !strings.Contains(row.body(), limit.String()) || namesAddress(row.body()) {
			t.Errorf("%s: the text is %q", way, row.body())
		}
		// Without a limit for all of it, dripping never ends.
		if least := float64(limit.Milliseconds()); row.DurationMS < least || row.DurationMS > least+19_000 {
			t.Errorf("%s took %v ms", way, row.DurationMS)
		}
	}
}

// early reports whether an attempt ran out of time before the phase in which the receiver makes it wait. On a busy machine a
// second may be over by then. What comes before a look-up is called the request too.
func early(row loggedDelivery, phase string) bool {
	phases := []string{"DNS", "connect", "request", "TLS", "response headers", "response body"}
	return slices.ContainsFunc(phases[:slices.Index(phases, phase)], func(before string) bool {
		return strings.HasPrefix(row.body(), "timeout: "+before+": ")
	})
}

// listen returns a loopback address at which connections are accepted and then left alone.
func listen(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

// closedAddr returns a loopback address at which nobody listens, and nobody else can until the test ends: its port is taken.
func closedAddr(t *testing.T) string {
	t.Helper()
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(socket) })
	syscall.CloseOnExec(socket)
	if err := syscall.Bind(socket, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	addr, err := syscall.Getsockname(socket)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint("127.0.0.1:", addr.(*syscall.SockaddrInet4).Port)
}

// Case 9, connections that fail, and case 15, certificates that do. The name that can't be looked up is one for which no
// query may be sent (RFC 7686).
func contract09And15(t *testing.T) {
	s := startContract(t, "--retry-policy", "none")
	c := in(t, s)
	selfSigned := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request over a bad certificate") }))
	selfSigned.Config.ErrorLog = log.New(io.Discard, "", 0)
	selfSigned.StartTLS()
	defer selfSigned.Close()
	receiver := newReceiver(t, func(r *wireRequest) wireAnswer {
		return answerRaw(map[string]string{
			"/close": "", "/garbage": "hello\r\n\r\n", "/no-status": "HTTP/1.1 abc OK\r\n\r\n", "/half": "HTTP/1.1 200 OK\r\nA: ",
		}[r.target()])
	})
	last := newReceiver(t, nil)
	plain := httptest.NewServer(nil)
	defer plain.Close()
	hooks := map[string]failure{
		c.hook("http://"+closedAddr(t), "push", ""):                                {"request error: connect: ", "refused"},
		c.hook("http://example.onion/", "push", ""):                                {"request error: DNS: ", ""},
		c.hook("https://"+selfSigned.Listener.Addr().String()+"/", "push", "s3cr"): {"request error: TLS: ", "certificate"},
		c.hook(strings.Replace(plain.URL, "http:", "https:", 1), "push", ""):       {"request error: TLS: ", ""},
		c.hook(receiver.URL+"/close", "push", ""):                                  {"request error: response headers: ", "closed"},
		c.hook(receiver.URL+"/garbage", "push", ""):                                {"request error: response headers: ", "malformed"},
		c.hook(receiver.URL+"/no-status", "push", ""):                              {"request error: response headers: ", "malformed"},
		c.hook(receiver.URL+"/half", "push", ""):                                   {"request error: response headers: ", "closed"},
	}
	good := c.hook(last.URL, "push", "") // made last: what befalls the others doesn't keep it from its event
	c.dispatch("push", `{}`, len(hooks)+1)
	last.await(1)
	if row := c.awaitLog(good, 1)[0]; !row.success() {
		t.Errorf("the one that works is logged as %d, %q", row.status(), row.body())
	}
	for hook, want := range hooks {
		row := c.awaitLog(hook, 1)[0]
		if row.success() || row.status() != 0 || !strings.HasPrefix(row.body(), want.prefix) || !strings.Contains(row.body(), want.phase) {
			t.Errorf("%s is logged as %d, %q, want %q… %q", row.URL, row.status(), row.body(), want.prefix, want.phase)
		}
		if namesAddress(row.body()) {
			t.Errorf("the text names an address: %q", row.body())
		}
	}
	// A request is sent once, also where the connection breaks before there is an answer.
	if n := len(receiver.got()); n != 4 {
		t.Errorf("%d requests, want 4", n)
	}
}

// Case 9, addresses that are refused. A name is taken at registration; where it leads is judged when it is dialed.
func contract09Refused(t *testing.T) {
	receiver := newReceiver(t, nil)
	_, port, err := net.SplitHostPort(receiver.Addr)
	if err != nil {
		t.Fatal(err)
	}
	s := startServer(t) // no --allow-target
	c := in(t, s)
	hook := c.hook("http://localhost:"+port+"/x", "push", "s3cret")
	c.dispatch("push", `{}`, 1)
	rows := c.awaitLog(hook, 3) // it is attempted as often as what fails otherwise
	for _, row := range rows {
		if row.success() || row.status() != 0 || !strings.HasPrefix(row.body(), "SSRF blocked: ") {
			t.Errorf("it is logged as %d, %q", row.status(), row.body())
		}
		for _, word := range []string{"connect", "loopback", "--allow-target"} { // phase, rule and setting
			if !strings.Contains(row.body(), word) {
				t.Errorf("the text doesn't name %q: %q", word, row.body())
			}
		}
		detail, a := c.detail(hook, row.DeliveryID)
		if namesAddress(*detail.ResponseBody) || strings.Contains(string(a.Body), "127.0.0.1") || strings.Contains(string(a.Body), "::1") {
			t.Errorf("it names the address: %s", a.Body)
		}
	}
	receiver.mu.Lock()
	defer receiver.mu.Unlock()
	if receiver.conns > 0 {
		t.Errorf("there were %d connections", receiver.conns)
	}
}

// Case 11: the policy is musehub unless another one is named.
func contract11(t *testing.T) {
	fail, ok := answerStatus(http.StatusInternalServerError), answerStatus(http.StatusOK)
	c := in(t, startContract(t))
	receiver := newReceiver(t, script(fail))
	hook := c.hook(receiver.URL, "push", "")
	healing := newReceiver(t, script(fail, ok))
	healed := c.hook(healing.URL, "push", "")
	c.dispatch("push", `{}`, 2)
	requests := receiver.await(3)
	rows := c.awaitLog(hook, 3)
	for i, delay := range []time.Duration{time.Second, 2 * time.Second} {
		row, next := rows[2-i], rows[1-i]
		if row.Attempt != i+1 || row.success() || row.NextAttemptAt == nil || row.NextAttemptAt.Sub(row.DeliveredAt) != delay {
			t.Errorf("row %d: attempt %d, next at %v, delivered at %v, want %v between them", i, row.Attempt, row.NextAttemptAt, row.DeliveredAt, delay)
			continue
		}
		if next.DeliveredAt.Before(*row.NextAttemptAt) {
			t.Errorf("attempt %d ended at %v, before it was due at %v", i+2, next.DeliveredAt, row.NextAttemptAt)
		}
		if pause := requests[i+1].At.Sub(requests[i].At); pause < delay*9/10 || pause > delay+20*time.Second {
			t.Errorf("attempt %d came %v after the one before, want %v", i+2, pause, delay)
		}
	}
	if last := rows[0]; last.Attempt != 3 || last.NextAttemptAt != nil {
		t.Errorf("the last row is attempt %d, next at %v", last.Attempt, last.NextAttemptAt)
	}
	// A success ends the run.
	rows = c.awaitLog(healed, 2)
	if rows[0].Attempt != 2 || !rows[0].success() || rows[0].NextAttemptAt != nil || rows[1].success() {
		t.Errorf("one failure and one success are logged as %+v", rows)
	}
	// A fourth attempt, doubling on, would be due 4 s after the third: as long as another event needs for its three, and one
	// more for its first two.
	c.dispatch("push", `{}`, 2)
	receiver.await(6)
	c.dispatch("push", `{}`, 2)
	receiver.await(8)
	count := map[string]int{}
	for _, r := range receiver.got() {
		count[r.event()]++
	}
	if first := requests[0].event(); count[first] != 3 || len(healing.got()) > 6 {
		t.Errorf("%d attempts of the first event, want 3; %d of those that succeed, want at most 6", count[first], len(healing.got()))
	}
}

func contract11Others(t *testing.T) {
	fail := answerStatus(http.StatusInternalServerError)
	receiver := newReceiver(t, script(fail))
	c := in(t, startContract(t, "--retry-policy", "standard"))
	hook := c.hook(receiver.URL, "push", "")
	c.dispatch("push", `{}`, 1)
	row := c.awaitFirst(hook)
	if row.NextAttemptAt == nil || row.NextAttemptAt.Sub(row.DeliveredAt) < 4*time.Second || row.NextAttemptAt.Sub(row.DeliveredAt) > 6*time.Second {
		t.Errorf("standard: delivered at %v, next at %v, want about 5 s", row.DeliveredAt, row.NextAttemptAt)
	}
}
