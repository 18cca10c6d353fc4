package posthorn_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/guardtest"
	"github.com/musehub/posthorn/internal/sender"
	"github.com/musehub/posthorn/sqlite"
)

func TestParseRetryPolicy(t *testing.T) {
	for text, want := range map[string]string{
		"musehub":                        "[1s 2s] 0",
		"none":                           "[] 0",
		"5s":                             "[5s] 0",
		"5s, 1m,2h":                      "[5s 1m0s 2h0m0s] 0",
		"0s,1.5s±20%":                    "[0s 1.5s] 0.2",
		"1m+-100%":                       "[1m0s] 1",
		"140h±20%":                       "[140h0m0s] 0.2",
		"168h":                           "[168h0m0s] 0",
		"168h±1%":                        "",
		"169h":                           "",
		"-1s":                            "",
		"":                               "",
		",":                              "",
		"5s,":                            "",
		"5":                              "",
		"Standard":                       "",
		"5s±20":                          "",
		"5s±120%":                        "",
		"5s±-1%":                         "",
		"5s±1%±1%":                       "",
		"9223372036s,1":                  "",
		strings.Repeat("1s,", 50) + "1s": "",
	} {
		policy, err := posthorn.ParseRetryPolicy(text)
		got := fmt.Sprint(policy.Delays, policy.Jitter)
		if err != nil {
			got = ""
		}
		if got != want || err != nil && posthorn.ErrorCode(err) != posthorn.CodeInvalid {
			t.Errorf("%q: %s, %v, want %s", text, got, err, want)
		}
	}
	standard, err := posthorn.ParseRetryPolicy("standard")
	total := time.Duration(0)
	for _, d := range standard.Delays {
		total += d
	}
	if err != nil || len(standard.Delays) != 9 || total < 72*time.Hour || standard.Jitter != 0.2 {
		t.Errorf("standard is %v over %v, %v", standard, total, err)
	}
}

func TestStatuses(t *testing.T) {
	for text, want := range map[posthorn.Statuses]string{
		"": "", "404": "404", "400-402": "400 401 402", "404, 410-411,404": "404 410 411", "100-999": "all",
		"99": "bad", "1000": "bad", "402-400": "bad", "4xx": "bad", ",": "bad", "404,": "bad", "-404": "bad", "404-": "bad",
		posthorn.Statuses(strings.Repeat("404,", 70) + "404"): "bad",
	} {
		got := "bad"
		if err := text.Check(); err == nil {
			var has []string
			for status := range 1200 {
				if text.Has(status) {
					has = append(has, fmt.Sprint(status))
				}
			}
			if got = strings.Join(has, " "); len(has) == 900 {
				got = "all"
			}
		} else if posthorn.ErrorCode(err) != posthorn.CodeInvalid {
			t.Error(err)
		}
		if got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

var noon = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

func TestRetryAfter(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"": 0, "0": 0, "1": time.Second, "120": 2 * time.Minute, "86401": posthorn.MaxRetryAfter, "18446744073709551615": posthorn.MaxRetryAfter,
		"18446744073709551616": 0, "-1": 0, "1.5": 0, " 1": 0, "1,2": 0, "soon": 0,
		"Wed, 01 Jul 2026 12:00:30 GMT":     30 * time.Second,
		"Wednesday, 01-Jul-26 12:00:30 GMT": 30 * time.Second, // the obsolete forms of RFC 9110, section 5.6.7
		"Wed Jul  1 12:00:30 2026":          30 * time.Second,
		"Wed, 01 Jul 2026 11:00:00 GMT":     0,
		"Wed, 01 Jul 2099 11:00:00 GMT":     posthorn.MaxRetryAfter,
		"2026-07-01T12:00:30Z":              0,
	} {
		if got := posthorn.RetryAfter(value, noon); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}

// Whatever a receiver says, the wait is within its bounds.
func FuzzRetryAfter(f *testing.F) {
	for _, seed := range []string{"", "120", "-1", "99999999999999999999", "Wed, 01 Jul 2026 12:00:30 GMT", "Wed Jul  1 12:00:30 2026", "1e9"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if got := posthorn.RetryAfter(value, noon); got < 0 || got > posthorn.MaxRetryAfter {
			t.Errorf("%q: %v", value, got)
		}
	})
}

// Whatever a policy is that passes, its delays are within their bounds, and so are statuses.
func FuzzRetryPolicy(f *testing.F) {
	for _, seed := range []string{"standard", "5s,1m,2h±20%", "1s+-5%", "168h±0%", "9223372036854775807ns"} {
		f.Add(seed, "400-407,422")
	}
	f.Fuzz(func(t *testing.T, policy, statuses string) {
		if p, err := posthorn.ParseRetryPolicy(policy); err == nil {
			for _, d := range p.Delays {
				if d < 0 || float64(d)*(1+p.Jitter) > float64(posthorn.MaxRetryDelay)+1 || p.Jitter < 0 || p.Jitter > 1 {
					t.Errorf("%q: %v", policy, p)
				}
			}
		} else if p.Delays != nil {
			t.Errorf("%q: %v beside %v", policy, p, err)
		}
		s := posthorn.Statuses(statuses)
		if s.Check() == nil && (s.Has(99) || s.Has(1000) || s.Has(0)) {
			t.Errorf("%q has what is no status", statuses)
		}
	})
}

func (w *world) withOptions(repoID, url string, o posthorn.Options) posthorn.Webhook {
	w.t.Helper()
	hook, err := w.CreateWebhook(w.t.Context(), posthorn.NewWebhook{RepoID: repoID, URL: url, Events: []string{"push"}, Options: o})
	if err != nil {
		w.t.Fatal(err)
	}
	return hook
}

// gaps are the pauses between the requests to a URL, to the second.
func (w *world) gaps(url string) (gaps []time.Duration) {
	seen := w.seen(url)
	for i := 1; i < len(seen); i++ {
		gaps = append(gaps, seen[i].at.Sub(seen[i-1].at).Round(time.Second))
	}
	return gaps
}

// Webhooks have their own policies, statuses and bounds; Retry-After is honoured within its own.
func TestRetryOptions(t *testing.T) {
	policy := posthorn.RetryPolicy{Delays: []time.Duration{10 * time.Second}}
	after := func(status int, values ...string) func(int) sender.Outcome {
		return func(n int) sender.Outcome {
			o := sender.Outcome{Status: status}
			if n < len(values) {
				o.Header = http.Header{"Retry-After": {values[n]}}
			}
			return o
		}
	}
	for name, c := range map[string]struct {
		options posthorn.Options
		answer  func(n int) sender.Outcome
		want    []time.Duration // between the requests of the first two minutes
		next    time.Duration   // from the last of these to the one after
	}{
		"the node's":         {posthorn.Options{}, after(500), []time.Duration{10 * time.Second}, 0},
		"none":               {posthorn.Options{RetryPolicy: "none"}, after(500), nil, 0},
		"a list":             {posthorn.Options{RetryPolicy: "1s,3s,48h"}, after(500), []time.Duration{time.Second, 3 * time.Second}, 48 * time.Hour},
		"final for the node": {posthorn.Options{}, after(451), nil, 0},
		"not for its own":    {posthorn.Options{FinalStatuses: "404"}, after(451), []time.Duration{10 * time.Second}, 0},
		"final for its own":  {posthorn.Options{FinalStatuses: "404"}, after(404), nil, 0},
		"longer":             {posthorn.Options{}, after(503, "60"), []time.Duration{time.Minute}, 0},
		"shorter":            {posthorn.Options{}, after(503, "1"), []time.Duration{10 * time.Second}, 0},
		"too long":           {posthorn.Options{}, after(500, "999999999"), nil, posthorn.MaxRetryAfter},
		"each time":          {posthorn.Options{RetryPolicy: "1s,1s"}, after(429, "30", "nonsense"), []time.Duration{30 * time.Second, time.Second}, 0},
		"no more attempts":   {posthorn.Options{RetryPolicy: "none"}, after(429, "30"), nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, posthorn.Config{RetryPolicy: &policy, FinalStatuses: "451"}, func(t *testing.T, w *world) {
				hook := w.withOptions("r1", good, c.options)
				var asked atomic.Int32
				w.answers(func(request) sender.Outcome { return c.answer(int(asked.Add(1)) - 1) })
				w.dispatch("r1", "e1")
				pass(2 * time.Minute)
				if got := w.gaps(good); !slices.Equal(got, c.want) {
					t.Errorf("requests are %v apart, want %v", got, c.want)
				}
				rows := w.deliveries(hook)
				if len(rows) != len(c.want)+1 {
					t.Fatalf("the log has %+v", rows)
				}
				next := time.Duration(0)
				if at := rows[0].NextAttemptAt; !at.IsZero() {
					next = at.Sub(rows[0].DeliveredAt)
				}
				if next != c.next {
					t.Errorf("the next one is due in %v, want %v", next, c.next)
				}
			})
		})
	}
}

// A look-up that fails is a failure like any other: the next attempt asks again. Here with the real sender and a real DNS server.
func TestFailedLookupIsRetried(t *testing.T) {
	receiver := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(receiver.Close)
	_, port, _ := net.SplitHostPort(receiver.Listener.Addr().String())
	store, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "posthorn.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	dns := guardtest.NewDNS(t, map[string]string{"hook.test.": "fail"})
	made := make(chan posthorn.Delivery, 100)
	d, err := posthorn.New(store, posthorn.Config{
		AllowTargets: []string{"127.0.0.1"}, Resolver: dns.Resolver(), Logger: slog.New(slog.DiscardHandler),
		RetryPolicy: &posthorn.RetryPolicy{Delays: slices.Repeat([]time.Duration{50 * time.Millisecond}, 40)},
		OnDelivery:  func(d posthorn.Delivery) { made <- d },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Stop(context.Background()) })
	if _, err := d.CreateWebhook(t.Context(), posthorn.NewWebhook{RepoID: "r1", URL: "http://hook.test:" + port, Events: []string{"push"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Dispatch(t.Context(), posthorn.Event{RepoID: "r1", Type: "push", Payload: json.RawMessage("{}")}); err != nil {
		t.Fatal(err)
	}
	first := <-made
	if first.Success || first.ResponseBody != "request error: DNS: the lookup failed" || first.NextAttemptAt.IsZero() {
		t.Fatalf("the first attempt is %+v", first)
	}
	dns.Set("hook.test.", "127.0.0.1")
	for last := first; !last.Success; last = <-made {
		if last.NextAttemptAt.IsZero() {
			t.Fatalf("the last attempt is %+v", last)
		}
	}
}

// While a receiver wants to be left alone, it is, whatever there is for it; others get theirs.
func TestRetryAfterHoldsAll(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		w.webhook("r1", good)
		w.webhook("r1", bad)
		var limited atomic.Bool
		limited.Store(true)
		w.answers(func(r request) sender.Outcome {
			if r.url == bad && limited.Load() {
				return sender.Outcome{Status: 429, Header: http.Header{"Retry-After": {"20"}}}
			}
			return ok200
		})
		w.dispatch("r1", "first")
		synctest.Wait()
		for i := range 30 {
			w.dispatch("r1", fmt.Sprint("e", i))
		}
		pass(19 * time.Second)
		if n := len(w.seen(bad)); n != 1 {
			t.Errorf("%d requests arrived where one was too many", n)
		}
		if n := len(w.seen(good)); n != 31 {
			t.Errorf("the other one got %d requests", n)
		}
		limited.Store(false)
		pass(2 * time.Second)
		synctest.Wait()
		if n := len(w.seen(bad)); n != 32 { // the first one twice
			t.Errorf("%d requests in the end, want 32", n)
		}
	})
}

// Receivers that ask for a pause have little in memory meanwhile, so that there is room for others.
func TestHeldLeaveRoom(t *testing.T) {
	inWorld(t, posthorn.Config{MaxQueuedBytes: 256 << 10}, func(t *testing.T, w *world) {
		const limited, backlog = 8, 100
		var holding atomic.Bool
		w.answers(func(r request) sender.Outcome {
			if r.url != good && holding.Load() {
				return sender.Outcome{Status: 429, Header: http.Header{"Retry-After": {"60"}}}
			}
			return ok200
		})
		dispatch := func(repo string) {
			if _, err := w.Dispatch(t.Context(), posthorn.Event{RepoID: repo, Type: "push", Payload: strings.Repeat("x", 4<<10)}); err != nil {
				t.Error(err)
			}
		}
		for i := range limited {
			w.webhook("r1", fmt.Sprint("http://limited/", i))
		}
		w.webhook("r2", good)
		dispatch("r1") // they are proven now
		synctest.Wait()
		holding.Store(true)
		for range backlog {
			dispatch("r1")
		}
		pass(5 * time.Second)
		dispatch("r2")
		pass(time.Second / 2)
		if n := len(w.seen(good)); n != 1 {
			t.Errorf("%d requests to the one that asks for no pause", n)
		}
		if _, bytes := w.Held(); bytes > 192<<10 {
			t.Errorf("%d bytes in memory are of paused webhooks", bytes)
		}
		holding.Store(false)
		pass(2 * time.Minute)
		if n, most := len(w.seen("")), limited*(backlog+10)+1; n < limited*(backlog+1)+1 || n > most {
			t.Errorf("%d requests in the end, at most %d are needed", n, most)
		}
	})
}

// A receiver that takes a few requests and then asks for a pause, again and again, does not have its backlog moved between the store and
// memory each time.
func TestHeldAgainAndAgain(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		const backlog, atOnce = 600, 10
		w.webhook("r1", bad)
		taken := 0
		w.answers(func(r request) sender.Outcome {
			w.mu.Lock()
			defer w.mu.Unlock()
			if taken++; taken%(atOnce+1) == 0 {
				return sender.Outcome{Status: 429, Header: http.Header{"Retry-After": {"1"}}}
			}
			return ok200
		})
		for i := range backlog {
			w.dispatch("r1", fmt.Sprint("e", i))
		}
		pass(20 * time.Second)
		seen := len(w.seen(bad))
		if seen < 15*atOnce {
			t.Errorf("only %d requests were made", seen)
		}
		if claimed := int(w.claimed.Load()); claimed > 3*seen {
			t.Errorf("%d entries were claimed for %d requests", claimed, seen)
		}
	})
}

// What was held while a webhook was not active for a while comes with few requests at first, on each node, also to a receiver that took
// many at once before.
func TestActiveAgainGently(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		other := w.another("B")
		hook := w.withOptions("r1", good, posthorn.Options{KeepWhileInactive: true})
		inFlight, most := 0, 0
		w.answers(func(request) sender.Outcome {
			w.mu.Lock()
			inFlight++
			most = max(most, inFlight)
			w.mu.Unlock()
			pass(50 * time.Millisecond)
			w.mu.Lock()
			inFlight--
			w.mu.Unlock()
			return ok200
		})
		atOnce := func() int { // since it was asked last
			w.mu.Lock()
			defer w.mu.Unlock()
			defer func() { most = inFlight }()
			return most
		}
		burst := func(name string) {
			for i := range 150 {
				w.dispatch("r1", fmt.Sprint(name, i))
				other.dispatch("r1", fmt.Sprint(name, "B", i))
			}
		}
		burst("before")
		pass(20 * time.Second)
		if n := atOnce(); n < 20 {
			t.Fatalf("the receiver had only %d requests at once", n)
		}
		active := false
		if _, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, posthorn.WebhookPatch{Active: &active}); err != nil {
			t.Fatal(err)
		}
		pass(3 * time.Minute)
		burst("held")
		active = true
		if _, err := w.UpdateWebhook(t.Context(), "r1", hook.ID, posthorn.WebhookPatch{Active: &active}); err != nil {
			t.Fatal(err)
		}
		for atOnce() == 0 {
			pass(10 * time.Millisecond)
		}
		pass(150 * time.Millisecond) // three rounds
		if n := atOnce(); n > 16 {
			t.Errorf("%d requests at once arrived at first", n)
		}
		pass(time.Minute)
		if n := len(w.seen(good)); n != 600 {
			t.Errorf("%d requests in the end", n)
		}
	})
}

// A receiver that says that it, or what stands behind it, has too much to do is sent one request at a time, where another failure
// only halves how many there are.
func TestSlowedDown(t *testing.T) {
	for status, want := range map[int]int{429: 1, 502: 1, 504: 1, 500: 4, 503: 4, 408: 4} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			inWorld(t, posthorn.Config{MaxInFlightPerWebhook: 8, RetryPolicy: &posthorn.RetryPolicy{}}, func(t *testing.T, w *world) {
				w.webhook("r1", good)
				failed := make(chan struct{})
				w.answers(func(r request) sender.Outcome {
					pass(100 * time.Millisecond)
					if r.eventID == "e60" { // when there are eight at a time
						close(failed)
						return sender.Outcome{Status: status}
					}
					return ok200
				})
				for i := range 120 {
					w.dispatch("r1", fmt.Sprint("e", i))
				}
				<-failed
				w.mu.Lock()
				most := w.most[good]
				w.mu.Unlock()
				pass(150 * time.Millisecond) // those that were under way beside it are over
				w.mu.Lock()
				got := w.inFlight[good]
				w.mu.Unlock()
				if most != 8 || got != want {
					t.Errorf("%d requests at a time before, %d after; want 8 and %d", most, got, want)
				}
				pass(time.Minute)
				if n := len(w.seen(good)); n != 120 {
					t.Errorf("%d requests in the end, want 120", n)
				}
			})
		})
	}
}

// 410 disables a webhook, with a reason; what is queued waits until it is active again.
func TestGone(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		hook := w.withOptions("r1", good, posthorn.Options{MaxInFlight: 1})
		var gone atomic.Bool
		gone.Store(true)
		w.answers(func(request) sender.Outcome {
			if gone.Load() {
				pass(time.Second) // in which all are dispatched
				return sender.Outcome{Status: 410, Body: "closed"}
			}
			return ok200
		})
		for i := range 5 {
			w.dispatch("r1", fmt.Sprint("e", i))
		}
		pass(time.Minute)
		if n := len(w.seen(good)); n != 1 {
			t.Errorf("%d requests arrived, want 1", n)
		}
		hook, err := w.Webhook(t.Context(), "r1", hook.ID)
		if err != nil || hook.Active || !strings.Contains(hook.DisabledReason, "410") {
			t.Errorf("the webhook is %+v, %v", hook, err)
		}
		rows := w.deliveries(hook)
		if len(rows) != 1 || rows[0].ResponseStatus != 410 || !rows[0].NextAttemptAt.IsZero() {
			t.Errorf("the log has %+v", rows)
		}
		if r := w.dispatch("r1", "meanwhile"); r.Deliveries != 0 {
			t.Errorf("%+v", r)
		}
		audit, err := w.AuditLog(t.Context(), posthorn.AuditQuery{RepoID: "r1", Limit: 1})
		if err != nil || audit.Items[0].Action != "webhook.disable" || audit.Items[0].Actor != "" || audit.Items[0].Subject != hook.ID {
			t.Errorf("the audit log has %+v, %v", audit.Items, err)
		}
		gone.Store(false)
		if hook, err = w.UpdateWebhook(t.Context(), "r1", hook.ID, posthorn.WebhookPatch{Active: new(true)}); err != nil || hook.DisabledReason != "" {
			t.Errorf("%+v, %v", hook, err)
		}
		pass(10 * time.Second)
		if n := len(w.seen(good)); n != 5 { // 410 is final for the event that got it
			t.Errorf("%d requests in the end, want 5", n)
		}

		// Whose URL was changed meanwhile stays.
		elsewhere := "https://elsewhere.example/"
		w.answers(func(request) sender.Outcome {
			if !gone.Swap(true) {
				if _, err := w.UpdateWebhook(context.Background(), "r1", hook.ID, posthorn.WebhookPatch{URL: &elsewhere}); err != nil {
					t.Error(err)
				}
			}
			return sender.Outcome{Status: 410}
		})
		w.dispatch("r1", "moved")
		pass(time.Minute)
		if hook, err = w.Webhook(t.Context(), "r1", hook.ID); err != nil || !hook.Active {
			t.Errorf("%+v, %v", hook, err)
		}
	})
}

func TestOptionsRefused(t *testing.T) {
	inWorld(t, posthorn.Config{}, func(t *testing.T, w *world) {
		for field, options := range map[string][]posthorn.Options{
			"retryPolicy":   {{RetryPolicy: "often"}, {RetryPolicy: "1000h"}},
			"finalStatuses": {{FinalStatuses: "4xx"}},
			"timeout":       {{Timeout: time.Millisecond}, {Timeout: 61 * time.Second}, {Timeout: -1}},
			"maxInFlight":   {{MaxInFlight: -1}, {MaxInFlight: 10_001}},
			"maxPerSecond":  {{MaxPerSecond: -1}, {MaxPerSecond: posthorn.MaxPerSecondLimit + 1}},
		} {
			for _, o := range options {
				_, err := w.CreateWebhook(t.Context(), posthorn.NewWebhook{RepoID: "r1", URL: good, Events: []string{"push"}, Options: o})
				if e, ok := errors.AsType[*posthorn.Error](err); !ok || e.Code != posthorn.CodeInvalid || e.Field != field {
					t.Errorf("%+v: %v", o, err)
				}
			}
		}
	})
}

// Rates and requests in flight hold at the receiver, also after a change and a restart; what is held back is late, not lost.
func TestFlowOptions(t *testing.T) {
	inWorld(t, posthorn.Config{MaxQueued: 50}, func(t *testing.T, w *world) {
		const slow, narrow = "https://slow.example/", "https://narrow.example/"
		paced := w.withOptions("r1", slow, posthorn.Options{MaxPerSecond: 10})
		w.withOptions("r1", narrow, posthorn.Options{MaxInFlight: 2})
		w.webhook("r1", good)
		w.answers(func(r request) sender.Outcome {
			if r.url == narrow {
				pass(100 * time.Millisecond)
			}
			return ok200
		})
		const events = 200
		for i := range events {
			w.dispatch("r1", fmt.Sprint("e", i))
		}
		synctest.Wait()
		if n := len(w.seen(good)); n != events {
			t.Errorf("the webhook without limits got %d of %d at once", n, events)
		}
		pass(8 * time.Second)
		if err := w.Stop(context.Background()); err != nil {
			t.Fatal(err)
		}
		w.start()
		pass(time.Minute)
		// least returns the smallest pause between requests from one on.
		least := func(from int) time.Duration {
			seen, smallest := w.seen(slow), time.Hour
			for i := from + 1; i < len(seen); i++ {
				smallest = min(smallest, seen[i].at.Sub(seen[i-1].at))
			}
			return smallest
		}
		if n := len(w.seen(slow)); n != events {
			t.Errorf("%d requests, want %d", n, events)
		}
		seen := w.seen(slow)
		if took := seen[len(seen)-1].at.Sub(seen[0].at); took < 19*time.Second || took > 30*time.Second {
			t.Errorf("%d requests at 10 in a second took %v", events, took)
		}
		if d := least(0); d < 99*time.Millisecond && d > time.Millisecond { // the restart may have two of them meet
			t.Errorf("two requests are %v apart", d)
		}
		if w.most[narrow] > 2 || len(w.seen(narrow)) != events {
			t.Errorf("%d of %d requests, at most %d at a time", len(w.seen(narrow)), events, w.most[narrow])
		}

		if _, err := w.UpdateWebhook(t.Context(), "r1", paced.ID, posthorn.WebhookPatch{MaxPerSecond: new(2)}); err != nil {
			t.Fatal(err)
		}
		for i := range 10 {
			w.dispatch("r1", fmt.Sprint("f", i))
		}
		pass(6 * time.Second)
		if d, n := least(events), len(w.seen(slow)); d < 499*time.Millisecond || n != events+10 {
			t.Errorf("after the change %d requests, at least %v apart", n-events, d)
		}
	})
}
