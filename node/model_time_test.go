package node

import (
	"time"
)

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

// sleep lets, one time in odds, more than the grace pass.
func (m *model) sleep(odds int) {
	if m.chance(odds) {
		<-time.After(m.grace * 3 / 2)
	}
}

// chance is true one time in odds, and never once the mesh is to come to rest.
func (m *model) chance(odds int) bool {
	m.clock.Lock()
	defer m.clock.Unlock()
	return m.clock.rush == 0 && m.clock.rnd.IntN(odds) == 0
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
		rush := m.clock.rush
		m.clock.Unlock()
		if now >= steps || rush > 0 {
			return
		}
		select {
		case <-next:
		case <-limit:
			return
		}
	}
}

// hurry has nobody wait for others, or (-1) ends that.
func (m *model) hurry(n int) {
	m.clock.Lock()
	m.clock.rush += n
	m.clock.Unlock()
	m.step()
}

// delay makes the log of p late, unless one is already: a second one could stop
// the catalogue. A leader hears nothing that it could miss.
func (m *model) delay(p *modelPeer) bool {
	m.delaying.Lock()
	defer m.delaying.Unlock()
	if p.catalog.Status().State == "leader" || m.late() != nil {
		return false
	}
	p.lag.begin()
	return true
}
