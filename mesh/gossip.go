package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// label is bound into every packet and stream: other programs that use the
// same library are told apart before any decryption.
const label = "flotilla/1"

// gossip opens the sockets and starts memberlist. ctx bounds the look-up of
// names, life every connection made later.
func (m *Members) gossip(ctx, life context.Context, cfg Config) error {
	bind, err := resolve(ctx, cfg.Bind)
	if err != nil {
		return fmt.Errorf("listen for gossip: %w", err)
	}
	host := bind[0].Addr().String()
	if strings.HasPrefix(cfg.Bind, ":") {
		host = "" // lets the kernel choose, on machines without IPv6 too
	}
	logger := newLibraryLog(m)
	tcp, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{
		BindAddrs: []string{host}, BindPort: int(bind[0].Port()), Logger: logger.Logger,
	})
	if err != nil {
		return fmt.Errorf("listen for gossip on %s: %w", cfg.Bind, err)
	}
	m.net = newTransport(tcp, life)
	err = m.create(ctx, cfg, bind[0].Addr(), logger)
	if err != nil {
		_ = m.net.Shutdown()
	}
	return err
}

func (m *Members) create(ctx context.Context, cfg Config, bind netip.Addr, logger *libraryLog) error {
	reach, err := advertised(ctx, cfg.Advertise, netip.AddrPortFrom(bind, uint16(m.net.GetAutoBindPort())))
	if err != nil {
		return fmt.Errorf("advertise gossip: %w", err)
	}
	m.self = reach.String()
	t := cfg.Timing
	conf := memberlist.DefaultLANConfig()
	conf.Name, conf.Transport, conf.Logger = cfg.ID, m.net, logger.Logger
	conf.BindAddr, conf.BindPort = bind.String(), m.net.GetAutoBindPort()
	conf.AdvertiseAddr, conf.AdvertisePort = reach.Addr().String(), int(reach.Port())
	conf.Label = label
	if conf.Keyring, err = keyring(cfg.Keys); err != nil {
		return err
	}
	conf.GossipVerifyIncoming, conf.GossipVerifyOutgoing = true, true
	conf.TCPTimeout, conf.ProbeInterval, conf.ProbeTimeout = t.Stream, t.Probe, t.ProbeWait
	conf.GossipInterval, conf.PushPullInterval, conf.SuspicionMult = t.Gossip, t.PushPull, t.Suspicion
	// A node that comes back at another address is believed once its old self
	// is down: who it is, the handshake of the peer port proves.
	conf.DeadNodeReclaimTime = time.Nanosecond
	conf.Delegate, conf.Events, conf.Merge, conf.Conflict = callbacks{m}, callbacks{m}, callbacks{m}, callbacks{m}
	m.list, err = memberlist.Create(conf)
	return err
}

// keyring takes no key that would turn encryption off, or make it weaker.
func keyring(keys [][]byte) (*memberlist.Keyring, error) {
	if len(keys) == 0 || slices.ContainsFunc(keys, func(key []byte) bool { return len(key) != 32 }) {
		return nil, errors.New("gossip needs keys, each 32 bytes long")
	}
	return memberlist.NewKeyring(keys, keys[0])
}

// resolve returns the addresses that hostport stands for: an IP, a name with
// one or several records, or no host at all, which is every local address.
func resolve(ctx context.Context, hostport string) ([]netip.AddrPort, error) {
	host, service, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("%q is not a port", service)
	}
	if host == "" {
		host = "::"
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	addrs := make([]netip.AddrPort, len(ips))
	for i, ip := range ips {
		if ip.Zone() != "" { // the library would drop it and mean another address
			return nil, fmt.Errorf("%s: link-local addresses with a zone do not work here", ip)
		}
		addrs[i] = netip.AddrPortFrom(ip.Unmap(), uint16(port))
	}
	return addrs, nil
}

// advertised works out the address that others reach bound at.
func advertised(ctx context.Context, host string, bound netip.AddrPort) (netip.AddrPort, error) {
	if host == "" {
		if bound.Addr().IsUnspecified() {
			return bound, errors.New("listening on every address, so the one that others reach must be given")
		}
		return bound, nil
	}
	if _, _, err := net.SplitHostPort(host); err != nil {
		host = net.JoinHostPort(host, strconv.Itoa(int(bound.Port())))
	}
	addrs, err := resolve(ctx, host)
	if err != nil {
		return bound, err
	}
	return addrs[0], nil
}

// transport is memberlist's own over UDP and TCP, with dialled connections that
// end with Shutdown, and with the last error of each address kept: memberlist
// returns it as text only.
type transport struct {
	*memberlist.NetTransport
	dial func(addr string, timeout time.Duration) (net.Conn, error)

	mu     sync.Mutex
	open   map[net.Conn]struct{}
	failed map[string]error
}

func newTransport(t *memberlist.NetTransport, life context.Context) *transport {
	return &transport{
		NetTransport: t, open: map[net.Conn]struct{}{}, failed: map[string]error{},
		dial: func(addr string, timeout time.Duration) (net.Conn, error) {
			dialer := net.Dialer{Timeout: timeout}
			return dialer.DialContext(life, "tcp", addr)
		},
	}
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	conn, err := t.dial(a.Addr, timeout)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		t.failed[a.Addr] = err
		return nil, err
	}
	delete(t.failed, a.Addr)
	t.open[conn] = struct{}{}
	return &dialled{Conn: conn, t: t}, nil
}

// dialError returns why addr could not be dialled the last time it was tried,
// nil if it could.
func (t *transport) dialError(addr string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failed[addr]
}

// Shutdown implements memberlist.Transport.
func (t *transport) Shutdown() error {
	t.mu.Lock()
	for conn := range t.open {
		_ = conn.Close()
	}
	t.mu.Unlock()
	return t.NetTransport.Shutdown()
}

type dialled struct {
	net.Conn
	t *transport
}

func (c *dialled) Close() error {
	c.t.mu.Lock()
	delete(c.t.open, c.Conn)
	c.t.mu.Unlock()
	return c.Conn.Close()
}

// callbacks is what memberlist calls, mostly with its own lock held: nothing
// here waits, and nothing here calls memberlist.
type callbacks struct{ m *Members }

func (c callbacks) NodeMeta(int) []byte {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	return c.m.encoded
}

func (callbacks) NotifyMsg([]byte)                {}
func (callbacks) GetBroadcasts(int, int) [][]byte { return nil }
func (callbacks) LocalState(bool) []byte          { return nil }
func (callbacks) MergeRemoteState([]byte, bool)   {}

func (c callbacks) NotifyJoin(n *memberlist.Node)   { c.m.appeared(n) }
func (c callbacks) NotifyUpdate(n *memberlist.Node) { c.m.appeared(n) }
func (c callbacks) NotifyLeave(n *memberlist.Node)  { c.m.vanished(n.Name) }

// NotifyConflict hears of a node that announces itself at a second address.
func (c callbacks) NotifyConflict(_, other *memberlist.Node) { c.m.conflict(other) }

// NotifyMerge refuses to join a mesh that is not ours. A mesh that merely holds
// a stray of another is not judged by it.
func (c callbacks) NotifyMerge(nodes []*memberlist.Node) error {
	c.m.mu.Lock()
	ours := c.m.meta.Cluster
	c.m.mu.Unlock()
	theirs, others := "", 0
	for _, n := range nodes {
		if n.Name == c.m.id {
			continue
		}
		others++
		meta, err := parseMeta(n.Meta)
		if err != nil {
			continue
		}
		if meta.Cluster == ours {
			return nil
		}
		if meta.Cluster != "" {
			theirs = meta.Cluster
		}
	}
	if others == 0 { // whoever it is does not even know itself by another name
		return ErrOnlySelf
	}
	if ours == "" || theirs == "" {
		return nil
	}
	return fmt.Errorf("%w (%s)", ErrOtherMesh, theirs)
}

func peerOf(id, gossip string, m Meta) Peer {
	return Peer{ID: id, Name: m.Name, Zone: m.Zone, Addr: m.Peer, Gossip: gossip, Cluster: m.Cluster, Level: m.Level}
}

func announced(n *memberlist.Node) (Peer, error) {
	meta, err := parseMeta(n.Meta)
	return peerOf(n.Name, n.Address(), meta), err
}

func (m *Members) appeared(n *memberlist.Node) {
	if n.Name == m.id {
		return
	}
	p, err := announced(n)
	if err != nil {
		m.log.Warn("ignoring a node whose announcement cannot be read", "node", n.Name, "address", p.Gossip, "error", err)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.entries[n.Name]
	if !ok {
		e = &entry{}
		m.entries[n.Name] = e
	}
	was := ok && m.present(e)
	e.Peer, e.alive, e.met, e.claimed = p, true, true, false
	now := m.present(e)
	if now && !was {
		m.log.Info("node is up", "node", p.Name, "id", p.ID, "zone", p.Zone, "address", p.Gossip)
	}
	if !now && !e.strange {
		e.strange = true
		m.log.Warn("ignoring a node of another mesh that has the same secret",
			"node", p.Name, "address", p.Gossip, "cluster", p.Cluster)
	}
	m.touch()
}

func (m *Members) vanished(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.entries[id]
	if !ok {
		return
	}
	if m.present(e) {
		m.log.Info("node is down", "node", e.Name, "id", id, "zone", e.Zone)
	}
	e.alive = false
	if e.claimed {
		m.hurry()
	}
	m.touch()
}

// conflict takes up the newer addresses of a node that restarted elsewhere
// before gossip noticed that it had gone. memberlist believes it only once its
// old self is down and then forgets the claim, so vanished tries it at once.
func (m *Members) conflict(n *memberlist.Node) {
	p, err := announced(n)
	if err != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.entries[n.Name]
	if !ok || e.claimed && e.Peer == p {
		return
	}
	m.log.Warn("node is announced at a new address; if it also runs at the old one, one is a copy of the other's data folder",
		"node", p.Name, "id", p.ID, "old", e.Gossip, "new", p.Gossip)
	e.Peer, e.claimed = p, true
	m.touch()
}
