package mesh

import (
	"cmp"
	"context"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh/ring"
)

// Whereabouts is who holds some blobs, as far as the members said.
type Whereabouts struct {
	// Holders are the ids of the nodes that hold a blob durably, in order. A
	// blob that nobody said to hold has none.
	Holders map[digest.Digest][]string
	// Silent are the ids of the members that did not answer for all blobs, those
	// that seem down included, in order: what they hold is missing in Holders.
	Silent []string
}

// Where asks all members that seem alive which of ds they hold, and looks here.
// It takes a question for each maxQuestion blobs and member; the caller bounds
// ds, and how often it asks. An error means that there was nobody to ask, or
// that ctx ended; members that do not answer are no error.
func (b *Blobs) Where(ctx context.Context, ds []digest.Digest) (Whereabouts, error) {
	nodes := b.members.Ring().Nodes()
	if len(nodes) == 0 {
		return Whereabouts{}, oci.ErrUnavailable.Because("the members of the mesh are not known yet")
	}
	slices.SortFunc(nodes, func(a, b ring.Node) int { return cmp.Compare(a.ID, b.ID) })
	ds = slices.Compact(slices.Sorted(slices.Values(ds)))
	if _, err := packDigests(ds); err != nil { // else all would seem silent
		return Whereabouts{}, err
	}
	held := make([][]digest.Digest, len(nodes))
	answered := make([]bool, len(nodes))
	b.askLive(nodes, func(i int, node string) {
		var err error
		if held[i], err = b.heldBy(ctx, node, ds); err != nil {
			b.log.Debug("a member does not say what it holds", "node", node, "error", err, "request", oci.RequestID(ctx))
		}
		answered[i] = err == nil
	})
	if ctx.Err() != nil {
		return Whereabouts{}, oci.ErrUnavailable.Wrap(context.Cause(ctx))
	}
	w := Whereabouts{Holders: map[digest.Digest][]string{}}
	for i, n := range nodes {
		for _, d := range held[i] {
			w.Holders[d] = append(w.Holders[d], n.ID)
		}
		if !answered[i] {
			w.Silent = append(w.Silent, n.ID)
		}
	}
	return w, nil
}

// heldBy returns those of ds that node says it holds: before an error, some.
func (b *Blobs) heldBy(ctx context.Context, node string, ds []digest.Digest) ([]digest.Digest, error) {
	var held []digest.Digest
	for part := range slices.Chunk(ds, maxQuestion) {
		yes, err := b.hasEach(ctx, node, part)
		if err != nil {
			return held, err
		}
		for i, d := range part {
			if yes[i] {
				held = append(held, d)
			}
		}
	}
	return held, nil
}

// hasEach is holdings of any member, this one included.
func (b *Blobs) hasEach(ctx context.Context, node string, ds []digest.Digest) ([]bool, error) {
	if node != b.id {
		return b.holdings(ctx, node, ds, "")
	}
	held := make([]bool, len(ds))
	for i, d := range ds {
		held[i] = b.local.Has(d)
	}
	return held, ctx.Err()
}
