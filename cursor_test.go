package posthorn

import (
	"testing"
	"time"
)

// FuzzPollCursor has any text for a cursor: it names few entries, of the webhook asked for, or is refused.
func FuzzPollCursor(f *testing.F) {
	w := &Webhook{ID: "w", Seq: 7}
	f.Add(polled(w, []*Entry{
		{WebhookSeq: 7, Event: &AcceptedEvent{ID: "a", Seq: 1, CreatedAt: time.Unix(1, 0)}},
		{WebhookSeq: 7, Event: &AcceptedEvent{ID: "b", Seq: 1 << 60, CreatedAt: time.Unix(1, 0)}, Run: 3},
	}).Cursor)
	f.Add("")
	f.Add("Bw")
	f.Add("________________________")
	f.Fuzz(func(t *testing.T, cursor string) {
		entries, err := parseCursor(w, cursor)
		if err != nil {
			if ErrorCode(err) != CodeInvalid || entries != nil {
				t.Fatalf("%v, %v", entries, err)
			}
			return
		}
		if len(entries) == 0 || len(entries) > MaxPoll {
			t.Fatalf("%d entries", len(entries))
		}
	})
}
