package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/musehub/posthorn/internal/pgtest"
	"github.com/musehub/posthorn/internal/secretbox"
)

// TestScripts runs testdata/*.txtar. Beside testscript's own, they have these commands:
//
//	exits CODE PROGRAM [ARG…]              runs a program that must end with that exit code
//	start NAME PROGRAM [ARG…]              starts a program in the background; it is killed at the end of the script
//	await NAME REGEXP [VAR…]               waits until it has written that, and sets the variables to the groups
//	signal NAME INT|TERM|KILL              sends it a signal
//	finish NAME CODE                       waits until it has ended, with that exit code; its output is what stdout, stderr see
//	capture REGEXP VAR…                    sets the variables to the groups of a match in the last program's output
//	eventually REGEXP PROGRAM [ARG…]       runs a program again and again until its output matches
//	mode PERM FILE                         checks a file's permissions
//
// With the servers of the tests on PostgreSQL it runs those of scriptsOnBoth.
func TestScripts(t *testing.T) {
	dir, files := "testdata", []string(nil) // of which testscript takes one
	if onPostgres() {
		dir, files = "", scriptsOnBoth
	}
	key, err := secretbox.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		Files:               files,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Values[processes{}] = map[string]*process{}
			env.Setenv("GORACE", goRace)
			env.Setenv("POSTHORN_DNS_SERVER", noDNS)
			if onPostgres() {
				env.Setenv("POSTHORN_DATABASE", pgtest.URL(t))
				env.Setenv("POSTHORN_SECRET_KEYS", key)
				env.Setenv("POSTHORN_MIGRATE", "true")
			}
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits":      scriptExits,
			"start":      scriptStart,
			"await":      scriptAwait,
			"signal":     scriptSignal,
			"finish":     scriptFinish,
			"capture":    scriptCapture,
			"eventually": scriptEventually,
			"mode":       scriptMode,
		},
	})
}

// scriptsOnBoth are those about what stores do, and not about what commands print.
var scriptsOnBoth = []string{"testdata/control.txtar", "testdata/replays.txtar"}

// processes is the key of a script's background processes, a map by name.
type processes struct{}

func running(ts *testscript.TestScript, name string) *process {
	p := ts.Value(processes{}).(map[string]*process)[name]
	if p == nil {
		ts.Fatalf("no process %q was started", name)
	}
	return p
}

func need(ts *testscript.TestScript, neg bool, args []string, n int, usage string) {
	if neg || len(args) < n {
		ts.Fatalf("usage: %s", usage)
	}
}

func scriptExits(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "exits CODE PROGRAM [ARG…]")
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		code = exit.ExitCode()
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("the exit code is %d, want %s", code, args[0])
	}
}

func scriptStart(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "start NAME PROGRAM [ARG…]")
	cmd := exec.Command(args[1], args[2:]...)
	cmd.Dir = ts.MkAbs(".")
	ts.Check(ts.Exec("environ")) // the script's environment can't be had in another way
	cmd.Env = strings.Split(strings.TrimSuffix(ts.ReadFile("stdout"), "\n"), "\n")
	p, err := startProcess(cmd)
	ts.Check(err)
	ts.Defer(func() {
		_ = p.cmd.Process.Kill()
		<-p.exited
	})
	ts.Value(processes{}).(map[string]*process)[args[0]] = p
}

func scriptAwait(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "await NAME REGEXP [VAR…]")
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	found, err := running(ts, args[0]).await(re)
	if err != nil {
		ts.Fatalf("%s: %v", args[0], err)
	}
	setGroups(ts, found, args[2:])
}

func setGroups(ts *testscript.TestScript, found, names []string) {
	if len(found)-1 != len(names) {
		ts.Fatalf("%d groups for %d variables", len(found)-1, len(names))
	}
	for i, name := range names {
		ts.Setenv(name, found[i+1])
	}
}

func scriptSignal(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "signal NAME INT|TERM|KILL")
	signals := map[string]os.Signal{"INT": os.Interrupt, "TERM": syscall.SIGTERM, "KILL": os.Kill}
	ts.Check(running(ts, args[0]).cmd.Process.Signal(signals[args[1]]))
}

func scriptFinish(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "finish NAME CODE")
	p := running(ts, args[0])
	code, err := p.exitCode()
	if err != nil {
		ts.Fatalf("%s: %v", args[0], err)
	}
	_, err = io.WriteString(ts.Stdout(), p.stdout.String())
	ts.Check(err)
	_, err = io.WriteString(ts.Stderr(), p.stderr.String())
	ts.Check(err)
	if strconv.Itoa(code) != args[1] {
		ts.Fatalf("%s: the exit code is %d, want %s\n%s", args[0], code, args[1], &p.stderr)
	}
}

func scriptCapture(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "capture REGEXP VAR…")
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	found := re.FindStringSubmatch(ts.ReadFile("stdout"))
	if found == nil {
		ts.Fatalf("nothing matches %q in:\n%s", args[0], ts.ReadFile("stdout"))
	}
	setGroups(ts, found, args[1:])
}

func scriptEventually(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "eventually REGEXP PROGRAM [ARG…]")
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	timeout := time.After(patience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ts.Exec(args[1], args[2:]...)
		if err == nil && re.MatchString(ts.ReadFile("stdout")) {
			return
		}
		select {
		case <-tick.C:
		case <-timeout:
			ts.Fatalf("within %v the output did not match %q", patience, re)
		}
	}
}

func scriptMode(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "mode PERM FILE")
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := strconv.FormatUint(uint64(info.Mode().Perm()), 8); got != args[0] {
		ts.Fatalf("the mode of %s is %s, want %s", args[1], got, args[0])
	}
}
