package bench

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

// header returns the names of the columns.
func header() []string {
	return []string{"SCENARIO", "DELIVERIES/S", "OF BARE", "CPU µs", "× BARE", "DB CPU µs", "P50 ms", "P99 ms", "MAX ms", "WRITTEN B", "PEAK MiB"}
}

// cells returns what the table has of a row, "–" where something isn't known.
func (r Row) cells() []string {
	if r.Error != "" {
		return []string{r.Name, "failed"}
	}
	peak := r.PeakMemory
	if peak != nil {
		mib := *peak / (1 << 20)
		peak = &mib
	}
	return []string{
		r.Name, number(&r.DeliveriesPerSecond), ratio(r.RateToBare), number(r.CPUMicros), ratio(r.CPUToBare), number(r.DatabaseCPUMicros),
		millis(r.LatencyP50), millis(r.LatencyP99), millis(r.LatencyMax), number(r.Written), number(peak),
	}
}

const unknown = "–"

// number formats a value with about three digits that mean something.
func number(v *float64) string {
	switch {
	case v == nil:
		return unknown
	case *v < 10:
		return strconv.FormatFloat(*v, 'f', 1, 64)
	}
	return grouped(int64(*v + 0.5))
}

// grouped formats a number with commas between thousands.
func grouped(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func ratio(v *float64) string {
	if v == nil {
		return unknown
	}
	return fmt.Sprintf("%.2f", *v)
}

// millis formats milliseconds.
func millis(v *float64) string {
	switch {
	case v == nil:
		return unknown
	case *v < 10:
		return fmt.Sprintf("%.2f", *v)
	case *v < 100:
		return fmt.Sprintf("%.1f", *v)
	}
	return grouped(int64(*v + 0.5))
}

// Failure returns an error that names the scenarios that failed, or nil.
func (r *Report) Failure() error {
	rows := r.Scenarios
	if r.Growth != nil {
		rows = slices.Concat(rows, r.Growth.Scenarios)
	}
	var errs []error
	for _, row := range rows {
		if row.Error != "" {
			errs = append(errs, fmt.Errorf("scenario %s: %s", row.Name, row.Error))
		}
	}
	return errors.Join(errs...)
}

// Print prints the report as text: what was measured on, and the table.
func (r *Report) Print(out io.Writer) error {
	w := &bytes.Buffer{}
	m := r.Machine
	fmt.Fprintf(w, "Posthorn %s, %s, %s, %s\n", m.Version, m.Go, m.Platform, m.Date.Format(time.RFC3339))
	fmt.Fprintf(w, "%d × %s, %s MiB of memory\n", m.CPUs, cmp.Or(m.CPU, "CPU"), grouped(m.Memory>>20))
	fmt.Fprintf(w, "%s%s; rounds: %d of %g s\n\n", m.Store, onFileSystem(m.FileSystem), r.Rounds, r.Slice)
	printTable(w, header(), r.Scenarios, Row.cells)
	fmt.Fprint(w, legend)
	for _, row := range r.Scenarios {
		if row.SentLate != nil && *row.SentLate >= 0.01 {
			fmt.Fprintf(w, "%s: %.0f %% of the events were sent more than 1 ms late.\n", row.Name, 100**row.SentLate)
		}
	}
	if r.Growth != nil {
		r.Growth.print(w)
	}
	_, err := out.Write(w.Bytes())
	return err
}

const legend = `
Medians of the rounds; max and peak are the highest. CPU and bytes are for each delivery. OF BARE: the rate, and × BARE: the
CPU time, compared with only sending. P50, P99, max: from dispatch until the request arrives; for fan-out until the last
delivery is recorded; for backlog those of another webhook meanwhile. docs/benchmark.md says more.
`

// printTable prints aligned columns, the first to the left.
func printTable[T any](w io.Writer, header []string, rows []T, cells func(T) []string) {
	lines := [][]string{header}
	for _, row := range rows {
		lines = append(lines, cells(row))
	}
	widths := make([]int, len(header))
	for _, line := range lines {
		for i, cell := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, line := range lines {
		fmt.Fprintf(w, "%-*s", widths[0], line[0])
		for i, cell := range line[1:] {
			fmt.Fprintf(w, "  %*s", widths[i+1], cell)
		}
		fmt.Fprintln(w)
	}
}

func onFileSystem(name string) string {
	if name == "" {
		return ""
	}
	return " on " + name
}
