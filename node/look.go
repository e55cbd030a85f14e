package node

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/flotilla-registry/flotilla/mesh"
)

// lookEvery is how often the members are asked what they see, however many ask
// this node.
const lookEvery = time.Second

// meshLook is the last look at what all members see. Whoever comes while one is
// under way waits for it, which mesh bounds.
type meshLook struct {
	mu   sync.Mutex
	at   time.Time
	last seen
}

// seen is what the members told.
type seen struct {
	copies    CopiesStatus
	zones     []ZoneTraffic
	transfers []TransferStatus
	total     int // transfers
}

func (n *Node) look(ctx context.Context) seen {
	l := &n.looked
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at.IsZero() || time.Since(l.at) >= lookEvery {
		// That one caller leaves must not cut the look of the others short.
		ctx := context.WithoutCancel(ctx)
		var asking sync.WaitGroup
		asking.Go(func() { l.last.copies, l.last.zones = n.lookAtCopies(ctx) })
		asking.Go(func() { l.last.transfers, l.last.total = n.lookAtTransfers(ctx) })
		asking.Wait()
		l.at = time.Now()
	}
	return l.last
}

func (n *Node) lookAtCopies(ctx context.Context) (CopiesStatus, []ZoneTraffic) {
	h, silent := n.blobs.MeshHealth(ctx)
	c := CopiesStatus{
		At: h.At, Blobs: h.Blobs, Short: h.Short, OneZone: h.OneZone, Lost: h.Lost, Unkept: h.Unkept,
		BytesToMove: h.BytesToMove, TimeToGo: h.TimeToGo,
	}
	for _, m := range n.catalog.Members() {
		if slices.Contains(silent, m.ID) {
			c.Silent = append(c.Silent, m.Name)
		}
	}
	return c, zoneTraffic(h.Received)
}

// zoneTraffic makes a row of each way between two zones. list is in order.
func zoneTraffic(list []mesh.Traffic) (rows []ZoneTraffic) {
	for _, t := range list {
		if n := len(rows); n == 0 || rows[n-1].From != t.From || rows[n-1].To != t.To {
			rows = append(rows, ZoneTraffic{From: t.From, To: t.To})
		}
		row := &rows[len(rows)-1]
		switch t.Cause {
		case mesh.CausePull:
			row.Pull += t.Bytes
		case mesh.CausePush:
			row.Push += t.Bytes
		case mesh.CauseRepair:
			row.Repair += t.Bytes
		case mesh.CauseRebalance:
			row.Rebalance += t.Bytes
		}
	}
	return rows
}

func (n *Node) lookAtTransfers(ctx context.Context) ([]TransferStatus, int) {
	names := n.nodeNames()
	name := func(id string) NodeName {
		if known, ok := names[id]; ok {
			return known
		}
		return NodeName{Name: id}
	}
	all := n.blobs.MeshTransfers(ctx)
	list := make([]TransferStatus, len(all.List))
	for i, t := range all.List {
		list[i] = TransferStatus{Digest: t.Digest, From: name(t.From), To: name(t.To), Received: t.Received, Size: t.Size, Repair: t.Repair}
	}
	return list, all.Total
}

// nodeNames returns how people know the members, by their ids.
func (n *Node) nodeNames() map[string]NodeName {
	names := map[string]NodeName{}
	for _, m := range n.catalog.Members() {
		names[m.ID] = NodeName{Name: m.Name, Zone: m.Zone}
	}
	return names
}
