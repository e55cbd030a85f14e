package mesh_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/mesh"
)

// serveGated has p send half of a blob and wait for open with the rest.
func (p *peer) serveGated(size int, open <-chan struct{}) {
	p.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, "/blobs/sha256:") {
			w = &gated{ResponseWriter: w, left: size / 2, open: open}
		}
		next.ServeHTTP(w, r)
	})
}

// TestTransfers: all see who takes what from whom for as long as it lasts, be it
// for a client or for a repair.
func TestTransfers(t *testing.T) {
	const size = 400_000
	for _, repair := range []bool{false, true} {
		c, names := healing(t, option{replicas: 2, silence: time.Minute}, "a", "b", "c")
		content, d := contentFor(t, size, func(d digest.Digest) bool {
			return slices.Equal(c.owners(d), []string{uuid(0), uuid(1)})
		})
		names.want(d, size)
		open := make(chan struct{})
		c.nodes[1].hold(t, content)
		c.nodes[1].serveGated(size, open)
		done := make(chan error, 1)
		go func() {
			if repair {
				done <- c.nodes[0].blobs.Reconcile(t.Context())
				return
			}
			_, err := c.nodes[0].read(t.Context(), d)
			done <- err
		}()
		for _, p := range c.nodes {
			until(t, "the transfer is seen", func() bool {
				got := p.blobs.MeshTransfers(t.Context())
				if got.Total != 1 || len(got.List) != 1 || got.List[0].Received < size/4 {
					return false
				}
				seen := got.List[0]
				seen.Received = 0
				if want := (mesh.Transfer{Digest: d, From: uuid(1), To: uuid(0), Size: size, Repair: repair}); seen != want {
					t.Errorf("%+v, want %+v", seen, want)
				}
				return true
			})
		}
		if got := c.nodes[1].blobs.Transfers(); len(got) != 0 {
			t.Errorf("who sends receives %+v", got)
		}
		close(open)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		until(t, "nothing is under way", func() bool { return c.nodes[2].blobs.MeshTransfers(t.Context()).Total == 0 })
	}
}

// TestTransfersOfOthers: members that say nothing, or too much, do no harm.
func TestTransfersOfOthers(t *testing.T) {
	c := newCluster(t, option{}, "a", "a", "a", "a", "a")
	say := func(p *peer, v any) {
		p.setTamper(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { _ = json.NewEncoder(w).Encode(v) })
	}
	var many mesh.Transfers
	for range mesh.MaxTransfers + 50 {
		many.List = append(many.List, mesh.Transfer{Digest: digest.FromString("x"), From: uuid(0), To: "somebody", Size: 9})
	}
	say(c.nodes[1], many)
	say(c.nodes[2], mesh.Transfers{List: []mesh.Transfer{
		{Digest: digest.FromString("y"), From: uuid(1), Size: 10}, {Digest: digest.FromString("y"), From: "\x1b[2J", Size: 11}, {Digest: "y", From: uuid(1), Size: 12},
	}, Total: -5})
	say(c.nodes[3], "nonsense")
	c.nodes[4].setTamper(func(w http.ResponseWriter, r *http.Request, _ http.Handler) { http.NotFound(w, r) }) // of an earlier version
	got := c.nodes[0].blobs.MeshTransfers(t.Context())
	if len(got.List) != mesh.MaxTransfers || got.Total != mesh.MaxTransfers+1 {
		t.Fatalf("%d of %d", len(got.List), got.Total)
	}
	if first := got.List[0]; first.To != uuid(2) || first.From != uuid(1) {
		t.Errorf("the one that has most to come: %+v", first)
	}
	for _, transfer := range got.List[1:] {
		if transfer.To != uuid(1) {
			t.Errorf("a member speaks for another: %+v", transfer)
		}
	}
}
