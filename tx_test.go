package posthorn_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	_ "modernc.org/sqlite"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/sender"
)

// host is a program with a table of its own in Posthorn's file.
type host struct {
	*sql.DB
	w *world
}

// inHost runs a test in a world with a host.
func inHost(t *testing.T, test func(t *testing.T, w *world, h host)) {
	t.Helper()
	inHostWith(t, posthorn.Config{MaxInFlightPerWebhook: 1}, test)
}

func inHostWith(t *testing.T, cfg posthorn.Config, test func(t *testing.T, w *world, h host)) {
	t.Helper()
	inWorld(t, cfg, func(t *testing.T, w *world) {
		db, err := sql.Open("sqlite", "file:"+w.path+"?_txlock=immediate&_pragma=busy_timeout(10000)")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		if _, err := db.ExecContext(t.Context(), "CREATE TABLE orders (id TEXT PRIMARY KEY)"); err != nil {
			t.Fatal(err)
		}
		test(t, w, host{db, w})
	})
}

func (h host) begin() *sql.Tx {
	h.w.t.Helper()
	tx, err := h.BeginTx(context.Background(), nil) // t.Context would roll it back at the end by itself
	if err != nil {
		h.w.t.Fatal(err)
	}
	h.w.t.Cleanup(func() { _ = tx.Rollback() }) // if the test did not come to its end
	return tx
}

func (h host) commit(tx *sql.Tx) {
	h.w.t.Helper()
	if err := tx.Commit(); err != nil {
		h.w.t.Fatal(err)
	}
}

// order writes a row of the host's and the event that tells of it.
func (h host) order(d *posthorn.Dispatcher, tx *sql.Tx, id string) (posthorn.Receipt, error) {
	h.w.t.Helper()
	if _, err := tx.ExecContext(h.w.t.Context(), "INSERT OR IGNORE INTO orders VALUES (?)", id); err != nil {
		h.w.t.Fatal(err)
	}
	return d.DispatchTx(h.w.t.Context(), h.w.store.Tx(tx), orderEvent(id))
}

func orderEvent(id string) posthorn.Event {
	return posthorn.Event{ID: id, RepoID: "r1", Type: "push", Payload: json.RawMessage(fmt.Sprintf(`{ "id": %q }`, id))}
}

// mustOrder is order for what is accepted for one webhook.
func (h host) mustOrder(d *posthorn.Dispatcher, tx *sql.Tx, id string) {
	h.w.t.Helper()
	if r, err := h.order(d, tx, id); err != nil || r != (posthorn.Receipt{EventID: id, Deliveries: 1}) {
		h.w.t.Fatalf("order %s: %+v, %v", id, r, err)
	}
}

func (h host) orders() (n int) {
	h.w.t.Helper()
	if err := h.QueryRowContext(h.w.t.Context(), "SELECT count(*) FROM orders").Scan(&n); err != nil {
		h.w.t.Fatal(err)
	}
	return n
}

func TestDispatchTx(t *testing.T) {
	inHost(t, func(t *testing.T, w *world, h host) {
		hook := w.webhook("r1", good)
		// Whatever the time since the last sweep and between the dispatch and the commit.
		start, want := time.Now(), []string{}
		for i, ms := range []int{0, 3, 10, 50, 110, 200, 300} {
			pass(time.Until(start.Add(time.Duration(i)*time.Second + 20*time.Millisecond)))
			id := fmt.Sprintf("e%d", i)
			tx := h.begin()
			h.mustOrder(w.Dispatcher, tx, id)
			pass(time.Duration(ms) * time.Millisecond)
			if n := len(w.seen("")); n != i {
				t.Fatalf("%d requests before the commit of the next event, want %d", n, i)
			}
			h.commit(tx)
			committed := time.Now()
			pass(400 * time.Millisecond)
			want = append(want, id)
			w.expectSent(good, "A", want...)
			if t.Failed() {
				return
			}
			last := w.seen("")[i]
			if late := last.at.Sub(committed); late > 250*time.Millisecond {
				t.Errorf("%s was sent %v after the commit", id, late)
			}
			if last.body != fmt.Sprintf(`{ "id": %q }`, id) {
				t.Errorf("the body is %s", last.body)
			}
		}
		// One that takes longer is found by the sweep.
		tx := h.begin()
		h.mustOrder(w.Dispatcher, tx, "slow")
		pass(5 * time.Second)
		h.commit(tx)
		pass(1100 * time.Millisecond)
		w.expectSent(good, "A", append(want, "slow")...)

		tx = h.begin()
		h.mustOrder(w.Dispatcher, tx, "undone")
		pass(50 * time.Millisecond)
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		w.expectSent(good, "A", append(want, "slow")...)
		if _, err := w.Event(t.Context(), "r1", "undone"); posthorn.ErrorCode(err) != posthorn.CodeNotFound {
			t.Errorf("an event that was rolled back: %v", err)
		}
		if n := h.orders(); n != 8 {
			t.Errorf("%d orders, want 8", n)
		}
		if got := len(w.deliveries(hook)); got != 8 {
			t.Errorf("%d deliveries, want 8", got)
		}
		if r := w.dispatch("r1", "undone"); r.Duplicate {
			t.Error("an event that was rolled back counts as accepted")
		}
		pass(time.Second)
		w.expectIdle()
	})
}

// All events of a transaction go out, in the order in which they were dispatched, also those of several repos, webhooks and
// calls that failed in between.
func TestDispatchTxOfMany(t *testing.T) {
	inHost(t, func(t *testing.T, w *world, h host) {
		w.webhook("r1", good)
		w.answers(func(request) sender.Outcome { pass(10 * time.Millisecond); return ok200 })
		tx := h.begin()
		var want []string
		for i := range 50 {
			id := fmt.Sprintf("e%d", i)
			want = append(want, id)
			h.mustOrder(w.Dispatcher, tx, id)
			bad := orderEvent(id)
			bad.Payload = nil
			if _, err := w.DispatchTx(t.Context(), w.store.Tx(tx), bad); posthorn.ErrorCode(err) != posthorn.CodeInvalid {
				t.Errorf("an event without payload: %v", err)
			}
			pass(time.Millisecond)
		}
		h.commit(tx)
		pass(10 * time.Second)
		seen := map[string]int{}
		for _, r := range w.seen(good) {
			seen[r.eventID]++
		}
		for _, id := range want {
			if seen[id] != 1 {
				t.Errorf("%s was sent %d times", id, seen[id])
			}
		}
		w.expectSent(good, "A", want...)
		w.expectIdle()
	})
}

// Events that nobody wants are kept in the host's transaction, too, if all are.
func TestDispatchTxKeepsAll(t *testing.T) {
	for _, keep := range []bool{false, true} {
		inHostWith(t, posthorn.Config{KeepAllEvents: keep}, func(t *testing.T, w *world, h host) {
			tx := h.begin()
			if r, err := h.order(w.Dispatcher, tx, "e1"); err != nil || r.Deliveries != 0 {
				t.Errorf("the receipt is %+v, %v", r, err)
			}
			h.commit(tx)
			if _, err := w.Event(t.Context(), "r1", "e1"); (err == nil) != keep {
				t.Errorf("asked to keep: %v, and then: %v", keep, err)
			}
		})
	}
}

func TestDispatchTxReceipts(t *testing.T) {
	inHost(t, func(t *testing.T, w *world, h host) {
		hook := w.webhook("r1", good, "push")
		dispatch := func(tx *sql.Tx, e posthorn.Event, want posthorn.Receipt, wantErr posthorn.Code) {
			t.Helper()
			r, err := w.DispatchTx(t.Context(), w.store.Tx(tx), e)
			if r != want || posthorn.ErrorCode(err) != wantErr {
				t.Errorf("dispatch %+v: %+v, %v", e, r, err)
			}
		}
		other := orderEvent("e1")
		other.Payload = json.RawMessage(`{}`)
		unwanted := orderEvent("u1")
		unwanted.Type = "issue"

		tx := h.begin()
		h.mustOrder(w.Dispatcher, tx, "e1")
		first := posthorn.Receipt{EventID: "e1", Deliveries: 1, Duplicate: true}
		dispatch(tx, orderEvent("e1"), first, "") // in the same transaction
		dispatch(tx, other, posthorn.Receipt{}, posthorn.CodeConflict)
		dispatch(tx, unwanted, posthorn.Receipt{EventID: "u1"}, "")
		h.mustOrder(w.Dispatcher, tx, "e2")
		h.commit(tx)
		pass(time.Second)
		w.expectSent(good, "A", "e1", "e2")

		tx = h.begin()
		dispatch(tx, orderEvent("e1"), first, "") // in another one
		dispatch(tx, other, posthorn.Receipt{}, posthorn.CodeConflict)
		h.mustOrder(w.Dispatcher, tx, "e3")
		h.commit(tx)
		if r := w.dispatchOrder("e3"); r != (posthorn.Receipt{EventID: "e3", Deliveries: 1, Duplicate: true}) {
			t.Errorf("dispatched again without a transaction: %+v", r)
		}
		pass(time.Second)

		if err := w.DeleteWebhook(t.Context(), "r1", hook.ID); err != nil {
			t.Fatal(err)
		}
		tx = h.begin()
		dispatch(tx, orderEvent("e1"), first, "") // nobody wants it any more
		dispatch(tx, other, posthorn.Receipt{}, posthorn.CodeConflict)
		dispatch(tx, orderEvent("e4"), posthorn.Receipt{EventID: "e4"}, "")
		h.commit(tx)
		pass(time.Minute)
		w.expectSent(good, "A", "e1", "e2", "e3")
		if _, err := w.Event(t.Context(), "r1", "e4"); posthorn.ErrorCode(err) != posthorn.CodeNotFound {
			t.Errorf("an event that nobody wants: %v", err)
		}
	})
}

func (w *world) dispatchOrder(id string) posthorn.Receipt {
	w.t.Helper()
	r, err := w.Dispatch(w.t.Context(), orderEvent(id))
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// What commits after the dispatcher was stopped, or killed, is sent by the next one.
func TestDispatchTxAndStop(t *testing.T) {
	for name, stop := range map[string]func(*world){
		"stop": func(w *world) {
			if err := w.Stop(context.Background()); err != nil {
				w.t.Error(err)
			}
		},
		"crash": (*world).crash,
	} {
		t.Run(name, func(t *testing.T) {
			inHost(t, func(t *testing.T, w *world, h host) {
				w.webhook("r1", good)
				pass(100 * time.Millisecond)
				tx := h.begin()
				h.mustOrder(w.Dispatcher, tx, "before")
				h.commit(tx)
				tx = h.begin()
				h.mustOrder(w.Dispatcher, tx, "after")
				done := make(chan struct{})
				go func() { stop(w); close(done) }() // it writes, and waits for the transaction
				pass(100 * time.Millisecond)
				h.commit(tx)
				<-done
				want := 2
				if name == "stop" { // it works all the same
					want = 3
					tx := h.begin()
					h.mustOrder(w.Dispatcher, tx, "stopped")
					h.commit(tx)
				}
				pass(time.Minute)
				for _, r := range w.seen("") {
					if r.eventID != "before" {
						t.Errorf("%s was sent by a stopped dispatcher", r.eventID)
					}
				}
				w.start()
				pass(posthorn.LeaseFor + time.Minute)
				w.expectEach(want, never)
				w.expectIdle()
			})
		})
	}
}

// A dispatcher that was never started accepts events for others to deliver, and goes by the webhooks as they are.
func TestDispatchTxWithoutStart(t *testing.T) {
	inHost(t, func(t *testing.T, w *world, h host) {
		idle := w.node("idle")
		idle.prepare()
		t.Cleanup(idle.end)
		tx := h.begin()
		if r, err := h.order(idle.Dispatcher, tx, "e0"); err != nil || r.Deliveries != 0 {
			t.Errorf("without a webhook: %+v, %v", r, err)
		}
		h.commit(tx)
		hook := w.webhook("r1", good)
		tx = h.begin()
		h.mustOrder(idle.Dispatcher, tx, "e1")
		h.commit(tx)
		pass(1100 * time.Millisecond)
		w.expectSent(good, "A", "e1")
		w.update(hook, posthorn.WebhookPatch{Events: []string{"issue"}})
		tx = h.begin()
		if r, err := h.order(idle.Dispatcher, tx, "e2"); err != nil || r.Deliveries != 0 {
			t.Errorf("for a webhook that wants it no longer: %+v, %v", r, err)
		}
		h.commit(tx)
		if _, err := idle.Dispatch(t.Context(), orderEvent("e3")); posthorn.ErrorCode(err) != posthorn.CodeUnavailable {
			t.Errorf("Dispatch without Start: %v", err)
		}
		pass(time.Minute)
		w.expectSent(good, "A", "e1")
		w.expectIdle()
	})
}

// A transaction of the host's that is open for long holds Posthorn's writes up, and that is all.
func TestHostHoldsTheLock(t *testing.T) {
	inHost(t, func(t *testing.T, w *world, h host) {
		w.webhook("r1", good)
		w.answers(func(request) sender.Outcome { pass(100 * time.Millisecond); return ok200 })
		w.dispatch("r1", "e1")
		tx := h.begin()
		h.mustOrder(w.Dispatcher, tx, "e2")
		answered := make(chan error)
		go func() {
			_, err := w.Dispatch(context.Background(), orderEvent("e3"))
			answered <- err
		}()
		pass(5 * time.Second)
		h.commit(tx)
		if err := <-answered; err != nil {
			t.Errorf("dispatch beside a transaction of 5 s: %v", err)
		}
		pass(5 * time.Second)
		w.expectEach(3, never)

		tx = h.begin()
		h.mustOrder(w.Dispatcher, tx, "e4")
		if _, err := w.Dispatch(t.Context(), orderEvent("e5")); posthorn.ErrorCode(err) != posthorn.CodeUnavailable {
			t.Errorf("dispatch beside a transaction that doesn't end: %v", err)
		}
		pass(10 * time.Second)
		h.commit(tx)
		pass(5 * time.Second)
		w.dispatchOrder("e5")
		synctest.Wait()
		w.expectEach(5, never)
		pass(time.Second)
		w.expectIdle()
	})
}
