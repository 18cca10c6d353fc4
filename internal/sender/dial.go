package sender

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http/httptrace"
	"net/netip"
	"strconv"
	"strings"
	"sync"
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
	if conn, err = secure(ctx, conn, cfg, host); err != nil {
		return nil, err
	}
	a.mark(ready)
	return conn, nil
}

// secure begins TLS with a host on a connection, which it closes if that fails.
func secure(ctx context.Context, conn net.Conn, cfg *tls.Config, host string) (net.Conn, error) {
	cfg = cfg.Clone()
	cfg.ServerName = host
	secured := securedConn{tls.Client(conn, cfg)}
	if err := secured.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return secured, nil
}

// securedConn is a connection with TLS that is closed at once. That of crypto/tls tells the other side first, and waits: for its Read to
// have answered a KeyUpdate, which takes for ever where the other side reads nothing any more, and for its own words to be taken. Meanwhile an
// attempt would be over its time, or nobody would get a connection, since the Transport locks its pool while it closes an idle one.
// The other side needs no word: each request says how long it is.
type securedConn struct{ *tls.Conn }

func (c securedConn) Close() error { return c.NetConn().Close() }

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
// next request, which may be another webhook's. See awaitQuiet.
type keptConn struct {
	net.Conn
	remote string // what kind of address it goes to

	mu      sync.Mutex
	reading bool
	closed  bool
	waiting chan struct{} // closed when the connection is either; nil: nobody waits
}

func (c *keptConn) set(reading, closed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reading, c.closed = reading, c.closed || closed
	if (c.reading || c.closed) && c.waiting != nil {
		close(c.waiting)
		c.waiting = nil
	}
}

func (c *keptConn) Read(b []byte) (int, error) {
	c.set(true, false)
	n, err := c.Conn.Read(b)
	c.set(false, err != nil) // to all that the Transport will do with it
	return n, err
}

func (c *keptConn) Close() error {
	c.set(false, true)
	return c.Conn.Close()
}

// awaitQuiet returns once everything that was received on a kept connection has been looked at, and no request has been announced on it
// yet: the Transport's goroutine is either waiting for more, or has found bytes that nobody asked for and closes the connection,
// and then the request goes to another one. It is a matter of microseconds, if of anything, but where the receiver keeps that goroutine
// from getting there; at the end of ctx the connection is closed.
func (c *keptConn) awaitQuiet(ctx context.Context) {
	c.mu.Lock()
	if c.reading || c.closed {
		c.mu.Unlock()
		return
	}
	waiting := make(chan struct{})
	c.waiting = waiting
	c.mu.Unlock()
	select {
	case <-waiting:
	case <-ctx.Done():
		c.Close()
	}
}

// kept returns what dial has made of a connection, nil for one of a test's.
func kept(conn net.Conn) *keptConn {
	if secured, ok := conn.(securedConn); ok {
		conn = secured.NetConn()
	}
	c, _ := conn.(*keptConn)
	return c
}
