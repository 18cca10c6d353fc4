package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// patience is how long a test waits for what another process should do, before it fails. On PostgreSQL it can take 40
// seconds until a server takes over what one that was killed had leased.
const patience = 4 * time.Minute

// goRace is the environment variable GORACE of the processes that tests start.
const goRace = "atexit_sleep_ms=10"

// noDNS is what the environment variable POSTHORN_DNS_SERVER of the servers that tests start has, but for those with a DNS
// server of their own: nobody answers there, so that no name of a webhook leads off the machine.
const noDNS = "127.0.0.1:1"

// TestMain makes the test binary a posthorn as well: under that name, in a folder that PATH starts with, it runs main.
func TestMain(m *testing.M) {
	// A program with the race detector waits for a second at its end, and hundreds are run here.
	os.Setenv("GORACE", goRace)
	os.Setenv("POSTHORN_DNS_SERVER", noDNS)
	testscript.Main(m, map[string]func(){
		"posthorn": main,
		"environ":  func() { fmt.Println(strings.Join(os.Environ(), "\n")) },
	})
}

// server is a posthorn serve in a process of its own.
type server struct {
	url   string // of the REST API, without a slash at the end
	token string // the admin token
	data  string // the data folder
	cmd   *exec.Cmd

	t       *testing.T
	process *process
}

// startServer starts posthorn serve on a free port and waits until it is ready. The arguments are added to --listen and
// --data and prevail over them, so that --data can name the folder of an earlier server. The process inherits this one's
// environment; which store it is on, see serveCommand. At the end of the test it is killed if it still runs, and what it
// logged is shown if the test failed.
func startServer(t *testing.T, args ...string) *server {
	t.Helper()
	s := &server{t: t, data: flagValue(args, "data")}
	if s.data == "" {
		s.data = filepath.Join(t.TempDir(), "data")
	}
	args = append([]string{"--data", s.data, "--log-format", "json"}, args...)
	s.cmd = serveCommand(t, args...)
	var err error
	if s.process, err = startProcess(s.cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			t.Logf("posthorn serve %s logged:\n%s", strings.Join(args, " "), s.logs())
		}
	})
	found, err := s.process.await(regexp.MustCompile(`"url":"(http://[^"]+)"`))
	if err != nil {
		t.Fatalf("posthorn serve %s: %v", strings.Join(args, " "), err)
	}
	s.url = found[1]
	if s.token = flagValue(args, "admin-token"); s.token == "" {
		s.token = os.Getenv("POSTHORN_ADMIN_TOKEN")
	}
	if s.token == "" {
		if s.token, err = readToken(filepath.Join(s.data, tokenFile)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// stop sends SIGTERM, waits for the end of the process, and fails the test unless it ends well.
func (s *server) stop() {
	s.t.Helper()
	if err := s.process.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Errorf("stop the server: %v", err)
	}
	if err := s.wait(); err != nil {
		s.t.Errorf("the server ended after SIGTERM with: %v", err)
	}
}

// kill sends SIGKILL and waits for the end of the process. A process that has ended already is left in peace.
func (s *server) kill() {
	s.t.Helper()
	_ = s.process.cmd.Process.Kill()
	_ = s.wait()
}

// wait waits for the end of the process and returns what [exec.Cmd.Wait] says of it.
func (s *server) wait() error {
	s.t.Helper()
	select {
	case <-s.process.exited:
		return s.process.err
	case <-time.After(patience):
		s.t.Fatalf("the server still runs after %v", patience)
		return nil
	}
}

// logs returns what the server has logged so far.
func (s *server) logs() string { return s.process.stderr.String() }

// flagValue returns the value that a command line gives to a flag, or "".
func flagValue(args []string, name string) string {
	var value string
	for i, arg := range args {
		if v, ok := strings.CutPrefix(arg, "--"+name+"="); ok {
			value = v
		} else if arg == "--"+name && i+1 < len(args) {
			value = args[i+1]
		}
	}
	return value
}

// process is a command that runs in the background.
type process struct {
	cmd            *exec.Cmd
	stdout, stderr output
	exited         chan struct{}
	err            error // of Wait; only after exited is closed
}

func startProcess(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, exited: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.stdout, &p.stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// await waits until the process has written something that matches, and returns the match and its groups.
func (p *process) await(re *regexp.Regexp) ([]string, error) {
	timeout := time.After(patience)
	for exited := false; ; {
		// The channels first: what is written from here on closes them.
		moreOut, moreErr := p.stdout.more(), p.stderr.more()
		for _, out := range []*output{&p.stdout, &p.stderr} {
			if found := re.FindStringSubmatch(out.String()); found != nil {
				return found, nil
			}
		}
		if exited {
			return nil, fmt.Errorf("it ended (%v) and had not written %q\nstdout:\n%s\nstderr:\n%s",
				p.cmd.ProcessState, re, &p.stdout, &p.stderr)
		}
		select {
		case <-moreOut:
		case <-moreErr:
		case <-p.exited:
			exited = true
		case <-timeout:
			return nil, fmt.Errorf("it did not write %q within %v\nstdout:\n%s\nstderr:\n%s", re, patience, &p.stdout, &p.stderr)
		}
	}
}

// exitCode waits for the end of the process and returns its exit code.
func (p *process) exitCode() (int, error) {
	select {
	case <-p.exited:
	case <-time.After(patience):
		return 0, fmt.Errorf("it still runs after %v", patience)
	}
	if _, ok := errors.AsType[*exec.ExitError](p.err); p.err != nil && !ok {
		return 0, p.err
	}
	return p.cmd.ProcessState.ExitCode(), nil
}

// output collects what a process writes. Its zero value is ready.
type output struct {
	mu      sync.Mutex
	buf     bytes.Buffer
	changed chan struct{}
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.changed != nil {
		close(o.changed)
		o.changed = nil
	}
	return o.buf.Write(b)
}

// more returns a channel that is closed by the next Write.
func (o *output) more() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.changed == nil {
		o.changed = make(chan struct{})
	}
	return o.changed
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// dialServer connects to the REST API, for requests that are none.
func dialServer(t *testing.T, s *server) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}
