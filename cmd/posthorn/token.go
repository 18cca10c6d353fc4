package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// tokenFile is the name of the file in the data folder that holds the admin token.
const tokenFile = "admin-token"

// adminToken returns the token of the data folder. The first time it makes one, and the folder if that isn't there.
func adminToken(data string, logger *slog.Logger) (string, error) {
	path := filepath.Join(data, tokenFile)
	token, err := readToken(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return token, err
	}
	if err := makeDataFolder(data); err != nil {
		return "", err
	}
	token = rand.Text()
	if err := writeToken(path, token); err != nil {
		return "", fmt.Errorf("write the admin token: %w", err)
	}
	logger.Info("made an admin token", "file", path)
	return token, nil
}

// writeToken writes the file under another name first, so that no crash leaves a part of it.
func writeToken(path, token string) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(token + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func readToken(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read the admin token: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" {
		return "", fmt.Errorf("the admin token in %s is empty: delete the file and start the server to get a new one", path)
	}
	if err := checkToken(token); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return token, nil
}

// checkToken refuses a token that could not be sent in a header.
func checkToken(token string) error {
	for _, r := range token {
		if r <= ' ' || r > '~' {
			return errors.New("an admin token has only letters, digits and punctuation, without spaces")
		}
	}
	return nil
}
