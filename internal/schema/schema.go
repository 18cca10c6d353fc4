// Package schema checks payloads by JSON Schema (https://json-schema.org, draft 2020-12 unless a schema names another).
package schema

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
)

const (
	// MaxSize is how many bytes a schema may have.
	MaxSize = 64 << 10
	// maxMessage is how many bytes an error of Check has at most, so that it quotes little of a payload.
	maxMessage = 300
)

// Schema is a schema that is ready to check payloads. It is safe for concurrent use.
type Schema struct{ compiled *jsonschema.Schema }

// name is what schemas are known as to the compiler. Nothing is ever fetched from it.
const name = "schema:"

// Compile reads a schema. References may lead to places within it and to the drafts of JSON Schema, and nowhere else: nothing is
// loaded from files or the network. Its error is fit for who wrote the schema.
func Compile(text []byte) (*Schema, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("the schema has %d bytes: at most %d", len(text), MaxSize)
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("the schema is not valid JSON: %w", err)
	}
	if !handy(document) {
		return nil, errNumber
	}
	c := jsonschema.NewCompiler()
	c.UseLoader(nothing{})
	if err := c.AddResource(name, document); err != nil {
		return nil, plain("the schema", err)
	}
	compiled, err := c.Compile(name)
	if err != nil {
		return nil, plain("the schema", err)
	}
	return &Schema{compiled}, nil
}

// Check says where a payload, which is valid JSON, is not as the schema wants it.
func (s *Schema) Check(payload []byte) error {
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(payload))
	if err != nil {
		return err
	}
	if !handy(value) {
		return errNumber
	}
	err = s.compiled.Validate(value)
	if err == nil {
		return nil
	}
	invalid, ok := errors.AsType[*jsonschema.ValidationError](err)
	if !ok {
		return plain("the payload", err)
	}
	for len(invalid.Causes) > 0 { // the first of what is wrong, where it is
		invalid = invalid.Causes[0]
	}
	where := "it"
	if len(invalid.InstanceLocation) > 0 {
		where = "/" + strings.Join(invalid.InstanceLocation, "/")
	}
	return errors.New(cut(where + ": " + invalid.ErrorKind.LocalizedString(english)))
}

// maxDigits is how many digits a number may have, written out. A few characters such as 1e999999999 stand for one that would take
// gigabytes to compare.
const maxDigits = 400

var errNumber = fmt.Errorf("a number in it has more than %d digits, written out: too many to check", maxDigits)

// handy reports whether all numbers in a value are of a size that can be worked with.
func handy(value any) bool {
	switch v := value.(type) {
	case map[string]any:
		for _, item := range v {
			if !handy(item) {
				return false
			}
		}
	case []any:
		for _, item := range v {
			if !handy(item) {
				return false
			}
		}
	case json.Number:
		mantissa, exponent, _ := strings.Cut(strings.ToLower(string(v)), "e")
		n, err := strconv.Atoi(strings.TrimPrefix(cmp.Or(exponent, "0"), "+"))
		// n is bounded by itself first, for a sum with the largest int would overflow.
		return err == nil && -maxDigits <= n && n <= maxDigits && len(mantissa)+max(n, -n) <= maxDigits
	}
	return true
}

var english = message.NewPrinter(language.English)

// plain makes one line of an error of the library's.
func plain(what string, err error) error {
	text := strings.Join(strings.Fields(strings.ReplaceAll(err.Error(), name+"#", "#")), " ")
	return errors.New(cut(what + ": " + strings.TrimPrefix(text, "jsonschema: ")))
}

// cut bounds a text.
func cut(s string) string {
	if len(s) <= maxMessage {
		return s
	}
	s = s[:maxMessage-len("…")]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s + "…"
}

// nothing loads nothing.
type nothing struct{}

// Load refuses.
func (nothing) Load(url string) (any, error) {
	return nil, fmt.Errorf("%.100s is not loaded: a schema can only refer to what is in it", url)
}
