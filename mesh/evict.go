package mesh

import (
	"context"
	"slices"
	"time"

	"github.com/flotilla-registry/flotilla/mesh/ring"
)

// over returns how many bytes of copies that need not be here are too many: all
// above their ceiling, and a tenth of them where the disk is full.
func (p *pass) over() int64 {
	var over int64
	if p.b.cacheSize > 0 {
		over = p.tally.CacheBytes - p.b.cacheSize
	}
	if p.b.local.Full() != nil {
		over = max(over, p.tally.CacheBytes/10+1)
	}
	return over
}

// evict drops copies that need not be here, the least recently used first,
// while they take too much space. Each goes only once every owner vouched for
// its own.
func (p *pass) evict(ctx context.Context) error {
	if !p.sure {
		return nil
	}
	over := p.over()
	defer p.publish(func(*Health) {})
	for list := p.surplus.sorted(); over > 0 && len(list) > 0; {
		n, sum := 0, int64(0)
		for n < len(list) && n < maxQuestion && sum < over {
			sum += list[n].size
			n++
		}
		freed, err := p.giveUp(ctx, list[:n])
		if err != nil {
			return err
		}
		over -= freed
		list = list[n:]
	}
	if over > 0 && p.surplus.cut {
		p.b.Wake()
	}
	return nil
}

// giveUp drops the copies that every owner vouches for, and returns how many
// bytes they took. Where one cannot, the others are not asked.
func (p *pass) giveUp(ctx context.Context, batch []blob) (freed int64, err error) {
	if p.moved() {
		return 0, errMoved
	}
	if err := p.place(batch); err != nil {
		return 0, err
	}
	about := map[string][]*blob{}
	for i := range batch {
		v := &batch[i]
		if slices.ContainsFunc(v.owners, func(n ring.Node) bool { return n.Down || p.silent[n.ID] >= maxSilent }) {
			continue
		}
		for _, n := range v.owners {
			about[n.ID] = append(about[n.ID], v)
		}
	}
	p.poll(ctx, about, p.membership)
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if p.moved() {
		return 0, errMoved
	}
	for i := range batch {
		v := &batch[i]
		f := facts{
			held: v.held, owner: v.owner, naming: v.naming, sure: p.sure,
			over: true, confirmed: len(v.owners) > 0 && len(v.has) == len(v.owners),
		}
		// Any use since it was seen, a confirmation given to another
		// included, keeps it.
		if decide(f) == drop && p.drop(v, v.used.Add(time.Nanosecond)) {
			freed += v.size
			p.tally.Evicted++
			p.tally.CacheBlobs--
			p.tally.CacheBytes -= v.size
			p.b.stats.evicted.Add(1)
			p.b.stats.evictedBytes.Add(v.size)
		}
	}
	return freed, nil
}
