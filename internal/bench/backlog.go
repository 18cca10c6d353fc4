package bench

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Backlog: entries are queued for webhooks whose requests are held, and then these are answered.
const (
	backlogWebhooks = 10
	besideRate      = 50 // events a second for another webhook meanwhile
	fillers         = 64
	// No attempt shall end while the backlog is filled.
	backlogTimeout = 10 * time.Hour
)

// backlog measures how fast a backlog is worked off, and the latency of another webhook meanwhile.
func backlog(ctx context.Context, r *rig, _ time.Duration) (s sample, err error) {
	held, err := r.repos(ctx, "backlog", 1, backlogWebhooks, beside, r.url(pathHeld, "held"))
	if err != nil {
		return s, err
	}
	other, err := r.repos(ctx, "beside-backlog", 1, 1, measured, r.url(pathOK, "beside-backlog"))
	if err != nil {
		return s, err
	}
	if _, err := call[receiverAnswer](ctx, r.receiver, receiverRequest{Hold: true}); err != nil {
		return s, err
	}
	release := func() error {
		_, err := call[receiverAnswer](ctx, r.receiver, receiverRequest{Release: true})
		return err
	}
	filled, err := r.fillBacklog(ctx, held[0])
	if err != nil {
		_ = release() // that error counts
		return s, err
	}
	r.note("%s entries are worked off", grouped(filled))
	s, err = r.measure(ctx, "beside-backlog", func(ctx context.Context) (int64, error) {
		draining, drained := context.WithCancel(ctx)
		var wg sync.WaitGroup
		var paceErr error
		wg.Go(func() {
			_, _, paceErr = r.pace(draining, r.store.measured, other, measured, 1, besideRate, 24*time.Hour)
		})
		err := release()
		if err == nil {
			err = r.store.beside.settled(ctx)
		}
		drained()
		wg.Wait()
		if err == nil {
			err = paceErr
		}
		return filled, err
	})
	if err != nil {
		return s, err
	}
	return s, r.store.measured.settled(ctx)
}

// fillBacklog queues the entries of the backlog in one repo and returns how many there are.
func (r *rig) fillBacklog(ctx context.Context, repo string) (int64, error) {
	events := int64(max(1, r.opts.Backlog/backlogWebhooks))
	var next atomic.Int64
	err := parallel(ctx, fillers, func(ctx context.Context, _ int) error {
		for {
			i := next.Add(1)
			if i > events {
				return nil
			}
			if i%5000 == 0 {
				r.note("%s of %s entries queued", grouped(i*backlogWebhooks), grouped(events*backlogWebhooks))
			}
			r.store.beside.add(backlogWebhooks)
			if err := r.dispatch(ctx, r.store.beside, repo, beside, backlogWebhooks); err != nil {
				return fmt.Errorf("queue entry %d: %w", i, err)
			}
		}
	})
	return events * backlogWebhooks, err
}
