package filter

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

const payload = `{"branch":"main","commitCount":3,"ratio":0.5,"big":9007199254740993,"labels":["bug","ui"],"author":{"name":"Ann"},"draft":false,"none":null}`

func event(t testing.TB, payload string) Event {
	t.Helper()
	v, err := Decode([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return Event{ID: "e1", Type: "push", Payload: v}
}

func TestMatch(t *testing.T) {
	for text, want := range map[string]string{
		`payload.branch == "main"`:                             "yes",
		`payload.branch != "main"`:                             "no",
		`type == "push" && id == "e1"`:                         "yes",
		`payload.commitCount > 2 && payload.commitCount < 3.5`: "yes",
		`payload.commitCount == 3.0`:                           "yes",
		`payload.ratio < 1`:                                    "yes",
		`payload.big == 9007199254740993`:                      "yes",
		`payload.big == 9007199254740992`:                      "no",
		`"bug" in payload.labels`:                              "yes",
		`payload.labels.exists(l, l.startsWith("u"))`:          "yes",
		`payload.author.name.matches("^A.n$")`:                 "yes",
		`has(payload.author.mail)`:                             "no",
		`has(payload.author) && payload.author.name == "Bob"`:  "no",
		`payload.draft`:                                        "no",
		`payload.none == null`:                                 "yes",
		`true`:                                                 "yes",
		`payload.missing == "x"`:                               "no such key: missing",
		`payload.branch`:                                       "it is a string, neither true nor false",
		`payload.branch > 1`:                                   "no such overload",
		`payload.labels[7] == "x"`:                             "index out of bounds: 7",
		`payload.labels.all(a, payload.labels.all(b, payload.labels.all(c, payload.labels.all(d, payload.labels.all(e, payload.labels.all(f, payload.labels.all(g, payload.labels.all(h, payload.labels.all(i, payload.labels.all(j, payload.labels.all(k, payload.labels.all(l, payload.labels.all(m, payload.labels.all(n, payload.labels.all(o, size(a+b+c+d+e+f+g+h+i+j+k+l+m+n+o) > 0)))))))))))))))`: "cost limit exceeded",
	} {
		f, err := Compile(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		matches, err := f.Match(event(t, payload))
		got := map[bool]string{true: "yes", false: "no"}[matches]
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) || err != nil && matches {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                        "it can't be read",
		"payload.branch ==":       "it can't be read: at character",
		"branch == 'main'":        "undeclared reference to 'branch'",
		"1 + 1":                   "it is a int: it must be true or false",
		"size(payload)":           "it is a int",
		"'a' == 1":                "no matching overload",
		strings.Repeat(" ", 2049): "it has 2049 bytes",
		strings.Repeat("(", 500) + "true" + strings.Repeat(")", 500): "it can't be read",
		`payload.branch.matches("(")`:                                "it can't be read",
	} {
		if _, err := Compile(text); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.40q: %v, want %s", text, err, want)
		}
	}
}

// Whatever the expression and the payload are, it ends, and its errors can be shown.
func FuzzFilter(f *testing.F) {
	for _, text := range []string{`payload.branch == "main"`, `payload.labels.exists(l, l == "bug")`, `has(payload.a) && payload.a.b[0] > 1.5`, `type in ["push"]`, `payload.map(x, x)[0]`} {
		f.Add(text, payload)
	}
	f.Fuzz(func(t *testing.T, text, payload string) {
		if !json.Valid([]byte(payload)) {
			return
		}
		v, err := Decode([]byte(payload))
		if err != nil {
			t.Fatal(err)
		}
		filter, err := Compile(text)
		if err == nil {
			_, err = filter.Match(Event{ID: "e", Type: "push", Payload: v})
		}
		if err != nil && (err.Error() == "" || strings.Contains(err.Error(), "\n") || len(err.Error()) > 300 || utf8.ValidString(text) && !utf8.ValidString(strings.ToValidUTF8(err.Error(), ""))) {
			t.Errorf("%q: %q", text, err)
		}
	})
}
