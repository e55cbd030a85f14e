package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"github.com/flotilla-registry/flotilla/cmd/faults/check"
	"github.com/flotilla-registry/flotilla/cmd/faults/rig"
)

const (
	workers = 8
	tags    = 8 // that all clients use, two in a repository
	// patience is when a client gives up on a request: then nobody knows what became of it.
	patience = 5 * time.Second
)

// step is one operation, planned without a look at what came before: the seed
// alone makes the sequence of a worker's steps. Which image a draw hits depends
// on how many are there.
type step struct {
	do    string
	key   int // of the repositories' tags
	node  int
	draw  uint64
	sizes []int64
	seed  [2]uint64 // of the content
}

// deck is how often each operation comes.
func deck() []string {
	var all []string
	for _, o := range []struct {
		do    string
		times int
	}{{"push", 54}, {"read", 20}, {"pull", 10}, {"move", 8}, {"mount", 6}, {"untag", 5}, {"delete", 4}, {"list", 3}} {
		all = append(all, slices.Repeat([]string{o.do}, o.times)...)
	}
	return all
}

// plan returns a worker's steps, one for each call.
func plan(seed uint64, worker int, nodes int) func() step {
	r := rand.New(rand.NewPCG(seed, uint64(worker)))
	deck := deck()
	return func() step {
		s := step{do: deck[r.IntN(len(deck))], key: r.IntN(tags), node: r.IntN(nodes), draw: r.Uint64(), seed: [2]uint64{r.Uint64(), r.Uint64()}}
		for range 1 + r.IntN(2) {
			s.sizes = append(s.sizes, size(r))
		}
		return s
	}
}

// size of a blob: 1 KiB to 8 MiB, nearly always small.
func size(r *rand.Rand) int64 {
	n := int64(1024 + r.IntN(15<<10))
	switch r.IntN(1000) {
	case 0:
		return 8<<20 - n
	case 1, 2, 3, 4, 5, 6, 7, 8, 9:
		return 16 * n
	}
	return n
}

// key is one of the tags that all clients use, and its repository.
func (w *world) key(n int) (repo, tag string) {
	return fmt.Sprintf("%s/r%d", w.name, n/2), fmt.Sprint("t", n%2)
}

// keysOf are the tags of a repository.
func (w *world) keysOf(repo string) (keys []int) {
	for k := range tags {
		if r, _ := w.key(k); r == repo {
			keys = append(keys, k)
		}
	}
	return keys
}

// worker is one client after another: one that does not know what became of its
// request is not heard of again.
type worker struct {
	w  *world
	id int
}

// work has clients use the mesh until ctx ends, and returns when all have.
func (w *world) work(ctx context.Context) {
	for i := range workers {
		next := plan(w.seed, i, len(w.mesh))
		w.working.Go(func() {
			one := &worker{w: w, id: w.newClient()}
			for ctx.Err() == nil {
				w.calm.RLock()
				one.step(context.WithoutCancel(ctx), next())
				w.calm.RUnlock()
			}
		})
	}
}

func (c *worker) step(ctx context.Context, s step) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c.w.steps.Add(1)
	n := c.w.mesh[s.node]
	repo, tag := c.w.key(s.key)
	var err error
	switch s.do {
	case "push", "mount":
		err = c.push(ctx, n, repo, tag, s)
	case "read":
		err = c.read(ctx, n, repo, tag)
	case "pull":
		if i := c.w.images.pick(s.draw, false); i != nil {
			err = c.w.pull(ctx, n, i)
		}
	case "move":
		if i := c.w.images.pick(s.draw, true); i != nil {
			tag := fmt.Sprint("t", s.key%2)
			err = c.change(ctx, n, i.repo, tag, check.Put, i.digest.String(), func() error {
				return c.w.client.putManifest(ctx, n, i.repo, tag, i.manifest)
			})
		}
	case "untag":
		err = c.change(ctx, n, repo, tag, check.Delete, "", func() error { return c.w.client.remove(ctx, n, repo, tag) })
	case "delete":
		if i := c.w.images.take(s.draw); i != nil {
			err = c.delete(ctx, n, i)
		}
	case "list":
		err = c.list(ctx, n, repo)
	}
	if err != nil && !errors.Is(err, errMissing) { // a node that does not run answers at once
		time.Sleep(50 * time.Millisecond)
	}
}

// push pushes a new image under a tag. To mount, it takes a layer of an image
// in another repository.
func (c *worker) push(ctx context.Context, n *rig.Node, repo, tag string, s step) error {
	r := rand.New(rand.NewPCG(s.seed[0], s.seed[1]))
	var parts []part
	for _, size := range s.sizes {
		parts = append(parts, newPart(size, r))
	}
	var from string
	if s.do == "mount" {
		if other := c.w.images.pick(s.draw, true); other != nil && other.repo != repo {
			parts, from = append(parts, other.parts[len(other.parts)-1]), other.repo
		}
	}
	for i, p := range parts {
		source := ""
		if i == len(s.sizes) {
			source = from
		}
		if err := c.w.client.pushBlob(ctx, n, repo, source, p.bytes()); err != nil {
			c.w.saw("push", err)
			return err
		}
	}
	i := newImage(repo, parts)
	err := c.change(ctx, n, repo, tag, check.Put, i.digest.String(), func() error {
		return c.w.client.putManifest(ctx, n, repo, tag, i.manifest)
	})
	if err == nil {
		c.w.images.add(i)
	}
	return err
}

// change does a request that changes a tag, and notes what came of it.
func (c *worker) change(ctx context.Context, n *rig.Node, repo, tag string, kind check.Kind, digest string, do func() error) error {
	o := check.Op{Key: repo + ":" + tag, Kind: kind, Digest: digest, Where: n.Name, Client: c.id, Call: c.w.history.Now()}
	err := do()
	o.Return = c.w.history.Now()
	c.w.saw(string(kind), err)
	switch {
	case err == nil:
		o.Found = true
	case kind == check.Delete && errors.Is(err, errMissing):
	case errors.Is(err, errRefused), errors.Is(err, errMissing):
		return err // it did nothing
	default:
		o.Unknown = true
		c.id = c.w.newClient()
	}
	c.w.history.Add(o)
	return err
}

// delete deletes a manifest, and with it each tag that names it.
func (c *worker) delete(ctx context.Context, n *rig.Node, i *image) error {
	call := c.w.history.Now()
	err := c.w.client.remove(ctx, n, i.repo, i.digest.String())
	end := c.w.history.Now()
	c.w.saw("delete", err)
	unknown := err != nil && !errors.Is(err, errMissing)
	switch {
	case errors.Is(err, errRefused):
		c.w.images.giveBack(i)
		return err
	case errors.Is(err, errMissing):
		c.w.fail("lost", "%s: the image %s@%s, whose push was acknowledged and which nobody deleted, cannot be deleted: it is not there", n.Name, i.repo, i.digest)
	case err == nil:
		c.w.images.remove(i)
	}
	for _, key := range c.w.keysOf(i.repo) {
		_, tag := c.w.key(key)
		c.w.history.Add(check.Op{Key: i.repo + ":" + tag, Kind: check.Removal, Digest: i.digest.String(), Unknown: unknown, Where: n.Name, Client: c.id, Call: call, Return: end})
	}
	if unknown {
		c.id = c.w.newClient()
	}
	return err
}

// read reads a tag. An answer that says that it may be old proves nothing.
func (c *worker) read(ctx context.Context, n *rig.Node, repo, tag string) error {
	o := check.Op{Key: repo + ":" + tag, Kind: check.Read, Where: n.Name, Client: c.id, Call: c.w.history.Now()}
	d, a, err := c.w.client.manifest(ctx, n, repo, tag)
	o.Return = c.w.history.Now()
	c.w.saw("read", err)
	if errors.Is(err, errWrong) {
		c.w.fail("wrong bytes", "%s: %v", n.Name, err)
	}
	if err != nil && a.status != http.StatusNotFound {
		return err
	}
	if a.stale() {
		c.w.warned.Add(1)
		return nil
	}
	if err == nil {
		o.Digest = d.String()
	}
	c.w.history.Add(o)
	return nil
}

// list reads a tag list, which is as current as a tag: each tag of ours that it
// leaves out was not there at some moment of the request.
func (c *worker) list(ctx context.Context, n *rig.Node, repo string) error {
	call := c.w.history.Now()
	tags, a, err := c.w.client.list(ctx, n, "/v2/"+repo+"/tags/list", "tags")
	end := c.w.history.Now()
	c.w.saw("list", err)
	if a.stale() || err != nil && a.status != http.StatusNotFound {
		return err
	}
	for _, key := range c.w.keysOf(repo) {
		if _, tag := c.w.key(key); !slices.Contains(tags, tag) {
			c.w.history.Add(check.Op{Key: repo + ":" + tag, Kind: check.Read, Where: n.Name, Client: c.id, Call: call, Return: end})
		}
	}
	return nil
}

// pull reads a whole image by digest and hashes it, and reports whether it was
// all there. It must never be certain that something is not there.
func (w *world) pull(ctx context.Context, n *rig.Node, i *image) error {
	_, _, err := w.client.manifest(ctx, n, i.repo, i.digest.String())
	for _, p := range i.parts {
		if err == nil {
			err = w.client.blob(ctx, n, i.repo, p.digest, p.size)
			if errors.Is(err, errWrong) && w.damaged(n, p.digest) {
				err = fmt.Errorf("the copy that was damaged is served: %w", errDamaged)
			}
		}
	}
	w.saw("pull", err)
	switch {
	case errors.Is(err, errMissing) && w.images.stays(i):
		w.fail("lost", "%s: of the image %s@%s, whose push was acknowledged: %v", n.Name, i.repo, i.digest, err)
	case errors.Is(err, errWrong):
		w.fail("wrong bytes", "%s: %v", n.Name, err)
	}
	return err
}

var errDamaged = errors.New("a client that verifies refuses it")

// newClient is a client that nobody has heard of.
func (w *world) newClient() int { return int(w.clients.Add(1)) }
