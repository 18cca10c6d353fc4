package pgtest_test

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/musehub/posthorn/internal/pgtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestURLIsAFreshDatabase(t *testing.T) {
	first := connect(t, pgtest.URL(t))
	run(t, first, "CREATE TABLE t (n int)")
	second := connect(t, pgtest.URL(t))
	if n := number(t, second, "SELECT count(*) FROM pg_class WHERE relname = 't'"); n != 0 {
		t.Error("one test's table is in another's database")
	}
}

func TestURLAtOnce(t *testing.T) {
	for range 8 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			run(t, connect(t, pgtest.URL(t)), "CREATE TABLE t (n int)")
		})
	}
}

func TestURLIsDroppedWhileInUse(t *testing.T) {
	var database string
	t.Run("test", func(t *testing.T) {
		database = pgtest.URL(t)
		if _, err := pgx.Connect(t.Context(), database); err != nil { // and not closed
			t.Fatal(err)
		}
	})
	if database == "" {
		t.SkipNow()
	}
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	server := connect(t, os.Getenv(pgtest.EnvURL))
	if n := number(t, server, "SELECT count(*) FROM pg_database WHERE datname = $1", strings.TrimPrefix(u.Path, "/")); n != 0 {
		t.Error("the database is still there")
	}
}

func TestClusterKeepsPortAndData(t *testing.T) {
	for name, stop := range map[string]func(*pgtest.Cluster){"stop": (*pgtest.Cluster).Stop, "kill": (*pgtest.Cluster).Kill} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := pgtest.StartCluster(t)
			before := c.URL("postgres")
			conn := connect(t, before)
			run(t, conn, "CREATE TABLE t AS SELECT 7 AS n")

			stop(c)
			if _, err := conn.Exec(t.Context(), "SELECT 1"); err == nil {
				t.Error("a connection has outlived its server")
			}
			if conn, err := pgx.Connect(t.Context(), before); err == nil {
				conn.Close(t.Context())
				t.Error("the server still takes connections")
			}

			if err := c.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if after := c.URL("postgres"); after != before {
				t.Errorf("the URL was %s and is now %s", before, after)
			}
			if n := number(t, connect(t, before), "SELECT n FROM t"); n != 7 {
				t.Errorf("the row has become %d", n)
			}
		})
	}
}

// A server that was killed is closed, too, and nothing of it stays behind.
func TestClusterLeavesNothing(t *testing.T) {
	var folder string
	t.Run("test", func(t *testing.T) {
		c := pgtest.StartCluster(t)
		conn := connect(t, c.URL("postgres"))
		if err := conn.QueryRow(t.Context(), "SHOW data_directory").Scan(&folder); err != nil {
			t.Fatal(err)
		}
		c.Kill()
	})
	if folder == "" {
		t.SkipNow()
	}
	if _, err := os.Stat(filepath.Dir(folder)); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", folder, err)
	}
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func run(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

func number(t *testing.T, conn *pgx.Conn, sql string, args ...any) int {
	t.Helper()
	var n int
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
