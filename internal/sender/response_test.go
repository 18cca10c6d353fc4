package sender

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestStatus(t *testing.T) {
	elsewhere := serve(t, func(*bufio.ReadWriter) { t.Error("the redirect was followed") })
	for _, test := range []struct {
		response string
		status   int
		body     string
		success  bool
	}{
		{"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, "hi", true},
		{"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi", 200, "hi", true},
		{"HTTP/1.0 202 Accepted\r\n\r\nhi", 202, "hi", true},
		{"HTTP/1.1 204 No Content\r\n\r\n", 204, "", true},
		{"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello", 204, "", true},
		{"HTTP/1.1 299 Odd\r\nContent-Length: 0\r\n\r\n", 299, "", true},
		{"HTTP/1.1 300 Odd\r\nContent-Length: 0\r\n\r\n", 300, "", false},
		{"HTTP/1.1 301 Moved\r\nLocation: " + elsewhere + "\r\nContent-Length: 2\r\n\r\nhi", 301, "hi", false},
		{"HTTP/1.1 307 Moved\r\nLocation: " + elsewhere + "\r\nContent-Length: 0\r\n\r\n", 307, "", false},
		{"HTTP/1.1 308 Moved\r\nLocation: ://\r\nContent-Length: 0\r\n\r\n", 308, "", false},
		{"HTTP/1.1 304 Not Modified\r\n\r\n", 304, "", false},
		{"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n1\r\n!\r\n0\r\n\r\n", 404, "no!", false},
		{"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", 500, "", false},
		{"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n", 999, "", false},
		{"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nx", 101, "", false},
		{"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nhi", 201, "hi", true},

		// A body that is not what the header promises takes nothing from the status.
		{"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhi", 200, "hi", true},
		{"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nhi", 200, "h", true},
		{"HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775807\r\n\r\nhi", 200, "hi", true},
		{"HTTP/1.1 500 Oops\r\nContent-Length: 10\r\n\r\n", 500, "", false},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\nzz\r\n", 200, "hi", true},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi", 200, "hi", true},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nbroken trailer", 200, "hi", true},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200, "", true},
		{"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nhi", 200, "hi", true},
		{"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-16\r\nContent-Length: 2\r\n\r\nhi", 200, "hi", true},
		{"HTTP/1.1 200 OK\r\nContent-Type: ;;;=\x80\r\nContent-Length: 2\r\n\r\nhi", 200, "hi", true},
		{"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\na\x00b\xff\xfec\xe2\x82", 200, "a\ufffdb\ufffd\ufffdc\ufffd", true},
	} {
		o := post(t, local(t), respond(t, test.response), 0)
		if o.Status != test.status || o.Body != test.body || o.Success() != test.success || o.Canceled {
			t.Errorf("%q:\ngot  %+v\nwant %d %q", test.response, o, test.status, test.body)
		}
	}
}

func TestNoResponse(t *testing.T) {
	for _, test := range []struct{ response, want string }{
		{"", "the receiver closed the connection"},
		{"HTTP/1.1 200", "the receiver closed the connection"},
		{"HTTP/1.1 200 OK\r\n", "the receiver closed the connection"},
		{"HTTP/1.1 200 OK\r\nA: b\r\n", "the receiver closed the connection"},
		{"HTTP/1.1 100 Continue\r\n\r\n", "the receiver closed the connection"},
		{"SSH-2.0-OpenSSH\r\n\r\n", `malformed HTTP response "SSH-2.0-OpenSSH"`},
		{"\x00\xff\x1b[31m\r\n\r\n", `malformed HTTP response "\x00\xff\x1b[31m"`},
		{"HTTP/1.1 20 OK\r\n\r\n", `malformed HTTP status code "20"`},
		{"HTTP/1.1 000 X\r\nContent-Length: 13\r\n\r\nSSRF blocked:", `malformed HTTP status code "000"`},
		{"HTTP/1.1 -00 X\r\nContent-Length: 0\r\n\r\n", `malformed HTTP status code "-00"`},
		{"HTTP/1.1 +20 X\r\nContent-Length: 0\r\n\r\n", `malformed HTTP status code "+20"`},
		{"HTTP/1.1 099 X\r\nContent-Length: 0\r\n\r\n", `malformed HTTP status code "099"`},
		{"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", `bad Content-Length "-1"`},
		{"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", `http: message cannot contain multiple Content-Length headers; got ["1" "2"]`},
		{"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", `malformed MIME header: missing colon: "no colon"`},
		{"HTTP/1.1 200 OK\r\nA: \x00\r\n\r\n", `malformed MIME header line: "A: \x00"`},
		{strings.Repeat("x", 4000) + "\r\n\r\n", `malformed HTTP response "xxxxx`},
		{"HTTP/1.1 200 OK\r\nA: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", "server response headers exceeded 65536 bytes; aborted"},
	} {
		o := post(t, local(t), respond(t, test.response), 0)
		if want := "request error: response headers: " + test.want; o.Status != 0 || !strings.HasPrefix(o.Body, want) || len(o.Body) > 512 {
			t.Errorf("%.100q:\ngot  %+v\nwant %q", test.response, o, want)
		}
	}
}

// endless serves header, and then more until nobody listens any more.
func endless(t testing.TB, header, more string) string {
	return serve(t, func(c *bufio.ReadWriter) {
		readRequest(c)
		c.WriteString(header)
		for {
			if _, err := c.WriteString(more); err != nil {
				return
			}
		}
	})
}

func TestEndlessResponse(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\n"
	tooLarge := "request error: response headers: server response headers exceeded 65536 bytes; aborted"
	for _, test := range []struct {
		name, header, more string
		status             int
		body               string
	}{
		{"header fields", head, "A: b\r\n", 0, tooLarge},
		{"one field", head + "A: ", "bbbbbbbb", 0, tooLarge},
		{"continued field", head + "A: b\r\n", " b\r\n", 0, tooLarge},
		{"status line", "HTTP/1.1 200 ", "OOOOOOOO", 0, tooLarge},
		{"interim responses", "", "HTTP/1.1 103 Early\r\n\r\n", 0, tooLarge},
		{"body", head + "\r\n", "b", 200, strings.Repeat("b", 512)},
		{"body with a length", head + "Content-Length: 9223372036854775807\r\n\r\n", "b", 200, strings.Repeat("b", 512)},
		{"chunks", head + "Transfer-Encoding: chunked\r\n\r\n", "1\r\nb\r\n", 200, strings.Repeat("b", 512)},
		{"chunk extension", head + "Transfer-Encoding: chunked\r\n\r\n1;", "xxxxxxxx", 200, ""},
		{"trailer", head + "Transfer-Encoding: chunked\r\n\r\n1\r\nb\r\n0\r\n", "A: b\r\n", 200, "b"},
		{"switched protocol", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", "b", 101, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			target := endless(t, test.header, test.more)
			s := local(t)
			o := post(t, s, target, 0)
			if o.Status != test.status || o.Body != test.body {
				t.Errorf("got %+v", o)
			}
			if o := post(t, s, target, 0); o.Timings.Reused {
				t.Errorf("the connection was reused: %+v", o)
			}
		})
	}
}

func TestConnectionAfterBody(t *testing.T) {
	for _, test := range []struct {
		size   int
		reused bool
	}{{0, true}, {1, true}, {2047, true}, {2048, true}, {2049, true}, {64<<10 - 1, true}, {64<<10 + 1, false}, {1 << 20, false}} {
		rec := record{response: ok(strings.Repeat("b", test.size))}
		target := serve(t, rec.handle)
		s := local(t)
		post(t, s, target, 0)
		o := post(t, s, target, 0)
		if o.Status != 200 || o.Body != strings.Repeat("b", min(test.size, 512)) || o.Timings.Reused != test.reused {
			t.Errorf("%d bytes: %+v", test.size, o)
		}
	}
}

func TestGzipBombIsNotUnpacked(t *testing.T) {
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	z.Write(make([]byte, 4<<20))
	z.Close()
	o := post(t, local(t), respond(t, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", bomb.Len(), &bomb)), 0)
	if o.Status != 200 || !strings.HasPrefix(o.Body, "\x1f\ufffd\b\ufffd") || !utf8.ValidString(o.Body) || utf8.RuneCountInString(o.Body) != 512 {
		t.Errorf("%+v", o)
	}
	if o.Header.Get("Content-Encoding") != "gzip" {
		t.Errorf("header %v", o.Header)
	}
}

func TestSnippet(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"", ""},
		{strings.Repeat("a", 513), strings.Repeat("a", 512)},
		{strings.Repeat("ü", 600), strings.Repeat("ü", 512)},
		{strings.Repeat("\U0001F4EF", 600), strings.Repeat("\U0001F4EF", 512)},
		{strings.Repeat("\xff", 600), strings.Repeat("\ufffd", 512)},
		{strings.Repeat("\x00", 600), strings.Repeat("\ufffd", 512)},
		{strings.Repeat("\xf0\x9f\x93", 600), strings.Repeat("\ufffd", 512)},
		{"\ufeffa\ufffdb", "\ufeffa\ufffdb"},
		{"\r\n\t\x1b\x7f", "\r\n\t\x1b\x7f"},
		// As bytes.decode(errors="replace") of Python 3 has it.
		{"a\x80b", "a\ufffdb"},
		{"\xc0\xaf", "\ufffd\ufffd"},
		{"\xe2\x82", "\ufffd"},
		{"\xe2\x82A", "\ufffdA"},
		{"\xe2A", "\ufffdA"},
		{"\xe2\x82\xe2\x82\xac", "\ufffd€"},
		{"\xf0\x9f\x93A", "\ufffdA"},
		{"\xf0\x9f\x93", "\ufffd"},
		{"\xf0\x80\x80\x80", "\ufffd\ufffd\ufffd\ufffd"},
		{"\xed\xa0\x80", "\ufffd\ufffd\ufffd"},
		{"\xf4\x90\x80\x80", "\ufffd\ufffd\ufffd\ufffd"},
		{"\xf5\x80", "\ufffd\ufffd"},
		{"\xfe\xff\x00h", "\ufffd\ufffd\ufffdh"},
	} {
		if got := text([]byte(test.in), 512); got != test.want {
			t.Errorf("text(%q) = %q, want %q", test.in, got, test.want)
		}
		o := post(t, local(t), respond(t, ok(test.in)), 0)
		if o.Status != 200 || o.Body != test.want {
			t.Errorf("%q: %+v, want %q", test.in, o, test.want)
		}
	}
}

func TestResponseHeader(t *testing.T) {
	o := post(t, local(t), respond(t, "HTTP/1.1 200 OK\r\nRetry-After: 7\r\nx-a: 1\r\nX-A: 2\r\nX-B: \xff\xe2\x82\r\nContent-Length: 0\r\n\r\n"), 0)
	if h := o.Header; h.Get("Retry-After") != "7" || len(h["X-A"]) != 2 || h.Get("X-B") != "\ufffd\ufffd" {
		t.Errorf("%q", h)
	}

	// What is too large to be kept is left out, the same fields each time.
	var fields strings.Builder
	for i := range 60 {
		fmt.Fprintf(&fields, "X-%02d: %s\r\n", i, strings.Repeat("\xff", 1000))
	}
	var first http.Header
	for range 3 {
		o := post(t, local(t), respond(t, "HTTP/1.1 200 OK\r\n"+fields.String()+"A-Large-One: "+strings.Repeat("b", 3<<10)+"\r\nZ: z\r\n\r\n"), 0)
		size := 0
		for key, values := range o.Header {
			size += fieldSize(key, values)
		}
		if size > 16<<10 || size < 12<<10 || o.Header.Get("Z") != "z" || o.Header.Get("X-00") == "" || o.Header.Get("X-59") != "" {
			t.Errorf("%d bytes: %.100v", size, o.Header)
		}
		if first != nil && fmt.Sprint(first) != fmt.Sprint(o.Header) {
			t.Error("other fields than before")
		}
		first = o.Header
	}
}

func TestReceiverSpeaksFirst(t *testing.T) {
	o := post(t, local(t), serve(t, func(c *bufio.ReadWriter) {
		write(c, "SSH-2.0-OpenSSH\r\n")
		hold(c)
	}), 0)
	// Whether net/http sees it before the request is on its way is a matter of time.
	if o.Status != 0 || o.Body != "request error: request: the receiver sent something before the request" &&
		!strings.HasPrefix(o.Body, "request error: response headers: ") {
		t.Errorf("%+v", o)
	}
}
