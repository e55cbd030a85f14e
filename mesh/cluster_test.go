package mesh_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh"
	"github.com/flotilla-registry/flotilla/mesh/ring"
	"github.com/flotilla-registry/flotilla/node/disk"
)

// cluster is several Blobs over TLS on loopback, each with a disk of its own,
// and a list of members that the test controls.
type cluster struct {
	t         testing.TB
	nodes     []*peer
	over      chan struct{} // closed at the end of the test
	looks     atomic.Int64  // calls of Down
	overLines atomic.Int64  // bytes between zones, either way

	mu       sync.Mutex
	members  []ring.Node
	replicas int
	changed  chan struct{} // closed at the next change
	waits    int           // calls of Changed
}

// peer is one node. Its wire can be tampered with: that is what a test does
// instead of breaking machines.
type peer struct {
	id    string
	dir   string // of store
	store *disk.Store
	blobs *mesh.Blobs
	srv   *httptest.Server
	log   *logBuffer

	mu     sync.Mutex
	seen   []string // "METHOD path status" of each answer
	ids    []string // request ids seen
	tamper func(w http.ResponseWriter, r *http.Request, next http.Handler)
	lost   atomic.Bool // dialling it never ends
}

// option changes a cluster before it starts.
type option struct {
	replicas int
	patience mesh.Patience
	silence  time.Duration
	expect   time.Duration // how long "100 Continue" is waited for
	full     []int         // nodes whose disk is full
	config   func(*mesh.BlobsConfig)
}

// newCluster starts a node per zone named; a zone "-x" is x with weight 0.
func newCluster(t testing.TB, opt option, zones ...string) *cluster {
	c := &cluster{t: t, replicas: max(opt.replicas, 1), over: make(chan struct{}), changed: make(chan struct{})}
	for i, zone := range zones {
		n := ring.Node{ID: uuid(i), Zone: zone, Weight: 1}
		if zone[0] == '-' {
			n.Zone, n.Weight = zone[1:], 0
		}
		c.members = append(c.members, n)
		c.nodes = append(c.nodes, &peer{id: n.ID, log: &logBuffer{}})
	}
	if opt.patience == (mesh.Patience{}) {
		opt.patience = mesh.Patience{Answer: 3 * time.Second, Persist: 20 * time.Second, Pause: 10 * time.Millisecond}
	}
	for i, p := range c.nodes {
		cfg := disk.Config{Dir: filepath.Join(t.TempDir(), "data"), SourceSilence: opt.silence}
		if slices.Contains(opt.full, i) {
			cfg.Reserve = 1 << 60
		}
		p.dir = cfg.Dir
		var err error
		if p.store, err = disk.Open(cfg); err != nil {
			t.Fatal(err)
		}
		client := c.client(p.id)
		if opt.expect > 0 {
			client.Transport.(tagging).ExpectContinueTimeout = opt.expect
		}
		blobs := mesh.BlobsConfig{
			ID: p.id, Zone: c.members[i].Zone, Local: p.store, Members: c, Client: client,
			Patience: opt.patience, Log: slog.New(slog.NewTextHandler(p.log, nil)),
		}
		if opt.config != nil {
			opt.config(&blobs)
		}
		p.blobs = mesh.NewBlobs(blobs)
		p.srv = httptest.NewUnstartedServer(p)
		p.srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		p.srv.StartTLS()
		t.Cleanup(func() {
			p.blobs.Close()
			if err := p.store.Close(); err != nil {
				t.Error(err)
			}
			client.CloseIdleConnections()
			p.srv.CloseClientConnections()
			p.srv.Close()
		})
	}
	t.Cleanup(func() { close(c.over) }) // runs before the others
	return c
}

// Ring and Down make the cluster the Membership of its nodes.
func (c *cluster) Ring() *ring.Ring {
	c.mu.Lock()
	defer c.mu.Unlock()
	return ring.New(c.members, c.replicas)
}

func (c *cluster) Down(id string) bool {
	c.looks.Add(1)
	n, ok := c.Ring().Node(id)
	return !ok || n.Down
}

// Changed implements mesh.Membership.
func (c *cluster) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waits++
	return c.changed
}

// seen returns once every node has looked at the members as they are now: it
// looks again only after it has.
func (c *cluster) seen() {
	for range 3 {
		c.mu.Lock()
		before := c.waits
		c.mu.Unlock()
		c.change(func(members []ring.Node) []ring.Node { return members })
		until(c.t, "all look", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.waits >= before+len(c.nodes)
		})
	}
}

// change changes the members.
func (c *cluster) change(f func(members []ring.Node) []ring.Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members = f(slices.Clone(c.members))
	close(c.changed)
	c.changed = make(chan struct{})
}

// set changes the member that is p.
func (c *cluster) set(p *peer, f func(n *ring.Node)) {
	c.change(func(members []ring.Node) []ring.Node {
		i := slices.IndexFunc(members, func(n ring.Node) bool { return n.ID == p.id })
		f(&members[i])
		return members
	})
}

func (c *cluster) setDown(p *peer, down bool) {
	c.set(p, func(n *ring.Node) { n.Down = down })
}

func (c *cluster) peer(id string) *peer {
	i := slices.IndexFunc(c.nodes, func(p *peer) bool { return p.id == id })
	if i < 0 {
		c.t.Fatalf("no node %s", id)
	}
	return c.nodes[i]
}

// client reaches nodes by UUID, as the own one of the node with this id does.
func (c *cluster) client(id string) *http.Client {
	transport := &http.Transport{ExpectContinueTimeout: 5 * time.Second, MaxIdleConnsPerHost: 8}
	transport.DialTLSContext = func(ctx context.Context, _, hostport string) (net.Conn, error) {
		to, _, err := net.SplitHostPort(hostport)
		if err != nil {
			return nil, err
		}
		p := c.peer(to)
		if p.lost.Load() {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		roots := x509.NewCertPool()
		roots.AddCert(p.srv.Certificate())
		d := tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: "example.com"}}
		conn, err := d.DialContext(ctx, "tcp", p.srv.Listener.Addr().String())
		if err == nil && c.zone(id) != c.zone(to) {
			conn = &thinLine{conn, &c.overLines}
		}
		return conn, err
	}
	return &http.Client{Transport: tagging{transport, id}}
}

func (c *cluster) zone(id string) string {
	n, _ := c.Ring().Node(id)
	return n.Zone
}

// thinLine is a connection between two zones, whose bytes are counted.
type thinLine struct {
	net.Conn
	crossed *atomic.Int64
}

func (l *thinLine) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	l.crossed.Add(int64(n))
	return n, err
}

func (l *thinLine) Write(p []byte) (int, error) {
	n, err := l.Conn.Write(p)
	l.crossed.Add(int64(n))
	return n, err
}

// tagging says who sends a request, where a node's certificate does.
type tagging struct {
	*http.Transport
	id string
}

func (t tagging) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("X-Request-Id", oci.RequestID(r.Context()))
	r.Header.Set("X-Caller", t.id)
	return t.Transport.RoundTrip(r)
}

// ServeHTTP is what node's middleware does, and the tampering.
func (p *peer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := r.Header.Get("X-Request-Id")
	r = r.WithContext(mesh.WithCaller(oci.WithRequestID(r.Context(), id), r.Header.Get("X-Caller")))
	p.mu.Lock()
	tamper := p.tamper
	p.ids = append(p.ids, id)
	p.mu.Unlock()
	rec := &recorder{ResponseWriter: w, status: http.StatusOK, note: func(status int) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.seen = append(p.seen, fmt.Sprint(r.Method, " ", r.URL.Path, " ", status))
	}}
	if tamper != nil {
		tamper(rec, r, p.blobs.PeerHandler())
		return
	}
	p.blobs.PeerHandler().ServeHTTP(rec, r)
}

type recorder struct {
	http.ResponseWriter
	status int
	note   func(status int)
}

func (r *recorder) WriteHeader(status int) {
	r.note(status)
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (p *peer) setTamper(f func(w http.ResponseWriter, r *http.Request, next http.Handler)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tamper = f
}

// answers counts the requests for d that p answered so.
func (p *peer) answers(method string, d digest.Digest, status int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, s := range p.seen {
		if s == fmt.Sprint(method, " /blobs/", d, " ", status) {
			n++
		}
	}
	return n
}

// kill ends p's connections and refuses new ones; it is not a crash of the
// disk. revive is not needed: tests that need one tamper.
func (p *peer) kill() {
	_ = p.srv.Listener.Close()
	p.srv.CloseClientConnections()
}

// hold stores content at p alone.
func (p *peer) hold(t *testing.T, content []byte) {
	t.Helper()
	if err := p.store.Put(t.Context(), digest.FromBytes(content), int64(len(content)), bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
}

func (p *peer) holds(d digest.Digest) bool { return p.store.Has(d) }

// bytesOf returns n bytes that differ for each seed.
func bytesOf(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b) // never fails
	return b
}

// contentFor returns n bytes whose digest meets a condition, so that a test
// can choose who owns them.
func contentFor(t *testing.T, n int, fits func(digest.Digest) bool) ([]byte, digest.Digest) {
	t.Helper()
	b := bytesOf(1, n)
	for i := range 100000 {
		copy(b, fmt.Sprintf("%08d", i))
		if d := digest.FromBytes(b); fits(d) {
			return b, d
		}
	}
	t.Fatal("no content fits")
	return nil, ""
}

// read opens d at p and returns all of it.
func (p *peer) read(ctx context.Context, d digest.Digest) ([]byte, error) {
	f, size, err := p.blobs.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err == nil && int64(len(b)) != size {
		err = fmt.Errorf("%d bytes of %d", len(b), size)
	}
	return b, err
}

func (p *peer) mustRead(t *testing.T, want []byte) {
	t.Helper()
	got, err := p.read(t.Context(), digest.FromBytes(want))
	if err != nil {
		t.Fatalf("node %s: %v", p.id, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("node %s: other bytes", p.id)
	}
}

// until waits for cond, which nothing announces.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	limit := time.After(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("never happened: %s", what)
		}
	}
}

// cutAfter serves n bytes of a body and drops the connection.
type cutAfter struct {
	http.ResponseWriter
	left int
}

func (c *cutAfter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (c *cutAfter) Write(p []byte) (int, error) {
	cut := len(p) >= c.left
	if cut {
		p = p[:c.left]
	}
	n, err := c.ResponseWriter.Write(p)
	c.left -= n
	if cut {
		_ = http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// gated passes n bytes of a body on and then waits for open.
type gated struct {
	http.ResponseWriter
	left int
	open <-chan struct{}
}

func (g *gated) Unwrap() http.ResponseWriter { return g.ResponseWriter }

func (g *gated) Write(p []byte) (int, error) {
	done := 0
	if g.left > 0 {
		n, err := g.ResponseWriter.Write(p[:min(g.left, len(p))])
		done, g.left = n, g.left-n
		if err != nil {
			return done, err
		}
		_ = http.NewResponseController(g.ResponseWriter).Flush()
	}
	if done == len(p) {
		return done, nil
	}
	<-g.open
	n, err := g.ResponseWriter.Write(p[done:])
	return done + n, err
}
