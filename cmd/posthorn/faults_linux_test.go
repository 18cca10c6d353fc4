package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// memoryFolder returns a temporary folder that is in memory if there is room enough, so that what else the machine does
// with its disk makes no difference.
func memoryFolder(t *testing.T) string {
	t.Helper()
	const shm, enough = "/dev/shm", 1 << 30
	var stat unix.Statfs_t
	if err := unix.Statfs(shm, &stat); err != nil || stat.Bavail*uint64(stat.Bsize) < enough {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(shm, "posthorn-test-") //nolint:usetesting // t.TempDir can't be put into shm
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// limitFiles limits how far the server may write into files, as a full disk does, or lifts the limit again.
func limitFiles(t *testing.T, s *server, bytes uint64) {
	t.Helper()
	var limit unix.Rlimit
	err := unix.Prlimit(s.cmd.Process.Pid, unix.RLIMIT_FSIZE, nil, &limit)
	if err == nil {
		limit.Cur = min(bytes, limit.Max)
		err = unix.Prlimit(s.cmd.Process.Pid, unix.RLIMIT_FSIZE, &limit, nil)
	}
	if err != nil {
		t.Fatalf("limit the size of files: %v", err)
	}
}

// While nothing can be written nothing is accepted, and nothing is sent once there is something that can't be recorded.
// When there is room again all goes on by itself.
func TestFaultDiskFull(t *testing.T) {
	needsSQLite(t)
	t.Parallel()
	open := make(chan struct{})
	receiver := newReceiver(t, func(*wireRequest) wireAnswer { return answerWhen(open, answerStatus(http.StatusOK)) })
	s := startContract(t)
	c := in(t, s)
	hook := c.hook(receiver.URL, "push", "")
	accepted := map[string]bool{}
	for range 20 {
		accepted[c.dispatch("push", `{}`, 1)] = true
	}
	receiver.await(1) // it hangs; the others wait behind it

	limitFiles(t, s, 0)
	close(open) // what comes of the requests that hang can't be recorded
	logged := len(s.logs())
	var refused []string
	for n := range 200 {
		id := fmt.Sprint("full-", n)
		a := c.ask(http.StatusServiceUnavailable, "POST", "/events", eventJSON("push", id, `{}`))
		c.problem(a, "disk", "posthorn.db")
		if a.Header.Get("Retry-After") == "" {
			t.Errorf("there is no Retry-After: %v", a.Header)
		}
		refused = append(refused, id)
	}
	c.problem(c.ask(http.StatusServiceUnavailable, "POST", "/webhooks", fmt.Sprintf(`{"url":%q,"events":["push"]}`, receiver.URL)),
		"disk", "posthorn.db")
	c.ask(http.StatusOK, "GET", "/webhooks/"+hook, "")
	if rows := c.log(hook); len(rows) != 0 {
		t.Errorf("with the disk full there are %d deliveries in the log", len(rows))
	}
	if lines := strings.Count(s.logs()[logged:], "\n"); lines == 0 || lines > 10 {
		t.Errorf("%d lines in the log while the disk was full for a moment, want few:\n%s", lines, s.logs()[logged:])
	}

	limitFiles(t, s, unix.RLIM_INFINITY)
	for n, id := range refused { // every other one is posted again, and must be new to the server
		if n%2 == 0 {
			c.ask(http.StatusAccepted, "POST", "/events", eventJSON("push", id, `{}`))
			accepted[id] = true
		}
	}
	c.awaitLog(hook, len(accepted))
	s.stop()
	got := map[string]int{}
	for _, r := range receiver.got() {
		got[r.event()]++
	}
	for id := range accepted {
		if got[id] != 1 {
			t.Errorf("event %s arrived %d times, want once: nothing crashed", id, got[id])
		}
	}
	if len(got) != len(accepted) {
		t.Errorf("%d events arrived, %d were accepted", len(got), len(accepted))
	}
	checkDatabase(t, s.data)
}

// A disk that is full when the server is killed, and still is when it starts, loses nothing either.
func TestFaultDiskFullAtStart(t *testing.T) {
	needsSQLite(t)
	t.Parallel()
	var up atomic.Bool
	receiver := newReceiver(t, func(*wireRequest) wireAnswer {
		if up.Load() {
			return answerStatus(http.StatusOK)
		}
		return answerHang("")
	})
	s := startContract(t)
	c := in(t, s)
	hook := c.hook(receiver.URL, "push", "")
	c.dispatch("push", `{}`, 1)
	first := receiver.await(1)[0]
	limitFiles(t, s, 0)
	s.kill()
	up.Store(true)

	// What a shell starts has its limits.
	text := commandFails(t, exec.Command("sh", "-c", `ulimit -f 0 && exec posthorn serve --listen 127.0.0.1:0 --data "$0"`, s.data))
	if !strings.Contains(text, "posthorn.db") || !strings.Contains(text, "disk") {
		t.Errorf("it doesn't say what is wrong: %s", text)
	}

	s = startContract(t, "--data", s.data)
	if again := receiver.await(2)[1]; again.delivery() != first.delivery() || again.event() != first.event() {
		t.Errorf("after that came delivery %s of event %s, before it %s of %s", again.delivery(), again.event(), first.delivery(), first.event())
	}
	c.at(s).awaitLog(hook, 1)
	s.stop()
	checkDatabase(t, s.data)
}

// A file or folder that may not be read or written is an error that names it. To root everything is allowed, unless it
// gives that up.
func TestFaultForbidden(t *testing.T) {
	needsSQLite(t)
	t.Parallel()
	s := startContract(t)
	s.stop()
	command := []string{"posthorn", "serve", "--listen", "127.0.0.1:0", "--data", s.data}
	if os.Geteuid() == 0 {
		giveUp := []string{"setpriv", "--bounding-set=-all", "--inh-caps=-all"}
		if exec.Command(giveUp[0], append(giveUp[1:], "true")...).Run() != nil {
			t.Skip("file modes don't bind root, and there is no setpriv to change that")
		}
		command = append(giveUp, command...)
	}
	check := func(name string, mode os.FileMode, want string) {
		t.Helper()
		path := filepath.Join(s.data, name)
		before, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		defer os.Chmod(path, before.Mode())
		if text := commandFails(t, exec.Command(command[0], command[1:]...)); !strings.Contains(text, want) || strings.Count(text, "\n") > 5 {
			t.Errorf("%s with mode %o: it says\n%s\nwant something with %q", name, mode, text, want)
		}
	}
	for _, name := range []string{"posthorn.db", "posthorn.db.lock", "posthorn.db.key", tokenFile} {
		check(name, 0, name)
	}
	check("posthorn.db", 0o400, "posthorn.db can't be written, it is read-only")
	check("", 0o500, "posthorn.db")
	check("", 0, "posthorn.db")

	s = startContract(t, slices.Concat(command[len(command)-2:])...)
	s.stop()
}
