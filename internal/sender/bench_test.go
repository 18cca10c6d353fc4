package sender

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
)

// The allocations are those of client and server. What Send adds is the difference to the bare loop.
func benchmark(b *testing.B, send func(s *Sender, target *url.URL, body []byte)) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, "ok")
	}))
	defer server.Close()
	s := New(Config{AllowTargets: []Target{loopback}})
	defer s.Close()
	body := bytes.Repeat([]byte("x"), 1000)
	target := mustURL(server.URL)
	send(s, target, body)
	b.Run("serial", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			send(s, target, body)
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.SetParallelism(16)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				send(s, target, body)
			}
		})
	})
}

func BenchmarkSend(b *testing.B) {
	h := header()
	benchmark(b, func(s *Sender, target *url.URL, body []byte) {
		if o := s.Send(b.Context(), &Request{URL: target, Header: h, Body: body}); o.Status != 200 {
			b.Fatal(o)
		}
	})
}

// BenchmarkBare does what a loop without this package would.
func BenchmarkBare(b *testing.B) {
	h := header()
	transport := &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true, DialContext: new(net.Dialer).DialContext}
	defer transport.CloseIdleConnections()
	benchmark(b, func(_ *Sender, target *url.URL, body []byte) {
		req, err := http.NewRequestWithContext(b.Context(), "POST", target.String(), bytes.NewReader(body))
		if err != nil {
			b.Fatal(err)
		}
		req.Header = h
		resp, err := transport.RoundTrip(req)
		if err != nil {
			b.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	})
}
