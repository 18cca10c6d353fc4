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
		var err error
		if raw, err = marshal(camelKeys(payload)); err != nil {
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

// camelKeys returns a copy of v in which the keys of Go maps, at every depth of maps and slices, are in camelCase.
// Structs say by their tags what their keys are, and stay as they are, as does what marshals itself.
func camelKeys(v any) any {
	if _, ok := v.(json.Marshaler); ok {
		return v
	}
	r := reflect.ValueOf(v)
	switch r.Kind() {
	case reflect.Map:
		if r.Type().Key().Kind() != reflect.String || r.IsNil() {
			return v
		}
		m := make(map[string]any, r.Len())
		for it := r.MapRange(); it.Next(); {
			m[camel(it.Key().String())] = camelKeys(it.Value().Interface())
		}
		return m
	case reflect.Slice, reflect.Array:
		if k := r.Type().Elem().Kind(); k != reflect.Interface && k != reflect.Map && k != reflect.Slice && k != reflect.Array || r.Kind() == reflect.Slice && r.IsNil() {
			return v
		}
		if _, ok := v.([]byte); ok {
			return v
		}
		s := make([]any, r.Len())
		for i := range s {
			s[i] = camelKeys(r.Index(i).Interface())
		}
		return s
	}
	return v
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
