package storetest

import (
	"encoding/json"
	"strings"

	"github.com/musehub/posthorn"
)

func held(w posthorn.Webhook) []posthorn.Target {
	return []posthorn.Target{{WebhookSeq: w.Seq, Held: true}}
}

// heldEntry is a held entry as Held returns it.
func heldEntry(w posthorn.Webhook, e *posthorn.AcceptedEvent) *posthorn.Entry {
	entry := queued(entryOf(w, e))
	entry.Held = true
	return entry
}

func (s *suite) held(w posthorn.Webhook, limit, maxBytes int) []*posthorn.Entry {
	s.Helper()
	entries, err := s.Held(s.Context(), w.Seq, limit, maxBytes)
	s.check(err)
	return entries
}

// testHeld has entries that nobody claims: they are there until a result of theirs is recorded, of whatever node.
func testHeld(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	var events []*posthorn.AcceptedEvent
	for range 3 {
		e := s.event()
		events = append(events, e)
		s.accept(node, e, append(held(w), free(other)...))
	}
	byHand := &posthorn.Entry{WebhookSeq: w.Seq, WebhookID: w.ID, Event: events[0], Trigger: posthorn.TriggerRedelivery, Attempt: 1, DueAt: start, Held: true}
	s.check(s.Enqueue(s.Context(), byHand, node))
	s.equal("webhooks due", s.due(start.Add(48*horizon)), []int64{other.Seq})
	s.wantEntries(s.claim(node, start.Add(48*horizon), w))
	first, second, third := heldEntry(w, events[0]), heldEntry(w, events[1]), heldEntry(w, events[2])
	s.wantEntries(s.held(w, 10, 1<<20), first, byHand, second, third)
	s.wantEntries(s.held(w, 1, 1<<20), first)
	s.wantEntries(s.held(other, 10, 1<<20))
	s.equal("the payload", s.held(w, 1, 1<<20)[0].Event.Payload, events[0].Payload)

	s.release(node, start)
	s.wantEntries(s.held(w, 10, 1<<20), first, byHand, second, third)
	s.equal("rows pruned", s.prune(start.Add(4*day)), 0)
	for range 2 { // once is as good as twice
		s.record(0, done(first, start), done(third, start))
		s.wantEntries(s.held(w, 10, 1<<20), byHand, second)
		s.equal("the log", s.logged(w), []int{1, 1})
	}
	s.check(s.DeleteWebhook(s.Context(), repo, w.ID))
	s.wantEntries(s.held(w, 10, 1<<20))
	s.record(0, done(second, start))
	s.check(s.DeleteWebhook(s.Context(), repo, other.ID))
	s.prune(start.Add(4 * day))
	page, err := s.Events(s.Context(), posthorn.EventQuery{RepoID: repo})
	s.check(err)
	s.equal("the events in the end", page, posthorn.Page[posthorn.AcceptedEvent]{})
}

// testHeldBytes has payloads of which not all are given at once.
func testHeldBytes(s *suite) {
	w, node := s.webhook(), s.node()
	var entries []*posthorn.Entry
	for range 3 {
		e := s.event()
		e.Payload = json.RawMessage(`"` + strings.Repeat("x", 98) + `"`)
		s.accept(node, e, held(w))
		entries = append(entries, heldEntry(w, e))
	}
	s.wantEntries(s.held(w, 10, 0), entries[0])
	s.wantEntries(s.held(w, 10, 99), entries[0])
	s.wantEntries(s.held(w, 10, 100), entries[:2]...)
	s.wantEntries(s.held(w, 10, 300), entries...)
	for i, e := range s.held(w, 10, -1) {
		if len(e.Event.Payload) != 0 || e.Event.ID != entries[i].Event.ID {
			s.Errorf("without payloads: %+v", e.Event)
		}
	}
}

// testTxHeld has one that was accepted in a transaction.
func testTxHeld(s *txSuite) {
	w := s.webhook()
	e := s.event()
	tx, commit, _ := s.begin()
	s.acceptIn(tx, e, held(w))
	s.check(commit())
	s.equal("webhooks due", s.due(start), []int64{})
	s.wantEntries(s.held(w, 10, 1<<20), heldEntry(w, e))
}
