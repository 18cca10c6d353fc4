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
	return commandFails(t, serveCommand(t, args...))
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
