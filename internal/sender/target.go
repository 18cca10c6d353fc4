package sender

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// A Target is an entry of Config.AllowTargets: a network or a single address, on one port or on all. The zero Target
// contains nothing.
type Target struct {
	prefix netip.Prefix
	port   uint16 // 0: all
}

// ParseTarget reads an address (10.0.0.1, ::1) or a network (10.0.0.0/8, fd00::/8), and a port after a colon if it
// is to be opened for that port only: 10.0.0.1:8080, 10.0.0.0/8:443, [::1]:8080, [fd00::/8]:443.
func ParseTarget(s string) (Target, error) {
	address, port, err := splitTarget(s)
	if err != nil {
		return Target{}, fmt.Errorf("target %q: %w", s, err)
	}
	prefix, err := parsePrefix(address)
	if err != nil {
		return Target{}, fmt.Errorf("target %q: %w", s, err)
	}
	return Target{prefix, port}, nil
}

// splitTarget cuts off the port. An IPv6 address or network in front of a port is in brackets; without them a colon
// is part of the address, unless it is the only one.
func splitTarget(s string) (address string, port uint16, err error) {
	address = s
	rest, hasPort := "", false
	if inner, ok := strings.CutPrefix(s, "["); ok {
		address, rest, ok = strings.Cut(inner, "]")
		if !ok || !strings.Contains(address, ":") {
			return "", 0, fmt.Errorf("brackets are for an IPv6 address")
		}
		if rest == "" {
			return address, 0, nil
		}
		if rest, hasPort = strings.CutPrefix(rest, ":"); !hasPort {
			return "", 0, fmt.Errorf("a colon must separate the port")
		}
	} else if strings.Count(s, ":") == 1 {
		address, rest, hasPort = strings.Cut(s, ":")
	}
	if !hasPort {
		return address, 0, nil
	}
	port, err = parsePort(rest)
	return address, port, err
}

func parsePrefix(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		ip, err := netip.ParseAddr(s)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("want an IP address or a network such as 10.0.0.0/8")
		}
		if ip.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("an address with a zone can't be opened")
		}
		ip = ip.Unmap()
		return netip.PrefixFrom(ip, ip.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("want an IP address or a network such as 10.0.0.0/8")
	}
	if p.Addr().Is4In6() {
		// The guard judges these addresses as IPv4.
		return netip.Prefix{}, fmt.Errorf("write the IPv4 network instead of IPv4-mapped IPv6")
	}
	if p != p.Masked() {
		// 10.1.2.3/8 for 10.1.2.3 would open far more than was meant.
		return netip.Prefix{}, fmt.Errorf("not the start of a network; want %v or a single address", p.Masked())
	}
	return p, nil
}

// parsePort reads a port that can be connected to.
func parsePort(s string) (uint16, error) {
	port, err := strconv.ParseUint(s, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("port must be a number from 1 to 65535")
	}
	return uint16(port), nil
}

func (t Target) contains(ip netip.Addr, port uint16) bool {
	return t.prefix.Contains(ip) && (t.port == 0 || t.port == port)
}
