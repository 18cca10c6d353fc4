package main

import (
	"context"
	"database/sql"
	"errors"
	"strings"

	_ "github.com/jackc/pgx/v5/stdlib" // the database/sql driver "pgx"
	"github.com/musehub/posthorn/postgres"
	"github.com/musehub/posthorn/sqlite"
	_ "modernc.org/sqlite" // the database/sql driver "sqlite"
)

// openDatabase opens one database for the shop and for Posthorn, each with connections of its own.
func openDatabase(ctx context.Context, database string) (*shop, error) {
	if strings.HasPrefix(database, "postgres://") || strings.HasPrefix(database, "postgresql://") {
		return openPostgres(ctx, database)
	}
	return openSQLite(ctx, database)
}

// openSQLite opens a file. The documentation of sqlite.Open says why it has to be this driver, and what the settings are for.
func openSQLite(ctx context.Context, path string) (*shop, error) {
	store, err := sqlite.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate&_pragma=busy_timeout(10000)")
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return &shop{db: db, store: store, outbox: store.Tx}, nil
}

// openPostgres opens a database in which Posthorn's tables have a schema of their own. It uses database/sql so that this program is
// the same for both; with pgx itself, store.Tx makes of a pgx.Tx what store.SQLTx makes of a *sql.Tx.
func openPostgres(ctx context.Context, url string) (*shop, error) {
	if err := postgres.Migrate(ctx, url, postgres.Config{}); err != nil {
		return nil, err
	}
	store, err := postgres.Open(ctx, url, postgres.Config{})
	if err != nil {
		return nil, err
	}
	db, err := sql.Open("pgx", url)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return &shop{db: db, store: store, outbox: store.SQLTx}, nil
}
