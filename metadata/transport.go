package metadata

import (
	"io"
	"sync"

	"github.com/hashicorp/raft"
)

// transport is raft's own, but that the replication of entries to a member
// that does not answer is held and repeated once a heartbeat gets through.
// Raft by itself doubles its pause after each call that failed, up to 10 s, and
// does not end it when the member is back. And fewer heartbeats cross the lines
// between zones.
type transport struct {
	*raft.NetworkTransport
	self       string
	heartbeats *heartbeats
	leaders    *watchers
	leads      func(term uint64) bool // whether self leads term, by what watchers were told last
	nudge      func()                 // gives raft something to send
	done       <-chan struct{}        // closed with the streams

	mu      sync.Mutex
	beats   map[raft.ServerID]chan struct{} // closed at the next heartbeat that gets through
	removed map[raft.ServerID]bool          // from raft's configuration: nothing is held for them
}

// AppendEntries implements raft.Transport: heartbeats and replication.
func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if args.PrevLogEntry == 0 && args.LeaderCommitIndex == 0 && len(args.Entries) == 0 { // as raft tells a heartbeat
		if t.heartbeats.spares(id, args.Term) {
			resp.Term, resp.Success = args.Term, true
			return nil
		}
		err := t.NetworkTransport.AppendEntries(id, target, args, resp)
		t.heartbeats.sent(id, args.Term, err)
		if err == nil {
			t.beat(id)
		}
		return err
	}
	for {
		next := t.nextBeat(id)
		err := t.NetworkTransport.AppendEntries(id, target, args, resp)
		if err == nil || !t.hold(id, args.Term, next) {
			return err
		}
	}
}

// InstallSnapshot implements raft.Transport. Its data cannot be sent again, so
// it is for raft to repeat it.
func (t *transport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	next := t.nextBeat(id)
	err := t.NetworkTransport.InstallSnapshot(id, target, args, resp, data)
	if err != nil && t.hold(id, args.Term, next) {
		t.nudge()
	}
	return err
}

// hold reports whether a heartbeat got through; false when there will be no
// more of them, since id was removed, or this node leads term no longer or is
// about to end.
func (t *transport) hold(id raft.ServerID, term uint64, beat <-chan struct{}) bool {
	lost := make(chan struct{}, 1)
	defer t.leaders.add(func(leader string) {
		if leader != t.self {
			wake(lost)
		}
	})()
	if !t.leads(term) || t.isRemoved(id) { // lost while the call was under way, so that nobody will tell
		return false
	}
	select {
	case <-beat:
		return !t.isRemoved(id)
	case <-lost:
		return false
	case <-t.done:
		return false
	}
}

func (t *transport) nextBeat(id raft.ServerID) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.beats[id] == nil {
		t.beats[id] = make(chan struct{})
	}
	return t.beats[id]
}

func (t *transport) beat(id raft.ServerID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.release(id)
}

// release lets calls to id go on that are held; t.mu is held.
func (t *transport) release(id raft.ServerID) {
	if next := t.beats[id]; next != nil {
		close(next)
		delete(t.beats, id)
	}
}

// peer is told when raft begins to replicate to a server, and when it removes
// one: it waits for its calls to that one, makes a last one, and lets go.
func (t *transport) peer(id raft.ServerID, removed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !removed {
		delete(t.removed, id)
		return
	}
	t.removed[id] = true
	t.release(id)
}

func (t *transport) isRemoved(id raft.ServerID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.removed[id]
}
