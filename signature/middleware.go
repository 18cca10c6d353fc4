package signature

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"net/http"
)

// Middleware returns a handler that passes a request on to next only if its
// signature is valid. The body is read into memory for that, and next can read
// it again from the start.
//
// Other requests are answered with a line of plain text that says what is
// wrong: status 401 if [Verifier.Verify] returns an error, 413 if the body is
// larger than MaxBody, 400 if it can't be read. A request whose headers can't
// be valid is refused before its body is read.
func (v *Verifier) Middleware(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := v.claim(r.Header)
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}

		limited := http.MaxBytesReader(w, r.Body, cmp.Or(v.MaxBody, defaultMaxBody))
		body, err := io.ReadAll(limited)
		if err != nil {
			if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
				http.Error(w, "signature: body is too large", http.StatusRequestEntityTooLarge)
			} else {
				http.Error(w, "signature: body can't be read", http.StatusBadRequest)
			}
			return
		}

		if err := v.check(c, body); err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		// A handler must not change its request, so next gets a copy.
		r2 := *r
		r2.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(w, &r2)
	})
}
