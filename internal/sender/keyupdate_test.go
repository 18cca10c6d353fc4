package sender

import (
	"bufio"
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musehub/posthorn/internal/certtest"
)

// A receiver of TLS 1.3 asks for new keys (RFC 8446, section 4.6.3), which crypto/tls answers in the middle of a Read, and reads nothing more. The
// connections here are pipes: each write waits until it is read, as one does on a socket whose buffer is full.

// stuckAfter has the Sender's connections to a host end at a receiver that answers a request with the response, asks for new keys, and
// says so once our answer to that is on its way.
func stuckAfter(t *testing.T, s *Sender, pair tls.Certificate, host, response string) <-chan struct{} {
	stuck := make(chan struct{}, 1)
	onPipe(t, s, host, func(conn net.Conn) {
		var secrets bytes.Buffer
		server := tls.Server(conn, &tls.Config{
			Certificates: []tls.Certificate{pair}, SessionTicketsDisabled: true, MinVersion: tls.VersionTLS13, KeyLogWriter: &secrets,
		})
		c := bufio.NewReadWriter(bufio.NewReader(server), bufio.NewWriter(server))
		if _, err := readRequest(c); err != nil {
			return
		}
		var records uint64 // that our side of the connection has encrypted
		if response != "" {
			write(c, response)
			records++
		}
		if server.ConnectionState().CipherSuite != tls.TLS_AES_128_GCM_SHA256 {
			t.Error("the test knows AES-128-GCM only")
		}
		conn.Write(keyUpdate(secrets.String(), records))
		conn.Read(make([]byte, 1))
		stuck <- struct{}{}
	})
	return stuck
}

// onPipe has handle get the other ends of the Sender's connections to a host, each closed at the end of the test.
func onPipe(t *testing.T, s *Sender, host string, handle func(net.Conn)) {
	dial := s.shared.DialTLSContext
	s.shared.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr != host+":443" {
			return dial(ctx, network, addr)
		}
		ours, theirs := net.Pipe()
		t.Cleanup(func() { theirs.Close() })
		go handle(theirs)
		return secure(ctx, &keptConn{Conn: ours}, s.shared.tls, host)
	}
}

// keyUpdate is a record that asks for new keys, encrypted as the server's first that follows so many others.
func keyUpdate(keyLog string, records uint64) []byte {
	_, secret, _ := strings.Cut(keyLog, "SERVER_TRAFFIC_SECRET_0 ")
	secret = strings.Fields(secret)[1]
	traffic, err := hex.DecodeString(secret)
	if err != nil {
		panic(err)
	}
	derive := func(label string, n int) []byte { // RFC 8446, section 7.1
		info := append([]byte{0, byte(n), byte(len("tls13 " + label))}, "tls13 "+label+"\x00"...)
		key, err := hkdf.Expand(sha256.New, traffic, string(info), n)
		if err != nil {
			panic(err)
		}
		return key
	}
	block, err := aes.NewCipher(derive("key", 16))
	if err != nil {
		panic(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	nonce := derive("iv", 12)
	binary.BigEndian.PutUint64(nonce[4:], binary.BigEndian.Uint64(nonce[4:])^records)
	message := []byte{24, 0, 0, 1, 1, 22} // KeyUpdate, of one byte: update_requested; the type of the record: handshake
	head := []byte{23, 3, 3, 0, byte(len(message) + gcm.Overhead())}
	return append(head, gcm.Seal(nil, nonce, message, head)...)
}

// stuckSender is a Sender, in a bubble, for receivers with the certificate pair.
func stuckSender(t *testing.T) (*Sender, tls.Certificate) {
	a := newAuthority(t)
	return a.trusting(Config{Timeout: 10 * time.Second}), a.Pair(certtest.Server("stuck.test", "other.test"))
}

// An attempt ends in time, whatever its connection waits for.
func TestKeyUpdateDuringAnAttempt(t *testing.T) {
	for phase, response := range map[string]string{
		"response headers": "",
		"response body":    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nh",
	} {
		synctest.Test(t, func(t *testing.T) {
			s, pair := stuckSender(t)
			stuck := stuckAfter(t, s, pair, "stuck.test", response)
			start := time.Now()
			o := s.Send(t.Context(), &Request{URL: mustURL("https://stuck.test/"), Header: header()})
			<-stuck
			if want := "timeout: " + phase + ": not done within 10s, the limit of the whole attempt"; o.Body != want || time.Since(start) != 10*time.Second {
				t.Errorf("%+v after %v, want %q", o, time.Since(start), want)
			}
		})
	}
}

// A kept connection that doesn't get quiet ends the attempt that is given it, in time too, and costs no work meanwhile: in a bubble no
// time passes while a goroutine is busy.
func TestKeyUpdateBeforeAnAttempt(t *testing.T) {
	for _, cancel := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s, pair := stuckSender(t)
			stuck := stuckAfter(t, s, pair, "stuck.test", ok("hi"))
			r := &Request{URL: mustURL("https://stuck.test/"), Header: header()}
			if o := s.Send(t.Context(), r); o.Status != http.StatusOK {
				t.Fatalf("%+v", o)
			}
			<-stuck
			ctx, end := context.WithCancel(t.Context())
			defer end()
			if cancel {
				time.AfterFunc(time.Second, end)
			}
			o := s.Send(ctx, r)
			if !o.Timings.Reused || o.Canceled != cancel || !cancel && !strings.HasPrefix(o.Body, "timeout: ") {
				t.Errorf("canceled: %t: %+v", cancel, o)
			}
		})
	}
}

// The Transport closes an idle connection with its pool locked: that must hold up nobody else.
func TestKeyUpdateOnAnIdleConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, pair := stuckSender(t)
		stuck := stuckAfter(t, s, pair, "stuck.test", ok("hi"))
		onPipe(t, s, "other.test", func(conn net.Conn) {
			c := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{pair}})
			rw := bufio.NewReadWriter(bufio.NewReader(c), bufio.NewWriter(c))
			readRequest(rw)
			write(rw, ok("hi"))
			hold(rw)
		})
		s.Send(t.Context(), &Request{URL: mustURL("https://stuck.test/"), Header: header()})
		<-stuck
		time.Sleep(idleConnTimeout)
		synctest.Wait()
		if o := s.Send(t.Context(), &Request{URL: mustURL("https://other.test/"), Header: header()}); o.Status != http.StatusOK {
			t.Errorf("%+v", o)
		}
	})
}
