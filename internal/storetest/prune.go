package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/musehub/posthorn"
)

// A store may keep deliveries until all of their event's day have been recorded before the time to prune, so tests have days
// between what goes and what stays. Events go exactly.

func testPrune(s *suite) {
	w, elsewhere, node := s.webhook(), s.webhookIn("another repo"), s.node()
	var events []*posthorn.AcceptedEvent
	for i, days := range []int{0, 1, 5, 6} {
		e := s.event()
		e.CreatedAt = start.Add(time.Duration(days) * day)
		s.accept(node, e, leased(w))
		if i%2 == 0 {
			s.record(node, done(entryOf(w, e), e.CreatedAt))
		} else {
			s.record(node, failed(entryOf(w, e), e.CreatedAt))
		}
		events = append(events, e)
	}
	other := s.event()
	other.RepoID = "another repo"
	s.deliver(node, other, start, elsewhere)
	undelivered := s.event()
	undelivered.CreatedAt = start.Add(5*day - time.Microsecond)
	s.accept(node, undelivered, leased(w))
	s.record(node, posthorn.Result{Entry: entryOf(w, undelivered)})

	s.equal("rows pruned too early", s.prune(start), 0)
	s.equal("rows pruned", s.prune(start.Add(5*day)), 7) // 4 events, 3 deliveries
	s.equal("rows pruned again", s.prune(start.Add(5*day)), 0)
	for i, e := range events {
		_, err := s.Event(s.Context(), repo, e.ID)
		if i < 2 {
			s.wantCode(err, posthorn.CodeNotFound)
		} else {
			s.check(err)
		}
	}
	page, err := s.Events(s.Context(), posthorn.EventQuery{RepoID: repo, Limit: 10})
	s.check(err)
	s.equal("events", page, posthorn.Page[posthorn.AcceptedEvent]{Items: []posthorn.AcceptedEvent{*events[3], *events[2]}, Total: 2})
	log := s.log(w)
	s.equal("total of the log", log.Total, int64(2))
	s.equal("rows of the log", len(log.Items), 2)
	for _, success := range []bool{true, false} {
		page, err := s.Deliveries(s.Context(), posthorn.DeliveryQuery{RepoID: repo, WebhookID: w.ID, Success: &success, Limit: 10})
		s.check(err)
		s.equal("total by success", page.Total, int64(1))
	}
	s.equal("the other repo's log", s.log(elsewhere), posthorn.Page[posthorn.Delivery]{})

	// What comes next has a greater Seq than all before, though the newest are gone.
	last := log.Items[0].Seq
	s.equal("rows pruned in the end", s.prune(start.Add(9*day)), 4)
	s.equal("the log", s.log(w), posthorn.Page[posthorn.Delivery]{})
	e := s.event()
	s.deliver(node, e, start, w)
	if e.Seq <= events[3].Seq {
		s.Fatalf("event number %d after %d", e.Seq, events[3].Seq)
	}
	if d := s.log(w).Items[0]; d.Seq <= last {
		s.Fatalf("delivery number %d after %d", d.Seq, last)
	}

	// The ID of a pruned event is free again.
	s.accept(node, &posthorn.AcceptedEvent{ID: events[0].ID, RepoID: repo, Type: "tag", Payload: json.RawMessage("1"), CreatedAt: start}, free(w))
}

func testPruneKeepsQueued(s *suite) {
	w, node := s.webhook(), s.node()
	var events []*posthorn.AcceptedEvent
	for range 5 {
		events = append(events, s.event())
	}
	s.accept(node, events[0], leased(w))
	s.accept(node, events[1], free(w))
	s.accept(node, events[2], leased(w))
	s.record(node, retried(entryOf(w, events[2]), start.Add(time.Hour), start.Add(2*time.Hour)))
	s.deliver(node, events[3], start.Add(time.Hour), w)
	again := s.redelivery(w, events[3], start, node)
	s.accept(node, events[4], free(w))
	s.setActive(w, false)

	s.equal("deliveries pruned", s.prune(start.Add(4*day)), 2)
	s.equal("the log", s.log(w), posthorn.Page[posthorn.Delivery]{})
	s.setActive(w, true)
	s.release(node, start)
	s.equal("rows pruned after release", s.prune(start.Add(4*day)), 0)
	fresh := s.node()
	entries := s.claim(fresh, start.Add(2*time.Hour), w)
	s.wantEntries(entries, again, queued(entryOf(w, events[0])), queued(entryOf(w, events[1])), queued(entryOf(w, events[4])),
		at(entryOf(w, events[2]), 2, start.Add(2*time.Hour)))
	var results []posthorn.Result
	for _, e := range entries {
		s.equal("payload", string(e.Event.Payload), fmt.Sprintf(`{"id":%q}`, e.Event.ID))
		results = append(results, done(e, start.Add(4*day)))
	}
	s.equal("rows pruned while claimed", s.prune(start.Add(4*day)), 0)
	s.record(fresh, results...)
	s.equal("events pruned in the end", s.prune(start.Add(4*day)), 5)
	s.equal("total of the log", s.log(w).Total, int64(5)) // though all others of that day had gone
}

func testPruneKeepsDeliveries(s *suite) {
	w, node := s.webhook(), s.node()
	e := s.event()
	s.deliver(node, e, start.Add(time.Hour), w)
	s.equal("rows pruned", s.prune(start.Add(time.Minute)), 1)
	page := s.log(w)
	s.equal("rows", len(page.Items), 1)
	d := page.Items[0]
	if d.Payload != nil {
		s.Fatalf("payload %q of a pruned event", d.Payload)
	}
	s.equal("event", []string{d.EventID, d.EventType}, []string{e.ID, e.Type})
	got, err := s.Delivery(s.Context(), repo, w.ID, d.ID)
	s.check(err)
	s.equal("the delivery", got, d)
}

// testPruneLateDelivery has an event of long ago that was delivered again lately.
func testPruneLateDelivery(s *suite) {
	w, node := s.webhook(), s.node()
	e := s.event()
	s.deliver(node, e, start, w)
	again := s.redelivery(w, e, start, node)
	late := failed(again, start.Add(10*day))
	s.record(node, late)
	s.prune(start.Add(10 * day))
	_, err := s.Event(s.Context(), repo, e.ID)
	s.wantCode(err, posthorn.CodeNotFound)
	got, err := s.Delivery(s.Context(), repo, w.ID, late.Delivery.ID)
	s.check(err)
	s.equal("the late delivery", got, *late.Delivery)
	s.equal("the newest of the log", s.log(w).Items[0], *late.Delivery)
	s.prune(start.Add(13 * day))
	s.equal("the log", s.log(w), posthorn.Page[posthorn.Delivery]{})
}

// testPruneBesideLateDelivery has others of that event's day, which a late delivery keeps no longer.
func testPruneBesideLateDelivery(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	e := s.event()
	s.deliver(node, e, start, w, other)
	s.deliver(node, s.event(), start, w)
	s.record(node, failed(s.redelivery(w, e, start, node), start.Add(10*day)))
	s.equal("rows pruned", s.prune(start.Add(10*day)), 5) // 2 events, 3 deliveries
	s.equal("total of the log", s.log(w).Total, int64(1))
	s.equal("rows of the log", len(s.log(w).Items), 1)
	s.equal("the other's log", s.log(other), posthorn.Page[posthorn.Delivery]{})
	yes := true
	page, err := s.Deliveries(s.Context(), posthorn.DeliveryQuery{RepoID: repo, WebhookID: w.ID, Success: &yes, Limit: 10})
	s.check(err)
	s.equal("total of successes", page.Total, int64(0))
}

func testPruneDeleted(s *suite) {
	w, kept, node := s.webhook(), s.webhook(), s.node()
	for range 3 {
		s.deliver(node, s.event(), start, w, kept)
	}
	e := s.event()
	s.accept(node, e, free(w))
	for range 3 {
		s.accept(node, s.event(), ordered(w, 1))
	}
	s.check(s.DeleteWebhook(s.Context(), repo, w.ID))
	pruned := s.prune(start.Add(-time.Hour))
	s.equal("the other's log", s.log(kept).Total, int64(3))
	s.equal("webhooks due", s.due(start), []int64{})
	pruned += s.prune(start.Add(3 * day))
	s.equal("rows pruned in all", pruned, 13) // 7 events, 6 deliveries
	s.equal("the other's log", s.log(kept), posthorn.Page[posthorn.Delivery]{})
}

// testPruneMany has more rows than a store may want to delete at once.
func testPruneMany(s *suite) {
	w, node := s.webhook(), s.node()
	const n = 1000
	batch := posthorn.Batch{Node: node}
	var results []posthorn.Result
	kept := 0
	for i := range n {
		e := s.event()
		if i < n/2 || i%7 == 0 {
			batch.Events = append(batch.Events, newEvent(e, free(w))) // stays, before and between others that go
			kept++
			continue
		}
		batch.Events = append(batch.Events, newEvent(e, leased(w)))
		results = append(results, done(entryOf(w, e), start))
	}
	_, err := s.Commit(s.Context(), batch)
	s.check(err)
	s.record(node, results...)
	s.equal("rows pruned", s.prune(start.Add(3*day)), 2*(n-kept))
	s.equal("the log", s.log(w), posthorn.Page[posthorn.Delivery]{})
	left := 0
	for q := (posthorn.EventQuery{RepoID: repo, Limit: 200, Before: math.MaxInt64}); q.Before != 0; {
		page, err := s.Events(s.Context(), q)
		s.check(err)
		s.equal("the total of events left", page.Total, int64(kept))
		left += len(page.Items)
		q.Before = page.Next
	}
	s.equal("events left", left, kept)
}

// testPruneOrder has rows that were recorded in another order than that of their times.
func testPruneOrder(s *suite) {
	w, node := s.webhook(), s.node()
	var want []string
	for _, days := range []int{0, 9, 1, 8} {
		e := s.event()
		e.CreatedAt = start.Add(-time.Duration(days) * day)
		s.deliver(node, e, e.CreatedAt, w)
		if days < 5 {
			want = append([]string{e.ID}, want...)
		}
	}
	s.equal("rows pruned", s.prune(start.Add(-5*day)), 4)
	s.equal("the log", s.all(posthorn.DeliveryQuery{RepoID: repo, WebhookID: w.ID, Limit: 10}, 2), want)
}

// testPruneDeletedOrder has a deleted webhook's log with rows missing at its end and in between.
func testPruneDeletedOrder(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	for _, days := range []int{0, 9, 1, 9, 2, 9} {
		e := s.event()
		e.CreatedAt = start.Add(-time.Duration(days) * day)
		s.deliver(node, e, e.CreatedAt, w, other)
	}
	s.equal("rows pruned", s.prune(start.Add(-5*day)), 9) // 3 events, 6 deliveries
	s.check(s.DeleteWebhook(s.Context(), repo, w.ID))
	s.equal("rows that the webhook left behind", s.prune(start.Add(-5*day)), 3)
	s.equal("the other's log", s.log(other).Total, int64(3))
	s.equal("rows of the other's log", len(s.log(other).Items), 3)
}

// testPruneGaps has listings with rows missing everywhere, between those of others that are not.
func testPruneGaps(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	elsewhere := s.webhookIn("another repo")
	var want []string
	for i, days := range []int{9, 9, 0, 9, 0, 0, 9, 9, 9, 0, 9, 0, 9, 9} {
		e, theirs := s.event(), s.event()
		e.CreatedAt = start.Add(-time.Duration(days) * day)
		s.deliver(node, e, e.CreatedAt, w)
		if days == 0 {
			want = append([]string{e.ID}, want...)
		}
		theirs.RepoID = "another repo"
		if theirs.CreatedAt = start; i%3 == 0 {
			theirs.CreatedAt = start.Add(-9 * day)
		}
		s.deliver(node, theirs, theirs.CreatedAt, elsewhere)
		s.deliver(node, s.event(), start.Add(-9*day), other)
	}
	from := s.log(w).Items
	s.prune(start.Add(-5 * day))
	for limit := 1; limit <= 7; limit++ {
		for _, q := range []posthorn.DeliveryQuery{{}, {EventType: "push"}} {
			q.RepoID, q.WebhookID, q.Limit = repo, w.ID, limit
			s.equal(fmt.Sprintf("the log in pages of %d", limit), s.all(q, int64(len(want))), want)
		}
	}
	s.equal("the log of a webhook without rows", s.log(other), posthorn.Page[posthorn.Delivery]{})
	for _, d := range from { // from any place that a page may have ended at before
		q := posthorn.DeliveryQuery{RepoID: repo, WebhookID: w.ID, Limit: 100, Before: d.Seq}
		var below []string
		for i := range want {
			if e, err := s.Event(s.Context(), repo, want[i]); err == nil && s.seqOf(w, e.ID) < d.Seq {
				below = append(below, e.ID)
			}
		}
		if below == nil {
			below = []string{}
		}
		s.equal("what is before a delivery", s.all(q, int64(len(want))), below)
	}
	q := posthorn.EventQuery{RepoID: repo, Limit: 1}
	var events []string
	for more := true; more; more = q.Before != 0 {
		page, err := s.Events(s.Context(), q)
		s.check(err)
		for _, e := range page.Items {
			if e.Deliveries == 1 && s.seqOf(w, e.ID) != 0 {
				events = append(events, e.ID)
			}
		}
		q.Before = page.Next
	}
	s.equal("the events", events, want)
}

// seqOf returns the number of an event's newest delivery to a webhook, zero where there is none.
func (s *suite) seqOf(w posthorn.Webhook, event string) int64 {
	s.Helper()
	page, err := s.Deliveries(s.Context(), posthorn.DeliveryQuery{RepoID: w.RepoID, WebhookID: w.ID, EventID: event, Limit: 1})
	s.check(err)
	if len(page.Items) == 0 {
		return 0
	}
	return page.Items[0].Seq
}

// testPruneSettled has entries that were settled long ago, while others that were accepted with them are still held. They are
// in the way of nothing, and don't come back because the log has forgotten them.
func testPruneSettled(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	delivered, fanOut, tried, held := s.event(), s.event(), s.event(), s.event()
	_, err := s.Commit(s.Context(), posthorn.Batch{Node: node, Events: []posthorn.NewEvent{
		newEvent(delivered, leased(w)), newEvent(fanOut, leased(w, other)), newEvent(tried, leased(w)), newEvent(held, leased(w)),
	}})
	s.check(err)
	s.record(node, done(entryOf(w, delivered), start), done(entryOf(w, fanOut), start), retried(entryOf(w, tried), start, start))
	s.record(node, done(s.claim(node, start, w)[0], start))
	s.equal("rows pruned", s.prune(start.Add(4*day)), 6) // 2 events, 4 deliveries
	s.equal("the log", s.log(w), posthorn.Page[posthorn.Delivery]{})
	s.release(node, start)
	s.wantEntries(s.claim(s.node(), start.Add(time.Hour), w, other), queued(entryOf(w, held)), queued(entryOf(other, fanOut)))
}

// testConcurrency has everything happen at once: nothing fails, and every event reaches its webhooks.
func testConcurrency(s *suite) {
	var webhooks []posthorn.Webhook
	for range 3 {
		webhooks = append(webhooks, s.webhook())
	}
	const publishers, each = 8, 15
	ctx, stop := context.WithCancel(s.Context())
	defer stop()
	var publishing, rest sync.WaitGroup
	node, worker := s.node(), s.node()
	fail := func(err error) {
		if err != nil && ctx.Err() == nil {
			s.Error(err)
		}
	}
	for p := range publishers {
		publishing.Go(func() {
			for i := range each {
				e := &posthorn.AcceptedEvent{ID: fmt.Sprint(p, "-", i), RepoID: repo, Type: "push", Payload: json.RawMessage("{}"), CreatedAt: start}
				_, err := s.Commit(ctx, posthorn.Batch{Node: node, Events: []posthorn.NewEvent{newEvent(e, append(leased(webhooks[0]), free(webhooks[1:]...)...))}})
				fail(err)
				_, err = s.Commit(ctx, posthorn.Batch{Node: node, Results: []posthorn.Result{done(entryOf(webhooks[0], e), start)}})
				fail(err)
			}
		})
	}
	background := func(fn func() error) {
		rest.Go(func() {
			for ctx.Err() == nil {
				fail(fn())
			}
		})
	}
	background(func() error {
		_, err := s.Deliveries(ctx, posthorn.DeliveryQuery{RepoID: repo, WebhookID: webhooks[0].ID, EventType: "push", Limit: 20})
		return err
	})
	background(func() error {
		_, err := s.Events(ctx, posthorn.EventQuery{RepoID: repo, Limit: 20})
		return err
	})
	background(func() error {
		_, err := s.Prune(ctx, start)
		return err
	})
	background(func() error {
		_, err := s.UpdateWebhook(ctx, repo, webhooks[2].ID, func(w *posthorn.Webhook) error {
			w.Description = "changed"
			return nil
		})
		return err
	})
	publishing.Wait()
	stop()
	rest.Wait()

	for entries := s.claim(worker, start, webhooks...); len(entries) > 0; entries = s.claim(worker, start, webhooks...) {
		var results []posthorn.Result
		for _, e := range entries {
			results = append(results, done(e, start))
		}
		s.record(worker, results...)
	}
	for _, w := range webhooks {
		s.equal("deliveries", s.log(w).Total, int64(publishers*each))
	}
	s.equal("what can be pruned", s.prune(start.Add(3*day)), publishers*each*4)
}

// testCancelled has a context that has ended: every method says so.
func testCancelled(s *suite) {
	w, node := s.webhook(), s.node()
	e := s.event()
	s.deliver(node, e, start, w)
	ctx := cancelled(s)
	calls := map[string]func() error{
		"CreateWebhooks": func() error { return s.CreateWebhooks(ctx, &posthorn.Webhook{ID: s.uuid(), RepoID: repo}) },
		"UpdateWebhook": func() error {
			_, err := s.UpdateWebhook(ctx, repo, w.ID, func(*posthorn.Webhook) error { return nil })
			return err
		},
		"DeleteWebhook": func() error { return s.DeleteWebhook(ctx, repo, w.ID) },
		"Webhook":       func() error { _, err := s.Webhook(ctx, repo, w.ID); return err },
		"Webhooks":      func() error { _, err := s.Webhooks(ctx, posthorn.WebhookQuery{}); return err },
		"Changes":       func() error { _, err := s.Changes(ctx, 0); return err },
		"Enqueue":       func() error { return s.Enqueue(ctx, entryOf(w, e), node) },
		"Due":           func() error { _, err := s.Due(ctx, start, horizon, 0, 1); return err },
		"Claim": func() error {
			_, err := s.Claim(ctx, posthorn.Claim{Node: node, Now: start, Wants: []posthorn.Want{{WebhookSeq: w.Seq, Limit: 1}}})
			return err
		},
		"Lease":    func() error { _, err := s.Lease(ctx, node, start); return err },
		"Release":  func() error { _, err := s.Release(ctx, node, start); return err },
		"Delivery": func() error { _, err := s.Delivery(ctx, repo, w.ID, s.uuid()); return err },
		"Deliveries": func() error {
			_, err := s.Deliveries(ctx, posthorn.DeliveryQuery{RepoID: repo, WebhookID: w.ID, Limit: 1})
			return err
		},
		"Event":      func() error { _, err := s.Event(ctx, repo, e.ID); return err },
		"Events":     func() error { _, err := s.Events(ctx, posthorn.EventQuery{RepoID: repo, Limit: 1}); return err },
		"Prune":      func() error { _, err := s.Prune(ctx, start); return err },
		"Setting":    func() error { _, err := s.Setting(ctx, "name", "value"); return err },
		"SetSetting": func() error { return s.SetSetting(ctx, "name", "value") },
		"Now":        func() error { _, err := s.Now(ctx); return err },
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, context.Canceled) {
			s.Errorf("%s with a cancelled context: %v", name, err)
		}
	}
	_, err := s.Webhook(s.Context(), repo, w.ID)
	s.check(err)
}
