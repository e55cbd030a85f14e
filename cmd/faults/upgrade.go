package main

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotilla-registry/flotilla/cmd/faults/rig"
)

// rollingRestart stops and starts each node in turn.
func rollingRestart(ctx context.Context, w *world, _ event) error {
	return w.roll(ctx, func(*rig.Node) error { return nil })
}

// roll stops each node in turn, does something to it, and starts it again.
// Whoever pulls from the others is served all the while.
func (w *world) roll(ctx context.Context, do func(n *rig.Node) error) error {
	for _, n := range w.mesh {
		stop := w.keepPulling(ctx, n)
		err := w.restart(ctx, n, do)
		stop()
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (w *world) restart(ctx context.Context, n *rig.Node, do func(n *rig.Node) error) error {
	if err := n.Stop(ctx); err != nil {
		w.fail("stays up", "%v", err)
	}
	if err := do(n); err != nil {
		return err
	}
	if err := n.Start(); err != nil {
		return err
	}
	if err := await(ctx, time.Minute, n.Name+" is back", func() bool { return w.client.writable(ctx, n) }); err != nil {
		w.fail("progress", "rolling restart: %v", err)
	}
	return nil
}

// keepPulling pulls what was pushed last from all nodes but one, until stop.
func (w *world) keepPulling(ctx context.Context, restarts *rig.Node) (stop func()) {
	kept, _ := w.images.all()
	kept = kept[max(0, len(kept)-10):]
	var over atomic.Bool
	var pulling sync.WaitGroup
	pulling.Go(func() {
		for !over.Load() && ctx.Err() == nil {
			each(w.except(restarts), kept, func(n *rig.Node, i *image) {
				err := w.pull(ctx, n, i)
				if ctx.Err() != nil || !w.images.stays(i) {
					return
				}
				w.report.add(func(r *report) { r.rolling++ })
				if err != nil {
					w.fail("rolling", "%s, while %s restarts: %s@%s: %v", n.Name, restarts.Name, i.repo, i.digest, err)
				}
			})
			time.Sleep(50 * time.Millisecond) // clients want to work too
		}
	})
	return func() {
		over.Store(true)
		pulling.Wait()
	}
}

// upgrade: nodes of an older feature level are upgraded one by one. Nobody
// proposes what the old ones do not know, all replicas stay equal, and once the
// last one is upgraded the mesh can do what the new ones brought.
func upgrade(ctx context.Context, w *world, o options) error {
	for k := range 12 {
		repo, tag := w.key(k % tags)
		if err := w.push(ctx, w.mesh[k%len(w.mesh)], w.image(k, repo, 2000, 20_000), tag); err != nil {
			return err
		}
	}
	working, rest := context.WithCancel(ctx)
	defer rest()
	w.work(working)
	upgraded := 0
	err := w.roll(ctx, func(n *rig.Node) error {
		if upgraded > 0 {
			w.sameState(ctx, w.except(n))
		}
		if upgraded++; upgraded == len(w.mesh) {
			if err := w.newest(ctx, w.mesh[0]); err == nil {
				w.fail("level", "the mesh takes an operation that %s does not know yet", n.Name)
			}
		}
		n.Use(o.binary)
		return nil
	})
	if err != nil {
		return err
	}
	if err := await(ctx, 30*time.Second, "the mesh takes an operation of the new level", func() bool { return w.newest(ctx, w.mesh[0]) == nil }); err != nil && ctx.Err() == nil {
		w.fail("level", "%v", err)
	}
	w.say("  %d nodes upgraded", upgraded)
	return ctx.Err()
}

// newest asks for what only the newest feature level can do.
func (w *world) newest(ctx context.Context, n *rig.Node) error {
	if _, err := w.operate(ctx, n, http.MethodDelete, "/flotilla/v1/tokens", http.StatusOK); err != nil {
		return fmt.Errorf("replace the keys of tokens: %w", err)
	}
	return nil
}
