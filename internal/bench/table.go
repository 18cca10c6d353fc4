package bench

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// header returns the names of the columns.
func header() []string {
	return []string{"SCENARIO", "DELIVERIES/S", "/BARE", "CPU µs", "/BARE", "DB CPU µs", "P50", "P99", "MAX", "WRITTEN B", "PEAK MiB"}
}

// cells returns what the table has of a row, "–" where something isn't known.
func (r Row) cells() []string {
	if r.Error != "" {
		return []string{r.Name, "failed, see below"}
	}
	peak := r.PeakMemory
	if peak != nil {
		mib := *peak / (1 << 20)
		peak = &mib
	}
	return []string{
		r.Name, number(&r.DeliveriesPerSecond), ratio(r.RateToBare), number(r.CPUMicros), ratio(r.CPUToBare), number(r.DatabaseCPUMicros),
		duration(r.LatencyP50), duration(r.LatencyP99), duration(r.LatencyMax), number(r.Written), number(peak),
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

// duration formats milliseconds.
func duration(millis *float64) string {
	if millis == nil {
		return unknown
	}
	d := time.Duration(*millis * 1e6)
	switch {
	case d < 10*time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond / 10).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

// Failure returns an error that names the scenarios that failed, or nil.
func (r *Report) Failure() error {
	var errs []error
	for _, row := range r.Scenarios {
		if row.Error != "" {
			errs = append(errs, fmt.Errorf("scenario %s: %s", row.Name, row.Error))
		}
	}
	return errors.Join(errs...)
}

// Print prints the report as text: what was measured on, and the table.
func (r *Report) Print(w io.Writer) error {
	m := r.Machine
	fmt.Fprintf(w, "Posthorn %s, %s, %s, %s\n", m.Version, m.Go, m.Platform, m.Date.Format(time.RFC3339))
	fmt.Fprintf(w, "%d × %s, %s MiB of memory\n", m.CPUs, cmp.Or(m.CPU, "CPU"), grouped(m.Memory>>20))
	fmt.Fprintf(w, "%s%s; %d rounds of %g s\n\n", m.Store, onFileSystem(m.FileSystem), r.Rounds, r.Slice)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, cells := range append([][]string{header()}, cellsOf(r.Scenarios)...) {
		fmt.Fprintln(t, strings.Join(cells, "\t")+"\t")
	}
	return t.Flush()
}

func cellsOf(rows []Row) (cells [][]string) {
	for _, row := range rows {
		cells = append(cells, row.cells())
	}
	return cells
}

func onFileSystem(name string) string {
	if name == "" {
		return ""
	}
	return " on " + name
}
