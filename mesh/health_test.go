package mesh_test

import (
	"bytes"
	"errors"
	"net/http"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh"
	"github.com/flotilla-registry/flotilla/mesh/ring"
)

// TestHealth counts what is amiss before anything is done about it: copies
// cannot be made, since every transfer fails.
func TestHealth(t *testing.T) {
	c, names := healing(t, option{replicas: 2}, "a", "a", "b", "b")
	blobs := c.spread(t, names, 40)
	owner := func(i, rank int) *peer { return c.peer(c.Ring().Owners(blobs[i])[rank].ID) }
	owner(0, 1).lose(t, blobs[0])
	owner(1, 0).lose(t, blobs[1])
	for rank := range 2 {
		owner(2, rank).lose(t, blobs[2])
	}
	for _, p := range c.nodes {
		p.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Method == http.MethodGet && r.URL.Path != "/blobs/health" {
				http.Error(w, "broken", 500)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	if sum, silent := c.nodes[0].blobs.MeshHealth(t.Context()); len(silent) != 4 || !reflect.DeepEqual(sum, mesh.Health{}) {
		t.Errorf("before any pass: %+v, silent %v", sum, silent)
	}
	for _, p := range c.nodes {
		p.reconcile(t)
	}
	const size = 1000 + 1100 // of what somebody has
	sum, silent := c.nodes[3].blobs.MeshHealth(t.Context())
	if sum.Blobs != 40 || sum.Short != 3 || sum.Lost != 0 || sum.BytesToMove != size || sum.TimeToGo == 0 || sum.HeldBlobs != 76 || sum.Failed == 0 || len(silent) != 0 {
		t.Errorf("sum %+v, silent %v", sum, silent)
	}
	if sum.Membership != c.Ring().Fingerprint() || sum.At.IsZero() || !sum.Owns {
		t.Errorf("sum %+v", sum)
	}

	// One down: all that it owns is short of a copy.
	c.setDown(c.nodes[1], true)
	owned := map[digest.Digest]bool{blobs[0]: true, blobs[1]: true, blobs[2]: true}
	for _, d := range blobs {
		if slices.Contains(c.owners(d), c.nodes[1].id) {
			owned[d] = true
		}
	}
	for _, p := range slices.Delete(slices.Clone(c.nodes), 1, 2) {
		p.reconcile(t)
	}
	sum, silent = c.nodes[3].blobs.MeshHealth(t.Context())
	if sum.Blobs != 40 || sum.Short != int64(len(owned)) || !slices.Equal(silent, []string{c.nodes[1].id}) {
		t.Errorf("sum %+v, silent %v; want %d short", sum, silent, len(owned))
	}

	// Two down: those that own what both own are not there to count it.
	c.setDown(c.nodes[2], true)
	c.nodes[0].reconcile(t)
	c.nodes[3].reconcile(t)
	if sum, _ = c.nodes[3].blobs.MeshHealth(t.Context()); sum.Blobs != 40 {
		t.Errorf("sum %+v", sum)
	}
}

// TestOneZone: enough copies of a kind are still one site's.
func TestOneZone(t *testing.T) {
	c, names := healing(t, option{replicas: 3}, "a", "a", "b")
	blobs := c.spread(t, names, 3)
	c.nodes[2].lose(t, blobs[1])
	c.setDown(c.nodes[2], true)
	for _, p := range c.nodes[:2] {
		p.reconcile(t)
	}
	if sum, _ := c.nodes[0].blobs.MeshHealth(t.Context()); sum.OneZone != 3 || sum.Short != 3 {
		t.Errorf("sum %+v", sum)
	}
}

// TestDrain: what only a draining node holds is counted there until its new
// owners have it.
func TestDrain(t *testing.T) {
	c, names := healing(t, option{replicas: 2}, "a", "a", "a")
	blobs := c.spread(t, names, 30)
	p := c.nodes[0]
	mine := int64(0)
	for _, d := range blobs {
		if p.holds(d) {
			mine++
		}
	}
	c.set(p, func(n *ring.Node) { n.Weight = 0 })
	check := func(want int64) {
		t.Helper()
		p.reconcile(t)
		h, err := c.nodes[2].blobs.HealthOf(t.Context(), p.id)
		if err != nil || h.Owns || h.OnlyHere != want {
			t.Errorf("health %+v, %v; want %d blobs only here", h, err, want)
		}
	}
	check(mine)
	c.nodes[1].reconcile(t)
	c.nodes[2].reconcile(t)
	check(0)
	c.setDown(c.nodes[1], true) // nobody vouches for what it has
	check(mine)
	c.settled(t, blobs, true)
}

// TestLeavingNode: what a push is about to name counts as only here unless an
// owner has it too, and a node that is to leave takes no copies.
func TestLeavingNode(t *testing.T) {
	c, names := healing(t, option{replicas: 1}, "a", "a")
	p, other := c.nodes[0], c.nodes[1]
	placed, shared := bytesOf(1, 1000), bytesOf(2, 1000)
	p.hold(t, placed)
	p.hold(t, shared)
	other.hold(t, shared)
	c.set(p, func(n *ring.Node) { n.Weight, n.Leaves = 0, true })
	check := func(synced bool, want int64) {
		t.Helper()
		p.reconcile(t)
		if h := p.blobs.Health(); !h.Leaves || h.Synced != synced || h.OnlyHere != want {
			t.Errorf("health %+v, want synced %v and %d blobs only here", h, synced, want)
		}
	}
	other.age(t, digest.FromBytes(shared), time.Hour)
	check(true, 1)
	// What the other had decided to drop before, it keeps: it vouched for it.
	if removed, err := other.store.Remove(digest.FromBytes(shared), time.Now().Add(-time.Minute)); removed || err != nil {
		t.Errorf("the copy that the leaving node relies on was dropped: %v, %v", removed, err)
	}
	names.mu.Lock()
	names.behind = true
	names.mu.Unlock()
	check(false, 1)
	late := bytesOf(3, 1000)
	if err := other.blobs.Put(t.Context(), digest.FromBytes(late), int64(len(late)), bytes.NewReader(late)); err != nil {
		t.Fatal(err)
	}
	c.set(p, func(n *ring.Node) { n.Weight = 1 }) // as if the other did not know yet
	c.set(other, func(n *ring.Node) { n.Weight = 0 })
	for _, content := range [][]byte{late, placed} {
		d := digest.FromBytes(content)
		if err := other.blobs.Put(t.Context(), d, int64(len(content)), bytes.NewReader(content)); err != nil && !errors.Is(err, oci.ErrUnavailable) {
			t.Error(err)
		}
		if p.answers(http.MethodPut, d, http.StatusOK)+p.answers(http.MethodPut, d, http.StatusCreated) > 0 {
			t.Errorf("a node that is to leave vouches for %s", d)
		}
		until(t, "the offer to be refused", func() bool { return p.answers(http.MethodPut, d, http.StatusServiceUnavailable) > 0 })
	}
}

// TestDue: a pass is due at the start, when the membership changes, when a
// member is back and when a push comes out short; not when a member goes down.
func TestDue(t *testing.T) {
	c, _ := healing(t, option{replicas: 2}, "a", "a", "a")
	p, other := c.nodes[0], c.nodes[1]
	wait := func(why string) {
		t.Helper()
		select {
		case <-p.blobs.Due():
		case <-time.After(20 * time.Second):
			t.Fatalf("no pass is due: %s", why)
		}
	}
	wait("the node started")
	c.set(other, func(n *ring.Node) { n.Weight = 7 })
	wait("a weight changed")
	c.setDown(other, true)
	c.seen()
	if due(p) {
		t.Error("due since a member went down")
	}
	c.setDown(other, false)
	wait("a member is back")
	c.set(other, func(n *ring.Node) { n.Weight = 8 })
	wait("a weight changed again")
	for _, o := range c.nodes[1:] {
		o.setTamper(func(w http.ResponseWriter, r *http.Request, _ http.Handler) { http.Error(w, "broken", 500) })
	}
	_ = p.push(t.Context(), bytesOf(1, 1000)) // too few copies
	wait("a push came out short")
	if due(p) {
		t.Error("due twice for one reason")
	}
}

// TestNudge: a member that lacks what it owns is told, and told again only
// after a while.
func TestNudge(t *testing.T) {
	c, names := healing(t, option{replicas: 2}, "a", "a")
	blobs := c.spread(t, names, 4)
	p := c.nodes[1]
	for _, d := range blobs {
		p.lose(t, d)
	}
	<-p.blobs.Due() // the start
	for i := range 2 {
		c.nodes[0].reconcile(t)
		if got := due(p); got != (i == 0) {
			t.Errorf("pass %d: due %v", i, got)
		}
	}
}
