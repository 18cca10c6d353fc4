package bench

import (
	"syscall"
	"time"
)

// sleepUntil sleeps more exactly than Go's timers, which are up to a millisecond late in a process with little to do.
func sleepUntil(t time.Time) {
	for d := time.Until(t); d > 0; d = time.Until(t) {
		span := syscall.NsecToTimespec(int64(d))
		_ = syscall.Nanosleep(&span, nil) // a signal ends it early
	}
}
