package node

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/flotilla-registry/flotilla/mesh/ring"
)

// modelFate is what happens to the mesh, besides what clients do.
type modelFate struct {
	m       *model
	rnd     *rand.Rand
	lagging *modelPeer // its log is late,
	since   time.Time  // since then
	away    *modelPeer // nobody reaches it
	leaving *modelPeer // it drains
}

// replicate begins an episode, with so many copies of each blob. All members
// hear of it before anything else happens.
func (f *modelFate) replicate(n int) {
	f.m.change(func(r *modelRoster) bool {
		r.replicas = n
		return true
	})
	f.m.tellAll()
}

// weigh changes the weight of a member, if enough others own blobs. A member
// that leaves stays, then.
func (m *model) weigh(p *modelPeer, weight uint32) (changed bool) {
	return m.assign(p, weight, false)
}

// drain has a member hand over all that it holds, if enough others own blobs.
func (m *model) drain(p *modelPeer) (changed bool) { return m.assign(p, 0, true) }

func (m *model) assign(p *modelPeer, weight uint32, leaves bool) bool {
	changed := m.change(func(r *modelRoster) bool {
		owners := 0
		for _, n := range r.nodes {
			if n.Weight > 0 && n.ID != p.id {
				owners++
			}
		}
		i := r.index(p)
		if i < 0 || weight == 0 && owners < max(2, r.replicas) {
			return false
		}
		r.nodes[i].Weight, r.nodes[i].Leaves = weight, leaves
		return true
	})
	if changed {
		m.note("", "%s has weight %d, leaves: %v", p.short(), weight, leaves)
	}
	return changed
}

// spread lets p hear of changes, some time after they were made and at its own
// moment.
func (f *modelFate) spread(p *modelPeer, rnd *rand.Rand, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		default:
		}
		p.m.wait(1 + rnd.IntN(20))
		p.view.Lock()
		next := p.view.roster + 1
		p.view.Unlock()
		latest, _ := f.m.latest()
		p.hear(min(next, latest))
	}
}

// run lets one thing after the other happen.
func (f *modelFate) run(done <-chan struct{}) {
	defer f.mend()
	apart := f.rnd.IntN(3) == 0 // one episode in three has lines that break
	for {
		select {
		case <-done:
			return
		default:
		}
		p := f.m.peers[f.rnd.IntN(len(f.m.peers))]
		switch f.rnd.IntN(10) {
		case 0, 1:
			if p != f.away && p != f.leaving {
				f.m.weigh(p, uint32(f.rnd.IntN(4)))
			}
		case 2, 3, 4:
			f.late(p)
		case 5:
			if apart {
				f.part(p)
			}
		case 6, 7:
			f.leave(p)
		default:
			f.damage(p)
		}
		f.m.wait(1 + f.rnd.IntN(40))
	}
}

// late makes p's log late, for longer than what is pushed meanwhile may stay
// without a name; or ends that.
func (f *modelFate) late(p *modelPeer) {
	if f.lagging != nil {
		if p != nil && time.Since(f.since) < 2*f.m.grace {
			return
		}
		f.lagging.lag.end()
		f.m.note("", "the log of %s is not late any more", f.lagging.short())
		f.lagging = nil
		return
	}
	if !f.m.delay(p) {
		return
	}
	f.lagging, f.since = p, time.Now()
	f.m.note("", "the log of %s is late", p.short())
}

// part breaks the lines to p and puts it out, or takes it back in.
func (f *modelFate) part(p *modelPeer) {
	if f.away != nil {
		f.away.away.Store(false)
		f.m.weigh(f.away, 1)
		f.m.note("", "%s is back", f.away.short())
		f.away = nil
		return
	}
	if p == f.leaving {
		return
	}
	p.away.Store(true)
	f.away = p
	f.m.note("", "%s is away", p.short())
	if f.rnd.IntN(2) == 0 {
		f.m.weigh(p, 0)
	}
}

// leave takes a member out of service as an operator does: it owns nothing from
// now on; and once it has found all that it holds elsewhere, it goes, and its
// disk with it. Then it comes as a new one.
func (f *modelFate) leave(p *modelPeer) {
	if f.leaving == nil {
		if p != f.away && f.m.drain(p) {
			f.leaving = p
		}
		return
	}
	if p = f.leaving; p == f.lagging {
		return // only this actor could end that
	}
	if f.rnd.IntN(4) == 0 { // it stays, after all
		f.m.weigh(p, 1)
		f.leaving = nil
		return
	}
	if f.m.leave(p) {
		f.leaving = nil
	}
}

// leave has p leave the mesh, if all that it holds is elsewhere, and come back
// as a new member with an empty disk.
func (m *model) leave(p *modelPeer) bool {
	p.clients.Lock()
	defer p.clients.Unlock()
	latest, _ := m.latest()
	p.hear(latest)
	began := time.Now()
	p.reconcile(context.Background())
	// As Node.handedOver.
	h := p.blobs.Health()
	if h.At.Before(began) || !h.Synced || !h.Leaves || h.Owns || h.OnlyHere > 0 || h.Membership != p.Ring().Fingerprint() {
		return false
	}
	m.note("", "%s leaves", p.short())
	m.change(func(r *modelRoster) bool {
		r.nodes = slices.DeleteFunc(r.nodes, func(n ring.Node) bool { return n.ID == p.id })
		return true
	})
	for _, d := range p.held() {
		p.destroy(d)
		m.left(p, d)
	}
	m.change(func(r *modelRoster) bool {
		r.nodes = append(r.nodes, ring.Node{ID: p.id, Zone: p.zone, Weight: 1})
		return true
	})
	return true
}

// damage takes a copy of a blob away, which others must make up for; or now and
// then all of them.
func (f *modelFate) damage(p *modelPeer) {
	d := f.m.anyBlob(f.rnd, modelBlobs-modelFragile, modelBlobs)
	m := f.m
	m.mu.Lock()
	first := !m.damaged[d]
	m.damaged[d] = true
	all := m.rosters[len(m.rosters)-1].replicas == 1 || f.rnd.IntN(3) == 0 || !first
	if all {
		m.gone[d] = true
	}
	m.mu.Unlock()
	for _, o := range m.peers {
		if all || o == p {
			m.note(d, "its copy at %s is destroyed", o.short())
			o.destroy(d)
		}
	}
}

// mend makes all lines good.
func (f *modelFate) mend() {
	if f.lagging != nil {
		f.late(nil)
	}
	if f.away != nil {
		f.part(nil)
	}
}

// end has all members hear what the others know, so that the mesh can come to
// rest.
func (f *modelFate) end() {
	f.m.tellAll()
	for _, p := range f.m.peers {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		f.m.await("a current replica", func() error { return p.catalog.Sync(ctx) })
		cancel()
	}
}
