package bench

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Machine says what was measured, and on what.
type Machine struct {
	Version    string    `json:"version"` // of Posthorn
	Go         string    `json:"go"`
	Platform   string    `json:"platform"`
	CPU        string    `json:"cpu,omitempty"`
	CPUs       int       `json:"cpus"`
	Memory     int64     `json:"memoryBytes,omitempty"`
	Store      string    `json:"store"`
	FileSystem string    `json:"fileSystem,omitempty"` // of the SQLite file
	Date       time.Time `json:"date"`
}

// ThisMachine returns what is known of this machine.
func ThisMachine() Machine {
	m := Machine{
		Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, CPUs: runtime.NumCPU(), Date: time.Now().UTC().Truncate(time.Second),
	}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	if n := statLine("/proc/meminfo", "MemTotal:"); n > 0 {
		m.Memory = n << 10
	}
	return m
}

// FileSystem returns the type of the file system that a folder is on, as Linux names it, or "".
func FileSystem(dir string) string {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return ""
	}
	if target, err := filepath.EvalSymlinks(dir); err == nil {
		dir = target
	}
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return ""
	}
	kind, longest := "", -1
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 3 {
			continue
		}
		at := fields[1]
		within := dir == at || strings.HasPrefix(dir, strings.TrimSuffix(at, "/")+"/")
		if within && len(at) >= longest { // of two on one folder, the later one hides the other
			kind, longest = fields[2], len(at)
		}
	}
	return kind
}
