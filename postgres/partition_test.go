package postgres

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/pgtest"
)

func TestDays(t *testing.T) {
	for _, c := range []struct {
		at    time.Time
		day   day
		table string
	}{
		{time.Unix(0, 0), 0, "deliveries_19700101"},
		{time.Unix(-1, 0), -1, "deliveries_19691231"},
		{time.Date(2026, 3, 4, 23, 59, 59, 999_999_999, time.UTC), 20516, "deliveries_20260304"},
		{time.Date(2026, 3, 5, 0, 0, 0, 0, time.UTC), 20517, "deliveries_20260305"},
		{time.Date(2026, 3, 5, 1, 0, 0, 0, time.FixedZone("there", 7200)), 20516, "deliveries_20260304"},
		{time.Date(2262, 4, 11, 0, 0, 0, 0, time.UTC), lastDay, "deliveries_22620411"},
	} {
		d := dayAt(c.at)
		if d != c.day || d.table() != c.table {
			t.Errorf("%v is day %d with table %s", c.at, d, d.table())
		}
		if back, ok := dayOfTable(c.table); !ok || back != d {
			t.Errorf("table %s is of day %d, %v", c.table, back, ok)
		}
		if c.day < 0 {
			continue
		}
		id, _ := parseUUID(posthorn.DeliveryID(&posthorn.AcceptedEvent{CreatedAt: c.at}, "w", 0, 1))
		if of, ok := dayOf(id); !ok || of != d {
			t.Errorf("the id %x of %v is of day %d, %v", id, c.at, of, ok)
		}
		first, next := formatUUID(d.firstID()), formatUUID((d + 1).firstID())
		if s := formatUUID(id); s < first || s >= next {
			t.Errorf("the id %s is not between %s and %s", s, first, next)
		}
	}
	for _, at := range []time.Time{{}, time.Unix(-1, 0), time.Date(2262, 4, 12, 0, 0, 0, 0, time.UTC)} {
		id, _ := parseUUID(posthorn.DeliveryID(&posthorn.AcceptedEvent{CreatedAt: at}, "w", 0, 1))
		if d, ok := dayOf(id); ok {
			t.Errorf("an event of %v has a day: %d", at, d)
		}
	}
	for _, name := range []string{"deliveries", "deliveries_", "deliveries_2026", "deliveries_20261332", "deliveries_20260304_pkey", "x_deliveries_20260304"} {
		if d, ok := dayOfTable(name); ok {
			t.Errorf("table %s is taken for day %d's", name, d)
		}
	}
}

// TestImpossibleDelivery has an id of a time that no event has: it makes no partition, and nothing is written.
func TestImpossibleDelivery(t *testing.T) {
	s := open(t, pgtest.URL(t))
	w, node := newWebhook(t, s), newNode(t, s)
	e := newEvent(time.Date(5000, 1, 1, 0, 0, 0, 0, time.UTC))
	_, err := s.Commit(t.Context(), posthorn.Batch{Node: node, Results: []posthorn.Result{delivered(leasedEntryOf(w, e), start)}})
	wantCode(t, err, posthorn.CodeInternal, "impossible time")
	if n := tables(t, s); n != "" {
		t.Fatalf("there are tables %s", n)
	}
}

// tables returns the days that have a table, with the state of those that are no partitions.
func tables(t testing.TB, s *Store) string {
	t.Helper()
	states, err := s.partitionStates(t.Context(), "deliveries\\_%")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	today := dayAt(time.Now())
	for _, d := range sortedDays(states, nil) {
		if d >= today {
			continue // made ahead
		}
		entry := d.start().Format("01-02")
		if states[d] != partitionAttached {
			entry += fmt.Sprintf("(%d)", states[d])
		}
		list = append(list, entry)
	}
	return strings.Join(list, " ")
}

func prune(t testing.TB, s *Store, before time.Time) int {
	t.Helper()
	n, err := s.Prune(t.Context(), before)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestPartitionsAhead(t *testing.T) {
	s := open(t, pgtest.URL(t))
	prune(t, s, start)
	now, err := s.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range day(daysAhead) { // one less, should midnight be now
		if state, err := s.partitionState(t.Context(), dayAt(now)+i); err != nil || state != partitionAttached {
			t.Errorf("in %d days the partition is in state %d, %v", i, state, err)
		}
	}
}

// TestDroppedPartition has a partition that another node dropped: this one doesn't know, and makes it again.
func TestDroppedPartition(t *testing.T) {
	url := pgtest.URL(t)
	s := open(t, url)
	other := openNode(t, url, Config{Schema: s.schema})
	w, node := newWebhook(t, s), newNode(t, s)
	deliver(t, s, node, w, newEvent(start), start)
	deliver(t, s, node, w, newEvent(start.Add(-oneDay)), start)
	if got := tables(t, s); got != "03-03 03-04" {
		t.Fatalf("partitions of %s", got)
	}
	if n := prune(t, other, start.Add(3*oneDay)); n != 4 {
		t.Fatalf("%d rows pruned", n)
	}
	if got := tables(t, s); got != "" {
		t.Fatalf("partitions of %s after Prune", got)
	}
	wantLog(t, s, w, 0)
	late := newEvent(start)
	deliver(t, s, node, w, late, start.Add(3*oneDay))
	wantLog(t, s, w, 1)
	if got := tables(t, s); got != "03-04" {
		t.Fatalf("partitions of %s in the end", got)
	}
}

// TestUnfinishedPartition has a table that a node made and died before it was a partition. Whoever needs it attaches it, and
// Prune drops it when it is old.
func TestUnfinishedPartition(t *testing.T) {
	url := pgtest.URL(t)
	s := open(t, url)
	fresh := func() *Store { return openNode(t, url, Config{Schema: s.schema}) }
	leave := func() {
		execute(t, s, "CREATE TABLE posthorn."+dayAt(start).table()+" (LIKE posthorn.deliveries INCLUDING ALL)")
		if got := tables(t, s); got != "03-04(1)" {
			t.Fatalf("partitions of %s", got)
		}
	}
	w, node := newWebhook(t, s), newNode(t, s)
	leave()
	deliver(t, fresh(), node, w, newEvent(start), start)
	if got := tables(t, s); got != "03-04" {
		t.Fatalf("partitions of %s after a delivery", got)
	}
	wantLog(t, s, w, 1)
	prune(t, s, start.Add(2*oneDay))

	leave()
	prune(t, fresh(), start.Add(-oneDay)) // nothing is old: it becomes what it was meant to be
	if got := tables(t, s); got != "03-04" {
		t.Fatalf("partitions of %s after a Prune that it stays in", got)
	}
	prune(t, s, start.Add(2*oneDay))

	leave()
	prune(t, fresh(), start.Add(2*oneDay))
	if got := tables(t, s); got != "" {
		t.Fatalf("partitions of %s in the end", got)
	}
}

// TestNeededPartition has an old event that waits in the queue: its day's deliveries go, its partition stays.
func TestNeededPartition(t *testing.T) {
	s := open(t, pgtest.URL(t))
	w, node := newWebhook(t, s), newNode(t, s)
	deliver(t, s, node, w, newEvent(start), start)
	waiting := newEvent(start)
	commitBatch(t, s, posthorn.Batch{Node: node, Events: []posthorn.NewEvent{accepting(waiting, false, w)}})
	for _, want := range []int{2, 0} {
		if n := prune(t, s, start.Add(5*oneDay)); n != want {
			t.Fatalf("%d rows pruned, want %d", n, want)
		}
	}
	if got := tables(t, s); got != "03-04" {
		t.Fatalf("partitions of %s", got)
	}
	wantLog(t, s, w, 0)
	commitBatch(t, s, posthorn.Batch{Node: node, Results: []posthorn.Result{{Entry: claim(t, s, node, start, 1, w)[0]}}})
	if n := prune(t, s, start.Add(5*oneDay)); n != 1 {
		t.Fatalf("%d rows pruned in the end", n)
	}
	if got := tables(t, s); got != "" {
		t.Fatalf("partitions of %s in the end", got)
	}
}

// TestDropWhileReading has a reader keep partitions from being dropped: Prune leaves them for the next time, and after a day
// says so. Meanwhile nobody waits, and everything else is pruned.
func TestDropWhileReading(t *testing.T) {
	s := open(t, pgtest.URL(t))
	s.dropPatience = dropPatience
	w, node := newWebhook(t, s), newNode(t, s)
	deliver(t, s, node, w, newEvent(start), start)
	deliver(t, s, node, w, newEvent(start.Add(oneDay)), start.Add(oneDay))
	reader := begin(t, s, pgx.ReadCommitted)
	if _, err := reader.Exec(t.Context(), s.names.replacer.Replace("SELECT FROM posthorn.deliveries")); err != nil {
		t.Fatal(err)
	}
	prune(t, s, start.Add(oneDay)) // no word of it
	// The machine may stand still now and then, while a drop that is in the way is so each time.
	for try := 1; ; try++ {
		pruned := make(chan error, 1)
		go func() {
			_, err := s.Prune(context.Background(), start.Add(3*oneDay))
			pruned <- err
		}()
		longest, meanwhile := time.Duration(0), 0
		for ; ; meanwhile++ {
			began := time.Now()
			deliver(t, s, node, w, newEvent(start.Add(3*oneDay)), start.Add(3*oneDay))
			longest = max(longest, time.Since(began))
			select {
			case err := <-pruned:
				wantCode(t, err, posthorn.CodeUnavailable, "deliveries_20260304", "2 days", "lock")
				wantDiscreet(t, err, "127.0.0.1")
			default:
				continue
			}
			break
		}
		unfolded := number(t, s, "SELECT count(*) FROM posthorn.delivery_counts WHERE NOT folded")
		t.Logf("%d deliveries meanwhile, of which the longest took %v; %d counts are not folded", meanwhile, longest, unfolded)
		if longest <= time.Second && unfolded <= meanwhile/4 {
			break
		}
		if try == 5 {
			t.Fatal("each time a delivery took more than a second while a partition was to be dropped, or the counts were not folded")
		}
	}
	if got := tables(t, s); got != "03-04 03-05 03-07" {
		t.Fatalf("partitions of %s while someone reads", got)
	}
	if err := reader.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.dropPatience = patience
	if n := prune(t, s, start.Add(3*oneDay)); n != 2 {
		t.Fatalf("%d rows pruned", n)
	}
	if got := tables(t, s); got != "03-07" {
		t.Fatalf("partitions of %s afterwards", got)
	}
}

// TestDropWhileVacuuming has a vacuum at work on a partition, which a drop waits for with a lock that is in nobody's way.
func TestDropWhileVacuuming(t *testing.T) {
	url := pgtest.URL(t)
	s := open(t, url)
	other := openNode(t, url, Config{Schema: s.schema})
	other.lockTimeout = lockTimeout
	w, node := newWebhook(t, s), newNode(t, s)
	deliver(t, s, node, w, newEvent(start), start)
	vacuum := begin(t, s, pgx.ReadCommitted)
	lock := "LOCK TABLE posthorn." + dayAt(start).table() + " IN SHARE UPDATE EXCLUSIVE MODE"
	if _, err := vacuum.Exec(t.Context(), s.names.replacer.Replace(lock)); err != nil {
		t.Fatal(err)
	}
	pruned := make(chan error, 1)
	go func() {
		_, err := s.Prune(context.Background(), start.Add(3*oneDay))
		pruned <- err
	}()
	waitForLock(t, s)
	// Into the same partition. A drop that is in its way would be so for longer than it waits for a lock.
	deliver(t, other, node, w, newEvent(start), start.Add(3*oneDay))
	if err := vacuum.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-pruned; err != nil {
		t.Fatal(err)
	}
	if got := tables(t, s); got != "03-04" { // what was recorded meanwhile stays
		t.Fatalf("partitions of %s", got)
	}
	prune(t, s, start.Add(3*oneDay))
	wantLog(t, s, w, 1)
}

// TestPruneDeletedBesideLongTransaction deletes what a webhook left behind while nothing can be removed from the indexes: the
// last rows cost what the first ones did.
func TestPruneDeletedBesideLongTransaction(t *testing.T) {
	s := open(t, pgtest.URL(t))
	w, node := newWebhook(t, s), newNode(t, s)
	const n = 5*pruneChunk + 1
	fill(t, s, n, w)
	deliver(t, s, node, w, newEvent(start), start)
	execute(t, s, `INSERT INTO posthorn.deliveries (seq, id, webhook, event, success, delivered_at, run, attempt, status, trigger, event_id,
			event_type, body, exchange)
		SELECT nextval('posthorn.delivery_seq'), overlay(d.id::text PLACING lpad(to_hex(g), 12, '0') FROM 25)::uuid, d.webhook, d.event,
			d.success, d.delivered_at, d.run, d.attempt, d.status, d.trigger, d.event_id, d.event_type, d.body, d.exchange
		FROM posthorn.deliveries d CROSS JOIN generate_series(2, $1::int) g`, n)
	begin(t, s, pgx.RepeatableRead).Exec(t.Context(), "SELECT FROM pg_class")
	if err := s.DeleteWebhook(t.Context(), w.RepoID, w.ID); err != nil {
		t.Fatal(err)
	}
	if got, err := s.pruneDeleted(t.Context()); err != nil || got != n {
		t.Fatalf("%d deliveries pruned, %v", got, err)
	}
	for _, table := range []string{"queue", "deliveries", "webhooks"} {
		if left := number(t, s, "SELECT count(*) FROM posthorn."+table); left != 0 {
			t.Errorf("%d rows left in %s", left, table)
		}
	}
	var seq int64 = 1 << 40
	first := buffers(t, s, deleteLogged, []any{w.Seq, pruneChunk, int64(0)})
	last := buffers(t, s, deleteLogged, []any{w.Seq, pruneChunk, seq})
	queued := []any{w.Seq, pruneChunk, true, start.Add(time.Hour), int64(0), int64(0)}
	lastQueued := buffers(t, s, deleteQueued, queued)
	t.Logf("pages from the beginning %d, from the last key %d and %d", first, last, lastQueued)
	if last > 20 || lastQueued > 20 || first < 50 {
		t.Errorf("the last statement looks at %d pages of the log and %d of the queue; from the beginning at %d", last, lastQueued, first)
	}
}

// TestLostCounts has counts of a day whose partition is gone.
func TestLostCounts(t *testing.T) {
	s := open(t, pgtest.URL(t))
	w, node := newWebhook(t, s), newNode(t, s)
	deliver(t, s, node, w, newEvent(start), start)
	execute(t, s, "DROP TABLE posthorn."+dayAt(start).table())
	prune(t, s, start.Add(-oneDay))
	wantLog(t, s, w, 0)
}

// TestPartitionsAtOnce has nodes record deliveries of old days, while others drop these days again and again: nothing fails,
// and no delivery that is to stay is lost.
func TestPartitionsAtOnce(t *testing.T) {
	url := pgtest.URL(t)
	first := open(t, url)
	const nodes, rounds = 3, 12
	w, node := newWebhook(t, first), newNode(t, first)
	now := start.Add(10 * oneDay)
	var wg sync.WaitGroup
	for range nodes {
		s := openNode(t, url, Config{Schema: first.schema})
		wg.Go(func() {
			for i := range rounds {
				for _, at := range []time.Time{start.Add(3 * oneDay), now} { // the first ones are old
					e := newEvent(start.Add(time.Duration(i%3) * oneDay))
					for _, b := range []posthorn.Batch{
						{Node: node, Events: []posthorn.NewEvent{accepting(e, true, w)}},
						{Node: node, Results: []posthorn.Result{delivered(leasedEntryOf(w, e), at)}},
					} {
						if _, err := s.Commit(t.Context(), b); err != nil {
							t.Error(err)
							return
						}
					}
				}
				if _, err := s.Prune(t.Context(), now.Add(-time.Hour)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	prune(t, first, now.Add(-time.Hour))
	wantLog(t, first, w, nodes*rounds)
	prune(t, first, now.Add(2*oneDay))
	wantLog(t, first, w, 0)
	if got := tables(t, first); got != "" {
		t.Fatalf("partitions of %s in the end", got)
	}
}

// TestFold has counts that commits made one by one.
func TestFold(t *testing.T) {
	s := open(t, pgtest.URL(t))
	w, other, node := newWebhook(t, s), newWebhook(t, s), newNode(t, s)
	for range 5 {
		deliver(t, s, node, w, newEvent(start), start)
	}
	deliver(t, s, node, other, newEvent(start), start)
	if n := number(t, s, "SELECT count(*) FROM posthorn.delivery_counts"); n != 6 {
		t.Fatalf("%d counts of deliveries before", n)
	}
	for range 2 {
		prune(t, s, start.Add(-oneDay))
		for table, want := range map[string]int{"delivery_counts": 2, "repo_counts": 1} {
			if n := number(t, s, "SELECT count(*) FROM posthorn."+table); n != want {
				t.Errorf("%d rows in %s, want %d", n, table, want)
			}
		}
	}
	deliver(t, s, node, w, newEvent(start), start)
	prune(t, s, start.Add(-oneDay))
	if n := number(t, s, "SELECT count(*) FROM posthorn.delivery_counts WHERE folded"); n != 2 {
		t.Errorf("%d folded rows, want 2", n)
	}
	wantLog(t, s, w, 6)
	prune(t, s, start.Add(3*oneDay))
	for _, table := range []string{"delivery_counts", "repo_counts"} {
		if n := number(t, s, "SELECT count(*) FROM posthorn."+table); n != 0 {
			t.Errorf("%d rows in %s in the end", n, table)
		}
	}
}

// TestHeldOfDeleted has a host's transaction commit a held entry after Prune has removed its webhook's row: it goes, and its event too.
func TestHeldOfDeleted(t *testing.T) {
	s := open(t, pgtest.URL(t))
	w, live := newWebhook(t, s), newWebhook(t, s)
	tx := begin(t, s, pgx.ReadCommitted)
	n := accepting(newEvent(start), false, w)
	n.Targets[0].Held = true
	if _, err := s.Tx(tx).Accept(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	kept := accepting(newEvent(start), false, live)
	kept.Targets[0].Held = true
	commitBatch(t, s, posthorn.Batch{Node: newNode(t, s), Events: []posthorn.NewEvent{kept}})
	if err := s.DeleteWebhook(t.Context(), w.RepoID, w.ID); err != nil {
		t.Fatal(err)
	}
	prune(t, s, start.Add(30*oneDay))
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	prune(t, s, start.Add(30*oneDay))
	if entries, events := number(t, s, "SELECT count(*) FROM posthorn.queue"), number(t, s, "SELECT count(*) FROM posthorn.events"); entries != 1 || events != 1 {
		t.Errorf("%d entries are left, and %d events; one of another webhook is to stay", entries, events)
	}
}
