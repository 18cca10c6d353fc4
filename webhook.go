package posthorn

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/musehub/posthorn/internal/filter"
	"github.com/musehub/posthorn/internal/sender"
)

// AllEvents is the event type by which a webhook subscribes to every type.
const AllEvents = "*"

// Webhook is a subscription: which events of a repo go to which URL.
type Webhook struct {
	Seq         int64 // the store's number for it, ascending in the order of creation
	ID          string
	RepoID      string
	URL         string
	Events      []string // event types in the order given, patterns such as "issue.*", or [AllEvents]
	Active      bool
	Description string
	Secrets     []Secret // newest first; none: deliveries are not signed
	CreatedAt   time.Time
	UpdatedAt   time.Time

	Health
	Options
}

// Health is what the Dispatcher has found out about a webhook. It is forgotten when Active is set, and but for
// DisabledReason with another URL. A store keeps it as JSON.
type Health struct {
	// DisabledReason says why the Dispatcher has made the webhook inactive; empty if a person did, or nobody.
	DisabledReason string `json:"disabledReason,omitempty"`
	// FailingSince is when it was noticed that all attempts fail; zero: they don't.
	FailingSince time.Time `json:"failingSince,omitzero"`
	// Warned says that [EventWebhookFailing] was sent, because it is going to be disabled.
	Warned bool `json:"warned,omitempty"`
}

// SameButFailing reports whether two states of a webhook differ in nothing but FailingSince and Warned, which is no change that a
// [Store] tells in [Store.Changes].
func SameButFailing(a, b Webhook) bool {
	a.FailingSince, a.Warned = b.FailingSince, b.Warned
	return reflect.DeepEqual(a, b)
}

// Options are the settings of a webhook that most do without. A store keeps them as JSON.
type Options struct {
	TLS TLS `json:"tls,omitzero"` // for a URL with https

	// RetryPolicy is as [ParseRetryPolicy] takes it; empty: that of the node.
	RetryPolicy string `json:"retryPolicy,omitempty"`
	// FinalStatuses are in place of those of the node; empty: those.
	FinalStatuses Statuses `json:"finalStatuses,omitempty"`
	// Timeout is how long one attempt may take, from 1 to 60 seconds; zero: as the node says.
	Timeout time.Duration `json:"timeout,omitempty"`
	// MaxInFlight is how many requests may be under way at once, at each node, within what the node allows; zero: just that.
	MaxInFlight int `json:"maxInFlight,omitempty"`
	// MaxPerSecond is how many requests may start in a second, at each node, evenly spread; zero: any number. At most [MaxPerSecondLimit].
	MaxPerSecond int `json:"maxPerSecond,omitempty"`

	// Filter is an expression that says which of the events the webhook wants, in CEL (https://cel.dev), on id, type and payload:
	// payload.branch == "main". One that can't be evaluated for an event doesn't want it. Empty: all of them.
	Filter string `json:"filter,omitempty"`

	// KeepWhileInactive has the events kept that are dispatched while the webhook is inactive, whoever made it so. They are sent
	// once it is active again, and until then stay in the store for as long as it takes.
	KeepWhileInactive bool `json:"keepWhileInactive,omitempty"`

	// Polled webhooks have no URL: the receiver asks for its events ([Dispatcher.Poll]), as one behind a firewall does. It is said when the webhook is
	// made. All other options but Filter and KeepWhileInactive are for those with a URL.
	Polled bool `json:"polled,omitempty"`

	// Ordering is [OrderingStrict] or [OrderingKey]; empty: events are delivered as soon as possible, side by side. What is sent by hand
	// keeps to no order.
	Ordering string `json:"ordering,omitempty"`

	// Headers are sent with each request beside Posthorn's own, names as given. At most 20, none of which Posthorn, HTTP or the
	// connection has a use for. The values are secrets: they are in nothing that a Dispatcher returns, and [MaskedHeader] in what it
	// is given stands for the value that there is.
	Headers       map[string]string `json:"-"`
	SealedHeaders map[string]string `json:"headers,omitempty"` // their ciphertexts, bound to webhook and name
	// GitHubSignature sends X-Hub-Signature-256, too, for receivers built for GitHub. It needs a secret that is no Ed25519 key.
	GitHubSignature bool `json:"githubSignature,omitempty"`
	// IdempotencyKey sends the event's ID as Idempotency-Key, too.
	IdempotencyKey bool `json:"idempotencyKey,omitempty"`
}

// The orders in which a webhook can want its events.
const (
	// OrderingStrict delivers one event after the other, in the order in which they were accepted. One that fails holds back all
	// later ones until it is delivered or its last attempt was made.
	OrderingStrict = "strict"
	// OrderingKey does so with the events of each [Attributes.OrderingKey]. One that fails holds back those of its key.
	OrderingKey = "key"
)

// MaskedHeader stands for a value that is not shown.
const MaskedHeader = "***"

// TLS is what a webhook's connections have of their own. What is empty is as the node has it ([Config.RootCAs] and so on).
type TLS struct {
	MinVersion  string `json:"minVersion,omitempty"`  // "1.2" or "1.3"; it can't go below the node's
	RootCAs     string `json:"rootCAs,omitempty"`     // certificates in PEM: only what these have signed is trusted
	Certificate string `json:"certificate,omitempty"` // in PEM, with those between it and its root, for a receiver that asks for one
	Key         string `json:"-"`                     // of Certificate, in PEM; empty in what a Dispatcher returns
	SealedKey   string `json:"sealedKey,omitempty"`   // ciphertext, bound to the webhook; ignored in what a Dispatcher is given
}

// MaxURLLength is how many characters a webhook's URL may have.
const MaxURLLength = 2048

// NewWebhook is what [Dispatcher.CreateWebhook] takes.
type NewWebhook struct {
	RepoID      string
	URL         string   // empty if the webhook is polled
	Events      []string // event types of [Config.EventTypes], "ping", patterns such as "issue.*", or [AllEvents]
	Secret      string   // signs the deliveries (see [Dispatcher.RotateSecret]); empty: they go out unsigned
	Description string   // free text of at most [MaxDescriptionLength] characters
	Options
}

// WebhookPatch is what [Dispatcher.UpdateWebhook] changes: the fields that are not nil.
type WebhookPatch struct {
	URL         *string
	Events      []string
	Active      *bool // an inactive webhook gets no events; what is queued for it waits until it is active again
	Description *string

	// TLS replaces all of the webhook's settings for TLS. Without a key, the one that it has stays if its certificate does.
	TLS *TLS
	// These replace the option of the same name. The zero value: as the node has it.
	RetryPolicy   *string
	FinalStatuses *Statuses
	Timeout       *time.Duration
	MaxInFlight   *int
	MaxPerSecond  *int
	Filter        *string
	Ordering      *string // what is queued keeps the order that it has
	// KeepWhileInactive set to false leaves what is kept by then.
	KeepWhileInactive *bool
	// Headers replaces all of the webhook's own headers; not nil and empty: removes them.
	Headers         map[string]string
	GitHubSignature *bool
	IdempotencyKey  *bool

	// Secret replaces the signing secret; the empty string removes all secrets.
	Secret *string
	// SecretOverlap is for how long the secrets before it go on signing as well, so that receivers can change over.
	// Nil: [DefaultSecretOverlap]. Zero: they stop at once.
	SecretOverlap *time.Duration
}

const (
	// MaxDescriptionLength is how many characters a webhook's description may have.
	MaxDescriptionLength = 1000
	// MaxSecrets is how many secrets of a webhook may sign at the same time.
	MaxSecrets = 10
	// MaxSecretLength is how many bytes a secret may have.
	MaxSecretLength = 1024
	// MaxPerSecondLimit is the most that a webhook's MaxPerSecond can be.
	MaxPerSecondLimit = 10_000
	// MaxRepoIDLength is how many bytes a repo's ID may have.
	MaxRepoIDLength = 256
)

// DefaultSecretOverlap is for how long a replaced secret goes on signing beside the new one.
const DefaultSecretOverlap = 24 * time.Hour

// Subscribes reports whether the webhook gets events of the type, or keeps them for later. A ping reaches every active one.
func (w *Webhook) Subscribes(eventType string) bool {
	if !w.Active && !w.KeepWhileInactive {
		return false
	}
	return eventType == EventPing || slices.ContainsFunc(w.Events, func(pattern string) bool { return covers(pattern, eventType) })
}

// covers reports whether an event type, a pattern that ends in ".*", or AllEvents stands for a type.
func covers(pattern, eventType string) bool {
	if start, ok := strings.CutSuffix(pattern, "*"); ok && (start == "" || strings.HasSuffix(start, ".")) {
		return strings.HasPrefix(eventType, start)
	}
	return pattern == eventType
}

// WebhookQuery selects webhooks, in the order of their creation.
type WebhookQuery struct {
	RepoID string // empty: of all repos
	After  int64  // only those whose Seq is greater
	Limit  int    // zero: no limit
}

// Page is a part of a listing.
type Page[T any] struct {
	Items []T
	// Total counts the whole listing. It comes from counters where counting would be a scan.
	Total int64
	// TotalCapped says that Total counts only what the newest [MaxScan] rows hold, because the filter has no counter.
	TotalCapped bool
	// Next is where the following page starts (a query's After or Before), zero on the last one. A page may hold fewer
	// items than its limit, even none, and not be the last: see [MaxScan] and [MaxPageBytes].
	Next int64
}

const (
	// MaxScan is how many rows of the log a filtered listing examines for one page.
	MaxScan = 500
	// MaxPageBytes is how many bytes of payload one page carries at most, unless a single item has more.
	MaxPageBytes = 8 << 20
)

// CreateWebhook registers a webhook. It is active, and gets the events dispatched from then on; of those dispatched at other
// nodes, all but for the first second.
//
// CodeInvalid with the field at fault: an event type that doesn't exist, a URL that can never be delivered to. CodeConflict when the
// repo has [Config.MaxWebhooksPerRepo].
func (d *Dispatcher) CreateWebhook(ctx context.Context, n NewWebhook) (Webhook, error) {
	if err := d.checkRepo(ctx, n.RepoID); err != nil {
		return Webhook{}, err
	}
	t := d.clock.now()
	w := Webhook{
		ID: newID(t), RepoID: n.RepoID, URL: n.URL, Events: slices.Clone(n.Events), Active: true,
		Description: n.Description, CreatedAt: t, UpdatedAt: t, Options: n.Options,
	}
	w.TLS, w.Headers, w.SealedHeaders = TLS{}, nil, nil
	if err := d.setHeaders(&w, n.Headers); err != nil {
		return Webhook{}, err
	}
	if err := d.setTLS(&w, n.TLS); err != nil {
		return Webhook{}, err
	}
	if err := d.checkWebhook(&w, Webhook{}); err != nil {
		return Webhook{}, err
	}
	if n.Secret != "" {
		if err := d.addSecret(&w, n.Secret); err != nil {
			return Webhook{}, err
		}
	}
	if err := d.storeNew(ctx, &w); err != nil {
		return Webhook{}, err
	}
	d.subscriptions.invalidate(w.RepoID, w.Seq)
	return w, nil
}

// storeNew stores a new webhook, if the repo may have one more. One at a time, so that the count holds.
func (d *Dispatcher) storeNew(ctx context.Context, w *Webhook) error {
	d.creating.Lock()
	defer d.creating.Unlock()
	page, err := d.store.Webhooks(ctx, WebhookQuery{RepoID: w.RepoID, Limit: 1})
	if err != nil {
		return err
	}
	if page.Total >= int64(d.cfg.MaxWebhooksPerRepo) {
		return Errorf(CodeConflict, "the repo has %d webhooks, the most that it may (--max-webhooks-per-repo, Config.MaxWebhooksPerRepo)", page.Total)
	}
	return d.store.CreateWebhooks(d.audited(ctx, AuditEntry{Action: "webhook.create", RepoID: w.RepoID, Subject: w.ID}), w)
}

// UpdateWebhook changes a webhook. Once it has returned, nothing more is sent to an old URL, with an old secret (but for
// the overlap), or to a webhook made inactive, except what was on the wire already, and what other nodes send within the
// second in which they hear of it.
func (d *Dispatcher) UpdateWebhook(ctx context.Context, repoID, id string, p WebhookPatch) (Webhook, error) {
	if err := d.checkRepo(ctx, repoID); err != nil {
		return Webhook{}, err
	}
	writing := d.audited(ctx, AuditEntry{Action: "webhook.update", RepoID: repoID, Subject: id, Detail: p.fields()})
	w, err := d.store.UpdateWebhook(writing, repoID, id, func(w *Webhook) error { return d.patch(w, p) })
	if err != nil {
		return Webhook{}, err
	}
	d.subscriptions.invalidate(repoID, w.Seq)
	if p.MaxInFlight != nil || p.MaxPerSecond != nil {
		d.sched.changed(w.Seq)
	}
	if p.Active != nil && *p.Active {
		d.sched.wantSpilled(w.Seq)
	}
	return w, nil
}

// fields names what the patch changes, for the audit log.
func (p *WebhookPatch) fields() string {
	var names []string
	for _, f := range []struct {
		name  string
		given bool
	}{
		{"url", p.URL != nil}, {"events", p.Events != nil}, {"active", p.Active != nil}, {"description", p.Description != nil},
		{"tls", p.TLS != nil}, {"retryPolicy", p.RetryPolicy != nil}, {"finalStatuses", p.FinalStatuses != nil}, {"timeout", p.Timeout != nil},
		{"maxInFlight", p.MaxInFlight != nil}, {"maxPerSecond", p.MaxPerSecond != nil},
		{"filter", p.Filter != nil}, {"ordering", p.Ordering != nil}, {"keepWhileInactive", p.KeepWhileInactive != nil}, {"headers", p.Headers != nil}, {"githubSignature", p.GitHubSignature != nil},
		{"idempotencyKey", p.IdempotencyKey != nil}, {"secret", p.Secret != nil},
	} {
		if f.given {
			names = append(names, f.name)
		}
	}
	return strings.Join(names, ", ")
}

func (d *Dispatcher) patch(w *Webhook, p WebhookPatch) error {
	was := *w
	w.UpdatedAt = d.clock.now()
	if p.URL != nil && *p.URL != w.URL { // what has failed is another one
		w.URL, w.FailingSince, w.Warned = *p.URL, time.Time{}, false
	}
	if p.Events != nil {
		w.Events = slices.Clone(p.Events)
	}
	if p.Active != nil {
		w.Active, w.Health = *p.Active, Health{}
	}
	set(&w.Description, p.Description)
	set(&w.RetryPolicy, p.RetryPolicy)
	set(&w.FinalStatuses, p.FinalStatuses)
	set(&w.Timeout, p.Timeout)
	set(&w.MaxInFlight, p.MaxInFlight)
	set(&w.MaxPerSecond, p.MaxPerSecond)
	set(&w.Filter, p.Filter)
	set(&w.Ordering, p.Ordering)
	set(&w.KeepWhileInactive, p.KeepWhileInactive)
	set(&w.GitHubSignature, p.GitHubSignature)
	set(&w.IdempotencyKey, p.IdempotencyKey)
	if p.Headers != nil {
		if err := d.setHeaders(w, p.Headers); err != nil {
			return err
		}
	}
	if p.TLS != nil {
		if err := d.setTLS(w, *p.TLS); err != nil {
			return err
		}
	}
	if p.Secret == nil {
		if p.SecretOverlap != nil {
			return invalid("secretOverlap", "it goes with a new secret")
		}
		return d.checkWebhook(w, was)
	}
	overlap := DefaultSecretOverlap
	if p.SecretOverlap != nil {
		overlap = *p.SecretOverlap
	}
	if overlap < 0 {
		return invalid("secretOverlap", "it is negative")
	}
	d.expireSecrets(w, overlap)
	if *p.Secret == "" {
		w.Secrets = nil
	} else if err := d.addSecret(w, *p.Secret); err != nil {
		return err
	}
	return d.checkWebhook(w, was)
}

// set changes what a patch gives.
func set[T any](field, to *T) {
	if to != nil {
		*field = *to
	}
}

// setTLS gives a webhook settings for TLS, with the key encrypted.
func (d *Dispatcher) setTLS(w *Webhook, t TLS) error {
	if t.Key == "" && t.Certificate != "" && t.Certificate == w.TLS.Certificate {
		key, _, err := d.box.OpenFor(tlsKeyOf(w.ID), w.TLS.SealedKey)
		if err != nil {
			return invalid("tls", "the key that the webhook has can't be decrypted: give it again, with its certificate")
		}
		t.Key = key
	}
	if err := (sender.TLS{MinVersion: t.MinVersion, RootCAs: t.RootCAs, Certificate: t.Certificate, Key: t.Key}).Check(); err != nil {
		return &Error{Code: CodeInvalid, Field: "tls", Message: err.Error(), Err: err}
	}
	t.SealedKey = ""
	if t.Key != "" {
		sealed, err := d.seal(tlsKeyOf(w.ID), t.Key)
		if err != nil {
			return err
		}
		t.Key, t.SealedKey = "", sealed
	}
	w.TLS = t
	return nil
}

// DeleteWebhook deletes a webhook with its queue entries and deliveries. Once it has returned, nothing more is sent to it,
// except what was on the wire already, and what other nodes send within the second in which they hear of it.
func (d *Dispatcher) DeleteWebhook(ctx context.Context, repoID, id string) error {
	w, err := d.Webhook(ctx, repoID, id)
	if err != nil {
		return err
	}
	writing := d.audited(ctx, AuditEntry{Action: "webhook.delete", RepoID: repoID, Subject: id})
	if err := d.store.DeleteWebhook(writing, repoID, id); err != nil {
		return err
	}
	d.subscriptions.invalidate(repoID, w.Seq)
	d.waits.cancel(w.Seq)
	return nil
}

// Webhook returns a webhook of a repo.
func (d *Dispatcher) Webhook(ctx context.Context, repoID, id string) (Webhook, error) {
	if err := d.checkRepo(ctx, repoID); err != nil {
		return Webhook{}, err
	}
	return d.store.Webhook(ctx, repoID, id)
}

// Webhooks returns a page of webhooks.
func (d *Dispatcher) Webhooks(ctx context.Context, q WebhookQuery) (Page[Webhook], error) {
	if q.RepoID != "" {
		if err := d.checkRepo(ctx, q.RepoID); err != nil {
			return Page[Webhook]{}, err
		}
	}
	return d.store.Webhooks(ctx, q)
}

// checkWebhook checks a webhook. A URL and event types that are as they were may be refused by now, as after --https-only: they don't
// keep the webhook from being paused. A new webhook was nothing.
func (d *Dispatcher) checkWebhook(w *Webhook, was Webhook) error {
	changed := was.ID == "" || w.URL != was.URL
	switch {
	case w.Polled:
		if others := (Options{Polled: true, Filter: w.Filter, KeepWhileInactive: w.KeepWhileInactive}); w.URL != "" || len(w.Secrets) > 0 || !reflect.DeepEqual(w.Options, others) {
			return invalid("polled", "a webhook that is polled has no URL, no secret, and no options for requests: give it events, a filter and keepWhileInactive only")
		}
	case changed:
		if err := d.checkURL(w.URL); err != nil {
			return err
		}
	}
	if w.TLS != (TLS{}) && (changed || w.TLS != was.TLS) {
		if u, err := sender.ParseURL(w.URL); err != nil || u.Scheme != "https" {
			return invalid("tls", "the URL is not https: change it, or remove the settings for TLS")
		}
	}
	if was.ID == "" || !slices.Equal(w.Events, was.Events) {
		if len(w.Events) == 0 {
			return invalid("events", "it is empty: name at least one event type, or %q for all", AllEvents)
		}
		if err := d.checkTypes("events", w.RepoID, w.Events); err != nil {
			return err
		}
	}
	if n := utf8.RuneCountInString(w.Description); n > MaxDescriptionLength {
		return invalid("description", "it has %d characters: at most %d", n, MaxDescriptionLength)
	}
	return w.Options.check()
}
func (d *Dispatcher) checkURL(url string) error {
	if url == "" {
		return invalid("url", "it is missing")
	}
	if n := utf8.RuneCountInString(url); n > MaxURLLength {
		return invalid("url", "it has %d characters: at most %d", n, MaxURLLength)
	}
	if _, err := d.sender.CheckURL(url); err != nil {
		return &Error{Code: CodeInvalid, Field: "url", Message: err.Error(), Err: err}
	}
	return nil
}

// checkTypes checks event types, and patterns of them, that a webhook of a repo can want.
func (d *Dispatcher) checkTypes(field, repoID string, events []string) error {
	types := d.EventTypes()
	if repoID == d.cfg.SystemRepo {
		types = append(types, OperationalEvents()...)
	}
	var unknown []string
	for i, t := range events {
		if !slices.ContainsFunc(types, func(known string) bool { return covers(t, known) }) {
			unknown = append(unknown, fmt.Sprintf("%.128q", t))
		}
		if slices.Contains(events[:i], t) {
			return invalid(field, "%.128q stands in it twice", t)
		}
	}
	if unknown != nil {
		return invalid(field, "unknown event type %s; the valid ones are %s and %s",
			strings.Join(unknown, ", "), strings.Join(types, ", "), AllEvents)
	}
	return nil
}

func (o *Options) check() error {
	if o.RetryPolicy != "" {
		if _, err := ParseRetryPolicy(o.RetryPolicy); err != nil {
			return &Error{Code: CodeInvalid, Field: "retryPolicy", Message: err.Error(), Err: err}
		}
	}
	if err := o.FinalStatuses.Check(); err != nil {
		return &Error{Code: CodeInvalid, Field: "finalStatuses", Message: err.Error(), Err: err}
	}
	if o.Timeout != 0 && (o.Timeout < time.Second || o.Timeout > time.Minute) {
		return invalid("timeout", "it is from 1 to 60 seconds")
	}
	if o.MaxInFlight < 0 || o.MaxInFlight > 10_000 {
		return invalid("maxInFlight", "it is from 1 to 10000, or 0 for what the server allows")
	}
	if !slices.Contains([]string{"", OrderingStrict, OrderingKey}, o.Ordering) {
		return invalid("ordering", "%.32q is no order: it is %s or %s, or empty for none", o.Ordering, OrderingStrict, OrderingKey)
	}
	if o.MaxPerSecond < 0 || o.MaxPerSecond > MaxPerSecondLimit {
		return invalid("maxPerSecond", "it is from 1 to %d, or 0 for any number", MaxPerSecondLimit)
	}
	if o.Filter != "" {
		if _, err := filter.Compile(o.Filter); err != nil {
			return &Error{Code: CodeInvalid, Field: "filter", Message: err.Error(), Err: err}
		}
	}
	return nil
}

// URLCheck is what [Dispatcher.CheckURL] finds.
type URLCheck struct {
	Deliverable bool   // a request would be sent
	Phase       string // otherwise, the one in which it ends: "registration", "DNS" or "connect"
	Reason      string // the same in words
	Rule        string // of the guard, where that decides
	Remedy      string // the setting that would change the rule's decision
}

// CheckURL says what would become of a webhook's URL: whether it can be registered, and whether an attempt would get to
// the point of connecting. It looks the host up and connects to nothing. It tells no address that the host resolves to.
func (d *Dispatcher) CheckURL(ctx context.Context, url string) (URLCheck, error) {
	v := d.sender.Explain(ctx, url)
	if err := ctx.Err(); err != nil {
		return URLCheck{}, err
	}
	return URLCheck{v.Phase == "", v.Phase, v.Reason, v.Rule, v.Remedy}, nil
}

// checkRepo refuses a repo that doesn't exist as far as the host says.
func (d *Dispatcher) checkRepo(ctx context.Context, repoID string) error {
	if repoID == "" || len(repoID) > MaxRepoIDLength || !utf8.ValidString(repoID) {
		return invalid("repoId", "it is empty, longer than %d bytes, or not UTF-8", MaxRepoIDLength)
	}
	if d.cfg.RepoExists == nil {
		return nil
	}
	exists, err := d.cfg.RepoExists(ctx, repoID)
	if err != nil {
		return &Error{Code: CodeUnavailable, Message: "can't tell whether the repo exists", Err: err}
	}
	if !exists {
		return Errorf(CodeNotFound, "Repo not found")
	}
	return nil
}

// EventTypes returns the event types that can be dispatched, [EventPing] last.
func (d *Dispatcher) EventTypes() []string { return append(slices.Clone(d.cfg.EventTypes), EventPing) }

// Catalogue returns the event types that events can be dispatched with, with what [Config.Catalogue] says of each. Nobody may modify what it refers to.
func (d *Dispatcher) Catalogue() []EventType {
	types := make([]EventType, len(d.cfg.EventTypes))
	for i, name := range d.cfg.EventTypes {
		types[i].Name = name
		for _, t := range d.cfg.Catalogue {
			if t.Name == name {
				types[i] = t
			}
		}
	}
	return types
}

func (d *Dispatcher) knows(eventType string) bool {
	return eventType == EventPing || slices.Contains(d.cfg.EventTypes, eventType)
}
