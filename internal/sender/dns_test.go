package sender

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/musehub/posthorn/internal/guardtest"
)

func TestNamesAreJudged(t *testing.T) {
	const allow = "; --allow-target (Config.AllowTargets) opens it"
	for _, test := range []struct{ addresses, allow, want string }{
		{"127.0.0.1", "", "SSRF blocked: connect: refused by the rule loopback 127.0.0.0/8" + allow},
		{"10.11.12.13", "", "SSRF blocked: connect: refused by the rule private network 10.0.0.0/8" + allow},
		{"fd12::3456", "", "SSRF blocked: connect: refused by the rule private network, outside of 2000::/3" + allow},
		{"::ffff:10.11.12.13", "", "SSRF blocked: connect: refused by the rule private network 10.0.0.0/8" + allow},
		{"169.254.169.254", "", "SSRF blocked: connect: refused by the rule cloud metadata; only an --allow-target (Config.AllowTargets) for exactly this address opens it"},
		{"169.254.169.254", "169.254.0.0/16", "SSRF blocked: connect: refused by the rule cloud metadata; only an --allow-target (Config.AllowTargets) for exactly this address opens it"},
		// One refused address refuses the name, in whatever order and family they come.
		{"8.8.8.8 10.11.12.13", "", "SSRF blocked: connect: refused by the rule private network 10.0.0.0/8" + allow},
		{"10.11.12.13 8.8.8.8", "", "SSRF blocked: connect: refused by the rule private network 10.0.0.0/8" + allow},
		{"2606:4700::1111 10.11.12.13", "", "SSRF blocked: connect: refused by the rule private network 10.0.0.0/8" + allow},
		{"8.8.8.8 fd12::3456", "", "SSRF blocked: connect: refused by the rule private network, outside of 2000::/3" + allow},
		{"8.8.8.8 127.0.0.1", "10.0.0.0/8", "SSRF blocked: connect: refused by the rule loopback 127.0.0.0/8" + allow},
		{"127.0.0.1 10.11.12.13", "127.0.0.1", "SSRF blocked: connect: refused by the rule private network 10.0.0.0/8" + allow},
		{"127.0.0.1", "127.0.0.1:1", "SSRF blocked: connect: refused by the rule loopback 127.0.0.0/8" + allow},
		{"fail", "", "request error: DNS: the lookup failed"},
		{"", "", "request error: DNS: no such host"},
	} {
		cfg := Config{Resolver: guardtest.NewDNS(t, map[string]string{"hook.test.": test.addresses}).Resolver()}
		if test.allow != "" {
			cfg.AllowTargets = []Target{mustTarget(test.allow)}
		}
		s, passed := newSender(t, cfg)
		for _, scheme := range []string{"http", "https"} {
			o := post(t, s, scheme+"://hook.test:8080/", 0)
			if o.Status != 0 || o.Body != test.want {
				t.Errorf("%s: %d %q, want %q", test.addresses, o.Status, o.Body, test.want)
			}
			if o.Timings.DNS <= 0 || o.Timings.DNS > o.Timings.Total {
				t.Errorf("%s: %+v", test.addresses, o.Timings)
			}
		}
		if passed.String() != "" {
			t.Errorf("%s: the guard let pass %v", test.addresses, passed)
		}
	}
}

// Control holds even if the first look at the addresses went wrong.
func TestControlIsTheLastLine(t *testing.T) {
	s, passed := newSender(t, Config{})
	for _, row := range guardtest.Refused {
		for _, ip := range strings.Fields(row.List) {
			network := "tcp6"
			if netip.MustParseAddr(ip).Is4() {
				network = "tcp4"
			}
			if s.control(network, net.JoinHostPort(ip, "80")) == nil {
				t.Errorf("%s passed", ip)
			}
		}
	}
	if passed.String() != "" {
		t.Errorf("the guard let pass %v", passed)
	}
}

func TestNameIsReached(t *testing.T) {
	var got string
	target := mustURL(serve(t, func(c *bufio.ReadWriter) {
		got, _ = readRequest(c)
		write(c, ok("hi"))
	}))
	s, passed := newSender(t, Config{
		AllowTargets: []Target{loopback},
		Resolver:     guardtest.NewDNS(t, map[string]string{"hook.test.": "127.0.0.1"}).Resolver(),
	})
	o := post(t, s, "http://hook.test:"+target.Port()+"/", 0)
	if o.Status != 200 || o.Body != "hi" || o.Timings.DNS <= 0 || o.Timings.Connect <= 0 || o.Timings.TLS != 0 {
		t.Errorf("%+v", o)
	}
	if passed.String() != target.Host {
		t.Errorf("connected to %q, want %q", passed, target.Host)
	}
	if want := "\r\nHost: hook.test:" + target.Port() + "\r\n"; !strings.Contains(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What a name resolves to is told in no outcome, however the attempt fails.
func TestResolvedAddressIsNotTold(t *testing.T) {
	cut := mustURL(serve(t, func(c *bufio.ReadWriter) { readRequest(c) }))
	cutTLS := mustURL(serve(t, func(c *bufio.ReadWriter) {
		var record [5]byte // type, version, length (RFC 8446, section 5.1)
		io.ReadFull(c, record[:])
		c.Discard(int(binary.BigEndian.Uint16(record[3:])))
	}))
	slow := mustURL(serve(t, hold))
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	_, gonePort, _ := net.SplitHostPort(gone.Addr().String())

	s, _ := newSender(t, Config{
		AllowTargets: []Target{loopback},
		Resolver:     guardtest.NewDNS(t, map[string]string{"hook.test.": "127.0.0.1", "hang.test.": "hang"}).Resolver(),
	})
	for _, test := range []struct{ url, want string }{
		{"http://hook.test:" + gonePort, "request error: connect: connection refused"},
		{"https://hook.test:" + gonePort, "request error: connect: connection refused"},
		{"http://hook.test:" + cut.Port(), "request error: response headers: the receiver closed the connection"},
		{"https://hook.test:" + cutTLS.Port(), "request error: TLS: the receiver closed the connection"},
	} {
		o := post(t, s, test.url, 0)
		if o.Status != 0 || o.Body != test.want {
			t.Errorf("%s: %d %q, want %q", test.url, o.Status, o.Body, test.want)
		}
	}
	for _, test := range []struct{ url, phase string }{
		{"http://hook.test:" + slow.Port(), "response headers"},
		{"https://hook.test:" + slow.Port(), "TLS"},
		{"http://hang.test:" + slow.Port(), "DNS"},
	} {
		timesOut(t, s, &Request{URL: mustURL(test.url), Header: header()}, test.phase)
	}
}
