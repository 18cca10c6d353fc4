package guardtest

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

// DNS is a DNS server on loopback.
type DNS struct {
	server net.PacketConn
	names  map[string]string

	mu     sync.Mutex
	asked  map[string]int // how often, by name and type
	order  []string       // the names, in the order in which they were asked for
	asking []net.Conn     // the connections of Resolver
}

// NewDNS starts a server that answers for names as [Names] describes it, for those of "hang" never, for those of "fail"
// that it can't, and otherwise that there is no such name. It ends with the test.
func NewDNS(t testing.TB, names map[string]string) *DNS {
	server, err := new(net.ListenConfig).ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &DNS{server: server, names: names, asked: map[string]int{}}
	var wg sync.WaitGroup
	wg.Go(d.serve)
	t.Cleanup(func() {
		server.Close()
		d.mu.Lock()
		for _, c := range d.asking { // the Go resolver doesn't notice the end of a context while it waits for an answer
			c.Close()
		}
		d.mu.Unlock()
		wg.Wait()
	})
	return d
}

// Set changes what the server answers for a name, "*" for every other.
func (d *DNS) Set(name, addresses string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.names[name] = addresses
}

// Addr is where the server is.
func (d *DNS) Addr() string { return d.server.LocalAddr().String() }

// Asked returns the names that were asked for, each once.
func (d *DNS) Asked() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string(nil), d.order...)
}

// Resolver returns a resolver that asks the server.
func (d *DNS) Resolver() *net.Resolver {
	r := Resolver(d.Addr())
	dial := r.Dial
	r.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.asking = append(d.asking, c)
		return noDeadline{c.(*net.UDPConn)}, nil
	}
	return r
}

// noDeadline is a connection on which the Go resolver waits for the answer as long as it takes. On a busy machine it would ask again
// after five seconds, and get what is there for the next look-up. It is a UDPConn because the resolver takes any other for TCP.
type noDeadline struct{ *net.UDPConn }

func (noDeadline) SetDeadline(time.Time) error { return nil }

// Resolver returns a resolver that asks the server at an address, and no other.
func Resolver(addr string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp4", addr)
	}}
}

func (d *DNS) serve() {
	buf := make([]byte, 1500)
	for {
		n, from, err := d.server.ReadFrom(buf)
		if err != nil {
			return
		}
		if reply := d.answer(buf[:n]); reply != nil {
			_, _ = d.server.WriteTo(reply, from)
		}
	}
}

// answer makes the response to a query with one question (RFC 1035, section 4).
func (d *DNS) answer(query []byte) []byte {
	const headerLen, typeA, typeAAAA, nameError, serverFailure = 12, 1, 28, 3, 2
	name, end := "", headerLen
	for query[end] != 0 {
		next := end + 1 + int(query[end])
		name += strings.ToLower(string(query[end+1:next])) + "."
		end = next
	}
	end++
	kind := binary.BigEndian.Uint16(query[end:])
	end += 4

	addresses, known := d.look(name, kind)
	flags := uint16(0x8180) // a response, recursion desired and available
	switch {
	case addresses == "hang":
		return nil
	case addresses == "fail":
		flags, addresses = flags|serverFailure, ""
	case !known:
		flags |= nameError
	}
	reply := append([]byte(nil), query[:end]...)
	count := 0
	for _, address := range strings.Fields(addresses) {
		ip := netip.MustParseAddr(address)
		if ip.Is4() && kind == typeA || ip.Is6() && kind == typeAAAA {
			reply = append(reply, 0xc0, headerLen) // the name of the question
			reply = binary.BigEndian.AppendUint16(reply, kind)
			reply = append(reply, 0, 1, 0, 0, 0, 0) // class IN, TTL 0
			reply = binary.BigEndian.AppendUint16(reply, uint16(ip.BitLen()/8))
			reply = append(reply, ip.AsSlice()...)
			count++
		}
	}
	binary.BigEndian.PutUint16(reply[2:], flags)
	binary.BigEndian.PutUint16(reply[6:], uint16(count))
	clear(reply[8:headerLen])
	return reply
}

// look returns what this look-up of a name gets.
func (d *DNS) look(name string, kind uint16) (addresses string, known bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := name + string(rune(kind))
	before := d.asked[key]
	d.asked[key]++
	first := true
	for _, asked := range d.order {
		first = first && asked != name
	}
	if first {
		d.order = append(d.order, name)
	}
	if addresses, known = d.names[name]; !known {
		addresses, known = d.names["*"]
	}
	answers := strings.Split(addresses, "|")
	return strings.TrimSpace(answers[min(before, len(answers)-1)]), known
}
