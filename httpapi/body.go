package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

const (
	// maxBody is how many bytes the body of a request may have, but for the one that carries a payload.
	maxBody = 64 << 10
	// maxEnvelope is how many bytes such a body may have besides the payload.
	maxEnvelope = 64 << 10
)

// jsonBody is embedded by the input of an operation that takes a body, an object with the fields of T. Bodies are read
// and decoded here and not by huma, which would lose what matters: the exact bytes of a payload, repeated fields, null.
type jsonBody[T any] struct{ body T }

// Resolve reads the body. huma calls it before the handler, and answers if it finds something wrong.
func (b *jsonBody[T]) Resolve(ctx huma.Context) []error {
	r, w := humago.Unwrap(ctx)
	raw, err := readBody(w, r, ctx.Operation().MaxBodyBytes)
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

// readBody returns a request's body of at most limit bytes.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	if ct := r.Header.Get("Content-Type"); ct != "" {
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
	tooLarge := newProblem(http.StatusRequestEntityTooLarge, "the body has more than the %d bytes that are allowed here", limit)
	if r.ContentLength > limit {
		return nil, tooLarge
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, tooLarge
	}
	if netErr, ok := errors.AsType[net.Error](err); ok && netErr.Timeout() {
		return nil, newProblem(http.StatusRequestTimeout, "the body did not arrive in time")
	}
	if err != nil {
		return nil, newProblem(http.StatusBadRequest, "the body ended early or is malformed")
	}
	return body, nil
}

// decode reads a body that is one JSON object with the fields of the struct T and no others. Names are case-sensitive.
// A field without omitempty is required; null is nowhere a value, except as json.RawMessage, which takes the bytes as
// they are and shares the body's memory.
func decode[T any](body []byte) (T, error) {
	var value T
	var names []string
	for f := range reflect.TypeFor[T]().Fields() {
		if f.IsExported() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			names = append(names, name)
		}
	}
	fields, err := splitObject(body, names)
	if err != nil {
		return value, err
	}
	for f, v := range reflect.ValueOf(&value).Elem().Fields() {
		if !f.IsExported() {
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		raw, ok := fields[name]
		switch {
		case !ok && options == "omitempty":
		case !ok:
			return value, invalid(name, "it is missing")
		case v.Type() == reflect.TypeFor[json.RawMessage]():
			v.SetBytes(raw)
		case string(raw) == "null" || json.Unmarshal(raw, v.Addr().Interface()) != nil:
			return value, invalid(name, "it must be %s", describeType(v.Type()))
		}
	}
	return value, nil
}

// splitObject splits a JSON object into its fields' values, each the exact bytes without the space around it.
func splitObject(body []byte, names []string) (map[string]json.RawMessage, error) {
	switch {
	case !utf8.Valid(body):
		return nil, invalid("", "the body is not valid UTF-8")
	case len(body) == 0:
		return nil, newProblem(http.StatusBadRequest, "the body is empty: it must be a JSON object")
	case !json.Valid(body):
		err := json.Unmarshal(body, new(json.RawMessage)) // says what is wrong
		return nil, newProblem(http.StatusBadRequest, "the body is not valid JSON: %v", err)
	}
	rest := bytes.TrimLeft(body, jsonSpace)
	if rest[0] != '{' {
		return nil, invalid("", "the body must be a JSON object")
	}
	fields := make(map[string]json.RawMessage, len(names))
	rest = bytes.TrimLeft(rest[1:], jsonSpace)
	for rest[0] != '}' {
		var quoted, value []byte
		quoted, rest = cutValue(rest)
		value, rest = cutValue(rest)
		var name string
		if err := json.Unmarshal(quoted, &name); err != nil {
			return nil, err // can't be: it is valid
		}
		if !slices.Contains(names, name) {
			return nil, invalid("", "unknown field %.64q: the fields are %s", name, strings.Join(names, ", "))
		}
		if _, ok := fields[name]; ok {
			return nil, invalid(name, "it is there twice")
		}
		fields[name] = value
	}
	return fields, nil
}

const jsonSpace = " \t\r\n"

// cutValue cuts the first value off the inside of an object, and the comma or colon after it. The JSON must be valid.
func cutValue(b []byte) (value, rest []byte) {
	end := valueEnd(b)
	return b[:end:end], bytes.TrimLeft(b[end:], ",:"+jsonSpace)
}

// valueEnd returns where the value ends that the inside of an object starts with.
func valueEnd(b []byte) int {
	if strings.IndexByte(`"{[`, b[0]) < 0 { // a number or a literal
		return bytes.IndexAny(b, ",}"+jsonSpace)
	}
	depth, inString := 0, false
	for i := 0; ; i++ {
		switch c := b[i]; {
		case inString && c == '\\':
			i++ // over what is escaped
		case c == '"':
			inString = !inString
		case inString:
		case c == '{', c == '[':
			depth++
		case c == '}', c == ']':
			depth--
		}
		if depth == 0 && !inString {
			return i + 1
		}
	}
}

func describeType(t reflect.Type) string {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int64:
		return "a whole number"
	case reflect.Slice:
		return "a list of strings"
	default:
		return "a string"
	}
}
