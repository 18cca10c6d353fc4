//go:build !race

package signature_test

import "testing"

// TestSignerAllocs holds the hot path to one allocation, the string. With the
// race detector on, sync.Pool drops some of what it is given, so that build
// can't count.
func TestSignerAllocs(t *testing.T) {
	s := newSigner(t, vectors[0].secret, vectors[1].secret)
	body := []byte(refBody)
	if n := testing.AllocsPerRun(200, func() { s.Body(body) }); n > 1 {
		t.Errorf("Body allocates %v times, want 1", n)
	}
	if n := testing.AllocsPerRun(200, func() { s.Standard(refID, refTime, body) }); n > 1 {
		t.Errorf("Standard allocates %v times, want 1", n)
	}
}
