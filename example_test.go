package posthorn_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/musehub"
	"github.com/musehub/posthorn/signature"
	"github.com/musehub/posthorn/sqlite"
)

// Embed Posthorn: open a store, start a dispatcher, register a webhook, dispatch an event.
func Example() {
	receiver := exampleReceiver()
	dir, _ := os.MkdirTemp("", "posthorn")
	defer os.RemoveAll(dir)
	ctx := context.Background()

	store, err := sqlite.Open(ctx, filepath.Join(dir, "posthorn.db"))
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	d, err := posthorn.New(store, posthorn.Config{AllowTargets: []string{"127.0.0.1"}}) // the receiver is on this machine
	if err != nil {
		log.Fatal(err)
	}
	if err := d.Start(ctx); err != nil {
		log.Fatal(err)
	}
	d.CreateWebhook(ctx, posthorn.NewWebhook{RepoID: "r1", URL: receiver.URL, Events: []string{"push"}, Secret: "s3cret"})
	receipt, err := d.Dispatch(ctx, posthorn.Event{RepoID: "r1", Type: musehub.Push, Payload: musehub.PushPayload{RepoID: "r1", Branch: "main"}})
	fmt.Println("accepted for", receipt.Deliveries, "webhook:", err == nil)

	fmt.Println(<-receiver.received)
	d.Stop(ctx) // lets requests in flight finish
	receiver.Close()
	// Output:
	// accepted for 1 webhook: true
	// verified push: {"repoId":"r1","branch":"main","headCommitId":"","pushedBy":"","commitCount":0}
}

type printingReceiver struct {
	*httptest.Server
	received chan string
}

func exampleReceiver() printingReceiver {
	received := make(chan string, 1)
	verifier, err := signature.NewVerifier("s3cret")
	if err != nil {
		log.Fatal(err)
	}
	receive := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			log.Print(err)
		}
		received <- fmt.Sprintf("verified %s: %s", r.Header.Get("X-MuseHub-Event"), body)
	})
	return printingReceiver{httptest.NewServer(verifier.Middleware(receive)), received}
}
