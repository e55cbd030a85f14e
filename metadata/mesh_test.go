package metadata

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// quick is a mesh's patience in tests. The leader's lease is half of Election,
// and two busy cores under the race detector must hold it.
var quick = Timing{
	Election: 600 * time.Millisecond,
	Commit:   time.Hour,       // nothing may wait for it
	Proof:    5 * time.Second, // reads sit out an election
	Stable:   50 * time.Millisecond,
	Pair:     2 * time.Second,
	Tick:     20 * time.Millisecond,
}

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

// testMesh is members in one process: real raft, real sockets, and a switch
// between any two of them.
type testMesh struct {
	t      testing.TB
	id     string
	bounds bounds
	reads  TagReads
	timing Timing
	out    time.Duration // Config.OutAfter

	mu    sync.Mutex
	nodes []*testNode
	made  int    // nodes ever
	ghost string // gossip shows it alive although it is gone
	cut   map[[2]string]bool
	conns map[net.Conn]line
}

// line is a connection between two members.
type line struct {
	ends [2]string
	web  bool // else a raft stream
}

// testNode is a member and what a node would be around its Catalog.
type testNode struct {
	*Catalog
	mesh   *testMesh
	id     string
	dir    string
	zone   string
	lines  net.Addr
	server *http.Server
	http   net.Addr
	up     bool
	fatal  chan error
	level  uint32
	name   string // "" for one made of the id

	// What it greets others by: its mesh's epoch, 0 while it belongs to none,
	// and whom it knows for a member, nil while it knows nobody. By mesh.mu.
	epoch Epoch
	pins  map[string]bool
	skew  atomic.Int64 // of its clock
}

func newMesh(t testing.TB) *testMesh {
	m := &testMesh{
		t: t, timing: quick, id: "11111111-0000-4000-8000-000000000000",
		bounds: bounds{trailing: 20480, threshold: 8192, bytes: 256 << 20, segment: 1 << 20, expire: 1000},
		cut:    make(map[[2]string]bool), conns: make(map[net.Conn]line),
	}
	t.TempDir() // its removal is the last clean-up, after the nodes have stopped
	t.Cleanup(func() {
		for _, n := range m.nodes {
			n.stop()
		}
	})
	return m
}

// add makes a member with an empty folder; the first founds the mesh, the
// others join through it.
func (m *testMesh) add(zone string) *testNode {
	return m.addLevel(zone, FeatureLevel)
}

func (m *testMesh) addLevel(zone string, level uint32) *testNode {
	n := m.make(zone)
	n.level = level
	if m.made == 1 {
		n.epoch = 1
		n.start(&Cluster{ID: m.id, Epoch: 1, Replicas: 3})
		return n
	}
	n.start(nil)
	n.join()
	return n
}

// make makes a node that belongs to no mesh yet.
func (m *testMesh) make(zone string) *testNode {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.made++
	n := &testNode{mesh: m, id: fmt.Sprintf("00000000-0000-4000-8000-%012d", m.made), dir: m.t.TempDir(), zone: zone, level: FeatureLevel}
	m.nodes = append(m.nodes, n)
	return n
}

// drop ends n, which is a member no longer, and forgets it.
func (m *testMesh) drop(n *testNode) {
	n.stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.nodes = slices.DeleteFunc(m.nodes, func(o *testNode) bool { return o == n })
}

// grow makes a mesh of n members in one zone and waits for its voters.
func grow(t testing.TB, n, voters int) *testMesh {
	m := newMesh(t)
	for range n {
		m.add("z")
	}
	m.settle(voters)
	return m
}

func (m *testMesh) settle(voters int) {
	m.t.Helper()
	eventually(m.t, fmt.Sprintf("%d voters, all ready", voters), func() error {
		for _, n := range m.running() {
			s := n.Status()
			if len(s.Voters) != voters || len(s.Voters)+len(s.Replicas) != len(m.nodes) {
				return fmt.Errorf("%s: %d voters, %d replicas", n.id, len(s.Voters), len(s.Replicas))
			}
			if err := n.Ready(); err != nil {
				return err
			}
		}
		return nil
	})
}

func (m *testMesh) running() []*testNode {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(m.nodes), func(n *testNode) bool { return !n.up })
}

// leader waits until a running member leads and another write would be taken.
func (m *testMesh) leader() *testNode {
	m.t.Helper()
	var leader *testNode
	eventually(m.t, "a leader", func() error {
		for _, n := range m.running() {
			if n.Status().State == "leader" && n.Writable(context.Background()) == nil {
				leader = n
				return nil
			}
		}
		return errors.New("nobody leads")
	})
	return leader
}

func (m *testMesh) follower() *testNode {
	m.t.Helper()
	leader := m.leader()
	return m.running()[slices.IndexFunc(m.running(), func(n *testNode) bool { return n != leader })]
}

func (m *testMesh) node(id string) *testNode {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range m.nodes {
		if n.id == id && n.up {
			return n
		}
	}
	return nil
}

// part cuts the lines between the two sides, or mends them.
func (m *testMesh) part(a, b []*testNode, cut bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, x := range a {
		for _, y := range b {
			m.cut[[2]string{x.id, y.id}] = cut
			m.cut[[2]string{y.id, x.id}] = cut
		}
	}
	for c, l := range m.conns {
		if m.cut[l.ends] {
			c.Close()
		}
	}
}

// greets reports whether the two let each other in, as nodes do.
func (m *testMesh) greets(from, to string) bool {
	var a, b *testNode
	for _, n := range m.nodes {
		switch n.id {
		case from:
			a = n
		case to:
			b = n
		}
	}
	return a != nil && b != nil && (a.epoch == 0 || b.epoch == 0 || a.epoch == b.epoch) &&
		(a.pins == nil || a.pins[to]) && (b.pins == nil || b.pins[from])
}

// pin is what a node does when it is told the members. Requests of others are
// refused one by one, raft's streams only when they are opened.
func (n *testNode) pin(members []Member) {
	m := n.mesh
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(members) == 0 {
		return
	}
	n.pins = make(map[string]bool)
	for _, member := range members {
		n.pins[member.ID] = true
	}
	for c, l := range m.conns {
		if l.web && l.ends[1] == n.id && !n.pins[l.ends[0]] {
			c.Close()
		}
	}
}

// dial connects two members, unless the line is cut.
func (m *testMesh) dial(ctx context.Context, from, to string, web bool) (net.Conn, error) {
	n := m.node(to)
	m.mu.Lock()
	cut, greets := m.cut[[2]string{from, to}], m.greets(from, to)
	m.mu.Unlock()
	if n == nil || cut || !greets {
		return nil, fmt.Errorf("no line from %s to %s", from, to)
	}
	addr := n.lines
	if web {
		addr = n.http
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.conns[conn] = line{[2]string{from, to}, web}
	if m.cut[[2]string{from, to}] {
		conn.Close()
	}
	return conn, nil
}

// plain sends https://<member> over plain connections: TLS is the node's.
type plain struct{ *http.Transport }

func (p plain) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Scheme = "http"
	return p.Transport.RoundTrip(r)
}

func (n *testNode) member() Member {
	name := n.name
	if name == "" {
		name = "node-" + n.id[len(n.id)-2:]
	}
	return Member{
		ID: n.id, Name: name, Zone: n.zone, Level: n.level, Weight: 1,
		Key:     ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n.id[len(n.id)-1]}, 32)).Public().(ed25519.PublicKey),
		Address: n.http.String(),
	}
}

func listen(t testing.TB) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (n *testNode) start(found *Cluster) {
	t, m := n.mesh.t, n.mesh
	t.Helper()
	streams, web := listen(t), listen(t)
	n.lines, n.http, n.fatal = streams.Addr(), web.Addr(), make(chan error, 1)
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			host, _, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			return m.dial(ctx, n.id, host, true)
		},
		MaxIdleConnsPerHost: 16,
	}
	ready := make(chan http.Handler, 1) // what Open makes, and its peers may ask for before
	var handler http.Handler
	var once sync.Once
	n.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		once.Do(func() { handler = <-ready })
		handler.ServeHTTP(w, r)
	})}
	go n.server.Serve(web)
	m.mu.Lock()
	n.up = true
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := open(Config{
		Dir: n.dir, ID: n.id, Epoch: n.epoch, OutAfter: m.out,
		Listener: streams,
		Dial: func(ctx context.Context, id string) (net.Conn, error) {
			return m.dial(ctx, n.id, id, false)
		},
		Client:    &http.Client{Transport: plain{transport}},
		Alive:     func() []string { return m.alive(n.id) },
		OnMembers: func(members []Member, _ Cluster) { n.pin(members) },
		Fatal:     func(err error) { n.fatal <- err },
		Now:       func() time.Time { return time.Now().Add(time.Duration(n.skew.Load())) },
		TagReads:  m.reads, Timing: m.timing, Log: testLog(),
	}, m.bounds)
	if err != nil {
		ready <- http.NotFoundHandler()
		t.Fatalf("open %s: %v", n.id, err)
	}
	ready <- c.PeerHandler()
	if found != nil {
		if err := c.Found(ctx, *found, n.member()); err != nil {
			t.Fatal(err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n.Catalog = c
}

// alive is what a member's gossip would say.
func (m *testMesh) alive(from string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ids []string
	for _, n := range m.nodes {
		if n.up && !m.cut[[2]string{from, n.id}] || n.id == m.ghost {
			ids = append(ids, n.id)
		}
	}
	return ids
}

// join enters n through the first member that runs.
func (n *testNode) join() {
	n.mesh.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	through := n.mesh.running()[0]
	if err := through.Join(ctx, n.member()); err != nil {
		n.mesh.t.Fatalf("join %s: %v", n.id, err)
	}
	n.mesh.mu.Lock()
	defer n.mesh.mu.Unlock()
	n.epoch = through.Cluster().Epoch
}

// stop ends n as a planned stop would, without handing anything over.
func (n *testNode) stop() {
	n.mesh.mu.Lock()
	up := n.up
	n.up = false
	n.mesh.mu.Unlock()
	if !up || n.Catalog == nil {
		return
	}
	n.server.Close()
	if err := n.Close(); err != nil {
		n.mesh.t.Errorf("close %s: %v", n.id, err)
	}
	n.cfg.Client.CloseIdleConnections()
}

func testLog() *slog.Logger {
	if os.Getenv("METADATA_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// eventually waits until look finds nothing wrong.
func eventually(t testing.TB, what string, look func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := look()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s: %v", what, err)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// image is a manifest without blobs: what it names is not the point here.
func image(i int) (oci.Manifest, []byte) {
	body := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[],"annotations":{"n":"%d"}}`, oci.TypeIndex, i)
	return oci.Manifest{MediaType: oci.TypeIndex, Digest: digest.FromBytes(body), Size: int64(len(body))}, body
}

func (n *testNode) push(repo, tag string, i int) error {
	m, body := image(i)
	var tags []string
	if tag != "" {
		tags = []string{tag}
	}
	return n.PutManifest(context.Background(), Put{Repo: repo, Tags: tags, Manifest: m, Body: body})
}

// pull reports whether tag names image i here, freshly.
func (n *testNode) pull(repo, tag string, i int) error {
	got, err := n.Manifest(context.Background(), repo, oci.Reference{Tag: tag})
	if err != nil {
		return err
	}
	if got.Degraded {
		return fmt.Errorf("%s:%s is degraded at %s", repo, tag, n.id)
	}
	if want, body := image(i); got.Digest != want.Digest || !bytes.Equal(got.Body, body) {
		return fmt.Errorf("%s:%s is %s at %s, not image %d", repo, tag, got.Digest, n.id, i)
	}
	return nil
}

// meanwhile has n goroutines call work over and over, each with its number, until
// that returns false or stop is called, which waits for all of them.
func meanwhile(t testing.TB, n int, work func(i int) bool) (stop func()) {
	over := make(chan struct{})
	var working sync.WaitGroup
	for i := range n {
		working.Go(func() {
			for work(i) {
				select {
				case <-over:
					return
				default:
				}
			}
		})
	}
	stop = sync.OnceFunc(func() {
		close(over)
		working.Wait()
	})
	t.Cleanup(stop) // where the test ends early
	return stop
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func contains(ids []string, id string) bool { return slices.Contains(ids, id) }

func removeAll(dir, name string) error { return os.RemoveAll(filepath.Join(dir, name)) }
