package main

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/musehub/posthorn/internal/pgtest"
)

// These tests are about PostgreSQL, whatever store the servers of the others are on.

// usePostgres makes a database for the test, and sets the variables of the environment that nodes share.
func usePostgres(t *testing.T) *url.URL {
	t.Helper()
	database, err := url.Parse(pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("POSTHORN_DATABASE", database.String())
	t.Setenv("POSTHORN_SECRET_KEYS", newKey(t))
	t.Setenv("POSTHORN_ADMIN_TOKEN", "shared")
	return database
}

// prints runs posthorn, which must succeed and print something that matches.
func prints(t *testing.T, want string, args ...string) {
	t.Helper()
	out, err := exec.Command("posthorn", args...).CombinedOutput()
	if err != nil || !regexp.MustCompile("(?m)"+want).Match(out) {
		t.Errorf("posthorn %s: %v\n%s\nwant something like %q", strings.Join(args, " "), err, out, want)
	}
}

func TestPostgresMigrate(t *testing.T) {
	database := usePostgres(t)
	const first = `^1 +0001_\S+ +`
	applied := first + `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$`
	prints(t, first+"pending$", "migrate", "status")
	if text := serveFails(t); !strings.Contains(text, "posthorn migrate up") {
		t.Errorf("without the schema the server says %s", text)
	}
	prints(t, `^ran 0001_\S+$`, "migrate", "up")
	prints(t, applied, "migrate", "status")
	prints(t, "^nothing to do", "migrate", "up")
	startServer(t).stop()

	// Another schema is another Posthorn.
	other := []string{"--database-schema", "Other hooks"}
	prints(t, first+"pending$", append([]string{"migrate", "status"}, other...)...)
	s := startServer(t, append(other, "--migrate")...)
	if !strings.Contains(s.logs(), `"schema":"Other hooks"`) {
		t.Error("the log doesn't name the schema")
	}
	s.stop()
	prints(t, applied, append([]string{"migrate", "status"}, other...)...)

	// A password shows nowhere, be it right or wrong.
	database.User = url.UserPassword(database.User.Username(), "hunter2")
	database.Path = "/posthorn_test_none"
	t.Setenv("POSTHORN_DATABASE", database.String())
	if text := serveFails(t); !strings.Contains(text, database.Host) || strings.Contains(text, "hunter2") {
		t.Errorf("with a database that isn't there the server says %s", text)
	}
}

// Two servers on one database have the same webhooks, and hear of each other's changes.
func TestPostgresNodes(t *testing.T) {
	database := usePostgres(t)
	receiver := newReceiver(t, nil)
	s := []*server{startContract(t, "--migrate"), startContract(t, "--database-connections", "3")}
	one := in(t, s[0])
	two := one.at(s[1])
	hook := one.hook(receiver.URL, "push", "s3cret")
	for n, c := range []*contract{two, one} {
		event := c.dispatch("push", `{}`, 1)
		r := receiver.await(n + 1)[n]
		if r.event() != event {
			t.Errorf("event %s arrived, want %s", r.event(), event)
		}
		checkSigned(t, r, "s3cret")
	}
	one.awaitLog(hook, 2)
	two.awaitLog(hook, 2)

	two.ask(http.StatusOK, "PATCH", "/webhooks/"+hook, `{"secret":"n3w","secretOverlap":0}`)
	arrived := 2
	eventually(t, func() string {
		one.dispatch("push", `{}`, 1)
		arrived++
		r := receiver.await(arrived)[arrived-1]
		if r.Header.Get("X-MuseHub-Signature") != museHubSignature("n3w", r.Body) {
			return "the first server signs with the secret that the second has replaced"
		}
		return ""
	})
	one.ask(http.StatusOK, "PATCH", "/webhooks/"+hook, `{"active":false}`)
	eventually(t, func() string {
		a := two.ask(http.StatusAccepted, "POST", "/events", eventJSON("push", "", `{}`))
		if n := read[struct{ Deliveries int }](two, a).Deliveries; n != 0 {
			return fmt.Sprintf("the second server takes an event for %d webhooks, and the first has paused the only one", n)
		}
		return ""
	})

	for _, s := range s {
		// The token is in the environment, and all else in the database.
		if _, err := os.Stat(s.data); !os.IsNotExist(err) {
			t.Errorf("the data folder was made: %v", err)
		}
		want := fmt.Sprintf(`"host":%q,"database":%q,"schema":"posthorn"`, database.Host, strings.TrimPrefix(database.Path, "/"))
		if logs := s.logs(); !strings.Contains(logs, want) {
			t.Errorf("the log doesn't name the database as %s: %s", want, logs)
		} else if password, ok := database.User.Password(); ok && password != "" && strings.Contains(logs, password) {
			t.Error("the log has the database's password")
		}
	}

	// A third one with other keys is refused.
	keys := os.Getenv("POSTHORN_SECRET_KEYS")
	t.Setenv("POSTHORN_SECRET_KEYS", newKey(t))
	if text := serveFails(t); !strings.Contains(text, "do not fit") || !strings.Contains(text, "POSTHORN_SECRET_KEYS") {
		t.Errorf("with other keys a server says %s", text)
	}
	t.Setenv("POSTHORN_SECRET_KEYS", keys)
	s[0].stop()
	two.ask(http.StatusOK, "PATCH", "/webhooks/"+hook, `{"active":true}`)
	two.dispatch("push", `{}`, 1)
	two.s.stop()
}
