package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/pgtest"
)

func TestMigrate(t *testing.T) {
	url := pgtest.URL(t)
	cfg := Config{Schema: `odd "name".posthorn.x`}
	status := func() []Migration {
		t.Helper()
		status, err := Status(t.Context(), url, cfg)
		if err != nil {
			t.Fatal(err)
		}
		return status
	}
	before := status()
	if len(before) == 0 || before[0].Version != 1 || before[0].Name != "0001_init.sql" || !before[0].AppliedAt.IsZero() {
		t.Fatalf("before the first migration there are %+v", before)
	}
	_, err := Open(t.Context(), url, cfg)
	wantCode(t, err, posthorn.CodeUnavailable, "no tables", "posthorn migrate up", "--migrate")

	for range 2 {
		if err := Migrate(t.Context(), url, cfg); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range status() {
		if since := time.Since(m.AppliedAt); since < -time.Minute || since > time.Hour {
			t.Errorf("migration %d was applied at %v", m.Version, m.AppliedAt)
		}
	}
	s := openNode(t, url, cfg)
	w := posthorn.Webhook{ID: "w", RepoID: "r"}
	if err := s.CreateWebhooks(t.Context(), &w); err != nil {
		t.Fatal(err)
	}
	if err := Migrate(t.Context(), url, cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Webhook(t.Context(), "r", "w"); err != nil {
		t.Fatal(err)
	}
}

// TestMigrateAtOnce has several nodes start on an empty database.
func TestMigrateAtOnce(t *testing.T) {
	url := pgtest.URL(t)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			if err := Migrate(t.Context(), url, Config{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	openNode(t, url, Config{})
}

func TestCheckVersion(t *testing.T) {
	for _, c := range []struct {
		has, newest int64
		says        string // "" for no error
	}{
		{0, 1, "no tables"},
		{0, 5, "no tables"},
		{1, 1, ""},
		{5, 5, ""},
		{4, 5, ""}, // a node of this version may start before the migration
		{3, 5, "migrate up"},
		{1, 5, "migrate up"},
		{6, 5, "newer"},
		{7, 5, "newer"},
	} {
		err := checkVersion("posthorn", c.has, c.newest)
		if c.says == "" && err != nil || c.says != "" && (posthorn.ErrorCode(err) != posthorn.CodeUnavailable || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("version %d where %d is the newest known: %v", c.has, c.newest, err)
		}
	}
}

// TestNewerSchema has a schema that a newer version has migrated.
func TestNewerSchema(t *testing.T) {
	url := pgtest.URL(t)
	s := open(t, url)
	cfg := Config{Schema: s.schema}
	execute(t, s, "INSERT INTO posthorn.posthorn_migrations (version_id, is_applied) VALUES (999, true)")
	_, err := Open(t.Context(), url, cfg)
	wantCode(t, err, posthorn.CodeUnavailable, "999", "upgrade")
	if err := Migrate(t.Context(), url, cfg); err != nil {
		t.Fatalf("an older version's migrate up fails: %v", err)
	}
	status, err := Status(t.Context(), url, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if last := status[len(status)-1]; last.Version != 999 || last.Name != "" || last.AppliedAt.IsZero() {
		t.Fatalf("the last migration is %+v", last)
	}
}

// TestRoleThatOwnsTheSchema has a role that may not create schemas.
func TestRoleThatOwnsTheSchema(t *testing.T) {
	url := pgtest.URL(t)
	admin := connectPool(t, url)
	role := fmt.Sprintf("posthorn_role_%d", time.Now().UnixNano())
	for _, sql := range []string{
		"CREATE ROLE " + role + " LOGIN PASSWORD 'not-a-secret'",
		"CREATE SCHEMA hosted AUTHORIZATION " + role,
	} {
		if _, err := admin.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, sql := range []string{"DROP SCHEMA hosted CASCADE", "DROP OWNED BY " + role, "DROP ROLE " + role} {
			if _, err := admin.Exec(context.Background(), sql); err != nil {
				t.Error(err)
			}
		}
	})
	conn := admin.Config().ConnConfig
	theirs := fmt.Sprintf("host=%s port=%d user=%s password=not-a-secret dbname=%s sslmode=disable", conn.Host, conn.Port, role, conn.Database)
	err := Migrate(t.Context(), theirs, Config{Schema: "other"})
	wantCode(t, err, posthorn.CodeUnavailable, "permission", `"other"`)
	if err := Migrate(t.Context(), theirs, Config{Schema: "hosted"}); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), theirs, Config{Schema: "hosted"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Prune(t.Context(), start); err != nil {
		t.Fatal(err)
	}
}

func TestOpenErrors(t *testing.T) {
	url := pgtest.URL(t)
	there := connectPool(t, url).Config().ConnConfig
	at := func(host string, port uint16, user, database string) string {
		password := "s3cr3t"
		if user == there.User {
			password = there.Password
		}
		return fmt.Sprintf("host=%s port=%d user=%s password='%s' dbname=%s sslmode=disable", host, port, user, password, database)
	}
	for name, c := range map[string]struct {
		url  string
		cfg  Config
		code posthorn.Code
		says []string
	}{
		"empty":            {"", Config{}, posthorn.CodeInvalid, []string{"empty"}},
		"malformed":        {"postgres://me:s3cr3t@[::1:5432/db", Config{}, posthorn.CodeInvalid, []string{"postgres://user:password@host"}},
		"half escaped":     {"postgres://me:s3cr3t%zz@127.0.0.1/db", Config{}, posthorn.CodeInvalid, []string{"%XX"}},
		"unknown setting":  {"postgres://me:s3cr3t@127.0.0.1/db?sslmode=maybe", Config{}, posthorn.CodeInvalid, nil},
		"negative":         {url, Config{MaxConns: -1}, posthorn.CodeInvalid, []string{"-1"}},
		"schema too long":  {url, Config{Schema: strings.Repeat("é", 32)}, posthorn.CodeInvalid, []string{"63"}},
		"schema of theirs": {url, Config{Schema: "pg_catalog"}, posthorn.CodeInvalid, []string{"pg_"}},
		"schema with NUL":  {url, Config{Schema: "a\x00b"}, posthorn.CodeInvalid, nil},
		"nobody there":     {at("127.0.0.1", 1, "me", "db"), Config{}, posthorn.CodeUnavailable, []string{"127.0.0.1:1", "can't be reached"}},
		"no socket":        {at("/nonexistent", 5432, "me", "db"), Config{}, posthorn.CodeUnavailable, []string{"/nonexistent"}},
		"no database":      {at(there.Host, there.Port, there.User, "nonexistent"), Config{}, posthorn.CodeUnavailable, []string{"nonexistent", "create it"}},
		"no user":          {at(there.Host, there.Port, "nonexistent", there.Database), Config{}, posthorn.CodeUnavailable, []string{"login"}},
		"not migrated":     {url, Config{Schema: "empty"}, posthorn.CodeUnavailable, []string{`"empty"`, "migrate up", there.Host, there.Database}},
	} {
		t.Run(name, func(t *testing.T) {
			for verb, call := range map[string]func() error{
				"Open":    func() error { _, err := Open(t.Context(), c.url, c.cfg); return err },
				"Migrate": func() error { return Migrate(t.Context(), c.url, c.cfg) },
				"Status":  func() error { _, err := Status(t.Context(), c.url, c.cfg); return err },
			} {
				if name == "not migrated" && verb != "Open" {
					continue
				}
				err := call()
				wantCode(t, err, c.code, c.says...)
				for cause := err; cause != nil; cause = errors.Unwrap(cause) {
					if strings.Contains(cause.Error(), "s3cr3t") {
						t.Errorf("%s shows the password: %v", verb, cause)
					}
				}
			}
		})
	}
}

func TestOpenCancelled(t *testing.T) {
	url := pgtest.URL(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, url, Config{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("Open with a cancelled context: %v", err)
	}
}

func TestCheckServer(t *testing.T) {
	for _, c := range []struct{ version, encoding, says string }{
		{"14.0", "UTF8", ""},
		{"15.18 (Debian 15.18-0+deb12u1)", "UTF8", ""},
		{"18devel", "UTF8", ""},
		{"", "", ""}, // a pooler that says nothing
		{"13.22", "UTF8", "13.22"},
		{"9.6.24", "UTF8", "14 or newer"},
		{"16.1", "SQL_ASCII", "SQL_ASCII"},
	} {
		err := checkServer(func(name string) string {
			return map[string]string{"server_version": c.version, "server_encoding": c.encoding}[name]
		})
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestConnections(t *testing.T) {
	t.Setenv("PGCONNECT_TIMEOUT", "")
	const url = "postgres://me@127.0.0.1/db"
	for _, c := range []struct {
		url     string
		cfg     Config
		conns   int32
		timeout time.Duration
		name    string
	}{
		{url, Config{}, DefaultMaxConns, connectTimeout, "posthorn"},
		{url, Config{MaxConns: 3}, 3, connectTimeout, "posthorn"},
		{url + "?pool_max_conns=7", Config{}, 7, connectTimeout, "posthorn"},
		{url + "?pool_max_conns=7&connect_timeout=2&application_name=host", Config{MaxConns: 3}, 3, 2 * time.Second, "host"},
	} {
		d, err := parse(c.url, c.cfg)
		if err != nil {
			t.Fatal(err)
		}
		got := d.pool.ConnConfig
		if d.pool.MaxConns != c.conns || got.ConnectTimeout != c.timeout || got.RuntimeParams["application_name"] != c.name {
			t.Errorf("%s with %+v: %d connections, %v to connect, %q", c.url, c.cfg, d.pool.MaxConns, got.ConnectTimeout, got.RuntimeParams["application_name"])
		}
	}
}
