package mesh_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/mesh"
	"github.com/flotilla-registry/flotilla/mesh/ring"
)

// catalogue is the Names of a whole cluster: what a replica of the real one
// answers, kept in a map.
type catalogue struct {
	mu     sync.Mutex
	clock  time.Time // of the log
	wanted map[digest.Digest]mesh.Wanted
	named  map[digest.Digest]time.Time // log time when each was named
	order  []digest.Digest             // wanted, sorted; nil after a change
	behind bool                        // cannot be proven current
	looked func([]digest.Digest)       // called after each look at what is referenced
}

func newCatalogue() *catalogue {
	return &catalogue{clock: time.Unix(1000, 0), wanted: map[digest.Digest]mesh.Wanted{}, named: map[digest.Digest]time.Time{}}
}

// want names d as a push does; refer as the manifest of a push that came
// before its blobs.
func (c *catalogue) want(d digest.Digest, size int) {
	c.refer(d)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wanted[d], c.order = mesh.Wanted{Digest: d, Size: int64(size)}, nil
}

func (c *catalogue) refer(d digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clock = c.clock.Add(time.Second)
	c.named[d] = c.clock
}

func (c *catalogue) unname(d digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.wanted, d)
	c.order = nil
	delete(c.named, d)
}

func (c *catalogue) isLost(d digest.Digest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wanted[d].Lost
}

func (c *catalogue) Sync(context.Context) (time.Time, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.behind {
		return time.Time{}, errors.New("no leader")
	}
	c.clock = c.clock.Add(time.Second)
	return c.clock, nil
}

func (c *catalogue) Wanted(after digest.Digest, n int) ([]mesh.Wanted, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.order) != len(c.wanted) {
		c.order = slices.Sorted(maps.Keys(c.wanted))
	}
	from, found := slices.BinarySearch(c.order, after)
	if found {
		from++
	}
	var page []mesh.Wanted
	for _, d := range c.order[from:min(from+n, len(c.order))] {
		page = append(page, c.wanted[d])
	}
	return page, nil
}

func (c *catalogue) Referenced(ds []digest.Digest) ([]bool, error) {
	c.mu.Lock()
	named := make([]bool, len(ds))
	for i, d := range ds {
		_, named[i] = c.named[d]
	}
	looked := c.looked
	c.mu.Unlock()
	if looked != nil {
		looked(ds)
	}
	return named, nil
}

func (c *catalogue) Lost(_ context.Context, d digest.Digest, since time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	w, wanted := c.wanted[d]
	if !wanted || !c.named[d].Before(since) {
		return errors.New("named since")
	}
	w.Lost = true
	c.wanted[d] = w
	return nil
}

func (c *catalogue) Found(_ context.Context, d digest.Digest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.wanted[d]
	w.Lost = false
	c.wanted[d] = w
	return nil
}

// healing is a cluster whose nodes run passes over one catalogue.
func healing(t testing.TB, opt option, zones ...string) (*cluster, *catalogue) {
	names, config := newCatalogue(), opt.config
	opt.config = func(cfg *mesh.BlobsConfig) {
		cfg.Names, cfg.Settle = names, time.Nanosecond
		if config != nil {
			config(cfg)
		}
	}
	return newCluster(t, opt, zones...), names
}

func (p *peer) reconcile(t *testing.T) {
	t.Helper()
	if err := p.blobs.Reconcile(t.Context()); err != nil {
		t.Fatalf("node %s: %v", p.id, err)
	}
}

// file returns where p keeps d.
func (p *peer) file(d digest.Digest) string {
	return filepath.Join(p.dir, "blobs", string(d.Algorithm()), d.Encoded()[:2], d.Encoded())
}

// age makes p's copy of d unused for so long.
func (p *peer) age(t *testing.T, d digest.Digest, ago time.Duration) {
	t.Helper()
	if err := os.Chtimes(p.file(d), time.Time{}, time.Now().Add(-ago)); err != nil {
		t.Fatal(err)
	}
}

// plant puts content among p's blobs as an earlier process left it.
func (p *peer) plant(t testing.TB, content []byte) {
	t.Helper()
	file := p.file(digest.FromBytes(content))
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, content, 0o600)); err != nil {
		t.Fatal(err)
	}
}

func (p *peer) lose(t testing.TB, d digest.Digest) {
	t.Helper()
	if err := os.Remove(p.file(d)); err != nil {
		t.Fatal(err)
	}
}

// settled checks that exactly the owners hold each blob, and others at most
// where surplus is allowed.
func (c *cluster) settled(t *testing.T, blobs []digest.Digest, surplus bool) {
	t.Helper()
	for _, d := range blobs {
		owners, holders := c.owners(d), c.holders(d)
		slices.Sort(holders)
		for _, id := range owners {
			if !slices.Contains(holders, id) {
				t.Errorf("owner %s lacks %s", id, d)
			}
		}
		if len(holders) > len(owners) && !surplus {
			t.Errorf("%s is held by %v and owned by %v", d, holders, owners)
		}
	}
}

// spread names n blobs and puts each at its owners.
func (c *cluster) spread(t *testing.T, names *catalogue, n int) (blobs []digest.Digest) {
	t.Helper()
	for i := range n {
		content := bytesOf(uint64(i), 1000+100*i)
		d := digest.FromBytes(content)
		for _, id := range c.owners(d) {
			c.peer(id).hold(t, content)
		}
		names.want(d, len(content))
		blobs = append(blobs, d)
	}
	return blobs
}

func due(p *peer) bool {
	select {
	case <-p.blobs.Due():
		return true
	default:
		return false
	}
}

// TestRepair: whatever is missing where it should be is there after one pass of
// each node, and what is left elsewhere stays: nobody is short of space.
func TestRepair(t *testing.T) {
	const n = 20
	for _, row := range []struct {
		name  string
		spoil func(t *testing.T, c *cluster, blobs []digest.Digest)
	}{
		{"nothing is missing", func(*testing.T, *cluster, []digest.Digest) {}},
		{"a node is gone for good", func(t *testing.T, c *cluster, _ []digest.Digest) {
			gone := c.nodes[1]
			gone.kill()
			c.change(func(m []ring.Node) []ring.Node { return slices.Delete(m, 1, 2) })
			c.nodes = slices.Delete(c.nodes, 1, 2)
		}},
		{"a node is put out", func(t *testing.T, c *cluster, _ []digest.Digest) {
			c.nodes[1].kill()
			c.set(c.nodes[1], func(n *ring.Node) { n.Weight, n.Down = 0, true })
			c.nodes = slices.Delete(c.nodes, 1, 2)
		}},
		{"a disk is wiped", func(t *testing.T, c *cluster, blobs []digest.Digest) {
			for _, d := range blobs {
				if c.nodes[2].holds(d) {
					c.nodes[2].lose(t, d)
				}
			}
		}},
		{"a file is deleted", func(t *testing.T, c *cluster, blobs []digest.Digest) {
			c.peer(c.owners(blobs[3])[0]).lose(t, blobs[3])
		}},
		{"a node joins", func(t *testing.T, c *cluster, _ []digest.Digest) {
			c.set(c.nodes[3], func(n *ring.Node) { n.Weight = 1 })
		}},
		{"a node drains", func(t *testing.T, c *cluster, _ []digest.Digest) {
			c.set(c.nodes[0], func(n *ring.Node) { n.Weight = 0 })
		}},
		{"a weight grows", func(t *testing.T, c *cluster, _ []digest.Digest) {
			c.set(c.nodes[0], func(n *ring.Node) { n.Weight = 20 })
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c, names := healing(t, option{replicas: 2}, "a", "b", "a", "-b")
			blobs := c.spread(t, names, n)
			row.spoil(t, c, blobs)
			for _, p := range c.nodes {
				p.reconcile(t)
			}
			c.settled(t, blobs, true)
			var wrote int64
			for _, p := range c.nodes {
				if h := p.blobs.Health(); h.Failed != 0 || h.BytesToMove != 0 || h.TimeToGo != 0 {
					t.Errorf("health after repair: %+v", h)
				}
				wrote += p.blobs.Stats().Repaired
			}
			if idle := row.name == "nothing is missing"; idle != (wrote == 0) {
				t.Errorf("%d copies made", wrote)
			}
			for _, p := range c.nodes { // a second look
				p.reconcile(t)
			}
			sum, _ := c.nodes[0].blobs.MeshHealth(t.Context())
			if sum.Blobs != n || sum.Short != 0 || sum.OneZone != 0 || sum.Lost != 0 || sum.OnlyHere != 0 || sum.Repaired != 0 {
				t.Errorf("health at rest: %+v", sum)
			}
		})
	}
}

// TestAllAtOnce: passes at every node at the same time do no harm, and come to
// the same end.
func TestAllAtOnce(t *testing.T) {
	c, names := healing(t, option{replicas: 2, config: func(cfg *mesh.BlobsConfig) { cfg.CacheSize = 1 }}, "a", "a", "a", "-a", "-a")
	blobs := c.spread(t, names, 40)
	c.set(c.nodes[3], func(n *ring.Node) { n.Weight = 1 })
	c.set(c.nodes[0], func(n *ring.Node) { n.Weight = 0 })
	for range 3 {
		var passes sync.WaitGroup
		for _, p := range c.nodes {
			passes.Go(func() { p.reconcile(t) })
		}
		passes.Wait()
	}
	c.settled(t, blobs, false)
}

// TestSurplusWaitsForOwners: a copy that need not be here goes only once every
// owner vouches for its own, and only where it is in the way.
func TestSurplusWaitsForOwners(t *testing.T) {
	for _, row := range []struct {
		name  string
		spoil func(c *cluster, names *catalogue, owner *peer, content []byte)
		goes  bool
	}{
		{"all owners hold it", func(*cluster, *catalogue, *peer, []byte) {}, true},
		{"an owner lacks it", func(c *cluster, _ *catalogue, owner *peer, content []byte) {
			owner.lose(c.t, digest.FromBytes(content))
		}, false},
		{"an owner is down", func(c *cluster, _ *catalogue, owner *peer, _ []byte) { c.setDown(owner, true) }, false},
		{"an owner does not answer", func(_ *cluster, _ *catalogue, owner *peer, _ []byte) { owner.kill() }, false},
		{"an owner is of another release", func(_ *cluster, _ *catalogue, owner *peer, _ []byte) {
			owner.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) { http.NotFound(w, r) })
		}, false},
		{"an owner answers nonsense", func(_ *cluster, _ *catalogue, owner *peer, _ []byte) {
			owner.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				_, _ = w.Write(bytes.Repeat([]byte{0xff}, 1000))
			})
		}, false},
		{"the catalogue may be behind", func(_ *cluster, names *catalogue, _ *peer, _ []byte) { names.behind = true }, false},
		{"the membership changes on the way", func(c *cluster, _ *catalogue, owner *peer, _ []byte) {
			owner.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.URL.Query().Has("under") {
					c.set(c.nodes[3], func(n *ring.Node) { n.Weight = 5 })
				}
				next.ServeHTTP(w, r)
			})
		}, false},
		{"the membership changes behind the answer", func(c *cluster, _ *catalogue, owner *peer, _ []byte) {
			owner.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				next.ServeHTTP(w, r)
				if r.URL.Query().Has("under") {
					c.set(c.nodes[3], func(n *ring.Node) { n.Weight = 5 })
				}
			})
		}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			c, names := healing(t, option{replicas: 2, config: func(cfg *mesh.BlobsConfig) { cfg.CacheSize = 100 }}, "-a", "a", "a", "-a")
			content := bytesOf(1, 1000)
			d := digest.FromBytes(content)
			names.want(d, len(content))
			for _, p := range c.nodes[:3] {
				p.hold(t, content)
				p.age(t, d, time.Hour)
			}
			before := c.Ring().Fingerprint()
			row.spoil(c, names, c.nodes[2], content)
			for due(c.nodes[0]) {
			}
			c.nodes[0].reconcile(t)
			if got := !c.nodes[0].holds(d); got != row.goes {
				t.Fatalf("went: %v, want %v", got, row.goes)
			}
			if moved := c.Ring().Fingerprint() != before; moved && !due(c.nodes[0]) {
				t.Error("no new pass is due")
			}
			info, err := os.Stat(c.nodes[1].file(d))
			if err != nil {
				t.Fatal(err)
			}
			if row.goes && time.Since(info.ModTime()) > time.Minute {
				t.Error("who vouched for its copy did not mark it used")
			}
		})
	}
}

// TestEvictionOrder: the least recently used copies go, and no more of them
// than needed; an owner's never.
func TestEvictionOrder(t *testing.T) {
	c, names := healing(t, option{replicas: 1, config: func(cfg *mesh.BlobsConfig) { cfg.CacheSize = 2500 }}, "-a", "a")
	cache, owner := c.nodes[0], c.nodes[1]
	var blobs []digest.Digest
	for i := range uint64(5) {
		content := bytesOf(i, 1000)
		d := digest.FromBytes(content)
		blobs = append(blobs, d)
		names.want(d, 1000)
		for _, p := range c.nodes {
			p.hold(t, content)
			p.age(t, d, time.Duration(1+(i*2)%5)*time.Hour) // 1, 3, 5, 2, 4
		}
	}
	cache.reconcile(t)
	owner.reconcile(t)
	var left []int
	for i, d := range blobs {
		if cache.holds(d) {
			left = append(left, i)
		}
		if !owner.holds(d) {
			t.Error("the owner gave up its copy")
		}
	}
	if !slices.Equal(left, []int{0, 3}) {
		t.Errorf("blobs %v are left, want the two used last", left)
	}
	if h := cache.blobs.Health(); h.Evicted != 3 || h.CacheBlobs != 2 || h.CacheBytes != 2000 || h.HeldBytes != 2000 {
		t.Errorf("health %+v", h)
	}
	if s := cache.blobs.Stats(); s.Evicted != 3 || s.EvictedBytes != 3000 || s.Dropped != 0 {
		t.Errorf("stats %+v", s)
	}
}

// TestFullDiskEvicts: without a ceiling copies stay until space runs out.
func TestFullDiskEvicts(t *testing.T) {
	for _, full := range [][]int{nil, {0}} {
		c, names := healing(t, option{replicas: 1, full: full}, "-a", "a")
		content := bytesOf(1, 1000)
		d := digest.FromBytes(content)
		names.want(d, 1000)
		for _, p := range c.nodes {
			p.plant(t, content)
			p.age(t, d, time.Hour)
		}
		c.nodes[0].reconcile(t)
		if gone := !c.nodes[0].holds(d); gone != (full != nil) {
			t.Errorf("disks %v are full: went %v", full, gone)
		}
	}
}

// TestGarbage: bytes go when nothing names them, nobody used them for the
// grace, and nothing speaks for doubt.
func TestGarbage(t *testing.T) {
	const old = 25 * time.Hour
	for _, row := range []struct {
		name   string
		age    time.Duration
		spoil  func(c *cluster, names *catalogue, d digest.Digest)
		settle time.Duration
		goes   bool
	}{
		{"old", old, nil, 0, true},
		{"young", 23 * time.Hour, nil, 0, false},
		{"referenced", old, func(_ *cluster, n *catalogue, d digest.Digest) { n.refer(d) }, 0, false},
		{"wanted", old, func(_ *cluster, n *catalogue, d digest.Digest) { n.want(d, 1000) }, 0, false},
		{"the catalogue may be behind", old, func(_ *cluster, n *catalogue, _ digest.Digest) { n.behind = true }, 0, false},
		{"just after the start", old, nil, time.Hour, false},
		{"members are down", old, func(c *cluster, _ *catalogue, _ digest.Digest) { c.setDown(c.nodes[1], true) }, 0, true},
		{"offered again under the pass", old, func(c *cluster, n *catalogue, d digest.Digest) {
			n.looked = func(ds []digest.Digest) {
				if slices.Contains(ds, d) {
					c.nodes[0].store.Touch(d)
				}
			}
		}, 0, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			c, names := healing(t, option{replicas: 2, config: func(cfg *mesh.BlobsConfig) {
				if row.settle > 0 {
					cfg.Settle = row.settle
				}
			}}, "a", "a")
			p, content := c.nodes[0], bytesOf(1, 1000)
			d := digest.FromBytes(content)
			p.hold(t, content)
			p.age(t, d, row.age)
			if row.spoil != nil {
				row.spoil(c, names, d)
			}
			p.reconcile(t)
			if gone := !p.holds(d); gone != row.goes {
				t.Fatalf("went: %v, want %v", gone, row.goes)
			}
			if s := p.blobs.Stats(); row.goes && (s.Dropped != 1 || s.DroppedBytes != 1000 || p.blobs.Health().HeldBlobs != 0) {
				t.Errorf("stats %+v, health %+v", s, p.blobs.Health())
			}
		})
	}
}

// TestRehearsal: the list of garbage is what a pass then drops, here and asked
// of another node, and makes nothing go.
func TestRehearsal(t *testing.T) {
	c, names := healing(t, option{replicas: 1}, "a", "a")
	p := c.nodes[0]
	var old []digest.Digest
	for i := range uint64(6) {
		content := bytesOf(i, 1000)
		d := digest.FromBytes(content)
		p.hold(t, content)
		if i%2 == 0 {
			p.age(t, d, 30*time.Hour)
			old = append(old, d)
		}
	}
	kept := digest.FromString("named")
	p.hold(t, []byte("named"))
	p.age(t, kept, 30*time.Hour)
	names.want(kept, 5)
	slices.Sort(old)
	for _, asker := range c.nodes {
		for _, n := range []int{2, 10} {
			list, err := asker.blobs.GarbageOf(t.Context(), p.id, n)
			if err != nil {
				t.Fatal(err)
			}
			var got []digest.Digest
			for _, x := range list {
				got = append(got, x.Digest)
				if x.Size != 1000 || time.Since(x.Used) < 29*time.Hour || x.Why == "" {
					t.Errorf("candidate %+v", x)
				}
			}
			if want := old[:min(n, len(old))]; !slices.Equal(got, want) {
				t.Errorf("asked for %d: %v, want %v", n, got, want)
			}
		}
	}
	for _, d := range old {
		if !p.holds(d) {
			t.Error("a rehearsal dropped something")
		}
	}
	names.behind = true
	if _, err := p.blobs.Garbage(t.Context(), 10); err == nil {
		t.Error("a list that may be wrong was given")
	}
	names.behind = false
	p.reconcile(t)
	for _, d := range old {
		if p.holds(d) {
			t.Error("what was listed stays")
		}
	}
}

// TestLostAndFound: a blob is recorded as lost once every member denies having
// it, none being down, and as found once somebody has it again.
func TestLostAndFound(t *testing.T) {
	c, names := healing(t, option{replicas: 2}, "a", "a", "-b", "-b")
	content, d := contentFor(t, 1000, func(d digest.Digest) bool { return c.Ring().Owners(d)[0].ID == uuid(0) })
	names.want(d, len(content))
	first, second, far := c.nodes[0], c.nodes[1], c.nodes[3]
	pass := func() {
		for _, p := range c.nodes[:3] {
			p.reconcile(t)
		}
	}
	for _, row := range []struct {
		name        string
		spoil, heal func()
	}{
		{"one is down", func() { c.setDown(far, true) }, func() { c.setDown(far, false) }},
		{"one does not answer", func() {
			far.setTamper(func(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) })
		}, func() { far.setTamper(nil) }},
		{"one is in trouble", func() {
			far.setTamper(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { http.Error(w, "broken", 500) })
		}, func() { far.setTamper(nil) }},
		{"the catalogue may be behind", func() { names.behind = true }, func() { names.behind = false }},
		{"one has a copy that it does not vouch for", func() {
			far.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.Method == http.MethodPost {
					_, _ = w.Write([]byte{0})
					return
				}
				next.ServeHTTP(w, r)
			})
			far.hold(t, content)
		}, func() {
			far.setTamper(nil)
			for _, p := range c.nodes {
				if p.holds(d) {
					p.lose(t, d)
				}
			}
		}},
		{"it is pushed meanwhile", func() {
			second.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				next.ServeHTTP(w, r)
				names.want(d, len(content))
			})
		}, func() { second.setTamper(nil) }},
	} {
		row.spoil()
		pass()
		if names.isLost(d) {
			t.Fatalf("lost although %s", row.name)
		}
		row.heal()
		until(t, "nobody is avoided", func() bool {
			_, err := first.read(t.Context(), digest.FromString("no such"))
			return err != nil && len(c.holders(d)) == 0
		})
	}
	until(t, "it is lost", func() bool { pass(); return names.isLost(d) })
	pass()
	if h := first.blobs.Health(); h.Lost != 1 || h.Short != 0 || h.BytesToMove != 0 {
		t.Errorf("health %+v", h)
	}
	far.hold(t, content)
	pass()
	if names.isLost(d) {
		t.Error("still lost")
	}
	c.settled(t, []digest.Digest{d}, true)
}

// TestFoundWhereItIs: a copy that comes back where it should be is found.
func TestFoundWhereItIs(t *testing.T) {
	c, names := healing(t, option{replicas: 1}, "a")
	content := bytesOf(1, 1000)
	d := digest.FromBytes(content)
	names.want(d, len(content))
	c.nodes[0].reconcile(t)
	if !names.isLost(d) {
		t.Fatal("a mesh of one knows that it has nothing")
	}
	c.nodes[0].hold(t, content)
	c.nodes[0].reconcile(t)
	if names.isLost(d) {
		t.Error("still lost")
	}
}

// TestSend: what the owners cannot know of is sent to them, by one holder.
func TestSend(t *testing.T) {
	c, names := healing(t, option{replicas: 2}, "a", "a", "-a", "-a")
	content := bytesOf(1, 1000)
	d := digest.FromBytes(content)
	names.refer(d)
	c.nodes[2].hold(t, content)
	c.nodes[3].hold(t, content)
	for _, p := range []*peer{c.nodes[0], c.nodes[3], c.nodes[1]} {
		p.reconcile(t)
		if n := len(c.holders(d)); n != 2 {
			t.Fatalf("%d copies after the pass of node %s", n, p.id)
		}
	}
	c.nodes[2].reconcile(t)
	c.settled(t, []digest.Digest{d}, true)
	c.nodes[0].lose(t, d)
	c.nodes[2].reconcile(t)
	if c.nodes[0].holds(d) {
		t.Error("an owner holds it and ranks before")
	}
	c.nodes[1].reconcile(t)
	c.settled(t, []digest.Digest{d}, true)
}

// TestHealth counts what is amiss before anything is done about it: copies
// cannot be made, since every transfer fails.
func TestHealth(t *testing.T) {
	c, names := healing(t, option{replicas: 2}, "a", "a", "b", "b")
	blobs := c.spread(t, names, 40)
	owner := func(i, rank int) *peer { return c.peer(c.Ring().Owners(blobs[i])[rank].ID) }
	owner(0, 1).lose(t, blobs[0])
	owner(1, 0).lose(t, blobs[1])
	for rank := range 2 {
		owner(2, rank).lose(t, blobs[2])
	}
	for _, p := range c.nodes {
		p.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Method == http.MethodGet && r.URL.Path != "/blobs/health" {
				http.Error(w, "broken", 500)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	if sum, silent := c.nodes[0].blobs.MeshHealth(t.Context()); len(silent) != 4 || sum != (mesh.Health{}) {
		t.Errorf("before any pass: %+v, silent %v", sum, silent)
	}
	for _, p := range c.nodes {
		p.reconcile(t)
	}
	const size = 1000 + 1100 // of what somebody has
	sum, silent := c.nodes[3].blobs.MeshHealth(t.Context())
	if sum.Blobs != 40 || sum.Short != 3 || sum.Lost != 0 || sum.BytesToMove != size || sum.TimeToGo == 0 || sum.HeldBlobs != 76 || sum.Failed == 0 || len(silent) != 0 {
		t.Errorf("sum %+v, silent %v", sum, silent)
	}
	if sum.Membership != c.Ring().Fingerprint() || sum.At.IsZero() || !sum.Owns {
		t.Errorf("sum %+v", sum)
	}

	// One down: all that it owns is short of a copy.
	c.setDown(c.nodes[1], true)
	owned := map[digest.Digest]bool{blobs[0]: true, blobs[1]: true, blobs[2]: true}
	for _, d := range blobs {
		if slices.Contains(c.owners(d), c.nodes[1].id) {
			owned[d] = true
		}
	}
	for _, p := range slices.Delete(slices.Clone(c.nodes), 1, 2) {
		p.reconcile(t)
	}
	sum, silent = c.nodes[3].blobs.MeshHealth(t.Context())
	if sum.Blobs != 40 || sum.Short != int64(len(owned)) || !slices.Equal(silent, []string{c.nodes[1].id}) {
		t.Errorf("sum %+v, silent %v; want %d short", sum, silent, len(owned))
	}
}

// TestOneZone: enough copies of a kind are still one site's.
func TestOneZone(t *testing.T) {
	c, names := healing(t, option{replicas: 3}, "a", "a", "b")
	blobs := c.spread(t, names, 3)
	c.nodes[2].lose(t, blobs[1])
	c.setDown(c.nodes[2], true)
	for _, p := range c.nodes[:2] {
		p.reconcile(t)
	}
	if sum, _ := c.nodes[0].blobs.MeshHealth(t.Context()); sum.OneZone != 3 || sum.Short != 3 {
		t.Errorf("sum %+v", sum)
	}
}

// TestDrain: what only a draining node holds is counted there until its new
// owners have it.
func TestDrain(t *testing.T) {
	c, names := healing(t, option{replicas: 1}, "a", "a", "a")
	blobs := c.spread(t, names, 30)
	p := c.nodes[0]
	mine := int64(0)
	for _, d := range blobs {
		if p.holds(d) {
			mine++
		}
	}
	c.set(p, func(n *ring.Node) { n.Weight = 0 })
	check := func(want int64) {
		t.Helper()
		p.reconcile(t)
		h, err := c.nodes[2].blobs.HealthOf(t.Context(), p.id)
		if err != nil || h.Owns || h.OnlyHere != want {
			t.Errorf("health %+v, %v; want %d blobs only here", h, err, want)
		}
	}
	check(mine)
	c.nodes[1].reconcile(t)
	c.nodes[2].reconcile(t)
	check(0)
	c.setDown(c.nodes[1], true) // nobody vouches for what it has
	only := int64(0)
	for _, d := range blobs {
		if p.holds(d) && c.owners(d)[0] == c.nodes[1].id {
			only++
		}
	}
	check(only)
	c.settled(t, blobs, true)
}

// TestConfirmations: whoever asks under another membership, or one who does
// not own the blob, hears no; and only a yes marks the copy used.
func TestConfirmations(t *testing.T) {
	c, _ := healing(t, option{replicas: 1}, "a", "-a")
	content := bytesOf(1, 1000)
	d := digest.FromBytes(content)
	client := c.client()
	defer client.CloseIdleConnections()
	sum, err := hex.DecodeString(d.Encoded())
	if err != nil {
		t.Fatal(err)
	}
	question := append([]byte{1}, sum...)
	for _, row := range []struct {
		name   string
		to     int
		query  string
		yes    bool
		marked bool
	}{
		{"the owner, asked what it has", 0, "", true, false},
		{"the owner", 0, "?under=" + c.Ring().Fingerprint(), true, true},
		{"the owner, under another membership", 0, "?under=ffff", false, false},
		{"another, asked what it has", 1, "", true, false},
		{"another", 1, "?under=" + c.Ring().Fingerprint(), false, false},
	} {
		p := c.nodes[row.to]
		p.hold(t, content)
		p.age(t, d, time.Hour)
		resp, err := client.Post("https://"+p.id+"/blobs/holdings"+row.query, "", bytes.NewReader(question))
		if err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, 2)
		n, _ := resp.Body.Read(answer)
		_ = resp.Body.Close()
		info, err := os.Stat(p.file(d))
		if err != nil {
			t.Fatal(err)
		}
		if n != 1 || (answer[0] == 1) != row.yes || (time.Since(info.ModTime()) < time.Minute) != row.marked {
			t.Errorf("%s: answer %v, used %v ago", row.name, answer[:n], time.Since(info.ModTime()))
		}
	}
}

// TestStopped: a pass ends with its context, wherever it is.
func TestStopped(t *testing.T) {
	c, names := healing(t, option{replicas: 2}, "a", "a")
	p := c.nodes[0]
	for i := range uint64(3) {
		p.hold(t, bytesOf(i, 1000))
	}
	ctx, cancel := context.WithCancel(t.Context())
	names.looked = func([]digest.Digest) { cancel() }
	if err := p.blobs.Reconcile(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if h := p.blobs.Health(); !h.At.IsZero() {
		t.Errorf("half a look counts as one: %+v", h)
	}
}

// TestRepairLeavesTheLine: repairs keep to their rate, in the middle of a blob
// too; a client that wants the same blob does not.
func TestRepairLeavesTheLine(t *testing.T) {
	const rate = 100_000
	c, names := healing(t, option{replicas: 2, config: func(cfg *mesh.BlobsConfig) { cfg.RepairRate = rate }}, "a", "a")
	p, content := c.nodes[0], bytesOf(1, 40*rate)
	c.nodes[1].hold(t, content)
	names.want(digest.FromBytes(content), len(content))
	begun := time.Now()
	done := make(chan error, 1)
	go func() { done <- p.blobs.Reconcile(t.Context()) }()
	until(t, "it began", func() bool { return p.store.Stats().BytesWritten > rate/2 })
	if n, most := p.store.Stats().BytesWritten, int64(rate*(1+time.Since(begun).Seconds())); n > most {
		t.Errorf("%d bytes after %v", n, time.Since(begun))
	}
	p.mustRead(t, content)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if h := p.blobs.Health(); h.Repaired != 1 || h.BytesToMove != 0 {
		t.Errorf("health %+v", h)
	}
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("a client waited %v for a repair", took)
	}
}

// TestRepairNeedsSpace: what does not fit stays missing here, is counted, and
// keeps nothing else from being repaired elsewhere.
func TestRepairNeedsSpace(t *testing.T) {
	c, names := healing(t, option{replicas: 2, full: []int{0}}, "a", "a")
	for i := range uint64(3) {
		content := bytesOf(i, 1000)
		c.nodes[1].hold(t, content)
		names.want(digest.FromBytes(content), len(content))
	}
	c.nodes[0].reconcile(t)
	if h := c.nodes[0].blobs.Health(); h.Failed != 3 || h.Repaired != 0 || h.BytesToMove != 3000 {
		t.Errorf("health %+v", h)
	}
}

// TestNamesGoMeanwhile: what nothing names any more when its turn comes is not
// fetched, and not lost.
func TestNamesGoMeanwhile(t *testing.T) {
	c, names := healing(t, option{replicas: 2}, "a", "a")
	p, content := c.nodes[0], bytesOf(1, 1000)
	nowhere := digest.FromString("nowhere")
	d := digest.FromBytes(content)
	c.nodes[1].hold(t, content)
	names.want(d, len(content))
	names.want(nowhere, 7)
	c.nodes[1].setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		names.unname(d)
		names.unname(nowhere)
		next.ServeHTTP(w, r)
	})
	p.reconcile(t)
	if p.holds(d) || names.isLost(nowhere) || c.nodes[1].answers("GET", nowhere, 404) != 0 {
		t.Error("a pass acts on names that are gone")
	}
}

// TestDue: a pass is due at the start, when the membership changes, when a
// member is back and when a push comes out short; not when a member goes down.
func TestDue(t *testing.T) {
	c, _ := healing(t, option{replicas: 2}, "a", "a", "a")
	p, other := c.nodes[0], c.nodes[1]
	wait := func(why string) {
		t.Helper()
		select {
		case <-p.blobs.Due():
		case <-time.After(20 * time.Second):
			t.Fatalf("no pass is due: %s", why)
		}
	}
	wait("the node started")
	c.set(other, func(n *ring.Node) { n.Weight = 7 })
	wait("a weight changed")
	c.setDown(other, true)
	c.seen()
	if due(p) {
		t.Error("due since a member went down")
	}
	c.setDown(other, false)
	wait("a member is back")
	c.set(other, func(n *ring.Node) { n.Weight = 8 })
	wait("a weight changed again")
	for _, o := range c.nodes[1:] {
		o.setTamper(func(w http.ResponseWriter, r *http.Request, _ http.Handler) { http.Error(w, "broken", 500) })
	}
	_ = p.push(t.Context(), bytesOf(1, 1000)) // too few copies
	wait("a push came out short")
	if due(p) {
		t.Error("due twice for one reason")
	}
}

// TestNudge: a member that lacks what it owns is told, and told again only
// after a while.
func TestNudge(t *testing.T) {
	c, names := healing(t, option{replicas: 2}, "a", "a")
	blobs := c.spread(t, names, 4)
	p := c.nodes[1]
	for _, d := range blobs {
		p.lose(t, d)
	}
	<-p.blobs.Due() // the start
	for i := range 2 {
		c.nodes[0].reconcile(t)
		if got := due(p); got != (i == 0) {
			t.Errorf("pass %d: due %v", i, got)
		}
	}
}

// BenchmarkPass is a pass over 100,000 blobs that are where they should be, at
// one of three nodes that all hold them: what a pass costs when there is
// nothing to do.
func BenchmarkPass(b *testing.B) {
	const n = 100_000
	c, names := healing(b, option{replicas: 3}, "a", "a", "a")
	names.wanted = make(map[digest.Digest]mesh.Wanted, n)
	for i := range n {
		d := digest.FromString(fmt.Sprint(i))
		names.wanted[d] = mesh.Wanted{Digest: d, Size: 1}
		names.order = append(names.order, d)
		first := c.nodes[0].file(d)
		if err := errors.Join(os.MkdirAll(filepath.Dir(first), 0o700), os.WriteFile(first, []byte{'x'}, 0o600)); err != nil {
			b.Fatal(err)
		}
		for _, p := range c.nodes[1:] {
			if err := errors.Join(os.MkdirAll(filepath.Dir(p.file(d)), 0o700), os.Link(first, p.file(d))); err != nil {
				b.Fatal(err)
			}
		}
	}
	slices.Sort(names.order)
	for b.Loop() {
		if err := c.nodes[0].blobs.Reconcile(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	if h := c.nodes[0].blobs.Health(); h.HeldBlobs != n || h.Short != 0 || h.Blobs < n/4 {
		b.Fatalf("health %+v", h)
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/n, "µs/blob")
}
