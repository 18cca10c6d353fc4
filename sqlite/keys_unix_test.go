//go:build unix

package sqlite

import (
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

// The key file of a server stays its own when somebody else changes the keys, and where it is.
func TestKeyFileKeepsItsOwner(t *testing.T) {
	dir := t.TempDir()
	link, file := filepath.Join(dir, "link"), filepath.Join(dir, "file")
	if err := WriteKeys(file, []string{"old"}); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	owner := os.Getuid()
	if owner == 0 { // anybody else can't give files away
		owner = 1
	}
	if err := os.Chown(file, owner, -1); err != nil {
		t.Fatal(err)
	}
	if err := WriteKeys(link, []string{"new", "old"}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Sys().(*syscall.Stat_t).Uid; int(got) != owner || info.Mode() != 0o600 {
		t.Errorf("the file is the user %d's, with mode %v, want %d's and 0600", got, info.Mode(), owner)
	}
	if keys, err := ReadKeys(link); err != nil || !slices.Equal(keys, []string{"new", "old"}) {
		t.Errorf("keys %q, %v", keys, err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is %v, %v", info.Mode(), err)
	}
}
