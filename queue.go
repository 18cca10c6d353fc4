package posthorn

import (
	"time"

	"github.com/musehub/posthorn/internal/limit"
)

// queue is what a node has in memory of one webhook.
type queue struct {
	seq       int64    // the webhook's
	byHand    []*Entry // asked for by hand: these go first
	automatic []*Entry
	used      usage
	limit     limit.Limit    // of requests in flight
	failures  int            // in a row
	standing  limit.Standing // that it is treated by: its answers say earned, and it is a failing one while it is held
	earned    limit.Standing
	listed    bool // it is in ready
	waiting   bool // it is in the scheduler's waiting; it may be in ready, too
	paused    bool // it is not to be sent to before resume
	resume    time.Time
	held      bool // it is paused because its receiver asked for that
	regained  int  // entries that it may have in memory, one more with each success since it was held; 0: as many as others
	flow      flow // what the webhook is known to want
	reserved  int  // places kept for entries that are being committed or claimed

	spilling int  // free entries that are due and not committed yet
	spills   int  // how many were committed, ever
	spilled  bool // the store may have free entries that are due: later ones must not overtake them
	wanted   bool // to be claimed for as soon as half of the queue is free
	claiming bool // it is in claims, or being claimed for
	urgent   bool // to be claimed for once more, whatever is in memory
}

func cost(payload int) int { return payload + entryBytes }

// queue returns the queue of a webhook, making it if need be. The caller holds mu, as for all methods that take or
// return a *queue.
func (s *scheduler) queue(webhook int64) *queue {
	q := s.queues[webhook]
	if q == nil {
		q = &queue{seq: webhook, limit: limit.New(s.limits.perWebhook), standing: limit.Unknown, earned: limit.Unknown}
		s.queues[webhook] = q
	}
	return q
}

// reserve keeps places in memory for the entries of an event that is about to be committed, if they are to be leased, and says for
// which there was one; the others are spilled. One call of accepted or enqueued follows, or of unreserve.
func (s *scheduler) reserve(trigger Trigger, targets []Target, payload int) []bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	reserved := make([]bool, len(targets))
	for i, t := range targets {
		if t.Held {
			continue
		}
		q := s.queue(t.WebhookSeq)
		if !t.Leased || !s.fits(q, trigger, cost(payload)) {
			q.spilling++
			continue
		}
		q.reserved++
		s.addBytes(q, cost(payload))
		reserved[i] = true
	}
	return reserved
}

func (s *scheduler) fits(q *queue, trigger Trigger, bytes int) bool {
	if s.stopped || s.node == 0 {
		return false
	}
	if trigger.ByHand() { // it goes before what is queued, so it need not wait for that to be claimed
		return len(q.byHand)+q.reserved < s.limits.queued && limit.MayUse(limit.Proven, s.limits.bytes, s.bytes(), bytes)
	}
	return !q.spilled && q.spilling == 0 && s.room(q) > 0 && s.hasBytes(q, bytes)
}

// unreserve takes back reservations for what was not committed.
func (s *scheduler) unreserve(webhooks []recipient, payload int, reserved []bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, w := range webhooks {
		if w.polled {
			continue
		}
		q := s.queue(w.Seq)
		if reserved[i] {
			q.reserved--
			s.addBytes(q, -cost(payload))
		} else {
			q.spilling--
		}
		s.settle(q)
	}
}

// accepted queues the entries of an event that was committed by a node, and has those claimed that were spilled.
func (s *scheduler) accepted(a *acceptance, node int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, w := range a.webhooks {
		if w.polled {
			continue
		}
		q := s.queue(w.Seq)
		if !a.reserved[i] {
			s.spilled(q)
			if a.trigger.ByHand() {
				s.claimNow(q)
			}
			continue
		}
		q.reserved--
		s.add(q, &Entry{
			WebhookSeq: w.Seq, WebhookID: w.ID, Event: a.event, Trigger: a.trigger,
			Attempt: 1, DueAt: a.event.CreatedAt, Queued: a.trigger != TriggerAutomatic,
		}, node)
	}
	s.start()
}

// enqueued queues an entry that was committed by itself for a node, in the place reserved for it, or with node 0 has it
// claimed.
func (s *scheduler) enqueued(e *Entry, node int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.Held {
		return
	}
	q := s.queue(e.WebhookSeq)
	if node == 0 {
		s.spilled(q)
		s.claimNow(q)
		return
	}
	q.reserved--
	s.add(q, e, node)
	s.start()
}

// spilled says that a commit has written a free entry that is due.
func (s *scheduler) spilled(q *queue) {
	q.spilling--
	q.spills++
	q.spilled = true
	s.want(q)
}

// add puts an entry that a node has leased into its queue. Its bytes are counted already. The caller calls start after.
func (s *scheduler) add(q *queue, e *Entry, node int64) {
	if s.stopped || node != s.node { // the release of the node's lease frees it
		q.spilled = true
		s.addBytes(q, -cost(len(e.Event.Payload)))
		return
	}
	if e.Trigger.ByHand() {
		q.byHand = append(q.byHand, e)
	} else {
		q.automatic = append(q.automatic, e)
	}
	s.list(q)
}

// room is how many more entries a queue may hold.
func (s *scheduler) room(q *queue) int {
	return s.capacity(q) - len(q.byHand) - len(q.automatic) - q.reserved
}

func (s *scheduler) capacity(q *queue) int {
	n := s.limits.queued
	if q.standing == limit.Failing {
		n = min(n, probeQueue)
	}
	if q.flow.perSecond > 0 { // what would stay there for long has no business in memory
		n = min(n, max(probeQueue, 2*q.flow.perSecond))
	}
	if q.regained > 0 { // a receiver that takes a few and then asks for a pause, again and again, has no more moved to and fro
		n = min(n, q.regained)
	}
	return n
}

// hasBytes reports whether a queue may take up so many bytes more: within what its standing may use, and alone no more
// than a quarter of all.
func (s *scheduler) hasBytes(q *queue, n int) bool {
	ok := limit.MayUse(q.standing, s.limits.bytes, s.bytes(), n) && (q.used.bytes == 0 || q.used.bytes+n <= s.limits.bytes/4)
	if !ok {
		s.starved = true
	}
	return ok
}

func (s *scheduler) bytes() [limit.Standings]int {
	return [limit.Standings]int{s.used[limit.Proven].bytes, s.used[limit.Unknown].bytes, s.used[limit.Failing].bytes}
}

func (s *scheduler) inFlight() [limit.Standings]int {
	return [limit.Standings]int{s.used[limit.Proven].inFlight, s.used[limit.Unknown].inFlight, s.used[limit.Failing].inFlight}
}

func (s *scheduler) addBytes(q *queue, n int) {
	q.used.bytes += n
	s.used[q.standing].bytes += n
	if s.starved && n < 0 && limit.MayUse(limit.Failing, s.limits.bytes/2, s.bytes(), 0) {
		s.starved = false
		s.wake()
	}
}

func (s *scheduler) addInFlight(q *queue, n int) {
	q.used.inFlight += n
	s.used[q.standing].inFlight += n
}

// setStanding says what a webhook's answers make of it.
func (s *scheduler) setStanding(q *queue, st limit.Standing) {
	q.earned = st
	if q.held {
		st = limit.Failing
	}
	s.used[q.standing].inFlight -= q.used.inFlight
	s.used[q.standing].bytes -= q.used.bytes
	q.standing = st
	s.used[q.standing].inFlight += q.used.inFlight
	s.used[q.standing].bytes += q.used.bytes
}

func (q *queue) pop() *Entry {
	from := &q.byHand
	if len(*from) == 0 {
		from = &q.automatic
	}
	e := (*from)[0]
	(*from)[0] = nil
	*from = (*from)[1:]
	if len(*from) == 0 {
		*from = nil // lets go of the array
	}
	return e
}

// settle forgets a queue that has nothing to do and nothing worth remembering, and some other one where too much is
// remembered.
func (s *scheduler) settle(q *queue) {
	if !q.idle() {
		return
	}
	if q.standing == limit.Unknown && q.failures == 0 {
		delete(s.queues, q.seq)
		return
	}
	if len(s.queues) <= maxRemembered {
		return
	}
	tries := 0
	for seq, other := range s.queues { // in random order
		if other.idle() {
			delete(s.queues, seq)
			return
		}
		if tries++; tries == 16 {
			return
		}
	}
}

func (q *queue) idle() bool {
	return q.used == usage{} && q.spilling == 0 && !q.spilled && !q.wanted && !q.claiming && !q.listed && !q.paused
}
