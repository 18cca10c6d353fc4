package bench

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musehub/posthorn"
)

func TestLedgerBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(10)
		l.add(10)
		expected := make(chan error, 1)
		go func() { expected <- l.expect(t.Context(), 1) }()
		synctest.Wait()
		select {
		case <-expected:
			t.Fatal("more is expected than the bound")
		default:
		}
		l.record(1)
		if err := <-expected; err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { expected <- l.expect(ctx, 1) }()
		synctest.Wait()
		cancel()
		if err := <-expected; !errors.Is(err, context.Canceled) {
			t.Errorf("the end of the context gives %v", err)
		}
	})
}

func TestLedgerSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(10)
		l.add(3)
		settled := make(chan error, 1)
		go func() { settled <- l.settled(t.Context()) }()
		for range 2 { // as long as something is recorded it goes on waiting
			<-time.After(patience - time.Second)
			l.record(1)
		}
		l.forget(1)
		if err := <-settled; err != nil || l.total() != 2 {
			t.Errorf("all is settled: %v, and %d were recorded", err, l.total())
		}
		l.add(1)
		if err := l.settled(t.Context()); err == nil {
			t.Error("what is never recorded counts as settled")
		}
	})
}

// commits is a store that takes everything.
type commits struct {
	posthorn.Store
	err error
}

func (c commits) Commit(context.Context, posthorn.Batch) ([]posthorn.Acceptance, error) {
	return nil, c.err
}

func TestStoreCounts(t *testing.T) {
	s := &store{Store: commits{}, measured: newLedger(10), beside: newLedger(10)}
	delivery := func(eventType string, success bool) *posthorn.Delivery {
		return &posthorn.Delivery{EventType: eventType, Success: success}
	}
	batch := posthorn.Batch{Results: []posthorn.Result{
		{Delivery: delivery(measured, true)}, {Delivery: delivery(measured, true)},
		{Delivery: delivery(beside, true)}, {Delivery: delivery(beside, false)},
		{Delivery: delivery(beside, false), RetryAt: time.Unix(1, 0)}, // there will be another one
		{}, // its webhook is gone
	}}
	if _, err := s.Commit(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	if s.measured.total() != 2 || s.beside.total() != 2 {
		t.Errorf("%d and %d are counted, want 2 and 2", s.measured.total(), s.beside.total())
	}
	if err := s.measured.fault(); err != nil {
		t.Error(err)
	}
	s.Store = commits{err: errors.New("full")}
	if _, err := s.Commit(t.Context(), batch); err == nil || s.measured.total() != 2 {
		t.Errorf("a commit that fails (%v) counts", err)
	}
	s.Store = commits{}
	batch.Results = []posthorn.Result{{Delivery: delivery(measured, false)}}
	if _, err := s.Commit(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	if s.measured.fault() == nil {
		t.Error("a delivery that failed is no fault")
	}
}
