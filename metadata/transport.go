package metadata

import (
	"io"
	"sync"

	"github.com/hashicorp/raft"
)

// transport is raft's own, but that the replication of entries to a member
// that does not answer is held and repeated once a heartbeat gets through.
// Raft by itself doubles its pause after each call that failed, up to 10 s, and
// does not end it when the member is back.
type transport struct {
	*raft.NetworkTransport
	self    string
	leaders *watchers
	leads   func(term uint64) bool // whether self leads term, by what watchers were told last
	nudge   func()                 // gives raft something to send
	done    <-chan struct{}        // closed with the streams

	mu    sync.Mutex
	beats map[raft.ServerID]chan struct{} // closed at the next heartbeat that gets through
}

// AppendEntries implements raft.Transport: heartbeats and replication.
func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if args.PrevLogEntry == 0 && args.LeaderCommitIndex == 0 && len(args.Entries) == 0 { // as raft tells a heartbeat
		err := t.NetworkTransport.AppendEntries(id, target, args, resp)
		if err == nil {
			t.beat(id)
		}
		return err
	}
	for {
		next := t.nextBeat(id)
		err := t.NetworkTransport.AppendEntries(id, target, args, resp)
		if err == nil || !t.hold(args.Term, next) {
			return err
		}
	}
}

// InstallSnapshot implements raft.Transport. Its data cannot be sent again, so
// it is for raft to repeat it.
func (t *transport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	next := t.nextBeat(id)
	err := t.NetworkTransport.InstallSnapshot(id, target, args, resp, data)
	if err != nil && t.hold(args.Term, next) {
		t.nudge()
	}
	return err
}

// hold reports whether a heartbeat got through; false when there will be no
// more of them, since this node leads term no longer or is about to end.
func (t *transport) hold(term uint64, beat <-chan struct{}) bool {
	lost := make(chan struct{}, 1)
	defer t.leaders.add(func(leader string) {
		if leader != t.self {
			wake(lost)
		}
	})()
	if !t.leads(term) { // lost while the call was under way, so that nobody will tell
		return false
	}
	select {
	case <-beat:
		return true
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
	if next := t.beats[id]; next != nil {
		close(next)
		delete(t.beats, id)
	}
}
