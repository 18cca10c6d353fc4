package pgtest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
)

// oldest is the oldest PostgreSQL that Posthorn supports.
const oldest = 14

// ErrNotFound is returned where there is no PostgreSQL that Posthorn supports.
var ErrNotFound = errors.New("found no initdb of PostgreSQL 14 or newer")

// folders is where PostgreSQL's programs are when they aren't on PATH.
var folders = []string{
	"/usr/lib/postgresql/*/bin",                      // Debian, Ubuntu
	"/usr/lib/postgresql*/bin",                       // SUSE
	"/usr/lib64/postgresql-*/bin",                    // Gentoo
	"/usr/libexec/postgresql*",                       // Alpine
	"/usr/pgsql-*/bin",                               // the packages of postgresql.org for Red Hat and Fedora
	"/opt/homebrew/opt/postgresql*/bin",              // Homebrew
	"/usr/local/opt/postgresql*/bin",                 // Homebrew on Intel
	"/home/linuxbrew/.linuxbrew/opt/postgresql*/bin", // Homebrew on Linux
	"/opt/local/lib/postgresql*/bin",                 // MacPorts
	"/Applications/Postgres.app/Contents/Versions/*/bin",
	"/Library/PostgreSQL/*/bin", // EDB's installer
	"/opt/PostgreSQL/*/bin",
	"/usr/local/pgsql/bin", // from source
}

// find returns the folder with initdb and postgres: PATH's, or else the newest.
func find(ctx context.Context) (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil && version(ctx, filepath.Dir(path)) >= oldest {
		return filepath.Dir(path), nil
	}
	best, newest := "", oldest-1
	for _, pattern := range folders {
		matches, _ := filepath.Glob(pattern) // fails only on a malformed pattern
		for _, bin := range matches {
			if v := version(ctx, bin); v > newest {
				best, newest = bin, v
			}
		}
	}
	if best == "" {
		return "", ErrNotFound
	}
	return best, nil
}

var versionPattern = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// version returns the major version of the PostgreSQL in the folder, 0 if there is none.
func version(ctx context.Context, bin string) int {
	if _, err := os.Stat(filepath.Join(bin, "postgres")); err != nil {
		return 0
	}
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "--version").Output()
	if err != nil {
		return 0
	}
	match := versionPattern.FindSubmatch(out)
	if match == nil {
		return 0
	}
	v, err := strconv.Atoi(string(match[1]))
	if err != nil {
		return 0
	}
	return v
}
