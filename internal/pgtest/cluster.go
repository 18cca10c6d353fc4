package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// The ports to choose from lie below those that systems give to whoever asks
	// for any, so that nobody gets a stopped server's port before it is back.
	firstPort, ports = 15000, 15000

	portTries = 10

	// quickly is how long a server that was told to stop may take. After that its
	// processes are killed, or given up.
	quickly = 20 * time.Second
)

// Cluster is a PostgreSQL server with a folder of its own. It listens on the
// loopback interface, on the same port each time it is started. Its methods are
// not for use by several goroutines at once, but for URL.
type Cluster struct {
	bin      string // the folder of PostgreSQL's programs
	dir      string
	settings []string
	owner    *owner // nil: whoever runs this
	password string
	port     int // 0 before the first start

	server *server // nil while stopped
	killed bool    // since the last start
}

// owner is the user that a server runs as in root's stead: PostgreSQL refuses to
// run as root.
type owner struct{ uid, gid int }

// server is a running postgres.
type server struct {
	process *os.Process
	done    chan struct{} // closed when it and all its children have ended
}

// NewCluster makes a cluster in the folder, which must be empty. If no PostgreSQL
// is found, the error is ErrNotFound.
func NewCluster(ctx context.Context, dir string, settings ...string) (*Cluster, error) {
	if runtime.GOOS == "windows" {
		return nil, fmt.Errorf("%w: starting one is not supported on Windows", ErrNotFound)
	}
	bin, err := find(ctx)
	if err != nil {
		return nil, err
	}
	c := &Cluster{bin: bin, dir: dir, settings: settings, password: rand.Text()}
	if os.Geteuid() == 0 {
		if c.owner, err = otherUser(); err != nil {
			return nil, err
		}
	}
	// A password, since else everybody on this machine could act as whoever runs the tests.
	passwordFile := filepath.Join(dir, "password")
	if err := os.WriteFile(passwordFile, []byte(c.password), 0o600); err != nil {
		return nil, err
	}
	if c.owner != nil {
		for _, path := range []string{dir, passwordFile} {
			if err := os.Chown(path, c.owner.uid, c.owner.gid); err != nil {
				return nil, err
			}
		}
	}
	// Not scram: what it costs the client would be most of what a test's connection costs.
	cmd := c.command(ctx, "initdb", "-D", c.data(), "-U", "postgres", "-E", "UTF8", "--locale=C",
		"-A", "password", "--pwfile="+passwordFile, "--no-sync")
	runtime.LockOSThread() // see server.run
	defer runtime.UnlockOSThread()
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb in %s: %w\n%s", dir, err, out)
	}
	return c, nil
}

// URL returns the URL of a database on the server; postgres is there from the start.
func (c *Cluster) URL(database string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword("postgres", c.password),
		Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(c.port)),
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Start starts the server and returns when it takes connections. Its context is
// for the start alone.
func (c *Cluster) Start(ctx context.Context) error {
	if c.server != nil {
		return errors.New("the server has been started already")
	}
	if c.port != 0 {
		return c.start(ctx)
	}
	for try := 1; ; try++ {
		c.port = firstPort + mathrand.IntN(ports)
		err := c.start(ctx)
		if err == nil {
			return nil
		}
		c.port = 0
		if try == portTries || !strings.Contains(c.logTail(), "could not bind") {
			return err
		}
	}
}

func (c *Cluster) start(ctx context.Context) error {
	log, err := os.OpenFile(c.log(), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	args := []string{
		"-D", c.data(), "-p", strconv.Itoa(c.port),
		"-c", "listen_addresses=127.0.0.1",
		"-c", "unix_socket_directories=", // a socket's path may be too long for one
		"-c", "dynamic_shared_memory_type=mmap", // in the folder, and gone with it
		"-c", "max_connections=400",
		"-c", "shared_buffers=128MB",
		"-c", "fsync=off", "-c", "full_page_writes=off", // the data outlives a kill, not a power cut
	}
	for _, setting := range c.settings {
		args = append(args, "-c", setting)
	}
	cmd := c.command(context.WithoutCancel(ctx), "postgres", args...)
	s, err := run(cmd, log)
	if err != nil {
		return err
	}
	c.server, c.killed = s, false
	if err := c.ready(ctx); err != nil {
		tail := c.logTail()
		c.Kill()
		return fmt.Errorf("starting PostgreSQL: %w\n%s", err, tail)
	}
	return nil
}

// run starts the command and returns it as a server. It ends when its log does,
// which all of PostgreSQL's processes hold: a new server can't start before.
func run(cmd *exec.Cmd, log io.WriteCloser) (*server, error) {
	cmd.Stdout = struct{ io.Writer }{log} // not the file itself, so that Wait waits for its end
	cmd.Stderr = cmd.Stdout
	cmd.WaitDelay = quickly
	s := &server{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		defer close(s.done)
		defer log.Close()
		// On Linux the server is told to stop when its parent dies, and that is the
		// thread which started it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		s.process = cmd.Process
		started <- err
		if err == nil {
			_ = cmd.Wait() // whoever stops the server knows why, and else the log does
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return s, nil
}

// ready waits until the server takes connections.
func (c *Cluster) ready(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := pgx.Connect(ctx, c.URL("postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-tick.C:
		case <-c.server.done:
			return errors.New("it ended at once")
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}

// Stop stops the server as an operator would: it ends its connections,
// transactions roll back, and all of it is on disk. It returns when all processes
// have ended.
func (c *Cluster) Stop() {
	if c.server == nil {
		return
	}
	_ = c.server.process.Signal(syscall.SIGINT) // fails when it has ended already
	select {
	case <-c.server.done:
	case <-time.After(quickly):
		_ = c.server.process.Signal(syscall.SIGQUIT) // without a goodbye; it kills what lingers
		<-c.server.done
	}
	c.server = nil
}

// Kill ends the server with kill -9, and returns when its children have followed.
// The next start recovers from the log of writes.
func (c *Cluster) Kill() {
	if c.server == nil {
		return
	}
	_ = c.server.process.Kill() // fails when it has ended already
	<-c.server.done
	c.server, c.killed = nil, true
}

// Close stops the server for good. The folder is left to whoever made it.
func (c *Cluster) Close() error {
	if c.killed {
		// A killed server leaves a piece of shared memory in the system, which the
		// next start takes over and the next stop removes.
		ctx, cancel := context.WithTimeout(context.Background(), quickly)
		defer cancel()
		if err := c.Start(ctx); err != nil {
			return err
		}
	}
	c.Stop()
	return nil
}

// command is one of PostgreSQL's programs, run by the cluster's owner in a folder
// that the owner can read.
func (c *Cluster) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, name), args...)
	cmd.Dir = c.dir
	cmd.SysProcAttr = attributes(c.owner)
	return cmd
}

func (c *Cluster) data() string { return filepath.Join(c.dir, "data") }
func (c *Cluster) log() string  { return filepath.Join(c.dir, "log") }

// logTail returns the end of what the server has logged since it was started.
func (c *Cluster) logTail() string {
	log, err := os.ReadFile(c.log())
	if err != nil {
		return err.Error()
	}
	return string(log[max(0, len(log)-4<<10):])
}

func otherUser() (*owner, error) {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.Atoi(u.Uid)
		gid, gidErr := strconv.Atoi(u.Gid)
		return &owner{uid, gid}, errors.Join(uidErr, gidErr)
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
}
