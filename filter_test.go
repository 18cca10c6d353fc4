package posthorn_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/musehub/posthorn"
)

// A webhook gets the events that its filter is true for, by Dispatch and in a batch, and a ping whatever the filter says.
func TestFilter(t *testing.T) {
	var log bytes.Buffer
	cfg := posthorn.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}
	inWorld(t, cfg, func(t *testing.T, w *world) {
		const main, busy, broken = "https://main.example/", "https://busy.example/", "https://broken.example/"
		filtered := w.withOptions("r1", main, posthorn.Options{Filter: `payload.branch == "main"`})
		w.withOptions("r1", busy, posthorn.Options{Filter: `payload.commitCount > 2 && type == "push"`})
		w.withOptions("r1", broken, posthorn.Options{Filter: `payload.missing == 1`})
		w.webhook("r1", good)
		event := func(branch string, commits int) posthorn.Event {
			return posthorn.Event{
				ID: fmt.Sprint(branch, commits), RepoID: "r1", Type: "push",
				Payload: json.RawMessage(fmt.Sprintf(`{"branch":%q,"commitCount":%d}`, branch, commits)),
			}
		}
		got := func(url string) (ids []string) {
			for _, r := range w.seen(url) {
				ids = append(ids, r.eventID)
			}
			slices.Sort(ids)
			return ids
		}
		expect := func(url string, want ...string) {
			t.Helper()
			if got := got(url); !slices.Equal(got, want) {
				t.Errorf("%s got %v, want %v", url, got, want)
			}
		}
		for want, e := range map[int]posthorn.Event{3: event("main", 3), 1: event("x", 1)} {
			receipt, err := w.Dispatch(t.Context(), e)
			if err != nil || receipt.Deliveries != want {
				t.Errorf("%s: %+v, %v", e.ID, receipt, err)
			}
		}
		receipts, err := w.DispatchBatch(t.Context(), []posthorn.Event{event("main", 1), event("x", 9), event("main", 9), event("y", 0)})
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []int{2, 2, 3, 1} {
			if receipts[i].Deliveries != want {
				t.Errorf("event %d of the batch goes to %d webhooks, want %d", i, receipts[i].Deliveries, want)
			}
		}
		synctest.Wait()
		expect(main, "main1", "main3", "main9")
		expect(busy, "main3", "main9", "x9")
		expect(broken)
		expect(good, "main1", "main3", "main9", "x1", "x9", "y0")
		if !strings.Contains(log.String(), "no such key: missing") || strings.Count(log.String(), "can't be evaluated") != 1 {
			t.Errorf("the log says %s", &log)
		}

		if _, err := w.Ping(t.Context(), "r1", filtered.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := w.UpdateWebhook(t.Context(), "r1", filtered.ID, posthorn.WebhookPatch{Filter: new(`payload.branch != "main"`)}); err != nil {
			t.Fatal(err)
		}
		for _, e := range []posthorn.Event{event("main", 100), event("z", 100)} {
			if _, err := w.Dispatch(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		seen := w.seen(main)
		if len(seen) != 5 || seen[3].eventType != posthorn.EventPing || seen[4].eventID != "z100" {
			t.Errorf("after the change it got %v", got(main))
		}

		// What is said of past events doesn't keep their payloads.
		results, err := w.TestFilter(t.Context(), "r1", `payload.branch == "z"`, 2)
		if err != nil || len(results) != 2 {
			t.Fatalf("%+v, %v", results, err)
		}
		for i, want := range []string{"z100", "main100"} {
			if r := results[i]; r.Event.ID != want || r.Matches != (i == 0) || r.Err != nil || r.Event.Payload != nil {
				t.Errorf("%+v, want %s without its payload", r, want)
			}
		}
	})
}

// A pattern stands for all types that begin as it does, up to a dot.
func TestEventPatterns(t *testing.T) {
	inWorld(t, posthorn.Config{EventTypes: []string{"issue", "issue.opened", "issue.label.added", "issues.x"}}, func(t *testing.T, w *world) {
		hook := func(pattern string) (posthorn.Webhook, error) {
			return w.CreateWebhook(t.Context(), posthorn.NewWebhook{RepoID: "r1", URL: good, Events: []string{pattern}})
		}
		for pattern, want := range map[string]string{
			"issue.*": "issue.opened issue.label.added", "issue.label.*": "issue.label.added", "issue": "issue",
			"*": "issue issue.opened issue.label.added issues.x", "issues.x": "issues.x",
		} {
			h, err := hook(pattern)
			if err != nil {
				t.Errorf("%s: %v", pattern, err)
			}
			var got []string
			for _, eventType := range []string{"issue", "issue.opened", "issue.label.added", "issues.x"} {
				if h.Subscribes(eventType) {
					got = append(got, eventType)
				}
			}
			if strings.Join(got, " ") != want {
				t.Errorf("%s stands for %v, want %s", pattern, got, want)
			}
		}
		for _, pattern := range []string{"issue*", "push.*", ".*", "*.opened", "issue.*.added", "issue.opened.*", "**", ""} {
			if _, err := hook(pattern); posthorn.ErrorCode(err) != posthorn.CodeInvalid {
				t.Errorf("%q: %v", pattern, err)
			}
		}
	})
}
