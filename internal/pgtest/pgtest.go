// Package pgtest gives tests a PostgreSQL: databases on a server that they
// share, and servers of their own to stop and kill. `make test` starts the
// shared one, with the command in the folder with.
package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// The environment that the tests look at.
const (
	// EnvURL is the URL of the shared server, for a user who may create databases.
	EnvURL = "POSTHORN_TEST_POSTGRES_URL"
	// EnvRequired, when set, fails the tests that would be skipped for want of a PostgreSQL.
	EnvRequired = "POSTHORN_TEST_POSTGRES_REQUIRED"
	// EnvDir is the folder for the servers of single tests, the system's temporary
	// folder if it isn't set. Whoever set it removes what a test that was killed left there.
	EnvDir = "POSTHORN_TEST_POSTGRES_DIR"
)

// dropTimeout is the limit for dropping a database. A test's own deadline is
// over by then, or far away.
const dropTimeout = 30 * time.Second

// URL creates an empty database on the shared server and returns its URL. The
// database is dropped when the test ends, whoever is still connected to it.
func URL(t testing.TB) string {
	t.Helper()
	server := os.Getenv(EnvURL)
	if server == "" {
		skip(t, "PostgreSQL is not tested: run `make test`, which starts one, or set "+EnvURL)
	}
	// Test binaries of several packages run at once, so a counter would not do.
	name := "posthorn_test_" + strings.ToLower(rand.Text())
	database, err := withDatabase(server, name)
	if err != nil {
		t.Fatalf("%s: %v", EnvURL, err)
	}
	// Everybody may connect to template1, and while anybody does it can't be copied.
	if err := execute(t.Context(), server, "CREATE DATABASE "+name+" TEMPLATE template0"); err != nil {
		t.Fatalf("creating a database for the test: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), dropTimeout)
		defer cancel()
		if err := execute(ctx, server, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Errorf("dropping the test's database: %v", err)
		}
	})
	return database
}

// StartCluster starts a server for this test alone, which the test may stop,
// kill and restart. It is stopped and removed when the test ends. Settings are
// PostgreSQL's, such as "max_connections=60".
func StartCluster(t testing.TB, settings ...string) *Cluster {
	t.Helper()
	if os.Getenv(EnvURL) == "" {
		skip(t, "PostgreSQL is not tested: run `make test`, which starts one, or set "+EnvURL)
	}
	dir, err := os.MkdirTemp(os.Getenv(EnvDir), "posthorn-pg-") //nolint:usetesting // the user that a server of root's runs as can't reach t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	c, err := NewCluster(t.Context(), dir, settings...)
	if errors.Is(err, ErrNotFound) {
		skip(t, "a test with a server of its own: "+err.Error())
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of PostgreSQL's log:\n%s", c.logTail())
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

func skip(t testing.TB, why string) {
	t.Helper()
	if os.Getenv(EnvRequired) != "" {
		t.Fatalf("%s (%s is set, so this fails instead of being skipped)", why, EnvRequired)
	}
	t.Skip(why)
}

// withDatabase returns the server's URL with another database in it.
func withDatabase(server, name string) (string, error) {
	u, err := url.Parse(server)
	if err != nil {
		return "", err
	}
	if u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return "", fmt.Errorf("want a URL postgres://…, not one with the scheme %q", u.Scheme)
	}
	u.Path = "/" + name
	return u.String(), nil
}

func execute(ctx context.Context, server, sql string) error {
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)
	return errors.Join(err, conn.Close(ctx))
}
