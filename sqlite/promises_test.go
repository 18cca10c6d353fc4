package sqlite

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/musehub/posthorn"
	"zombiezen.com/go/sqlite"
)

// promising is a store with a model of its entries: what a node has at hand, and what stands in the queue free.
type promising struct {
	*workload
	rand  *rand.Rand
	path  string
	held  []*posthorn.Entry
	freed map[string]int // attempts, by event and webhook
}

func newPromising(t *testing.T, seed uint64) *promising {
	path := filepath.Join(t.TempDir(), "posthorn.db")
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	p := &promising{workload: newWorkload(t, s, 3), rand: rand.New(rand.NewPCG(seed, 0)), path: path, freed: map[string]int{}}
	t.Cleanup(func() { p.Close() })
	p.prepare(t)
	return p
}

// prepare makes commits quick, and those fail that have a delivery with the status 999.
func (p *promising) prepare(t *testing.T) {
	p.onWriter(t, func(c *sqlite.Conn) error {
		if err := setPragma(c, "PRAGMA synchronous = OFF", nil); err != nil {
			return err
		}
		return exec(c, `CREATE TEMP TRIGGER broken BEFORE INSERT ON posthorn_deliveries WHEN NEW.status = 999
			BEGIN SELECT RAISE(ABORT, 'broken'); END`)
	})
}

func nameOf(e *posthorn.Entry) string { return e.Event.ID + " to " + e.WebhookID }

// accept accepts a batch of some events for some webhooks, in memory or in the queue.
func (p *promising) accept() {
	b := posthorn.Batch{Node: p.node}
	var leased []*posthorn.Entry
	for range 1 + p.rand.IntN(4) {
		p.made++
		e := &posthorn.AcceptedEvent{ID: fmt.Sprint(p.made), RepoID: "repo-0", Type: "push", Payload: []byte("{}"), CreatedAt: p.start()}
		n := posthorn.NewEvent{Event: e, Trigger: posthorn.TriggerAutomatic}
		for _, i := range p.rand.Perm(len(p.webhooks))[:1+p.rand.IntN(len(p.webhooks))] {
			hook := p.webhooks[i]
			entry := resultOf(hook, e).Entry
			target := posthorn.Target{WebhookSeq: hook.Seq, Leased: p.rand.IntN(4) > 0}
			if n.Targets = append(n.Targets, target); target.Leased {
				leased = append(leased, entry)
			} else {
				p.freed[nameOf(entry)] = 1
			}
		}
		b.Events = append(b.Events, n)
	}
	p.commit(b)
	p.held = append(p.held, leased...)
}

// start is when everything happens: long before what Prune deletes.
func (p *promising) start() time.Time { return time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC) }

// settle settles some entries in all the ways that there are, in a commit that may fail.
func (p *promising) settle() {
	p.rand.Shuffle(len(p.held), func(i, j int) { p.held[i], p.held[j] = p.held[j], p.held[i] })
	n := min(1+p.rand.IntN(6), len(p.held))
	b := posthorn.Batch{Node: p.node}
	freed := map[string]int{}
	for _, e := range p.held[:n] {
		r := resultOf(posthorn.Webhook{Seq: e.WebhookSeq, ID: e.WebhookID}, e.Event)
		r.Entry = e
		r.Delivery.ID, r.Delivery.Attempt = posthorn.DeliveryID(e.Event, e.WebhookID, 0, e.Attempt), e.Attempt
		r.Delivery.DeliveredAt = p.start()
		switch p.rand.IntN(4) {
		case 0: // it is delivered
		case 1:
			r.RetryAt = p.start()
			r.Delivery.Success, r.Delivery.NextAttemptAt = false, r.RetryAt
			freed[nameOf(e)] = e.Attempt + 1
		case 2: // it is put off
			r.Delivery, r.RetryAt = nil, p.start()
			freed[nameOf(e)] = e.Attempt
		case 3: // it is dropped
			r.Delivery = nil
		}
		b.Results = append(b.Results, r)
	}
	if last := n - 1; last >= 0 && p.rand.IntN(4) == 0 && b.Results[last].Delivery != nil {
		b.Results[last].Delivery.ResponseStatus = 999
		if _, err := p.Commit(p.t.Context(), b); err == nil {
			p.t.Fatal("what was broken was committed")
		}
		return
	}
	p.commit(b)
	p.held = p.held[n:]
	maps.Copy(p.freed, freed)
}

// claimAll claims what is free, which is what the model says.
func (p *promising) claimAll() {
	p.t.Helper()
	got := map[string]int{}
	for _, e := range p.claim(1 << 20) {
		if got[nameOf(e)] != 0 {
			p.t.Fatalf("%s is in the queue twice", nameOf(e))
		}
		got[nameOf(e)] = e.Attempt
		p.held = append(p.held, e)
	}
	if diff := cmp.Diff(p.freed, got); diff != "" {
		p.t.Fatalf("entries differ (-want +got):\n%s", diff)
	}
	clear(p.freed)
}

// restart opens the file as after a crash: nobody has been told that the store would be closed.
func (p *promising) restart(t *testing.T, release func()) {
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), p.path)
	if err != nil {
		t.Fatal(err)
	}
	p.Store = s
	p.prepare(t)
	release()
	if _, err := p.Release(t.Context(), 0, time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, e := range p.held {
		p.freed[nameOf(e)] = e.Attempt
	}
	p.held = nil
	if p.node, err = p.Lease(t.Context(), 0, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
}

func (p *promising) prune() {
	if _, err := p.Prune(p.t.Context(), p.start().Add(time.Hour)); err != nil {
		p.t.Fatal(err)
	}
}

// TestPromises settles batches of promises in any order and way, with commits that fail in between, and restarts. The queue
// always has what was not settled, and nothing else.
func TestPromises(t *testing.T) {
	rounds := 3
	if testing.Short() {
		rounds = 1
	}
	for range rounds {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			p := newPromising(t, seed)
			for range maxWholeBatches + 100 { // most of which are partly settled at some time
				p.accept()
				if p.rand.IntN(2) == 0 {
					p.settle()
				}
			}
			for range 400 {
				switch n := p.rand.IntN(100); {
				case n < 20:
					p.accept()
				case n < 94:
					p.settle()
				case n < 96:
					p.prune()
				case n < 99:
					p.claimAll()
				default:
					p.restart(t, func() {})
					p.claimAll()
				}
			}
			p.restart(t, func() {})
			p.claimAll()
			if p.promises.byEvent != nil || p.promises.partly != nil {
				t.Fatal("a store that has no promises keeps some in memory")
			}
			for len(p.held) > 0 {
				p.settle()
				if len(p.held) == 0 {
					p.claimAll()
				}
			}
			p.prune()
			p.onWriter(t, func(c *sqlite.Conn) error {
				for _, table := range []string{"posthorn_events", "posthorn_promises", "posthorn_queue", "posthorn_deliveries"} {
					if n, err := queryInt(c, "SELECT count(*) FROM "+table); err != nil || n != 0 {
						t.Errorf("%d rows left in %s, %v", n, table, err)
					}
				}
				return nil
			})
		})
	}
}

// TestPromisesMemory settles all promises, many of them long after the others of their batch: nothing of them stays.
func TestPromisesMemory(t *testing.T) {
	p := newPromising(t, rand.Uint64())
	for range maxWholeBatches + 50 {
		p.accept()
	}
	for len(p.held) > 0 {
		p.settle()
	}
	p.accept() // which deletes the last rows
	if b, w, partly := len(p.promises.byEvent), len(p.promises.whole), len(p.promises.partly); b > 4 || w > 1 || partly > 0 {
		t.Fatalf("%d events, %d whole batches and %d partly settled ones are kept in memory", b, w, partly)
	}
	p.onWriter(t, func(c *sqlite.Conn) error {
		if n, err := queryInt(c, "SELECT count(*) FROM posthorn_promises"); err != nil || n > 1 {
			t.Errorf("%d rows of promises are left, %v", n, err)
		}
		return nil
	})
}

// TestReleaseInterrupted has a node's entries freed in part when the store is closed. Until the rest are freed too, what the
// log says of them is not pruned, and attempts that are logged late count.
func TestReleaseInterrupted(t *testing.T) {
	p := newPromising(t, rand.Uint64())
	for range 20 {
		p.accept()
	}
	for range 10 {
		p.settle()
	}
	slices.SortFunc(p.held, func(a, b *posthorn.Entry) int { return int(a.Event.Seq - b.Event.Seq) })
	for range 2 {
		p.restart(t, func() {
			ended := p.node
			for range 3 {
				p.onWriter(t, func(c *sqlite.Conn) error {
					return p.transact(t.Context(), c, func(c *sqlite.Conn) error {
						r := release{c: c, node: ended, webhooks: map[int64]*liveWebhook{}, room: 4}
						return r.promises()
					})
				})
				p.prune()
			}
			var err error
			if p.node, err = p.Lease(t.Context(), 0, time.Now().Add(time.Hour)); err != nil {
				t.Fatal(err)
			}
			if i := len(p.held) - 1; !p.held[i].Queued { // the last one that will be freed
				last := p.held[i]
				r := resultOf(posthorn.Webhook{Seq: last.WebhookSeq, ID: last.WebhookID}, last.Event)
				r.Entry, r.Delivery.DeliveredAt = last, p.start()
				p.commit(posthorn.Batch{Node: p.node, Results: []posthorn.Result{r}})
				p.prune()
				p.held = p.held[:i]
			}
		})
		p.claimAll()
	}
}
