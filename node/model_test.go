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
// Ages are real time, only short. A rule that speaks of an age holds for pushes
// that keep to it, and the model measures whether they did: see placing.
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

	clock struct {
		sync.Mutex
		steps int
		next  chan struct{} // closed at the next step
		rest  bool          // nobody waits for steps
		rnd   *rand.Rand
	}

	mu         sync.Mutex
	episode    int
	rosters    []modelRoster // all there were, oldest first
	named      map[string]*modelName
	unlinked   map[string]*modelUnlinks
	pushes     map[digest.Digest][]time.Time // under way: since when
	slow       map[digest.Digest]bool        // pushed too slowly, and not again since
	slowPushes int
	gone       map[digest.Digest]bool // destroyed by the model
	damaged    map[digest.Digest]bool // a copy was
	story      map[digest.Digest][]string
}

// modelRoster is who belongs to the mesh.
type modelRoster struct {
	nodes    []ring.Node
	replicas int
}

const (
	modelMembers = 5
	modelClients = 16
	modelBlobs   = 18
	modelLoose   = 8 // of these, the first: pushed and dropped all the time, and named by few manifests
	modelFragile = 2 // and the last: the model damages their copies
)

// TestModel runs episodes of a few seconds: all at random and at once, then
// rest, then a look at everything. FLOTILLA_MODEL_SEED repeats the choices of a
// run, though not the order in which goroutines come to make them;
// FLOTILLA_MODEL_FOR is how long it goes on.
func TestModel(t *testing.T) {
	m := newModel(t)
	t.Logf("FLOTILLA_MODEL_SEED=%d", m.seed)
	end := time.Now().Add(10 * time.Second)
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
	t.Logf("%d episodes, %d steps, %+v, lost %d, slow pushes %d", m.episode, m.clock.steps, did, m.lostEver.Load(), m.slowPushes)
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
	m.named, m.unlinked, m.pushes = map[string]*modelName{}, map[string]*modelUnlinks{}, map[digest.Digest][]time.Time{}
	m.slow, m.gone, m.damaged = map[digest.Digest]bool{}, map[digest.Digest]bool{}, map[digest.Digest]bool{}
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

func (m *model) roster(i int) modelRoster {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rosters[i]
}

func (m *model) latest() (int, modelRoster) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.rosters) - 1, m.rosters[len(m.rosters)-1]
}

func (m *model) replicas() int {
	_, r := m.latest()
	return r.replicas
}

// change makes another roster, of which members hear when they hear of it.
func (m *model) change(how func(r *modelRoster)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.rosters[len(m.rosters)-1]
	r.nodes = slices.Clone(r.nodes)
	how(&r)
	m.rosters = append(m.rosters, r)
}

// tellAll has all members hear of the latest roster.
func (m *model) tellAll() {
	latest, _ := m.latest()
	for _, p := range m.peers {
		p.hear(latest)
	}
}

// upset makes p own nearly everything, at a moment when it is about to remove
// something, and everyone hears of it.
func (m *model) upset(p *modelPeer) {
	upset := false
	m.change(func(r *modelRoster) {
		for i := range r.nodes {
			switch n := &r.nodes[i]; {
			case n.Weight == 0: // for a reason
			case n.ID == p.id:
				n.Weight, upset = 100, true
			default:
				n.Weight = 1
			}
		}
	})
	if upset {
		m.note("", "%s has nearly all the weight", p.short())
		m.tellAll()
	}
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

// fragile reports whether the model may have damaged copies of d.
func (m *model) fragile(d digest.Digest) bool { return m.damaged[d] || m.gone[d] }

func (m *model) nameOf(d digest.Digest) string {
	if i := slices.Index(m.order, d); i >= 0 {
		return fmt.Sprintf("%d (%s)", i, d[:15])
	}
	return string(d)
}

// step says that something was done.
func (m *model) step() {
	m.clock.Lock()
	defer m.clock.Unlock()
	m.clock.steps++
	close(m.clock.next)
	m.clock.next = make(chan struct{})
}

// dawdle lets, one time in odds, some things be done by others, or a good part
// of the grace pass.
func (m *model) dawdle(odds int) {
	if m.chance(odds) {
		m.clock.Lock()
		n := 1 << m.clock.rnd.IntN(9)
		m.clock.Unlock()
		m.wait(n)
	}
}

// chance is true one time in odds, and never once the mesh is to come to rest.
func (m *model) chance(odds int) bool {
	m.clock.Lock()
	defer m.clock.Unlock()
	return !m.clock.rest && m.clock.rnd.IntN(odds) == 0
}

// wait returns once others have done n things, or most of the grace is over.
func (m *model) wait(n int) {
	m.clock.Lock()
	steps := m.clock.steps + n
	m.clock.Unlock()
	limit := time.After(m.grace * 7 / 10)
	for {
		m.clock.Lock()
		now, next := m.clock.steps, m.clock.next
		rest := m.clock.rest
		m.clock.Unlock()
		if now >= steps || rest {
			return
		}
		select {
		case <-next:
		case <-limit:
			return
		}
	}
}

// hurry has nobody wait for others, or ends that.
func (m *model) hurry(rest bool) {
	m.clock.Lock()
	m.clock.rest = rest
	m.clock.Unlock()
	m.step()
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
	m.hurry(false)
	done := make(chan struct{})
	time.AfterFunc(3*time.Second, func() {
		close(done)
		m.hurry(true)
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

// rest lets the mesh come to rest and looks at everything.
func (m *model) rest(clients []*modelClient) {
	end := time.Now().Add(patience / 2)
	var err error
	for {
		var passes sync.WaitGroup
		for _, p := range m.peers {
			passes.Go(func() { p.reconcile(context.Background()) })
		}
		passes.Wait()
		if err = m.settled(); err == nil || time.Now().After(end) || m.failed.Load() > 0 {
			break
		}
	}
	if err != nil {
		m.t.Errorf("seed %d, episode %d: no rest: %v", m.seed, m.episode, err)
		m.failed.Add(1)
		return
	}
	for _, c := range clients {
		for _, t := range c.tags {
			if !t.sure || t.image == nil {
				continue
			}
			for _, p := range m.peers {
				c.check(p, t, true)
			}
		}
	}
	var deleting sync.WaitGroup
	for _, c := range clients {
		deleting.Go(c.deleteAll)
	}
	deleting.Wait()
}

// empty returns nil once nothing is held any more, after all that clients named
// was deleted or has expired.
func (m *model) empty() error {
	m.expireOnce()
	var passes sync.WaitGroup
	for _, p := range m.peers {
		passes.Go(func() { p.reconcile(context.Background()) })
	}
	passes.Wait()
	for _, p := range m.peers {
		if held := p.held(); len(held) > 0 {
			return fmt.Errorf("%s holds %d blobs, %s among them", p.short(), len(held), m.nameOf(held[0]))
		}
	}
	return nil
}

// settled returns nil when every blob is held by exactly those who should: all
// its owners where it is wanted, nobody where nothing names it.
func (m *model) settled() error {
	head := m.head()
	_, roster := m.latest()
	r := ring.New(roster.nodes, roster.replicas)
	held := map[digest.Digest][]string{}
	for _, p := range m.peers {
		for _, d := range p.held() {
			held[d] = append(held[d], p.id)
		}
	}
	wanted, err := head.catalog.Wanted("", 10_000)
	if err != nil {
		return err
	}
	for _, w := range wanted {
		var owners []string
		for _, n := range r.Owners(w.Digest) {
			owners = append(owners, n.ID)
		}
		holders := held[w.Digest]
		delete(held, w.Digest)
		slices.Sort(owners)
		m.mu.Lock()
		exempt := m.exempt(w.Digest)
		m.mu.Unlock()
		switch {
		case w.Lost && len(holders) == 0 && exempt, len(holders) == 0 && exempt && !m.everywhere(r):
		case w.Lost:
			return fmt.Errorf("%s is recorded as lost, and held by %v", m.nameOf(w.Digest), holders)
		case !slices.Equal(owners, holders):
			return fmt.Errorf("%s is held by %v and owned by %v: %v", m.nameOf(w.Digest), holders, owners, m.told(w.Digest))
		}
	}
	for d, holders := range held {
		named, err := head.catalog.Referenced([]digest.Digest{d})
		if err != nil {
			return err
		}
		if !named[0] {
			return fmt.Errorf("nothing names %s, and %v hold it", m.nameOf(d), holders)
		}
	}
	return nil
}

func (m *model) everywhere(r *ring.Ring) bool { return len(r.Nodes()) == len(m.peers) }

func (m *model) told(d digest.Digest) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.story[d])
}
