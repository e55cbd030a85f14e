package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/cmd/faults/rig"
)

const (
	// lineDown is how long the line to the site is cut: longer than gossip needs
	// to see it.
	lineDown = 25 * time.Second
	// levelLimit is how long after the line's return the site may answer as one
	// that is behind.
	levelLimit = 10 * time.Second
)

// away: the line to a site is cut. It serves all that it holds, by tag with a
// warning, says of nothing that it is not there, takes no push, and is level
// again soon after the line is back. Lines that flap move no bytes.
func away(ctx context.Context, w *world, _ options) error {
	const images = 12
	var held []*image
	for k := range images {
		repo, _ := w.key(k % tags)
		held = append(held, w.image(k, repo, 2000, 200_000))
		if err := w.push(ctx, w.mesh[k%len(w.mesh)], held[k], fmt.Sprint("v", k)); err != nil {
			return err
		}
	}
	if err := await(ctx, time.Minute, "every zone holds every blob", func() bool { return w.heldBy(held, zones[0]) && w.heldBy(held, zones[1]) }); err != nil {
		return err
	}
	if err := w.flap(ctx); err != nil {
		return err
	}
	site, err := w.minority(ctx)
	if err != nil {
		return err
	}
	if err := w.rig.Cut(ctx, site, w.except(site...)); err != nil {
		return err
	}
	begun := time.Now()
	for time.Since(begun) < lineDown {
		w.cutOff(ctx, site, held)
		if err := wait(ctx, time.Second); err != nil {
			return err
		}
	}
	repo, tag := w.key(0)
	news := w.image(images, repo, 5000)
	if err := w.push(ctx, w.except(site...)[0], news, tag); err != nil {
		return err
	}
	return w.level(ctx, site, news, tag)
}

// zones of the nodes, where a scenario has two.
var zones = [...]string{"home", "site"}

// heldBy reports whether some node of a zone holds each blob of the images.
func (w *world) heldBy(images []*image, zone string) bool {
	for _, i := range images {
		for _, p := range i.parts {
			if !slices.ContainsFunc(w.mesh, func(n *rig.Node) bool { return n.Zone == zone && n.Holds(p.digest.String()) }) {
				return false
			}
		}
	}
	return true
}

// minority returns the nodes of the zone that has fewer voters.
func (w *world) minority(ctx context.Context) ([]*rig.Node, error) {
	leader, followers, _, err := w.roles(ctx)
	if err != nil {
		return nil, err
	}
	votes := map[string]int{}
	for _, n := range append(followers, leader) {
		votes[n.Zone]++
	}
	return slices.DeleteFunc(slices.Clone(w.mesh), func(n *rig.Node) bool { return votes[n.Zone] > 1 }), nil
}

// cutOff expects of each node of a site without a line what such a node is to
// answer.
func (w *world) cutOff(ctx context.Context, site []*rig.Node, held []*image) {
	each(site, held, func(n *rig.Node, i *image) {
		var tag string
		if k := slices.Index(held, i); k >= 0 {
			tag = fmt.Sprint("v", k)
		}
		d, a, err := w.client.manifest(ctx, n, i.repo, tag)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil || d != i.digest:
			w.fail("cut off", "%s does not serve %s:%s, which it holds: %v", n.Name, i.repo, tag, err)
		case !a.stale():
			w.fail("cut off", "%s serves %s:%s as if that were proved", n.Name, i.repo, tag)
		}
		if err := w.pull(ctx, n, i); err != nil && ctx.Err() == nil {
			w.fail("cut off", "%s: its site holds %s@%s: %v", n.Name, i.repo, i.digest, err)
		}
		w.report.add(func(r *report) { r.cutOff++ })
	})
	repo, _ := w.key(0)
	for _, n := range site {
		for _, path := range []string{
			at(n, repo, "manifests", "never-pushed"),
			at(n, repo, "manifests", digest.FromString("nobody pushed this").String()),
			at(n, repo, "blobs", digest.FromString("nor this").String()),
		} {
			a, err := w.client.do(ctx, http.MethodGet, path, "", nil)
			if err := want(a, err, http.StatusServiceUnavailable); err != nil && ctx.Err() == nil {
				w.fail("cut off", "GET %s, which nothing can prove absent: %v", path, err)
			}
		}
		a, err := w.client.do(ctx, http.MethodPut, at(n, repo, "manifests", "new"), "application/vnd.oci.image.manifest.v1+json", held[0].manifest)
		if err := want(a, err, http.StatusServiceUnavailable); err != nil && ctx.Err() == nil {
			w.fail("cut off", "%s took a push, or refused it wrongly: %v", n.Name, err)
		}
	}
}

// level mends the line and measures until each node of the site answers with
// what was pushed meanwhile, as proved, and takes writes.
func (w *world) level(ctx context.Context, site []*rig.Node, news *image, tag string) error {
	if err := w.rig.Mend(ctx); err != nil {
		return err
	}
	begun := time.Now()
	err := await(ctx, time.Minute, "the site is level again", func() bool {
		for _, n := range site {
			d, a, err := w.client.manifest(ctx, n, news.repo, tag)
			if err != nil || d != news.digest || a.stale() || !w.client.writable(ctx, n) {
				return false
			}
		}
		return true
	})
	took := time.Since(begun)
	if err == nil && took > levelLimit {
		err = fmt.Errorf("the site was level only %.1f s after the line's return", took.Seconds())
	}
	if err != nil && ctx.Err() == nil {
		w.fail("cut off", "%v", err)
	}
	w.say("  the site was level %.1f s after the line's return", took.Seconds())
	return ctx.Err()
}

// flap cuts the line and mends it, again and again, and expects that no copy is
// made or dropped for that.
func (w *world) flap(ctx context.Context) error {
	files := func() (n int) {
		kept, _ := w.images.all()
		for _, i := range kept {
			for _, p := range i.parts {
				n += w.copiesOf(p.digest)
			}
		}
		return n
	}
	before := files()
	site := slices.DeleteFunc(slices.Clone(w.mesh), func(n *rig.Node) bool { return n.Zone != zones[1] })
	for range 4 {
		if err := w.rig.Cut(ctx, site, w.except(site...)); err != nil {
			return err
		}
		if err := wait(ctx, 3*time.Second); err != nil {
			return err
		}
		if err := w.rig.Mend(ctx); err != nil {
			return err
		}
		if err := wait(ctx, 2*time.Second); err != nil {
			return err
		}
	}
	if after := files(); after != before {
		w.fail("cut off", "a line that flaps had %d copies of blobs become %d", before, after)
	}
	_, err := w.recover(ctx)
	return errors.Join(err, ctx.Err())
}
