package bench

import (
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestHistogram(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) int64 {
			return rapid.Int64Range(0, int64(1)<<rapid.IntRange(0, 62).Draw(t, "bits")).Draw(t, "value")
		}), 1, 300).Draw(t, "values")
		var h histogram
		for _, v := range values {
			h.record(time.Duration(v))
		}
		slices.Sort(values)
		got := h.latency()
		if got.Count != int64(len(values)) || int64(got.Max) != values[len(values)-1] {
			t.Fatalf("%d values with maximum %d are %+v", len(values), values[len(values)-1], got)
		}
		for percent, quantile := range map[int]time.Duration{50: got.P50, 99: got.P99} {
			want := values[(len(values)*percent+99)/100-1]
			if math.Abs(float64(quantile)-float64(want)) > float64(want)/100 {
				t.Errorf("p%d is %d, want %d within 1 %%", percent, quantile, want)
			}
		}
	})
}

func TestHistogramReset(t *testing.T) {
	var h histogram
	if got := h.latency(); got != nil {
		t.Errorf("without values: %+v, want nothing", got)
	}
	h.record(-time.Second) // a clock that was set back
	if got := h.latency(); got == nil || got.Max != 0 {
		t.Errorf("a negative value counts as %+v, want 0", got)
	}
	h.record(math.MaxInt64)
	h.reset()
	if got := h.latency(); got != nil {
		t.Errorf("after a reset: %+v, want nothing", got)
	}
}
