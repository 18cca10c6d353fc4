package sender

import (
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/musehub/posthorn/internal/guardtest"
)

func TestCheckURLAccepts(t *testing.T) {
	s, _ := newSender(t, Config{AllowTargets: []Target{mustTarget("10.0.0.1:80"), mustTarget("10.0.0.2:443"), mustTarget("[::1]:8080")}})
	for _, raw := range []string{
		"http://example.com",
		"https://example.com/hook?a=1&b=%20#fragment",
		"HTTPS://EXAMPLE.COM:443/",
		"http://example.com:1/", "http://example.com:65535/", "http://example.com:00080/",
		"http://example.com?token=x@y", "http://example.com/@me:x",
		"http://example.com./", "http://a_b-c.example.com/", "http://localhost:8080/", "http://x.0x7g/",
		"http://bücher.example/ü?ü", "http://b%C3%BCcher.example/",
		"http://example.com/a|b\"<>{}`^\\",
		"http://8.8.8.8/", "http://[2606:4700::1111]/", "http://[::ffff:8.8.8.8]:81/",
		"http://10.0.0.1/", "https://10.0.0.2/", "http://[::ffff:10.0.0.1]/", "http://[::1]:8080/",
		"http://example.com/" + strings.Repeat("ü", 2048-19),
		"http://" + strings.Repeat("a", 63) + ".example/",
	} {
		if u, err := s.CheckURL(raw); err != nil || u.Host == "" {
			t.Errorf("CheckURL(%q) = %v, %v", raw, u, err)
		}
	}
}

func TestCheckURLRefuses(t *testing.T) {
	s, _ := newSender(t, Config{AllowTargets: []Target{mustTarget("10.0.0.1:80")}})
	const allow = "; --allow-target (Config.AllowTargets) opens it"
	for _, test := range []struct{ raw, want string }{
		{"", "it is empty"},
		{"http://example.com/" + strings.Repeat("a", 2048-18), "it is longer than 2048 characters"},
		{"http://example.com/" + strings.Repeat("ü", 2048-18), "it is longer than 2048 characters"},
		{"http://example.com/a b", "it has a space, a control character or invalid UTF-8 in it"},
		{" http://example.com/", "it has a space, a control character or invalid UTF-8 in it"},
		{"http://example.com/\r\nX: y", "it has a space, a control character or invalid UTF-8 in it"},
		{"http://example.com/\x00", "it has a space, a control character or invalid UTF-8 in it"},
		{"http://example.com/\x7f", "it has a space, a control character or invalid UTF-8 in it"},
		{"http://example.com/\u0085", "it has a space, a control character or invalid UTF-8 in it"},
		{"http://example.com/\u00a0", "it has a space, a control character or invalid UTF-8 in it"},
		{"http://example.com/\xff", "it has a space, a control character or invalid UTF-8 in it"},
		{"example.com/hook", "it must start with http:// or https://"},
		{"//example.com/hook", "it must start with http:// or https://"},
		{"/hook", "it must start with http:// or https://"},
		{"ftp://example.com/", "it must start with http:// or https://"},
		{"file:///etc/passwd", "it must start with http:// or https://"},
		{"gopher://example.com/", "it must start with http:// or https://"},
		{"javascript:alert(1)", "it must start with http:// or https://"},
		{"http:", "it has no host"},
		{"http://", "it has no host"},
		{"http:///path", "it has no host"},
		{"http://:80/", "it has no host"},
		{"http:example.com", "it has no host"},
		{"http:/example.com", "it has no host"},
		{"http://?q", "it has no host"},
		{"http://[]/", "it is malformed: "},
		{"http://user:pass@example.com/", "it has a user name or password in it"},
		{"http://user@example.com/", "it has a user name or password in it"},
		{"http://@example.com/", "it has a user name or password in it"},
		{"http://:@example.com/", "it has a user name or password in it"},
		{"http://good.example\\@10.0.0.2/", "it is malformed: "},
		{"http://example.com:/", "port must be a number from 1 to 65535"},
		{"http://[2606:4700::1111]:/", "port must be a number from 1 to 65535"},
		{"http://example.com:0/", "port must be a number from 1 to 65535"},
		{"http://example.com:65536/", "port must be a number from 1 to 65535"},
		{"http://example.com:http/", "it is malformed: "},
		{"http://example.com:-1/", "it is malformed: "},
		{"http://example.com:80:80/", "it is malformed: "},
		{"http://example.com/%zz", "it is malformed: "},
		{"http://%31%32%37.0.0.1/", "it is malformed: "},
		{"http://example..com/", "each part of a hostname has 1 to 63 characters"},
		{"http://.example.com/", "each part of a hostname has 1 to 63 characters"},
		{"http://./", "each part of a hostname has 1 to 63 characters"},
		{"http://" + strings.Repeat("a", 64) + ".example/", "each part of a hostname has 1 to 63 characters"},
		{"http://" + strings.Repeat("a.", 127) + "example/", "host is longer than 253 characters"},
		{"http://exa$mple.com/", "hostname with the character '$'"},
		{"http://exa,mple.com/", "hostname with the character ','"},
		// Forms of 127.0.0.1 that some resolvers read as an address, and what looks like one.
		{"http://127.1/", "host is neither a name nor a complete IP address"},
		{"http://2130706433/", "host is neither a name nor a complete IP address"},
		{"http://0x7f000001/", "host is neither a name nor a complete IP address"},
		{"http://0X7F.1./", "host is neither a name nor a complete IP address"},
		{"http://0177.0.0.1/", "host is neither a name nor a complete IP address"},
		{"http://127.0.0.1./", "host is neither a name nor a complete IP address"},
		{"http://256.256.256.256/", "host is neither a name nor a complete IP address"},
		{"http://x.0x/", "host is neither a name nor a complete IP address"},
		{"http://127.0.0.1/", "host 127.0.0.1 is refused by the rule loopback 127.0.0.0/8" + allow},
		{"http://[::ffff:127.0.0.1]/", "host ::ffff:127.0.0.1 is refused by the rule loopback 127.0.0.0/8" + allow},
		{"http://[::ffff:7f00:1]/", "host ::ffff:7f00:1 is refused by the rule loopback 127.0.0.0/8" + allow},
		{"https://10.0.0.1/", "host 10.0.0.1 is refused by the rule private network 10.0.0.0/8" + allow},
		{"http://10.0.0.1:8080/", "host 10.0.0.1 is refused by the rule private network 10.0.0.0/8" + allow},
		{"http://[fe80::1%25lo]/", "host fe80::1%lo is refused by the rule address with a zone; none can be opened"},
		{"http://169.254.169.254/latest/meta-data", "host 169.254.169.254 is refused by the rule cloud metadata; " +
			"only an --allow-target (Config.AllowTargets) for exactly this address opens it"},
	} {
		u, err := s.CheckURL(test.raw)
		if u != nil || err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("CheckURL(%q) = %v, %v, want %s", test.raw, u, err, test.want)
		}
	}
}

// What CheckURL accepts can be sent, and names no address that the guard would refuse.
func FuzzCheckURL(f *testing.F) {
	for _, seed := range []string{
		"http://example.com/a?b#c", "https://8.8.8.8:443/", "http://[::ffff:127.0.0.1]:80/", "http://[fe80::1%25lo]/",
		"http://10.0.0.1/", "http://@h/", "http://h:0/", "http://0x7f.1/", "HTTP://ü/%2f//..?", "http:h", "http://[2606:4700::1]:1",
	} {
		f.Add(seed)
	}
	for _, row := range guardtest.Refused {
		for _, ip := range strings.Fields(row.List) {
			f.Add("http://[" + ip + "]:1/")
			f.Add("https://" + ip)
		}
	}
	s, _ := newSender(f, Config{})
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := s.CheckURL(raw)
		if err != nil {
			if u != nil || !utf8.ValidString(err.Error()) || err.Error() == "" {
				t.Fatalf("%q: %v, %q", raw, u, err)
			}
			return
		}
		if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Opaque != "" {
			t.Fatalf("%q: %#v", raw, u)
		}
		port := uint64(80)
		if u.Scheme == "https" {
			port = 443
		}
		if p := u.Port(); p != "" {
			if port, err = strconv.ParseUint(p, 10, 16); err != nil || port == 0 {
				t.Fatalf("%q: port %q", raw, p)
			}
		}
		if ip, err := netip.ParseAddr(u.Hostname()); err == nil {
			if err := s.judge(netip.AddrPortFrom(ip, uint16(port))); err != nil {
				t.Fatalf("%q: %v", raw, err)
			}
		}
		if line := u.RequestURI(); line[0] != '/' || strings.ContainsAny(line, " \r\n\t\x00\x7f") {
			t.Fatalf("%q: request line %q", raw, line)
		}
		if again, err := url.Parse(u.String()); err != nil || again.Host != u.Host {
			t.Fatalf("%q: parsed again %v, %v", raw, again, err)
		}
	})
}
