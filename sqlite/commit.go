package sqlite

import (
	"context"

	"github.com/musehub/posthorn"
	"zombiezen.com/go/sqlite"
)

const selectSameEvent = "SELECT seq, deliveries, type = ? AND payload = ? FROM posthorn_events WHERE id = ? AND repo_id = ?"

var (
	insertEvents = newMany("INSERT INTO posthorn_events (seq, previous, id, repo_id, type, created_at, deliveries, attributes, payload) VALUES ",
		"(?, ?, ?, ?, ?, ?, ?, ?, ?)", " ON CONFLICT (id, repo_id) DO NOTHING")
	selectRepos = newMany("SELECT repo_id, newest FROM posthorn_repos WHERE repo_id IN (", "?", ")")
	addEvents   = newMany("INSERT INTO posthorn_repos (repo_id, events, newest) VALUES ", "(?, ?, ?)",
		" ON CONFLICT DO UPDATE SET events = events + excluded.events, newest = excluded.newest")
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
	c     *sqlite.Conn
	node  int64
	seq   int64 // the next event's
	repos map[string]*repoLog
	order []*repoLog
}

// repoLog is what a batch adds to a repo's events.
type repoLog struct {
	repoID string
	newest int64
	events int64
}

// acceptEvents stores the events of a batch. With node 0 nothing is leased.
func (s *Store) acceptEvents(c *sqlite.Conn, node int64, events []posthorn.NewEvent, acceptances []posthorn.Acceptance) error {
	if len(events) == 0 {
		return nil
	}
	a := accepting{Store: s, c: c, node: node}
	var err error
	if a.seq, err = nextNumbers(c, "event", len(events)); err != nil {
		return err
	}
	if err := a.findRepos(events); err != nil {
		return err
	}
	for len(events) > 0 {
		n := 1
		for n < len(events) && events[n].Group == events[0].Group {
			n++
		}
		if err := a.group(events[:n], acceptances[:n]); err != nil {
			return err
		}
		events, acceptances = events[n:], acceptances[n:]
	}
	err = addEvents.each(c, len(a.order), func(st *sqlite.Stmt, from, size int) error {
		p := params{Stmt: st}
		for _, repo := range a.order[from : from+size] {
			p.text(repo.repoID)
			p.int(repo.events)
			p.int(repo.newest)
		}
		return run(st)
	})
	if err != nil {
		return err
	}
	return s.promises.insert(c, node)
}

// findRepos reads what the repos' newest events are.
func (a *accepting) findRepos(events []posthorn.NewEvent) error {
	a.repos = make(map[string]*repoLog, len(events))
	for i := range events {
		repoID := events[i].Event.RepoID
		if a.repos[repoID] == nil {
			a.repos[repoID] = &repoLog{repoID: repoID}
			a.order = append(a.order, a.repos[repoID])
		}
	}
	return selectRepos.each(a.c, len(a.order), func(st *sqlite.Stmt, from, size int) error {
		p := params{Stmt: st}
		for _, repo := range a.order[from : from+size] {
			p.text(repo.repoID)
		}
		return rows(st, func(st *sqlite.Stmt) error {
			a.repos[st.ColumnText(0)].newest = st.ColumnInt64(1)
			return nil
		})
	})
}

// group stores events of the same group, or none of them when one is in conflict; those of group 0 each for itself.
func (a *accepting) group(events []posthorn.NewEvent, acceptances []posthorn.Acceptance) error {
	together := events[0].Group != 0
	if together {
		if err := exec(a.c, "SAVEPOINT posthorn_group"); err != nil {
			return err
		}
	}
	links := make([]link, len(events))
	for i := range links {
		links[i].seq = a.seq
		a.seq++
	}
	newest := func(i int) *int64 { return &a.repos[events[i].Event.RepoID].newest }
	err := insertLinks(a.c, insertEvents, "posthorn_events", links, newest, func(p *params, i int) {
		e := events[i].Event
		p.text(e.ID)
		p.text(e.RepoID)
		p.text(e.Type)
		p.int(micros(e.CreatedAt))
		p.int(int64(len(events[i].Targets)))
		p.text(e.Attributes.Encode())
		p.bytes(e.Payload)
	})
	if err != nil {
		return err
	}
	for i := range links {
		if !links[i].skipped {
			continue
		}
		if acceptances[i], err = duplicate(a.c, events[i].Event); err != nil {
			return err
		}
		if together && acceptances[i].Err != nil {
			clear(acceptances[:i])
			unlink(links, newest)
			if err := exec(a.c, "ROLLBACK TO posthorn_group"); err != nil {
				return err
			}
			return exec(a.c, "RELEASE posthorn_group")
		}
	}
	for i := range links {
		if links[i].skipped {
			continue
		}
		events[i].Event.Seq = links[i].seq
		acceptances[i] = posthorn.Acceptance{Deliveries: len(events[i].Targets)}
		a.repos[events[i].Event.RepoID].events++
		if err := a.enqueueTargets(a.c, a.node, &events[i]); err != nil {
			return err
		}
	}
	if together {
		return exec(a.c, "RELEASE posthorn_group")
	}
	return nil
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
		entry.WebhookSeq, entry.Ordering, entry.Held = t.WebhookSeq, t.Ordering, t.Held
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
