package main

import (
	"context"
	"fmt"
	"net/http"
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
func (w *world) scarce() (scarce []part) {
	kept, _ := w.images.all()
	seen := map[digest.Digest]bool{}
	for _, i := range kept {
		for _, p := range i.parts {
			if !seen[p.digest] && w.copiesOf(p.digest) < 2 {
				scarce = append(scarce, p)
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

// healLimit is how long a GiB may have too few copies.
const healLimit = time.Minute

// heal: of three nodes one is gone: the other two serve everything. Then its
// disk is lost for good, and it is removed: every blob has two copies again
// within a minute for each GiB that they had to copy.
func heal(ctx context.Context, w *world, _ options) error {
	const small, large, size = 24, 16, 64 << 20
	var images []*image
	for k := range small {
		repo, tag := w.key(k % tags)
		images = append(images, w.image(k, repo, 2000, 20_000))
		if err := w.push(ctx, w.mesh[k%len(w.mesh)], images[k], tag); err != nil {
			return err
		}
	}
	for k := range large {
		repo, _ := w.key(k % tags)
		if err := w.push(ctx, w.mesh[k%len(w.mesh)], w.image(small+k, repo, 2000, size), fmt.Sprint("large", k)); err != nil {
			return err
		}
	}
	if err := await(ctx, time.Minute, "every blob has two copies", func() bool { return len(w.scarce()) == 0 }); err != nil {
		return err
	}
	_, followers, _, err := w.roles(ctx)
	if err != nil {
		return err
	}
	gone := followers[0]
	gone.Kill()
	w.servedWithout(ctx, gone, images)
	if err := gone.Wipe(ctx); err != nil {
		return err
	}
	w.mesh = w.except(gone)
	if err := w.healed(ctx, gone); err != nil {
		return err
	}
	// The same machine comes back with an empty disk.
	if err := gone.Start(); err != nil {
		return err
	}
	w.mesh = append(w.mesh, gone)
	_, err = w.recover(ctx)
	return err
}

// healed removes a node whose disk is lost, and measures until every blob that
// has too few copies has enough.
func (w *world) healed(ctx context.Context, gone *rig.Node) error {
	var missing int64
	for _, p := range w.scarce() {
		missing += p.size
	}
	if err := w.admin(ctx, w.mesh[0], "remove", "--yes", gone.Name); err != nil {
		return err
	}
	begun := time.Now()
	limit := time.Duration(float64(missing) / (1 << 30) * float64(healLimit))
	err := await(ctx, limit, "every blob has two copies again", func() bool { return len(w.scarce()) == 0 })
	if err != nil && ctx.Err() == nil {
		w.fail("healing", "%v", err)
	}
	took := time.Since(begun)
	w.say("  two copies of everything again after %.1f s; one of %.2f GiB was missing", took.Seconds(), float64(missing)/(1<<30))
	w.report.add(func(r *report) { r.heals = append(r.heals, healing{missing, took}) })
	return ctx.Err()
}

// settled is how long after its start a node drops nothing.
const settled = 10 * time.Minute

// leap sets all clocks ahead, one after the other, under clients at work.
func (w *world) leap(ahead time.Duration) error {
	w.ahead = ahead
	for _, n := range w.mesh {
		if err := n.SetClock(ahead); err != nil {
			return err
		}
	}
	return nil
}

// collect: days later, what was deleted has left all disks, and of what a tag
// reaches nothing has. Clients work and tags move while the collection runs.
func collect(ctx context.Context, w *world, _ options) error {
	const images, days = 24, 2
	for k := range images {
		repo, _ := w.key(k % tags)
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
		if err := w.leap(time.Duration(day+1) * 25 * time.Hour); err != nil {
			return err
		}
		for range 2 { // the names go, then the bytes
			if _, err := w.operate(ctx, w.mesh[day%len(w.mesh)], http.MethodPost, "/flotilla/v1/gc", http.StatusAccepted); err != nil {
				return fmt.Errorf("collect: %w", err)
			}
			if err := wait(ctx, 6*time.Second); err != nil { // a node pauses for 5 s between two rounds
				return err
			}
		}
	}
	kept, _ := w.images.all()
	w.report.add(func(r *report) { r.collected += len(kept) })
	for _, i := range kept {
		for _, p := range i.parts {
			if w.images.stays(i) && w.copiesOf(p.digest) == 0 {
				w.fail("collected", "%s@%s is there; no disk holds its blob %s any more", i.repo, i.digest, p.digest)
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
