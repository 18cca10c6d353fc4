package sqlite

import (
	"encoding/binary"
	"maps"
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
	whole   []*promisedBatch        // those with a row that has all their entries, from the oldest on
	partly  map[*promisedBatch]bool // those with a row that has settled entries too
	settled []int64                 // the first events of batches whose rows can go

	// The transaction under way.
	added   []*promise
	taken   []taken
	deleted int              // of settled
	shrunk  int              // of whole
	reduced []*promisedBatch // those with a row that was reduced to what is not settled
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
	p.shrunk = 1
	return p.reduce(c, p.whole[0])
}

// reduceAll reduces all rows to the entries that are not settled.
func (p *promises) reduceAll(c *sqlite.Conn) error {
	for batch := range p.partly {
		if err := p.reduce(c, batch); err != nil {
			return err
		}
	}
	return nil
}

func (p *promises) reduce(c *sqlite.Conn, batch *promisedBatch) error {
	if !p.partly[batch] {
		return nil
	}
	p.reduced = append(p.reduced, batch)
	return updatePromises(c, batch.first, batch)
}

func updatePromises(c *sqlite.Conn, first int64, batch *promisedBatch) error {
	return exec(c, "UPDATE posthorn_promises SET entries = ? WHERE event = ?", batch.pack(), first)
}

// dropPromised takes an entry of run 0 that was dropped out of the row that may have it still, whichever node's that is:
// neither the log nor the queue will tell that it is settled.
func dropPromised(c *sqlite.Conn, event, webhook int64) error {
	var first int64
	var packed []byte
	found, err := queryRow(c, func(st *sqlite.Stmt) { first, packed = st.ColumnInt64(0), bytesOf(st, 1) },
		"SELECT event, entries FROM posthorn_promises WHERE event <= ? ORDER BY event DESC LIMIT 1", event)
	if err != nil || !found {
		return err
	}
	batch, err := unpackPromises(packed)
	if err != nil {
		return err
	}
	for _, promise := range batch.events {
		if i := slices.Index(promise.webhooks, webhook); i >= 0 && promise.event == event {
			promise.webhooks = slices.Delete(promise.webhooks, i, i+1)
			return updatePromises(c, first, batch)
		}
	}
	return nil
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
	p.deleted, p.shrunk, p.reduced = 0, 0, nil
}

func (p *promises) commit() {
	p.settled = append(p.settled[:0], p.settled[p.deleted:]...)
	p.whole = p.whole[p.shrunk:]
	for _, batch := range p.reduced {
		batch.events = slices.DeleteFunc(batch.events, func(p *promise) bool { return len(p.webhooks) == 0 })
		delete(p.partly, batch)
	}
	for _, t := range p.taken {
		if len(t.promise.webhooks) == 0 {
			delete(p.byEvent, t.promise.event)
		}
		batch := t.promise.batch
		if batch.left--; batch.left == 0 {
			p.settled = append(p.settled, batch.first)
			batch.events = nil
			delete(p.partly, batch)
		} else {
			p.partly[batch] = true
		}
	}
	for len(p.whole) > 0 && p.whole[0].left == 0 {
		p.whole = p.whole[1:]
	}
	if len(p.added) == 0 {
		return
	}
	if p.byEvent == nil {
		p.byEvent, p.partly = map[int64]*promise{}, map[*promisedBatch]bool{}
	}
	for _, promise := range p.added {
		p.byEvent[promise.event] = promise
	}
	p.whole = append(p.whole, p.added[0].batch)
}

// forget gives up the entries of nodes, which are being freed.
func (p *promises) forget(nodes []int64) {
	of := func(b *promisedBatch) bool { return slices.Contains(nodes, b.node) }
	maps.DeleteFunc(p.byEvent, func(_ int64, p *promise) bool { return of(p.batch) })
	p.whole = slices.DeleteFunc(p.whole, of)
	maps.DeleteFunc(p.partly, func(b *promisedBatch, _ bool) bool { return of(b) })
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
		return int64(v)
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
