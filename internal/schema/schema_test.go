package schema

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestCheck(t *testing.T) {
	for name, test := range map[string]struct{ schema, payload, want string }{
		"nothing demanded":    {`{}`, `[1]`, ""},
		"nothing allowed":     {`false`, `1`, "it: "},
		"type":                {`{"type":"object"}`, `[]`, "it: got array, want object"},
		"required":            {`{"type":"object","required":["branch"]}`, `{}`, "it: missing property 'branch'"},
		"nested":              {`{"properties":{"a":{"items":{"type":"string"}}}}`, `{"a":["x",2]}`, "/a/1: got number, want string"},
		"reference":           {`{"$ref":"#/$defs/x","$defs":{"x":{"type":"string"}}}`, `1`, "it: got number, want string"},
		"recursive":           {`{"properties":{"next":{"$ref":"#"}},"required":["v"]}`, `{"v":1,"next":{"v":2,"next":{}}}`, "/next/next: missing property 'v'"},
		"draft 7":             {`{"$schema":"http://json-schema.org/draft-07/schema#","items":[{"type":"string"}]}`, `[1]`, "/0: got number, want string"},
		"large number":        {`{"const":9007199254740993}`, `9007199254740992`, "it: "},
		"large number is one": {`{"const":9007199254740993}`, `9007199254740993`, ""},
		"huge number":         {`{"minimum":1}`, `1e999999999`, "a number in it has more than 400 digits"},
		"huge, deep inside":   {`{"properties":{"a":{"minimum":1}}}`, `{"a":1,"b":[[{"c":1E-99999999999999999999}]]}`, "a number in it has"},
		"overflowing":         {`{"minimum":1}`, `1e9223372036854775807`, "a number in it has"},
		"underflowing":        {`{"minimum":1}`, `1e-9223372036854775808`, "a number in it has"},
		"as large as floats":  {`{"minimum":1}`, `1.7976931348623157e+308`, ""},
		"pattern":             {`{"pattern":"^(a+)+$"}`, `"` + strings.Repeat("a", 100_000) + `!"`, "it: "},
		"unknown keyword":     {`{"x-note":"fine"}`, `1`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Compile([]byte(test.schema))
			if err != nil {
				t.Fatal(err)
			}
			err = s.Check([]byte(test.payload))
			switch {
			case test.want == "":
				if err != nil {
					t.Errorf("refused: %v", err)
				}
			case err == nil || !strings.HasPrefix(err.Error(), test.want):
				t.Errorf("got %v, want %s", err, test.want)
			case len(err.Error()) > maxMessage || !utf8.ValidString(err.Error()):
				t.Errorf("the message is %q", err)
			}
		})
	}
}

func TestCompileRefuses(t *testing.T) {
	for name, test := range map[string]struct{ schema, want string }{
		"no JSON":            {`{`, "not valid JSON"},
		"no schema":          {`1`, "the schema"},
		"wrong type":         {`{"type":"text"}`, "the schema"},
		"bad pattern":        {`{"pattern":"("}`, "the schema"},
		"web reference":      {`{"$ref":"https://example.com/x.json"}`, "is not loaded"},
		"file reference":     {`{"$ref":"file:///etc/passwd"}`, "is not loaded"},
		"relative reference": {`{"$ref":"other.json"}`, "the schema"},
		"dangling reference": {`{"$ref":"#/$defs/x"}`, "the schema"},
		"huge number":        {`{"minimum":1e999999999}`, "a number in it has"},
		"too large":          {`{"title":"` + strings.Repeat("x", MaxSize) + `"}`, "at most 65536"},
	} {
		if _, err := Compile([]byte(test.schema)); err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") || len(err.Error()) > maxMessage {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzSchema(f *testing.F) {
	f.Add(`{"type":"object","required":["a"],"properties":{"a":{"$ref":"#/$defs/b"}},"$defs":{"b":{"enum":[1,"x",null]}}}`, `{"a":2}`)
	f.Add(`{"anyOf":[{"not":{}},{"minimum":1.5}],"uniqueItems":true}`, `[1,1]`)
	f.Add(`{"$ref":"#"}`, `1`)
	f.Fuzz(func(t *testing.T, text, payload string) {
		s, err := Compile([]byte(text))
		if err == nil {
			err = s.Check([]byte(payload))
		}
		if err != nil && (len(err.Error()) > maxMessage+100 || strings.Contains(err.Error(), "\n") && !strings.Contains(payload+text, "\n")) {
			t.Errorf("the message is %q", err)
		}
	})
}
