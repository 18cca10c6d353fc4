package bench

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/musehub/posthorn"
)

// inGrowth are the scenarios that are measured again once the store has grown.
var inGrowth = []string{"bare", "dispatch", "latency"}

// Growth is what became of the figures once the store had grown large.
type Growth struct {
	Deliveries  int       `json:"deliveries"` // that the log was filled with
	Webhooks    int       `json:"webhooks"`   // that were created
	FillSeconds float64   `json:"fillSeconds"`
	FillMemory  *int64    `json:"fillPeakMemoryBytes,omitempty"` // of this process
	Scenarios   []Row     `json:"scenarios"`                     // measured again
	Before      []Row     `json:"before"`                        // the same before
	Listings    []Listing `json:"listings"`
}

// Listing is how long the first page of a listing takes, before and after the growth: of a hundred reads, or as many as a
// slice has time for.
type Listing struct {
	Name         string  `json:"name"`
	BeforeMedian float64 `json:"beforeMedianMillis"`
	BeforeMax    float64 `json:"beforeMaxMillis"`
	Median       float64 `json:"medianMillis"`
	Max          float64 `json:"maxMillis"`
}

// Before the growth the listings have some rows too, so that what is compared is the same page.
const rowsBefore = 20_000

// growth fills the store and measures again.
func (r *rig) growth(ctx context.Context, again []scenario, before []Row) (*Growth, error) {
	if err := r.use(ctx, defaultTimeout); err != nil {
		return nil, err
	}
	g := &Growth{Deliveries: r.opts.GrowthRows, Webhooks: r.opts.GrowthWebhooks}
	f, err := newFiller(ctx, r)
	if err != nil {
		return nil, err
	}
	if err := f.fill(ctx, min(rowsBefore, r.opts.GrowthRows/10)); err != nil {
		return nil, err
	}
	listingsBefore, err := f.listings(ctx)
	if err != nil {
		return nil, err
	}
	canReset := resetPeakMemory()
	start := time.Now()
	r.doing = "growth"
	const each = 10
	if _, err := r.repos(ctx, "growth", max(1, r.opts.GrowthWebhooks/each), each, measured, r.url(pathOK, "growth")); err != nil {
		return nil, err
	}
	r.done++
	if err := f.fill(ctx, r.opts.GrowthRows); err != nil {
		return nil, err
	}
	r.done++
	g.FillSeconds = time.Since(start).Seconds()
	if peak := peakMemory(); canReset && peak >= 0 {
		g.FillMemory = &peak
	}
	if g.Listings, err = f.listings(ctx); err != nil {
		return nil, err
	}
	for i, was := range listingsBefore {
		g.Listings[i].BeforeMedian, g.Listings[i].BeforeMax = was.Median, was.Max
	}
	results, err := r.rounds(ctx, again)
	if err != nil {
		return nil, err
	}
	g.Scenarios = rows(again, results)
	for _, row := range g.Scenarios {
		i := slices.IndexFunc(before, func(b Row) bool { return b.Name == row.Name })
		g.Before = append(g.Before, before[i])
	}
	return g, nil
}

// listings reads the first page of each listing again and again.
func (f *filler) listings(ctx context.Context) ([]Listing, error) {
	d := f.rig.dispatcher
	deliveries := func(w posthorn.Webhook, q posthorn.DeliveryQuery) func() error {
		return func() error {
			q.RepoID, q.WebhookID, q.Limit = growthRepo, w.ID, 50
			_, err := d.Deliveries(ctx, q)
			return err
		}
	}
	none := false // has failed; whoever looks for one examines as many rows as a page may
	reads := []struct {
		name string
		read func() error
	}{
		{"webhooks of a repo", func() error {
			_, err := d.Webhooks(ctx, posthorn.WebhookQuery{RepoID: growthRepo, Limit: 50})
			return err
		}},
		{"deliveries of a busy webhook", deliveries(f.busy, posthorn.DeliveryQuery{})},
		{"deliveries of a quiet webhook", deliveries(f.quiet, posthorn.DeliveryQuery{})},
		{"failed deliveries of a quiet webhook", deliveries(f.quiet, posthorn.DeliveryQuery{Success: &none})},
		{"failed deliveries of a busy webhook", deliveries(f.busy, posthorn.DeliveryQuery{Success: &none})},
		{"deliveries of a type, of which there are none", deliveries(f.busy, posthorn.DeliveryQuery{EventType: beside})},
		{"events of a repo", func() error {
			_, err := d.Events(ctx, posthorn.EventQuery{RepoID: growthRepo, Limit: 50})
			return err
		}},
	}
	var all []Listing
	for _, r := range reads {
		var took []float64
		for end := time.Now().Add(f.rig.opts.Slice); len(took) == 0 || len(took) < 100 && time.Now().Before(end); {
			start := time.Now()
			if err := r.read(); err != nil {
				return nil, fmt.Errorf("list %s: %w", r.name, err)
			}
			took = append(took, time.Since(start).Seconds()*1e3)
		}
		all = append(all, Listing{Name: r.name, Median: median(took), Max: slices.Max(took)})
	}
	return all, nil
}

func (g *Growth) print(w io.Writer) {
	memory := ""
	if g.FillMemory != nil {
		memory = fmt.Sprintf(" and %s MiB of memory", grouped(*g.FillMemory>>20))
	}
	fmt.Fprintf(w, "\nWith %s more deliveries in the log and %s more webhooks, which took %s s%s to write; × BEFORE is the ratio to above:\n\n",
		grouped(int64(g.Deliveries)), grouped(int64(g.Webhooks)), grouped(int64(g.FillSeconds)), memory)
	before := map[string]Row{}
	for _, row := range g.Before {
		before[row.Name] = row
	}
	again := func(row Row) []string {
		if row.Error != "" {
			return []string{row.Name, "failed"}
		}
		was := before[row.Name]
		rate := number(&row.DeliveriesPerSecond)
		return []string{
			row.Name, rate, ratioOf(&row.DeliveriesPerSecond, &was.DeliveriesPerSecond), number(row.CPUMicros), ratioOf(row.CPUMicros, was.CPUMicros),
			millis(row.LatencyP50), ratioOf(row.LatencyP50, was.LatencyP50), millis(row.LatencyP99), ratioOf(row.LatencyP99, was.LatencyP99),
		}
	}
	const times = "× BEFORE"
	printTable(w, []string{"SCENARIO", "DELIVERIES/S", times, "CPU µs", times, "P50 ms", times, "P99 ms", times}, g.Scenarios, again)
	fmt.Fprintln(w)
	printTable(w, []string{"FIRST PAGE OF", "MEDIAN ms", times, "MAX ms", times}, g.Listings, func(l Listing) []string {
		return []string{l.Name, millis(&l.Median), ratioOf(&l.Median, &l.BeforeMedian), millis(&l.Max), ratioOf(&l.Max, &l.BeforeMax)}
	})
}

func ratioOf(now, before *float64) string {
	if now == nil || before == nil || *before == 0 {
		return unknown
	}
	q := *now / *before
	return ratio(&q)
}
