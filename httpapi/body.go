package httpapi

import (
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

const (
	// maxBody is how many bytes the body of a request may have, but for the one that carries a payload.
	maxBody = 64 << 10
	// maxEnvelope is how many bytes such a body may have besides the payload.
	maxEnvelope = 64 << 10
	// maxBatchEnvelope is how many bytes a body may have besides its payloads, about 1 KiB for each.
	maxBatchEnvelope = 1 << 20
)

// jsonBody is embedded by the input of an operation that takes a body, an object with the fields of T. Bodies are read
// and decoded here and not by huma, which would lose what matters: the exact bytes of a payload, repeated fields, null.
type jsonBody[T any] struct{ body T }

// Resolve reads the body. huma calls it before the handler, and answers if it finds something wrong.
func (b *jsonBody[T]) Resolve(ctx huma.Context) []error {
	r, w := humago.Unwrap(ctx)
	raw, err := readBody(w, r, ctx.Operation().MaxBodyBytes, nil)
	if err == nil {
		b.body, err = decode[T](raw)
	}
	if err != nil {
		return []error{problemFor(err)}
	}
	return nil
}

// describe is the body's part of the OpenAPI document.
func (*jsonBody[T]) describe(r huma.Registry) *huma.RequestBody {
	schema := r.Schema(reflect.TypeFor[T](), true, "")
	return &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/json": {Schema: schema}}}
}

// readBody returns a request's body of at most limit bytes, in the buffer's memory if there is room.
func readBody(w http.ResponseWriter, r *http.Request, limit int64, buffer []byte) ([]byte, error) {
	if ct := r.Header.Get("Content-Type"); ct != "" && ct != "application/json" {
		mediaType, params, err := mime.ParseMediaType(ct)
		isJSON := mediaType == "application/json" || strings.HasPrefix(mediaType, "application/") && strings.HasSuffix(mediaType, "+json")
		charset := params["charset"]
		if err != nil || !isJSON || charset != "" && !strings.EqualFold(charset, "utf-8") {
			return nil, newProblem(http.StatusUnsupportedMediaType, "Content-Type is %.100q: send application/json, in UTF-8", ct)
		}
	}
	if ce := r.Header.Get("Content-Encoding"); ce != "" && !strings.EqualFold(ce, "identity") {
		return nil, newProblem(http.StatusUnsupportedMediaType, "Content-Encoding is %.100q: send the body as it is", ce)
	}
	if r.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	var body []byte
	var err error
	if r.ContentLength >= 0 && r.ContentLength <= maxBody { // so little is there at once
		body = slices.Grow(buffer[:0], int(r.ContentLength))[:r.ContentLength]
		_, err = io.ReadFull(r.Body, body)
	} else {
		body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	}
	if err == nil {
		return body, nil
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, tooLarge(limit)
	}
	if netErr, ok := errors.AsType[net.Error](err); ok && netErr.Timeout() {
		return nil, newProblem(http.StatusRequestTimeout, "the body did not arrive in time")
	}
	return nil, newProblem(http.StatusBadRequest, "the body ended early or is malformed")
}

func tooLarge(limit int64) *problem {
	return newProblem(http.StatusRequestEntityTooLarge, "the body has more than the %d bytes that are allowed here", limit)
}
