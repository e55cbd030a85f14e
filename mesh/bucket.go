package mesh

import (
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// minGrant and maxGrant bound what a bucket grants at once, which is a
	// sixteenth of a second's bytes: whoever comes with more right waits no
	// longer than that for a grant under way, and a low rate still reaches
	// many streams within the time after which a source counts as silent.
	minGrant = 4 << 10
	maxGrant = 4 << 20

	// trickle is every how many grants one goes to whoever waits longest,
	// whatever for: a stream that gets nothing at all looks dead to those who
	// follow it, and is begun again elsewhere.
	trickle = 16
)

// grantOf returns how many bytes a bucket of this rate grants at once.
func grantOf(perSecond int64) int64 { return max(minGrant, min(maxGrant, perSecond/16)) }

// bucket is a token bucket whose tokens are bytes, with a right of way: they
// go to the lowest rank first, and within it to whoever waits longest. It
// holds no more than one grant.
type bucket struct {
	mu      sync.Mutex
	limit   *rate.Limiter
	waiting []*claim // in order of arrival
	grants  int      // so far
	timer   *time.Timer
}

// claim is one who waits for bytes.
type claim struct {
	rank    int
	since   time.Time
	bytes   int64         // wanted; once granted, how many were
	granted chan struct{} // closed then
}

func newBucket(perSecond int64) *bucket {
	b := &bucket{limit: rate.NewLimiter(rate.Limit(perSecond), int(grantOf(perSecond)))}
	b.timer = time.AfterFunc(time.Hour, b.ripe)
	b.timer.Stop()
	return b
}

// setRate changes the rate for those who wait already, too.
func (b *bucket) setRate(perSecond int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.limit.Limit() != rate.Limit(perSecond) {
		b.limit.SetLimit(rate.Limit(perSecond))
		b.limit.SetBurst(int(grantOf(perSecond)))
		b.serve()
	}
}

// take waits for up to n bytes, n above 0, and returns how many are granted:
// one grant at most. Whoever waited elsewhere before says since when. An error
// is ctx's; nothing is taken then.
func (b *bucket) take(ctx context.Context, rank int, since time.Time, n int64) (int64, error) {
	c := &claim{rank: rank, since: since, bytes: n, granted: make(chan struct{})}
	b.mu.Lock()
	b.waiting = append(b.waiting, c)
	b.serve()
	b.mu.Unlock()
	select {
	case <-c.granted:
		return c.bytes, nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.Index(b.waiting, c)
	if i < 0 { // granted at the last moment
		return c.bytes, nil
	}
	b.waiting = slices.Delete(b.waiting, i, i+1)
	b.serve() // the next one may want less
	return 0, context.Cause(ctx)
}

func (b *bucket) ripe() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.serve()
}

// serve grants as much as there is, and comes back when there is more. It wants
// mu held.
func (b *bucket) serve() {
	b.timer.Stop()
	for now := time.Now(); len(b.waiting) > 0; {
		i := b.next()
		c := b.waiting[i]
		c.bytes = min(c.bytes, int64(b.limit.Burst()))
		if !b.limit.AllowN(now, int(c.bytes)) {
			short := (float64(c.bytes) - b.limit.TokensAt(now)) / float64(b.limit.Limit())
			b.timer.Reset(time.Duration(short*float64(time.Second)) + time.Microsecond)
			return
		}
		b.waiting = slices.Delete(b.waiting, i, i+1)
		b.grants++
		close(c.granted)
	}
}

// next returns who is served next.
func (b *bucket) next() int {
	fair := b.grants%trickle == trickle-1
	best := 0
	for i, c := range b.waiting {
		first := b.waiting[best]
		if better := c.rank < first.rank && !fair; better || (fair || c.rank == first.rank) && c.since.Before(first.since) {
			best = i
		}
	}
	return best
}
