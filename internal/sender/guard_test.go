package sender

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/musehub/posthorn/internal/guardtest"
)

func TestGuardRefuses(t *testing.T) {
	s, passed := newSender(t, Config{})
	for _, row := range guardtest.Refused {
		for _, ip := range strings.Fields(row.List) {
			for _, port := range []string{"80", "443", "8080"} {
				target := net.JoinHostPort(ip, port)
				err := s.judge(netip.MustParseAddrPort(target))
				if err == nil || !strings.HasPrefix(err.Error(), "refused by the rule "+row.Rule) {
					t.Errorf("judge(%s) = %v, want the rule %s", target, err, row.Rule)
				}
			}

			u := "http://" + net.JoinHostPort(strings.Replace(ip, "%", "%25", 1), "8080") + "/"
			o := post(t, s, u, 0)
			if want := "SSRF blocked: connect: refused by the rule " + row.Rule; o.Status != 0 || !strings.HasPrefix(o.Body, want) {
				t.Errorf("%s: %d %q, want %q", u, o.Status, o.Body, want)
			}
			if o.Header != nil || o.Canceled || o.Success() {
				t.Errorf("%s: %+v", u, o)
			}
			if _, err := s.CheckURL(u); err == nil || !strings.Contains(err.Error(), "is refused by the rule "+row.Rule) {
				t.Errorf("CheckURL(%s): %v", u, err)
			}
		}
	}
	if passed.String() != "" {
		t.Errorf("the guard let pass %v", passed)
	}
}

func TestGuardPasses(t *testing.T) {
	s, passed := newSender(t, Config{})
	for _, ip := range guardtest.Public {
		if err := s.judge(netip.MustParseAddrPort(net.JoinHostPort(ip, "65535"))); err != nil {
			t.Errorf("judge(%s) = %v", ip, err)
		}
		if _, err := s.CheckURL("https://" + net.JoinHostPort(ip, "65535")); err != nil {
			t.Errorf("CheckURL: %v", err)
		}
	}
	// The dial gets through the guard, to be stopped behind it.
	o := post(t, s, "http://8.8.8.8:81/", 0)
	if want := "request error: connect: " + errNotLoopback.Error(); o.Body != want {
		t.Errorf("got %q, want %q", o.Body, want)
	}
	if want := "8.8.8.8:81"; passed.String() != want {
		t.Errorf("passed %q, want %q", passed, want)
	}
}

func TestControlRefusesOtherNetworks(t *testing.T) {
	s, _ := newSender(t, Config{})
	for _, network := range []string{"tcp", "udp4", "unix", ""} {
		if _, ok := errors.AsType[refusal](s.control(network, "8.8.8.8:80")); !ok {
			t.Errorf("network %q passed", network)
		}
	}
	for _, address := range []string{"", "8.8.8.8", "localhost:80", "/run/x.sock"} {
		if _, ok := errors.AsType[refusal](s.control("tcp4", address)); !ok {
			t.Errorf("address %q passed", address)
		}
	}
}

func TestAllowTargets(t *testing.T) {
	for _, test := range []struct{ allow, open, refused string }{
		{"192.168.0.120", "192.168.0.120:80 192.168.0.120:8080 [::ffff:192.168.0.120]:80", "192.168.0.121:80 192.168.0.119:80"},
		{"10.0.0.1:321", "10.0.0.1:321 [::ffff:10.0.0.1]:321", "10.0.0.1:320 10.0.0.1:80 10.0.0.2:321"},
		{"10.0.0.0/8:443", "10.0.0.1:443 10.255.0.1:443", "10.0.0.1:80 172.16.0.1:443"},
		{"::ffff:10.0.0.1", "10.0.0.1:80", "10.0.0.2:80"},
		{"::1", "[::1]:80", "127.0.0.1:80 [::2]:80 [::1%lo]:80"},
		{"[::1]:8080", "[::1]:8080", "[::1]:80"},
		{"fd00::/8", "[fd00::1]:80 [fdff::1]:1", "[fc00::1]:80 [fd00:ec2::254]:80 [fd20:ce::254]:80 [fd00::1%eth0]:80"},
		{"fe80::/10", "[fe80::1]:80", "[fe80::1%lo]:80"},
		// A network opens no metadata service, however narrow it is.
		{"0.0.0.0/0", "127.0.0.1:1 8.8.8.8:1 169.254.1.1:80", "169.254.169.254:80 [::ffff:169.254.169.254]:80 " +
			"168.63.129.16:80 100.100.100.200:80 192.0.0.192:80 169.254.170.2:80 [::1]:80"},
		{"169.254.169.254/31", "169.254.169.255:80", "169.254.169.254:80"},
		{"169.254.169.254", "169.254.169.254:80 [::ffff:169.254.169.254]:80", "169.254.169.253:80"},
		{"169.254.169.254/32", "169.254.169.254:80", "169.254.169.253:80"},
		{"168.63.129.16:80", "168.63.129.16:80", "168.63.129.16:32526"},
		{"fd00:ec2::254", "[fd00:ec2::254]:80", "[fd00:ec2::23]:80"},
		{"::/0", "[::1]:80 [fc00::1]:80 [64:ff9b::8.8.8.8]:80", "[fd00:ec2::254]:80 127.0.0.1:80 [::ffff:127.0.0.1]:80 [64:ff9b::127.0.0.1]:80"},
		// In NAT64 it is the IPv4 address that counts, unless that very address is named.
		{"64:ff9b::/96", "[64:ff9b::8.8.8.8]:80", "[64:ff9b::10.0.0.1]:80 [64:ff9b::169.254.169.254]:80 [64:ff9b:1::8.8.8.8]:80"},
		{"64:ff9b::a00:1", "[64:ff9b::10.0.0.1]:80", "[64:ff9b::10.0.0.2]:80"},
	} {
		s, _ := newSender(t, Config{AllowTargets: []Target{mustTarget(test.allow)}})
		for _, target := range strings.Fields(test.open) {
			if err := s.judge(netip.MustParseAddrPort(target)); err != nil {
				t.Errorf("%s does not open %s: %v", test.allow, target, err)
			}
		}
		for _, target := range strings.Fields(test.refused) {
			if s.judge(netip.MustParseAddrPort(target)) == nil {
				t.Errorf("%s opens %s", test.allow, target)
			}
		}
	}
}

// The entries add up.
func TestAllowTargetsTogether(t *testing.T) {
	s, _ := newSender(t, Config{AllowTargets: []Target{
		mustTarget("169.254.0.0/16"), mustTarget("169.254.169.254:8080"), mustTarget("64:ff9b::/96"), mustTarget("10.0.0.1"),
	}})
	for _, target := range strings.Fields("169.254.1.1:80 169.254.169.254:8080 10.0.0.1:80 [64:ff9b::10.0.0.1]:80") {
		if err := s.judge(netip.MustParseAddrPort(target)); err != nil {
			t.Errorf("%s: %v", target, err)
		}
	}
	for _, target := range strings.Fields("169.254.169.254:80 10.0.0.2:80 [64:ff9b::10.0.0.2]:80") {
		if s.judge(netip.MustParseAddrPort(target)) == nil {
			t.Errorf("%s is open", target)
		}
	}
}
