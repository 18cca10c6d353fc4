package sender

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// refusedAddresses has, for each network that no webhook may reach, addresses in it and the rule that is named.
var refusedAddresses = []struct{ rule, addresses string }{
	{"loopback 127.0.0.0/8", "127.0.0.1 127.0.0.0 127.255.255.255 ::ffff:127.0.0.1"},
	{"loopback, outside of 2000::/3", "::1"},
	{"unspecified address 0.0.0.0/8", "0.0.0.0 ::ffff:0.0.0.0"},
	{"unspecified address, outside of 2000::/3", "::"},
	{"special-purpose network 0.0.0.0/8", "0.0.0.1 0.255.255.255"},
	{"private network 10.0.0.0/8", "10.0.0.0 10.0.0.1 10.255.255.255 ::ffff:10.1.2.3"},
	{"private network 172.16.0.0/12", "172.16.0.0 172.31.255.255"},
	{"private network 192.168.0.0/16", "192.168.0.0 192.168.0.120 192.168.255.255"},
	{"special-purpose network 100.64.0.0/10", "100.64.0.0 100.127.255.255"},
	{"link-local 169.254.0.0/16", "169.254.0.0 169.254.1.1 169.254.255.255"},
	{"special-purpose network 192.0.0.0/24", "192.0.0.0 192.0.0.8 192.0.0.255"},
	{"special-purpose network 192.0.2.0/24", "192.0.2.0 192.0.2.255"},
	{"special-purpose network 192.31.196.0/24", "192.31.196.1"},
	{"special-purpose network 192.52.193.0/24", "192.52.193.1"},
	{"special-purpose network 192.88.99.0/24", "192.88.99.0 192.88.99.1 192.88.99.255"},
	{"special-purpose network 192.175.48.0/24", "192.175.48.1"},
	{"special-purpose network 198.18.0.0/15", "198.18.0.0 198.19.255.255"},
	{"special-purpose network 198.51.100.0/24", "198.51.100.0 198.51.100.255"},
	{"special-purpose network 203.0.113.0/24", "203.0.113.0 203.0.113.255"},
	{"multicast 224.0.0.0/4", "224.0.0.0 224.0.0.1 239.255.255.255"},
	{"special-purpose network 240.0.0.0/4", "240.0.0.0 255.255.255.254 255.255.255.255"},
	{"special-purpose network, outside of 2000::/3", // what it is, in the order of the addresses:
		"::7f00:1 ::ffff:0:7f00:1 " + // IPv4-compatible, IPv4-translated
			"64:ff9b::7f00:1 64:ff9b::808:808 64:ff9b:1::1 " + // NAT64
			"100::1 100:0:0:1::1 " + // discard-only, dummy
			"fec0::1 fedf::1 feff:ffff::1 " + // site-local
			"5f00::1 4000::1 1fff:ffff::1 e000::1 fe00::1"}, // SRv6 SIDs, unassigned
	{"private network, outside of 2000::/3", "fc00::1 fd00::1 fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
	{"link-local, outside of 2000::/3", "fe80::1 febf::1"},
	{"multicast, outside of 2000::/3", "ff00::1 ff02::1 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
	{"special-purpose network 2001::/23", "2001::1 2001:0:7f00:1::1 2001:10::1 2001:2::1 2001:20::1 2001:1ff::1"},
	{"special-purpose network 2001:db8::/32", "2001:db8::1 2001:db8:ffff::1"},
	{"special-purpose network 2002::/16", "2002::1 2002:7f00:1::1 2002:808:808::1"},
	{"special-purpose network 2620:4f:8000::/48", "2620:4f:8000::1"},
	{"special-purpose network 3fff::/20", "3fff::1 3fff:fff::1"},
	{"cloud metadata", "169.254.169.254 ::ffff:169.254.169.254 169.254.170.2 169.254.170.23 169.254.0.23 " +
		"168.63.129.16 ::ffff:168.63.129.16 100.100.100.200 192.0.0.192 fd00:ec2::254 fd00:ec2::23 fd20:ce::254"},
	{"address with a zone", "fe80::1%lo ::1%lo 2606:4700::1111%eth0"},
}

var publicAddresses = strings.Fields("1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 " +
	"126.255.255.255 128.0.0.0 168.63.129.15 168.63.129.17 172.15.255.255 172.32.0.0 192.0.1.0 192.167.255.255 " +
	"192.169.0.0 198.17.255.255 198.20.0.0 223.255.255.255 ::ffff:8.8.8.8 " +
	"2000::1 2001:200::1 2001:4860:4860::8888 2003::1 2606:4700::1111 3ffe::1 3fff:1000::1")

func TestGuardRefuses(t *testing.T) {
	s, passed := newSender(t, Config{})
	for _, row := range refusedAddresses {
		for _, ip := range strings.Fields(row.addresses) {
			for _, port := range []string{"80", "443", "8080"} {
				target := net.JoinHostPort(ip, port)
				err := s.judge(netip.MustParseAddrPort(target))
				if err == nil || !strings.HasPrefix(err.Error(), "refused by the rule "+row.rule) {
					t.Errorf("judge(%s) = %v, want the rule %s", target, err, row.rule)
				}
			}

			u := "http://" + net.JoinHostPort(strings.Replace(ip, "%", "%25", 1), "8080") + "/"
			o := post(t, s, u, 0)
			if want := "SSRF blocked: connect: refused by the rule " + row.rule; o.Status != 0 || !strings.HasPrefix(o.Body, want) {
				t.Errorf("%s: %d %q, want %q", u, o.Status, o.Body, want)
			}
			if o.Header != nil || o.Canceled || o.Success() {
				t.Errorf("%s: %+v", u, o)
			}
			if _, err := s.CheckURL(u); err == nil || !strings.Contains(err.Error(), "is refused by the rule "+row.rule) {
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
	for _, ip := range publicAddresses {
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
