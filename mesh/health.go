package mesh

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh/ring"
)

// Health is what the last pass of one node saw, and what it has done since.
// Each wanted blob is counted at one node, so that sums hold for the mesh.
type Health struct {
	At         time.Time `json:"at"`         // when all was seen; the zero time: never yet
	Membership string    `json:"membership"` // fingerprint of the ring it was seen under

	Blobs   int64 `json:"blobs"`   // wanted blobs that this node counts
	Short   int64 `json:"short"`   // of these, how many have fewer copies at live owners than they should
	OneZone int64 `json:"oneZone"` // have several such copies, all in one zone, and owners in two
	Lost    int64 `json:"lost"`    // are recorded as lost

	HeldBlobs  int64 `json:"heldBlobs"` // copies here
	HeldBytes  int64 `json:"heldBytes"`
	CacheBlobs int64 `json:"cacheBlobs"` // of these, copies that need not be here
	CacheBytes int64 `json:"cacheBytes"`
	Unkept     int64 `json:"unkept"` // wanted blobs that this node lacks and is to hold since its zone pins them

	Synced   bool  `json:"synced"`   // the catalogue was proven current before the look
	Owns     bool  `json:"owns"`     // whether this node owns blobs; else OnlyHere is counted
	Leaves   bool  `json:"leaves"`   // this node was being drained throughout
	OnlyHere int64 `json:"onlyHere"` // blobs held here that would be missed if this node left, see missed

	BytesToMove int64         `json:"bytesToMove"` // for the copies that this node is to make
	TimeToGo    time.Duration `json:"timeToGo"`    // for these, in nanoseconds
	Pace        int64         `json:"pace"`        // bytes a second: as copies were made in the pass, or else may be

	Dropped  int64 `json:"dropped"`  // garbage
	Evicted  int64 `json:"evicted"`  // copies that took too much space
	Repaired int64 `json:"repaired"` // blobs of which no copy is missing any more
	Failed   int64 `json:"failed"`   // blobs of which they could not be made

	// ZoneRate is the node's own setting of what its zone takes from each other
	// one, in bytes a second; 0 is no limit. A sum has none.
	ZoneRate int64 `json:"zoneRate,omitempty"`
	// Received is what came here from other zones since the start, in order.
	Received []Traffic `json:"received,omitempty"`
}

// add adds the figures of another node.
func (h *Health) add(o Health) {
	if h.At.IsZero() || o.At.Before(h.At) {
		h.At = o.At
	}
	if h.Membership != o.Membership {
		h.Membership = ""
	}
	h.Owns = h.Owns || o.Owns
	h.Leaves = h.Leaves || o.Leaves
	h.Synced = h.Synced && o.Synced
	h.TimeToGo = max(h.TimeToGo, o.TimeToGo)
	h.ZoneRate = 0
	h.Received = addTraffic(h.Received, o.Received)
	for _, f := range []struct {
		to   *int64
		from int64
	}{
		{&h.Blobs, o.Blobs}, {&h.Short, o.Short}, {&h.OneZone, o.OneZone}, {&h.Lost, o.Lost},
		{&h.HeldBlobs, o.HeldBlobs}, {&h.HeldBytes, o.HeldBytes},
		{&h.CacheBlobs, o.CacheBlobs}, {&h.CacheBytes, o.CacheBytes},
		{&h.Unkept, o.Unkept}, {&h.OnlyHere, o.OnlyHere}, {&h.BytesToMove, o.BytesToMove}, {&h.Pace, o.Pace},
		{&h.Dropped, o.Dropped}, {&h.Evicted, o.Evicted},
		{&h.Repaired, o.Repaired}, {&h.Failed, o.Failed},
	} {
		*f.to += f.from
	}
}

// count adds v to the figures of the pass.
func (p *pass) count(v *blob) {
	h := &p.tally
	if v.held {
		h.HeldBlobs++
		h.HeldBytes += v.size
		if v.naming != unnamed && !v.owner {
			h.CacheBlobs++
			h.CacheBytes += v.size
		}
	}
	if v.naming == wanted && v.keeps() && !v.held {
		h.Unkept++
	}
	if p.missed(v) {
		h.OnlyHere++
		if v.naming == wanted {
			p.tellLacking(v)
		}
	}
	if v.naming == wanted && v.accountant {
		p.account(v)
	}
}

// unlinked is how long a push may take from a blob's being placed to its being
// named. Both are steps of one request.
const unlinked = 5 * time.Minute

// unlinkedYet reports whether a push may be about to name v.
func (p *pass) unlinkedYet(v *blob) bool {
	return v.held && v.naming == unnamed && time.Since(v.used) < unlinked
}

// missed reports whether copies of v would be missing if this node left, which
// the ring has own none: not every owner said that it has one, or this node is
// the one to keep it for its zone. Of what a push is about to name nobody makes
// copies, so one other must do.
func (p *pass) missed(v *blob) bool {
	if p.owner || !v.held {
		return false
	}
	if v.keeps() {
		return true
	}
	copies, _ := p.copies(v, v.owners)
	if v.naming == unnamed {
		return p.unlinkedYet(v) && copies == 0
	}
	return copies == 0 || copies < len(v.owners)
}

// account counts v for the whole mesh.
func (p *pass) account(v *blob) {
	h := &p.tally
	h.Blobs++
	owners := v.owners[:v.share]
	copies, zones := p.copies(v, owners)
	switch {
	case v.lost:
		h.Lost++
	case copies < len(owners):
		h.Short++
	}
	if copies > 1 && zones == 1 && zonesOf(owners) > 1 {
		h.OneZone++
	}
	if v.held {
		p.tellLacking(v)
	}
}

// tellLacking notes that the owners of v that lack it are to hear of that.
func (p *pass) tellLacking(v *blob) {
	for _, id := range v.lacking() {
		p.behind[id] = true
	}
}

// copies returns how many of some owners hold v, as far as they said so, and in
// how many zones these lie.
func (p *pass) copies(v *blob, owners []ring.Node) (copies, zones int) {
	holders := slices.DeleteFunc(slices.Clone(owners), func(n ring.Node) bool {
		return !slices.Contains(v.has, n.ID) && !(v.held && n.ID == p.b.id)
	})
	return len(holders), zonesOf(holders)
}

func zonesOf(nodes []ring.Node) int {
	n := 0
	for i := range nodes {
		if !slices.ContainsFunc(nodes[:i], func(o ring.Node) bool { return o.Zone == nodes[i].Zone }) {
			n++
		}
	}
	return n
}

// report is the figures that others see; the zero value has none.
type report struct {
	mu   sync.Mutex
	last Health
}

// publish changes the figures of the pass and shows them. The time to go is
// that of the copies made so far, for each byte.
func (p *pass) publish(change func(h *Health)) {
	r := &p.b.report
	r.mu.Lock()
	defer r.mu.Unlock()
	h := &p.tally
	change(h)
	perByte := float64(time.Second) / float64(p.b.pace.Limit())
	if moved := p.toMove - h.BytesToMove; moved > 0 {
		perByte = float64(time.Since(p.repairing)) / float64(moved)
	}
	h.TimeToGo = time.Duration(perByte * float64(h.BytesToMove))
	h.Pace = int64(float64(time.Second) / perByte)
	r.last = *h
}

// Health returns what this node's last pass saw, and what came here until now and
// may come.
func (b *Blobs) Health() Health {
	b.report.mu.Lock()
	defer b.report.mu.Unlock()
	h := b.report.last
	h.ZoneRate = b.rates.perSecond
	h.Received, _ = b.Traffic()
	return h
}

// HealthOf returns what a member's last pass saw.
func (b *Blobs) HealthOf(ctx context.Context, node string) (h Health, err error) {
	if node == b.id {
		return b.Health(), nil
	}
	err = b.query(ctx, healthWait, node, "/blobs/health", nil, &h)
	return h, err
}

// healthWait is how long the members are given to tell their health, or what
// they receive.
const healthWait = 2 * time.Second

// MeshHealth adds up what the members' last passes saw. Its time is that of the
// oldest, its membership "" where they saw different ones. Members that have no
// figures, or do not tell them, are silent: the sum lacks theirs.
func (b *Blobs) MeshHealth(ctx context.Context) (sum Health, silent []string) {
	ctx, cancel := context.WithTimeout(ctx, healthWait)
	defer cancel()
	nodes := b.members.Ring().Nodes()
	all := make([]Health, len(nodes))
	b.askLive(nodes, func(i int, node string) {
		if h, err := b.HealthOf(ctx, node); err == nil {
			all[i] = h
		}
	})
	for i, h := range all {
		switch {
		case h.At.IsZero():
			silent = append(silent, nodes[i].ID)
		case sum.At.IsZero():
			sum = h
		default:
			sum.add(h)
		}
	}
	return sum, silent
}

// askLive calls ask for those of nodes that do not seem down, a few at a time, and
// returns once all have returned.
func (b *Blobs) askLive(nodes []ring.Node, ask func(i int, node string)) {
	var asking errgroup.Group
	asking.SetLimit(askedAtOnce)
	for i, n := range nodes {
		if n.Down && n.ID != b.id {
			continue
		}
		asking.Go(func() error {
			ask(i, n.ID)
			return nil
		})
	}
	_ = asking.Wait() // always nil
}

// Candidate is a copy that the next pass drops as garbage.
type Candidate struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
	Used   time.Time     `json:"used"`
	Why    string        `json:"why"`
}

// MaxCandidates bounds a list of garbage, but for one that shows that there are
// more.
const MaxCandidates = 1000

// Garbage lists up to n copies that a pass now would drop here since nothing
// names their bytes. Copies that would be evicted are no garbage: their blobs
// stay.
func (b *Blobs) Garbage(ctx context.Context, n int) ([]Candidate, error) {
	select {
	case b.listing <- struct{}{}:
		defer func() { <-b.listing }()
	case <-ctx.Done():
		return nil, oci.ErrUnavailable.Wrap(context.Cause(ctx))
	}
	p, err := b.newPass(ctx)
	if err != nil {
		return nil, err
	}
	if !p.synced {
		return nil, oci.ErrUnavailable.Because("the catalogue cannot be proven current")
	}
	p.sure = true // or will be
	list := []Candidate{}
	for batch, err := range b.batches(ctx) {
		if err == nil {
			err = p.name(batch)
		}
		if err != nil {
			return nil, err
		}
		for i := range batch {
			v := &batch[i]
			if len(list) == min(n, MaxCandidates+1) {
				return list, nil
			}
			if decide(p.facts(v)) == drop {
				list = append(list, Candidate{v.digest, v.size, v.used, fmt.Sprintf("nothing names it, and nobody used it for %v", b.grace)})
			}
		}
	}
	return list, nil
}

// GarbageOf is Garbage at a member.
func (b *Blobs) GarbageOf(ctx context.Context, node string, n int) (list []Candidate, err error) {
	if node == b.id {
		return b.Garbage(ctx, n)
	}
	err = b.query(ctx, b.patience.Persist, node, fmt.Sprintf("/blobs/garbage?n=%d", n), nil, &list)
	return list, err
}

func (b *Blobs) serveHealth(w http.ResponseWriter, _ *http.Request) error {
	return b.answer(w, b.Health())
}

func (b *Blobs) serveGarbage(w http.ResponseWriter, r *http.Request) error {
	n, err := strconv.Atoi(r.URL.Query().Get("n"))
	if err != nil || n < 0 {
		return oci.ErrUnsupported.Because("n %.40q", r.URL.Query().Get("n"))
	}
	list, err := b.Garbage(r.Context(), n)
	if err != nil {
		return err
	}
	return b.answer(w, list)
}
