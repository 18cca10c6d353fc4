package sqlite

import (
	"context"
	"encoding/binary"
	"slices"

	"github.com/musehub/posthorn"
	"zombiezen.com/go/sqlite"
)

// maxWholeBatches is how many batches of promises may have settled ones among the others. It bounds what has to be looked up
// after a crash.
const maxWholeBatches = 256

// promises are the automatic first attempts that nodes have in memory: the entries that cost no row in the queue. The
// database has them batch by batch, written in one row with the events and deleted once all of them are settled; which ones
// are settled is only known here. After a crash the log and the queue tell (see release).
//
// What a transaction changes here counts once end says that it was committed. The zero value is ready to use, by who has
// the writer.
type promises struct {
	byEvent map[int64]*promise
	whole   []*promisedBatch // those with a row that has all their entries, from the oldest on
	settled []int64          // the first events of batches whose rows can go

	// The transaction under way.
	added   []*promise
	taken   []taken
	deleted int // of settled
	shrunk  int // of whole
}

// promise is an event with the webhooks that it is still owed to.
type promise struct {
	event    int64
	webhooks []int64
	batch    *promisedBatch
}

type promisedBatch struct {
	first  int64 // event, which is the row's key
	node   int64
	events []*promise
	left   int // entries that are not settled
}

// taken is an entry that was settled.
type taken struct {
	promise *promise
	webhook int64
}

// add adds an entry to the batch that insert writes.
func (p *promises) add(event, webhook int64) {
	if n := len(p.added); n > 0 && p.added[n-1].event == event {
		p.added[n-1].webhooks = append(p.added[n-1].webhooks, webhook)
		return
	}
	p.added = append(p.added, &promise{event: event, webhooks: []int64{webhook}})
}

// insert writes what was added.
func (p *promises) insert(c *sqlite.Conn, node int64) error {
	if len(p.added) == 0 {
		return nil
	}
	batch := &promisedBatch{first: p.added[0].event, node: node, events: p.added}
	for _, promise := range p.added {
		promise.batch = batch
		batch.left += len(promise.webhooks)
	}
	return exec(c, "INSERT INTO posthorn_promises (event, node, entries) VALUES (?, ?, ?)", batch.first, node, batch.pack())
}

// settle takes an entry from a node and reports whether the node had it.
func (p *promises) settle(node, event, webhook int64) bool {
	promise := p.byEvent[event]
	if promise == nil || promise.batch.node != node {
		return false
	}
	i := slices.Index(promise.webhooks, webhook)
	if i < 0 {
		return false
	}
	promise.webhooks = slices.Delete(promise.webhooks, i, i+1)
	p.taken = append(p.taken, taken{promise, webhook})
	return true
}

// deleteSettled deletes the rows of the batches that are settled. Where many others have only some entries left, their rows
// are reduced to these, one at a time.
func (p *promises) deleteSettled(c *sqlite.Conn) error {
	for _, event := range p.settled {
		if err := exec(c, "DELETE FROM posthorn_promises WHERE event = ?", event); err != nil {
			return err
		}
	}
	p.deleted = len(p.settled)
	if len(p.whole) <= maxWholeBatches {
		return nil
	}
	batch := p.whole[0]
	p.shrunk = 1
	if batch.left == 0 {
		return nil
	}
	return batch.rewrite(c)
}

// rewrite reduces the row of an event's batch to the entries that are not settled.
func (p *promises) rewrite(c *sqlite.Conn, event int64) error {
	return p.byEvent[event].batch.rewrite(c)
}

func (b *promisedBatch) rewrite(c *sqlite.Conn) error {
	return exec(c, "UPDATE posthorn_promises SET entries = ? WHERE event = ?", b.pack(), b.first)
}

// deleteSettledPromises does that in a transaction of its own.
func (s *Store) deleteSettledPromises(ctx context.Context, c *sqlite.Conn) error {
	err := s.transact(ctx, c, s.promises.deleteSettled)
	s.promises.end(err == nil)
	return err
}

// end ends a transaction.
func (p *promises) end(committed bool) {
	if committed {
		p.commit()
	} else {
		for _, t := range p.taken {
			t.promise.webhooks = append(t.promise.webhooks, t.webhook)
		}
	}
	p.added, p.taken = nil, p.taken[:0]
	p.deleted, p.shrunk = 0, 0
}

func (p *promises) commit() {
	p.settled = append(p.settled[:0], p.settled[p.deleted:]...)
	if p.shrunk > 0 {
		batch := p.whole[0]
		batch.events = slices.DeleteFunc(batch.events, func(p *promise) bool { return len(p.webhooks) == 0 })
		p.whole = p.whole[1:]
	}
	for _, t := range p.taken {
		if len(t.promise.webhooks) == 0 {
			delete(p.byEvent, t.promise.event)
		}
		batch := t.promise.batch
		if batch.left--; batch.left == 0 {
			p.settled = append(p.settled, batch.first)
			batch.events = nil
		}
	}
	for len(p.whole) > 0 && p.whole[0].left == 0 {
		p.whole = p.whole[1:]
	}
	if len(p.added) == 0 {
		return
	}
	if p.byEvent == nil {
		p.byEvent = map[int64]*promise{}
	}
	for _, promise := range p.added {
		p.byEvent[promise.event] = promise
	}
	p.whole = append(p.whole, p.added[0].batch)
}

// forget gives up the entries of nodes, which are being freed.
func (p *promises) forget(nodes []int64) {
	for event, promise := range p.byEvent {
		if slices.Contains(nodes, promise.batch.node) {
			delete(p.byEvent, event)
		}
	}
	p.whole = slices.DeleteFunc(p.whole, func(b *promisedBatch) bool { return slices.Contains(nodes, b.node) })
}

// pack encodes what is left of a batch: for each event its number, counted from the one before, how many webhooks, and these.
func (b *promisedBatch) pack() []byte {
	var packed []byte
	last := int64(0)
	for _, promise := range b.events {
		if len(promise.webhooks) == 0 {
			continue
		}
		packed = binary.AppendUvarint(packed, uint64(promise.event-last))
		packed = binary.AppendUvarint(packed, uint64(len(promise.webhooks)))
		for _, webhook := range promise.webhooks {
			packed = binary.AppendUvarint(packed, uint64(webhook))
		}
		last = promise.event
	}
	return packed
}

// unpackPromises is the reverse of pack.
func unpackPromises(packed []byte) (*promisedBatch, error) {
	broken := false
	next := func() int64 {
		v, n := binary.Uvarint(packed)
		if n <= 0 {
			broken, packed = true, nil
			return 0
		}
		packed = packed[n:]
		return int64(v) //nolint:gosec // it was one
	}
	b, last := new(promisedBatch), int64(0)
	for len(packed) > 0 {
		last += next()
		promise := &promise{event: last}
		for n := next(); n > 0 && !broken; n-- {
			promise.webhooks = append(promise.webhooks, next())
		}
		b.events = append(b.events, promise)
	}
	if broken {
		return nil, posthorn.Errorf(posthorn.CodeInternal, "a row of posthorn_promises can't be decoded: the file is damaged")
	}
	return b, nil
}
