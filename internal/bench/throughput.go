package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/musehub/posthorn/internal/sender"
	"github.com/musehub/posthorn/signature"
)

// repoCount is how many repos events go to where nothing else is said, each with one webhook.
const repoCount = 100

// ordinary is the label of these webhooks' deliveries.
const ordinary = "ordinary"

// ordinaryRepos returns these repos. The scenarios that use them take turns.
func (r *rig) ordinaryRepos(ctx context.Context) ([]string, error) {
	return r.repos(ctx, ordinary, repoCount, 1, measured, r.url(pathOK, ordinary))
}

// bare sends what Posthorn would send, with the same code and signed alike, and does nothing else: what no delivery can do
// without.
func bare(inFlight int) func(context.Context, *rig, time.Duration) (sample, error) {
	return func(ctx context.Context, r *rig, slice time.Duration) (sample, error) {
		b, err := newBareSender(r)
		if err != nil {
			return sample{}, err
		}
		defer b.sender.Close()
		if _, err := b.flood(ctx, inFlight, warmUp(slice)); err != nil {
			return sample{}, err
		}
		return r.measure(ctx, "bare", func(ctx context.Context) (int64, error) { return b.flood(ctx, inFlight, slice) })
	}
}

type bareSender struct {
	sender  *sender.Sender
	url     *url.URL
	signers [repoCount]*signature.Signer
	id      atomic.Int64
}

func newBareSender(r *rig) (*bareSender, error) {
	target, err := sender.ParseTarget("127.0.0.1")
	if err != nil {
		return nil, err
	}
	b := &bareSender{sender: sender.New(sender.Config{AllowTargets: []sender.Target{target}})}
	if b.url, err = b.sender.CheckURL(r.url(pathOK, "bare")); err != nil {
		return nil, err
	}
	for i := range b.signers {
		if b.signers[i], err = signature.NewSigner(signature.GenerateSecret()); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func (b *bareSender) flood(ctx context.Context, inFlight int, d time.Duration) (int64, error) {
	var sent atomic.Int64
	end := time.Now().Add(d)
	err := parallel(ctx, inFlight, func(ctx context.Context, i int) error {
		for time.Now().Before(end) {
			if err := b.send(ctx, i); err != nil {
				return err
			}
			sent.Add(1)
			i++
		}
		return nil
	})
	return sent.Load(), err
}

// send makes one request as the dispatcher does (see attempt.go of the root package).
func (b *bareSender) send(ctx context.Context, i int) error {
	now := time.Now()
	body := payload(now)
	id := bareID(b.id.Add(1))
	signer := b.signers[i%repoCount]
	outcome := b.sender.Send(ctx, &sender.Request{URL: b.url, Body: body, Timeout: patience, Header: http.Header{
		"Content-Type":        {"application/json"},
		"User-Agent":          {"MuseHub-Webhook/1.0"},
		"X-MuseHub-Event":     {measured},
		"X-MuseHub-Delivery":  {id},
		"webhook-id":          {id},
		"webhook-timestamp":   {strconv.FormatInt(now.Unix(), 10)},
		"X-MuseHub-Signature": {signer.Body(body)},
		"webhook-signature":   {signer.Standard(id, now, body)},
	}})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case !outcome.Success():
		return fmt.Errorf("the receiver answered %d, %s", outcome.Status, outcome.Body)
	}
	return nil
}

// bareID returns something of a UUID's form.
func bareID(n int64) string {
	id := []byte("00000000-0000-7000-8000-000000000000")
	for i := len(id) - 1; n > 0; i-- {
		if id[i] != '-' {
			id[i] = "0123456789abcdef"[n&15]
			n >>= 4
		}
	}
	return string(id)
}

// dispatch measures the library: many dispatch at once, to many repos with a webhook each.
func dispatch(ctx context.Context, r *rig, slice time.Duration) (sample, error) {
	repos, err := r.ordinaryRepos(ctx)
	if err != nil {
		return sample{}, err
	}
	return r.floodAndMeasure(ctx, ordinary, repos, 1, slice)
}

// spread measures the same over many webhooks, most of which have no event waiting and none in flight.
func spread(ctx context.Context, r *rig, slice time.Duration) (sample, error) {
	const each = 10 // webhooks in a repo
	repos, err := r.repos(ctx, "spread", max(1, r.opts.Webhooks/each), each, measured, r.url(pathOK, "spread"))
	if err != nil {
		return sample{}, err
	}
	return r.floodAndMeasure(ctx, "spread", repos, each, slice)
}

// fanOut measures one event at a time to n webhooks, and how long it is until the last delivery is recorded.
func fanOut(n int) func(context.Context, *rig, time.Duration) (sample, error) {
	return func(ctx context.Context, r *rig, slice time.Duration) (sample, error) {
		label := "fan-out-" + strconv.Itoa(n)
		repos, err := r.repos(ctx, label, 1, n, measured, r.url(pathOK, label))
		if err != nil {
			return sample{}, err
		}
		var took histogram
		one := func(ctx context.Context) error {
			start := time.Now()
			if err := r.store.measured.expect(ctx, n); err != nil {
				return err
			}
			if err := r.dispatch(ctx, r.store.measured, repos[0], measured, n); err != nil {
				return err
			}
			if err := r.store.measured.settled(ctx); err != nil {
				return err
			}
			took.record(time.Since(start))
			return nil
		}
		for range 2 { // the first ones make the connections, and make the webhooks known as good
			if err := one(ctx); err != nil {
				return sample{}, err
			}
		}
		took.reset()
		s, err := r.measure(ctx, label, func(ctx context.Context) (int64, error) {
			deliveries := int64(0)
			for end := time.Now().Add(slice); time.Now().Before(end); deliveries += int64(n) {
				if err := one(ctx); err != nil {
					return 0, err
				}
			}
			return deliveries, nil
		})
		s.latency = took.latency()
		return s, err
	}
}

// dispatchers is how many goroutines dispatch at once where throughput is measured.
const dispatchers = 512

func (r *rig) floodAndMeasure(ctx context.Context, label string, repos []string, n int, slice time.Duration) (sample, error) {
	if _, err := r.flood(ctx, repos, n, warmUp(slice)); err != nil {
		return sample{}, err
	}
	return r.measure(ctx, label, func(ctx context.Context) (int64, error) { return r.flood(ctx, repos, n, slice) })
}

// flood dispatches to repos with n webhooks each for a while, as fast as is recorded, and returns how many deliveries were
// recorded by the time that all are.
func (r *rig) flood(ctx context.Context, repos []string, n int, d time.Duration) (int64, error) {
	l := r.store.measured
	before := l.total()
	end := time.Now().Add(d)
	err := parallel(ctx, dispatchers, func(ctx context.Context, _ int) error {
		for time.Now().Before(end) {
			if err := l.expect(ctx, n); err != nil {
				return err
			}
			if !time.Now().Before(end) { // it passed while this one waited
				l.forget(n)
				return nil
			}
			repo := repos[rand.IntN(len(repos))] //nolint:gosec // any order will do
			if err := r.dispatch(ctx, l, repo, measured, n); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = l.settled(ctx)
	}
	return l.total() - before, err
}
