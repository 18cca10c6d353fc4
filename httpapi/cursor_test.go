package httpapi

import (
	"encoding/base64"
	"math"
	"testing"
	"time"

	"github.com/musehub/posthorn"
)

func TestCursor(t *testing.T) {
	list := newListing("deliveries", "r1", "w1")
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
	listings := [][]string{
		{"webhooks", "r1"}, {"webhooks", "r2"}, {"events", "r1"}, {"deliveries", "r1", "w1"}, {"deliveries", "r1w1"},
		{"deliveries", "r1", "w1", "true", ""}, {"deliveries", "r1", "w1", "", "true"}, {"deliveries", "r1", "", "w1"},
	}
	for i, from := range listings {
		for j, to := range listings {
			_, err := newListing(to...).position(*newListing(from...).cursor(7))
			if i == j && err != nil || i != j && posthorn.ErrorCode(err) != posthorn.CodeInvalid {
				t.Errorf("a cursor of %q in %q: %v", from, to, err)
			}
		}
	}
}

func FuzzCursor(f *testing.F) {
	list := newListing("events", "r1")
	valid := *list.cursor(42)
	for _, s := range []string{
		"", "garbage", valid, valid + "=", valid + "\n", valid[:len(valid)-1], valid + "A", "A" + valid, *newListing("events", "r2").cursor(42),
		base64.RawURLEncoding.EncodeToString(append(list[:], 0, 0, 0, 0, 0, 0, 0, 0)),
		base64.RawURLEncoding.EncodeToString(append(list[:], 255, 255, 255, 255, 255, 255, 255, 255)),
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
		case position == 0 && s != "", position < 0:
			t.Errorf("%q is %d", s, position)
		case position > 0 && *list.cursor(position) != s:
			t.Errorf("%q and %q are the same cursor", s, *list.cursor(position))
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
