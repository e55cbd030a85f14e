package mesh

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// Transfer is a blob on its way from one node to another, which asked for it.
type Transfer struct {
	Digest   digest.Digest `json:"digest"`
	From     string        `json:"from"`     // id of the node that sends
	To       string        `json:"to"`       // of the one that receives
	Received int64         `json:"received"` // bytes, from others before too
	Size     int64         `json:"size"`
	Repair   bool          `json:"repair"` // of a copy that the node is to have; else a client waits, there or at another node of the zone
}

// Transfers is some of the transfers that are under way, most bytes to come
// first, and how many there are.
type Transfers struct {
	List  []Transfer `json:"list"`
	Total int        `json:"total"`
}

// MaxTransfers bounds a list of transfers.
const MaxTransfers = 100

// inbound is what this node receives now. The zero value is ready.
type inbound struct {
	mu  sync.Mutex
	now map[*delivery]struct{} // one for each download at most
}

func (in *inbound) begin(y *delivery) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.now == nil {
		in.now = map[*delivery]struct{}{}
	}
	in.now[y] = struct{}{}
}

func (in *inbound) end(y *delivery) {
	in.mu.Lock()
	defer in.mu.Unlock()
	delete(in.now, y)
}

// Transfers returns all that this node receives from others now, in the order
// of a Transfers.
func (b *Blobs) Transfers() []Transfer {
	b.inbound.mu.Lock()
	list := make([]Transfer, 0, len(b.inbound.now))
	for y := range b.inbound.now {
		list = append(list, Transfer{
			Digest: y.h.digest, From: y.node, To: b.id, Repair: y.h.repair,
			Received: min(y.h.spot.at.Load(), y.size), Size: y.size,
		})
	}
	b.inbound.mu.Unlock()
	slices.SortFunc(list, moreToCome)
	return list
}

func moreToCome(a, b Transfer) int {
	return cmp.Or(-cmp.Compare(a.Size-a.Received, b.Size-b.Received), cmp.Compare(a.Digest, b.Digest), cmp.Compare(a.To, b.To))
}

func newTransfers(list []Transfer) Transfers {
	return Transfers{List: list[:min(len(list), MaxTransfers)], Total: len(list)}
}

// MeshTransfers returns the transfers to all members that say what they receive.
// Those of earlier versions do not.
func (b *Blobs) MeshTransfers(ctx context.Context) Transfers {
	r := b.members.Ring()
	nodes := r.Nodes()
	all := make([]Transfers, len(nodes))
	b.askLive(nodes, func(i int, node string) {
		if node == b.id {
			all[i] = newTransfers(b.Transfers())
			return
		}
		var theirs Transfers
		if b.query(ctx, healthWait, node, "/blobs/transfers", nil, &theirs) != nil {
			return
		}
		for _, t := range theirs.List[:min(len(theirs.List), MaxTransfers)] {
			_, known := r.Node(t.From)
			if _, err := oci.ParseDigest(t.Digest.String()); err == nil && known {
				t.To = node // whatever it says
				all[i].List = append(all[i].List, t)
			}
		}
		all[i].Total = max(theirs.Total, len(all[i].List))
	})
	sum, total := []Transfer{}, 0
	for _, t := range all {
		sum, total = append(sum, t.List...), total+t.Total
	}
	slices.SortFunc(sum, moreToCome)
	return Transfers{List: sum[:min(len(sum), MaxTransfers)], Total: total}
}

func (b *Blobs) serveTransfers(w http.ResponseWriter, _ *http.Request) error {
	return b.answer(w, newTransfers(b.Transfers()))
}
