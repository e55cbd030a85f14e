package node

import (
	"fmt"
	"testing"
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
			if mesh, members := n.catalog.Settings(), n.catalog.Members(); mesh.Epoch != 2 || len(members) != 2 {
				return fmt.Errorf("epoch %d with %d members", mesh.Epoch, len(members))
			}
			return n.Ready()
		})
	}
	if epoch := c.nodes[0].catalog.Settings().Epoch; epoch != 1 {
		t.Errorf("who was not recovered is of epoch %d", epoch)
	}
}
