package sender

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/musehub/posthorn/internal/guardtest"
)

// newRecorder returns a Sender that connects to nothing: what its guard lets pass is recorded and refused.
func newRecorder(t testing.TB, cfg Config) (*Sender, *passed) {
	cfg.Timeout = cmp.Or(cfg.Timeout, patience)
	s := New(cfg)
	t.Cleanup(s.Close)
	p := new(passed)
	s.afterGuard = func(_, address string) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.addresses = append(p.addresses, address)
		return errRecorded
	}
	return s, p
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

var errRecorded = errors.New("recorded, and not connected")

// Every row of the table: at registration where it can be known, and always at the dial.
func TestTable(t *testing.T) {
	s, passed := newRecorder(t, Config{Resolver: guardtest.NewDNS(t, guardtest.Names).Resolver()})
	for _, row := range guardtest.Rows() {
		_, err := s.CheckURL(row.URL)
		if got := errorText(err); row.Registration == "" && err != nil || !strings.Contains(got, row.Registration) {
			t.Errorf("CheckURL(%s): %v, want %q", row.URL, err, row.Registration)
		}
		u, err := ParseURL(row.URL)
		if row.Delivery == "" {
			if err == nil {
				t.Errorf("%s is a URL", row.URL)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", row.URL, err)
			continue
		}
		o := s.Send(t.Context(), &Request{URL: u, Header: header()})
		if o.Status != 0 || !strings.HasPrefix(o.Body, row.Delivery) {
			t.Errorf("%s: %d %q, want %q", row.URL, o.Status, o.Body, row.Delivery)
		}
	}
	if passed.String() != "" {
		t.Errorf("the guard let pass %v", passed)
	}
}

// The table is what the guard is measured by, so it is held against what it says of itself.
func TestTableIsTrue(t *testing.T) {
	for _, row := range guardtest.Refused {
		for _, ip := range strings.Fields(row.List) {
			if !guardtest.IsRefused(netip.MustParseAddr(ip)) && row.Rule != "cloud metadata" {
				t.Errorf("%s is in none of its networks", ip)
			}
		}
	}
	for _, ip := range guardtest.Public {
		if guardtest.IsRefused(netip.MustParseAddr(ip)) {
			t.Errorf("%s is in one of its networks", ip)
		}
	}
}

// A name that resolves to another address the second time gets nowhere by that: what is judged is what is dialed, with
// one look-up for both.
func TestRebinding(t *testing.T) {
	s, passed := newRecorder(t, Config{Resolver: guardtest.NewDNS(t, guardtest.Names).Resolver()})
	o := post(t, s, "http://rebind.test/", 0)
	if want := "request error: connect: " + errRecorded.Error(); o.Body != want {
		t.Errorf("first: %q, want %q", o.Body, want)
	}
	for range 2 {
		o = post(t, s, "http://rebind.test/", 0)
		if want := "SSRF blocked: connect: refused by the rule private network 10.0.0.0/8"; !strings.HasPrefix(o.Body, want) {
			t.Errorf("after that: %q, want %q", o.Body, want)
		}
	}
	if passed.String() != "8.8.8.8:80" {
		t.Errorf("the guard let pass %v", passed)
	}
}

// A name is looked up as it stands, whatever search domains the machine has.
func TestNoSearchDomains(t *testing.T) {
	dns := guardtest.NewDNS(t, nil)
	s, _ := newRecorder(t, Config{Resolver: dns.Resolver()})
	var mu sync.Mutex
	var asked []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{DNSStart: func(info httptrace.DNSStartInfo) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, info.Host)
	}})
	for _, name := range []string{"intranet", "db.internal", "db.internal."} {
		o := s.Send(ctx, &Request{URL: mustURL("http://" + name + "/"), Header: header()})
		if o.Body != "request error: DNS: no such host" {
			t.Errorf("%s: %q", name, o.Body)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if got := strings.Join(asked, " "); got != "intranet. db.internal. db.internal." {
		t.Errorf("looked up %s", got)
	}
	if got := strings.Join(dns.Asked(), " "); got != "intranet. db.internal." {
		t.Errorf("the server was asked for %s", got)
	}
}

func TestOwnAddresses(t *testing.T) {
	const own = "refused by the rule Posthorn's own listener; only an --allow-target (Config.AllowTargets) for exactly this address and port opens it"
	machine := localAddress(t)
	for _, test := range []struct{ listens, allow, open, refused string }{
		{"127.0.0.1:8080", "127.0.0.0/8", "127.0.0.1:8081 127.0.0.2:8080", "127.0.0.1:8080 [::ffff:127.0.0.1]:8080"},
		{"127.0.0.1:8080", "127.0.0.1", "127.0.0.1:80", "127.0.0.1:8080"},
		{"127.0.0.1:8080", "127.0.0.0/8:8080", "127.0.0.2:8080", "127.0.0.1:8080"},
		{"127.0.0.1:8080", "127.0.0.1:8080", "127.0.0.1:8080", ""},
		{"127.0.0.1:8080", "0.0.0.0/0", "0.0.0.0:80", "0.0.0.0:8080 127.0.0.1:8080"},
		{"[::1]:8080", "::/0", "[::1]:80 [::2]:8080", "[::1]:8080 [::]:8080"},
		{"8.8.8.8:443", "10.0.0.1", "8.8.8.8:80", "8.8.8.8:443"},
		{"[::]:8080", "0.0.0.0/0", "127.0.0.1:80 8.8.8.8:8080", "127.0.0.1:8080 127.9.9.9:8080 0.0.0.0:8080 " + machine + ":8080"},
		{"0.0.0.0:8080", machine, machine + ":80", machine + ":8080"},
		{"0.0.0.0:8080", machine + ":8080", machine + ":8080", ""},
	} {
		s, _ := newRecorder(t, Config{
			AllowTargets: []Target{mustTarget(test.allow)}, OwnAddresses: []netip.AddrPort{netip.MustParseAddrPort(test.listens)},
		})
		for _, target := range strings.Fields(test.open) {
			if err := s.judge(netip.MustParseAddrPort(target)); err != nil {
				t.Errorf("%s, open %s: %s: %v", test.listens, test.allow, target, err)
			}
		}
		for _, target := range strings.Fields(test.refused) {
			if err := s.judge(netip.MustParseAddrPort(target)); errorText(err) != own {
				t.Errorf("%s, open %s: %s: %v", test.listens, test.allow, target, err)
			}
		}
	}
}

// localAddress returns an address of the machine, that of loopback if it has no other.
func localAddress(t *testing.T) string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	found := "127.0.0.1"
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() {
			found = p.Addr().String()
		}
	}
	return found
}

func TestNAT64(t *testing.T) {
	for _, test := range []struct{ nat64, allow, open, refused string }{
		{"64:ff9b::/96", "", "[64:ff9b::8.8.8.8]:80", "[64:ff9b::127.0.0.1]:80 [64:ff9b::10.0.0.1]:80 [64:ff9b::169.254.169.254]:80 [64:ff9b:1::8.8.8.8]:80"},
		{"64:ff9b::/96", "10.0.0.1", "[64:ff9b::10.0.0.1]:80", "[64:ff9b::10.0.0.2]:80"},
		{"64:ff9b::/96", "::/0", "[64:ff9b::8.8.8.8]:80 [::1]:80", "[64:ff9b::127.0.0.1]:80"},
		{"64:ff9b:1::/48", "", "[64:ff9b:1:808:8:800::]:80", "[64:ff9b:1:7f00:0:100::]:80 [64:ff9b:1:a9fe:a9:fe00::]:80"},
		{"2600:64::/32", "", "[2600:64:808:808::]:80 [2600:65::1]:80", "[2600:64:7f00:1::]:80"},
		{"2600:64::/40", "", "[2600:64:8:808:8::]:80", "[2600:64:7f:0:1::]:80"},
		{"2600:64::/56", "", "[2600:64:0:8:8:808::]:80", "[2600:64:0:7f:0:1::]:80"},
		{"2600:64::/64", "", "[2600:64::8:808:800:0]:80", "[2600:64::7f:0:100:0]:80 [2600:64::a:0:100:0]:80"},
		{"2600:64::/96", "2600::/16", "[2600:64::8.8.8.8]:80", "[2600:64::10.0.0.1]:80"},
		{"2600:64::/96", "2600:64::10.0.0.1", "[2600:64::10.0.0.1]:80", "[2600:64::10.0.0.2]:80"},
		{"2600:64::/96", "2600:64::169.254.169.0/120", "[2600:64::8.8.8.8]:80", "[2600:64::169.254.169.254]:80"},
	} {
		prefix, err := ParseNAT64(test.nat64)
		if err != nil {
			t.Fatal(err)
		}
		cfg := Config{NAT64: []netip.Prefix{prefix}}
		if test.allow != "" {
			cfg.AllowTargets = []Target{mustTarget(test.allow)}
		}
		s, _ := newRecorder(t, cfg)
		for _, target := range strings.Fields(test.open) {
			if err := s.judge(netip.MustParseAddrPort(target)); err != nil {
				t.Errorf("%s, open %s: %s: %v", test.nat64, test.allow, target, err)
			}
		}
		for _, target := range strings.Fields(test.refused) {
			if s.judge(netip.MustParseAddrPort(target)) == nil {
				t.Errorf("%s, open %s: %s passed", test.nat64, test.allow, target)
			}
		}
	}
	for _, in := range []string{"", "64:ff9b::", "64:ff9b::/95", "64:ff9b::1/96", "10.0.0.0/8", "::ffff:0.0.0.0/96", "64:ff9b::/128", "x"} {
		if p, err := ParseNAT64(in); err == nil {
			t.Errorf("ParseNAT64(%q) = %v", in, p)
		}
	}
}

// Whatever the prefix, an address under it is judged as the IPv4 address that was embedded (RFC 6052, section 2.2), and the metadata of
// no cloud is reached through it.
func FuzzNAT64(f *testing.F) {
	for _, prefix := range []string{"64:ff9b::/96", "64:ff9b:1::/48", "2600:64::/32", "2600:64::/40", "2600:64::/56", "2600:64::/64", "::/96", "64:ff9b::/95", "1.2.3.4/32", "fe80::%lo/64"} {
		f.Add(prefix, uint32(0x7f000001))
		f.Add(prefix, uint32(0x08080808))
	}
	s, _ := newRecorder(f, Config{})
	f.Fuzz(func(t *testing.T, text string, embedded uint32) {
		prefix, err := ParseNAT64(text)
		if err != nil {
			if prefix.IsValid() || !utf8.ValidString(err.Error()) {
				t.Errorf("%q: %v beside the error %v", text, prefix, err)
			}
			return
		}
		if again, err := ParseNAT64(prefix.String()); err != nil || again != prefix || prefix != prefix.Masked() {
			t.Fatalf("%q became %v, %v, %v", text, prefix, again, err)
		}
		var v4 [4]byte
		binary.BigEndian.PutUint32(v4[:], embedded)
		v6, at := prefix.Addr().As16(), prefix.Bits()/8
		for _, b := range v4 {
			if at == 8 { // these bits are not used
				at++
			}
			v6[at] = b
			at++
		}
		ip := netip.AddrFrom4(v4)
		s.nat64 = []netip.Prefix{prefix}
		err = s.judge(netip.AddrPortFrom(netip.AddrFrom16(v6), 80))
		if guardtest.IsRefused(ip) && err == nil {
			t.Errorf("%v is reached under %v", ip, prefix)
		}
		if err != nil && s.judge(netip.AddrPortFrom(ip, 80)) == nil && !guardtest.IsRefused(netip.AddrFrom16(v6)) {
			t.Errorf("%v under %v is not reached: %v", ip, prefix, err)
		}
	})
}

// Whatever the URL, and whatever its name resolves to: nothing is connected to that the table refuses.
func FuzzGuard(f *testing.F) {
	for _, row := range guardtest.Rows() {
		f.Add(row.URL, "8.8.8.8")
	}
	for _, row := range guardtest.Refused {
		for _, ip := range strings.Fields(row.List) {
			f.Add("http://hook.test/", ip)
			f.Add("https://hook.test:1/", "8.8.8.8 "+ip)
		}
	}
	for _, ip := range guardtest.Public {
		f.Add("http://hook.test/", ip)
	}
	dns := guardtest.NewDNS(f, map[string]string{})
	s, passed := newRecorder(f, Config{Resolver: dns.Resolver()})
	f.Fuzz(func(t *testing.T, raw, addresses string) {
		var answer []string
		for _, word := range strings.Fields(addresses)[:min(8, len(strings.Fields(addresses)))] { // what fits into a packet
			if ip, err := netip.ParseAddr(word); err == nil && ip.Zone() == "" {
				answer = append(answer, ip.String())
			}
		}
		u, err := ParseURL(raw)
		if err != nil {
			return
		}
		dns.Set("*", strings.Join(answer, " "))
		o := s.Send(context.Background(), &Request{URL: u, Header: header()})
		for _, address := range strings.Fields(passed.take()) {
			if guardtest.IsRefused(netip.MustParseAddrPort(address).Addr()) {
				t.Errorf("%q, resolved to %v: connected to %s", raw, answer, address)
			}
		}
		if o.Status != 0 {
			t.Errorf("%q: %+v", raw, o)
		}
	})
}

// What is said of a row is what becomes of it.
func TestExplain(t *testing.T) {
	s, passed := newRecorder(t, Config{Resolver: guardtest.NewDNS(t, guardtest.Names).Resolver()})
	for _, row := range guardtest.Rows() {
		v := s.Explain(t.Context(), row.URL)
		want := row.Registration
		if want == "" {
			want = row.Delivery[strings.LastIndex(row.Delivery, ": ")+2:]
		}
		if (v.Phase == "registration") != (row.Registration != "") || v.Phase == "" || !strings.Contains(v.Reason, want) {
			t.Errorf("%s: %+v, want %q", row.URL, v, want)
		}
		if strings.Contains(want, "refused") && (!strings.Contains(want, v.Rule[:8]) || v.Remedy == "") {
			t.Errorf("%s: %+v, want %q", row.URL, v, want)
		}
		if u, err := url.Parse(row.URL); err == nil { // what its name resolves to is told by nothing
			name := strings.ToLower(strings.TrimSuffix(u.Hostname(), ".")) + "."
			for _, address := range strings.Fields(guardtest.Names[name]) {
				if text := v.Reason + v.Rule + v.Remedy; strings.Contains(text, address) && !strings.Contains(row.URL, address) {
					t.Errorf("%s: %q tells its address", row.URL, text)
				}
			}
		}
	}
	for _, raw := range []string{"http://public.test/", "https://8.8.8.8/"} {
		if v := s.Explain(t.Context(), raw); v != (Verdict{}) {
			t.Errorf("%s: %+v", raw, v)
		}
	}
	if passed.String() != "" {
		t.Errorf("connected to %v", passed)
	}
}
