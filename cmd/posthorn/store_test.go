package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/musehub/posthorn/internal/pgtest"
	"github.com/musehub/posthorn/internal/secretbox"
)

// testStoreVariable says which store the servers of the tests are on: postgres or, by default, sqlite.
const testStoreVariable = "POSTHORN_TEST_STORE"

// onPostgres reads it each time: what is read before a test runs, go test doesn't look at before it reuses a result.
func onPostgres() bool {
	switch store := os.Getenv(testStoreVariable); store {
	case "postgres":
		return true
	case "sqlite", "":
		return false
	default:
		panic(testStoreVariable + " is " + store + ", want sqlite or postgres")
	}
}

// needsSQLite skips a test that is about the files of SQLite when the servers are on PostgreSQL.
func needsSQLite(t *testing.T) {
	t.Helper()
	if onPostgres() {
		t.Skip("it is about SQLite's files, and " + testStoreVariable + " is postgres")
	}
}

// testDatabase is what a data folder has on PostgreSQL instead of files.
type testDatabase struct {
	url  string
	keys []string // for POSTHORN_SECRET_KEYS
	made bool     // a server has been started on it
}

var testDatabases struct {
	mu sync.Mutex
	of map[string]*testDatabase // by data folder
}

// testDatabaseOf returns the database that stands for a data folder. The first time it makes one, for as long as the test
// lasts.
func testDatabaseOf(t *testing.T, data string) *testDatabase {
	t.Helper()
	testDatabases.mu.Lock()
	known := testDatabases.of[data]
	testDatabases.mu.Unlock()
	if known != nil {
		return known
	}
	key, err := secretbox.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	made := &testDatabase{url: pgtest.URL(t), keys: []string{key}}
	testDatabases.mu.Lock()
	defer testDatabases.mu.Unlock()
	if testDatabases.of == nil {
		testDatabases.of = map[string]*testDatabase{}
	}
	testDatabases.of[data] = made
	return made
}

// serveCommand returns posthorn serve on a free port with further arguments, --data among them. On PostgreSQL it has
// the database that stands for the data folder, unless they or the environment name one, and the same goes for its keys.
func serveCommand(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("posthorn", append([]string{"serve", "--listen", "127.0.0.1:0"}, args...)...)
	if !onPostgres() || flagValue(args, "database") != "" || os.Getenv("POSTHORN_DATABASE") != "" {
		return cmd
	}
	db := testDatabaseOf(t, flagValue(args, "data"))
	cmd.Env = append(os.Environ(), "POSTHORN_DATABASE="+db.url)
	if os.Getenv("POSTHORN_SECRET_KEYS") == "" {
		cmd.Env = append(cmd.Env, "POSTHORN_SECRET_KEYS="+strings.Join(db.keys, ","))
	}
	if !db.made {
		db.made = true
		cmd.Args = append(cmd.Args, "--migrate")
	}
	return cmd
}

// secretKey returns the key that a server has made in its data folder, or was given.
func secretKey(t *testing.T, data string) string {
	t.Helper()
	if onPostgres() {
		return testDatabaseOf(t, data).keys[0]
	}
	key, err := os.ReadFile(filepath.Join(data, "posthorn.db.key"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(key))
}

// setSecretKeys sets the keys that the next server on a data folder has: on SQLite those of the key file, or no such file.
func setSecretKeys(t *testing.T, data string, keys ...string) {
	t.Helper()
	if onPostgres() {
		testDatabaseOf(t, data).keys = keys
		return
	}
	file := filepath.Join(data, "posthorn.db.key")
	var err error
	if len(keys) == 0 {
		err = os.Remove(file)
	} else {
		err = os.WriteFile(file, []byte(strings.Join(keys, "\n")+"\n"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// sql runs one statement on the database of a server that has stopped, and returns the first column of each row. It is
// written for SQLite: on PostgreSQL its tables posthorn_… are posthorn.…, and its parameters $1 and so on.
func sql(t *testing.T, data, statement string, args ...string) []string {
	t.Helper()
	run := sqliteRows
	if onPostgres() {
		run = postgresRows
	}
	rows, err := run(t, data, statement, args)
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	return rows
}

func sqliteRows(_ *testing.T, data, statement string, args []string) (rows []string, err error) {
	conn, err := sqlite.OpenConn(filepath.Join(data, "posthorn.db"), sqlite.OpenReadWrite)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	params := make([]any, len(args))
	for i, arg := range args {
		params[i] = arg
	}
	err = sqlitex.Execute(conn, statement, &sqlitex.ExecOptions{Args: params, ResultFunc: func(row *sqlite.Stmt) error {
		rows = append(rows, row.ColumnText(0))
		return nil
	}})
	return rows, err
}

func postgresRows(t *testing.T, data, statement string, args []string) (rows []string, err error) {
	conn, err := pgconn.Connect(t.Context(), testDatabaseOf(t, data).url)
	if err != nil {
		return nil, err
	}
	defer conn.Close(t.Context())
	statement = strings.ReplaceAll(statement, "posthorn_", "posthorn.")
	params := make([][]byte, len(args))
	for i, arg := range args {
		statement = strings.Replace(statement, "?", "$"+strconv.Itoa(i+1), 1)
		params[i] = []byte(arg)
	}
	result := conn.ExecParams(t.Context(), statement, params, nil, nil, nil).Read() // all of it as text
	for _, row := range result.Rows {
		rows = append(rows, string(row[0]))
	}
	return rows, result.Err
}

// checkDatabase fails the test unless the database of a server that has stopped is sound and its queue empty.
func checkDatabase(t *testing.T, data string) {
	t.Helper()
	if !onPostgres() { // which can't be damaged by those who use it
		if found := sql(t, data, "PRAGMA integrity_check"); !slices.Equal(found, []string{"ok"}) {
			t.Errorf("integrity check of the database: %s", strings.Join(found, "; "))
		}
	}
	for _, table := range []string{"posthorn_queue", "posthorn_promises"} {
		if left := sql(t, data, "SELECT count(*) FROM "+table)[0]; left != "0" {
			t.Errorf("%s still has %s rows", table, left)
		}
	}
}
