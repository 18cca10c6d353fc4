package sender

import (
	"net/netip"
	"slices"

	"code.dny.dev/ssrf"
)

// A refusal is the guard's no. It names the rule and never the address, which the receiver's DNS could otherwise use
// to have internal names resolved for it.
type refusal string

func (r refusal) Error() string {
	return "refused by the rule " + string(r)
}

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

// judge returns a refusal if no connection may be made to the target. In this order: AllowTargets, the addresses of
// metadata services, then the rules of the ssrf package: the special-purpose registries of IANA (RFC 6890) and, for
// IPv6, everything outside of global unicast.
func (s *Sender) judge(target netip.AddrPort) error {
	ip := target.Addr()
	if ip.Zone() != "" {
		return refusal("address with a zone; none can be opened")
	}
	ip = ip.Unmap() // ::ffff:127.0.0.1 gets where 127.0.0.1 does
	isMetadata := slices.Contains(metadata, ip)
	for _, t := range s.allow {
		if !t.contains(ip, target.Port()) || isMetadata && !t.prefix.IsSingleIP() {
			continue
		}
		if ssrf.IPv6NAT64Prefix.Contains(ip) && t.prefix.Bits() <= ssrf.IPv6NAT64Prefix.Bits() {
			// Opened as a whole for a network with IPv6 only, where DNS64 maps whatever IPv4 address a name has
			// (RFC 6147). Then that address counts.
			b := ip.As16()
			return s.judge(netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:])), target.Port()))
		}
		return nil
	}
	if isMetadata {
		return refusal("cloud metadata; only an --allow-target (Config.AllowTargets) for exactly this address opens it")
	}
	if s.guardian.SafeAddr(ip) != nil {
		return refusal(rule(ip) + "; --allow-target (Config.AllowTargets) opens it")
	}
	return nil
}

// rule names the rule by which the ssrf package refuses ip. Its own error can't be shown, as it names the address.
func rule(ip netip.Addr) string {
	kind := "special-purpose network"
	switch {
	case ip.IsUnspecified():
		kind = "unspecified address"
	case ip.IsLoopback():
		kind = "loopback"
	case ip.IsPrivate():
		kind = "private network"
	case ip.IsLinkLocalUnicast():
		kind = "link-local"
	case ip.IsMulticast():
		kind = "multicast"
	}
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
