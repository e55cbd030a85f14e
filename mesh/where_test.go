package mesh_test

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh"
	"github.com/flotilla-registry/flotilla/mesh/ring"
)

// TestWhere: what each member says counts, and who says nothing is named.
func TestWhere(t *testing.T) {
	answer := func(f func(w http.ResponseWriter)) func(*cluster, *peer) {
		return func(_ *cluster, p *peer) {
			p.setTamper(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { f(w) })
		}
	}
	for _, row := range []struct {
		name   string
		spoil  func(*cluster, *peer) // the last node, which holds both
		silent bool
	}{
		{"all answer", func(*cluster, *peer) {}, false},
		{"one seems down", func(c *cluster, p *peer) { c.setDown(p, true) }, true},
		{"one is killed", func(_ *cluster, p *peer) { p.kill() }, true},
		{"one is of another release", answer(func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) }), true},
		{"one answers nonsense", answer(func(w http.ResponseWriter) { _, _ = w.Write(make([]byte, 1000)) }), true},
		{"one never answers", func(c *cluster, p *peer) {
			p.setTamper(func(http.ResponseWriter, *http.Request, http.Handler) { <-c.over })
		}, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, option{}, "a", "a", "-b")
			common, rare, nowhere := bytesOf(1, 100), bytesOf(2, 100), digest.FromString("nowhere")
			for _, p := range c.nodes {
				p.hold(t, common)
			}
			last := c.nodes[2]
			last.hold(t, rare)
			row.spoil(c, last)
			ds := []digest.Digest{digest.FromBytes(rare), nowhere, digest.FromBytes(common), nowhere}
			got, err := c.nodes[0].blobs.Where(t.Context(), ds)
			if err != nil {
				t.Fatal(err)
			}
			want := map[digest.Digest][]string{digest.FromBytes(common): {uuid(0), uuid(1)}}
			var silent []string
			if row.silent {
				silent = []string{last.id}
			} else {
				want[digest.FromBytes(common)] = []string{uuid(0), uuid(1), uuid(2)}
				want[digest.FromBytes(rare)] = []string{uuid(2)}
			}
			if !maps.EqualFunc(got.Holders, want, slices.Equal) || !slices.Equal(got.Silent, silent) {
				t.Errorf("%+v; want %v, silent %v", got, want, silent)
			}
		})
	}
}

// TestWhereManyBlobs: no question is longer than a member takes, and whoever
// breaks off keeps what it said.
func TestWhereManyBlobs(t *testing.T) {
	c := newCluster(t, option{}, "a", "a", "a")
	var ds []digest.Digest
	for i := range 2500 {
		ds = append(ds, digest.FromBytes(bytesOf(uint64(i), 10)))
	}
	slices.Sort(ds)
	kept := map[digest.Digest]bool{ds[0]: true, ds[999]: true, ds[1000]: true, ds[2499]: true}
	for i := range 2500 {
		if content := bytesOf(uint64(i), 10); kept[digest.FromBytes(content)] {
			c.nodes[1].hold(t, content)
			c.nodes[2].hold(t, content)
		}
	}
	var mu sync.Mutex
	questions := 0
	c.nodes[2].setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		mu.Lock()
		questions++
		first := questions == 1
		mu.Unlock()
		if !first {
			http.Error(w, "broken", http.StatusInternalServerError)
			return
		}
		next.ServeHTTP(w, r)
	})
	got, err := c.nodes[0].blobs.Where(t.Context(), ds)
	if err != nil {
		t.Fatal(err)
	}
	want := map[digest.Digest][]string{
		ds[0]: {uuid(1), uuid(2)}, ds[999]: {uuid(1), uuid(2)}, ds[1000]: {uuid(1)}, ds[2499]: {uuid(1)},
	}
	if !maps.EqualFunc(got.Holders, want, slices.Equal) || !slices.Equal(got.Silent, []string{uuid(2)}) {
		t.Errorf("%+v; want %v", got, want)
	}
	mu.Lock()
	defer mu.Unlock()
	if questions != 2 {
		t.Errorf("%d questions to who breaks off at the second", questions)
	}
}

// TestWhereAsksFewAtOnce: however many members there are, eight are asked at a
// time.
func TestWhereAsksFewAtOnce(t *testing.T) {
	const most, others = 8, 17
	c := newCluster(t, option{patience: mesh.Patience{Answer: time.Minute}}, slices.Repeat([]string{"a"}, 1+others)...)
	var asked atomic.Int64 // and not answered yet
	answer := make(chan struct{})
	for _, p := range c.nodes[1:] {
		p.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			asked.Add(1)
			select {
			case <-answer:
			case <-c.over:
			}
			asked.Add(-1) // before anybody can know of the answer
			next.ServeHTTP(w, r)
		})
	}
	content := bytesOf(1, 10)
	c.nodes[others].hold(t, content)
	var asking sync.WaitGroup
	asking.Go(func() {
		got, err := c.nodes[0].blobs.Where(t.Context(), []digest.Digest{digest.FromBytes(content)})
		if err != nil || len(got.Silent) > 0 || !slices.Equal(got.Holders[digest.FromBytes(content)], []string{uuid(others)}) {
			t.Errorf("%+v, %v", got, err)
		}
	})
	for left := int64(others); left > 0; left-- {
		until(t, "as many as may are asked", func() bool { return asked.Load() >= min(most, left) })
		if n := asked.Load(); n > most {
			t.Errorf("%d are asked at once", n)
		}
		answer <- struct{}{}
	}
	asking.Wait()
}

// TestWhereErrors: without members, or a question that can be asked, or time,
// there is no answer.
func TestWhereErrors(t *testing.T) {
	c := newCluster(t, option{}, "a", "a")
	blobs, d := c.nodes[0].blobs, digest.FromString("x")
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if w, err := blobs.Where(over, []digest.Digest{d}); !errors.Is(err, oci.ErrUnavailable) {
		t.Errorf("when the asker has gone: %+v, %v", w, err)
	}
	if w, err := blobs.Where(t.Context(), []digest.Digest{d, "sha256:short"}); !errors.Is(err, oci.ErrDigestInvalid) {
		t.Errorf("about no digest: %+v, %v", w, err)
	}
	c.change(func([]ring.Node) []ring.Node { return nil })
	if w, err := blobs.Where(t.Context(), []digest.Digest{d}); !errors.Is(err, oci.ErrUnavailable) {
		t.Errorf("without members: %+v, %v", w, err)
	}
	c.change(func([]ring.Node) []ring.Node { return []ring.Node{{ID: uuid(0), Zone: "a"}} })
	if w, err := blobs.Where(t.Context(), nil); err != nil || len(w.Holders) != 0 || len(w.Silent) != 0 {
		t.Errorf("about nothing: %+v, %v", w, err)
	}
}
