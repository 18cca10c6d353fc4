package sqlite

import (
	"strings"

	"zombiezen.com/go/sqlite"
)

// chunks are the numbers of rows that one statement takes. To begin and end a statement costs as much as a row or two.
var chunks = [...]int{32, 8, 1}

// many is a statement for many rows, in as many versions as there are chunks.
type many [len(chunks)]string

// newMany returns the statement that has row, once for each row, between head and tail.
func newMany(head, row, tail string) (m many) {
	for i, n := range chunks {
		m[i] = head + strings.TrimSuffix(strings.Repeat(row+", ", n), ", ") + tail
	}
	return m
}

// one returns the statement for one row.
func (m many) one() string { return m[len(m)-1] }

// each calls use for all of n rows, some at a time: from the row of that number on, with a statement for size rows.
func (m many) each(c *sqlite.Conn, n int, use func(st *sqlite.Stmt, from, size int) error) error {
	from := 0
	for i, size := range chunks {
		for ; n-from >= size; from += size {
			st, err := c.Prepare(m[i])
			if err != nil {
				return err
			}
			if err := use(st, from, size); err != nil {
				reset(st)
				return err
			}
			if err := st.ClearBindings(); err != nil { // it would keep up to a batch of payloads until it is used again
				return err
			}
		}
	}
	return nil
}

// params binds the parameters of a statement, one after the other.
type params struct {
	*sqlite.Stmt
	n int
}

func (p *params) int(v int64) {
	p.n++
	p.BindInt64(p.n, v)
}

func (p *params) text(v string) {
	p.n++
	p.BindText(p.n, v)
}

func (p *params) bytes(v []byte) {
	p.n++
	p.BindBytes(p.n, v)
}

// link is a row that knows the one before it in its listing, while it is being inserted.
type link struct {
	seq, previous int64
	skipped       bool // the table has a row with the same key already
}

// insertLinks inserts a row for each link, whose first two columns are the link's. The newest row of its listing, which newest
// returns for each link, becomes the one before it.
func insertLinks(c *sqlite.Conn, insert many, table string, links []link, newest func(i int) *int64, bind func(p *params, i int)) error {
	for i := range links {
		head := newest(i)
		links[i].previous, *head = *head, links[i].seq
	}
	skipped := false
	err := insert.each(c, len(links), func(st *sqlite.Stmt, from, size int) error {
		p := params{Stmt: st}
		for i := from; i < from+size; i++ {
			p.int(links[i].seq)
			p.int(links[i].previous)
			bind(&p, i)
		}
		if err := run(st); err != nil || c.Changes() == size {
			return err
		}
		skipped = true
		for i := from; i < from+size; i++ {
			found, err := queryRow(c, func(*sqlite.Stmt) {}, "SELECT 1 FROM "+table+" WHERE seq = ?", links[i].seq)
			if err != nil {
				return err
			}
			links[i].skipped = !found
		}
		return nil
	})
	if err != nil || !skipped {
		return err
	}
	return relink(c, table, links, newest)
}

// relink gives rows whose row before was skipped another one.
func relink(c *sqlite.Conn, table string, links []link, newest func(i int) *int64) error {
	unlink(links, newest)
	for i := range links {
		l, head := &links[i], newest(i)
		if l.skipped {
			continue
		}
		if l.previous != *head {
			if err := exec(c, "UPDATE "+table+" SET previous = ? WHERE seq = ?", *head, l.seq); err != nil {
				return err
			}
		}
		*head = l.seq
	}
	return nil
}

// unlink makes the newest rows again what they were before the links.
func unlink(links []link, newest func(i int) *int64) {
	for i := len(links) - 1; i >= 0; i-- {
		*newest(i) = links[i].previous
	}
}
