package main

import (
	"bytes"
	"database/sql"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/pgtest"
	"github.com/musehub/posthorn/postgres"
	"github.com/musehub/posthorn/sqlite"
)

// wantOutput is what the program prints, sorted: webhooks may overtake each other.
var wantOutput = []string{
	`arrived: {"customer":"clara","item":"horn","pieces":1}`,
	`arrived: {"customer":"fanny","item":"flute","pieces":2}`,
	`committed: 1 horn for clara`,
	`committed: 2 flute for fanny`,
	`rolled back: 9 horn for robert`,
}

func TestSQLite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "shop.db")
	runTwice(t, path)

	store, err := sqlite.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	db, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	wantKept(t, store, db)
}

func TestPostgres(t *testing.T) {
	url := pgtest.URL(t)
	runTwice(t, url)

	store, err := postgres.Open(t.Context(), url, postgres.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	wantKept(t, store, db)
}

// runTwice runs the program two times, as its users may: the second run finds what the first has left.
func runTwice(t *testing.T, args ...string) {
	t.Helper()
	for range 2 {
		var out bytes.Buffer
		if err := run(t.Context(), args, &out); err != nil {
			t.Fatalf("%v, after\n%s", err, &out)
		}
		got := slices.Sorted(strings.Lines(out.String()))
		for i := range got {
			got[i] = strings.TrimSpace(got[i])
		}
		if diff := cmp.Diff(wantOutput, got); diff != "" {
			t.Errorf("output (-want +got):\n%s", diff)
		}
	}
}

// wantKept checks that what was rolled back has left no trace.
func wantKept(t *testing.T, store posthorn.Store, db *sql.DB) {
	t.Helper()
	page, err := store.Events(t.Context(), posthorn.EventQuery{RepoID: repo, Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	var events []string
	for _, e := range page.Items {
		events = append(events, string(e.Payload))
	}
	clara, fanny := `{"customer":"clara","item":"horn","pieces":1}`, `{"customer":"fanny","item":"flute","pieces":2}`
	if diff := cmp.Diff([]string{fanny, clara, fanny, clara}, events); diff != "" { // the newest first
		t.Errorf("events (-want +got):\n%s", diff)
	}
	var orders int
	if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM orders").Scan(&orders); err != nil {
		t.Fatal(err)
	}
	if orders != 4 {
		t.Errorf("%d orders, want 4", orders)
	}
}
