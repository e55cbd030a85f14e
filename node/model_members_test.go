package node

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/mesh/ring"
)

// modelRoster is who belongs to the mesh.
type modelRoster struct {
	nodes    []ring.Node
	replicas int
}

func (r *modelRoster) index(p *modelPeer) int {
	return slices.IndexFunc(r.nodes, func(n ring.Node) bool { return n.ID == p.id })
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

// change makes another roster, of which members hear when they hear of it,
// unless how returns false.
func (m *model) change(how func(r *modelRoster) bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.rosters[len(m.rosters)-1]
	r.nodes = slices.Clone(r.nodes)
	if !how(&r) {
		return false
	}
	m.rosters = append(m.rosters, r)
	return true
}

// tellAll has all members hear of the latest roster.
func (m *model) tellAll() {
	latest, _ := m.latest()
	for _, p := range m.peers {
		p.hear(latest)
	}
}

// upset is called when p is about to remove d. It makes p own nearly
// everything; others hear of it, and act on it to the end. Or an owner of d,
// whose copy p may rely on, hands over to p and leaves the mesh.
func (m *model) upset(p *modelPeer, d digest.Digest) {
	if !m.upsetting.TryLock() {
		return
	}
	defer m.upsetting.Unlock()
	var leaver *modelPeer
	if owners := p.Ring().Owners(d); len(owners) > 0 && m.number(4) == 0 {
		leaver = m.peer(owners[m.number(len(owners))].ID)
		if leaver == p || leaver.away.Load() || leaver.lag.is() || !m.drain(leaver) {
			return
		}
	}
	all := m.number(4) > 0
	if !m.favour(p) {
		if leaver != nil {
			m.weigh(leaver, 1)
		}
		return
	}
	m.upsets.Add(1)
	m.hurry(1)
	defer m.hurry(-1)
	if leaver != nil {
		m.leave(leaver)
		m.weigh(leaver, 1) // if it is still here
		return
	}
	latest, _ := m.latest()
	for _, o := range m.peers {
		if all || o == p || m.number(2) == 0 {
			o.hear(latest)
		}
	}
	var passes sync.WaitGroup
	for _, o := range m.peers {
		if o != p && !o.lag.is() {
			passes.Go(func() { o.reconcile(context.Background()) })
		}
	}
	passes.Wait()
}

// churn has who owns what change again and again under passes that have nothing
// else to wait for: no client is about, and what is named has all its copies.
func (m *model) churn(rnd *rand.Rand) {
	m.churning.Store(true)
	defer m.churning.Store(false)
	end := time.Now().Add(1500 * time.Millisecond)
	for m.failed.Load() == 0 && time.Now().Before(end) {
		m.favour(m.peers[rnd.IntN(len(m.peers))])
		m.tellAll()
		var passes sync.WaitGroup
		for _, p := range m.peers {
			passes.Go(func() { p.reconcile(context.Background()) })
		}
		passes.Wait()
	}
}

// favour gives p nearly all the weight, unless it has it or is to own nothing.
func (m *model) favour(p *modelPeer) bool {
	changed := m.change(func(r *modelRoster) bool {
		i := r.index(p)
		if i < 0 || r.nodes[i].Weight == 0 || r.nodes[i].Weight == 100 {
			return false
		}
		for j := range r.nodes {
			if n := &r.nodes[j]; n.Weight > 0 {
				n.Weight = 1
			}
		}
		r.nodes[i].Weight = 100
		return true
	})
	if changed {
		m.note("", "%s has nearly all the weight", p.short())
	}
	return changed
}

// number is one of n, from 0.
func (m *model) number(n int) int {
	m.clock.Lock()
	defer m.clock.Unlock()
	return m.clock.rnd.IntN(n)
}
