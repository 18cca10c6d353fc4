package bench

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/signature"
)

// steady measures latency while events come at a given rate, whether or not the ones before have arrived.
func steady(perSecond int) func(context.Context, *rig, time.Duration) (sample, error) {
	return func(ctx context.Context, r *rig, slice time.Duration) (sample, error) {
		return r.steady(ctx, perSecond, slice)
	}
}

func (r *rig) steady(ctx context.Context, perSecond int, slice time.Duration) (sample, error) {
	repos, err := r.ordinaryRepos(ctx)
	if err != nil {
		return sample{}, err
	}
	if _, _, err := r.pace(ctx, r.store.measured, repos, measured, 1, perSecond, warmUp(slice)); err != nil {
		return sample{}, err
	}
	if err := r.store.measured.settled(ctx); err != nil {
		return sample{}, err
	}
	late := int64(0)
	s, err := r.measure(ctx, ordinary, func(ctx context.Context) (sent int64, err error) {
		if sent, late, err = r.pace(ctx, r.store.measured, repos, measured, 1, perSecond, slice); err != nil {
			return 0, err
		}
		return sent, r.store.measured.settled(ctx)
	})
	s.late = late
	return s, err
}

// lateAfter is how long after its time an event counts as sent late.
const lateAfter = time.Millisecond

// pace dispatches events to repos with n webhooks each at a rate, for a while or until ctx ends. An event that can't be sent
// on time is sent late, and those after it later by as much: there are no bursts. It returns once all are accepted, with how
// many deliveries there were, and how many events were late.
func (r *rig) pace(ctx context.Context, l *ledger, repos []string, eventType string, n, perSecond int, d time.Duration) (sent, late int64, err error) {
	// What has begun is finished: an event whose acceptance is cut off may be delivered all the same.
	within, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	var wg sync.WaitGroup
	interval := time.Second / time.Duration(perSecond)
	start := time.Now()
	for next, i := start, 0; next.Sub(start) < d && ctx.Err() == nil && within.Err() == nil; i++ {
		sleepUntil(next)
		if behind := time.Since(next); behind > lateAfter {
			late++
			next = next.Add(behind)
		}
		next = next.Add(interval)
		l.add(n)
		sent += int64(n)
		wg.Go(func() {
			if err := r.dispatch(within, l, repos[i%len(repos)], eventType, n); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return sent, late, context.Cause(within)
}

// Isolation: events to good webhooks, alone and beside bad ones.
const (
	healthyRate = 200
	badEach     = 5 // webhooks of each kind
	badRate     = 20
	// The attempts to hanging receivers end within a slice, as they do in the long run. Those that are measured have more time.
	isolationTimeout = 500 * time.Millisecond
)

// healthyBesideBad measures the same while webhooks that hang, refuse, fail and are slow get events of their own.
func healthyBesideBad(ctx context.Context, r *rig, slice time.Duration) (s sample, err error) {
	bad := map[string]string{
		"hanging":  r.url(pathHanging, "bad"),
		"refusing": "http://" + r.refusing + "/",
		"failing":  r.url(pathFailing, "bad"),
		"slow":     r.url(pathSlow, "bad"),
	}
	for kind, url := range bad {
		remove, err := r.badWebhooks(ctx, kind, url)
		defer remove()
		if err != nil {
			return s, err
		}
	}
	flowing, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var failed atomic.Value
	for kind := range bad {
		wg.Go(func() {
			_, _, err := r.pace(flowing, r.store.beside, []string{kind}, beside, badEach, badRate, time.Hour)
			if err != nil {
				failed.Store(err)
			}
		})
	}
	s, err = r.steady(ctx, healthyRate, slice)
	cancel()
	wg.Wait()
	if e, ok := failed.Load().(error); ok && err == nil {
		err = fmt.Errorf("events for bad webhooks: %w", e)
	}
	return s, err
}

// badWebhooks makes webhooks for the length of a slice. What is queued for them goes with them.
func (r *rig) badWebhooks(ctx context.Context, repo, url string) (remove func(), err error) {
	var made []posthorn.Webhook
	remove = func() {
		for _, w := range made {
			_ = r.dispatcher.DeleteWebhook(context.WithoutCancel(ctx), repo, w.ID) // the store's end is near anyway
		}
	}
	for range badEach {
		w, err := r.dispatcher.CreateWebhook(ctx, posthorn.NewWebhook{
			RepoID: repo, URL: url, Events: []string{beside}, Secret: signature.GenerateSecret(),
		})
		if err != nil {
			return remove, err
		}
		made = append(made, w)
	}
	return remove, nil
}
