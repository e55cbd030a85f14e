package node

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flotilla-registry/flotilla/mesh"
	"github.com/flotilla-registry/flotilla/metadata"
)

// pushingOn pushes new images through one node after another, again at another
// one where a node takes none, until stop, which returns all of them. An image
// that no node takes for long is an error.
func (c *cluster) pushingOn(nodes func() []*Node) (stop func() (map[string]image, error)) {
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan error, 1)
	images := map[string]image{}
	go func() {
		for k := 0; ctx.Err() == nil; k++ {
			repo, img := fmt.Sprintf("new%d", k), newImage(20<<10)
			var err error
			for end := time.Now().Add(patience); time.Now().Before(end); {
				up := nodes()
				at := &cluster{t: c.t, nodes: up}
				if err = at.tryPush(k%len(up), repo, "v1", img); err == nil {
					break
				}
			}
			if err != nil {
				done <- fmt.Errorf("push %s: %w", repo, err)
				return
			}
			images[repo] = img
		}
		done <- nil
	}()
	return func() (map[string]image, error) {
		cancel()
		err := <-done
		return images, err
	}
}

// TestSecretChanges: three nodes get a new secret, one restart at a time, while
// clients push and pull. Nobody else notices, at no step; at the end the old
// secret opens nothing.
func TestSecretChanges(t *testing.T) {
	c := newCluster(t, 3)
	all := c.others()
	file := func(i int) string { return filepath.Join(c.dir, fmt.Sprintf("secret%d", i)) }
	before, after := base64.StdEncoding.EncodeToString(secretOf(t, c)), secretLine(2, 32)
	for i := range c.cfgs {
		c.cfgs[i].SecretFile = file(i)
	}
	images := map[string]image{"old": newImage(100 << 10)}
	c.push(0, "old", "v1", images["old"])
	c.heal("a copy at each", all, c.placed(all, images, false))

	var mu sync.Mutex // guards up
	up := slices.Clone(c.nodes)
	stopPushing := c.pushingOn(func() []*Node {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(up)
	})
	for _, lines := range [][]string{{before, after}, {after, before}, {after}} {
		for i := range c.nodes {
			if err := os.WriteFile(file(i), []byte(strings.Join(lines, "\n")), 0o600); err != nil {
				t.Fatal(err)
			}
			rest := c.others(i)
			mu.Lock()
			up = []*Node{c.nodes[rest[0]], c.nodes[rest[1]]}
			mu.Unlock()
			stopPulling := c.pulling(images, rest...)
			c.nodes[i].Stop()
			c.restart(i)
			c.awaitTogether()
			if rounds, err := stopPulling(); err != nil || rounds == 0 {
				t.Errorf("pulls while node %d restarted with %d secrets: %d rounds, %v", i, len(lines), rounds, err)
			}
			c.pullMany(images, i)
			token, err := OperatorToken(file(i), time.Now())
			if err != nil {
				t.Fatal(err)
			}
			for _, j := range all {
				c.do(j, http.StatusOK, http.MethodGet, "/flotilla/v1/gc", nil, "Authorization", "Bearer "+token)
			}
			mu.Lock()
			up = slices.Clone(c.nodes)
			mu.Unlock()
		}
	}
	pushed, err := stopPushing()
	if err != nil || len(pushed) == 0 {
		t.Fatalf("%d images pushed, %v", len(pushed), err)
	}
	c.pullMany(pushed, all...)
	c.heal("the copies of what was pushed", all, c.placed(all, pushed, false))
	c.opensNothing(before)
}

// TestSecretChangesAtOnce: nodes that all start with another secret are the mesh
// that they were; it is the way to shut a thief out without waiting.
func TestSecretChangesAtOnce(t *testing.T) {
	c := newCluster(t, 3)
	before := base64.StdEncoding.EncodeToString(secretOf(t, c))
	img := newImage(20 << 10)
	c.push(0, "app", "v1", img)
	for _, n := range c.nodes {
		n.Stop()
	}
	if err := os.WriteFile(filepath.Join(c.dir, "n0", "mesh.secret"), []byte(secretLine(2, 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range c.cfgs {
		if i > 0 {
			c.cfgs[i].Join = []string{c.nodes[0].GossipAddr()}
		}
		c.nodes[i] = c.start(c.cfgs[i])
	}
	c.awaitTogether()
	c.pullMany(map[string]image{"app": img}, c.others()...)
	c.opensNothing(before)
}

// awaitTogether waits until every node sees every other in gossip, three voters
// and a leader.
func (c *cluster) awaitTogether() {
	c.t.Helper()
	c.awaitVoters(3)
	for _, n := range c.nodes {
		c.await("gossip at "+n.cfg.Name, func() error {
			if alive := n.members.Alive(); len(alive) != len(c.nodes) {
				return fmt.Errorf("%d members are alive", len(alive))
			}
			return n.Writable(c.t.Context())
		})
	}
}

// opensNothing holds that no port of any node takes a secret.
func (c *cluster) opensNothing(old string) {
	c.t.Helper()
	file := filepath.Join(c.dir, "old")
	if err := os.WriteFile(file, []byte(old), 0o600); err != nil {
		c.t.Fatal(err)
	}
	token, err := OperatorToken(file, time.Now())
	if err != nil {
		c.t.Fatal(err)
	}
	secrets, err := readSecrets(file, false)
	if err != nil {
		c.t.Fatal(err)
	}
	as := stranger(c.t, secrets[0], newUUID(), metadata.Cluster{})
	gossip := outsider(c.t, as.id, as.gossipKeys())
	for i, n := range c.nodes {
		c.do(i, http.StatusUnauthorized, http.MethodGet, "/flotilla/v1/gc", nil, "Authorization", "Bearer "+token)
		d := &dialer{trust: as, resolve: func(string) (string, bool) { return n.port.ln.Addr().String(), true }}
		if raftStream(c.t, d, n.ID()) {
			c.t.Errorf("%s takes a raft stream", n.cfg.Name)
		}
		if resp, err := d.client(false).Get("https://" + n.ID() + helloPath); err == nil {
			_ = resp.Body.Close()
			c.t.Errorf("%s opens its door: %d", n.cfg.Name, resp.StatusCode)
		}
		if _, err := gossip.Join(c.t.Context(), []string{n.GossipAddr()}); !errors.Is(err, mesh.ErrSecret) {
			c.t.Errorf("gossip with %s: %v", n.cfg.Name, err)
		}
	}
}

// outsider gossips with these keys as a node with this UUID, and is no more than
// that.
func outsider(t *testing.T, id string, keys [][]byte) *mesh.Members {
	t.Helper()
	m, err := mesh.Start(t.Context(), mesh.Config{
		ID: id, Meta: mesh.Meta{Name: "outsider", Zone: "default", Peer: "127.0.0.1:1"}, Bind: "127.0.0.1:0", Keys: keys,
		StatePath: filepath.Join(t.TempDir(), "peers.json"), Timing: mesh.Fast(), Log: testLog(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}
