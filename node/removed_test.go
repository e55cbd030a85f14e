package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh"
)

// TestRemovedNodeIsShutOut: a node that was removed and goes on all the same,
// with its key, its certificate and the secret, is a member nowhere: what it had
// open ends, what it opens is refused, and gossip alone lets nobody in.
func TestRemovedNodeIsShutOut(t *testing.T) {
	c := newCluster(t, 4)
	lead := c.leader(c.others()...)
	stolen := c.others(lead)[0]
	rest := c.others(stolen)
	as, id := c.nodes[stolen].trust, c.nodes[stolen].ID()
	d := &dialer{trust: as, resolve: func(id string) (string, bool) {
		for _, i := range rest {
			if c.nodes[i].ID() == id {
				return c.nodes[i].port.ln.Addr().String(), true
			}
		}
		return "", false
	}}
	const blob = "/blobs/sha256:0"
	open := map[string]net.Conn{}
	for _, i := range rest {
		for _, proto := range []string{protoHTTP, protoRaft} {
			conn, err := d.dial(t.Context(), c.nodes[i].ID(), proto, true)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			open[fmt.Sprintf("%s with %s", proto, c.cfgs[i].Name)] = conn
			if proto == protoHTTP {
				if got := ask(t, conn, blob); got == http.StatusForbidden {
					t.Fatal("a member is refused")
				}
			}
		}
	}

	end := c.ending(stolen)
	c.operate(lead, http.StatusAccepted, http.MethodDelete, "members/"+c.cfgs[stolen].Name)
	if err := c.ended("the end of the removed node", end); !errors.Is(err, errRemoved) {
		t.Errorf("the removed node ends with %v", err)
	}
	for what, conn := range open {
		ends(t, what, conn)
	}
	gossip := outsider(t, id, as.gossipKeys())
	if _, err := gossip.Join(t.Context(), []string{c.nodes[lead].GossipAddr()}); err != nil {
		t.Fatalf("gossip, which knows no members: %v", err)
	}
	for _, i := range rest {
		n := c.nodes[i]
		c.await("gossip of the removed node at "+n.cfg.Name, func() error {
			if !slices.ContainsFunc(n.members.Peers(), func(p mesh.Peer) bool { return p.ID == id && p.Gossip == gossip.Address() }) {
				return errors.New("it is not heard of")
			}
			return nil
		})
		if slices.Contains(n.members.Alive(), id) || slices.Contains(ringIDs(n), id) || len(n.catalog.Members()) != len(rest) {
			t.Errorf("gossip made it a member at %s again", n.cfg.Name)
		}
		c.refusesRemoved(d, n)
	}
}

// refusesRemoved holds that n grants the node behind d, which is none of its
// members any more, nothing but to hear so.
func (c *cluster) refusesRemoved(d *dialer, n *Node) {
	t := c.t
	t.Helper()
	if raftStream(t, d, n.ID()) {
		t.Errorf("%s takes a raft stream", n.cfg.Name)
	}
	conn, err := d.dial(t.Context(), n.ID(), protoHTTP, true)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, path := range []string{"/blobs/sha256:0", "/uploads/0", "/metadata/readindex", collectPath} {
		if got := ask(t, conn, path); got != http.StatusForbidden {
			t.Errorf("%s at %s: %d, want 403", path, n.cfg.Name, got)
		}
	}
	as := &Node{trust: d.trust, stranger: d.client(false)}
	defer as.stranger.CloseIdleConnections()
	if g, err := as.hello(t.Context(), n.ID()); err != nil || !g.Gone {
		t.Errorf("hello at %s: %+v, %v", n.cfg.Name, g, err)
	}
	// Its own address is free again and answers as itself.
	self := n.self()
	self.Name, self.Address = "back", servePeer(t, d.trust)
	body, err := json.Marshal(request{Member: self})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := as.door(ctx, http.MethodPost, n.ID(), joinPath, body, new(admission)); !errors.Is(err, oci.ErrDenied) || !strings.Contains(err.Error(), "removed") {
		t.Errorf("%s lets it in again: %v", n.cfg.Name, err)
	}
}

func ringIDs(n *Node) (ids []string) {
	for _, o := range n.members.Ring().Nodes() {
		ids = append(ids, o.ID)
	}
	return ids
}
