// Package storetest is the conformance suite of [posthorn.Store]: what the interface promises, method by method. Every
// store passes it.
package storetest

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/musehub/posthorn"
)

// Run holds a store to the contract. The function open returns an empty store and sees to it that the test closes it.
func Run(t *testing.T, open func(t *testing.T) posthorn.Store) {
	for _, test := range []func(*suite){
		testWebhook, testWebhooksTogether, testWebhookUpdate, testWebhookDelete, testWebhookPages, testWebhookPagesOfAllRepos, testWebhookSeqGrows,
		testChanges, testChangesHealth, testChangesMany, testChangesConcurrently, testSetting, testSettingRace, testNow,

		testEvent, testEventPages, testEventPageBytes, testPayloadBytes, testTimes,
		testDuplicate, testConflict, testDuplicateInOneBatch, testSameIDInTwoRepos, testBadEventHarmsNoOther,
		testCommitAgain, testCommitCancelled, testCommitWithoutLease, testCommitConcurrently,
		testGroupConflict, testGroupDuplicate, testGroups, testGroupLarge,

		testLeasedAreNotDue, testFreeTarget, testPing, testDueOrder, testDuePages, testDueHorizon, testInactive, testInactiveByHand,
		testDeletedWebhookQueue, testDeletedBeforeCommit,
		testClaimOrder, testClaimLimit, testClaimBytes, testClaimHorizon, testClaimSharesEvents, testClaimWithoutLease,
		testClaimRace, testEnqueue, testEnqueueLeased, testEnqueueGone, testEnqueueRuns,

		testLease, testReleaseNode, testReleaseExpired, testReleaseFanOut, testReleaseSettled, testReleaseSettledRetry,
		testReleaseQueued, testReleaseLarge, testReleaseConcurrently, testReleaseBatches, testReleaseStray,

		testOrder, testOrders, testOrderReleased, testOrderConcurrently, testHeld, testHeldBytes,

		testOutcomes, testQueued, testQueuedBehind, testReplays, testReplayed, testReplayConcurrently, testReplayHeld, testReplayDropped, testReplayDeleted, testEventsUntil,

		testResultDone, testResultRetry, testResultRetryAgain, testResultWithoutDelivery, testResultDropped, testResultFenced,
		testResultOfAnotherNode, testResultTwice, testResultDeletedWebhook, testResultsOfOneEvent, testResultDroppedLater,

		testDelivery, testDeliveryNotFound, testDeliveryPages, testDeliveryFilters, testDeliveryFilterByEvent,
		testDeliveryFilterByPrunedEvent, testDeliveryPageBytes, testDeliveryScan, testDeliveryPagesOfFullScans,

		testPrune, testPruneKeepsQueued, testPruneKeepsDeliveries, testPruneLateDelivery, testPruneBesideLateDelivery,
		testPruneDeleted, testPruneMany, testPruneOrder, testPruneDeletedOrder, testPruneGaps, testPruneSettled,

		testToken, testTokenPages, testAudit, testAuditPages, testPruneAudit,

		testConcurrency, testCancelled,
	} {
		t.Run(name(test), func(t *testing.T) {
			t.Parallel()
			test(&suite{T: t, Store: open(t)})
		})
	}
}

func name(test any) string {
	full := runtime.FuncForPC(reflect.ValueOf(test).Pointer()).Name()
	return strings.TrimPrefix(full[strings.LastIndexByte(full, '.')+1:], "test")
}

// suite is one test with a store of its own. Its helpers fail the test where the store returns an error.
type suite struct {
	*testing.T
	posthorn.Store
	made int
}

const (
	repo    = "repo-1"
	horizon = 24 * time.Hour
	second  = time.Second
	day     = 24 * time.Hour
)

// start is when tests begin. Nothing but Now reads a clock: time is what a test says it is.
var start = time.Date(2026, 3, 4, 5, 6, 7, 891_234_000, time.UTC)

func (s *suite) check(err error) {
	s.Helper()
	if err != nil {
		s.Fatalf("unexpected error: %v", err)
	}
}

func (s *suite) wantCode(err error, code posthorn.Code) {
	s.Helper()
	if posthorn.ErrorCode(err) != code {
		s.Fatalf("error %v has code %q, want %q", err, posthorn.ErrorCode(err), code)
	}
}

func (s *suite) equal(what string, got, want any) {
	s.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		s.Fatalf("%s differ (-want +got):\n%s", what, diff)
	}
}

// uuid returns a new identifier.
func (s *suite) uuid() string {
	s.made++
	return fmt.Sprintf("01900000-0000-7000-8000-%012x", s.made)
}

func (s *suite) webhookIn(repoID string) posthorn.Webhook {
	s.Helper()
	w := posthorn.Webhook{
		ID: s.uuid(), RepoID: repoID, URL: "https://example.com/hook", Events: []string{"push"}, Active: true,
		CreatedAt: start, UpdatedAt: start,
	}
	s.check(s.CreateWebhooks(s.Context(), &w))
	return w
}

func (s *suite) webhook() posthorn.Webhook {
	s.Helper()
	return s.webhookIn(repo)
}

func (s *suite) setActive(w posthorn.Webhook, active bool) {
	s.Helper()
	_, err := s.UpdateWebhook(s.Context(), w.RepoID, w.ID, func(w *posthorn.Webhook) error {
		w.Active = active
		return nil
	})
	s.check(err)
}

// event returns a new event, which has not been committed.
func (s *suite) event() *posthorn.AcceptedEvent {
	id := s.uuid()
	return &posthorn.AcceptedEvent{
		ID: id, RepoID: repo, Type: "push", Payload: json.RawMessage(`{"id":"` + id + `"}`), CreatedAt: start,
	}
}

func (s *suite) node() int64 {
	s.Helper()
	node, err := s.Lease(s.Context(), 0, start.Add(time.Hour))
	s.check(err)
	return node
}

func leased(webhooks ...posthorn.Webhook) []posthorn.Target {
	targets := make([]posthorn.Target, len(webhooks))
	for i, w := range webhooks {
		targets[i] = posthorn.Target{WebhookSeq: w.Seq, Leased: true}
	}
	return targets
}

func free(webhooks ...posthorn.Webhook) []posthorn.Target {
	targets := make([]posthorn.Target, len(webhooks))
	for i, w := range webhooks {
		targets[i] = posthorn.Target{WebhookSeq: w.Seq}
	}
	return targets
}

// newEvent is how an automatic event is committed.
func newEvent(e *posthorn.AcceptedEvent, targets []posthorn.Target) posthorn.NewEvent {
	e.Deliveries = len(targets)
	return posthorn.NewEvent{Event: e, Targets: targets, Trigger: posthorn.TriggerAutomatic}
}

// accept commits one event, which must be new.
func (s *suite) accept(node int64, e *posthorn.AcceptedEvent, targets []posthorn.Target) {
	s.Helper()
	s.acceptAs(posthorn.TriggerAutomatic, node, e, targets)
}

func (s *suite) acceptAs(trigger posthorn.Trigger, node int64, e *posthorn.AcceptedEvent, targets []posthorn.Target) {
	s.Helper()
	n := newEvent(e, targets)
	n.Trigger = trigger
	acceptances, err := s.Commit(s.Context(), posthorn.Batch{Node: node, Events: []posthorn.NewEvent{n}})
	s.check(err)
	s.equal("acceptances", acceptances, []posthorn.Acceptance{{Deliveries: len(targets)}})
}

// entryOf is the entry by which a node knows a target that was leased to it in the same write as its event.
func entryOf(w posthorn.Webhook, e *posthorn.AcceptedEvent) *posthorn.Entry {
	return &posthorn.Entry{
		WebhookSeq: w.Seq, WebhookID: w.ID, Event: e, Trigger: posthorn.TriggerAutomatic, Attempt: 1, DueAt: e.CreatedAt,
	}
}

// deliveryOf is an entry's attempt, which failed.
func deliveryOf(e *posthorn.Entry, at time.Time) *posthorn.Delivery {
	return &posthorn.Delivery{
		ID:        posthorn.DeliveryID(e.Event, e.WebhookID, e.Run, e.Attempt),
		WebhookID: e.WebhookID, EventID: e.Event.ID, EventType: e.Event.Type, Trigger: e.Trigger, Run: e.Run, Attempt: e.Attempt,
		ResponseStatus: 500, ResponseBody: "out of order", DeliveredAt: at,
	}
}

// done is the result of an entry whose attempt succeeded, failed that of one which was the last of its run.
func done(e *posthorn.Entry, at time.Time) posthorn.Result {
	d := deliveryOf(e, at)
	d.Success, d.ResponseStatus, d.ResponseBody = true, 200, "ok"
	return posthorn.Result{Entry: e, Delivery: d}
}

func failed(e *posthorn.Entry, at time.Time) posthorn.Result {
	return posthorn.Result{Entry: e, Delivery: deliveryOf(e, at)}
}

// retried is the result of an entry whose attempt failed and that is due again.
func retried(e *posthorn.Entry, at, retryAt time.Time) posthorn.Result {
	r := failed(e, at)
	r.Delivery.NextAttemptAt, r.RetryAt = retryAt, retryAt
	return r
}

func (s *suite) record(node int64, results ...posthorn.Result) {
	s.Helper()
	_, err := s.Commit(s.Context(), posthorn.Batch{Node: node, Results: results})
	s.check(err)
}

// deliver accepts an event for webhooks and records that it reached them.
func (s *suite) deliver(node int64, e *posthorn.AcceptedEvent, at time.Time, webhooks ...posthorn.Webhook) {
	s.Helper()
	s.accept(node, e, leased(webhooks...))
	results := make([]posthorn.Result, len(webhooks))
	for i, w := range webhooks {
		results[i] = done(entryOf(w, e), at)
	}
	s.record(node, results...)
}

// due returns the webhooks that have something to claim.
func (s *suite) due(now time.Time) []int64 {
	s.Helper()
	webhooks, err := s.Due(s.Context(), now, horizon, 0, 1000)
	s.check(err)
	seqs := []int64{}
	for _, w := range webhooks {
		seqs = append(seqs, w.Seq)
	}
	return seqs
}

// claim claims up to 100,000 entries of each webhook.
func (s *suite) claim(node int64, now time.Time, webhooks ...posthorn.Webhook) []*posthorn.Entry {
	s.Helper()
	c := posthorn.Claim{Node: node, Now: now, Horizon: horizon, MaxBytes: 1 << 30}
	for _, w := range webhooks {
		c.Wants = append(c.Wants, posthorn.Want{WebhookSeq: w.Seq, Limit: 100_000})
	}
	entries, err := s.Claim(s.Context(), c)
	s.check(err)
	return entries
}

// wantEntries compares entries in everything but their events' payloads.
func (s *suite) wantEntries(got []*posthorn.Entry, want ...*posthorn.Entry) {
	s.Helper()
	var g, w []posthorn.Entry
	for _, e := range got {
		g = append(g, *e)
	}
	for _, e := range want {
		w = append(w, *e)
	}
	s.equal("entries", g, w)
}

// queued is an entry as a claim returns it.
func queued(e *posthorn.Entry) *posthorn.Entry {
	q := *e
	q.Queued = true
	return &q
}

// at is an entry at a later attempt.
func at(e *posthorn.Entry, attempt int, due time.Time) *posthorn.Entry {
	q := queued(e)
	q.Attempt, q.DueAt = attempt, due
	return q
}

func (s *suite) log(w posthorn.Webhook) posthorn.Page[posthorn.Delivery] {
	s.Helper()
	page, err := s.Deliveries(s.Context(), posthorn.DeliveryQuery{RepoID: w.RepoID, WebhookID: w.ID, Limit: 1000})
	s.check(err)
	return page
}

// logged returns the attempts in a webhook's log, the newest first.
func (s *suite) logged(w posthorn.Webhook) []int {
	s.Helper()
	attempts := []int{}
	for _, d := range s.log(w).Items {
		attempts = append(attempts, d.Attempt)
	}
	return attempts
}

func (s *suite) release(node int64, now time.Time) int {
	s.Helper()
	n, err := s.Release(s.Context(), node, now)
	s.check(err)
	return n
}

func (s *suite) prune(before time.Time) int {
	s.Helper()
	n, err := s.Prune(s.Context(), before)
	s.check(err)
	return n
}

func cancelled(s *suite) context.Context {
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	return ctx
}
