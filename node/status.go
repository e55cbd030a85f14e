package node

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/metadata"
)

// Status is what GET /flotilla/v1/status answers, and `flotilla status` prints.
type Status struct {
	Node    NodeStatus     `json:"node"`
	Cluster ClusterStatus  `json:"cluster"`
	Health  string         `json:"health"` // "ok", or the first thing that is wrong
	Notes   []string       `json:"notes,omitempty"`
	Leader  string         `json:"leader,omitempty"` // UUID
	Term    uint64         `json:"term"`
	Commit  uint64         `json:"commit"`
	Applied uint64         `json:"applied"`
	Disk    DiskStatus     `json:"disk"`
	Copies  CopiesStatus   `json:"copies"`
	Zones   []ZoneTraffic  `json:"zones,omitempty"`
	Members []MemberStatus `json:"members"`
	// Transfers are blobs on their way to the members that tell, most bytes to
	// come first, at most mesh.MaxTransfers of TransfersTotal.
	Transfers      []TransferStatus `json:"transfers"`
	TransfersTotal int              `json:"transfersTotal"`
}

// NodeStatus is the node that answers.
type NodeStatus struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Zone    string `json:"zone"`
	Version string `json:"version"`
}

// ClusterStatus is the mesh and its settings.
type ClusterStatus struct {
	ID          string `json:"id"`
	Epoch       string `json:"epoch"` // as people read it: metadata.Epoch
	Replicas    int    `json:"replicas"`
	AllowSparse bool   `json:"allowSparse"`
	// UntaggedAfter is how long a manifest without a tag is kept, in
	// nanoseconds; 0 is for ever.
	UntaggedAfter time.Duration `json:"untaggedAfter,omitempty"`
}

// CopiesStatus is how the blobs of the whole mesh are, as the last look of each
// member that answers saw them.
type CopiesStatus struct {
	At          time.Time     `json:"at"`      // of the oldest look; zero: there was none yet
	Blobs       int64         `json:"blobs"`   // that some repository needs
	Short       int64         `json:"short"`   // with fewer copies than they should have
	OneZone     int64         `json:"oneZone"` // whose copies are all in one zone, where there are two
	Lost        int64         `json:"lost"`    // that no member has any more
	Unkept      int64         `json:"unkept"`  // that a zone pins and the node that is to keep them there lacks
	BytesToMove int64         `json:"bytesToMove"`
	TimeToGo    time.Duration `json:"timeToGo"`         // nanoseconds, for these
	Silent      []string      `json:"silent,omitempty"` // names of members that did not tell
}

// TransferStatus is a blob on its way from one member to another that asked for
// it. A member that has left meanwhile has an id for a name, and no zone.
type TransferStatus struct {
	Digest   digest.Digest `json:"digest,omitempty"` // "" for those who may not see it
	From     NodeName      `json:"from"`
	To       NodeName      `json:"to"`
	Received int64         `json:"received"` // bytes
	Size     int64         `json:"size"`
	Repair   bool          `json:"repair"` // no client waits for it
}

// ZoneTraffic is how many bytes of blobs went from one zone to another since
// the members that answer were started, each counted where it arrived.
type ZoneTraffic struct {
	From      string `json:"from"`
	To        string `json:"to"`
	Pull      int64  `json:"pull"`      // clients wait for them
	Push      int64  `json:"push"`      // uploads, and the copies that pushes make
	Repair    int64  `json:"repair"`    // there were fewer copies than there should be
	Rebalance int64  `json:"rebalance"` // there were enough, but they have other owners
}

// DiskStatus is the data disk of the node that answers, in bytes.
type DiskStatus struct {
	Free  uint64 `json:"free"`
	Total uint64 `json:"total"`
}

// MemberStatus is one member as the node that answers sees it.
type MemberStatus struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Zone   string `json:"zone"`
	Weight uint32 `json:"weight"` // GiB
	Role   string `json:"role"`   // leader, voter, replica, or joining
	State  string `json:"state"`  // up or down, as gossip has it
	// Standing says whether it owns blobs: in; out, since it was gone for long;
	// draining, since it is to leave.
	Standing string `json:"standing"`
	Address  string `json:"address"`
}

// Status tells how the mesh looks from here.
func (n *Node) Status(ctx context.Context) Status {
	raft, c := n.catalog.Status(), n.catalog.Cluster()
	seen := n.look(ctx)
	s := Status{
		Copies:         seen.copies,
		Zones:          seen.zones,
		Transfers:      seen.transfers,
		TransfersTotal: seen.total,

		Node:    NodeStatus{ID: n.id(), Name: n.cfg.Name, Zone: n.cfg.Zone, Version: n.cfg.Version},
		Cluster: ClusterStatus{ID: c.ID, Epoch: c.Epoch.String(), Replicas: c.Replicas, AllowSparse: c.AllowSparse, UntaggedAfter: c.UntaggedAfter},
		Health:  "ok",
		Leader:  raft.Leader,
		Term:    raft.Term,
		Commit:  raft.Commit,
		Applied: raft.Applied,
		Members: n.memberStatus(raft),
	}
	s.Disk.Free, s.Disk.Total, _ = n.disk.Free()
	if err := n.Ready(); err != nil {
		s.Health = err.Error()
	} else if err := n.disk.Full(); err != nil {
		s.Health = err.Error()
	} else if raft.Leader == "" {
		s.Health = "no leader: pulls are served, pushes are refused"
	}
	s.Notes = notes(s)
	return s
}

// statusFor is Status, without digests for those who may not see them.
func (n *Node) statusFor(ctx context.Context, digests bool) Status {
	s := n.Status(ctx)
	if digests {
		return s
	}
	s.Transfers = slices.Clone(s.Transfers) // one look serves all who ask
	for i := range s.Transfers {
		s.Transfers[i].Digest = ""
	}
	return s
}

// standing says in a word whether a member owns blobs.
func standing(m metadata.Member) string {
	switch {
	case m.Draining:
		return "draining"
	case m.Out:
		return "out"
	}
	return "in"
}

func (n *Node) memberStatus(raft metadata.Status) []MemberStatus {
	alive := n.members.Alive()
	out := []MemberStatus{}
	for _, m := range n.catalog.Members() {
		state := MemberStatus{ID: m.ID, Name: m.Name, Zone: m.Zone, Weight: m.Weight, Role: "joining", State: "down", Standing: standing(m), Address: m.Address}
		switch {
		case m.ID == raft.Leader:
			state.Role = "leader"
		case slices.Contains(raft.Voters, m.ID):
			state.Role = "voter"
		case slices.Contains(raft.Replicas, m.ID):
			state.Role = "replica"
		}
		if slices.Contains(alive, m.ID) {
			state.State = "up"
		}
		out = append(out, state)
	}
	slices.SortFunc(out, func(a, b MemberStatus) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// notes says in words what an operator may not read from the table.
func notes(s Status) (lines []string) {
	down, voters, owners := 0, 0, 0
	voter := ""
	for _, m := range s.Members {
		if m.Weight > 0 && m.Standing == "in" {
			owners++
		}
		if m.State == "down" {
			down++
		}
		if m.Role == "leader" || m.Role == "voter" {
			voters++
			voter = m.Name
		}
	}
	if down > 0 {
		lines = append(lines, fmt.Sprintf("%d of %d members down", down, len(s.Members)))
	}
	if len(s.Members) == 2 && voters == 1 {
		lines = append(lines, fmt.Sprintf("a mesh of two has one voter, %s: while it is down, pulls are served and pushes are refused; a third node cures that", voter))
	}
	if owners > 0 && owners < s.Cluster.Replicas {
		lines = append(lines, fmt.Sprintf("copies of each blob: %d, until %d members own blobs", owners, s.Cluster.Replicas))
	}
	c := s.Copies
	if c.Lost > 0 {
		lines = append(lines, fmt.Sprintf("%d blobs are lost: no member has them; pushing their images again heals that", c.Lost))
	}
	if c.Short > 0 {
		line := fmt.Sprintf("%d of %d blobs have too few copies", c.Short, c.Blobs)
		if c.BytesToMove > 0 {
			line += fmt.Sprintf("; %.1f GiB to move, %s to go", float64(c.BytesToMove)/(1<<30), c.TimeToGo.Round(time.Second))
		}
		lines = append(lines, line)
	}
	if c.Unkept > 0 {
		lines = append(lines, fmt.Sprintf("%d pinned blobs are not where their zone keeps them; flotilla pin status says more", c.Unkept))
	}
	if c.OneZone > 0 {
		lines = append(lines, fmt.Sprintf("%d blobs have all copies in one zone", c.OneZone))
	}
	return lines
}
