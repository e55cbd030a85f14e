package metadata

import (
	"bytes"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
)

// TestTaggedNeverGoesBack: a read by tag shows what was applied before it began,
// and what any read before it has shown, while entries and snapshots come in.
func TestTaggedNeverGoesBack(t *testing.T) {
	r, ahead := sparse(t), sparse(t)
	var applied, shown atomic.Int64
	move := func(s *replica, n int64) { s.must(command(0, imageOf("a", fmt.Sprint(n), []string{"v"}))) }
	move(r, 0)
	move(ahead, 0)
	stop := meanwhile(t, 4, func(int) bool {
		least := max(applied.Load(), shown.Load())
		m, ok, err := r.tagged("a", "v")
		n, _ := strconv.ParseInt(string(m.Body), 10, 64)
		if !ok || err != nil || n < least {
			t.Errorf("got %d %v %v after %d", n, ok, err, least)
			return false
		}
		for was := shown.Load(); was < n && !shown.CompareAndSwap(was, n); was = shown.Load() {
		}
		return true
	})
	for n := int64(1); n <= 2000; n++ {
		move(ahead, n)
		if n%200 == 0 {
			if err := r.restore(ahead.stream()); err != nil {
				t.Fatal(err)
			}
			r.last = ahead.last
		} else {
			move(r, n)
		}
		applied.Store(n)
	}
	stop()
}

// TestHotBounded: what is held stays in bounds, and is counted right.
func TestHotBounded(t *testing.T) {
	r := sparse(t)
	const images, size = 60, 200 << 10
	for i := range images {
		m := imageOf(fmt.Sprint("repo", i%3), fmt.Sprint(i), []string{fmt.Sprint("v", i)})
		m.Body = bytes.Repeat([]byte{'x'}, size)
		r.must(command(0, m))
	}
	for range 2 {
		for i := range images {
			if m, ok, err := r.tagged(fmt.Sprint("repo", i%3), fmt.Sprint("v", i)); !ok || err != nil || len(m.Body) != size {
				t.Fatalf("%d: %v %v", i, ok, err)
			}
			if r.hot.size > hotBytes+size+hotEntry {
				t.Fatalf("%d bytes are held", r.hot.size)
			}
		}
	}
	if _, held, _ := r.hot.find("repo2", "v59"); !held {
		t.Error("what was read last is not held")
	}
	for i := range 3 {
		r.must(command(0, imageOf(fmt.Sprint("repo", i), "new", nil)))
	}
	if len(r.hot.repos) != 0 || r.hot.size != 0 {
		t.Errorf("%d repositories and %d bytes are held after all were written to", len(r.hot.repos), r.hot.size)
	}
}
