package node

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// contents returns a hash of each file of a folder.
func contents(t *testing.T, dir string) map[string][32]byte {
	t.Helper()
	files := map[string][32]byte{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			var b []byte
			b, err = os.ReadFile(path)
			files[path] = sha256.Sum256(b)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// mustRecover recovers node i, which is stopped.
func (c *cluster) mustRecover(i int, voters ...string) Recovered {
	c.t.Helper()
	out, err := Recover(Recovery{Data: c.cfgs[i].Data, Voters: voters, Yes: true})
	if err != nil {
		c.t.Fatalf("recover node %d: %v", i, err)
	}
	return out
}

// TestRecover: of three nodes one is left. What it holds is the truth of a new
// epoch, and the others, should they be back, have no part in it.
func TestRecover(t *testing.T) {
	c := newCluster(t, 3)
	images := c.pushMany(3, 10<<10, 0, 1, 2)
	c.heal("all copies", c.others(), c.placed(c.others(), images, false))
	for i := range c.cfgs { // so that they find each other
		c.cfgs[i].GossipListen = c.nodes[i].GossipAddr()
	}
	for i := range c.nodes {
		c.nodes[i].Stop()
	}

	look := Recovery{Data: c.cfgs[0].Data, Voters: []string{"n0"}}
	before := contents(t, look.Data)
	seen, err := Recover(look)
	if err != nil {
		t.Fatal(err)
	}
	if !seen.First || seen.Name != "n0" || seen.Epoch != 1 || seen.Index == 0 || seen.Written.IsZero() ||
		!slices.Equal(seen.Kept, []string{"n0"}) || len(seen.Buried) != 2 {
		t.Errorf("a look shows %+v", seen)
	}
	if !maps.Equal(contents(t, look.Data), before) {
		t.Error("looking changed the folder")
	}
	for _, row := range []struct {
		name   string
		voters []string
		want   string
	}{
		{"nobody", nil, "name the members"},
		{"a stranger", []string{"n0", "n9"}, "no member called n9"},
		{"only others", []string{"n1"}, "this node, n0, is not among those that stay"},
	} {
		if _, err := Recover(Recovery{Data: look.Data, Voters: row.voters, Yes: true}); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s stays: %v, want %q", row.name, err, row.want)
		}
	}
	if !maps.Equal(contents(t, look.Data), before) {
		t.Error("a refused recovery changed the folder")
	}

	if out := c.mustRecover(0, "n0"); out.Epoch.Recoveries() != 1 {
		t.Errorf("epoch %s, want one after the first recovery", out.Epoch)
	}
	c.restart(0)
	c.await("writes", func() error { return c.nodes[0].Writable(t.Context()) })
	after := newImage(1000)
	c.push(0, "app", "after", after)
	c.pullMany(images, 0)

	// The two are a majority of the epoch before.
	ends := map[int]<-chan error{}
	for _, i := range []int{1, 2} {
		c.nodes[i] = c.start(c.cfgs[i])
		ends[i] = c.ending(i)
	}
	for i, end := range ends {
		err := c.ended("the end of an old member", end)
		if err == nil || !strings.Contains(err.Error(), "recovered without") || strings.Contains(err.Error(), "\n") {
			t.Errorf("node %d of the old epoch ends with %v", i, err)
		}
	}
	if s := c.nodes[0].catalog.Status(); s.State != "leader" || len(s.Voters) != 1 || len(c.nodes[0].catalog.Members()) != 1 {
		t.Errorf("the recovered node has let others in: %+v", s)
	}
	c.push(0, "app", "later", after)

	c.cfgs[1].Data += "-new"
	c.cfgs[1].Join = []string{c.nodes[0].GossipAddr()}
	c.restart(1)
	c.pull(1, "app", "later", after)
	c.pullMany(images, 1)
}

// TestRecoverTwo: of five nodes two are left. The first one's catalogue counts;
// the other gives up its own, comes back with its bytes, and votes again once
// there are enough members. Each step may be repeated.
func TestRecoverTwo(t *testing.T) {
	c := newCluster(t, 5, func(cfg *Config) { cfg.Replicas = 2 })
	const first, second = 0, 1
	images := map[string]image{}
	for lacking := 0; lacking < 2; {
		repo, img := fmt.Sprintf("app%d", len(images)), newImage(10<<10)
		c.push(2, repo, "v1", img)
		c.pull(second, repo, "v1", img)
		images[repo] = img
		if !slices.Contains(c.owners(first, img.layer()), first) {
			lacking++ // at the first survivor
		}
	}
	id := c.nodes[second].ID()
	for i := range c.nodes {
		c.nodes[i].Stop()
	}
	voters := []string{c.cfgs[first].Name, c.cfgs[second].Name}

	old, err := os.ReadFile(filepath.Join(c.cfgs[first].Data, "node.json"))
	if err != nil {
		t.Fatal(err)
	}
	done := c.mustRecover(first, voters...)
	if done.Epoch.Recoveries() != 1 || !slices.Equal(done.Kept, voters) || len(done.Buried) != 3 {
		t.Errorf("recovered: %+v", done)
	}
	// As if that had been interrupted before its last step.
	if err := os.WriteFile(filepath.Join(c.cfgs[first].Data, "node.json"), old, 0o600); err != nil {
		t.Fatal(err)
	}
	c.mustEnd(c.cfgs[first], "epoch")
	if out := c.mustRecover(first, voters...); out.Epoch != done.Epoch || !slices.Equal(out.Kept, voters) {
		t.Errorf("repeated: %+v", out)
	}
	half := filepath.Join(c.cfgs[first].Data, catalogFolder, "recovering")
	if err := os.WriteFile(half, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.mustEnd(c.cfgs[first], "begun and not finished: repeat it")
	epoch := c.mustRecover(first, voters...).Epoch
	c.restart(first)
	c.await("writes", func() error { return c.nodes[first].Writable(t.Context()) })

	c.cfgs[second].Join = []string{c.nodes[first].GossipAddr()}
	c.mustEnd(c.cfgs[second], "recovered without")
	out := c.mustRecover(second, voters...)
	if out.First || out.Aside == "" {
		t.Errorf("the second survivor: %+v", out)
	}
	if _, err := os.Stat(out.Aside); err != nil {
		t.Errorf("what was set aside: %v", err)
	}
	c.restart(second)
	c.nodes, c.cfgs = c.nodes[:2], c.cfgs[:2]
	if got := c.nodes[second].ID(); got != id {
		t.Errorf("the second survivor was %s and is %s", id, got)
	}
	c.pullMany(images, first)
	c.add(func(cfg *Config) { cfg.Data += "-new" })
	c.awaitVoters(3)
	for i, n := range c.nodes {
		if got := n.catalog.Cluster().Epoch; got != epoch {
			t.Errorf("node %d is of epoch %d, want %d", i, got, epoch)
		}
	}
	c.heal("all copies", c.others(), c.placed(c.others(), images, false))
	img := newImage(1000)
	c.push(second, "app", "after", img)
	c.pull(2, "app", "after", img)
}
