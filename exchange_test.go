package posthorn_test

import (
	"encoding/json"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/musehub/posthorn"
)

// TestExchangeJSON has AppendJSON write what encoding/json does.
func TestExchangeJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		duration := func(name string) time.Duration { return time.Duration(rapid.Int64Range(0, 1e10).Draw(t, name)) }
		x := posthorn.Exchange{
			URL:     rapid.OneOf(rapid.Just("https://example.com/a?b=c&d"), rapid.String()).Draw(t, "url"),
			SentAt:  time.UnixMicro(rapid.Int64Range(0, 4e15).Draw(t, "sent")).UTC(),
			Secrets: rapid.IntRange(0, 3).Draw(t, "secrets"),
			Extra:   rapid.SliceOfN(rapid.String(), 0, 3).Draw(t, "extra"),
			Ed25519: rapid.IntRange(0, 3).Draw(t, "ed25519"),
			Header: rapid.MapOfN(rapid.String(), rapid.OneOf(rapid.Just([]string(nil)), rapid.SliceOfN(rapid.String(), 0, 3)), 0, 12).
				Draw(t, "header"),
			Timings: posthorn.Timings{
				DNS: duration("dns"), Connect: duration("connect"), TLS: duration("tls"), FirstByte: duration("first"),
				Total: duration("total"), Reused: rapid.Bool().Draw(t, "reused"),
			},
		}
		if rapid.Bool().Draw(t, "attributes") {
			x.Event = posthorn.Attributes{OrderingKey: rapid.String().Draw(t, "key"), TraceParent: "a", TraceState: "b", Depth: 2}
			x.Remote = rapid.SampledFrom([]string{"", "public"}).Draw(t, "remote")
		}
		if rapid.Bool().Draw(t, "kept") {
			x.Timings = posthorn.Timings{Total: x.Timings.Total}
		}
		want, err := json.Marshal(x)
		if err != nil {
			t.Fatal(err)
		}
		if got := x.AppendJSON(nil); string(got) != string(want) {
			t.Fatalf("%s\n\tinstead of %s", got, want)
		}
	})
}
