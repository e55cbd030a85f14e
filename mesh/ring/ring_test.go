package ring

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"
)

func blob(i int) digest.Digest { return digest.FromString(fmt.Sprint("blob ", i)) }

func ids(nodes []Node) []string {
	out := make([]string, len(nodes))
	for i, n := range nodes {
		out[i] = n.ID
	}
	return out
}

// nodes returns n nodes of weight 1 dealt over the zones in turn.
func nodes(n int, zones ...string) []Node {
	out := make([]Node, n)
	for i := range out {
		out[i] = Node{ID: fmt.Sprintf("00000000-0000-4000-8000-%012d", i), Zone: zones[i%len(zones)], Weight: 1}
	}
	return out
}

// TestGolden pins the function itself: a blob placed by one release must be
// found by the next. Never change a row.
func TestGolden(t *testing.T) {
	members := []Node{
		{ID: "6fa459ea-ee8a-4ca4-894e-db77e160355e", Zone: "north", Weight: 100},
		{ID: "16fd2706-8baf-433b-82eb-8c7fada847da", Zone: "north", Weight: 200},
		{ID: "886313e1-3b8a-4372-9b90-0c9aee199e5d", Zone: "north", Weight: 400},
		{ID: "a8098c1a-f86e-41da-bd1a-00112444be1e", Zone: "south", Weight: 100},
		{ID: "7d444840-9dc0-41d1-b245-5ffdce74fad2", Zone: "south", Weight: 0},
	}
	r := New(members, 3)
	for _, row := range []struct {
		content         string
		rank            string
		gateway         string
		mixed           uint64
		scoreOfFirstNum float64
	}{
		{"", "18a6", "168/a7", 0x6bb2b466a1a647a2, 0.00865845825201503},
		{"a", "18a6", "168/7a", 0x91aa31e2dfbbeef6, 0.005638691900538166},
		{"flotilla", "8a16", "618/a7", 0x577268ff92222229, 0.01074145524972158},
		{"layer 7", "16a8", "168/7a", 0xb219d14d247280ce, 0.0036282748196087124},
		{"config", "18a6", "168/7a", 0xdb35aba533d7b4cd, 0.0015514886505650957},
		{"index", "8a16", "816/a7", 0x32283fbad7108a34, 0.016300149236863293},
	} {
		d := digest.FromString(row.content)
		short := func(nodes []Node) (s string) {
			for _, n := range nodes {
				s += n.ID[:1]
			}
			return s
		}
		if got := short(r.Rank(d)); got != row.rank {
			t.Errorf("rank of %q: %s, want %s", row.content, got, row.rank)
		}
		if got := short(r.Gateway(d, "north")) + "/" + short(r.Gateway(d, "south")); got != row.gateway {
			t.Errorf("gateways of %q: %s, want %s", row.content, got, row.gateway)
		}
		h := mix(key(d) ^ r.nodes[0].seed)
		if h != row.mixed {
			t.Errorf("mix of %q: %#x, want %#x", row.content, h, row.mixed)
		}
		if got := score(h, 100); math.Abs(got-row.scoreOfFirstNum) > 1e-12 {
			t.Errorf("score of %q: %v, want %v", row.content, got, row.scoreOfFirstNum)
		}
	}
}

func TestRankLeavesOutWeightless(t *testing.T) {
	members := nodes(4, "a")
	members[2].Weight = 0
	r := New(members, 3)
	for i := range 100 {
		if got := ids(r.Rank(blob(i))); len(got) != 3 || slices.Contains(got, members[2].ID) {
			t.Fatalf("rank %v holds a node of weight 0", got)
		}
		if got := ids(r.Gateway(blob(i), "a")); len(got) != 4 {
			t.Fatalf("gateways %v: a node of weight 0 serves its zone too", got)
		}
	}
}

// TestKeeper: who leads the zone keeps what it pins, an owner where there is one,
// and the next where that one leaves or is out. Being down changes nothing.
func TestKeeper(t *testing.T) {
	members := nodes(8, "a", "b")
	for i := range members {
		if members[i].Zone == "b" {
			members[i].Weight = 0
		}
	}
	for i := range 50 {
		d := blob(i)
		r := New(members, 3)
		head := r.Head(d, "b")
		k, ok := r.Keeper(d, "b")
		if !ok || k.ID != head[0].ID {
			t.Fatalf("keeper %v, of %v", k, head)
		}
		if k, ok := r.Keeper(d, "a"); !ok || k.ID != r.Owners(d)[0].ID {
			t.Fatalf("keeper %v in the zone of the owners", k)
		}
		changed := slices.Clone(members)
		of := func(n Node) *Node {
			return &changed[slices.IndexFunc(changed, func(m Node) bool { return m.ID == n.ID })]
		}
		of(head[0]).Down = true
		if k, _ := New(changed, 3).Keeper(d, "b"); k.ID != head[0].ID {
			t.Fatal("another keeper while the first is down")
		}
		of(head[0]).Leaves, of(head[1]).Out = true, true
		if k, _ := New(changed, 3).Keeper(d, "b"); k.ID != head[2].ID {
			t.Fatalf("keeper %v after the first two of %v", k, head)
		}
		for _, n := range head {
			of(n).Leaves = true
		}
		if _, ok := New(changed, 3).Keeper(d, "b"); ok {
			t.Fatal("a keeper among nodes that leave")
		}
		if _, ok := r.Keeper(d, "nowhere"); ok {
			t.Fatal("a keeper in no zone")
		}
	}
}

// TestHead: the owners lead their zone in the order of their ranks, whoever is
// its gateway.
func TestHead(t *testing.T) {
	members := nodes(8, "a", "b")
	for i := range members[:4] {
		members[i].Weight = 0
	}
	r := New(members, 3)
	for i := range 100 {
		d := blob(i)
		for _, zone := range []string{"a", "b"} {
			var want []string
			for _, n := range r.Owners(d) {
				if n.Zone == zone {
					want = append(want, n.ID)
				}
			}
			for _, n := range r.Gateway(d, zone) {
				if !slices.Contains(want, n.ID) {
					want = append(want, n.ID)
				}
			}
			if got := ids(r.Head(d, zone)); !slices.Equal(got, want) {
				t.Fatalf("heads of zone %s %v, want %v", zone, got, want)
			}
		}
	}
}

func TestEmptyAndOdd(t *testing.T) {
	empty := New(nil, 0)
	if len(empty.Rank("sha256:00")) != 0 || len(empty.Owners("")) != 0 || len(empty.Sources("x", "me", "a")) != 0 {
		t.Error("an empty ring named a node")
	}
	if empty.Replicas() != 1 {
		t.Errorf("replicas %d, want at least 1", empty.Replicas())
	}
	r := New(nodes(3, "a"), 3)
	for _, d := range []digest.Digest{"", ":", "sha256", "sha256:", "sha256:zzzzzzzzzzzzzzzzzzzz"} {
		if len(r.Rank(d)) != 3 {
			t.Errorf("rank of %q is not whole", d)
		}
	}
}

// TestSources walks the order of section 5 of the design.
func TestSources(t *testing.T) {
	members := nodes(9, "a", "b", "c")
	members[0].Weight = 0
	for i := range 200 {
		d := blob(i)
		r := New(members, 3)
		self := members[i%len(members)]
		got := r.Sources(d, self.ID, self.Zone)
		if len(got) != len(members)-1 {
			t.Fatalf("%d sources, want everyone but self", len(got))
		}
		gateway := r.Head(d, self.Zone)[0]
		if gateway.ID == self.ID {
			if slices.ContainsFunc(got, func(s Source) bool { return s.Gateway }) {
				t.Fatal("a gateway was sent to another gateway")
			}
		} else if !got[0].Gateway || got[0].ID != gateway.ID {
			t.Fatalf("first source %+v, want the gateway %s", got[0], gateway.ID)
		}
		rest := slices.DeleteFunc(slices.Clone(got), func(s Source) bool { return s.Gateway })
		var owners []string
		for _, n := range r.Owners(d) {
			if n.ID != self.ID && n.ID != gateway.ID {
				owners = append(owners, n.ID)
			}
		}
		abroad := false
		for i, s := range rest[:len(owners)] {
			if !slices.Contains(owners, s.ID) {
				t.Fatalf("source %d is %s, no owner", i, s.ID)
			}
			if s.Zone == self.Zone && abroad {
				t.Fatal("a near owner comes after a far one")
			}
			abroad = abroad || s.Zone != self.Zone
		}
		if last := got[len(got)-1]; self.Weight > 0 && gateway.Weight > 0 && last.Weight != 0 {
			t.Fatalf("last source %+v, want the one that owns nothing", last)
		}
	}
}

func TestSourcesWhenDown(t *testing.T) {
	members := nodes(6, "a", "b")
	self := members[0]
	for i := range 100 {
		d := blob(i)
		up := New(members, 3)
		var first Node // the best gateway that is not self
		for _, n := range up.Head(d, "a") {
			if n.ID != self.ID {
				first = n
				break
			}
		}
		changed := slices.Clone(members)
		for j := range changed {
			changed[j].Down = changed[j].ID == first.ID
		}
		got := New(changed, 3).Sources(d, self.ID, self.Zone)
		if last := got[len(got)-1]; last.ID != first.ID || last.Gateway {
			t.Fatalf("the node that is down is not asked last: %+v", got)
		}
		if a, b := ids(New(changed, 3).Owners(d)), ids(up.Owners(d)); !slices.Equal(a, b) {
			t.Fatalf("owners moved from %v to %v when a node went down", b, a)
		}
	}
	if got := New(members, 3).Sources(blob(1), "not a member yet", "b"); len(got) != len(members) || !got[0].Gateway || got[0].Zone != "b" {
		t.Errorf("a newcomer asks its zone's gateway and everyone: %+v", got)
	}
	if got := New(members, 3).Sources(blob(1), "not a member yet", "new"); len(got) != len(members) || got[0].Gateway {
		t.Errorf("a new zone has no gateway: %+v", got)
	}
}

// TestBalance counts what each node owns of many blobs. The bounds are five
// standard deviations of a fair draw.
func TestBalance(t *testing.T) {
	const blobs = 20000
	weights := []uint32{1, 2, 4, 1, 8}
	members := nodes(len(weights), "a")
	total := 0.0
	for i, w := range weights {
		members[i].Weight = w
		total += float64(w)
	}
	r := New(members, 1)
	count := map[string]float64{}
	for i := range blobs {
		count[r.Owners(blob(i))[0].ID]++
	}
	for _, n := range members {
		share := float64(n.Weight) / total
		bound := 5 * math.Sqrt(blobs*share*(1-share))
		if got := count[n.ID]; math.Abs(got-blobs*share) > bound {
			t.Errorf("weight %d owns %.0f blobs, want %.0f +- %.0f", n.Weight, got, blobs*share, bound)
		}
	}
}

func drawNodes(t *rapid.T) ([]Node, int) {
	zones := []string{"a", "b", "c"}[:rapid.IntRange(1, 3).Draw(t, "zones")]
	members := rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) Node {
		return Node{
			ID:     rapid.StringMatching(`[0-9a-f]{8}`).Draw(t, "id"),
			Zone:   rapid.SampledFrom(zones).Draw(t, "zone"),
			Weight: rapid.Uint32Range(0, 4).Draw(t, "weight"),
		}
	}), 1, 12, func(n Node) string { return n.ID }).Draw(t, "nodes")
	return members, rapid.IntRange(1, 4).Draw(t, "replicas")
}

func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		members, replicas := drawNodes(t)
		d := digest.FromString(rapid.String().Draw(t, "content"))
		r := New(members, replicas)
		rank := r.Rank(d)

		shuffled := rapid.Permutation(members).Draw(t, "shuffled")
		if got := New(shuffled, replicas).Rank(d); !slices.Equal(got, rank) {
			t.Fatalf("order of input matters: %v and %v", ids(got), ids(rank))
		}

		zones, heavy := map[string]bool{}, 0
		for _, n := range members {
			if n.Weight > 0 {
				zones[n.Zone], heavy = true, heavy+1
			}
		}
		if len(rank) != heavy {
			t.Fatalf("%d ranks of %d nodes with weight", len(rank), heavy)
		}
		spread := map[string]bool{}
		for _, n := range r.Owners(d) {
			spread[n.Zone] = true
		}
		if want := min(2, len(zones), replicas); len(spread) < want {
			t.Fatalf("owners %v lie in %d zones, want %d", r.Owners(d), len(spread), want)
		}
	})
}

// TestFingerprint: it changes with all that moves blobs, and with nothing else.
func TestFingerprint(t *testing.T) {
	base := nodes(4, "a", "b")
	base[3].Weight = 0
	want := New(base, 3).Fingerprint()
	for _, row := range []struct {
		name   string
		change func(n []Node) ([]Node, int)
		same   bool
	}{
		{"order", func(n []Node) ([]Node, int) { slices.Reverse(n); return n, 3 }, true},
		{"down", func(n []Node) ([]Node, int) { n[1].Down = true; return n, 3 }, true},
		{"one that owns nothing left", func(n []Node) ([]Node, int) { return n[:3], 3 }, true},
		{"one that owns left", func(n []Node) ([]Node, int) { return n[1:], 3 }, false},
		{"weight", func(n []Node) ([]Node, int) { n[0].Weight++; return n, 3 }, false},
		{"zone", func(n []Node) ([]Node, int) { n[0].Zone = "b"; return n, 3 }, false},
		{"name", func(n []Node) ([]Node, int) { n[0].ID += "0"; return n, 3 }, false},
		{"replicas", func(n []Node) ([]Node, int) { return n, 2 }, false},
		{"drained", func(n []Node) ([]Node, int) { n[0].Weight = 0; return n, 3 }, false},
	} {
		if got := New(row.change(slices.Clone(base))).Fingerprint(); (got == want) != row.same {
			t.Errorf("%s: fingerprint %s after %s", row.name, got, want)
		}
	}
}

// TestMinimalMovement: one node leaves, and only it may lose blobs; at most one
// more owner changes, and only to keep two zones.
func TestMinimalMovement(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		members, replicas := drawNodes(t)
		d := digest.FromString(rapid.String().Draw(t, "content"))
		gone := rapid.IntRange(0, len(members)-1).Draw(t, "gone")
		fewer := slices.Delete(slices.Clone(members), gone, gone+1)

		before, after := New(members, replicas).Owners(d), New(fewer, replicas).Owners(d)
		moved := 0
		for _, n := range before {
			if n.ID != members[gone].ID && !slices.Contains(after, n) {
				moved++
			}
		}
		zones := map[string]bool{}
		for _, n := range members {
			zones[n.Zone] = true
		}
		if limit := min(1, len(zones)-1); moved > limit {
			t.Fatalf("%d owners moved that stayed members: %v to %v", moved, ids(before), ids(after))
		}
	})
}

func TestJoinTakesItsShare(t *testing.T) {
	const blobs, n = 20000, 9
	before, after := New(nodes(n, "a"), 3), New(nodes(n+1, "a"), 3)
	moved := 0
	for i := range blobs {
		old := ids(before.Owners(blob(i)))
		for _, id := range ids(after.Owners(blob(i))) {
			if !slices.Contains(old, id) {
				moved++
			}
		}
	}
	share := 1.0 / (n + 1)
	got, bound := float64(moved)/(3*blobs), 5*math.Sqrt(share/(3*blobs))
	if math.Abs(got-share) > bound {
		t.Errorf("a tenth node took %.4f of the copies, want %.4f +- %.4f", got, share, bound)
	}
}

func BenchmarkOwners(b *testing.B) {
	for _, n := range []int{10, 100} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r, d := New(nodes(n, "a", "b", "c"), 3), blob(1)
			for b.Loop() {
				r.Owners(d)
			}
		})
	}
}
