package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/musehub/posthorn/internal/bench"
)

// benchmark returns the command for a quick benchmark, and the folder for its temporary files.
func benchmark(t *testing.T, args ...string) (cmd *exec.Cmd, temporary string) {
	t.Helper()
	temporary = t.TempDir()
	cmd = exec.Command("posthorn", append([]string{"bench", "--rounds", "1", "--slice", "50ms", "--unrecorded", "256", "--backlog", "1000", "--webhooks", "100"}, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+temporary)
	return cmd, temporary
}

// nothingLeft fails the test if there is something in a folder.
func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// runBenchmark runs a quick benchmark and returns its report. That it returns shows that no process is left behind: each has
// the pipe that it reads to the end.
func runBenchmark(t *testing.T, args ...string) bench.Report {
	t.Helper()
	cmd, temporary := benchmark(t, append(args, "--json")...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var report bench.Report
	if e := json.Unmarshal([]byte(stdout.String()), &report); e != nil {
		t.Fatalf("%v, %v\n%s\n%s", err, e, &stdout, &stderr)
	}
	if (err != nil) != (report.Failure() != nil) {
		t.Errorf("the exit code (%v) doesn't fit the failures (%v)", err, report.Failure())
	}
	nothingLeft(t, temporary)
	return report
}

func TestBench(t *testing.T) {
	report := runBenchmark(t, "--large", "--large-rows", "2000", "--large-webhooks", "20")
	if report.Growth == nil {
		t.Fatal("there is no growth in it")
	}
	var names []string
	for _, row := range slices.Concat(report.Scenarios, report.Growth.Scenarios) {
		names = append(names, row.Name)
		checkRow(t, row)
	}
	want := "bare-64 bare-256 dispatch rest rest-batch latency-200 latency-1000 fan-out-1 fan-out-20 fan-out-10 spread " +
		"isolation-alone isolation-beside backlog " + "bare-64 bare-256 dispatch latency-200 latency-1000"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("the scenarios are\n%s, want\n%s", got, want)
	}
	if len(report.Growth.Before) != 5 || len(report.Growth.Listings) != 7 {
		t.Errorf("the growth is %+v", report.Growth)
	}
	if peak := report.Growth.FillMemory; runtime.GOOS == "linux" && (peak == nil || *peak < 1<<20) {
		t.Errorf("filling took %v bytes of memory", peak)
	}
	for _, l := range report.Growth.Listings {
		if l.BeforeMedian <= 0 || l.Median <= 0 || l.Max < l.Median {
			t.Errorf("implausible: %+v", l)
		}
	}
	if m := report.Machine; m.Version == "" || m.CPUs == 0 || m.Store != "SQLite" || m.Date.IsZero() {
		t.Errorf("the machine is %+v", m)
	}
}

// checkRow fails the test unless the figures of a row can be.
func checkRow(t *testing.T, row bench.Row) {
	t.Helper()
	if row.Name == "rest-batch" && strings.Contains(row.Error, "no route to post batches") {
		return // as long as the API has none
	}
	if row.Error != "" {
		t.Errorf("%s failed: %s", row.Name, row.Error)
		return
	}
	known := map[string]*float64{
		"p50": row.LatencyP50, "p99": row.LatencyP99, "max": row.LatencyMax,
	}
	if runtime.GOOS == "linux" {
		known["CPU"], known["CPU to bare"], known["peak memory"] = row.CPUMicros, row.CPUToBare, row.PeakMemory
	}
	if strings.HasPrefix(row.Name, "bare") || row.Name == "dispatch" || row.Name == "spread" {
		known["rate to bare"] = row.RateToBare
	}
	if row.Deliveries <= 0 || row.DeliveriesPerSecond <= 0 {
		t.Errorf("%s: no deliveries: %+v", row.Name, row)
	}
	for what, v := range known {
		if v == nil || *v <= 0 {
			t.Errorf("%s: no %s", row.Name, what)
		}
	}
	if row.LatencyP50 != nil && (*row.LatencyP50 > *row.LatencyP99 || *row.LatencyP99 > *row.LatencyMax) {
		t.Errorf("%s: the latencies are %v, %v, %v", row.Name, *row.LatencyP50, *row.LatencyP99, *row.LatencyMax)
	}
}

func TestBenchTable(t *testing.T) {
	file, profile := filepath.Join(t.TempDir(), "bench.db"), filepath.Join(t.TempDir(), "cpu.prof")
	cmd, temporary := benchmark(t, "--only", "dispatch", "--rounds", "2", "--database", file, "--cpuprofile", profile)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{`^SCENARIO +DELIVERIES/S `, `^bare-64 +[1-9]`, `^bare-256 +[1-9]`, `^dispatch +[1-9]`, `; rounds: 2 of 0\.05 s$`} {
		if !regexp.MustCompile("(?m)" + want).Match(out) {
			t.Errorf("nothing matches %q in:\n%s", want, out)
		}
	}
	if regexp.MustCompile(`(?m)^(rest|latency|backlog)`).Match(out) {
		t.Errorf("what wasn't asked for is in:\n%s", out)
	}
	for _, name := range []string{profile, profile + ".2"} {
		if info, err := os.Stat(name); err != nil || info.Size() == 0 {
			t.Errorf("the profile %s: %v", name, err)
		}
	}
	nothingLeft(t, temporary)
	nothingLeft(t, filepath.Dir(file))
}

func TestBenchSparesDatabases(t *testing.T) {
	file := filepath.Join(t.TempDir(), "posthorn.db")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd, _ := benchmark(t, "--database", file)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "must not fill it") {
		t.Errorf("a benchmark on a file that is there: %v\n%s", err, out)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "precious" {
		t.Errorf("the file is %q, %v", text, err)
	}
}

func TestBenchInterrupted(t *testing.T) {
	for name, sig := range map[string]os.Signal{"interrupt": os.Interrupt, "kill": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			cmd, temporary := benchmark(t, "--rounds", "1000", "--only", "isolation")
			p, err := startProcess(cmd)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cmd.Process.Kill() })
			if _, err := p.await(regexp.MustCompile("round 2 of 1000, isolation-beside")); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			// It has exited once no process is left that could write to its pipes.
			if _, err := p.exitCode(); err != nil {
				t.Fatal(err)
			}
			if sig == os.Interrupt {
				nothingLeft(t, temporary)
				if !strings.Contains(p.stderr.String(), "interrupted") {
					t.Errorf("it says:\n%s", &p.stderr)
				}
			}
		})
	}
}

func TestBenchPostgres(t *testing.T) {
	database := usePostgres(t).String()
	report := runBenchmark(t, "--only", "dispatch,isolation")
	if len(report.Scenarios) != 5 || !strings.HasPrefix(report.Machine.Store, "PostgreSQL 1") {
		t.Errorf("the report is %+v", report)
	}
	for _, row := range report.Scenarios {
		checkRow(t, row)
		if runtime.GOOS == "linux" && row.DatabaseCPUMicros == nil {
			t.Errorf("%s: no CPU time of the database", row.Name)
		}
	}
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), "CREATE SCHEMA posthorn_bench"); err != nil {
		t.Fatalf("the schema is left behind: %v", err)
	}
	cmd, _ := benchmark(t)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "DROP SCHEMA") {
		t.Errorf("a benchmark beside another one's schema: %v\n%s", err, out)
	}
	if _, err := conn.Exec(t.Context(), "DROP SCHEMA posthorn_bench"); err != nil {
		t.Errorf("the schema of another one is gone: %v", err)
	}
}
