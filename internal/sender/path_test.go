package sender

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
)

func TestParseURLKeepsThePath(t *testing.T) {
	for raw, want := range map[string]string{
		"http://h/a%2Fb|c":           "/a%2Fb%7Cc",
		"http://h/%7Euser/é~?q=|":    "/%7Euser/%C3%A9~?q=|",
		"http://h/a%2fb":             "/a%2fb",
		"http://h/a[b]!$&'()*+,;=:@": "/a[b]!$&'()*+,;=:@",
		"http://h":                   "/",
		"http://h?a=b/c|d":           "/?a=b/c|d",
		"http://h/{id}#f/|":          "/%7Bid%7D",
		"http://h//a/../b/./":        "//a/../b/./",
	} {
		u, err := ParseURL(raw)
		if err != nil {
			t.Errorf("%s: %v", raw, err)
			continue
		}
		if got := u.RequestURI(); got != want {
			t.Errorf("%s goes out as %s, want %s", raw, got, want)
		}
	}
	if _, err := ParseURL("http://h/%zz"); err == nil {
		t.Error("an escape that is none was accepted")
	}
}

// A receiver that keeps connections and then closes them without a word costs no attempt, unless the request was on its
// way when it did: then nobody can tell what it has seen.
func TestKeptConnectionsThatAreClosed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				r, err := http.ReadRequest(bufio.NewReader(c))
				if err != nil {
					return
				}
				buf := make([]byte, r.ContentLength)
				_, _ = r.Body.Read(buf)
				_, _ = c.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
			})
		}
	})
	defer serving.Wait()
	defer l.Close()
	target, err := ParseTarget(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{AllowTargets: []Target{target}, Timeout: patience})
	defer s.Close()
	u, err := s.CheckURL("http://" + l.Addr().String() + "/")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	failed := map[string]int{}
	var sending sync.WaitGroup
	for range 16 {
		sending.Go(func() {
			for range 300 {
				o := s.Send(context.Background(), &Request{URL: u, Header: http.Header{}, Body: []byte("{}")})
				if o.Status != 200 && !strings.HasPrefix(o.Body, "request error: response headers: ") {
					mu.Lock()
					failed[o.Body]++
					mu.Unlock()
				}
			}
		})
	}
	sending.Wait()
	if len(failed) > 0 {
		t.Errorf("failed attempts: %v", failed)
	}
}
