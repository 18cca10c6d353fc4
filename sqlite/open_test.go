package sqlite

import (
	"bufio"
	"bytes"
	"database/sql"
	"os"
	osexec "os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/musehub/posthorn"
	"zombiezen.com/go/sqlite"
)

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, data []byte) {
		if err := os.WriteFile(path(name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	query := func(name, query string) {
		db, err := sql.Open("sqlite", path(name))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.ExecContext(t.Context(), query); err != nil {
			t.Fatal(err)
		}
	}

	write("text.db", bytes.Repeat([]byte("This is no database. "), 1000))
	write("file", nil)
	if err := os.Mkdir(path("folder.db"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"newer.db", "damaged.db"} {
		s, err := Open(t.Context(), path(name))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	query("newer.db", "INSERT INTO posthorn_migrations (version_id, is_applied) VALUES (99, 1)")
	data, err := os.ReadFile(path("damaged.db"))
	if err != nil {
		t.Fatal(err)
	}
	copy(data[100:4096], bytes.Repeat([]byte{0xaa}, 4096)) // the schema
	write("damaged.db", data)

	for _, c := range []struct{ name, want string }{
		{"missing/posthorn.db", "its folder"},
		{"file/posthorn.db", "not a folder"},
		{"folder.db", "can't be opened"},
		{"text.db", "is not a SQLite database"},
		{"newer.db", "schema version 99"},
		{"damaged.db", "is damaged"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for range 2 { // a refused file is let go of
				s, err := Open(t.Context(), path(c.name))
				if err == nil {
					s.Close()
				}
				wantCode(t, err, posthorn.CodeUnavailable, filepath.Base(c.name), c.want)
			}
		})
	}
	_, err = Open(t.Context(), "")
	wantCode(t, err, posthorn.CodeInvalid)
}

// TestOpenHostsFile opens a file that a host has tables in, with names that Posthorn would have liked too.
func TestOpenHostsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "host.db")
	host := openHost(t, path)
	names := []string{"webhooks", "events", "goose_db_version", "settings"}
	for _, name := range names {
		hostExec(t, host, "CREATE TABLE "+name+" (mine TEXT)")
		hostExec(t, host, "INSERT INTO "+name+" VALUES ('mine')")
	}
	for range 2 {
		s := open(t, path)
		newWorkload(t, s, 1)
		if err := s.DeleteWebhook(t.Context(), "repo-0", "webhook-0"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Prune(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range names {
		if got := hostQuery(t, host, "SELECT group_concat(mine) FROM "+name); got != "mine" {
			t.Errorf("%s has %q", name, got)
		}
	}
	if got := hostQuery(t, host, "SELECT count(*) FROM sqlite_schema WHERE name NOT LIKE 'posthorn_%' AND name NOT LIKE 'sqlite_%'"); got != "4" {
		t.Errorf("there are %s tables and indexes of the host's", got)
	}
}

// TestOpenNameTaken has a table of the host's where Posthorn wants one of its own.
func TestOpenNameTaken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "host.db")
	hostExec(t, openHost(t, path), "CREATE TABLE posthorn_queue (mine TEXT)")
	for range 2 {
		_, err := Open(t.Context(), path)
		wantCode(t, err, posthorn.CodeInternal, "table posthorn_queue already exists")
	}
}

// TestOpenEmpty opens a file that exists and has nothing in it, as touch makes it.
func TestOpenEmpty(t *testing.T) {
	path := filepath.Join(t.TempDir(), "posthorn.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	newWorkload(t, open(t, path), 1)
}

// TestOpenOddNames has names that would mean something in a URI.
func TestOpenOddNames(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"a b", "a?b=c", "a#b", "a%20b", "ä&ö", ":memory:", "file:a"} {
		s := open(t, name)
		newWorkload(t, s, 1)
		if _, err := os.Stat(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestOpenTwice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "posthorn.db")
	first := open(t, path)
	link := filepath.Join(t.TempDir(), "link.db")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, filepath.Join(filepath.Dir(path), "..", filepath.Base(filepath.Dir(path)), "posthorn.db"), link} {
		_, err := Open(t.Context(), name)
		wantCode(t, err, posthorn.CodeUnavailable, "posthorn.db is in use by another process")
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path)
}

// TestOpenLinkToNothing has a link that is there before the file it leads to.
func TestOpenLinkToNothing(t *testing.T) {
	path, link := filepath.Join(t.TempDir(), "posthorn.db"), filepath.Join(t.TempDir(), "link.db")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	first := open(t, link)
	_, err := Open(t.Context(), path)
	wantCode(t, err, posthorn.CodeUnavailable, "posthorn.db is in use by another process")
	if _, err := os.Stat(path + ".lock"); err != nil {
		t.Errorf("the lock is not beside the file: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", info.Mode(), err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path)
}

// TestOpenByAnotherProcess has a second process hold the file, and then be killed.
func TestOpenByAnotherProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "posthorn.db")
	cmd, out := startChild(t, "hold", path)
	if line, err := out.ReadString('\n'); line != "open\n" {
		t.Fatalf("the other process said %q, %v", line, err)
	}
	_, err := Open(t.Context(), path)
	wantCode(t, err, posthorn.CodeUnavailable, "posthorn.db is in use by another process")
	kill(cmd)
	open(t, path)
}

// TestReopen has a node's lease end with its process, however long it would have run.
func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "posthorn.db")
	s := open(t, path)
	w := newWorkload(t, s, 3)
	events, _ := w.batch(3)
	w.commit(events)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = open(t, path)
	w.Store = s
	_, err := s.Lease(t.Context(), w.node, time.Now().Add(time.Hour))
	wantCode(t, err, posthorn.CodeConflict)
	if n, err := s.Release(t.Context(), 0, time.Now()); n != 1 || err != nil {
		t.Fatalf("%d nodes released, %v", n, err)
	}
	if w.node, err = s.Lease(t.Context(), 0, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if entries := w.claim(10); len(entries) != 3 {
		t.Fatalf("%d entries", len(entries))
	}
}

func TestClosed(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "posthorn.db"))
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, err := s.Webhook(t.Context(), "repo", "id")
	wantCode(t, err, posthorn.CodeUnavailable, "posthorn.db is closed")
	_, err = s.Commit(t.Context(), posthorn.Batch{})
	wantCode(t, err, posthorn.CodeUnavailable, "posthorn.db is closed")
	_, err = s.SecretKeys(nil)
	wantCode(t, err, posthorn.CodeUnavailable)
}

// TestSettings checks that a commit is a durable one.
func TestSettings(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "posthorn.db"))
	check := func(c *sqlite.Conn) error {
		for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1"} {
			got := ""
			if _, err := queryRow(c, func(st *sqlite.Stmt) { got = st.ColumnText(0) }, "PRAGMA "+pragma); err != nil {
				return err
			}
			if got != want {
				t.Errorf("%s is %s", pragma, got)
			}
		}
		return nil
	}
	s.onWriter(t, check)
	if err := s.read(t.Context(), check); err != nil {
		t.Fatal(err)
	}
	err := s.read(t.Context(), func(c *sqlite.Conn) error { return exec(c, "DELETE FROM posthorn_webhooks") })
	wantCode(t, err, posthorn.CodeUnavailable, "read-only")
}

// startChild runs this test binary as another process; see child.
func startChild(t *testing.T, what, path string) (*osexec.Cmd, *bufio.Reader) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := osexec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), "POSTHORN_TEST_CHILD="+what, "POSTHORN_TEST_PATH="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(cmd) })
	return cmd, bufio.NewReader(out)
}

// kill ends a process the hard way and waits until it is gone, with its locks.
func kill(cmd *osexec.Cmd) {
	if cmd.ProcessState == nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}
