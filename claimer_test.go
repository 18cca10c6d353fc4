package posthorn

import (
	"context"
	"testing"
	"time"
)

// dueStore has one free entry for each of many webhooks.
type dueStore struct {
	noStore
	webhooks int64
	claimed  map[int64]bool
}

func (s *dueStore) Due(_ context.Context, _ time.Time, _ time.Duration, after int64, limit int) (due []DueWebhook, err error) {
	for seq := after + 1; seq <= s.webhooks && len(due) < limit; seq++ {
		if !s.claimed[seq] {
			due = append(due, DueWebhook{Seq: seq})
		}
	}
	return due, nil
}

func (s *dueStore) Claim(_ context.Context, c Claim) (entries []*Entry, err error) {
	for _, w := range c.Wants {
		if !s.claimed[w.WebhookSeq] {
			s.claimed[w.WebhookSeq] = true
			entries = append(entries, &Entry{WebhookSeq: w.WebhookSeq, Event: benchEvent(), Trigger: TriggerAutomatic})
		}
	}
	return entries, nil
}

// With more busy webhooks than the scheduler should have, those of which only the store knows get their turns, too.
func TestSweepWhileCrowded(t *testing.T) {
	s := benchScheduler(nil, nil)
	s.blocked = true // so that nothing is attempted
	for seq := range int64(2*maxRemembered + 1) {
		q := s.queue(-seq - 1)
		q.spilling = 1 // it is busy
	}
	store := &dueStore{webhooks: 3 * sweepPage, claimed: map[int64]bool{}}
	c := &claimer{store: store, sched: s, now: time.Now}
	for range 3 {
		c.sweep(t.Context())
	}
	if n := len(store.claimed); n != 3*sweepPage {
		t.Errorf("%d of %d webhooks were claimed for", n, 3*sweepPage)
	}

	// But not if so many wait for room that there is no use in more.
	s.leaseUntil = time.Time{} // so that nothing is claimed
	for seq := range int64(maxRemembered + 1) {
		s.claimSoon(s.queue(-seq - 1))
	}
	known := len(s.queues)
	store.webhooks += sweepPage
	c.sweep(t.Context())
	if n := len(s.queues); n != known {
		t.Errorf("%d more webhooks wait", n-known)
	}
}

// What is to be sent by hand is claimed, also if it becomes due while the webhook's queue is being filled.
func TestClaimByHandMeanwhile(t *testing.T) {
	s := benchScheduler(nil, nil)
	s.blocked = true
	s.limits.queued = 4
	s.wantSpilled(1)
	plan, node := s.planClaim()
	if len(plan) != 1 {
		t.Fatalf("the plan is %v", plan)
	}
	s.wantRetry(1, true)
	entries := make([]*Entry, plan[0].limit)
	for i := range entries {
		entries[i] = &Entry{WebhookSeq: 1, Event: benchEvent(), Trigger: TriggerAutomatic}
	}
	s.claimed(plan, node, entries, claimBytes, nil)
	if plan, _ = s.planClaim(); len(plan) != 1 || plan[0].limit != 1 {
		t.Errorf("the next plan is %v", plan)
	}
	// There may be another one, for which there is no room either.
	byHand := &Entry{WebhookSeq: 1, Event: benchEvent(), Trigger: TriggerRedelivery}
	s.claimed(plan, node, []*Entry{byHand}, claimBytes, nil)
	if plan, _ = s.planClaim(); len(plan) != 1 || plan[0].limit != 1 {
		t.Errorf("after one by hand the plan is %v", plan)
	}
	s.claimed(plan, node, nil, claimBytes, nil)
	if plan, _ = s.planClaim(); len(plan) != 0 {
		t.Errorf("it is claimed for again and again: %v", plan)
	}
}
