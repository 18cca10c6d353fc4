package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"path/filepath"
	"strconv"

	"github.com/musehub/posthorn/internal/secretbox"
	"github.com/musehub/posthorn/sqlite"
)

type keysCmd struct {
	Generate generateKeyCmd `cmd:"" help:"Print a new key for POSTHORN_SECRET_KEYS."`
	Rotate   rotateKeyCmd   `cmd:"" help:"Put a new key in front, which encrypts everything from the server's next start on."`
	Status   keyStatusCmd   `cmd:"" help:"Ask a running server how many secrets are yet to be encrypted with the first key."`
	Prune    pruneKeysCmd   `cmd:"" help:"Remove the keys that nothing is encrypted with any more."`
}

type generateKeyCmd struct{}

// Help is what --help shows below the summary.
func (generateKeyCmd) Help() string {
	return `On SQLite the server makes a key of its own on its first start: only who wants to keep it elsewhere than beside the
database needs this. On PostgreSQL every server has to be given the same:

    POSTHORN_SECRET_KEYS="$(posthorn keys generate)" posthorn serve

The first key encrypts, all decrypt. How to change keys says posthorn keys rotate --help.`
}

// Run prints the key.
func (generateKeyCmd) Run() error {
	key, err := secretbox.GenerateKey()
	if err != nil {
		return err
	}
	_, err = fmt.Println(key)
	return err
}

// keyFile is where the keys are that a command changes.
type keyFile struct {
	databaseFlags
}

// path returns the key file's path, or "" where the keys come from the environment.
func (f keyFile) path(data string) (string, error) {
	if err := f.check(); err != nil {
		return "", err
	}
	if f.onPostgres() || len(secretKeys()) > 0 {
		return "", nil
	}
	file, err := database{databaseFlags: f.databaseFlags}.file(data)
	if err != nil {
		return "", err
	}
	if target, err := filepath.EvalSymlinks(file); err == nil {
		file = target // beside which the store has it
	}
	return sqlite.KeyFile(file), nil
}

// keys reads the key file.
func (keyFile) keys(path string) ([]string, error) {
	keys, err := sqlite.ReadKeys(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no key file %s: give the folder with --data; the first start of posthorn serve makes it, "+
			"unless the keys are in POSTHORN_SECRET_KEYS", path)
	}
	return keys, err
}

type rotateKeyCmd struct {
	Data string `default:"./posthorn-data" placeholder:"DIR" help:"The server's data folder (default ${default})."`
	keyFile
}

// Help is what --help shows below the summary.
func (*rotateKeyCmd) Help() string {
	return `The keys encrypt the signing secrets in the database. To change them:

    posthorn keys rotate      # puts a new key into the key file, before the others
    systemctl restart posthorn
    posthorn keys status      # until nothing is left: the server encrypts everything anew in the background
    posthorn keys prune       # removes the others from the key file

It can be interrupted at any point and goes on with the next start. Where the keys are in POSTHORN_SECRET_KEYS, this prints
a new one and what to do with it. Backups need the keys of their time: keep the old ones as long as those.`
}

// Run adds the key.
func (c *rotateKeyCmd) Run() error {
	path, err := c.path(c.Data)
	if err != nil {
		return err
	}
	key, err := secretbox.GenerateKey()
	if err != nil {
		return err
	}
	if path == "" {
		fmt.Printf(`The keys are given in POSTHORN_SECRET_KEYS, which only you can change. A new key:

    %s

1. Restart every server with POSTHORN_SECRET_KEYS=OLD,NEW so that all of them decrypt with it. One server skips this.
2. Restart every server with POSTHORN_SECRET_KEYS=NEW,OLD so that it encrypts, and wait until posthorn keys status says
   that nothing is left.
3. Restart every server with POSTHORN_SECRET_KEYS=NEW.
`, key)
		return nil
	}
	keys, err := c.keys(path)
	if err != nil {
		return err
	}
	if err := sqlite.WriteKeys(path, append([]string{key}, keys...)); err != nil {
		return err
	}
	fmt.Printf("%s has a new first key, and %d behind it. Restart posthorn serve: it encrypts everything anew with the new one.\n"+
		"When posthorn keys status says that nothing is left, posthorn keys prune removes the others.\n", path, len(keys))
	return nil
}

// keyStatus is the API's answer about keys.
type keyStatus struct {
	First      string `json:"first"`
	Keys       int    `json:"keys"`
	Left       int    `json:"left"`
	Unreadable int    `json:"unreadable"`
}

func (s keyStatus) show() error {
	err := details(field{"first key", s.First}, field{"keys", strconv.Itoa(s.Keys)}, field{"left", strconv.Itoa(s.Left)},
		field{"unreadable", strconv.Itoa(s.Unreadable)})
	switch {
	case err != nil:
		return err
	case s.Left > 0:
		fmt.Println("Keep all keys: some secrets are yet to be encrypted with the first one.")
	case s.Unreadable > 0:
		fmt.Println("Keep all keys: some secrets can't be read. Add the key that encrypted them behind the others and restart the server, or set them again.")
	case s.Keys > 1:
		fmt.Println("Nothing is left: the keys but the first can be removed.")
	}
	return nil
}

type keyStatusCmd struct{ connection }

// Run prints the status.
func (c *keyStatusCmd) Run() error {
	return perform(c.connection, request{method: http.MethodGet, path: "/secret-keys"}, keyStatus.show)
}

type pruneKeysCmd struct {
	connection
	keyFile
}

// Help is what --help shows below the summary.
func (*pruneKeysCmd) Help() string {
	return `Asks the running server first: it does nothing while secrets are left that are not encrypted with the first key of the
key file, or that can't be read at all, or when the server was not restarted since posthorn keys rotate. Backups need the keys
of their time.`
}

// Run removes the keys.
func (c *pruneKeysCmd) Run() error {
	path, err := c.path(c.Data)
	if err != nil {
		return err
	}
	if path == "" {
		return errors.New("the keys are given in POSTHORN_SECRET_KEYS, which only you can change: when posthorn keys status says that nothing " +
			"is left, restart every server with the first one alone")
	}
	keys, err := c.keys(path)
	if err != nil {
		return err
	}
	first, err := secretbox.Fingerprint(keys[0])
	if err != nil {
		return err
	}
	api, err := c.connect()
	if err != nil {
		return err
	}
	answer, err := api.call(context.Background(), request{method: http.MethodGet, path: "/secret-keys"})
	if err != nil {
		return err
	}
	return decode(answer, func(s keyStatus) error {
		switch {
		case s.First != first:
			return fmt.Errorf("the server encrypts with another key than the first one in %s: restart it", path)
		case s.Left > 0:
			return fmt.Errorf("%d secrets are yet to be encrypted with the first key: nothing was removed", s.Left)
		case s.Unreadable > 0: // one of the keys may be there to read them
			return fmt.Errorf("%d secrets can't be read: nothing was removed. Restart the server if you have added their key since, or set them again", s.Unreadable)
		}
		if err := sqlite.WriteKeys(path, keys[:1]); err != nil {
			return err
		}
		fmt.Printf("removed %d keys from %s\n", len(keys)-1, path)
		return nil
	})
}
