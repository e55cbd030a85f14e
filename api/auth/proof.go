package auth

import (
	"context"
	"time"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// How long a proof is waited for, and after a failure the next is not tried for
// the sake of a read.
const (
	proofTimeout = 2 * time.Second
	proofPause   = 5 * time.Second
)

// proof is whether this node's copy of the settings was current once since the
// process began. From then on it hears of each change, or is none of the nodes
// that a change waits for.
type proof struct {
	busy  chan struct{} // holds a token while somebody tries
	tried time.Time     // of whoever holds it
	done  chan struct{} // closed once it was
}

func newProof() *proof {
	return &proof{busy: make(chan struct{}, 1), done: make(chan struct{})}
}

// Prove returns nil once this node may judge requests. A process that has just
// begun knows who might do what when it ended, or, where it joins, nothing, and
// must not open doors that were closed meanwhile: it asks the mesh first. Where
// that cannot be had, changes have to wait, and reads are judged by what this
// node knew, so that a site that is cut off goes on after a restart.
func (a *Authority) Prove(ctx context.Context, change bool) error {
	select {
	case <-a.proof.done:
		return nil
	case a.proof.busy <- struct{}{}:
	case <-ctx.Done():
		return oci.ErrUnavailable.Wrap(context.Cause(ctx))
	}
	defer func() { <-a.proof.busy }()
	select {
	case <-a.proof.done:
		return nil
	default:
	}
	known := a.mesh() != ""
	if !change && known && a.now().Sub(a.proof.tried) < proofPause {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	err := a.settings.Sync(ctx)
	a.proof.tried = a.now()
	switch {
	case err == nil:
		close(a.proof.done)
		return nil
	case !change && known:
		return nil
	}
	return oci.ErrUnavailable.Because("this node has yet to hear from the mesh who may do what").Wrap(err)
}
