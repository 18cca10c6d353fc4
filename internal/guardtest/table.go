// Package guardtest is what the tests of the dial guard share: the table of what it has to refuse, and a DNS server.
package guardtest

import (
	"net"
	"net/netip"
	"strings"
)

// Addresses are addresses that no webhook may reach, and the rule that is named.
type Addresses struct{ Rule, List string }

// Refused has, for each network that no webhook may reach, the first and the last address, and what lies between.
var Refused = []Addresses{
	{"loopback 127.0.0.0/8", "127.0.0.1 127.0.0.0 127.255.255.255 ::ffff:127.0.0.1"},
	{"loopback, outside of 2000::/3", "::1"},
	{"unspecified address 0.0.0.0/8", "0.0.0.0 ::ffff:0.0.0.0"},
	{"unspecified address, outside of 2000::/3", "::"},
	{"special-purpose network 0.0.0.0/8", "0.0.0.1 0.1.2.3 0.255.255.255"},
	{"private network 10.0.0.0/8", "10.0.0.0 10.0.0.1 10.255.255.255 ::ffff:10.1.2.3"},
	{"private network 172.16.0.0/12", "172.16.0.0 172.16.0.1 172.31.255.255"},
	{"private network 192.168.0.0/16", "192.168.0.0 192.168.0.120 192.168.255.255"},
	{"special-purpose network 100.64.0.0/10", "100.64.0.0 100.64.0.1 100.127.255.254 100.127.255.255"},
	{"link-local 169.254.0.0/16", "169.254.0.0 169.254.1.1 169.254.255.255"},
	{"special-purpose network 192.0.0.0/24", "192.0.0.0 192.0.0.8 192.0.0.255"},
	{"special-purpose network 192.0.2.0/24", "192.0.2.0 192.0.2.1 192.0.2.255"},
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
		"::7f00:1 ::ffff:0:7f00:1 ::5efe:7f00:1 " + // IPv4-compatible, IPv4-translated, ISATAP
			"64:ff9b::7f00:1 64:ff9b::808:808 64:ff9b:1:: 64:ff9b:1::1 64:ff9b:1:ffff:ffff:ffff:ffff:ffff " + // NAT64
			"100:: 100::1 100:0:0:1::1 " + // discard-only, dummy
			"fec0:: fec0::1 fedf::1 feff:ffff::1 " + // site-local
			"5f00:: 5f00::1 5f00:ffff::1 4000::1 1fff:ffff::1 e000::1 fe00::1"}, // SRv6 SIDs, unassigned
	{"private network, outside of 2000::/3", "fc00:: fc00::1 fd00::1 fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
	{"link-local, outside of 2000::/3", "fe80::1 febf::1"},
	{"multicast, outside of 2000::/3", "ff00:: ff00::1 ff02::1 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
	{"special-purpose network 2001::/23", "2001:: 2001::1 2001:0:7f00:1::1 2001:0:ffff::1 2001:10:: 2001:10::1 2001:1f:ffff::1 " +
		"2001:2::1 2001:20::1 2001:1ff::1"}, // Teredo, ORCHID, benchmarking, ORCHIDv2
	{"special-purpose network 2001:db8::/32", "2001:db8:: 2001:db8::1 2001:db8:ffff::1"},
	{"special-purpose network 2002::/16", "2002:: 2002::1 2002:7f00:1::1 2002:808:808::1 2002:ffff::1"}, // 6to4
	{"special-purpose network 2620:4f:8000::/48", "2620:4f:8000::1"},
	{"special-purpose network 3fff::/20", "3fff:: 3fff::1 3fff:fff::1"},
	{"cloud metadata", "169.254.169.254 ::ffff:169.254.169.254 169.254.170.2 169.254.170.23 169.254.0.23 " +
		"168.63.129.16 ::ffff:168.63.129.16 100.100.100.200 192.0.0.192 fd00:ec2::254 fd00:ec2::23 fd20:ce::254"},
	{"address with a zone", "fe80::1%lo ::1%lo 2606:4700::1111%eth0"},
}

// Public are addresses that every webhook may reach, most of them next to a network that none may.
var Public = strings.Fields("1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.254 100.63.255.255 100.128.0.0 100.128.0.1 " +
	"126.255.255.255 128.0.0.0 168.63.129.15 168.63.129.17 172.15.255.255 172.32.0.0 192.0.1.0 192.167.255.255 " +
	"192.169.0.0 198.17.255.255 198.20.0.0 223.255.255.255 ::ffff:8.8.8.8 " +
	"2000::1 2001:200::1 2001:4860:4860::8888 2003::1 2606:4700::1111 3ffe::1 3fff:1000::1")

// networks are those that no webhook may reach, each written down by itself and not taken from a library's list: what
// decides must not be what it is measured by.
var networks = prefixes("0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12 " +
	"192.0.0.0/24 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 " +
	"198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 " +
	"::/3 4000::/2 8000::/1 2001::/23 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20")

func prefixes(list string) (all []netip.Prefix) {
	for _, s := range strings.Fields(list) {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

// IsRefused reports whether no webhook may reach an address.
func IsRefused(ip netip.Addr) bool {
	if ip.Zone() != "" {
		return true
	}
	ip = ip.Unmap()
	for _, p := range networks {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// A Row is a URL that nothing may be sent to.
type Row struct {
	URL string
	// Registration is what the error names when the URL is registered; empty where only the dial can know.
	Registration string
	// Delivery is what the text of a delivery starts with, if there is one all the same: the row of a webhook can be
	// older than the rule. Empty for what isn't a URL at all.
	Delivery string
}

const (
	registration = "refused by the rule "
	delivery     = "SSRF blocked: connect: " + registration
	noScheme     = "it must start with http:// or https://"
	noName       = "host is neither a name nor a complete IP address"
	noUserinfo   = "it has a user name or password in it"
	noPort       = "port must be a number from 1 to 65535"
	malformed    = "it is malformed"
	unsupported  = "request error: request: unsupported protocol scheme"
	noHost       = "request error: DNS: no such host" // Go asks for no name that is all digits
	loopback4    = "loopback 127.0.0.0/8"
	loopback6    = "loopback, outside of 2000::/3"
)

// Names is what the DNS server of the rows answers: addresses, "|" between those of the first look-up and the next.
var Names = map[string]string{
	"private.test.":   "10.11.12.13",
	"private6.test.":  "fd12::3456",
	"mapped.test.":    "::ffff:10.11.12.13",
	"metadata.test.":  "169.254.169.254",
	"azure.test.":     "168.63.129.16",
	"mixed.test.":     "8.8.8.8 10.11.12.13",
	"mixed6.test.":    "8.8.8.8 fd12::3456",
	"nat64.test.":     "64:ff9b::7f00:1",
	"sixtofour.test.": "2002:7f00:1::1",
	// Some resolvers take these for addresses.
	"2130706433.": "127.0.0.1", "0x7f.1.": "127.0.0.1", "0177.0.0.1.": "127.0.0.1", "127.1.": "127.0.0.1", "127.0.0.1.": "127.0.0.1",
	"localhost.": "127.0.0.1 ::1", "a.localhost.": "127.0.0.1", "xn--lj8ha.test.": "127.0.0.1",
	"public.test.":  "8.8.8.8",
	"rebind.test.":  "8.8.8.8 | 10.11.12.13",
	"failing.test.": "fail",
	"hanging.test.": "hang",
}

// Rows returns every row: an URL for each address, and the ways to write one that a parser or a resolver could fall for.
func Rows() []Row {
	rows := []Row{
		{"http://2130706433/", noName, noHost},
		{"http://0x7f.1/", noName, delivery + loopback4},
		{"http://0177.0.0.1/", noName, noHost},
		{"http://127.1/", noName, noHost},
		{"http://127.0.0.1./", noName, delivery + loopback4},
		{"http://[127.0.0.1]/", malformed, ""},
		{"http://[::1%lo]/", malformed, ""},
		{"http://x@[::1]/", noUserinfo, delivery + loopback6},
		{"http://8.8.8.8@127.0.0.1/", noUserinfo, delivery + loopback4},
		{"http://127.0.0.1@8.8.8.8@127.0.0.1/", noUserinfo, delivery + loopback4},
		{"http://１２７.０.０.１/", registration + loopback4, delivery + loopback4},
		{"http://127。0。0。1/", registration + loopback4, delivery + loopback4},
		{"http://127｡0．0.1/", registration + loopback4, delivery + loopback4},
		{"http://127.0.0.\u00ad1/", registration + loopback4, delivery + loopback4},
		{"http://①②⑦.⓪.⓪.①/", registration + loopback4, delivery + loopback4},
		{"http://ｌｏｃａｌｈｏｓｔ/", "", delivery + "loopback"},
		{"http://xn--lj8ha.test/", "", delivery + loopback4},
		{"http://localhost/", "", delivery + "loopback"},
		{"http://LOCALHOST./", "", delivery + "loopback"},
		{"http://a.localhost/", "", delivery + loopback4},
		{"http://private.test/", "", delivery + "private network 10.0.0.0/8"},
		{"http://PRIVATE.test./", "", delivery + "private network 10.0.0.0/8"},
		{"https://private.test:8443/", "", delivery + "private network 10.0.0.0/8"},
		{"http://private6.test/", "", delivery + "private network, outside of 2000::/3"},
		{"http://mapped.test/", "", delivery + "private network 10.0.0.0/8"},
		{"http://metadata.test/latest/meta-data", "", delivery + "cloud metadata"},
		{"http://azure.test/", "", delivery + "cloud metadata"},
		{"http://mixed.test/", "", delivery + "private network 10.0.0.0/8"},
		{"http://mixed6.test/", "", delivery + "private network, outside of 2000::/3"},
		{"http://nat64.test/", "", delivery + "special-purpose network, outside of 2000::/3"},
		{"http://sixtofour.test/", "", delivery + "special-purpose network 2002::/16"},
		{"http://failing.test/", "", "request error: DNS: the lookup failed"},
		{"http://unknown.test/", "", noHost},
		{"http://8.8.8.8:0/", noPort, "request error: request: " + noPort},
		{"http://8.8.8.8:65536/", noPort, "request error: request: " + noPort},
		{"http://8.8.8.8:-1/", malformed, ""},
		{"unix:///run/docker.sock", noScheme, unsupported},
		{"http+unix://%2Frun%2Fdocker.sock/", malformed, ""},
		{"file:///etc/passwd", noScheme, unsupported},
		{"gopher://127.0.0.1:70/_x", noScheme, unsupported},
	}
	for _, r := range Refused {
		for _, ip := range strings.Fields(r.List) {
			host := net.JoinHostPort(strings.Replace(ip, "%", "%25", 1), "8080")
			rows = append(rows, Row{"http://" + host + "/", registration + r.Rule, delivery + r.Rule})
		}
	}
	return rows
}
