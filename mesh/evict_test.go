package mesh_test

import (
	"bytes"
	"encoding/hex"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/mesh"
	"github.com/flotilla-registry/flotilla/mesh/ring"
)

// TestSurplusWaitsForOwners: a copy that need not be here goes only once every
// owner vouches for its own, and only where it is in the way.
func TestSurplusWaitsForOwners(t *testing.T) {
	for _, row := range []struct {
		name  string
		spoil func(c *cluster, names *catalogue, owner *peer, content []byte)
		goes  bool
	}{
		{"all owners hold it", func(*cluster, *catalogue, *peer, []byte) {}, true},
		{"an owner lacks it", func(c *cluster, _ *catalogue, owner *peer, content []byte) {
			owner.lose(c.t, digest.FromBytes(content))
		}, false},
		{"an owner is down", func(c *cluster, _ *catalogue, owner *peer, _ []byte) { c.setDown(owner, true) }, false},
		{"an owner does not answer", func(_ *cluster, _ *catalogue, owner *peer, _ []byte) { owner.kill() }, false},
		{"an owner is of another release", func(_ *cluster, _ *catalogue, owner *peer, _ []byte) {
			owner.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) { http.NotFound(w, r) })
		}, false},
		{"an owner answers nonsense", func(_ *cluster, _ *catalogue, owner *peer, _ []byte) {
			owner.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				_, _ = w.Write(bytes.Repeat([]byte{0xff}, 1000))
			})
		}, false},
		{"the catalogue may be behind", func(_ *cluster, names *catalogue, _ *peer, _ []byte) { names.behind = true }, false},
		{"it is used meanwhile", func(c *cluster, _ *catalogue, owner *peer, content []byte) {
			owner.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				next.ServeHTTP(w, r)
				if r.URL.Query().Has("under") {
					c.nodes[0].store.Touch(digest.FromBytes(content))
				}
			})
		}, false},
		{"the membership changes on the way", func(c *cluster, _ *catalogue, owner *peer, _ []byte) {
			owner.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.URL.Query().Has("under") {
					c.set(c.nodes[3], func(n *ring.Node) { n.Weight = 5 })
				}
				next.ServeHTTP(w, r)
			})
		}, false},
		{"the membership changes behind the answer", func(c *cluster, _ *catalogue, owner *peer, _ []byte) {
			owner.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				next.ServeHTTP(w, r)
				if r.URL.Query().Has("under") {
					c.set(c.nodes[3], func(n *ring.Node) { n.Weight = 5 })
				}
			})
		}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			c, names := healing(t, option{replicas: 2, config: func(cfg *mesh.BlobsConfig) { cfg.CacheSize = 100 }}, "-a", "a", "a", "-a")
			content := bytesOf(1, 1000)
			d := digest.FromBytes(content)
			names.want(d, len(content))
			for _, p := range c.nodes[:3] {
				p.hold(t, content)
				p.age(t, d, time.Hour)
			}
			before := c.Ring().Fingerprint()
			row.spoil(c, names, c.nodes[2], content)
			for due(c.nodes[0]) {
			}
			c.nodes[0].reconcile(t)
			if got := !c.nodes[0].holds(d); got != row.goes {
				t.Fatalf("went: %v, want %v", got, row.goes)
			}
			if moved := c.Ring().Fingerprint() != before; moved && !due(c.nodes[0]) {
				t.Error("no new pass is due")
			}
			info, err := os.Stat(c.nodes[1].file(d))
			if err != nil {
				t.Fatal(err)
			}
			if row.goes && time.Since(info.ModTime()) > time.Minute {
				t.Error("who vouched for its copy did not mark it used")
			}
		})
	}
}

// TestEvictionOrder: the least recently used copies go, and no more of them
// than needed; an owner's never.
func TestEvictionOrder(t *testing.T) {
	c, names := healing(t, option{replicas: 1, config: func(cfg *mesh.BlobsConfig) { cfg.CacheSize = 2500 }}, "-a", "a")
	cache, owner := c.nodes[0], c.nodes[1]
	var blobs []digest.Digest
	for i := range uint64(5) {
		content := bytesOf(i, 1000)
		d := digest.FromBytes(content)
		blobs = append(blobs, d)
		names.want(d, 1000)
		for _, p := range c.nodes {
			p.hold(t, content)
			p.age(t, d, time.Duration(1+(i*2)%5)*time.Hour) // 1, 3, 5, 2, 4
		}
	}
	cache.reconcile(t)
	owner.reconcile(t)
	var left []int
	for i, d := range blobs {
		if cache.holds(d) {
			left = append(left, i)
		}
		if !owner.holds(d) {
			t.Error("the owner gave up its copy")
		}
	}
	if !slices.Equal(left, []int{0, 3}) {
		t.Errorf("blobs %v are left, want the two used last", left)
	}
	if h := cache.blobs.Health(); h.Evicted != 3 || h.CacheBlobs != 2 || h.CacheBytes != 2000 || h.HeldBytes != 2000 {
		t.Errorf("health %+v", h)
	}
	if s := cache.blobs.Stats(); s.Evicted != 3 || s.EvictedBytes != 3000 || s.Dropped != 0 {
		t.Errorf("stats %+v", s)
	}
}

// TestFullDiskEvicts: without a ceiling copies stay until space runs out.
func TestFullDiskEvicts(t *testing.T) {
	for _, full := range [][]int{nil, {0}} {
		c, names := healing(t, option{replicas: 1, full: full}, "-a", "a")
		content := bytesOf(1, 1000)
		d := digest.FromBytes(content)
		names.want(d, 1000)
		for _, p := range c.nodes {
			p.plant(t, content)
			p.age(t, d, time.Hour)
		}
		c.nodes[0].reconcile(t)
		if gone := !c.nodes[0].holds(d); gone != (full != nil) {
			t.Errorf("disks %v are full: went %v", full, gone)
		}
	}
}

// TestGarbage: bytes go when nothing names them, nobody used them for the
// grace, and nothing speaks for doubt.
func TestGarbage(t *testing.T) {
	const old = 25 * time.Hour
	for _, row := range []struct {
		name   string
		age    time.Duration
		spoil  func(c *cluster, names *catalogue, d digest.Digest)
		settle time.Duration
		goes   bool
	}{
		{"old", old, nil, 0, true},
		{"young", 23 * time.Hour, nil, 0, false},
		{"referenced", old, func(_ *cluster, n *catalogue, d digest.Digest) { n.refer(d) }, 0, false},
		{"wanted", old, func(_ *cluster, n *catalogue, d digest.Digest) { n.want(d, 1000) }, 0, false},
		{"the catalogue may be behind", old, func(_ *cluster, n *catalogue, _ digest.Digest) { n.behind = true }, 0, false},
		{"just after the start", old, nil, time.Hour, false},
		{"young by the log's time", old, func(_ *cluster, n *catalogue, _ digest.Digest) { n.clock = n.clock.Add(-2 * time.Hour) }, 0, false},
		{"old by the log's time too", old, func(_ *cluster, n *catalogue, _ digest.Digest) { n.clock = n.clock.Add(-30 * time.Minute) }, 0, true},
		{"old by the log's time alone", 23 * time.Hour, func(_ *cluster, n *catalogue, _ digest.Digest) { n.clock = n.clock.Add(48 * time.Hour) }, 0, false},
		{"members are down", old, func(c *cluster, _ *catalogue, _ digest.Digest) { c.setDown(c.nodes[1], true) }, 0, true},
		{"offered again under the pass", old, func(c *cluster, n *catalogue, d digest.Digest) {
			n.looked = func(ds []digest.Digest) {
				if slices.Contains(ds, d) {
					c.nodes[0].store.Touch(d)
				}
			}
		}, 0, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			c, names := healing(t, option{replicas: 2, config: func(cfg *mesh.BlobsConfig) {
				if row.settle > 0 {
					cfg.Settle = row.settle
				}
			}}, "a", "a")
			p, content := c.nodes[0], bytesOf(1, 1000)
			d := digest.FromBytes(content)
			p.hold(t, content)
			p.age(t, d, row.age)
			if row.spoil != nil {
				row.spoil(c, names, d)
			}
			p.reconcile(t)
			if gone := !p.holds(d); gone != row.goes {
				t.Fatalf("went: %v, want %v", gone, row.goes)
			}
			if s := p.blobs.Stats(); row.goes && (s.Dropped != 1 || s.DroppedBytes != 1000 || p.blobs.Health().HeldBlobs != 0) {
				t.Errorf("stats %+v, health %+v", s, p.blobs.Health())
			}
		})
	}
}

// TestRehearsal: the list of garbage is what a pass then drops, here and asked
// of another node, and makes nothing go.
func TestRehearsal(t *testing.T) {
	c, names := healing(t, option{replicas: 1}, "a", "a")
	p := c.nodes[0]
	var old []digest.Digest
	for i := range uint64(6) {
		content := bytesOf(i, 1000)
		d := digest.FromBytes(content)
		p.hold(t, content)
		if i%2 == 0 {
			p.age(t, d, 30*time.Hour)
			old = append(old, d)
		}
	}
	kept := digest.FromString("named")
	p.hold(t, []byte("named"))
	p.age(t, kept, 30*time.Hour)
	names.want(kept, 5)
	slices.Sort(old)
	for _, asker := range c.nodes {
		for _, n := range []int{2, 10} {
			list, err := asker.blobs.GarbageOf(t.Context(), p.id, n)
			if err != nil {
				t.Fatal(err)
			}
			var got []digest.Digest
			for _, x := range list {
				got = append(got, x.Digest)
				if x.Size != 1000 || time.Since(x.Used) < 29*time.Hour || x.Why == "" {
					t.Errorf("candidate %+v", x)
				}
			}
			if want := old[:min(n, len(old))]; !slices.Equal(got, want) {
				t.Errorf("asked for %d: %v, want %v", n, got, want)
			}
		}
	}
	for _, d := range old {
		if !p.holds(d) {
			t.Error("a rehearsal dropped something")
		}
	}
	names.behind = true
	if _, err := p.blobs.Garbage(t.Context(), 10); err == nil {
		t.Error("a list that may be wrong was given")
	}
	names.behind = false
	p.reconcile(t)
	for _, d := range old {
		if p.holds(d) {
			t.Error("what was listed stays")
		}
	}
}

// TestConfirmations: whoever asks under another membership, or one who does
// not own the blob, hears no; and only a yes marks the copy used.
func TestConfirmations(t *testing.T) {
	c, _ := healing(t, option{replicas: 1}, "a", "-a")
	content := bytesOf(1, 1000)
	d := digest.FromBytes(content)
	client := c.client("")
	defer client.CloseIdleConnections()
	sum, err := hex.DecodeString(d.Encoded())
	if err != nil {
		t.Fatal(err)
	}
	question := append([]byte{1}, sum...)
	for _, row := range []struct {
		name   string
		to     int
		query  string
		yes    bool
		marked bool
	}{
		{"the owner, asked what it has", 0, "", true, false},
		{"the owner", 0, "?under=" + c.Ring().Fingerprint(), true, true},
		{"the owner, under another membership", 0, "?under=ffff", false, false},
		{"another, asked what it has", 1, "", true, false},
		{"another", 1, "?under=" + c.Ring().Fingerprint(), false, false},
	} {
		p := c.nodes[row.to]
		p.hold(t, content)
		p.age(t, d, time.Hour)
		resp, err := client.Post("https://"+p.id+"/blobs/holdings"+row.query, "", bytes.NewReader(question))
		if err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, 2)
		n, _ := resp.Body.Read(answer)
		_ = resp.Body.Close()
		info, err := os.Stat(p.file(d))
		if err != nil {
			t.Fatal(err)
		}
		if n != 1 || (answer[0] == 1) != row.yes || (time.Since(info.ModTime()) < time.Minute) != row.marked {
			t.Errorf("%s: answer %v, used %v ago", row.name, answer[:n], time.Since(info.ModTime()))
		}
	}
}
