package sender

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/proxy"
)

// Proxy is an egress proxy: all connections to receivers go through it. Names are looked up and addresses judged here all the same,
// and the proxy is told the address, never the name. It is reached at its own host and port and nowhere else, whatever
// the guard says of that; the guard goes on judging it as a target.
type Proxy struct {
	scheme, host, port string
	user               *url.Userinfo
}

var (
	errProxyURL  = errors.New("the egress proxy is no URL such as http://proxy.internal:3128, https://proxy.internal or socks5://user:password@10.0.0.1:1080")
	errProxyPort = errors.New("the egress proxy's port must be a number from 1 to 65535")
)

// ParseProxy reads an entry of Config.EgressProxy: http, https or socks5, with user and password if the proxy wants them. Its errors
// quote nothing of it: where a part is missing, another one may be the password.
func ParseProxy(raw string) (*Proxy, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, errProxyURL
	}
	port, ok := map[string]string{"http": "80", "https": "443", "socks5": "1080"}[u.Scheme]
	if !ok || u.Hostname() == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errProxyURL
	}
	if u.Port() != "" {
		port = u.Port()
	}
	if _, err := parsePort(port); err != nil {
		return nil, errProxyPort
	}
	return &Proxy{u.Scheme, u.Hostname(), port, u.User}, nil
}

// dialThrough looks up and judges a target, as a dial without a proxy does, and has the proxy connect to the first of its addresses
// that it can.
func (s *Sender) dialThrough(ctx context.Context, a *attempt, host string, port uint16) (conn net.Conn, remote string, err error) {
	addrs := make([]netip.Addr, 1)
	if addrs[0], err = netip.ParseAddr(host); err != nil {
		if addrs, err = s.resolver.LookupNetIP(ctx, "ip", absolute(host)); err != nil {
			return nil, "", err
		}
	}
	a.mark(resolved)
	for _, ip := range addrs {
		if err := s.judge(netip.AddrPortFrom(ip, port)); err != nil {
			return nil, "", err
		}
	}
	failed := errors.New("the name has no address")
	for i, ip := range addrs {
		direct, err := s.dialProxy(ctx)
		if err != nil {
			return nil, "", err // there is no way to the other addresses either
		}
		// One that doesn't answer leaves time for the others, as with net.Dialer.
		deadline, _ := ctx.Deadline()
		share, cancel := context.WithTimeout(ctx, max(minShare, time.Until(deadline)/time.Duration(len(addrs)-i)))
		conn, err = s.connect(share, direct, netip.AddrPortFrom(ip.Unmap(), port))
		cancel()
		if err == nil {
			return conn, s.class(ip) + " through the proxy", nil
		}
		failed = err
	}
	return nil, "", failed
}

// minShare is what the proxy has at least for one of a name's addresses, if the attempt lasts that long.
const minShare = 2 * time.Second

// dialProxy connects to the proxy itself.
func (s *Sender) dialProxy(ctx context.Context) (net.Conn, error) {
	dialer := net.Dialer{KeepAlive: -1} // whose name is looked up as the system does, unlike those of webhooks
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(s.proxy.host, s.proxy.port))
	if err != nil {
		return nil, errors.New("the egress proxy can't be reached: " + cause(err)) // flat, so that nothing names its address
	}
	return conn, nil
}

// connect has the proxy connect to the target. It closes the connection to the proxy if there is none.
func (s *Sender) connect(ctx context.Context, direct net.Conn, target netip.AddrPort) (conn net.Conn, err error) {
	defer func() {
		if err != nil {
			direct.Close()
		}
	}()
	// Whatever becomes of the context, the proxy must not hold the attempt up.
	stop := context.AfterFunc(ctx, func() { _ = direct.SetDeadline(time.Unix(1, 0)) })
	if s.proxy.scheme == "socks5" {
		conn, err = s.socks(ctx, direct, target)
	} else {
		conn, err = s.tunnel(ctx, direct, target)
	}
	if !stop() && err == nil {
		return nil, context.Cause(ctx)
	}
	return conn, err
}

// tunnel asks for a tunnel on a connection (RFC 9110, section 9.3.6).
func (s *Sender) tunnel(ctx context.Context, conn net.Conn, target netip.AddrPort) (net.Conn, error) {
	if s.proxy.scheme == "https" {
		cfg := s.shared.tls.Clone()
		cfg.Certificates = nil // they are for receivers
		secured, err := secure(ctx, conn, cfg, s.proxy.host)
		if err != nil {
			return nil, errors.New("TLS with the egress proxy: " + proxyCause(err))
		}
		conn = secured
	}
	request := "CONNECT " + target.String() + " HTTP/1.1\r\nHost: " + target.String() + "\r\n"
	if user := s.proxy.user; user != nil {
		password, _ := user.Password()
		request += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)) + "\r\n"
	}
	if _, err := io.WriteString(conn, request+"\r\n"); err != nil {
		return nil, errors.New("the egress proxy: " + proxyCause(err))
	}
	r := bufio.NewReader(io.LimitReader(conn, maxHeaderBytes))
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect}) //nolint:bodyclose // what it reads from is conn
	if err != nil {
		return nil, errors.New("the egress proxy gives no answer that is HTTP: " + proxyCause(err))
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return nil, errors.New("the egress proxy answers " + strconv.Itoa(resp.StatusCode) + " " + http.StatusText(resp.StatusCode))
	}
	if r.Buffered() > 0 { // the receiver has nothing to say before we have
		return nil, errors.New("the egress proxy sends more than its answer")
	}
	return conn, nil
}

func (s *Sender) socks(ctx context.Context, direct net.Conn, target netip.AddrPort) (net.Conn, error) {
	var auth *proxy.Auth
	if user := s.proxy.user; user != nil {
		password, _ := user.Password()
		auth = &proxy.Auth{User: user.Username(), Password: password}
	}
	dialer, err := proxy.SOCKS5("tcp", "", auth, alreadyDialed{direct})
	if err != nil {
		return nil, err
	}
	conn, err := dialer.(proxy.ContextDialer).DialContext(ctx, "tcp", target.String()) //nolint:forcetypeassert // it is documented to be one
	if err != nil {
		return nil, errors.New("the egress proxy: " + proxyCause(err))
	}
	return conn, nil
}

func proxyCause(err error) string {
	return strings.Replace(cause(err), "the receiver", "it", 1)
}

// alreadyDialed is what package proxy asks for.
type alreadyDialed struct{ net.Conn }

func (c alreadyDialed) DialContext(context.Context, string, string) (net.Conn, error) {
	return c.Conn, nil
}

// Dial makes it a proxy.Dialer. It isn't called where there is DialContext.
func (c alreadyDialed) Dial(string, string) (net.Conn, error) { return c.Conn, nil }
