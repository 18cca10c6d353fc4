package bench

import (
	"cmp"
	"slices"
	"time"
)

// sample is what one slice measured. What isn't known is negative.
type sample struct {
	deliveries       int64
	elapsed          time.Duration
	cpu, databaseCPU time.Duration
	written          int64
	peak             int64
	latency          *latency
	late             int64 // events that were sent more than a millisecond after their time
}

func (s sample) rate() float64 { return float64(s.deliveries) / s.elapsed.Seconds() }

func (s sample) cpuPerDelivery() float64 { return per(s.cpu, s.deliveries) }

// per returns how many microseconds of a time there are for each delivery, negative where the time isn't known.
func per(d time.Duration, deliveries int64) float64 {
	if d < 0 {
		return -1
	}
	return float64(d) / 1e3 / float64(deliveries)
}

// Report is what a run has measured. Its JSON is what `posthorn bench --json` prints. Fields that don't apply, or can't be
// known on the platform, are left out.
type Report struct {
	Machine   Machine `json:"machine"`
	Rounds    int     `json:"rounds"`
	Slice     float64 `json:"sliceSeconds"`
	Scenarios []Row   `json:"scenarios"`
	Growth    *Growth `json:"growth,omitempty"`
}

// Row is what a scenario has measured: the median of the rounds, but for LatencyMax and PeakMemory, which are the highest.
// A ratio is that within each round, and then the median.
type Row struct {
	Name                string   `json:"name"`
	Error               string   `json:"error,omitempty"` // why there are no figures
	Deliveries          int64    `json:"deliveries"`      // in all rounds
	DeliveriesPerSecond float64  `json:"deliveriesPerSecond"`
	CPUMicros           *float64 `json:"cpuMicrosPerDelivery,omitempty"`         // of this process
	DatabaseCPUMicros   *float64 `json:"databaseCpuMicrosPerDelivery,omitempty"` // of PostgreSQL
	LatencyOf           string   `json:"latencyOf,omitempty"`                    // from dispatch to "receipt", or to when the last is "recorded"
	LatencyP50          *float64 `json:"latencyP50Millis,omitempty"`
	LatencyP99          *float64 `json:"latencyP99Millis,omitempty"`
	LatencyMax          *float64 `json:"latencyMaxMillis,omitempty"`
	Written             *float64 `json:"writtenBytesPerDelivery,omitempty"`
	PeakMemory          *float64 `json:"peakMemoryBytes,omitempty"`
	RateToBare          *float64 `json:"rateToBare,omitempty"`
	CPUToBare           *float64 `json:"cpuToBare,omitempty"`
	SentLate            *float64 `json:"sentLate,omitempty"` // share of the events at a given rate that were sent more than 1 ms late
}

// rows sums up the results of scenarios.
func rows(chosen []scenario, results []result) []Row {
	bare := bareSamples(chosen, results)
	rows := make([]Row, len(chosen))
	for i, s := range chosen {
		rows[i] = row(s, results[i], bare)
	}
	return rows
}

// bareSamples returns for each round the faster one of the bare scenarios, or nothing where they failed.
func bareSamples(chosen []scenario, results []result) (best []sample) {
	for i, s := range chosen {
		if s.group != "bare" || results[i].err != nil {
			continue
		}
		for round, sample := range results[i].samples {
			if round == len(best) {
				best = append(best, sample)
			} else if sample.rate() > best[round].rate() {
				best[round] = sample
			}
		}
	}
	return best
}

func row(s scenario, r result, bare []sample) Row {
	if r.err != nil {
		return Row{Name: s.name, Error: r.err.Error()}
	}
	out := Row{Name: s.name, DeliveriesPerSecond: median(each(r.samples, sample.rate))}
	for _, sample := range r.samples {
		out.Deliveries += sample.deliveries
	}
	out.CPUMicros = known(median, each(r.samples, sample.cpuPerDelivery))
	out.DatabaseCPUMicros = known(median, each(r.samples, func(s sample) float64 { return per(s.databaseCPU, s.deliveries) }))
	out.Written = known(median, each(r.samples, func(s sample) float64 { return float64(s.written) / float64(s.deliveries) }))
	out.PeakMemory = known(slices.Max[[]float64], each(r.samples, func(s sample) float64 { return float64(s.peak) }))
	millis := func(of func(*latency) time.Duration) []float64 {
		return each(r.samples, func(s sample) float64 {
			if s.latency == nil {
				return -1
			}
			return of(s.latency).Seconds() * 1e3
		})
	}
	out.LatencyP50 = known(median, millis(func(l *latency) time.Duration { return l.P50 }))
	out.LatencyP99 = known(median, millis(func(l *latency) time.Duration { return l.P99 }))
	out.LatencyMax = known(slices.Max[[]float64], millis(func(l *latency) time.Duration { return l.Max }))
	if out.LatencyP50 != nil {
		out.LatencyOf = "receipt"
		if s.stored {
			out.LatencyOf = "recorded"
		}
	}
	if s.paced {
		out.SentLate = known(median, each(r.samples, func(s sample) float64 { return float64(s.late) / float64(s.deliveries) }))
	}
	if len(bare) >= len(r.samples) {
		out.CPUToBare = known(median, ratios(r.samples, bare, sample.cpuPerDelivery))
		if !s.paced {
			out.RateToBare = known(median, ratios(r.samples, bare, sample.rate))
		}
	}
	return out
}

func each(samples []sample, f func(sample) float64) []float64 {
	values := make([]float64, len(samples))
	for i, s := range samples {
		values[i] = f(s)
	}
	return values
}

func ratios(samples, bare []sample, f func(sample) float64) []float64 {
	values := make([]float64, len(samples))
	for i, s := range samples {
		values[i] = -1
		if f(s) >= 0 && f(bare[i]) > 0 {
			values[i] = f(s) / f(bare[i])
		}
	}
	return values
}

// known sums up values, or returns nil if one isn't known.
func known(sum func([]float64) float64, values []float64) *float64 {
	if len(values) == 0 || slices.Min(values) < 0 {
		return nil
	}
	v := sum(values)
	return &v
}

// median returns the value in the middle, or what is between the two that are.
func median(values []float64) float64 {
	sorted := slices.SortedFunc(slices.Values(values), cmp.Compare[float64])
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
