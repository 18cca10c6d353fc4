package rawjson

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"unicode"
)

// maxGoDepth is how deep maps and slices may be nested, as for encoding/json.
const maxGoDepth = 1000

// CamelKeys returns a copy of v in which the keys of Go maps, at every depth of maps and slices, are in camelCase.
// Structs say by their tags what their keys are, and stay as they are, as does what marshals itself.
func CamelKeys(v any) (any, error) { return camelKeys(v, 0) }

func camelKeys(v any, depth int) (any, error) {
	if _, ok := v.(json.Marshaler); ok {
		return v, nil
	}
	if depth > maxGoDepth {
		return nil, fmt.Errorf("it is nested more than %d deep, or contains itself", maxGoDepth)
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
