// With runs a command, such as go test, with a PostgreSQL for the tests: the one
// that POSTHORN_TEST_POSTGRES_URL names, or one that lives as long as the command.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/musehub/posthorn/internal/pgtest"
)

const (
	startTimeout   = 2 * time.Minute
	installTimeout = 15 * time.Minute
)

const howToGet = `with: %v, and the tests need one.

  Debian, Ubuntu   apt-get install postgresql
  Fedora, RHEL     dnf install postgresql-server
  macOS            brew install postgresql
  others           https://www.postgresql.org/download/

It is enough that it is installed: the tests start their own server with it and
remove that when they end. To use a server that is running, set
POSTHORN_TEST_POSTGRES_URL to the URL of a user who may create databases.
`

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: go run ./internal/pgtest/with COMMAND [ARGUMENT]...")
		os.Exit(2)
	}
	code, err := run(os.Args[1], os.Args[2:])
	if errors.Is(err, pgtest.ErrNotFound) {
		fmt.Fprintf(os.Stderr, howToGet, err)
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "with:", err)
	}
	os.Exit(code)
}

// run returns the code to exit with: the command's, unless something else failed.
func run(name string, args []string) (code int, err error) {
	// Caught from the start: nothing that arrives may keep the server from being removed.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)

	if os.Getenv(pgtest.EnvURL) != "" {
		return command(signals, name, args, nil)
	}

	dir, err := os.MkdirTemp("", "posthorn-pg-")
	if err != nil {
		return 1, err
	}
	defer func() {
		if removeErr := os.RemoveAll(dir); removeErr != nil {
			code, err = 1, errors.Join(err, removeErr)
		}
	}()
	cluster, err := start(dir)
	if errors.Is(err, pgtest.ErrNotFound) && mayInstall() {
		if err := install(); err != nil {
			return 1, err
		}
		cluster, err = start(dir)
	}
	if err != nil {
		return 1, err
	}
	defer cluster.Stop()
	return command(signals, name, args, []string{
		pgtest.EnvURL + "=" + cluster.URL("postgres"),
		pgtest.EnvRequired + "=1",
		pgtest.EnvDir + "=" + dir,
	})
}

func start(dir string) (*pgtest.Cluster, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	cluster, err := pgtest.NewCluster(ctx, dir)
	if err != nil {
		return nil, err
	}
	return cluster, cluster.Start(ctx)
}

// mayInstall reports whether this is root on Debian or one of its descendants.
func mayInstall() bool {
	_, err := exec.LookPath("apt-get")
	return err == nil && runtime.GOOS == "linux" && os.Geteuid() == 0
}

func install() error {
	fmt.Fprintln(os.Stderr, "with: found no PostgreSQL, so this installs the package postgresql")
	ctx, cancel := context.WithTimeout(context.Background(), installTimeout)
	defer cancel()
	for _, args := range [][]string{
		{"update", "-qq"},
		{"install", "-y", "-qq", "--no-install-recommends", "postgresql"},
	} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("apt-get %s: %w", args[0], err)
		}
	}
	return nil
}

// command runs the command, hands it the signals that arrive, and returns its
// exit code.
func command(signals <-chan os.Signal, name string, args, env []string) (int, error) {
	cmd := exec.CommandContext(context.Background(), name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), env...)
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	ended := make(chan struct{})
	go func() {
		for {
			select {
			case s := <-signals:
				_ = cmd.Process.Signal(s) // fails when it has ended already
			case <-ended:
				return
			}
		}
	}()
	err := cmd.Wait()
	close(ended)
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return cmd.ProcessState.ExitCode(), err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil // as a shell says it
	}
	return exit.ExitCode(), nil
}
