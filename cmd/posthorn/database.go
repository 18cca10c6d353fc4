package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/postgres"
	"github.com/musehub/posthorn/sqlite"
)

// databaseFlags say where the database is.
type databaseFlags struct {
	Database       string `group:"database" placeholder:"URL|FILE" help:"URL of a PostgreSQL, such as postgres://USER@HOST/NAME, or path of a SQLite file. A URL with a password is better given in the environment, since ps shows flags."`
	DatabaseSchema string `group:"database" placeholder:"NAME" help:"Schema of Posthorn's tables on PostgreSQL, so that it can share a database (default ${database_schema})."`
}

// onPostgres reports whether the database is a PostgreSQL.
func (f databaseFlags) onPostgres() bool {
	return strings.HasPrefix(f.Database, "postgres://") || strings.HasPrefix(f.Database, "postgresql://")
}

// notAPath matches what nobody means as the path of a file: a scheme, of more than one letter since Windows has drives, and
// the keywords of PostgreSQL's own connection strings.
var notAPath = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]+):|^\s*\w+\s*=`)

// check refuses what is no database that there is a store for. Its errors show no more of a URL than the scheme.
func (f databaseFlags) check() error {
	if f.onPostgres() {
		return nil
	}
	if found := notAPath.FindStringSubmatch(f.Database); found != nil {
		if found[1] == "" {
			return errors.New("--database is neither the URL of a PostgreSQL, such as postgres://USER@HOST/NAME, nor the path of a SQLite file")
		}
		return fmt.Errorf("--database: there is no store for %q: give the URL of a PostgreSQL, such as postgres://USER@HOST/NAME, or just the path of a SQLite file", found[1]+":")
	}
	if f.DatabaseSchema != "" {
		return errors.New("--database-schema goes with the URL of a PostgreSQL as --database")
	}
	return nil
}

// where names a PostgreSQL database for the log: without a password.
func (f databaseFlags) where() []any {
	schema := cmp.Or(f.DatabaseSchema, postgres.DefaultSchema)
	cfg, err := pgx.ParseConfig(f.Database)
	if err != nil {
		return []any{"schema", schema}
	}
	hosts := []string{address(cfg.Host, cfg.Port)}
	for _, other := range cfg.Fallbacks { // the same again without TLS, and whatever other hosts the URL has
		if host := address(other.Host, other.Port); !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	return []any{"host", strings.Join(hosts, ","), "database", cfg.Database, "schema", schema}
}

func address(host string, port uint16) string {
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

// database is what a server opens.
type database struct {
	databaseFlags
	Migrate             bool `group:"database" help:"Run the migrations of a PostgreSQL database first, as posthorn migrate up does. A SQLite file's are always run."`
	DatabaseConnections int  `group:"database" placeholder:"N" help:"Connections to PostgreSQL that this server makes at most, besides one that listens (default ${database_connections})."`
}

// check refuses what can't be opened, or not by a server.
func (d database) check() error {
	if err := d.databaseFlags.check(); err != nil {
		return err
	}
	switch {
	case d.DatabaseConnections < 0:
		return errors.New("--database-connections must be more than zero")
	case d.DatabaseConnections > 0 && !d.onPostgres():
		return errors.New("--database-connections goes with the URL of a PostgreSQL as --database")
	case d.onPostgres() && len(secretKeys()) == 0:
		return errors.New("on PostgreSQL the keys that encrypt signing secrets come from the environment variable POSTHORN_SECRET_KEYS, " +
			"the same on every server, and it is not set: make a key with `posthorn keys generate`")
	}
	return nil
}

// file returns the absolute path of the SQLite file, or "" on PostgreSQL.
func (d database) file(data string) (string, error) {
	switch {
	case d.onPostgres():
		return "", nil
	case d.Database == "":
		return filepath.Join(data, "posthorn.db"), nil
	}
	return filepath.Abs(d.Database)
}

// open opens the store, on SQLite in that file.
func (d database) open(ctx context.Context, file string, logger *slog.Logger) (posthorn.Store, error) {
	if d.onPostgres() {
		return d.openPostgres(ctx, logger)
	}
	if d.Database == "" {
		if err := makeDataFolder(filepath.Dir(file)); err != nil {
			return nil, err
		}
	}
	store, err := sqlite.Open(ctx, file)
	if err != nil {
		return nil, err // not store: that would be a Store which is not nil
	}
	logger.Info("opened database", "file", file)
	return store, nil
}

func (d database) openPostgres(ctx context.Context, logger *slog.Logger) (posthorn.Store, error) {
	cfg := postgres.Config{Schema: d.DatabaseSchema, MaxConns: d.DatabaseConnections}
	if d.Migrate {
		if err := postgres.Migrate(ctx, d.Database, cfg); err != nil {
			return nil, err
		}
	}
	store, err := postgres.Open(ctx, d.Database, cfg)
	if err != nil {
		return nil, err
	}
	logger.Info("opened database", d.where()...)
	return store, nil
}

func makeDataFolder(data string) error {
	if err := os.MkdirAll(data, 0o700); err != nil {
		return fmt.Errorf("make the data folder: %w", err)
	}
	return nil
}
