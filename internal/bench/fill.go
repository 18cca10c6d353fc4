package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/signature"
)

// filler writes events and their deliveries into the store as a Dispatcher does, but in big batches and without sending.
type filler struct {
	rig         *rig
	busy, quiet posthorn.Webhook
	others      []posthorn.Webhook
	written     int
}

const (
	growthRepo   = "history"
	fillBatch    = 1000
	busyShare    = 10  // one in ten deliveries is of the busy webhook
	quietRows    = 100 // deliveries of the quiet webhook, about
	growthOthers = 20
	fillWriters  = 4
)

// newFiller makes the webhooks that the deliveries are of.
func newFiller(ctx context.Context, r *rig) (*filler, error) {
	f := &filler{rig: r}
	for i := range growthOthers + 2 {
		w, err := r.dispatcher.CreateWebhook(ctx, posthorn.NewWebhook{
			RepoID: growthRepo, URL: r.url(pathOK, "history"), Events: []string{measured}, Secret: signature.GenerateSecret(),
		})
		if err != nil {
			return nil, fmt.Errorf("create webhooks: %w", err)
		}
		switch i {
		case 0:
			f.quiet = w
		case 1:
			f.busy = w
		default:
			f.others = append(f.others, w)
		}
	}
	return f, nil
}

// fill writes until there are so many rows.
func (f *filler) fill(ctx context.Context, rows int) error {
	s := f.rig.opts.Store
	now, err := s.Now(ctx)
	if err != nil {
		return err
	}
	node, err := s.Lease(ctx, 0, now.Add(24*time.Hour))
	if err != nil {
		return err
	}
	err = f.rig.inBatches(ctx, "deliveries", f.written, rows, func(ctx context.Context, from, to int) error {
		return f.batch(ctx, node, from, to)
	})
	if err != nil {
		err = fmt.Errorf("fill the log: %w", err)
	}
	f.written = max(f.written, rows)
	releasing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	_, releaseErr := s.Release(releasing, node, now)
	return errors.Join(err, releaseErr)
}

// inBatches calls write for all numbers from one up to another, some at a time, in several goroutines: while one batch is being
// committed, others are made.
func (r *rig) inBatches(ctx context.Context, what string, from, to int, write func(ctx context.Context, from, to int) error) error {
	batches := (max(0, to-from) + fillBatch - 1) / fillBatch
	var next atomic.Int64
	return parallel(ctx, min(batches, fillWriters), func(ctx context.Context, _ int) error {
		for ctx.Err() == nil {
			i := int(next.Add(1)) - 1
			if i >= batches {
				return nil
			}
			start := from + i*fillBatch
			if i%50 == 0 {
				r.note("%s of %s %s", grouped(int64(start)), grouped(int64(to)), what)
			}
			if err := write(ctx, start, min(start+fillBatch, to)); err != nil {
				return err
			}
		}
		return ctx.Err()
	})
}

// batch writes the rows of some numbers.
func (f *filler) batch(ctx context.Context, node int64, from, to int) error {
	s := f.rig.opts.Store
	now, err := s.Now(ctx)
	if err != nil {
		return err
	}
	events := posthorn.Batch{Node: node}
	results := posthorn.Batch{Node: node}
	for i := from; i < to; i++ {
		w := f.webhook(i)
		event := &posthorn.AcceptedEvent{
			ID: uniqueID(now, i), RepoID: growthRepo, Type: measured, Payload: payload(now), CreatedAt: now, Deliveries: 1,
		}
		events.Events = append(events.Events, posthorn.NewEvent{
			Event: event, Targets: []posthorn.Target{{WebhookSeq: w.Seq, Leased: true}}, Trigger: posthorn.TriggerAutomatic,
		})
		results.Results = append(results.Results, posthorn.Result{
			Entry: &posthorn.Entry{
				WebhookSeq: w.Seq, WebhookID: w.ID, Event: event, Trigger: posthorn.TriggerAutomatic, Attempt: 1, DueAt: now,
			},
			Delivery: &posthorn.Delivery{
				ID: posthorn.DeliveryID(event, w.ID, 0, 1), WebhookID: w.ID, EventID: event.ID, EventType: event.Type, Payload: event.Payload,
				Trigger: posthorn.TriggerAutomatic, Attempt: 1, Success: true, ResponseStatus: http.StatusOK, ResponseBody: "ok", DeliveredAt: now,
				Exchange: posthorn.Exchange{
					URL: w.URL, SentAt: now, Secrets: 1, Timings: posthorn.Timings{FirstByte: time.Millisecond, Total: time.Millisecond, Reused: true},
					Header: http.Header{"Date": {now.Format(http.TimeFormat)}, "Content-Length": {"2"}, "Content-Type": {"text/plain; charset=utf-8"}},
				},
			},
		})
	}
	if _, err := s.Commit(ctx, events); err != nil {
		return err
	}
	_, err = s.Commit(ctx, results)
	return err
}

// webhook returns whose delivery a row is.
func (f *filler) webhook(i int) posthorn.Webhook {
	switch {
	case i%max(2, f.rig.opts.GrowthRows/quietRows) == 1:
		return f.quiet
	case i%busyShare == 0:
		return f.busy
	}
	return f.others[i%len(f.others)]
}

// uniqueID returns a unique ID of the form that a Dispatcher's have, which begin with the time.
func uniqueID(now time.Time, i int) string {
	ms := now.UnixMilli()
	return fmt.Sprintf("%08x-%04x-7%03x-8000-%012x", ms>>16, ms&0xffff, i&0xfff, i)
}
