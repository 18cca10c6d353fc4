package sender

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// failure is the Outcome of an attempt that got no complete response. Each text is put together here from the phase
// and a cause, since the errors of net and net/http name addresses.
func (a *attempt) failure(caller context.Context, phase string, err error) Outcome {
	o := Outcome{Timings: a.timings(), Remote: a.remote}
	var body string
	switch refused, ok := errors.AsType[refusal](err); {
	case ok:
		body = "SSRF blocked: connect: " + refused.Error()
	case a.stopped, caller.Err() != nil:
		o.Canceled = true
		body = "request error: " + phase + ": canceled"
	case time.Since(a.start) >= a.timeout:
		body = fmt.Sprintf("timeout: %s: not done within %v, the limit of the whole attempt", phase, a.timeout)
	case isTimeout(err):
		body = "timeout: " + phase + ": " + cause(err)
	default:
		body = "request error: " + phase + ": " + cause(err)
	}
	// What a receiver sent may be quoted in the cause.
	o.Body = text([]byte(body), maxSnippetRunes)
	return o
}

func isTimeout(err error) bool {
	t, ok := errors.AsType[net.Error](err)
	return ok && t.Timeout()
}

// alert returns with what words the receiver has ended TLS, or "" if it hasn't.
func alert(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return strings.TrimPrefix(op.Err.Error(), "tls: ")
	}
	return ""
}

// cause says in short what went wrong, without the addresses that net.OpError and net.DNSError print.
func cause(err error) string {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		switch {
		case dns.IsNotFound:
			return "no such host"
		case dns.IsTimeout:
			return "no answer from the DNS server"
		}
		return "the lookup failed"
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "the certificate is for another host"
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "the certificate is signed by an unknown authority"
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return "the certificate is expired or not valid yet"
	}
	if header, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return header.Msg
	}
	if text := alert(err); text != "" {
		return "the receiver ends TLS with the alert: " + text
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "the receiver closed the connection"
	}
	// The innermost error is the bare one, such as a syscall.Errno.
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(err) {
		err = inner
	}
	if strings.HasPrefix(err.Error(), "readLoopPeekFailLocked: ") {
		return "the receiver sent something before the request" // which net/http has no words for
	}
	return strings.TrimPrefix(strings.TrimPrefix(err.Error(), "net/http: "), "tls: ")
}
