package main

import (
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"
)

// built builds posthorn once, as it is released, without the race detector and cgo. It returns the folder of it.
var built = sync.OnceValues(func() (string, error) {
	testBinary, err := exec.LookPath("posthorn")
	if err != nil {
		return "", err
	}
	dir := filepath.Join(filepath.Dir(testBinary), "built") // TestMain removes what is there
	cmd := exec.Command("go", "build", "-trimpath", "-o", dir+string(filepath.Separator), ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build posthorn: %w\n%s", err, out)
	}
	return dir, nil
})

// useBuilt makes posthorn the built program for the rest of the test, and not the test binary under that name.
func useBuilt(t *testing.T) {
	t.Helper()
	dir, err := built()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
}

// whereabouts tells goroutines where the server is that is killed and started again meanwhile.
type whereabouts struct {
	mu      sync.Mutex
	server  *server // nil while none runs
	changed chan struct{}
}

func newWhereabouts() *whereabouts { return &whereabouts{changed: make(chan struct{})} }

func (w *whereabouts) set(s *server) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.server = s
	close(w.changed)
	w.changed = make(chan struct{})
}

// get returns the server and a channel that is closed when that is another one.
func (w *whereabouts) get() (*server, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.server, w.changed
}

// ring tells who waits on the channel, if anybody does.
func ring(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// wholeLog returns all of a webhook's deliveries, the newest first, and how many the API says that there are.
func (c *contract) wholeLog(hook string) (rows []loggedDelivery, total int) {
	c.t.Helper()
	for query := (url.Values{"limit": {"200"}}); ; {
		page := read[struct {
			Deliveries []loggedDelivery
			Total      int
			NextCursor string
		}](c, c.ask(200, "GET", "/webhooks/"+hook+"/deliveries?"+query.Encode(), ""))
		rows, total = append(rows, page.Deliveries...), page.Total
		if page.NextCursor == "" {
			return rows, total
		}
		query.Set("cursor", page.NextCursor)
	}
}

// serveFails runs posthorn serve, which must end by itself with exit code 1, and returns what it wrote to stderr.
func serveFails(t *testing.T, args ...string) string {
	t.Helper()
	return commandFails(t, exec.Command("posthorn", append([]string{"serve", "--listen", "127.0.0.1:0"}, args...)...))
}

func commandFails(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	p, err := startProcess(cmd)
	if err != nil {
		t.Fatal(err)
	}
	code, err := p.exitCode()
	if err != nil {
		_ = cmd.Process.Kill()
		t.Fatalf("%s: %v\n%s", cmd, err, p.stderr.String())
	}
	text := p.stderr.String()
	if code != exitFailure || !strings.Contains(text, "posthorn: ") || strings.Contains(text, "goroutine ") {
		t.Errorf("%s: exit code %d, want %d with an error message:\n%s", cmd, code, exitFailure, text)
	}
	return text
}

// sql runs one statement on the database of a server that has stopped, and returns the first column of each row.
func sql(t *testing.T, data, statement string, args ...any) (rows []string) {
	t.Helper()
	conn, err := sqlite.OpenConn(filepath.Join(data, "posthorn.db"), sqlite.OpenReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	err = sqlitex.Execute(conn, statement, &sqlitex.ExecOptions{Args: args, ResultFunc: func(row *sqlite.Stmt) error {
		rows = append(rows, row.ColumnText(0))
		return nil
	}})
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	return rows
}

// checkDatabase fails the test unless the database of a server that has stopped is sound and its queue empty.
func checkDatabase(t *testing.T, data string) {
	t.Helper()
	if found := sql(t, data, "PRAGMA integrity_check"); len(found) != 1 || found[0] != "ok" {
		t.Errorf("integrity check of the database: %s", strings.Join(found, "; "))
	}
	left := sql(t, data, "SELECT (SELECT count(*) FROM queue) || ' entries and ' || (SELECT count(*) FROM promises) || ' promises'")
	if left[0] != "0 entries and 0 promises" {
		t.Errorf("the queue still has %s", left[0])
	}
}
