package main

import (
	"bufio"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/musehub/posthorn/internal/pgtest"
)

// asProgram, when set, has the test binary be the program.
const asProgram = "POSTHORN_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

func TestExitCode(t *testing.T) {
	requirePostgres(t)
	cmd, dir := with(t, "sh", "-c", `test -d "$POSTHORN_TEST_POSTGRES_DIR" && exit 7`)
	if out, _ := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("%v, want exit status 7\n%s", cmd.ProcessState, out)
	}
	checkEmpty(t, dir)
}

func TestNoSuchCommand(t *testing.T) {
	requirePostgres(t)
	cmd, dir := with(t, filepath.Join(t.TempDir(), "nothing"))
	if out, _ := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("%v, want exit status 1\n%s", cmd.ProcessState, out)
	}
	checkEmpty(t, dir)
}

func TestGivenServer(t *testing.T) {
	cmd, dir := with(t, "sh", "-c", `echo "$POSTHORN_TEST_POSTGRES_URL$POSTHORN_TEST_POSTGRES_DIR"`)
	cmd.Env = append(cmd.Env, pgtest.EnvURL+"=postgres://given", pgtest.EnvDir+"=")
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "postgres://given\n" {
		t.Errorf("the command got %q: %v", out, err)
	}
	checkEmpty(t, dir)
}

func TestSignal(t *testing.T) {
	requirePostgres(t)
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(s.String(), func(t *testing.T) {
			cmd, dir := with(t, "sh", "-c", `echo "$POSTHORN_TEST_POSTGRES_URL"; exec cat`)
			if _, err := cmd.StdinPipe(); err != nil { // stays open, so that cat doesn't end
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			server := strings.TrimSpace(line)
			conn, err := pgx.Connect(t.Context(), server)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(t.Context())

			if err := cmd.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 128+int(s) {
				t.Errorf("%v, want exit status %d", cmd.ProcessState, 128+int(s))
			}
			if conn, err := pgx.Connect(t.Context(), server); err == nil {
				conn.Close(t.Context())
				u, _ := url.Parse(server)
				t.Errorf("there is still a server at %s", u.Host)
			}
			checkEmpty(t, dir)
		})
	}
}

// requirePostgres skips the test where with would have to install a PostgreSQL, or fail.
func requirePostgres(t *testing.T) {
	t.Helper()
	pgtest.StartCluster(t)
}

// with returns the program, about to run a command, and its temporary folder.
func with(t *testing.T, args ...string) (*exec.Cmd, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "posthorn-with-") //nolint:usetesting // the user that a server of root's runs as can't reach t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), asProgram+"=1", pgtest.EnvURL+"=", pgtest.EnvDir+"=", "TMPDIR="+dir)
	return cmd, dir
}

func checkEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("%s is left behind", e.Name())
	}
}
