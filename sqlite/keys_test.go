package sqlite

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/musehub/posthorn"
)

func TestSecretKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "posthorn.db")
	s := open(t, path)
	generated := 0
	generate := func() (string, error) {
		generated++
		return strings.Repeat("k", generated), nil
	}
	want := func(keys ...string) {
		t.Helper()
		got, err := s.SecretKeys(generate)
		if err != nil || !slices.Equal(got, keys) {
			t.Fatalf("keys %q, %v, want %q", got, err, keys)
		}
	}

	refusal := errors.New("no randomness")
	if _, err := s.SecretKeys(func() (string, error) { return "", refusal }); !errors.Is(err, refusal) {
		t.Fatal(err)
	}
	if _, err := os.Stat(path + ".key"); err == nil {
		t.Fatal("there is a key file without a key")
	}

	want("k")
	want("k")
	if generated != 1 {
		t.Fatalf("%d keys were generated", generated)
	}
	if info, err := os.Stat(path + ".key"); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Fatalf("key file: %v, %v", info, err)
	}
	if left, _ := filepath.Glob(path + ".key.*"); len(left) > 0 {
		t.Fatalf("left behind: %q", left)
	}

	// A key that was put in front encrypts from now on.
	if err := os.WriteFile(path+".key", []byte("new\n\n  old \r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	want("new", "old")

	if err := WriteKeys(KeyFile(path), []string{"newest", "new", "old"}); err != nil {
		t.Fatal(err)
	}
	want("newest", "new", "old")
	if info, err := os.Stat(KeyFile(path)); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Fatalf("key file: %v, %v", info, err)
	}

	// Keys that are lost are replaced only while nothing was encrypted with them.
	if err := os.Remove(path + ".key"); err != nil {
		t.Fatal(err)
	}
	want("kk")
	if _, err := s.Setting(t.Context(), "secret_key_check", "sealed"); err != nil {
		t.Fatal(err)
	}
	want("kk")
	if err := os.Remove(path + ".key"); err != nil {
		t.Fatal(err)
	}
	_, err := s.SecretKeys(generate)
	wantCode(t, err, posthorn.CodeUnavailable, "posthorn.db.key is missing")

	if err := os.WriteFile(path+".key", []byte("\n \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = s.SecretKeys(generate)
	wantCode(t, err, posthorn.CodeUnavailable, "posthorn.db.key is empty")
}

func TestSecretKeysReadByOthers(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes")
	}
	path := filepath.Join(t.TempDir(), "posthorn.db")
	s := open(t, path)
	if err := os.WriteFile(path+".key", []byte("key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o666} {
		if err := os.Chmod(path+".key", mode); err != nil {
			t.Fatal(err)
		}
		_, err := s.SecretKeys(nil)
		wantCode(t, err, posthorn.CodeUnavailable, "chmod 600")
	}
	if err := os.Chmod(path+".key", 0o400); err != nil {
		t.Fatal(err)
	}
	if keys, err := s.SecretKeys(nil); err != nil || !slices.Equal(keys, []string{"key"}) {
		t.Fatalf("keys %q, %v", keys, err)
	}
}

func TestSecretKeysAtOnce(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "posthorn.db"))
	var generated int
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			keys, err := s.SecretKeys(func() (string, error) {
				generated++ // one call at a time
				return "key", nil
			})
			if err != nil || !slices.Equal(keys, []string{"key"}) {
				t.Errorf("keys %q, %v", keys, err)
			}
		})
	}
	wg.Wait()
	if generated != 1 {
		t.Fatalf("%d keys were generated", generated)
	}
}
