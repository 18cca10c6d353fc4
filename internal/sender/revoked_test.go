package sender

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

// A revoked request leaves nothing on the wire, whatever its size, on a new connection as little as on a kept one.
func TestRevoked(t *testing.T) {
	large := header()
	large["X-Large"] = []string{strings.Repeat("x", 32<<10)}
	for _, r := range []Request{
		{Header: header(), Body: []byte(`{"a":1}`)},
		{Header: header()},
		{Header: header(), Body: make([]byte, 1<<20)},
		{Header: large, Body: []byte(`{"a":1}`)},
	} {
		for _, kept := range []bool{false, true} {
			leftover := make(chan int64, 1)
			base := serve(t, func(c *bufio.ReadWriter) {
				if kept {
					readRequest(c)
					write(c, ok("hi"))
				}
				n, _ := io.Copy(io.Discard, c)
				leftover <- n
			})
			s := local(t)
			if kept {
				post(t, s, base, 0)
			}
			r.URL, r.Revoked = mustURL(base), new(atomic.Bool)
			r.Revoked.Store(true)
			o := s.Send(t.Context(), &r)
			if !o.Canceled || o.Status != 0 || o.Timings.Reused != kept {
				t.Errorf("outcome %+v: want one that is canceled", o)
			}
			if n := <-leftover; n > 0 {
				t.Errorf("%d bytes were sent", n)
			}
		}
	}
}

func TestNotRevoked(t *testing.T) {
	o := local(t).Send(t.Context(), &Request{URL: mustURL(respond(t, ok("hi"))), Header: http.Header{}, Revoked: new(atomic.Bool)})
	if o.Status != 200 || o.Canceled {
		t.Errorf("%+v", o)
	}
}
