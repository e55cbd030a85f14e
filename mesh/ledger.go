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
	stepEvery = 250 * time.Millisecond
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
	// maxLeft bounds the neighbours that a node is not named again for a while.
	maxLeft = 16
)

// step is what a node says to the head of its zone about its download of one
// blob, at each change of its source and four times a second between.
type step struct {
	Node  string `json:"node"`
	Place int64  `json:"place,omitempty"` // in the line, 0 for a newcomer
	At    int64  `json:"at"`              // bytes it has
	From  string `json:"from,omitempty"`  // the node of its zone that it takes from
	Left  string `json:"left,omitempty"`  // the neighbour that did not serve it
	Early bool   `json:"early,omitempty"` // which is alive and lacks the next byte
	Ask   bool   `json:"ask,omitempty"`   // it has no source now
	Done  bool   `json:"done,omitempty"`  // it has all bytes

	Tried string  `json:"tried,omitempty"` // whom it tried, as it was told
	Speed float64 `json:"speed,omitempty"` // how fast that was, bytes a second

	Doubts []string `json:"doubts,omitempty"` // who sent it wrong bytes of the blob
}

// turn is the head's answer. From is the neighbour to take from: where the
// node asked, "" has it look outside the zone, since nobody here has more, or
// wait and ask again, since somebody else looks outside; where it only
// reported, "" leaves things as they are.
type turn struct {
	Place int64  `json:"place"`
	From  string `json:"from,omitempty"`
	Wait  bool   `json:"wait,omitempty"`
	Try   string `json:"try,omitempty"` // see line.trial
}

// ledger is what the head of a zone knows of who fills what from whom. It
// lives in memory alone: the nodes' next steps build it again at another head.
type ledger struct {
	self string

	mu    sync.Mutex
	lines map[digest.Digest]*line
	slow  map[string]time.Time // nodes that held up others, and until when that counts
	vain  map[string]time.Time // nodes that tried in vain, and until when that counts
	last  int64                // the place given last, or the head's own
	first int64                // the head's own place: before all that it gives
}

// line is those who fill, or have, one blob.
type line struct {
	touched time.Time
	nodes   map[string]*member
	slow    map[string]time.Time // the ledger's
	vain    map[string]time.Time // the ledger's
}

// member is one of a line.
type member struct {
	node  string
	place int64
	at    int64
	from  string
	done  bool
	seen  time.Time            // when it last said something
	lost  bool                 // another could not get the blob from it since then
	left  map[string]time.Time // until when it is not to take from these
	above string               // whom the neighbour that it left took from
	gave  int                  // how often it was named
	held  int                  // steps in a row that a slow neighbour held it up
	tries int                  // how often it was sent to another for that
	trial time.Time            // when it was last to try another source
	past  string               // the neighbour that it left for a faster one, not yet proved slow
	waits bool                 // until another has brought more into the zone
	turn  time.Time            // when it last began to look outside the zone

	gained  time.Time // when it last had more than before
	rate    float64   // bytes a second, when it last filled
	gauged  time.Time // when rate was taken
	gaugeAt int64     // and where
	moved   time.Time // when the head last gave it another neighbour
}

func newLedger(self string, now time.Time) *ledger {
	return &ledger{self: self, lines: map[digest.Digest]*line{}, slow: map[string]time.Time{}, vain: map[string]time.Time{}, first: now.UnixNano(), last: now.UnixNano()}
}

// step takes down what s says and answers it. head is what this node itself
// has of the blob now, as a step of its own.
func (l *ledger) step(d digest.Digest, s, head step, now time.Time) turn {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.line(d, now)
	if m := n.nodes[s.Node]; m != nil && m.done && m.place == s.Place && !s.Ask && !s.Done {
		return turn{Place: m.place} // the step before the last, which overtook it
	}
	if s.Node != l.self {
		n.put(head, cmp.Or(head.Place, l.first), now)
	}
	m := n.put(s, l.place(s, now), now)
	t := turn{Place: m.place}
	m.waits = false
	switch {
	case s.Done:
	case s.Ask:
		t.From = named(n.neighbour(m, n.takers(m, 0, now), l.self, l.usual(s.Node, d, now), now))
		m.waits = t.From == "" && n.broughtIn(m, now)
		if t.From == "" && !m.waits && now.Sub(m.turn) >= stepSilence {
			m.turn = now
		}
		m.from, t.Wait = t.From, m.waits
	default:
		if t.From = named(n.moves(m, s, l.self, now)); t.From != "" {
			m.from, m.moved = t.From, now
		} else {
			t.Try = n.trial(m, now)
		}
	}
	return t
}

// place returns where who says s stands in a line: a newcomer last.
func (l *ledger) place(s step, now time.Time) int64 {
	switch {
	case s.Place != 0:
		return s.Place
	case s.Node == l.self:
		return l.first
	}
	l.last = max(l.last+1, now.UnixNano())
	return l.last
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
		for _, m := range []map[string]time.Time{l.slow, l.vain} {
			maps.DeleteFunc(m, func(_ string, until time.Time) bool { return !now.Before(until) })
		}
		n = &line{nodes: map[string]*member{}, slow: l.slow, vain: l.vain}
		l.lines[d] = n
	}
	n.touched = now
	return n
}

// usual returns whom node takes most of its other blobs from: the same neighbour
// for all layers of an image keeps the order of the lines, and so all links in
// use.
func (l *ledger) usual(node string, but digest.Digest, now time.Time) string {
	usual, lines := "", map[string]int{}
	for d, n := range l.lines {
		m := n.nodes[node]
		if d == but || m == nil || m.from == "" || now.Sub(m.seen) >= stepSilence {
			continue
		}
		lines[m.from]++
		if c := cmp.Compare(lines[m.from], lines[usual]); c > 0 || c == 0 && m.from < usual {
			usual = m.from
		}
	}
	return usual
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
	if s.At > m.at || m.gained.IsZero() {
		m.gained = now
	}
	m.at, m.from, m.done, m.seen, m.lost = s.At, s.From, s.Done, now, false
	m.gauge(now)
	for _, doubted := range s.Doubts {
		if n.nodes[doubted] != nil {
			m.leave(doubted, now.Add(stepSilence))
		}
	}
	m.above = ""
	switch left := n.nodes[s.Left]; {
	case left == nil:
	case s.Early && !left.done:
		m.leave(s.Left, now.Add(stepEvery))
	default: // who fell silent had perhaps nothing to give, and will later
		m.leave(s.Left, now.Add(stepSilence))
		left.lost, m.above = true, left.from
	}
	return m
}

// leave remembers that m is not to be sent to node until then.
func (m *member) leave(node string, until time.Time) {
	if m.left == nil || len(m.left) >= maxLeft {
		m.left = map[string]time.Time{}
	}
	m.left[node] = until
}

// avoids reports whether m is not to be sent to node now.
func (m *member) avoids(node string, now time.Time) bool { return now.Before(m.left[node]) }

// named takes down that m is named to somebody, and returns its name. Nobody
// has none.
func named(m *member) string {
	if m == nil {
		return ""
	}
	m.gave++
	return m.node
}

// gauge takes m's rate over times long enough to tell one.
func (m *member) gauge(now time.Time) {
	since := now.Sub(m.gauged)
	switch {
	case m.gauged.IsZero():
	case since < stepEvery*2/3 || m.done:
		return
	default:
		m.rate = float64(m.at-m.gaugeAt) / since.Seconds()
	}
	m.gauged, m.gaugeAt = now, m.at
}

// active reports whether m takes bytes, or has them all, as far as is known.
func (m *member) active(now time.Time) bool {
	memory := stepSilence
	if m.done {
		memory = lineMemory
	}
	return !m.lost && now.Sub(m.seen) < memory
}
