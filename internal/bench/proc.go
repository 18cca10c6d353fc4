package bench

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// What follows reads Linux's /proc. Elsewhere the files aren't there, and the figures aren't known.

// ticksPerSecond is the unit of times in /proc/PID/stat, the same on all of Linux's platforms that Go has.
const ticksPerSecond = 100

// usage is what this process and the database have used up to a moment. What isn't known is negative.
type usage struct {
	at          time.Time
	cpu         time.Duration // of this process
	databaseCPU time.Duration
	written     int64 // bytes to disk, by this process
	wal         int64 // bytes of the database's log
}

func (r *rig) usage(ctx context.Context) usage {
	u := usage{at: time.Now(), cpu: processCPU(), databaseCPU: -1, written: statLine("/proc/self/io", "write_bytes:"), wal: -1}
	if probe := r.opts.Database; probe != nil {
		u.databaseCPU, u.wal = probe(ctx)
	}
	return u
}

// statLine returns the number behind a name in a file of /proc, or -1.
func statLine(file, name string) int64 {
	text, err := os.ReadFile(file)
	if err != nil {
		return -1
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			if fields := strings.Fields(rest); len(fields) > 0 {
				if n, err := strconv.ParseInt(fields[0], 10, 64); err == nil {
					return n
				}
			}
		}
	}
	return -1
}

// resetPeakMemory makes peakMemory count from now on, and reports whether it can.
func resetPeakMemory() bool {
	return os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) == nil
}

// peakMemory returns the most bytes of memory that this process had resident, or -1.
func peakMemory() int64 {
	if n := statLine("/proc/self/status", "VmHWM:"); n >= 0 {
		return n << 10
	}
	return -1
}

// FamilyCPU returns the CPU time that the parent of a process has used, its living children, and those that ended. It is
// negative where that can't be known, or if the parent isn't called by the name.
func FamilyCPU(pid int, name string) time.Duration {
	child, ok := readStat(pid)
	if !ok {
		return -1
	}
	parent, ok := readStat(child.parent)
	if !ok || parent.name != name {
		return -1
	}
	ticks := parent.own + parent.ended
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range files {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if s, ok := readStat(pid); ok && s.parent == child.parent {
			ticks += s.own
		}
	}
	return time.Duration(ticks) * time.Second / ticksPerSecond
}

type procStat struct {
	name       string
	parent     int
	own, ended int64 // ticks of the process, and of its children that ended
}

func readStat(pid int) (s procStat, ok bool) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return s, false
	}
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')') // the name can have any character
	if open < 0 || end < open {
		return s, false
	}
	s.name = string(text[open+1 : end])
	fields := strings.Fields(string(text[end+1:])) // from the third on, by the manual's count
	if len(fields) < 15 {
		return s, false
	}
	var n [4]int64
	for i := range n {
		if n[i], err = strconv.ParseInt(fields[11+i], 10, 64); err != nil {
			return s, false
		}
	}
	s.parent, err = strconv.Atoi(fields[1])
	s.own, s.ended = n[0]+n[1], n[2]+n[3]
	return s, err == nil
}
