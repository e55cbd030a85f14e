package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// operate sends a request to node i as an operator.
func (c *cluster) operate(i, want int, method, path string, body ...byte) answer {
	c.t.Helper()
	return c.do(i, want, method, "/flotilla/v1/"+path, body, "Authorization", "Bearer "+c.token(time.Now()))
}

// token is an operator's, made at this time.
func (c *cluster) token(now time.Time) string {
	c.t.Helper()
	token, err := OperatorToken(filepath.Join(c.dir, "n0", "mesh.secret"), now)
	if err != nil {
		c.t.Fatal(err)
	}
	return token
}

// ending returns what Wait of node i comes to.
func (c *cluster) ending(i int) <-chan error {
	n, end := c.nodes[i], make(chan error, 1)
	go func() { end <- n.Wait(c.t.Context()) }()
	return end
}

// ended returns what came of ending.
func (c *cluster) ended(what string, end <-chan error) (err error) {
	c.t.Helper()
	select {
	case err = <-end:
	case <-time.After(patience):
		c.t.Fatalf("waited in vain: %s", what)
	}
	return err
}

// mustEnd starts a node with cfg, which must end by itself with an error that
// says want, in one line.
func (c *cluster) mustEnd(cfg Config, want string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	err := Run(ctx, cfg)
	if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		c.t.Errorf("%s ends with %v, want one line that says %q", cfg.Name, err, want)
	}
}

// pulling pulls images through nodes in a loop until stop, which returns how
// often all went well and what did not.
func (c *cluster) pulling(images map[string]image, nodes ...int) (stop func() (rounds int, err error)) {
	ctx, cancel := context.WithCancel(c.t.Context())
	type result struct {
		rounds int
		err    error
	}
	results := make(chan result, 1)
	go func() {
		var r result
		for ; ctx.Err() == nil && r.err == nil; r.rounds++ {
			for repo, img := range images {
				for _, i := range nodes {
					if err := c.tryPull(i, repo, "v1", img); err != nil {
						r.err = fmt.Errorf("pull %s through node %d: %w", repo, i, err)
					}
				}
			}
		}
		results <- r
	}()
	return func() (int, error) {
		cancel()
		r := <-results
		return r.rounds, r.err
	}
}

// pushing pushes images through node i until it takes no more, as it does once
// it has left, and returns those that were acknowledged.
func (c *cluster) pushing(i int) (acknowledged func() map[string]image) {
	acked := map[string]image{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for k := 0; ; k++ {
			repo, img := fmt.Sprintf("late%d", k), newImage(20<<10)
			if _, err := c.try(i, http.MethodGet, "/v2/", nil); err != nil {
				return
			}
			if c.tryPush(i, repo, "v1", img) == nil {
				acked[repo] = img
			}
		}
	}()
	return func() map[string]image {
		<-done
		return acked
	}
}

func (c *cluster) awaitMembers(at, want int) {
	c.t.Helper()
	c.await(fmt.Sprintf("%d members", want), func() error {
		if n := len(c.nodes[at].catalog.Members()); n != want {
			return fmt.Errorf("%d members", n)
		}
		return nil
	})
}

// TestDrain: a node hands over what only it holds and leaves, while clients of
// the others notice nothing. Started again it says what became of it; with an
// empty folder the machine may come back under its old name.
func TestDrain(t *testing.T) {
	for _, row := range []struct {
		name   string
		nodes  int
		leader bool
		ask    int // which of the others is asked; -1: the node itself
	}{
		{"a follower", 3, false, 0},
		{"the leader", 3, true, 1},
		{"the founder of two", 2, true, -1},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newCluster(t, row.nodes, func(cfg *Config) { cfg.Replicas = 1 })
			all := c.others()
			leaves := c.leader(all...)
			if !row.leader {
				leaves = c.others(leaves)[0]
			}
			rest := c.others(leaves)
			images := map[string]image{}
			for only := 0; only < 3; { // what the node owns is at no other
				repo, img := fmt.Sprintf("app%d", len(images)), newImage(20<<10)
				c.push(leaves, repo, "v1", img)
				images[repo] = img
				if c.owners(leaves, img.layer())[0] == leaves {
					only++
				}
			}
			c.heal("the copies at their owners", all, c.placed(all, images, false))
			for i := range c.cfgs { // the first may not be there for others to find
				c.cfgs[i].Join = []string{c.nodes[rest[0]].GossipAddr()}
				c.cfgs[i].SecretFile = filepath.Join(c.dir, "n0", "mesh.secret")
			}
			asked := leaves
			if row.ask >= 0 {
				asked = rest[row.ask]
			}
			stop, late, end := c.pulling(images, rest...), c.pushing(leaves), c.ending(leaves)
			c.operate(asked, http.StatusAccepted, http.MethodPut, "members/"+c.cfgs[leaves].Name+"/drain")
			if err := c.ended("the end of the drained node", end); err != nil {
				t.Errorf("the drained node ends with %v", err)
			}
			c.awaitMembers(rest[0], row.nodes-1)
			c.pullMany(images, rest...)
			c.pullMany(late(), rest...)
			if rounds, err := stop(); err != nil || rounds == 0 {
				t.Errorf("pulls while the node left: %d rounds, %v", rounds, err)
			}
			img := newImage(1000)
			c.push(rest[0], "app", "after", img)

			c.mustEnd(c.cfgs[leaves], errRemoved.Error())
			c.cfgs[leaves].Data += "-new"
			c.restart(leaves)
			c.pull(leaves, "app", "after", img)
			c.awaitMembers(rest[0], row.nodes)
		})
	}
}

// TestDrainWaits: a node does not leave before every owner has what it holds,
// and is a member like the others again when the drain is called off.
func TestDrainWaits(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.Replicas = 2 })
	images := c.pushMany(6, 1000, 0, 1, 2)
	c.heal("all copies", c.others(), c.placed(c.others(), images, false))
	lead := c.leader(0, 1, 2)
	leaves, away := c.others(lead)[0], c.others(lead)[1]
	name := c.cfgs[leaves].Name
	c.nodes[away].crash()
	c.operate(lead, http.StatusAccepted, http.MethodPut, "members/"+name+"/drain")
	standing := func(want string) func() error {
		return func() error {
			for _, m := range c.nodes[leaves].Status(t.Context()).Members {
				if m.Name == name && m.Standing != want {
					return fmt.Errorf("%s is %s", name, m.Standing)
				}
			}
			return nil
		}
	}
	c.await("the node to be drained", standing("draining"))
	c.heal("a look at what nobody can take over", []int{leaves}, func() error {
		if h := c.nodes[leaves].blobs.Health(); h.Owns || h.OnlyHere == 0 {
			return fmt.Errorf("%+v", h)
		}
		return nil
	})
	if _, err := c.nodes[lead].member(name); err != nil {
		t.Fatalf("it has left with copies that an owner lacks: %v", err)
	}
	c.operate(lead, http.StatusAccepted, http.MethodDelete, "members/"+name+"/drain")
	c.await("the node to be a member like others", standing("in"))
	c.restart(away)
	c.heal("all copies", c.others(), c.placed(c.others(), images, false))
	c.awaitVoters(3)
	c.pullMany(images, leaves)
}

// TestDrainWaitsForNames: a blob that a push had placed at its one owner before
// the drain, and names only later, is not left behind.
func TestDrainWaitsForNames(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.Replicas = 1 })
	lead := c.leader(0, 1, 2)
	leaves := c.others(lead)[0]
	var content []byte
	var d digest.Digest
	for content == nil || c.owners(leaves, d)[0] != leaves {
		content, d = random(1000)
	}
	if err := c.nodes[leaves].blobs.Put(t.Context(), d, 1000, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	end := c.ending(leaves)
	c.operate(lead, http.StatusAccepted, http.MethodPut, "members/"+c.cfgs[leaves].Name+"/drain")
	c.heal("a look at what is left", []int{leaves}, func() error {
		if h := c.nodes[leaves].blobs.Health(); !h.Leaves || !h.Synced {
			return fmt.Errorf("%+v", h)
		}
		return nil
	})
	if _, err := c.nodes[lead].member(c.nodes[leaves].ID()); err != nil {
		t.Fatalf("it has left with a blob that is nowhere else: %v", err)
	}
	if err := c.nodes[lead].catalog.LinkBlob(t.Context(), "app", d, 1000, c.nodes[lead].catalog.LogTime()); err != nil {
		t.Fatal(err)
	}
	if err := c.ended("the end of the drained node", end); err != nil {
		t.Error(err)
	}
	c.do(lead, http.StatusOK, http.MethodGet, "/v2/app/blobs/"+d.String(), nil)
}

// TestMembersRefused: what would leave a mesh without bytes or members is not
// done, whoever asks.
func TestMembersRefused(t *testing.T) {
	c := newCluster(t, 1)
	c.operate(0, http.StatusForbidden, http.MethodPut, "members/n0/drain")
	c.operate(0, http.StatusForbidden, http.MethodDelete, "members/n0")
	c.add(func(cfg *Config) { cfg.Weight = 0 })
	c.operate(1, http.StatusForbidden, http.MethodPut, "members/n0/drain")
	c.operate(0, http.StatusNotFound, http.MethodPut, "members/n7/drain")
	c.operate(0, http.StatusNotFound, http.MethodDelete, "members/n7")
	for _, row := range []struct{ method, path string }{
		{http.MethodPut, "members/n1/drain"}, {http.MethodDelete, "members/n1/drain"}, {http.MethodDelete, "members/n1"},
		{http.MethodGet, "gc"}, {http.MethodPost, "gc"}, {http.MethodPut, "gc/untagged?after=0"},
		{http.MethodPost, "backup"}, {http.MethodPost, "restore"},
	} {
		path := "/flotilla/v1/" + row.path
		c.do(1, http.StatusUnauthorized, row.method, path, nil)
		c.do(1, http.StatusUnauthorized, row.method, path, nil, "Authorization", "Bearer "+c.token(time.Now().Add(-time.Hour)))
	}
	if n := len(c.nodes[0].catalog.Members()); n != 2 {
		t.Errorf("%d members are left", n)
	}
}

// TestRemove: a member is removed while it runs, and one while it is away. Both
// end with the reason, the second as soon as it is back. Replaced hardware
// takes the name over, which it could not before.
func TestRemove(t *testing.T) {
	c := newCluster(t, 4, func(cfg *Config) { cfg.Replicas = 2 })
	all := c.others()
	images := c.pushMany(8, 10<<10, all...)
	c.heal("all copies", all, c.placed(all, images, false))
	lead := c.leader(all...)
	runs, away := c.others(lead)[0], c.others(lead)[1]
	for i := range c.cfgs {
		c.cfgs[i].Join = []string{c.nodes[lead].GossipAddr()}
		c.cfgs[i].SecretFile = filepath.Join(c.dir, "n0", "mesh.secret")
	}

	end := c.ending(runs)
	c.operate(runs, http.StatusAccepted, http.MethodDelete, "members/"+c.cfgs[runs].Name)
	if err := c.ended("the end of the removed node", end); !errors.Is(err, errRemoved) {
		t.Errorf("the removed node ends with %v", err)
	}
	rest := c.others(runs)
	c.heal("its copies at others", rest, c.placed(rest, images, false))

	c.nodes[away].Stop()
	replaced := c.cfgs[away]
	replaced.Data += "-new"
	c.mustEnd(replaced, "flotilla remove "+replaced.Name)
	c.operate(lead, http.StatusAccepted, http.MethodDelete, "members/"+c.cfgs[away].Name)
	c.mustEnd(c.cfgs[away], errRemoved.Error())
	old := c.cfgs[away]
	old.Join = nil // it knows where the others were
	c.mustEnd(old, errRemoved.Error())

	c.cfgs[away] = replaced
	c.restart(away)
	c.heal("all copies", rest, c.placed(rest, images, false))
	c.pullMany(images, rest...)
	if err := c.nodes[lead].Remove(t.Context(), c.nodes[lead].ID()+"0"); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("removal of nobody: %v", err)
	}
}
