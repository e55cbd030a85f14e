package main

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// The seed makes operations and faults, and nothing else does.
func TestSeed(t *testing.T) {
	kinds, besides := nemeses(), []string{"kill", "pause"}
	steps := func(seed uint64, worker int) (all []step) {
		next := plan(seed, worker, 5)
		for range 500 {
			all = append(all, next())
		}
		return all
	}
	if a, b := schedule(1, kinds, besides, time.Hour), schedule(1, kinds, besides, time.Hour); !reflect.DeepEqual(a, b) {
		t.Error("one seed gives two schedules")
	}
	if a, b := schedule(1, kinds, besides, time.Hour), schedule(2, kinds, besides, time.Hour); reflect.DeepEqual(a, b) {
		t.Error("two seeds give one schedule")
	}
	if !reflect.DeepEqual(steps(1, 0), steps(1, 0)) {
		t.Error("one seed gives two sequences of operations")
	}
	if reflect.DeepEqual(steps(1, 0), steps(1, 1)) || reflect.DeepEqual(steps(1, 0), steps(2, 0)) {
		t.Error("two clients do the same")
	}
}

// A schedule is as long as it was asked to be, and deals every fault once before
// any a second time.
func TestSchedule(t *testing.T) {
	kinds := []nemesis{{name: "a"}, {name: "b", beside: aReplica}, {name: "c", beside: anyOther}}
	names, besides := []string{"a", "b", "c"}, []string{"x", "y"}
	for _, tc := range []struct {
		length      time.Duration
		least, most int
	}{
		{0, 0, 0},
		{time.Second, 1, 1},
		{time.Minute, 4, 7},
		{time.Hour, 250, 400},
	} {
		events := schedule(7, kinds, besides, tc.length)
		if n := len(events); n < tc.least || n > tc.most {
			t.Errorf("%d faults in %v", n, tc.length)
		}
		for i := 0; i+3 <= len(events); i += 3 {
			var seen []string
			for _, e := range events[i : i+3] {
				seen = append(seen, e.nemesis)
			}
			if slices.Sort(seen); !slices.Equal(seen, names) {
				t.Errorf("dealt %v", seen)
			}
		}
	}
	two := map[string]int{}
	for _, e := range schedule(7, kinds, besides, time.Hour) {
		if e.beside != "" {
			two[e.nemesis]++
		}
	}
	if two["a"] != 0 || two["b"] == 0 || two["c"] == 0 {
		t.Errorf("a second fault beside %v", two)
	}
	if events := schedule(7, nil, besides, time.Hour); len(events) != 0 {
		t.Errorf("%d faults of no kind", len(events))
	}
}

// Operations cover everything, and blobs are nearly always small.
func TestPlan(t *testing.T) {
	next, seen, large := plan(3, 0, 5), map[string]int{}, 0
	const n = 5000
	for range n {
		s := next()
		seen[s.do]++
		for _, size := range s.sizes {
			if size < 1024 || size > 8<<20 {
				t.Fatalf("a blob of %d bytes", size)
			}
			if size > 256<<10 {
				large++
			}
		}
	}
	for _, do := range deck() {
		if seen[do] == 0 {
			t.Errorf("never: %s", do)
		}
	}
	if large == 0 || large > n/100 {
		t.Errorf("%d large blobs in %d operations", large, n)
	}
}

// An image that others may have named again is never deleted, and one that is
// about to be deleted is not picked.
func TestLedger(t *testing.T) {
	var l ledger
	if l.pick(5, true) != nil || l.take(5) != nil {
		t.Error("an image of none")
	}
	a, b := newImage("r", []part{{size: 1}}), newImage("r", []part{{size: 2}})
	l.add(a)
	l.add(b)
	if l.pick(0, true) != a || l.take(0) != nil || l.take(1) != b || l.stays(b) || !l.stays(a) {
		t.Error("a pinned image was taken, or another was not")
	}
	if l.pick(1, false) != a {
		t.Error("picked what is being deleted")
	}
	l.giveBack(b)
	if l.take(1) != b {
		t.Error("not given back")
	}
	l.remove(b)
	if kept, deleted := l.all(); !slices.Equal(kept, []*image{a}) || !slices.Equal(deleted, []*image{b}) || l.acknowledged() != 2 {
		t.Errorf("kept %v, deleted %v", kept, deleted)
	}
}

// A line says what was found, or that there was nothing to find it in.
func TestInvariants(t *testing.T) {
	f := figures{images: 7, heals: []healing{{bytes: 1 << 29, took: 5 * time.Second}}, states: []sameState{{3, 99}}}
	for _, tc := range []struct {
		title, want string
		wrong       map[string]int
	}{
		{"acknowledged pushes lost", "holds 0, of 7", nil},
		{"acknowledged pushes lost", "BROKEN 3, of 7", map[string]int{"lost": 1, "served": 2}},
		{"healing", "holds 10.0 s per GiB (0.50 GiB in 5.0 s), of at most 60", nil},
		{"replicas with another state", "holds equal 1 times, at last 3 replicas at index 99", nil},
		{"requests applied twice", "- not in this run", nil},
	} {
		for _, i := range invariants() {
			if i.title != tc.title {
				continue
			}
			got := strings.Join(strings.Fields(strings.Replace(i.line(f, tc.wrong), tc.title, "", 1)), " ")
			if got != tc.want {
				t.Errorf("%s: %q, want %q", tc.title, got, tc.want)
			}
		}
	}
}
