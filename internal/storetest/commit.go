package storetest

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/musehub/posthorn"
)

func testEvent(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	e := s.event()
	e.Attributes = posthorn.Attributes{OrderingKey: "ä \"\\", TraceParent: "00-1-2-3", TraceState: "a=b", Depth: 3}
	s.accept(node, e, leased(w, other))
	if e.Seq <= 0 {
		s.Fatalf("Seq is %d", e.Seq)
	}
	got, err := s.Event(s.Context(), repo, e.ID)
	s.check(err)
	want := *e
	s.equal("events", got, want)
	page, err := s.Events(s.Context(), posthorn.EventQuery{RepoID: repo})
	s.check(err)
	s.equal("pages", page.Items, []posthorn.AcceptedEvent{want})

	_, err = s.Event(s.Context(), "another repo", e.ID)
	s.wantCode(err, posthorn.CodeNotFound)
	_, err = s.Event(s.Context(), repo, "nothing")
	s.wantCode(err, posthorn.CodeNotFound)
}

func testEventPages(s *suite) {
	w, elsewhere, node := s.webhook(), s.webhookIn("another repo"), s.node()
	var want []posthorn.AcceptedEvent
	for range 5 {
		e := s.event()
		s.accept(node, e, free(w))
		want = append([]posthorn.AcceptedEvent{*e}, want...)
		o := s.event()
		o.RepoID = "another repo"
		s.accept(node, o, free(elsewhere))
	}
	for limit := 1; limit <= 6; limit++ {
		q := posthorn.EventQuery{RepoID: repo, Limit: limit}
		var got []posthorn.AcceptedEvent
		for {
			page, err := s.Events(s.Context(), q)
			s.check(err)
			s.equal("total", page.Total, int64(5))
			if len(page.Items) > limit || len(page.Items) == 0 {
				s.Fatalf("%d events on a page of %d", len(page.Items), limit)
			}
			got = append(got, page.Items...)
			if q.Before = page.Next; page.Next == 0 {
				break
			}
		}
		s.equal("events", got, want)
	}
	page, err := s.Events(s.Context(), posthorn.EventQuery{RepoID: "nobody's", Limit: 5})
	s.check(err)
	s.equal("an unknown repo", page, posthorn.Page[posthorn.AcceptedEvent]{})
}

// testEventPageBytes has pages that end before their limit, and a single event that is too big for any page.
func testEventPageBytes(s *suite) {
	w, node := s.webhook(), s.node()
	for _, size := range []int{10, posthorn.MaxPageBytes / 2, posthorn.MaxPageBytes / 2, posthorn.MaxPageBytes + 1, 20} {
		e := s.event()
		e.Payload = json.RawMessage(`"` + strings.Repeat("x", size-2) + `"`)
		s.accept(node, e, free(w))
	}
	var got [][]int
	for q := (posthorn.EventQuery{RepoID: repo, Limit: 10}); ; {
		page, err := s.Events(s.Context(), q)
		s.check(err)
		var sizes []int
		for _, e := range page.Items {
			sizes = append(sizes, len(e.Payload))
		}
		got = append(got, sizes)
		if q.Before = page.Next; page.Next == 0 {
			break
		}
	}
	s.equal("sizes of payloads by page", got, [][]int{
		{20}, {posthorn.MaxPageBytes + 1}, {posthorn.MaxPageBytes / 2, posthorn.MaxPageBytes / 2}, {10},
	})
}

// oddPayloads are bytes that anything but a byte string would change.
var oddPayloads = []string{
	"", "{}", " \n{ \"a\" : 1.0 }\t\r\n", "\"\u2028\\u2028</script>\"", "\"\\ud800\"", "\"é\"", "\"e\u0301\"",
	"\xef\xbb\xbf{}", "\x00", "a\x00b", "\xff\xfe\x80", "'quoted' \"quoted\" \\", "123456789012345678901234567890", strings.Repeat("x", 100_000),
}

func testPayloadBytes(s *suite) {
	w, node := s.webhook(), s.node()
	var events []*posthorn.AcceptedEvent
	for _, payload := range oddPayloads {
		e := s.event()
		e.Payload = json.RawMessage(payload)
		s.accept(node, e, free(w))
		events = append(events, e)
	}
	page, err := s.Events(s.Context(), posthorn.EventQuery{RepoID: repo, Limit: 100})
	s.check(err)
	entries := s.claim(node, start, w)
	if len(entries) != len(events) || len(page.Items) != len(events) {
		s.Fatalf("%d entries, %d events, want %d", len(entries), len(page.Items), len(events))
	}
	for i, payload := range oddPayloads {
		e, err := s.Event(s.Context(), repo, events[i].ID)
		s.check(err)
		s.equal("payload of the event", string(e.Payload), payload)
		s.equal("payload in the page", string(page.Items[len(events)-1-i].Payload), payload)
		s.equal("payload of the entry", string(entries[i].Event.Payload), payload)
		s.record(node, done(entries[i], start))
		s.equal("payload of the delivery", string(s.log(w).Items[0].Payload), payload)
		a, err := s.Commit(s.Context(), posthorn.Batch{Node: node, Events: []posthorn.NewEvent{newEvent(events[i], free(w))}})
		s.check(err)
		s.equal("the same again", a, []posthorn.Acceptance{{Duplicate: true, Deliveries: 1}})
	}
}

// testTimes has times in another zone and with nanoseconds.
func testTimes(s *suite) {
	w, node := s.webhook(), s.node()
	odd := start.Add(999 * time.Nanosecond).In(time.FixedZone("there", -5*3600))
	e := s.event()
	e.CreatedAt = odd
	s.accept(node, e, free(w))
	got, err := s.Event(s.Context(), repo, e.ID)
	s.check(err)
	s.equal("CreatedAt", got.CreatedAt, start)
	s.equal("CreatedAt's zone", got.CreatedAt.Location().String(), "UTC")
	entries := s.claim(node, odd, w)
	if len(entries) != 1 {
		s.Fatalf("%d entries", len(entries))
	}
	s.equal("DueAt", entries[0].DueAt, start)

	r := retried(entries[0], odd, odd.Add(second))
	r.Delivery.Exchange.SentAt = odd
	s.record(node, r)
	d := s.log(w).Items[0]
	s.equal("DeliveredAt", d.DeliveredAt, start)
	s.equal("NextAttemptAt", d.NextAttemptAt, start.Add(second))
	s.equal("SentAt", d.Exchange.SentAt, start)
	s.equal("webhooks due too early", s.due(start.Add(second-time.Microsecond)), []int64{})
	s.equal("webhooks due", s.due(start.Add(second)), []int64{w.Seq})

	// An entry that was enqueued with nanoseconds is found again by its node.
	again := posthorn.Entry{WebhookSeq: w.Seq, WebhookID: w.ID, Event: e, Trigger: posthorn.TriggerRedelivery, Attempt: 1, DueAt: odd}
	s.check(s.Enqueue(s.Context(), &again, node))
	s.record(node, done(&again, odd))
	s.release(node, start)
	other := s.node()
	s.wantEntries(s.claim(other, start.Add(second), w), at(entries[0], 2, start.Add(second)))
}

func testDuplicate(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	e := s.event()
	s.accept(node, e, leased(w, other))
	again := *e
	again.Seq, again.CreatedAt = 0, start.Add(time.Hour)
	for range 2 {
		a, err := s.Commit(s.Context(), posthorn.Batch{Node: node, Events: []posthorn.NewEvent{newEvent(&again, free(w))}})
		s.check(err)
		s.equal("acceptances", a, []posthorn.Acceptance{{Duplicate: true, Deliveries: 2}})
	}
	got, err := s.Event(s.Context(), repo, e.ID)
	s.check(err)
	s.equal("the event", got, *e)
	s.equal("webhooks due", s.due(start.Add(time.Hour)), []int64{})
	page, err := s.Events(s.Context(), posthorn.EventQuery{RepoID: repo, Limit: 10})
	s.check(err)
	s.equal("total", page.Total, int64(1))
}

func testConflict(s *suite) {
	w, node := s.webhook(), s.node()
	e := s.event()
	s.accept(node, e, leased(w))
	for _, change := range []func(*posthorn.AcceptedEvent){
		func(e *posthorn.AcceptedEvent) { e.Type = "tag" },
		func(e *posthorn.AcceptedEvent) { e.Type = "PUSH" },
		func(e *posthorn.AcceptedEvent) { e.Payload = append(json.RawMessage(" "), e.Payload...) },
		func(e *posthorn.AcceptedEvent) { e.Payload = nil },
	} {
		other := *e
		change(&other)
		a, err := s.Commit(s.Context(), posthorn.Batch{Node: node, Events: []posthorn.NewEvent{newEvent(&other, free(w))}})
		s.check(err)
		s.wantCode(a[0].Err, posthorn.CodeConflict)
	}
	got, err := s.Event(s.Context(), repo, e.ID)
	s.check(err)
	s.equal("the event", got, *e)
	s.equal("webhooks due", s.due(start), []int64{})
}

func testDuplicateInOneBatch(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	e := s.event()
	same, conflicting, next := *e, *e, s.event()
	conflicting.Type = "tag"
	a, err := s.Commit(s.Context(), posthorn.Batch{Node: node, Events: []posthorn.NewEvent{
		newEvent(e, free(w, other)), newEvent(&same, free(w)), newEvent(&conflicting, free(w)), newEvent(next, free(w)),
	}})
	s.check(err)
	s.wantCode(a[2].Err, posthorn.CodeConflict)
	a[2].Err = nil
	s.equal("acceptances", a, []posthorn.Acceptance{{Deliveries: 2}, {Duplicate: true, Deliveries: 2}, {}, {Deliveries: 1}})
	s.wantEntries(s.claim(node, start, w), queued(entryOf(w, e)), queued(entryOf(w, next)))
}

func testSameIDInTwoRepos(s *suite) {
	w, elsewhere, node := s.webhook(), s.webhookIn("another repo"), s.node()
	e := s.event()
	o := *e
	o.RepoID, o.Payload = "another repo", json.RawMessage("{}")
	s.accept(node, e, leased(w))
	s.accept(node, &o, leased(elsewhere))
	for _, want := range []*posthorn.AcceptedEvent{e, &o} {
		got, err := s.Event(s.Context(), want.RepoID, want.ID)
		s.check(err)
		s.equal("events", got, *want)
	}
}

func testBadEventHarmsNoOther(s *suite) {
	w, node := s.webhook(), s.node()
	first, second := s.event(), s.event()
	s.accept(node, first, leased(w))
	bad := *first
	bad.Type = "tag"
	a, err := s.Commit(s.Context(), posthorn.Batch{
		Node: node, Events: []posthorn.NewEvent{newEvent(&bad, leased(w)), newEvent(second, leased(w))},
		Results: []posthorn.Result{done(entryOf(w, first), start)},
	})
	s.check(err)
	s.wantCode(a[0].Err, posthorn.CodeConflict)
	s.equal("the good one's acceptance", a[1], posthorn.Acceptance{Deliveries: 1})
	s.equal("the log", s.logged(w), []int{1})
	if second.Seq <= first.Seq {
		s.Fatalf("Seq %d after %d", second.Seq, first.Seq)
	}
}

// testCommitAgain commits a batch twice, as after an error whose outcome is unknown.
func testCommitAgain(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	first := s.event()
	s.accept(node, first, leased(w, other))
	next := s.event()
	batch := posthorn.Batch{
		Node: node, Events: []posthorn.NewEvent{newEvent(next, leased(w))},
		Results: []posthorn.Result{done(entryOf(w, first), start), retried(entryOf(other, first), start, start.Add(second))},
	}
	a, err := s.Commit(s.Context(), batch)
	s.check(err)
	s.equal("acceptances", a, []posthorn.Acceptance{{Deliveries: 1}})
	before, beforeOther := s.log(w), s.log(other)

	a, err = s.Commit(s.Context(), batch)
	s.check(err)
	s.equal("acceptances", a, []posthorn.Acceptance{{Duplicate: true, Deliveries: 1}})
	s.equal("the log", s.log(w), before)
	s.equal("the other's log", s.log(other), beforeOther)
	s.wantEntries(s.claim(node, start.Add(second), w, other), at(entryOf(other, first), 2, start.Add(second)))

	// Nor does it undo that the entry has been claimed for its next attempt in the meantime.
	_, err = s.Commit(s.Context(), batch)
	s.check(err)
	s.equal("webhooks due", s.due(start.Add(time.Minute)), []int64{})
}

func testCommitCancelled(s *suite) {
	w, node := s.webhook(), s.node()
	e := s.event()
	_, err := s.Commit(cancelled(s), posthorn.Batch{Node: node, Events: []posthorn.NewEvent{newEvent(e, free(w))}})
	if err == nil {
		s.Fatal("no error with a cancelled context")
	}
	s.accept(node, e, free(w))
}

func testCommitWithoutLease(s *suite) {
	w, node := s.webhook(), s.node()
	e := s.event()
	s.accept(node, e, leased(w))
	s.release(node, start)
	lost := s.event()
	_, err := s.Commit(s.Context(), posthorn.Batch{
		Node: node, Events: []posthorn.NewEvent{newEvent(lost, leased(w))},
		Results: []posthorn.Result{done(entryOf(w, e), start)},
	})
	s.wantCode(err, posthorn.CodeConflict)
	_, err = s.Event(s.Context(), repo, lost.ID)
	s.wantCode(err, posthorn.CodeNotFound)
	s.equal("the log", s.logged(w), []int{})
}

func testCommitConcurrently(s *suite) {
	w, node := s.webhook(), s.node()
	const publishers, each = 16, 20
	var wg sync.WaitGroup
	for p := range publishers {
		wg.Go(func() {
			for i := range each {
				e := &posthorn.AcceptedEvent{ID: fmt.Sprint(p, "-", i), RepoID: repo, Type: "push", Payload: json.RawMessage("{}"), CreatedAt: start}
				if _, err := s.Commit(s.Context(), posthorn.Batch{Node: node, Events: []posthorn.NewEvent{newEvent(e, free(w))}}); err != nil {
					s.Error(err)
				}
			}
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	last := int64(0)
	for _, e := range s.claim(node, start, w) {
		if seen[e.Event.ID] || e.Event.Seq <= last {
			s.Fatalf("event %s, number %d after %d", e.Event.ID, e.Event.Seq, last)
		}
		seen[e.Event.ID], last = true, e.Event.Seq
	}
	s.equal("entries", len(seen), publishers*each)
}
