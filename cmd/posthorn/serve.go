package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/sender"
)

type serveCmd struct {
	Listen          string        `group:"server" default:"127.0.0.1:8080" placeholder:"HOST:PORT" help:"Where the REST API listens (default ${default}). Port 0 takes a free one."`
	Data            string        `group:"server" default:"./posthorn-data" placeholder:"DIR" help:"Folder of the database posthorn.db and its key file, unless --database names another, and of the admin token (default ${default}). It is made when it is needed."`
	AdminToken      string        `group:"server" placeholder:"TOKEN" help:"Bearer token that the REST API asks for. Without it, the one in the file admin-token of the data folder counts, which the first start makes."`
	ShutdownTimeout time.Duration `group:"server" default:"30s" placeholder:"DURATION" help:"How long what is under way may take to finish after SIGTERM (default ${default})."`
	LogFormat       string        `group:"server" default:"auto" enum:"auto,text,json" placeholder:"FORMAT" help:"Format of the log on stderr: text, json or auto, which is text on a terminal and JSON elsewhere (default ${default})."`
	LogLevel        slog.Level    `group:"server" default:"info" placeholder:"LEVEL" help:"Least level that is logged: debug, info, warn or error (default ${default})."`

	database

	AllowTarget []string `group:"deliveries" placeholder:"CIDR[:PORT]" help:"Network or address that deliveries may go to although it isn't public, such as 10.0.0.0/8 or 127.0.0.1:9000. Can be repeated."`
	NAT64       []string `group:"deliveries" name:"nat64" placeholder:"PREFIX" help:"Prefix under which the network translates IPv6 to IPv4, such as 64:ff9b::/96. An address under it is judged by the IPv4 address in it. Can be repeated."`
	EventTypes  []string `group:"deliveries" placeholder:"TYPE,…" help:"Event types that may be dispatched and subscribed to (default ${event_types})."`
	catalogueFlags
	RetryPolicy   string        `group:"deliveries" default:"musehub" placeholder:"POLICY" help:"When a failing delivery is attempted again: musehub (3 attempts within seconds), standard (10 over three days), none, or delays such as 5s,1m,2h±20%% (default ${default}). Webhooks can have their own."`
	FinalStatuses string        `group:"deliveries" placeholder:"STATUS,…" help:"Statuses after which nothing is tried again, such as 400-407,422 (default none). Webhooks can have their own."`
	Timeout       time.Duration `group:"deliveries" default:"10s" placeholder:"DURATION" help:"How long one attempt may take, from the DNS look-up to the last byte of the response (default ${default})."`
	Brand         string        `group:"deliveries" default:"MuseHub" placeholder:"NAME" help:"Middle of the header names X-MuseHub-Event, X-MuseHub-Delivery and X-MuseHub-Signature (default ${default})."`
	UserAgent     string        `group:"deliveries" default:"MuseHub-Webhook/1.0" placeholder:"TEXT" help:"User-Agent header of the requests (default ${default})."`

	DisableAfter          time.Duration `group:"limits" default:"120h" placeholder:"DURATION" help:"For how long all attempts must have failed, of at least 20 events, before a webhook is disabled; 0: never (default ${default})."`
	SystemRepo            string        `group:"deliveries" placeholder:"REPO" help:"Repo whose webhooks get the operational events that they subscribe to: webhook.failing, webhook.disabled, webhook.recovered, delivery.exhausted (default none)."`
	KeepAllEvents         bool          `group:"deliveries" help:"Store events that no webhook wants, too, so that they can be replayed to webhooks that are made later."`
	Retention             time.Duration `group:"limits" default:"720h" placeholder:"DURATION" help:"How long events and deliveries are kept (default ${default})."`
	AuditRetention        time.Duration `group:"limits" default:"8760h" placeholder:"DURATION" help:"How long entries of the audit log are kept (default ${default})."`
	MaxPayload            byteSize      `group:"limits" default:"1MiB" placeholder:"SIZE" help:"Size that an event's payload may have, at most 25MiB (default ${default})."`
	MaxInFlight           int           `group:"limits" default:"1024" placeholder:"N" help:"Requests that may be under way at once (default ${default})."`
	MaxWebhooksPerRepo    int           `group:"limits" default:"10000" placeholder:"N" help:"Webhooks that a repo may have (default ${default})."`
	MaxInFlightPerWebhook int           `group:"limits" default:"64" placeholder:"N" help:"How many of them may be to one webhook at most; each gets what it can take within that (default ${default})."`

	egress
	apiLimits
	jwtFlags
}

// Help is what --help shows below the summary.
func (*serveCmd) Help() string {
	return `The first start makes what it needs in the data folder and says where: the database, the key that encrypts the
signing secrets in it, and the admin token that clients send as "Authorization: Bearer …". Keep the key with your
backups: without it the secrets are lost.

    posthorn serve
    posthorn serve --allow-target 127.0.0.1:9000       # for trying out: see posthorn listen
    POSTHORN_LISTEN=0.0.0.0:8080 POSTHORN_DATA=/var/lib/posthorn posthorn serve

Several servers can work on one PostgreSQL: give all of them the same --database, admin token and encryption keys. There
is no key file then; whoever has the database doesn't have the secrets.

    export POSTHORN_DATABASE=postgres://posthorn@db.example.com/posthorn PGPASSWORD=…
    export POSTHORN_SECRET_KEYS=… POSTHORN_ADMIN_TOKEN=…    # a key: posthorn keys generate
    posthorn serve --migrate

Keep the password out of the command line, which ps shows: in POSTHORN_DATABASE, PGPASSWORD or the file ~/.pgpass.

Deliveries to private, loopback and otherwise special addresses are refused unless --allow-target names them, and those to
the server's own address unless it names exactly that address and port. Names are looked up without the machine's search
domains.

To keep the encryption keys elsewhere, pass them in the environment variable POSTHORN_SECRET_KEYS, separated by commas:
the first encrypts, all decrypt. MUSE_WEBHOOK_SECRET_KEY is taken too, when the other isn't set. A key has no flag, since
ps would show it; for the same reason, better give the admin token as POSTHORN_ADMIN_TOKEN.

SIGTERM or Ctrl-C stops the server: it takes no more events, lets the deliveries under way finish, and leaves the rest in
the database for the next start. A second one ends it at once; nothing is lost then either.

Unless GOGC and GOMEMLIMIT say otherwise, the garbage collector runs seldom below 112 MiB of memory, and often above.`
}

// Validate refuses what can be known to be wrong before anything is made on the disk.
func (c *serveCmd) Validate() error {
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return fmt.Errorf("--listen %q is not an address such as 127.0.0.1:8080", c.Listen)
	}
	for _, s := range c.AllowTarget {
		if _, err := sender.ParseTarget(s); err != nil {
			return fmt.Errorf("--allow-target: %w", err)
		}
	}
	for _, s := range c.NAT64 {
		if _, err := sender.ParseNAT64(s); err != nil {
			return fmt.Errorf("--nat64: %w", err)
		}
	}
	if _, err := posthorn.ParseRetryPolicy(c.RetryPolicy); err != nil {
		return fmt.Errorf("--retry-policy: %w", err)
	}
	if err := posthorn.Statuses(c.FinalStatuses).Check(); err != nil {
		return fmt.Errorf("--final-statuses: %w", err)
	}
	if c.MaxPayload < 1 || c.MaxPayload > posthorn.MaxPayloadLimit {
		return fmt.Errorf("--max-payload: %d bytes: it is between 1 byte and 25MiB", c.MaxPayload)
	}
	for flag, n := range map[string]int64{
		"timeout": int64(c.Timeout), "retention": int64(c.Retention), "audit-retention": int64(c.AuditRetention), "shutdown-timeout": int64(c.ShutdownTimeout),
		"max-webhooks-per-repo": int64(c.MaxWebhooksPerRepo), "max-in-flight": int64(c.MaxInFlight), "max-in-flight-per-webhook": int64(c.MaxInFlightPerWebhook),
	} {
		if n <= 0 {
			return fmt.Errorf("--%s must be more than zero", flag)
		}
	}
	if c.DisableAfter < 0 {
		return errors.New("--disable-after must not be negative; 0: never")
	}
	if err := c.egress.check(); err != nil {
		return err
	}
	if _, err := c.jwtFlags.authorizer(nil); err != nil {
		return err
	}
	if err := c.apiLimits.check(); err != nil {
		return err
	}
	if err := c.database.check(); err != nil {
		return err
	}
	return checkToken(c.AdminToken)
}

// Run serves until a signal comes.
func (c *serveCmd) Run() error {
	limitMemory()
	logger := c.logger()
	slog.SetDefault(logger)
	// What reaches package log in spite of that are kilobytes that a receiver sent after its answer, as net/http's client
	// shows them. They may have secrets of the request in them.
	log.SetOutput(io.Discard)
	policy, err := posthorn.ParseRetryPolicy(c.RetryPolicy)
	if err != nil {
		return err
	}
	authorizer, err := c.jwtFlags.authorizer(logger)
	if err != nil {
		return err
	}
	catalogue, err := c.catalogueFlags.read()
	if err != nil {
		return err
	}
	cfg := posthorn.Config{
		SecretKeys:            secretKeys(),
		EventTypes:            c.EventTypes,
		Catalogue:             catalogue,
		EnforceSchemas:        c.EnforceSchemas,
		RetryPolicy:           &policy,
		FinalStatuses:         posthorn.Statuses(c.FinalStatuses),
		Timeout:               c.Timeout,
		AllowTargets:          c.AllowTarget,
		NAT64:                 c.NAT64,
		MaxPayload:            int(c.MaxPayload),
		MaxInFlight:           c.MaxInFlight,
		MaxInFlightPerWebhook: c.MaxInFlightPerWebhook,
		DisableAfter:          cmp.Or(c.DisableAfter, -1),
		SystemRepo:            c.SystemRepo,
		KeepAllEvents:         c.KeepAllEvents,
		Retention:             c.Retention,
		AuditRetention:        c.AuditRetention,
		MaxWebhooksPerRepo:    c.MaxWebhooksPerRepo,
		Brand:                 c.Brand,
		UserAgent:             c.UserAgent,
		Logger:                logger,
	}
	if err := c.egress.apply(&cfg); err != nil {
		return err
	}
	ctx, stop := untilSignal()
	defer stop()

	d, err := startDaemon(ctx, daemonConfig{
		listen:   c.Listen,
		data:     c.Data,
		database: c.database,
		token:    c.AdminToken,
		limits:   c.apiLimits,
		access:   authorizer,
		logger:   logger,
		posthorn: cfg,
	})
	if err != nil {
		return err
	}

	var failed error
	select {
	case <-ctx.Done():
		logger.Info("stopping", "timeout", c.ShutdownTimeout.String())
	case failed = <-d.failed:
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.ShutdownTimeout)
	defer cancel()
	if err := errors.Join(failed, d.stop(drain)); err != nil {
		return err
	}
	logger.Info("stopped")
	return nil
}

func (c *serveCmd) logger() *slog.Logger {
	options := &slog.HandlerOptions{Level: c.LogLevel}
	if c.LogFormat == "text" || c.LogFormat == "auto" && term.IsTerminal(int(os.Stderr.Fd())) {
		return slog.New(slog.NewTextHandler(os.Stderr, options))
	}
	return slog.New(slog.NewJSONHandler(os.Stderr, options))
}

// secretKeys returns the keys of the environment, or none.
func secretKeys() []string {
	if s := os.Getenv("POSTHORN_SECRET_KEYS"); s != "" {
		keys := strings.Split(s, ",")
		for i, key := range keys {
			keys[i] = strings.TrimSpace(key)
		}
		return keys
	}
	if s := os.Getenv("MUSE_WEBHOOK_SECRET_KEY"); s != "" {
		return []string{s}
	}
	return nil
}

// limitMemory trades memory that a small process doesn't need to save for less work of the garbage collector.
func limitMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(112 << 20)
	}
}
