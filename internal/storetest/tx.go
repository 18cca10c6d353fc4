package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/musehub/posthorn"
)

// RunTx holds what a store makes of a host's transactions to the contract of [posthorn.Tx]. The function open returns an
// empty store, which it sees to that the test closes, and a function that begins a transaction of the host's on the same
// database. One at a time is open; it ends with commit or rollback.
func RunTx(t *testing.T, open func(t *testing.T) (posthorn.Store, func() (tx posthorn.Tx, commit, rollback func() error))) {
	for _, test := range []func(*txSuite){
		testTxCommit, testTxRollback, testTxSeveral, testTxDuplicate, testTxDuplicateInOne, testTxConflict, testTxBytes,
		testTxDeletedWebhook, testTxCommitMeanwhile, testTxSameEventMeanwhile, testTxOrder, testTxHeld, testTxNobody, testTxCancelled,
	} {
		t.Run(name(test), func(t *testing.T) {
			t.Parallel()
			store, begin := open(t)
			s := &suite{T: t, Store: store}
			test(&txSuite{suite: s, node: s.node(), begin: begin})
		})
	}
}

// txSuite is one test of RunTx.
type txSuite struct {
	*suite
	node  int64
	begin func() (tx posthorn.Tx, commit, rollback func() error)
}

// acceptIn accepts an event in a transaction and returns what became of it.
func (s *txSuite) acceptIn(tx posthorn.Tx, e *posthorn.AcceptedEvent, targets []posthorn.Target) posthorn.Acceptance {
	s.Helper()
	a, err := tx.Accept(s.Context(), newEvent(e, targets))
	s.check(err)
	return a
}

// commit accepts an event without a transaction of the host's. It may be called by another goroutine than the test's.
func (s *txSuite) commit(e *posthorn.AcceptedEvent, targets []posthorn.Target) posthorn.Acceptance {
	s.Helper()
	a, err := s.Commit(s.Context(), posthorn.Batch{Node: s.node, Events: []posthorn.NewEvent{newEvent(e, targets)}})
	if err != nil {
		s.Errorf("unexpected error: %v", err)
		return posthorn.Acceptance{}
	}
	return a[0]
}

// wantEvents compares the repo's events, the newest first.
func (s *txSuite) wantEvents(want ...*posthorn.AcceptedEvent) {
	s.Helper()
	page, err := s.Events(s.Context(), posthorn.EventQuery{RepoID: repo, Limit: 100})
	s.check(err)
	wanted := posthorn.Page[posthorn.AcceptedEvent]{Total: int64(len(want))}
	for _, e := range want {
		wanted.Items = append(wanted.Items, *e)
	}
	s.equal("events", page, wanted)
}

func testTxCommit(s *txSuite) {
	w, other := s.webhook(), s.webhook()
	e := s.event()
	e.CreatedAt = start.Add(999 * time.Nanosecond).In(time.FixedZone("there", -5*3600))
	tx, commit, _ := s.begin()
	// Nobody has room in memory for what may never come: a target that says so is free all the same.
	s.equal("acceptance", s.acceptIn(tx, e, append(free(w), leased(other)...)), posthorn.Acceptance{Deliveries: 2})
	s.wantEvents()
	s.equal("webhooks due before it commits", s.due(start), []int64{})
	s.check(commit())

	e.CreatedAt = start
	s.wantEvents(e)
	s.equal("webhooks due too early", s.due(start.Add(-time.Microsecond)), []int64{})
	s.equal("webhooks due", s.due(start), []int64{w.Seq, other.Seq})
	entries := s.claim(s.node, start, w, other)
	s.wantEntries(entries, queued(entryOf(w, e)), queued(entryOf(other, e)))
	s.equal("the entry's event", *entries[0].Event, *e)
	s.record(s.node, done(entries[0], start), failed(entries[1], start))
	s.equal("the log", s.logged(w), []int{1})
	s.equal("webhooks due in the end", s.due(start.Add(time.Hour)), []int64{})
	s.equal("what can be pruned", s.prune(start.Add(3*day)), 3)
}

func testTxRollback(s *txSuite) {
	w := s.webhook()
	first, lost, next := s.event(), s.event(), s.event()
	s.commit(first, free(w))
	tx, _, rollback := s.begin()
	s.equal("acceptance", s.acceptIn(tx, lost, free(w)), posthorn.Acceptance{Deliveries: 1})
	s.check(rollback())
	_, err := s.Event(s.Context(), repo, lost.ID)
	s.wantCode(err, posthorn.CodeNotFound)
	s.wantEvents(first)

	// Neither its ID nor its number is in the way of what comes next.
	s.equal("acceptance", s.commit(next, free(w)), posthorn.Acceptance{Deliveries: 1})
	tx, commit, _ := s.begin()
	s.equal("acceptance", s.acceptIn(tx, lost, free(w)), posthorn.Acceptance{Deliveries: 1})
	s.check(commit())
	s.wantEvents(lost, next, first)
	s.wantEntries(s.claim(s.node, start, w), queued(entryOf(w, first)), queued(entryOf(w, next)), queued(entryOf(w, lost)))
}

func testTxSeveral(s *txSuite) {
	w, other, elsewhere := s.webhook(), s.webhook(), s.webhookIn("another repo")
	a, b, c, theirs := s.event(), s.event(), s.event(), s.event()
	theirs.ID, theirs.RepoID = a.ID, "another repo"
	tx, commit, _ := s.begin()
	s.acceptIn(tx, a, free(w, other))
	s.acceptIn(tx, theirs, free(elsewhere))
	s.acceptIn(tx, b, free(other))
	s.acceptIn(tx, c, free(w))
	s.check(commit())
	s.wantEvents(c, b, a)
	got, err := s.Event(s.Context(), "another repo", a.ID)
	s.check(err)
	s.equal("the other repo's event", got, *theirs)
	s.wantEntries(s.claim(s.node, start, w, other, elsewhere), queued(entryOf(w, a)), queued(entryOf(w, c)),
		queued(entryOf(other, a)), queued(entryOf(other, b)), queued(entryOf(elsewhere, theirs)))
}

// testTxDuplicate has events that were accepted before, with a transaction and without one.
func testTxDuplicate(s *txSuite) {
	w, other := s.webhook(), s.webhook()
	e, f := s.event(), s.event()
	s.commit(e, free(w, other))
	tx, commit, _ := s.begin()
	s.acceptIn(tx, f, free(w, other))
	s.check(commit())

	tx, commit, _ = s.begin()
	for _, first := range []*posthorn.AcceptedEvent{e, f} {
		again := *first
		again.Seq, again.CreatedAt = 0, start.Add(time.Hour)
		s.equal("acceptance", s.acceptIn(tx, &again, free(w)), posthorn.Acceptance{Duplicate: true, Deliveries: 2})
		s.equal("its number", again.Seq, first.Seq)
	}
	s.check(commit())
	again := *f
	again.Seq = 0
	s.equal("acceptance", s.commit(&again, free(w)), posthorn.Acceptance{Duplicate: true, Deliveries: 2})
	s.equal("its number", again.Seq, f.Seq)
	s.wantEvents(f, e)
	s.equal("entries", len(s.claim(s.node, start.Add(time.Hour), w, other)), 4)
}

func testTxDuplicateInOne(s *txSuite) {
	w := s.webhook()
	e := s.event()
	again, conflicting := *e, *e
	conflicting.Type = "tag"
	tx, commit, _ := s.begin()
	s.acceptIn(tx, e, free(w))
	s.equal("acceptance", s.acceptIn(tx, &again, free(w)), posthorn.Acceptance{Duplicate: true, Deliveries: 1})
	s.wantCode(s.acceptIn(tx, &conflicting, free(w)).Err, posthorn.CodeConflict)
	s.check(commit())
	s.wantEvents(e)
	s.equal("entries", len(s.claim(s.node, start, w)), 1)
}

func testTxConflict(s *txSuite) {
	w := s.webhook()
	e, next := s.event(), s.event()
	s.commit(e, free(w))
	tx, commit, _ := s.begin()
	var other posthorn.AcceptedEvent
	var conflict error
	for _, change := range []func(*posthorn.AcceptedEvent){
		func(e *posthorn.AcceptedEvent) { e.Type = "tag" },
		func(e *posthorn.AcceptedEvent) { e.Payload = append(json.RawMessage(" "), e.Payload...) },
		func(e *posthorn.AcceptedEvent) { e.Payload = nil },
	} {
		other = *e
		change(&other)
		conflict = s.acceptIn(tx, &other, free(w)).Err
		s.wantCode(conflict, posthorn.CodeConflict)
	}
	s.equal("acceptance", s.acceptIn(tx, next, free(w)), posthorn.Acceptance{Deliveries: 1})
	s.check(commit())
	s.equal("what Commit says of it", s.commit(&other, free(w)).Err.Error(), conflict.Error())
	s.wantEvents(next, e)
	s.wantEntries(s.claim(s.node, start, w), queued(entryOf(w, e)), queued(entryOf(w, next)))
}

func testTxBytes(s *txSuite) {
	w := s.webhook()
	var events []*posthorn.AcceptedEvent
	tx, commit, _ := s.begin()
	for _, payload := range oddPayloads {
		e := s.event()
		e.Payload = json.RawMessage(payload)
		s.acceptIn(tx, e, free(w))
		s.equal("the same again", s.acceptIn(tx, e, free(w)), posthorn.Acceptance{Duplicate: true, Deliveries: 1})
		events = append(events, e)
	}
	s.check(commit())
	entries := s.claim(s.node, start, w)
	s.equal("entries", len(entries), len(events))
	for i, payload := range oddPayloads {
		s.equal("payload", string(entries[i].Event.Payload), payload)
		s.equal("the same again", s.commit(events[i], free(w)), posthorn.Acceptance{Duplicate: true, Deliveries: 1})
	}
}

// testTxDeletedWebhook has a target that is gone before the transaction commits.
func testTxDeletedWebhook(s *txSuite) {
	w, other := s.webhook(), s.webhook()
	s.check(s.DeleteWebhook(s.Context(), repo, w.ID))
	e := s.event()
	tx, commit, _ := s.begin()
	s.equal("acceptance", s.acceptIn(tx, e, free(w, other)), posthorn.Acceptance{Deliveries: 2})
	s.check(commit())
	s.equal("webhooks due", s.due(start), []int64{other.Seq})
	entries := s.claim(s.node, start, w, other)
	s.wantEntries(entries, queued(entryOf(other, e)))
	s.record(s.node, posthorn.Result{Entry: entries[0]})
	s.equal("what can be pruned", s.prune(start.Add(time.Hour)), 1)
}

// testTxNobody has an event that is kept for itself.
func testTxNobody(s *txSuite) {
	e := s.event()
	tx, commit, _ := s.begin()
	s.equal("acceptance", s.acceptIn(tx, e, nil), posthorn.Acceptance{})
	s.check(commit())
	s.equal("webhooks due", s.due(start), []int64{})
	s.wantEvents(e)
}

// testTxCommitMeanwhile has the store commit while the transaction is open. It may wait for it.
func testTxCommitMeanwhile(s *txSuite) {
	w := s.webhook()
	e, f := s.event(), s.event()
	tx, commit, _ := s.begin()
	s.acceptIn(tx, e, free(w))
	committed := make(chan posthorn.Acceptance, 1)
	go func() { committed <- s.commit(f, free(w)) }()
	time.Sleep(20 * time.Millisecond)
	s.check(commit())
	s.equal("acceptance", <-committed, posthorn.Acceptance{Deliveries: 1})
	entries := s.claim(s.node, start, w)
	s.equal("entries", len(entries), 2)
}

// testTxSameEventMeanwhile has the same event committed while the transaction is open: how that ends decides.
func testTxSameEventMeanwhile(s *txSuite) {
	w := s.webhook()
	for _, commits := range []bool{true, false} {
		e := s.event()
		again := *e
		tx, commit, rollback := s.begin()
		s.acceptIn(tx, e, free(w))
		committed := make(chan posthorn.Acceptance, 1)
		go func() { committed <- s.commit(&again, free(w)) }()
		time.Sleep(20 * time.Millisecond)
		if commits {
			s.check(commit())
		} else {
			s.check(rollback())
		}
		s.equal("acceptance", <-committed, posthorn.Acceptance{Duplicate: commits, Deliveries: 1})
		got, err := s.Event(s.Context(), repo, e.ID)
		s.check(err)
		s.equal("the event", got, again)
	}
	s.equal("entries", len(s.claim(s.node, start, w)), 2)
}

func testTxCancelled(s *txSuite) {
	w := s.webhook()
	e := s.event()
	tx, _, rollback := s.begin()
	_, err := tx.Accept(cancelled(s.suite), newEvent(e, free(w)))
	if !errors.Is(err, context.Canceled) {
		s.Fatalf("Accept with a cancelled context: %v", err)
	}
	_ = rollback() // which the driver may have done
	s.equal("acceptance", s.commit(e, free(w)), posthorn.Acceptance{Deliveries: 1})
}
