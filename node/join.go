package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh"
	"github.com/flotilla-registry/flotilla/metadata"
)

const (
	retryJoin   = time.Second
	joinTime    = 15 * time.Second // one attempt at one member
	maxJoinBody = 1 << 20
)

// enterMesh brings this node into a mesh and returns once it belongs to one:
// the one it belonged to before, the one it founds, or the one it joins.
// Whatever may pass is retried for ever and told by Ready; an error is final.
func (n *Node) enterMesh(ctx context.Context) error {
	known := n.folder.known()
	switch {
	case known.Founding:
		return n.found(ctx)
	case known.Cluster != "":
		return n.returnTo(ctx, known.Cluster)
	case known.Returning != "":
		return n.join(ctx)
	case len(n.cfg.Expect) > 0:
		return n.expect(ctx)
	case len(n.cfg.Join) > 0:
		return n.join(ctx)
	}
	return n.found(ctx)
}

// returnTo is the way back of a node that was a member before. Its catalogue
// may still be replaying its log; where the log is gone too, it has to ask
// again, for the others' pins at least.
func (n *Node) returnTo(ctx context.Context, cluster string) error {
	if len(n.catalog.Members()) == 0 {
		if err := n.join(ctx); err != nil {
			return err
		}
	}
	if c := n.catalog.Cluster(); c.ID != "" && c.ID != cluster {
		return fmt.Errorf("the data folder %s is damaged: node.json names mesh %s, the catalogue mesh %s", n.cfg.Data, cluster, c.ID)
	}
	return n.announce(ctx)
}

// found makes a mesh of one. The folder remembers that this node is founding
// until the catalogue holds the mesh, so that a crash between the two ends in
// the same mesh and not in none.
func (n *Node) found(ctx context.Context) error {
	c := metadata.Cluster{ID: n.folder.known().Cluster, Epoch: 1, Replicas: n.cfg.Replicas, AllowSparse: n.cfg.AllowSparse}
	if c.ID == "" {
		c.ID = newUUID()
	}
	if err := n.enter(ctx, c, true); err != nil {
		return err
	}
	if err := n.catalog.Found(ctx, c, n.self()); err != nil {
		return fmt.Errorf("found a mesh: %w", err)
	}
	n.log.Info("founded a mesh", "mesh", c.ID, "zone", n.cfg.Zone, "secret", n.cfg.SecretFile)
	return n.enter(ctx, c, false)
}

// announce tells the mesh what may have changed since this member last ran.
// Other members may be slow to come back too: it is retried for ever, behind a
// node that already serves.
func (n *Node) announce(ctx context.Context) error {
	if len(n.catalog.Members()) == 0 {
		return nil // let in just now: the entry is on its way here
	}
	if len(n.cfg.Join) > 0 {
		_, err := n.members.Join(ctx, n.cfg.Join)
		if errors.Is(err, mesh.ErrOtherMesh) {
			return fmt.Errorf("the data folder %s belongs to mesh %s, --join leads elsewhere: %w", n.cfg.Data, n.clusterID(), err)
		}
		if errors.Is(err, mesh.ErrSecret) {
			return err
		}
	}
	return n.retry(ctx, func(ctx context.Context) error {
		if n.isRemoved(ctx) { // it would look for a leader in vain
			return final{errRemoved}
		}
		err := n.catalog.Join(ctx, n.self())
		if errors.Is(err, oci.ErrDenied) {
			return final{fmt.Errorf("the mesh refuses this node: %w", err)}
		}
		return err
	})
}

// expect joins the mesh of any expected node, or founds one if all expected
// nodes answer, none belongs to a mesh, this one has the lowest name, and all
// others promise to let no other node found. The promises are durable and each
// node gives one, so there is one founder, whatever the nodes are called.
func (n *Node) expect(ctx context.Context) error {
	names := slices.Sorted(slices.Values(n.cfg.Expect))
	seeds := n.expectSeeds(names)
	founds := false
	err := n.retry(ctx, func(ctx context.Context) (err error) {
		if len(seeds) > 0 {
			if _, err := n.members.Join(ctx, seeds); errors.Is(err, mesh.ErrSecret) {
				return final{err}
			}
		}
		founds, err = n.gather(ctx, names)
		return err
	})
	if err == nil && founds {
		return n.found(ctx)
	}
	return err
}

// expectSeeds is where the expected nodes gossip: where --join says, else at
// hosts of their names.
func (n *Node) expectSeeds(names []string) []string {
	if len(n.cfg.Join) > 0 {
		return n.cfg.Join
	}
	var seeds []string
	_, port, _ := net.SplitHostPort(n.members.Address())
	for _, name := range names {
		if name != n.cfg.Name {
			seeds = append(seeds, net.JoinHostPort(name, port))
		}
	}
	return seeds
}

// gather is one look at the expected nodes: it joins a mesh where one of them
// has one, and reports whether this node is to found.
func (n *Node) gather(ctx context.Context, names []string) (founds bool, err error) {
	others := map[string]string{} // name -> UUID
	for _, p := range n.members.Peers() {
		if p.ID == n.id() {
			continue
		}
		hello, err := n.hello(ctx, p.ID)
		switch {
		case err != nil:
			return false, fmt.Errorf("%s does not answer on its peer port: %w", p.Name, err)
		case hello.Cluster != "":
			return false, n.ask(ctx, p)
		case hello.Name == n.cfg.Name || others[hello.Name] != "":
			return false, fmt.Errorf("two nodes are called %s", hello.Name)
		}
		others[hello.Name] = p.ID
	}
	for _, name := range names {
		if name != n.cfg.Name && others[name] == "" {
			return false, fmt.Errorf("waiting for %s, one of --expect", name)
		}
	}
	if names[0] != n.cfg.Name {
		return false, fmt.Errorf("waiting for %s, the lowest name of --expect, to found the mesh", names[0])
	}
	for _, name := range names[1:] {
		if err := n.door(ctx, http.MethodPost, others[name], promisePath, nil, new(greeting)); err != nil {
			return false, fmt.Errorf("%s does not let this node found the mesh: %w", name, err)
		}
	}
	return true, nil
}

// join asks the members that --join leads to until one lets this node in.
func (n *Node) join(ctx context.Context) error {
	return n.retry(ctx, func(ctx context.Context) error {
		if len(n.catalog.Members()) > 0 {
			return nil // the log on this disk, replayed by now, had it all
		}
		if len(n.cfg.Join) > 0 {
			if _, err := n.members.Join(ctx, n.cfg.Join); err != nil {
				if errors.Is(err, mesh.ErrSecret) {
					return final{err}
				}
				return err
			}
		}
		err := errors.New("no member has been heard of yet")
		for _, p := range n.members.Peers() {
			if p.ID == n.id() || p.Cluster == "" {
				continue
			}
			if err = n.ask(ctx, p); err == nil || errors.As(err, new(final)) {
				return err
			}
		}
		return err
	})
}

// final marks an error that trying again cannot cure.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// retry calls try until it succeeds, ctx ends or the error is final. What
// keeps it waiting is logged once per reason.
func (n *Node) retry(ctx context.Context, try func(context.Context) error) error {
	last := ""
	for {
		attempt, cancel := context.WithTimeout(oci.WithRequestID(ctx, newRequestID()), joinTime)
		err := try(attempt)
		cancel()
		if err == nil || ctx.Err() != nil {
			n.waiting.Store(nil)
			return ctx.Err()
		}
		if errors.As(err, new(final)) {
			return err
		}
		if err.Error() != last {
			n.log.Warn("not part of the mesh yet; trying on", "reason", err)
			last = err.Error()
		}
		n.waiting.Store(&err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retryJoin):
		}
	}
}

// greeting is what a node tells anyone who knows the secret.
type greeting struct {
	Name    string         `json:"name"`
	Cluster string         `json:"cluster"`
	Epoch   metadata.Epoch `json:"epoch,omitempty"`
	Gone    bool           `json:"gone,omitempty"` // the asker's mesh is this one, and it is no member of it
}

// request asks to be let in.
type request struct {
	metadata.Member
	Blank bool `json:"blank"` // the node holds nothing of the mesh's log
}

// admission is the answer to a newcomer: the mesh, and who is in it.
type admission struct {
	Cluster metadata.Cluster  `json:"cluster"`
	Members []metadata.Member `json:"members"`
}

// ask asks one member to be let in, and enters its mesh.
func (n *Node) ask(ctx context.Context, p mesh.Peer) error {
	if own := n.folder.known().mesh(); own != "" && own != p.Cluster {
		return final{fmt.Errorf("the data folder %s belongs to mesh %s, but %s (%s) to mesh %s: use another folder, or other --join addresses",
			n.cfg.Data, own, p.Name, p.Addr, p.Cluster)}
	}
	if err := n.checkEpoch(ctx, p); err != nil {
		return err
	}
	body, err := json.Marshal(request{Member: n.self(), Blank: len(n.catalog.Status().Voters) == 0})
	if err != nil {
		return err
	}
	var in admission
	if err := n.door(ctx, http.MethodPost, p.ID, joinPath, body, &in); err != nil {
		if errors.Is(err, oci.ErrDenied) {
			return final{fmt.Errorf("%s refuses this node: %w", p.Name, err)}
		}
		return fmt.Errorf("ask %s at its peer port %s to be let in: %w", p.Name, p.Addr, err)
	}
	if in.Cluster.Replicas != n.cfg.Replicas {
		n.log.Info("the mesh's --replicas counts, not this node's", "mesh", in.Cluster.Replicas, "here", n.cfg.Replicas)
	}
	n.trust.lend(in.Members)
	n.hint(in.Members)
	if err := n.enter(ctx, in.Cluster, false); err != nil {
		return final{err}
	}
	n.log.Info("joined a mesh", "mesh", in.Cluster.ID, "through", p.Name, "zone", n.cfg.Zone)
	return nil
}

// checkEpoch keeps a node that was recovered from those who were not: they know
// it as a member still, and belong to the mesh in all but its epoch. Where it
// gives up a recovery of its own for another, the two may be equally many.
func (n *Node) checkEpoch(ctx context.Context, p mesh.Peer) error {
	known := n.folder.known()
	if known.Returning == "" {
		return nil
	}
	hello, err := n.hello(ctx, p.ID)
	switch {
	case err != nil:
		return fmt.Errorf("%s does not answer on its peer port: %w", p.Name, err)
	case hello.Epoch == known.After || hello.Epoch.Recoveries() < known.After.Recoveries():
		return fmt.Errorf("%s is of epoch %s of the mesh, from before the recovery", p.Name, hello.Epoch)
	}
	return nil
}

// enter makes everything that names this node's mesh name c: the folder first,
// so that no other node hears of what a crash would make it forget.
func (n *Node) enter(ctx context.Context, c metadata.Cluster, founding bool) error {
	if err := n.folder.enter(c, founding); err != nil {
		return err
	}
	if err := n.trust.enter(c); err != nil {
		return err
	}
	if founding {
		return nil
	}
	return n.members.UpdateMeta(ctx, n.meta(c.ID))
}

func (n *Node) hello(ctx context.Context, id string) (g greeting, err error) {
	err = n.door(ctx, http.MethodGet, id, helloPath, nil, &g)
	return g, err
}

// door sends a request that needs no membership, and reads a JSON answer.
func (n *Node) door(ctx context.Context, method, id, path string, body []byte, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+id+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := n.stranger.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxJoinBody))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return oci.DecodeError(answer)
	}
	return json.Unmarshal(answer, into)
}
