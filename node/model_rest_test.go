package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/mesh/ring"
)

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
	m.hurry(-1)
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
	if head == nil {
		return errors.New("no head")
	}
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
		switch {
		case w.Lost && len(holders) == 0 && (m.fragile(w.Digest) || m.excused(w.Digest)):
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

func (m *model) told(d digest.Digest) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.story[d])
}
