package mesh

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// drain takes from b until ctx ends, a grant at a time, and counts.
func drain(ctx context.Context, b *bucket, rank int, n int64, got *atomic.Int64) {
	for {
		granted, err := b.take(ctx, rank, time.Now(), n)
		if err != nil {
			return
		}
		got.Add(granted)
	}
}

// TestBucketHoldsRate: however many take, and whatever for, together they get
// the rate, and nearly all of it.
func TestBucketHoldsRate(t *testing.T) {
	for _, row := range []struct {
		name   string
		rate   int64
		takers int
		each   int64
	}{
		{"a low rate", 64 << 10, 1, 1 << 20},
		{"a low rate, many takers", 64 << 10, 50, 1 << 20},
		{"a high rate", 100 << 20, 7, 1 << 30},
		{"small pieces", 1 << 20, 3, 100},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const period = 10 * time.Second
				b := newBucket(row.rate)
				ctx, cancel := context.WithTimeout(t.Context(), period)
				defer cancel()
				var got atomic.Int64
				var takers sync.WaitGroup
				for i := range row.takers {
					takers.Go(func() { drain(ctx, b, i%3, row.each, &got) })
				}
				takers.Wait()
				most := row.rate*int64(period/time.Second) + grantOf(row.rate)
				if n := got.Load(); n > most || n < most*9/10 {
					t.Errorf("%d bytes in %v at %d a second", n, period, row.rate)
				}
				if len(b.waiting) != 0 {
					t.Errorf("%d claims are left behind", len(b.waiting))
				}
			})
		})
	}
}

// TestBucketRightOfWay: the higher right takes nearly all while it wants it;
// the lower one is not left without anything, and has all afterwards.
func TestBucketRightOfWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 1 << 20
		b := newBucket(rate)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		busy, calm := context.WithTimeout(ctx, 10*time.Second)
		defer calm()
		var pull, repair, rebalance atomic.Int64
		var takers sync.WaitGroup
		for range 4 {
			takers.Go(func() { drain(ctx, b, 2, 1<<20, &rebalance) })
			takers.Go(func() { drain(ctx, b, 1, 1<<20, &repair) })
		}
		takers.Go(func() { drain(busy, b, 0, 1<<20, &pull) })
		takers.Go(func() { drain(busy, b, 0, 1<<20, &pull) })
		<-busy.Done()
		synctest.Wait()
		if n := pull.Load(); n < 9*rate {
			t.Errorf("pulls had %d of %d bytes", n, 10*rate)
		}
		if low := repair.Load() + rebalance.Load(); low == 0 || low > rate {
			t.Errorf("the others had %d bytes meanwhile: want a trickle", low)
		}
		before := rebalance.Load()
		takers.Wait()
		if n := repair.Load(); n < 8*rate {
			t.Errorf("repairs had %d bytes of the %d after the pulls", n, 10*rate)
		}
		if n := rebalance.Load() - before; n == 0 || n > rate {
			t.Errorf("rebalancing had %d bytes beside repairs: want a trickle", n)
		}
	})
}

// TestBucketTurns: of one right, whoever waits longest is first, the time
// waited elsewhere included.
func TestBucketTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(64 << 10)
		if _, err := b.take(t.Context(), 0, time.Now(), minGrant); err != nil { // all there is
			t.Fatal(err)
		}
		start := time.Now()
		order := make(chan string, 3)
		for _, c := range []struct {
			name  string
			since time.Time
		}{{"new", start}, {"old", start.Add(-time.Minute)}, {"older", start.Add(-time.Hour)}} {
			go func() {
				_, _ = b.take(t.Context(), 0, c.since, minGrant)
				order <- c.name
			}()
			synctest.Wait()
		}
		for _, want := range []string{"older", "old", "new"} {
			if got := <-order; got != want {
				t.Errorf("%s is served where %s was next", got, want)
			}
		}
	})
}

// TestBucketCancelled: who gives up takes nothing along and holds up nobody.
func TestBucketCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(64 << 10)
		_, _ = b.take(t.Context(), 0, time.Now(), minGrant)
		gone := errors.New("gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		for range 10 {
			go func() {
				if n, err := b.take(ctx, 0, time.Now(), minGrant); n != 0 || !errors.Is(err, gone) {
					t.Errorf("one that gave up has %d bytes, %v", n, err)
				}
			}()
		}
		synctest.Wait()
		cancel(gone)
		synctest.Wait()
		began := time.Now()
		if _, err := b.take(t.Context(), 2, time.Now(), minGrant); err != nil || time.Since(began) > 70*time.Millisecond {
			t.Errorf("the next one waited %v, %v", time.Since(began), err)
		}
		if len(b.waiting) != 0 {
			t.Errorf("%d claims are left behind", len(b.waiting))
		}
	})
}

// TestBucketSlower: a claim larger than what the new rate grants at once is
// served all the same.
func TestBucketSlower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(100 << 20)
		_, _ = b.take(t.Context(), 0, time.Now(), maxGrant)
		got := make(chan int64)
		go func() {
			n, _ := b.take(t.Context(), 0, time.Now(), maxGrant)
			got <- n
		}()
		synctest.Wait()
		b.setRate(64 << 10)
		if n := <-got; n != minGrant {
			t.Errorf("%d bytes at once at 64 KiB a second", n)
		}
	})
}
