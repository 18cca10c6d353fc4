package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/musehub/posthorn/internal/certtest"
)

// Each claim of SECURITY.md names tests, which are there.
func TestSecurityClaims(t *testing.T) {
	root := filepath.Join("..", "..")
	document, err := os.ReadFile(filepath.Join(root, "SECURITY.md"))
	if err != nil {
		t.Fatal(err)
	}
	var sources bytes.Buffer
	err = filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		suite := filepath.Base(filepath.Dir(path)) == "storetest" // whose tests are subtests of each store's TestStore
		if err != nil || !strings.HasSuffix(path, "_test.go") && !(suite && strings.HasSuffix(path, ".go")) {
			return err
		}
		source, err := os.ReadFile(path)
		sources.Write(source)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`((?:[Tt]est|Fuzz)\\w+)`").FindAllSubmatch(document, -1)
	if len(named) < 20 {
		t.Errorf("SECURITY.md names only %d tests", len(named))
	}
	for _, name := range named {
		if !bytes.Contains(sources.Bytes(), append([]byte("func "), append(name[1], '(')...)) {
			t.Errorf("SECURITY.md names %s, which is no test", name[1])
		}
	}
}

// runClient runs a command of the binary against a server and returns what it prints.
func runClient(t *testing.T, s *server, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "posthorn", args...)
	cmd.Env = append(os.Environ(), "POSTHORN_SERVER="+s.url, "POSTHORN_TOKEN="+s.token)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("posthorn %s: %v", strings.Join(args, " "), err)
	}
	return string(out)
}

// Neither a token nor a secret or key is in any file of the data folder, or in the log.
func TestTokenAtRest(t *testing.T) {
	t.Parallel()
	s := startServer(t, "--log-level", "debug")
	run := func(args ...string) string {
		t.Helper()
		return runClient(t, s, args...)
	}
	secrets := map[string]string{"the admin token": s.token}
	take := func(what, output, pattern string) {
		t.Helper()
		found := regexp.MustCompile(pattern).FindString(output)
		if found == "" {
			t.Fatalf("no %s in %q", what, output)
		}
		secrets[what] = found
	}
	take("an API token", run("tokens", "create", "--name", "CI", "--all-repos", "--scope", "webhooks:read"), `posthorn_[A-Z2-7]{33}`)
	take("a signing secret", run("webhooks", "create", "--repo", "r1", "--url", "https://example.com/", "--event", "push", "--generate-secret"), `whsec_\S+`)
	hooks := run("webhooks", "list", "--repo", "r1", "--json")
	hook := regexp.MustCompile(`"webhookId":"([^"]+)"`).FindStringSubmatch(hooks)[1]
	take("its successor", run("secrets", "rotate", "--repo", "r1", hook), `whsec_\S+`)
	secrets["the value of a header"] = "Bearer hush-hush"
	run("webhooks", "create", "--repo", "r1", "--url", "https://example.com/", "--event", "push", "--header", "Authorization: Bearer hush-hush")
	cert, key := certtest.New(t).Client()
	secrets["the key of a client certificate"] = strings.Split(key, "\n")[1]
	paths := files(t, cert, key)
	run("webhooks", "create", "--repo", "r1", "--url", "https://example.com/", "--event", "push", "--tls-client-cert", paths[0], "--tls-client-key", paths[1])
	look := func(least int) {
		t.Helper()
		files := 0
		err := filepath.WalkDir(s.data, func(path string, entry os.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			files++
			content, err := os.ReadFile(path)
			for what, secret := range secrets {
				if bytes.Contains(content, []byte(secret)) && (filepath.Base(path) != tokenFile || what != "the admin token") {
					t.Errorf("%s is in %s", what, filepath.Base(path))
				}
			}
			return err
		})
		if err != nil || files < least {
			t.Errorf("%d files were looked at: %v", files, err)
		}
	}
	look(4) // while it runs, with the write-ahead log
	s.stop()
	look(3)
	for what, secret := range secrets {
		if strings.Contains(s.logs(), secret) {
			t.Errorf("%s is in the log", what)
		}
	}
}
