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

// TestInvariants drives two nodes on one store through random lives, with receivers that fail and hang, kills, restarts, lost
// connections to the store, pauses and deletions, and then holds the log and what the receivers saw to what was promised.
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
				world:    &world{t: t, outside: newOutside(), store: store, cfg: cfg, name: "A"},
				promised: map[[2]string]bool{}, redelivered: map[[2]string]int{}, uncertain: map[[2]string]int{},
				changed: map[*world]time.Time{},
			}
			l.nodes = []*world{l.world, l.node("B")}
			l.answer = l.unreliable
			for _, n := range l.nodes {
				n.start()
			}
			for _, s := range steps {
				l.step(s)
			}
			l.settle()
			l.check()
			for _, n := range l.nodes {
				if err := n.Stop(context.Background()); err != nil {
					l.problem("stop: %v", err)
				}
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
	node int // that it happens at, if that is up
	n    int
	wait time.Duration
}

func drawStep(t *rapid.T) step {
	return step{
		kind: rapid.SampledFrom([]string{
			"create", "dispatch", "dispatch", "dispatch", "batch", "batch", "wait", "wait", "redeliver", "pause", "resume", "delete",
			"crash", "kill", "restart", "cut off", "uncertain",
		}).Draw(t, "kind"),
		node: rapid.IntRange(0, 1).Draw(t, "node"),
		n:    rapid.IntRange(0, 50).Draw(t, "n"),
		wait: time.Duration(rapid.SampledFrom([]int{0, 1, 20, 500, 1000, 5000, 60_000}).Draw(t, "ms")) * time.Millisecond,
	}
}

// life is a world with a record of what it was promised.
type life struct {
	*world
	nodes       []*world // of which the world is the first
	down        [2]bool
	hooks       []*hookLife
	events      int
	promised    map[[2]string]bool // event and webhook
	redelivered map[[2]string]int
	uncertain   map[[2]string]int    // redeliveries of which nobody knows whether they were accepted
	changed     map[*world]time.Time // when a node changed a webhook last
	healed      atomic.Bool          // receivers answer well from now on
	problems    []string
}

type hookLife struct {
	posthorn.Webhook
	paused, deleted bool
	by              *world    // who deleted or paused it
	at              time.Time // when
	sent            int       // requests by that node at that time
}

// heard is how long it takes until a change of a webhook is in force on the other node.
const heard = 500 * time.Millisecond

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
	node := l.up(s.node)
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
		l.hooks = append(l.hooks, &hookLife{Webhook: node.webhook(repo, url)})
		l.changed[node] = time.Now()
	case s.kind == "dispatch":
		l.hear(node)
		for range s.n {
			l.dispatchAt(node, repo)
		}
	case s.kind == "batch":
		l.hear(node)
		if s.wait == 0 {
			lose(node, "Commit", s.n%2 == 0)
		}
		l.batchAt(node, 1+s.n)
	case s.kind == "kill":
		node.crash()
		l.down[s.node] = l.down[s.node] || node == l.nodes[s.node]
		l.down[1-s.node] = l.down[1-s.node] || node == l.nodes[1-s.node]
	case s.kind == "crash":
		node.crash()
		node.start()
	case s.kind == "restart":
		if err := node.Stop(context.Background()); err != nil && posthorn.ErrorCode(err) != posthorn.CodeUncertain {
			l.problem("stop: %v", err)
		}
		node.start()
	case s.kind == "cut off":
		l.hear(node) // once it is cut off it can't
		node.tamper(failing())
		pass(s.wait)
		node.tamper(nil)
	case s.kind == "uncertain":
		lose(node, []string{"Commit", "Claim", "Enqueue", "Release", "Lease"}[s.n%5], s.n%2 == 0)
	case hook == nil || hook.deleted:
	case s.kind == "redeliver":
		page, err := node.Deliveries(ctx, posthorn.DeliveryQuery{RepoID: hook.RepoID, WebhookID: hook.ID, Limit: 5})
		if err != nil {
			l.problem("list: %v", err)
			return
		}
		if len(page.Items) > 0 {
			l.redeliverAt(node, hook, page.Items[s.n%len(page.Items)])
		}
	case s.kind == "pause" || s.kind == "resume":
		l.expectNothingNew(hook)
		active := s.kind == "resume"
		if _, err := node.UpdateWebhook(ctx, hook.RepoID, hook.ID, posthorn.WebhookPatch{Active: &active}); err != nil {
			l.problem("%s: %v", s.kind, err)
		}
		if hook.paused == active {
			hook.paused, hook.by, hook.at, hook.sent = !active, node, time.Now(), l.sentBy(hook, node, true)
		}
		l.changed[node] = time.Now()
	case s.kind == "delete":
		if err := node.DeleteWebhook(ctx, hook.RepoID, hook.ID); err != nil {
			l.problem("delete: %v", err)
		}
		hook.deleted, hook.by, hook.at, hook.sent = true, node, time.Now(), l.sentBy(hook, node, false)
		l.changed[node] = time.Now()
	}
}

// lose has the store lost in the middle of a node's next call, when that is done or not.
func lose(node *world, call string, done bool) {
	node.tamper(once(func(do func() error) error {
		if done {
			_ = do()
		}
		return errUncertain
	}, call))
}

// up returns the node that a step is for, or the other one if that is down.
func (l *life) up(i int) *world {
	if !l.down[i] {
		return l.nodes[i]
	}
	if !l.down[1-i] {
		return l.nodes[1-i]
	}
	l.revive()
	return l.nodes[i]
}

func (l *life) revive() {
	for i, n := range l.nodes {
		if l.down[i] {
			n.start()
		}
		l.down[i] = false
	}
}

// hear waits until a node knows of all changes.
func (l *life) hear(node *world) {
	for by, at := range l.changed {
		if wait := heard - time.Since(at); by != node && wait >= 0 {
			pass(wait)
			synctest.Wait()
		}
	}
}

// insist calls f until the store is there again.
func insist(f func() error) error {
	for tries := 0; ; tries++ {
		err := f()
		if posthorn.ErrorCode(err) != posthorn.CodeUnavailable || tries == 100 {
			return err
		}
		pass(time.Second)
	}
}

// event makes an event and promises it to the webhooks that want it now. It returns how many these are.
func (l *life) event(repo string) (e posthorn.Event, want int) {
	l.events++
	id := fmt.Sprint("e", l.events)
	for _, h := range l.hooks {
		if h.RepoID == repo && !h.paused && !h.deleted {
			want++
			l.promised[[2]string{id, h.ID}] = true
		}
	}
	return posthorn.Event{ID: id, RepoID: repo, Type: "push", Payload: fmt.Appendf(nil, `{"id":%q}`, id)}, want
}

func (l *life) dispatchAt(node *world, repo string) {
	event, want := l.event(repo)
	var got posthorn.Receipt
	dispatch := func() (err error) { got, err = node.Dispatch(l.t.Context(), event); return err }
	err := insist(dispatch)
	if posthorn.ErrorCode(err) == posthorn.CodeUncertain {
		err = insist(dispatch)
	}
	if err != nil || got.Deliveries != want {
		l.problem("event %s was accepted for %d webhooks, want %d: %v", event.ID, got.Deliveries, want, err)
	}
}

// batchAt dispatches events of both repos together. When nobody knows whether they were accepted, all were or none.
func (l *life) batchAt(node *world, n int) {
	events, want := make([]posthorn.Event, n), make([]int, n)
	for i := range events {
		events[i], want[i] = l.event(fmt.Sprint("r", i%2))
	}
	var got []posthorn.Receipt
	dispatch := func() (err error) { got, err = node.DispatchBatch(l.t.Context(), events); return err }
	err := insist(dispatch)
	if posthorn.ErrorCode(err) == posthorn.CodeUncertain {
		err = insist(dispatch)
	}
	if err != nil {
		l.problem("the batch from event %s on: %v", events[0].ID, err)
		return
	}
	duplicates, wanted := 0, 0
	for i, r := range got {
		if r.EventID != events[i].ID || r.Deliveries != want[i] {
			l.problem("the receipt of event %s is %+v, want %d webhooks", events[i].ID, r, want[i])
		}
		if want[i] > 0 {
			wanted++
		}
		if r.Duplicate {
			duplicates++
		}
	}
	if duplicates != 0 && duplicates != wanted {
		l.problem("of the %d events from %s on, %d had been accepted", wanted, events[0].ID, duplicates)
	}
}

func (l *life) redeliverAt(node *world, hook *hookLife, d posthorn.Delivery) {
	key := [2]string{d.EventID, hook.ID}
	err := insist(func() error {
		_, err := node.Redeliver(l.t.Context(), hook.RepoID, hook.ID, d.ID)
		return err
	})
	switch posthorn.ErrorCode(err) {
	case "":
		l.redelivered[key]++
	case posthorn.CodeUncertain:
		l.uncertain[key]++
	default:
		l.problem("redeliver: %v", err)
	}
}

// sentBy counts a node's requests to a webhook, all of them or those of first runs.
func (l *life) sentBy(h *hookLife, node *world, automatic bool) (n int) {
	for _, r := range l.seen(h.URL) {
		if r.node == node.name && (!automatic || l.isAutomatic(h, r)) {
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
	if !h.deleted && !h.paused {
		return
	}
	if n := l.sentBy(h, h.by, !h.deleted) - h.sent; n != 0 {
		l.problem("%s got %d requests after it was paused or deleted", h.URL, n)
	}
	for _, r := range l.seen(h.URL) {
		if r.at.After(h.at.Add(heard)) && (h.deleted || l.isAutomatic(h, r)) {
			l.problem("%s got a request %v after it was paused or deleted", h.URL, r.at.Sub(h.at))
		}
	}
}

// settle lets everything come to its end: webhooks active, receivers well.
func (l *life) settle() {
	for _, n := range l.nodes {
		n.tamper(nil)
	}
	l.revive()
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
	for _, n := range l.nodes {
		if entries, bytes := n.Held(); entries != 0 || bytes != 0 {
			return fmt.Sprintf("%d entries and %d bytes are in memory", entries, bytes)
		}
		if err := n.Ready(); err != nil {
			return err.Error()
		}
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
	sent := map[string]int{}
	for _, r := range l.seen(h.URL) {
		if !l.promised[[2]string{r.eventID, h.ID}] {
			l.problem("%s got event %s, which it should not have", h.URL, r.eventID)
		}
		if _, ok := logged[r.deliveryID]; !ok {
			l.problem("%s got delivery %s of event %s, which is not in the log", h.URL, r.deliveryID, r.eventID)
		}
		sent[r.deliveryID]++
	}
	runs := map[[2]string]map[int64][]posthorn.Delivery{}
	for id, d := range logged {
		if sent[id] == 0 {
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
		if got, want := len(runs[key]), 1+l.redelivered[key]; got < want || got > want+l.uncertain[key] {
			l.problem("event %s has %d runs to %s, want %d", key[0], got, h.URL, want)
		}
		for _, run := range runs[key] {
			slices.SortFunc(run, func(a, b posthorn.Delivery) int { return a.Attempt - b.Attempt })
			for i, d := range run {
				// Of an attempt that was made twice, the log has the first result and the queue went on with the second.
				if d.Attempt != i+1 || d.Success && i != len(run)-1 && sent[d.ID] == 1 {
					l.problem("event %s to %s: attempt %d stands at %d of %d", key[0], h.URL, d.Attempt, i+1, len(run))
				}
			}
			if last := run[len(run)-1]; !last.Success && last.Attempt != 3 && sent[last.ID] == 1 {
				l.problem("event %s to %s: the run ends with failed attempt %d", key[0], h.URL, last.Attempt)
			}
		}
	}
}
