package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/cmd/faults/rig"
)

// admin runs one of flotilla's own commands against a node.
func (w *world) admin(ctx context.Context, n *rig.Node, args ...string) error {
	args = append(args, "--server", n.URL(), "--secret-file", w.rig.Secret(), "--plaintext")
	out, err := exec.CommandContext(ctx, w.rig.Binary(), args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("flotilla %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// copiesOf counts the disks of the mesh that hold a blob.
func (w *world) copiesOf(d digest.Digest) (n int) {
	for _, node := range w.mesh {
		if node.Holds(d.String()) {
			n++
		}
	}
	return n
}

// scarce returns blobs of which there must be two copies and are fewer.
func (w *world) scarce() (scarce []digest.Digest) {
	kept, _ := w.images.all()
	seen := map[digest.Digest]bool{}
	for _, i := range kept {
		for _, p := range i.parts {
			if !seen[p.digest] && w.copiesOf(p.digest) < 2 {
				scarce = append(scarce, p.digest)
			}
			seen[p.digest] = true
		}
	}
	return scarce
}

// scrubEvery is how often a node reads again what it stores, at most.
const scrubEvery = 7 * time.Hour

// rotten counts the copies that were damaged on purpose and are so still.
func (w *world) rotten() (n int) {
	for c := range w.rot {
		if c.node.Rotten(c.digest.String()) {
			n++
		}
	}
	return n
}

// scrubbed has every node read what it stores, and expects that none keeps a
// damaged copy.
func (w *world) scrubbed(ctx context.Context) {
	damaged, begun := w.rotten(), time.Now()
	if damaged == 0 {
		return
	}
	for _, n := range w.mesh {
		if err := n.Age(scrubEvery); err != nil {
			w.fail("scrub", "%v", err)
		}
	}
	if _, err := w.recover(ctx); err != nil {
		return
	}
	if err := await(ctx, time.Minute, "no damaged copy is left", func() bool { return w.rotten() == 0 }); err != nil && ctx.Err() == nil {
		w.fail("scrub", "%v", err)
	}
	w.say("of %d damaged copies %d were found before, and scrubbing found %d within %.1f s", len(w.rot), len(w.rot)-damaged, damaged-w.rotten(), time.Since(begun).Seconds())
}

// heal: a disk is lost for good and its node removed. Every blob has two copies
// again within a minute, and one more for each GiB.
func heal(ctx context.Context, w *world, _ options) error {
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
	if err := w.admin(ctx, w.mesh[0], "remove", "--yes", gone.Name); err != nil {
		return err
	}
	begun := time.Now()
	limit := time.Minute + time.Duration(images*size>>20)*time.Minute/1024
	if err := await(ctx, limit, "every blob has two copies again", func() bool { return len(w.scarce()) == 0 }); err != nil && ctx.Err() == nil {
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

// settled is how long after its start a node drops nothing.
const settled = 10 * time.Minute

// collect: days later, what was deleted has left all disks, and of what a tag
// reaches nothing has. Clients work and tags move while the collection runs.
func collect(ctx context.Context, w *world, _ options) error {
	const images, days = 24, 3
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
	_, deleted := w.images.all()
	for _, n := range w.mesh {
		if err := n.Age(settled + time.Minute); err != nil {
			return err
		}
	}
	if _, err := w.recover(ctx); err != nil {
		return err
	}
	working, rest := context.WithCancel(ctx)
	defer rest()
	w.work(working)
	for day := range days {
		ahead := time.Duration(day+1) * 25 * time.Hour
		for _, n := range w.mesh {
			if err := n.SetClock(ahead); err != nil {
				return err
			}
		}
		for range 2 { // the names go, then the bytes
			if err := w.client.collect(ctx, w.mesh[day%len(w.mesh)], w.rig.Secret(), time.Now().Add(ahead)); err != nil {
				return err
			}
			if err := wait(ctx, 6*time.Second); err != nil { // a node pauses for 5 s between two rounds
				return err
			}
		}
	}
	for _, i := range deleted {
		for _, p := range i.parts {
			if n := w.copiesOf(p.digest); n > 0 {
				w.fail("collection", "%s@%s was deleted %d days ago; %d disks hold its blob %s", i.repo, i.digest, days, n, p.digest)
			}
		}
	}
	return ctx.Err()
}
