package mesh

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"golang.org/x/time/rate"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh/ring"
)

// placement is one blob on its way from this disk, where it is durable, to the
// nodes that should hold it.
type placement struct {
	b       *Blobs
	digest  digest.Digest
	wanted  int // copies at other nodes
	working atomic.Int64
	made    atomic.Int64

	mu   sync.Mutex
	next []ring.Node // candidates left, best first
}

// place offers the blob d to its first live ranks at once and returns when
// enough copies are durable for a push to be acknowledged, this node's own
// among them: any durable copy counts, since none is dropped before the owners
// confirm theirs. That of a node which is to leave does not: it may have found
// all handed over before the push, and be gone after it. The rest is done in the
// background. A failed candidate is replaced by the next rank.
func (b *Blobs) place(ctx context.Context, d digest.Digest) error {
	r := b.members.Ring()
	if len(r.Nodes()) == 0 {
		return oci.ErrUnavailable.Because("the members of the mesh are not known yet")
	}
	ranked := r.Rank(d)
	enough := max(1, min(2, r.Replicas(), len(ranked)))
	p := &placement{b: b, digest: d}
	live := 0
	for _, n := range ranked {
		if n.Down {
			continue
		}
		if live++; n.ID != b.id {
			p.next = append(p.next, n)
			if live <= r.Replicas() {
				p.wanted++
			}
		}
	}
	results, err := p.start(ctx)
	if err != nil {
		return err
	}
	copies := 1
	if self, _ := r.Node(b.id); self.Leaves {
		copies = 0
	}
	for range p.wanted {
		if copies >= enough {
			break
		}
		select {
		case ok := <-results:
			if ok {
				copies++
			}
		case <-ctx.Done():
			return oci.ErrUnavailable.Wrap(context.Cause(ctx))
		}
	}
	if copies < enough {
		b.stats.placeShort.Add(1)
		return oci.ErrUnavailable.Because("%d of %d durable copies could be made", copies, enough)
	}
	return nil
}

// start begins sending, one goroutine per wanted copy, and returns what tells
// of each whether it was made.
func (p *placement) start(ctx context.Context) (<-chan bool, error) {
	results := make(chan bool, p.wanted)
	if p.wanted == 0 {
		return results, nil
	}
	select {
	case p.b.placing <- struct{}{}:
	case <-ctx.Done():
		return nil, oci.ErrUnavailable.Wrap(context.Cause(ctx))
	}
	p.working.Store(int64(p.wanted))
	for range p.wanted {
		send := func(ctx context.Context) {
			results <- p.makeCopy(ctx)
			p.finish(ctx)
		}
		if !p.b.crew.run(ctx, send) {
			results <- false
			p.finish(ctx)
		}
	}
	return results, nil
}

// makeCopy sends the blob to the best candidate left, and to the next when
// that fails.
func (p *placement) makeCopy(ctx context.Context) bool {
	for {
		n, ok := p.take()
		if !ok || ctx.Err() != nil {
			return false
		}
		err := p.b.send(ctx, n.ID, p.digest, CausePush, nil)
		if err == nil {
			p.made.Add(1)
			p.b.stats.placed.Add(1)
			return true
		}
		p.b.stats.placeFailed.Add(1)
		p.b.log.Debug("a copy could not be placed", "node", n.ID, "digest", p.digest, "err", err, "request", oci.RequestID(ctx))
	}
}

func (p *placement) take() (ring.Node, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.next) == 0 {
		return ring.Node{}, false
	}
	n := p.next[0]
	p.next = p.next[1:]
	return n, true
}

// finish is called once for each wanted copy; the last call ends the placement.
func (p *placement) finish(ctx context.Context) {
	if p.working.Add(-1) > 0 {
		return
	}
	<-p.b.placing
	if made := p.made.Load(); made < int64(p.wanted) {
		p.b.log.Warn("blob has fewer copies than it should", "digest", p.digest,
			"placed", made, "wanted", p.wanted, "request", oci.RequestID(ctx))
		p.b.Wake()
	}
}

// send offers this node's copy of d to another node, which takes it or says
// that it has it. It keeps to pace where there is one.
func (b *Blobs) send(ctx context.Context, node string, d digest.Digest, cause Cause, pace *rate.Limiter) error {
	f, size, err := b.local.Open(ctx, d)
	if err != nil {
		return fmt.Errorf("open the copy to send: %w", err)
	}
	defer f.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "https://"+node+"/blobs/"+d.String(), nil)
	if err != nil {
		return err
	}
	var r io.Reader = f
	if pace != nil {
		r = pacer{ctx, f, pace, new(atomic.Bool)}
	}
	body := newOutgoing(r, limits{
		stall: b.patience.Stall, answer: b.patience.Durable,
		down: func() bool { return b.members.Down(node) },
	}, cancel)
	body.tally = b.announce(req.Header, node, cause)
	defer func() {
		sent, _ := body.end()
		b.stats.bytesTo.Add(sent)
	}()
	resp, err := b.do(req, body, size)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		b.stats.held.Add(1)
		return nil
	case http.StatusCreated:
		return nil
	}
	return decode(resp)
}
