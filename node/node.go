package node

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotilla-registry/flotilla/api/auth"
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
	pins    *pins
	blobs   *mesh.Blobs
	metrics *metrics

	publicLn  net.Listener
	pair      *keyPair       // nil: no TLS on the public port
	clientCAs *x509.CertPool // nil: no client shows a certificate
	public    *http.Server
	auth      *auth.Authority
	auditFile *os.File // nil: the audit log is no file
	port      *peerPort
	peers     *http.Server

	entered bool                  // it was seen among the members; of onMembers alone
	hints   sync.Map              // UUID -> address that the log or an admission named
	waiting atomic.Pointer[error] // why this node is not part of its mesh yet
	drained atomic.Bool           // this node asked to be let go

	scrubDue  chan struct{} // an operator wants a round now
	looked    meshLook
	locating  chan struct{} // a token for each image being located
	pinned    pinsLook
	lookAgain *time.Timer // makes a pass due while this node is being drained

	fatal   chan error         // what ends the process
	stop    context.CancelFunc // ends the goroutines below
	running sync.WaitGroup     // the goroutines that this file starts
	stopped func()             // the way down, once
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
	n := &Node{
		cfg: cfg, log: cfg.Log, fatal: make(chan error, 1), scrubDue: make(chan struct{}, 1),
		locating: make(chan struct{}, imagesAtOnce), pinned: newPinsLook(),
	}
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
	n.pins = newPins(n.cfg.Zone, n.log)
	if n.catalog, err = n.openCatalog(); err != nil {
		return err
	}
	n.pins.catalog = n.catalog
	if n.blobs, err = n.openBlobs(); err != nil {
		return err
	}
	n.lookAgain = time.AfterFunc(time.Hour, n.blobs.Wake)
	n.lookAgain.Stop()
	n.metrics = newMetrics(n)
	n.servePeers()
	if err := n.servePublic(); err != nil {
		return err
	}
	n.running.Go(func() {
		if err := n.enterMesh(life); err != nil && life.Err() == nil {
			n.fail(err)
			return
		}
		n.sayWhoMay(life)
	})
	n.running.Go(func() {
		if err := n.disk.MakeShards(life); err != nil && life.Err() == nil {
			n.log.Warn("the first pushes will make folders as they go", "error", err)
		}
	})
	n.running.Go(func() { n.pins.follow(life, n.blobs.Wake) })

	n.running.Go(func() { n.pins.fetch(life, n.blobs) })
	n.runPasses(life)
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
		if errors.Is(err, errRemoved) && n.drained.Load() {
			n.log.Info("drained: this node has left the mesh")
			n.stopped()
			return nil
		}
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
		if n.lookAgain != nil {
			n.lookAgain.Stop()
		}
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
	if n.auditFile != nil {
		_ = n.auditFile.Close()
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
	if len(n.members.Ring().Nodes()) == 0 { // onMembers comes a moment after the entry
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
