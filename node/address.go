package node

import (
	"context"
	"net"
	"slices"
	"time"
)

// advertised returns the host that other members reach this node at, where the
// operator did not say: the host that the peer port is bound to, where that is
// one; else the local address of the route to a join target or to an expected
// node; else that of the route to the world; else, on a network without one,
// the first address of this machine's that others could use. A target on
// loopback is another node of this machine, which chose its own address by the
// same rule. No packet is sent.
func advertised(ctx context.Context, c Config) string {
	if c.Advertise != "" {
		return c.Advertise
	}
	host, _, _ := net.SplitHostPort(c.PeerListen)
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return host
	}
	targets := slices.Clone(c.Join)
	for _, name := range c.Expect {
		if name != c.Name {
			targets = append(targets, net.JoinHostPort(name, "9"))
		}
	}
	targets = append(targets, "192.0.2.1:9", "[2001:db8::1]:9") // RFC 5737, RFC 3849: routed nowhere, good for a look-up
	for _, target := range targets {
		if ip := routeTo(ctx, target); ip != nil && !ip.IsLoopback() {
			return ip.String()
		}
	}
	return ownAddress()
}

// ownAddress returns an address of this machine by which others could reach
// it, or loopback where it has none.
func ownAddress() string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "127.0.0.1"
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	return "127.0.0.1"
}

// routeTo returns the local address that packets to target would carry.
func routeTo(ctx context.Context, target string) net.IP {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", target)
	if err != nil {
		return nil
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).IP
}
