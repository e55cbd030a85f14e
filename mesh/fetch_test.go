package mesh_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh"
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
		{"nobody is known yet", []string{"a", "a"}, func(c *cluster) { c.members = nil }, oci.ErrUnavailable},
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

// TestBlackHole: a node that answers nothing costs the time of one answer.
func TestBlackHole(t *testing.T) {
	c := newCluster(t, option{replicas: 2, patience: mesh.Patience{Answer: 200 * time.Millisecond, Gateway: 300 * time.Millisecond}}, "a", "b", "b", "b")
	lost := c.nodes[1]
	lost.lost.Store(true)
	content, d := contentFor(t, 1000, func(d digest.Digest) bool { return c.Ring().Rank(d)[0].ID == lost.id })
	c.nodes[3].hold(t, content)
	c.nodes[0].mustRead(t, content)
	if s := c.nodes[0].blobs.Stats(); s.FetchFailed == 0 {
		t.Errorf("%s was not asked at all: %+v", d, s)
	}
}

// TestGatewayFetchesOnce: nodes of one zone miss a blob at once, and it
// crosses the line between the zones once.
func TestGatewayFetchesOnce(t *testing.T) {
	c := newCluster(t, option{replicas: 1}, "south", "north", "north", "north", "-north")
	owner := c.nodes[0]
	content, d := contentFor(t, 1<<20, func(d digest.Digest) bool { return c.Ring().Owners(d)[0].ID == owner.id })
	gateway := c.peer(c.Ring().Gateway(d, "north")[0].ID)
	owner.hold(t, content)
	// The owner waits until all have asked, so that they do ask at once.
	asked := make(chan struct{})
	owner.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		<-asked
		next.ServeHTTP(w, r)
	})
	var arrived atomic.Int64
	gateway.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if arrived.Add(1) == 3 {
			close(asked)
		}
		next.ServeHTTP(w, r)
	})
	var wg sync.WaitGroup
	for _, p := range c.nodes[1:] {
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
		gateway := c.Ring().Gateway(d, n.Zone)[0].ID
		want := map[string]int{gateway: 1}
		if gateway == asker.id {
			want = map[string]int{}
		}
		if fmt.Sprint(allowed) != fmt.Sprint(want) {
			t.Fatalf("allowed %v, want %v", allowed, want)
		}
	}
}

// TestSourceDiesAnywhere: whatever a source sent before it died, the reader
// gets every byte once.
func TestSourceDiesAnywhere(t *testing.T) {
	const size = 200_000
	for _, at := range []int{0, 1, 4096, size / 2, size - 32<<10, size - 1} {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			c := newCluster(t, option{replicas: 2}, "a", "b", "b", "b")
			content := bytesOf(9, size)
			d := digest.FromBytes(content)
			// Everyone has it, and everyone's first answer is cut off.
			for _, p := range c.nodes[1:] {
				p.hold(t, content)
				var cut atomic.Bool
				p.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
					if r.Method == http.MethodGet && cut.CompareAndSwap(false, true) {
						next.ServeHTTP(&cutAfter{w, at}, r)
						return
					}
					next.ServeHTTP(w, r)
				})
			}
			c.nodes[0].mustRead(t, content)
			if !c.nodes[0].holds(d) {
				t.Error("no copy was kept")
			}
		})
	}
}

// TestSourceComesBack: the only holder goes away in the middle, and a response
// that has begun waits for it.
func TestSourceComesBack(t *testing.T) {
	c := newCluster(t, option{replicas: 1}, "a", "b")
	content := bytesOf(3, 300_000)
	c.nodes[1].hold(t, content)
	var tries atomic.Int64
	c.nodes[1].setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch n := tries.Add(1); {
		case n == 1:
			next.ServeHTTP(&cutAfter{w, 100_000}, r)
		case n < 6:
			panic(http.ErrAbortHandler)
		default:
			next.ServeHTTP(w, r)
		}
	})
	c.nodes[0].mustRead(t, content)
}

func TestSourceNeverComesBack(t *testing.T) {
	c := newCluster(t, option{replicas: 1, patience: mesh.Patience{Persist: 100 * time.Millisecond, Pause: 5 * time.Millisecond}}, "a", "b")
	content := bytesOf(3, 300_000)
	c.nodes[1].hold(t, content)
	var tries atomic.Int64
	c.nodes[1].setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if tries.Add(1) > 1 {
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(&cutAfter{w, 100_000}, r)
	})
	f, size, err := c.nodes[0].blobs.Open(t.Context(), digest.FromBytes(content))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := io.ReadAll(f)
	if err == nil || size != 300_000 || !bytes.Equal(got, content[:len(got)]) {
		t.Fatalf("%d good bytes of %d, error %v: want an error after good bytes", len(got), size, err)
	}
}

// TestSilentSource: one that stops sending without a word is replaced.
func TestSilentSource(t *testing.T) {
	c := newCluster(t, option{replicas: 2, silence: 100 * time.Millisecond}, "a", "b", "b")
	content := bytesOf(4, 200_000)
	never := make(chan struct{})
	var first atomic.Bool
	for _, p := range c.nodes[1:] {
		p.hold(t, content)
		p.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if first.CompareAndSwap(false, true) {
				next.ServeHTTP(&gated{w, 50_000, never}, r)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	t.Cleanup(func() { close(never) })
	c.nodes[0].mustRead(t, content)
}

// TestSlowReader: one reader that takes nothing holds up no other, neither at
// its own node nor at another.
func TestSlowReader(t *testing.T) {
	c := newCluster(t, option{replicas: 1}, "a", "a", "b")
	content, d := contentFor(t, 1<<20, func(d digest.Digest) bool {
		return c.Ring().Gateway(d, "a")[0].ID == uuid(1)
	})
	c.nodes[2].hold(t, content)
	slow, _, err := c.nodes[0].blobs.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if _, err := io.ReadFull(slow, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	c.nodes[0].mustRead(t, content)
	c.nodes[1].mustRead(t, content)
	rest, err := io.ReadAll(slow)
	if err != nil || !bytes.Equal(rest, content[10:]) {
		t.Fatalf("the slow reader got %d more bytes, %v", len(rest), err)
	}
}

// TestOffsets: what a peer is served, by what it asks for and what is here.
func TestOffsets(t *testing.T) {
	c := newCluster(t, option{replicas: 1, silence: time.Minute}, "a", "b", "b")
	content := bytesOf(5, 400_000)
	d := digest.FromBytes(content)
	source, grows := c.nodes[2], c.nodes[0]
	source.hold(t, content)
	rest := make(chan struct{})
	source.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(&gated{w, 100_000, rest}, r)
	})
	reader, _, err := grows.blobs.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	until(t, "a growing copy", func() bool { return grows.store.Stats().BytesWritten >= 100_000 })

	ask := func(off string) (int, []byte) {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+grows.id+"/blobs/"+d.String(), nil)
		if off != "" {
			req.Header.Set("Range", off)
		}
		client := c.client()
		defer client.CloseIdleConnections()
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b := make([]byte, 10)
		_, _ = io.ReadFull(resp.Body, b)
		return resp.StatusCode, b
	}
	for _, row := range []struct {
		off    string
		status int
		from   int
	}{
		{"", 200, 0},
		{"bytes=1-", 206, 1},
		{"bytes=99000-", 206, 99_000},
		{"bytes=100000-", 404, -1}, // as much as is here: the asker is not behind
		{"bytes=399999-", 404, -1},
		{"bytes=-5", 400, -1},
		{"bytes=0-5", 400, -1},
		{"lines=0-", 400, -1},
	} {
		status, got := ask(row.off)
		if status != row.status {
			t.Errorf("%q: status %d, want %d", row.off, status, row.status)
		}
		if row.from >= 0 && !bytes.Equal(got, content[row.from:row.from+10]) {
			t.Errorf("%q: other bytes", row.off)
		}
	}
	close(rest)
	if got, err := io.ReadAll(reader); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if status, got := ask("bytes=399990-"); status != 206 || !bytes.Equal(got, content[399_990:]) {
		t.Errorf("the whole copy: status %d", status)
	}
	if status, _ := ask("bytes=400000-"); status != 400 {
		t.Errorf("beyond the end: status %d", status)
	}
}

// TestNobodyWaitsInACircle: an owner's copy grows from the gateway, the
// gateway's source dies, and the two have no more than each other. Had they
// served one another, both would wait for ever.
func TestNobodyWaitsInACircle(t *testing.T) {
	c := newCluster(t, option{replicas: 2, silence: 300 * time.Millisecond}, "a", "a", "-b")
	source := c.nodes[2]
	content, d := contentFor(t, 400_000, func(d digest.Digest) bool { return c.Ring().Gateway(d, "a")[0].ID == uuid(0) })
	source.hold(t, content)
	var phase atomic.Int64 // 0: one half, 1: dead, 2: well again
	source.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch phase.Load() {
		case 0:
			next.ServeHTTP(&cutAfter{w, 200_000}, r)
		case 1:
			panic(http.ErrAbortHandler)
		default:
			next.ServeHTTP(w, r)
		}
	})
	gateway, owner := c.nodes[0], c.nodes[1]
	var wg sync.WaitGroup
	results := make(chan error, 2)
	for _, p := range []*peer{gateway, owner} {
		wg.Go(func() {
			got, err := p.read(t.Context(), d)
			if err == nil && !bytes.Equal(got, content) {
				err = errors.New("other bytes")
			}
			results <- err
		})
	}
	until(t, "both have one half", func() bool {
		return gateway.store.Stats().BytesWritten >= 200_000 && owner.store.Stats().BytesWritten >= 200_000
	})
	phase.CompareAndSwap(0, 1)
	until(t, "they ask each other in vain", func() bool {
		return gateway.answers("GET", d, 404) > 0 && owner.answers("GET", d, 404) > 0
	})
	phase.Store(2)
	wg.Wait()
	for range 2 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

// TestFetchWithFullDisk: a full disk refuses pushes, not pulls.
func TestFetchWithFullDisk(t *testing.T) {
	c := newCluster(t, option{replicas: 1, full: []int{0, 1}}, "a", "a", "b", "b")
	content := bytesOf(6, 300_000)
	d := digest.FromBytes(content)
	for _, p := range c.nodes[2:] {
		p.hold(t, content)
		var cut atomic.Bool
		p.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if cut.CompareAndSwap(false, true) {
				next.ServeHTTP(&cutAfter{w, 100_000}, r)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	for _, p := range c.nodes[:2] {
		f, size, err := p.blobs.Open(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got, err := io.ReadAll(f)
		if err != nil || int64(len(got)) != size || !bytes.Equal(got, content) {
			t.Fatalf("%d bytes of %d, %v", len(got), size, err)
		}
		for _, off := range []int64{0, 299_999, 1000} {
			if _, err := f.Seek(off, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 1)
			if _, err := io.ReadFull(f, b); err != nil || b[0] != content[off] {
				t.Fatalf("byte %d: %v", off, err)
			}
		}
		if end, err := f.Seek(0, io.SeekEnd); err != nil || end != size {
			t.Errorf("end %d, %v", end, err)
		}
		if n, err := f.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("read %d at the end, %v", n, err)
		}
		if _, err := f.Seek(-1, io.SeekStart); err == nil {
			t.Error("a seek before the start worked")
		}
		if p.holds(d) || p.blobs.Stats().PassedThrough != 1 {
			t.Errorf("stats %+v", p.blobs.Stats())
		}
		if _, err := p.read(t.Context(), digest.FromString("no such")); !errors.Is(err, oci.ErrBlobUnknown) {
			t.Errorf("error %v", err)
		}
	}
}

// TestRequestIDTravels: one client request has one name at every node, in
// downloads that outlive it too.
func TestRequestIDTravels(t *testing.T) {
	c := newCluster(t, option{replicas: 1}, "a", "a", "b")
	content, d := contentFor(t, 1000, func(d digest.Digest) bool {
		return c.Ring().Gateway(d, "a")[0].ID == uuid(1) && c.Ring().Owners(d)[0].ID == uuid(2)
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

// TestLyingSource: a source with other bytes under the name is found out, and
// nothing of it is kept.
func TestLyingSource(t *testing.T) {
	c := newCluster(t, option{replicas: 1}, "a", "b")
	content := bytesOf(8, 100_000)
	d := digest.FromBytes(content)
	c.nodes[1].setTamper(func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		_, _ = w.Write(bytesOf(99, len(content)))
	})
	if got, err := c.nodes[0].read(t.Context(), d); err == nil || len(got) == len(content) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if c.nodes[0].holds(d) {
		t.Error("kept a lie")
	}
}

// TestSizesDisagree: the second source is not believed about the size of what
// the first began.
func TestSizesDisagree(t *testing.T) {
	c := newCluster(t, option{replicas: 3}, "a", "b", "b", "b")
	content := bytesOf(8, 100_000)
	d := digest.FromBytes(content)
	order := c.Ring().Sources(d, c.nodes[0].id)
	tampers := []func(w http.ResponseWriter, r *http.Request, next http.Handler){
		func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			next.ServeHTTP(&cutAfter{w, 50_000}, r)
		},
		func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			w.Header().Set("Content-Range", "bytes 50000-59999/60000")
			w.Header().Set("Content-Length", "10000")
			w.WriteHeader(206)
			_, _ = w.Write(make([]byte, 10_000))
		},
		nil,
	}
	for i, s := range order {
		c.peer(s.ID).hold(t, content)
		c.peer(s.ID).setTamper(tampers[i])
	}
	c.nodes[0].mustRead(t, content)
}

var _ mesh.Membership = (*cluster)(nil)
