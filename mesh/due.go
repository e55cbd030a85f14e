package mesh

import (
	"context"
	"maps"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// nudgeEvery is how often other members may make a pass due here.
const nudgeEvery = 5 * time.Minute

// Due is ready when a pass is wanted soon. It says so once for however many
// reasons; how soon, and how often, is the receiver's choice.
func (b *Blobs) Due() <-chan struct{} { return b.due }

// Wake makes a pass due.
func (b *Blobs) Wake() {
	select {
	case b.due <- struct{}{}:
	default: // one is due already
	}
}

// watch makes a pass due when the membership changes, and when a member is
// back: it may lack what was placed elsewhere meanwhile, or hold what was
// missed. That someone went down is no reason; it may be back in a minute. Of
// this zone it counts, too, who may keep what it pins.
func (b *Blobs) watch(ctx context.Context) {
	membership, up, stay := "", map[string]bool{}, map[string]bool{}
	for {
		changed := b.members.Changed()
		r := b.members.Ring()
		before, stayed, due := up, stay, membership != r.Fingerprint()
		up, stay = map[string]bool{}, map[string]bool{}
		for _, n := range r.Nodes() {
			up[n.ID] = !n.Down
			due = due || up[n.ID] && !before[n.ID]
			if n.Zone == b.zone && !n.Leaves && !n.Out {
				stay[n.ID] = true
			}
		}
		due = due || b.pins != nil && !maps.Equal(stay, stayed)
		if membership = r.Fingerprint(); due && len(up) > 0 {
			b.Wake()
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// nudge tells the members that lack what they own: each makes its own copies,
// and may have been away when they were placed.
func (p *pass) nudge(ctx context.Context) error {
	var telling errgroup.Group
	telling.SetLimit(askedAtOnce)
	for node := range p.behind {
		telling.Go(func() error {
			if _, err := p.b.call(ctx, p.b.patience.Answer, http.MethodPost, node, "/blobs/wake", nil); err != nil {
				p.b.log.Debug("a member does not hear what it lacks", "node", node, "error", err)
			}
			return nil
		})
	}
	return telling.Wait()
}

// serveWake makes a pass due, unless another member just did.
func (b *Blobs) serveWake(w http.ResponseWriter, _ *http.Request) error {
	now := time.Now()
	if last := b.nudged.Load(); last == nil || now.Sub(*last) >= nudgeEvery {
		if b.nudged.CompareAndSwap(last, &now) {
			b.Wake()
		}
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
