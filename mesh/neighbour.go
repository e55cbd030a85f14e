package mesh

import (
	"cmp"
	"time"
)

const (
	// slowGap is how far a node has to be behind its source to be called slow:
	// more than what lies in buffers.
	slowGap = 1 << 20
	// slowTimes is how much slower than another a slow node is.
	slowTimes = 3
	// slowSteps is how many steps in a row have to find it so: rates vary.
	slowSteps = 2
	// maxTries is how many slow neighbours a node is taken away from, though
	// they have what it lacks: after that, it is slow itself.
	maxTries = 2
	// slowMemory is how long a slow node is named last, in all lines: an image is
	// many blobs.
	slowMemory = time.Minute
)

// takers counts who takes from whom, without m and without those who have less
// than so many bytes.
func (n *line) takers(m *member, bytes int64, now time.Time) map[string]int {
	takers := map[string]int{}
	for _, o := range n.nodes {
		if o != m && !o.done && o.active(now) && o.reached(now) >= bytes {
			takers[o.from]++
		}
	}
	return takers
}

// neighbour names whom m is to take from: somebody strictly ahead of it. Slow
// nodes come last. Who gives to nobody now comes first, of these all but the
// head, then who gave least, so that no link carries the blob twice while
// another is idle; then the usual neighbour, then who is finished, and then who
// has most. takers is who takes from whom, as far as it matters.
func (n *line) neighbour(m *member, takers map[string]int, head, usual string, now time.Time) *member {
	fed := n.fed(m)
	var best *member
	for _, c := range n.nodes {
		if !c.serves(m, fed, now) {
			continue
		}
		if best == nil || cmp.Or(
			later(now.Before(n.slow[c.node]), now.Before(n.slow[best.node])),
			cmp.Compare(takers[c.node], takers[best.node]),
			later(c.node == head, best.node == head),
			cmp.Compare(c.gave, best.gave),
			later(c.node != usual, best.node != usual),
			later(!c.done, !best.done),
			-cmp.Compare(c.at, best.at),
			-cmp.Compare(c.place, best.place),
		) < 0 {
			best = c
		}
	}
	return best
}

// idle is neighbour, of those who are not slow and whom nobody takes from, m
// neither.
func (n *line) idle(m *member, takers map[string]int, head string, now time.Time) *member {
	to := n.neighbour(m, takers, head, "", now)
	if to == nil || to.node == m.from || now.Before(n.slow[to.node]) || takers[to.node] > 0 {
		return nil
	}
	return to
}

// brings reports whether m gains bytes from outside the zone, or has just begun
// to look there for some.
func (m *member) brings(now time.Time) bool {
	return m.from == "" && !m.waits && !m.done && (now.Sub(m.turn) < stepSilence || now.Sub(m.gained) < stepSilence)
}

// broughtIn reports whether another than m, which has at least as much of the
// blob, looks outside the zone for it, or is to do so before m. Who gains
// nothing there makes way for whoever has waited longest: one node may be cut
// off from what another reaches.
func (n *line) broughtIn(m *member, now time.Time) bool {
	if m.at == 0 {
		return false
	}
	fed := n.fed(m)
	for _, o := range n.nodes {
		if o.from != "" || o.at < m.at || o.done || now.Sub(o.seen) >= stepSilence || fed[o.node] {
			continue
		}
		if o.brings(now) || !m.brings(now) && o.turn.Before(m.turn) {
			return true
		}
	}
	return false
}

// moves returns another neighbour for m, which says s, where there is one.
func (n *line) moves(m *member, s step, head string, now time.Time) *member {
	if to := n.pass(m, s, now); to != nil {
		return to
	}
	if to := n.settled(m, now); to != nil {
		return to
	}
	return n.better(m, head, now)
}

// better returns another neighbour for m, where there is one: for who takes from
// outside the zone, anybody ahead; for who shares its neighbour with others, one
// whom nobody takes from, which also sends a slow node to the end of the line,
// where it holds up nobody, or one whose takers m is ahead of, since they share
// it next and may take from m; and for who is held up by its neighbour, see over
// and around.
func (n *line) better(m *member, head string, now time.Time) *member {
	if m.from == "" {
		return n.neighbour(m, n.takers(m, 0, now), head, "", now)
	}
	from := n.nodes[m.from]
	if from == nil || now.Sub(m.moved) < 2*stepEvery || m.rate == 0 {
		return nil
	}
	if n.takers(m, 0, now)[m.from] > 0 {
		if to := n.idle(m, n.takers(m, m.at, now), head, now); to != nil && to.node != head {
			return to
		}
	}
	if now.Sub(from.moved) < 2*stepEvery { // the rates of both are still those of another source
		return nil
	}
	to := n.over(m, from, now)
	slowLink := to == nil
	if slowLink {
		to = n.around(m, from, head, now)
	}
	if to == nil {
		m.held = 0
		return nil
	}
	if m.held++; m.held < slowSteps {
		return nil
	}
	m.held = 0
	if slowLink {
		m.tries++
		m.leave(from.node, now.Add(lineMemory))
	} else {
		m.past = from.node
	}
	return to
}

// over returns whom m's neighbour takes from, where that gets its bytes much
// slower than it could, and m has nearly all of them.
func (n *line) over(m, from *member, now time.Time) *member {
	above := n.nodes[from.from]
	if from.done || above == nil || above.done {
		return nil
	}
	if from.rate == 0 || slowTimes*from.rate >= above.rate || !above.serves(m, n.fed(m), now) {
		return nil
	}
	behind := from.reached(now) - m.reached(now)
	if gap := above.reached(now) - from.reached(now); gap < slowGap || gap < 4*behind {
		return nil
	}
	return above
}

// around returns somebody idle for m, where its neighbour has bytes for it that
// come much slower than others get theirs.
func (n *line) around(m, from *member, head string, now time.Time) *member {
	if !from.done && from.reached(now)-m.reached(now) < slowGap || m.tries >= maxTries {
		return nil
	}
	for _, o := range n.nodes {
		if slowTimes*m.rate < o.rate {
			return n.idle(m, n.takers(m, 0, now), head, now)
		}
	}
	return nil
}

// reached is what m has by now, if it went on as it did.
func (m *member) reached(now time.Time) int64 {
	if m.done {
		return m.at
	}
	return m.at + int64(m.rate*min(now.Sub(m.seen), 2*stepEvery).Seconds())
}

// serves reports whether m, which feeds these, may be sent to c.
func (c *member) serves(m *member, fed map[string]bool, now time.Time) bool {
	return !m.avoids(c.node, now) && !fed[c.node] && c.active(now) && c.ahead(m, now)
}

// ahead reports whether m, which has just told how far it is, may wait for c's
// bytes: see doc.go for why no two nodes that follow it wait for each other.
// Whoever gave to the neighbour that m left has at least what m has.
func (c *member) ahead(m *member, now time.Time) bool {
	return c.done || c.reached(now) > m.at || m.at == 0 && c.place < m.place || c.node == m.above
}

// fed returns m and who has its bytes from m, over however many others: they
// are not ahead of m for long.
func (n *line) fed(m *member) map[string]bool {
	fed := map[string]bool{m.node: true}
	for _, o := range n.nodes {
		var path []string
		for o != nil && !o.done {
			if _, known := fed[o.node]; known {
				break
			}
			fed[o.node] = false // for now, and where the nodes' steps cross to a circle
			path, o = append(path, o.node), n.nodes[o.from]
		}
		if o != nil && fed[o.node] {
			for _, node := range path {
				fed[node] = true
			}
		}
	}
	return fed
}

// later orders those of whom something is true behind those of whom it is not.
func later(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}
