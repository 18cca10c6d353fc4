package httpapi

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/musehub/posthorn"
)

// The benchmarks post to a repo without webhooks: nothing is stored or sent, so that what shows is the API's own cost.

// eventBody is an event of about 300 bytes.
func eventBody(i int) string {
	return fmt.Sprintf(`{"eventType":"push","payload":{"repoId":"r1","branch":"main","headCommitId":"%040x","pushedBy":"someone",`+
		`"commitCount":%d,"message":"%s"}}`, i, i%10, strings.Repeat("what was changed ", 8))
}

// benchmarkPost makes a request with a body again and again, by calls of the handler.
func benchmarkPost(b *testing.B, path, body string) {
	api := startAPI(b, posthorn.Config{})
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequest("POST", path, strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+token)
		r.Header.Set("Content-Type", "application/json")
		w := bareWriter{header: http.Header{}}
		api.server.ServeHTTP(&w, r)
		if w.status != http.StatusAccepted {
			b.Fatalf("status %d", w.status)
		}
	}
}

// bareWriter costs next to nothing.
type bareWriter struct {
	header http.Header
	status int
}

func (w *bareWriter) Header() http.Header         { return w.header }
func (w *bareWriter) WriteHeader(status int)      { w.status = status }
func (w *bareWriter) Write(b []byte) (int, error) { return len(b), nil }

func BenchmarkPostEvent(b *testing.B) { benchmarkPost(b, "/api/v1/repos/r1/events", eventBody(1)) }

// BenchmarkPostEvents posts batches of 100.
func BenchmarkPostEvents(b *testing.B) {
	var events []string
	for i := range 100 {
		events = append(events, eventBody(i))
	}
	benchmarkPost(b, "/api/v1/repos/r1/events:batch", `{"events":[`+strings.Join(events, ",")+`]}`)
}

// BenchmarkPostEventServed goes through a socket, which shows what net/http and the client cost besides.
func BenchmarkPostEventServed(b *testing.B) {
	api := startAPI(b, posthorn.Config{})
	b.ReportAllocs()
	body := eventBody(1)
	for b.Loop() {
		req, err := http.NewRequestWithContext(b.Context(), "POST", api.url+"/api/v1/repos/r1/events", strings.NewReader(body))
		if err != nil {
			b.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Content-Type", "application/json")
		resp, err := api.client.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusAccepted {
			b.Fatalf("status %d", resp.StatusCode)
		}
	}
}
