package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/term"
)

// benchProgress shows how far a benchmark is: as a bar on a terminal, as lines elsewhere.
type benchProgress struct {
	out      *os.File
	terminal bool
	last     string
}

func newBenchProgress(out *os.File) *benchProgress {
	return &benchProgress{out: out, terminal: term.IsTerminal(int(out.Fd()))}
}

func (p *benchProgress) step(done, steps int, doing string) {
	const width = 30
	switch {
	case p.terminal:
		filled := width * done / max(1, steps)
		bar := strings.Repeat("█", filled) + strings.Repeat("·", width-filled)
		fmt.Fprintf(p.out, "\r\x1b[K%s %3d %%  %s", bar, 100*done/max(1, steps), abbreviate(doing, 60))
	case doing != p.last:
		fmt.Fprintf(p.out, "%d of %d: %s\n", done, steps, doing)
	}
	p.last = doing
}

// clear removes the bar.
func (p *benchProgress) clear() {
	if p.terminal {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}
