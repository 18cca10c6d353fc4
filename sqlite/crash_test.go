package sqlite

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/musehub/posthorn"
)

// child is what this binary does as another process, instead of testing.
func child() {
	what, path := os.Getenv("POSTHORN_TEST_CHILD"), os.Getenv("POSTHORN_TEST_PATH")
	if what == "" {
		return
	}
	s, err := Open(context.Background(), path)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	switch what {
	case "hold":
		fmt.Println("open")
		select {}
	case "commit":
		childCommits(s)
	}
	os.Exit(0)
}

// childCommits accepts events until it is killed, in batches of some, each for the two webhooks that there are, and records
// what became of some of those before: most batches are partly settled. What it was told is committed it prints: "accepted"
// with the event's ID, "delivered" and "retried" with the webhook's too.
func childCommits(s *Store) {
	must := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	ctx := context.Background()
	_, err := s.Release(ctx, 0, time.Now()) // what the one before has left
	must(err)
	node, err := s.Lease(ctx, 0, time.Now().Add(time.Hour))
	must(err)
	page, err := s.Webhooks(ctx, posthorn.WebhookQuery{})
	must(err)
	a, b := page.Items[0], page.Items[1]
	var held []posthorn.Result
	for n := 0; ; {
		batch := posthorn.Batch{Node: node}
		var told []string
		var next []posthorn.Result
		for range 1 + rand.IntN(4) {
			e := &posthorn.AcceptedEvent{
				ID: fmt.Sprintf("%d-%d", node, n), RepoID: a.RepoID, Type: "push", Payload: payload1K, CreatedAt: time.Now(),
			}
			targets := []posthorn.Target{{WebhookSeq: a.Seq, Leased: true}, {WebhookSeq: b.Seq, Leased: n%3 == 0}}
			if next = append(next, resultOf(a, e)); n%3 == 0 {
				next = append(next, resultOf(b, e))
			}
			batch.Events = append(batch.Events, posthorn.NewEvent{Event: e, Targets: targets, Trigger: posthorn.TriggerAutomatic})
			told = append(told, "accepted "+e.ID)
			n++
		}
		for range rand.IntN(min(5, len(held)+1)) {
			i := rand.IntN(len(held))
			r := held[i]
			held = append(held[:i], held[i+1:]...)
			switch rand.IntN(3) {
			case 0:
				told = append(told, "delivered "+r.Entry.Event.ID+" "+r.Entry.WebhookID)
			case 1:
				r.RetryAt = r.Delivery.DeliveredAt
				r.Delivery.Success, r.Delivery.NextAttemptAt = false, r.RetryAt
				told = append(told, "retried "+r.Entry.Event.ID+" "+r.Entry.WebhookID)
			case 2: // put off
				r.Delivery, r.RetryAt = nil, r.Entry.DueAt
			}
			batch.Results = append(batch.Results, r)
		}
		_, err := s.Commit(ctx, batch)
		must(err)
		held = append(held, next...)
		fmt.Println(strings.Join(told, "\n"))
	}
}

// TestKill kills a process in the middle of its commits, several times. Whatever it was told was committed is there, and
// each entry is either in the queue, in the log, or in both for the next attempt.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "posthorn.db")
	s := open(t, path)
	hooks := make([]posthorn.Webhook, 2)
	for i := range hooks {
		hooks[i] = posthorn.Webhook{ID: fmt.Sprint("webhook-", i), RepoID: "repo", Active: true}
		if err := s.CreateWebhooks(t.Context(), &hooks[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	rounds := 8
	if testing.Short() {
		rounds = 2
	}
	told := map[string]map[string]bool{"accepted": {}, "delivered": {}, "retried": {}}
	for round := range rounds {
		cmd, out := startChild(t, "commit", path)
		stopAt := 5 + rand.IntN(100)
		for lines := 0; ; lines++ {
			line, err := out.ReadString('\n')
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			word, what, _ := strings.Cut(strings.TrimSpace(line), " ")
			if told[word] == nil {
				t.Fatalf("the other process failed: %s", line)
			}
			told[word][what] = true
			if lines == stopAt { // and while it goes on committing
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		kill(cmd)
		if round%2 == 1 {
			checkSurvivors(t, path, hooks, told)
		}
	}
	t.Logf("%d events accepted, %d delivered, %d retried", len(told["accepted"]), len(told["delivered"]), len(told["retried"]))
}

func checkSurvivors(t *testing.T, path string, hooks []posthorn.Webhook, told map[string]map[string]bool) {
	t.Helper()
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Release(t.Context(), 0, time.Now()); err != nil {
		t.Fatal(err)
	}
	w := workload{Store: s, t: t, webhooks: hooks}
	if w.node, err = s.Lease(t.Context(), 0, time.Now()); err != nil {
		t.Fatal(err)
	}
	queued := map[string]int{} // attempts, by event and webhook
	for _, e := range w.claim(1 << 20) {
		what := e.Event.ID + " " + e.WebhookID
		if queued[what] != 0 {
			t.Fatalf("%s is in the queue twice", what)
		}
		queued[what] = e.Attempt
	}
	for id := range told["accepted"] {
		if _, err := s.Event(t.Context(), "repo", id); err != nil {
			t.Fatalf("an accepted event is lost: %v", err)
		}
		for _, hook := range hooks {
			page, err := s.Deliveries(t.Context(), posthorn.DeliveryQuery{RepoID: "repo", WebhookID: hook.ID, EventID: id, Limit: 10})
			if err != nil {
				t.Fatal(err)
			}
			what := id + " " + hook.ID
			attempt, log := queued[what], page.Items
			switch {
			case len(log) == 0 && attempt == 1 && !told["delivered"][what] && !told["retried"][what]:
			case len(log) == 1 && log[0].Success && attempt == 0 && !told["retried"][what]:
			case len(log) == 1 && !log[0].Success && attempt == 2 && !told["delivered"][what]:
			default:
				t.Fatalf("%s has attempt %d in the queue and %d deliveries; it was delivered: %v, retried: %v",
					what, attempt, len(log), told["delivered"][what], told["retried"][what])
			}
		}
	}
}
