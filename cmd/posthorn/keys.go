package main

import (
	"fmt"

	"github.com/musehub/posthorn/internal/secretbox"
)

type keysCmd struct {
	Generate generateKeyCmd `cmd:"" help:"Print a new key for POSTHORN_SECRET_KEYS."`
}

type generateKeyCmd struct{}

// Help is what --help shows below the summary.
func (generateKeyCmd) Help() string {
	return `On SQLite the server makes a key of its own on its first start: only who wants to keep it elsewhere than beside the
database needs this, or who wants to change it. On PostgreSQL every server has to be given the same:

    POSTHORN_SECRET_KEYS="$(posthorn keys generate)" posthorn serve
    POSTHORN_SECRET_KEYS=NEW,OLD posthorn serve

The first key encrypts, all decrypt.`
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
