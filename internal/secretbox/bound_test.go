package secretbox

import (
	"errors"
	"strings"
	"testing"
)

func TestBound(t *testing.T) {
	old, key := newKey(t), newKey(t)
	b, before, after := newBox(t, key, old), newBox(t, old), newBox(t, key)
	seal := func(b *Box, owner, secret string) string {
		t.Helper()
		token, err := b.SealFor(owner, secret)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	bare := func(b *Box, secret string) string {
		t.Helper()
		token, err := b.Seal(secret)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	for _, tt := range []struct {
		name, value, want string
		current, unbound  bool
		err               error
	}{
		{"bound", seal(b, "w1", "s3cret"), "s3cret", true, false, nil},
		{"bound, beyond ASCII", seal(b, "w1", "ÿ\x00 📯"), "ÿ\x00 📯", true, false, nil},
		{"bound, empty", seal(b, "w1", ""), "", true, false, nil},
		{"bound with an older key", seal(before, "w1", "s3cret"), "s3cret", false, false, nil},
		{"bound to another", seal(b, "w2", "s3cret"), "", false, false, ErrForeign},
		{"bound to one that begins alike", seal(b, "w11", "s3cret"), "", false, false, ErrForeign},
		{"bound to another with an older key", seal(before, "w2", "s3cret"), "", false, false, ErrForeign},
		{"bound to nobody", bare(b, "s3cret"), "s3cret", false, true, nil},
		{"bound to nobody, with an older key", bare(before, "s3cret"), "s3cret", false, true, nil},
		{"bound to nobody, empty", bare(b, ""), "", false, true, nil},
		{"never encrypted", "s3cret", "s3cret", false, true, nil},
		{"never encrypted, like bound", mark + "w2" + mark + "s", mark + "w2" + mark + "s", false, true, nil},
		{"of an unknown key", seal(newBox(t, newKey(t)), "w1", "s3cret"), "", false, false, ErrUndecryptable},
		{"cut short", strings.TrimRight(seal(b, "w1", "s3cret"), "=")[:80], "", false, false, ErrUndecryptable},
	} {
		got, current, err := b.OpenImported("w1", tt.value)
		if got != tt.want || current != tt.current || !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
			t.Errorf("%s: OpenImported = %q, %v, %v", tt.name, got, current, err)
		}
		want, wantErr := tt.want, tt.err
		if tt.unbound {
			want, wantErr = "", ErrForeign
		}
		got, current, err = b.OpenFor("w1", tt.value)
		if got != want || current != tt.current || !errors.Is(err, wantErr) || (err == nil) != (wantErr == nil) {
			t.Errorf("%s: OpenFor = %q, %v, %v", tt.name, got, current, err)
		}
	}
	if _, _, err := after.OpenFor("w1", seal(before, "w1", "s3cret")); !errors.Is(err, ErrUndecryptable) {
		t.Errorf("without the older key: %v", err)
	}
}

func TestFingerprint(t *testing.T) {
	first, err := Fingerprint(specKey)
	if err != nil || len(first) != 16 {
		t.Fatalf("Fingerprint = %q, %v", first, err)
	}
	if got, err := Fingerprint("730ff4c7af3d46923e8ed451ee813c87f790b0a226bc96a92de49b5e9c05e1ee"); got != first || err != nil {
		t.Errorf("the same key in hexadecimal: %q, %v", got, err)
	}
	if got := newBox(t, specKey, newKey(t)).First(); got != first {
		t.Errorf("First = %q", got)
	}
	if got, err := Fingerprint(newKey(t)); got == first || err != nil {
		t.Errorf("another key: %q, %v", got, err)
	}
	if _, err := Fingerprint("nonsense"); err == nil || strings.Contains(err.Error(), "nonsense") {
		t.Errorf("no key: %v", err)
	}
}
