package mesh_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/mesh"
	"github.com/flotilla-registry/flotilla/mesh/ring"
)

// once checks that the bytes of a blob of size crossed the lines between zones
// so many times, and next to nothing besides.
func (c *cluster) once(t *testing.T, size, times int) {
	t.Helper()
	if n := c.overLines.Load(); n < int64(size*times) || n > int64(size*times)+int64(size)/16 {
		t.Errorf("%d bytes crossed the lines, which is %.3f times the blob; want %d", n, float64(n)/float64(size), times)
	}
}

// zoned returns content of n bytes with so many owners in each zone.
func (c *cluster) zoned(t *testing.T, n int, want map[string]int) ([]byte, digest.Digest) {
	t.Helper()
	return contentFor(t, n, func(d digest.Digest) bool {
		got := map[string]int{}
		for _, o := range c.Ring().Owners(d) {
			got[o.Zone]++
		}
		for zone, n := range want {
			if got[zone] != n {
				return false
			}
		}
		return true
	})
}

// changing returns a tamper that changes the PUTs of blobs.
func changing(f func(w http.ResponseWriter, r *http.Request, next http.Handler)) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodPut {
			f(w, r, next)
			return
		}
		next.ServeHTTP(w, r)
	}
}

// TestOneCopyPerZone: of what is pushed, one copy crosses the line to each other
// zone, and is passed on there.
func TestOneCopyPerZone(t *testing.T) {
	const size = 1 << 20
	for _, row := range []struct {
		name   string
		zones  []string
		owners map[string]int
		spoil  func(c *cluster, first *peer)
		times  int
	}{
		{"two zones", []string{"a", "a", "b", "b", "b"}, map[string]int{"a": 1, "b": 2}, func(*cluster, *peer) {}, 1},
		{"three zones", []string{"-a", "b", "b", "c", "c"}, map[string]int{"b": 2, "c": 1}, func(*cluster, *peer) {}, 2},
		{"the first is dead", []string{"-a", "a", "b", "b", "b", "b"}, map[string]int{"a": 1, "b": 2}, func(_ *cluster, first *peer) { first.kill() }, 1},
		{"the first refuses", []string{"-a", "a", "b", "b", "b", "b"}, map[string]int{"a": 1, "b": 2}, func(_ *cluster, first *peer) {
			first.setTamper(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { http.Error(w, "broken", 500) })
		}, 1},
		{"the first is of an earlier version", []string{"-a", "a", "b", "b", "b"}, map[string]int{"a": 1, "b": 2}, func(_ *cluster, first *peer) {
			first.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				r.Header.Del("Flotilla-Pass-On")
				next.ServeHTTP(w, r)
			})
		}, 2},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newCluster(t, option{replicas: 3}, row.zones...)
			content, d := c.zoned(t, size, row.owners)
			owners := c.Ring().Owners(d)
			first := c.peer(owners[slices.IndexFunc(owners, func(n ring.Node) bool { return n.Zone == "b" })].ID)
			row.spoil(c, first)
			if err := c.nodes[0].push(t.Context(), content); err != nil {
				t.Fatal(err)
			}
			until(t, "each zone has its copies", func() bool {
				copies := map[string]int{}
				for _, id := range c.holders(d) {
					copies[c.zone(id)]++
				}
				return copies["a"] > 0 && copies["b"] >= row.owners["b"] && copies["c"] >= row.owners["c"]
			})
			c.once(t, size, row.times)
		})
	}
}

// TestPassOnInsideOnly: nobody sends a copy to another zone because a request
// says so, nor to whom it does not know.
func TestPassOnInsideOnly(t *testing.T) {
	c := newCluster(t, option{replicas: 1}, "a", "b", "b")
	content := bytesOf(1, 1000)
	d := digest.FromBytes(content)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://"+uuid(1)+"/blobs/"+d.String(), bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Flotilla-Pass-On", strings.Join([]string{uuid(0), uuid(1), uuid(9), "x/y", uuid(2)}, ","))
	resp, err := c.client(uuid(0)).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Flotilla-Pass-On"); resp.StatusCode != http.StatusCreated || got != uuid(2) {
		t.Errorf("answer %d, passed on to %q", resp.StatusCode, got)
	}
	until(t, "it is passed on", func() bool { return c.nodes[2].holds(d) })
	if n := c.nodes[0].requests(); n > 0 {
		t.Errorf("the node of the other zone got %d requests", n)
	}
}

// TestSlowFirst: a push does not wait for the one node of another zone that is
// to pass its copy on, where that takes its time.
func TestSlowFirst(t *testing.T) {
	c := newCluster(t, option{replicas: 3, patience: mesh.Patience{Durable: 20e9, Stall: 20e9}}, "-a", "b", "b", "b")
	content := bytesOf(3, 1<<20)
	d := digest.FromBytes(content)
	first := c.peer(c.Ring().Owners(d)[0].ID)
	first.setTamper(changing(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
		select {
		case <-r.Context().Done():
		case <-c.over:
		}
	}))
	if err := c.nodes[0].push(t.Context(), content); err != nil {
		t.Fatal(err)
	}
	if first.holds(d) || len(c.holders(d)) < 2 {
		t.Errorf("acknowledged while %v hold it", c.holders(d))
	}
}

// TestLeaverPushes: a node that leaves, alone in its zone, needs two copies
// elsewhere, and gets them before it says so.
func TestLeaverPushes(t *testing.T) {
	c := newCluster(t, option{replicas: 2}, "-a", "b", "b")
	c.set(c.nodes[0], func(n *ring.Node) { n.Leaves = true })
	content := bytesOf(2, 100_000)
	if err := c.nodes[0].push(t.Context(), content); err != nil {
		t.Fatal(err)
	}
	if d := digest.FromBytes(content); !c.nodes[1].holds(d) || !c.nodes[2].holds(d) {
		t.Errorf("acknowledged while %v hold it", c.holders(d))
	}
}

// gatedBody passes n bytes on, tells of it, and waits for open before the rest.
type gatedBody struct {
	io.ReadCloser
	left int
	at   chan<- struct{} // closed at the gate
	open <-chan struct{}
}

func (g *gatedBody) Read(p []byte) (int, error) {
	if g.left > 0 {
		n, err := g.ReadCloser.Read(p[:min(len(p), g.left)])
		g.left -= n
		return n, err
	}
	if g.at != nil {
		close(g.at)
		g.at = nil
	}
	<-g.open
	return g.ReadCloser.Read(p)
}

// TestFollowCopy: who wants a blob whose copy is on its way into the zone follows
// that copy.
func TestFollowCopy(t *testing.T) {
	const size = 2 << 20
	c := newCluster(t, option{replicas: 2}, "a", "b", "-b", "-b")
	content := bytesOf(3, size)
	d := digest.FromBytes(content)
	half, open := make(chan struct{}), make(chan struct{})
	c.nodes[1].setTamper(changing(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		r.Body = &gatedBody{r.Body, size / 2, half, open}
		next.ServeHTTP(w, r)
	}))
	pushed := make(chan error, 1)
	go func() { pushed <- c.nodes[0].push(t.Context(), content) }()
	<-half
	pulls := pullAll(t, c.nodes[2:], content)
	until(t, "both follow", func() bool {
		return c.nodes[2].store.Stats().FillsStarted+c.nodes[3].store.Stats().FillsStarted == 2 && c.nodes[1].store.Stats().Followers > 0
	})
	close(open)
	pulls.Wait()
	if err := <-pushed; err != nil {
		t.Error(err)
	}
	if !c.nodes[1].holds(d) {
		t.Error("acknowledged, and not held")
	}
	c.once(t, size, 1)
}

// TestCutCopy: a copy whose sender is cut off is completed from whoever has the
// rest, and the sender learns of it.
func TestCutCopy(t *testing.T) {
	const size = 2 << 20
	c := newCluster(t, option{replicas: 2}, "a", "b")
	content := bytesOf(3, size)
	d := digest.FromBytes(content)
	var cut atomic.Bool
	c.nodes[1].setTamper(changing(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if cut.CompareAndSwap(false, true) {
			r.Body = struct {
				io.Reader
				io.Closer
			}{io.MultiReader(io.LimitReader(r.Body, size/2), broken{}), r.Body}
		}
		next.ServeHTTP(w, r)
	}))
	if err := c.nodes[0].push(t.Context(), content); err != nil {
		t.Fatal(err)
	}
	if !c.nodes[1].holds(d) {
		t.Error("acknowledged, and not held")
	}
	if n := c.nodes[0].answers("GET", d, 206); n != 1 {
		t.Errorf("the rest was asked for %d times", n)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("cut") }

// TestCopyJoinsDownload: a copy that is offered while the blob comes from
// elsewhere is not sent too, and counts once it is durable.
func TestCopyJoinsDownload(t *testing.T) {
	const size = 2 << 20
	c := newCluster(t, option{replicas: 2, silence: 20e9}, "a", "b")
	content := bytesOf(3, size)
	d := digest.FromBytes(content)
	owner := c.nodes[0]
	owner.hold(t, content)
	open := make(chan struct{})
	owner.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet {
			w = &gated{w, size / 2, open}
		}
		next.ServeHTTP(w, r)
	})
	pulls := pullAll(t, c.nodes[1:], content)
	until(t, "half of it is there", func() bool { return c.nodes[1].store.Stats().BytesWritten == size/2 })
	pushed := make(chan error, 1)
	go func() { pushed <- owner.push(t.Context(), content) }()
	until(t, "the copy is declined", func() bool { return c.nodes[1].answers("PUT", d, 202) > 0 })
	select {
	case err := <-pushed:
		t.Fatalf("acknowledged before there were two copies: %v", err)
	default:
	}
	close(open)
	pulls.Wait()
	if err := <-pushed; err != nil {
		t.Error(err)
	}
	// The last offer comes when all is there, or waits for the end.
	if held, made := c.nodes[1].answers("PUT", d, 200), c.nodes[1].answers("PUT", d, 201); held+made != 1 {
		t.Errorf("held was said %d times, made %d times", held, made)
	}
	c.once(t, size, 1)
}

// TestWrongCopy: wrong bytes are refused, and nothing of them stays.
func TestWrongCopy(t *testing.T) {
	const size = 1 << 20
	c := newCluster(t, option{replicas: 2, patience: mesh.Patience{Persist: 1e9}}, "a", "b")
	content := bytesOf(3, size)
	d := digest.FromBytes(content)
	c.nodes[1].setTamper(changing(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		body := r.Body
		r.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(strings.NewReader("x"), io.LimitReader(body, size-1)), body}
		next.ServeHTTP(w, r)
	}))
	if err := c.nodes[0].push(t.Context(), content); err == nil {
		t.Error("acknowledged")
	}
	if c.nodes[1].holds(d) {
		t.Error("held")
	}
	if !strings.Contains(c.nodes[1].log.String(), "in doubt") {
		t.Error("nothing was said of the sender")
	}
}

// TestPushHurriesRepair: a push that is to have a copy where a repair brings the
// blob already does not keep to the pace of repairs.
func TestPushHurriesRepair(t *testing.T) {
	const rate, size = 100_000, 40 * 100_000
	c, names := healing(t, option{replicas: 2, config: func(cfg *mesh.BlobsConfig) { cfg.RepairRate = rate }}, "a", "a")
	content := bytesOf(4, size)
	c.nodes[0].hold(t, content)
	names.want(digest.FromBytes(content), size)
	done := make(chan error, 1)
	go func() { done <- c.nodes[1].blobs.Reconcile(t.Context()) }()
	until(t, "it is being repaired", func() bool { return c.nodes[1].store.Stats().BytesWritten > 0 })
	begun := time.Now()
	if err := c.nodes[0].push(t.Context(), content); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > size/rate/2*time.Second {
		t.Errorf("a push waited %v for a repair", took)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestSenderSpeaksForItself: whoever sends wrong bytes is doubted, and not whom it
// names.
func TestSenderSpeaksForItself(t *testing.T) {
	const size = 1 << 20
	c := newCluster(t, option{replicas: 1, patience: mesh.Patience{Persist: 1e9}}, "a", "a", "a")
	content := bytesOf(5, size)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://"+uuid(1)+"/blobs/"+digest.FromBytes(content).String(), bytes.NewReader(make([]byte, size)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Flotilla-Node", uuid(2))
	resp, err := c.client(uuid(0)).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode/100 == 2 {
		t.Errorf("wrong bytes: %d", resp.StatusCode)
	}
	if said := c.nodes[1].log.String(); !strings.Contains(said, "in doubt") || strings.Contains(said, uuid(2)) {
		t.Errorf("it was said: %s", said)
	}
}

// TestClientBehindSentRepair: a copy that a repair sends from another zone has a
// client's right of way from when one waits for it.
func TestClientBehindSentRepair(t *testing.T) {
	const size = 1 << 20
	c := newCluster(t, rated(1<<30, 1), "-a", "b")
	content := bytesOf(6, size)
	d := digest.FromBytes(content)
	half, open := make(chan struct{}), make(chan struct{})
	c.nodes[1].setTamper(changing(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		r.Body = &gatedBody{r.Body, size / 2, half, open}
		next.ServeHTTP(w, r)
	}))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://"+uuid(1)+"/blobs/"+d.String(), bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"Node": uuid(0), "Repair": "repair", "Zone": "a", "Cause": "repair"} {
		req.Header.Set("Flotilla-"+name, value)
	}
	sent := make(chan error, 1)
	go func() {
		resp, err := c.client(uuid(0)).Do(req)
		if err == nil {
			err = resp.Body.Close()
		}
		sent <- err
	}()
	<-half
	f, _, err := c.nodes[1].blobs.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	close(open)
	if err := <-sent; err != nil {
		t.Error(err)
	}
	if n, _ := c.between("a", "b", mesh.CausePull); n == 0 {
		t.Error("nothing came with a client's right of way")
	}
	if n, _ := c.between("a", "b", mesh.CauseRepair); n < size/2 {
		t.Errorf("%d bytes came as a repair, before anybody waited", n)
	}
}

// TestLeavesMeanwhile: the copy of a node that begins to leave while it receives
// it is not counted.
func TestLeavesMeanwhile(t *testing.T) {
	const size = 1 << 20
	c := newCluster(t, option{replicas: 2}, "a", "b")
	half, open := make(chan struct{}), make(chan struct{})
	c.nodes[1].setTamper(changing(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		r.Body = &gatedBody{r.Body, size / 2, half, open}
		next.ServeHTTP(w, r)
	}))
	pushed := make(chan error, 1)
	go func() { pushed <- c.nodes[0].push(t.Context(), bytesOf(7, size)) }()
	<-half
	c.set(c.nodes[1], func(n *ring.Node) { n.Leaves, n.Weight = true, 0 })
	close(open)
	if err := <-pushed; err == nil {
		t.Error("acknowledged, with one copy and another that leaves")
	}
}
