package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/secretbox"
	"github.com/musehub/posthorn/signature"
)

// rig is what the scenarios work with.
type rig struct {
	opts       Options
	store      *store
	dispatcher *posthorn.Dispatcher
	timeout    time.Duration // of the dispatcher's attempts
	receiver   *child
	address    string // of the receiver
	refusing   string // an address at which nobody listens
	client     *child // once it was needed
	made       map[string][]string
	webhooks   int    // that were made for those
	profile    string // the file for a CPU profile of what is measured next, or ""
	done       int    // steps
	steps      int
	doing      string
	noting     sync.Mutex // for Progress
}

// defaultTimeout of attempts is that of a server.
const defaultTimeout = 10 * time.Second

func newRig(ctx context.Context, opts Options) (*rig, error) {
	r := &rig{opts: opts, made: map[string][]string{}, store: &store{Store: opts.Store, measured: newLedger(opts.Unrecorded), beside: newLedger(opts.Unrecorded)}}
	var err error
	if r.receiver, err = startChild(opts.Child(receiverPart)); err != nil {
		return nil, fmt.Errorf("start the receiver: %w", err)
	}
	a, err := call[receiverAnswer](ctx, r.receiver, receiverRequest{})
	if err != nil {
		r.receiver.stop()
		return nil, err
	}
	r.address = a.Address
	if r.refusing, err = unusedAddress(ctx); err != nil {
		r.receiver.stop()
		return nil, err
	}
	return r, nil
}

// unusedAddress returns an address of loopback that is free, and will be for a while: systems give out other ones first.
func unusedAddress(ctx context.Context) (string, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

// use makes sure that there is a dispatcher whose attempts have a timeout.
func (r *rig) use(ctx context.Context, timeout time.Duration) (err error) {
	if r.dispatcher != nil && r.timeout == timeout {
		return nil
	}
	if err := r.stopDispatcher(); err != nil {
		return err
	}
	r.dispatcher, err = posthorn.New(r.store.dispatched(), posthorn.Config{
		SecretKeys: r.opts.SecretKeys, AllowTargets: []string{"127.0.0.1"}, Timeout: timeout, Logger: r.opts.Logger,
	})
	if err != nil {
		return err
	}
	r.timeout = timeout
	return r.dispatcher.Start(ctx)
}

func (r *rig) stopDispatcher() error {
	if r.dispatcher == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	d := r.dispatcher
	r.dispatcher = nil
	if err := d.Stop(ctx); err != nil && ctx.Err() == nil { // requests to receivers that hang are cut off
		return err
	}
	return nil
}

// close ends everything.
func (r *rig) close() error {
	err := r.stopDispatcher()
	r.receiver.stop()
	if r.client != nil {
		r.client.stop()
	}
	return err
}

// note shows what is being done.
func (r *rig) note(format string, args ...any) {
	r.noting.Lock()
	defer r.noting.Unlock()
	if r.opts.Progress != nil {
		what := r.doing
		if format != "" {
			what += ": " + fmt.Sprintf(format, args...)
		}
		r.opts.Progress(r.done, r.steps, what)
	}
}

// url returns a URL of the receiver's, whose latencies count under the label.
func (r *rig) url(path, label string) string { return "http://" + r.address + path + label }

// repos returns repos with n webhooks each to one URL, which subscribe to an event type. It makes them the first time.
func (r *rig) repos(ctx context.Context, prefix string, count, n int, eventType, url string) ([]string, error) {
	if repos, ok := r.made[prefix]; ok {
		return repos, nil
	}
	repos := make([]string, count)
	for i := range repos {
		repos[i] = prefix + "-" + strconv.Itoa(i)
	}
	var options posthorn.Options
	if eventType == measured { // where the machine stalls, the latency shall say so, and no delivery fail
		options.Timeout = patience
	}
	// The Dispatcher makes one, with a secret, and the others are as that one.
	secret := signature.GenerateSecret()
	first, err := r.dispatcher.CreateWebhook(ctx, posthorn.NewWebhook{
		RepoID: repos[0], URL: url, Events: []string{eventType}, Secret: secret, Options: options,
	})
	if err != nil {
		return nil, fmt.Errorf("create webhooks: %w", err)
	}
	box, err := secretbox.New(r.opts.SecretKeys)
	if err != nil {
		return nil, fmt.Errorf("create webhooks: %w", err)
	}
	offset := r.webhooks
	r.webhooks += count * n
	err = r.inBatches(ctx, "webhooks", 1, count*n, func(ctx context.Context, from, to int) error {
		webhooks := make([]*posthorn.Webhook, 0, to-from)
		for i := from; i < to; i++ {
			w := first
			w.ID, w.RepoID = uniqueID(first.CreatedAt, offset+i), repos[i/n]
			sealed, err := box.SealFor(w.ID, secret)
			if err != nil {
				return err
			}
			w.Secrets = slices.Clone(first.Secrets)
			w.Secrets[0].Sealed = sealed
			webhooks = append(webhooks, &w)
		}
		return r.opts.Store.CreateWebhooks(ctx, webhooks...)
	})
	if err != nil {
		return nil, fmt.Errorf("create webhooks: %w", err)
	}
	r.made[prefix] = repos
	return repos, nil
}

// dispatch dispatches one event to n webhooks.
func (r *rig) dispatch(ctx context.Context, l *ledger, repo, eventType string, n int) error {
	receipt, err := r.dispatcher.Dispatch(ctx, posthorn.Event{RepoID: repo, Type: eventType, Payload: payload(time.Now())})
	if err == nil && receipt.Deliveries != n {
		err = fmt.Errorf("an event for the repo %s went to %d webhooks, not %d", repo, receipt.Deliveries, n)
	}
	if err != nil {
		l.forget(n)
	}
	return err
}

// measure measures what f does, and the latencies that the receiver counts under the label meanwhile. f returns how many
// deliveries it made.
func (r *rig) measure(ctx context.Context, label string, f func(context.Context) (int64, error)) (s sample, err error) {
	if _, err := call[receiverAnswer](ctx, r.receiver, receiverRequest{Reset: label}); err != nil {
		return s, err
	}
	if r.profile != "" {
		file, err := os.Create(r.profile)
		if err != nil {
			return s, err
		}
		defer file.Close()
		if err := pprof.StartCPUProfile(file); err != nil {
			return s, err
		}
		defer pprof.StopCPUProfile()
	}
	s.peak = -1
	canReset := resetPeakMemory()
	before := r.usage(ctx)
	if s.deliveries, err = f(ctx); err != nil {
		return s, err
	}
	after := r.usage(ctx)
	if canReset {
		s.peak = peakMemory()
	}
	s.elapsed = after.at.Sub(before.at)
	s.cpu = difference(before.cpu, after.cpu)
	s.databaseCPU = difference(before.databaseCPU, after.databaseCPU)
	s.written = difference(before.written, after.written)
	if r.opts.Database != nil {
		wal := difference(before.wal, after.wal)
		if s.written += wal; wal < 0 {
			s.written = -1
		}
	}
	if s.deliveries == 0 {
		return s, errors.New("nothing was delivered: the slice is too short")
	}
	a, err := call[receiverAnswer](ctx, r.receiver, receiverRequest{Latency: label})
	s.latency = a.Latency
	return s, errors.Join(err, r.store.measured.fault())
}

// difference returns the difference of two counters, or -1 where one isn't known.
func difference[T ~int64](before, after T) T {
	if before < 0 || after < 0 {
		return -1
	}
	return after - before
}

// calmDown leaves nothing of one slice to be cleaned up in the next one.
func calmDown() { debug.FreeOSMemory() }

// parallel runs f in n goroutines, with their numbers, until all have returned. The context that they get ends with the
// first error, which is returned.
func parallel(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	within, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := f(within, i); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(within)
}
