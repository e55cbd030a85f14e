package main

import (
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/node"
)

// TestPrintStatus holds what people read to what there is to know: how members
// stand, what is wrong, and what to do about it.
func TestPrintStatus(t *testing.T) {
	s := node.Status{
		Node:    node.NodeStatus{ID: "1", Name: "a", Zone: "z", Version: "v1"},
		Cluster: node.ClusterStatus{ID: "mesh", Replicas: 2},
		Health:  "ok",
		Notes:   []string{"1 of 4 members down", "2 of 9 blobs have too few copies"},
		Members: []node.MemberStatus{
			{ID: "1", Name: "a", Zone: "z", Role: "leader", State: "up", Standing: "in", Weight: 5, Address: "a:1"},
			{ID: "2", Name: "b", Zone: "z", Role: "voter", State: "up", Standing: "draining", Weight: 5, Address: "b:1"},
			{ID: "3", Name: "c", Zone: "z", Role: "voter", State: "down", Standing: "out", Weight: 5, Address: "c:1"},
			{ID: "4", Name: "d", Zone: "z", Role: "replica", State: "up", Standing: "out", Weight: 5, Address: "d:1"},
		},
		Transfers: []node.TransferStatus{
			{Digest: digest.FromString("x"), From: node.NodeName{Name: "a", Zone: "z"}, To: node.NodeName{Name: "b", Zone: "y"}, Received: 1 << 20, Size: 64 << 20},
			{Digest: digest.FromString("y"), From: node.NodeName{Name: "5"}, To: node.NodeName{Name: "b", Zone: "y"}, Size: 5, Repair: true},
		},
		TransfersTotal: 5,
		Zones: []node.ZoneTraffic{
			{From: "y", To: "z", Pull: 3 << 20, Push: 1 << 19, Repair: 1 << 40, Rebalance: 1},
			{From: "z", To: "y", Push: 100 << 20},
		},
	}
	var out strings.Builder
	if err := printStatus(&out, s); err != nil {
		t.Fatal(err)
	}
	want := `mesh     mesh
node     a (1), zone z, flotilla v1
health   ok
         1 of 4 members down
         2 of 9 blobs have too few copies
copies   2 of each blob
disk     0.0 GiB free of 0.0 GiB

NAME  ZONE  ROLE     STATE         WEIGHT  ADDRESS  ID
a     z     leader   up            5 GiB   a:1      1
b     z     voter    up, draining  5 GiB   b:1      2
c     z     voter    down, out     5 GiB   c:1      3
d     z     replica  up, out       5 GiB   d:1      4

FROM  TO  PULL     PUSH       REPAIR      REBALANCE
y     z   3.0 MiB  0.5 MiB    1024.0 GiB  1 B
z     y   0 B      100.0 MiB  0 B         0 B

BLOB                 FROM   TO     DONE     SIZE      FOR
sha256:2d711642b726  a (z)  b (y)  1.0 MiB  64.0 MiB  a client
sha256:a1fce4363854  5      b (y)  0 B      5 B       repair
and 3 more
`
	if out.String() != want {
		t.Errorf("status prints\n%swant\n%s", out.String(), want)
	}
}
