package postgres

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/musehub/posthorn"
)

// While some session keeps a transaction open, what has been claimed can't be removed from the queue's index. Whoever looks
// for the first free entry of a webhook then walks past all that were claimed before: with a backlog of a million entries
// every claim and every sweep would cost more than the one before. So for webhooks with a backlog the store remembers up to
// where it has claimed, and looks from there.
//
// That bends the rule that the earliest due come first, a little: an entry behind the position is found only when there are
// not enough before it, and if it is far behind, after a while. Such are entries that another node had to give back, those that
// another node has let go on in their ordering, and those of transactions that took their time to commit. What this node itself frees makes
// it look from the beginning.
const (
	// maxLanes is how many webhooks' positions are remembered.
	maxLanes = 256
	// nearBehind is how far behind the position is always looked.
	nearBehind = time.Minute
	// wholeEvery is after how long a lane is looked at from its beginning again.
	wholeEvery = 10 * time.Second
	// maxTurns is of how many orderings the turn is remembered.
	maxTurns = 1024
)

// position is that of an entry in its webhook's lane: entries stand in this order.
type position struct {
	due        time.Time
	event, run int64
}

func (p position) compare(q position) int {
	return cmp.Or(p.due.Compare(q.due), cmp.Compare(p.event, q.event), cmp.Compare(p.run, q.run))
}

// lane is what is remembered of a webhook's automatic entries.
type lane struct {
	claimed position  // up to here
	whole   time.Time // when the lane was last looked at from its beginning
}

type lanes struct {
	mu        sync.Mutex
	byWebhook map[int64]lane
	turns     map[orderingKey]turnSeen
}

// turnSeen is whose turn it was in an ordering: there is nothing before that.
type turnSeen struct {
	turn  int64
	whole time.Time // when the ordering was last looked at from its beginning
}

// turnsOf returns from which turns on to look at orderings: the same for one that is named twice.
func (l *lanes) turnsOf(o *orderings) []int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	from := make([]int64, len(o.webhooks))
	for i := range from {
		if seen := l.turns[orderingKey{o.webhooks[i], o.numbers[i]}]; o.at.Sub(seen.whole) < wholeEvery {
			from[i] = seen.turn
		}
	}
	return from
}

// setTurns remembers whose turn it is, and makes room for that by forgetting any others.
func (l *lanes) setTurns(o *orderings) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.turns == nil {
		l.turns = map[orderingKey]turnSeen{}
	}
	for _, t := range o.found {
		seen, ok := l.turns[t.orderingKey]
		if o.at.Sub(seen.whole) >= wholeEvery { // it was looked at from its beginning
			seen = turnSeen{whole: o.at}
		}
		for other := range l.turns {
			if ok || len(l.turns) < maxTurns {
				break
			}
			delete(l.turns, other)
		}
		seen.turn = max(seen.turn, t.turn)
		l.turns[t.orderingKey] = seen
	}
}

// look is where to look for a webhook's entries: behind a position, and if that is not enough, from near it up to it.
type look struct {
	webhook int64
	after   position
	near    *time.Time // nil: from the beginning, so there is nothing before it
}

func (l lane) look(webhook int64, now time.Time) look {
	if now.Sub(l.whole) >= wholeEvery {
		return look{webhook: webhook}
	}
	near := l.claimed.due.Add(-nearBehind)
	return look{webhook, l.claimed, &near}
}

// looks returns where to look for the entries of each webhook that is wanted.
func (l *lanes) looks(wants []posthorn.Want, now time.Time) []look {
	l.mu.Lock()
	defer l.mu.Unlock()
	looks := make([]look, len(wants))
	for i, w := range wants {
		looks[i] = l.byWebhook[w.WebhookSeq].look(w.WebhookSeq, now)
	}
	return looks
}

// known returns where to look for the entries of the webhooks that are remembered, in ascending order, but of those that have
// to be looked at from the beginning.
func (l *lanes) known(now time.Time) []look {
	l.mu.Lock()
	defer l.mu.Unlock()
	var known []look
	for webhook, lane := range l.byWebhook {
		if look := lane.look(webhook, now); look.near != nil {
			known = append(known, look)
		}
	}
	slices.SortFunc(known, func(a, b look) int { return cmp.Compare(a.webhook, b.webhook) })
	return known
}

// claimed remembers how far a claim came. A webhook that had fewer entries than were wanted has no backlog.
func (l *lanes) claimed(c posthorn.Claim, looks []look, entries []*posthorn.Entry, now time.Time) {
	type taken struct {
		n    int
		last position
	}
	byWebhook := map[int64]taken{}
	for _, e := range entries {
		t := byWebhook[e.WebhookSeq]
		t.n++
		p := position{e.DueAt, e.Event.Seq, e.Run}
		if !e.Trigger.ByHand() && !e.DueAt.After(c.Now) && p.compare(t.last) > 0 {
			t.last = p
		}
		byWebhook[e.WebhookSeq] = t
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, look := range looks {
		t := byWebhook[look.webhook]
		lane, remembered := l.byWebhook[look.webhook]
		if !remembered && (t.n < c.Wants[i].Limit || t.last == position{}) {
			continue
		}
		// A look from the beginning that was filled goes on from there, even if that is further back: there is more behind.
		filled := look.near == nil && t.n >= c.Wants[i].Limit && t.last != position{}
		if t.last.compare(lane.claimed) > 0 || filled {
			lane.claimed = t.last
		}
		if look.near == nil {
			lane.whole = now
		}
		l.remember(look.webhook, lane)
	}
}

// remember makes room for a lane by forgetting any other one.
func (l *lanes) remember(webhook int64, to lane) {
	if l.byWebhook == nil {
		l.byWebhook = map[int64]lane{}
	}
	if _, ok := l.byWebhook[webhook]; !ok && len(l.byWebhook) >= maxLanes {
		for other := range l.byWebhook {
			delete(l.byWebhook, other)
			break
		}
	}
	l.byWebhook[webhook] = to
}

// seen tells that a webhook's lane was looked at from its beginning, and when its first entry is due, if it has one.
func (l *lanes) seen(webhook int64, first *time.Time, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	lane, ok := l.byWebhook[webhook]
	switch {
	case !ok:
	case first != nil && !first.After(lane.claimed.due):
		delete(l.byWebhook, webhook) // the next claim has to look there, too
	default:
		lane.whole = now
		l.byWebhook[webhook] = lane
	}
}

// freed tells that this node has freed an entry.
func (l *lanes) freed(webhook int64, due time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if lane, ok := l.byWebhook[webhook]; ok && !micros(due).After(lane.claimed.due) {
		delete(l.byWebhook, webhook)
	}
}

// forget tells that this node has freed entries of any webhooks.
func (l *lanes) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.byWebhook)
}
