package main

import (
	"context"
	"slices"
	"time"

	"github.com/flotilla-registry/flotilla/cmd/faults/rig"
)

// scenario is one mesh from its founding to its judgement.
type scenario struct {
	name  string
	about string
	nodes int
	apart bool     // Raft has a disk of its own
	old   bool     // the nodes begin with the older binary
	zones bool     // the last two nodes are in another zone than the others
	needs []string // of rig.Lacks
	run   func(ctx context.Context, w *world, o options) error
}

func scenarios() []scenario {
	return []scenario{
		{name: "one-copy", about: "whoever took a push loses its disk before it could hand the bytes on", nodes: 5, needs: []string{rig.Shaping, rig.Disks}, run: oneCopy},
		{name: "power", about: "the power goes with the answer to a push", nodes: 5, apart: true, needs: []string{rig.Disks}, run: power},
		{name: "old-leader", about: "a leader that others have replaced is asked for a tag", nodes: 5, run: oldLeader},
		{name: "minority", about: "a leader with all non-voters is cut off from the other voters and asked for a tag", nodes: 5, run: minority},
		{name: "lost-answer", about: "a write's answer is lost on the way, and another write comes before it is tried again", nodes: 5, run: lostAnswer},
		{name: "bad-copy", about: "of two copies one is bad, and the other out of reach", nodes: 5, run: badCopy},
		{name: "leaders", about: "one leader after another is killed", nodes: 5, run: leaders},
		{name: "heal", about: "of three nodes one goes, and then its disk for good", nodes: 3, run: heal},
		{name: "upgrade", about: "three nodes are upgraded one by one, across a feature level, with clients at work", nodes: 3, old: true, needs: []string{older}, run: upgrade},
		{name: "away", about: "the line to a site flaps, and is then cut", nodes: 5, zones: true, run: away},
		{name: "collect", about: "days go by, and what was deleted goes", nodes: 5, needs: []string{rig.Clocks}, run: collect},
		{name: "schedule", about: "clients at work, and every fault in a random order", nodes: 5, run: runSchedule},
	}
}

// The schedule ends early, once it has lasted four fifths of its length, when a
// run has so many acknowledged pushes: what is left of the time is needed to pull
// them all.
const enoughPushes = 10_500

// compareEvery is after how many faults the replicas are compared.
const compareEvery = 3

// runSchedule has clients work while the faults of the schedule come and go.
func runSchedule(ctx context.Context, w *world, o options) error {
	var kinds []nemesis
	var besides []string
	for _, n := range nemeses() {
		if len(o.nemeses) > 0 && !slices.Contains(o.nemeses, n.name) {
			continue
		}
		if why, lacks := o.lacking(n.needs); lacks {
			w.report.lack(n.name, why)
			continue
		}
		kinds = append(kinds, n)
	}
	for _, x := range extras() {
		if _, lacks := o.lacking(x.needs); !lacks { // said before
			besides = append(besides, x.name)
		}
	}
	events := schedule(o.seed, kinds, besides, o.length)
	for i, e := range events {
		w.say("fault %d of %d will be %v", i+1, len(events), e)
	}
	working, rest := context.WithCancel(ctx)
	defer rest()
	w.work(working)
	for i, e := range events {
		if w.history.Now() > o.length*4/5 && w.report.pushes()+w.images.acknowledged() >= enoughPushes {
			w.say("the other %d faults are left out: there are %d acknowledged pushes in this run", len(events)-i, w.report.pushes()+w.images.acknowledged())
			break
		}
		if err := wait(ctx, 2*time.Second); err != nil {
			return err
		}
		begun, before := time.Now(), w.images.acknowledged()
		if err := w.makeFault(ctx, kinds[e.kind], e); err != nil {
			return err
		}
		took := time.Since(begun)
		back, err := w.recover(ctx)
		if err != nil {
			return err
		}
		w.report.add(func(r *report) { r.faults[e.nemesis]++; r.twoAtOnce += min(1, len(e.beside)) })
		w.say("fault %d: %s for %.1f s, back after %.1f s; %d pushes acknowledged meanwhile, %d in all",
			i+1, e.nemesis, took.Seconds(), back.Seconds(), w.images.acknowledged()-before, w.images.acknowledged())
		if i%compareEvery == 0 {
			w.sameState(ctx, w.mesh)
		}
	}
	return nil
}
