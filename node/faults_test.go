package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// TestLostLogOfAVoter: a voter that lost its log may have acknowledged what it
// no longer has. It is not let back in with its vote.
func TestLostLogOfAVoter(t *testing.T) {
	c := newCluster(t, 3)
	lost := c.others(c.leader(0, 1, 2))[0]
	c.nodes[lost].crash()
	if err := os.RemoveAll(filepath.Join(c.cfgs[lost].Data, "raft")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := Run(ctx, c.cfgs[lost])
	if !errors.Is(err, oci.ErrDenied) || !strings.Contains(err.Error(), "lost its part of the catalogue") {
		t.Fatalf("error %v, want one that says what was lost", err)
	}
	c.nodes[lost].stopped = func() {}
}

// TestLostState: the state is not synced with each write, so a power cut may
// take all of it; the log on the same disk brings it back.
func TestLostState(t *testing.T) {
	c := newCluster(t, 1)
	img := newImage(100)
	c.push(0, "app", "v1", img)
	c.nodes[0].crash()
	if err := os.RemoveAll(filepath.Join(c.cfgs[0].Data, "raft", "state")); err != nil {
		t.Fatal(err)
	}
	c.restart(0)
	c.pull(0, "app", "v1", img)
}

// expectants starts nodes with these names at once, which expect each other.
func expectants(t *testing.T, names ...string) []*Node {
	t.Helper()
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if _, err := makeSecret(secret); err != nil {
		t.Fatal(err)
	}
	var seeds []string
	for range names {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		seeds = append(seeds, ln.Addr().String())
		ln.Close()
	}
	nodes := make([]*Node, len(names))
	var starting sync.WaitGroup
	for i, name := range names {
		starting.Go(func() {
			n, err := Start(t.Context(), Config{
				Name: name, Data: filepath.Join(dir, fmt.Sprint(i)), SecretFile: secret,
				Listen: "127.0.0.1:0", PeerListen: "127.0.0.1:0", GossipListen: seeds[i],
				Expect: names, Join: seeds, Weight: 1, Quick: true, Drain: time.Second, Log: testLog(t),
			})
			if err != nil {
				t.Error(err)
				return
			}
			nodes[i] = n
		})
	}
	starting.Wait()
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(func() {
		for _, n := range nodes {
			n.Stop()
		}
	})
	return nodes
}

// TestExpect starts three nodes at once: they end in one mesh.
func TestExpect(t *testing.T) {
	c := &cluster{t: t, nodes: expectants(t, "a", "b", "c")}
	for i, n := range c.nodes {
		c.await(fmt.Sprintf("node %d ready", i), n.Ready)
		if got, want := n.clusterID(), c.nodes[0].clusterID(); got != want {
			t.Errorf("%s belongs to mesh %s, %s to %s", n.cfg.Name, got, c.nodes[0].cfg.Name, want)
		}
	}
	c.awaitVoters(3)
}

// TestExpectOneFounder: two nodes of the lowest name cannot both found, since
// each of the others promises one of them alone.
func TestExpectOneFounder(t *testing.T) {
	nodes := expectants(t, "a", "b", "a")
	c := &cluster{t: t, nodes: nodes}
	c.await("one of them to say what is wrong, or a mesh", func() error {
		for _, n := range nodes {
			if why := n.waiting.Load(); n.clusterID() != "" || why != nil && strings.Contains((*why).Error(), "two nodes are called a") {
				return nil
			}
		}
		return errors.New("nothing yet")
	})
	if a, b := nodes[0].clusterID(), nodes[2].clusterID(); a != "" && b != "" && a != b {
		t.Errorf("two meshes, %s and %s", a, b)
	}
	given := 0
	for _, who := range []string{nodes[0].ID(), nodes[2].ID()} {
		if ok, err := nodes[1].folder.promise(who); err != nil {
			t.Fatal(err)
		} else if ok {
			given++
		}
	}
	if given > 1 {
		t.Error("one node promises two others to let them found")
	}
}

// TestSilentPeers: connections that never greet shut out nobody but their own
// address, and not for long.
func TestSilentPeers(t *testing.T) {
	c := newCluster(t, 1)
	addr := c.nodes[0].port.ln.Addr().String()
	var conns []net.Conn
	defer func() {
		for _, conn := range conns {
			conn.Close()
		}
	}()
	for range 4 * maxFromOne {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	c.await("the first of them to be bounded", func() error {
		p := c.nodes[0].port
		p.mu.Lock()
		defer p.mu.Unlock()
		if n := p.greeting["127.0.0.1"]; n != maxFromOne {
			return fmt.Errorf("%d handshakes from one address, want %d", n, maxFromOne)
		}
		return nil
	})
	c.do(0, http.StatusOK, http.MethodGet, "/v2/", nil)
}

// TestDiskFull gives one node a small disk. Pushes are refused before the part
// that the catalogue needs is touched, pulls go on, and space that comes back
// is used.
func TestDiskFull(t *testing.T) {
	small := filepath.Join(t.TempDir(), "small")
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	mount(t, small, 96<<20)
	c := newCluster(t, 1, func(cfg *Config) { cfg.Data = filepath.Join(small, "data") })
	kept := newImage(1 << 20)
	c.push(0, "app", "kept", kept)
	for i, size := 0, 4<<20; c.nodes[0].disk.Full() == nil; i++ {
		if err := c.tryPush(0, "app", fmt.Sprint("fill", i), newImage(size)); err != nil && !strings.Contains(err.Error(), "507") {
			t.Fatalf("error %v, want 507", err)
		} else if err != nil {
			size = max(size/2, 1<<10) // does not fit any more
		}
	}
	c.do(0, http.StatusInsufficientStorage, http.MethodPut, "/v2/app/manifests/none", kept.manifest, "Content-Type", "application/vnd.oci.image.manifest.v1+json")
	c.do(0, http.StatusServiceUnavailable, http.MethodGet, "/readyz?write", nil)
	c.do(0, http.StatusOK, http.MethodGet, "/readyz", nil)
	free, total, err := c.nodes[0].disk.Free()
	if err != nil {
		t.Fatal(err)
	}
	if free < total/5 {
		t.Errorf("%d of %d bytes free: the reserve was used up", free, total)
	}
	c.pull(0, "app", "kept", kept)
}
