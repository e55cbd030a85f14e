package mesh

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/mesh/ring"
)

// blob is what a pass finds out about one blob.
type blob struct {
	digest digest.Digest
	size   int64     // -1 where nobody said
	held   bool      // a durable copy is here
	used   time.Time // when that was used last
	naming
	lost bool

	owners     []ring.Node // those of the ring, then this zone's keeper, where it is another
	share      int         // how many are the ring's
	owner      bool        // this node is one of owners
	accountant bool        // this node counts it for all
	has, lacks []string    // other members, that said so
}

// keeps reports whether this node should hold v for its zone's sake alone.
func (v *blob) keeps() bool { return v.owner && len(v.owners) > v.share }

func owns(owners []ring.Node, id string) bool {
	return slices.ContainsFunc(owners, func(n ring.Node) bool { return n.ID == id })
}

// lacking returns the owners that said that they lack v.
func (v *blob) lacking() []string {
	var ids []string
	for _, n := range v.owners {
		if slices.Contains(v.lacks, n.ID) {
			ids = append(ids, n.ID)
		}
	}
	return ids
}

// before reports whether member a rather than b acts for v: its owners come by
// rank, then the others by id.
func (v *blob) before(a, b string) bool {
	place := func(id string) int {
		if i := slices.IndexFunc(v.owners, func(n ring.Node) bool { return n.ID == id }); i >= 0 {
			return i
		}
		return len(v.owners)
	}
	return cmp.Or(cmp.Compare(place(a), place(b)), cmp.Compare(a, b)) < 0
}

// batches yields all that is held here or wanted by the catalogue, in order of
// digest, up to maxQuestion blobs at a time; nothing else of it is in memory.
// The slice is used again. An error is the last thing yielded.
func (b *Blobs) batches(ctx context.Context) iter.Seq2[[]blob, error] {
	return func(yield func([]blob, error) bool) {
		batch := make([]blob, 0, maxQuestion)
		for v, err := range union(b.walk(ctx), b.wanted(ctx)) {
			if err != nil {
				yield(nil, err)
				return
			}
			if batch = append(batch, v); len(batch) < maxQuestion {
				continue
			}
			if !yield(batch, nil) {
				return
			}
			batch = batch[:0]
		}
		if len(batch) > 0 {
			yield(batch, nil)
		}
	}
}

// walk yields what is held here.
func (b *Blobs) walk(ctx context.Context) iter.Seq2[blob, error] {
	return func(yield func(blob, error) bool) {
		more := true
		err := b.local.Walk(ctx, "", func(d digest.Digest, size int64, used time.Time) bool {
			more = yield(blob{digest: d, size: size, held: true, used: used}, nil)
			return more
		})
		if err != nil && more {
			yield(blob{}, err)
		}
	}
}

// wanted yields what the catalogue wants.
func (b *Blobs) wanted(ctx context.Context) iter.Seq2[blob, error] {
	return func(yield func(blob, error) bool) {
		for after := digest.Digest(""); ; {
			page, err := b.names.Wanted(after, maxQuestion)
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(blob{}, err)
				return
			}
			for _, w := range page {
				if !yield(blob{digest: w.Digest, size: w.Size, naming: wanted, lost: w.Lost}, nil) {
					return
				}
			}
			if len(page) == 0 {
				return
			}
			after = page[len(page)-1].Digest
		}
	}
}

// union merges what is held with what is wanted, each in order of digest, and
// ends with the first error of either.
func union(held, wanted iter.Seq2[blob, error]) iter.Seq2[blob, error] {
	return func(yield func(blob, error) bool) {
		nextHeld, stopHeld := iter.Pull2(held)
		defer stopHeld()
		nextWanted, stopWanted := iter.Pull2(wanted)
		defer stopWanted()
		h, herr, hok := nextHeld()
		w, werr, wok := nextWanted()
		for hok || wok {
			if err := errors.Join(herr, werr); err != nil {
				yield(blob{}, err)
				return
			}
			var v blob
			switch {
			case !wok || hok && h.digest < w.digest:
				v = h
				h, herr, hok = nextHeld()
			case !hok || w.digest < h.digest:
				v = w
				w, werr, wok = nextWanted()
			default:
				v = h
				v.naming, v.lost = w.naming, w.lost
				h, herr, hok = nextHeld()
				w, werr, wok = nextWanted()
			}
			if !yield(v, nil) {
				return
			}
		}
	}
}

// maxListed bounds what one pass notes for later, however much there is to do.
const maxListed = 50_000

// shortlist keeps the first most items of all that are added, in order.
type shortlist[T any] struct {
	most    int
	compare func(a, b T) int
	items   []T
	cut     bool // some were dropped
}

func (l *shortlist[T]) add(item T) {
	if l.items = append(l.items, item); len(l.items) >= 2*l.most {
		l.sorted()
	}
}

// sorted returns the items in order.
func (l *shortlist[T]) sorted() []T {
	slices.SortStableFunc(l.items, l.compare)
	if len(l.items) > l.most {
		l.items, l.cut = slices.Delete(l.items, l.most, len(l.items)), true
	}
	return l.items
}
