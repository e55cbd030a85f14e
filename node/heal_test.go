package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// heal runs passes at nodes until check is content.
func (c *cluster) heal(what string, nodes []int, check func() error) {
	c.t.Helper()
	c.await(what, func() error {
		for _, i := range nodes {
			c.nodes[i].reconcile(c.t.Context())
		}
		return check()
	})
}

// owners returns the nodes that should hold d, as node at sees it.
func (c *cluster) owners(at int, d digest.Digest) (owners []int) {
	for _, o := range c.nodes[at].members.Ring().Owners(d) {
		owners = append(owners, slices.IndexFunc(c.nodes, func(n *Node) bool { return n.ID() == o.ID }))
	}
	slices.Sort(owners)
	return owners
}

// holders returns which of nodes hold d.
func (c *cluster) holders(d digest.Digest, nodes []int) (holders []int) {
	for _, i := range nodes {
		if c.nodes[i].disk.Has(d) {
			holders = append(holders, i)
		}
	}
	return holders
}

// placed returns a check that the owners of every blob hold it, and of nodes
// nobody else does, where exact is set.
func (c *cluster) placed(nodes []int, images map[string]image, exact bool) func() error {
	return func() error {
		for _, img := range images {
			for d := range img.blobs {
				owners, holders := c.owners(nodes[0], d), c.holders(d, nodes)
				lacking := slices.ContainsFunc(owners, func(i int) bool { return !slices.Contains(holders, i) })
				if lacking || exact && len(holders) > len(owners) {
					return fmt.Errorf("%s is held by %v and owned by %v", d, holders, owners)
				}
			}
		}
		return nil
	}
}

// pushMany pushes n images of this size to repositories of their own, through
// the nodes in turn.
func (c *cluster) pushMany(n, size int, through ...int) map[string]image {
	c.t.Helper()
	images := map[string]image{}
	for k := range n {
		repo := fmt.Sprintf("app%d", k)
		images[repo] = newImage(size + k)
		c.push(through[k%len(through)], repo, "v1", images[repo])
	}
	return images
}

func (c *cluster) pullMany(images map[string]image, through ...int) {
	c.t.Helper()
	for repo, img := range images {
		for _, i := range through {
			c.pull(i, repo, "v1", img)
		}
	}
}

// blobFile is where node i keeps d.
func (c *cluster) blobFile(i int, d digest.Digest) string {
	return filepath.Join(c.cfgs[i].Data, "blobs", string(d.Algorithm()), d.Encoded()[:2], d.Encoded())
}

// layer returns the larger blob of img.
func (img image) layer() (layer digest.Digest) {
	for d, b := range img.blobs {
		if layer == "" || len(b) > len(img.blobs[layer]) {
			layer = d
		}
	}
	return layer
}

// flip changes one byte of a stored blob behind the node's back.
func (c *cluster) flip(i int, d digest.Digest) {
	c.t.Helper()
	b, err := os.ReadFile(c.blobFile(i, d))
	if err == nil {
		b[len(b)/2] ^= 1
		err = os.WriteFile(c.blobFile(i, d), b, 0o600)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// TestRepair takes bytes away in every way that a disk can, and pulls all of
// them from each node once passes have been there.
func TestRepair(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.Replicas, cfg.ScrubRate = 2, "1GiB" })
	all := c.others()
	images := c.pushMany(9, 20<<10, all...)
	d := images["app0"].layer()
	c.await("all copies", c.placed(all, images, false))
	for _, row := range []struct {
		name string
		take func(t *testing.T, i int)
	}{
		{"a file is deleted", func(t *testing.T, i int) {
			if err := os.Remove(c.blobFile(i, d)); err != nil {
				t.Fatal(err)
			}
			c.nodes[i].blobs.Wake()
		}},
		{"a check finds a flipped byte", func(t *testing.T, i int) {
			c.flip(i, d)
			if err := c.nodes[i].disk.Check(t.Context(), d); err == nil {
				t.Error("the flipped byte is good enough")
			}
		}},
		{"scrubbing finds a flipped byte", func(t *testing.T, i int) {
			c.flip(i, d)
			c.nodes[i].scrub(t.Context())
			if n := c.nodes[i].disk.Stats().BlobsBad; n != 2 {
				t.Errorf("%d bad blobs found, want 2", n)
			}
		}},
		{"the folder is wiped while the node runs, which ends it", func(t *testing.T, i int) {
			if err := os.RemoveAll(filepath.Join(c.cfgs[i].Data, "blobs")); err != nil {
				t.Fatal(err)
			}
			c.nodes[i].blobs.Wake()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := c.nodes[i].Wait(ctx); err == nil || !strings.Contains(err.Error(), "the folder of the blobs is gone") {
				t.Errorf("error %v, want one that says what is gone", err)
			}
			c.restart(i)
		}},
		{"the folder is wiped while the node is down", func(t *testing.T, i int) {
			c.nodes[i].Stop()
			if err := os.RemoveAll(filepath.Join(c.cfgs[i].Data, "blobs")); err != nil {
				t.Fatal(err)
			}
			c.restart(i)
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			i := c.owners(0, d)[0]
			row.take(t, i)
			c.await("all copies again", c.placed(all, images, false))
			c.pullMany(images, i)
		})
	}
}

// TestOutAndBack: the copies of a member that stays away are made elsewhere,
// and go when it is back.
func TestOutAndBack(t *testing.T) {
	c := newCluster(t, 4, func(cfg *Config) { cfg.Replicas, cfg.OutAfter, cfg.CacheSize = 2, time.Second, "0" })
	all := c.others()
	images := c.pushMany(8, 10<<10, all...)
	away := c.others(c.leader(all...))[0]
	here := c.others(away)
	standing := func(want string) func() error {
		return func() error {
			for _, m := range c.nodes[here[0]].Status(t.Context()).Members {
				if m.ID == c.nodes[away].ID() && m.Standing != want {
					return fmt.Errorf("%s is %s, %s", m.Name, m.State, m.Standing)
				}
			}
			return nil
		}
	}
	c.nodes[away].crash()
	c.await("the member to be out", standing("out"))
	c.heal("its copies at others", here, c.placed(here, images, false))
	c.pullMany(images, here[0])
	c.restart(away)
	c.await("the member to be in again", standing("in"))
	c.heal("the copies where they belong", all, c.placed(all, images, true))
	c.pullMany(images, away)
}

// TestEviction: of the copies that a node need not hold the least recently used
// go first, and none whose owner cannot vouch for its own.
func TestEviction(t *testing.T) {
	const size = 100 << 10
	c := newCluster(t, 3, func(cfg *Config) { cfg.Replicas, cfg.CacheSize = 1, "350KiB" })
	var of [3][]digest.Digest // layers, by their owner
	images := map[string]image{}
	for k := 0; len(of[1]) < 2 || len(of[2]) < 3; k++ {
		img := newImage(size)
		if i := c.owners(0, img.layer())[0]; i > 0 && len(of[i]) < 1+i {
			repo := fmt.Sprintf("app%d", k)
			c.push(0, repo, "v1", img)
			images[repo] = img
			of[i] = append(of[i], img.layer())
		}
	}
	c.await("all copies", c.placed(c.others(), images, false))
	c.nodes[1].crash()
	c.await("the dead node to be seen", func() error {
		if !c.nodes[0].members.Down(c.nodes[1].ID()) {
			return fmt.Errorf("it seems up")
		}
		return nil
	})
	// The dead node's come first and third.
	order := []digest.Digest{of[1][0], of[2][0], of[1][1], of[2][1], of[2][2]}
	for k, d := range order {
		used := time.Now().Add(time.Duration(k-len(order)) * time.Minute)
		if err := os.Chtimes(c.blobFile(0, d), used, used); err != nil {
			t.Fatal(err)
		}
	}
	want := []digest.Digest{order[0], order[2], order[4]}
	left := func() (left []digest.Digest) {
		for _, d := range order {
			if c.nodes[0].disk.Has(d) {
				left = append(left, d)
			}
		}
		return left
	}
	c.heal("room", []int{0}, func() error {
		if got := left(); len(got) > len(want) {
			return fmt.Errorf("%d copies left", len(got))
		}
		return nil
	})
	if got := left(); !slices.Equal(got, want) {
		t.Errorf("of %v\n%v are left, want\n%v", order, got, want)
	}
	c.restart(1)
	c.pullMany(images, 0)
}

// TestRebalance: who comes, or weighs more or less than before, gets the copies
// that are its own, and the others let go of theirs.
func TestRebalance(t *testing.T) {
	lean := func(cfg *Config) { cfg.Replicas, cfg.CacheSize = 1, "0" }
	c := newCluster(t, 2, lean)
	images := c.pushMany(15, 5<<10, 0, 1)
	c.heal("a copy at each owner alone", c.others(), c.placed(c.others(), images, true))
	held := func(i int) (n int) {
		for _, img := range images {
			for d := range img.blobs {
				n += len(c.holders(d, []int{i}))
			}
		}
		return n
	}

	c.add(lean)
	settled := func(weight int64) {
		t.Helper()
		c.await("all to know the weights", func() error {
			for _, n := range c.nodes {
				m, err := n.member("n2")
				if err != nil || int64(m.Weight) != weight || len(n.members.Ring().Nodes()) != 3 {
					return fmt.Errorf("%+v, %w", m, err)
				}
			}
			return nil
		})
		c.heal("a copy at each owner alone", c.others(), c.placed(c.others(), images, true))
		c.pullMany(images, 0)
		c.heal("a copy at each owner alone", c.others(), c.placed(c.others(), images, true))
	}
	settled(1)
	before := held(2)
	if before == 0 {
		t.Error("the newcomer owns nothing")
	}
	for _, weight := range []int64{20, 0} {
		c.nodes[2].Stop()
		c.cfgs[2].Weight = weight
		c.restart(2)
		settled(weight)
		if n := held(2); weight > 0 && n <= before || weight == 0 && n > 0 {
			t.Errorf("with weight %d it holds %d copies, before %d", weight, n, before)
		}
	}
}

// TestHealthOfCopies: what the passes saw is there for people to read.
func TestHealthOfCopies(t *testing.T) {
	c := newCluster(t, 3)
	images := c.pushMany(3, 1<<10, 0)
	status := func(want CopiesStatus) func() error {
		return func() error {
			got := c.nodes[1].Status(t.Context()).Copies
			if got.Blobs != want.Blobs || got.Short != want.Short || got.Lost != want.Lost || len(got.Silent) != len(want.Silent) {
				return fmt.Errorf("%+v, want %+v", got, want)
			}
			return nil
		}
	}
	c.heal("nothing missing", c.others(), status(CopiesStatus{Blobs: 6}))
	gone := c.others(1, c.leader(0, 1, 2))[0]
	c.nodes[gone].crash()
	here := c.others(gone)
	c.heal("one copy short, and one member silent", here, status(CopiesStatus{Blobs: 6, Short: 6, Silent: make([]string, 1)}))
	c.restart(gone)
	c.heal("nothing missing", c.others(), status(CopiesStatus{Blobs: 6}))
	c.pullMany(images, gone)
}
