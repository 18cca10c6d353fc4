package bench

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// subBuckets is how many buckets each power of two is cut into: a value is off by half a bucket at most, 0.8 %.
const (
	subBits    = 6
	subBuckets = 1 << subBits
)

// histogram counts durations in buckets whose width grows with the duration. Its zero value is ready. It is safe for
// concurrent use, except that a reset beside a record may lose that one.
type histogram struct {
	buckets [(64 - subBits) * subBuckets]atomic.Int64
	max     atomic.Int64
}

func bucket(v uint64) int {
	if v < subBuckets {
		return int(v)
	}
	shift := bits.Len64(v) - 1 - subBits
	return shift*subBuckets + int(v>>shift)
}

// middle returns the value in the middle of a bucket.
func middle(i int) int64 {
	if i < 2*subBuckets {
		return int64(i)
	}
	shift := i/subBuckets - 1
	low := int64(i%subBuckets+subBuckets) << shift
	return low + int64(1)<<shift/2
}

func (h *histogram) record(d time.Duration) {
	v := max(0, int64(d))
	h.buckets[bucket(uint64(v))].Add(1)
	for {
		old := h.max.Load()
		if v <= old || h.max.CompareAndSwap(old, v) {
			return
		}
	}
}

func (h *histogram) reset() {
	for i := range h.buckets {
		h.buckets[i].Store(0)
	}
	h.max.Store(0)
}

// latency returns what the table shows of the durations, or nil if there were none.
func (h *histogram) latency() *latency {
	var count int64
	for i := range h.buckets {
		count += h.buckets[i].Load()
	}
	if count == 0 {
		return nil
	}
	most := h.max.Load()
	quantile := func(percent int64) time.Duration {
		rank := max(1, (count*percent+99)/100) // of the value that so many are not above
		for i := range h.buckets {
			if rank -= h.buckets[i].Load(); rank <= 0 {
				return time.Duration(min(middle(i), most))
			}
		}
		return time.Duration(most)
	}
	return &latency{Count: count, P50: quantile(50), P99: quantile(99), Max: time.Duration(most)}
}

// latency sums up durations.
type latency struct {
	Count         int64
	P50, P99, Max time.Duration
}
