package mesh

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

var epoch = time.Unix(1_700_000_000, 0)

// crowd drives one line of a ledger at node "h" by hand.
type crowd struct {
	*ledger
	now    time.Time
	head   step
	places map[string]int64
}

func newCrowd() *crowd {
	return &crowd{ledger: newLedger("h", epoch), now: epoch, head: step{Node: "h"}, places: map[string]int64{}}
}

func (c *crowd) say(d string, s step) string { return c.hear(d, s).From }

func (c *crowd) hear(d string, s step) turn {
	c.now = c.now.Add(time.Millisecond)
	key := d + s.Node
	s.Place = c.places[key]
	t := c.step(digest.FromString(d), s, c.head, c.now)
	c.places[key] = t.Place
	return t
}

func (c *crowd) ask(node string) string { return c.say("blob", step{Node: node, Ask: true}) }

func TestNeighbours(t *testing.T) {
	for _, row := range []struct {
		name string
		do   func(c *crowd) string // returns whom the last asker got
		want string
	}{
		{"the first takes from the head", func(c *crowd) string { return c.ask("a") }, "h"},
		{"the next one from the first", func(c *crowd) string { c.ask("a"); return c.ask("b") }, "a"},
		{"a line, not a tree", func(c *crowd) string { c.ask("a"); c.ask("b"); c.ask("c"); return c.ask("d") }, "c"},
		{"finished before unfinished", func(c *crowd) string {
			c.ask("a")
			c.ask("b")
			c.say("blob", step{Node: "a", At: 9, From: "h", Done: true})
			c.say("blob", step{Node: "b", At: 9, From: "a", Done: true})
			c.say("blob", step{Node: "c", At: 5, From: "a"})
			return c.ask("d")
		}, "b"},
		{"finished before the head", func(c *crowd) string {
			c.head.Done = true
			c.ask("a")
			c.say("blob", step{Node: "a", At: 9, From: "h", Done: true})
			return c.ask("b")
		}, "a"},
		{"most progress", func(c *crowd) string {
			c.say("blob", step{Node: "a", At: 5, From: "x"})
			c.say("blob", step{Node: "b", At: 7, From: "x"})
			return c.say("blob", step{Node: "c", At: 3, Ask: true})
		}, "b"},
		{"strictly ahead", func(c *crowd) string {
			c.say("blob", step{Node: "a", At: 5, From: "x"})
			return c.say("blob", step{Node: "c", At: 5, Ask: true})
		}, ""},
		{"behind whoever died", func(c *crowd) string {
			c.head.Done = true
			c.ask("a")
			c.ask("b")
			c.ask("c")
			c.say("blob", step{Node: "a", At: 50, From: "h"})
			return c.say("blob", step{Node: "c", At: 30, Left: "b", Ask: true})
		}, "a"},
		{"who gave to whoever died, though it told of less", func(c *crowd) string {
			c.head.Done = true
			c.ask("a")
			c.ask("b")
			c.ask("c")
			c.say("blob", step{Node: "a", At: 20, From: "h"})
			c.say("blob", step{Node: "b", At: 20, From: "a"})
			return c.say("blob", step{Node: "c", At: 30, Left: "b", Ask: true})
		}, "a"},
		{"who is ahead by now, at its rate", func(c *crowd) string {
			c.head.Done = true
			c.fills("a", "h", 0, 10<<20)
			c.now = c.now.Add(stepEvery)
			return c.say("blob", step{Node: "b", At: 11 << 20, Ask: true})
		}, "a"},
		{"soon again whoever was behind", func(c *crowd) string {
			c.head.Done = true
			c.ask("a")
			c.say("blob", step{Node: "a", At: 20, From: "h"})
			if to := c.say("blob", step{Node: "b", At: 25, Left: "a", Early: true, Ask: true}); to != "h" {
				return "at first " + to
			}
			c.now = c.now.Add(stepEvery)
			c.say("blob", step{Node: "a", At: 40, From: "h"})
			return c.say("blob", step{Node: "b", At: 30, Ask: true})
		}, "a"},
		{"one who gives to nobody instead of a shared one", func(c *crowd) string {
			c.head.Done = true
			c.fills("a", "h", 1<<20, 2<<20)
			return c.fills("b", "h", 0, 1<<20)
		}, "a"},
		{"a shared one rather than the head", func(c *crowd) string {
			c.head.Done = true
			c.say("blob", step{Node: "x", At: 9 << 20, From: "h", Done: true})
			c.fills("b", "x", 1<<20, 2<<20)
			return c.fills("a", "x", 2<<20, 6<<20)
		}, ""},
		{"nobody who fell silent", func(c *crowd) string {
			c.ask("a")
			c.now = c.now.Add(stepSilence)
			return c.ask("b")
		}, "h"},
		{"nobody who did not serve", func(c *crowd) string {
			c.ask("a")
			c.ask("b")
			return c.say("blob", step{Node: "b", Left: "a", Ask: true})
		}, "h"},
		{"never its own taker", func(c *crowd) string {
			c.ask("a")
			c.ask("b")
			c.say("blob", step{Node: "b", At: 10, From: "a"})
			return c.say("blob", step{Node: "a", At: 9, Left: "h", Ask: true})
		}, ""},
		{"the usual neighbour", func(c *crowd) string {
			c.say("other", step{Node: "a", Ask: true})
			c.say("other", step{Node: "b", Ask: true})
			c.say("blob", step{Node: "a", At: 5, From: "x"})
			c.say("blob", step{Node: "z", At: 9, From: "x"})
			return c.ask("b")
		}, "a"},
		{"out of the line only while nobody is ahead", func(c *crowd) string {
			c.say("blob", step{Node: "a", At: 50, From: "x"})
			return c.say("blob", step{Node: "h", At: 20})
		}, "a"},
		{"nobody while another looks outside", func(c *crowd) string {
			c.say("blob", step{Node: "a", At: 50})
			c.say("blob", step{Node: "b", At: 50, Left: "a", Ask: true})
			return fmt.Sprintf("%t %q %t", c.waits("b"), c.say("blob", step{Node: "a", At: 50, Ask: true}), c.waits("a"))
		}, `true "" false`},
		{"again whom it left, after a while", func(c *crowd) string {
			c.say("blob", step{Node: "b", At: 50, Left: "a", Ask: true})
			c.now = c.now.Add(stepSilence)
			c.say("blob", step{Node: "a", At: 51})
			return c.say("blob", step{Node: "b", At: 50, Ask: true})
		}, "a"},
		{"nobody who finished long ago", func(c *crowd) string {
			c.say("blob", step{Node: "a", At: 9, From: "h", Done: true})
			for range 2 * lineMemory / time.Minute {
				c.now = c.now.Add(time.Minute)
				c.say("blob", step{Node: "b", At: 1, From: "x"})
			}
			return c.say("blob", step{Node: "c", At: 5, Ask: true})
		}, ""},
		{"who finished, though an earlier step came last", func(c *crowd) string {
			c.say("blob", step{Node: "a", At: 9, From: "h", Done: true})
			c.say("blob", step{Node: "a", At: 3, From: "h"})
			return c.say("blob", step{Node: "c", At: 5, Ask: true})
		}, "a"},
		{"past a slow neighbour", func(c *crowd) string {
			c.line4(4 << 20)
			c.say("blob", step{Node: "c", At: 3 << 20, From: "b"})
			return c.say("blob", step{Node: "c", At: 3 << 20, From: "b"})
		}, "a"},
		{"a slow one last in all lines", func(c *crowd) string {
			c.past(24 << 20)
			c.say("other", step{Node: "a", Ask: true})
			c.say("other", step{Node: "b", Ask: true})
			return c.say("other", step{Node: "c", Ask: true}) // shares a with b
		}, "a"},
		{"a slow one as any other after a while", func(c *crowd) string {
			c.past(24 << 20)
			c.now = c.now.Add(slowMemory)
			c.say("other", step{Node: "a", Ask: true})
			c.say("other", step{Node: "b", Ask: true})
			return c.say("other", step{Node: "c", Ask: true})
		}, "b"},
		{"one that was passed, but not for its own slowness, as any other", func(c *crowd) string {
			c.past(8 << 20)
			c.say("other", step{Node: "a", Ask: true})
			c.say("other", step{Node: "b", Ask: true})
			return c.say("other", step{Node: "c", Ask: true})
		}, "b"},
		{"not past one that is as fast as its source", func(c *crowd) string {
			c.line4(15 << 20)
			return c.say("blob", step{Node: "c", At: 14 << 20, From: "b"})
		}, ""},
		{"the slow one to the end", func(c *crowd) string {
			c.line4(4 << 20)
			c.say("blob", step{Node: "c", At: 3 << 20, From: "b"})
			c.say("blob", step{Node: "c", At: 3 << 20, From: "b"})
			c.now = c.now.Add(stepEvery)
			c.say("blob", step{Node: "a", At: 24 << 20, From: "h"})
			c.say("blob", step{Node: "d", At: 10 << 20, From: "c"})
			return c.say("blob", step{Node: "b", At: 6 << 20, From: "a"})
		}, "d"},
		{"not past one that has just passed another itself", func(c *crowd) string {
			c.line4(4 << 20)
			for range slowSteps {
				c.say("blob", step{Node: "c", At: 3 << 20, From: "b"})
			}
			c.say("blob", step{Node: "d", At: 2 << 20, From: "c"})
			return c.say("blob", step{Node: "d", At: 2 << 20, From: "c"})
		}, ""},
		{"between others rather than share", func(c *crowd) string { return c.forked() }, "d"},
		{"and then the one behind takes from it", func(c *crowd) string {
			c.forked()
			return c.say("blob", step{Node: "e", At: 2 << 20, From: "d"})
		}, "b"},
		{"past a slow link", func(c *crowd) string { return c.slowLink(1) }, "r"},
		{"past a second one", func(c *crowd) string { return c.slowLink(2) }, "q"},
		{"not past all: then it is slow itself", func(c *crowd) string { return c.slowLink(3) }, ""},
		{"not past a link that is as fast as others", func(c *crowd) string {
			c.head.Done = true
			c.fills("f", "h", 0, 2<<20)
			c.say("blob", step{Node: "f", At: 90 << 20, From: "h", Done: true})
			c.say("blob", step{Node: "p", At: 90 << 20, From: "h", Done: true})
			for at := range int64(8) {
				if to := c.fills("b", "f", at<<20, (at+1)<<20); to != "" {
					return to
				}
			}
			return ""
		}, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := row.do(newCrowd()); got != row.want {
				t.Errorf("neighbour %q, want %q", got, row.want)
			}
		})
	}
}

func (c *crowd) waits(node string) bool {
	return c.lines[digest.FromString("blob")].nodes[node].waits
}

// TestTurnsOutside: nodes that no one outside serves look there one at a time,
// and each of them again and again: perhaps only one is cut off.
func TestTurnsOutside(t *testing.T) {
	c := newCrowd()
	nodes, turns := []string{"a", "b", "c", "d"}, map[string]int{}
	for second := range 60 {
		var outside []string
		for _, node := range nodes {
			c.say("blob", step{Node: node, At: 50, Ask: true})
			if !c.waits(node) {
				outside = append(outside, node)
				turns[node]++
			}
		}
		if len(outside) > 1 {
			t.Errorf("after %d s %v look outside at once", second, outside)
		}
		c.now = c.now.Add(time.Second)
	}
	for _, node := range nodes {
		if turns[node] < 5 {
			t.Errorf("node %s looked outside %d times in a minute, want 5 or more", node, turns[node])
		}
	}
}

// line4 lines a, b, c, d up behind the head, which has the blob, and lets a
// second pass in which b gets as far as at.
func (c *crowd) line4(at int64) {
	c.head.Done = true
	for _, n := range []string{"a", "b", "c", "d"} {
		c.ask(n)
	}
	c.now = c.now.Add(2 * stepEvery)
	c.say("blob", step{Node: "a", At: 16 << 20, From: "h"})
	c.say("blob", step{Node: "b", At: at, From: "a"})
	c.say("blob", step{Node: "d", At: at / 3, From: "c"})
}

// past has c pass b, which is slow, and get as many bytes a second from a.
func (c *crowd) past(rate int64) {
	c.line4(4 << 20)
	c.say("blob", step{Node: "c", At: 3 << 20, From: "b"})
	c.say("blob", step{Node: "c", At: 3 << 20, From: "b"})
	c.now = c.now.Add(2 * stepEvery)
	c.say("blob", step{Node: "c", At: 3<<20 + rate/2, From: "a"})
}

// forked has b take from a, of which the line c, d, e takes, too. All but e,
// which is slow, are ahead of b. It returns where b is led.
func (c *crowd) forked() string {
	c.head.Done = true
	c.fills("a", "h", 20<<20, 24<<20)
	c.fills("e", "d", 1<<20, 3<<19)
	c.fills("d", "c", 10<<20, 12<<20)
	c.fills("c", "a", 13<<20, 15<<20)
	return c.fills("b", "a", 8<<20, 10<<20)
}

// fills has node report twice, a time apart that tells its rate, and returns
// where the second report leads it.
func (c *crowd) fills(node, from string, at, to int64) string {
	c.say("blob", step{Node: node, At: at, From: from})
	c.now = c.now.Add(stepEvery)
	return c.say("blob", step{Node: node, At: to, From: from})
}

// slowLink has b take from those who are finished and give it a tenth of what
// others get, and returns where the nth move leads it.
func (c *crowd) slowLink(moves int) string {
	c.head.Done = true
	c.fills("f", "h", 0, 10<<20)
	for _, done := range []string{"f", "p", "q", "r"} {
		c.say("blob", step{Node: done, At: 90 << 20, From: "h", Done: true})
	}
	at, from, to := int64(0), "f", ""
	for range moves {
		c.say("blob", step{Node: "b", At: at, From: from})
		for range 20 {
			c.now = c.now.Add(stepEvery)
			at += 1 << 20
			if to = c.say("blob", step{Node: "b", At: at, From: from}); to != "" {
				break
			}
		}
		from = to
	}
	return to
}

// TestNobodyIsNamedInACircle lets crowds of nodes ask, report, move, die and
// come back in any order, at two heads that share them where the membership is
// in doubt, and holds every wait that results against the rule of doc.go. No
// node may ever wait for itself, over however many others.
func TestNobodyIsNamedInACircle(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := &waits{r: r, now: epoch, size: 40}
		for i := range 2 {
			w.heads = append(w.heads, newLedger(fmt.Sprint("h", i), epoch.Add(time.Duration(i)*time.Microsecond)))
		}
		for i := range 12 {
			w.nodes = append(w.nodes, &filler{id: fmt.Sprint("n", i)})
		}
		for i, h := range w.heads {
			w.nodes = append(w.nodes, &filler{id: h.self, head: i + 1, place: h.first})
		}
		for range 400 {
			w.act()
			for _, n := range w.nodes {
				at := n
				for hops := 0; at != nil && at.from != nil; at, hops = at.from, hops+1 {
					if hops > len(w.nodes) {
						t.Fatalf("seed %d: %s waits in a circle", seed, n.id)
					}
				}
			}
		}
	}
}

// waits is nodes that fill one blob.
type waits struct {
	r     *rand.Rand
	now   time.Time
	heads []*ledger
	nodes []*filler
	size  int64
}

type filler struct {
	id    string
	head  int // of waits.heads, from 1 on
	place int64
	at    int64
	from  *filler
	left  string
	early bool
}

func (w *waits) node(id string) *filler {
	for _, n := range w.nodes {
		if n.id == id {
			return n
		}
	}
	return nil
}

// act is one thing that happens.
func (w *waits) act() {
	w.now = w.now.Add(time.Duration(w.r.IntN(300)) * time.Millisecond)
	n := w.nodes[w.r.IntN(len(w.nodes))]
	switch w.r.IntN(6) {
	case 0: // the neighbour is gone, or was too slow
		if n.from != nil {
			n.left, n.from = n.from.id, nil
		}
	case 1: // the node itself begins again
		if n.head == 0 && w.r.IntN(4) == 0 {
			for _, o := range w.nodes {
				if o.from == n {
					o.left, o.from = n.id, nil
				}
			}
			*n = filler{id: n.id}
		}
	case 2, 3: // bytes move
		limit := w.size
		if n.from != nil {
			limit = n.from.at
		} else if n.head == 0 {
			limit = n.at
		}
		n.at += w.r.Int64N(max(1, limit-n.at+1))
	default:
		w.step(n)
	}
}

// step has n speak to a head, and do what it says as a hunt does.
func (w *waits) step(n *filler) {
	l := w.heads[w.r.IntN(2)]
	if n.head > 0 {
		l = w.heads[n.head-1]
	}
	s := step{Node: n.id, Place: n.place, At: n.at, Left: n.left, Early: n.early, Ask: n.from == nil, Done: n.at == w.size}
	if n.from != nil {
		s.From = n.from.id
	}
	h := w.node(l.self)
	t := l.step("d", s, step{Node: h.id, At: h.at, Done: h.at == w.size}, w.now)
	if n.place == 0 {
		n.place = t.Place
	}
	n.left, n.early = "", false
	to := w.node(t.From)
	if to == nil || to == n || s.Done {
		return
	}
	// What the node that is asked checks: see follow.
	if to.at > n.at || n.at == 0 && to.place != 0 && to.place < n.place {
		n.from = to
	} else {
		n.left, n.early = to.id, true
	}
}

// TestLedgerIsBounded: neither blobs nor nodes without end make it grow, and it
// forgets.
func TestLedgerIsBounded(t *testing.T) {
	c := newCrowd()
	for i := range 2 * maxLines {
		c.say(fmt.Sprint(i), step{Node: "a", Ask: true})
	}
	if n := len(c.lines); n != maxLines {
		t.Errorf("%d lines, want %d", n, maxLines)
	}
	for i := range 2 * maxInLine {
		c.ask(fmt.Sprint("n", i))
	}
	if n := len(c.lines[digest.FromString("blob")].nodes); n != maxInLine {
		t.Errorf("%d nodes in line, want %d", n, maxInLine)
	}
	for i := range 2 * maxLeft {
		c.say("blob", step{Node: "b", Left: fmt.Sprint("n", i), Ask: true})
	}
	if n := len(c.lines[digest.FromString("blob")].nodes["b"].left); n > maxLeft {
		t.Errorf("%d nodes that one has left, want at most %d", n, maxLeft)
	}
	c.now = c.now.Add(lineMemory + time.Minute)
	c.say("new", step{Node: "a", Ask: true})
	if n := len(c.lines); n != 1 {
		t.Errorf("%d lines after a long time, want the new one", n)
	}
}
