package metadata

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// How a member leaves. Its burial is an entry; once that is applied, nobody
// talks to it. So it gives up what the mesh needs it for before: if it leads it
// hands over, if it votes another takes its place where there is one, by the
// rules by which voters change anyway. Then comes the entry, and then it leaves
// raft's configuration. One that is gone for good goes the same way.

// Remove takes a member out of the mesh for good: its id never returns, while
// its name is free for another. ErrDenied where there is no such member, or no
// other.
func (c *Catalog) Remove(ctx context.Context, id string) error {
	if !isMember(c.state.members(), id) {
		if err := c.certain(ctx); err != nil {
			return fmt.Errorf("remove member: %w", err)
		}
		if !isMember(c.state.members(), id) {
			return fmt.Errorf("remove member: %w", decision{verdict: notMember}.result().err)
		}
	}
	op := &wire.Member{Id: id, Removed: true}
	_, err := c.write(ctx, &wire.Command{Op: &wire.Command_Member{Member: op}})
	return wrapWrite("remove member", err)
}

func isMember(members []Member, id string) bool {
	return slices.ContainsFunc(members, func(m Member) bool { return m.ID == id })
}

// leaveTime is how long a member that was asked to leave goes without a vote
// if nobody asks again.
const leaveTime = 10 * time.Second

// leaving are members that are to have no vote for now.
type leaving struct {
	mu    sync.Mutex
	until map[string]time.Time
}

func (l *leaving) add(id string, until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.until == nil {
		l.until = make(map[string]time.Time)
	}
	l.until[id] = until
}

// end lets all have a vote again; who is to be removed is added again soon.
func (l *leaving) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until = nil
}

// without returns the members that are not leaving.
func (l *leaving) without(members []Member, now time.Time) []Member {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, until := range l.until {
		if now.After(until) {
			delete(l.until, id)
		}
	}
	return slices.DeleteFunc(slices.Clone(members), func(m Member) bool {
		_, leaves := l.until[m.ID]
		return leaves
	})
}

// mayBury returns nil if the mesh, which this node leads, can do without the
// member. Else it sees to it that it can, and whoever proposes asks again.
func (c *Catalog) mayBury(id string) error {
	if members := c.state.members(); len(members) == 1 && isMember(members, id) {
		return oci.ErrDenied.Because("this is the only member")
	}
	if voters, _ := c.servers(); !slices.Contains(voters, id) {
		return nil
	}
	c.leaving.add(id, time.Now().Add(leaveTime))
	wake(c.voting)
	return oci.ErrUnavailable.Because("the member has a vote still, and the other voters cannot do without it yet")
}

// parted returns a replica that has not been a member for a while, or "". The
// while is for its own good: it then hears of its burial, so that it knows why
// nobody talks to it.
func (t *tending) parted(members []Member, replicas []string, now time.Time, while time.Duration) string {
	for _, id := range replicas {
		since, known := t.parting[id]
		switch {
		case isMember(members, id):
			delete(t.parting, id)
		case !known:
			t.parting[id] = now
		case now.Sub(since) >= while:
			return id
		}
	}
	return ""
}

// dismiss takes a replica that is no member out of raft's configuration.
func (c *Catalog) dismiss(ctx context.Context, id string) error {
	err := c.reconfigure(ctx, "remove replica", id, func() raft.Future {
		return c.raft.RemoveServer(raft.ServerID(id), 0, enqueueTime)
	})
	if err == nil {
		c.streams.cut(func(to string) bool { return to == id })
	}
	return err
}

// endStreamsOfGone ends raft streams with those who were members at the last
// call and are none now. A leader keeps its own to them until it has dismissed
// them, so that they hear of it. Not for concurrent use.
func (c *Catalog) endStreamsOfGone(members []Member) {
	var ids []string
	for _, m := range members {
		ids = append(ids, m.ID)
	}
	gone := without(c.told, ids)
	c.told = ids
	if len(gone) == 0 {
		return
	}
	leads := c.raft.State() == raft.Leader
	c.streams.cut(func(to string) bool { return slices.Contains(gone, to) && !leads })
}
