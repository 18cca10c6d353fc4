package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"net/url"
	"path/filepath"

	"github.com/musehub/posthorn"
	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the database/sql driver that migrations run on
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// migrationsTable is goose's record of what the file has. A name of our own, because the host may use goose too.
const migrationsTable = "posthorn_migrations"

// migrate brings the file to this version's schema.
func (s *Store) migrate(ctx context.Context) (err error) {
	db, err := sql.Open("sqlite", migrationDSN(s.path))
	if err != nil {
		return s.fault(ctx, err)
	}
	db.SetMaxOpenConns(1)
	defer func() {
		if e := db.Close(); err == nil && e != nil {
			err = s.fault(ctx, e)
		}
	}()
	if _, err := db.ExecContext(ctx, "PRAGMA page_size = 8192; PRAGMA journal_mode = WAL"); err != nil {
		return s.fault(ctx, err)
	}
	files, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, files,
		goose.WithTableName(migrationsTable), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return posthorn.Errorf(posthorn.CodeInternal, "migrations: %w", err)
	}
	has, newest, err := provider.GetVersions(ctx)
	if err != nil {
		return s.fault(ctx, err)
	}
	if has > newest {
		return posthorn.Errorf(posthorn.CodeUnavailable,
			"%s has schema version %d and this Posthorn knows versions up to %d: it was written by a newer Posthorn", s.name, has, newest)
	}
	if _, err := provider.Up(ctx); err != nil {
		return s.fault(ctx, fmt.Errorf("migrate: %w", err))
	}
	return nil
}

// migrationDSN is the driver's URI for a path, in which '?', '#' and '%' are data.
func migrationDSN(path string) string {
	path = filepath.ToSlash(path)
	if path[0] != '/' {
		path = "/" + path // a Windows drive
	}
	uri := url.URL{Scheme: "file", Path: path, RawQuery: fmt.Sprintf(
		"_pragma=busy_timeout(%d)&_pragma=synchronous(full)", busyTimeout.Milliseconds())}
	return uri.String()
}
