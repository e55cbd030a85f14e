package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/flotilla-registry/flotilla/cmd/faults/rig"
)

// company says who may be hurt while a fault is on, so that what the fault is
// judged by still must hold.
type company int

const (
	alone    company = iota // nobody
	aReplica                // a node that has no vote: writes go on as they do with the one fault
	anyOther                // a voter too: perhaps no majority is left, but nothing is judged before both are over
)

// extra is a fault of one node that comes while another is on. What hurt returns
// heals it, as far as world.recover does not.
type extra struct {
	name  string
	needs []string // of rig.Lacks
	hurt  func(ctx context.Context, w *world, n *rig.Node) (heal func() error, err error)
}

func extras() []extra {
	disks := []string{rig.Disks}
	return []extra{
		{"kill", nil, func(_ context.Context, _ *world, n *rig.Node) (func() error, error) {
			n.Kill()
			return nil, nil
		}},
		{"pause", nil, func(_ context.Context, _ *world, n *rig.Node) (func() error, error) {
			n.Pause()
			return nil, nil
		}},
		{"cut-off", nil, func(ctx context.Context, w *world, n *rig.Node) (func() error, error) {
			return nil, w.rig.Cut(ctx, []*rig.Node{n}, w.mesh)
		}},
		{"power", disks, func(ctx context.Context, _ *world, n *rig.Node) (func() error, error) {
			return nil, rig.CutPower(ctx, n)
		}},
		{"disk-full", disks, func(_ context.Context, _ *world, n *rig.Node) (func() error, error) {
			n.MayEnd() // as in world.full
			return n.Empty, n.Fill(0)
		}},
		{"slow-line", []string{rig.Shaping}, func(ctx context.Context, _ *world, n *rig.Node) (func() error, error) {
			return func() error { return n.Fast(ctx) }, n.Slow(ctx, 2000)
		}},
		{"clock", []string{rig.Clocks}, func(_ context.Context, _ *world, n *rig.Node) (func() error, error) {
			return func() error { return n.SetClock(0) }, n.SetClock(-5 * time.Minute)
		}},
	}
}

// hurtBeside makes the event's second fault, if it has one, at a node that the
// first one then leaves alone.
func (w *world) hurtBeside(ctx context.Context, e event, with company) (heal func() error, err error) {
	heal = func() error { return nil }
	kinds := extras()
	k := slices.IndexFunc(kinds, func(x extra) bool { return x.name == e.beside })
	if k < 0 {
		return heal, nil
	}
	_, followers, others, err := w.roles(ctx)
	if err != nil {
		return heal, err
	}
	if with == anyOther {
		others = append(others, followers...)
	}
	n := others[e.draw/64%uint64(len(others))]
	w.say("  besides, %s at %s", e.beside, n.Name)
	end, err := kinds[k].hurt(ctx, w, n)
	if err != nil {
		return heal, fmt.Errorf("%s at %s: %w", e.beside, n.Name, err)
	}
	w.hurt = n
	return func() error {
		w.hurt = nil
		if end == nil {
			return nil
		}
		return end()
	}, nil
}

// well is the mesh without the node that is hurt besides.
func (w *world) well() []*rig.Node { return w.except(w.hurt) }

// makeFault makes the event's fault, or both, and heals what recover does not.
func (w *world) makeFault(ctx context.Context, n nemesis, e event) error {
	heal, err := w.hurtBeside(ctx, e, n.beside)
	if err == nil {
		err = n.make(ctx, w, e)
	}
	if err = errors.Join(err, heal()); err != nil {
		return fmt.Errorf("%v: %w", e, err)
	}
	return nil
}
