package metadata

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// heartbeats thins out the heartbeats that cross a line between zones. Raft sends
// six to seven a second to each member, so that ten are due before its silence
// has others stand for leader, and in an idle mesh they would be most of what
// a thin line carries. Over a line three have to do: one that is due shortly
// after another was answered counts as answered too. So the leader takes such
// a member for reached for up to every longer than it is. Nothing is decided by
// that but when a leader without a majority steps down; reads and commits are
// proved by answers to themselves. After a failure, and in a new term, each
// heartbeat is sent.
type heartbeats struct {
	every time.Duration

	mu       sync.Mutex
	far      map[raft.ServerID]bool // members of other zones
	answered map[raft.ServerID]answered
}

// answered is the last heartbeat to a member that got through.
type answered struct {
	term uint64
	at   time.Time
}

// newHeartbeats returns what thins out heartbeats where the silence of a leader
// is noticed after election.
func newHeartbeats(election time.Duration) *heartbeats {
	return &heartbeats{every: election * 2 / 5, answered: map[raft.ServerID]answered{}}
}

// place takes up who is where, seen from self.
func (s *heartbeats) place(self string, members []Member) {
	zones := make(map[string]string, len(members))
	for _, m := range members {
		zones[m.ID] = m.Zone
	}
	far := map[raft.ServerID]bool{}
	if own, member := zones[self]; member {
		for id, zone := range zones {
			if zone != own {
				far[raft.ServerID(id)] = true
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.far = far
	for id := range s.answered {
		if !far[id] {
			delete(s.answered, id)
		}
	}
}

// spares reports whether a heartbeat of term to id need not be sent.
func (s *heartbeats) spares(id raft.ServerID, term uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	last, ok := s.answered[id]
	return ok && last.term == term && time.Since(last.at) < s.every
}

// sent takes down how a heartbeat of term to id went.
func (s *heartbeats) sent(id raft.ServerID, term uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil || !s.far[id] {
		delete(s.answered, id)
		return
	}
	s.answered[id] = answered{term, time.Now()}
}
