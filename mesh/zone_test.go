package mesh_test

import (
	"bytes"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/mesh"
)

// TestRepairsCrossOnce: what several owners of a zone lack comes into it once,
// whether they fetch it at once or somebody elsewhere has to send it.
func TestRepairsCrossOnce(t *testing.T) {
	const size = 2 << 20
	for _, row := range []struct {
		name string
		want func(names *catalogue, d digest.Digest)
	}{
		{"fetched", func(names *catalogue, d digest.Digest) { names.want(d, size) }},
		{"sent", func(names *catalogue, d digest.Digest) { names.refer(d) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			c, names := healing(t, option{replicas: 3, silence: time.Minute}, "-a", "b", "b", "b")
			content := bytesOf(4, size)
			d := digest.FromBytes(content)
			c.nodes[0].hold(t, content)
			row.want(names, d)
			// All that is asked for is held back until each owner has asked.
			asked := make(chan struct{})
			c.nodes[0].setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.Method == http.MethodGet {
					<-asked
				}
				next.ServeHTTP(w, r)
			})
			var passes sync.WaitGroup
			for _, p := range c.nodes {
				passes.Go(func() {
					if err := p.blobs.Reconcile(t.Context()); err != nil {
						t.Error(err)
					}
				})
			}
			if row.name == "fetched" {
				until(t, "all download", func() bool {
					n := int64(0)
					for _, p := range c.nodes[1:] {
						n += p.store.Stats().FillsStarted
					}
					return n == 3
				})
			}
			close(asked)
			passes.Wait()
			until(t, "all owners hold it", func() bool { return len(c.holders(d)) == 4 })
			c.once(t, size, 1)
		})
	}
}

// TestHurryUpTheLine: a client behind several repairs, each of which takes from
// the one before, waits for none of them.
func TestHurryUpTheLine(t *testing.T) {
	const rate, size = 100_000, 40 * 100_000
	c, names := healing(t, option{replicas: 4, config: func(cfg *mesh.BlobsConfig) { cfg.RepairRate = rate }}, "-a", "b", "b", "b", "-b")
	content := bytesOf(5, size)
	d := digest.FromBytes(content)
	c.nodes[0].hold(t, content)
	names.want(d, size)
	var passes sync.WaitGroup
	for _, p := range c.nodes[1:4] {
		passes.Go(func() {
			if err := p.blobs.Reconcile(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	until(t, "all repair", func() bool {
		for _, p := range c.nodes[1:4] {
			if p.store.Stats().BytesWritten == 0 {
				return false
			}
		}
		return true
	})
	begun := time.Now()
	c.nodes[4].mustRead(t, content)
	if took := time.Since(begun); took > size/rate/2*time.Second {
		t.Errorf("a client waited %v for repairs", took)
	}
	passes.Wait()
	c.once(t, size, 1)
}

// TestHurrySentCopy: a client that follows a copy which a repair sends does not
// keep to the pace of repairs.
func TestHurrySentCopy(t *testing.T) {
	const rate, size = 100_000, 40 * 100_000
	c, names := healing(t, option{replicas: 1, config: func(cfg *mesh.BlobsConfig) { cfg.RepairRate = rate }}, "-a", "b", "-b")
	content := bytesOf(6, size)
	c.nodes[0].hold(t, content)
	names.refer(digest.FromBytes(content))
	done := make(chan error, 1)
	go func() { done <- c.nodes[0].blobs.Reconcile(t.Context()) }()
	until(t, "it is being sent", func() bool { return c.nodes[1].store.Stats().FillsStarted == 1 })
	begun := time.Now()
	c.nodes[2].mustRead(t, content)
	if took := time.Since(begun); took > size/rate/2*time.Second {
		t.Errorf("a client waited %v for a repair", took)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	c.once(t, size, 1)
}

// TestRangesCrossOnce: readers of parts of a blob that the zone lacks make it
// come in once, whole.
func TestRangesCrossOnce(t *testing.T) {
	const size = 2 << 20
	c := newCluster(t, option{replicas: 1}, "a", "-b", "-b", "-b")
	content := bytesOf(7, size)
	d := digest.FromBytes(content)
	c.nodes[0].hold(t, content)
	var readers sync.WaitGroup
	for i, p := range c.nodes[1:] {
		readers.Go(func() {
			f, _, err := p.blobs.Open(t.Context(), d)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			part, off := make([]byte, 1000), int64(i*size/3+1)
			if _, err := f.Seek(off, io.SeekStart); err != nil {
				t.Error(err)
			}
			if _, err := io.ReadFull(f, part); err != nil || !bytes.Equal(part, content[off:off+1000]) {
				t.Errorf("node %s: other bytes at %d: %v", p.id, off, err)
			}
		})
	}
	readers.Wait()
	until(t, "all hold it", func() bool { return len(c.holders(d)) == 4 })
	c.once(t, size, 1)
}
