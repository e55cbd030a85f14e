package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/flotilla-registry/flotilla/cmd/faults/rig"
)

// nemesis is one kind of fault. It is made, held for a while, and healed by
// make itself or by world.recover.
type nemesis struct {
	name   string
	needs  []string // of rig.Lacks
	beside company
	make   func(ctx context.Context, w *world, e event) error
}

// event is one fault of a schedule. The seed alone makes it; which node is the
// leader then is for the mesh to say.
type event struct {
	kind    int // of those that were dealt
	nemesis string
	beside  string // the second fault, while the first is on; "" for none
	hold    time.Duration
	draw    uint64
}

func (e event) String() string {
	name := e.nemesis
	if e.beside != "" {
		name += " and " + e.beside
	}
	return fmt.Sprintf("%s %.1fs %d", name, e.hold.Seconds(), e.draw%1000)
}

// one picks a node by the event's draw.
func (e event) one(nodes []*rig.Node) *rig.Node { return nodes[e.draw%uint64(len(nodes))] }

// nemeses are all faults that a schedule is dealt from.
func nemeses() []nemesis {
	disks := []string{rig.Disks}
	clocks := []string{rig.Clocks} // to have it scrubbed at the end
	return []nemesis{
		{"kill-leader", nil, aReplica, killLeader},
		{"kill-follower", nil, alone, killFollower},
		{"kill-owner", nil, alone, killOwner},
		{"pause-leader", nil, anyOther, pauseLeader},
		{"pause-any", nil, anyOther, pauseAny},
		{"cut-halves", nil, anyOther, cutHalves},
		{"cut-leader", nil, anyOther, cutLeader},
		{"cut-leader-and-replicas", nil, anyOther, cutLeaderAndReplicas},
		{"cut-and-pause-leader", nil, anyOther, cutAndPauseLeader},
		{"cut-one-way", nil, anyOther, cutOneWay},
		{"power-one", disks, anyOther, powerOne},
		{"power-all", disks, alone, powerAll},
		{"disk-reserve", disks, anyOther, diskReserve},
		{"disk-full", disks, anyOther, diskFull},
		{"sync-fails", []string{rig.Tracing}, aReplica, syncFails},
		{"sync-hangs", []string{rig.Tracing}, aReplica, syncHangs},
		{"slow-line", []string{rig.Shaping}, anyOther, slowLine},
		{"rot", clocks, alone, rotByte},
		{"liar", clocks, alone, rotHalf},
		{"rolling-restart", nil, alone, rollingRestart},
		{"clock", clocks, anyOther, clockStep},
		{"join-and-leave", nil, alone, joinAndLeave},
	}
}

// schedule deals faults for so long: every kind once in random order, and then
// again. To every other one that bears company it adds a second.
func schedule(seed uint64, kinds []nemesis, besides []string, length time.Duration) (events []event) {
	r := rand.New(rand.NewPCG(seed, 1<<32))
	const between = 6 * time.Second // calm, and coming back
	for left := length; left > 0 && len(kinds) > 0; {
		for _, i := range r.Perm(len(kinds)) {
			e := event{kind: i, nemesis: kinds[i].name, hold: time.Duration(3000+r.IntN(5000)) * time.Millisecond, draw: r.Uint64()}
			if two := r.IntN(2) == 0; two && kinds[i].beside != alone && len(besides) > 0 {
				e.beside = besides[r.IntN(len(besides))]
			}
			if left > 0 {
				events = append(events, e)
			}
			left -= e.hold + between
		}
	}
	return events
}

func killLeader(ctx context.Context, w *world, e event) error {
	leader, _, _, err := w.roles(ctx)
	if err != nil {
		return err
	}
	killed := time.Now()
	leader.Kill()
	w.writesGoOn(ctx, leader, killed)
	return wait(ctx, e.hold)
}

// writesGoOn measures how long it takes until every node left takes a write
// again.
func (w *world) writesGoOn(ctx context.Context, gone *rig.Node, since time.Time) {
	i := w.images.pick(0, true)
	if i == nil {
		return
	}
	took := map[*rig.Node]time.Duration{}
	for _, n := range w.except(gone, w.hurt) {
		took[n] = 0
	}
	each(w.except(gone, w.hurt), []*image{i}, func(n *rig.Node, i *image) {
		for {
			ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
			err := w.client.putManifest(ctx, n, i.repo, "probe-"+n.Name, i.manifest)
			cancel()
			if err == nil || ctx.Err() != nil {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		took[n] = time.Since(since).Round(10 * time.Millisecond)
	})
	var longest time.Duration
	for _, d := range took {
		longest = max(longest, d)
	}
	w.say("  the leader %s was killed; every other node has taken a write after %.1f s", gone.Name, longest.Seconds())
	if ctx.Err() == nil {
		w.report.add(func(r *report) { r.gaps = append(r.gaps, longest) })
	}
}

func killFollower(ctx context.Context, w *world, e event) error {
	_, followers, _, err := w.roles(ctx)
	if err != nil {
		return err
	}
	return w.goneFor(ctx, e.one(followers), e.hold)
}

func killOwner(ctx context.Context, w *world, e event) error {
	i := w.images.pick(e.draw, false)
	if i == nil {
		return errors.New("nothing was pushed yet")
	}
	d := i.parts[0].digest
	for _, n := range w.mesh {
		if n.Holds(d.String()) {
			return w.goneFor(ctx, n, e.hold)
		}
	}
	return fmt.Errorf("nobody holds %s", d)
}

// goneFor kills a node and pulls meanwhile from the others some of what was
// pushed before: with one node gone, each pull must be served.
func (w *world) goneFor(ctx context.Context, gone *rig.Node, hold time.Duration) error {
	kept, _ := w.images.all()
	gone.Kill()
	begun := time.Now()
	w.servedWithout(ctx, gone, kept[max(0, len(kept)-50):])
	return wait(ctx, hold-time.Since(begun))
}

// servedWithout pulls images from every node but one, which is gone.
func (w *world) servedWithout(ctx context.Context, gone *rig.Node, images []*image) {
	each(w.except(gone), images, func(n *rig.Node, i *image) {
		limited, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		err := w.pull(limited, n, i)
		if ctx.Err() != nil || !w.images.stays(i) {
			return
		}
		w.report.add(func(r *report) { r.without++ })
		if err != nil {
			w.fail("one gone", "%s, with %s gone: %s@%s: %v", n.Name, gone.Name, i.repo, i.digest, err)
		}
	})
}

func pauseLeader(ctx context.Context, w *world, e event) error {
	leader, _, _, err := w.roles(ctx)
	if err != nil {
		return err
	}
	leader.Pause()
	defer leader.Resume()
	return wait(ctx, e.hold)
}

func pauseAny(ctx context.Context, w *world, e event) error {
	n := e.one(w.well())
	n.Pause()
	defer n.Resume()
	return wait(ctx, min(2*e.hold, 20*time.Second))
}

func cutHalves(ctx context.Context, w *world, e event) error {
	order := slices.Clone(w.mesh)
	rand.New(rand.NewPCG(e.draw, 0)).Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	half := len(order) / 2
	if err := w.rig.Cut(ctx, order[:half], order[half:]); err != nil {
		return err
	}
	return wait(ctx, e.hold)
}

func cutLeader(ctx context.Context, w *world, e event) error {
	leader, _, _, err := w.roles(ctx)
	if err != nil {
		return err
	}
	if err := w.rig.Cut(ctx, []*rig.Node{leader}, w.mesh); err != nil {
		return err
	}
	return wait(ctx, e.hold)
}

func cutLeaderAndReplicas(ctx context.Context, w *world, e event) error {
	leader, followers, _, err := w.roles(ctx)
	if err != nil {
		return err
	}
	if err := w.rig.Cut(ctx, w.except(followers...), followers); err != nil {
		return err
	}
	w.unproven(ctx, leader)
	return wait(ctx, e.hold)
}

// unproven asks the leader that was just cut off from all other voters for a
// tag: no answer may claim to be current.
func (w *world) unproven(ctx context.Context, leader *rig.Node) {
	ctx, cancel := context.WithTimeout(ctx, 700*time.Millisecond) // its lease
	defer cancel()
	repo, tag := w.key(0)
	for ctx.Err() == nil {
		_, a, err := w.client.manifest(ctx, leader, repo, tag)
		if err == nil && !a.stale() {
			w.fail("linearizable", "%s leads no majority of voters, yet answers for %s:%s as if current", leader.Name, repo, tag)
			return
		}
	}
}

func cutAndPauseLeader(ctx context.Context, w *world, e event) error {
	leader, followers, _, err := w.roles(ctx)
	if err != nil {
		return err
	}
	leader.Pause()
	err = w.rig.Cut(ctx, w.except(followers...), followers)
	if err == nil {
		err = wait(ctx, max(e.hold, 4*time.Second)) // the others elect
	}
	leader.Resume()
	if err != nil {
		return err
	}
	return wait(ctx, 3*time.Second)
}

func cutOneWay(ctx context.Context, w *world, e event) error {
	from := e.one(w.well())
	rest := w.except(from, w.hurt)
	to := rest[e.draw/8%uint64(len(rest))]
	if err := w.rig.CutOneWay(ctx, from, to); err != nil {
		return err
	}
	return wait(ctx, e.hold)
}

func powerOne(ctx context.Context, w *world, e event) error {
	if err := rig.CutPower(ctx, e.one(w.well())); err != nil {
		return err
	}
	return wait(ctx, e.hold)
}

func powerAll(ctx context.Context, w *world, _ event) error { return rig.CutPower(ctx, w.mesh...) }

func diskReserve(ctx context.Context, w *world, e event) error { return w.full(ctx, e, namesOnly) }
func diskFull(ctx context.Context, w *world, e event) error    { return w.full(ctx, e, 0) }

// full leaves so little of a node's disk, and what comes of it must end by
// itself once there is room again.
func (w *world) full(ctx context.Context, e event, leave int64) error {
	n := e.one(w.well())
	if leave == 0 {
		n.MayEnd() // its log has no room either; once there is, it starts again
	}
	if err := n.Fill(leave); err != nil {
		return err
	}
	return errors.Join(wait(ctx, e.hold), n.Empty())
}

// syncFails: after an fsync that failed, nothing on that disk is certain. The
// process must end.
func syncFails(ctx context.Context, w *world, e event) error {
	return w.ends(ctx, e, "its fsync fails", 30*time.Second, func(n *rig.Node) (func(), error) { return n.FailSyncs(ctx) })
}

// syncHangs: raft does not notice that its leader's disk hangs. The process
// must end, after ten ticks of a second and a grace of five for all else; it may
// have to wait for the disk with that.
func syncHangs(ctx context.Context, w *world, e event) error {
	return w.ends(ctx, e, "its fsync hangs", 20*time.Second, func(n *rig.Node) (func(), error) { return n.HangSyncs(ctx, time.Minute) })
}

// ends hurts a voter for so long and expects that its process ends.
func (w *world) ends(ctx context.Context, e event, why string, limit time.Duration, hurt func(n *rig.Node) (func(), error)) error {
	leader, followers, _, err := w.roles(ctx)
	if err != nil {
		return err
	}
	n := e.one(append(followers, leader))
	heal, err := hurt(n)
	if err != nil {
		return err
	}
	defer heal()
	defer time.AfterFunc(limit, heal).Stop()
	limited, cancel := context.WithTimeout(ctx, limit+3*time.Second)
	defer cancel()
	begun := time.Now()
	if err := n.Ended(limited); err != nil && ctx.Err() == nil {
		w.fail("stays down", "%s must end when %s: %v", n.Name, why, err)
		n.Kill()
	}
	w.say("  %s ended after %.1f s, since %s", n.Name, time.Since(begun).Seconds(), why)
	return ctx.Err()
}

func slowLine(ctx context.Context, w *world, e event) error {
	n := e.one(w.well())
	if err := n.Slow(ctx, 2000); err != nil {
		return err
	}
	return errors.Join(wait(ctx, e.hold), n.Fast(ctx))
}

func rotByte(ctx context.Context, w *world, e event) error { return w.rots(ctx, e, false) }
func rotHalf(ctx context.Context, w *world, e event) error { return w.rots(ctx, e, true) }

// rots damages one copy of a blob and has it pulled from every node. No client
// that verifies may accept it, and no other node may store it.
func (w *world) rots(ctx context.Context, e event, cut bool) error {
	i := w.images.pick(e.draw, true)
	if i == nil {
		return errors.New("nothing was pushed yet")
	}
	d := i.parts[0].digest
	for _, n := range w.mesh {
		if !n.Holds(d.String()) {
			continue
		}
		if _, err := w.damage(n, d, cut); err != nil { // to mend it is for the mesh
			return err
		}
		w.served(ctx, w.mesh, i, "with one bad copy")
		return wait(ctx, e.hold)
	}
	return fmt.Errorf("nobody holds %s", d)
}

// clockStep steps the leader's clock by five minutes, ahead or back.
func clockStep(ctx context.Context, w *world, e event) error {
	leader, _, _, err := w.roles(ctx)
	if err != nil {
		return err
	}
	step := 5 * time.Minute
	if e.draw%2 == 0 {
		step = -step
	}
	if err := leader.SetClock(step); err != nil {
		return err
	}
	return errors.Join(wait(ctx, e.hold), leader.SetClock(0))
}

// joinAndLeave has one more node enter with an empty disk, serve, and go again:
// it hands over what it holds, or it dies and is removed.
func joinAndLeave(ctx context.Context, w *world, e event) error {
	n := w.rig.Nodes()[len(w.mesh)]
	if err := n.Start(); err != nil {
		return err
	}
	if err := await(ctx, time.Minute, n.Name+" has joined", func() bool { return w.client.writable(ctx, n) }); err != nil {
		w.fail("progress", "%v", err)
	}
	if i := w.images.pick(e.draw, true); i != nil {
		if err := w.pull(ctx, n, i); err != nil && ctx.Err() == nil {
			w.fail("served", "%s, which has just joined: %v", n.Name, err)
		}
	}
	if err := wait(ctx, e.hold); err != nil {
		return err
	}
	if err := w.leave(ctx, n, e.draw%2 == 0); err != nil {
		return err
	}
	return n.Wipe(ctx)
}

// leave ends a node's membership.
func (w *world) leave(ctx context.Context, n *rig.Node, handOver bool) error {
	if !handOver {
		n.Kill()
		return w.admin(ctx, w.mesh[0], "remove", "--yes", n.Name)
	}
	n.MayEnd() // it is to stop once it has left
	limited, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	begun := time.Now()
	err := w.admin(limited, w.mesh[0], "drain", n.Name)
	if err == nil {
		err = n.Ended(limited)
	}
	if err != nil && ctx.Err() == nil {
		w.fail("healing", "%s was to leave: %v", n.Name, err)
		n.Kill()
		return w.admin(ctx, w.mesh[0], "remove", "--yes", n.Name)
	}
	w.say("  %s handed over and left within %.1f s", n.Name, time.Since(begun).Seconds())
	return ctx.Err()
}
