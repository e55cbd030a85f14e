package metadata

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// Who has a vote. Members come and go by entries of the log, and the leader
// makes raft's configuration follow them, one change at a time: every member is
// at least a replica, the right number of them vote, and who is a member no
// longer leaves it, without its vote first (leave.go).

// wanted is the number of voters for a mesh of n members. Even numbers tolerate
// no more failures than the odd number below.
func wanted(n int) int {
	switch {
	case n < 3:
		return 1
	case n < 7:
		return 3
	default:
		return 5
	}
}

// pickVoters chooses who should vote, from the members, who of them is alive,
// and who votes now, the leader first. The leader stays; others are spread over
// as many zones as there are, and among equals those stay who vote now. One
// that is gone keeps its vote where no live member can take its place. The
// number is odd.
func pickVoters(members []Member, alive map[string]bool, voters []string) []string {
	var picked []string
	zones := make(map[string]int)
	take := func(usable func(Member) bool) bool {
		best := -1
		for i, m := range members {
			if slices.Contains(picked, m.ID) || !usable(m) {
				continue
			}
			if best < 0 || better(m, members[best], zones, voters) {
				best = i
			}
		}
		if best >= 0 {
			picked = append(picked, members[best].ID)
			zones[members[best].Zone]++
		}
		return best >= 0
	}
	votes := func(m Member) bool { return slices.Contains(voters, m.ID) }
	if len(voters) > 0 {
		take(func(m Member) bool { return m.ID == voters[0] })
	}
	for len(picked) < wanted(len(members)) {
		if !take(func(m Member) bool { return alive[m.ID] }) && !take(votes) {
			break
		}
	}
	if len(picked)%2 == 0 && len(picked) > 0 {
		picked = picked[:len(picked)-1]
	}
	return picked
}

// better reports whether a is to be picked before b.
func better(a, b Member, zones map[string]int, voters []string) bool {
	votes := func(m Member) int { // smaller is better
		if slices.Contains(voters, m.ID) {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(zones[a.Zone], zones[b.Zone]), cmp.Compare(votes(a), votes(b)), cmp.Compare(a.ID, b.ID)) < 0
}

// step is one change of raft's configuration.
type step struct {
	id   string
	vote bool // give it a vote, or take it
}

// nextStep leads from voters, the leader first, to picked, which holds the
// leader too. ready says who has caught up and may get a vote.
//
// A voter that is gone leaves before its successor comes: until it does it only
// raises the quorum, and with one more voter, itself able to fail, it would
// raise it further. A live one leaves after. A first vote is given only if the
// second of the pair can follow at once.
func nextStep(voters, picked []string, alive map[string]bool, ready func(id string) bool) (step, bool) {
	leave := without(voters, picked)
	come := without(picked, voters)
	fit := slices.DeleteFunc(slices.Clone(come), func(id string) bool { return !ready(id) })
	for _, id := range leave {
		if !alive[id] && (len(come) == 0 || len(fit) > 0) {
			return step{id, false}, true
		}
	}
	if len(fit) > 1 || len(fit) == 1 && (len(voters)%2 == 0 || len(leave) > 0) {
		return step{fit[0], true}, true
	}
	if len(come) == 0 && len(leave) > 0 {
		return step{leave[len(leave)-1], false}, true
	}
	return step{}, false
}

func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(id string) bool { return slices.Contains(b, id) })
}

// tending is what the leader remembers between two looks at the voters.
type tending struct {
	term     uint64
	seen     map[string]sighting
	even     time.Time // since when the number of voters is even; zero: it is not
	promoted string    // the last one given a vote
	parting  map[string]time.Time
}

// sighting is a member's liveness, changed only after it lasted.
type sighting struct {
	alive bool
	says  bool      // what gossip said at the last look,
	since time.Time // and has said since then, for all this leader knows
}

// look takes in what gossip says and returns who is lastingly alive. Who votes
// is taken to be there until it was lastingly gone.
func (t *tending) look(members []Member, alive, voters []string, now time.Time, lasting time.Duration) map[string]bool {
	steady := make(map[string]bool)
	for _, m := range members {
		s, known := t.seen[m.ID]
		if !known {
			s.alive = slices.Contains(voters, m.ID)
		}
		if says := slices.Contains(alive, m.ID); !known || says != s.says {
			s.says, s.since = says, now
		}
		if s.says != s.alive && now.Sub(s.since) >= lasting {
			s.alive = s.says
		}
		t.seen[m.ID] = s
		steady[m.ID] = s.alive
	}
	return steady
}

// lasted reports whether gossip has called the member alive, or gone, for as
// long as this leader looks and for d at least.
func (t *tending) lasted(id string, alive bool, now time.Time, d time.Duration) bool {
	s, known := t.seen[id]
	return known && s.says == alive && now.Sub(s.since) >= d
}

// odd returns the step that ends an even number of voters which has lasted too
// long: the first of a pair goes again when the second did not follow.
func (t *tending) odd(voters []string, now time.Time, patience time.Duration) (step, bool) {
	if len(voters)%2 == 1 {
		t.even = time.Time{}
		return step{}, false
	}
	if t.even.IsZero() {
		t.even = now
	}
	if now.Sub(t.even) < patience {
		return step{}, false
	}
	if slices.Contains(voters[1:], t.promoted) {
		return step{t.promoted, false}, true
	}
	return step{voters[len(voters)-1], false}, true
}

// tendVoters is the leader's loop over raft's configuration.
func (c *Catalog) tendVoters(ctx context.Context) {
	tick := time.NewTicker(c.cfg.Timing.Tick)
	defer tick.Stop()
	var t tending
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-c.voting:
		}
		if c.raft.State() != raft.Leader {
			t = tending{}
			continue
		}
		if term := c.raft.CurrentTerm(); t.term != term {
			t = tending{term: term, seen: make(map[string]sighting), parting: make(map[string]time.Time)}
		}
		changed, err := c.tend(ctx, &t)
		switch {
		case err != nil && ctx.Err() == nil: // the next tick tries again
			c.log.Warn("the voters are not changed yet", "error", err)
		case changed:
			wake(c.pulses) // so that the others hear that it is committed
			wake(c.voting) // there may be more to do
		}
	}
}

// tend makes at most one change.
func (c *Catalog) tend(ctx context.Context, t *tending) (changed bool, err error) {
	c.changing.Lock()
	defer c.changing.Unlock()
	if !c.knowsAll() {
		return false, nil
	}
	members, alive := c.state.members(), c.cfg.Alive()
	voters, others := c.servers()
	for _, m := range members {
		if slices.Contains(alive, m.ID) && !slices.Contains(voters, m.ID) && !slices.Contains(others, m.ID) {
			return true, c.reconfigure(ctx, "add replica", m.ID, func() raft.Future {
				return c.raft.AddNonvoter(raft.ServerID(m.ID), raft.ServerAddress(m.ID), 0, enqueueTime)
			})
		}
	}
	slices.SortFunc(voters, func(a, b string) int { // the leader first, which is this node
		return cmp.Or(cmp.Compare(btoi(b == c.cfg.ID), btoi(a == c.cfg.ID)), cmp.Compare(a, b))
	})
	if len(voters) == 0 || voters[0] != c.cfg.ID || len(members) == 0 { // a founder leads before the entry that makes it a member
		return false, nil
	}
	now := time.Now()
	if id := t.parted(members, others, now, c.cfg.Timing.Stable); id != "" {
		return true, c.dismiss(ctx, id)
	}
	steady := t.look(members, alive, voters, now, c.cfg.Timing.Stable)
	steady[c.cfg.ID] = true
	changed, err = c.tendVotes(ctx, t, members, voters, others, steady)
	if changed || err != nil {
		return changed, err
	}
	return c.tendStanding(ctx, t, members, now)
}

// knowsAll reports whether this node leads and has applied all that is
// committed: what an earlier leader was told about members it must not undo.
func (c *Catalog) knowsAll() bool {
	_, index, err := c.committed()
	return err == nil && c.state.applied() >= index
}

// tendVotes gives or takes a vote, or hands over what a leader without a future
// should not keep.
func (c *Catalog) tendVotes(ctx context.Context, t *tending, members []Member, voters, others []string, steady map[string]bool) (changed bool, err error) {
	now := time.Now()
	staying := c.leaving.without(members, now)
	picked := pickVoters(staying, steady, voters)
	if len(picked) == 0 { // everybody is to leave: nobody can
		return false, nil
	}
	if !slices.Contains(picked, c.cfg.ID) {
		for _, id := range picked {
			if slices.Contains(voters, id) && steady[id] {
				return true, c.handOver(ctx, id)
			}
		}
	}
	next, ok := t.odd(voters, now, c.cfg.Timing.Pair)
	if !ok {
		next, ok = nextStep(voters, picked, steady, func(id string) bool {
			return slices.Contains(others, id) && c.caughtUp(ctx, id)
		})
	}
	switch {
	case !ok || !next.vote && next.id == c.cfg.ID: // who leads has handed over first
		return false, nil
	case next.vote:
		t.promoted = next.id
		return true, c.reconfigure(ctx, "give a vote", next.id, func() raft.Future {
			return c.raft.AddVoter(raft.ServerID(next.id), raft.ServerAddress(next.id), 0, enqueueTime)
		})
	}
	if err := c.suffice(ctx, without(voters, []string{next.id})); err != nil {
		return false, fmt.Errorf("take the vote (member %s): %w", next.id, err)
	}
	return true, c.reconfigure(ctx, "take the vote", next.id, func() raft.Future {
		return c.raft.DemoteVoter(raft.ServerID(next.id), 0, enqueueTime)
	})
}

// suffice returns nil if a majority of voters answers now. A change of raft's
// configuration counts at once: without them it could not even be committed,
// nor undone.
func (c *Catalog) suffice(ctx context.Context, voters []string) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timing.Proof)
	defer cancel()
	return c.askVoters(ctx, c.raft.CurrentTerm(), voters)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (c *Catalog) reconfigure(ctx context.Context, what, id string, ask func() raft.Future) error {
	c.log.Info(what, "member", id)
	if err := c.await(ctx, ask); err != nil {
		return fmt.Errorf("%s (member %s): %w", what, id, err)
	}
	return nil
}

// caughtUp reports whether the member id answers and holds all that is
// committed now: with a vote, the mesh will at once depend on it.
func (c *Catalog) caughtUp(ctx context.Context, id string) bool {
	_, index, err := c.committed()
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timing.Tick)
	defer cancel()
	return c.hasApplied(ctx, id, index)
}
