package node

import (
	"context"
	"net"
	"time"
)

// advertised returns the host that other members reach this node at, where the
// operator did not say: the host that the peer port is bound to, where that is
// one; else the local address of the route to the first join target; else
// that of the route to the world. A target on loopback is another node of this
// machine, which chose its own address by the same rule. No packet is sent.
func advertised(ctx context.Context, c Config) string {
	if c.Advertise != "" {
		return c.Advertise
	}
	host, _, _ := net.SplitHostPort(c.PeerListen)
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return host
	}
	targets := append(append([]string{}, c.Join...), "192.0.2.1:9", "[2001:db8::1]:9") // RFC 5737, RFC 3849: routed nowhere, good for a look-up
	for _, target := range targets {
		if ip := routeTo(ctx, target); ip != nil && !ip.IsLoopback() {
			return ip.String()
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
