package sender

import (
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	maxSnippetRunes = 512
	// As many bytes as the longest snippet can take.
	maxSnippetBytes = maxSnippetRunes * utf8.UTFMax

	// What an Outcome keeps of the response header. The header may be larger on the wire, but each delivery is
	// stored, and no receiver shall fill the log.
	maxKeptHeaderBytes = 16 << 10
)

// An Outcome is what came of an attempt.
type Outcome struct {
	// Status is the status of the response, 0 when none was received.
	Status int

	// Body is the first 512 characters of the response, with U+FFFD for each NUL and each invalid sequence of
	// UTF-8, whatever charset the response claims. Without a response it starts with "timeout: ",
	// "request error: " or "SSRF blocked: ", and goes on with the phase and the cause. It never tells an address
	// that a hostname resolves to.
	Body string

	// Header is the header of the response. Fields that don't fit into 16 KiB are left out.
	Header http.Header

	// Canceled says that the attempt counts as not made: the caller's context ended it, although the receiver may
	// have got the request by then, or it was revoked, and the receiver has got nothing.
	Canceled bool

	Timings Timings

	// Remote is what kind of address the connection went to: "public", or the guard's word for what AllowTargets has opened, such as
	// "loopback"; with "through the proxy" behind it where there is one. Empty if there was no connection.
	Remote string
}

// Success reports whether the receiver accepted the delivery: any 2xx.
func (o Outcome) Success() bool {
	return o.Status >= 200 && o.Status <= 299
}

// Timings are the phases of an attempt, one after the other. A phase that was not reached, or not needed, is 0; one
// that was cut off lasted until then.
type Timings struct {
	DNS       time.Duration
	Connect   time.Duration
	TLS       time.Duration
	FirstByte time.Duration // from having a connection to the first byte of the response
	Total     time.Duration // the whole attempt
	Reused    bool          // a kept connection was used, so there were no DNS, Connect and TLS
}

// The part behind the snippet makes for fewer reads of what is only skipped.
var buffers = sync.Pool{New: func() any { return new([8 << 10]byte) }}

// readBody reads the body up to its limit and returns the snippet of it. Unless it gets to the end, closing the body
// closes the connection.
func readBody(resp *http.Response) (string, error) {
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return "", nil // what follows is no response any more, and may never end
	}
	buf := buffers.Get().(*[8 << 10]byte)
	defer buffers.Put(buf)
	var err error
	kept, total := 0, 0
	for total < maxBodyBytes && err == nil {
		var n int
		n, err = resp.Body.Read(buf[kept:min(len(buf), kept+maxBodyBytes-total)])
		kept = min(kept+n, maxSnippetBytes)
		total += n
	}
	if err == io.EOF {
		err = nil
	}
	return text(buf[:kept], maxSnippetRunes), err
}

// text returns the first n characters of b. Invalid UTF-8 becomes U+FFFD, one for each maximal subpart (Unicode 15,
// section 3.9, "Substitution of Maximal Subparts"), as browsers and Python do and Go's own conversions don't.
// NUL becomes U+FFFD too, since PostgreSQL stores none in a text.
func text(b []byte, n int) string {
	end := 0
	for ; n > 0 && end < len(b); n-- {
		r, size := utf8.DecodeRune(b[end:])
		if r == 0 || r == utf8.RuneError && size == 1 {
			return string(b[:end]) + repaired(b[end:], n)
		}
		end += size
	}
	return string(b[:end])
}

func repaired(b []byte, n int) string {
	var s strings.Builder
	for ; n > 0 && len(b) > 0; n-- {
		r, size := utf8.DecodeRune(b)
		switch {
		case r == 0:
			r = utf8.RuneError
		case r == utf8.RuneError && size == 1:
			// FullRune is false for what could still become a character, so size grows up to the byte that rules
			// it out.
			for size < len(b) && !utf8.FullRune(b[:size+1]) {
				size++
			}
		}
		s.WriteRune(r)
		b = b[size:]
	}
	return s.String()
}

// boundHeader makes a received header fit to be stored.
func boundHeader(h http.Header) http.Header {
	size := 0
	for key, values := range h {
		for i, v := range values {
			if !utf8.ValidString(v) || strings.IndexByte(v, 0) >= 0 {
				values[i] = text([]byte(v), len(v))
			}
		}
		size += fieldSize(key, values)
	}
	if size <= maxKeptHeaderBytes {
		return h
	}
	kept := make(http.Header)
	left := maxKeptHeaderBytes
	for _, key := range slices.Sorted(maps.Keys(h)) {
		if size := fieldSize(key, h[key]); size <= left {
			kept[key] = h[key]
			left -= size
		}
	}
	return kept
}

// fieldSize is the size of a field on the wire, each value on a line of its own.
func fieldSize(key string, values []string) int {
	size := 0
	for _, v := range values {
		size += len(key) + len(": ") + len(v) + len("\r\n")
	}
	return size
}
