package node

import (
	"context"
	"math/rand/v2"
	"time"
)

// pass is background work: one round of it, and how often. A round is a plain
// method elsewhere, so tests call it without waiting for its time.
type pass struct {
	name  string
	every time.Duration
	due   <-chan struct{} // a round is wanted before its time; nil for never
	round func(ctx context.Context)
}

// passes is the table of what a node does by itself, besides what the mesh and
// the catalogue need to stay what they are.
func (n *Node) passes() []pass {
	return []pass{
		{"reconcile", 10 * time.Minute, n.blobs.Due(), n.reconcile},
		{"scrub", 6 * time.Hour, n.scrubDue, n.scrub},
		{"expire uploads", time.Minute, nil, func(context.Context) { n.disk.Sweep(time.Now()) }},
		{"drop lent pins", 10 * time.Second, nil, func(context.Context) { n.dropLentPins() }},
		{"still a member", time.Minute, nil, n.stillMember},
	}
}

// runPasses runs each pass on its own until ctx ends. Intervals vary by a
// tenth, so that nodes started together do not work in step; and however often
// a round is wanted, a pause lies between two.
func (n *Node) runPasses(ctx context.Context) {
	for _, p := range n.passes() {
		n.running.Go(func() {
			for {
				wait := p.every + time.Duration(rand.Int64N(int64(p.every/10)))
				select {
				case <-ctx.Done():
					return
				case <-p.due:
				case <-time.After(wait):
				}
				p.round(ctx)
				select {
				case <-ctx.Done():
					return
				case <-time.After(n.pause()):
				}
			}
		})
	}
}

// pause is what lies between two rounds at least.
func (n *Node) pause() time.Duration {
	if n.cfg.Quick {
		return 200 * time.Millisecond
	}
	return 5 * time.Second
}

// dropLentPins ends the trust in what a member told about others once this
// node's own catalogue is level, so that a member removed later is refused.
func (n *Node) dropLentPins() {
	if n.Ready() == nil {
		n.trust.lend(nil)
	}
}
