package rawjson

import (
	"encoding/json"
	"strings"
	"testing"
)

// values are JSON of each kind, and nearly JSON.
var values = []string{
	`{}`, `[]`, ` [ ] `, `{ }`, `""`, `null`, `true`, `false`, `0`, `-0`, `-1.5e+10`, `1E-7`, `12345678901234567890`, "\t{\"a\" :\r\n[1 , {\"b\":\"\"}]}\n",
	`"\"\\\/\b\f\n\r\t\u00e9\ud800"`, `"12345678\"12345678\\"`, "\"\u2028😀\x7f\"", "\"\xff12345678\xc3\"", `{"a":1,"a":2}`,
	``, ` `, `{`, `[`, `"`, `"\`, `"\"`, `"\u`, `"\u12`, `"\u123g"`, `"\x"`, "\"\x1f\"", "\"1234567\x00\"", "\"12345678\n\"", `{"a"}`, `{"a":}`, `{"a":1,}`,
	`{"a" 1}`, `{a:1}`, `{1:1}`, `{,}`, `[1,]`, `[,1]`, `[1 2]`, `[1}`, `{"a":1]`, `1 2`, `{}}`, `nul`, `nulll`, `True`, `+1`, `-`, `01`, `1.`, `.5`, `1e`, `1e+`,
	`--1`, `0x1`, `Infinity`, "\ufeff1", `'a'`, "[1,\v2]", "1\x00",
}

func TestValid(t *testing.T) {
	deepest := strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth)
	for _, v := range append(values, deepest, "["+deepest+"]", strings.Repeat(`{"a":`, maxDepth+1), strings.Repeat("[", 1_000_000)) {
		if got, want := Valid([]byte(v)), json.Valid([]byte(v)); got != want {
			t.Errorf("%.100q: %t, want %t", v, got, want)
		}
	}
	// Each byte, at each place among the eight that are looked at together.
	for c := range 256 {
		for i := range 10 {
			v := []byte(`"0123456789"`)
			v[1+i] = byte(c)
			if got, want := Valid(v), json.Valid(v); got != want {
				t.Errorf("%q: %t, want %t", v, got, want)
			}
		}
	}
}

func FuzzValid(f *testing.F) {
	for _, v := range values {
		f.Add([]byte(v))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, want := Valid(b), json.Valid(b); got != want {
			t.Errorf("%q: %t, want %t", b, got, want)
		}
	})
}

func BenchmarkValid(b *testing.B) {
	payload := []byte(`{"repoId":"r1","branch":"main","headCommitId":"` + strings.Repeat("0123456789", 4) + `","pushedBy":"someone",` +
		`"commitCount":3,"message":"` + strings.Repeat("what was changed ", 8) + `"}`)
	b.SetBytes(int64(len(payload)))
	for b.Loop() {
		if !Valid(payload) {
			b.Fatal("not valid")
		}
	}
}
