package httpapi

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/sqlite"
)

// A receiver asks for its events, and acknowledges them with the next request.
func TestPoll(t *testing.T) {
	api := startAPI(t, posthorn.Config{})
	path := api.webhook(`{"polled":true,"events":["push"]}`)
	shown := api.do("GET", path, "").ok(http.StatusOK)
	if shown["polled"] != true || shown["url"] != "" {
		t.Errorf("the webhook is shown as %v", shown)
	}
	a := api.do("GET", path+"/poll", "")
	api.matches("pollWebhook", a)
	if got := a.ok(http.StatusOK); len(got["events"].([]any)) != 0 || got["cursor"] != nil {
		t.Errorf("got %v", got)
	}
	posted := api.do("POST", "/api/v1/repos/r1/events", `{"eventType":"push","payload":{"a": 1}}`).ok(http.StatusAccepted)
	a = api.do("GET", path+"/poll?wait=30s", "")
	api.matches("pollWebhook", a)
	got := a.ok(http.StatusOK)
	event := got["events"].([]any)[0].(map[string]any)
	if event["eventId"] != posted["eventId"] || event["payload"] != `{"a": 1}` || event["trigger"] != "automatic" || event["deliveryId"] == "" {
		t.Errorf("got %v", event)
	}
	next := api.do("GET", path+"/poll?cursor="+got["cursor"].(string), "").ok(http.StatusOK)
	if len(next["events"].([]any)) != 0 {
		t.Errorf("once it is acknowledged: %v", next)
	}
	if d := <-api.made; d.ID != event["deliveryId"] || !d.Success {
		t.Errorf("the log has %+v", d)
	}
	logged := api.do("GET", path+"/deliveries/"+event["deliveryId"].(string), "").ok(http.StatusOK)
	if request := logged["request"].(map[string]any); len(request["headers"].(map[string]any)) != 0 || request["curl"] != nil {
		t.Errorf("nothing was requested, with %v", request)
	}
	a = api.do("POST", path+"/deliveries/"+event["deliveryId"].(string)+"/redeliver", "") // whose end nobody waits for
	api.matches("redeliver", a)
	again := a.ok(http.StatusAccepted)
	got = api.do("GET", path+"/poll", "").ok(http.StatusOK)
	if event := got["events"].([]any)[0].(map[string]any); again["success"] != nil || event["deliveryId"] != again["deliveryId"] || event["trigger"] != "redelivery" {
		t.Errorf("the redelivery %v is polled as %v", again, event)
	}
	for query, field := range map[string]string{"wait=long": "wait", "wait=2m": "wait", "limit=0": "limit", "limit=201": "limit", "cursor=AQ": "cursor"} {
		api.do("GET", path+"/poll?"+query, "").problem(http.StatusUnprocessableEntity, "", field)
	}
	api.do("POST", "/api/v1/repos/r1/webhooks", `{"events":["push"]}`).problem(http.StatusUnprocessableEntity, "it is missing", "url")
	api.do("GET", strings.Replace(path, "r1", "r2", 1)+"/poll", "").problem(http.StatusNotFound, "Webhook not found", "")
	api.do("GET", api.webhook(`{"url":"http://127.0.0.1:9/","events":["push"]}`)+"/poll", "").problem(http.StatusConflict, "not polled", "")
}

// pipes are the connections of a server in a bubble.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{} }

// inBubble runs a test in a bubble, with a server over a store of which a commit can go wrong. It has a second to read a request
// and ten to answer it.
func inBubble(t *testing.T, test func(t *testing.T, api *server, store *tampered, connect func() net.Conn)) {
	path := filepath.Join(t.TempDir(), "posthorn.db")
	synctest.Test(t, func(t *testing.T) {
		opened, err := sqlite.Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		defer opened.Close()
		store := &tampered{Store: opened}
		d, err := posthorn.New(store, posthorn.Config{Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer d.Stop(t.Context())
		api, err := New(d, Config{Token: token})
		if err != nil {
			t.Fatal(err)
		}
		listener, serving := make(pipes), &http.Server{Handler: api, ReadTimeout: time.Second, WriteTimeout: 10 * time.Second}
		go serving.Serve(listener)
		defer serving.Close()
		test(t, api.(*server), store, func() net.Conn {
			client, end := net.Pipe()
			listener <- end
			return client
		})
	})
}

// What is done for a request may take longer than the time for sending it, up to that for the answer.
func TestSlowAnswers(t *testing.T) {
	inBubble(t, func(t *testing.T, api *server, store *tampered, connect func() net.Conn) {
		hook, err := api.dispatcher.CreateWebhook(t.Context(), posthorn.NewWebhook{RepoID: "r1", Events: []string{"push"}, Options: posthorn.Options{Polled: true}})
		if err != nil {
			t.Fatal(err)
		}
		const event = `{"eventType":"push","payload":1}`
		webhook := "/webhooks/" + hook.ID
		for _, test := range []struct {
			path, body string
			slow       time.Duration
			want       string
		}{
			{"/events", event, 8 * time.Second, "202 Accepted"},
			{"/events:batch", `{"events":[` + event + `]}`, 8 * time.Second, "202 Accepted"},
			{webhook + "/test", event, 8 * time.Second, "202 Accepted"},
			{webhook + "/ping", "", 8 * time.Second, "202 Accepted"},
			{"/events", event, 20 * time.Second, "503 Service Unavailable"}, // and there is still time to say so
			{webhook + "/test", event, 20 * time.Second, "503 Service Unavailable"},
			{webhook + "/ping", "", 20 * time.Second, "503 Service Unavailable"},
		} {
			store.onCommit(func(do commit) ([]posthorn.Acceptance, error) {
				time.Sleep(test.slow)
				return do()
			})
			client := connect()
			fmt.Fprintf(client, "POST /api/v1/repos/r1%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s",
				test.path, token, len(test.body), test.body)
			answer, err := io.ReadAll(client)
			if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 "+test.want) {
				t.Errorf("%s, whose commit takes %v, was answered %q, %v", test.path, test.slow, answer, err)
			}
			time.Sleep(test.slow) // until the store is free
		}
		// A body that doesn't come is not waited for, and neither is one that means nothing.
		for path, want := range map[string]string{"/events": "408 Request Timeout", webhook + "/test": "408 Request Timeout", webhook + "/deliveries/x/redeliver": "400 Bad Request"} {
			client, began := connect(), time.Now()
			fmt.Fprintf(client, "POST /api/v1/repos/r1%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 9\r\n\r\n{", path, token)
			answer, err := io.ReadAll(client)
			if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 "+want) || time.Since(began) > 2*time.Second {
				t.Errorf("half a body for %s was answered after %v: %q, %v", path, time.Since(began), answer, err)
			}
		}
	})
}

// A poll whose client doesn't read is over after a while, and one that waits as long as it may is not.
func TestPollUnread(t *testing.T) {
	inBubble(t, func(t *testing.T, api *server, _ *tampered, connect func() net.Conn) {
		hook, err := api.dispatcher.CreateWebhook(t.Context(), posthorn.NewWebhook{RepoID: "r1", Events: []string{"push"}, Options: posthorn.Options{Polled: true}})
		if err != nil {
			t.Fatal(err)
		}
		poll := func(wait string) net.Conn {
			client := connect()
			fmt.Fprintf(client, "GET /api/v1/repos/r1/webhooks/%s/poll?wait=%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer %s\r\n\r\n", hook.ID, wait, token)
			return client
		}
		answer, err := io.ReadAll(poll("60s"))
		if err != nil || !strings.Contains(string(answer), "200 OK") || !strings.Contains(string(answer), `"events":[]`) {
			t.Errorf("the one that waited got %q, %v", answer, err)
		}
		if _, err := api.dispatcher.Dispatch(t.Context(), posthorn.Event{RepoID: "r1", Type: "push", Payload: json.RawMessage(`"` + strings.Repeat("x", 1<<16) + `"`)}); err != nil {
			t.Fatal(err)
		}
		client := poll("0s")
		defer client.Close()
		synctest.Wait()
		if n := len(api.waiting); n != 1 {
			t.Fatalf("%d polls are under way", n)
		}
		time.Sleep(pollTime + time.Second)
		synctest.Wait()
		if n := len(api.waiting); n != 0 {
			t.Errorf("%d polls are under way whose client doesn't read", n)
		}
	})
}
