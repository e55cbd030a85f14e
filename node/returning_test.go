package node

import (
	"fmt"
	"slices"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestReturnsToLaterEpoch: a member that was recovered does not go back to
// those who were not, though they are met first, are the majority, and know it.
func TestReturnsToLaterEpoch(t *testing.T) {
	c := newCluster(t, 4)
	kept := []int{2, 3}
	for _, i := range kept {
		c.nodes[i].Stop()
	}
	for _, i := range kept {
		r := Recovery{Data: c.cfgs[i].Data, Voters: []string{"n2", "n3"}, Yes: true, Log: testLog(t)}
		if _, err := Recover(r); err != nil {
			t.Fatal(err)
		}
	}
	for _, i := range kept {
		c.nodes[i] = c.start(c.cfgs[i])
	}
	for _, i := range kept {
		n := c.nodes[i]
		c.await(fmt.Sprintf("n%d in the new epoch", i), func() error {
			if mesh, members := n.catalog.Cluster(), n.catalog.Members(); mesh.Epoch.Recoveries() != 1 || len(members) != 2 {
				return fmt.Errorf("epoch %s with %d members", mesh.Epoch, len(members))
			}
			return n.Ready()
		})
	}
	if epoch := c.nodes[0].catalog.Cluster().Epoch; epoch != 1 {
		t.Errorf("who was not recovered is of epoch %s", epoch)
	}
}

// TestTwoRecoveries: two nodes that were recovered each on its own have become
// two meshes. They meet, know each other as members, and merge nothing.
func TestTwoRecoveries(t *testing.T) {
	c := newCluster(t, 3)
	for _, n := range c.nodes {
		n.Stop()
	}
	both := []int{1, 2}
	for _, i := range both {
		voters := []string{c.cfgs[i].Name, c.cfgs[3-i].Name}
		if _, err := Recover(Recovery{Data: c.cfgs[i].Data, Voters: voters, Yes: true, Log: testLog(t)}); err != nil {
			t.Fatal(err)
		}
	}
	c.cfgs[1].Join = nil
	c.restart(1)
	c.cfgs[2].Join = []string{c.nodes[1].GossipAddr()}
	c.restart(2)
	for _, i := range both {
		n, other := c.nodes[i], c.nodes[3-i]
		c.await("gossip with the other", func() error {
			if !slices.Contains(n.members.Alive(), other.ID()) {
				return fmt.Errorf("%s seems gone", other.cfg.Name)
			}
			return nil
		})
		if len(n.catalog.Members()) != 2 {
			t.Errorf("%s knows %d members", n.cfg.Name, len(n.catalog.Members()))
		}
		if got, err := n.hello(t.Context(), other.ID()); err == nil {
			t.Errorf("%s, of epoch %s, was greeted by %+v", n.cfg.Name, n.catalog.Cluster().Epoch, got)
		}
		body := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[]}`, v1.MediaTypeImageIndex)
		c.do(i, 201, "PUT", "/v2/app/manifests/"+n.cfg.Name, body, "Content-Type", v1.MediaTypeImageIndex)
	}
	for _, i := range both {
		if s := c.nodes[i].catalog.Status(); s.State != "leader" || !slices.Equal(s.Voters, []string{c.nodes[i].ID()}) {
			t.Errorf("%s is %s of %v", c.cfgs[i].Name, s.State, s.Voters)
		}
		c.do(i, 404, "HEAD", "/v2/app/manifests/"+c.cfgs[3-i].Name, nil)
	}

	// Who gives up its own recovery for the other's is let in, whichever of
	// the two numbers is the larger.
	c.nodes[2].Stop()
	if _, err := Recover(Recovery{Data: c.cfgs[2].Data, Voters: []string{"n1", "n2"}, Yes: true, Log: testLog(t)}); err != nil {
		t.Fatal(err)
	}
	c.restart(2)
	c.do(2, 200, "HEAD", "/v2/app/manifests/n1", nil)
	if a, b := c.nodes[1].catalog.Cluster(), c.nodes[2].catalog.Cluster(); a.Epoch != b.Epoch {
		t.Errorf("epochs %s and %s", a.Epoch, b.Epoch)
	}
}
