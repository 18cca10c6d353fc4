package posthorn

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"unicode"
	"unicode/utf8"
)

// marshalPayload returns the bytes that will be signed and sent for a payload. See [Event.Payload].
func marshalPayload(payload any, limit int) (json.RawMessage, error) {
	var raw []byte
	switch p := payload.(type) {
	case nil:
		return nil, invalid("payload", "it is missing")
	case json.RawMessage:
		raw = bytes.Clone(p)
	case []byte:
		raw = bytes.Clone(p)
	default:
		camel, err := camelKeys(payload, 0)
		if err == nil {
			raw, err = marshal(camel)
		}
		if err != nil {
			return nil, &Error{Code: CodeInvalid, Field: "payload", Message: err.Error(), Err: err}
		}
	}
	if len(raw) > limit {
		return nil, &Error{Code: CodeTooLarge, Field: "payload", Message: fmt.Sprintf("it has %d bytes: at most %d (--max-payload, Config.MaxPayload)", len(raw), limit)}
	}
	if !utf8.Valid(raw) {
		return nil, invalid("payload", "it is not valid UTF-8")
	}
	if !json.Valid(raw) {
		return nil, invalid("payload", "it is not valid JSON")
	}
	return raw, nil
}

func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// maxDepth is how deep maps and slices may be nested, as for encoding/json.
const maxDepth = 1000

// camelKeys returns a copy of v in which the keys of Go maps, at every depth of maps and slices, are in camelCase.
// Structs say by their tags what their keys are, and stay as they are, as does what marshals itself.
func camelKeys(v any, depth int) (any, error) {
	if _, ok := v.(json.Marshaler); ok {
		return v, nil
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("it is nested more than %d deep, or contains itself", maxDepth)
	}
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.Map:
		if r.Type().Key().Kind() == reflect.String && !r.IsNil() {
			return camelMap(r, depth)
		}
	case reflect.Slice, reflect.Array:
		switch r.Type().Elem().Kind() {
		case reflect.Interface, reflect.Map, reflect.Slice, reflect.Array:
			if r.Kind() == reflect.Array || !r.IsNil() {
				return camelSlice(r, depth)
			}
		}
	}
	return v, nil
}

func camelMap(r reflect.Value, depth int) (any, error) {
	m := make(map[string]any, r.Len())
	for it := r.MapRange(); it.Next(); {
		key := camel(it.Key().String())
		if _, ok := m[key]; ok {
			return nil, fmt.Errorf("two keys of a map become %q", key)
		}
		value, err := camelKeys(it.Value().Interface(), depth+1)
		if err != nil {
			return nil, err
		}
		m[key] = value
	}
	return m, nil
}

func camelSlice(r reflect.Value, depth int) (any, error) {
	s := make([]any, r.Len())
	for i := range s {
		var err error
		if s[i], err = camelKeys(r.Index(i).Interface(), depth+1); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// camel turns repo_id into repoId. Underscores at the start stay.
func camel(key string) string {
	if !strings.Contains(strings.TrimLeft(key, "_"), "_") {
		return key
	}
	var b strings.Builder
	upper, started := false, false
	for _, r := range key {
		switch {
		case r == '_' && started:
			upper = true
			continue
		case upper:
			r = unicode.ToUpper(r)
			upper = false
		}
		started = started || r != '_'
		b.WriteRune(r)
	}
	return b.String()
}
