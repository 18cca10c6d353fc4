package posthorn_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/musehub"
)

func TestPayload(t *testing.T) {
	type snake struct {
		RepoID string `json:"repo_id"`
		Nested map[string]any
	}
	awkward := `{ "a":1.0, "a":2, "big":18446744073709551616, "u":"` + "\u2028" + `\u2028", "e":1e5 }`
	for name, c := range map[string]struct {
		payload any
		want    string
	}{
		"raw message":   {json.RawMessage(awkward), awkward},
		"bytes":         {[]byte(awkward), awkward},
		"map":           {map[string]any{"repo_id": 1, "head_commit_id": "x"}, `{"headCommitId":"x","repoId":1}`},
		"map at depth":  {map[string]any{"a_b": []any{map[string]any{"c_d": map[string]int{"e_f": 1}}}}, `{"aB":[{"cD":{"eF":1}}]}`},
		"slice of maps": {[]map[string]string{{"a_b": "c_d"}}, `[{"aB":"c_d"}]`},
		"underscores":   {map[string]int{"_id": 1, "a__b": 2, "c_": 3, "d_1": 4, "E_f": 5}, `{"EF":5,"_id":1,"aB":2,"c":3,"d1":4}`},
		"struct":        {snake{"r", map[string]any{"x_y": 1}}, `{"repo_id":"r","Nested":{"x_y":1}}`},
		"typed":         {musehub.PushPayload{RepoID: "r<1>", Branch: "main"}, `{"repoId":"r<1>","branch":"main","headCommitId":"","pushedBy":"","commitCount":0}`},
		"number":        {json.Number("1.50"), `1.50`},
		"time":          {time.Unix(0, 0).UTC(), `"1970-01-01T00:00:00Z"`},
		"nil map":       {map[string]any(nil), `null`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := posthorn.MarshalPayload(c.payload, 1000)
			if err != nil || string(got) != c.want {
				t.Errorf("got %s, %v\nwant %s", got, err, c.want)
			}
		})
	}
}

func TestPayloadRefused(t *testing.T) {
	cyclic := map[string]any{}
	cyclic["a_b"] = []any{cyclic}
	for name, c := range map[string]struct {
		payload any
		code    posthorn.Code
	}{
		"missing":         {nil, posthorn.CodeInvalid},
		"empty":           {json.RawMessage{}, posthorn.CodeInvalid},
		"not JSON":        {[]byte(`{"a":}`), posthorn.CodeInvalid},
		"two values":      {[]byte(`1 2`), posthorn.CodeInvalid},
		"not UTF-8":       {[]byte("{\"a\":\"\xff\"}"), posthorn.CodeInvalid},
		"too deep":        {[]byte(strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000)), posthorn.CodeInvalid},
		"keys collide":    {map[string]any{"repo_id": 1, "repoId": 2}, posthorn.CodeInvalid},
		"contains itself": {cyclic, posthorn.CodeInvalid},
		"not to marshal":  {func() {}, posthorn.CodeInvalid},
		"one byte more":   {json.RawMessage(`"` + strings.Repeat("x", 49_999) + `"`), posthorn.CodeTooLarge},
		"marshalled more": {strings.Repeat("x", 49_999), posthorn.CodeTooLarge},
	} {
		if _, err := posthorn.MarshalPayload(c.payload, 50_000); posthorn.ErrorCode(err) != c.code {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
	}
	if _, err := posthorn.MarshalPayload(json.RawMessage(`"`+strings.Repeat("x", 49_998)+`"`), 50_000); err != nil {
		t.Errorf("exactly the limit: %v", err)
	}
}

// The caller may use its buffer again once Dispatch has returned.
func TestPayloadIsCopied(t *testing.T) {
	raw := []byte(`{"a":1}`)
	got, err := posthorn.MarshalPayload(raw, 100)
	if err != nil {
		t.Fatal(err)
	}
	raw[2] = 'X'
	if string(got) != `{"a":1}` {
		t.Errorf("the payload changed with the caller's buffer: %s", got)
	}
}

func FuzzPayload(f *testing.F) {
	f.Add([]byte(`{"a":1.0,"a":2}`))
	f.Add([]byte("\"\xff\""))
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := posthorn.MarshalPayload(raw, 1<<20)
		if err == nil && string(got) != string(raw) {
			t.Errorf("%q became %q", raw, got)
		}
	})
}

// The ids of deliveries are part of what receivers and the log rely on: they must not change.
func TestDeliveryID(t *testing.T) {
	event := &posthorn.AcceptedEvent{RepoID: "r1", ID: "e1", CreatedAt: time.UnixMicro(1_700_000_000_123_456)}
	// Made with Python's hashlib: the milliseconds in 6 bytes, then SHA-256 over each of "r1", "e1" and "w1" behind its
	// length in 8 bytes, then 0 and 1 in 8 bytes each; with version 7 and the variant's bits set.
	const want = "018bcfe5-687b-732c-b260-98a4b2d17e6c"
	got := posthorn.DeliveryID(event, "w1", 0, 1)
	if got != want {
		t.Errorf("id %s, want %s", got, want)
	}
	long := *event
	long.RepoID, long.ID = strings.Repeat("ré", 60), strings.Repeat("e", posthorn.MaxEventIDLength)
	const wantLong = "018bcfe5-687b-78d8-b1ff-31f0ee8f8cef"
	if got := posthorn.DeliveryID(&long, "0198c0de-0000-7000-8000-000000000001", 7, 3); got != wantLong {
		t.Errorf("the id is %s where everything is long, want %s", got, wantLong)
	}
	other := *event
	other.RepoID, other.ID = "r", "1e1"
	for name, id := range map[string]string{
		"attempt": posthorn.DeliveryID(event, "w1", 0, 2), "run": posthorn.DeliveryID(event, "w1", 1, 1),
		"webhook": posthorn.DeliveryID(event, "w2", 0, 1), "event": posthorn.DeliveryID(&other, "w1", 0, 1),
	} {
		if id == got {
			t.Errorf("another %s has the same id", name)
		}
	}
}
