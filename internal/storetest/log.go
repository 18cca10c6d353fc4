package storetest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/musehub/posthorn"
)

func testDelivery(s *suite) {
	w, node := s.webhook(), s.node()
	e := s.event()
	s.accept(node, e, leased(w))
	r := retried(entryOf(w, e), start.Add(second), start.Add(2*second))
	r.Delivery.ResponseBody = "“😀\ufffd” \t\n\\ '" + strings.Repeat("語", 500)
	r.Delivery.Exchange = posthorn.Exchange{
		URL: "https://example.com/hook?a=%20", SentAt: start, Secrets: 2, Ed25519: 1,
		Header: http.Header{"Server": {"a", "b \u2028"}, "X-Empty": {""}},
		Timings: posthorn.Timings{
			DNS: 1, Connect: 2 * time.Microsecond, TLS: 3 * time.Millisecond, FirstByte: 4 * second, Total: 5 * time.Minute, Reused: true,
		},
	}
	s.record(node, r)
	want := *r.Delivery
	want.Payload = e.Payload
	got, err := s.Delivery(s.Context(), repo, w.ID, want.ID)
	s.check(err)
	s.equal("Delivery", got, want)
	s.equal("Deliveries", s.log(w).Items, []posthorn.Delivery{want})
}

func testDeliveryNotFound(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	e := s.event()
	s.deliver(node, e, start, w)
	id := s.log(w).Items[0].ID
	for _, c := range [][3]string{
		{repo, other.ID, id}, {"another repo", w.ID, id}, {repo, s.uuid(), id}, {repo, w.ID, s.uuid()}, {repo, w.ID, ""},
		{repo, w.ID, "not an id"}, {repo, w.ID, id + "0"},
	} {
		_, err := s.Delivery(s.Context(), c[0], c[1], c[2])
		s.wantCode(err, posthorn.CodeNotFound)
	}
	for _, q := range []posthorn.DeliveryQuery{{RepoID: "another repo", WebhookID: w.ID, Limit: 1}, {RepoID: repo, WebhookID: s.uuid(), Limit: 1}} {
		_, err := s.Deliveries(s.Context(), q)
		s.wantCode(err, posthorn.CodeNotFound)
	}
}

// all follows a listing to its end and returns the attempts' event ids.
func (s *suite) all(q posthorn.DeliveryQuery, total int64) []string {
	s.Helper()
	ids := []string{}
	last := int64(1<<63 - 1)
	for {
		page, err := s.Deliveries(s.Context(), q)
		s.check(err)
		s.equal("total", page.Total, total)
		if len(page.Items) > q.Limit {
			s.Fatalf("%d deliveries on a page of %d", len(page.Items), q.Limit)
		}
		for _, d := range page.Items {
			if d.Seq >= last {
				s.Fatalf("Seq %d comes after %d", d.Seq, last)
			}
			last = d.Seq
			ids = append(ids, d.EventID)
		}
		if page.Next == 0 {
			return ids
		}
		if q.Before = page.Next; len(ids) > 10_000 {
			s.Fatal("the listing does not end")
		}
	}
}

func testDeliveryPages(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	var want []string
	for range 7 { // all at the same time
		e := s.event()
		s.deliver(node, e, start, w, other)
		want = append([]string{e.ID}, want...)
	}
	for limit := 1; limit <= 8; limit++ {
		got := s.all(posthorn.DeliveryQuery{RepoID: repo, WebhookID: w.ID, Limit: limit}, 7)
		s.equal(fmt.Sprintf("the log in pages of %d", limit), got, want)
	}
	page, err := s.Deliveries(s.Context(), posthorn.DeliveryQuery{RepoID: repo, WebhookID: w.ID, Limit: 7})
	s.check(err)
	s.equal("next of the last page", page.Next, int64(0))
	empty := s.webhook()
	s.equal("an empty log", s.log(empty), posthorn.Page[posthorn.Delivery]{})
}

func testDeliveryFilters(s *suite) {
	w, node := s.webhook(), s.node()
	var ids []string
	for i := range 6 {
		e := s.event()
		e.Type = []string{"push", "tag", "push", "push", "tag", "push"}[i]
		s.accept(node, e, leased(w))
		at := start.Add(time.Duration(i) * second)
		if i%2 == 0 {
			s.record(node, done(entryOf(w, e), at))
		} else {
			s.record(node, failed(entryOf(w, e), at))
		}
		ids = append(ids, e.ID)
	}
	yes, no := true, false
	for _, c := range []struct {
		name string
		q    posthorn.DeliveryQuery
		want []int
	}{
		{"success", posthorn.DeliveryQuery{Success: &yes}, []int{4, 2, 0}},
		{"failure", posthorn.DeliveryQuery{Success: &no}, []int{5, 3, 1}},
		{"type", posthorn.DeliveryQuery{EventType: "tag"}, []int{4, 1}},
		{"type in another case", posthorn.DeliveryQuery{EventType: "TAG"}, []int{}},
		{"event", posthorn.DeliveryQuery{EventID: ids[2]}, []int{2}},
		{"unknown event", posthorn.DeliveryQuery{EventID: "unknown"}, []int{}},
		{"since", posthorn.DeliveryQuery{Since: start.Add(4 * second)}, []int{5, 4}},
		{"since a nanosecond later", posthorn.DeliveryQuery{Since: start.Add(4*second + 1)}, []int{5}},
		{"until", posthorn.DeliveryQuery{Until: start.Add(2 * second)}, []int{1, 0}},
		{"until a nanosecond later", posthorn.DeliveryQuery{Until: start.Add(2*second + 1)}, []int{2, 1, 0}},
		{"since and until", posthorn.DeliveryQuery{Since: start.Add(second), Until: start.Add(3 * second)}, []int{2, 1}},
		{"success and type", posthorn.DeliveryQuery{Success: &no, EventType: "push"}, []int{5, 3}},
		{"event and success", posthorn.DeliveryQuery{Success: &no, EventID: ids[2]}, []int{}},
		{"event and type", posthorn.DeliveryQuery{EventType: "push", EventID: ids[2]}, []int{2}},
		{"all", posthorn.DeliveryQuery{Success: &no, EventType: "tag", EventID: ids[1], Since: start, Until: start.Add(time.Hour)}, []int{1}},
	} {
		want := []string{}
		for _, i := range c.want {
			want = append(want, ids[i])
		}
		for limit := 1; limit <= 4; limit++ {
			q := c.q
			q.RepoID, q.WebhookID, q.Limit = repo, w.ID, limit
			s.equal(fmt.Sprintf("%s, in pages of %d", c.name, limit), s.all(q, int64(len(want))), want)
		}
	}
}

// testDeliveryFilterByEvent has deliveries of several runs and attempts, between those of events of the same time.
func testDeliveryFilterByEvent(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	e, same := s.event(), s.event()
	s.accept(node, e, leased(w, other))
	s.deliver(node, same, start, w)
	s.record(node, retried(entryOf(w, e), start, start.Add(second)), done(entryOf(other, e), start))
	s.record(node, done(s.claim(node, start.Add(second), w)[0], start.Add(second)))
	s.record(node, done(s.redelivery(w, e, start, node), start.Add(time.Hour)))
	s.deliver(node, s.event(), start, w)
	for limit := 1; limit <= 4; limit++ {
		q := posthorn.DeliveryQuery{RepoID: repo, WebhookID: w.ID, EventID: e.ID, Limit: limit}
		s.equal("deliveries of the event", s.all(q, 3), []string{e.ID, e.ID, e.ID})
	}
}

func testDeliveryFilterByPrunedEvent(s *suite) {
	w, node := s.webhook(), s.node()
	e, other := s.event(), s.event()
	s.deliver(node, e, start.Add(time.Hour), w)
	s.deliver(node, other, start.Add(time.Hour), w)
	s.prune(start.Add(time.Minute))
	q := posthorn.DeliveryQuery{RepoID: repo, WebhookID: w.ID, EventID: e.ID, Limit: 10}
	s.equal("deliveries of the event", s.all(q, 1), []string{e.ID})
}

func testDeliveryPageBytes(s *suite) {
	w, node := s.webhook(), s.node()
	for _, size := range []int{10, posthorn.MaxPageBytes / 2, posthorn.MaxPageBytes / 2, posthorn.MaxPageBytes + 1, 20} {
		e := s.event()
		e.Payload = json.RawMessage(`"` + strings.Repeat("x", size-2) + `"`)
		s.deliver(node, e, start, w)
	}
	yes := true
	for _, q := range []posthorn.DeliveryQuery{{}, {Success: &yes}, {EventType: "push"}} {
		q.RepoID, q.WebhookID, q.Limit = repo, w.ID, 10
		var got [][]int
		for {
			page, err := s.Deliveries(s.Context(), q)
			s.check(err)
			var sizes []int
			for _, d := range page.Items {
				sizes = append(sizes, len(d.Payload))
			}
			got = append(got, sizes)
			if q.Before = page.Next; page.Next == 0 {
				break
			}
		}
		s.equal("sizes of payloads by page", got, [][]int{
			{20}, {posthorn.MaxPageBytes + 1}, {posthorn.MaxPageBytes / 2, posthorn.MaxPageBytes / 2}, {10},
		})
	}
}

// testDeliveryScan has a log so long that a filter which matches only its oldest row needs several pages.
func testDeliveryScan(s *suite) {
	w, node := s.webhook(), s.node()
	oldest := s.event()
	oldest.Type, oldest.CreatedAt = "tag", start.Add(-time.Hour)
	s.deliver(node, oldest, start.Add(-time.Hour), w)
	e := s.event()
	s.accept(node, e, leased(w))
	const rows = posthorn.MaxScan + 500
	results := make([]posthorn.Result, rows-1)
	for i := range results {
		attempt := *entryOf(w, e)
		attempt.Run = int64(i) // as if each had been a run of its own
		results[i] = failed(&attempt, start)
	}
	s.record(node, results...)

	yes := true
	for _, c := range []struct {
		q      posthorn.DeliveryQuery
		total  int64
		capped bool
	}{
		{posthorn.DeliveryQuery{EventType: "tag"}, 0, true},
		{posthorn.DeliveryQuery{Until: start}, 0, true},
		{posthorn.DeliveryQuery{Success: &yes}, 1, false},      // there is a counter
		{posthorn.DeliveryQuery{EventID: oldest.ID}, 1, false}, // few share its time, which its deliveries' ids begin with
		{posthorn.DeliveryQuery{EventID: oldest.ID, EventType: "tag"}, 1, false},
	} {
		c.q.RepoID, c.q.WebhookID, c.q.Limit = repo, w.ID, 10
		var got []string
		for pages := 1; ; pages++ {
			page, err := s.Deliveries(s.Context(), c.q)
			s.check(err)
			s.equal("total", page.Total, c.total)
			s.equal("whether it is capped", page.TotalCapped, c.capped)
			for _, d := range page.Items {
				got = append(got, d.EventID)
			}
			if c.q.Before = page.Next; page.Next == 0 {
				break
			}
			if pages > rows/posthorn.MaxScan+1 {
				s.Fatalf("page %d, and still no end", pages)
			}
		}
		s.equal("deliveries", got, []string{oldest.ID})
	}
	page, err := s.Deliveries(s.Context(), posthorn.DeliveryQuery{RepoID: repo, WebhookID: w.ID, EventType: "push", Limit: 10})
	s.check(err)
	s.equal("total of the newest rows", page.Total, int64(posthorn.MaxScan))
	s.equal("whether it is capped", page.TotalCapped, true)
	s.equal("total without a filter", s.log(w).Total, int64(rows))
}

// testDeliveryPagesOfFullScans has logs that are as long as one page may examine, or a row shorter or longer, and end in rows
// that were pruned.
func testDeliveryPagesOfFullScans(s *suite) {
	w, other, node := s.webhook(), s.webhook(), s.node()
	e := s.event()
	s.accept(node, e, leased(w, other))
	run := int64(0)
	add := func(w posthorn.Webhook, n int, at time.Time) {
		results := make([]posthorn.Result, n)
		for i := range results {
			attempt := *entryOf(w, e)
			attempt.Run = run // as if each had been a run of its own
			run++
			results[i] = failed(&attempt, at)
		}
		s.record(node, results...)
	}
	check := func(want int) {
		s.Helper()
		for _, q := range []posthorn.DeliveryQuery{{EventType: "push"}, {EventType: "tag"}, {}} {
			n := 0
			q.RepoID, q.WebhookID, q.Limit = repo, w.ID, 1500
			for pages := 1; ; pages++ {
				page, err := s.Deliveries(s.Context(), q)
				s.check(err)
				if n += len(page.Items); page.Next == 0 {
					break
				}
				if page.Next >= q.Before && q.Before != 0 || pages > 20 {
					s.Fatalf("page %d goes on before %d after %d", pages, page.Next, q.Before)
				}
				q.Before = page.Next
			}
			if q.EventType == "tag" {
				s.equal("deliveries of a type without any", n, 0)
			} else {
				s.equal("deliveries", n, want)
			}
		}
	}
	old := func(w posthorn.Webhook) { add(w, 3, start) }
	late := func(w posthorn.Webhook, n int) {
		for ; n > 0; n -= 50 { // with something old so often that Prune looks on
			add(w, min(n, 50), start.Add(10*day))
			add(other, 1, start)
		}
	}
	old(w)
	late(other, 2)
	late(w, 5) // the others' rows are all that leads here
	old(w)
	late(other, posthorn.MaxScan+500)
	old(w)
	late(w, posthorn.MaxScan-15)
	check(posthorn.MaxScan - 1)
	late(w, 1)
	check(posthorn.MaxScan)
	late(w, 1)
	check(posthorn.MaxScan + 1)
	old(w)
	s.prune(start.Add(5 * day))
	check(posthorn.MaxScan + 1 - 9)
}
