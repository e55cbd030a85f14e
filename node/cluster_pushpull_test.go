package node

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestPushAnywhereReadEverywhere(t *testing.T) {
	for _, size := range []int{1, 3, 5} {
		t.Run(fmt.Sprintf("%d nodes", size), func(t *testing.T) {
			c := newCluster(t, size)
			for i := range c.nodes {
				repo, img := fmt.Sprintf("team/app%d", i), newImage(300<<10)
				c.push(i, repo, "v1", img)
				for j := range c.nodes {
					c.pull(j, repo, "v1", img)
					c.pull(j, repo, img.digest.String(), img)
				}
			}
		})
	}
}

// TestTagMovesAtOnce moves a tag at one node and reads it at another, without
// any wait between, and does the same with its removal.
func TestTagMovesAtOnce(t *testing.T) {
	const moves, removals = 10_000, 500
	c := newCluster(t, 3)
	var manifests [2][]byte
	for i := range manifests {
		img := newImage(1000 + i)
		c.push(0, "app", fmt.Sprintf("base%d", i), img)
		manifests[i] = img.manifest
	}
	for i := range moves {
		a, b := i%3, (i+1)%3
		body := manifests[i%2]
		c.do(a, http.StatusCreated, http.MethodPut, "/v2/app/manifests/moving", body, "Content-Type", v1.MediaTypeImageManifest)
		got := c.do(b, http.StatusOK, http.MethodHead, "/v2/app/manifests/moving", nil)
		if d := got.header.Get("Docker-Content-Digest"); d != digest.FromBytes(body).String() {
			t.Fatalf("move %d through node %d: node %d still shows %s", i, a, b, d)
		}
		if w := got.header.Get("Warning"); w != "" {
			t.Fatalf("move %d: a degraded answer in a healthy mesh: %s", i, w)
		}
	}
	for i := range removals {
		a, b := i%3, (i+1)%3
		c.do(a, http.StatusCreated, http.MethodPut, "/v2/app/manifests/brief", manifests[0], "Content-Type", v1.MediaTypeImageManifest)
		c.do(a, http.StatusAccepted, http.MethodDelete, "/v2/app/manifests/brief", nil)
		c.do(b, http.StatusNotFound, http.MethodHead, "/v2/app/manifests/brief", nil)
	}
}

func TestDeletedManifestIsGoneEverywhere(t *testing.T) {
	c := newCluster(t, 3)
	for i := range 60 {
		a, b, img := i%3, (i+1)%3, newImage(100)
		c.push(a, "app", "v", img)
		c.do(a, http.StatusAccepted, http.MethodDelete, "/v2/app/manifests/"+img.digest.String(), nil)
		c.do(b, http.StatusNotFound, http.MethodGet, "/v2/app/manifests/"+img.digest.String(), nil)
		c.do(b, http.StatusNotFound, http.MethodGet, "/v2/app/manifests/v", nil)
	}
}

func TestUploadChunkedOverAllNodes(t *testing.T) {
	c := newCluster(t, 3)
	const chunk, chunks = 100 << 10, 9
	blob := make([]byte, chunk*chunks)
	rand.Read(blob)
	d := digest.FromBytes(blob)
	location := c.do(0, http.StatusAccepted, http.MethodPost, "/v2/app/blobs/uploads/", nil).header.Get("Location")
	for i := range chunks - 1 {
		from := i * chunk
		a := c.do(i%3, http.StatusAccepted, http.MethodPatch, location, blob[from:from+chunk],
			"Content-Range", fmt.Sprintf("%d-%d", from, from+chunk-1), "Content-Type", "application/octet-stream")
		if got, want := a.header.Get("Range"), fmt.Sprintf("0-%d", from+chunk-1); got != want {
			t.Fatalf("chunk %d: Range %q, want %q", i, got, want)
		}
		location = a.header.Get("Location")
	}
	c.do(1, http.StatusRequestedRangeNotSatisfiable, http.MethodPatch, location, blob[:chunk], "Content-Range", fmt.Sprintf("0-%d", chunk-1))
	c.do(2, http.StatusNoContent, http.MethodGet, location, nil)
	last := blob[chunk*(chunks-1):]
	path := location + "?digest=" + d.String()
	c.do(2, http.StatusCreated, http.MethodPut, path, last)
	c.do(1, http.StatusCreated, http.MethodPut, path, last) // a repeat, after an answer that was lost
	for i := range c.nodes {
		if a := c.do(i, http.StatusOK, http.MethodGet, "/v2/app/blobs/"+d.String(), nil); digest.FromBytes(a.body) != d {
			t.Errorf("node %d serves other bytes", i)
		}
	}
}

func TestNewcomerPullsEverything(t *testing.T) {
	c := newCluster(t, 3)
	images := map[string]image{}
	for i := range 6 {
		repo := fmt.Sprintf("old/app%d", i)
		images[repo] = newImage(100<<10 + i)
		c.push(i%3, repo, "v1", images[repo])
	}
	c.add()
	for repo, img := range images {
		c.pull(3, repo, "v1", img)
	}
}

// TestLargeManifests pushes manifests that do not fit into an entry of the log
// through every node: bodies are placed, lists of children ride along.
func TestLargeManifests(t *testing.T) {
	c := newCluster(t, 3)
	for i := range c.nodes {
		img := newImage(100)
		pad := strings.Repeat("x", 1<<20+i)
		img.manifest = []byte(strings.Replace(string(img.manifest), `"layers"`, `"annotations":{"pad":"`+pad+`"},"layers"`, 1))
		img.digest = digest.FromBytes(img.manifest)
		c.push(i, "app", "large", img)
		for j := range c.nodes {
			c.pull(j, "app", "large", img)
		}
		var children strings.Builder
		for k := range 25_000 {
			fmt.Fprintf(&children, `,{"mediaType":%q,"digest":%q,"size":1}`, v1.MediaTypeImageManifest, digest.FromString(fmt.Sprint(i, k)))
		}
		index := image{manifest: []byte(`{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageIndex + `","manifests":[` + children.String()[1:] + `]}`)}
		index.digest = digest.FromBytes(index.manifest)
		c.do(i, http.StatusCreated, http.MethodPut, "/v2/app/manifests/index", index.manifest, "Content-Type", v1.MediaTypeImageIndex)
		c.pull((i+1)%3, "app", "index", index)
		huge := append(index.manifest, make([]byte, 4<<20)...)
		c.do(i, http.StatusRequestEntityTooLarge, http.MethodPut, "/v2/app/manifests/huge", huge, "Content-Type", v1.MediaTypeImageIndex)
	}
}

// TestLeaderKilled ends the leader amid a stream of pushes through the others.
// What was acknowledged is there, and pushes go on after the election.
func TestLeaderKilled(t *testing.T) {
	c := newCluster(t, 3)
	leader := c.leader(0, 1, 2)
	alive := c.others(leader)
	const before, after = 5, 10

	var mu sync.Mutex
	acked := map[string]image{}
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(acked) }
	stop := make(chan struct{})
	var pushers sync.WaitGroup
	for _, i := range alive {
		pushers.Go(func() {
			for k := 0; ; k++ {
				select {
				case <-stop:
					return
				default:
				}
				tag, img := fmt.Sprintf("n%d-%d", i, k), newImage(2000)
				if c.tryPush(i, "stream", tag, img) == nil {
					mu.Lock()
					acked[tag] = img
					mu.Unlock()
				}
			}
		})
	}
	atLeast := func(want int) func() error {
		return func() error {
			if n := count(); n < want {
				return fmt.Errorf("%d pushes acknowledged, want %d", n, want)
			}
			return nil
		}
	}
	c.await("pushes before the kill", atLeast(before))
	c.nodes[leader].crash()
	// A client looks before it pushes: a miss sits out the election too.
	c.do(alive[0], http.StatusNotFound, http.MethodHead, "/v2/stream/blobs/"+digest.FromString("never pushed").String(), nil)
	c.await("pushes after the kill", atLeast(count()+after))
	close(stop)
	pushers.Wait()
	for tag, img := range acked {
		for _, i := range alive {
			c.pull(i, "stream", tag, img)
		}
	}
	if next := c.leader(alive...); next == leader {
		t.Error("the dead node still leads")
	}
}

// TestQuorumGone leaves one node of three: it serves what it holds, says so,
// and refuses what it cannot promise.
func TestQuorumGone(t *testing.T) {
	c := newCluster(t, 3)
	img := newImage(5000)
	c.push(0, "app", "v1", img)
	for i := range c.nodes {
		c.pull(i, "app", "v1", img) // so that each holds it
	}
	c.nodes[0].crash()
	c.nodes[1].crash()
	c.await("a degraded answer", func() error {
		a, err := c.try(2, http.MethodGet, "/v2/app/manifests/v1", nil)
		if err != nil {
			return err
		}
		if a.status != http.StatusOK || !strings.HasPrefix(a.header.Get("Warning"), "299 - ") {
			return fmt.Errorf("%d with Warning %q", a.status, a.header.Get("Warning"))
		}
		return nil
	})
	c.pull(2, "app", "v1", img)
	c.pull(2, "app", img.digest.String(), img)
	unknown := digest.FromString("never pushed").String()
	for _, path := range []string{"/v2/app/manifests/none", "/v2/app/manifests/" + unknown, "/v2/app/blobs/" + unknown, "/v2/none/tags/list"} {
		a := c.do(2, http.StatusServiceUnavailable, http.MethodGet, path, nil)
		if a.header.Get("Retry-After") == "" {
			t.Errorf("GET %s: 503 without Retry-After", path)
		}
	}
	c.do(2, http.StatusServiceUnavailable, http.MethodGet, "/readyz?write", nil)
	c.do(2, http.StatusOK, http.MethodGet, "/readyz", nil)
	c.do(2, http.StatusOK, http.MethodGet, "/v2/", nil)
}

// TestRollingRestart restarts each node in turn, on new ports, while pushes
// and pulls go on through the others.
func TestRollingRestart(t *testing.T) {
	c := newCluster(t, 3)
	kept := newImage(50 << 10)
	c.push(0, "app", "kept", kept)
	for i := range c.nodes {
		rest := c.others(i)
		stop := make(chan struct{})
		errs := make(chan error, len(rest))
		for _, j := range rest {
			go func() {
				for {
					select {
					case <-stop:
						errs <- nil
						return
					default:
					}
					if err := c.tryPull(j, "app", "kept", kept); err != nil {
						errs <- fmt.Errorf("pull through node %d while %d restarts: %w", j, i, err)
						return
					}
				}
			}()
		}
		c.nodes[i].Stop()
		img := newImage(1000)
		tag := fmt.Sprintf("during%d", i)
		c.await("a push while a node is away", func() error { return c.tryPush(rest[0], "app", tag, img) })
		c.restart(i)
		c.pull(i, "app", tag, img)
		close(stop)
		for range rest {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		c.awaitVoters(3)
	}
}

// TestAllRestart stops every node and starts them again with the flags that
// they had, on other ports: they find each other by what their folders know.
func TestAllRestart(t *testing.T) {
	c := newCluster(t, 3)
	img := newImage(10 << 10)
	c.push(1, "app", "v1", img)
	for i := len(c.nodes) - 1; i >= 0; i-- {
		c.nodes[i].Stop()
	}
	for i := range c.nodes {
		c.cfgs[i].Join = c.cfgs[i].Join[:0]
		if i > 0 {
			c.cfgs[i].GossipListen = c.nodes[i].GossipAddr()
		}
		c.nodes[i] = c.start(c.cfgs[i])
	}
	for i, n := range c.nodes {
		c.await(fmt.Sprintf("node %d ready again", i), n.Ready)
		c.pull(i, "app", "v1", img)
	}
}

func TestIPv6(t *testing.T) {
	c := newClusterOn(t, "::1", 3)
	img := newImage(10 << 10)
	c.push(0, "app", "v1", img)
	c.pull(2, "app", "v1", img)
}
