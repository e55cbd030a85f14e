package mesh

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh/ring"
)

const (
	// maxRepair is how long one pass makes copies. What is left then waits for
	// the next, which sees the mesh as it is by then.
	maxRepair = 10 * time.Minute
	// repairsAtOnce hides the time that small blobs spend on the way.
	repairsAtOnce = 4
)

// repair is one blob of which copies are missing: here, or at some owners.
type repair struct {
	digest digest.Digest
	size   int64
	copies int      // that are known of, elsewhere or here
	to     []string // owners to send a copy to; none: it is wanted here
	lost   bool     // recorded as lost
	cause  Cause    // should bytes of it cross to another zone
	keeps  bool     // it is wanted here since the zone pins it
}

// bytes returns how many are to be moved, as far as that is known; of what
// nobody has, none.
func (r repair) bytes() int64 {
	if r.copies == 0 {
		return 0
	}
	return max(r.size, 0) * int64(max(1, len(r.to)))
}

// compare orders repairs by how near their blob is to being lost. What nobody
// has comes last: there is nothing to save, and each costs a search.
func (r repair) compare(o repair) int {
	none := func(r repair) int { return min(1, r.copies) }
	return cmp.Or(-cmp.Compare(none(r), none(o)), cmp.Compare(r.copies, o.copies))
}

// repair makes the copies that were found missing.
func (p *pass) repair(ctx context.Context) error {
	list := p.repairs.sorted()
	p.repairing, p.toMove = time.Now(), p.tally.BytesToMove
	var working errgroup.Group
	working.SetLimit(repairsAtOnce)
	defer func() {
		_ = working.Wait() // always nil
		if p.repairs.cut && p.tally.Repaired > 0 {
			p.b.Wake() // there is more to do, and some of it works
		}
	}()
	for _, r := range list {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case p.moved():
			return errMoved
		case time.Since(p.repairing) > maxRepair:
			p.b.Wake()
			return nil
		}
		working.Go(func() error {
			p.mend(ctx, r)
			return nil
		})
	}
	return nil
}

// asksFormer reports whether it matters who held v before: there is another
// zone, and a copy is to be made here.
func (p *pass) asksFormer(v *blob) bool {
	return v.naming == wanted && v.owner && !v.held && len(v.has) > 0 && zonesOf(p.ring.Nodes()) > 1
}

// formerOwners returns the next ranks, who owned v if somebody came in between.
func (p *pass) formerOwners(v *blob) []ring.Node {
	others := slices.DeleteFunc(p.ring.Rank(v.digest), func(n ring.Node) bool { return n.Down || owns(v.owners, n.ID) })
	return others[:min(p.ring.Replicas(), len(others))]
}

// cause tells a repair from rebalancing: whether v has fewer copies than it
// should have, or none in a second zone, wherever they are. A copy for a pin is
// missing.
func (p *pass) cause(v *blob) Cause {
	holders := slices.DeleteFunc(p.ring.Nodes(), func(n ring.Node) bool {
		return n.Leaves || !slices.Contains(v.has, n.ID) && !(v.held && n.ID == p.b.id)
	})
	pinned := !v.held && !owns(v.owners[:v.share], p.b.id)
	if pinned || len(holders) < v.share || zonesOf(holders) < min(2, zonesOf(v.owners)) {
		return CauseRepair
	}
	return CauseRebalance
}

// mend makes the missing copies of one blob, unless nothing names it any more.
func (p *pass) mend(ctx context.Context, r repair) {
	named, err := p.b.names.Referenced([]digest.Digest{r.digest})
	if err != nil || !named[0] {
		return
	}
	if len(r.to) > 0 {
		err = p.deliver(ctx, r)
	} else {
		err = p.acquire(ctx, r)
	}
	p.publish(func(h *Health) {
		if err != nil {
			h.Failed++
			return
		}
		h.Repaired++
		h.BytesToMove -= r.bytes()
		if r.keeps {
			h.Unkept--
		}
	})
	if err != nil {
		p.b.stats.repairFailed.Add(1)
		p.b.log.Debug("copies of a blob are still missing", "digest", r.digest, "error", err)
		return
	}
	p.b.stats.repaired.Add(1)
}

// deliver sends this node's copy to owners that lack one, over a line once.
func (p *pass) deliver(ctx context.Context, r repair) error {
	var to []ring.Node
	for _, id := range r.to {
		if n, known := p.b.members.Ring().Node(id); known {
			to = append(to, n)
		}
	}
	copies := p.b.newPlacement(r.digest, to, nil)
	copies.pace, copies.cause = p.b.pace, r.cause
	for _, nodes := range copies.lanes {
		copies.run(ctx, &lane{nodes: nodes})
	}
	if made := int(copies.made.Load()); made < len(r.to) {
		return oci.ErrUnavailable.Because("%d of %d copies could be made", made, len(r.to))
	}
	return nil
}

// acquire makes a copy here, and takes the record back that the blob is lost.
// Where nobody knew of a copy and the search for one ends with a proof that
// there is none, the blob is recorded as lost.
func (p *pass) acquire(ctx context.Context, r repair) error {
	b := p.b
	if !b.local.Has(r.digest) {
		err := b.local.Full()
		if err == nil {
			err = b.bring(ctx, r.digest, r.cause)
		}
		if errors.Is(err, oci.ErrBlobUnknown) && r.copies == 0 {
			err = errors.Join(err, p.giveUpOn(ctx, r.digest))
		}
		if err != nil {
			return err
		}
	}
	if r.lost {
		b.log.Info("a lost blob is found", "digest", r.digest)
		return b.names.Found(ctx, r.digest)
	}
	return nil
}

// giveUpOn records that d is lost, after every member denied having it. That
// counts only where none seems down and the members are those of the start,
// and against nothing that was pushed since.
func (p *pass) giveUpOn(ctx context.Context, d digest.Digest) error {
	r := p.b.members.Ring()
	down := slices.ContainsFunc(r.Nodes(), func(n ring.Node) bool { return n.Down })
	if !p.synced || down || r.Fingerprint() != p.membership {
		return nil
	}
	p.b.log.Error("no member holds a blob that the catalogue names", "digest", d)
	return p.b.names.Lost(ctx, d, p.since)
}

// bring makes a durable copy of d here, for cause, or for a client that comes to
// wait for it meanwhile.
func (b *Blobs) bring(ctx context.Context, d digest.Digest, cause Cause) error {
	h := b.newHunt(d, true)
	h.repair, h.cause = true, cause
	return b.local.Obtain(ctx, d, h.source)
}

// hurry lets repairs of d go as fast as they can: a client waits for it.
func (b *Blobs) hurry(d digest.Digest) {
	if h := b.brigade.hunt(d); h != nil && h.repair && !h.hurried.Swap(true) {
		h.press()
	}
	if hurry, ok := b.mending.Load(d); ok {
		hurry.(*atomic.Bool).Store(true)
	}
}

// press has the source of the download hurry too: it may be another repair.
func (h *hunt) press() {
	h.spot.mu.Lock()
	source, request := h.spot.source, h.spot.request
	h.spot.mu.Unlock()
	if source == "" {
		return // the one to come is asked in a client's name
	}
	h.b.crew.run(oci.WithRequestID(context.Background(), request), func(ctx context.Context) {
		if _, _, err := h.b.ask(ctx, http.MethodHead, question{node: source, digest: h.digest}); err != nil {
			h.b.log.Debug("a source does not hurry", "node", source, "digest", h.digest, "error", err, "request", request)
		}
	})
}

// newPace returns the limit that all repairs of a node share, in bytes a
// second. The burst is the largest piece that is read at once: so small that
// nobody takes the wait behind it for silence.
func newPace(perSecond int64) *rate.Limiter {
	return rate.NewLimiter(rate.Limit(perSecond), int(max(4<<10, min(copyBuffer, perSecond/8))))
}

// pacer reads at the pace of repairs, until a client waits for the same bytes.
type pacer struct {
	ctx   context.Context
	r     io.Reader
	pace  *rate.Limiter
	hurry *atomic.Bool
}

// Read implements io.Reader.
func (p pacer) Read(b []byte) (int, error) {
	if p.hurry.Load() {
		return p.r.Read(b)
	}
	n, err := p.r.Read(b[:min(len(b), p.pace.Burst())])
	if late := p.pace.WaitN(p.ctx, n); err == nil {
		err = late
	}
	return n, err
}

// pacedBody is the body of a source at the pace of repairs.
type pacedBody struct {
	io.ReadCloser
	pacer
}

// Read implements io.Reader.
func (b pacedBody) Read(p []byte) (int, error) { return b.pacer.Read(p) }

// Held passes on that a rate holds the body back, see crossing.
func (b pacedBody) Held() bool {
	y, ok := b.ReadCloser.(*delivery)
	return ok && y.Held()
}

// Lied passes on that the blob was wrong, see delivery.
func (b pacedBody) Lied() {
	if y, ok := b.ReadCloser.(*delivery); ok {
		y.Lied()
	}
}
