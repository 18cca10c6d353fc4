//go:build !unix

package bench

import "time"

// processCPU returns a negative time: it isn't known here.
func processCPU() time.Duration { return -1 }
