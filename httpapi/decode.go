package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/rawjson"
)

// decode reads a body that is one JSON object with the fields of the struct T and no others. Names are case-sensitive.
// A field without omitempty is required; null is nowhere a value, except as json.RawMessage, which takes the bytes as
// they are and shares the body's memory. A pointer to a struct and a list of structs are read in the same way, the list with at
// most as many items as its tag maxItems says. A map has strings as its values, and any names, each once.
func decode[T any](body []byte) (T, error) {
	var value T
	switch {
	case !utf8.Valid(body):
		return value, invalid("", "the body is not valid UTF-8")
	case len(body) == 0:
		return value, newProblem(http.StatusBadRequest, "the body is empty: it must be a JSON object")
	case !rawjson.Valid(body):
		err := json.Unmarshal(body, new(json.RawMessage)) // says what is wrong
		return value, newProblem(http.StatusBadRequest, "the body is not valid JSON: %v", err)
	}
	body = bytes.TrimLeft(body, jsonSpace)
	if body[0] != '{' {
		return value, invalid("", "the body must be a JSON object")
	}
	err := decodeObject(body, reflect.ValueOf(&value).Elem())
	return value, err
}

// bodyField is one field of a struct that bodies are decoded into.
type bodyField struct {
	name     string
	index    []int // in the struct
	required bool
	isRaw    bool
	maxItems int // of a list of structs; zero: it is none
}

// bodyFields holds the []bodyField of each type.
var bodyFields sync.Map

// maxFields is how many a struct may have. One with more panics, at its first body.
const maxFields = 24

func fieldsOf(t reflect.Type) []bodyField {
	if fields, ok := bodyFields.Load(t); ok {
		return fields.([]bodyField) //nolint:forcetypeassert // nothing else is in it
	}
	var fields []bodyField
	for _, f := range reflect.VisibleFields(t) {
		if !f.IsExported() || f.Anonymous { // of an embedded struct, the fields are there as well
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		field := bodyField{name: name, index: f.Index, required: options != "omitempty", isRaw: f.Type == reflect.TypeFor[json.RawMessage]()}
		if f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct {
			field.maxItems, _ = strconv.Atoi(f.Tag.Get("maxItems"))
		}
		fields = append(fields, field)
	}
	bodyFields.Store(t, fields)
	return fields
}

// decodeObject reads a valid JSON object into a struct.
func decodeObject(object []byte, v reflect.Value) error {
	fields := fieldsOf(v.Type())
	var found [maxFields][]byte
	if err := splitObject(object, fields, found[:]); err != nil {
		return err
	}
	for i := range fields {
		f, raw := &fields[i], found[i]
		field := v.FieldByIndex(f.index)
		switch {
		case raw == nil && f.required:
			return invalid(f.name, "it is missing")
		case raw == nil:
		case f.isRaw:
			field.SetBytes(raw)
		case f.maxItems > 0:
			if err := decodeList(raw, field, f.maxItems, f.name); err != nil {
				return err
			}
		case field.Kind() == reflect.Pointer && field.Type().Elem().Kind() == reflect.Struct:
			if raw[0] != '{' {
				return invalid(f.name, "it must be an object")
			}
			field.Set(reflect.New(field.Type().Elem()))
			if err := decodeObject(raw, field.Elem()); err != nil {
				return within(f.name, err)
			}
		case field.Kind() == reflect.Map:
			texts, err := decodeMap(raw, f.name)
			if err != nil {
				return err
			}
			field.Set(reflect.ValueOf(texts))
		case field.Kind() == reflect.String && isPlain(raw):
			field.SetString(string(raw[1 : len(raw)-1]))
		case string(raw) == "null" || json.Unmarshal(raw, field.Addr().Interface()) != nil:
			return invalid(f.name, "it must be %s", describeType(field.Type()))
		}
	}
	return nil
}

// decodeList reads a list of objects.
func decodeList(raw []byte, v reflect.Value, most int, name string) error {
	if raw[0] != '[' {
		return invalid(name, "it must be a list of objects")
	}
	rest := bytes.TrimLeft(raw[1:], jsonSpace)
	for i := 0; rest[0] != ']'; i++ {
		var item []byte
		item, rest = cutValue(rest)
		if i == most {
			return invalid(name, "there are more than %d", most)
		}
		if item[0] != '{' {
			return within(fmt.Sprintf("%s[%d]", name, i), invalid("", "it must be an object"))
		}
		v.Grow(1)
		v.SetLen(i + 1)
		if err := decodeObject(item, v.Index(i)); err != nil {
			return within(fmt.Sprintf("%s[%d]", name, i), err)
		}
	}
	return nil
}

// decodeMap reads an object whose values are strings. encoding/json would take null for an empty string, and of a name that is
// there twice the last value.
func decodeMap(raw []byte, name string) (map[string]string, error) {
	wrong := invalid(name, "it must be %s", describeType(reflect.TypeFor[map[string]string]()))
	if raw[0] != '{' {
		return nil, wrong
	}
	texts := map[string]string{}
	for rest := bytes.TrimLeft(raw[1:], jsonSpace); rest[0] != '}'; {
		var quoted, value []byte
		quoted, rest = cutValue(rest)
		value, rest = cutValue(rest)
		if value[0] != '"' {
			return nil, wrong
		}
		var key, text string
		if json.Unmarshal(quoted, &key) != nil || json.Unmarshal(value, &text) != nil {
			return nil, wrong // can't be: they are valid
		}
		if _, twice := texts[key]; twice {
			return nil, invalid(name, "%.64q is there twice", key)
		}
		texts[key] = text
	}
	return texts, nil
}

// within says in what field the field is that an error is about.
func within(outer string, err error) error {
	e, ok := errors.AsType[*posthorn.Error](err)
	if !ok {
		return err
	}
	named := *e
	if named.Field = outer; e.Field != "" {
		named.Field += "." + e.Field
	}
	return &named
}

// splitObject finds the fields' values, each the exact bytes without the space around it.
func splitObject(object []byte, fields []bodyField, found [][]byte) error {
	rest := bytes.TrimLeft(object[1:], jsonSpace)
	for rest[0] != '}' {
		var quoted, value []byte
		quoted, rest = cutValue(rest)
		value, rest = cutValue(rest)
		i, err := findField(quoted, fields)
		if err != nil {
			return err
		}
		if found[i] != nil {
			return invalid(fields[i].name, "it is there twice")
		}
		found[i] = value
	}
	return nil
}

func findField(quoted []byte, fields []bodyField) (int, error) {
	name := quoted[1 : len(quoted)-1]
	if !isPlain(quoted) {
		var unquoted string
		if err := json.Unmarshal(quoted, &unquoted); err != nil {
			return 0, err // can't be: it is valid
		}
		name = []byte(unquoted)
	}
	for i := range fields {
		if string(name) == fields[i].name {
			return i, nil
		}
	}
	names := make([]string, len(fields))
	for i := range fields {
		names[i] = fields[i].name
	}
	return 0, invalid("", "unknown field %.64q: the fields are %s", name, strings.Join(names, ", "))
}

// isPlain reports whether a JSON value is a string that stands for just what is between its quotes.
func isPlain(raw []byte) bool { return raw[0] == '"' && bytes.IndexByte(raw, '\\') < 0 }

const jsonSpace = " \t\r\n"

// cutValue cuts the first value off the inside of an object or list, and the comma or colon after it. The JSON must be valid.
func cutValue(b []byte) (value, rest []byte) {
	end := valueEnd(b)
	value, rest = b[:end:end], b[end:]
	for strings.IndexByte(",:"+jsonSpace, rest[0]) >= 0 { // the object's end is still there
		rest = rest[1:]
	}
	return value, rest
}

// valueEnd returns where the value ends that the inside of an object or list starts with.
func valueEnd(b []byte) int {
	switch b[0] {
	case '"':
		return stringEnd(b, 0)
	case '{', '[':
	default: // a number or a literal
		return bytes.IndexAny(b, ",}]"+jsonSpace)
	}
	depth := 0
	for i := 0; ; i++ {
		switch b[i] {
		case '"':
			i = stringEnd(b, i) - 1
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
}

// stringEnd returns where the string ends that starts at i.
func stringEnd(b []byte, i int) int {
	for i++; ; i++ {
		i += bytes.IndexByte(b[i:], '"')
		escapes := 0
		for b[i-1-escapes] == '\\' {
			escapes++
		}
		if escapes%2 == 0 {
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
	case reflect.Int, reflect.Int64:
		return "a whole number"
	case reflect.Slice:
		return "a list of strings"
	case reflect.Map:
		return "an object whose values are strings"
	default:
		return "a string"
	}
}
