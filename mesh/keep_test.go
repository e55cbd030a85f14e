package mesh_test

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/mesh"
	"github.com/flotilla-registry/flotilla/mesh/ring"
)

// pinning is the Pins of the nodes of one zone.
type pinning struct {
	mu     sync.Mutex
	blobs  []digest.Digest
	broken bool
}

func (p *pinning) set(blobs ...digest.Digest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.blobs = blobs
}

// Pinned implements mesh.Pins.
func (p *pinning) Pinned(ds []digest.Digest) ([]bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broken {
		return nil, errors.New("no catalogue")
	}
	if len(p.blobs) == 0 {
		return nil, nil
	}
	pinned := make([]bool, len(ds))
	for i, d := range ds {
		pinned[i] = slices.Contains(p.blobs, d)
	}
	return pinned, nil
}

// pinned is a healing cluster whose zone "b" has pins, and whose caches may hold
// next to nothing.
func pinned(t *testing.T, zones ...string) (*cluster, *catalogue, *pinning) {
	pins := &pinning{}
	c, names := healing(t, option{replicas: 2, config: func(cfg *mesh.BlobsConfig) {
		cfg.CacheSize = 1
		if cfg.Zone == "b" {
			cfg.Pins = pins
		}
	}}, zones...)
	return c, names, pins
}

// keeper returns who keeps d in zone b, and who of the zone does not.
func (c *cluster) keeper(d digest.Digest) (keeper *peer, others []*peer) {
	c.t.Helper()
	k, ok := c.Ring().Keeper(d, "b")
	if !ok {
		c.t.Fatal("zone b has no keeper")
	}
	for _, n := range c.Ring().Nodes() {
		if n.Zone == "b" && n.ID != k.ID {
			others = append(others, c.peer(n.ID))
		}
	}
	return c.peer(k.ID), others
}

// TestPinnedStays: what a zone pins comes to its keeper and stays there, though
// the cache is full; the others of the zone give theirs up, and what is pinned
// no more goes.
func TestPinnedStays(t *testing.T) {
	c, names, pins := pinned(t, "a", "a", "-b", "-b")
	blobs := c.spread(t, names, 6)
	pins.set(blobs[:3]...)
	for i, d := range blobs {
		for _, p := range c.nodes[2:] {
			p.hold(t, bytesOf(uint64(i), 1000+100*i))
			p.age(t, d, time.Hour)
		}
	}
	lost := blobs[0]
	first, _ := c.keeper(lost)
	first.lose(t, lost)
	pass := func() {
		for range 2 { // a copy made in the first is vouched for in the second
			for _, p := range c.nodes {
				p.reconcile(t)
			}
		}
	}
	missing := 0
	names.looked = func([]digest.Digest) { // before the copy is made
		missing = max(missing, int(first.blobs.Health().Unkept))
	}
	first.reconcile(t)
	names.looked = nil
	if missing != 1 {
		t.Errorf("%d pinned blobs were missing at the keeper", missing)
	}
	if h := first.blobs.Health(); h.Unkept != 0 || h.Repaired != 1 {
		t.Errorf("health of a keeper that lacked a blob: %+v", h)
	}
	pass()
	for i, d := range blobs {
		keeper, others := c.keeper(d)
		if got := keeper.holds(d); got != (i < 3) {
			t.Errorf("the keeper holds blob %d: %v", i, got)
		}
		for _, p := range others {
			if p.holds(d) {
				t.Errorf("blob %d is held by more than the keeper", i)
			}
		}
	}
	sum, _ := c.nodes[0].blobs.MeshHealth(t.Context())
	if sum.Unkept != 0 || sum.Short != 0 || sum.Blobs != int64(len(blobs)) {
		t.Errorf("health at rest: %+v", sum)
	}
	pins.set(blobs[2])
	pass()
	for i, d := range blobs {
		if keeper, _ := c.keeper(d); keeper.holds(d) != (i == 2) {
			t.Errorf("with one pin left the keeper holds blob %d: %v", i, keeper.holds(d))
		}
	}
}

// TestKeeperVouches: in the zone that pins a blob, nobody gives up a copy before
// the keeper has one; elsewhere nobody waits for that.
func TestKeeperVouches(t *testing.T) {
	for _, row := range []struct {
		name         string
		spoil        func(c *cluster, pins *pinning, keeper *peer, d digest.Digest)
		goes, abroad bool
	}{
		{"the keeper holds it", func(*cluster, *pinning, *peer, digest.Digest) {}, true, true},
		{"the keeper lacks it", func(c *cluster, _ *pinning, keeper *peer, d digest.Digest) { keeper.lose(c.t, d) }, false, true},
		{"the keeper is down", func(c *cluster, _ *pinning, keeper *peer, _ digest.Digest) { c.setDown(keeper, true) }, false, true},
		{"nobody pins it", func(c *cluster, pins *pinning, keeper *peer, d digest.Digest) { pins.set(); keeper.lose(c.t, d) }, true, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			c, names, pins := pinned(t, "a", "a", "-a", "-b", "-b")
			content := bytesOf(1, 1000)
			d := digest.FromBytes(content)
			names.want(d, len(content))
			pins.set(d)
			keeper, others := c.keeper(d)
			for _, p := range c.nodes {
				p.hold(t, content)
				p.age(t, d, time.Hour)
			}
			row.spoil(c, pins, keeper, d)
			others[0].reconcile(t)
			c.nodes[2].reconcile(t)
			if got := !others[0].holds(d); got != row.goes {
				t.Errorf("it went in the zone: %v, want %v", got, row.goes)
			}
			if got := !c.nodes[2].holds(d); got != row.abroad {
				t.Errorf("it went elsewhere: %v, want %v", got, row.abroad)
			}
		})
	}
}

// TestKeeperLeaves: a keeper that is drained is to be missed until the next one
// has its copy, and one that is put out is replaced.
func TestKeeperLeaves(t *testing.T) {
	for _, row := range []struct {
		name  string
		leave func(n *ring.Node)
	}{
		{"it is drained", func(n *ring.Node) { n.Leaves = true }},
		{"it is put out", func(n *ring.Node) { n.Out, n.Down = true, true }},
	} {
		t.Run(row.name, func(t *testing.T) {
			c, names, pins := pinned(t, "a", "a", "-b", "-b")
			d := c.spread(t, names, 1)[0]
			pins.set(d)
			was, others := c.keeper(d)
			was.reconcile(t)
			if h := was.blobs.Health(); !was.holds(d) || h.OnlyHere != 0 {
				t.Fatalf("it keeps the blob: %v; %+v", was.holds(d), h)
			}
			was.reconcile(t)
			if h := was.blobs.Health(); h.OnlyHere != 1 {
				t.Errorf("what a keeper would be missed for: %+v", h)
			}
			c.seen()
			for _, p := range c.nodes {
				for due(p) {
				}
			}
			c.set(was, row.leave)
			c.seen()
			next := others[0]
			until(t, "the next of the zone has work to do", func() bool { return due(next) })
			was.reconcile(t)
			if h := was.blobs.Health(); h.OnlyHere != 1 || !was.holds(d) {
				t.Errorf("before the next one has its copy: %+v", h)
			}
			next.reconcile(t)
			if !next.holds(d) {
				t.Error("the next one has no copy")
			}
			was.reconcile(t)
			if h := was.blobs.Health(); h.OnlyHere != 0 {
				t.Errorf("when the next one has its copy: %+v", h)
			}
		})
	}
}

// TestKeep: what was named just now comes to the keeper, and to nobody who need
// not have it.
func TestKeep(t *testing.T) {
	c, names, pins := pinned(t, "a", "a", "-b", "-b")
	blobs := c.spread(t, names, 8)
	pins.set(blobs[:4]...)
	for _, p := range c.nodes {
		if err := p.blobs.Keep(t.Context(), blobs); err != nil {
			t.Error(err)
		}
	}
	for i, d := range blobs {
		keeper, others := c.keeper(d)
		if keeper.holds(d) != (i < 4) || others[0].holds(d) {
			t.Errorf("blob %d is held by its keeper: %v, and by the other: %v", i, keeper.holds(d), others[0].holds(d))
		}
	}
	// One that cannot be had is an error, and no hindrance to the others.
	gone, late := digest.FromString("gone"), bytesOf(99, 100)
	names.want(gone, 1)
	d := digest.FromBytes(late)
	names.want(d, len(late))
	c.nodes[0].hold(t, late)
	pins.set(gone, d)
	failed := 0
	for _, p := range c.nodes {
		if err := p.blobs.Keep(t.Context(), []digest.Digest{gone, d}); err != nil {
			failed++
		}
	}
	if keeper, _ := c.keeper(d); failed != 1 || !keeper.holds(d) {
		t.Errorf("%d failed, the other blob is held: %v", failed, keeper.holds(d))
	}
}

// TestPinsUnknown: while a node cannot tell what is pinned it gives up nothing
// and vouches for nothing.
func TestPinsUnknown(t *testing.T) {
	c, names, pins := pinned(t, "a", "a", "-b", "-b")
	content := bytesOf(1, 1000)
	d := digest.FromBytes(content)
	names.want(d, len(content))
	for _, p := range c.nodes {
		p.hold(t, content)
		p.age(t, d, time.Hour)
	}
	pins.mu.Lock()
	pins.broken = true
	pins.mu.Unlock()
	for _, p := range c.nodes[2:] {
		if err := p.blobs.Reconcile(t.Context()); err == nil {
			t.Error("a pass without pins came to an end")
		}
		if !p.holds(d) {
			t.Error("a copy went")
		}
		if err := p.blobs.Keep(t.Context(), []digest.Digest{d}); err == nil {
			t.Error("Keep went on")
		}
	}
}
