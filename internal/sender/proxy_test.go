package sender

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/musehub/posthorn/internal/guardtest"
)

// tunnels is an egress proxy that connects to its backend, whatever it is asked for.
type tunnels struct {
	backend string
	mu      sync.Mutex
	asked   []string // for which addresses, with "user:password@" before them if that was given
}

func (p *tunnels) take() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	asked := strings.Join(p.asked, " ")
	p.asked = nil
	return asked
}

func (p *tunnels) join(c *bufio.ReadWriter, asked, answer string) {
	p.mu.Lock()
	p.asked = append(p.asked, asked)
	p.mu.Unlock()
	backend, err := net.Dial("tcp", p.backend)
	if err != nil || write(c, answer) != nil {
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(backend, c)
		_ = backend.(*net.TCPConn).CloseWrite()
	})
	for buf := make([]byte, 4096); ; {
		n, err := backend.Read(buf)
		if err != nil || write(c, string(buf[:n])) != nil {
			break
		}
	}
	backend.Close()
	wg.Wait()
}

// connect speaks HTTP.
func (p *tunnels) connect(c *bufio.ReadWriter) {
	request, err := readRequest(c)
	if err != nil {
		return
	}
	head, err := http.ReadRequest(bufio.NewReader(strings.NewReader(request)))
	if err != nil || head.Method != http.MethodConnect || head.Host != head.RequestURI {
		write(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
		return
	}
	user := ""
	if given, ok := strings.CutPrefix(head.Header.Get("Proxy-Authorization"), "Basic "); ok {
		decoded, _ := base64.StdEncoding.DecodeString(given)
		user = string(decoded) + "@"
	}
	p.join(c, user+head.RequestURI, "HTTP/1.1 200 Connection established\r\n\r\n")
}

// socks speaks SOCKS5 (RFC 1928, and RFC 1929 for the password).
func (p *tunnels) socks(c *bufio.ReadWriter) {
	bytes := func(n int) []byte {
		b := make([]byte, n)
		if _, err := io.ReadFull(c, b); err != nil {
			return make([]byte, n)
		}
		return b
	}
	user := ""
	if methods := string(bytes(int(bytes(2)[1]))); strings.Contains(methods, "\x02") {
		write(c, "\x05\x02")
		name := string(bytes(int(bytes(2)[1])))
		user = name + ":" + string(bytes(int(bytes(1)[0]))) + "@"
		write(c, "\x01\x00")
	} else {
		write(c, "\x05\x00")
	}
	length := map[byte]int{1: 4, 4: 16}[bytes(4)[3]]
	ip, _ := netip.AddrFromSlice(bytes(length))
	address := netip.AddrPortFrom(ip, binary.BigEndian.Uint16(bytes(2)))
	p.join(c, user+address.String(), "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
}

// newTunnels starts a proxy before a backend and returns with it its URL, without the password.
func newTunnels(t *testing.T, scheme, backend string) (p *tunnels, address string) {
	p = &tunnels{backend: backend}
	handle := p.connect
	if scheme == "socks5" {
		handle = p.socks
	}
	if scheme == "https" {
		handle = secured(handle)
	}
	return p, strings.TrimPrefix(serve(t, handle), "http://")
}

// certified is a server with a certificate for 127.0.0.1 and example.com, and what trusts it.
func certified(t *testing.T) (*httptest.Server, Config) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hi") }))
	server.Config.ErrorLog = discard
	server.StartTLS()
	t.Cleanup(server.Close)
	return server, Config{RootCAs: server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}
}

// secured puts TLS below what handle speaks, with the certificate of package httptest.
func secured(handle func(*bufio.ReadWriter)) func(*bufio.ReadWriter) {
	server := httptest.NewUnstartedServer(nil)
	server.StartTLS()
	certificates := server.TLS.Certificates
	server.Close()
	return func(c *bufio.ReadWriter) {
		conn := tls.Server(overReadWriter{ReadWriter: c}, &tls.Config{Certificates: certificates})
		handle(bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn)))
		conn.Close()
	}
}

// overReadWriter is as much of a connection as tls.Server needs.
type overReadWriter struct {
	net.Conn
	*bufio.ReadWriter
}

func (c overReadWriter) Read(b []byte) (int, error) { return c.ReadWriter.Read(b) }

func (c overReadWriter) Write(b []byte) (int, error) {
	if err := write(c.ReadWriter, string(b)); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (c overReadWriter) SetWriteDeadline(time.Time) error { return nil }

func (c overReadWriter) Close() error { return nil } // serve does

func TestProxy(t *testing.T) {
	plain := strings.TrimPrefix(respond(t, ok("hi")), "http://")
	server, cfg := certified(t)
	cfg.Resolver = guardtest.NewDNS(t, map[string]string{"example.com.": "8.8.8.8", "six.test.": "2606:4700::1111"}).Resolver()
	for _, scheme := range []string{"http", "https", "socks5"} {
		for _, password := range []string{"", "user:pass:word@"} {
			for _, row := range []struct{ target, backend, asked string }{
				{"http://example.com/", plain, "8.8.8.8:80"},
				{"http://six.test:81/", plain, "[2606:4700::1111]:81"},
				{"https://example.com/", server.Listener.Addr().String(), "8.8.8.8:443"},
				{"http://9.9.9.9:8080/", plain, "9.9.9.9:8080"},
			} {
				proxy, address := newTunnels(t, scheme, row.backend)
				var err error
				if cfg.Proxy, err = ParseProxy(scheme + "://" + password + address); err != nil {
					t.Fatal(err)
				}
				s, passed := newSender(t, cfg)
				if o := post(t, s, row.target, 0); o.Status != 200 || o.Body != "hi" || o.Timings.Connect <= 0 {
					t.Errorf("%s by %s: %+v", row.target, scheme, o)
				}
				if asked := proxy.take(); asked != password+row.asked {
					t.Errorf("%s: the %s proxy was asked for %s", row.target, scheme, asked)
				}
				if passed.String() != "" {
					t.Errorf("%s: connected to %s", row.target, passed)
				}
			}
		}
	}
}

// The guard judges targets as it does without a proxy, also the address of the proxy.
func TestProxyIsNoWayAroundTheGuard(t *testing.T) {
	for _, scheme := range []string{"http", "socks5"} {
		proxy, address := newTunnels(t, scheme, "127.0.0.1:1")
		cfg := Config{Resolver: guardtest.NewDNS(t, map[string]string{
			"private.test.": "10.1.2.3", "mixed.test.": "8.8.8.8 127.0.0.1", "fails.test.": "fail",
		}).Resolver()}
		cfg.Proxy, _ = ParseProxy(scheme + "://" + address)
		s, _ := newSender(t, cfg)
		for target, want := range map[string]string{
			"http://" + address + "/":                "SSRF blocked: connect: refused by the rule loopback",
			"http://private.test/":                   "SSRF blocked: connect: refused by the rule private network",
			"http://mixed.test/":                     "SSRF blocked: connect: refused by the rule loopback",
			"https://169.254.169.254/":               "SSRF blocked: connect: refused by the rule cloud metadata",
			"http://[64:ff9b::7f00:1]/":              "SSRF blocked: connect: refused by the rule",
			"http://[::ffff:10.0.0.1]/":              "SSRF blocked: connect: refused by the rule private network",
			"http://fails.test/":                     "request error: DNS: the lookup failed",
			"http://localhost:" + address[10:] + "/": "SSRF blocked: connect: refused by the rule loopback",
		} {
			if o := post(t, s, target, 0); o.Status != 0 || !strings.HasPrefix(o.Body, want) {
				t.Errorf("%s: %+v, want %s", target, o, want)
			}
		}
		if asked := proxy.take(); asked != "" {
			t.Errorf("the proxy was asked for %s", asked)
		}
	}
}

// What is wrong with the proxy is told without its address and its password.
func TestProxyFails(t *testing.T) {
	const hangs = "hangs"
	for _, row := range []struct{ scheme, answer, want string }{
		{"http", "HTTP/1.1 403 Go away\r\n\r\n", "request error: connect: the egress proxy answers 403 Forbidden"},
		{"http", "HTTP/1.1 407 X\r\nProxy-Authenticate: Basic realm=\"10.0.0.1\"\r\n\r\n", "request error: connect: the egress proxy answers 407 Proxy Authentication Required"},
		{"http", "SSH-2.0-OpenSSH\r\n\r\n", `request error: connect: the egress proxy gives no answer that is HTTP: malformed HTTP response "SSH-2.0-OpenSSH"`},
		{"http", "", "request error: connect: the egress proxy gives no answer that is HTTP: it closed the connection"},
		{"http", "HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n", "request error: connect: the egress proxy sends more than its answer"},
		{"http", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxHeaderBytes) + "\r\n\r\n", "request error: connect: the egress proxy gives no answer that is HTTP: it closed the connection"},
		{"http", hangs, ""},
		{"https", "HTTP/1.1 200 OK\r\n\r\n", "request error: connect: TLS with the egress proxy: first record does not look like a TLS handshake"},
		{"https", hangs, ""},
		{"socks5", "\x05\xff", "request error: connect: the egress proxy: no acceptable authentication methods"},
		{"socks5", "\x05\x00\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00", "request error: connect: the egress proxy: unknown error connection not allowed by ruleset"},
		{"socks5", "HTTP/1.1 400 Bad Request\r\n\r\n", "request error: connect: the egress proxy: unexpected protocol version 72"},
		{"socks5", hangs, ""},
	} {
		address := strings.TrimPrefix(serve(t, func(c *bufio.ReadWriter) {
			if row.answer == hangs {
				hold(c)
				return
			}
			c.ReadByte()
			write(c, row.answer)
			for c.Reader.Buffered() > 0 {
				c.Discard(c.Reader.Buffered()) // or the answer may be lost with the connection
			}
		}), "http://")
		var cfg Config
		cfg.Proxy, _ = ParseProxy(row.scheme + "://user:password@" + address)
		s, _ := newSender(t, cfg)
		if row.answer == hangs {
			timesOut(t, s, &Request{URL: mustURL("http://8.8.8.8/")}, "connect")
		} else if o := post(t, s, "http://8.8.8.8/", 0); o.Status != 0 || o.Body != row.want {
			t.Errorf("%s %.40q:\n got %s\nwant %s", row.scheme, row.answer, o.Body, row.want)
		}
	}

	for _, scheme := range []string{"http", "https", "socks5"} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ln.Close()
		var cfg Config
		cfg.Proxy, _ = ParseProxy(scheme + "://user:password@" + ln.Addr().String())
		s, _ := newSender(t, cfg)
		if o := post(t, s, "http://8.8.8.8/", 0); o.Body != "request error: connect: the egress proxy can't be reached: connection refused" {
			t.Errorf("%s: %s", scheme, o.Body)
		}
		_, address := newTunnels(t, "https", "127.0.0.1:1")
		cfg.Proxy, _ = ParseProxy("https://" + address)
		s, _ = newSender(t, cfg)
		if o := post(t, s, "http://8.8.8.8/", 0); o.Body != "request error: connect: TLS with the egress proxy: the certificate is signed by an unknown authority" {
			t.Errorf("%s: %s", scheme, o.Body)
		}
	}
}

// A proxy that gets no answer from one of a name's addresses has time for the next one.
func TestProxyOfSeveralAddresses(t *testing.T) {
	for _, scheme := range []string{"http", "socks5"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			proxy := &tunnels{backend: strings.TrimPrefix(respond(t, ok("hi")), "http://")}
			cfg := Config{Resolver: guardtest.NewDNS(t, map[string]string{"two.test.": "8.8.8.8 8.8.4.4"}).Resolver()}
			for timeout := 3 * minShare; ; timeout *= 2 { // the first address takes half of it, and the second may need more than the rest
				var connections atomic.Int32
				address := serve(t, func(c *bufio.ReadWriter) {
					switch {
					case connections.Add(1) == 1:
						hold(c)
					case scheme == "http":
						proxy.connect(c)
					default:
						proxy.socks(c)
					}
				})
				cfg.Proxy, _ = ParseProxy(strings.Replace(address, "http", scheme, 1))
				s, _ := newSender(t, cfg)
				o := post(t, s, "http://two.test/", timeout)
				if o.Status == 200 && connections.Load() == 2 {
					return
				}
				if !strings.HasPrefix(o.Body, "timeout: ") || timeout > patience/2 {
					t.Fatalf("%+v after %d connections", o, connections.Load())
				}
			}
		})
	}
}

// What is no proxy's URL is refused with an error that quotes nothing of it, and what is one has a host and a port.
func FuzzParseProxy(f *testing.F) {
	for _, seed := range []string{
		"http://proxy.internal", "https://u:p@[::1]:8443/", "socks5://10.0.0.1:1080", "http://u:p@h:x", "socks5h://h", "http://h?q", "http://@:1",
		"hunter2:x", "user:hunter2@proxy:3128", "USER:PASSWORD@proxy:3128", "http://user:hun%ter2@h", "http://proxy:65536", "http://user:p/w@h", "http://user:p#w@h",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		p, err := ParseProxy(raw)
		if err != nil {
			if !errors.Is(err, errProxyURL) && !errors.Is(err, errProxyPort) {
				t.Errorf("%q: %v", raw, err)
			}
			return
		}
		if _, err := parsePort(p.port); err != nil || p.host == "" || !slices.Contains([]string{"http", "https", "socks5"}, p.scheme) {
			t.Errorf("%q became %+v", raw, p)
		}
	})
}

func TestParseProxy(t *testing.T) {
	for raw, want := range map[string]string{
		"http://proxy.internal":          "http proxy.internal 80",
		"https://proxy.internal/":        "https proxy.internal 443",
		"socks5://u:p@[::1]":             "socks5 ::1 1080",
		"http://10.0.0.1:3128":           "http 10.0.0.1 3128",
		"socks4://10.0.0.1":              "",
		"10.0.0.1:3128":                  "",
		"http://":                        "",
		"http://:3128":                   "",
		"http://10.0.0.1:0":              "",
		"http://10.0.0.1:65536":          "",
		"http://10.0.0.1/path":           "",
		"http://10.0.0.1?q":              "",
		"http://10.0.0.1#f":              "",
		"http://u:top-secret@10.0.0.1:x": "",
		"top-secret://10.0.0.1\x00":      "",
	} {
		p, err := ParseProxy(raw)
		if err != nil {
			if want != "" || strings.Contains(err.Error(), "secret") {
				t.Errorf("%s: %v", raw, err)
			}
		} else if got := fmt.Sprint(p.scheme, " ", p.host, " ", p.port); got != want {
			t.Errorf("%s: got %q, want %q", raw, got, want)
		}
	}
}
