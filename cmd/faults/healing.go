package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/flotilla-registry/flotilla/cmd/faults/rig"
)

// admin runs one of flotilla's own commands against a node.
func (w *world) admin(ctx context.Context, o options, n *rig.Node, args ...string) error {
	args = append(args, "--server", n.URL(), "--secret-file", w.rig.Secret(), "--plaintext")
	out, err := exec.CommandContext(ctx, o.binary, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("flotilla %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// copiesOf counts the disks of the mesh that hold all of an image, at least.
func (w *world) copiesOf(i *image) int {
	least := len(w.mesh)
	for _, p := range i.parts {
		n := 0
		for _, node := range w.mesh {
			if node.Holds(p.digest.String()) {
				n++
			}
		}
		least = min(least, n)
	}
	return least
}

// heal: a disk is lost for good and its node removed. Every blob has two copies
// again within a minute, and one more for each GiB.
func heal(ctx context.Context, w *world, o options) error {
	const images, size = 64, 1 << 20
	for k := range images {
		repo, tag := w.key(k % 6)
		if err := w.push(ctx, w.mesh[k%len(w.mesh)], w.image(k, repo, 2000, size), tag); err != nil {
			return err
		}
	}
	_, _, others, err := w.roles(ctx)
	if err != nil {
		return err
	}
	gone := others[0]
	if err := gone.Wipe(ctx); err != nil {
		return err
	}
	w.mesh = w.except(gone)
	if err := w.admin(ctx, o, w.mesh[0], "remove", "--yes", gone.Name); err != nil {
		return err
	}
	begun := time.Now()
	kept, _ := w.images.all()
	limit := time.Minute + time.Duration(images*size>>20)*time.Minute/1024
	if err := await(ctx, limit, "every blob has two copies again", func() bool {
		for _, i := range kept {
			if w.copiesOf(i) < 2 {
				return false
			}
		}
		return true
	}); err != nil && ctx.Err() == nil {
		w.fail("healing", "%v", err)
	}
	w.say("  two copies of everything again after %.1f s", time.Since(begun).Seconds())
	// The same machine comes back with an empty disk.
	if err := gone.Start(); err != nil {
		return err
	}
	w.mesh = append(w.mesh, gone)
	_, err = w.recover(ctx)
	return err
}

// collect: two days later, what was deleted has left all disks, and of what a
// tag reaches nothing has. Tags move while the collection runs.
func collect(ctx context.Context, w *world, o options) error {
	const images = 24
	for k := range images {
		repo, _ := w.key(k % 6)
		if err := w.push(ctx, w.mesh[k%len(w.mesh)], w.image(k, repo, 2000, 3000), fmt.Sprint("v", k)); err != nil {
			return err
		}
	}
	one := &worker{w: w, id: w.newClient()}
	for k := range images / 2 {
		if i := w.images.take(uint64(k)); i != nil {
			if err := one.delete(ctx, w.mesh[0], i); err != nil {
				return err
			}
		}
	}
	working, rest := context.WithCancel(ctx)
	defer rest()
	w.work(working)
	for day := range 3 {
		for _, n := range w.mesh {
			if err := n.SetClock(time.Duration(day+1) * 25 * time.Hour); err != nil {
				return err
			}
		}
		if err := w.admin(ctx, o, w.mesh[day%len(w.mesh)], "gc"); err != nil {
			return err
		}
		if err := wait(ctx, 5*time.Second); err != nil {
			return err
		}
	}
	_, deleted := w.images.all()
	deleted = deleted[:images/2]
	if err := await(ctx, time.Minute, "what was deleted has left the disks", func() bool {
		for _, i := range deleted {
			if w.copiesOf(i) > 0 {
				return false
			}
		}
		return true
	}); err != nil && ctx.Err() == nil {
		w.fail("collection", "%v", err)
	}
	return ctx.Err()
}
