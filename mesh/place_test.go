package mesh_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh"
	"github.com/flotilla-registry/flotilla/mesh/ring"
)

func (p *peer) push(ctx context.Context, content []byte) error {
	return p.blobs.Put(ctx, digest.FromBytes(content), int64(len(content)), bytes.NewReader(content))
}

func (c *cluster) holders(d digest.Digest) (ids []string) {
	for _, p := range c.nodes {
		if p.holds(d) {
			ids = append(ids, p.id)
		}
	}
	return ids
}

func (c *cluster) owners(d digest.Digest) (ids []string) {
	for _, n := range c.Ring().Owners(d) {
		ids = append(ids, n.ID)
	}
	slices.Sort(ids)
	return ids
}

// TestPlace: what is pushed anywhere ends up with all owners.
func TestPlace(t *testing.T) {
	for _, row := range []struct {
		name     string
		replicas int
		zones    []string
	}{
		{"alone", 3, []string{"a"}},
		{"two", 3, []string{"a", "a"}},
		{"more than replicas", 2, []string{"a", "a", "b", "b", "-a"}},
		{"pushed where no weight is", 1, []string{"-a", "a"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newCluster(t, option{replicas: row.replicas}, row.zones...)
			for i, size := range []int{0, 1000, 300_000} {
				content := bytesOf(uint64(i), size)
				d := digest.FromBytes(content)
				if err := c.nodes[0].push(t.Context(), content); err != nil {
					t.Fatal(err)
				}
				until(t, "all owners hold it", func() bool {
					got := c.holders(d)
					return !slices.ContainsFunc(c.owners(d), func(id string) bool { return !slices.Contains(got, id) })
				})
				if n := len(c.holders(d)); n > row.replicas+1 {
					t.Errorf("%d copies of %d and the pusher's", n, row.replicas)
				}
			}
		})
	}
}

// TestPlaceAgain: whoever has a blob marks it used and is sent nothing.
func TestPlaceAgain(t *testing.T) {
	c := newCluster(t, option{replicas: 3}, "a", "a", "a")
	content := bytesOf(1, 1000)
	d := digest.FromBytes(content)
	for _, p := range c.nodes {
		p.hold(t, content)
	}
	const times = 70 // more than are placed at once
	for range times {
		if err := c.nodes[0].push(t.Context(), content); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "both others said so", func() bool { return c.nodes[0].blobs.Stats().CopiesPlaced == 2*times })
	if s := c.nodes[0].blobs.Stats(); s.BytesToPeers != 0 || s.CopiesHeld != 2*times {
		t.Errorf("stats %+v", s)
	}
	for _, p := range c.nodes[1:] {
		if p.answers("PUT", d, 200) != times {
			t.Errorf("node %s took it again", p.id)
		}
	}
}

// TestPlaceReplacesOwners: the next rank takes the copy of an owner that
// cannot.
func TestPlaceReplacesOwners(t *testing.T) {
	for _, row := range []struct {
		name  string
		spoil func(c *cluster, p *peer)
	}{
		{"seen down", func(c *cluster, p *peer) { c.setDown(p, true) }},
		{"dead", func(_ *cluster, p *peer) { p.kill() }},
		{"in trouble", func(_ *cluster, p *peer) {
			p.setTamper(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { http.Error(w, "broken", 500) })
		}},
		{"takes no bytes", func(c *cluster, p *peer) {
			p.setTamper(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
				_, _ = io.ReadFull(r.Body, make([]byte, 10))
				<-c.over // the server does not notice that the sender left
			})
		}},
		{"does not answer", func(c *cluster, p *peer) { p.lost.Store(true) }},
		{"goes down with all bytes", func(c *cluster, p *peer) {
			p.setTamper(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
				_, _ = io.Copy(io.Discard, r.Body)
				c.setDown(p, true)
				<-r.Context().Done()
			})
		}},
		{"disk hangs", func(_ *cluster, p *peer) {
			p.setTamper(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
				_, _ = io.Copy(io.Discard, r.Body)
				<-r.Context().Done()
			})
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newCluster(t, option{replicas: 2, patience: mesh.Patience{Stall: time.Second, Durable: 3 * time.Second}}, "-a", "a", "a", "a") // a busy disk takes its time, too
			bad := c.nodes[1]
			size := 1000
			if row.name == "takes no bytes" {
				size = 10 << 20 // more than fits into the kernel's buffers
			}
			content, d := contentFor(t, size, func(d digest.Digest) bool { return slices.Contains(c.owners(d), bad.id) })
			row.spoil(c, bad)
			if err := c.nodes[0].push(t.Context(), content); err != nil {
				t.Fatal(err)
			}
			until(t, "the two others hold it", func() bool { return c.nodes[2].holds(d) && c.nodes[3].holds(d) })
		})
	}
}

func TestPlaceOnFullDisk(t *testing.T) {
	c := newCluster(t, option{replicas: 2, full: []int{1}}, "a", "a", "a")
	for i := range uint64(5) {
		content := bytesOf(i, 100_000)
		if err := c.nodes[0].push(t.Context(), content); err != nil {
			t.Fatal(err)
		}
		until(t, "the third holds it", func() bool { return c.nodes[2].holds(digest.FromBytes(content)) })
	}
	if err := c.nodes[1].push(t.Context(), []byte("x")); !errors.Is(err, oci.ErrDiskFull) {
		t.Errorf("pushed to a full disk: %v", err)
	}
}

// TestTooFewCopies: one durable copy is no acknowledged push where two could
// be; the bytes stay, and the retry is cheap.
func TestTooFewCopies(t *testing.T) {
	c := newCluster(t, option{replicas: 3}, "a", "a")
	other := c.nodes[1]
	content := bytesOf(1, 100_000)
	d := digest.FromBytes(content)
	for _, row := range []struct {
		name        string
		spoil, heal func()
	}{
		{"seen down", func() { c.setDown(other, true) }, func() { c.setDown(other, false) }},
		{"in trouble", func() {
			other.setTamper(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { http.Error(w, "broken", 500) })
		}, func() { other.setTamper(nil) }},
	} {
		row.spoil()
		if err := c.nodes[0].push(t.Context(), content); !errors.Is(err, oci.ErrUnavailable) {
			t.Fatalf("%s: error %v", row.name, err)
		}
		if !c.nodes[0].holds(d) {
			t.Fatalf("%s: the bytes are gone", row.name)
		}
		row.heal()
	}
	if n := c.nodes[0].blobs.Stats().PlaceShort; n != 2 {
		t.Errorf("counted %d short pushes", n)
	}
	if err := c.nodes[0].push(t.Context(), content); err != nil || !other.holds(d) {
		t.Fatalf("after healing: %v", err)
	}
	c.mu.Lock()
	c.members = nil
	c.mu.Unlock()
	if err := c.nodes[0].push(t.Context(), content); !errors.Is(err, oci.ErrUnavailable) {
		t.Errorf("with no members known: %v", err)
	}
}

// TestPlaceWhereOneLeaves: the copy of a node that is to leave is no reason to
// acknowledge a push, though the ring has one owner only; those of the others
// are.
func TestPlaceWhereOneLeaves(t *testing.T) {
	c := newCluster(t, option{replicas: 3}, "-a", "a")
	leaver, owner := c.nodes[0], c.nodes[1]
	c.set(leaver, func(n *ring.Node) { n.Leaves = true })
	content := bytesOf(1, 100_000)
	d := digest.FromBytes(content)
	owner.setTamper(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { http.Error(w, "broken", 500) })
	if err := leaver.push(t.Context(), content); !errors.Is(err, oci.ErrUnavailable) {
		t.Errorf("only the node that leaves holds it: error %v", err)
	}
	owner.setTamper(nil)
	if err := leaver.push(t.Context(), content); err != nil || !owner.holds(d) {
		t.Errorf("acknowledged with %v while held by %v", err, c.holders(d))
	}
}

// TestPlaceInBackground: two durable copies answer the push, and the third
// follows though the pusher's context has ended.
func TestPlaceInBackground(t *testing.T) {
	c := newCluster(t, option{replicas: 3}, "a", "a", "a")
	content := bytesOf(1, 100_000)
	d := digest.FromBytes(content)
	release := make(chan struct{})
	var slow atomic.Pointer[peer]
	for _, p := range c.nodes[1:] {
		p.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if slow.CompareAndSwap(nil, p) { // whoever is asked first waits
				<-release
			}
			next.ServeHTTP(w, r)
		})
	}
	ctx, cancel := context.WithCancel(oci.WithRequestID(t.Context(), "push-1"))
	err := c.nodes[0].push(ctx, content)
	cancel()
	if err != nil {
		t.Fatal(err)
	}
	last := slow.Load()
	if last.holds(d) {
		t.Fatal("the slow one has it already")
	}
	close(release)
	until(t, "the third copy", func() bool { return last.holds(d) })
	last.mu.Lock()
	defer last.mu.Unlock()
	if !slices.Contains(last.ids, "push-1") {
		t.Errorf("the background request lost its id: %q", last.ids)
	}
}

// TestCloseEndsPlacing: Close waits for no peer.
func TestCloseEndsPlacing(t *testing.T) {
	c := newCluster(t, option{replicas: 3}, "a", "a", "a")
	var held atomic.Bool
	for _, p := range c.nodes[1:] {
		p.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if held.CompareAndSwap(false, true) {
				_, _ = io.Copy(io.Discard, r.Body)
				<-r.Context().Done()
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	if err := c.nodes[0].push(t.Context(), bytesOf(1, 1000)); err != nil {
		t.Fatal(err)
	}
	c.nodes[0].blobs.Close()
	if s := c.nodes[0].blobs.Stats(); s.CopiesPlaced != 1 {
		t.Errorf("stats %+v", s)
	}
	if !strings.Contains(c.nodes[0].log.String(), "fewer copies") {
		t.Errorf("nothing was said of the missing copy:\n%s", c.nodes[0].log.String())
	}
	if err := c.nodes[0].push(t.Context(), bytesOf(2, 1000)); !errors.Is(err, oci.ErrUnavailable) {
		t.Errorf("pushed after Close: %v", err)
	}
}

func TestPutRefuses(t *testing.T) {
	c := newCluster(t, option{replicas: 2}, "a", "a")
	content := bytesOf(1, 1000)
	d := digest.FromBytes(content)
	for _, row := range []struct {
		name string
		size int64
		r    io.Reader
		want error
	}{
		{"other bytes", 1000, bytes.NewReader(bytesOf(2, 1000)), oci.ErrDigestInvalid},
		{"too short", 1000, bytes.NewReader(content[:999]), oci.ErrSizeInvalid},
		{"ends early", -1, io.MultiReader(bytes.NewReader(content[:500]), iotest.ErrReader(io.ErrUnexpectedEOF)), oci.ErrUploadInvalid},
	} {
		if err := c.nodes[0].blobs.Put(t.Context(), d, row.size, row.r); !errors.Is(err, row.want) {
			t.Errorf("%s: %v, want %v", row.name, err, row.want)
		}
	}
	if got := c.holders(d); len(got) != 0 {
		t.Errorf("kept at %v", got)
	}
}

// BenchmarkPlace is a push to two nodes, up to two durable copies.
func BenchmarkPlace(b *testing.B) {
	for _, size := range []int{4 << 10, 16 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			c := newCluster(b, option{replicas: 2}, "a", "a")
			b.SetBytes(int64(size))
			for n := uint64(0); b.Loop(); n++ {
				b.StopTimer()
				content := bytesOf(n, size)
				b.StartTimer()
				if err := c.nodes[0].push(b.Context(), content); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				for _, p := range c.nodes {
					p.lose(b, digest.FromBytes(content))
				}
				b.StartTimer()
			}
		})
	}
}
