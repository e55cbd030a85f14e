package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotilla-registry/flotilla/api"
	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh"
	"github.com/flotilla-registry/flotilla/metadata"
	"github.com/flotilla-registry/flotilla/node/disk"
)

// ErrConfig marks an error in what the operator said, as opposed to what the
// machine or the mesh did.
var ErrConfig = errors.New("configuration")

// Node is one running process of a mesh. Start makes it, Stop ends it.
type Node struct {
	cfg      Config
	log      *slog.Logger
	folder   *folder
	trust    *trust
	peerAddr string // host:port that others reach the peer port at
	dialer   *dialer
	stranger *http.Client // for the two requests that need no membership

	disk    *disk.Store
	members *mesh.Members
	catalog *metadata.Catalog
	blobs   *mesh.Blobs
	metrics *metrics

	publicLn net.Listener
	pair     *keyPair // nil: no TLS on the public port
	public   *http.Server
	port     *peerPort
	peers    *http.Server

	hints   sync.Map              // UUID -> address that the log or an admission named
	waiting atomic.Pointer[error] // why this node is not part of its mesh yet
	fatal   chan error            // what ends the process
	stop    context.CancelFunc    // ends the goroutines below
	running sync.WaitGroup        // the goroutines that this file starts
	stopped func()                // the way down, once
}

// Run starts a node and returns when ctx has ended and everything has stopped,
// or with what made the node end by itself.
func Run(ctx context.Context, cfg Config) error {
	n, err := Start(ctx, cfg)
	if err != nil {
		return err
	}
	return n.Wait(ctx)
}

// Start brings a node up. It returns once the public port answers; the node
// may still be looking for its mesh then, which AwaitReady waits for and
// /readyz tells. ctx bounds the start alone.
func Start(ctx context.Context, cfg Config) (*Node, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	n := &Node{cfg: cfg, log: cfg.Log, fatal: make(chan error, 1)}
	n.stopped = sync.OnceFunc(n.down)
	var life context.Context
	life, n.stop = context.WithCancel(context.Background())
	if err := n.up(ctx, life); err != nil {
		n.stopped()
		return nil, err
	}
	return n, nil
}

// up is the order of start. Each step needs the ones above it. Ports come
// before anything that writes, so that a port in use leaves nothing
// half-started; whatever was started when a step fails, down ends.
func (n *Node) up(ctx, life context.Context) (err error) {
	if n.folder, err = openFolder(n.cfg.Data); err != nil {
		return err
	}
	if err := n.openTrust(); err != nil {
		return err
	}
	if err := n.openPorts(ctx); err != nil {
		return err
	}
	if n.disk, err = n.openDisk(); err != nil {
		return err
	}
	if n.members, err = n.openGossip(ctx); err != nil {
		return err
	}
	if n.catalog, err = n.openCatalog(); err != nil {
		return err
	}
	n.blobs = mesh.NewBlobs(mesh.BlobsConfig{
		ID:      n.id(),
		Zone:    n.cfg.Zone,
		Local:   n.disk,
		Members: n.members,
		Client:  n.dialer.client(true),
		Log:     n.log,
	})
	n.metrics = newMetrics(n)
	n.servePeers()
	if err := n.servePublic(); err != nil {
		return err
	}
	n.running.Go(func() {
		if err := n.enterMesh(life); err != nil && life.Err() == nil {
			n.fail(err)
		}
	})
	n.runPasses(life)
	return nil
}

// openTrust reads the secret. A founder may make it; whoever joins must have it.
func (n *Node) openTrust() error {
	founds := len(n.cfg.Join) == 0 && len(n.cfg.Expect) == 0 && n.folder.known().Cluster == ""
	secret, err := readSecret(n.cfg.SecretFile, founds)
	if err != nil {
		return err
	}
	if n.trust, err = newTrust(secret, n.folder.known().ID, n.folder.key); err != nil {
		return err
	}
	known := n.folder.known()
	return n.trust.enter(metadata.Cluster{ID: known.Cluster, Epoch: known.Epoch})
}

func (n *Node) openPorts(ctx context.Context) (err error) {
	if n.cfg.TLSCert != "" {
		if n.pair, err = loadKeyPair(n.cfg.TLSCert, n.cfg.TLSKey, n.log); err != nil {
			return fmt.Errorf("%w: %w", ErrConfig, err)
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
	store, err := disk.Open(disk.Config{Dir: n.cfg.Data, Reserve: reserve, Log: n.log, Fatal: n.fail})
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
	if n.cfg.Quick {
		timing = mesh.Fast()
	}
	m, err := mesh.Start(ctx, mesh.Config{
		ID:        n.id(),
		Meta:      n.meta(n.folder.known().Cluster),
		Bind:      n.cfg.GossipListen,
		Advertise: host,
		Key:       n.trust.gossip,
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
	return metadata.Open(metadata.Config{
		Dir:      n.folder.path("raft"),
		ID:       n.id(),
		Listener: n.port.raft,
		Dial: func(ctx context.Context, id string) (net.Conn, error) {
			return n.dialer.dial(ctx, id, protoRaft, true)
		},
		Client:    n.dialer.client(true),
		Alive:     n.members.Alive,
		OnMembers: n.onMembers,
		Fatal:     n.fail,
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
		roster[i] = mesh.RosterMember{ID: m.ID, Zone: m.Zone, Weight: m.Weight}
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
	n.peers = publicServer(peerHandler(n.trust, members, n.doorHandler(), n.log), n.log)
	n.running.Go(func() { _ = n.peers.Serve(n.port.http) })
}

func (n *Node) servePublic() error {
	h, err := api.New(api.Config{
		Node:    n.cfg.Name,
		Blobs:   n.blobs,
		Uploads: n.blobs,
		Catalog: n.catalog,
		Health:  n,
		Room:    n.disk.Full,
		Status:  func(context.Context) any { return n.Status() },
		Metrics: n.metrics.handler(),
		Observe: n.metrics.observe,
		Log:     n.log,
	})
	if err != nil {
		return fmt.Errorf("public port: %w", err)
	}
	n.public = publicServer(h, n.log)
	serve := func() error { return n.public.Serve(n.publicLn) }
	if n.pair != nil {
		n.public.TLSConfig = n.pair.config()
		serve = func() error { return n.public.ServeTLS(n.publicLn, "", "") }
	}
	if exposed(n.publicLn.Addr()) {
		n.log.Warn("the public port is reachable from other machines and there are no accounts: anyone who reaches it may pull, push and delete", "listen", n.publicLn.Addr().String())
	}
	n.log.Info("serving", "name", n.cfg.Name, "id", n.id(), "listen", n.publicLn.Addr().String(), "peers", n.peerAddr, "gossip", n.members.Address(), "data", n.cfg.Data)
	n.running.Go(func() {
		if err := serve(); !errors.Is(err, http.ErrServerClosed) {
			n.fail(fmt.Errorf("public port: %w", err))
		}
	})
	return nil
}

// fail ends the process; the first reason is the one told.
func (n *Node) fail(err error) {
	select {
	case n.fatal <- err:
	default:
	}
}

// Wait returns when ctx has ended and the node has stopped, or with what made
// it end by itself. One caller at a time.
func (n *Node) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		n.stopped()
		return nil
	case err := <-n.fatal:
		n.abandon()
		return err
	}
}

// lastGrace is what a node that cannot go on is given to stop in good order.
const lastGrace = 5 * time.Second

// abandon stops the node as far as that goes. A disk that hangs holds the
// goroutines that wait for it for ever: the process ends with them.
func (n *Node) abandon() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.stopped()
	}()
	select {
	case <-done:
	case <-time.After(lastGrace):
		n.log.Error("the node does not stop in good order; ending all the same")
	}
}

// AwaitReady returns when reads can be served.
func (n *Node) AwaitReady(ctx context.Context) error {
	for {
		if n.Ready() == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", n.Ready())
		case err := <-n.fatal:
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Stop ends the node in good order and returns when all of it has stopped.
func (n *Node) Stop() { n.stopped() }

// down is the order of stop, the reverse of up, for whatever part of up was
// reached: first no new clients, then those under way, then leadership to
// somebody else, then goodbye to gossip, so that others look elsewhere at once
// while voters, ring and ownership stay; last what the rest stood on.
func (n *Node) down() {
	ctx, cancel := context.WithTimeout(context.Background(), n.cfg.Drain)
	defer cancel()
	n.log.Info("stopping")
	switch {
	case n.public != nil:
		if err := n.public.Shutdown(ctx); err != nil {
			n.log.Warn("requests still under way are cut off", "after", n.cfg.Drain)
			_ = n.public.Close()
		}
	case n.publicLn != nil:
		_ = n.publicLn.Close()
	}
	n.stop()
	if n.catalog != nil {
		if err := n.catalog.StepDown(context.WithoutCancel(ctx)); err != nil {
			n.log.Warn("leadership was not handed over", "error", err)
		}
	}
	if n.members != nil {
		if err := n.members.Leave(context.WithoutCancel(ctx)); err != nil {
			n.log.Info("no goodbye to the other members; they will find out", "error", err)
		}
	}
	if n.blobs != nil {
		n.blobs.Close()
	}
	if n.catalog != nil {
		if err := n.catalog.Close(); err != nil {
			n.log.Warn("catalogue did not close well", "error", err)
		}
	}
	if n.peers != nil {
		_ = n.peers.Close()
	}
	if n.port != nil {
		n.port.Close()
	}
	n.running.Wait()
	if n.members != nil {
		_ = n.members.Close()
	}
	if n.disk != nil {
		_ = n.disk.Close()
	}
	if n.folder != nil {
		n.folder.close()
	}
	n.log.Info("stopped")
}

// Addr is the address of the public port.
func (n *Node) Addr() string { return n.publicLn.Addr().String() }

// GossipAddr is the address that --join of another node wants.
func (n *Node) GossipAddr() string { return n.members.Address() }

// ID is the node's UUID.
func (n *Node) ID() string { return n.id() }

// Ready implements api.Health: nil when reads can be served, else why not.
func (n *Node) Ready() error {
	if why := n.waiting.Load(); why != nil {
		return oci.ErrUnavailable.Because("not part of the mesh yet: %v", *why)
	}
	if err := n.catalog.Ready(); err != nil {
		return err
	}
	if len(n.members.Ring().Nodes()) == 0 { // the catalogue tells it a moment later
		return oci.ErrUnavailable.Because("the members of the mesh are not known yet")
	}
	return nil
}

// Writable implements api.Health: nil when pushes can be taken, else why not.
func (n *Node) Writable(ctx context.Context) error {
	if err := n.disk.Full(); err != nil {
		return err
	}
	return n.catalog.Writable(ctx)
}
