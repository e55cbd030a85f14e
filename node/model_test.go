package node

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/mesh/ring"
	"github.com/flotilla-registry/flotilla/metadata"
)

// model is a mesh that clients use, and that things happen to, while every
// member collects garbage, repairs and evicts; and it knows what must be true
// all the while. Disks, catalogues, raft, HTTP and the passes are the real
// ones. What the model adds is who is a member, lines that break, damage, and
// time that passes where nobody thinks of it: see dawdle.
//
// Ages are real time, only short, and a push may well take longer than what
// nothing names is kept: see slowBlobs.
type model struct {
	t     *testing.T
	seed  uint64
	began time.Time
	grace time.Duration // of bytes
	// linkAge is longer than a push may take from its bytes to their name, but
	// not longer than one may take as a whole.
	linkAge  time.Duration
	zones    []string
	ids      []string
	peers    []*modelPeer
	contents map[digest.Digest][]byte
	order    []digest.Digest // of contents
	failed   atomic.Int64
	lostEver atomic.Int64
	upsets   atomic.Int64
	overdue  atomic.Int64 // names that were refused, as their bytes might have gone
	churning atomic.Bool  // see churn

	clock struct {
		sync.Mutex
		steps int
		rush  int           // how many have reason that nobody waits for steps
		next  chan struct{} // closed at the next step
		rnd   *rand.Rand
	}

	upsetting sync.Mutex // held during upset
	delaying  sync.Mutex // held during delay

	mu       sync.Mutex
	episode  int
	rosters  []modelRoster // all there were, oldest first
	named    map[string]*modelName
	unlinked map[string]*modelUnlinks
	gone     map[digest.Digest]bool // destroyed by the model
	damaged  map[digest.Digest]bool // a copy was
	story    map[digest.Digest][]string
}

const (
	modelMembers = 5
	modelClients = 16
	modelBlobs   = 26
	modelLoose   = 14 // of these, the first: pushed and dropped all the time, and named by few manifests
	modelFragile = 2  // and the last: the model damages their copies
)

// TestModel runs episodes of a few seconds: all at random and at once, then churn,
// then rest, then a look at everything. FLOTILLA_MODEL_SEED repeats the choices of a
// run, though not the order in which goroutines come to make them;
// FLOTILLA_MODEL_FOR is how long it goes on.
func TestModel(t *testing.T) {
	m := newModel(t)
	t.Logf("FLOTILLA_MODEL_SEED=%d", m.seed)
	end := time.Now().Add(9 * time.Second)
	if s := os.Getenv("FLOTILLA_MODEL_FOR"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatal(err)
		}
		end = time.Now().Add(d)
	}
	for m.failed.Load() == 0 && time.Now().Before(end) {
		m.play()
	}
	if m.failed.Load() == 0 {
		m.await("an empty mesh", m.empty)
	}
	var did struct{ dropped, evicted, repaired int64 }
	for _, p := range m.peers {
		s := p.blobs.Stats()
		did.dropped, did.evicted, did.repaired = did.dropped+s.Dropped, did.evicted+s.Evicted, did.repaired+s.Repaired
	}
	t.Logf("%d episodes, %d steps, %+v, lost %d, %d memberships, %d upset removals, %d names overdue",
		m.episode, m.clock.steps, did, m.lostEver.Load(), len(m.rosters), m.upsets.Load(), m.overdue.Load())
	if m.failed.Load() == 0 && m.upsets.Load() == 0 {
		t.Error("no membership changed under a removal")
	}
	if did.dropped == 0 || did.evicted == 0 || did.repaired == 0 {
		t.Error("the model did not come to what it is about")
	}
}

func newModel(t *testing.T) *model {
	m := &model{
		t: t, seed: rand.Uint64(), began: time.Now(), grace: 700 * time.Millisecond, linkAge: time.Second,
		zones: []string{"a", "b", "a", "b", "a"}, contents: map[digest.Digest][]byte{},
	}
	if s := os.Getenv("FLOTILLA_MODEL_SEED"); s != "" {
		var err error
		if m.seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	m.clock.next, m.clock.rnd = make(chan struct{}), m.random(0)
	for i := range modelBlobs {
		content := make([]byte, 500<<(i%8))
		_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(content) // never fails
		d := digest.FromBytes(content)
		m.contents[d] = content
		m.order = append(m.order, d)
	}
	m.forgetAll()
	for i := range modelMembers {
		m.ids = append(m.ids, modelID(i))
	}
	m.assemble()
	return m
}

// random returns the choices of one actor.
func (m *model) random(actor uint64) *rand.Rand { return rand.New(rand.NewPCG(m.seed, actor)) }

// forgetAll begins an episode with nothing known.
func (m *model) forgetAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.named, m.unlinked = map[string]*modelName{}, map[string]*modelUnlinks{}
	m.gone, m.damaged = map[digest.Digest]bool{}, map[digest.Digest]bool{}
	m.story = map[digest.Digest][]string{}
}

// assemble starts all members.
func (m *model) assemble() {
	nodes := make([]ring.Node, modelMembers)
	for i, id := range m.ids {
		nodes[i] = ring.Node{ID: id, Zone: m.zones[i], Weight: 1}
	}
	m.rosters = []modelRoster{{nodes, 2}}
	for i := range m.ids {
		m.peers = append(m.peers, m.newModelPeer(i))
	}
	for i, p := range m.peers {
		p.start()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		err := p.enter(ctx, i == 0)
		cancel()
		if err != nil {
			m.t.Fatal(err)
		}
	}
	if err := m.peers[0].catalog.SetPolicy(m.t.Context(), metadata.Policy{UntaggedAfter: m.linkAge}); err != nil {
		m.t.Fatal(err)
	}
	for _, p := range m.peers {
		m.await("a catalogue that is ready", func() error {
			if s := p.catalog.Status(); len(s.Voters) != 3 || len(s.Replicas) != modelMembers-3 {
				return fmt.Errorf("%d voters, %d replicas", len(s.Voters), len(s.Replicas))
			}
			return p.catalog.Ready()
		})
	}
}

func (m *model) await(what string, check func() error) {
	m.t.Helper()
	end := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			m.t.Fatalf("seed %d: waited in vain for %s: %v", m.seed, what, err)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func (m *model) peer(id string) *modelPeer {
	return m.peers[slices.Index(m.ids, id)]
}

// anyPeer returns a member that clients may use. Where the log is late they may
// have to wait for long, so few do.
func (m *model) anyPeer(rnd *rand.Rand) *modelPeer {
	for {
		if p := m.peers[rnd.IntN(len(m.peers))]; !p.away.Load() && (!p.lag.is() || rnd.IntN(16) == 0) {
			return p
		}
	}
}

// late returns the member whose log is late, if there is one.
func (m *model) late() *modelPeer {
	if i := slices.IndexFunc(m.peers, func(p *modelPeer) bool { return p.lag.is() }); i >= 0 {
		return m.peers[i]
	}
	return nil
}

func (m *model) anyBlob(rnd *rand.Rand, from, to int) digest.Digest {
	return m.order[from+rnd.IntN(to-from)]
}

// fragile reports whether the model may have destroyed all copies of d, ever.
func (m *model) fragile(d digest.Digest) bool {
	return slices.Index(m.order, d) >= modelBlobs-modelFragile
}

func (m *model) nameOf(d digest.Digest) string {
	if i := slices.Index(m.order, d); i >= 0 {
		return fmt.Sprintf("%d (%s)", i, d[:15])
	}
	return string(d)
}

// play is one episode.
func (m *model) play() {
	m.episode++
	m.forgetAll()
	for _, p := range m.peers {
		for _, d := range p.held() {
			m.mark(p, d, time.Time{})
		}
	}
	actor := uint64(m.episode) << 8
	fate := &modelFate{m: m, rnd: m.random(actor)}
	fate.replicate(1 + fate.rnd.IntN(3))
	done := make(chan struct{})
	time.AfterFunc(2500*time.Millisecond, func() {
		close(done)
		m.hurry(1)
	})
	var acting sync.WaitGroup
	var clients []*modelClient
	for i := range modelClients {
		c := &modelClient{m: m, name: fmt.Sprintf("e%dc%d", m.episode, i), rnd: m.random(actor + 1 + uint64(i)), tags: map[string]*modelTag{}}
		clients = append(clients, c)
		acting.Go(func() { c.run(done) })
	}
	for i, p := range m.peers {
		acting.Go(func() { p.passes(m.random(actor+100+uint64(i)), done) })
		acting.Go(func() { fate.spread(p, m.random(actor+120+uint64(i)), done) })
	}
	acting.Go(func() { m.expire(m.random(actor+140), done) })
	acting.Go(func() { fate.run(done) })
	acting.Wait()
	m.churn(m.random(actor + 150))
	fate.end()
	if m.failed.Load() == 0 {
		m.rest(clients)
	}
}

// passes runs passes at p, at random moments.
func (p *modelPeer) passes(rnd *rand.Rand, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		default:
		}
		p.reconcile(context.Background())
		p.m.wait(rnd.IntN(10))
	}
}

// expire has whoever leads drop names that have outlived their use, all the
// time.
func (m *model) expire(rnd *rand.Rand, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		default:
		}
		m.expireOnce()
		m.wait(1 + rnd.IntN(4))
	}
}

func (m *model) expireOnce() {
	for _, p := range m.peers {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		gone, err := p.catalog.Expire(ctx)
		cancel()
		if err != nil || gone.Links+gone.Manifests > 0 {
			m.note("", "%s expires %+v, %v", p.short(), gone, err)
		}
	}
}
