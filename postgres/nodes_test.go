package postgres

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/pgtest"
)

// openNodes opens stores on one schema, each with a node.
func openNodes(t *testing.T, n int) (stores []*Store, nodes []int64) {
	t.Helper()
	url := pgtest.URL(t)
	stores = append(stores, open(t, url))
	for len(stores) < n {
		stores = append(stores, openNode(t, url, Config{Schema: stores[0].schema}))
	}
	for _, s := range stores {
		nodes = append(nodes, newNode(t, s))
	}
	return stores, nodes
}

// TestNodesClaim has nodes claim and settle at once what one has accepted: each entry goes to one of them.
func TestNodesClaim(t *testing.T) {
	stores, nodes := openNodes(t, 4)
	var webhooks []posthorn.Webhook
	for range 5 {
		webhooks = append(webhooks, newWebhook(t, stores[0]))
	}
	const n = 200
	b := posthorn.Batch{Node: nodes[0]}
	for i := range n {
		b.Events = append(b.Events, accepting(newEvent(start.Add(time.Duration(i%7)*time.Second)), false, webhooks...))
	}
	commitBatch(t, stores[0], b)
	now := start.Add(time.Minute)
	var mu sync.Mutex
	got := map[string]int{}
	var wg sync.WaitGroup
	for i, s := range stores {
		wg.Go(func() {
			for range 10_000 {
				entries, err := s.Claim(t.Context(), claimOf(nodes[i], now, 7, webhooks...))
				if err != nil {
					t.Error(err)
					return
				}
				settle := posthorn.Batch{Node: nodes[i]}
				for _, e := range entries {
					mu.Lock()
					got[fmt.Sprint(e.WebhookSeq, " ", e.Event.ID)]++
					mu.Unlock()
					settle.Results = append(settle.Results, delivered(e, now))
				}
				if _, err := s.Commit(t.Context(), settle); err != nil {
					t.Error(err)
					return
				}
				if due, err := s.Due(t.Context(), now, oneDay, 0, 10); err != nil || len(due) == 0 {
					if err != nil {
						t.Error(err)
					}
					return
				}
			}
			t.Error("there is always something due")
		})
	}
	wg.Wait()
	if len(got) != n*len(webhooks) {
		t.Errorf("%d entries were claimed, want %d", len(got), n*len(webhooks))
	}
	for entry, times := range got {
		if times != 1 {
			t.Errorf("entry %s was claimed %d times", entry, times)
		}
	}
	for _, w := range webhooks {
		if total := logOf(t, stores[0], w).Total; total != n {
			t.Errorf("the log's total is %d", total)
		}
	}
}

// TestNodesCommit has nodes commit the same events and deliveries at once, each in an order of its own, while others prune
// and fold: nobody fails, and everything is stored once.
func TestNodesCommit(t *testing.T) {
	stores, nodes := openNodes(t, 4)
	var webhooks []posthorn.Webhook
	for range 3 {
		webhooks = append(webhooks, newWebhook(t, stores[0]))
	}
	const rounds, n = 8, 40
	var batches [rounds][]*posthorn.AcceptedEvent
	for r := range batches {
		for range n {
			batches[r] = append(batches[r], newEvent(start.Add(-time.Duration(r%3)*oneDay)))
		}
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	first := 0
	for i, s := range stores {
		wg.Go(func() {
			for _, events := range batches {
				b := posthorn.Batch{Node: nodes[i]}
				for _, at := range rand.Perm(n) {
					e := *events[at]
					hooks := slices.Clone(webhooks)
					rand.Shuffle(len(hooks), func(i, j int) { hooks[i], hooks[j] = hooks[j], hooks[i] })
					b.Events = append(b.Events, accepting(&e, true, hooks...))
				}
				acceptances, err := s.Commit(t.Context(), b)
				if err != nil {
					t.Error(err)
					return
				}
				results := posthorn.Batch{Node: nodes[i]}
				for j, a := range acceptances {
					if a.Err != nil || a.Deliveries != len(webhooks) || b.Events[j].Event.Seq == 0 {
						t.Errorf("event %d is %+v", b.Events[j].Event.Seq, a)
					}
					if !a.Duplicate {
						mu.Lock()
						first++
						mu.Unlock()
					}
					for _, w := range webhooks {
						results.Results = append(results.Results, delivered(leasedEntryOf(w, b.Events[j].Event), start))
					}
				}
				if _, err := s.Commit(t.Context(), results); err != nil {
					t.Error(err)
				}
				for _, r := range results.Results {
					if r.Delivery.Seq == 0 {
						t.Error("a delivery has no number")
					}
				}
				if _, err := s.Prune(t.Context(), start.Add(-5*oneDay)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if first != rounds*n {
		t.Errorf("%d events were the first of their ID, want %d", first, rounds*n)
	}
	for _, w := range webhooks {
		wantLog(t, stores[0], w, rounds*n)
	}
	page, err := stores[0].Events(t.Context(), posthorn.EventQuery{RepoID: "repo", Limit: 1})
	if err != nil || page.Total != rounds*n {
		t.Errorf("%d events, %v", page.Total, err)
	}
	if left := number(t, stores[0], "SELECT count(*) FROM posthorn.queue"); left != 0 {
		t.Errorf("%d entries are left", left)
	}
}

// TestNodesRelease has nodes commit while others release them: what was leased is freed, or it wasn't leased.
func TestNodesRelease(t *testing.T) {
	stores, nodes := openNodes(t, 3)
	w := newWebhook(t, stores[0])
	accepted := make([]int, len(stores))
	var committing, releasing sync.WaitGroup
	for i, s := range stores {
		committing.Go(func() {
			for {
				_, err := s.Commit(t.Context(), posthorn.Batch{Node: nodes[i], Events: []posthorn.NewEvent{accepting(newEvent(start), true, w)}})
				if posthorn.ErrorCode(err) == posthorn.CodeConflict {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				if accepted[i]++; accepted[i] == 10 {
					releasing.Go(func() {
						if _, err := stores[(i+1)%len(stores)].Release(t.Context(), nodes[i], start); err != nil {
							t.Error(err)
						}
					})
				}
			}
		})
	}
	committing.Wait()
	releasing.Wait()
	total := accepted[0] + accepted[1] + accepted[2]
	if n := len(claim(t, stores[0], newNode(t, stores[0]), start, 100_000, w)); n != total {
		t.Errorf("%d entries became free, of %d events", n, total)
	}
	if n := number(t, stores[0], "SELECT count(*) FROM posthorn.nodes"); n != 1 {
		t.Errorf("%d nodes are left", n)
	}
}

// TestReleaseInterrupted has a Release that ended before it was done: the next one, of any node, goes on.
func TestReleaseInterrupted(t *testing.T) {
	stores, nodes := openNodes(t, 2)
	s := stores[0]
	w := newWebhook(t, s)
	commitBatch(t, s, posthorn.Batch{Node: nodes[0], Events: []posthorn.NewEvent{accepting(newEvent(start), true, w)}})
	execute(t, s, "UPDATE posthorn.nodes SET ended = true WHERE node = $1", nodes[0])
	if n, err := stores[1].Release(t.Context(), 0, start); n != 1 || err != nil {
		t.Fatalf("released %d nodes, %v", n, err)
	}
	if n := len(claim(t, s, nodes[1], start, 10, w)); n != 1 {
		t.Fatalf("%d entries became free", n)
	}
}

// TestEnqueueWhilePruning has events enqueued again at the moment they are pruned: an entry has its event, or there is none.
func TestEnqueueWhilePruning(t *testing.T) {
	stores, nodes := openNodes(t, 2)
	w := newWebhook(t, stores[0])
	const rounds = 60
	enqueued, gone := 0, 0
	for range rounds {
		e := newEvent(start)
		deliver(t, stores[0], nodes[0], w, e, start)
		var pruning sync.WaitGroup
		pruning.Go(func() {
			if _, _, err := stores[1].pruneEvents(t.Context(), start.Add(time.Hour)); err != nil {
				t.Error(err)
			}
		})
		entry := leasedEntryOf(w, e)
		entry.Trigger = posthorn.TriggerRedelivery
		err := stores[0].Enqueue(t.Context(), entry, 0)
		pruning.Wait()
		switch posthorn.ErrorCode(err) {
		case "":
			enqueued++
		case posthorn.CodeNotFound:
			gone++
		default:
			t.Fatal(err)
		}
	}
	t.Logf("%d were enqueued, %d were pruned", enqueued, gone)
	entries := claim(t, stores[0], nodes[0], start, 1000, w)
	if len(entries) != enqueued {
		t.Errorf("%d entries have their event, of %d", len(entries), enqueued)
	}
	if n := number(t, stores[0], "SELECT count(*) FROM posthorn.events"); n != enqueued {
		t.Errorf("%d events are left, want %d", n, enqueued)
	}
}

// TestReleaseByRanges has a queue of many pages, of which one statement reads but a few.
func TestReleaseByRanges(t *testing.T) {
	stores, nodes := openNodes(t, 2)
	s := stores[0]
	w := newWebhook(t, s)
	fill(t, s, 20_000, w)
	execute(t, s, "UPDATE posthorn.queue SET node = CASE WHEN event / 65536 % 100 = 0 THEN $1::bigint ELSE $2::bigint END", nodes[0], nodes[1])
	_, pages, err := s.queueFile(t.Context())
	if err != nil || pages < 200 {
		t.Fatalf("the queue has %d pages, %v", pages, err)
	}
	const atOnce = 50
	if n := buffers(t, s, selectLeased, []any{int64(-1), 0, atOnce}); n > atOnce+10 {
		t.Errorf("a statement for %d of %d pages looks at %d", atOnce, pages, n)
	}
	if n, err := s.Release(t.Context(), nodes[0], start); n != 1 || err != nil {
		t.Fatalf("released %d, %v", n, err)
	}
	if n := number(t, s, "SELECT count(*) FROM posthorn.queue WHERE node IS NULL"); n != 200 {
		t.Errorf("%d entries are free, want 200", n)
	}
	if n := number(t, s, "SELECT count(*) FROM posthorn.queue WHERE node = $1", nodes[1]); n != 20_000-200 {
		t.Errorf("the other node has %d entries", n)
	}
}

// TestReleaseBesideStuckNode has a dead node whose last transaction is still open, and another dead one.
func TestReleaseBesideStuckNode(t *testing.T) {
	stores, nodes := openNodes(t, 2)
	s := stores[0]
	stuck := begin(t, s, pgx.ReadCommitted)
	fenceOf := s.names.replacer.Replace("SELECT node FROM posthorn.nodes WHERE node = $1 FOR KEY SHARE")
	if _, err := stuck.Exec(t.Context(), fenceOf, nodes[0]); err != nil {
		t.Fatal(err)
	}
	dead := start.Add(2 * time.Hour)
	if n, err := s.Release(t.Context(), 0, dead); n != 1 || err != nil {
		t.Fatalf("released %d beside the stuck one, %v", n, err)
	}
	if err := stuck.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Release(t.Context(), 0, dead); n != 1 || err != nil {
		t.Fatalf("released %d afterwards, %v", n, err)
	}
}
