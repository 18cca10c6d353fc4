package postgres

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/pgtest"
)

// TestPromisesSettledAtOnce records the results of one block of events in several transactions at a time: none undoes what
// another has settled, and every retry is in the queue.
func TestPromisesSettledAtOnce(t *testing.T) {
	s := open(t, pgtest.URL(t))
	w, node := newWebhook(t, s), newNode(t, s)
	const each, at = 4, 8
	for range 10 {
		var events posthorn.Batch
		var results [at]posthorn.Batch
		events.Node = node
		for i := range each * at {
			e := newEvent(start)
			events.Events = append(events.Events, accepting(e, true, w))
			r := delivered(leasedEntryOf(w, e), start)
			r.RetryAt = start.Add(time.Second)
			r.Delivery.NextAttemptAt = r.RetryAt
			b := &results[i%at]
			b.Node, b.Results = node, append(b.Results, r)
		}
		commitBatch(t, s, events)
		if n := number(t, s, "SELECT count(*) FROM posthorn.queue"); n != 0 {
			t.Fatalf("%d leased first attempts are in the queue", n)
		}
		var wg sync.WaitGroup
		for i := range results {
			wg.Go(func() {
				if _, err := s.Commit(t.Context(), results[i]); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if left := number(t, s, "SELECT count(*) FROM posthorn.promises"); left != 0 {
			t.Errorf("%d rows of promises are left", left)
		}
		if n := len(claim(t, s, node, start.Add(time.Second), 1000, w)); n != each*at {
			t.Fatalf("%d retries are in the queue, want %d", n, each*at)
		}
		execute(t, s, "DELETE FROM posthorn.queue")
	}
}

// TestPromisesKept settles a few of a node's entries and has the others, and no more, released to another node; the events of
// promises are not pruned.
func TestPromisesKept(t *testing.T) {
	s := open(t, pgtest.URL(t))
	node := newNode(t, s)
	var webhooks []posthorn.Webhook
	for range maxPromised + 1 {
		webhooks = append(webhooks, newWebhook(t, s))
	}
	b := posthorn.Batch{Node: node}
	var entries []*posthorn.Entry
	for i := range 3 * promiseBlock {
		e := newEvent(start)
		targets := webhooks[:1+i%len(webhooks)] // every so often too many for a promise
		if i%2 == 0 {
			e.Deliveries = len(targets) // as the dispatcher does; without that it takes one more round trip
		}
		b.Events = append(b.Events, accepting(e, true, targets...))
		for _, w := range targets {
			entries = append(entries, leasedEntryOf(w, e))
		}
	}
	commitBatch(t, s, b)
	prune(t, s, start.Add(3*oneDay))
	var results posthorn.Batch
	results.Node = node
	type key struct{ event, webhook int64 }
	want := map[key]bool{}
	for i, e := range entries {
		if i%3 == 0 {
			results.Results = append(results.Results, delivered(e, start))
		} else {
			want[key{e.Event.Seq, e.WebhookSeq}] = true
		}
	}
	commitBatch(t, s, results)
	other := newNode(t, s)
	stale := posthorn.Batch{Node: other, Results: []posthorn.Result{{Entry: entries[1]}}}
	commitBatch(t, s, stale) // of an entry that is not the other's
	if n, err := s.Release(t.Context(), node, start); n != 1 || err != nil {
		t.Fatalf("released %d, %v", n, err)
	}
	claimed := claim(t, s, other, start, 1000, webhooks...)
	for _, e := range claimed {
		k := key{e.Event.Seq, e.WebhookSeq}
		if !want[k] || e.Attempt != 1 || e.Run != 0 || !e.DueAt.Equal(start) || e.Trigger != posthorn.TriggerAutomatic {
			t.Fatalf("claimed %+v", e)
		}
		delete(want, k)
	}
	if len(want) != 0 || number(t, s, "SELECT count(*) FROM posthorn.promises") != 0 {
		t.Errorf("%d of %d entries are lost", len(want), len(entries))
	}
}

// TestPromisesFarApart settles an entry of each of many blocks: what is given is read once, and not once for each block.
func TestPromisesFarApart(t *testing.T) {
	s := open(t, pgtest.URL(t))
	w, node := newWebhook(t, s), newNode(t, s)
	b := posthorn.Batch{Node: node}
	for range 20 * promiseBlock {
		b.Events = append(b.Events, accepting(newEvent(start), true, w))
	}
	commitBatch(t, s, b)
	var c entryColumns
	var blocks []int64
	for i := 0; i < len(b.Events); i += promiseBlock {
		seq := b.Events[i].Event.Seq
		c.add(seq, w.Seq, 0, 1, 2, start, nil)
		blocks = append(blocks, seq/promiseBlock)
	}
	tx := begin(t, s, pgx.ReadCommitted)
	if _, err := tx.Exec(t.Context(), settings); err != nil {
		t.Fatal(err)
	}
	rows, err := tx.Query(t.Context(), "EXPLAIN (ANALYZE, COSTS off) "+s.names.sql(keepPromises), node, c.events, c.webhooks, c.retry, c.next, blocks)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	scans := 0
	for _, line := range plan {
		if strings.Contains(line, "CTE Scan on given") {
			scans++
			if !strings.Contains(line, " loops=1)") {
				t.Error(line)
			}
		}
	}
	if scans != 1 {
		t.Errorf("%d scans of what is given in\n%s", scans, strings.Join(plan, "\n"))
	}
}
