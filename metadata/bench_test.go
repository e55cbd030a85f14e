package metadata

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

func BenchmarkReadIndex(b *testing.B) {
	for _, nodes := range []int{1, 3} {
		m := newMesh(b)
		m.timing = Timing{Stable: quick.Stable, Tick: quick.Tick}
		for range nodes {
			m.add("z")
		}
		m.settle(nodes)
		n := m.leader()
		if nodes > 1 {
			n = m.follower()
		}
		for _, readers := range []int{1, 8, 64} {
			b.Run(fmt.Sprintf("nodes=%d/readers=%d", nodes, readers), func(b *testing.B) {
				before := n.Status().ReadRounds
				parallel(b, readers, func() error {
					_, err := n.freshen(context.Background())
					return err
				})
				b.ReportMetric(float64(n.Status().ReadRounds-before)/float64(b.N), "rounds/op")
			})
		}
		for _, n := range m.nodes {
			n.stop()
		}
	}
}

func BenchmarkApply(b *testing.B) {
	for _, nodes := range []int{1, 3} {
		m := newMesh(b)
		m.timing = Timing{Stable: quick.Stable, Tick: quick.Tick}
		for range nodes {
			m.add("z")
		}
		m.settle(nodes)
		at := map[string]*testNode{"leader": m.leader()}
		if nodes > 1 {
			at["follower"] = m.follower()
		}
		var i atomic.Int64
		for who, n := range at {
			for _, writers := range []int{1, 8, 64} {
				b.Run(fmt.Sprintf("nodes=%d/at=%s/writers=%d", nodes, who, writers), func(b *testing.B) {
					parallel(b, writers, func() error { return n.push("r", "x", int(i.Add(1))) })
				})
			}
		}
		for _, n := range m.nodes {
			n.stop()
		}
	}
}

// parallel shares b.N calls of f among workers.
func parallel(b *testing.B, workers int, f func() error) {
	var next atomic.Int64
	done := make(chan error, workers)
	b.ResetTimer()
	begin := time.Now()
	for range workers {
		go func() {
			var err error
			for err == nil && next.Add(1) <= int64(b.N) {
				err = f()
			}
			done <- err
		}()
	}
	for range workers {
		if err := <-done; err != nil {
			b.Error(err)
		}
	}
	b.ReportMetric(float64(b.N)/time.Since(begin).Seconds(), "op/s")
}
