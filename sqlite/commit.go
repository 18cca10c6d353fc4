package sqlite

import (
	"context"
	"maps"

	"github.com/musehub/posthorn"
	"zombiezen.com/go/sqlite"
)

// These are executed by two drivers; see Tx.
const (
	insertEvent = `INSERT INTO posthorn_events (id, repo_id, type, created_at, deliveries, payload, seq, previous)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id, repo_id) DO NOTHING`
	selectSameEvent = "SELECT seq, deliveries, type = ? AND payload = ? FROM posthorn_events WHERE id = ? AND repo_id = ?"
	selectNewest    = "SELECT newest FROM posthorn_repos WHERE repo_id = ?"
	addEvents       = `INSERT INTO posthorn_repos (repo_id, events, newest) VALUES (?, ?, ?)
		ON CONFLICT DO UPDATE SET events = events + excluded.events, newest = excluded.newest`
)

// Commit implements [posthorn.Store].
func (s *Store) Commit(ctx context.Context, b posthorn.Batch) ([]posthorn.Acceptance, error) {
	results, err := encodeResults(b.Results) // what needs no lock is done before taking it
	if err != nil {
		return nil, err
	}
	acceptances := make([]posthorn.Acceptance, len(b.Events))
	err = s.withWriter(ctx, func(c *sqlite.Conn) error {
		err := s.transact(ctx, c, func(c *sqlite.Conn) error {
			if err := checkLease(c, b.Node); err != nil {
				return err
			}
			if err := s.promises.deleteSettled(c); err != nil {
				return err
			}
			if err := s.acceptEvents(c, b.Node, b.Events, acceptances); err != nil {
				return err
			}
			return s.recordResults(c, b.Node, results)
		})
		s.promises.end(err == nil)
		return err
	})
	if err != nil {
		return nil, err
	}
	for i := range results {
		if d := results[i].Delivery; d != nil {
			d.Seq = results[i].seq
		}
	}
	return acceptances, nil
}

// accepting is the state of storing the events of a batch.
type accepting struct {
	*Store
	c      *sqlite.Conn
	insert *sqlite.Stmt
	node   int64
	seq    int64 // the next event's
	repos  map[string]repoLog
}

// repoLog is what a batch adds to a repo's events.
type repoLog struct {
	newest int64
	events int
}

// acceptEvents stores the events of a batch. With node 0 nothing is leased.
func (s *Store) acceptEvents(c *sqlite.Conn, node int64, events []posthorn.NewEvent, acceptances []posthorn.Acceptance) error {
	if len(events) == 0 {
		return nil
	}
	a := accepting{Store: s, c: c, node: node, repos: map[string]repoLog{}}
	var err error
	if a.seq, err = nextNumbers(c, "event", len(events)); err != nil {
		return err
	}
	if a.insert, err = c.Prepare(insertEvent); err != nil {
		return err
	}
	for len(events) > 0 {
		n := groupSize(events)
		if err := a.group(events[:n], acceptances[:n]); err != nil {
			return err
		}
		events, acceptances = events[n:], acceptances[n:]
	}
	for repoID, repo := range a.repos {
		if repo.events == 0 {
			continue
		}
		if err := exec(c, addEvents, repoID, repo.events, repo.newest); err != nil {
			return err
		}
	}
	return s.promises.insert(c, node)
}

// groupSize returns how many events belong together with the first one.
func groupSize(events []posthorn.NewEvent) int {
	n := 1
	for events[0].Group != 0 && n < len(events) && events[n].Group == events[0].Group {
		n++
	}
	return n
}

// group stores events that belong together, or none of them when one is in conflict.
func (a *accepting) group(events []posthorn.NewEvent, acceptances []posthorn.Acceptance) (err error) {
	if len(events) == 1 { // it stores something or nothing by itself
		acceptances[0], err = a.event(&events[0])
		return err
	}
	if err := exec(a.c, "SAVEPOINT posthorn_group"); err != nil {
		return err
	}
	repos, promised := maps.Clone(a.repos), len(a.promises.added)
	for i := range events {
		if acceptances[i], err = a.event(&events[i]); err != nil {
			return err
		}
		if acceptances[i].Err != nil {
			clear(acceptances[:i])
			a.repos, a.promises.added = repos, a.promises.added[:promised]
			if err := exec(a.c, "ROLLBACK TO posthorn_group"); err != nil {
				return err
			}
			break
		}
	}
	return exec(a.c, "RELEASE posthorn_group")
}

// event stores an event, unless its ID is there already.
func (a *accepting) event(n *posthorn.NewEvent) (posthorn.Acceptance, error) {
	e := n.Event
	repo, ok := a.repos[e.RepoID]
	if !ok {
		var err error
		if repo.newest, err = queryInt(a.c, selectNewest, e.RepoID); err != nil {
			return posthorn.Acceptance{}, err
		}
	}
	a.insert.BindText(1, e.ID)
	a.insert.BindText(2, e.RepoID)
	a.insert.BindText(3, e.Type)
	a.insert.BindInt64(4, micros(e.CreatedAt))
	a.insert.BindInt64(5, int64(len(n.Targets)))
	a.insert.BindBytes(6, e.Payload)
	a.insert.BindInt64(7, a.seq)
	a.insert.BindInt64(8, repo.newest)
	if err := run(a.insert); err != nil {
		return posthorn.Acceptance{}, err
	}
	if a.c.Changes() == 0 {
		return duplicate(a.c, e)
	}
	e.Seq = a.seq
	a.seq++
	a.repos[e.RepoID] = repoLog{newest: e.Seq, events: repo.events + 1}
	return posthorn.Acceptance{Deliveries: len(n.Targets)}, a.enqueueTargets(a.c, a.node, n)
}

// duplicate decides what an event is whose ID the repo has already.
func duplicate(c *sqlite.Conn, e *posthorn.AcceptedEvent) (posthorn.Acceptance, error) {
	var first firstEvent
	_, err := queryRow(c, func(st *sqlite.Stmt) {
		first = firstEvent{seq: st.ColumnInt64(0), deliveries: st.ColumnInt(1), same: st.ColumnBool(2)}
	}, selectSameEvent, e.Type, []byte(e.Payload), e.ID, e.RepoID)
	if err != nil {
		return posthorn.Acceptance{}, err
	}
	return first.acceptance(e), nil
}

// firstEvent is what the repo has already under an event's ID.
type firstEvent struct {
	seq        int64
	deliveries int
	same       bool // in type and payload
}

func (f firstEvent) acceptance(e *posthorn.AcceptedEvent) posthorn.Acceptance {
	if !f.same {
		return posthorn.Acceptance{Err: posthorn.Errorf(posthorn.CodeConflict,
			"there is an event %s already, with another type or payload", e.ID)}
	}
	e.Seq = f.seq
	return posthorn.Acceptance{Duplicate: true, Deliveries: f.deliveries}
}

// enqueueTargets stores the promise that an event still has to reach its targets.
func (s *Store) enqueueTargets(c *sqlite.Conn, node int64, e *posthorn.NewEvent) error {
	entry := posthorn.Entry{Event: e.Event, Trigger: e.Trigger, Attempt: 1, DueAt: e.Event.CreatedAt}
	for _, t := range e.Targets {
		leased := t.Leased && node != 0
		if leased && e.Trigger == posthorn.TriggerAutomatic {
			s.promises.add(e.Event.Seq, t.WebhookSeq)
			continue
		}
		entry.WebhookSeq = t.WebhookSeq
		holder := int64(0) // nobody
		if leased {
			holder = node
		}
		if err := insertEntry(c, &entry, holder); err != nil {
			return err
		}
	}
	return nil
}
