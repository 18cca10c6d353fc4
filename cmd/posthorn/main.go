// Command posthorn delivers webhooks: it is the server, a client for its REST API, and the tools to try both out.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/bench"
	"github.com/musehub/posthorn/postgres"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// cli is the command line. Each command is a struct whose tags are its flags and their help, and whose Run runs it.
type cli struct {
	Serve   serveCmd   `cmd:"" group:"server" help:"Run the server."`
	Migrate migrateCmd `cmd:"" group:"server" help:"Bring a PostgreSQL database to this version's schema."`
	Demo    demoCmd    `cmd:"" group:"server" help:"Show everything at work in a minute, with nothing to set up."`

	Webhooks   webhooksCmd   `cmd:"" group:"client" help:"Create, list, change, delete and ping webhooks."`
	Secrets    secretsCmd    `cmd:"" group:"client" help:"List, rotate and revoke the secrets that sign the deliveries of a webhook."`
	Dispatch   dispatchCmd   `cmd:"" group:"client" help:"Dispatch an event to the webhooks of a repo that subscribe to it."`
	Deliveries deliveriesCmd `cmd:"" group:"client" help:"List, show, follow and repeat deliveries."`
	Replays    replaysCmd    `cmd:"" group:"client" help:"Send past events to a webhook, again or for the first time."`
	Events     eventsCmd     `cmd:"" group:"client" help:"List and show events."`
	CheckURL   checkURLCmd   `cmd:"" name:"check-url" group:"client" help:"Say whether the server would send to a URL, and which rule decides."`
	Tokens     tokensCmd     `cmd:"" group:"client" help:"Create, list and revoke tokens for the REST API."`
	Audit      auditCmd      `cmd:"" group:"client" help:"List who changed what, and when."`
	Poll       pollCmd       `cmd:"" group:"client" help:"Ask for the events of a webhook that is polled."`
	Why        whyCmd        `cmd:"" group:"client" help:"Explain why webhooks got an event or didn't."`
	FilterTest filterTestCmd `cmd:"" name:"filter-test" group:"client" help:"Say which past events the filter of a webhook would let through."`
	EventTypes eventTypesCmd `cmd:"" group:"client" help:"List the types of events that the server takes."`

	Listen  listenCmd  `cmd:"" group:"tools" help:"Receive webhooks on this machine and print them."`
	Sign    signCmd    `cmd:"" group:"tools" help:"Sign a body and print the headers."`
	Verify  verifyCmd  `cmd:"" group:"tools" help:"Check the signature of a request."`
	Bench   benchCmd   `cmd:"" group:"tools" help:"Measure throughput, latency and scale on this machine."`
	Keys    keysCmd    `cmd:"" group:"tools" help:"Keys that encrypt the signing secrets in the database."`
	Version versionCmd `cmd:"" group:"tools" help:"Print the version."`

	BenchChild benchChildCmd `cmd:"" hidden:""`
}

const description = `Posthorn delivers webhooks: it stores each event durably, POSTs it signed to every webhook that
subscribes to it, retries what fails, and keeps a log of every attempt.

New here? "posthorn demo" shows all of it in a minute, with nothing to set up.

Settings can come from the environment too: the help of each command names the variables.`

func main() {
	os.Exit(run(os.Args[1:]))
}

// newParser returns the parser of the command line.
func newParser() *kong.Kong {
	return kong.Must(&cli{}, // which panics if the tags above are wrong
		kong.Name("posthorn"),
		kong.Description(description),
		kong.DefaultEnvars("POSTHORN"),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 110}),
		kong.ExplicitGroups([]kong.Group{
			{Key: "server", Title: "Server:"},
			{Key: "database", Title: "Database:"},
			{Key: "deliveries", Title: "Deliveries:"},
			{Key: "limits", Title: "Limits:"},
			{Key: "access", Title: "JWTs, beside tokens of Posthorn's own:"},
			{Key: "client", Title: "Client of a running server:"},
			{Key: "connection", Title: "Connection and output:"},
			{Key: "tools", Title: "Tools:"},
		}),
		kong.Vars{
			"bench_scenarios":      strings.Join(bench.Scenarios(), ", "),
			"event_types":          strings.Join(posthorn.DefaultEventTypes(), ","),
			"database_connections": strconv.Itoa(postgres.DefaultMaxConns),
			"database_schema":      postgres.DefaultSchema,
		},
	)
}

// run runs one command line and returns the exit code.
func run(args []string) int {
	parser := newParser()
	dropEmptyVariables()
	if len(args) == 0 {
		args = []string{"--help"}
	}
	command, err := parser.Parse(args)
	if err != nil {
		return usageError(err)
	}
	if err := command.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "posthorn:", err)
		return exitFailure
	}
	return exitOK
}

// dropEmptyVariables makes empty variables count as unset, as they come from files that pass on what isn't there.
func dropEmptyVariables() {
	for _, variable := range os.Environ() {
		if name, value, _ := strings.Cut(variable, "="); value == "" && strings.HasPrefix(name, "POSTHORN_") {
			os.Unsetenv(name)
		}
	}
}

// usageError says what is wrong with a command line and where its help is.
func usageError(err error) int {
	help := "posthorn --help"
	if parse, ok := errors.AsType[*kong.ParseError](err); ok && parse.Context != nil {
		if node := parse.Context.Selected(); node != nil {
			help = node.FullPath() + " --help"
		}
	}
	fmt.Fprintf(os.Stderr, "posthorn: %v\nTry: %s\n", err, help)
	return exitUsage
}

// untilSignal returns a context that ends with the first signal to stop: Ctrl-C, SIGTERM, or that the terminal was closed.
// The second one ends the process at once.
func untilSignal() (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // as it is under nohup
		signal.Notify(signals, syscall.SIGHUP)
	}
	go func() {
		select {
		case <-signals:
			cancel()
		case <-ctx.Done():
			return
		}
		<-signals
		os.Exit(exitFailure)
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel()
	}
}

// unlessDone returns err unless it comes from a context that has ended as it should.
func unlessDone(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return nil
}
