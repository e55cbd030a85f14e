package mesh_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh"
	"github.com/flotilla-registry/flotilla/mesh/ring"
)

// TestAnyNodeServesWhatAnyHolds: wherever the bytes lie, owner or not, with
// weight or without, every node finds them.
func TestAnyNodeServesWhatAnyHolds(t *testing.T) {
	c := newCluster(t, option{replicas: 1}, "a", "a", "b", "b", "-a", "-b")
	for i, holder := range c.nodes {
		for j, reader := range c.nodes {
			if (i+j)%2 == 0 {
				continue // half of the pairs tell as much
			}
			content := bytesOf(uint64(100*i+j), 50_000)
			holder.hold(t, content)
			reader.mustRead(t, content)
		}
	}
}

func TestEmptyBlob(t *testing.T) {
	c := newCluster(t, option{replicas: 1}, "a", "a", "a")
	c.nodes[0].hold(t, nil)
	for _, p := range c.nodes {
		p.mustRead(t, nil)
	}
}

// TestProofOfAbsence: 404 is said only when every member denied.
func TestProofOfAbsence(t *testing.T) {
	for _, row := range []struct {
		name  string
		zones []string
		spoil func(c *cluster)
		want  error
	}{
		{"alone", []string{"a"}, func(*cluster) {}, oci.ErrBlobUnknown},
		{"all deny", []string{"a", "a", "b", "-b", "b", "b", "b", "b", "b"}, func(*cluster) {}, oci.ErrBlobUnknown},
		{"seen down, but answers", []string{"a", "b", "b"}, func(c *cluster) { c.setDown(c.nodes[1], true) }, oci.ErrBlobUnknown},
		{"one seen down and dead", []string{"a", "b", "b"}, func(c *cluster) { c.setDown(c.nodes[1], true); c.nodes[1].kill() }, oci.ErrUnavailable},
		{"one dead", []string{"a", "a", "b"}, func(c *cluster) { c.nodes[1].kill() }, oci.ErrUnavailable},
		{"one without weight dead", []string{"a", "a", "-b"}, func(c *cluster) { c.nodes[2].kill() }, oci.ErrUnavailable},
		{"one in trouble", []string{"a", "a", "b"}, func(c *cluster) {
			c.nodes[2].setTamper(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { http.Error(w, "broken", 500) })
		}, oci.ErrUnavailable},
		{"a proxy's 404 is no denial", []string{"a", "a", "b"}, func(c *cluster) {
			c.nodes[2].setTamper(func(w http.ResponseWriter, r *http.Request, _ http.Handler) { http.NotFound(w, r) })
		}, oci.ErrUnavailable},
		{"nobody is known yet", []string{"a", "a"}, func(c *cluster) { c.change(func([]ring.Node) []ring.Node { return nil }) }, oci.ErrUnavailable},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newCluster(t, option{replicas: 2}, row.zones...)
			row.spoil(c)
			for i := range 5 { // various gateways and owners
				_, err := c.nodes[0].read(t.Context(), digest.FromString(fmt.Sprint(i)))
				if !errors.Is(err, row.want) {
					t.Fatalf("error %v, want %v", err, row.want)
				}
			}
		})
	}
}

// TestBlackHole: a node that answers nothing costs the time of one answer, and
// is asked last from then on.
func TestBlackHole(t *testing.T) {
	c := newCluster(t, option{replicas: 2, patience: mesh.Patience{Answer: 300 * time.Millisecond}}, "a", "b", "b", "b")
	lost := c.nodes[1]
	lost.lost.Store(true)
	for i := range 5 {
		content, _ := contentFor(t, 1000+i, func(d digest.Digest) bool { return c.Ring().Rank(d)[0].ID == lost.id })
		c.nodes[3].hold(t, content)
		c.nodes[0].mustRead(t, content)
	}
	if n := c.nodes[0].blobs.Stats().FetchFailed; n != 1 {
		t.Errorf("the lost node was asked %d times, want once", n)
	}
}

// TestGatewayFetchesOnce: nodes of one zone miss a blob at once, and it
// crosses the line between the zones once.
func TestGatewayFetchesOnce(t *testing.T) {
	c := newCluster(t, option{replicas: 1}, "south", "north", "north", "north", "-north")
	owner := c.nodes[0]
	content, d := contentFor(t, 1<<20, func(d digest.Digest) bool { return c.Ring().Owners(d)[0].ID == owner.id })
	gateway := c.peer(c.Ring().Head(d, "north")[0].ID)
	owner.hold(t, content)
	// The owner waits until all have got their neighbours, so that they do ask at once.
	asked := make(chan struct{})
	owner.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		<-asked
		next.ServeHTTP(w, r)
	})
	var arrived atomic.Int64
	gateway.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(w, r)
		if strings.HasSuffix(r.URL.Path, "/line") && arrived.Add(1) == 3 {
			close(asked)
		}
	})
	var wg sync.WaitGroup
	for _, p := range c.nodes[1:] {
		if p == gateway {
			continue
		}
		wg.Go(func() {
			if got, err := p.read(t.Context(), d); err != nil || !bytes.Equal(got, content) {
				t.Errorf("node %s: %d bytes, %v", p.id, len(got), err)
			}
		})
	}
	wg.Wait()
	if n := owner.answers("GET", d, 200); n != 1 {
		t.Errorf("the owner sent the blob %d times, want once", n)
	}
	if got := owner.blobs.Stats().BytesToPeers; got != int64(len(content)) {
		t.Errorf("%d bytes crossed the line, want %d", got, len(content))
	}
	if s := gateway.blobs.Stats(); s.GatewayFills == 0 {
		t.Errorf("the gateway filled for nobody: %+v", s)
	}
}

// TestOnlyTheGatewayFetches: the header that allows a download is sent to the
// gateway alone, and never passed on.
func TestOnlyTheGatewayFetches(t *testing.T) {
	c := newCluster(t, option{replicas: 2}, "a", "a", "a", "b", "b", "-b")
	var mu sync.Mutex
	allowed := map[string]int{}
	for _, p := range c.nodes {
		p.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Header.Get("Flotilla-May-Fill") != "" {
				mu.Lock()
				allowed[p.id]++
				mu.Unlock()
			}
			next.ServeHTTP(w, r)
		})
	}
	for i := range 20 {
		clear(allowed)
		d := digest.FromString(fmt.Sprint("nothing ", i))
		asker := c.nodes[i%len(c.nodes)]
		_, _ = asker.read(t.Context(), d)
		n, _ := c.Ring().Node(asker.id)
		gateway := c.Ring().Head(d, n.Zone)[0].ID
		want := map[string]int{gateway: 1}
		if gateway == asker.id {
			want = map[string]int{}
		}
		if fmt.Sprint(allowed) != fmt.Sprint(want) {
			t.Fatalf("allowed %v, want %v", allowed, want)
		}
	}
}

// TestRequestIDTravels: one client request has one name at every node, in
// downloads that outlive it too.
func TestRequestIDTravels(t *testing.T) {
	c := newCluster(t, option{replicas: 1}, "a", "a", "b")
	content, d := contentFor(t, 1000, func(d digest.Digest) bool {
		return c.Ring().Head(d, "a")[0].ID == uuid(1) && c.Ring().Owners(d)[0].ID == uuid(2)
	})
	c.nodes[2].hold(t, content)
	if _, err := c.nodes[0].read(oci.WithRequestID(t.Context(), "req-7"), d); err != nil {
		t.Fatal(err)
	}
	for _, p := range c.nodes[1:] {
		p.mu.Lock()
		ids := slices.Compact(slices.Clone(p.ids))
		p.mu.Unlock()
		if !slices.Equal(ids, []string{"req-7"}) {
			t.Errorf("node %s saw request ids %q", p.id, ids)
		}
	}
}
