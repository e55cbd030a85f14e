package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/mesh"
	"github.com/flotilla-registry/flotilla/metadata"
)

// names is the catalogue as package mesh asks it: mesh and metadata know
// nothing of each other.
type names struct{ catalog *metadata.Catalog }

func (a names) Sync(ctx context.Context) (time.Time, error) { return a.catalog.SyncTime(ctx) }

func (a names) Wanted(after digest.Digest, n int) ([]mesh.Wanted, error) {
	list, err := a.catalog.Wanted(after, n)
	if err != nil {
		return nil, err
	}
	wanted := make([]mesh.Wanted, len(list))
	for i, w := range list {
		wanted[i] = mesh.Wanted(w)
	}
	return wanted, nil
}

func (a names) Referenced(ds []digest.Digest) ([]bool, error) { return a.catalog.Referenced(ds) }

func (a names) Lost(ctx context.Context, d digest.Digest, since time.Time) error {
	return a.catalog.RecordLost(ctx, d, since)
}

func (a names) Found(ctx context.Context, d digest.Digest) error {
	return a.catalog.RecordFound(ctx, d)
}

// errRemoved ends a node that is no member of its mesh any more.
var errRemoved = errors.New("this node was removed from its mesh: with an empty data folder it may come back, as a new node")

// reconcile is one round over the bytes, and over names where this node leads.
func (n *Node) reconcile(ctx context.Context) {
	expired, err := n.catalog.Expire(ctx)
	switch {
	case err != nil && ctx.Err() == nil:
		n.log.Warn("names that have outlived their use stay for now", "error", err)
	case expired.Links+expired.Manifests > 0:
		n.log.Info("names expired", "links", expired.Links, "manifests", expired.Manifests)
	}
	began := time.Now()
	if err := n.blobs.Reconcile(ctx); err != nil {
		if ctx.Err() == nil {
			n.log.Warn("the blobs were not looked at", "error", err)
		}
		return
	}
	n.leaveWhenDrained(ctx, began)
}

// leaveWhenDrained ends the membership of a node that is being drained, once a
// whole look that began then saw that every blob here, named or used lately, has its
// copies elsewhere.
func (n *Node) leaveWhenDrained(ctx context.Context, began time.Time) {
	m, err := n.member(n.id())
	if err != nil || !m.Draining {
		return
	}
	// Others make the copies, or a leader is found; then it is time to look
	// again. That is a walk over all that is held, which is to take a fifth of
	// the time at most.
	wait := min(max(n.pause(), 4*time.Since(began)), time.Minute)
	if !n.handedOver(began) {
		n.lookAgain.Reset(wait)
		return
	}
	// The drain may have been called off.
	err = n.catalog.Sync(ctx)
	if err == nil {
		if m, err = n.member(n.id()); err == nil && m.Draining {
			n.drained.Store(true)
			err = n.catalog.Remove(ctx, n.id())
		}
	}
	if err != nil && ctx.Err() == nil {
		n.log.Warn("drained, but not let go yet", "error", err)
		n.lookAgain.Reset(wait)
	}
}

// handedOver reports whether a look that began at since went over all that is
// held, with a current catalogue and under the membership of now, and found
// nothing that would be missed. Whatever came later was acknowledged only with
// copies elsewhere, since this node was known to leave throughout.
func (n *Node) handedOver(since time.Time) bool {
	h := n.blobs.Health()
	return !h.At.Before(since) && h.Synced && h.Leaves && !h.Owns && h.OnlyHere == 0 &&
		h.Membership == n.members.Ring().Fingerprint()
}

// outOfTouch is how long a member hears of no leader before it asks whether it
// is a member still: one that was removed while it was away hears of nothing.
const outOfTouch = time.Minute

// stillMember ends a node that was removed behind its back.
func (n *Node) stillMember(ctx context.Context) {
	raft := n.catalog.Status()
	if raft.State != "leader" && raft.LastContact >= outOfTouch && n.isRemoved(ctx) {
		n.fail(errRemoved)
	}
}

// isRemoved reports whether another member says that this node is none any
// more. Some answers will do: who cannot be certain says nothing.
func (n *Node) isRemoved(ctx context.Context) bool {
	const answers = 3
	got := 0
	for _, p := range n.members.Peers() {
		if got == answers || n.clusterID() == "" {
			break
		}
		if p.ID == n.id() || p.Cluster != n.clusterID() {
			continue
		}
		if hello, err := n.hello(ctx, p.ID); err == nil {
			if hello.Gone {
				return true
			}
			got++
		}
	}
	return false
}

// outlived ends a node whose mesh was recovered without it. Others of its epoch
// may be back too, and even be a majority of it: what they took from clients
// would be lost with them.
func (n *Node) outlived(epoch metadata.Epoch) {
	n.fail(fmt.Errorf("this mesh was recovered without what this node holds, and is of epoch %s now: recover this node too if it was to stay; else, with an empty data folder, it may come back as a new one", epoch))
}

// scrub re-reads what is stored. A disk that cannot be read is logged, not
// fatal: what it still serves is better than nothing.
func (n *Node) scrub(ctx context.Context) {
	if err := n.disk.Scrub(ctx); err != nil && ctx.Err() == nil {
		n.log.Error("stored blobs cannot be checked", "error", err)
	}
}

// damaged is told by the disk of a blob that it held until now.
func (n *Node) damaged(d digest.Digest) {
	n.log.Warn("a stored blob is damaged; another copy is fetched where this node owns one", "digest", d)
	if n.blobs != nil { // nothing is read before it is there
		n.blobs.Wake()
	}
}
