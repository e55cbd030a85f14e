package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// report is what a whole run found.
type report struct {
	out io.Writer

	mu       sync.Mutex
	requests map[string]map[string]int // what, how it ended
	wrong    map[string]int            // invariant
	lacks    map[string]string         // what could not be done, why
	images   int                       // acknowledged pushes
	pulls    int                       // images pulled whole and hashed at the end
	reads    int                       // requests on tags that the checker was given
	faults   map[string]int            // how often each was made
	gaps     []time.Duration           // from the leader's end until every node took a write again
}

func newReport(out io.Writer) *report {
	return &report{out: out, requests: map[string]map[string]int{}, wrong: map[string]int{}, lacks: map[string]string{}, faults: map[string]int{}}
}

func (r *report) say(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.out, format+"\n", args...)
}

func (r *report) count(what, how string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.requests[what] == nil {
		r.requests[what] = map[string]int{}
	}
	r.requests[what][how]++
}

// shown bounds what is printed of one invariant that does not hold.
const shown = 10

func (r *report) fail(invariant, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wrong[invariant]++
	switch n := r.wrong[invariant]; {
	case n <= shown:
		fmt.Fprintf(r.out, "FAIL (%s) %s\n", invariant, text)
	case n == shown+1:
		fmt.Fprintf(r.out, "FAIL (%s) and more\n", invariant)
	}
}

// lack notes a fault that cannot be made here.
func (r *report) lack(what, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lacks[what] = why
}

func (r *report) add(f func(*report)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r)
}

// failed is how many times something did not hold.
func (r *report) failed() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, times := range r.wrong {
		n += times
	}
	return n
}

// election is how long the product's voters bear a silent leader.
const election = 1500 * time.Millisecond

// judgeGaps: writes go on after an election of at most two rounds and a second
// for all else. It is the median that must, since the machine does other things
// too; none may take twice as long.
func (r *report) judgeGaps() {
	r.mu.Lock()
	gaps := slices.Sorted(slices.Values(r.gaps))
	r.mu.Unlock()
	const limit = 2*election + time.Second
	if n := len(gaps); n > 0 && (gaps[(n-1)/2] > limit || gaps[n-1] > 2*limit) {
		r.fail("progress", fmt.Sprintf("writes went on only %v after the leader was killed; the limit is %v", gaps, limit))
	}
}

// close prints the tables, and in the last line the verdict.
func (r *report) close() {
	r.judgeGaps()
	failed := r.failed()
	r.mu.Lock()
	defer r.mu.Unlock()
	table := func(title string, m map[string]int) string {
		var cells []string
		for _, k := range slices.Sorted(maps.Keys(m)) {
			cells = append(cells, fmt.Sprintf("%s %d", k, m[k]))
		}
		return fmt.Sprintf("  %-8s %s", title, strings.Join(cells, ", "))
	}
	fmt.Fprintln(r.out, "requests:")
	for _, what := range slices.Sorted(maps.Keys(r.requests)) {
		fmt.Fprintln(r.out, table(what, r.requests[what]))
	}
	fmt.Fprintln(r.out, table("faults", r.faults))
	if len(r.gaps) > 0 {
		fmt.Fprintf(r.out, "  leader killed %d times; until every other node took a write: %v\n", len(r.gaps), r.gaps)
	}
	for _, what := range slices.Sorted(maps.Keys(r.lacks)) {
		fmt.Fprintf(r.out, "INCOMPLETE: %s: %s\n", what, r.lacks[what])
	}
	verdict := "passed"
	if len(r.lacks) > 0 {
		verdict = "INCOMPLETE"
	}
	if failed > 0 {
		verdict = "FAILED"
		fmt.Fprintln(r.out, table("wrong", r.wrong))
	}
	fmt.Fprintf(r.out, "%s: %d faults, %d acknowledged pushes, %d lost; %d requests on tags checked; %d whole images pulled and hashed at the end; %d failures\n",
		verdict, total(r.faults), r.images, r.wrong["lost"], r.reads, r.pulls, failed)
}

func total(m map[string]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}
