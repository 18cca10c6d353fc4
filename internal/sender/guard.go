package sender

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"code.dny.dev/ssrf"
)

// A refusal is the guard's no: the rule that decides, and what would change it. It never has the address, which the
// receiver's DNS could otherwise use to have internal names resolved for it.
type refusal struct{ rule, remedy string }

func (r refusal) Error() string {
	if r.remedy == "" {
		return "refused by the rule " + r.rule
	}
	return "refused by the rule " + r.rule + "; " + r.remedy
}

const (
	allowOpens        = "--allow-target (Config.AllowTargets) opens it"
	allowAddressOpens = "only an --allow-target (Config.AllowTargets) for exactly this address opens it"
	allowPortOpens    = "only an --allow-target (Config.AllowTargets) for exactly this address and port opens it"
)

// metadata are the addresses at which a cloud tells a machine its credentials. Several are in no special-purpose
// registry or in a network that an operator may well open, so only an entry for the very address opens one.
var metadata = []netip.Addr{
	netip.MustParseAddr("169.254.169.254"), // AWS, Azure, Google, Oracle, DigitalOcean, Hetzner, OpenStack, …
	netip.MustParseAddr("169.254.170.2"),   // AWS ECS task credentials
	netip.MustParseAddr("169.254.170.23"),  // AWS EKS pod identity
	netip.MustParseAddr("169.254.0.23"),    // Tencent
	netip.MustParseAddr("168.63.129.16"),   // Azure's wire server, on a public address
	netip.MustParseAddr("100.100.100.200"), // Alibaba
	netip.MustParseAddr("192.0.0.192"),     // Oracle
	netip.MustParseAddr("fd00:ec2::254"),   // AWS
	netip.MustParseAddr("fd00:ec2::23"),    // AWS EKS pod identity
	netip.MustParseAddr("fd20:ce::254"),    // Google
}

// judge returns a refusal if no connection may be made to the target. In this order: AllowTargets, our own listeners, the
// addresses of metadata services, then the rules of the ssrf package: the special-purpose registries of IANA (RFC 6890)
// and, for IPv6, everything outside of global unicast. A NAT64 address is judged by the IPv4 address that it stands for.
func (s *Sender) judge(target netip.AddrPort) error {
	ip, port := target.Addr(), target.Port()
	if ip.Zone() != "" {
		return refusal{"address with a zone", "none can be opened"}
	}
	ip = ip.Unmap() // ::ffff:127.0.0.1 gets where 127.0.0.1 does
	behind, translated := s.translated(ip)
	isOwn := s.isOwn(ip, port) || behind.IsValid() && s.isOwn(behind, port)
	isMetadata := slices.Contains(metadata, ip) || behind.IsValid() && slices.Contains(metadata, behind)
	for _, t := range s.allow {
		if !t.contains(ip, port) {
			continue
		}
		single := t.prefix.IsSingleIP()
		if behind.IsValid() && t.prefix.Bits() <= ssrf.IPv6NAT64Prefix.Bits() {
			// Opened as a whole for a network with IPv6 only, where DNS64 maps whatever IPv4 address a name has
			// (RFC 6147). Then that address counts.
			translated = true
			continue
		}
		if isMetadata && !single || isOwn && (!single || t.port == 0) {
			continue
		}
		return nil
	}
	if isOwn {
		return refusal{"Posthorn's own listener", allowPortOpens}
	}
	if translated {
		if r, ok := errors.AsType[refusal](s.judge(netip.AddrPortFrom(behind, port))); ok {
			return refusal{r.rule + ", through NAT64", r.remedy}
		}
		return nil
	}
	if isMetadata {
		return refusal{"cloud metadata", allowAddressOpens}
	}
	if s.guardian.SafeAddr(ip) != nil {
		return refusal{rule(ip), allowOpens}
	}
	return nil
}

// isOwn reports whether this process itself listens there.
func (s *Sender) isOwn(ip netip.Addr, port uint16) bool {
	for _, own := range s.own {
		if own.Port() != port {
			continue
		}
		listens := own.Addr().Unmap()
		switch {
		case listens.IsUnspecified():
			if ip.IsLoopback() || ip.IsUnspecified() || isLocal(ip) {
				return true
			}
		case ip.IsUnspecified(): // connects to loopback
			if listens.IsLoopback() {
				return true
			}
		case listens == ip:
			return true
		}
	}
	return false
}

// isLocal reports whether the machine has the address. It asks each time, as addresses come and go.
func isLocal(ip netip.Addr) bool {
	addrs, err := net.InterfaceAddrs()
	return err != nil || slices.ContainsFunc(addrs, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && p.Addr().Unmap() == ip
	})
}

// translated returns the IPv4 address that a NAT64 gateway would make of ip, and whether Config.NAT64 has its prefix.
// Under the well-known prefix it returns the address in any case.
func (s *Sender) translated(ip netip.Addr) (v4 netip.Addr, configured bool) {
	for _, p := range s.nat64 {
		if p.Contains(ip) {
			return embedded(p, ip), true
		}
	}
	if ssrf.IPv6NAT64Prefix.Contains(ip) {
		return embedded(ssrf.IPv6NAT64Prefix, ip), false
	}
	return netip.Addr{}, false
}

// embedded returns the IPv4 address in an IPv6 address under a NAT64 prefix (RFC 6052, section 2.2).
func embedded(p netip.Prefix, ip netip.Addr) netip.Addr {
	from, at := ip.As16(), p.Bits()/8
	var v4 [4]byte
	for i := range v4 {
		if at == 8 {
			at++ // bits 64 to 71 are reserved
		}
		v4[i] = from[at]
		at++
	}
	return netip.AddrFrom4(v4)
}

// ParseNAT64 reads a prefix of Config.NAT64.
func ParseNAT64(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || !p.Addr().Is6() || p.Addr().Is4In6() || p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("NAT64 prefix %q: want the start of an IPv6 network such as 64:ff9b::/96", s)
	}
	if !slices.Contains([]int{32, 40, 48, 56, 64, 96}, p.Bits()) {
		return netip.Prefix{}, fmt.Errorf("NAT64 prefix %q: its length is one of 32, 40, 48, 56, 64 and 96 (RFC 6052)", s)
	}
	return p, nil
}

// rule names the rule by which the ssrf package refuses ip. Its own error can't be shown, as it names the address.
func rule(ip netip.Addr) string {
	kind := kindOf(ip)
	denied := ssrf.IPv4DeniedPrefixes
	if ip.Is6() {
		if !ssrf.IPv6GlobalUnicast.Contains(ip) {
			return kind + ", outside of " + ssrf.IPv6GlobalUnicast.String()
		}
		denied = ssrf.IPv6DeniedPrefixes
	}
	for _, p := range denied {
		if p.Contains(ip) {
			return kind + " " + p.String()
		}
	}
	return kind
}

func kindOf(ip netip.Addr) string {
	switch {
	case ip.IsUnspecified():
		return "unspecified address"
	case ip.IsLoopback():
		return "loopback"
	case ip.IsPrivate():
		return "private network"
	case ip.IsLinkLocalUnicast():
		return "link-local"
	case ip.IsMulticast():
		return "multicast"
	}
	return "special-purpose network"
}

// class says what kind of address one is that a connection went to, without telling the address.
func (s *Sender) class(ip netip.Addr) string {
	ip = ip.Unmap()
	if behind, _ := s.translated(ip); behind.IsValid() {
		return s.class(behind) + " through NAT64"
	}
	switch {
	case slices.Contains(metadata, ip):
		return "cloud metadata"
	case s.guardian.SafeAddr(ip) == nil:
		return "public"
	}
	return kindOf(ip)
}

func (s *Sender) classOf(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return ""
	}
	return s.class(tcp.AddrPort().Addr())
}
