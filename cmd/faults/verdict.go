package main

import (
	"fmt"
	"slices"
	"time"
)

// figures is what the invariants are judged by, beside what was found wrong.
type figures struct {
	images    int             // acknowledged pushes
	pulls     int             // images pulled whole and hashed at the end
	reads     int             // requests on tags that the checker was given
	puts      int             // of a tag, to what it names by no other, and that were read
	files     int             // hashed on the disks
	collected int             // images that a collection had to leave alone
	without   int             // pulls with one node gone
	rolling   int             // pulls while one node restarts
	cutOff    int             // pulls at a site whose line is cut
	twoAtOnce int             // faults with a second one
	gaps      []time.Duration // from the leader's end until every node took a write again
	states    []sameState     // times that replicas were equal
	heals     []healing
}

// sameState is so many replicas that were equal at an index.
type sameState struct {
	replicas int
	index    uint64
}

// healing is how long it took to make the second copy of so many bytes.
type healing struct {
	bytes int64
	took  time.Duration
}

// perGiB is at least as long as it takes for a GiB.
func (h healing) perGiB() time.Duration {
	return time.Duration(float64(h.took) / float64(max(h.bytes, 1)) * (1 << 30)).Round(100 * time.Millisecond)
}

// invariant is one line of the verdict.
type invariant struct {
	title string
	wrong []string // what breaks it, as world.fail calls that
	found func(f figures) (n int, of string)
	say   func(f figures) string // instead of how often it was broken
}

// line says how often the invariant was broken, or that nothing was there to
// break it.
func (i invariant) line(f figures, wrong map[string]int) string {
	broken := 0
	for _, w := range i.wrong {
		broken += wrong[w]
	}
	n, of := i.found(f)
	said := fmt.Sprintf("%d, %s", broken, fmt.Sprintf(of, n))
	verdict := "holds"
	switch {
	case broken > 0:
		verdict = "BROKEN"
	case n == 0:
		verdict, said = "-", "not in this run"
	}
	if i.say != nil && n > 0 {
		said = i.say(f)
	}
	return fmt.Sprintf("%-6s  %-36s %s", verdict, i.title, said)
}

func invariants() []invariant {
	count := func(of string, n func(f figures) int) func(figures) (int, string) {
		return func(f figures) (int, string) { return n(f), of }
	}
	requests := count("of %d requests on tags", func(f figures) int { return f.reads })
	return []invariant{
		{"acknowledged pushes lost", []string{"lost", "served", "copies"}, count("of %d", func(f figures) int { return f.images }), nil},
		{"deleted images served", []string{"deleted"}, count("with %d images pulled", func(f figures) int { return f.pulls }), nil},
		{"tags not linearizable", []string{"linearizable"}, requests, nil},
		{"tags undecided", []string{"decided"}, requests, nil},
		{"requests applied twice", []string{"applied twice"}, count("of %d put once and read", func(f figures) int { return f.puts }), nil},
		{"wrong bytes accepted or stored", []string{"wrong bytes", "scrub"}, func(f figures) (int, string) {
			return f.files, fmt.Sprintf("of %d whole images pulled and hashed, and %%d files", f.pulls)
		}, nil},
		{"collected while needed", []string{"collected"}, count("of %d images", func(f figures) int { return f.collected }), nil},
		{"replicas with another state", []string{"state", "equal"}, count("compared %d times", func(f figures) int { return len(f.states) }), sayState},
		{"leader killed: writes again", []string{"progress"}, count("after %d kills", func(f figures) int { return len(f.gaps) }), sayGaps},
		{"one node gone: pulls failed", []string{"one gone"}, count("of %d", func(f figures) int { return f.without }), nil},
		{"nodes restart in turn: pulls failed", []string{"rolling", "level"}, count("of %d", func(f figures) int { return f.rolling }), nil},
		{"line cut: wrong answers at the site", []string{"cut off"}, count("of %d pulls", func(f figures) int { return f.cutOff }), nil},
		{"healing", []string{"healing"}, count("of %d", func(f figures) int { return len(f.heals) }), sayHeals},
	}
}

func sayState(f figures) string {
	last := f.states[len(f.states)-1]
	return fmt.Sprintf("equal %d times, at last %d replicas at index %d", len(f.states), last.replicas, last.index)
}

func sayGaps(f figures) string {
	return fmt.Sprintf("after %v; the median may be %v", slices.Sorted(slices.Values(f.gaps)), gapLimit)
}

func sayHeals(f figures) (said string) {
	for _, h := range f.heals {
		said += fmt.Sprintf("%.1f s per GiB (%.2f GiB in %.1f s), ", h.perGiB().Seconds(), float64(h.bytes)/(1<<30), h.took.Seconds())
	}
	return fmt.Sprintf("%sof at most %.0f", said, healLimit.Seconds())
}

// election is how long the product's voters bear a silent leader.
const election = 1500 * time.Millisecond

// gapLimit: writes go on after an election of at most two rounds and a second
// for all else.
const gapLimit = 2*election + time.Second

// judgeGaps: it is the median that must be in time, since the machine does other
// things too; none may take twice as long.
func (r *report) judgeGaps() {
	r.mu.Lock()
	gaps := slices.Sorted(slices.Values(r.gaps))
	r.mu.Unlock()
	if n := len(gaps); n > 0 && (gaps[(n-1)/2] > gapLimit || gaps[n-1] > 2*gapLimit) {
		r.fail("progress", fmt.Sprintf("writes went on only %v after the leader was killed; the limit is %v", gaps, gapLimit))
	}
}
