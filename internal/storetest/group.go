package storetest

import (
	"encoding/json"

	"github.com/musehub/posthorn"
)

// grouped is how events that belong together are committed.
func grouped(group int, events ...posthorn.NewEvent) []posthorn.NewEvent {
	for i := range events {
		events[i].Group = group
	}
	return events
}

// batch is the events of one Commit: single ones and groups.
func batch(parts ...[]posthorn.NewEvent) (events []posthorn.NewEvent) {
	for _, p := range parts {
		events = append(events, p...)
	}
	return events
}

// commitEvents returns the acceptances' errors apart, as codes.
func (s *suite) commitEvents(node int64, events []posthorn.NewEvent, results ...posthorn.Result) ([]posthorn.Acceptance, []posthorn.Code) {
	s.Helper()
	a, err := s.Commit(s.Context(), posthorn.Batch{Node: node, Events: events, Results: results})
	s.check(err)
	codes := make([]posthorn.Code, len(a))
	for i := range a {
		codes[i] = posthorn.ErrorCode(a[i].Err)
		a[i].Err = nil
	}
	return a, codes
}

// conflicting returns an event under the ID of another one, with other content.
func conflicting(e *posthorn.AcceptedEvent) *posthorn.AcceptedEvent {
	other := *e
	other.Seq, other.Payload = 0, json.RawMessage(`"other"`)
	return &other
}

// wantStored demands that the repo has these events, in this order, and counts no others.
func (s *suite) wantStored(want ...*posthorn.AcceptedEvent) {
	s.Helper()
	page, err := s.Events(s.Context(), posthorn.EventQuery{RepoID: repo, Limit: 100})
	s.check(err)
	got, ids := []string{}, []string{}
	for _, e := range page.Items {
		got = append([]string{e.ID}, got...)
	}
	for _, e := range want {
		ids = append(ids, e.ID)
	}
	s.equal("events", got, ids)
	s.equal("total", page.Total, int64(len(want)))
}

// testGroupConflict has a group with one event in conflict between single ones. It is like that group was never there: nothing
// is in the queue, leased or free, nor in the log or the counts.
func testGroupConflict(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	stored := s.event()
	s.accept(node, stored, leased(w))
	before, after := s.event(), s.event()
	lost := []*posthorn.AcceptedEvent{s.event(), s.event()}
	known := *stored // which is no conflict
	a, codes := s.commitEvents(node, batch(
		[]posthorn.NewEvent{newEvent(before, leased(w, other))},
		grouped(2, newEvent(lost[0], append(leased(w), free(other)...)), newEvent(&known, leased(w)), newEvent(conflicting(stored), free(w)), newEvent(lost[1], leased(w))),
		[]posthorn.NewEvent{newEvent(after, free(w))},
	), done(entryOf(w, stored), start))
	s.equal("codes", codes, []posthorn.Code{"", "", "", posthorn.CodeConflict, "", ""})
	s.equal("acceptances", a, []posthorn.Acceptance{{Deliveries: 2}, {}, {}, {}, {}, {Deliveries: 1}})
	s.wantStored(stored, before, after)
	for _, e := range lost {
		_, err := s.Event(s.Context(), repo, e.ID)
		s.wantCode(err, posthorn.CodeNotFound)
	}
	s.equal("the log", s.logged(w), []int{1})
	s.equal("the other's log", s.logged(other), []int{})
	s.wantEntries(s.claim(node, start, w, other), queued(entryOf(w, after)))
	s.release(node, start)
	s.wantEntries(s.claim(s.node(), start, w, other), queued(entryOf(w, before)), queued(entryOf(w, after)), queued(entryOf(other, before)))

	// What was lost may come again.
	again, codes := s.commitEvents(s.node(), grouped(1, newEvent(lost[0], leased(w)), newEvent(lost[1], free(w))))
	s.equal("codes", codes, []posthorn.Code{"", ""})
	s.equal("acceptances", again, []posthorn.Acceptance{{Deliveries: 1}, {Deliveries: 1}})
	s.wantStored(stored, before, after, lost[0], lost[1])
}

func testGroupDuplicate(s *suite) {
	w, node := s.webhook(), s.node()
	stored, first, last := s.event(), s.event(), s.event()
	s.accept(node, stored, leased(w))
	known, repeated := *stored, *first
	group := func() []posthorn.NewEvent {
		return grouped(7, newEvent(first, free(w)), newEvent(&known, free(w)), newEvent(&repeated, free(w)), newEvent(last, leased(w)))
	}
	a, codes := s.commitEvents(node, group())
	s.equal("codes", codes, []posthorn.Code{"", "", "", ""})
	s.equal("acceptances", a, []posthorn.Acceptance{{Deliveries: 1}, {Duplicate: true, Deliveries: 1}, {Duplicate: true, Deliveries: 1}, {Deliveries: 1}})
	s.equal("the duplicate's Seq", known.Seq, stored.Seq)
	s.wantStored(stored, first, last)

	a, _ = s.commitEvents(node, group())
	for i := range a {
		s.equal("the same group again", a[i], posthorn.Acceptance{Duplicate: true, Deliveries: 1})
	}
	s.wantStored(stored, first, last)
	s.wantEntries(s.claim(node, start, w), queued(entryOf(w, first)))
}

// testGroups has several groups in one batch, where one that is not accepted is in nobody's way: not even of one that has other
// content under the same ID.
func testGroups(s *suite) {
	w, node := s.webhook(), s.node()
	stored := s.event()
	s.accept(node, stored, leased(w))
	x, y, z, good := s.event(), s.event(), s.event(), s.event()
	otherX, otherY, otherZ := conflicting(x), conflicting(y), conflicting(z)
	a, codes := s.commitEvents(node, batch(
		grouped(1, newEvent(x, free(w)), newEvent(conflicting(stored), free(w))),
		grouped(2, newEvent(otherX, free(w)), newEvent(y, free(w))),               // in the way of which is only the first one
		grouped(3, newEvent(z, free(w)), newEvent(otherY, free(w))),               // the second one stays in the way of it
		[]posthorn.NewEvent{newEvent(otherZ, free(w))},                            // as the third one is gone
		grouped(4, newEvent(good, free(w)), newEvent(conflicting(good), free(w))), // its own
		[]posthorn.NewEvent{newEvent(conflicting(y), free(w)), newEvent(good, free(w))},
	))
	const conflict = posthorn.CodeConflict
	s.equal("codes", codes, []posthorn.Code{"", conflict, "", "", "", conflict, "", "", conflict, conflict, ""})
	one := posthorn.Acceptance{Deliveries: 1}
	s.equal("acceptances", a, []posthorn.Acceptance{{}, {}, one, one, {}, {}, one, {}, {}, {}, one})
	s.wantStored(stored, otherX, y, otherZ, good)
}

// testGroupLarge has more in a group than anything else has.
func testGroupLarge(s *suite) {
	w, node := s.webhook(), s.node()
	var events []posthorn.NewEvent
	for range 1000 {
		events = append(events, newEvent(s.event(), free(w)))
	}
	taken := events[999]
	s.accept(node, conflicting(taken.Event), leased(w))
	_, codes := s.commitEvents(node, grouped(1, events...))
	s.equal("the last one's code", codes[999], posthorn.CodeConflict)
	s.equal("webhooks due", s.due(start), []int64{})
	a, _ := s.commitEvents(node, grouped(1, events[:999]...))
	for i := range a {
		s.equal("acceptance", a[i], posthorn.Acceptance{Deliveries: 1})
	}
	s.equal("entries", len(s.claim(node, start, w)), 999)
}
