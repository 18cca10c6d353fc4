package sender

import (
	"bufio"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// A receiver sends a second response behind the one that was asked for. It must not be taken for the response to another webhook's
// request, which is given the same connection at that moment.
func TestSurplusResponse(t *testing.T) {
	url := serve(t, func(c *bufio.ReadWriter) {
		for {
			request, err := readRequest(c)
			if err != nil {
				return
			}
			answer := "HTTP/1.1 202 Accepted\r\nContent-Length: 4\r\n\r\nmine"
			if strings.HasPrefix(request, "POST /evil ") {
				answer = ok("ok") + "HTTP/1.1 500 No\r\nContent-Length: 8\r\n\r\nsmuggled"
			}
			if write(c, answer) != nil {
				return
			}
		}
	})
	s := local(t)
	var sending sync.WaitGroup
	for i := range 8 {
		sending.Go(func() {
			for range 500 {
				path, status, body := "/good", http.StatusAccepted, "mine"
				if i%2 == 0 {
					path, status, body = "/evil", http.StatusOK, "ok"
				}
				if o := post(t, s, url+path, patience); o.Status != status || o.Body != body {
					t.Errorf("%s got %d, %q", path, o.Status, o.Body)
				}
			}
		})
	}
	sending.Wait()
}
