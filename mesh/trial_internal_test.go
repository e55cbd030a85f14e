package mesh

import "testing"

// follows has a first behind the head, which is finished, then b, then c. a
// gets so many bytes a second.
func (c *crowd) follows(rate int64) {
	c.head.Done = true
	for _, n := range []string{"a", "b", "c"} {
		c.ask(n)
	}
	c.now = c.now.Add(2 * stepEvery)
	c.say("blob", step{Node: "a", At: rate / 2, From: "h"})
}

func (c *crowd) reports(node, from string) turn {
	return c.hear("blob", step{Node: node, At: 1000, From: from})
}

// tries has a node that was told to try the head say how fast that was.
func (c *crowd) tries(node, from string, speed float64) turn {
	return c.hear("blob", step{Node: node, At: 1000, From: from, Tried: "h", Speed: speed})
}

func TestTrial(t *testing.T) {
	const slow = 4 << 20
	for _, row := range []struct {
		name string
		do   func(c *crowd) turn
		want turn
	}{
		{"the follower of the first tries its source", func(c *crowd) turn {
			c.follows(slow)
			return c.reports("b", "a")
		}, turn{Try: "h"}},
		{"nobody else", func(c *crowd) turn {
			c.follows(slow)
			c.reports("b", "a")
			return c.reports("c", "b")
		}, turn{}},
		{"nor the first", func(c *crowd) turn {
			c.follows(slow)
			return c.hear("blob", step{Node: "a", At: slow, From: "h"})
		}, turn{}},
		{"once", func(c *crowd) turn {
			c.follows(slow)
			c.reports("b", "a")
			return c.reports("b", "a")
		}, turn{}},
		{"not for a little", func(c *crowd) turn {
			c.follows(trialBytes)
			return c.reports("b", "a")
		}, turn{}},
		{"not behind a source that has a rate", func(c *crowd) turn {
			c.follows(slow)
			c.head = step{Node: "h", At: 8 << 20}
			return c.reports("b", "a")
		}, turn{}},
		{"to a faster source", func(c *crowd) turn {
			c.follows(slow)
			c.reports("b", "a")
			return c.tries("b", "a", trialTimes*slow*1.1)
		}, turn{From: "h"}},
		{"not to one that is hardly faster", func(c *crowd) turn {
			c.follows(slow)
			c.reports("b", "a")
			return c.tries("b", "a", trialTimes*slow*0.9)
		}, turn{}},
		{"not to one that nobody named", func(c *crowd) turn {
			c.follows(slow)
			return c.hear("blob", step{Node: "b", At: 1000, From: "a", Tried: "c", Speed: 1e12})
		}, turn{}},
		{"after a try in vain the next", func(c *crowd) turn {
			c.follows(slow)
			c.reports("b", "a")
			c.tries("b", "a", 0)
			return c.reports("c", "b")
		}, turn{Try: "h"}},
		{"and past both", func(c *crowd) turn {
			c.follows(slow)
			c.reports("b", "a")
			c.tries("b", "a", 0)
			c.reports("c", "b")
			return c.tries("c", "b", 1e12)
		}, turn{From: "h"}},
		{"again after a while", func(c *crowd) turn {
			c.follows(slow)
			c.reports("b", "a")
			c.tries("b", "a", 0)
			c.now = c.now.Add(trialMemory)
			c.say("blob", step{Node: "a", At: 20 << 20, From: "h"})
			return c.reports("b", "a")
		}, turn{Try: "h"}},
		{"not again soon in another line", func(c *crowd) turn {
			c.follows(slow)
			c.reports("b", "a")
			c.tries("b", "a", 0)
			for _, n := range []string{"a", "b"} {
				c.say("other", step{Node: n, Ask: true})
			}
			c.now = c.now.Add(2 * stepEvery)
			c.say("other", step{Node: "a", At: slow, From: "h"})
			return c.hear("other", step{Node: "b", At: 1000, From: "a"})
		}, turn{}},
		{"the first comes to the end", func(c *crowd) turn {
			c.passed(t)
			c.say("blob", step{Node: "c", At: 10 << 20, From: "b"})
			return c.hear("blob", step{Node: "a", At: 3 << 20, From: "h"})
		}, turn{From: "c"}},
		{"and is slow in all lines, once that is proved", func(c *crowd) turn {
			c.passed(t)
			c.say("other", step{Node: "b", Ask: true})
			c.say("other", step{Node: "a", Ask: true})
			return c.hear("other", step{Node: "c", Ask: true}) // shares b with a
		}, turn{From: "b"}},
		{"a source that proves no faster is left again", func(c *crowd) turn {
			c.follows(slow)
			c.reports("b", "a")
			c.tries("b", "a", 1e12)
			c.now = c.now.Add(2 * stepEvery)
			c.say("blob", step{Node: "a", At: slow, From: "h"})
			return c.hear("blob", step{Node: "b", At: slow / 2, From: "h"})
		}, turn{From: "a"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			got := row.do(newCrowd())
			if got.Place = 0; got != row.want {
				t.Errorf("turn %+v, want %+v", got, row.want)
			}
		})
	}
}

// passed has b pass a, which is slow, and prove it.
func (c *crowd) passed(t *testing.T) {
	t.Helper()
	c.follows(4 << 20)
	c.reports("b", "a")
	if to := c.tries("b", "a", 1e12).From; to != "h" {
		t.Fatalf("b is sent to %q, want the head", to)
	}
	c.now = c.now.Add(2 * stepEvery)
	c.say("blob", step{Node: "b", At: 12 << 20, From: "h"})
}
