package mesh

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// stepEvery is how often a node says how far its download is.
	stepEvery = 500 * time.Millisecond
	// stepSilence is how long a node that says nothing still counts as one that
	// fills: as long as a source may be silent.
	stepSilence = 5 * time.Second
	// lineMemory is how long the head remembers who has finished. Whoever asks
	// later finds the blob at the owners.
	lineMemory = 10 * time.Minute
	// maxLines and maxInLine bound what a ledger holds; what was heard of last
	// stays.
	maxLines  = 256
	maxInLine = 1024
	// maxLeft bounds the neighbours that a node is not named again.
	maxLeft = 16
)

// step is what a node says to the head of its zone about its download of one
// blob, at each change of its source and twice a second between.
type step struct {
	Node  string `json:"node"`
	Place int64  `json:"place,omitempty"` // in the line, 0 for a newcomer
	At    int64  `json:"at"`              // bytes it has
	From  string `json:"from,omitempty"`  // the node of its zone that it takes from
	Left  string `json:"left,omitempty"`  // the neighbour that did not serve it
	Ask   bool   `json:"ask,omitempty"`   // it has no source now
	Done  bool   `json:"done,omitempty"`  // it has all bytes
}

// turn is the head's answer. From is the neighbour to take from: where the
// node asked, "" has it look outside the zone, since nobody here has more;
// where it only reported, "" leaves things as they are.
type turn struct {
	Place int64  `json:"place"`
	From  string `json:"from,omitempty"`
}

// ledger is what the head of a zone knows of who fills what from whom. It
// lives in memory alone: the nodes' next steps build it again at another head.
type ledger struct {
	self string

	mu    sync.Mutex
	lines map[digest.Digest]*line
	last  int64 // the place given last, or the head's own
	first int64 // the head's own place: before all that it gives
}

// line is those who fill, or have, one blob.
type line struct {
	touched time.Time
	nodes   map[string]*member
}

// member is one of a line.
type member struct {
	node  string
	place int64
	at    int64
	from  string
	done  bool
	seen  time.Time       // when it last said something
	lost  bool            // another could not get the blob from it since then
	left  map[string]bool // it could not get the blob from these
}

func newLedger(self string, now time.Time) *ledger {
	return &ledger{self: self, lines: map[digest.Digest]*line{}, first: now.UnixNano(), last: now.UnixNano()}
}

// step takes down what s says and answers it. head is what this node itself
// has of the blob now, as a step of its own.
func (l *ledger) step(d digest.Digest, s, head step, now time.Time) turn {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.line(d, now)
	if s.Node != l.self {
		n.put(head, l.first, now)
	}
	place := s.Place
	switch m := n.nodes[s.Node]; {
	case place != 0:
	case s.Node == l.self:
		place = l.first
	case m != nil && !m.done && !s.Ask:
		place = m.place
	default:
		l.last = max(l.last+1, now.UnixNano())
		place = l.last
	}
	m := n.put(s, place, now)
	t := turn{Place: place}
	switch {
	case s.Done:
	case s.Ask:
		t.From = n.neighbour(m, l.self, l.usual(s.Node, d, now), now)
		m.from = t.From
	}
	return t
}

// line returns the line of d, for which the one that was idle longest makes
// room.
func (l *ledger) line(d digest.Digest, now time.Time) *line {
	n := l.lines[d]
	if n == nil {
		maps.DeleteFunc(l.lines, func(_ digest.Digest, n *line) bool { return now.Sub(n.touched) > lineMemory })
		if len(l.lines) >= maxLines {
			var idle digest.Digest
			for d, n := range l.lines {
				if idle == "" || n.touched.Before(l.lines[idle].touched) {
					idle = d
				}
			}
			delete(l.lines, idle)
		}
		n = &line{nodes: map[string]*member{}}
		l.lines[d] = n
	}
	n.touched = now
	return n
}

// usual returns whom node takes its other blobs from: the same neighbour for
// all layers of an image keeps the order of the lines, and so all links in use.
func (l *ledger) usual(node string, but digest.Digest, now time.Time) string {
	var found string
	var latest time.Time
	for d, n := range l.lines {
		m := n.nodes[node]
		if d != but && m != nil && m.from != "" && now.Sub(m.seen) < stepSilence && m.seen.After(latest) {
			found, latest = m.from, m.seen
		}
	}
	return found
}

// put takes down what s says.
func (n *line) put(s step, place int64, now time.Time) *member {
	m := n.nodes[s.Node]
	if m == nil {
		if len(n.nodes) >= maxInLine {
			oldest := slices.MinFunc(slices.Collect(maps.Values(n.nodes)), func(a, b *member) int { return a.seen.Compare(b.seen) })
			delete(n.nodes, oldest.node)
		}
		m = &member{node: s.Node}
		n.nodes[s.Node] = m
	}
	if m.place != place { // another download than the last one
		*m = member{node: s.Node, place: place}
	}
	m.at, m.from, m.done, m.seen, m.lost = s.At, s.From, s.Done, now, false
	if s.Left != "" {
		if m.left == nil || len(m.left) >= maxLeft {
			m.left = map[string]bool{}
		}
		m.left[s.Left] = true
		if left := n.nodes[s.Left]; left != nil {
			left.lost = true
		}
	}
	return m
}

// active reports whether m takes bytes, or has them all, as far as is known.
func (m *member) active(now time.Time) bool {
	return !m.lost && (m.done || now.Sub(m.seen) < stepSilence)
}

// neighbour returns whom m is to take from: somebody strictly ahead of it. Who
// gives to nobody yet comes first, of these the usual neighbour, then who is
// finished, then any other but the head, and then who has most.
func (n *line) neighbour(m *member, head, usual string, now time.Time) string {
	takers := map[string]int{}
	for _, o := range n.nodes {
		if o != m && !o.done && o.active(now) {
			takers[o.from]++
		}
	}
	var best *member
	for _, c := range n.nodes {
		if c == m || m.left[c.node] || !c.active(now) || !n.ahead(c, m) {
			continue
		}
		if best == nil || cmp.Or(
			cmp.Compare(takers[c.node], takers[best.node]),
			later(c.node != usual, best.node != usual),
			later(!c.done, !best.done),
			later(c.node == head, best.node == head),
			-cmp.Compare(c.at, best.at),
			-cmp.Compare(c.place, best.place),
		) < 0 {
			best = c
		}
	}
	if best == nil {
		return ""
	}
	return best.node
}

// ahead reports whether m may wait for c's bytes: see doc.go for why no two
// nodes that follow it wait for each other.
func (n *line) ahead(c, m *member) bool {
	if c.done {
		return true
	}
	// Who is fed by m, over however many others, is not ahead of it for long.
	for o, hops := c, 0; o != nil && hops <= len(n.nodes); o, hops = n.nodes[o.from], hops+1 {
		if o == m {
			return false
		}
	}
	return c.at > m.at || m.at == 0 && c.place < m.place
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
