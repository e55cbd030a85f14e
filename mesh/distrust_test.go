package mesh_test

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh"
)

// damage does something to p's copy of d behind the store's back.
func (p *peer) damage(t *testing.T, d digest.Digest, harm func(f *os.File) error) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(p.dir, "blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded()), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(harm(f), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func flip(at int64) func(f *os.File) error {
	return func(f *os.File) error {
		b := make([]byte, 1)
		if _, err := f.ReadAt(b, at); err != nil {
			return err
		}
		b[0]++
		_, err := f.WriteAt(b, at)
		return err
	}
}

func truncate(to int64) func(f *os.File) error {
	return func(f *os.File) error { return f.Truncate(to) }
}

// TestDamagedCopy: of two copies the one asked first is damaged. One pull may
// fail by it, and never with all bytes of something else; the next is right.
func TestDamagedCopy(t *testing.T) {
	const size = 200_000
	for _, harm := range []struct {
		name string
		do   func(f *os.File) error
	}{
		{"first byte flipped", flip(0)},
		{"last byte flipped", flip(size - 1)},
		{"cut in half", truncate(size / 2)},
		{"empty", truncate(0)},
		{"longer", truncate(size + 1)},
	} {
		for _, row := range []struct {
			name    string
			zones   []string
			full    []int
			gateway int // of the reader's zone
		}{
			{"other zone", []string{"a", "b", "b"}, nil, 0},
			{"through the gateway", []string{"-a", "-a", "b", "b"}, nil, 1},
			{"at the gateway", []string{"a", "a", "b"}, nil, 1},
			{"with a full disk", []string{"a", "b", "b"}, []int{0}, 0},
		} {
			t.Run(harm.name+" "+row.name, func(t *testing.T) {
				c := newCluster(t, option{replicas: 2, full: row.full}, row.zones...)
				reader := c.nodes[0]
				n := len(c.nodes)
				holders := []string{c.nodes[n-2].id, c.nodes[n-1].id}
				content, d := contentFor(t, size, func(d digest.Digest) bool {
					return c.Ring().Head(d, "a")[0].ID == c.nodes[row.gateway].id
				})
				var first *peer
				for _, s := range c.Ring().Sources(d, reader.id, "a") {
					if slices.Contains(holders, s.ID) {
						c.peer(s.ID).hold(t, content)
						if first == nil {
							first = c.peer(s.ID)
						}
					}
				}
				first.damage(t, d, harm.do)
				if got, err := reader.read(t.Context(), d); err == nil {
					t.Fatalf("read %d bytes from the damaged copy", len(got))
				}
				reader.mustRead(t, content)
				if log := reader.log.String(); !warned(log, first.id, d) {
					t.Errorf("no warning that names node and digest:\n%s", log)
				}
			})
		}
	}
}

func warned(log, node string, d digest.Digest) bool {
	for line := range strings.Lines(log) {
		if strings.Contains(line, "level=WARN") && strings.Contains(line, node) && strings.Contains(line, d.String()) {
			return true
		}
	}
	return false
}

// TestDoubtIsNoProof: who sent wrong bytes once is asked last, not never, and
// its denial counts as any.
func TestDoubtIsNoProof(t *testing.T) {
	c := newCluster(t, option{replicas: 1}, "a", "b")
	content := bytesOf(3, 100_000)
	d := digest.FromBytes(content)
	c.nodes[1].hold(t, content)
	c.nodes[1].damage(t, d, flip(7))
	if _, err := c.nodes[0].read(t.Context(), d); err == nil {
		t.Fatal("read a damaged copy")
	}
	c.nodes[1].damage(t, d, func(f *os.File) error { return os.Remove(f.Name()) })
	if _, err := c.nodes[0].read(t.Context(), d); !errors.Is(err, oci.ErrBlobUnknown) {
		t.Fatalf("error %v", err)
	}
	c.nodes[1].hold(t, content)
	c.nodes[0].mustRead(t, content)
}

// TestContradictedSize: a source with a wrong size dies in the middle. Nobody
// can go on with what it began, which is found out soon, not after all
// patience; the next pull asks the other first.
func TestContradictedSize(t *testing.T) {
	c := newCluster(t, option{replicas: 2, patience: mesh.Patience{Answer: 3 * time.Second, Persist: time.Hour, Pause: time.Millisecond}}, "a", "b", "b")
	content := bytesOf(3, 200_000)
	d := digest.FromBytes(content)
	order := c.Ring().Sources(d, c.nodes[0].id, "a")
	bad := c.peer(order[0].ID)
	for _, s := range order {
		c.peer(s.ID).hold(t, content)
	}
	bad.damage(t, d, truncate(100_000))
	var asked atomic.Bool
	bad.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if asked.CompareAndSwap(false, true) {
			next.ServeHTTP(&cutAfter{w, 50_000}, r)
			return
		}
		http.Error(w, "in trouble", http.StatusInternalServerError)
	})
	if got, err := c.nodes[0].read(t.Context(), d); err == nil || !bytes.Equal(got, content[:len(got)]) {
		t.Fatalf("%d bytes, error %v", len(got), err)
	}
	bad.setTamper(nil)
	c.nodes[0].mustRead(t, content)
}
