package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
)

// report is what a whole run found.
type report struct {
	out io.Writer

	mu       sync.Mutex
	requests map[string]map[string]int // what, how it ended
	wrong    map[string]int            // invariant
	lacks    map[string]string         // what could not be done, why
	faults   map[string]int            // how often each was made
	figures
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

// pushes is how many were acknowledged in the scenarios that are over.
func (r *report) pushes() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.images
}

// failed is how many times something did not hold.
func (r *report) failed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return total(r.wrong)
}

// close prints the tables, the invariants, and in the last line the verdict.
func (r *report) close() {
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
	fmt.Fprintln(r.out, "invariants:")
	for _, i := range invariants() {
		fmt.Fprintln(r.out, "  "+i.line(r.figures, r.wrong))
	}
	for _, what := range slices.Sorted(maps.Keys(r.lacks)) {
		fmt.Fprintf(r.out, "INCOMPLETE: %s: %s\n", what, r.lacks[what])
	}
	verdict, failed := "passed", total(r.wrong)
	if len(r.lacks) > 0 {
		verdict = "INCOMPLETE"
	}
	if failed > 0 {
		verdict = "FAILED"
		fmt.Fprintln(r.out, table("wrong", r.wrong))
	}
	fmt.Fprintf(r.out, "%s: %d faults, of which %d two at once; %d acknowledged pushes, %d lost; %d failures\n",
		verdict, total(r.faults), r.twoAtOnce, r.images, r.wrong["lost"], failed)
}

func total(m map[string]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}
