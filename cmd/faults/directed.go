package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/flotilla-registry/flotilla/cmd/faults/check"
	"github.com/flotilla-registry/flotilla/cmd/faults/rig"
)

// Each of these scenarios aims at one promise, so that whoever breaks it is
// caught every time and not only in a long schedule.

// image makes the n-th image of a scenario, with blobs of these sizes.
func (w *world) image(n int, repo string, sizes ...int64) *image {
	r := rand.New(rand.NewPCG(w.seed, 1<<33+uint64(n)))
	var parts []part
	for _, size := range sizes {
		parts = append(parts, newPart(size, r))
	}
	return newImage(repo, parts)
}

// push pushes an image at a node as one client would, and repeats what fails.
func (w *world) push(ctx context.Context, n *rig.Node, i *image, tag string) error {
	return w.pushWithin(ctx, time.Minute, n, i, tag)
}

// pushWithin is push by a client that repeats nothing after the limit.
func (w *world) pushWithin(ctx context.Context, limit time.Duration, n *rig.Node, i *image, tag string) error {
	c := &worker{w: w, id: w.newClient()}
	var last error
	err := await(ctx, limit, "a push succeeds at "+n.Name, func() bool {
		for _, p := range i.parts {
			if last = w.client.pushBlob(ctx, n, i.repo, "", p.bytes()); last != nil {
				return false
			}
		}
		last = c.put(ctx, n, i, tag)
		return last == nil
	})
	if err != nil {
		return errors.Join(err, last)
	}
	w.images.add(i)
	return nil
}

// put names an image whose blobs are there.
func (c *worker) put(ctx context.Context, n *rig.Node, i *image, tag string) error {
	return c.change(ctx, n, i.repo, tag, check.Put, i.digest.String(), func() error {
		return c.w.client.putManifest(ctx, n, i.repo, tag, i.manifest)
	})
}

// oneCopy: an acknowledged push is durable at two nodes, so the loss of any one
// disk cannot take it away. At first all others have room for names only: who
// acknowledges a push then has all there is of it. Once they have room, the bytes
// still have a slow line to go.
func oneCopy(ctx context.Context, w *world, _ options) error {
	_, _, others, err := w.roles(ctx)
	if err != nil {
		return err
	}
	n := others[0] // no voter: the names stay where they are
	rest := w.except(n)
	repo, tag := w.key(0)
	if err := errors.Join(n.Slow(ctx, 2000), fill(rest)); err != nil {
		return err
	}
	if err := w.pushWithin(ctx, 10*time.Second, n, w.image(0, repo, 3000), tag); err != nil {
		w.say("  without room for a second copy: %v", err)
		begun := time.Now()
		if err := errors.Join(empty(rest), w.push(ctx, n, w.image(1, repo, 1<<20), tag)); err != nil {
			return err
		}
		w.say("  a push over a slow line was acknowledged after %.1f s", time.Since(begun).Seconds())
	}
	w.wiped = true
	w.mesh = rest
	return errors.Join(n.Wipe(ctx), n.Fast(ctx), empty(rest))
}

// namesOnly is how many bytes are free on a disk which is to take no blob any
// more, and names as ever.
const namesOnly = 512 << 20

// fill leaves the nodes room for names only.
func fill(nodes []*rig.Node) error {
	var errs []error
	for _, n := range nodes {
		errs = append(errs, n.Fill(namesOnly))
	}
	return errors.Join(errs...)
}

// empty ends fill.
func empty(nodes []*rig.Node) error {
	var errs []error
	for _, n := range nodes {
		errs = append(errs, n.Empty())
	}
	return errors.Join(errs...)
}

// power: what was acknowledged outlives the loss of all power.
func power(ctx context.Context, w *world, _ options) error {
	for round := range 3 {
		repo, tag := w.key(round)
		i := w.image(round, repo, 3000, 3000)
		n := w.mesh[round%len(w.mesh)]
		if err := w.push(ctx, n, i, tag); err != nil {
			return err
		}
		if err := rig.CutPower(ctx, w.mesh...); err != nil {
			return err
		}
		if _, err := w.recover(ctx); err != nil {
			return err
		}
		each(w.mesh, []*image{i}, func(n *rig.Node, i *image) { _ = w.pull(ctx, n, i) }) // which tells what is lost
	}
	return nil
}

// oldLeader: who led once and was replaced meanwhile must not answer as if it
// led still.
func oldLeader(ctx context.Context, w *world, _ options) error {
	old, followers, _, err := w.roles(ctx)
	if err != nil {
		return err
	}
	repo, tag := w.key(0)
	before, after := w.image(0, repo, 2000), w.image(1, repo, 2000)
	if err := w.push(ctx, old, before, tag); err != nil {
		return err
	}
	if err := w.rig.Cut(ctx, []*rig.Node{old}, w.mesh); err != nil {
		return err
	}
	if err := w.push(ctx, followers[0], after, tag); err != nil {
		return err
	}
	c := &worker{w: w, id: w.newClient()}
	for range 5 {
		if err := c.read(ctx, old, repo, tag); err != nil {
			w.say("  %s refuses: %v", old.Name, err)
		}
	}
	return nil
}

// minority: non-voters do not make a leader.
func minority(ctx context.Context, w *world, _ options) error {
	repo, tag := w.key(0)
	if err := w.push(ctx, w.mesh[0], w.image(0, repo, 2000), tag); err != nil {
		return err
	}
	for range 3 {
		leader, followers, _, err := w.roles(ctx)
		if err != nil {
			return err
		}
		if err := w.rig.Cut(ctx, w.except(followers...), followers); err != nil {
			return err
		}
		w.unproven(ctx, leader)
		if _, err := w.recover(ctx); err != nil {
			return err
		}
	}
	return nil
}

// lostAnswer: a write that is tried again takes effect once. Its node hears
// nothing from the leader any more, which made the write and whose answer is
// lost; another write follows at a third node; then the first node can ask again.
func lostAnswer(ctx context.Context, w *world, _ options) error {
	leader, followers, _, err := w.roles(ctx)
	if err != nil {
		return err
	}
	deaf, third := followers[0], followers[1]
	repo, tag := w.key(0)
	a, b := w.image(0, repo, 2000), w.image(1, repo, 2000)
	for _, i := range []*image{a, b} { // so that all connections stand
		if err := w.push(ctx, deaf, i, "other"); err != nil {
			return err
		}
	}
	if err := w.rig.CutOneWay(ctx, leader, deaf); err != nil {
		return err
	}
	const attempt = 10 * time.Second // for one answer, then the node asks again
	begun, first := time.Now(), make(chan error, 1)
	go func() { first <- (&worker{w: w, id: w.newClient()}).put(ctx, deaf, a, tag) }()
	c := &worker{w: w, id: w.newClient()}
	if err := w.reads(ctx, c, third, repo, tag, a); err != nil {
		return err
	}
	if err := c.put(ctx, third, b, tag); err != nil {
		return fmt.Errorf("the write in between: %w", err)
	}
	if err := w.reads(ctx, c, third, repo, tag, b); err != nil {
		return err
	}
	if err := wait(ctx, attempt+2*time.Second-time.Since(begun)); err != nil {
		return err
	}
	if err := w.rig.Mend(ctx); err != nil {
		return err
	}
	if err := <-first; err != nil {
		w.say("  the first write: %v", err)
	}
	return c.read(ctx, third, repo, tag)
}

// badCopy: of two copies one is bad, and the other out of reach. Then there is
// nothing to serve, and nothing to store; and once the good one is in reach again,
// it is found.
func badCopy(ctx context.Context, w *world, _ options) error {
	for round, cut := range []bool{false, true} {
		repo, tag := w.key(round)
		i := w.image(round, repo, 5000)
		if err := w.push(ctx, w.mesh[round], i, tag); err != nil {
			return err
		}
		d := i.parts[0].digest
		var holders []*rig.Node
		for _, n := range w.mesh {
			if n.Holds(d.String()) {
				holders = append(holders, n)
			}
		}
		if len(holders) < 2 {
			return fmt.Errorf("%d nodes hold %s", len(holders), d)
		}
		mend, err := w.damage(holders[0], d, cut)
		if err != nil {
			return err
		}
		rest := w.except(holders...)
		if err := w.rig.Cut(ctx, holders[1:], rest); err != nil {
			return err
		}
		each(rest, []*image{i}, func(n *rig.Node, i *image) {
			if w.pull(ctx, n, i) == nil {
				w.fail("wrong bytes", "%s serves %s, of which it can reach no good copy", n.Name, d)
			}
		})
		if err := w.rig.Mend(ctx); err != nil {
			return err
		}
		w.served(ctx, rest, i, "with one bad copy")
		if err := mend(); err != nil {
			return err
		}
	}
	return nil
}

// served expects that a client gets an image from each of the nodes before it
// loses patience. A node may learn whose copy is bad by a download that fails.
func (w *world) served(ctx context.Context, nodes []*rig.Node, i *image, how string) {
	each(nodes, []*image{i}, func(n *rig.Node, i *image) {
		var err error
		if await(ctx, 20*time.Second, "", func() bool {
			err = w.pull(ctx, n, i)
			return err == nil || errors.Is(err, errDamaged)
		}) != nil && ctx.Err() == nil {
			w.fail("served", "%s, %s: %s@%s: %v", n.Name, how, i.repo, i.digest, err)
		}
	})
}

// reads reads a tag until it names an image.
func (w *world) reads(ctx context.Context, c *worker, n *rig.Node, repo, tag string, i *image) error {
	return await(ctx, 8*time.Second, "a write is seen at "+n.Name, func() bool {
		if c.read(ctx, n, repo, tag) != nil {
			return false
		}
		d, _, err := w.client.manifest(ctx, n, repo, tag)
		return err == nil && d == i.digest
	})
}

// leaderKills is how many leaders die in a row: how long an election takes is
// drawn by lot, so one alone says little about the median.
const leaderKills = 5

// leaders: writes go on soon after each leader's death.
func leaders(ctx context.Context, w *world, _ options) error {
	if err := w.push(ctx, w.mesh[0], w.image(0, "leaders/app", 5000, 50_000), "v1"); err != nil {
		return err
	}
	for range leaderKills {
		if err := killLeader(ctx, w, event{}); err != nil {
			return err
		}
		if _, err := w.recover(ctx); err != nil {
			return err
		}
	}
	return nil
}
