package postgres

import (
	"context"
	"encoding/binary"
	"fmt"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn"
)

// day counts days from 1970-01-01 in UTC. The log has a partition for each day of events that has deliveries, found by the
// time that a delivery's id begins with.
type day int32

const (
	// lastDay is in 2262, where Go's times in nanoseconds end. No clock is that wrong, and an id beyond it is none of ours.
	lastDay  = day(106751)
	dayMilli = 24 * 60 * 60 * 1000
)

// dayAt returns the day of a time.
func dayAt(t time.Time) day {
	seconds := t.Unix()
	d := seconds / (24 * 60 * 60)
	if seconds%(24*60*60) < 0 {
		d--
	}
	return day(d)
}

// dayOf returns the day of a delivery's id.
func dayOf(id [16]byte) (day, bool) {
	d := binary.BigEndian.Uint64(id[:8]) >> 16 / dayMilli
	return day(d), d <= uint64(lastDay)
}

// start is when the day begins.
func (d day) start() time.Time { return time.Unix(int64(d)*24*60*60, 0).UTC() }

// firstID is where the ids of the day begin.
func (d day) firstID() (id [16]byte) {
	binary.BigEndian.PutUint64(id[:8], uint64(d)*dayMilli<<16)
	return id
}

// table is the name of the day's partition.
func (d day) table() string { return "deliveries_" + d.start().Format("20060102") }

var partitionName = regexp.MustCompile(`^deliveries_(\d{8})$`)

// dayOfTable returns the day whose partition has a name.
func dayOfTable(name string) (day, bool) {
	found := partitionName.FindStringSubmatch(name)
	if found == nil {
		return 0, false
	}
	t, err := time.Parse("20060102", found[1])
	return dayAt(t), err == nil
}

// partitions remembers the days that have a partition, as far as this node knows: another one may have dropped it.
type partitions struct {
	mu    sync.Mutex
	known map[day]bool
}

// unknown returns those of the days that may have no partition.
func (p *partitions) unknown(days []day) (unknown []day) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range days {
		if !p.known[d] {
			unknown = append(unknown, d)
		}
	}
	return unknown
}

func (p *partitions) set(days []day, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known == nil {
		p.known = map[day]bool{}
	}
	for _, d := range days {
		if known {
			p.known[d] = true
		} else {
			delete(p.known, d)
		}
	}
}

// withPartitions runs fn, which writes to the log, with the days' partitions made before. Should another node have dropped
// one, it is made and fn runs again.
func (s *Store) withPartitions(ctx context.Context, days []day, fn func() error) error {
	for attempt := 1; ; attempt++ {
		if err := s.makePartitions(ctx, days); err != nil {
			return err
		}
		err := fn()
		if len(days) == 0 || attempt == maxAttempts || sqlState(err) != "23514" { // no partition for a row
			return err
		}
		s.partitions.set(days, false)
	}
}

func (s *Store) makePartitions(ctx context.Context, days []day) error {
	unknown := s.partitions.unknown(days)
	for _, d := range unknown {
		if err := s.makePartition(ctx, d); err != nil {
			return err
		}
	}
	s.partitions.set(unknown, true)
	return nil
}

// partitionState is how far a day's table is from being a partition.
type partitionState int

const (
	partitionMissing  partitionState = iota
	partitionDetached                // a table of that name: whoever made it was interrupted, or is about to attach it
	partitionAttached
)

// makePartition takes a day's table step by step from whatever state it is in to that of a partition. Other nodes may be
// doing the same, or drop it, at any moment: what fails because of that is no error, but a reason to look again.
//
// None of the steps makes those wait who use the log, as CREATE TABLE PARTITION OF would. The table is made in a transaction
// of its own, so that nobody holds a lock on the log's table while waiting for the one to attach with.
func (s *Store) makePartition(ctx context.Context, d day) error {
	err := errAgain
	for range maxAttempts {
		state, stateErr := s.partitionState(ctx, d)
		if stateErr != nil {
			return stateErr
		}
		var step string
		switch state {
		case partitionAttached:
			return nil
		case partitionMissing:
			step = "CREATE TABLE posthorn." + d.table() + " (LIKE posthorn.deliveries INCLUDING ALL)"
		case partitionDetached:
			step = fmt.Sprintf("ALTER TABLE posthorn.deliveries ATTACH PARTITION posthorn.%s FOR VALUES FROM ('%s') TO ('%s')",
				d.table(), formatUUID(d.firstID()), formatUUID((d + 1).firstID()))
		}
		if stepErr := s.define(ctx, step); stepErr != nil {
			if err = stepErr; !overtaken(err) {
				return err
			}
		}
	}
	return &posthorn.Error{Code: posthorn.CodeUnavailable, Message: "the log's partition " + d.table() + " can't be made", Err: err}
}

func (s *Store) partitionState(ctx context.Context, d day) (partitionState, error) {
	states, err := s.partitionStates(ctx, d.table())
	return states[d], err
}

// partitionStates returns the states of the log's tables whose names are like the pattern.
func (s *Store) partitionStates(ctx context.Context, pattern string) (map[day]partitionState, error) {
	states := map[day]partitionState{}
	err := s.get(ctx, func(b *batch) {
		b.queue(`SELECT c.relname, c.relispartition FROM pg_catalog.pg_class c
			WHERE c.relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = $1) AND c.relkind = 'r' AND c.relname LIKE $2`,
			s.schema, pattern).Query(func(rows pgx.Rows) error {
			var name string
			var attached bool
			_, err := pgx.ForEachRow(rows, []any{&name, &attached}, func() error {
				d, ok := dayOfTable(name)
				switch {
				case !ok: // somebody else's
				case attached:
					states[d] = partitionAttached
				default:
					states[d] = partitionDetached
				}
				return nil
			})
			return err
		})
	})
	return states, err
}

// define runs one statement that defines something, in no transaction but its own.
func (s *Store) define(ctx context.Context, text string) error {
	return s.with(ctx, writing, func(ctx context.Context, t *transaction) error {
		_, err := t.conn.Exec(ctx, s.names.replacer.Replace(text))
		return err
	})
}

// overtaken reports whether a definition failed because another node was faster: something exists already, or no longer, or
// is in another state than it was a moment ago.
func overtaken(err error) bool {
	return slices.Contains([]string{
		"23505", "42710", "42P07", // it exists (found out late, or at once)
		"42P01", "XX000", // it does not exist (found out at once, or late)
		"42809", "42P17", // it is a partition already (found out at once, or late)
		"40P01",
	}, sqlState(err))
}
