package httpapi

import (
	"encoding/base64"
	"math"
	"testing"
	"time"

	"github.com/musehub/posthorn"
)

func TestCursor(t *testing.T) {
	list := newTestAPI(t, posthorn.Config{}).listing("deliveries", "r1", "w1")
	for _, position := range []int64{1, 2, 1 << 40, math.MaxInt64} {
		if got, err := list.position(*list.cursor(position)); got != position || err != nil {
			t.Errorf("%d became %d, %v", position, got, err)
		}
	}
	if list.cursor(0) != nil {
		t.Error("the end has a cursor")
	}
	if got, err := list.position(""); got != 0 || err != nil {
		t.Errorf("no cursor is %d, %v", got, err)
	}
}

// Case 28.
func TestCursorOfAnotherListing(t *testing.T) {
	s := newTestAPI(t, posthorn.Config{})
	listings := [][]string{
		{"webhooks", "r1"}, {"webhooks", "r2"}, {"events", "r1"}, {"deliveries", "r1", "w1"}, {"deliveries", "r1w1"},
		{"deliveries", `r1" "w1`}, {"deliveries", "r1", "w1", "true", ""}, {"deliveries", "r1", "w1", "", "true"}, {"deliveries", "r1", "", "w1"},
	}
	for i, from := range listings {
		for j, to := range listings {
			_, err := s.listing(to...).position(*s.listing(from...).cursor(7))
			if i == j && err != nil || i != j && posthorn.ErrorCode(err) != posthorn.CodeInvalid {
				t.Errorf("a cursor of %q in %q: %v", from, to, err)
			}
		}
	}
}

// A position counts what all repos do: a cursor tells nobody where it is.
func TestCursorTellsNothing(t *testing.T) {
	list := newTestAPI(t, posthorn.Config{}).listing("events", "r1")
	raw := func(position int64) []byte {
		b, err := base64.RawURLEncoding.DecodeString(*list.cursor(position))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	same := 0
	for i, b := range raw(42) {
		if b == raw(43)[i] {
			same++
		}
	}
	if same > 8 { // of 36, by chance
		t.Errorf("the cursors of neighbours have %d bytes in common", same)
	}
	if n := len(raw(1)); n != len(raw(math.MaxInt64)) {
		t.Errorf("a cursor's length tells its position: %d bytes", n)
	}
}

func FuzzCursor(f *testing.F) {
	api := newTestAPI(f, posthorn.Config{})
	list := api.listing("events", "r1")
	valid := *list.cursor(42)
	for _, s := range []string{
		"", "garbage", valid, valid + "=", valid + "\n", valid[:len(valid)-1], valid + "A", "A" + valid, *api.listing("events", "r2").cursor(42),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		position, err := list.position(s)
		switch {
		case err != nil:
			if p := problemFor(err); p.Field != "cursor" || position != 0 {
				t.Errorf("%d, %+v", position, p)
			}
		case position != 42 && s != "", s != valid && s != "":
			t.Errorf("%q is %d", s, position)
		}
	})
}

func TestTimestamp(t *testing.T) {
	zone := time.FixedZone("", 2*60*60)
	for want, in := range map[string]time.Time{
		"2026-01-02T03:04:05.000006Z": time.Date(2026, 1, 2, 5, 4, 5, 6000, zone),
		"2026-01-02T03:04:05.000000Z": time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		"2026-12-31T23:59:59.999999Z": time.Date(2026, 12, 31, 23, 59, 59, 999999999, time.UTC),
	} {
		if got := timestamp(in); got != want {
			t.Errorf("%v is written %s, want %s", in, got, want)
		}
	}
}
