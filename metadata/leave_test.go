package metadata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// removed checks that n is gone for good: from the members, from raft's
// configuration, and from what the others talk to.
func (m *testMesh) removed(t *testing.T, n *testNode) {
	t.Helper()
	eventually(t, n.id+" to be out of raft's configuration", func() error {
		for _, o := range m.running() {
			if s := o.Status(); o != n && (contains(s.Voters, n.id) || contains(s.Replicas, n.id)) {
				return fmt.Errorf("%s has voters %v, replicas %v", o.id, s.Voters, s.Replicas)
			}
		}
		return nil
	})
	for _, o := range m.running() {
		if o != n && isMember(o.Members(), n.id) {
			t.Errorf("%s knows it for a member still", o.id)
		}
	}
	if err := m.leader().Join(context.Background(), n.member()); !errors.Is(err, oci.ErrDenied) {
		t.Errorf("it joined again: %v", err)
	}
}

// A member goes, whatever it was to the mesh, and writes go on all the while.
func TestRemove(t *testing.T) {
	for _, tc := range []struct {
		name   string
		nodes  int
		voters int // before
		after  int
		dead   bool
		which  func(m *testMesh) *testNode
	}{
		{"a replica", 4, 3, 3, false, func(m *testMesh) *testNode { return m.node(m.leader().Status().Replicas[0]) }},
		{"a dead replica", 4, 3, 3, true, func(m *testMesh) *testNode { return m.node(m.leader().Status().Replicas[0]) }},
		{"a voter, and another takes its place", 4, 3, 3, false, votingFollower},
		{"a dead voter, and another takes its place", 4, 3, 3, true, votingFollower},
		{"a voter of three: one is left", 3, 3, 1, false, votingFollower},
		{"a dead voter of three", 3, 3, 1, true, votingFollower},
		{"the leader of four", 4, 3, 3, false, (*testMesh).leader},
		{"the leader of three", 3, 3, 1, false, (*testMesh).leader},
		{"the founder of two", 2, 1, 1, false, (*testMesh).leader},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := grow(t, tc.nodes, tc.voters)
			n := tc.which(m)
			if tc.dead {
				n.stop()
			}
			others := slices.DeleteFunc(m.running(), func(o *testNode) bool { return o == n })
			pushed := make([]int, len(others))
			stop := meanwhile(t, len(others), func(w int) bool {
				if err := others[w].push("r", others[w].id, pushed[w]+1); err != nil {
					t.Errorf("at %s: %v", others[w].id, err)
					return false
				}
				pushed[w]++
				return true
			})
			must(t, others[0].Remove(context.Background(), n.id))
			m.removed(t, n)
			if !tc.dead {
				eventually(t, "the removed node to hear of it", func() error {
					if isMember(n.Members(), n.id) {
						return errors.New("it takes itself for a member")
					}
					return nil
				})
				eventually(t, "the removed node to be alone", func() error {
					if leader := n.Status().Leader; leader != "" {
						return fmt.Errorf("%s leads it", leader)
					}
					return nil
				})
			}
			eventually(t, "raft to let go of it", func() error {
				if got := replications(); got != len(others)-1 {
					return fmt.Errorf("the leader replicates to %d", got)
				}
				return nil
			})
			stop()
			m.drop(n)
			m.settle(tc.after)
			for w, o := range others {
				for _, reader := range others {
					must(t, reader.pull("r", o.id, pushed[w]))
				}
			}
			m.equal(t)
		})
	}
}

// replications counts the goroutines by which leaders of this process send
// entries to others. One that waits for who will never answer would stay.
func replications() int {
	stacks := make([]byte, 4<<20)
	return bytes.Count(stacks[:runtime.Stack(stacks, true)], []byte("raft.(*Raft).replicate("))
}

func votingFollower(m *testMesh) *testNode {
	s := m.leader().Status()
	return m.node(s.Voters[slices.IndexFunc(s.Voters, func(id string) bool { return id != s.Leader })])
}

// A voter that is asked to leave keeps its vote while another has died that
// gossip still shows alive: without either, the mesh could decide nothing, not
// even to take back what it did.
func TestRemoveWhileAnotherDies(t *testing.T) {
	m := grow(t, 3, 3)
	leader := m.leader()
	var others []*testNode
	for _, n := range m.nodes {
		if n != leader {
			others = append(others, n)
		}
	}
	m.mu.Lock()
	m.ghost = others[0].id
	m.mu.Unlock()
	others[0].stop()
	removed := make(chan error, 1)
	go func() { removed <- leader.Remove(context.Background(), others[1].id) }()
	eventually(t, "the leader to be asked", func() error {
		if len(leader.leaving.without(leader.Members(), time.Now())) == 3 {
			return errors.New("nobody is leaving")
		}
		return nil
	})
	for i := range 100 {
		must(t, leader.push("r", "x", i))
	}
	m.mu.Lock()
	m.ghost = ""
	m.mu.Unlock()
	must(t, <-removed)
	m.removed(t, others[1])
	m.drop(others[1])
	others[0].start(nil)
	m.settle(1)
	m.equal(t)
}

func TestRemoveRefused(t *testing.T) {
	n := newMesh(t).add("z")
	for _, id := range []string{n.id, "00000000-0000-4000-8000-000000000099"} {
		if err := n.Remove(context.Background(), id); !errors.Is(err, oci.ErrDenied) {
			t.Errorf("%s: %v", id, err)
		}
	}
	must(t, n.push("r", "x", 1))
}

// Replaced hardware comes under the old name, with another id.
func TestNameAfterRemoval(t *testing.T) {
	m := grow(t, 4, 3)
	old := votingFollower(m)
	must(t, m.leader().push("r", "x", 1))
	old.stop()
	must(t, m.leader().Remove(context.Background(), old.id))
	m.removed(t, old)
	m.drop(old)
	n := m.make("z")
	n.name = old.member().Name
	n.start(nil)
	n.join()
	m.settle(3)
	must(t, n.pull("r", "x", 1))
	m.equal(t)
}

// What a member holds is kept from the ring while it is away, and only then.
func TestOutAndIn(t *testing.T) {
	m := newMesh(t)
	m.out = 100 * time.Millisecond
	for range 4 {
		m.add("z")
	}
	m.settle(3)
	gone := votingFollower(m)
	standing := func(want bool) func() error {
		return func() error {
			for _, n := range m.running() {
				for _, o := range n.Members() {
					if o.Out != (want && o.ID == gone.id) {
						return fmt.Errorf("%s takes %s for out: %v", n.id, o.ID, o.Out)
					}
				}
			}
			return nil
		}
	}
	gone.stop()
	eventually(t, "it to be put out", standing(true))
	// A new leader has not seen it, and does not take that for its return.
	leader := m.leader()
	must(t, leader.StepDown(context.Background()))
	must(t, m.leader().push("r", "x", 1))
	must(t, standing(true)())
	gone.start(nil)
	eventually(t, "it to be taken in", standing(false))
	m.equal(t)
}

func TestDrain(t *testing.T) {
	m := grow(t, 3, 3)
	n := m.follower()
	draining := func() (all []string) {
		for _, o := range n.Members() {
			if o.Draining {
				all = append(all, o.ID)
			}
		}
		return all
	}
	must(t, n.Drain(context.Background(), n.id, true))
	must(t, n.Join(context.Background(), n.member())) // as after a restart
	if got := draining(); !slices.Equal(got, []string{n.id}) {
		t.Errorf("draining %v", got)
	}
	if got := n.Status().Voters; len(got) != 3 {
		t.Errorf("voters %v: who drains keeps its vote", got)
	}
	must(t, n.Drain(context.Background(), m.leader().id, true))
	last := slices.IndexFunc(n.Members(), func(o Member) bool { return !o.Draining })
	if err := n.Drain(context.Background(), n.Members()[last].ID, true); !errors.Is(err, oci.ErrDenied) {
		t.Errorf("the last owner: %v", err)
	}
	if err := n.Drain(context.Background(), "nobody", true); !errors.Is(err, oci.ErrDenied) {
		t.Errorf("a stranger: %v", err)
	}
	must(t, n.Drain(context.Background(), n.id, false))
	must(t, n.Drain(context.Background(), m.leader().id, false))
	if got := draining(); got != nil {
		t.Errorf("draining %v", got)
	}
}

// While a member of an earlier version is there, nothing is proposed that it
// does not know.
func TestStandingNeedsLevel(t *testing.T) {
	m := newMesh(t)
	m.out = 50 * time.Millisecond
	m.addLevel("z", levelHealing-1)
	for range 4 {
		m.add("z")
	}
	m.settle(3)
	n, gone := m.nodes[1], m.nodes[4]
	if err := n.Drain(context.Background(), n.id, true); !errors.Is(err, oci.ErrUnsupported) {
		t.Errorf("drain: %v", err)
	}
	gone.stop()
	old := m.nodes[0]
	must(t, n.Remove(context.Background(), old.id))
	m.removed(t, old)
	m.drop(old)
	eventually(t, "the one that is gone to be put out", func() error {
		for _, o := range n.Members() {
			if o.Out == (o.ID == gone.id) {
				continue
			}
			return fmt.Errorf("%s out: %v", o.ID, o.Out)
		}
		return nil
	})
}

// Streams to who is gone end, and so do all that are served, since whose they
// are was proved only once.
func TestCutStreams(t *testing.T) {
	var far []net.Conn
	s := newStreams("me", listen(t), func(string, time.Duration) (net.Conn, error) {
		near, f := net.Pipe()
		far = append(far, f)
		return near, nil
	})
	defer s.wait()
	defer s.Close()
	caller, err := net.Dial("tcp", s.lis.Addr().String())
	must(t, err)
	defer caller.Close()
	served, err := s.Accept()
	must(t, err)
	defer served.Close()
	for _, id := range []string{"gone", "here"} {
		c, err := s.Dial("", time.Second)
		must(t, err)
		defer c.Close()
		c.(*stream).to = id
	}
	s.cut(func(id string) bool { return id == "gone" })
	if _, err := caller.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a served stream: %v", err)
	}
	if _, err := far[0].Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a stream to who is gone: %v", err)
	}
	must(t, far[1].SetReadDeadline(time.Now()))
	if _, err := far[1].Read(make([]byte, 1)); errors.Is(err, io.EOF) {
		t.Error("a stream to who is here has ended")
	}
}
