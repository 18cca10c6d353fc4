package bench

import (
	"bytes"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for want, values := range map[float64][]float64{3: {9, 3, 1}, 2: {1, 3}, 7: {7}, 2.5: {4, 1, 2, 3}} {
		if got := median(values); got != want {
			t.Errorf("the median of %v is %v, want %v", values, got, want)
		}
	}
}

// known numbers: two rounds, of which the second one is half as fast for all.
func exampleRows() []Row {
	made := func(deliveries int64, cpu time.Duration) sample {
		return sample{deliveries: deliveries, elapsed: time.Second, cpu: cpu, databaseCPU: -1, written: 10 * deliveries, peak: deliveries, latency: &latency{
			P50: time.Duration(deliveries) * time.Microsecond, P99: 50 * time.Millisecond, Max: time.Duration(deliveries) * time.Millisecond,
		}}
	}
	return rows([]scenario{
		{group: "bare", name: "bare-64"}, {group: "bare", name: "bare-256"}, {group: "dispatch", name: "dispatch"},
		{group: "latency", name: "latency-200", paced: true}, {group: "rest", name: "rest"},
	}, []result{
		{samples: []sample{made(1000, time.Second), made(400, time.Second)}},
		{samples: []sample{made(800, time.Second), made(500, time.Second)}},
		{samples: []sample{made(500, time.Second), made(250, time.Second)}},
		{samples: []sample{made(200, time.Second/2), made(200, time.Second/2)}},
		{err: errors.New("it broke")},
	})
}

func TestRows(t *testing.T) {
	got := exampleRows()
	dispatch, latency := got[2], got[3]
	for name, check := range map[string]struct{ got, want float64 }{
		"bare-64 to the best bare":    {*got[0].RateToBare, 0.9}, // 1 and 0.8
		"rate":                        {dispatch.DeliveriesPerSecond, 375},
		"all deliveries":              {float64(dispatch.Deliveries), 750},
		"rate to bare":                {*dispatch.RateToBare, 0.5},
		"CPU":                         {*dispatch.CPUMicros, 3000},
		"CPU to bare":                 {*dispatch.CPUToBare, 2},
		"p50":                         {*dispatch.LatencyP50, 0.375},
		"max, of all rounds":          {*dispatch.LatencyMax, 500},
		"peak, of all rounds":         {*dispatch.PeakMemory, 500},
		"written":                     {*dispatch.Written, 10},
		"nothing sent late":           {*latency.SentLate, 0},
		"CPU to bare at a given rate": {*latency.CPUToBare, (2.5 + 1.25) / 2},
	} {
		if check.got != check.want {
			t.Errorf("%s is %v, want %v", name, check.got, check.want)
		}
	}
	if dispatch.DatabaseCPUMicros != nil || latency.RateToBare != nil || dispatch.SentLate != nil {
		t.Error("what isn't known, or doesn't apply, has a figure")
	}
	if got[4].Error != "it broke" {
		t.Errorf("a scenario that failed is %+v", got[4])
	}
}

func TestPrint(t *testing.T) {
	report := &Report{Rounds: 2, Slice: 1, Scenarios: exampleRows(), Machine: Machine{Version: "v1", Store: "SQLite", FileSystem: "ext4"}}
	var out bytes.Buffer
	if err := report.Print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`^SCENARIO +DELIVERIES/S +OF BARE +CPU µs`, `^dispatch +375 +0\.50 +3,000 +2\.00 +– +0\.38 +50\.0 +500 +10 `,
		`^latency-200 +200 +–`, `^rest +failed$`, `^SQLite on ext4; rounds: 2 of 1 s$`,
	} {
		if !regexp.MustCompile("(?m)" + want).MatchString(out.String()) {
			t.Errorf("nothing matches %q in:\n%s", want, &out)
		}
	}
	if err := report.Failure(); err == nil || !strings.Contains(err.Error(), "rest: it broke") {
		t.Errorf("the failure is %v", err)
	}
}
