//go:build unix

package bench

import (
	"syscall"
	"time"
)

// processCPU returns the CPU time that this process has used, or a negative one.
func processCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return -1
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
