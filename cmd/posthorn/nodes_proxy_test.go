package main

import (
	"bufio"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// newToxiproxy starts a proxy before a database and returns it with the URL that leads through it.
func newToxiproxy(t *testing.T, database string) (*toxiproxy.Proxy, string) {
	t.Helper()
	zerolog.SetGlobalLevel(zerolog.Disabled) // some of it logs to stderr whatever logger it has
	quiet := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	upstream := parseURL(t, database).Host
	for try := 1; ; try++ {
		// Ports that neither a system gives to who asks for any nor pgtest takes, so that a stopped proxy gets its own back.
		listen := net.JoinHostPort("127.0.0.1", strconv.Itoa(30_000+rand.IntN(2_700)))
		proxy := toxiproxy.NewProxy(quiet, t.Name(), listen, upstream)
		err := proxy.Start()
		if err == nil {
			t.Cleanup(proxy.Stop)
			return proxy, through(t, database, listen)
		}
		if try == 10 {
			t.Fatal(err)
		}
	}
}

// addToxic makes a proxy do something bad in both directions.
func addToxic(t *testing.T, proxy *toxiproxy.Proxy, kind, attributes string) {
	t.Helper()
	for _, stream := range []string{"upstream", "downstream"} {
		toxic := `{"type":"` + kind + `","stream":"` + stream + `","attributes":` + attributes + `}`
		if _, err := proxy.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
			t.Fatal(err)
		}
	}
}

// commitProxy passes on what a node and a PostgreSQL say to each other, and breaks the connection in the middle of a commit
// when it is told to.
type commitProxy struct {
	addr     string
	upstream string
	next     atomic.Int32 // a moment: that of the next COMMIT
	broken   chan struct{}
	passing  sync.WaitGroup
}

// When a connection breaks. Either way the node doesn't get an answer to its COMMIT.
const (
	notNow       int32 = iota
	beforeCommit       // the database doesn't get it, and rolls back
	afterCommit        // the database has done it
)

func newCommitProxy(t *testing.T, database string) *commitProxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &commitProxy{
		addr: listener.Addr().String(), upstream: parseURL(t, database).Host, broken: make(chan struct{}, 1),
	}
	p.passing.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			p.passing.Go(func() { p.pass(client) })
		}
	})
	t.Cleanup(func() { // by now the node has been killed, which ends its connections
		listener.Close()
		p.passing.Wait()
	})
	return p
}

// breakNext breaks the connection over which the next COMMIT goes.
func (p *commitProxy) breakNext(t *testing.T, moment int32) {
	t.Helper()
	p.next.Store(moment)
	select {
	case <-p.broken:
	case <-time.After(patience):
		t.Fatal("no COMMIT went through the proxy: it doesn't see them any more, or the node doesn't get on")
	}
}

func (p *commitProxy) pass(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", p.upstream)
	if err != nil {
		return
	}
	defer server.Close()
	var lost atomic.Bool // what the database answers doesn't reach the node any more
	p.passing.Go(func() {
		defer client.Close()
		defer server.Close()
		for buf := make([]byte, 32<<10); ; {
			n, err := server.Read(buf)
			if lost.Load() {
				ring(p.broken)
				return
			}
			if _, writeErr := client.Write(buf[:n]); err != nil || writeErr != nil {
				return
			}
		}
	})
	r := bufio.NewReader(client)
	for first := true; ; first = false {
		message, err := readMessage(r, first)
		if err != nil {
			return
		}
		if isCommit(message) {
			switch p.next.Swap(notNow) {
			case beforeCommit:
				ring(p.broken)
				return
			case afterCommit:
				lost.Store(true) // not set back: pgx waits for the answer to a COMMIT before it asks for more
			}
		}
		if _, err := server.Write(message); err != nil {
			return
		}
	}
}

// readMessage reads a message of a client of PostgreSQL's: a length, which counts itself, and what is that long; but for the
// first one of a connection, a byte with its type before.
func readMessage(r *bufio.Reader, first bool) ([]byte, error) {
	head := 5
	if first {
		head = 4
	}
	start, err := r.Peek(head)
	if err != nil {
		return nil, err
	}
	message := make([]byte, head-4+int(binary.BigEndian.Uint32(start[head-4:])))
	_, err = io.ReadFull(r, message)
	return message, err
}

// isCommit recognises the simple query COMMIT, by which the store ends what it writes. What it only reads it ends otherwise.
func isCommit(message []byte) bool {
	return message[0] == 'Q' && strings.EqualFold(strings.TrimRight(string(message[5:]), "\x00; "), "COMMIT")
}
