package postgres

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/pgtest"
)

// ordered is how an event of an ordering is committed.
func ordered(e *posthorn.AcceptedEvent, w posthorn.Webhook) posthorn.NewEvent {
	n := accepting(e, false, w)
	n.Targets[0].Ordering = 1
	return n
}

// TestFreedAfterCommit has a claim look at a webhook from its beginning while a COMMIT is under way that lets an entry go on far behind.
// The claim can't see it. Afterwards it is found all the same.
func TestFreedAfterCommit(t *testing.T) {
	s := open(t, pgtest.URL(t))
	w, node := newWebhook(t, s), newNode(t, s)
	fill(t, s, 10, w)
	now := start.Add(time.Hour)
	behind := newEvent(start.Add(-10 * time.Hour))
	commitBatch(t, s, posthorn.Batch{Node: node, Events: []posthorn.NewEvent{ordered(newEvent(start.Add(-11*time.Hour)), w), ordered(behind, w)}})
	first := claim(t, s, node, now, 1, w)[0]

	// The COMMIT of a delivery waits for a lock.
	execute(t, s, `CREATE FUNCTION posthorn.wait() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END'`)
	execute(t, s, `CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON posthorn.delivery_counts DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION posthorn.wait()`)
	lock := begin(t, s, pgx.ReadCommitted)
	if _, err := lock.Exec(t.Context(), "SELECT pg_advisory_xact_lock(4711)"); err != nil {
		t.Fatal(err)
	}
	committed := make(chan error, 1)
	go func() {
		_, err := s.Commit(t.Context(), posthorn.Batch{Node: node, Results: []posthorn.Result{delivered(first, start)}})
		committed <- err
	}()
	for number(t, s, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted") == 0 {
		select {
		case err := <-committed:
			t.Fatalf("it committed: %v", err)
		default:
		}
	}
	s.lanes.forget()
	if n := len(claim(t, s, node, now, 5, w)); n != 5 {
		t.Fatalf("%d entries", n)
	}
	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-committed; err != nil {
		t.Fatal(err)
	}
	if entries := claim(t, s, node, now, 1, w); len(entries) != 1 || entries[0].Event.ID != behind.ID {
		t.Errorf("claimed %+v", entries)
	}
}

// TestOrderBesideLongTransaction delivers an ordering's events while another session keeps a transaction open, so that nothing of them can be
// removed from the indexes: to let the next one go on costs no more for that.
func TestOrderBesideLongTransaction(t *testing.T) {
	s := open(t, pgtest.URL(t))
	w, node := newWebhook(t, s), newNode(t, s)
	if _, err := begin(t, s, pgx.RepeatableRead).Exec(t.Context(), "SELECT FROM pg_class"); err != nil {
		t.Fatal(err)
	}
	// What delivering events leaves behind: each becomes the one whose turn it is, and goes.
	execute(t, s, `INSERT INTO posthorn.queue (event, webhook, run, attempt, trigger, due_at, node, ordering, turn)
		SELECT -g, $1, 0, 1, 'automatic', $2, 0, 1, g FROM generate_series(1, 20000) g`, w.Seq, start)
	execute(t, s, "UPDATE posthorn.queue SET node = NULL")
	execute(t, s, "DELETE FROM posthorn.queue")
	b := posthorn.Batch{Node: node}
	for range 20 {
		b.Events = append(b.Events, ordered(newEvent(start), w))
	}
	began := time.Now() // by this no turn will be too old, however long it takes
	commitBatch(t, s, b)
	for i := range 10 {
		entries := claim(t, s, node, start, 10, w)
		if len(entries) != 1 || entries[0].Event.ID != b.Events[i].Event.ID {
			t.Fatalf("claimed %+v after %d", entries, i)
		}
		commitBatch(t, s, posthorn.Batch{Node: node, Results: []posthorn.Result{delivered(entries[0], start)}})
	}
	execute(t, s, "DELETE FROM posthorn.queue WHERE node IS NULL") // which is what happens to the next one
	o := orderings{webhooks: []int64{w.Seq}, numbers: []int64{1}, at: began}
	next := buffers(t, s, advanceOrderings, []any{o.webhooks, o.numbers, s.lanes.turnsOf(&o)})
	o.at = time.Now().Add(wholeEvery)
	whole := buffers(t, s, advanceOrderings, []any{o.webhooks, o.numbers, s.lanes.turnsOf(&o)})
	t.Logf("pages from the last turn %d, from the beginning %d", next, whole)
	if next > 60 || whole < 10*next {
		t.Errorf("it looks at %d pages, and from the beginning at %d", next, whole)
	}
}

// TestLateInOrder has a host's transaction commit an event after others, of which one was delivered, have overtaken it: it comes behind what
// is there, from whichever node, and nothing gets stuck.
func TestLateInOrder(t *testing.T) {
	stores, nodes := openNodes(t, 2)
	w := newWebhook(t, stores[0])
	late, a, b, c, d := newEvent(start), newEvent(start), newEvent(start), newEvent(start), newEvent(start)
	tx := begin(t, stores[0], pgx.ReadCommitted)
	if _, err := stores[0].Tx(tx).Accept(t.Context(), ordered(late, w)); err != nil {
		t.Fatal(err)
	}
	accept := func(i int, e *posthorn.AcceptedEvent) {
		commitBatch(t, stores[i], posthorn.Batch{Node: nodes[i], Events: []posthorn.NewEvent{ordered(e, w)}})
	}
	deliver := func(i int, want *posthorn.AcceptedEvent) {
		t.Helper()
		entries := claim(t, stores[i], nodes[i], start, 10, w)
		if len(entries) != 1 || entries[0].Event.ID != want.ID {
			t.Fatalf("claimed %+v, want %s", entries, want.ID)
		}
		if n := len(claim(t, stores[1-i], nodes[1-i], start, 10, w)); n != 0 {
			t.Fatalf("%d at once", n+1)
		}
		commitBatch(t, stores[i], posthorn.Batch{Node: nodes[i], Results: []posthorn.Result{delivered(entries[0], start)}})
	}
	accept(0, a)
	accept(1, b)
	accept(0, c)
	deliver(1, a)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	accept(1, d)
	for i, e := range []*posthorn.AcceptedEvent{b, c, late, d} {
		deliver(i%2, e)
	}
	if n := number(t, stores[0], "SELECT count(*) FROM posthorn.queue"); n != 0 {
		t.Errorf("%d entries are left", n)
	}
}

// leave has a host's transactions leave an entry of each event that fill has made unplaced, over a number of orderings.
func leave(t *testing.T, s *Store, w posthorn.Webhook, orderings int) {
	t.Helper()
	execute(t, s, `INSERT INTO posthorn.queue (event, webhook, run, attempt, trigger, due_at, node, ordering)
		SELECT seq, $1, 0, 1, 'automatic', created_at, -1, 1 + row_number() OVER (ORDER BY seq) % $2::int FROM posthorn.events`, w.Seq, orderings)
	execute(t, s, "ANALYZE posthorn.queue")
}

// TestUnplacedBacklog has hosts leave many entries unplaced: to look for them, and to place some, costs what it does with few.
func TestUnplacedBacklog(t *testing.T) {
	url := pgtest.URL(t)
	cost := func(n int) (look, orderings, place int) {
		s := open(t, url)
		w := newWebhook(t, s)
		fill(t, s, n)
		leave(t, s, w, n/2)
		var webhooks, numbers []int64
		for i := range 100 {
			webhooks, numbers = append(webhooks, w.Seq), append(numbers, int64(1+i))
		}
		return buffers(t, s, selectUnplaced, []any{0, placeFor}), buffers(t, s, selectUnplacedOrderings, []any{webhooks[:1], 100}),
			buffers(t, s, placeEntries, []any{webhooks, numbers, placesAtOnce, placesAtOnce})
	}
	look, orderings, place := cost(400)
	lookLong, orderingsLong, placeLong := cost(20_000)
	t.Logf("pages with 400 and with 20,000: look %d %d, orderings %d %d, place %d %d", look, lookLong, orderings, orderingsLong, place, placeLong)
	for what, pages := range map[string][2]int{"look": {look, lookLong}, "orderings": {orderings, orderingsLong}, "place": {place, placeLong}} {
		if pages[1] > 3*pages[0]+20 {
			t.Errorf("%s: it looks at %d pages with few, and at %d with many", what, pages[0], pages[1])
		}
	}
}

// TestPlacedInParts has hosts leave more entries than one transaction places, for a webhook that orders by key and for two with a single
// order. Each look, by Due or by Claim, places some of each, until all are there in the order of their events.
func TestPlacedInParts(t *testing.T) {
	s := open(t, pgtest.URL(t))
	keys, strict, other, node := newWebhook(t, s), newWebhook(t, s), newWebhook(t, s), newNode(t, s)
	fill(t, s, placesAtOnce)
	leave(t, s, keys, placesAtOnce/4)
	leave(t, s, strict, 1)
	leave(t, s, other, 1)
	const unplaced = "SELECT count(*) FROM posthorn.queue WHERE node = -1"
	now := start.Add(time.Hour)
	looks := 0
	for left := number(t, s, unplaced); left > 0; looks++ {
		if looks%2 == 0 {
			due, err := s.Due(t.Context(), now, oneDay, 0, 10)
			if err != nil {
				t.Fatal(err)
			}
			if n := number(t, s, unplaced+" AND webhook = $1", keys.Seq); looks == 0 && (len(due) != 3 || n < placesAtOnce/2) {
				t.Errorf("%d webhooks are due, and of the first %d entries are left", len(due), n)
			}
		} else {
			claim(t, s, node, now, 1, keys, strict, other)
		}
		was := left
		left = number(t, s, unplaced)
		if placed := was - left; placed == 0 || placed > placesAtOnce {
			t.Fatalf("a look places %d, and leaves %d", placed, left)
		}
	}
	if n := number(t, s, `SELECT count(*) FROM (SELECT event, lag(event) OVER (PARTITION BY webhook, ordering ORDER BY turn) AS before
		FROM posthorn.queue) q WHERE event < before`); n != 0 {
		t.Errorf("after %d looks %d are in the wrong order", looks, n)
	}
	if n := number(t, s, "SELECT count(*) FROM posthorn.queue WHERE turn IS NOT NULL"); n != 3*placesAtOnce {
		t.Errorf("%d have a turn", n)
	}
}

// TestCommitPlacesSome has hosts leave more than one transaction places: a commit of the same orderings has to do with as many of them as that.
func TestCommitPlacesSome(t *testing.T) {
	s := open(t, pgtest.URL(t))
	w, other, node := newWebhook(t, s), newWebhook(t, s), newNode(t, s)
	fill(t, s, placesAtOnce/2+10)
	leave(t, s, w, 1)
	leave(t, s, other, 1)
	commitBatch(t, s, posthorn.Batch{Node: node, Events: []posthorn.NewEvent{ordered(newEvent(start), w), ordered(newEvent(start), other)}})
	if n := number(t, s, "SELECT count(*) FROM posthorn.queue WHERE node = -1"); n != 20 {
		t.Errorf("%d are left", n)
	}
}

// TestDueWithoutPlaces has the store fail to place what a host left: Due says so, and others are due all the same.
func TestDueWithoutPlaces(t *testing.T) {
	s := open(t, pgtest.URL(t))
	w, plain := newWebhook(t, s), newWebhook(t, s)
	fill(t, s, 1, plain)
	leave(t, s, w, 1)
	execute(t, s, `CREATE FUNCTION posthorn.refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END'`)
	execute(t, s, "CREATE TRIGGER refuse BEFORE DELETE ON posthorn.queue FOR EACH ROW EXECUTE FUNCTION posthorn.refuse()")
	look := func() ([]posthorn.DueWebhook, error) { return s.Due(t.Context(), start.Add(time.Hour), oneDay, 0, 10) }
	if due, err := look(); err == nil || len(due) != 1 || due[0].Seq != plain.Seq {
		t.Errorf("due are %+v, and the error is %v", due, err)
	}
	execute(t, s, "DROP TRIGGER refuse ON posthorn.queue")
	if due, err := look(); err != nil || len(due) != 2 {
		t.Errorf("afterwards due are %+v, and the error is %v", due, err)
	}
}

// TestCommitWaitsForPlaces has a commit meet others of its ordering that take longer than it waits for a host's transaction: it waits for them.
func TestCommitWaitsForPlaces(t *testing.T) {
	s := open(t, pgtest.URL(t))
	s.lockTimeout = lockTimeout
	w, node := newWebhook(t, s), newNode(t, s)
	tx := begin(t, s, pgx.ReadCommitted)
	b := &batch{names: s.names}
	lockOrderings(b, []int64{w.Seq})
	if err := tx.SendBatch(t.Context(), &b.Batch).Close(); err != nil {
		t.Fatal(err)
	}
	committed := make(chan error, 1)
	go func() {
		_, err := s.Commit(t.Context(), posthorn.Batch{Node: node, Events: []posthorn.NewEvent{ordered(newEvent(start), w)}})
		committed <- err
	}()
	for number(t, s, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'
		AND clock_timestamp() - state_change > interval '2.5 s'`) == 0 {
		select {
		case err := <-committed:
			t.Fatalf("it did not wait: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-committed; err != nil {
		t.Error(err)
	}
}

// TestPlacesForEach has more webhooks with unplaced entries than one look can place any for: the next look begins behind them.
func TestPlacesForEach(t *testing.T) {
	s := open(t, pgtest.URL(t))
	const many = placeFor + 10
	webhooks := make([]*posthorn.Webhook, many)
	for i := range webhooks {
		webhooks[i] = &posthorn.Webhook{ID: fmt.Sprint("one of many ", i), RepoID: "repo", Active: true, CreatedAt: start, UpdatedAt: start}
	}
	if err := s.CreateWebhooks(t.Context(), webhooks...); err != nil {
		t.Fatal(err)
	}
	const each = 3 * (placesAtOnce / 2 / placeFor)
	execute(t, s, `INSERT INTO posthorn.queue (event, webhook, run, attempt, trigger, due_at, node, ordering)
		SELECT g, w.seq, 0, 1, 'automatic', $1, -1, 1 FROM generate_series(1, $2::bigint) g, posthorn.webhooks w`, start, each)
	for look, want := range []int{10, 0} {
		if _, err := s.Due(t.Context(), start.Add(time.Hour), oneDay, 0, 10); err != nil {
			t.Fatal(err)
		}
		n := number(t, s, "SELECT count(*) FROM (SELECT webhook FROM posthorn.queue GROUP BY webhook HAVING count(turn) = 0) q")
		if n != want {
			t.Errorf("after %d looks %d webhooks have no entry with a place, want %d", look+1, n, want)
		}
	}
	if _, err := s.Due(t.Context(), start.Add(time.Hour), oneDay, 0, 10); err != nil {
		t.Fatal(err)
	}
	if n := number(t, s, "SELECT count(*) FROM posthorn.queue WHERE webhook = $1 AND node <> -1", webhooks[0].Seq); n <= each/3 {
		t.Errorf("the first webhook has %d places after another look", n)
	}
}
