package postgres

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/pgtest"
)

// fill puts free entries into the queue, one a millisecond from start on, without going through Commit.
func fill(t *testing.T, s *Store, n int, webhooks ...posthorn.Webhook) {
	t.Helper()
	execute(t, s, `INSERT INTO posthorn.events (seq, id, repo_id, type, created_at, deliveries, attributes, payload)
		SELECT nextval('posthorn.event_seq'), 'filled-' || g, 'repo', 'push', $1::timestamptz + g * interval '1 ms', 1, '', '{}' FROM generate_series(1, $2::int) g`, start, n)
	for _, w := range webhooks {
		execute(t, s, `INSERT INTO posthorn.queue (event, webhook, run, attempt, trigger, due_at)
			SELECT seq, $1, 0, 1, 'automatic', created_at FROM posthorn.events WHERE id LIKE 'filled-%'`, w.Seq)
	}
	execute(t, s, "ANALYZE posthorn.queue")
	execute(t, s, "ANALYZE posthorn.events")
}

// buffers returns how many pages of the database a statement looks at.
func buffers(t *testing.T, s *Store, statement string, args []any) int {
	t.Helper()
	tx := begin(t, s, pgx.ReadCommitted)
	defer tx.Rollback(t.Context())
	if _, err := tx.Exec(t.Context(), settings); err != nil {
		t.Fatal(err)
	}
	return buffersIn(t, tx, s.names.sql(statement), args...)
}

func buffersIn(t *testing.T, tx pgx.Tx, statement string, args ...any) int {
	t.Helper()
	var plans []struct {
		Plan struct {
			Hit  int `json:"Shared Hit Blocks"`
			Read int `json:"Shared Read Blocks"`
		}
	}
	var text []byte
	if err := tx.QueryRow(t.Context(), "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "+statement, args...).Scan(&text); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &plans); err != nil {
		t.Fatal(err)
	}
	return plans[0].Plan.Hit + plans[0].Plan.Read
}

// TestBacklog has a webhook with a long queue: looking for what is due, claiming for another webhook, and claiming a few of
// its own cost what they cost on a short one.
func TestBacklog(t *testing.T) {
	url := pgtest.URL(t)
	cost := func(backlog int) (due, other, own int) {
		s := open(t, url)
		busy, quiet, node := newWebhook(t, s), newWebhook(t, s), newNode(t, s)
		fill(t, s, backlog, busy)
		commitBatch(t, s, posthorn.Batch{Node: node, Events: []posthorn.NewEvent{accepting(newEvent(start), false, quiet)}})
		now := start.Add(time.Hour)
		looks := func(w posthorn.Webhook) []look { return []look{{webhook: w.Seq}} }
		return buffers(t, s, selectDue, dueArgs(now, oneDay, 0, nil)),
			buffers(t, s, claimEntries, claimArgs(claimOf(node, now, 10, quiet), looks(quiet))),
			buffers(t, s, claimEntries, claimArgs(claimOf(node, now, 10, busy), looks(busy)))
	}
	due, other, own := cost(100)
	dueLong, otherLong, ownLong := cost(50_000)
	t.Logf("pages with a backlog of 100 and of 50,000: due %d %d, claim for another %d %d, for its own %d %d", due, dueLong, other, otherLong, own, ownLong)
	// An index of three levels instead of one costs two pages more for each look; there are some dozens.
	for what, pages := range map[string][2]int{"Due": {due, dueLong}, "Claim for another": {other, otherLong}, "Claim": {own, ownLong}} {
		if pages[1] > 3*pages[0]+20 {
			t.Errorf("%s looks at %d pages with a short queue, and at %d with a long one", what, pages[0], pages[1])
		}
	}
}

// TestLongTransaction claims a backlog while another session keeps a transaction open, so that nothing of it can be removed
// from the index: claims and sweeps cost no more for that.
func TestLongTransaction(t *testing.T) {
	s := open(t, pgtest.URL(t))
	w, node := newWebhook(t, s), newNode(t, s)
	fill(t, s, 20_000, w)
	now := start.Add(time.Hour)
	old := begin(t, s, pgx.RepeatableRead)
	if _, err := old.Exec(t.Context(), "SELECT FROM pg_class"); err != nil {
		t.Fatal(err)
	}
	c := claimOf(node, now, 10, w)
	first := buffers(t, s, claimEntries, claimArgs(c, s.lanes.looks(c.Wants, time.Now())))
	firstDue := buffers(t, s, selectDue, dueArgs(now, oneDay, 0, s.lanes.known(time.Now())))
	began := time.Now() // by this no position will be too old, however long it takes
	for range 15 {
		b := posthorn.Batch{Node: node}
		for _, e := range claim(t, s, node, now, 1000, w) {
			b.Results = append(b.Results, posthorn.Result{Entry: e})
		}
		commitBatch(t, s, b)
	}
	execute(t, s, "VACUUM posthorn.queue") // which can't do anything about it
	last := buffers(t, s, claimEntries, claimArgs(c, s.lanes.looks(c.Wants, began)))
	lastDue := buffers(t, s, selectDue, dueArgs(now, oneDay, 0, s.lanes.known(began)))
	whole := buffers(t, s, claimEntries, claimArgs(c, s.lanes.looks(c.Wants, time.Now().Add(wholeEvery))))
	t.Logf("pages at first and after 15,000 entries: claim %d %d, due %d %d; claim from the beginning %d", first, last, firstDue, lastDue, whole)
	if last > 2*first+20 || lastDue > 2*firstDue+20 {
		t.Errorf("a claim looks at %d pages at first and %d later, Due at %d and %d", first, last, firstDue, lastDue)
	}
	if whole < last+200 {
		t.Errorf("a claim from the beginning looks at %d pages, one from the position at %d: this test shows nothing", whole, last)
	}
}

// TestBehind has entries turn up behind the position of a claim.
func TestBehind(t *testing.T) {
	stores, nodes := openNodes(t, 2)
	s, other := stores[0], stores[1]
	w := newWebhook(t, s)
	fill(t, s, 3, w)
	now := start.Add(time.Hour)
	n := len(claim(t, s, nodes[0], now, 2, w))
	s.lanes.age(-oneDay) // positions count for so much longer, however slow the machine is
	if n != 2 || len(s.lanes.known(time.Now())) != 1 {
		t.Fatalf("%d entries, and %d positions", n, len(s.lanes.known(time.Now())))
	}
	accept := func(by *Store, node int64, due time.Time) string {
		t.Helper()
		e := newEvent(due)
		commitBatch(t, by, posthorn.Batch{Node: node, Events: []posthorn.NewEvent{accepting(e, false, w)}})
		return e.ID
	}
	next := func(limit int, want ...string) {
		t.Helper()
		entries := claim(t, s, nodes[0], now, limit, w)
		var got []string
		for _, e := range entries {
			got = append(got, e.Event.ID)
		}
		if len(got) != len(want) {
			t.Fatalf("claimed %v, want %v", got, want)
		}
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("claimed %v, want %v", got, want)
			}
		}
	}
	// One that another node frees a little behind is found with what comes after the position, and in its order.
	near := accept(other, nodes[1], start.Add(-nearBehind/2))
	next(10, near, "filled-3")

	// One far behind is found when the whole lane is looked at, and Due says so.
	far := accept(other, nodes[1], start.Add(-time.Hour))
	next(10)
	s.lanes.age(oneDay + wholeEvery)
	if due, err := s.Due(t.Context(), now, oneDay, 0, 10); err != nil || len(due) != 1 || len(s.lanes.known(time.Now())) != 0 {
		t.Fatalf("%d webhooks are due, %v; %d positions", len(due), err, len(s.lanes.known(time.Now())))
	}
	next(1, far)

	// One that this node frees itself is found at once.
	if len(s.lanes.known(time.Now())) != 1 {
		t.Fatal("no position is remembered")
	}
	own := accept(s, nodes[0], start.Add(-2*time.Hour))
	next(10, own)
}

// TestFarBehind has another node free many entries far behind: they are claimed one after the other, without pauses.
func TestFarBehind(t *testing.T) {
	stores, nodes := openNodes(t, 2)
	s, other := stores[0], stores[1]
	w := newWebhook(t, s)
	now := start.Add(time.Hour)
	fill(t, s, 3, w)
	if n := len(claim(t, s, nodes[0], now, 2, w)); n != 2 {
		t.Fatalf("%d entries", n)
	}
	const n = 60
	b := posthorn.Batch{Node: nodes[1]}
	for i := range n {
		b.Events = append(b.Events, accepting(newEvent(start.Add(-10*time.Hour+time.Duration(i)*10*time.Minute)), false, w))
	}
	commitBatch(t, other, b)
	s.lanes.age(wholeEvery)
	for claimed := 0; claimed < n; claimed += 10 {
		if got := len(claim(t, s, nodes[0], now, 10, w)); got != 10 {
			t.Fatalf("%d entries after %d of %d", got, claimed, n)
		}
	}
}

// age makes what is remembered older.
func (l *lanes) age(by time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for webhook, lane := range l.byWebhook {
		lane.whole = lane.whole.Add(-by)
		l.byWebhook[webhook] = lane
	}
}

// TestLanesAreBounded has more webhooks with a backlog than are remembered.
func TestLanesAreBounded(t *testing.T) {
	var l lanes
	var c posthorn.Claim
	var entries []*posthorn.Entry
	c.Now = start
	for i := range int64(3 * maxLanes) {
		c.Wants = append(c.Wants, posthorn.Want{WebhookSeq: i, Limit: 1})
		entries = append(entries, &posthorn.Entry{WebhookSeq: i, Event: &posthorn.AcceptedEvent{Seq: i}, Trigger: posthorn.TriggerAutomatic, DueAt: start})
	}
	now := time.Now()
	l.claimed(c, l.looks(c.Wants, now), entries, now)
	if n := len(l.known(now)); n != maxLanes {
		t.Errorf("%d webhooks are remembered, want %d", n, maxLanes)
	}
	o := orderings{at: now}
	for i := range int64(3 * maxTurns) {
		o.found = append(o.found, turn{orderingKey: orderingKey{i, 1}, turn: i + 1})
	}
	l.setTurns(&o)
	l.setTurns(&o)
	if n := len(l.turns); n != maxTurns {
		t.Errorf("the turns of %d orderings are remembered, want %d", n, maxTurns)
	}
	l.forget()
	if n := len(l.known(now)); n != 0 {
		t.Errorf("%d webhooks are remembered after they were forgotten", n)
	}
}

// TestDueBesideKnown has webhooks with a position before, between and after others.
func TestDueBesideKnown(t *testing.T) {
	s := open(t, pgtest.URL(t))
	node := newNode(t, s)
	var webhooks []posthorn.Webhook
	for range 6 {
		webhooks = append(webhooks, newWebhook(t, s))
	}
	fill(t, s, 3, webhooks[0], webhooks[1], webhooks[3], webhooks[5])
	now := start.Add(time.Hour)
	claim(t, s, node, now, 2, webhooks[0], webhooks[3], webhooks[5])
	s.lanes.age(-oneDay)                   // however long this takes
	claim(t, s, node, now, 1, webhooks[3]) // it is empty now, and remembered
	if n := len(s.lanes.known(time.Now())); n != 3 {
		t.Fatalf("%d positions are remembered", n)
	}
	for after, want := range map[int64][]int{0: {0, 1, 5}, webhooks[0].Seq: {1, 5}, webhooks[2].Seq: {5}, webhooks[5].Seq: {}} {
		due, err := s.Due(t.Context(), now, oneDay, after, 10)
		if err != nil || len(due) != len(want) {
			t.Fatalf("after %d there are %+v due, %v; want %v", after, due, err, want)
		}
		for i, w := range want {
			if due[i].Seq != webhooks[w].Seq || due[i].ID != webhooks[w].ID {
				t.Errorf("after %d there are %+v due, want %v", after, due, want)
			}
		}
	}
}
