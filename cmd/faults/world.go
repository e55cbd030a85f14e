package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/cmd/faults/check"
	"github.com/flotilla-registry/flotilla/cmd/faults/rig"
)

// world is one mesh, the clients that use it, and all that is known of what
// they did to it.
type world struct {
	name   string // of the scenario, and what its repositories' names begin with
	seed   uint64
	rig    *rig.Rig
	mesh   []*rig.Node // the nodes that belong to it
	client *client
	report *report

	history *check.History
	images  ledger
	working sync.WaitGroup // clients
	clients atomic.Int64
	steps   atomic.Int64
	warned  atomic.Int64 // answers that said that they may be old
	calm    sync.RWMutex // read-locked for each step of a client

	ahead time.Duration // of the nodes' wall clocks
	hurt  *rig.Node     // by a second fault, which the first one leaves alone

	mu    sync.Mutex
	rot   map[damage]bool // blobs that were damaged on purpose
	wiped bool            // a disk was lost: until the mesh repairs itself, copies are fewer
}

type damage struct {
	node   *rig.Node
	digest digest.Digest
}

// newWorld starts a mesh with that many nodes, of which three vote. There is
// room for one more node.
func newWorld(ctx context.Context, o options, s scenario, report *report) (_ *world, err error) {
	dir := filepath.Join(o.dir, s.name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	w := &world{
		name: s.name, seed: o.seed, client: newClient(), report: report,
		history: check.NewHistory(), rot: map[damage]bool{},
	}
	flags := append([]string{"--replicas", "2"}, o.flags...)
	binary := o.binary
	if s.old {
		binary = o.old
	}
	conf := rig.Config{Binary: binary, Dir: dir, Nodes: s.nodes + 1, DiskSize: 4 << 30, Flags: flags, Apart: s.apart}
	if s.zones {
		conf.Zone = func(number int) string { return zones[number/(s.nodes-1)] }
	}
	w.rig, err = rig.New(ctx, conf)
	if err != nil {
		return nil, err
	}
	w.mesh = w.rig.Nodes()[:s.nodes]
	if err := w.startMesh(ctx); err != nil {
		return nil, errors.Join(err, w.rig.Close())
	}
	return w, nil
}

func (w *world) startMesh(ctx context.Context) error {
	for i, n := range w.mesh {
		if err := n.Start(); err != nil {
			return err
		}
		if i > 0 {
			continue
		}
		if err := await(ctx, 30*time.Second, "a mesh of one takes writes", func() bool { return w.client.writable(ctx, n) }); err != nil {
			return err
		}
	}
	return await(ctx, time.Minute, fmt.Sprintf("%d nodes make a mesh with three voters", len(w.mesh)), func() bool {
		for _, n := range w.mesh {
			if len(w.voters(ctx, n)) != 3 || !w.client.writable(ctx, n) {
				return false
			}
		}
		return true
	})
}

// await repeats a question until the answer is yes.
func await(ctx context.Context, limit time.Duration, what string, yes func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for !yes() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %v: %s", limit, what)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// wait returns after d, or earlier with ctx's error.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// voters are the nodes that vote, the leader first, as node n sees it.
func (w *world) voters(ctx context.Context, n *rig.Node) (voters []*rig.Node) {
	s, err := w.client.status(ctx, n)
	if err != nil || s.Leader == "" {
		return nil
	}
	for _, m := range s.Members {
		i := slices.IndexFunc(w.rig.Nodes(), func(n *rig.Node) bool { return n.Name == m.Name })
		switch {
		case i < 0:
		case m.Role == "leader":
			voters = slices.Insert(voters, 0, w.rig.Nodes()[i])
		case m.Role == "voter":
			voters = append(voters, w.rig.Nodes()[i])
		}
	}
	return voters
}

// roles are the leader, the other voters, and the nodes that do not vote, as the
// node with the latest term sees it. Whoever is hurt besides has the last word
// in nothing, and is none of the others.
func (w *world) roles(ctx context.Context) (leader *rig.Node, followers, others []*rig.Node, err error) {
	err = await(ctx, 20*time.Second, "somebody knows the leader", func() bool {
		var latest uint64
		leader, followers, others = nil, nil, nil
		for _, n := range w.well() {
			s, err := w.client.status(ctx, n)
			if err != nil || s.Leader == "" || s.Term <= latest {
				continue
			}
			if voters := w.voters(ctx, n); len(voters) == 3 && voters[0].Runs() {
				latest, leader, followers = s.Term, voters[0], voters[1:]
			}
		}
		return leader != nil
	})
	for _, n := range w.well() {
		if n != leader && !slices.Contains(followers, n) {
			others = append(others, n)
		}
	}
	return leader, followers, others, err
}

// recover brings back what runs no more, and waits until the whole mesh takes
// writes again. Without that there is no point in going on.
func (w *world) recover(ctx context.Context) (time.Duration, error) {
	begun := time.Now()
	if err := w.rig.Mend(ctx); err != nil {
		return 0, err
	}
	for _, n := range w.mesh {
		n.Resume()
	}
	var broken error
	err := await(ctx, 45*time.Second, "every node takes writes again after the fault", func() bool {
		all := true
		for _, n := range w.mesh {
			w.noteEnds(n)
			if !n.Runs() { // it may end of the fault only after that is over
				broken = errors.Join(broken, n.Start())
			}
			all = all && w.client.writable(ctx, n)
		}
		return all || broken != nil
	})
	if broken != nil {
		return 0, broken
	}
	if err != nil && ctx.Err() == nil {
		w.fail("progress", "%v", err)
	}
	return time.Since(begun), err
}

func (w *world) noteEnds(n *rig.Node) {
	for _, end := range n.Ends() {
		w.fail("stays up", "%s", end)
	}
}

// except returns the mesh without some nodes.
func (w *world) except(some ...*rig.Node) (rest []*rig.Node) {
	for _, n := range w.mesh {
		if !slices.Contains(some, n) {
			rest = append(rest, n)
		}
	}
	return rest
}

// damage flips a byte of, or cuts, a stored blob.
func (w *world) damage(n *rig.Node, d digest.Digest, cut bool) (mend func() error, err error) {
	w.mu.Lock()
	w.rot[damage{n, d}] = true
	w.mu.Unlock()
	return n.Rot(d.String(), cut)
}

// damaged reports whether that copy was damaged on purpose.
func (w *world) damaged(n *rig.Node, d digest.Digest) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rot[damage{n, d}]
}

// saw counts how requests ended.
func (w *world) saw(what string, err error) {
	how := "in doubt"
	switch {
	case err == nil:
		how = "ok"
	case errors.Is(err, errMissing):
		how = "not there"
	case errors.Is(err, errRefused):
		how = "refused"
	}
	w.report.count(what, how)
}

func (w *world) fail(invariant, format string, args ...any) {
	w.report.fail(invariant, w.name+": "+fmt.Sprintf(format, args...))
}

func (w *world) say(format string, args ...any) {
	w.report.say("%7.1f  "+format, append([]any{w.history.Now().Seconds()}, args...)...)
}

// close ends the mesh. The logs stay until the work folder goes.
func (w *world) close() error {
	for _, n := range w.rig.Nodes() {
		w.noteEnds(n)
	}
	w.readLogs()
	return w.rig.Close()
}

// readLogs looks for what no node should ever say.
func (w *world) readLogs() {
	for _, n := range w.rig.Nodes() {
		b, err := os.ReadFile(n.Log())
		if err != nil {
			continue // it never ran
		}
		for line := range strings.Lines(string(b)) {
			for _, bad := range []string{"panic:", "panic serving", "fatal error:", "DATA RACE"} {
				if strings.Contains(line, bad) {
					w.fail("stays up", "%s says: %.300s", n.Name, line)
				}
			}
		}
	}
}
