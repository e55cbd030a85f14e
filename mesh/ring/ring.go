package ring

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Node is a member of the mesh as placement sees it.
type Node struct {
	ID     string // UUID; the only field that decides where its blobs lie, with Weight
	Zone   string // site or datacenter
	Weight uint32 // share of the blobs it owns; 0 owns none
	Down   bool   // seen down by gossip: it still owns, but is asked last
	Leaves bool   // it hands over all it holds: no copy there counts for long
	Out    bool   // it was away for long: others do what it did
}

// Source is a node to ask for a blob.
type Source struct {
	Node
	Gateway bool // the one node of this zone that may be asked to fetch the blob itself
}

// Ring is an immutable list of nodes. Its methods may be used concurrently.
type Ring struct {
	nodes    []seeded
	replicas int
}

type seeded struct {
	Node
	seed uint64
}

type scored struct {
	Node
	score float64
}

// New returns the ring of nodes, whose order does not matter, that keeps
// replicas copies of each blob.
func New(nodes []Node, replicas int) *Ring {
	r := &Ring{nodes: make([]seeded, len(nodes)), replicas: max(replicas, 1)}
	for i, n := range nodes {
		sum := sha256.Sum256([]byte(n.ID))
		r.nodes[i] = seeded{Node: n, seed: binary.BigEndian.Uint64(sum[:8])}
	}
	return r
}

// Replicas returns how many copies of each blob the ring keeps.
func (r *Ring) Replicas() int { return r.replicas }

// Fingerprint names all that decides who owns what: two rings with the same one
// agree about the owners of every blob, whoever seems down to them.
func (r *Ring) Fingerprint() string {
	lines := []string{strconv.Itoa(r.replicas)}
	for _, n := range r.nodes {
		if n.Weight > 0 {
			lines = append(lines, fmt.Sprintf("%q %q %d", n.ID, n.Zone, n.Weight))
		}
	}
	slices.Sort(lines[1:])
	sum := sha256.Sum256([]byte(strings.Join(lines, "\n")))
	return hex.EncodeToString(sum[:16])
}

// Nodes returns all nodes, in the order given to New.
func (r *Ring) Nodes() []Node {
	nodes := make([]Node, len(r.nodes))
	for i, n := range r.nodes {
		nodes[i] = n.Node
	}
	return nodes
}

// Node returns the node with this id.
func (r *Ring) Node(id string) (Node, bool) {
	for _, n := range r.nodes {
		if n.ID == id {
			return n.Node, true
		}
	}
	return Node{}, false
}

// Rank returns every node that may own d, best first. The first Replicas of
// them are its owners, in at least two zones where there are two; the others
// are where its copies were, or will be, when members come and go.
func (r *Ring) Rank(d digest.Digest) []Node {
	ranked := r.order(d, func(n Node) uint32 { return n.Weight })
	r.spread(ranked)
	return ranked
}

// Owners returns the nodes that should hold d, best first.
func (r *Ring) Owners(d digest.Digest) []Node {
	ranked := r.Rank(d)
	return ranked[:min(r.replicas, len(ranked))]
}

// Gateway returns the nodes of zone, best first, in the order in which they
// fetch d on behalf of their zone. It ignores weight: a node that owns nothing
// serves its site all the same.
func (r *Ring) Gateway(d digest.Digest, zone string) []Node {
	return r.order(d, func(n Node) uint32 {
		if n.Zone != zone {
			return 0
		}
		return 1
	})
}

// Head returns the nodes of zone, best first, in the order in which they lead
// those of the zone that want d: its owners, who hold it or should, then the
// others as gateways.
func (r *Ring) Head(d digest.Digest, zone string) []Node {
	nodes := slices.DeleteFunc(r.Owners(d), func(n Node) bool { return n.Zone != zone })
	owners := nodes[:len(nodes):len(nodes)]
	for _, n := range r.Gateway(d, zone) {
		if !slices.Contains(owners, n) {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// Keeper returns the node of zone that keeps d where the zone pins it: the first
// that leads it and neither leaves nor is out. Where it owns d, the zone has what
// it wants.
func (r *Ring) Keeper(d digest.Digest, zone string) (Node, bool) {
	for _, n := range r.Head(d, zone) {
		if !n.Leaves && !n.Out {
			return n, true
		}
	}
	return Node{}, false
}

// Sources returns all nodes but self, which is in zone, in the order in which
// self asks them for d: its zone's head, unless that is self; the owners,
// those of its own zone first; the next ranks; then those who own nothing.
// Whoever is down comes after all others, in the same order.
func (r *Ring) Sources(d digest.Digest, self, zone string) []Source {
	sources := make([]Source, 0, len(r.nodes))
	seen := map[string]bool{self: true}
	add := func(gateway bool, nodes []Node) {
		for _, n := range nodes {
			if !seen[n.ID] {
				seen[n.ID] = true
				sources = append(sources, Source{Node: n, Gateway: gateway})
			}
		}
	}
	live := slices.DeleteFunc(r.Head(d, zone), func(n Node) bool { return n.Down && n.ID != self })
	add(true, live[:min(1, len(live))])
	ranked := r.Rank(d)
	owners := slices.Clone(ranked[:min(r.replicas, len(ranked))])
	add(false, slices.DeleteFunc(owners, func(n Node) bool { return n.Zone != zone }))
	add(false, ranked)
	add(false, r.order(d, func(Node) uint32 { return 1 }))
	down := slices.DeleteFunc(slices.Clone(sources), func(s Source) bool { return !s.Down })
	return append(slices.DeleteFunc(sources, func(s Source) bool { return s.Down }), down...)
}

// spread moves the best node of another zone to the last owner's place when
// all owners are of one zone. Nothing else changes its order.
func (r *Ring) spread(ranked []Node) {
	last := r.replicas - 1
	if last < 1 || len(ranked) <= last {
		return
	}
	for _, n := range ranked[1 : last+1] {
		if n.Zone != ranked[0].Zone {
			return
		}
	}
	other := slices.IndexFunc(ranked, func(n Node) bool { return n.Zone != ranked[0].Zone })
	if other < 0 {
		return
	}
	best := ranked[other]
	copy(ranked[last+1:other+1], ranked[last:other])
	ranked[last] = best
}

// order returns the nodes of weight above 0 by their score for d. Equal scores
// are a matter of 2^-53 and fall to the id.
func (r *Ring) order(d digest.Digest, weight func(Node) uint32) []Node {
	k := key(d)
	scores := make([]scored, 0, len(r.nodes))
	for _, n := range r.nodes {
		if w := weight(n.Node); w > 0 {
			scores = append(scores, scored{Node: n.Node, score: score(mix(k^n.seed), w)})
		}
	}
	slices.SortFunc(scores, func(a, b scored) int {
		return cmp.Or(cmp.Compare(a.score, b.score), cmp.Compare(a.ID, b.ID))
	})
	nodes := make([]Node, len(scores))
	for i, s := range scores {
		nodes[i] = s.Node
	}
	return nodes
}

// key takes the first 8 bytes of the digest, which are uniform already. What is
// not hexadecimal is no digest; it is hashed rather than refused.
func key(d digest.Digest) uint64 {
	var b [8]byte
	if _, sum, _ := strings.Cut(string(d), ":"); len(sum) >= 16 {
		if _, err := hex.Decode(b[:], []byte(sum[:16])); err == nil {
			return binary.BigEndian.Uint64(b[:])
		}
	}
	sum := sha256.Sum256([]byte(d))
	return binary.BigEndian.Uint64(sum[:8])
}

// mix is the finalizer of SplitMix64 (Steele, Lea and Flood 2014).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// score draws an exponential variate of rate weight from h: the smallest of
// several is a given node's with a chance of its share of the weight. The
// logarithm may differ in its last bit between processors; two scores so near
// each other are as rare as equal ones.
func score(h uint64, weight uint32) float64 {
	u := (float64(h>>11) + 0.5) / (1 << 53) // strictly between 0 and 1
	return -math.Log(u) / float64(weight)
}
