package mesh_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/mesh"
	"github.com/flotilla-registry/flotilla/mesh/ring"
)

// rated is a cluster with a rate between its zones. No answer of a warden is
// late, however busy the machine is.
func rated(rate int64, replicas int) option {
	return option{
		replicas: replicas,
		patience: mesh.Patience{Answer: 40 * time.Second, Pause: 10 * time.Millisecond},
		config:   func(cfg *mesh.BlobsConfig) { cfg.ZoneRate = rate },
	}
}

// between returns what all nodes received from zone from in zone to, and what
// they sent there, for cause.
func (c *cluster) between(from, to string, cause mesh.Cause) (received, sent int64) {
	count := func(list []mesh.Traffic) (n int64) {
		for _, t := range list {
			if t.From == from && t.To == to && t.Cause == cause {
				n += t.Bytes
			}
		}
		return n
	}
	for _, p := range c.nodes {
		in, out := p.blobs.Traffic()
		received += count(in)
		sent += count(out)
	}
	return received, sent
}

// wardenOf returns the nodes of zone to, the warden of what comes from another
// zone first.
func (c *cluster) wardenOf(from, to string) (peers []*peer) {
	for _, n := range c.Ring().Gateway(digest.FromString(from+" "+to), to) {
		peers = append(peers, c.peer(n.ID))
	}
	return peers
}

// wishes counts what p is asked to allow from now on.
func (p *peer) wishes() *atomic.Int64 {
	n := new(atomic.Int64)
	p.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Path == "/blobs/allowance" {
			n.Add(1)
		}
		next.ServeHTTP(w, r)
	})
	return n
}

// TestZoneRate: the rate holds for all nodes of a zone together, as the warden
// has it, and what crosses is counted where it leaves and where it arrives.
func TestZoneRate(t *testing.T) {
	const rate, size, blobs = 256 << 10, 64 << 10, 12
	c := newCluster(t, rated(rate, 1), "-a", "-a", "-a", "b")
	peers := c.wardenOf("b", "a")
	first, second, third := peers[0].wishes(), peers[1].wishes(), peers[2].wishes()
	var pulls sync.WaitGroup
	for i := range uint64(blobs) {
		c.nodes[3].hold(t, bytesOf(i, size))
	}
	began := time.Now()
	for i := range uint64(blobs) {
		pulls.Go(func() {
			if _, err := c.nodes[i%3].read(t.Context(), digest.FromBytes(bytesOf(i, size))); err != nil {
				t.Error(err)
			}
		})
	}
	pulls.Wait()
	took := time.Since(began)
	received, sent := c.between("b", "a", mesh.CausePull)
	if received < blobs*size || sent < received {
		t.Errorf("%d bytes received, %d sent, of %d", received, sent, blobs*size)
	}
	// Beyond the rate there are one grant, and a piece of each body.
	if most := int64(took.Seconds()*rate) + (1+blobs)*rate/16; received > most {
		t.Errorf("%d bytes in %v, want at most %d", received, took, most)
	}
	if first.Load() == 0 || second.Load()+third.Load() != 0 {
		t.Errorf("the warden was asked %d times, the others %d", first.Load(), second.Load()+third.Load())
	}
}

// TestZoneRateOfWarden: a node without a rate, and one with another, keep to
// what the warden has; and where the warden has none, there is none.
func TestZoneRateOfWarden(t *testing.T) {
	for _, row := range []struct {
		name          string
		warden, other int64
	}{
		{"the warden alone has one", 256 << 10, 0},
		{"the warden's is lower", 256 << 10, 1 << 30},
		{"the warden has none", 0, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			opt := rated(0, 1)
			first := ring.New([]ring.Node{{ID: uuid(0), Zone: "a"}, {ID: uuid(1), Zone: "a"}}, 1).Gateway(digest.FromString("b a"), "a")[0].ID
			opt.config = func(cfg *mesh.BlobsConfig) {
				cfg.ZoneRate = row.other
				if cfg.ID == first {
					cfg.ZoneRate = row.warden
				}
			}
			c := newCluster(t, opt, "-a", "-a", "b")
			other := c.wardenOf("b", "a")[1]
			content, _ := contentFor(t, 1<<20, func(d digest.Digest) bool { return c.Ring().Head(d, "a")[0].ID == other.id })
			c.nodes[2].hold(t, content)
			began := time.Now()
			other.mustRead(t, content)
			// The first piece is read before the warden has told its rate.
			if took := time.Since(began); row.warden > 0 && took < 2*time.Second {
				t.Errorf("1 MiB took %v at 256 KiB a second", took)
			}
		})
	}
}

// TestZoneRateWardenLost: without an answer from the warden a node goes on, as
// fast as its share of the rate.
func TestZoneRateWardenLost(t *testing.T) {
	const rate = 256 << 10
	for _, row := range []struct {
		name   string
		tamper func(w http.ResponseWriter, r *http.Request, next http.Handler)
		share  int64
	}{
		{"it dies", func(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }, 2},
		{"it is of an earlier version", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.WriteHeader(http.StatusMethodNotAllowed)
		}, 2},
		{"it makes no sense", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { _, _ = w.Write([]byte(`{"bytes":-1}`)) }, 2},
		{"gossip sees it down", nil, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newCluster(t, rated(rate, 1), "-a", "-a", "b")
			peers := c.wardenOf("b", "a")
			warden, other := peers[0], peers[1]
			content, _ := contentFor(t, rate, func(d digest.Digest) bool { return c.Ring().Head(d, "a")[0].ID == other.id })
			c.nodes[2].hold(t, content)
			asked := new(atomic.Int64)
			if row.tamper == nil {
				asked = warden.wishes()
				c.setDown(warden, true)
			} else {
				warden.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
					if r.URL.Path == "/blobs/allowance" {
						row.tamper(w, r, next)
						return
					}
					next.ServeHTTP(w, r)
				})
			}
			began := time.Now()
			other.mustRead(t, content)
			if took := time.Since(began); took < time.Duration(row.share)*time.Second*4/5 {
				t.Errorf("a second's bytes took %v", took)
			}
			if asked.Load() != 0 {
				t.Error("a node that is down was asked for an allowance")
			}
		})
	}
}

// TestNoRateInsideZone: what stays in a zone asks nobody and counts nowhere.
func TestNoRateInsideZone(t *testing.T) {
	c := newCluster(t, rated(1, 1), "a", "a", "a", "-b")
	asked := make([]*atomic.Int64, len(c.nodes))
	for i, p := range c.nodes {
		asked[i] = p.wishes()
	}
	content := bytesOf(1, 1<<20)
	c.nodes[0].hold(t, content)
	for _, p := range c.nodes[1:3] {
		p.mustRead(t, content)
	}
	if err := c.nodes[1].push(t.Context(), bytesOf(2, 1<<20)); err != nil {
		t.Fatal(err)
	}
	for i, p := range c.nodes {
		if in, out := p.blobs.Traffic(); len(in)+len(out) != 0 || asked[i].Load() != 0 {
			t.Errorf("node %s: received %v, sent %v, was asked for an allowance %d times", p.id, in, out, asked[i].Load())
		}
	}
}

// TestZoneRateOfPush: the copies of a push keep to the rate, and so does what is
// passed on to an upload's home.
func TestZoneRateOfPush(t *testing.T) {
	const rate = 256 << 10
	c := newCluster(t, rated(rate, 2), "a", "b")
	content := bytesOf(1, rate)
	began := time.Now()
	if err := c.nodes[1].push(t.Context(), content); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 800*time.Millisecond {
		t.Errorf("a second's bytes took %v", took)
	}
	if received, sent := c.between("b", "a", mesh.CausePush); received != rate || sent != rate {
		t.Errorf("%d bytes received, %d sent, want %d", received, sent, rate)
	}

	c = newCluster(t, rated(rate, 1), "a", "b")
	u := start(t, c.nodes[0])
	began = time.Now()
	if _, err := c.nodes[1].blobs.Append(t.Context(), u, 0, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 800*time.Millisecond {
		t.Errorf("a second's bytes of an upload took %v", took)
	}
	if received, sent := c.between("b", "a", mesh.CausePush); received != rate || sent != rate {
		t.Errorf("of an upload %d bytes received, %d sent, want %d", received, sent, rate)
	}
}

// TestPushHeldBackIsAlive: the sender of a body that is held back hears that
// its receiver has not gone.
func TestPushHeldBackIsAlive(t *testing.T) {
	opt := rated(64<<10, 1)
	opt.patience.Stall = 4 * time.Second // it hears four times as often
	c := newCluster(t, opt, "a", "b")
	content := bytesOf(1, 192<<10) // three seconds
	d := digest.FromBytes(content)
	var alive atomic.Int64
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
		if code == http.StatusProcessing {
			alive.Add(1)
		}
		return nil
	}})
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "https://"+c.nodes[0].id+"/blobs/"+d.String(), bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Flotilla-Cause", "push")
	client := c.client(c.nodes[1].id)
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated || alive.Load() == 0 || !c.nodes[0].holds(d) {
		t.Errorf("status %d, alive said %d times", resp.StatusCode, alive.Load())
	}
}

// TestCopyOfRepairHurries: a copy that a repair sends is a pull's once a client
// waits for it.
func TestCopyOfRepairHurries(t *testing.T) {
	c := newCluster(t, rated(256<<10, 1), "a", "b")
	content := bytesOf(1, 256<<10)
	d := digest.FromBytes(content)
	body, rest := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://"+c.nodes[0].id+"/blobs/"+d.String(), body)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = int64(len(content))
	req.Header.Set("Flotilla-Node", c.nodes[1].id)
	req.Header.Set("Flotilla-Repair", "repair")
	req.Header.Set("Flotilla-Cause", "repair")
	client := c.client(c.nodes[1].id)
	defer client.CloseIdleConnections()
	var sending sync.WaitGroup
	sending.Go(func() {
		resp, err := client.Do(req)
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusCreated {
			t.Errorf("status %d", resp.StatusCode)
		}
	})
	if _, err := rest.Write(content[:64<<10]); err != nil {
		t.Fatal(err)
	}
	until(t, "it has begun", func() bool { n, _ := c.between("b", "a", mesh.CauseRepair); return n > 0 })
	f, _, err := c.nodes[0].blobs.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := rest.Write(content[64<<10:]); err != nil {
		t.Fatal(err)
	}
	_ = rest.Close()
	sending.Wait()
	repair, _ := c.between("b", "a", mesh.CauseRepair)
	pull, _ := c.between("b", "a", mesh.CausePull)
	if repair+pull != int64(len(content)) || pull < 128<<10 {
		t.Errorf("%d bytes came as a repair's and %d as a pull's", repair, pull)
	}
}

// TestPullPassesRepair: pulls that come after a repair are done before it; and a
// repair that a client comes to wait for goes on as a pull.
func TestPullPassesRepair(t *testing.T) {
	const piece = 64 << 10
	setup := func(t *testing.T) (c *cluster, repaired []byte, open, pass chan struct{}) {
		opt := rated(256<<10, 2)
		opt.silence = time.Minute
		c, names := healing(t, opt, "a", "b")
		repaired = bytesOf(1, 2*piece)
		d := digest.FromBytes(repaired)
		names.want(d, len(repaired))
		c.nodes[1].hold(t, repaired)
		open, pass = make(chan struct{}), make(chan struct{})
		// The repair comes no further than its first bytes until it may.
		c.nodes[1].setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Header.Get("Flotilla-Cause") == "repair" {
				w = &gated{w, piece / 2, open}
			}
			next.ServeHTTP(w, r)
		})
		go func() {
			defer close(pass)
			c.nodes[0].reconcile(t)
		}()
		until(t, "the repair has begun", func() bool { n, _ := c.between("b", "a", mesh.CauseRepair); return n >= piece/2 })
		return c, repaired, open, pass
	}
	t.Run("pulls come later", func(t *testing.T) {
		c, _, open, pass := setup(t)
		var pulls sync.WaitGroup
		var pulled atomic.Int64
		for i := range uint64(4) {
			content := bytesOf(10+i, 4*piece)
			c.nodes[1].hold(t, content)
			pulls.Go(func() {
				if _, err := c.nodes[0].read(t.Context(), digest.FromBytes(content)); err != nil {
					t.Error(err)
				}
				pulled.Add(1)
			})
		}
		until(t, "all pulls have begun", func() bool { n, _ := c.between("b", "a", mesh.CausePull); return n >= 2*piece })
		close(open)
		<-pass
		if pulled.Load() != 4 {
			t.Errorf("the repair is done, and %d of 4 pulls", pulled.Load())
		}
		pulls.Wait()
	})
	t.Run("a client waits for the repair", func(t *testing.T) {
		c, repaired, open, pass := setup(t)
		f, _, err := c.nodes[0].blobs.Open(t.Context(), digest.FromBytes(repaired))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		close(open)
		<-pass
		if n, _ := c.between("b", "a", mesh.CausePull); n == 0 {
			t.Error("nothing came in as a pull")
		}
	})
}

// TestCausesOfRepair: copies that are missing are told from those that have
// other owners now.
func TestCausesOfRepair(t *testing.T) {
	for _, row := range []struct {
		name  string
		to    string
		cause mesh.Cause
		spoil func(t *testing.T, c *cluster, blobs []digest.Digest)
	}{
		{"a node joins", "c", mesh.CauseRebalance, func(_ *testing.T, c *cluster, _ []digest.Digest) {
			c.set(c.nodes[2], func(n *ring.Node) { n.Weight = 5 })
		}},
		{"a disk is wiped", "b", mesh.CauseRepair, func(t *testing.T, c *cluster, blobs []digest.Digest) {
			for _, d := range blobs {
				c.nodes[1].lose(t, d)
			}
		}},
		{"a node is gone", "c", mesh.CauseRepair, func(_ *testing.T, c *cluster, _ []digest.Digest) {
			c.nodes[1].kill()
			c.change(func(m []ring.Node) []ring.Node {
				m[2].Weight = 1
				return slices.Delete(m, 1, 2)
			})
			c.nodes = slices.Delete(c.nodes, 1, 2)
		}},
		{"a node drains", "c", mesh.CauseRepair, func(_ *testing.T, c *cluster, _ []digest.Digest) {
			c.change(func(m []ring.Node) []ring.Node {
				m[2].Weight, m[1].Weight, m[1].Leaves = 1, 0, true
				return m
			})
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c, names := healing(t, option{replicas: 2}, "a", "b", "-c")
			blobs := c.spread(t, names, 20)
			row.spoil(t, c, blobs)
			for _, p := range c.nodes {
				p.reconcile(t)
			}
			c.settled(t, blobs, true)
			for _, p := range c.nodes {
				in, _ := p.blobs.Traffic()
				for _, tr := range in {
					if tr.To != row.to || tr.Cause != row.cause || tr.Bytes == 0 {
						t.Errorf("received: %v", tr)
					}
				}
			}
			var moved int64
			for _, from := range []string{"a", "b", "c"} {
				n, _ := c.between(from, row.to, row.cause)
				moved += n
			}
			if moved == 0 {
				t.Error("nothing was moved")
			}
		})
	}
}
