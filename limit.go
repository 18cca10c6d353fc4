package posthorn

import "time"

// limit decides how many requests a webhook may have in flight: a fast receiver gets what it can take, and a slow one is
// not drowned. It is a value without a clock or locks: times are passed in.
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
type limit struct {
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
)

func newLimit(most int) limit { return limit{most: most, n: 1, slowStart: true} }

// reached reports whether there are too many requests in flight for one more, which waits.
func (l *limit) reached(inFlight int) bool {
	if inFlight < l.n {
		return false
	}
	l.heldBack = true
	return true
}

// allows reports whether one more request, which waits, may start beside those in flight. Where the webhook is silent the
// limit is cut, as TCP does when acknowledgements stay away: nothing more starts until the last of them has ended.
func (l *limit) allows(now time.Time, inFlight int) bool {
	switch {
	case inFlight == 0:
		l.heard = now
		return true
	case l.reached(inFlight):
		return false
	case now.Sub(l.heard) > max(silentFor*l.usual, minSilence):
		l.cut(now)
		return false
	}
	return true
}

// succeeded takes a success into account: how long ago its request started, and how long the receiver took over it.
func (l *limit) succeeded(now time.Time, ago, latency time.Duration) {
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

// failed takes a failure into account. Of the requests that were in flight together only the first one counts.
func (l *limit) failed(now time.Time, ago time.Duration) {
	if now.Add(-ago).Before(l.since) {
		return
	}
	l.slowStart = false
	l.n = max(1, l.n/2)
	l.since = now
	l.nextRound()
}

// cut makes the limit one.
func (l *limit) cut(now time.Time) {
	l.slowStart = false
	l.n = 1
	l.since = now
	l.nextRound()
}

func (l *limit) nextRound() { l.answers, l.total, l.heldBack = 0, 0, false }

// limits are those of a node.
type limits struct {
	inFlight, perWebhook int
	queued, bytes        int
}

type usage struct{ inFlight, bytes int }

// standing is what is known of a webhook.
type standing int

const (
	proven standing = iota
	unknown
	failing
	standings
)

// mayUse reports whether webhooks of a standing may use so much more of a limit, given what each standing uses.
func mayUse(st standing, limit int, used [standings]int, more int) bool {
	bad := used[failing]
	notProven := bad + used[unknown]
	all := notProven + used[proven]
	switch {
	case all+more > limit:
		return false
	case st == unknown:
		return notProven+more <= max(1, limit*3/4)
	case st == failing:
		return notProven+more <= max(1, limit*3/4) && bad+more <= max(1, limit/2)
	}
	return true
}

// maxUnrecorded is how many results may wait to be committed before no more attempts start.
func (l limits) maxUnrecorded() int { return 4 * l.inFlight }

// fewUnrecorded is how many may wait before webhooks that have requests in flight start no more: as many as keep the store
// busy, with a full batch that is being committed while the next one gathers. To send more would be no quicker, because these
// have to be recorded, too; and who has nothing in flight shall not wait behind them for the store and the processors.
func (l limits) fewUnrecorded() int { return min(maxBatchResults, l.maxUnrecorded()/2) }
