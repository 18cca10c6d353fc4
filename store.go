package posthorn

import (
	"context"
	"time"
)

// Store keeps webhooks, events, the queue and the delivery log. It is where durability lives: a method that writes
// returns only after what it wrote is committed and fsynced, and a method that fails has written nothing, unless its error
// is [CodeUncertain] or its context's.
//
// A Store holds no policy. When something is due, when to stop and what is fair is decided by the [Dispatcher], which
// passes the time in. It is the time of the store's clock (see Now), whatever the clocks of the nodes say. Times are stored
// to the microsecond and come back in UTC.
//
// All methods are safe for concurrent use by any number of goroutines and, where the store is shared, by several nodes.
// They honour their context; one that was cancelled may or may not have written. Errors are [*Error]s:
// [CodeNotFound] and [CodeConflict] as each method says, [CodeUnavailable] for a store that can't be reached or written
// now, [CodeUncertain] where the store was lost in the middle of a commit. What a method returns belongs to the caller,
// but for event payloads, which nobody may modify.
//
// # The queue
//
// A queue entry is the durable promise that an event still has to reach a webhook. It is either leased to a node, which
// has it in memory and is the only one to work on it, or free, and then any node may claim it once it is due. Leases belong
// to nodes, not to entries: a node renews one lease, and when that runs out all its entries become free together.
//
// How a promise is kept is the store's business, within this: an entry is identified by webhook, event and run, and
// Commit's results may name one by [Entry] values from Commit's own targets, Enqueue or Claim.
//
// The conformance suite internal/storetest holds every Store to this contract.
type Store interface {
	// CreateWebhooks stores webhooks, all or none, and sets their Seqs, which ascend in the order given and are greater than
	// every earlier one's. CodeConflict when there is a webhook of one of the IDs.
	CreateWebhooks(ctx context.Context, webhooks ...*Webhook) error
	// UpdateWebhook reads a webhook, applies change and stores what it made of it, in one transaction. Seq, ID, RepoID
	// and CreatedAt stay what they were. An error of change is returned as it is and nothing is stored.
	// CodeNotFound when the repo has no such webhook.
	UpdateWebhook(ctx context.Context, repoID, id string, change func(*Webhook) error) (Webhook, error)
	// DeleteWebhook makes a webhook, its queue entries and its deliveries disappear from every other method at once.
	// The rows themselves may go later, in Prune. CodeNotFound when the repo has no such webhook.
	DeleteWebhook(ctx context.Context, repoID, id string) error
	// Webhook returns a webhook. CodeNotFound when the repo has no such webhook.
	Webhook(ctx context.Context, repoID, id string) (Webhook, error)
	// Webhooks returns a page of webhooks in ascending order of Seq.
	Webhooks(ctx context.Context, q WebhookQuery) (Page[Webhook], error)
	// Changes returns which webhooks were created, changed or deleted since a version, zero for the first time. No change
	// is left out: versions ascend in the order in which changes become visible. Only one of nothing but FailingSince and Warned is none, because
	// nothing that is sent depends on these.
	Changes(ctx context.Context, since int64) (Changes, error)

	// Commit accepts events and records results, all in one transaction with one fsync. What is wrong with a single
	// event is in its own acceptance and harms nothing else in the batch, but for its own group (see [NewEvent]).
	// It sets the Seq of events, for a duplicate that of the first, and of deliveries that the log has then.
	// CodeConflict when the batch's node has no lease any more: it was released.
	// Committing a batch again after an error whose outcome is unknown is safe: results are recorded once, and an event
	// that had been accepted comes back as a duplicate.
	Commit(ctx context.Context, b Batch) ([]Acceptance, error)
	// Enqueue adds an entry for an event that is stored already, under a new run: it sets e.Run, which no other entry or
	// delivery of that event and webhook has, and Queued. With a node the entry is leased to it, with node 0 it is free.
	// CodeNotFound when the event or the webhook is gone, CodeConflict when the node has no lease any more.
	Enqueue(ctx context.Context, e *Entry, node int64) error
	// Due returns webhooks, in ascending order of Seq, each greater than after, that have a free entry which is due and may
	// be claimed (see [Claim] for the horizon). It writes nothing but what has to be known for that. It visits webhooks, not
	// entries: a backlog of one costs the others nothing. What it returns beside an error is due all the same.
	Due(ctx context.Context, now time.Time, horizon time.Duration, after int64, limit int) ([]DueWebhook, error)
	// Claim leases free entries that are due to a node and returns them with their events.
	// CodeConflict when the node has no lease any more.
	Claim(ctx context.Context, c Claim) ([]*Entry, error)

	// Held returns the first entries of a webhook that are held, in the order of their times: up to a number of them, and of bytes of payload, of which the
	// entry that exceeds it is the last. With a negative number of bytes the events come without their payloads.
	Held(ctx context.Context, webhookSeq int64, limit, maxBytes int) ([]*Entry, error)

	// Lease makes or renews a node's lease until the given time. Node 0 stands for a new node; the number that it
	// gets, never 0 and never used before, is returned. CodeConflict when the lease has run out and was released.
	Lease(ctx context.Context, node int64, until time.Time) (int64, error)
	// Release frees all entries of a node and ends its lease; with node 0, of every node whose lease ran out before now.
	// An entry whose attempt the log has already, by [DeliveryID], is settled as that delivery says: it becomes free for
	// the next attempt at NextAttemptAt, or is done. It reports how many nodes it released.
	Release(ctx context.Context, node int64, now time.Time) (int, error)

	// Delivery returns one row of the log. CodeNotFound when the webhook has none, or the repo no such webhook.
	Delivery(ctx context.Context, repoID, webhookID, id string) (Delivery, error)
	// Deliveries returns a page of a webhook's log in descending order of Seq. CodeNotFound when the repo has no such
	// webhook. See [Page] for the limits that keep any page cheap.
	Deliveries(ctx context.Context, q DeliveryQuery) (Page[Delivery], error)
	// Event returns one event. CodeNotFound when the repo has none of that ID.
	Event(ctx context.Context, repoID, id string) (AcceptedEvent, error)
	// Events returns a page of a repo's events in descending order of Seq.
	Events(ctx context.Context, q EventQuery) (Page[AcceptedEvent], error)

	// Outcomes says what the log and the queue have of events for a webhook, in their order.
	Outcomes(ctx context.Context, webhookSeq int64, events []*AcceptedEvent) ([]Outcome, error)
	// Queued returns an event's entries for a webhook that stand in the queue by themselves (see [Entry]), in the order of their runs.
	Queued(ctx context.Context, webhookSeq int64, event *AcceptedEvent) ([]QueuedEntry, error)
	// CreateReplay stores a replay and sets its Seq, Run and WebhookSeq. CodeNotFound when the repo has no such webhook,
	// CodeConflict when one of its replays has not ended.
	CreateReplay(ctx context.Context, r *Replay) error
	// Replays returns a page of a webhook's replays in descending order of Seq, without a Total. For those that have not ended
	// it counts Succeeded and Failed in the log. CodeNotFound when the repo has no such webhook.
	Replays(ctx context.Context, q ReplayQuery) (Page[Replay], error)
	// OpenReplays returns replays of all webhooks that have not ended, in ascending order of Seq, each greater than after, without
	// counting anything.
	OpenReplays(ctx context.Context, after int64, limit int) ([]Replay, error)
	// UpdateReplay stores what a replay has become, if it is still of the same Version and has not ended, and sets the next Version. The events get
	// entries of its run that wait: they are there for Prune, and for nothing else until FreeReplayed. Those that are gone are left out. Matched
	// grows by the others. CodeConflict when someone else was quicker, CodeNotFound when the webhook is gone.
	UpdateReplay(ctx context.Context, r *Replay, events []*AcceptedEvent) error
	// FreeReplayed makes entries of a replay that wait free and due, or held, in the order of their events' Seqs, as many as limit says, whoever does
	// so at the same time. It reports how many that were, and whether the queue has any of its entries. CodeConflict when the replay is of
	// another Version, and CodeNotFound when the webhook is gone, if there was anything to free.
	FreeReplayed(ctx context.Context, r *Replay, limit ReplayLimit) (freed int, left bool, err error)
	// DropReplayed removes up to a number of a replay's entries from the queue that no node has. It reports how many that were, and
	// whether the queue has any of its entries.
	DropReplayed(ctx context.Context, r *Replay, limit int) (dropped int, left bool, err error)

	// CreateToken stores an API token under the hash of its text and sets its Seq. CodeConflict when there is one of that ID or
	// hash.
	CreateToken(ctx context.Context, t *Token, hash string) error
	// TokenByHash returns the token that was stored under a hash. CodeNotFound when there is none.
	TokenByHash(ctx context.Context, hash string) (Token, error)
	// Tokens returns a page of tokens in ascending order of Seq.
	Tokens(ctx context.Context, q TokenQuery) (Page[Token], error)
	// TouchToken sets when a token was last used, if that is later than what is stored. One that is gone is no error.
	TouchToken(ctx context.Context, id string, at time.Time) error
	// DeleteToken removes a token. CodeNotFound when there is none.
	DeleteToken(ctx context.Context, id string) error
	// AuditLog returns a page of the audit log in descending order of Seq, without a Total. Entries get there with the writes
	// that they belong to: CreateWebhooks, UpdateWebhook, DeleteWebhook, Enqueue, CreateReplay, UpdateReplay, CreateToken and DeleteToken store the entry
	// that their context carries ([AuditOf]) in the same transaction, and not if they fail.
	AuditLog(ctx context.Context, q AuditQuery) (Page[AuditEntry], error)
	// PruneAudit removes entries of the audit log from before the given time, as Prune does, and reports how many.
	PruneAudit(ctx context.Context, before time.Time) (int, error)

	// Prune removes deliveries recorded and events accepted before the given time, but no event with an entry in the
	// queue, replays that had ended by then, and what deleted webhooks left behind. Deliveries may stay for up to two days longer, so that a store can drop a
	// day's at once. It works in batches so small that no writer waits for more than a few milliseconds, and reports how
	// many events and deliveries went.
	Prune(ctx context.Context, before time.Time) (int, error)
	// Setting returns the value of a setting. Where there is none and initial is not empty, it stores initial first;
	// of several nodes doing that at once, all get the same value.
	Setting(ctx context.Context, name, initial string) (string, error)
	// SetSetting stores the value of a setting, in the place of the one that it has.
	SetSetting(ctx context.Context, name, value string) error
	// Now returns the time of the store's clock, which is the same for all its nodes.
	Now(ctx context.Context) (time.Time, error)
	// Close releases everything. The Dispatcher never calls it: who opened a store closes it, after stopping.
	Close() error
}

// SecretKeeper is a Store that can also keep the keys that encrypt secrets, apart from the data. It is asked when
// [Config.SecretKeys] is empty.
type SecretKeeper interface {
	// SecretKeys returns the keys, of which the first encrypts. It calls generate and stores the result when there are
	// none yet and nothing has been encrypted: keys that were lost are an error, not replaced.
	SecretKeys(generate func() (string, error)) ([]string, error)
}

// Notifier is a Store that tells at once what other nodes and the transactions of hosts have written. It saves time and
// nothing else: what it doesn't tell is found by asking, within a second.
type Notifier interface {
	// Listen calls notify, one call at a time, until ctx ends. It gets over lost connections by itself, and after each
	// calls notify with a zero Notification: anything may have happened.
	Listen(ctx context.Context, notify func(Notification))
}

// Notification is what a [Notifier] tells. The zero value says to ask for everything.
type Notification struct {
	Changed bool    // there are new [Changes]
	Due     []int64 // the Seqs of webhooks that have something new to claim, or held
}

// Tx is a transaction of the host's, in the database that the store of a [Dispatcher] is on. The stores make them: see their
// methods called Tx and SQLTx.
type Tx interface {
	// Accept stores an event as Commit does, with entries that are free and due, once and if the transaction commits. It
	// leaves the transaction usable unless it returns an error.
	Accept(ctx context.Context, e NewEvent) (Acceptance, error)
}

// Changes are the webhooks that changed since a version.
type Changes struct {
	Version  int64 // the newest one, to ask for those since
	Webhooks []ChangedWebhook
	All      bool // there were so many that any webhook may have changed
}

// ChangedWebhook names a webhook that was created, changed or deleted.
type ChangedWebhook struct {
	Seq    int64
	RepoID string
}

// Entry is a queue entry: an event that still has to reach a webhook.
type Entry struct {
	WebhookSeq int64
	WebhookID  string
	Event      *AcceptedEvent // shared between the entries of one event; read-only
	Trigger    Trigger
	Run        int64
	Ordering   int64     // that of the target
	Held       bool      // as for the target; a result of such an entry may be of any node
	Attempt    int       // the attempt that is to be made, 1 for the first of its run
	DueAt      time.Time // when it may be made
	// Queued says that the entry stands in the queue by itself: it comes from Claim or Enqueue, or from an event that was
	// not automatic. Otherwise it is an automatic first attempt that was leased in the same write as its event, whose
	// promise a store may keep in another way.
	Queued bool
}

// QueuedEntry is what an entry that stands in the queue waits for.
type QueuedEntry struct {
	Trigger Trigger
	Attempt int       // that is to be made
	DueAt   time.Time // when it may be made; of one that is behind another, or waits, this says nothing
	Leased  bool      // a node has it
	Waiting bool      // it is of a replay that has yet to let it go
	Behind  string    // the ID of the event whose turn it is in its ordering; empty: it has none, or it is its turn
}

// Batch is what one Commit writes.
type Batch struct {
	Node    int64 // whose leases the new entries become and the results are of
	Events  []NewEvent
	Results []Result
}

// NewEvent is an event to accept, with the webhooks that it goes to.
type NewEvent struct {
	Event   *AcceptedEvent // Commit sets Seq
	Targets []Target       // none: the event is kept for itself
	// Trigger is TriggerAutomatic, TriggerPing or TriggerTest. Entries of other than automatic ones have a row of their own
	// (Queued) from the start.
	Trigger Trigger
	// Group makes events of a batch belong together: those with the same number, which follow each other, are accepted all
	// or none. Where one has an Err none was accepted, and the acceptances of those without are zero. A duplicate is
	// no error. Zero: the event is on its own.
	Group int
}

// Target is a webhook that an event goes to. Its entry is of run 0 and attempt 1, and due when the event was created.
type Target struct {
	WebhookSeq int64
	Leased     bool // leased to the batch's node, which has room for it in memory; otherwise free
	// Ordering, if it is not zero, has the webhook's entries of the same number done one after the other, in the order of
	// their events' Seqs; what a host's transaction has committed may come behind others that were committed later. While one of them is leased, free
	// or due later, those behind it are neither due nor claimed. Such a target is not Leased, and its event automatic.
	Ordering int64
	// Held keeps the entry for [Store.Held]: it is never due. Such a target is neither Leased nor of an ordering.
	Held bool
}

// Acceptance is what became of one event of a batch.
type Acceptance struct {
	// Duplicate says that the repo had an event of that ID with the same type and payload: nothing was stored, and
	// Deliveries is that of the first.
	Duplicate  bool
	Deliveries int
	Err        error // CodeConflict: the repo has an event of that ID with another type or payload
}

// Result is what became of one leased entry.
//
// Where the node doesn't hold the entry any more (it was released, or its webhook deleted), the queue stays as it is.
// The delivery is logged all the same if the webhook exists and the log has none of that ID. If the log has one already, of a
// node that had the entry before, and this node holds it, the entry goes on as the log says.
type Result struct {
	Entry    *Entry
	Delivery *Delivery // the attempt to log; nil: none was made
	// RetryAt is when the entry is due again; it becomes free, with its next attempt if one was made. Zero: it is done.
	RetryAt time.Time

	// What the scheduler learns from the attempt, and no store has to do with.
	target   *target       // as it was for the attempt, see use.observed; nil: none was made
	hold     time.Duration // for how long the webhook wants no request at all
	slow     bool          // it wants fewer
	failures int           // of its attempts in a row, with this one
}

// DueWebhook is a webhook that has something to claim.
type DueWebhook struct {
	Seq    int64
	ID     string
	RepoID string
}

// Claim asks for entries.
type Claim struct {
	Node int64
	Now  time.Time // entries are due up to and including this time
	// Horizon is how far ahead an entry can be due at most. One beyond it was written before the clock went backwards,
	// and is due now.
	Horizon  time.Duration
	Wants    []Want
	MaxBytes int // of payload in all; the entry that exceeds it is the last
}

// Want is how many entries are wanted for a webhook. Those asked for by hand ([Trigger.ByHand]) come first, then
// the earliest due, then the earliest accepted. An inactive webhook's other entries are not claimed.
type Want struct {
	WebhookSeq int64
	Limit      int
}
