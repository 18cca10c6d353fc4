package posthorn_test

import (
	"context"
	"fmt"
	"hash/fnv"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/sender"
	"github.com/musehub/posthorn/sqlite"
)

// TestInvariants drives a dispatcher through random lives, with receivers that fail and hang, kills, restarts, pauses and
// deletions, and then holds the log and what the receivers saw to what was promised.
func TestInvariants(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		steps := rapid.SliceOfN(rapid.Custom(drawStep), 1, 60).Draw(rt, "steps")
		cfg := posthorn.Config{
			MaxQueued:             rapid.IntRange(1, 40).Draw(rt, "MaxQueued"),
			MaxInFlight:           rapid.IntRange(1, 40).Draw(rt, "MaxInFlight"),
			MaxInFlightPerWebhook: rapid.IntRange(1, 16).Draw(rt, "MaxInFlightPerWebhook"),
			MaxQueuedBytes:        rapid.SampledFrom([]int{1, 5000, 0}).Draw(rt, "MaxQueuedBytes"),
		}
		path := filepath.Join(t.TempDir(), "posthorn.db")
		var problems []string
		synctest.Test(t, func(t *testing.T) {
			store, err := sqlite.Open(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			defer store.Close()
			l := &life{
				world:    &world{t: t, store: store, cfg: cfg, inFlight: map[string]int{}, most: map[string]int{}},
				promised: map[[2]string]bool{}, redelivered: map[[2]string]int{},
			}
			l.answer = l.unreliable
			l.start()
			for _, s := range steps {
				l.step(s)
			}
			l.settle()
			l.check()
			if err := l.Stop(context.Background()); err != nil {
				l.problem("stop: %v", err)
			}
			problems = l.problems
		})
		for _, p := range problems {
			rt.Errorf("%s", p)
		}
	})
}

// step is one thing that happens in a life; n and wait are what each kind makes of them.
type step struct {
	kind string
	n    int
	wait time.Duration
}

func drawStep(t *rapid.T) step {
	return step{
		kind: rapid.SampledFrom([]string{
			"create", "dispatch", "dispatch", "dispatch", "dispatch", "wait", "wait", "redeliver", "pause", "resume", "delete", "crash", "restart",
		}).Draw(t, "kind"),
		n:    rapid.IntRange(0, 50).Draw(t, "n"),
		wait: time.Duration(rapid.SampledFrom([]int{0, 1, 20, 500, 1000, 5000, 60_000}).Draw(t, "ms")) * time.Millisecond,
	}
}

// life is a world with a record of what it was promised.
type life struct {
	*world
	hooks       []*hookLife
	events      int
	promised    map[[2]string]bool // event and webhook
	redelivered map[[2]string]int
	healed      atomic.Bool // receivers answer well from now on
	problems    []string
}

type hookLife struct {
	posthorn.Webhook
	paused, deleted bool
	sent            int // requests when it was deleted or paused
}

func (l *life) problem(format string, args ...any) {
	l.problems = append(l.problems, fmt.Sprintf(format, args...))
}

// unreliable answers each event of each webhook in its own way, the same in every life.
func (l *life) unreliable(r request) sender.Outcome {
	h := fnv.New32()
	fmt.Fprint(h, r.url, r.eventID)
	switch n := h.Sum32() % 10; {
	case l.healed.Load() || n < 5:
		pass(time.Duration(n) * 10 * time.Millisecond)
		return ok200
	case n < 7:
		return sender.Outcome{Status: 503}
	case n < 8:
		return hang(10 * time.Second)(r)
	}
	seen := 0
	for _, other := range l.seen(r.url) {
		if other.eventID == r.eventID {
			seen++
		}
	}
	if seen > 1 {
		return ok200
	}
	return sender.Outcome{Status: 500}
}

func (l *life) step(s step) {
	ctx := l.t.Context()
	repo := fmt.Sprint("r", s.n%2)
	var hook *hookLife
	if len(l.hooks) > 0 {
		hook = l.hooks[s.n%len(l.hooks)]
	}
	switch {
	case s.kind == "wait":
		pass(s.wait)
	case s.kind == "create":
		url := fmt.Sprintf("https://receiver%d.example/", len(l.hooks))
		l.hooks = append(l.hooks, &hookLife{Webhook: l.webhook(repo, url)})
	case s.kind == "dispatch":
		for range s.n {
			l.events++
			id := fmt.Sprint("e", l.events)
			want := 0
			for _, h := range l.hooks {
				if h.RepoID == repo && !h.paused && !h.deleted {
					want++
					l.promised[[2]string{id, h.ID}] = true
				}
			}
			if got := l.dispatch(repo, id).Deliveries; got != want {
				l.problem("event %s was accepted for %d webhooks, want %d", id, got, want)
			}
		}
	case s.kind == "crash":
		l.crash()
		l.start()
	case s.kind == "restart":
		if err := l.Stop(context.Background()); err != nil {
			l.problem("stop: %v", err)
		}
		l.start()
	case hook == nil || hook.deleted:
	case s.kind == "redeliver":
		page, err := l.Deliveries(ctx, posthorn.DeliveryQuery{RepoID: hook.RepoID, WebhookID: hook.ID, Limit: 5})
		if err != nil {
			l.problem("list: %v", err)
			return
		}
		if len(page.Items) > 0 {
			d := page.Items[s.n%len(page.Items)]
			if _, err := l.Redeliver(ctx, hook.RepoID, hook.ID, d.ID); err != nil {
				l.problem("redeliver: %v", err)
			}
			l.redelivered[[2]string{d.EventID, hook.ID}]++
		}
	case s.kind == "pause" || s.kind == "resume":
		l.expectNothingNew(hook)
		active := s.kind == "resume"
		if _, err := l.UpdateWebhook(ctx, hook.RepoID, hook.ID, posthorn.WebhookPatch{Active: &active}); err != nil {
			l.problem("%s: %v", s.kind, err)
		}
		hook.paused, hook.sent = !active, l.automatic(hook)
	case s.kind == "delete":
		if err := l.DeleteWebhook(ctx, hook.RepoID, hook.ID); err != nil {
			l.problem("delete: %v", err)
		}
		hook.deleted, hook.sent = true, len(l.seen(hook.URL))
	}
}

// automatic counts the requests to a webhook that are first runs.
func (l *life) automatic(h *hookLife) int {
	n := 0
	for _, r := range l.seen(h.URL) {
		if l.isAutomatic(h, r) {
			n++
		}
	}
	return n
}

func (l *life) isAutomatic(h *hookLife, r request) bool {
	return slices.Contains(l.automaticIDs(h, r.eventID), r.deliveryID)
}

func (l *life) automaticIDs(h *hookLife, eventID string) []string {
	event, err := l.Event(l.t.Context(), h.RepoID, eventID)
	if err != nil {
		l.problem("event %s: %v", eventID, err)
		return nil
	}
	return []string{
		posthorn.DeliveryID(&event, h.ID, 0, 1), posthorn.DeliveryID(&event, h.ID, 0, 2), posthorn.DeliveryID(&event, h.ID, 0, 3),
	}
}

func (l *life) expectNothingNew(h *hookLife) {
	switch {
	case h.deleted && len(l.seen(h.URL)) != h.sent:
		l.problem("%s got %d requests after it was deleted", h.URL, len(l.seen(h.URL))-h.sent)
	case h.paused && l.automatic(h) != h.sent:
		l.problem("%s got %d requests while it was paused", h.URL, l.automatic(h)-h.sent)
	}
}

// settle lets everything come to its end: webhooks active, receivers well.
func (l *life) settle() {
	pass(time.Minute)
	for _, h := range l.hooks {
		l.expectNothingNew(h)
		if h.paused && !h.deleted {
			yes := true
			if _, err := l.UpdateWebhook(l.t.Context(), h.RepoID, h.ID, posthorn.WebhookPatch{Active: &yes}); err != nil {
				l.problem("resume: %v", err)
			}
			h.paused = false
		}
	}
	l.healed.Store(true)
	for range 180 {
		pass(10 * time.Second)
		if l.left() == "" {
			return
		}
	}
	l.problem("half an hour later: %s", l.left())
}

// left tells what is not done yet.
func (l *life) left() string {
	if entries, bytes := l.Held(); entries != 0 || bytes != 0 {
		return fmt.Sprintf("%d entries and %d bytes are in memory", entries, bytes)
	}
	due, err := l.store.Due(l.t.Context(), time.Now().Add(time.Hour), time.Hour, 0, 10)
	if err != nil || len(due) != 0 {
		return fmt.Sprintf("in the queue: %v, %v", due, err)
	}
	return ""
}

func (l *life) check() {
	for _, h := range l.hooks {
		if h.deleted {
			l.expectNothingNew(h)
			continue
		}
		l.checkHook(h)
	}
}

// checkHook holds a webhook's log and requests against each other and against what was promised.
func (l *life) checkHook(h *hookLife) {
	logged := map[string]posthorn.Delivery{}
	for q := (posthorn.DeliveryQuery{RepoID: h.RepoID, WebhookID: h.ID, Limit: 200}); ; {
		page, err := l.Deliveries(l.t.Context(), q)
		if err != nil {
			l.problem("list: %v", err)
			return
		}
		for _, d := range page.Items {
			logged[d.ID] = d
		}
		if q.Before = page.Next; page.Next == 0 {
			if int(page.Total) != len(logged) {
				l.problem("%s: the total is %d, the log has %d rows", h.URL, page.Total, len(logged))
			}
			break
		}
	}
	sent := map[string]bool{}
	for _, r := range l.seen(h.URL) {
		if !l.promised[[2]string{r.eventID, h.ID}] {
			l.problem("%s got event %s, which it should not have", h.URL, r.eventID)
		}
		if _, ok := logged[r.deliveryID]; !ok {
			l.problem("%s got delivery %s of event %s, which is not in the log", h.URL, r.deliveryID, r.eventID)
		}
		sent[r.deliveryID] = true
	}
	runs := map[[2]string]map[int64][]posthorn.Delivery{}
	for id, d := range logged {
		if !sent[id] {
			l.problem("the log has delivery %s of event %s, which %s did not get", id, d.EventID, h.URL)
		}
		key := [2]string{d.EventID, h.ID}
		if runs[key] == nil {
			runs[key] = map[int64][]posthorn.Delivery{}
		}
		runs[key][d.Run] = append(runs[key][d.Run], d)
	}
	for key := range l.promised {
		if key[1] != h.ID {
			continue
		}
		if got, want := len(runs[key]), 1+l.redelivered[key]; got != want {
			l.problem("event %s has %d runs to %s, want %d", key[0], got, h.URL, want)
		}
		for _, run := range runs[key] {
			slices.SortFunc(run, func(a, b posthorn.Delivery) int { return a.Attempt - b.Attempt })
			for i, d := range run {
				if d.Attempt != i+1 || d.Success && i != len(run)-1 {
					l.problem("event %s to %s: attempt %d stands at %d of %d", key[0], h.URL, d.Attempt, i+1, len(run))
				}
			}
			if last := run[len(run)-1]; !last.Success && last.Attempt != 3 {
				l.problem("event %s to %s: the run ends with failed attempt %d", key[0], h.URL, last.Attempt)
			}
		}
	}
}
