package metadata

import (
	"sync"

	"github.com/hashicorp/raft"
)

// transport is raft's own, made to bring a member that was away up to date as
// soon as it is back. Raft by itself doubles its pause after each call that
// failed, up to 10 s, and does not end it then; and what broke it repeats only
// when there is more to send, or after CommitTimeout.
//
// So a call that fails is held and repeated once a heartbeat gets through, and
// a pipeline that ends is followed by a Barrier, which is more to send.
type transport struct {
	*raft.NetworkTransport
	self    string
	leaders *watchers
	nudge   func()          // appends a Barrier
	done    <-chan struct{} // closed with the streams

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
		if err == nil || !t.hold(next) {
			return err
		}
	}
}

// pipeline is one that says when it ends.
type pipeline struct {
	raft.AppendPipeline
	ended func()
}

// AppendEntriesPipeline implements raft.Transport.
func (t *transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	p, err := t.NetworkTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		t.nudge()
		return nil, err
	}
	return pipeline{p, t.nudge}, nil
}

func (p pipeline) Close() error {
	defer p.ended()
	return p.AppendPipeline.Close()
}

// hold reports whether a heartbeat got through; false when there will be no
// more of them, since this node leads no longer or is about to end.
func (t *transport) hold(beat <-chan struct{}) bool {
	lost := make(chan struct{}, 1)
	defer t.leaders.add(func(leader string) {
		if leader != t.self {
			wake(lost)
		}
	})()
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
