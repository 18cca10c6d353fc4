package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"github.com/musehub/posthorn/postgres"
)

type migrateCmd struct {
	Up     migrateUpCmd     `cmd:"" help:"Run the migrations that a PostgreSQL database doesn't have yet."`
	Status migrateStatusCmd `cmd:"" help:"List the migrations, and when a PostgreSQL database got them."`
}

// migrateFlags are those of both commands.
type migrateFlags struct{ databaseFlags }

// Validate refuses what is no PostgreSQL.
func (f *migrateFlags) Validate() error {
	if f.Database == "" {
		return errors.New("missing --database or POSTHORN_DATABASE, the URL of a PostgreSQL such as postgres://USER@HOST/NAME")
	}
	if err := f.check(); err != nil {
		return err
	}
	if !f.onPostgres() {
		return errors.New("--database is a SQLite file: posthorn serve migrates it by itself")
	}
	return nil
}

type migrateUpCmd struct{ migrateFlags }

// Help is what --help shows below the summary.
func (*migrateUpCmd) Help() string {
	return `Makes the schema where there is none. Servers of this version and of the one before may be running meanwhile, and several
of these commands at once: one of them migrates, the others wait for it.

    POSTHORN_DATABASE=postgres://posthorn:…@db.example.com/posthorn posthorn migrate up

"posthorn serve --migrate" does the same before it serves.`
}

// Run migrates.
func (c *migrateUpCmd) Run() error {
	ctx, stop := untilSignal()
	defer stop()
	before, err := c.status(ctx)
	if err != nil {
		return err
	}
	if err := postgres.Migrate(ctx, c.Database, c.config()); err != nil {
		return err
	}
	before = slices.DeleteFunc(before, func(m postgres.Migration) bool { return !m.AppliedAt.IsZero() })
	for _, m := range before {
		fmt.Println("ran", m.Name)
	}
	if len(before) == 0 {
		fmt.Println("nothing to do: the database has all migrations")
	}
	return nil
}

type migrateStatusCmd struct{ migrateFlags }

// Run prints a table.
func (c *migrateStatusCmd) Run() error {
	ctx, stop := untilSignal()
	defer stop()
	migrations, err := c.status(ctx)
	if err != nil {
		return err
	}
	var rows [][]string
	for _, m := range migrations {
		name := cmp.Or(m.Name, "(of a newer Posthorn)")
		at := cmp.Or(timestamp(m.AppliedAt), "pending")
		rows = append(rows, []string{strconv.FormatInt(m.Version, 10), name, at})
	}
	return table(os.Stdout, []string{"VERSION", "NAME", "APPLIED AT"}, rows)
}

func (f *migrateFlags) status(ctx context.Context) ([]postgres.Migration, error) {
	return postgres.Status(ctx, f.Database, f.config())
}

func (f *migrateFlags) config() postgres.Config {
	return postgres.Config{Schema: f.DatabaseSchema}
}
