package mesh

import (
	"cmp"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
)

// Cause is what bytes go from one zone to another for.
type Cause string

// The causes, in order of their right of way; pulls and pushes have the same.
const (
	CausePull      Cause = "pull"      // a client waits for them
	CausePush      Cause = "push"      // uploads, and the copies that a push makes
	CauseRepair    Cause = "repair"    // there are fewer copies than there should be
	CauseRebalance Cause = "rebalance" // there are enough, but they have other owners
)

// rank returns the right of way of c, the lowest first, or -1 for what is no
// cause.
func (c Cause) rank() int {
	switch c {
	case CausePull, CausePush:
		return 0
	case CauseRepair:
		return 1
	case CauseRebalance:
		return 2
	}
	return -1
}

// forCause is the header by which a node says to one of another zone what the
// body of a request, or of its answer, crosses for.
const forCause = "Flotilla-Cause"

// Traffic is how many bytes of blobs went from one zone to another.
type Traffic struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Cause Cause  `json:"cause"`
	Bytes int64  `json:"bytes"`
}

func (t Traffic) compare(o Traffic) int {
	return cmp.Or(cmp.Compare(t.From, o.From), cmp.Compare(t.To, o.To),
		cmp.Compare(t.Cause.rank(), o.Cause.rank()), cmp.Compare(t.Cause, o.Cause))
}

// traffic counts the bytes between this zone and others. It has an entry per
// zone, direction and cause at most; the zero value is ready.
type traffic struct {
	mu    sync.Mutex
	bytes map[Traffic]*atomic.Int64 // by the route, whose Bytes are 0
}

// counter returns the counter of a route.
func (t *traffic) counter(from, to string, cause Cause) *atomic.Int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	route := Traffic{From: from, To: to, Cause: cause}
	n := t.bytes[route]
	if n == nil {
		if t.bytes == nil {
			t.bytes = map[Traffic]*atomic.Int64{}
		}
		n = new(atomic.Int64)
		t.bytes[route] = n
	}
	return n
}

// Traffic returns the bytes that this node received from other zones and sent
// to them, in order. A byte is received at one node and sent by one: sums of
// either over all nodes are those of the mesh.
func (b *Blobs) Traffic() (received, sent []Traffic) {
	b.traffic.mu.Lock()
	defer b.traffic.mu.Unlock()
	for route, n := range b.traffic.bytes {
		route.Bytes = n.Load()
		if route.To == b.zone {
			received = append(received, route)
		} else {
			sent = append(sent, route)
		}
	}
	slices.SortFunc(received, Traffic.compare)
	slices.SortFunc(sent, Traffic.compare)
	return received, sent
}

// addTraffic adds up two lists, both in order.
func addTraffic(a, b []Traffic) []Traffic {
	var sum []Traffic
	all := slices.Concat(a, b)
	slices.SortStableFunc(all, Traffic.compare)
	for _, t := range all {
		if n := len(sum); n > 0 && sum[n-1].compare(t) == 0 {
			sum[n-1].Bytes += t.Bytes
		} else {
			sum = append(sum, t)
		}
	}
	return sum
}

// zoneOf returns the zone of node, if that is another one than this node's.
func (b *Blobs) zoneOf(node string) (string, bool) {
	n, known := b.members.Ring().Node(node)
	return n.Zone, known && n.Zone != b.zone
}

// announce says on a request to node what its body, or that of the answer, is
// for; and returns the counter of what is sent there, if that is another zone.
func (b *Blobs) announce(h http.Header, node string, cause Cause) *atomic.Int64 {
	zone, other := b.zoneOf(node)
	if !other {
		return nil
	}
	h.Set(forCause, string(cause))
	return b.traffic.counter(b.zone, zone, cause)
}

// announced returns the zone of the sender of r, where it is another one, and
// what it said with announce. Who said nothing knows nothing of rates yet, and
// would take being held back for a failure.
func (b *Blobs) announced(r *http.Request) (zone string, cause Cause, ok bool) {
	zone, other := b.zoneOf(caller(r.Context()))
	cause = Cause(r.Header.Get(forCause))
	return zone, cause, other && cause.rank() >= 0
}

// knows reports whether zone is one of the mesh.
func (b *Blobs) knows(zone string) bool {
	for _, n := range b.members.Ring().Nodes() {
		if n.Zone == zone {
			return true
		}
	}
	return false
}

// departing is the way of a blob to whoever sent r. A node of another zone may
// be held back by that zone's rate, and then takes no bytes for a while.
func (b *Blobs) departing(w http.ResponseWriter, r *http.Request) io.Writer {
	out := deadlined{w, http.NewResponseController(w), b.patience.Stall}
	if zone, cause, ok := b.announced(r); ok {
		out.limit = b.patience.Persist
		out.w = counted{w, b.traffic.counter(b.zone, zone, cause)}
	}
	return out
}

// counted counts what is written.
type counted struct {
	io.Writer
	n *atomic.Int64
}

// Write implements io.Writer.
func (c counted) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.n.Add(int64(n))
	return n, err
}
