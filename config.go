package posthorn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/musehub/posthorn/internal/schema"
	"github.com/musehub/posthorn/internal/sender"
)

// Config configures a [Dispatcher]. Its zero value works.
type Config struct {
	// SecretKeys encrypt the signing secrets at rest: Fernet keys as `posthorn keys generate` prints them. The first
	// encrypts, all decrypt; see [Dispatcher.KeyStatus] for when the others can be removed. Defaults to the store's own key if it keeps one, as package sqlite does in a file beside
	// the database.
	SecretKeys []string

	// EventTypes are the types that may be dispatched and subscribed to, besides [EventPing] and [AllEvents].
	// Defaults to MuseHub's nine: [DefaultEventTypes].
	EventTypes []string

	// RetryPolicy says how often and when a failing delivery is attempted. Defaults to the policy "musehub".
	RetryPolicy *RetryPolicy

	// FinalStatuses are those of responses after which nothing is tried again. Defaults to none: every failure is, but for 410, which
	// disables the webhook.
	FinalStatuses Statuses

	// Timeout is how long one attempt may take, from the DNS look-up to the last byte of the response.
	// Defaults to 10 seconds.
	Timeout time.Duration

	// AllowTargets opens addresses that deliveries may otherwise not go to, such as private networks: IP addresses or
	// CIDR prefixes, each optionally with a port ("10.0.0.0/8", "127.0.0.1:9000", "[fd00::/8]:443").
	// The metadata services of clouds stay closed unless their exact address is named. Defaults to none.
	AllowTargets []string

	// OwnAddresses are where this program itself listens. They stay closed unless AllowTargets names exactly that address
	// and port. An unspecified address (0.0.0.0, ::) stands for all that the machine has. Defaults to none.
	OwnAddresses []netip.AddrPort

	// NAT64 are the prefixes under which the network translates IPv6 to IPv4, such as "64:ff9b::/96" (RFC 6052). An
	// address under one is judged by the IPv4 address in it. Defaults to none.
	NAT64 []string

	// HTTPSOnly refuses webhooks whose URL is not https; deliveries of those that there are fail.
	HTTPSOnly bool
	// RootCAs is who signs receivers' certificates, which are always verified. Defaults to the system's.
	RootCAs *x509.CertPool
	// MinTLSVersion is tls.VersionTLS12, which it defaults to, or tls.VersionTLS13.
	MinTLSVersion uint16
	// ClientCertificate is shown to receivers that ask for one. Defaults to none.
	ClientCertificate *tls.Certificate

	// Catalogue describes types of events: some of EventTypes or, if that is nil, all there are. Defaults to none.
	Catalogue []EventType
	// EnforceSchemas refuses payloads that are not as the Schema of their type says. A type without one takes any.
	EnforceSchemas bool

	// EgressProxy is the URL of a proxy that all deliveries go through: http://, https:// or socks5://, with user and password if
	// it wants them. Names are looked up and addresses judged by this program all the same, and the proxy is told the address.
	// Defaults to none; proxies of the environment are never used.
	EgressProxy string

	// Resolver looks up the hosts of webhooks, without search domains, and not that of EgressProxy. Defaults to the system's.
	Resolver *net.Resolver

	// MaxPayload is how many bytes an event's payload may have. Defaults to 1 MiB; at most 25 MiB.
	MaxPayload int

	// MaxInFlight is how many requests may be under way at once. Defaults to 1024; at most 1,048,576, as the next two.
	MaxInFlight int
	// MaxInFlightPerWebhook is how many of them may be to one webhook at most. Within that, each webhook gets what it can
	// take: one at first, more as long as it answers as soon as it used to. Defaults to 64.
	MaxInFlightPerWebhook int
	// MaxQueued is how many entries of one webhook are held in memory. What is queued beyond that waits in the store.
	// Defaults to 1024.
	MaxQueued int
	// MaxQueuedBytes is how many bytes of payload are held in memory in all. Defaults to 64 MiB; at most 1 TiB.
	MaxQueuedBytes int

	// Retention is how long events and deliveries are kept. Defaults to 30 days.
	Retention time.Duration

	// DisableAfter is for how long all attempts must have failed, of at least 20 events, before a webhook is disabled. Defaults to
	// 5 days; negative: never.
	DisableAfter time.Duration
	// SystemRepo is the repo whose webhooks get the operational events that they subscribe to ([OperationalEvents]), about the
	// webhooks of all repos. Nobody but an operator should be able to make webhooks in it. Defaults to none.
	SystemRepo string

	// KeepAllEvents stores events that no webhook wants, too, for replays to webhooks that are made later ([Dispatcher.StartReplay]). They
	// take space for as long as Retention says. Defaults to not storing them.
	KeepAllEvents bool

	// MaxWebhooksPerRepo is how many webhooks a repo may have. Several nodes that create at the same moment may exceed it by
	// one each. Defaults to 10,000.
	MaxWebhooksPerRepo int

	// AuditRetention is how long entries of the audit log are kept. Defaults to 365 days.
	AuditRetention time.Duration

	// Brand is the middle of the header names X-MuseHub-Event, X-MuseHub-Delivery and X-MuseHub-Signature.
	// Defaults to "MuseHub".
	Brand string
	// UserAgent is sent with every request. Defaults to "MuseHub-Webhook/1.0".
	UserAgent string

	// Logger takes what an operator should know. Defaults to slog.Default(). Of a receiver that sends more than its answer,
	// net/http tells package log, with up to 4 KiB of it, where the receiver may have put what the request had in it:
	// log.SetOutput decides where that goes.
	Logger *slog.Logger

	// RepoExists tells whether the host knows a repo; where it says no, or fails, so does the call that named the repo. Only
	// AuditLog doesn't ask: what was done in a repo that is gone can still be read. Defaults to every repo existing.
	RepoExists func(ctx context.Context, repoID string) (bool, error)

	// OnDelivery is called after each delivery has been recorded, one call at a time and in the order of the log. It
	// runs on the goroutine that commits: while it runs nothing else is recorded or accepted, and it must not itself call
	// Dispatch, Ping, Stop or a Redelivery's Wait, which wait for that goroutine. Defaults to nothing.
	OnDelivery func(Delivery)
}

// EventType describes a type of events to those who subscribe to it.
type EventType struct {
	Name        string            `json:"name"`
	Description string            `json:"description,omitempty"`
	Schema      json.RawMessage   `json:"schema,omitempty"`   // what payloads look like, in JSON Schema: at most 64 KiB, with references to within itself only
	Examples    []json.RawMessage `json:"examples,omitempty"` // of payloads, which are as Schema says
}

// MaxPayloadLimit is the most that [Config.MaxPayload] can be.
const MaxPayloadLimit = 25 << 20

// DefaultEventTypes returns MuseHub's event types.
func DefaultEventTypes() []string {
	return []string{"push", "issue", "proposal", "pull_request", "release", "branch", "tag", "session", "analysis"}
}

// withDefaults returns the configuration with its defaults filled in, or an error that names the field at fault.
func (c Config) withDefaults() (Config, error) {
	setDefault(&c.Timeout, 10*time.Second)
	setDefault(&c.MaxPayload, 1<<20)
	setDefault(&c.MaxInFlight, 1024)
	setDefault(&c.MaxInFlightPerWebhook, 64)
	setDefault(&c.MaxQueued, 1024)
	setDefault(&c.MaxQueuedBytes, 64<<20)
	setDefault(&c.Retention, 30*24*time.Hour)
	setDefault(&c.DisableAfter, 5*24*time.Hour)
	setDefault(&c.MaxWebhooksPerRepo, 10_000)
	setDefault(&c.AuditRetention, 365*24*time.Hour)
	setDefault(&c.Brand, "MuseHub")
	setDefault(&c.UserAgent, "MuseHub-Webhook/1.0")
	setDefault(&c.Logger, slog.Default())
	if c.EventTypes == nil && len(c.Catalogue) > 0 {
		for _, t := range c.Catalogue {
			c.EventTypes = append(c.EventTypes, t.Name)
		}
	}
	if c.EventTypes == nil {
		c.EventTypes = DefaultEventTypes()
	}
	policy := retryPolicies["musehub"]
	if c.RetryPolicy != nil {
		policy = RetryPolicy{slices.Clone(c.RetryPolicy.Delays), c.RetryPolicy.Jitter}
	}
	c.RetryPolicy = &policy
	const most = 1 << 20 // of what is counted: several times as many must be a number, too
	for _, f := range []struct {
		name    string
		n, most int64
	}{
		{"Timeout", int64(c.Timeout), math.MaxInt64},
		{"MaxPayload", int64(c.MaxPayload), MaxPayloadLimit},
		{"MaxInFlight", int64(c.MaxInFlight), most},
		{"MaxInFlightPerWebhook", int64(c.MaxInFlightPerWebhook), most},
		{"MaxQueued", int64(c.MaxQueued), most},
		{"MaxQueuedBytes", int64(c.MaxQueuedBytes), 1 << 40},
		{"Retention", int64(c.Retention), math.MaxInt64},
		{"AuditRetention", int64(c.AuditRetention), math.MaxInt64},
		{"MaxWebhooksPerRepo", int64(c.MaxWebhooksPerRepo), math.MaxInt64},
	} {
		if f.n < 0 {
			return c, Errorf(CodeInvalid, "Config.%s is negative", f.name)
		}
		if f.n > f.most {
			return c, Errorf(CodeInvalid, "Config.%s is %d: the most is %d", f.name, f.n, f.most)
		}
	}
	for _, t := range c.EventTypes {
		if err := checkEventTypeName(t); err != nil {
			return c, Errorf(CodeInvalid, "Config.EventTypes: %w", err)
		}
	}
	c.EventTypes = slices.DeleteFunc(slices.Clone(c.EventTypes), func(t string) bool { return t == EventPing })
	if err := c.RetryPolicy.check(); err != nil {
		return c, Errorf(CodeInvalid, "Config.RetryPolicy: %w", err)
	}
	if err := c.FinalStatuses.Check(); err != nil {
		return c, Errorf(CodeInvalid, "Config.FinalStatuses: %w", err)
	}
	if !isToken(c.Brand) {
		return c, Errorf(CodeInvalid, "Config.Brand %q can't be part of a header's name: use letters, digits and '-'", c.Brand)
	}
	if !isHeaderValue(c.UserAgent) {
		return c, Errorf(CodeInvalid, "Config.UserAgent has a character that no header may have")
	}
	return c, nil
}

// schemas compiles the schemas of the catalogue, and holds its examples to them.
func (c Config) schemas() (map[string]*schema.Schema, error) {
	schemas := map[string]*schema.Schema{}
	seen := map[string]bool{}
	for _, t := range c.Catalogue {
		wrong := func(err error) error {
			return Errorf(CodeInvalid, "Config.Catalogue: event type %.128q: %w", t.Name, err)
		}
		if !slices.Contains(c.EventTypes, t.Name) {
			return nil, wrong(errors.New("it is none of Config.EventTypes"))
		}
		if seen[t.Name] {
			return nil, wrong(errors.New("it stands there twice"))
		}
		seen[t.Name] = true
		if t.Schema != nil {
			compiled, err := schema.Compile(t.Schema)
			if err != nil {
				return nil, wrong(err)
			}
			schemas[t.Name] = compiled
		}
		for i, example := range t.Examples {
			err := error(nil)
			if !json.Valid(example) {
				err = errors.New("it is not valid JSON")
			} else if s := schemas[t.Name]; s != nil {
				err = s.Check(example)
			}
			if err != nil {
				return nil, wrong(fmt.Errorf("examples[%d]: %w", i, err))
			}
		}
	}
	return schemas, nil
}

// sender returns what the sender is to be made with.
func (c Config) sender() (sender.Config, error) {
	cfg := sender.Config{
		Timeout: c.Timeout, OwnAddresses: slices.Clone(c.OwnAddresses), Resolver: c.Resolver,
		HTTPSOnly: c.HTTPSOnly, RootCAs: c.RootCAs, MinVersion: c.MinTLSVersion, Certificate: c.ClientCertificate,
	}
	if v := c.MinTLSVersion; v != 0 && v != tls.VersionTLS12 && v != tls.VersionTLS13 {
		return cfg, Errorf(CodeInvalid, "Config.MinTLSVersion is %#x: it is tls.VersionTLS12 or tls.VersionTLS13", v)
	}
	if c.EgressProxy != "" {
		var err error
		if cfg.Proxy, err = sender.ParseProxy(c.EgressProxy); err != nil {
			return cfg, Errorf(CodeInvalid, "Config.EgressProxy: %w", err)
		}
	}
	for _, s := range c.AllowTargets {
		t, err := sender.ParseTarget(s)
		if err != nil {
			return cfg, Errorf(CodeInvalid, "Config.AllowTargets: %w", err)
		}
		cfg.AllowTargets = append(cfg.AllowTargets, t)
	}
	for _, s := range c.NAT64 {
		p, err := sender.ParseNAT64(s)
		if err != nil {
			return cfg, Errorf(CodeInvalid, "Config.NAT64: %w", err)
		}
		cfg.NAT64 = append(cfg.NAT64, p)
	}
	return cfg, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// checkEventTypeName refuses names that could not be sent in a header or that mean something else.
func checkEventTypeName(name string) error {
	if name == "" || len(name) > 128 {
		return fmt.Errorf("%q: an event type has 1 to 128 characters", name)
	}
	for _, r := range name {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-' || r == '.' || r == ':') {
			return fmt.Errorf("%q: an event type has only letters, digits, '_', '-', '.' and ':'", name)
		}
	}
	return nil
}

func isToken(s string) bool {
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-') {
			return false
		}
	}
	return s != ""
}

func isHeaderValue(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' && s[i] != '\t' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// limits are those of a node.
type limits struct {
	inFlight, perWebhook int
	queued, bytes        int
}

type usage struct{ inFlight, bytes int }

// maxUnrecorded is how many results may wait to be committed before no more attempts start.
func (l limits) maxUnrecorded() int { return 4 * l.inFlight }

// fewUnrecorded is how many may wait before webhooks that have requests in flight start no more: as many as keep the store
// busy, with a full batch that is being committed while the next one gathers. To send more would be no quicker, because these
// have to be recorded, too; and who has nothing in flight shall not wait behind them for the store and the processors.
func (l limits) fewUnrecorded() int { return min(maxBatchResults, l.maxUnrecorded()/2) }
