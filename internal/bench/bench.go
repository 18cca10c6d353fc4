// Package bench measures Posthorn: throughput, latency, and what becomes of them with many webhooks, bad receivers and
// backlogs. `posthorn bench` is the command for it, and docs/benchmark.md says what is measured and how.
//
// The process that calls [Run] is the one that is measured. What sends requests to it and receives its deliveries runs in
// processes of its own: [RunReceiver] and [RunClient].
package bench

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"time"

	"github.com/musehub/posthorn"
)

// Parts that processes play besides the measured one, as [Options.Child] is asked for them.
const (
	receiverPart = "receiver"
	clientPart   = "client"
)

// Options say what to measure, and with what. All functions may be called from one goroutine at a time only.
type Options struct {
	Store      posthorn.Store // empty, and used by nobody else
	SecretKeys []string       // for the Dispatcher
	Logger     *slog.Logger   // for the Dispatcher

	// Child returns the command that runs [RunReceiver] for "receiver" and [RunClient] for "client", on its standard input and
	// output.
	Child func(part string) *exec.Cmd
	// API returns the REST API of a Dispatcher, for the scenario rest.
	API func(d *posthorn.Dispatcher, token string) (http.Handler, error)
	// Database returns the CPU time that the database has used, and the bytes of its write-ahead log, negative where they
	// aren't known. Nil: the database is in this process.
	Database func(ctx context.Context) (cpu time.Duration, wal int64)

	Only   []string      // names of scenarios; empty: all
	Rounds int           // how many slices of each there are
	Slice  time.Duration // how long one takes, about

	// Unrecorded is how many deliveries may be accepted, or on their way to it, and not yet recorded, before those who
	// dispatch as fast as possible wait: they don't make a backlog, and at the end of a slice there is little left to wait for.
	Unrecorded int
	Backlog    int // queue entries of the scenario backlog
	Webhooks   int // of the scenario spread, in a tenth as many repos; the largest fan-out is to a tenth of them
	// GrowthRows is how many deliveries the log is filled with for the scenario growth, and GrowthWebhooks how many webhooks
	// are created. Zero rows: it is left out.
	GrowthRows, GrowthWebhooks int

	// CPUProfile is a file for a CPU profile of the scenario dispatch, or "". The second round's has ".2" behind the name,
	// and so on.
	CPUProfile string
	// Progress is told what is being done, and how many steps of how many are done, or nil.
	Progress func(done, steps int, doing string)
}

// scenario is one row of the table.
type scenario struct {
	group string // what --only selects by, besides the name
	name  string
	// paced says that the rate is given, so that it says nothing. stored says that latencies are until the last delivery is
	// recorded, and not until a request arrives.
	paced, stored bool
	timeout       time.Duration // of attempts; 0: the default
	run           func(ctx context.Context, r *rig, slice time.Duration) (sample, error)
}

func scenarios(webhooks int) []scenario {
	many := max(1, webhooks/10)
	return []scenario{
		{group: "bare", name: "bare-64", run: bare(64)},
		{group: "bare", name: "bare-256", run: bare(256)},
		{group: "dispatch", name: "dispatch", run: dispatch},
		{group: "rest", name: "rest", run: rest(1, 256)},
		{group: "rest", name: "rest-batch", run: rest(100, 4)},
		{group: "latency", name: "latency-200", paced: true, run: steady(200)},
		{group: "latency", name: "latency-1000", paced: true, run: steady(1000)},
		{group: "fan-out", name: "fan-out-1", stored: true, run: fanOut(1)},
		{group: "fan-out", name: "fan-out-20", stored: true, run: fanOut(20)},
		{group: "fan-out", name: "fan-out-" + strconv.Itoa(many), stored: true, run: fanOut(many)},
		{group: "spread", name: "spread", run: spread},
		{group: "isolation", name: "isolation-alone", paced: true, timeout: isolationTimeout, run: steady(healthyRate)},
		{group: "isolation", name: "isolation-beside", paced: true, timeout: isolationTimeout, run: healthyBesideBad},
		{group: "backlog", name: "backlog", timeout: backlogTimeout, run: backlog},
	}
}

// Scenarios returns the names that [Options.Only] may have.
func Scenarios() []string {
	var names []string
	for _, s := range scenarios(0) {
		names = append(names, s.group)
	}
	return slices.Compact(names)
}

// Run measures. Where single scenarios fail, their rows say so and the others count. When ctx ends, so does Run, with its
// error.
func Run(ctx context.Context, opts Options) (_ *Report, err error) {
	r, err := newRig(ctx, opts)
	if err != nil {
		return nil, err
	}
	defer func() {
		if e := r.close(); err == nil {
			err = e
		}
	}()
	chosen := slices.DeleteFunc(scenarios(opts.Webhooks), func(s scenario) bool {
		needed := s.group == "bare" || opts.GrowthRows > 0 && slices.Contains(inGrowth, s.group)
		return len(opts.Only) > 0 && !needed && !slices.Contains(opts.Only, s.group)
	})
	grown := slices.DeleteFunc(scenarios(opts.Webhooks), func(s scenario) bool { return !slices.Contains(inGrowth, s.group) })
	r.steps = opts.Rounds * len(chosen)
	if opts.GrowthRows > 0 {
		r.steps += opts.Rounds*len(grown) + 2 // filling it with webhooks and with deliveries
	}
	results, err := r.rounds(ctx, chosen)
	if err != nil {
		return nil, err
	}
	report := &Report{Rounds: opts.Rounds, Slice: opts.Slice.Seconds(), Scenarios: rows(chosen, results)}
	if opts.GrowthRows > 0 {
		if report.Growth, err = r.growth(ctx, grown, report.Scenarios); err != nil {
			return nil, err
		}
	}
	return report, nil
}

// result is what came of the slices of one scenario: a sample for each round, or an error.
type result struct {
	samples []sample
	err     error
}

// rounds runs a slice of each scenario in turn, so that what disturbs the machine for a while disturbs all alike.
func (r *rig) rounds(ctx context.Context, chosen []scenario) ([]result, error) {
	results := make([]result, len(chosen))
	for round := range r.opts.Rounds {
		for i, s := range chosen {
			once := s.group == "backlog" && r.opts.GrowthRows > 0 // the large one takes too long for more
			if results[i].err != nil || once && round > 0 {
				r.done++
				continue
			}
			r.doing = fmt.Sprintf("round %d of %d, %s", round+1, r.opts.Rounds, s.name)
			r.note("")
			sample, err := r.slice(ctx, s, round)
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if err != nil {
				results[i] = result{err: err}
			} else {
				results[i].samples = append(results[i].samples, sample)
			}
			r.done++
		}
	}
	return results, nil
}

func (r *rig) slice(ctx context.Context, s scenario, round int) (sample, error) {
	timeout := s.timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	if err := r.use(ctx, timeout); err != nil {
		return sample{}, err
	}
	r.profile = ""
	if r.opts.CPUProfile != "" && s.name == "dispatch" {
		r.profile = r.opts.CPUProfile
		if round > 0 {
			r.profile += "." + strconv.Itoa(round+1)
		}
	}
	calmDown()
	r.store.measured.clear()
	r.store.beside.clear()
	return s.run(ctx, r, r.opts.Slice)
}

// warmUp is how long a scenario runs before it is measured.
func warmUp(slice time.Duration) time.Duration { return min(slice/4, 500*time.Millisecond) }
