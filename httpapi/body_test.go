package httpapi

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestDecode(t *testing.T) {
	got, err := decode[webhookPatchJSON]([]byte(` {"url": "https://example.com/", "events": ["push", "tag"], "active": false,
		"secret": "", "secretOverlap": 0, "description": "d\u00e9"} `))
	if err != nil {
		t.Fatal(err)
	}
	url, active, secret, overlap, description := "https://example.com/", false, "", int64(0), "dé"
	want := webhookPatchJSON{
		URL: &url, Events: []string{"push", "tag"}, Active: &active, Secret: &secret, SecretOverlap: &overlap, Description: &description,
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(webhookPatchJSON{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got, err = decode[webhookPatchJSON]([]byte(`{}`)); err != nil || got.URL != nil || got.Events != nil || got.SecretOverlap != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err = decode[webhookPatchJSON]([]byte(`{"events": []}`)); err != nil || got.Events == nil {
		t.Errorf("an empty list is not the same as none: %+v, %v", got, err)
	}
}

// Case 22.
func TestDecodeRefuses(t *testing.T) {
	for _, test := range []struct {
		body   string
		status int
		field  string
		detail string
	}{
		{``, 400, "", "empty"},
		{` `, 400, "", "unexpected end"},
		{`{`, 400, "", "unexpected end"},
		{`{"url"`, 400, "", "unexpected end"},
		{`{"url": `, 400, "", "unexpected end"},
		{`{"url": "x"`, 400, "", "unexpected end"},
		{`{"url": "x",}`, 400, "", "not valid JSON"},
		{`{,}`, 400, "", "not valid JSON"},
		{`{"url" "x"}`, 400, "", "not valid JSON"},
		{`{url: "x"}`, 400, "", "not valid JSON"},
		{`{1: "x"}`, 400, "", "not valid JSON"},
		{`{"url": x}`, 400, "", "not valid JSON"},
		{`{"url": "x"} {}`, 400, "", "after top-level value"},
		{`{"url": "x"}x`, 400, "", "after top-level value"},
		{`{"url": "x"}}`, 400, "", "after top-level value"},
		{"\ufeff{}", 400, "", "not valid JSON"},
		{`null`, 422, "", "object"},
		{`[]`, 422, "", "object"},
		{`"x"`, 422, "", "object"},
		{"{\"url\": \"\xff\"}", 422, "", "UTF-8"},
		{"{\"url\": \"x\"}\xff", 422, "", "UTF-8"},
		{`{"url": "x", "url": "x"}`, 422, "url", "url: it is there twice"},
		{`{"url": "x", "\u0075rl": "x"}`, 422, "url", "url: it is there twice"},
		{`{"colour": "red"}`, 422, "", `unknown field "colour": the fields are url, polled, events, secret, generateSecret, description`},
		{`{"URL": "x"}`, 422, "", `unknown field "URL"`},
		{`{"": "x"}`, 422, "", `unknown field ""`},
		{`{"url": "x"}`, 422, "events", "events: it is missing"},
		{`{"url": null, "events": ["push"]}`, 422, "url", "url: it must be a string"},
		{`{"url": 1, "events": ["push"]}`, 422, "url", "url: it must be a string"},
		{`{"url": ["x"], "events": ["push"]}`, 422, "url", "url: it must be a string"},
		{`{"url": "x", "events": null}`, 422, "events", "events: it must be a list of strings"},
		{`{"url": "x", "events": "push"}`, 422, "events", "events: it must be a list of strings"},
		{`{"url": "x", "events": [1]}`, 422, "events", "events: it must be a list of strings"},
		{`{"url": "x", "events": ["push"], "secret": null}`, 422, "secret", "secret: it must be a string"},
	} {
		_, err := decode[newWebhookJSON]([]byte(test.body))
		checkProblem(t, test.body, err, test.status, test.field, test.detail)
	}
	for field, kind := range map[string]string{
		"url": "a string", "events": "a list of strings", "active": "true or false", "secret": "a string",
		"secretOverlap": "a whole number", "description": "a string",
	} {
		for _, value := range []string{"null", `{}`, "1.5"} {
			body := `{"` + field + `": ` + value + `}`
			_, err := decode[webhookPatchJSON]([]byte(body))
			checkProblem(t, body, err, 422, field, field+": it must be "+kind)
		}
	}
	long := strings.Repeat("ä", 10_000)
	_, err := decode[newWebhookJSON]([]byte(`{"` + long + `": 1}`))
	if p := problemFor(err); len(p.Detail) > 500 {
		t.Errorf("the detail has %d bytes", len(p.Detail))
	}
}

func checkProblem(t *testing.T, what string, err error, status int, field, detail string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error", what)
		return
	}
	if p := problemFor(err); p.Status != status || p.Field != field || !strings.Contains(p.Detail, detail) {
		t.Errorf("%s: %+v, want %d, field %q, %q", what, p, status, field, detail)
	}
}

// payloads are valid JSON that a round trip through Go values would change.
var payloads = []string{
	`{}`, `{"a":1,"a":2}`, `{ "b" : 1.0 , "a" : 1e400 }`, `18446744073709551616`, `-0`, `null`, `true`, `""`, `[]`,
	"{\"\u2028\": \"\u2029<>&\"}", `"\u00e9\ud800\/"`, "[\n\t1,\r\n 2 ]", `"😀"`, "\"\x7f\"", `{"__proto__": {"payload": "\"}"}}`,
}

func FuzzEventBody(f *testing.F) {
	for _, p := range payloads {
		f.Add([]byte(p))
	}
	f.Add([]byte(`1, "eventId": "x"`))
	f.Add([]byte("\xff"))
	f.Fuzz(func(t *testing.T, payload []byte) {
		body := []byte(`{"eventType":"push","payload":` + string(payload) + `}`)
		got, err := decode[newEventJSON](body)
		if err != nil {
			if p := problemFor(err); p.Status != http.StatusBadRequest && p.Status != http.StatusUnprocessableEntity || p.Detail == "" {
				t.Errorf("%+v", p)
			}
			if json.Valid(payload) && utf8.Valid(payload) {
				t.Errorf("refuses %q: %v", payload, err)
			}
			return
		}
		if !json.Valid(body) || !utf8.Valid(body) {
			t.Errorf("takes %q", body)
		}
		if json.Valid(payload) && !bytes.Equal(got.Payload, bytes.Trim(payload, " \t\r\n")) {
			t.Errorf("%q became %q", payload, got.Payload)
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, body := range []string{
		`{"eventType":"push","payload":{},"eventId":"e1"}`, `{"eventType":"push","payload":1}`, `{"payload":1,"payload":1}`,
		`{"eventType":"push" "payload":1}`, `[1]`, `{}`, `{]`, `{"eventType":}`, `{"eventType"::1}`, "",
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := decode[newEventJSON](body)
		if err != nil {
			return
		}
		if !json.Valid(body) || !json.Valid(got.Payload) {
			t.Errorf("takes %q, payload %q", body, got.Payload)
		}
		var want map[string]json.RawMessage
		if err := json.Unmarshal(body, &want); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(want["payload"], got.Payload) {
			t.Errorf("payload %q, want %q", got.Payload, want["payload"])
		}
	})
}

func FuzzDecodeList(f *testing.F) {
	for _, body := range []string{
		`{"events":[]}`, ` { "events" : [ { "eventType" : "push" , "payload" : [ 1 , "]" ] } , {"payload":{},"eventType":"","eventId":"\u0031"} ] } `,
		`{"events":[{"eventType":"push","payload":1}],"events":[]}`, `{"events":[1]}`, `{"events":[{}]}`, `{"events":{}}`, `{"events":null}`,
		`{"\u0065vents":[{"eventType":"a\\","payload":"\\\""}]}`, `{"events":[{"eventType":"push","payload":-0},]}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := decode[newEventsJSON](body)
		if err != nil {
			if p := problemFor(err); p.Status != http.StatusBadRequest && p.Status != http.StatusUnprocessableEntity || p.Detail == "" {
				t.Errorf("%+v", p)
			}
			return
		}
		var want struct{ Events []map[string]json.RawMessage }
		if err := json.Unmarshal(body, &want); err != nil || len(want.Events) != len(got.Events) {
			t.Fatalf("%d events from %q, want %d, %v", len(got.Events), body, len(want.Events), err)
		}
		for i, e := range got.Events {
			again := map[string]json.RawMessage{"payload": e.Payload}
			again["eventType"], _ = json.Marshal(e.EventType)
			if e.EventID != nil {
				again["eventId"], _ = json.Marshal(*e.EventID)
			}
			if diff := cmp.Diff(values(t, want.Events[i]), values(t, again)); diff != "" || !bytes.Equal(want.Events[i]["payload"], e.Payload) {
				t.Errorf("%q became (-want +got):\n%s", body, diff)
			}
		}
	})
}

// values returns the values of an object as encoding/json reads them.
func values(t *testing.T, object map[string]json.RawMessage) map[string]any {
	t.Helper()
	got := map[string]any{}
	for name, raw := range object {
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.UseNumber()
		var value any
		if err := dec.Decode(&value); err != nil {
			t.Fatal(err)
		}
		got[name] = value
	}
	return got
}
