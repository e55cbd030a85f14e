package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// patience bounds every wait for a condition. It is long, since the machines
// that run tests are busy; a condition that holds is seen within milliseconds.
const patience = 60 * time.Second

// cluster is a mesh of real nodes in this process: real sockets, real disks.
type cluster struct {
	t     *testing.T
	dir   string
	host  string
	nodes []*Node
	cfgs  []Config
}

// newCluster founds a mesh of n nodes on loopback and waits until all of them
// serve reads and Raft has as many voters as it should.
func newCluster(t *testing.T, n int, change ...func(*Config)) *cluster {
	t.Helper()
	return newClusterOn(t, "127.0.0.1", n, change...)
}

func newClusterOn(t *testing.T, host string, n int, change ...func(*Config)) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), host: host}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			n.Stop()
		}
	})
	for range n {
		c.add(change...)
	}
	c.awaitVoters(map[int]int{1: 1, 2: 1, 3: 3, 4: 3, 5: 3, 6: 3, 7: 5}[n])
	return c
}

// config is the configuration of node i, which others can be made from.
func (c *cluster) config(i int) Config {
	any := c.host + ":0"
	if strings.Contains(c.host, ":") {
		any = "[" + c.host + "]:0"
	}
	cfg := Config{
		Name:         fmt.Sprintf("n%d", i),
		Data:         filepath.Join(c.dir, fmt.Sprintf("n%d", i)),
		Listen:       any,
		PeerListen:   any,
		GossipListen: any,
		Weight:       1,
		Quick:        true,
		Drain:        time.Second,
		Log:          testLog(c.t).With("node", i),
	}
	if i > 0 {
		cfg.Join = []string{c.nodes[0].GossipAddr()}
		cfg.SecretFile = filepath.Join(c.dir, "n0", "mesh.secret")
	}
	return cfg
}

// testLog shows what the nodes say where FLOTILLA_TEST_LOG is set.
func testLog(t *testing.T) *slog.Logger {
	if os.Getenv("FLOTILLA_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// add starts one more node and waits until it serves reads.
func (c *cluster) add(change ...func(*Config)) *Node {
	c.t.Helper()
	cfg := c.config(len(c.nodes))
	for _, f := range change {
		f(&cfg)
	}
	n := c.start(cfg)
	c.nodes = append(c.nodes, n)
	c.cfgs = append(c.cfgs, cfg)
	c.await(fmt.Sprintf("%s ready", cfg.Name), n.Ready)
	return n
}

func (c *cluster) start(cfg Config) *Node {
	c.t.Helper()
	n, err := Start(c.t.Context(), cfg)
	if err != nil {
		c.t.Fatalf("start %s: %v", cfg.Name, err)
	}
	return n
}

// restart brings a node that has stopped or crashed back with the
// configuration that it had, on whatever ports are free now.
func (c *cluster) restart(i int) {
	c.t.Helper()
	c.nodes[i] = c.start(c.cfgs[i])
	c.await(fmt.Sprintf("node %d ready again", i), c.nodes[i].Ready)
}

// crash ends a node without a word to anyone: no drain, no goodbye, no
// handover. What it had not synced is still there, as after kill -9.
func (n *Node) crash() {
	n.stopped = func() {}
	n.stop()
	_ = n.public.Close()
	n.port.Close()
	_ = n.peers.Close()
	n.blobs.Close()
	_ = n.catalog.Close()
	_ = n.members.Close()
	n.running.Wait()
	_ = n.disk.Close()
	n.folder.close()
}

// await waits until check returns nil.
func (c *cluster) await(what string, check func() error) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			c.t.Fatalf("waited in vain: %s: %v", what, err)
		case <-tick.C:
		}
	}
}

// awaitVoters waits until every node sees a leader and this many voters.
func (c *cluster) awaitVoters(want int) {
	c.t.Helper()
	for _, n := range c.nodes {
		c.await(fmt.Sprintf("%d voters at %s", want, n.cfg.Name), func() error {
			if s := n.catalog.Status(); len(s.Voters) != want || s.Leader == "" {
				return fmt.Errorf("voters %d, leader %q", len(s.Voters), s.Leader)
			}
			return nil
		})
	}
}

// leader returns the index of the node that the others follow.
func (c *cluster) leader(among ...int) int {
	c.t.Helper()
	found := -1
	c.await("a leader", func() error {
		for _, i := range among {
			id := c.nodes[i].catalog.Status().Leader
			for _, j := range among {
				if c.nodes[j].ID() == id && c.nodes[j].catalog.Status().State == "leader" {
					found = j
					return nil
				}
			}
		}
		return fmt.Errorf("none among %v", among)
	})
	return found
}

// url is the address of path on node i's public port.
func (c *cluster) url(i int, path string) string {
	if strings.HasPrefix(path, "http") {
		return path
	}
	return "http://" + c.nodes[i].Addr() + path
}

// answer is a response whose body has been read.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// try sends one request to node i.
func (c *cluster) try(i int, method, path string, body []byte, header ...string) (answer, error) {
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.url(i, path), bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	for k := 0; k+1 < len(header); k += 2 {
		req.Header.Set(header[k], header[k+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, b}, err
}

// do is try with a status that must come.
func (c *cluster) do(i, want int, method, path string, body []byte, header ...string) answer {
	c.t.Helper()
	a, err := c.try(i, method, path, body, header...)
	if err != nil {
		c.t.Fatalf("%s %s at node %d: %v", method, path, i, err)
	}
	if a.status != want {
		c.t.Fatalf("%s %s at node %d: %d, want %d: %s", method, path, i, a.status, want, a.body)
	}
	return a
}

// image is an image of one layer, made here.
type image struct {
	blobs    map[digest.Digest][]byte
	manifest []byte
	digest   digest.Digest
}

// newImage makes an image with a random layer of this size.
func newImage(size int) image {
	layer := make([]byte, size)
	rand.Read(layer)
	config := []byte(fmt.Sprintf(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[%q]}}`, digest.FromBytes(layer)))
	m := v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers:    []v1.Descriptor{{MediaType: v1.MediaTypeImageLayerGzip, Digest: digest.FromBytes(layer), Size: int64(size)}},
	}
	b, _ := json.Marshal(m)
	return image{
		blobs:    map[digest.Digest][]byte{m.Config.Digest: config, m.Layers[0].Digest: layer},
		manifest: b,
		digest:   digest.FromBytes(b),
	}
}

// tryPush pushes img through node i as a client does: what is missing, then
// the manifest under its tag.
func (c *cluster) tryPush(i int, repo, tag string, img image) error {
	for d, blob := range img.blobs {
		a, err := c.try(i, http.MethodPost, "/v2/"+repo+"/blobs/uploads/", nil)
		if err != nil || a.status != http.StatusAccepted {
			return fmt.Errorf("start upload: %d %s: %w", a.status, a.body, err)
		}
		a, err = c.try(i, http.MethodPut, a.header.Get("Location")+"?digest="+d.String(), blob)
		if err != nil || a.status != http.StatusCreated {
			return fmt.Errorf("upload: %d %s: %w", a.status, a.body, err)
		}
	}
	a, err := c.try(i, http.MethodPut, "/v2/"+repo+"/manifests/"+tag, img.manifest, "Content-Type", v1.MediaTypeImageManifest)
	if err != nil || a.status != http.StatusCreated {
		return fmt.Errorf("put manifest: %d %s: %w", a.status, a.body, err)
	}
	return nil
}

func (c *cluster) push(i int, repo, tag string, img image) {
	c.t.Helper()
	if err := c.tryPush(i, repo, tag, img); err != nil {
		c.t.Fatalf("push %s:%s through node %d: %v", repo, tag, i, err)
	}
}

// tryPull pulls by reference through node i and compares every byte.
func (c *cluster) tryPull(i int, repo, ref string, img image) error {
	a, err := c.try(i, http.MethodGet, "/v2/"+repo+"/manifests/"+ref, nil)
	if err != nil || a.status != http.StatusOK {
		return fmt.Errorf("get manifest: %d %s: %w", a.status, a.body, err)
	}
	if !bytes.Equal(a.body, img.manifest) {
		return fmt.Errorf("another manifest than was pushed")
	}
	for d, blob := range img.blobs {
		a, err := c.try(i, http.MethodGet, "/v2/"+repo+"/blobs/"+d.String(), nil)
		if err != nil || a.status != http.StatusOK {
			return fmt.Errorf("get blob: %d %.200s: %w", a.status, a.body, err)
		}
		if !bytes.Equal(a.body, blob) {
			return fmt.Errorf("other bytes than were pushed for %s", d)
		}
	}
	return nil
}

func (c *cluster) pull(i int, repo, ref string, img image) {
	c.t.Helper()
	if err := c.tryPull(i, repo, ref, img); err != nil {
		c.t.Fatalf("pull %s:%s through node %d: %v", repo, ref, i, err)
	}
}

// others returns all indices but those given.
func (c *cluster) others(not ...int) (out []int) {
	for i := range c.nodes {
		if !slices.Contains(not, i) {
			out = append(out, i)
		}
	}
	return out
}
