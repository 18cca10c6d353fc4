package postgres

import (
	"cmp"
	"context"
	"database/sql"
	"embed"
	"fmt"
	"hash/fnv"
	"io/fs"
	"path"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/musehub/posthorn"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// migrationsTable is goose's record of what the schema has. A name of our own, because the host may use goose in the same
// schema.
const migrationsTable = "posthorn_migrations"

// Migration is one step of the schema's history.
type Migration struct {
	Version   int64
	Name      string    // its file, "" where only a newer Posthorn knows it
	AppliedAt time.Time // zero: not yet
}

// Migrate brings the schema to this version, and makes it where there is none. Of several nodes that do so at once, one does
// it and the others wait. Nodes of the version before go on working. A schema of a newer version is left as it is, without
// an error: [Open] decides.
func Migrate(ctx context.Context, url string, cfg Config) (err error) {
	d, err := parse(url, cfg)
	if err != nil {
		return err
	}
	db := d.openForMigration()
	defer func() {
		if e := db.Close(); err == nil {
			err = d.fault(ctx, e)
		}
	}()
	if err := d.createSchema(ctx, db); err != nil {
		return d.fault(ctx, fmt.Errorf("create schema %q: %w", d.schema, err))
	}
	files, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		return d.fault(ctx, err)
	}
	// The lock is per schema, and asked for every second for as long as the longest migration may take.
	id := fnv.New64a()
	id.Write([]byte("posthorn migrations " + d.schema))
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockID(int64(id.Sum64())), lock.WithLockTimeout(1, 3600))
	if err != nil {
		return d.fault(ctx, err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithTableName(migrationsTable), goose.WithSessionLocker(locker), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return d.fault(ctx, err)
	}
	if _, err := provider.Up(ctx); err != nil {
		return d.fault(ctx, fmt.Errorf("migrate: %w", err))
	}
	return nil
}

// openForMigration opens the database for goose. The migrations name tables without a schema: the search path has it.
func (d *database) openForMigration() *sql.DB {
	conn := d.pool.ConnConfig.Copy()
	conn.RuntimeParams["search_path"] = pgx.Identifier{d.schema}.Sanitize()
	conn.RuntimeParams["TimeZone"] = "UTC" // goose's times have none
	return stdlib.OpenDB(*conn)
}

// createSchema makes the schema if it isn't there. It looks first, because IF NOT EXISTS needs the permission to create one
// all the same.
func (d *database) createSchema(ctx context.Context, db *sql.DB) error {
	exists := false
	err := db.QueryRowContext(ctx, "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)", d.schema).Scan(&exists)
	if err != nil || exists {
		return err
	}
	_, err = db.ExecContext(ctx, "CREATE SCHEMA IF NOT EXISTS "+pgx.Identifier{d.schema}.Sanitize())
	if state := sqlState(err); state == "23505" || state == "42P06" {
		return nil // another node was faster
	}
	return err
}

// Status returns the migrations that this version has, and those of newer ones that the schema has, in their order. It
// changes nothing.
func Status(ctx context.Context, url string, cfg Config) (_ []Migration, err error) {
	d, err := parse(url, cfg)
	if err != nil {
		return nil, err
	}
	migrations, err := known()
	if err != nil {
		return nil, d.fault(ctx, err)
	}
	bounded, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(bounded, d.pool.ConnConfig)
	if err != nil {
		return nil, d.fault(ctx, err)
	}
	defer func() { _ = conn.Close(bounded) }() // nothing was written
	rows, err := conn.Query(bounded, newNames(d.schema).sql(
		"SELECT version_id, max(tstamp) FROM posthorn."+migrationsTable+" WHERE is_applied AND version_id > 0 GROUP BY 1"))
	if err == nil {
		var version int64
		var at time.Time
		_, err = pgx.ForEachRow(rows, []any{&version, &at}, func() error {
			i := slices.IndexFunc(migrations, func(m Migration) bool { return m.Version == version })
			if i < 0 {
				i = len(migrations)
				migrations = append(migrations, Migration{Version: version})
			}
			migrations[i].AppliedAt = at.UTC()
			return nil
		})
	}
	if err != nil && !isMissing(err) {
		return nil, d.fault(ctx, err)
	}
	slices.SortFunc(migrations, func(a, b Migration) int { return cmp.Compare(a.Version, b.Version) })
	return migrations, nil
}

// known returns the migrations of this version.
func known() ([]Migration, error) {
	files, err := fs.Glob(migrationFiles, "migrations/*.sql")
	if err != nil {
		return nil, err
	}
	migrations := make([]Migration, len(files))
	for i, file := range files {
		version, err := goose.NumericComponent(file)
		if err != nil {
			return nil, err
		}
		migrations[i] = Migration{Version: version, Name: path.Base(file)}
	}
	return migrations, nil
}

func newestVersion() (int64, error) {
	migrations, err := known()
	if err != nil {
		return 0, posthorn.Errorf(posthorn.CodeInternal, "migrations: %w", err)
	}
	return migrations[len(migrations)-1].Version, nil
}

// schemaVersion returns the newest migration that the schema has, zero where there is none.
func schemaVersion(ctx context.Context, conn *pgx.Conn, n *names) (version int64, err error) {
	err = conn.QueryRow(ctx, n.sql("SELECT coalesce(max(version_id), 0) FROM posthorn."+migrationsTable+" WHERE is_applied")).Scan(&version)
	if isMissing(err) {
		return 0, nil
	}
	return version, err
}

// isMissing reports whether an error says that there is no such table or schema.
func isMissing(err error) bool {
	state := sqlState(err)
	return state == "42P01" || state == "3F000"
}

// checkVersion decides whether this version, whose newest migration is given, works on a schema. One migration behind is
// tolerated: a new node may start before or beside those that it replaces.
func checkVersion(schema string, has, newest int64) error {
	switch {
	case has > newest:
		return posthorn.Errorf(posthorn.CodeUnavailable,
			"schema %q has version %d and this Posthorn knows versions up to %d: it was migrated by a newer Posthorn, so upgrade this one", schema, has, newest)
	case has <= 0:
		return posthorn.Errorf(posthorn.CodeUnavailable,
			"schema %q has no tables of Posthorn's: run posthorn migrate up, or serve --migrate", schema)
	case has < newest-1:
		return posthorn.Errorf(posthorn.CodeUnavailable,
			"schema %q has version %d and this Posthorn needs %d: run posthorn migrate up, or serve --migrate", schema, has, newest)
	}
	return nil
}
