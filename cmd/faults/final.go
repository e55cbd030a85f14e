package main

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/cmd/faults/check"
	"github.com/flotilla-registry/flotilla/cmd/faults/rig"
)

// judge ends the clients' work, heals all faults and checks everything that
// must hold of what they did.
func (w *world) judge(ctx context.Context) error {
	w.working.Wait()
	if _, err := w.recover(ctx); err != nil {
		return err
	}
	w.scrubbed(ctx)
	w.copies(ctx)
	w.equal(ctx)
	w.sameState(ctx, w.mesh)
	w.readTags(ctx)
	w.pullAll(ctx)
	w.audit()
	for _, err := range w.history.Check(time.Minute) {
		invariant := "linearizable"
		if errors.Is(err, check.ErrUndecided) {
			invariant = "decided"
		}
		w.fail(invariant, "%v", err)
	}
	puts, twice := w.history.Twice()
	for _, err := range twice {
		w.fail("applied twice", "%v", err)
	}
	w.report.add(func(r *report) {
		r.puts += puts
		r.images += w.images.acknowledged()
		r.reads += w.history.Len()
	})
	w.say("%d acknowledged pushes, %d requests on tags, %d answers that said they may be old", w.images.acknowledged(), w.history.Len(), w.warned.Load())
	return ctx.Err()
}

// copies looks on the disks for two copies of every blob that was acknowledged.
// A node that left and a copy that was bad may have left work for repair.
func (w *world) copies(ctx context.Context) {
	if w.wiped {
		return // the node whose disk that was may come back: nobody makes its copies again yet
	}
	if err := await(ctx, time.Minute, "", func() bool { return len(w.scarce()) == 0 }); err == nil {
		return
	}
	for _, p := range w.scarce() {
		w.fail("copies", "%d copies of %s, which was acknowledged with two", w.copiesOf(p.digest), p.digest)
	}
}

// readTags has the history end with what every node says of every tag.
func (w *world) readTags(ctx context.Context) {
	for _, n := range w.mesh {
		c := &worker{w: w, id: w.newClient()}
		for k := range tags {
			repo, tag := w.key(k)
			c.read(ctx, n, repo, tag)
		}
	}
}

// equal compares what all nodes hold, now that nobody writes: every repository,
// every tag and what it names.
func (w *world) equal(ctx context.Context) {
	var first map[string]string
	for _, n := range w.mesh {
		state, err := w.state(ctx, n)
		if err != nil {
			w.fail("equal", "%s: %v", n.Name, err)
			continue
		}
		if first == nil {
			first = state
		}
		if !maps.Equal(state, first) {
			w.fail("equal", "%s and %s hold different names: %s", w.mesh[0].Name, n.Name, difference(first, state))
		}
	}
}

func difference(a, b map[string]string) string {
	for _, k := range slices.Sorted(maps.Keys(a)) {
		if a[k] != b[k] {
			return k + ": " + a[k] + " and " + b[k]
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			return k + ": only at one"
		}
	}
	return "none"
}

// state is all names that one node answers with.
func (w *world) state(ctx context.Context, n *rig.Node) (map[string]string, error) {
	state := map[string]string{}
	repos, a, err := w.client.list(ctx, n, "/v2/_catalog", "repositories")
	if err == nil && a.stale() {
		err = errors.New("no node may be out of touch now")
	}
	for _, repo := range repos {
		var tags []string
		if err == nil {
			tags, _, err = w.client.list(ctx, n, "/v2/"+repo+"/tags/list", "tags")
		}
		state[repo] = strings.Join(tags, " ")
		for _, tag := range tags {
			if err == nil {
				var d digest.Digest
				d, _, err = w.client.manifest(ctx, n, repo, tag)
				state[repo+":"+tag] = d.String()
			}
		}
	}
	return state, err
}

// pullAll pulls every image that must be there from every node, and asks for
// every one that must not.
func (w *world) pullAll(ctx context.Context) {
	kept, deleted := w.images.all()
	begun := time.Now()
	each(w.mesh, kept, func(n *rig.Node, i *image) {
		if err := w.pull(ctx, n, i); err != nil && ctx.Err() == nil && !errors.Is(err, errMissing) && !errors.Is(err, errWrong) {
			w.fail("served", "%s: %s@%s: %v", n.Name, i.repo, i.digest, err)
		}
	})
	each(w.mesh, deleted, func(n *rig.Node, i *image) {
		if _, _, err := w.client.manifest(ctx, n, i.repo, i.digest.String()); !errors.Is(err, errMissing) && ctx.Err() == nil {
			w.fail("deleted", "%s: %s@%s was deleted: %v", n.Name, i.repo, i.digest, err)
		}
	})
	w.report.add(func(r *report) { r.pulls += len(kept) * len(w.mesh) })
	w.say("%d images pulled and hashed from each of %d nodes, %d deleted ones asked for, in %.1f s", len(kept), len(w.mesh), len(deleted), time.Since(begun).Seconds())
}

// each calls do for every node and image, some at a time.
func each(nodes []*rig.Node, images []*image, do func(*rig.Node, *image)) {
	type one struct {
		n *rig.Node
		i *image
	}
	all := make(chan one)
	var hands sync.WaitGroup
	for range 8 {
		hands.Go(func() {
			for o := range all {
				do(o.n, o.i)
			}
		})
	}
	for _, i := range images {
		for _, n := range nodes {
			all <- one{n, i}
		}
	}
	close(all)
	hands.Wait()
}

// audit hashes every blob on every disk: none has bytes but its own.
func (w *world) audit() {
	for _, n := range w.mesh {
		root := filepath.Dir(filepath.Dir(n.Blob("sha256:0000")))
		err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			name := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
			w.report.add(func(r *report) { r.files++ })
			if err == nil && digest.FromBytes(b) != name && !w.damaged(n, name) {
				w.fail("wrong bytes", "%s stores other bytes as %s", n.Name, name)
			}
			return err
		})
		if err != nil {
			w.fail("served", "%s: read the disk: %v", n.Name, err)
		}
	}
}
