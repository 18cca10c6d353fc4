// Package limit decides how much of what a node has a webhook may use: how many requests in flight, and which share of that and of
// the memory beside the others. It has neither a clock nor locks: times are passed in.
package limit

import "time"

// Limit decides how many requests a webhook may have in flight: a fast receiver gets what it can take, and a slow one is
// not drowned.
//
// It is TCP's congestion control, with requests for segments. The limit doubles with each round (slow start) until the first
// sign of congestion, then grows by one, and halves with each sign. A round is at least as many answers as the limit says, so
// that what a change did is seen before the next. It grows only if it was what held requests back, so that a webhook with
// little traffic keeps a small limit.
//
// Signs of congestion are a failure, and a round whose mean latency is clearly above the usual one, as in TCP Vegas: where k
// requests are worked on and the others wait, the latency is twice the usual at 2k in flight, so that the limit goes to and fro
// between k and 2k. It is the mean of a round, not the latency of a request, because some events make a receiver work
// longer than others do, while a queue delays all.
//
// The usual latency follows the smallest means of rounds, a quarter of the way each time, so that one lucky round doesn't
// make all others look slow. It grows only when the limit is one: what a request takes then has nothing to do with how
// many there are. If it always followed the latencies, even slowly, then a queue of our own making would become usual, and the limit
// would creep to the maximum. A receiver that has become slower for other reasons therefore brings the limit down to one, and
// a few answers later it doubles again.
//
// After a pause (restartAfter) it starts anew, as TCP does (RFC 5681, section 4.1): to a receiver that has been away, or whose webhook was not
// active, what waits comes with few requests at first.
type Limit struct {
	most int // what it can grow to
	n    int

	slowStart bool
	usual     time.Duration // latency; zero until the first answer
	heard     time.Time     // of the webhook: its last success, or since when it has had something to answer

	// The round: answers to requests that started since then.
	since    time.Time
	answers  int
	total    time.Duration // of their latencies
	heldBack bool          // requests, in this round
}

const (
	// minRound is how many answers have a mean that says something. Slow start has shorter rounds.
	minRound = 8
	// Latencies are congested above congestedBy times the usual one, and above toleratedDelay more than it: a node or
	// a receiver whose processors are busy takes some tens of milliseconds longer for anything.
	congestedBy    = 2
	toleratedDelay = 100 * time.Millisecond
	// A webhook is silent when it has answered nothing for silentFor times its usual latency, and for minSilence.
	silentFor  = 10
	minSilence = time.Second
	// After so long without a request the limit starts anew: what a receiver could take once is no longer known.
	restartAfter = 2 * time.Minute
)

// New returns a limit that can grow to most.
func New(most int) Limit { return Limit{most: most, n: 1, slowStart: true} }

// Reached reports whether there are too many requests in flight for one more, which waits.
func (l *Limit) Reached(inFlight int) bool {
	if inFlight < l.n {
		return false
	}
	l.heldBack = true
	return true
}

// Allows reports whether one more request, which waits, may start beside those in flight. Where the webhook is silent the
// limit is cut, as TCP does when acknowledgements stay away: nothing more starts until the last of them has ended.
func (l *Limit) Allows(now time.Time, inFlight int) bool {
	switch {
	case inFlight == 0:
		if !l.heard.IsZero() && now.Sub(l.heard) > restartAfter {
			l.Cut(now)
			l.slowStart = true
		}
		l.heard = now
		return true
	case l.Reached(inFlight):
		return false
	case now.Sub(l.heard) > max(silentFor*l.usual, minSilence):
		l.Cut(now)
		return false
	}
	return true
}

// Succeeded takes a success into account: how long ago its request started, and how long the receiver took over it.
func (l *Limit) Succeeded(now time.Time, ago, latency time.Duration) {
	l.heard = now
	if now.Add(-ago).Before(l.since) {
		return
	}
	l.answers++
	l.total += latency
	if l.answers < l.n || !l.slowStart && l.answers < minRound {
		return
	}
	mean := l.total / time.Duration(l.answers)
	switch {
	case l.usual == 0:
		l.usual = mean
	case l.n == 1:
		l.usual += (mean - l.usual) * time.Duration(min(l.answers, minRound)) / minRound
		l.slowStart = true
	default:
		l.usual -= max(0, l.usual-mean) / 4
	}
	was := l.n
	switch {
	case l.n > 1 && mean > max(congestedBy*l.usual, l.usual+toleratedDelay):
		l.slowStart = false
		l.n = max(1, l.n/2)
	case !l.heldBack:
	case l.slowStart:
		l.n = min(2*l.n, l.most)
	default:
		l.n = min(l.n+1, l.most)
	}
	if l.n != was && l.n != was+1 {
		l.since = now // what is in flight says nothing about the new limit
	}
	l.nextRound()
}

// Failed takes a failure into account. Of the requests that were in flight together only the first one counts.
func (l *Limit) Failed(now time.Time, ago time.Duration) {
	if now.Add(-ago).Before(l.since) {
		return
	}
	l.slowStart = false
	l.n = max(1, l.n/2)
	l.since = now
	l.nextRound()
}

// SetMost changes what the limit can grow to.
func (l *Limit) SetMost(most int) {
	l.most = most
	l.n = min(l.n, most)
}

// Cut makes the limit one.
func (l *Limit) Cut(now time.Time) {
	l.slowStart = false
	l.n = 1
	l.since = now
	l.nextRound()
}

func (l *Limit) nextRound() { l.answers, l.total, l.heldBack = 0, 0, false }

// Standing is what is known of a webhook.
type Standing int

// The standings.
const (
	Proven    Standing = iota // it has answered with success
	Unknown                   // it has had no occasion to
	Failing                   // it keeps failing
	Standings                 // how many there are
)

// MayUse reports whether webhooks of a standing may use so much more of a limit, given what each standing uses.
func MayUse(st Standing, limit int, used [Standings]int, more int) bool {
	bad := used[Failing]
	notProven := bad + used[Unknown]
	all := notProven + used[Proven]
	switch {
	case all+more > limit:
		return false
	case st == Unknown:
		return notProven+more <= max(1, limit*3/4)
	case st == Failing:
		return notProven+more <= max(1, limit*3/4) && bad+more <= max(1, limit/2)
	}
	return true
}
