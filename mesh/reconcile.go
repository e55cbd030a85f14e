package mesh

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh/ring"
)

// Names is what a pass needs to know of the catalogue, which is the authority
// on what is wanted. All but Sync answer from this node's replica.
type Names interface {
	// Sync returns once this replica holds all that was committed before the
	// call, and the log's time then, which is of late even if nothing was
	// written for long.
	Sync(ctx context.Context) (time.Time, error)
	// Wanted returns up to n digests behind after ("" is the start), in order,
	// whose bytes some node must hold.
	Wanted(after digest.Digest, n int) ([]Wanted, error)
	// Referenced reports of each digest whether anything names it.
	Referenced(ds []digest.Digest) ([]bool, error)
	// Lost records that no member holds d. It comes to nothing where a push
	// named d at or after since, which is a time of the log.
	Lost(ctx context.Context, d digest.Digest, since time.Time) error
	// Found records that a member holds d again.
	Found(ctx context.Context, d digest.Digest) error
}

// Wanted is a blob whose bytes some node must hold.
type Wanted struct {
	Digest digest.Digest
	Size   int64 // -1 where the catalogue does not know
	Lost   bool  // recorded as lost
}

// errMoved ends a pass: who owns what is not what it was when the pass began,
// and what it found out and has not done yet may be wrong by now.
var errMoved = errors.New("the membership changed")

// pass is one round of Reconcile.
type pass struct {
	b          *Blobs
	ring       *ring.Ring // as of the latest look; its membership is that of the start
	membership string     // fingerprint of it
	owner      bool       // this node owns blobs under it

	cutoff time.Time // garbage is what was not used since
	synced bool      // the catalogue was current when the pass began
	since  time.Time // the log's time then
	sure   bool      // copies may go

	repairs shortlist[repair] // fewest copies first
	surplus shortlist[blob]   // copies that need not be here, least recently used first
	behind  map[string]bool   // members that own what they lack and this node holds
	silent  map[string]int    // how often in a row a member gave no answer

	tally     Health    // figures so far; guarded by b.report while repairs run
	repairing time.Time // since when they do
	toMove    int64     // what BytesToMove was then
}

// Reconcile is one pass over all that is held here and all that the catalogue
// wants. Garbage goes while it looks; then surplus copies go where they take
// too much space and every owner vouches for its own; then missing copies are
// made, as fast as the repair rate allows and for as long as maxRepair. What
// is left by then makes another pass due, and so does a membership that
// changed meanwhile.
func (b *Blobs) Reconcile(ctx context.Context) error {
	select {
	case b.reconciling <- struct{}{}:
		defer func() { <-b.reconciling }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	b.stats.passes.Add(1)
	p, err := b.newPass(ctx)
	if err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	for _, step := range []func(context.Context) error{p.survey, p.nudge, p.evict, p.repair} {
		if err := step(ctx); errors.Is(err, errMoved) {
			b.log.Info("the membership changed under a pass, which ends early")
			b.Wake()
			return nil
		} else if err != nil {
			return fmt.Errorf("reconcile: %w", err)
		}
	}
	return nil
}

// newPass takes the cutoff and then proves the catalogue current, in this
// order: whatever was named before the cutoff is then visible here. Where that
// proof cannot be had nothing is dropped or given up, but repair goes on.
//
// What goes as garbage is a grace older than this node's clock and than the
// log's time. So a push whose bytes go in this pass, and whose name this pass
// does not see, is named later than a grace after its bytes came, in log time
// too: by that the catalogue knows it, and refuses the name. This holds whoever's
// clock leaps, unless this one's was behind log time by half of the grace or more
// when the bytes came.
func (b *Blobs) newPass(ctx context.Context) (*pass, error) {
	r := b.members.Ring()
	if len(r.Nodes()) == 0 || b.names == nil {
		return nil, oci.ErrUnavailable.Because("the members of the mesh are not known yet")
	}
	self, _ := r.Node(b.id)
	p := &pass{
		b: b, ring: r, membership: r.Fingerprint(), owner: self.Weight > 0,
		cutoff: time.Now().Add(-b.grace), behind: map[string]bool{}, silent: map[string]int{},
		repairs: shortlist[repair]{most: maxListed, compare: repair.compare},
		surplus: shortlist[blob]{most: maxListed, compare: func(a, b blob) int { return a.used.Compare(b.used) }},
	}
	p.tally.Membership, p.tally.Owns, p.tally.Leaves = p.membership, p.owner, self.Leaves
	var err error
	p.since, err = b.names.Sync(ctx)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		b.log.Info("a pass drops nothing: the catalogue cannot be proven current", "error", err)
	}
	p.synced = err == nil
	if old := p.since.Add(-b.grace); old.Before(p.cutoff) {
		p.cutoff = old
	}
	p.tally.Synced = p.synced
	// Before a power cut marks of use may not have reached the disk.
	p.sure = p.synced && time.Since(b.started) >= b.settle
	return p, nil
}

// moved looks again at who is here, and reports whether the membership is
// another one.
func (p *pass) moved() bool {
	p.ring = p.b.members.Ring()
	return p.ring.Fingerprint() != p.membership
}

// survey looks at every blob and decides. Garbage goes at once; the rest waits
// until all is known.
func (p *pass) survey(ctx context.Context) error {
	for batch, err := range p.b.batches(ctx) {
		if err == nil {
			err = p.name(batch)
		}
		if err != nil {
			return err
		}
		if p.moved() {
			return errMoved
		}
		if err := p.place(batch); err != nil {
			return err
		}
		p.ask(ctx, batch, p.asksOwners, liveOwners, p.leaving())
		p.ask(ctx, batch, p.asksAll, p.othersOf, "")
		p.ask(ctx, batch, p.asksFormer, p.formerOwners, "")
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		for i := range batch {
			p.count(&batch[i])
			p.conclude(&batch[i])
		}
	}
	p.publish(func(h *Health) { h.At = time.Now() })
	return nil
}

// name finds out what names the blobs that are held and not wanted.
func (p *pass) name(batch []blob) error {
	var ds []digest.Digest
	for _, v := range batch {
		if v.naming == unnamed {
			ds = append(ds, v.digest)
		}
	}
	if len(ds) == 0 {
		return nil
	}
	named, err := p.b.names.Referenced(ds)
	if err != nil {
		return err
	}
	for i := range batch {
		if batch[i].naming == unnamed {
			if named[0] {
				batch[i].naming = referenced
			}
			named = named[1:]
		}
	}
	return nil
}

// place finds out whose the blobs of batch are.
func (p *pass) place(batch []blob) error {
	ds := make([]digest.Digest, len(batch))
	for i, v := range batch {
		ds[i] = v.digest
	}
	pinned, err := p.b.pinned(ds)
	if err != nil {
		return err
	}
	for i := range batch {
		v := &batch[i]
		v.owners = p.ring.Owners(v.digest)
		v.share = len(v.owners)
		v.accountant = p.accounts(v)
		if pinned[i] {
			if k, ok := p.ring.Keeper(v.digest, p.b.zone); ok && !owns(v.owners, k.ID) {
				v.owners = append(v.owners, k)
			}
		}
		v.owner = owns(v.owners, p.b.id)
	}
	return nil
}

// accounts reports whether this node counts v, whose owners are the ring's yet,
// for the whole mesh, and finds out whether it is lost: its first live owner
// does, or whoever comes next.
func (p *pass) accounts(v *blob) bool {
	if live := liveOwners(v); len(live) > 0 {
		return live[0].ID == p.b.id
	}
	for _, n := range p.ring.Rank(v.digest) {
		if !n.Down {
			return n.ID == p.b.id
		}
	}
	return false
}

// conclude does what is decided about v, or notes it for later.
func (p *pass) conclude(v *blob) {
	switch decide(p.facts(v)) {
	case drop:
		if p.drop(v, p.cutoff) {
			p.tally.Dropped++
			p.b.stats.dropped.Add(1)
			p.b.stats.droppedBytes.Add(v.size)
		}
	case fetch:
		p.plan(repair{digest: v.digest, size: v.size, copies: len(v.has), lost: v.lost, cause: p.cause(v), keeps: v.keeps()})
	case send:
		p.plan(repair{digest: v.digest, size: v.size, copies: 1 + len(v.has), to: v.lacking(), cause: p.cause(v)})
	}
	if v.held && v.lost { // nothing is missing here but the record of it
		p.plan(repair{digest: v.digest, copies: 1 + len(v.has), lost: true})
	}
	if v.held && v.naming != unnamed && !v.owner {
		p.surplus.add(blob{digest: v.digest, size: v.size, used: v.used, held: true, naming: v.naming})
	}
}

func (p *pass) plan(r repair) {
	p.repairs.add(r)
	p.tally.BytesToMove += r.bytes()
}

func (p *pass) facts(v *blob) facts {
	f := facts{
		held: v.held, owner: v.owner, naming: v.naming, lost: v.lost,
		sources: len(v.has), denied: p.denied(v), lacking: len(v.lacking()), leads: v.accountant,
		sure: p.sure, idle: v.used.Before(p.cutoff),
	}
	if v.held {
		f.leads = !slices.ContainsFunc(v.has, func(id string) bool { return v.before(id, p.b.id) })
	}
	return f
}

// denied reports whether every other member said that it lacks v, and none
// seems down.
func (p *pass) denied(v *blob) bool {
	if v.held || len(v.has) > 0 || !v.owner {
		return false
	}
	return !slices.ContainsFunc(p.ring.Nodes(), func(n ring.Node) bool {
		return n.Down || n.ID != p.b.id && !slices.Contains(v.lacks, n.ID)
	})
}

// drop removes the copy of v unless it was used at or after cutoff.
func (p *pass) drop(v *blob, cutoff time.Time) bool {
	removed, err := p.b.local.Remove(v.digest, cutoff)
	if err != nil {
		p.b.log.Warn("a copy could not be dropped", "digest", v.digest, "error", err)
	}
	if removed {
		p.tally.HeldBlobs--
		p.tally.HeldBytes -= v.size
	}
	return removed
}

// leaving returns the membership by which a node that leaves has the owners
// vouch for their copies; "" for one that stays. Its own copies go with it, so
// what the others say they hold must not be on its way out.
func (p *pass) leaving() string {
	if p.tally.Leaves {
		return p.membership
	}
	return ""
}

// asksOwners reports whether it matters what the owners of v hold.
func (p *pass) asksOwners(v *blob) bool {
	switch {
	case v.naming == unnamed:
		return !p.owner && p.unlinkedYet(v)
	case v.held && (v.naming == referenced || !p.owner):
		return true
	}
	return v.naming == wanted && (v.accountant || v.owner && !v.held)
}

// asksAll reports whether it matters what everyone holds of v: no owner has it.
func (p *pass) asksAll(v *blob) bool {
	if len(v.has) > 0 {
		return false
	}
	return v.naming == wanted && v.owner && !v.held || v.naming == referenced && v.held
}

func liveOwners(v *blob) []ring.Node {
	return slices.DeleteFunc(slices.Clone(v.owners), func(n ring.Node) bool { return n.Down })
}

// othersOf returns who was not asked about v yet, those that seem down
// included: gossip may be wrong.
func (p *pass) othersOf(v *blob) []ring.Node {
	return slices.DeleteFunc(p.ring.Nodes(), func(n ring.Node) bool { return slices.Contains(v.lacks, n.ID) })
}

// maxSilent is how often in a row a member may give no answer before it is
// asked nothing more in a pass: each time costs the pass some seconds.
const maxSilent = 3

// ask finds out who holds the blobs of batch that matter, with one question to
// each member that is asked at all. Who does not answer has said nothing about
// any.
func (p *pass) ask(ctx context.Context, batch []blob, matters func(*blob) bool, whom func(*blob) []ring.Node, membership string) {
	about := map[string][]*blob{}
	for i := range batch {
		if v := &batch[i]; matters(v) {
			for _, n := range whom(v) {
				if n.ID != p.b.id && p.silent[n.ID] < maxSilent {
					about[n.ID] = append(about[n.ID], v)
				}
			}
		}
	}
	p.poll(ctx, about, membership)
}

// poll asks each member about some blobs, and notes in these what it says.
func (p *pass) poll(ctx context.Context, about map[string][]*blob, membership string) {
	var mu sync.Mutex
	var asking errgroup.Group
	asking.SetLimit(askedAtOnce)
	for node, blobs := range about {
		ds := make([]digest.Digest, len(blobs))
		for i, v := range blobs {
			ds[i] = v.digest
		}
		asking.Go(func() error {
			held, err := p.b.holdings(ctx, node, ds, membership)
			mu.Lock()
			defer mu.Unlock()
			if p.silent[node]++; err != nil {
				p.b.log.Debug("a member does not say what it holds", "node", node, "error", err)
				return nil
			}
			p.silent[node] = 0
			for i, yes := range held {
				if v := blobs[i]; yes {
					v.has = append(v.has, node)
				} else {
					v.lacks = append(v.lacks, node)
				}
			}
			return nil
		})
	}
	_ = asking.Wait() // always nil
}
