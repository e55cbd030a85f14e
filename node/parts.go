package node

// Each part of a node is opened here, with what it needs of the others: the
// parts know nothing of each other but the small interfaces that they declare.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/flotilla-registry/flotilla/api"
	"github.com/flotilla-registry/flotilla/mesh"
	"github.com/flotilla-registry/flotilla/metadata"
	"github.com/flotilla-registry/flotilla/node/disk"
)

func (n *Node) openBlobs() (*mesh.Blobs, error) {
	_, total, err := n.disk.Free()
	if err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	cache, err := parseSize(n.cfg.CacheSize, total)
	if err != nil {
		return nil, err
	}
	repair, err := parseSize(n.cfg.RepairRate, 0)
	if err != nil {
		return nil, err
	}
	zone, err := parseSize(n.cfg.ZoneRate, 0)
	if err != nil {
		return nil, err
	}
	var settle time.Duration // the default
	if n.cfg.Quick {
		settle = 200 * time.Millisecond
	}
	return mesh.NewBlobs(mesh.BlobsConfig{
		ID:       n.id(),
		Zone:     n.cfg.Zone,
		Local:    n.disk,
		Members:  n.members,
		Client:   n.dialer.client(true),
		Log:      n.log,
		ZoneRate: zone,

		Names:      names{n.catalog},
		Pins:       n.pins,
		CacheSize:  max(cache, 1), // 0 would mean no ceiling
		RepairRate: repair,
		Grace:      n.cfg.Unused,
		Settle:     settle,
	}), nil
}

// openTrust reads the secrets. A founder may make one; whoever joins must have
// it.
func (n *Node) openTrust() error {
	founds := len(n.cfg.Join) == 0 && len(n.cfg.Expect) == 0 && n.folder.known().mesh() == ""
	secrets, err := readSecrets(n.cfg.SecretFile, founds)
	if err != nil {
		return err
	}
	if len(secrets) > 1 {
		n.log.Info("two secrets are accepted, the first is used: take the old one out once every member has the new one", "file", n.cfg.SecretFile)
	}
	if n.trust, err = newTrust(secrets, n.folder.known().ID, n.folder.key); err != nil {
		return err
	}
	n.trust.outlived = n.outlived
	known := n.folder.known()
	return n.trust.enter(metadata.Cluster{ID: known.Cluster, Epoch: known.Epoch})
}

func (n *Node) openPorts(ctx context.Context) (err error) {
	if n.cfg.TLSCert != "" {
		if n.pair, err = loadKeyPair(n.cfg.TLSCert, n.cfg.TLSKey, n.log); err != nil {
			return fmt.Errorf("%w: %w", ErrConfig, err)
		}
	}
	if n.cfg.TLSClientCA != "" {
		if n.clientCAs, err = Authorities(n.cfg.TLSClientCA); err != nil {
			return fmt.Errorf("%w: --tls-client-ca: %w", ErrConfig, err)
		}
	}
	if n.publicLn, err = listen("listen", n.cfg.Listen); err != nil {
		return err
	}
	ln, err := listen("peer-listen", n.cfg.PeerListen)
	if err != nil {
		return err
	}
	n.port = newPeerPort(ln, n.trust, n.log)
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	n.peerAddr = net.JoinHostPort(advertised(ctx, n.cfg), port)
	n.dialer = &dialer{trust: n.trust, resolve: n.resolve}
	n.stranger = n.dialer.client(false)
	return nil
}

// reserve is what blobs leave of the disk to the catalogue, whose log, state
// and snapshots need room also while pushes are refused.
const reserve = 1 << 30

func (n *Node) openDisk() (*disk.Store, error) {
	size, err := disk.Size(n.cfg.Data)
	if err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	reserve := int64(min(reserve, size/4))
	scrub, err := parseSize(n.cfg.ScrubRate, 0)
	if err != nil {
		return nil, err
	}
	store, err := disk.Open(disk.Config{
		Dir: n.cfg.Data, Reserve: reserve, ScrubRate: scrub, Log: n.log, Fatal: n.fail, Bad: n.damaged,
	})
	if err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	// Of the reserve too most is gone: the catalogue could not open.
	if free, _, err := store.Free(); err == nil && int64(free) < reserve/8 {
		return store, fmt.Errorf("data folder %s: the disk is full, with %d MiB left: the node needs %d MiB to start", n.cfg.Data, free>>20, reserve/8>>20)
	}
	if n.cfg.Weight == OfDisk {
		_, total, err := store.Free()
		if err != nil {
			return store, fmt.Errorf("data folder: %w", err)
		}
		n.cfg.Weight = int64(max(1, total>>30))
	}
	return store, nil
}

func (n *Node) openGossip(ctx context.Context) (*mesh.Members, error) {
	host, _, _ := net.SplitHostPort(n.peerAddr)
	timing := mesh.LAN()
	switch {
	case n.cfg.Quick:
		timing = mesh.Fast()
	case n.cfg.Zone != defaultZone: // whoever names a place has others
		timing = mesh.WAN()
	}
	m, err := mesh.Start(ctx, mesh.Config{
		ID:        n.id(),
		Meta:      n.meta(n.folder.known().Cluster),
		Bind:      n.cfg.GossipListen,
		Advertise: host,
		Keys:      n.trust.gossipKeys(),
		Seeds:     n.cfg.Join,
		StatePath: n.folder.path("peers.json"),
		Timing:    timing,
		Log:       n.log,
	})
	if err != nil {
		return nil, fmt.Errorf("--gossip-listen %s: %w", n.cfg.GossipListen, err)
	}
	return m, nil
}

// meta is what this node tells others in gossip.
func (n *Node) meta(cluster string) mesh.Meta {
	return mesh.Meta{Name: n.cfg.Name, Zone: n.cfg.Zone, Peer: n.peerAddr, Cluster: cluster, Level: metadata.FeatureLevel}
}

func (n *Node) openCatalog() (*metadata.Catalog, error) {
	var timing metadata.Timing // the defaults
	if n.cfg.Quick {
		timing = metadata.Timing{Election: 500 * time.Millisecond, Stable: 200 * time.Millisecond, Tick: 100 * time.Millisecond}
	}
	timing.LinkAge = n.cfg.Unused
	return metadata.Open(metadata.Config{
		Dir:      n.folder.path(catalogFolder),
		ID:       n.id(),
		Epoch:    n.folder.known().Epoch,
		Listener: n.port.raft,
		Dial: func(ctx context.Context, id string) (net.Conn, error) {
			return n.dialer.dial(ctx, id, protoRaft, true)
		},
		Client:    n.dialer.client(true),
		Alive:     n.members.Alive,
		OnMembers: n.onMembers,
		OnNamed:   n.pins.heard,
		Fatal:     n.fail,
		OutAfter:  n.cfg.OutAfter,
		TagReads:  metadata.TagReads(n.cfg.TagReads),
		Timing:    timing,
		Log:       n.log,
	})
}

// onMembers carries what Raft agreed on to those who act on it: who may speak,
// who owns bytes, and which mesh this is.
func (n *Node) onMembers(members []metadata.Member, c metadata.Cluster) {
	if len(members) == 0 {
		return
	}
	n.trust.pin(members)
	n.hint(members)
	roster := make([]mesh.RosterMember, len(members))
	for i, m := range members {
		roster[i] = mesh.RosterMember{ID: m.ID, Zone: m.Zone, Weight: m.Weight, Out: m.Out, Draining: m.Draining}
		n.entered = n.entered || m.ID == n.id()
	}
	if n.entered && !slices.ContainsFunc(members, func(m metadata.Member) bool { return m.ID == n.id() }) {
		n.fail(errRemoved)
		return
	}
	n.members.SetRoster(roster, c.Replicas)
}

func (n *Node) hint(members []metadata.Member) {
	for _, m := range members {
		n.hints.Store(m.ID, m.Address)
	}
}

// resolve returns where a node's peer port is: as gossip has it, else as the
// node itself last said. Neither is believed before the handshake.
func (n *Node) resolve(id string) (string, bool) {
	if id == n.id() {
		return n.port.ln.Addr().String(), true
	}
	if addr, ok := n.members.Addr(id); ok {
		return addr, true
	}
	addr, ok := n.hints.Load(id)
	if !ok {
		return "", false
	}
	return addr.(string), true
}

func (n *Node) servePeers() {
	members := http.NewServeMux()
	members.Handle("/metadata/", n.catalog.PeerHandler())
	blobs := n.blobs.PeerHandler()
	members.Handle("/blobs/", blobs)
	members.Handle("/uploads/", blobs)
	members.Handle("/node/", n.memberHandler())
	n.peers = publicServer(peerHandler(n.trust, members, n.doorHandler(), n.log), n.log)
	n.running.Go(func() { _ = n.peers.Serve(n.port.http) })
}

func (n *Node) servePublic() (err error) {
	if n.auth, err = n.openAuth(); err != nil {
		return err
	}
	audit, err := n.openAudit()
	if err != nil {
		return err
	}
	h, err := api.New(api.Config{
		Node:    n.cfg.Name,
		Blobs:   n.blobs,
		Uploads: n.blobs,
		Catalog: n.catalog,
		Health:  n,
		Room:    n.disk.Full,
		Status:  func(ctx context.Context, digests bool) any { return n.statusFor(ctx, digests) },
		Where:   n.Where,
		Admin: api.Admin{
			Check:   func(token string) error { return n.trust.checkToken(token, time.Now()) },
			Members: n, Collector: n, Archive: n, Checker: n, Pinner: n,
		},
		Auth:       n.auth,
		Audit:      audit,
		AuditPulls: n.cfg.AuditPulls,
		Metrics:    n.metrics.handler(),
		Observe:    n.metrics.observe,
		Log:        n.log,
	})
	if err != nil {
		return fmt.Errorf("public port: %w", err)
	}
	n.public = publicServer(h, n.log)
	serve := func() error { return n.public.Serve(n.publicLn) }
	if n.pair != nil {
		n.public.TLSConfig = n.publicTLS()
		serve = func() error { return n.public.ServeTLS(n.publicLn, "", "") }
	}
	n.log.Info("serving", "name", n.cfg.Name, "id", n.id(), "zone", n.cfg.Zone, "listen", n.publicLn.Addr().String(), "peers", n.peerAddr, "gossip", n.members.Address(), "data", n.cfg.Data)
	n.running.Go(func() {
		if err := serve(); !errors.Is(err, http.ErrServerClosed) {
			n.fail(fmt.Errorf("public port: %w", err))
		}
	})
	return nil
}
