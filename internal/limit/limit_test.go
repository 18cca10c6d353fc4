package limit

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// receiver simulates a webhook with a limit. It works on so many requests at a time, and the others wait there in turn.
type receiver struct {
	limit    Limit
	capacity int
	takes    func() time.Duration // to work on a request
	now      time.Time
	free     []time.Time // when each of those who work is done
	inFlight []simulated // by end
	queued   int
	limits   []int // one for each answer
}

type simulated struct{ start, end time.Time }

func newReceiver(capacity int, takes func() time.Duration) *receiver {
	return &receiver{limit: New(64), capacity: capacity, takes: takes, now: time.Unix(1e9, 0)}
}

func always(d time.Duration) func() time.Duration { return func() time.Duration { return d } }

// uneven is a receiver that does nothing for half of the events, and works for the others.
func uneven() func() time.Duration {
	random := rand.New(rand.NewPCG(1, 2))
	return func() time.Duration {
		return 20*time.Millisecond + time.Duration(random.IntN(2))*time.Second
	}
}

func exponential() func() time.Duration {
	random := rand.New(rand.NewPCG(1, 2))
	return func() time.Duration { return time.Duration(random.ExpFloat64() * float64(300*time.Millisecond)) }
}

// start sends what the limit allows.
func (r *receiver) start() {
	for r.queued > 0 && r.limit.Allows(r.now, len(r.inFlight)) {
		r.queued--
		if len(r.free) < r.capacity {
			r.free = append(r.free, r.now)
		}
		slices.SortFunc(r.free, time.Time.Compare)
		r.free = r.free[max(0, len(r.free)-r.capacity):]
		begin := r.now
		if r.free[0].After(begin) {
			begin = r.free[0]
		}
		r.free[0] = begin.Add(r.takes())
		r.inFlight = append(r.inFlight, simulated{r.now, r.free[0]})
	}
}

// answer has the next request answered.
func (r *receiver) answer() {
	slices.SortStableFunc(r.inFlight, func(a, b simulated) int { return a.end.Compare(b.end) })
	s := r.inFlight[0]
	r.inFlight = r.inFlight[1:]
	r.now = s.end
	took := s.end.Sub(s.start)
	r.limit.Succeeded(r.now, took, took)
	r.limits = append(r.limits, r.limit.n)
}

// backlog has n more requests answered while more are waiting, and returns the least, the mean and the greatest limit in
// the second half of them.
func (r *receiver) backlog(n int) (least, mean, most int) {
	from := len(r.limits)
	for range n {
		r.queued = 1000
		r.start()
		r.answer()
	}
	settled := r.limits[from+n/2:]
	sum := 0
	for _, l := range settled {
		sum += l
	}
	return slices.Min(settled), sum / len(settled), slices.Max(settled)
}

func TestLimitFollowsTheReceiver(t *testing.T) {
	type ofLimits struct{ least, mean, most int } // the mean is at least mean
	for name, test := range map[string]struct {
		capacity int
		takes    func() time.Duration
		want     ofLimits
	}{
		"fast":                        {64, always(2 * time.Millisecond), ofLimits{64, 64, 64}},
		"fast, on one processor":      {1, always(500 * time.Microsecond), ofLimits{64, 64, 64}},
		"slow, and takes any number":  {64, always(500 * time.Millisecond), ofLimits{64, 64, 64}},
		"4 at a time":                 {4, always(200 * time.Millisecond), ofLimits{4, 5, 10}},
		"16 at a time":                {16, always(100 * time.Millisecond), ofLimits{16, 20, 34}},
		"16 at a time, long ones":     {16, always(3 * time.Second), ofLimits{16, 20, 34}},
		"one at a time":               {1, always(time.Second), ofLimits{1, 1, 4}},
		"uneven, takes any number":    {64, uneven(), ofLimits{1, 20, 64}},
		"random, takes any number":    {64, exponential(), ofLimits{1, 20, 64}},
		"random, 8 at a time":         {8, exponential(), ofLimits{1, 6, 40}},
		"within what is tolerated":    {8, always(5 * time.Millisecond), ofLimits{64, 64, 64}},
		"slower than is tolerated, 8": {8, always(100 * time.Millisecond), ofLimits{8, 10, 18}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReceiver(test.capacity, test.takes)
			least, mean, most := r.backlog(6000)
			t.Logf("from %d to %d, on average %d; at first %v", least, most, mean, r.limits[:16])
			if least < test.want.least || mean < test.want.mean || most > test.want.most {
				t.Errorf("the limit is from %d to %d, on average %d; want %+v", least, most, mean, test.want)
			}
		})
	}
}

func TestLimitOfReceiverThatDegradesAndRecovers(t *testing.T) {
	r := newReceiver(64, always(20*time.Millisecond))
	if least, _, _ := r.backlog(2000); least != 64 {
		t.Fatalf("the limit is %d before", least)
	}
	r.capacity, r.takes = 4, always(500*time.Millisecond)
	if least, mean, most := r.backlog(2000); least < 4 || most > 10 {
		t.Errorf("the limit is from %d to %d, on average %d, while it works on 4 at a time", least, most, mean)
	}
	r.capacity = 64
	if least, _, most := r.backlog(6000); least < 64 {
		t.Errorf("the limit is from %d to %d, when it is slow and takes any number", least, most)
	}
	r.takes = always(20 * time.Millisecond)
	if least, _, most := r.backlog(5000); least < 64 {
		t.Errorf("the limit is from %d to %d, after it has recovered", least, most)
	}
}

// A webhook that never has more than three requests in flight needs no greater limit.
func TestLimitGrowsOnlyIfItHoldsBack(t *testing.T) {
	r := newReceiver(64, always(20*time.Millisecond))
	for range 1000 {
		r.queued = 3
		r.start()
		for len(r.inFlight) > 0 {
			r.answer()
			r.start()
		}
		r.now = r.now.Add(time.Second)
	}
	if r.limit.n > 4 {
		t.Errorf("the limit is %d, with never more than 3 requests", r.limit.n)
	}
}

func TestLimitAfterFailures(t *testing.T) {
	r := newReceiver(64, always(20*time.Millisecond))
	r.backlog(2000)
	for range 40 { // they were in flight together
		r.limit.Failed(r.now, 15*time.Millisecond)
		r.now = r.now.Add(100 * time.Microsecond)
	}
	if r.limit.n != 32 {
		t.Errorf("the limit is %d after failures at one time, want 32", r.limit.n)
	}
	r.limit.Failed(r.now.Add(20*time.Millisecond), 10*time.Millisecond)
	if r.limit.n != 16 {
		t.Errorf("the limit is %d after a failure of a later request, want 16", r.limit.n)
	}
	r.limit.Cut(r.now)
	if _, mean, _ := r.backlog(1000); mean != 64 {
		t.Errorf("the limit is %d on average, long after it was cut", mean)
	}
}

// A webhook that falls silent gets no more until it has answered, or what it has is over; then one at a time.
func TestLimitOfSilentWebhook(t *testing.T) {
	for _, test := range []struct{ takes, silence time.Duration }{
		{20 * time.Millisecond, minSilence},
		{500 * time.Millisecond, 5 * time.Second},
	} {
		r := newReceiver(64, always(test.takes))
		r.backlog(5000)
		if at := r.now.Add(test.silence); !r.limit.Allows(at, 3) {
			t.Errorf("latency %v: held back after %v", test.takes, test.silence)
		}
		silent := r.now.Add(test.silence + time.Millisecond)
		if r.limit.Allows(silent, 3) || r.limit.Allows(silent, 1) || !r.limit.Allows(silent, 0) || r.limit.Allows(silent, 1) {
			t.Errorf("latency %v: after a longer silence more than one may be in flight", test.takes)
		}
		r.inFlight = nil
		r.now = silent
		if _, mean, _ := r.backlog(1000); mean != 64 {
			t.Errorf("latency %v: the limit is %d on average, long after the silence", test.takes, mean)
		}
	}
}

// After a long pause nobody knows what the receiver can take: it gets one at first, and soon as many as it does take.
func TestLimitAfterPause(t *testing.T) {
	r := newReceiver(64, always(20*time.Millisecond))
	r.backlog(2000)
	r.inFlight = nil
	r.now = r.now.Add(restartAfter)
	if !r.limit.Allows(r.now, 0) || !r.limit.Allows(r.now, 1) {
		t.Error("it starts anew after a short pause")
	}
	r.now = r.now.Add(restartAfter + time.Millisecond)
	if !r.limit.Allows(r.now, 0) || r.limit.Allows(r.now, 1) {
		t.Error("it does not start anew after a long pause")
	}
	if _, mean, _ := r.backlog(1000); mean != 64 {
		t.Errorf("the limit is %d on average, long after the pause", mean)
	}
}
