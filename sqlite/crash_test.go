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

// childCommits accepts events until it is killed, each one for the two webhooks that there are, and records every other
// one's first delivery. What it was told is committed it prints: "accepted" and "delivered", with the event's ID.
func childCommits(s *Store) {
	must := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	ctx := context.Background()
	node, err := s.Lease(ctx, 0, time.Now().Add(time.Hour))
	must(err)
	page, err := s.Webhooks(ctx, posthorn.WebhookQuery{})
	must(err)
	a, b := page.Items[0], page.Items[1]
	for i := 0; ; i++ {
		e := &posthorn.AcceptedEvent{
			ID: fmt.Sprintf("%d-%d", node, i), RepoID: a.RepoID, Type: "push", Payload: payload1K, CreatedAt: time.Now(),
		}
		targets := []posthorn.Target{{WebhookSeq: a.Seq, Leased: true}, {WebhookSeq: b.Seq, Leased: i%3 == 0}}
		_, err := s.Commit(ctx, posthorn.Batch{Node: node, Events: []posthorn.NewEvent{
			{Event: e, Targets: targets, Trigger: posthorn.TriggerAutomatic},
		}})
		must(err)
		fmt.Println("accepted", e.ID)
		if i%2 == 0 {
			_, err = s.Commit(ctx, posthorn.Batch{Node: node, Results: []posthorn.Result{resultOf(a, e)}})
			must(err)
			fmt.Println("delivered", e.ID)
		}
	}
}

// TestKill kills a process in the middle of its commits, several times. Whatever it was told was committed is there, and
// each entry is either in the queue or in the log.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "posthorn.db")
	s := open(t, path)
	hooks := make([]posthorn.Webhook, 2)
	for i := range hooks {
		hooks[i] = posthorn.Webhook{ID: fmt.Sprint("webhook-", i), RepoID: "repo", Active: true}
		if err := s.CreateWebhook(t.Context(), &hooks[i]); err != nil {
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
	accepted, delivered := map[string]bool{}, map[string]bool{}
	for range rounds {
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
			switch word, id, _ := strings.Cut(strings.TrimSpace(line), " "); word {
			case "accepted":
				accepted[id] = true
			case "delivered":
				delivered[id] = true
			default:
				t.Fatalf("the other process failed: %s", line)
			}
			if lines == stopAt { // and while it goes on committing
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		kill(cmd)
		checkSurvivors(t, path, hooks, accepted, delivered)
	}
	t.Logf("%d events accepted, %d delivered", len(accepted), len(delivered))
}

func checkSurvivors(t *testing.T, path string, hooks []posthorn.Webhook, accepted, delivered map[string]bool) {
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
	queued := map[string]int{} // by webhook and event
	for _, e := range w.claim(1 << 20) {
		queued[e.WebhookID+e.Event.ID]++
	}
	for id := range accepted {
		if _, err := s.Event(t.Context(), "repo", id); err != nil {
			t.Fatalf("an accepted event is lost: %v", err)
		}
		for i, hook := range hooks {
			page, err := s.Deliveries(t.Context(), posthorn.DeliveryQuery{RepoID: "repo", WebhookID: hook.ID, EventID: id, Limit: 10})
			if err != nil {
				t.Fatal(err)
			}
			logged := len(page.Items)
			if n := queued[hook.ID+id]; n+logged != 1 {
				t.Fatalf("event %s has %d entries and %d deliveries for %s", id, n, logged, hook.ID)
			}
			if i == 0 && delivered[id] && logged == 0 {
				t.Fatalf("the delivery of event %s is lost", id)
			}
		}
	}
}
