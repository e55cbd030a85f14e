package mesh

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/flotilla-registry/flotilla/mesh/ring"
)

// A zone may pin blobs: it is to hold them, whoever owns them. One node of the
// zone, the keeper (ring.Keeper), is then one more owner of each as far as its
// zone is concerned: it fetches its copy and does not give it up, and the others
// of the zone give up theirs, or leave, only once it vouches for its own. Nodes
// of other zones need not care: no copy of theirs is the zone's.
//
// What is pinned is for the others to say, by the catalogue, which all agree on
// but for how far each has heard. So two nodes may take a pin for different
// things for a moment. That loses nothing: what keeps a blob from being lost is
// the ring's owners, who vouch all the same.

// Pins says what this node's zone is to hold, whoever owns it.
type Pins interface {
	// Pinned reports it of each of ds; nil says of none.
	Pinned(ds []digest.Digest) ([]bool, error)
}

// pinned is Pinned with an answer for each of ds.
func (b *Blobs) pinned(ds []digest.Digest) ([]bool, error) {
	var pinned []bool
	if b.pins != nil {
		var err error
		if pinned, err = b.pins.Pinned(ds); err != nil {
			return nil, fmt.Errorf("what this zone pins: %w", err)
		}
	}
	if pinned == nil {
		pinned = make([]bool, len(ds))
	}
	return pinned, nil
}

// kept returns those of ds that this node keeps for its zone and does not own.
func (b *Blobs) kept(r *ring.Ring, ds []digest.Digest) (map[digest.Digest]bool, error) {
	pinned, err := b.pinned(ds)
	if err != nil {
		return nil, err
	}
	kept := map[digest.Digest]bool{}
	for i, d := range ds {
		if !pinned[i] {
			continue
		}
		if k, ok := r.Keeper(d, b.zone); ok && k.ID == b.id && !owns(r.Owners(d), b.id) {
			kept[d] = true
		}
	}
	return kept, nil
}

// Keep fetches those of ds that this node keeps for its zone and lacks, at the
// pace of repairs. It is for what was named just now: what it fails to get, and
// says so, the next pass of Reconcile tries again, as it does for the rest. What
// the ring has this node own is on its way by then.
func (b *Blobs) Keep(ctx context.Context, ds []digest.Digest) error {
	kept, err := b.kept(b.members.Ring(), ds)
	if err != nil {
		return err
	}
	var fetching errgroup.Group
	fetching.SetLimit(repairsAtOnce)
	failed := make(chan error, len(kept))
	for d := range kept {
		if b.local.Has(d) {
			continue
		}
		fetching.Go(func() error {
			err := b.local.Full()
			if err == nil {
				err = b.bring(ctx, d, CauseRepair)
			}
			if err != nil {
				b.stats.repairFailed.Add(1)
				failed <- fmt.Errorf("%s: %w", d, err)
				return nil // the others go on
			}
			b.stats.repaired.Add(1)
			return nil
		})
	}
	_ = fetching.Wait() // always nil
	close(failed)
	var all error
	for err := range failed {
		all = errors.Join(all, err)
	}
	return all
}
