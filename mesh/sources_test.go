package mesh_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh"
)

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
		return c.Ring().Head(d, "a")[0].ID == uuid(1)
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
		client := c.client("")
		defer client.CloseIdleConnections()
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 10))
		return resp.StatusCode, b
	}
	for _, row := range []struct {
		off    string
		status int
		want   []byte // of the first ten
	}{
		{"", 200, content[:10]},
		{"bytes=1-", 206, content[1:11]},
		{"bytes=99000-", 206, content[99_000:99_010]},
		{"bytes=0-5", 206, content[:6]},
		{"bytes=7-7", 206, content[7:8]},
		{"bytes=100000-", 404, nil}, // as much as is here: the asker is not behind
		{"bytes=399999-", 404, nil},
		{"bytes=-5", 400, nil},
		{"bytes=5-0", 400, nil},
		{"bytes=0-x", 400, nil},
		{"lines=0-", 400, nil},
	} {
		status, got := ask(row.off)
		if status != row.status {
			t.Errorf("%q: status %d, want %d", row.off, status, row.status)
		}
		if row.want != nil && !bytes.Equal(got, row.want) {
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
	content, d := contentFor(t, 400_000, func(d digest.Digest) bool { return c.Ring().Head(d, "a")[0].ID == uuid(0) })
	source.hold(t, content)
	var phase, vain atomic.Int64 // 0: one half, 1: dead, 2: well again
	source.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch phase.Load() {
		case 0:
			half := &cutAfter{w, 200_000}
			defer func() { // before anybody can ask for the other half
				if half.left == 0 {
					phase.CompareAndSwap(0, 1)
				}
			}()
			next.ServeHTTP(half, r)
		case 1:
			vain.Add(1)
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
	until(t, "it is asked in vain", func() bool { return vain.Load() >= 5 })
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
	order := c.Ring().Sources(d, c.nodes[0].id, "a")
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
