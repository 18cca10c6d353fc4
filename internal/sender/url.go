package sender

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

const maxURLRunes = 2048

var errHTTPSOnly = errors.New("only https is allowed here (--https-only, Config.HTTPSOnly)")

// CheckURL parses the URL of a webhook and refuses one that could never be delivered to. The error is fit to be
// shown to who gave the URL. A hostname is not looked up: what it resolves to is judged on every connection.
func (s *Sender) CheckURL(raw string) (*url.URL, error) {
	u, _, _, err := s.check(raw)
	return u, err
}

// check returns with the URL the host and port that are dialed.
func (s *Sender) check(raw string) (_ *url.URL, host string, port uint16, err error) {
	if raw == "" {
		return nil, "", 0, errors.New("it is empty")
	}
	if utf8.RuneCountInString(raw) > maxURLRunes {
		return nil, "", 0, fmt.Errorf("it is longer than %d characters", maxURLRunes)
	}
	if !utf8.ValidString(raw) || strings.ContainsFunc(raw, func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r)
	}) {
		return nil, "", 0, errors.New("it has a space, a control character or invalid UTF-8 in it")
	}
	u, err := ParseURL(raw)
	if err != nil {
		var parse *url.Error
		if errors.As(err, &parse) {
			err = parse.Err // without repeating the URL
		}
		return nil, "", 0, fmt.Errorf("it is malformed: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return nil, "", 0, errors.New("it must start with http:// or https://")
	}
	if s.httpsOnly && u.Scheme != "https" {
		return nil, "", 0, errHTTPSOnly
	}
	host = u.Hostname()
	if host == "" {
		return nil, "", 0, errors.New("it has no host")
	}
	if u.User != nil {
		return nil, "", 0, errors.New("it has a user name or password in it; use a custom header instead")
	}
	port = 80
	if u.Scheme == "https" {
		port = 443
	}
	if i := strings.LastIndexByte(u.Host, ':'); i > strings.LastIndexByte(u.Host, ']') {
		if port, err = parsePort(u.Host[i+1:]); err != nil {
			return nil, "", 0, err
		}
	}
	if !isASCII(host) {
		// As net/http does when it dials: full-width digits and ideographic full stops become what they look like.
		if host, err = idna.Lookup.ToASCII(host); err != nil {
			return nil, "", 0, errors.New("hostname with characters that no internationalized domain name has")
		}
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if err := s.judge(netip.AddrPortFrom(ip, port)); err != nil {
			return nil, "", 0, fmt.Errorf("host %s is %w", host, err)
		}
	} else if err := checkHostname(host); err != nil {
		return nil, "", 0, err
	}
	return u, host, port, nil
}

// A Verdict is what becomes of a URL. The zero Verdict: requests are sent to it.
type Verdict struct {
	Phase  string // that in which it ends: "registration", "DNS" or "connect"
	Reason string
	Rule   string // of the guard, if that decides
	Remedy string // what would change that
}

// Explain says what becomes of a URL, up to the connection. A hostname is looked up as an attempt does; nothing is
// connected to. The Verdict tells no address that a name resolves to.
func (s *Sender) Explain(ctx context.Context, raw string) Verdict {
	_, host, port, err := s.check(raw)
	if err != nil {
		return verdict("registration", err)
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return Verdict{}
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	addrs, err := s.resolver.LookupNetIP(ctx, "ip", absolute(host)) // nil is the default resolver
	if err != nil {
		return Verdict{Phase: "DNS", Reason: cause(err)}
	}
	for _, ip := range addrs {
		if err := s.judge(netip.AddrPortFrom(ip, port)); err != nil {
			return verdict("connect", err)
		}
	}
	return Verdict{}
}

func verdict(phase string, err error) Verdict {
	refused, _ := errors.AsType[refusal](err)
	return Verdict{Phase: phase, Reason: err.Error(), Rule: refused.rule, Remedy: refused.remedy}
}

// ParseURL parses a URL such that its path is sent as it stands. Parsed by package url alone, a path with a character
// that must be escaped (RFC 3986, section 3.3) would be escaped anew as a whole, and lose what it had escaped itself.
func ParseURL(raw string) (*url.URL, error) {
	path := len(raw)
	if i := strings.Index(raw, "://"); i >= 0 {
		if j := strings.IndexAny(raw[i+3:], "/?#"); j >= 0 {
			path = i + 3 + j
		}
	}
	end := len(raw)
	if i := strings.IndexAny(raw[path:], "?#"); i >= 0 {
		end = path + i
	}
	var b strings.Builder
	b.WriteString(raw[:path])
	for _, c := range []byte(raw[path:end]) {
		if c < 0x80 && !strings.ContainsRune("\"<>\\^`{|}", rune(c)) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	b.WriteString(raw[end:])
	return url.Parse(b.String())
}

// checkHostname refuses what is neither a name that DNS can know nor an IP address.
func checkHostname(host string) error {
	name := strings.TrimSuffix(host, ".")
	labels := strings.Split(name, ".")
	if len(name) > 253 {
		return errors.New("host is longer than 253 characters") // RFC 1035, section 2.3.4, without length octets
	}
	for _, label := range labels {
		if label == "" || len(label) > 63 {
			return errors.New("each part of a hostname has 1 to 63 characters")
		}
		// An underscore is no character of a hostname (RFC 1123, section 2.1), but DNS takes it and some have it.
		if i := strings.IndexFunc(label, func(r rune) bool { return !isAlnum(r) && r != '-' && r != '_' }); i >= 0 {
			return fmt.Errorf("hostname with the character %q", label[i])
		}
	}
	// No top-level domain is a number, but 127.1, 2130706433 and 0x7f000001 are all 127.0.0.1 to some resolvers
	// (the rule is "ends in a number" of https://url.spec.whatwg.org).
	last := strings.ToLower(labels[len(labels)-1])
	if strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") && strings.Trim(last[2:], "0123456789abcdef") == "" {
		return errors.New("host is neither a name nor a complete IP address")
	}
	return nil
}

func isAlnum(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) < 0
}
