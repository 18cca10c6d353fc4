package signature_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
)

// TestMiddleware sends requests over a real connection, where header names
// change their case.
func TestMiddleware(t *testing.T) {
	v := newVerifier(t, refSecret)
	v.MaxBody = 64
	var got []string // bodies that came through
	mux := http.NewServeMux()
	mux.Handle("POST /hook/{name}", v.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if r.PathValue("name") != "a" {
			t.Errorf("the handler's request has lost its path value")
		}
		got = append(got, string(body))
		w.WriteHeader(http.StatusNoContent)
	})))
	srv := httptest.NewServer(mux)
	defer srv.Close()

	chunked := func(s string) io.Reader { // of unknown length
		return io.MultiReader(strings.NewReader(s))
	}
	plain := func(s string) io.Reader { return strings.NewReader(s) }
	full, large := strings.Repeat("x", 64), strings.Repeat("x", 65)
	s := newSigner(t, refSecret)
	tests := []struct {
		name   string
		header http.Header
		reader func(string) io.Reader
		body   string
		status int
		text   string
	}{
		{"standard", standard(refID, refTime, refSig), plain, refBody, 204, ""},
		{"lower case", lower(standard(refID, refTime, refSig)), plain, refBody, 204, ""},
		{"MuseHub", http.Header{museHubHeader: {vectors[0].wantBody}}, plain, refBody, 204, ""},
		{"chunked", standard(refID, refTime, refSig), chunked, refBody, 204, ""},
		{"full", museHub(s.Body([]byte(full))), plain, full, 204, ""},

		{"large", museHub(s.Body([]byte(large))), plain, large, 413, "signature: body is too large\n"},
		{"large and chunked", museHub(s.Body([]byte(large))), chunked, large, 413, "signature: body is too large\n"},
		{"changed", standard(refID, refTime, refSig), plain, refBody + " ", 401, "signature: no signature matches\n"},
		{"unsigned", nil, plain, refBody, 401, "signature: no signature header: neither Webhook-Signature nor X-MuseHub-Signature\n"},
		{"no id", standard("", refTime, refSig), plain, refBody, 401, "signature: no webhook-id header\n"},
		{"too old", standard(refID, refTime.AddDate(0, 0, -1), refSig), plain, refBody, 401, "signature: timestamp is too old\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got = nil
			req, err := http.NewRequest("POST", srv.URL+"/hook/a", tt.reader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			if tt.header != nil {
				req.Header = tt.header
			}
			resp, err := srv.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.status || string(text) != tt.text {
				t.Errorf("answer %d %q, want %d %q", resp.StatusCode, text, tt.status, tt.text)
			}
			if tt.status != 204 && got != nil {
				t.Errorf("the handler got %q", got)
			}
			if tt.status == 204 && (len(got) != 1 || got[0] != tt.body) {
				t.Errorf("the handler got %q, want %q", got, tt.body)
			}
		})
	}
}

// lower returns the header as many clients write it.
func lower(h http.Header) http.Header {
	l := http.Header{}
	for name, values := range h {
		l[strings.ToLower(name)] = values
	}
	return l
}

func TestMiddlewareReadError(t *testing.T) {
	h := newVerifier(t, refSecret).Middleware(unreachable(t))
	r := httptest.NewRequest("POST", "/", iotest.ErrReader(errors.New("connection reset by 10.0.0.1")))
	r.Header = standard(refID, refTime, refSig)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != 400 || w.Body.String() != "signature: body can't be read\n" {
		t.Errorf("answer %d %q", w.Code, w.Body)
	}
}

// TestMiddlewareRefusesBeforeReading checks that who sends no signature can't
// make the receiver read a body.
func TestMiddlewareRefusesBeforeReading(t *testing.T) {
	h := newVerifier(t, refSecret).Middleware(unreachable(t))
	r := httptest.NewRequest("POST", "/", readerFunc(func([]byte) (int, error) {
		t.Error("the body is read")
		return 0, io.EOF
	}))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != 401 {
		t.Errorf("status %d, want 401", w.Code)
	}
}

// TestMiddlewareDefaultLimit checks the default limit of 25 MiB.
func TestMiddlewareDefaultLimit(t *testing.T) {
	s, v := newSigner(t, refSecret), newVerifier(t, refSecret)
	for size, status := range map[int]int{25 << 20: 200, 25<<20 + 1: 413} {
		body := strings.Repeat("x", size)
		r := httptest.NewRequest("POST", "/", strings.NewReader(body))
		r.Header = museHub(s.Body([]byte(body)))
		w := httptest.NewRecorder()
		v.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(w, r)
		if w.Code != status {
			t.Errorf("%d bytes: status %d, want %d", size, w.Code, status)
		}
	}
}

// TestMiddlewareLeavesRequest checks that the caller's request isn't changed.
func TestMiddlewareLeavesRequest(t *testing.T) {
	r := httptest.NewRequest("POST", "/", strings.NewReader(refBody))
	r.Header = standard(refID, refTime, refSig)
	body := r.Body
	called := false
	h := newVerifier(t, refSecret).Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r2 *http.Request) {
		called = true
		if r2.Context() != r.Context() || r2.URL != r.URL {
			t.Error("the handler's request isn't the caller's")
		}
	}))
	h.ServeHTTP(httptest.NewRecorder(), r)
	if !called {
		t.Error("the handler isn't called")
	}
	if r.Body != body {
		t.Error("the caller's request has another body")
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func unreachable(t *testing.T) http.Handler {
	return http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("the handler is called")
	})
}
