package mesh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/flotilla-registry/flotilla/mesh/ring"
)

// Config is what Members needs from its node.
type Config struct {
	ID        string   // this node's UUID
	Meta      Meta     // what it tells the others
	Bind      string   // host:port for UDP and TCP; port 0 takes a free one
	Advertise string   // host, or host:port, that others reach Bind at; needed unless Bind names a host
	Keys      [][]byte // 32 bytes each, from the secrets: AES-256 for all gossip; the first encrypts, each decrypts
	Seeds     []string // host:port of members, tried again whenever this node is alone or misses someone
	StatePath string   // file of the members met so far; made where absent
	Timing    Timing   // the zero value is LAN
	Log       *slog.Logger
}

// Timing sets how fast gossip notices things.
type Timing struct {
	Probe     time.Duration // one member is probed this often
	ProbeWait time.Duration // and given this long to answer by UDP
	Gossip    time.Duration // news leave this often
	PushPull  time.Duration // whole state is exchanged this often
	Suspicion int           // probes (times log of the size) from suspect to down
	Stream    time.Duration // bound on dialling and on each exchange over TCP
	Rejoin    time.Duration // lost members and seeds are tried this often
	Settle    time.Duration // a member not met since the start counts as down only after this
}

// LAN is memberlist's own profile: a silent member is down after 5 to 25
// seconds, at 150 bytes a second for each node.
func LAN() Timing {
	return Timing{
		Probe: time.Second, ProbeWait: 500 * time.Millisecond, Gossip: 200 * time.Millisecond,
		PushPull: 30 * time.Second, Suspicion: 4, Stream: 5 * time.Second,
		Rejoin: 15 * time.Second, Settle: 10 * time.Second,
	}
}

// WAN is for members across lines that are long or thin: an answer may take two
// seconds, a silent member is down after 11 to 50 seconds, and half as much is
// said as in a LAN. Lost members are tried more often: a line comes back as
// suddenly as it went.
func WAN() Timing {
	return Timing{
		Probe: 2 * time.Second, ProbeWait: 1500 * time.Millisecond, Gossip: 500 * time.Millisecond,
		PushPull: time.Minute, Suspicion: 4, Stream: 10 * time.Second,
		Rejoin: 5 * time.Second, Settle: 15 * time.Second,
	}
}

// Fast is for meshes inside one process, where nothing is lost on the way: a
// silent member is down after about a second.
func Fast() Timing {
	return Timing{
		Probe: 200 * time.Millisecond, ProbeWait: 150 * time.Millisecond, Gossip: 20 * time.Millisecond,
		PushPull: time.Second, Suspicion: 3, Stream: 2 * time.Second,
		Rejoin: 300 * time.Millisecond, Settle: time.Second,
	}
}

// Peer is a member as gossip shows it.
type Peer struct {
	ID      string
	Name    string
	Zone    string
	Addr    string // host:port of its peer port
	Gossip  string // host:port of its gossip port
	Cluster string // UUID of its mesh, "" before it belongs to one
	Level   uint32
}

// RosterMember is a member as Raft decided it. One that is draining or out owns
// nothing; it is still asked for what it holds.
type RosterMember struct {
	ID       string
	Zone     string
	Weight   uint32
	Draining bool // its operator takes it out of service
	Out      bool // it was gone for long
}

// Members is this node's view of who is here. Its methods may be used
// concurrently, and none but Join, UpdateMeta, Leave and Close waits for
// anything.
type Members struct {
	id     string
	log    *slog.Logger
	timing Timing
	path   string
	seeds  []string
	self   string // gossip address that others reach
	list   *memberlist.Memberlist
	net    *transport
	ring   atomic.Pointer[ring.Ring]
	rare   rarely

	// mu is taken inside memberlist's callbacks, which hold its locks: whoever
	// holds mu calls nothing of memberlist.
	mu       sync.Mutex
	meta     Meta
	encoded  []byte
	entries  map[string]*entry
	roster   []RosterMember
	replicas int
	settled  bool
	changed  chan struct{}
	closed   bool

	life   sync.Mutex // orders UpdateMeta, Leave and Close
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	dirty  chan struct{} // the file may be behind entries
	kick   chan struct{} // a lost member may be back
}

// entry is all that is known of another node.
type entry struct {
	Peer
	alive   bool // as gossip shows it, of whatever mesh
	met     bool // seen since this process started; else from the file
	claimed bool // its addresses are newer than what gossip holds, see conflict
	strange bool // of another mesh, and that was logged
}

// Start listens and gossips until Close. It joins nobody by itself, but tries
// at once those that the file knows. ctx bounds the look-up of names only.
func Start(ctx context.Context, cfg Config) (*Members, error) {
	if cfg.Timing == (Timing{}) {
		cfg.Timing = LAN()
	}
	encoded, err := cfg.Meta.encode()
	if err != nil {
		return nil, fmt.Errorf("announce node: %w", err)
	}
	m := &Members{
		id: cfg.ID, log: cfg.Log, timing: cfg.Timing, path: cfg.StatePath, seeds: cfg.Seeds,
		meta: cfg.Meta, encoded: encoded, entries: map[string]*entry{}, replicas: 1,
		changed: make(chan struct{}), dirty: make(chan struct{}, 1), kick: make(chan struct{}, 1),
	}
	m.rebuild()
	if err := m.load(); err != nil {
		return nil, err
	}
	background, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	if err := m.gossip(ctx, background, cfg); err != nil {
		cancel()
		return nil, err
	}
	m.tasks.Go(func() { m.tend(background) })
	m.tasks.Go(func() { m.rejoin(background) })
	return m, nil
}

// ID returns this node's UUID.
func (m *Members) ID() string { return m.id }

// Address returns the gossip address that others reach this node at.
func (m *Members) Address() string { return m.self }

// Peers returns who seems alive and of this mesh, or of none yet, this node
// included, by name.
func (m *Members) Peers() []Peer {
	m.mu.Lock()
	defer m.mu.Unlock()
	peers := []Peer{peerOf(m.id, m.self, m.meta)}
	for _, e := range m.entries {
		if m.present(e) {
			peers = append(peers, e.Peer)
		}
	}
	slices.SortFunc(peers, func(a, b Peer) int {
		return strings.Compare(a.Name+"\x00"+a.ID, b.Name+"\x00"+b.ID)
	})
	return peers
}

// Addr returns the last known address of a node's peer port, whether or not it
// is up.
func (m *Members) Addr(id string) (string, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if id == m.id {
		return m.meta.Peer, true
	}
	e, ok := m.entries[id]
	if !ok || e.Addr == "" {
		return "", false
	}
	return e.Addr, true
}

// Alive returns the members of the roster that gossip shows alive, and this
// node.
func (m *Members) Alive() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	alive := []string{m.id}
	for _, r := range m.roster {
		if e, ok := m.entries[r.ID]; ok && m.present(e) {
			alive = append(alive, r.ID)
		}
	}
	return alive
}

// Down reports whether a node seems down. A member that this process has not
// met yet is given the time that a start needs.
func (m *Members) Down(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.down(id)
}

// Ring returns who owns what, as of the last SetRoster, and who seems down.
func (m *Members) Ring() *ring.Ring { return m.ring.Load() }

// SetRoster says who belongs to the mesh, and how many copies it keeps.
func (m *Members) SetRoster(roster []RosterMember, replicas int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.roster, m.replicas = slices.Clone(roster), replicas
	if slices.ContainsFunc(roster, func(r RosterMember) bool { return r.ID == m.id }) {
		// Whoever was removed is not looked for any more.
		maps.DeleteFunc(m.entries, func(id string, e *entry) bool { return !e.alive && !m.enrolled(id) })
	}
	m.touch()
}

// Changed returns a channel that is closed at the next change of Peers, Alive,
// Addr or Ring. Take it before looking, so that no change falls in between.
func (m *Members) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// UpdateMeta changes what this node tells the others. It returns once the news
// is on its way, or with ctx's error: then it leaves with the next exchange.
func (m *Members) UpdateMeta(ctx context.Context, meta Meta) error {
	encoded, err := meta.encode()
	if err != nil {
		return fmt.Errorf("announce node: %w", err)
	}
	m.life.Lock()
	defer m.life.Unlock()
	if m.over() {
		return errClosed
	}
	m.mu.Lock()
	m.meta, m.encoded = meta, encoded
	m.touch()
	m.mu.Unlock()
	// memberlist counts the time itself; the wait for others is no more than
	// the wait for a packet to leave.
	if err := m.list.UpdateNode(m.patience(ctx)); err != nil {
		m.log.Debug("announcing a change takes long", "error", err)
		return ctx.Err()
	}
	return nil
}

// Leave says goodbye, so that others see this node down at once rather than
// after several probes. Voters, ring and ownership stay as they are.
func (m *Members) Leave(ctx context.Context) error {
	m.life.Lock()
	defer m.life.Unlock()
	if m.over() {
		return errClosed
	}
	if err := m.list.Leave(m.patience(ctx)); err != nil {
		return fmt.Errorf("leave gossip: %w", err)
	}
	return nil
}

// Close stops gossip without a word, as a crash would, and waits for all of it.
func (m *Members) Close() error {
	m.life.Lock()
	defer m.life.Unlock()
	m.mu.Lock()
	again := m.closed
	m.closed = true
	m.mu.Unlock()
	if again {
		return nil
	}
	m.cancel()
	err := m.list.Shutdown()
	m.tasks.Wait()
	return errors.Join(err, m.write())
}

var errClosed = errors.New("gossip is closed")

func (m *Members) over() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}

// patience is the part of ctx that memberlist understands.
func (m *Members) patience(ctx context.Context) time.Duration {
	wait := m.timing.Stream
	if end, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(end))
	}
	return max(wait, time.Millisecond) // 0 would wait for ever
}

// The methods below want mu held.

// present reports whether e is alive for us: a node of another mesh is not. It
// may still gossip with us where both meshes have one secret.
func (m *Members) present(e *entry) bool {
	return e.alive && (e.Cluster == "" || m.meta.Cluster == "" || e.Cluster == m.meta.Cluster)
}

func (m *Members) enrolled(id string) bool {
	return slices.ContainsFunc(m.roster, func(r RosterMember) bool { return r.ID == id })
}

func (m *Members) down(id string) bool {
	if id == m.id {
		return false
	}
	e, ok := m.entries[id]
	if !ok || !e.met {
		return m.settled
	}
	return !m.present(e)
}

// touch publishes a change of entries, roster or meta.
func (m *Members) touch() {
	m.rebuild()
	close(m.changed)
	m.changed = make(chan struct{})
	select {
	case m.dirty <- struct{}{}:
	default:
	}
}

func (m *Members) rebuild() {
	nodes := make([]ring.Node, len(m.roster))
	for i, r := range m.roster {
		nodes[i] = ring.Node{ID: r.ID, Zone: r.Zone, Weight: r.Weight, Down: m.down(r.ID)}
		if r.Draining || r.Out {
			nodes[i].Weight = 0
		}
		nodes[i].Leaves, nodes[i].Out = r.Draining, r.Out
	}
	m.ring.Store(ring.New(nodes, m.replicas))
}
