package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/httpapi"
	"github.com/musehub/posthorn/internal/bench"
	"github.com/musehub/posthorn/internal/secretbox"
)

type benchCmd struct {
	Database   string        `placeholder:"URL|FILE" help:"URL of a PostgreSQL, on which the schema posthorn_bench is made and dropped, or path of a SQLite file, which is made and removed. Defaults to a file in a temporary folder."`
	Only       []string      `env:"-" placeholder:"NAME,…" help:"Scenarios to run: ${bench_scenarios} (default all). bare, which the others are compared with, always is."`
	Rounds     int           `env:"-" default:"5" placeholder:"N" help:"How many slices each scenario gets (default ${default})."`
	Slice      time.Duration `env:"-" default:"2s" placeholder:"DURATION" help:"How long a slice takes, about (default ${default})."`
	Large      bool          `env:"-" help:"Measure the scenario growth too, which fills the store with 10 million deliveries and 1 million webhooks, and take 10 million entries for backlog. That takes an hour or two, and 30 GB of disk."`
	JSON       bool          `env:"-" name:"json" help:"Print one JSON document instead of a table."`
	CPUProfile string        `env:"-" name:"cpuprofile" type:"path" placeholder:"FILE" help:"Write a CPU profile of the scenario dispatch, for go tool pprof. Rounds after the first get a number behind the name."`

	// These make it small enough for a test.
	Backlog       int `env:"-" hidden:"" default:"0"`
	Unrecorded    int `env:"-" hidden:"" default:"4096"`
	Webhooks      int `env:"-" hidden:"" default:"10000"`
	LargeRows     int `env:"-" hidden:"" default:"10000000"`
	LargeWebhooks int `env:"-" hidden:"" default:"1000000"`
}

// Help is what --help shows below the summary.
func (*benchCmd) Help() string {
	return `Measures throughput, latency and what becomes of them with many webhooks, bad receivers and backlogs, in four or five minutes.
It needs nothing and leaves nothing: the receiver, and the client of the REST API, are processes of their own on this
machine.

    posthorn bench
    posthorn bench --only dispatch,latency --database /mnt/disk/bench.db
    POSTHORN_DATABASE=postgres://posthorn:…@localhost/posthorn posthorn bench

docs/benchmark.md says what each scenario measures. Ratios to "bare" say what Posthorn costs beside nothing but sending.
Other work on the machine spoils the figures.`
}

// Validate refuses what can be known to be wrong.
func (c *benchCmd) Validate() error {
	if err := (databaseFlags{Database: c.Database}).check(); err != nil {
		return err
	}
	for _, name := range c.Only {
		if !slices.Contains(bench.Scenarios(), name) {
			return fmt.Errorf("--only: there is no scenario %q: they are %s", name, strings.Join(bench.Scenarios(), ", "))
		}
	}
	switch {
	case c.Rounds < 1:
		return errors.New("--rounds must be more than zero")
	case c.Slice <= 0:
		return errors.New("--slice must be more than zero")
	}
	return nil
}

// Run measures and prints.
func (c *benchCmd) Run() (err error) {
	limitMemory()
	ctx, stop := untilSignal()
	defer stop()
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	db, err := openBenchDatabase(ctx, c.Database)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.remove()) }()
	key, err := secretbox.GenerateKey()
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	opts := bench.Options{
		Store: db.store, SecretKeys: []string{key}, Logger: logger,
		Child: func(part string) *exec.Cmd { return exec.Command(self, "bench-child", part) }, //nolint:gosec,noctx // this program itself; its input ends it
		API: func(d *posthorn.Dispatcher, token string) (http.Handler, error) {
			return httpapi.New(d, httpapi.Config{Token: token, Logger: logger})
		},
		Database: db.probe,
		Only:     c.Only, Rounds: c.Rounds, Slice: c.Slice,
		Unrecorded: c.Unrecorded, Backlog: c.Backlog, Webhooks: c.Webhooks, CPUProfile: c.CPUProfile,
	}
	if opts.Backlog == 0 {
		opts.Backlog = 100_000
		if c.Large {
			opts.Backlog = 10_000_000
		}
	}
	if c.Large {
		opts.GrowthRows, opts.GrowthWebhooks = c.LargeRows, c.LargeWebhooks
	}
	show := newBenchProgress(os.Stderr)
	opts.Progress = show.step
	report, err := bench.Run(ctx, opts)
	show.clear()
	if ctx.Err() != nil {
		return errors.New("interrupted before there were figures")
	}
	if err != nil {
		return err
	}
	report.Machine = bench.ThisMachine()
	report.Machine.Version, report.Machine.Store, report.Machine.FileSystem = buildVersion(), db.name, db.fileSystem
	if c.JSON {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		err = enc.Encode(report)
	} else {
		err = report.Print(os.Stdout)
	}
	return errors.Join(err, report.Failure())
}

// benchDatabase is the store of a benchmark, and what there is to know of it.
type benchDatabase struct {
	store      posthorn.Store
	name       string
	fileSystem string // "" where it isn't known
	probe      func(context.Context) (cpu time.Duration, wal int64)
	remove     func() error // closes the store and removes all that was made for it
}

func openBenchDatabase(ctx context.Context, where string) (benchDatabase, error) {
	if (databaseFlags{Database: where}).onPostgres() {
		return openBenchPostgres(ctx, where)
	}
	if where != "" {
		if _, err := os.Lstat(where); err == nil {
			return benchDatabase{}, fmt.Errorf("--database: there is a file %s already, and a benchmark must not fill it: name one that doesn't exist", where)
		}
		return openBenchSQLite(ctx, where, func() error { return removeSQLite(where) })
	}
	dir, err := os.MkdirTemp("", "posthorn-bench-")
	if err != nil {
		return benchDatabase{}, err
	}
	return openBenchSQLite(ctx, filepath.Join(dir, "posthorn.db"), func() error { return os.RemoveAll(dir) })
}

func openBenchSQLite(ctx context.Context, file string, remove func() error) (benchDatabase, error) {
	db := benchDatabase{name: "SQLite", fileSystem: bench.FileSystem(filepath.Dir(file))}
	if db.fileSystem == "tmpfs" {
		fmt.Fprintf(os.Stderr, "posthorn: %s is in memory (tmpfs), where it costs nothing to make data durable: name a file on a disk with --database, or another folder with TMPDIR\n",
			filepath.Dir(file))
	}
	store, err := database{databaseFlags: databaseFlags{Database: file}}.open(ctx, file, slog.New(slog.DiscardHandler))
	if err != nil {
		return db, errors.Join(err, remove())
	}
	db.store = store
	db.remove = func() error { return errors.Join(store.Close(), remove()) }
	return db, nil
}

// removeSQLite removes a database with the files beside it.
func removeSQLite(file string) error {
	for _, suffix := range []string{"-wal", "-shm", ".lock", ".key", ""} {
		if err := os.Remove(file + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// benchChildCmd is a process that a benchmark starts besides itself.
type benchChildCmd struct {
	Part string `arg:"" enum:"receiver,client"`
}

// Run plays the part until standard input ends, as it does with the process at its other end.
func (c *benchChildCmd) Run() error {
	signal.Ignore(os.Interrupt) // Ctrl-C reaches the whole group; the parent ends this one in its time
	limitMemory()
	play := map[string]func(io.Reader, io.Writer) error{"receiver": bench.RunReceiver, "client": bench.RunClient}
	return play[c.Part](os.Stdin, os.Stdout)
}
