package sender

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http/httptrace"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// dial opens a connection for the attempt that ctx belongs to. The Transport lets it go on, for a later attempt, when
// that one gets another connection first or is canceled; so it is dial that sees to its end. Without a cfg the connection is plain.
func (s *Sender) dial(ctx context.Context, addr string, cfg *tls.Config) (net.Conn, error) {
	a := ctx.Value(attemptKey{}).(*attempt)
	ctx, cancel := context.WithDeadline(ctx, a.start.Add(a.timeout))
	defer cancel()

	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	port, err := parsePort(portText)
	if err != nil {
		return nil, err
	}

	a.mark(dialing)
	var conn net.Conn
	var remote string
	if s.proxy != nil {
		conn, remote, err = s.dialThrough(ctx, a, host, port)
	} else if conn, err = s.dialDirect(ctx, a, host, port); err == nil {
		remote = s.classOf(conn.RemoteAddr())
	}
	if err != nil {
		return nil, err
	}
	a.mark(connected)
	conn = &keptConn{Conn: conn, remote: remote}
	if cfg == nil {
		a.marks[ready].Store(a.marks[connected].Load())
		return conn, nil
	}
	cfg = cfg.Clone()
	cfg.ServerName = host
	secured := tls.Client(conn, cfg)
	if err := secured.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	a.mark(ready)
	return secured, nil
}

// dialDirect connects to a target. The guard judges twice. When a name has been looked up, all its addresses are judged, and one
// that is refused refuses them all: a public and a private address under one name are an attack or a mistake, and which of them Go's
// dialer would reach is chance. Then the dialer's Control judges each address again as it is connected to. That
// alone keeps the guard's promise; it doesn't trust the first step.
func (s *Sender) dialDirect(ctx context.Context, a *attempt, host string, port uint16) (net.Conn, error) {
	if _, err := netip.ParseAddr(host); err == nil {
		a.marks[resolved].Store(a.marks[dialing].Load())
	} else {
		host = absolute(host)
	}
	var refused error // written before any address is dialed
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		DNSDone: func(info httptrace.DNSDoneInfo) {
			if info.Err != nil || len(info.Addrs) == 0 {
				return
			}
			a.mark(resolved)
			for _, ip := range info.Addrs {
				addr, _ := netip.AddrFromSlice(ip.IP)
				if refused = s.judge(netip.AddrPortFrom(addr.WithZone(ip.Zone), port)); refused != nil {
					return
				}
			}
		},
	})
	dialer := net.Dialer{
		KeepAlive: -1, // connections are closed after 30 s without use, before a probe could tell anything
		Resolver:  s.resolver,
		Control: func(network, address string, _ syscall.RawConn) error {
			if refused != nil {
				return refused
			}
			return s.control(network, address)
		},
	}
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
	if err != nil {
		if refused != nil {
			return nil, refused // err may be one of a step before Control, as where there is no IPv6
		}
		return nil, err
	}
	return conn, nil
}

// absolute returns a name in the form that no search domain of the machine is added to: a webhook's host is the same
// everywhere, and none of its tenants may have names completed to internal ones. Names of the hosts file are found there as they
// are only.
func absolute(host string) string {
	name := strings.TrimSuffix(host, ".")
	if _, err := hostsFile.LookupNetIP(context.Background(), "ip", name); err == nil {
		return name
	}
	return name + "."
}

// hostsFile looks names up in the machine's hosts file, and asks no server, so that there is nothing to wait for.
var hostsFile = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
	return nil, errors.New("not in the hosts file")
}}

// control is asked for every connection, with the address it is about to be made to.
func (s *Sender) control(network, address string) error {
	if network != "tcp4" && network != "tcp6" {
		return refusal{rule: "not TCP"}
	}
	target, err := netip.ParseAddrPort(address)
	if err != nil {
		return refusal{rule: "not an IP address"}
	}
	if err := s.judge(target); err != nil {
		return err
	}
	if s.afterGuard != nil {
		return s.afterGuard(network, address)
	}
	return nil
}

// keptConn is a connection, below TLS, of which can be told that it has nothing more to say.
//
// The Transport gives a kept connection to the next request before its goroutine has looked for bytes behind the response that it
// has just read. If there are any, because the receiver has sent more than one response, that goroutine takes them for the response to the
// next request, which may be another webhook's. See quiet.
type keptConn struct {
	net.Conn
	remote  string      // what kind of address it goes to
	waiting atomic.Bool // in Read
	closed  atomic.Bool
}

func (c *keptConn) Read(b []byte) (int, error) {
	c.waiting.Store(true)
	n, err := c.Conn.Read(b)
	c.waiting.Store(false)
	if err != nil {
		c.closed.Store(true) // to all that the Transport will do with it
	}
	return n, err
}

func (c *keptConn) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
}

// quiet returns once everything that was received on a kept connection has been looked at, and no request has been announced on it
// yet: the Transport's goroutine is either waiting for more, or has found bytes that nobody asked for and closes the connection,
// and then the request goes to another one.
func quiet(c *keptConn) {
	for !c.waiting.Load() && !c.closed.Load() {
		runtime.Gosched() // it is a matter of microseconds, if of anything
	}
}

// kept returns what dial has made of a connection, nil for one of a test's.
func kept(conn net.Conn) *keptConn {
	if secured, ok := conn.(*tls.Conn); ok {
		conn = secured.NetConn()
	}
	c, _ := conn.(*keptConn)
	return c
}
