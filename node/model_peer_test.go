package node

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api"
	"github.com/flotilla-registry/flotilla/api/auth"
	"github.com/flotilla-registry/flotilla/mesh"
	"github.com/flotilla-registry/flotilla/mesh/ring"
	"github.com/flotilla-registry/flotilla/metadata"
	"github.com/flotilla-registry/flotilla/node/disk"
)

// modelPeer is a member of the model: a real disk, a real replica of the
// catalogue, the real mesh.Blobs, and the real public API on top. What a node
// has besides, gossip and TLS, is left out: the model says who is a member, and
// when each member hears of it.
type modelPeer struct {
	m       *model
	id      string
	zone    string
	dir     string
	store   *disk.Store
	catalog *metadata.Catalog
	blobs   *mesh.Blobs
	public  http.Handler
	lines   net.Listener // raft
	web     net.Listener // everything else between members
	lag     lateness
	away    atomic.Bool  // no other member reaches it, nor it them
	clients sync.RWMutex // held while no client may use it

	pass   sync.Mutex // held during a pass
	dimmed bool       // its log is late until the end of the pass; by pass
	now    modelPass  // what the running pass is; by m.mu

	view struct {
		sync.Mutex
		roster  int // index of the latest that it has heard of
		down    map[string]bool
		changed chan struct{}
	}

	marks map[digest.Digest]modelMark // by m.mu
}

// modelPass is one pass as its member sees it.
type modelPass struct {
	began time.Time
	named map[digest.Digest]bool // what the catalogue told it is named
}

// modelMark says that a copy is durable and was marked used.
type modelMark struct {
	before time.Time // it was marked at this time or later,
	after  time.Time // and at this time or earlier
}

func modelID(i int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", i+1) }

// newModelPeer makes a member that answers at its ports once it has started.
func (m *model) newModelPeer(i int) *modelPeer {
	p := &modelPeer{m: m, id: modelID(i), zone: m.zones[i], dir: m.t.TempDir(), marks: map[digest.Digest]modelMark{}}
	p.view.changed, p.view.down = make(chan struct{}), map[string]bool{}
	p.lines, p.web = p.listen(), p.listen()
	return p
}

func (p *modelPeer) start() {
	m := p.m
	ready := make(chan http.Handler, 1)
	serve := sync.OnceValue(func() http.Handler { return <-ready })
	server := &http.Server{
		Handler:  http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { serve().ServeHTTP(w, r) }),
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	go func() { _ = server.Serve(p.web) }()
	var err error
	if p.store, err = disk.Open(disk.Config{Dir: filepath.Join(p.dir, "disk")}); err != nil {
		m.t.Fatal(err)
	}
	client := &http.Client{Transport: p.transport()}
	p.catalog, err = metadata.Open(metadata.Config{
		Dir: filepath.Join(p.dir, "catalog"), ID: p.id,
		Listener: lateListener{p.lines, p}, Client: client,
		Dial: func(ctx context.Context, id string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", m.peer(id).lines.Addr().String())
		},
		Alive:     func() []string { return m.ids },
		OnMembers: func([]metadata.Member, metadata.Cluster) {},
		Fatal:     func(err error) { m.t.Errorf("%s: %v", p.id, err) },
		OutAfter:  time.Hour,
		Timing: metadata.Timing{
			Election: 1500 * time.Millisecond, Proof: 2 * time.Second, Stable: 50 * time.Millisecond, Tick: 20 * time.Millisecond,
			LinkAge: m.linkAge,
		},
	})
	if err != nil {
		m.t.Fatal(err)
	}
	p.blobs = mesh.NewBlobs(mesh.BlobsConfig{
		ID: p.id, Zone: p.zone, Local: watchedDisk{p.store, p}, Members: p, Client: client,
		Patience: mesh.Patience{Pause: 10 * time.Millisecond}, Log: slog.New(slog.DiscardHandler),
		Names: watchedNames{names{p.catalog}, p}, CacheSize: 1, Grace: m.grace, Settle: time.Nanosecond,
	})
	p.serve(ready)
	m.t.Cleanup(func() {
		p.blobs.Close()
		if err := errors.Join(p.catalog.Close(), server.Close(), p.store.Close()); err != nil {
			m.t.Error(err)
		}
		client.CloseIdleConnections()
	})
}

// serve joins what members and clients ask of p.
func (p *modelPeer) serve(ready chan http.Handler) {
	mux := http.NewServeMux()
	mux.Handle("/metadata/", p.catalog.PeerHandler())
	mux.Handle("/", p.blobs.PeerHandler())
	ready <- mux
	slow := slowBlobs{p.blobs, p}
	open, err := auth.New(auth.Config{
		Settings: api.Settings(p.catalog), Mesh: func() string { return p.catalog.Cluster().ID }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		p.m.t.Fatal(err)
	}
	p.public, err = api.New(api.Config{
		Node: p.id, Blobs: slow, Uploads: slow, Catalog: p.catalog, Health: p, Room: p.store.Full, Auth: open,
		Status:  func(context.Context, bool) any { return nil },
		Where:   new(Node).Where, // which nobody asks
		Admin:   api.Admin{Check: func(string) error { return errors.New("nobody") }, Members: nobody{}, Collector: nobody{}, Archive: nobody{}, Checker: nobody{}, Pinner: nobody{}},
		Metrics: http.NotFoundHandler(), Observe: func(api.Served) {}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		p.m.t.Fatal(err)
	}
}

// nobody fills the places of the API that the model does not use.
type nobody struct {
	api.Members
	api.Collector
	api.Archive
	api.Checker
	api.Pinner
}

func (p *modelPeer) Ready() error                       { return p.catalog.Ready() }
func (p *modelPeer) Writable(ctx context.Context) error { return p.catalog.Writable(ctx) }

func (p *modelPeer) listen() net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.m.t.Fatal(err)
	}
	return l
}

// enter makes p a member of the mesh.
func (p *modelPeer) enter(ctx context.Context, first bool) error {
	seed := sha256.Sum256([]byte(p.id))
	self := metadata.Member{
		ID: p.id, Name: p.id, Zone: p.zone, Weight: 1, Level: metadata.FeatureLevel, Address: p.web.Addr().String(),
		Key: ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey),
	}
	if first {
		return p.catalog.Found(ctx, metadata.Cluster{ID: "11111111-0000-4000-8000-000000000000", Epoch: 1, Replicas: 2}, self)
	}
	return p.m.peers[0].catalog.Join(ctx, self)
}

// lateness is whether the news of the log reach a member late.
type lateness struct {
	mu   sync.Mutex
	over chan struct{} // nil: they do not; else closed once they do not any more
}

// begin makes the news late; end ends it.
func (l *lateness) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = make(chan struct{})
}

func (l *lateness) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.over)
	l.over = nil
}

func (l *lateness) is() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.over != nil
}

func (l *lateness) wait() {
	l.mu.Lock()
	over := l.over
	l.mu.Unlock()
	if over != nil {
		<-over
	}
}

// lateListener yields connections whose news come late while p lags.
type lateListener struct {
	net.Listener
	p *modelPeer
}

func (l lateListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return lateConn{c, l.p}, nil
}

type lateConn struct {
	net.Conn
	p *modelPeer
}

func (c lateConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.p.lag.wait()
	return n, err
}

// transport carries requests to members by UUID, without the TLS of a node.
// Questions about blobs do not reach who is away; the catalogue's always do.
func (p *modelPeer) transport() http.RoundTripper {
	return peerTransport{&http.Transport{
		DialContext: func(ctx context.Context, network, host string) (net.Conn, error) {
			id, _, err := net.SplitHostPort(host)
			if err != nil {
				return nil, err
			}
			return new(net.Dialer).DialContext(ctx, network, p.m.peer(id).web.Addr().String())
		},
		ExpectContinueTimeout: 5 * time.Second, MaxIdleConnsPerHost: 16,
	}, p}
}

type peerTransport struct {
	*http.Transport
	p *modelPeer
}

var errAway = errors.New("no line")

func (t peerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Scheme = "http"
	if strings.HasPrefix(r.URL.Path, "/metadata/") {
		return t.Transport.RoundTrip(r)
	}
	if t.p.away.Load() || t.p.m.peer(r.URL.Hostname()).away.Load() {
		return nil, errAway
	}
	resp, err := t.Transport.RoundTrip(r)
	if r.URL.Path == "/blobs/holdings" {
		t.p.m.dawdle(4) // the asker acts on the answer later
	}
	return resp, err
}

// Ring implements mesh.Membership: the members as p has heard of them.
func (p *modelPeer) Ring() *ring.Ring {
	p.view.Lock()
	defer p.view.Unlock()
	r := p.m.roster(p.view.roster)
	nodes := slices.Clone(r.nodes)
	for i := range nodes {
		nodes[i].Down = p.view.down[nodes[i].ID]
	}
	return ring.New(nodes, r.replicas)
}

// Down implements mesh.Membership.
func (p *modelPeer) Down(id string) bool {
	n, ok := p.Ring().Node(id)
	return !ok || n.Down
}

// Changed implements mesh.Membership.
func (p *modelPeer) Changed() <-chan struct{} {
	p.view.Lock()
	defer p.view.Unlock()
	return p.view.changed
}

// hear tells p of rosters up to this one, and who is away now.
func (p *modelPeer) hear(roster int) {
	p.view.Lock()
	defer p.view.Unlock()
	p.view.roster = max(p.view.roster, roster)
	for _, o := range p.m.peers {
		p.view.down[o.id] = o != p && o.away.Load()
	}
	close(p.view.changed)
	p.view.changed = make(chan struct{})
}

// reconcile is one pass at p.
func (p *modelPeer) reconcile(ctx context.Context) {
	p.pass.Lock()
	defer p.pass.Unlock()
	p.m.mu.Lock()
	p.now = modelPass{began: time.Now(), named: map[digest.Digest]bool{}}
	p.m.mu.Unlock()
	if err := p.blobs.Reconcile(ctx); err != nil && ctx.Err() == nil {
		p.m.note("", "pass at %s: %v", p.short(), err)
	}
	if p.dimmed {
		p.lag.end()
		p.dimmed = false
	}
	p.m.step()
}

func (p *modelPeer) short() string { return p.id[len(p.id)-1:] }

// held lists what p's disk holds.
func (p *modelPeer) held() (all []digest.Digest) {
	err := p.store.Walk(context.Background(), "", func(d digest.Digest, _ int64, _ time.Time) bool {
		all = append(all, d)
		return true
	})
	if err != nil {
		p.m.t.Error(err)
	}
	return all
}

// destroy takes a copy away as no part of flotilla would.
func (p *modelPeer) destroy(d digest.Digest) {
	p.m.forget(p, d)
	if _, err := p.store.Remove(d, time.Now().Add(time.Hour)); err != nil {
		p.m.t.Error(err)
	}
}

// ask does one request of a client at p.
func (p *modelPeer) ask(method, path string, body []byte, header ...string) *answerRecorder {
	p.clients.RLock()
	defer p.clients.RUnlock()
	limit := 15 * time.Second
	if method == http.MethodDelete { // which waits for members whose log is late
		limit = time.Second
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, "http://"+p.id+path, bytes.NewReader(body))
	if err != nil {
		p.m.t.Fatal(err)
	}
	r.RequestURI = path
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := &answerRecorder{header: http.Header{}, status: http.StatusOK}
	p.public.ServeHTTP(w, r)
	p.m.step()
	return w
}

// answerRecorder is the client's end of a request.
type answerRecorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *answerRecorder) Header() http.Header         { return a.header }
func (a *answerRecorder) WriteHeader(status int)      { a.status = status }
func (a *answerRecorder) Write(b []byte) (int, error) { return a.body.Write(b) }
