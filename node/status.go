package node

import (
	"cmp"
	"fmt"
	"slices"

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
	Members []MemberStatus `json:"members"`
}

// NodeStatus is the node that answers.
type NodeStatus struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Version string `json:"version"`
}

// ClusterStatus is the mesh and its settings.
type ClusterStatus struct {
	ID          string `json:"id"`
	Epoch       uint64 `json:"epoch"`
	Replicas    int    `json:"replicas"`
	AllowSparse bool   `json:"allowSparse"`
}

// DiskStatus is the data disk of the node that answers, in bytes.
type DiskStatus struct {
	Free  uint64 `json:"free"`
	Total uint64 `json:"total"`
}

// MemberStatus is one member as the node that answers sees it.
type MemberStatus struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Zone    string `json:"zone"`
	Weight  uint32 `json:"weight"` // GiB
	Role    string `json:"role"`   // leader, voter, replica, or joining
	State   string `json:"state"`  // up or down, as gossip has it
	Address string `json:"address"`
}

// Status tells how the mesh looks from here.
func (n *Node) Status() Status {
	raft, c := n.catalog.Status(), n.catalog.Settings()
	s := Status{
		Node:    NodeStatus{ID: n.id(), Name: n.cfg.Name, Version: n.cfg.Version},
		Cluster: ClusterStatus{ID: c.ID, Epoch: c.Epoch, Replicas: c.Replicas, AllowSparse: c.AllowSparse},
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

func (n *Node) memberStatus(raft metadata.Status) []MemberStatus {
	alive := n.members.Alive()
	out := []MemberStatus{}
	for _, m := range n.catalog.Members() {
		state := MemberStatus{ID: m.ID, Name: m.Name, Zone: m.Zone, Weight: m.Weight, Role: "joining", State: "down", Address: m.Address}
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
	down, voters := 0, 0
	voter := ""
	for _, m := range s.Members {
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
	if n := len(s.Members); n > 0 && n < s.Cluster.Replicas {
		lines = append(lines, fmt.Sprintf("%d copies of each blob until there are %d members", n, s.Cluster.Replicas))
	}
	return lines
}
