package sqlite

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/musehub/posthorn"
	"zombiezen.com/go/sqlite"
)

// secretKeyCheck is the setting by which the Dispatcher knows its keys again. Where it is set, something may have been
// encrypted.
const secretKeyCheck = "secret_key_check"

// SecretKeys returns the keys in the file beside the database, one on a line; the first encrypts. It makes the file with
// one generated key where there is none yet. A backup of the database without that file can't be used.
func (s *Store) SecretKeys(generate func() (string, error)) ([]string, error) {
	s.keysGuard.Lock()
	defer s.keysGuard.Unlock()

	path := KeyFile(s.path)
	keys, err := ReadKeys(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return keys, err
	}
	inUse := false
	err = s.read(context.Background(), func(c *sqlite.Conn) (err error) {
		inUse, err = queryRow(c, func(*sqlite.Stmt) {}, "SELECT 1 FROM posthorn_settings WHERE name = ?", secretKeyCheck)
		return err
	})
	if err != nil {
		return nil, err
	}
	if inUse {
		return nil, posthorn.Errorf(posthorn.CodeUnavailable,
			"the key file %s is missing, and secrets in %s are encrypted with it: put it back", filepath.Base(path), s.name)
	}
	key, err := generate()
	if err != nil {
		return nil, err
	}
	if err := WriteKeys(path, []string{key}); err != nil {
		return nil, err
	}
	return []string{key}, nil
}

// KeyFile returns the path of the file with the keys of a database.
func KeyFile(database string) string { return database + ".key" }

// ReadKeys returns the keys in a key file, of which the first encrypts. Where there is none the error is [fs.ErrNotExist].
func ReadKeys(path string) ([]string, error) {
	name := filepath.Base(path)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err != nil {
		return nil, posthorn.Errorf(posthorn.CodeUnavailable, "the key file %s: %w", name, err)
	}
	if mode := info.Mode().Perm(); runtime.GOOS != "windows" && mode&0o077 != 0 {
		return nil, posthorn.Errorf(posthorn.CodeUnavailable,
			"the key file %s can be read by others (its mode is %04o): run chmod 600 on it", name, mode)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, posthorn.Errorf(posthorn.CodeUnavailable, "the key file %s: %w", name, err)
	}
	keys := strings.Fields(string(data))
	if len(keys) == 0 {
		return nil, posthorn.Errorf(posthorn.CodeUnavailable, "the key file %s is empty: put the keys back", name)
	}
	return keys, nil
}

// WriteKeys puts keys into a key file, in the place of those that it has. A [Store] that is open reads them when it is opened
// the next time.
func WriteKeys(path string, keys []string) error {
	if err := writeFile(path, strings.Join(keys, "\n")+"\n"); err != nil {
		return posthorn.Errorf(posthorn.CodeUnavailable, "the key file %s can't be written: %w", filepath.Base(path), err)
	}
	return nil
}

// writeFile makes a file appear as a whole and stay: a crash leaves all of it or what was there before.
// It stays the file of whoever had it, also where root changes the keys of a server.
func writeFile(path, text string) (err error) {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".*") // with mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if err := keepOwner(f, path); err != nil {
		return err
	}
	if _, err := f.WriteString(text); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes a rename durable. Windows can't open a folder for that, and needs it less.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
