package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musehub/posthorn/internal/bench"
	"github.com/musehub/posthorn/postgres"
)

// benchSchema is made for a benchmark and dropped at its end, and so must not be there before.
const benchSchema = "posthorn_bench"

const dropBenchSchema = "DROP SCHEMA " + benchSchema + " CASCADE"

func openBenchPostgres(ctx context.Context, url string) (_ benchDatabase, err error) {
	// It knows how to say what is wrong without quoting the URL, which may have a password.
	if _, err := postgres.Status(ctx, url, postgres.Config{Schema: benchSchema}); err != nil {
		return benchDatabase{}, err
	}
	cfg, err := pgxpool.ParseConfig(url) // which takes the pool's parameters out
	if err != nil {
		return benchDatabase{}, errors.New("--database: the URL is malformed")
	}
	conn, err := pgx.ConnectConfig(ctx, cfg.ConnConfig)
	if err != nil {
		return benchDatabase{}, err
	}
	undo := func() error { return nil }
	remove := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // Ctrl-C has ended the other one
		defer cancel()
		return errors.Join(undo(), conn.Close(ctx))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, remove())
		}
	}()
	exists, pid := false, 0
	err = conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1), pg_backend_pid()", benchSchema).Scan(&exists, &pid)
	if err != nil {
		return benchDatabase{}, err
	}
	if exists {
		return benchDatabase{}, fmt.Errorf("--database: there is a schema %s already: another benchmark runs, or one was killed; then drop it: %s",
			benchSchema, dropBenchSchema)
	}
	undo = func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		if _, err := conn.Exec(ctx, "DROP SCHEMA IF EXISTS "+benchSchema+" CASCADE"); err != nil {
			return fmt.Errorf("the schema of the benchmark could not be dropped: do that yourself: %s: %w", dropBenchSchema, err)
		}
		return nil
	}
	flags := database{databaseFlags: databaseFlags{Database: url, DatabaseSchema: benchSchema}, Migrate: true}
	store, err := flags.openPostgres(ctx, slog.New(slog.DiscardHandler))
	if err != nil {
		return benchDatabase{}, err
	}
	db := benchDatabase{
		store: store,
		name:  "PostgreSQL " + conn.PgConn().ParameterStatus("server_version") + ", " + fmt.Sprint(postgres.DefaultMaxConns) + " connections",
		probe: func(ctx context.Context) (time.Duration, int64) {
			wal := int64(-1)
			if conn.QueryRow(ctx, "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint").Scan(&wal) != nil {
				wal = -1
			}
			return bench.FamilyCPU(pid, "postgres"), wal
		},
		remove: func() error { return errors.Join(store.Close(), remove()) },
	}
	return db, nil
}
