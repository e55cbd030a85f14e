package mesh_test

import (
	"context"
	"errors"
	"fmt"
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
		if tried := names.gaveUp > 0; names.isLost(d) || tried != (row.name == "it is pushed meanwhile") {
			t.Fatalf("%s: lost %v, %d tries to record it", row.name, names.isLost(d), names.gaveUp)
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
	for _, reader := range []int{0, 2} {
		repairInTheWay(t, reader)
	}
}

func repairInTheWay(t *testing.T, reader int) {
	const rate = 100_000
	c, names := healing(t, option{replicas: 2, config: func(cfg *mesh.BlobsConfig) { cfg.RepairRate = rate }}, "a", "a", "-a")
	p, content := c.nodes[0], bytesOf(1, 40*rate)
	c.nodes[1].hold(t, content)
	names.want(digest.FromBytes(content), len(content))
	c.nodes[1].setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method != http.MethodPost && r.Header.Get("Flotilla-Repair") == "" {
			http.Error(w, "ask the other", 500)
			return
		}
		next.ServeHTTP(w, r)
	})
	begun := time.Now()
	done := make(chan error, 1)
	go func() { done <- p.blobs.Reconcile(t.Context()) }()
	until(t, "it began", func() bool { return p.store.Stats().BytesWritten > rate/2 })
	if n, most := p.store.Stats().BytesWritten, int64(rate*(1+time.Since(begun).Seconds())); n > most {
		t.Errorf("%d bytes after %v", n, time.Since(begun))
	}
	c.nodes[reader].mustRead(t, content)
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
