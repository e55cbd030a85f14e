package mesh_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/mesh"
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
	gaveUp int                         // calls of Lost
	looked func([]digest.Digest)       // called after each look at what is referenced
}

func newCatalogue() *catalogue {
	return &catalogue{clock: time.Now(), wanted: map[digest.Digest]mesh.Wanted{}, named: map[digest.Digest]time.Time{}}
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
	c.gaveUp++
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
