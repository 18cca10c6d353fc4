package sqlite

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/musehub/posthorn"
)

// BenchmarkCommit commits batches of 256 events and then of their 256 results, into an empty store and into one with a
// long log, and reports the time for one event.
func BenchmarkCommit(b *testing.B) {
	const size = 256
	for _, webhooks := range []int{1, 1000} {
		for _, rows := range []int{0, 300_000} {
			if rows > 0 && testing.Short() {
				continue
			}
			w := newWorkload(b, open(b, filepath.Join(b.TempDir(), "posthorn.db")), webhooks)
			for w.made < rows {
				events, results := w.batch(2000)
				w.commit(events)
				w.commit(results)
			}
			for _, what := range []string{"events", "results"} {
				b.Run(fmt.Sprintf("webhooks=%d/log=%d/%s", webhooks, rows, what), func(b *testing.B) {
					b.ReportAllocs()
					b.ResetTimer()
					b.StopTimer()
					for range b.N {
						events, results := w.batch(size)
						first, second := func() {}, b.StartTimer
						if what == "events" {
							first, second = b.StartTimer, b.StopTimer
						}
						first()
						w.commit(events)
						second()
						w.commit(results)
						b.StopTimer()
					}
					b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/size, "ns/event")
				})
			}
		}
	}
}

// BenchmarkMixed commits as a busy dispatcher does: each batch has new events, and the results of those of the batch before.
func BenchmarkMixed(b *testing.B) {
	for _, size := range []int{16, 64, 256} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			w := newWorkload(b, open(b, filepath.Join(b.TempDir(), "posthorn.db")), 100)
			var before posthorn.Batch
			b.ReportAllocs()
			for b.Loop() {
				batch, results := w.batch(size)
				batch.Results = before.Results
				w.commit(batch)
				before = results
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(size), "ns/event")
		})
	}
}

// BenchmarkQueue takes entries the long way: into the queue, claimed in batches, and settled.
func BenchmarkQueue(b *testing.B) {
	const size = 256
	w := newWorkload(b, open(b, filepath.Join(b.TempDir(), "posthorn.db")), 1)
	b.ReportAllocs()
	for range b.N {
		events, _ := w.batch(size)
		w.commit(w.free(events))
		w.commit(w.settle(w.claim(size)))
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/size, "ns/event")
}
