package sender

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParseTarget(t *testing.T) {
	for _, test := range []struct {
		in, prefix string
		port       uint16
	}{
		{"10.0.0.0/8", "10.0.0.0/8", 0},
		{"10.0.0.0/8:443", "10.0.0.0/8", 443},
		{"192.168.0.120", "192.168.0.120/32", 0},
		{"10.0.0.1:321", "10.0.0.1/32", 321},
		{"0.0.0.0/0", "0.0.0.0/0", 0},
		{"::1", "::1/128", 0},
		{"[::1]", "::1/128", 0},
		{"[::1]:8080", "::1/128", 8080},
		{"fd00::/8", "fd00::/8", 0},
		{"[fd00::/8]:65535", "fd00::/8", 65535},
		{"::1:8080", "::1:8080/128", 0}, // an address, not a port
		{"::ffff:10.0.0.1", "10.0.0.1/32", 0},
		{"[::ffff:10.0.0.1]:80", "10.0.0.1/32", 80},
	} {
		got, err := ParseTarget(test.in)
		if want := (Target{netip.MustParsePrefix(test.prefix), test.port}); err != nil || got != want {
			t.Errorf("ParseTarget(%q) = %v, %v, want %v", test.in, got, err, want)
		}
	}
	for _, in := range []string{
		"", " ", ":", ":80", "10", "10.0.0", "10.0.0.1.", "10.0.0.256", "010.0.0.1", "localhost", "localhost:80", "*",
		"10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:-1", "10.0.0.1:http", "10.0.0.1:80:80", " 10.0.0.1",
		"10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/08", "10.0.0.0/8/8", "10.0.0.0:80/8", "10.0.0.0/8:0",
		"[10.0.0.1]", "[10.0.0.1]:80", "[::1", "[::1]80", "[::1]:", "[::1]:0", "[]:80", "::1]:80", "[[::1]]:80",
		"fd00::1/8", "fd00::/129", "fd00::/8:443", "fe80::1%lo", "[fe80::1%lo]:80", "fe80::%lo/10", "::ffff:10.0.0.0/104",
	} {
		if got, err := ParseTarget(in); err == nil || !strings.HasPrefix(err.Error(), "target ") {
			t.Errorf("ParseTarget(%q) = %v, %v", in, got, err)
		}
	}
	if (Target{}).contains(netip.MustParseAddr("127.0.0.1"), 80) || (Target{}).contains(netip.Addr{}, 0) {
		t.Error("the zero Target contains something")
	}
}

// An entry opens what it names and, when it names a port, no other.
func FuzzParseTarget(f *testing.F) {
	for _, seed := range []string{"10.0.0.0/8", "10.0.0.1:321", "[::1]:8080", "fd00::/8", "[fd00::/8]:1", "::ffff:1.2.3.4", "0.0.0.0/0", "[::"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		target, err := ParseTarget(in)
		if err != nil {
			if target != (Target{}) {
				t.Errorf("%q: %v beside the error %v", in, target, err)
			}
			return
		}
		first := target.prefix.Addr()
		if first.Is4In6() || first.Zone() != "" || target.prefix != target.prefix.Masked() {
			t.Fatalf("%q: %v", in, target)
		}
		if !strings.Contains(in, "/") && !target.prefix.IsSingleIP() {
			t.Errorf("%q became the network %v", in, target.prefix)
		}
		port := max(target.port, 1)
		if !target.contains(first, port) {
			t.Errorf("%q does not contain %v", in, first)
		}
		if target.port != 0 && target.contains(first, port-1) {
			t.Errorf("%q contains port %d", in, port-1)
		}
		if before := first.Prev(); before.IsValid() && target.contains(before, port) {
			t.Errorf("%q contains %v", in, before)
		}
	})
}
