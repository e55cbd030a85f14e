package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// askedAtOnce is how many of the nodes that probably lack a blob are asked
// at a time.
const askedAtOnce = 8

// hunt finds the sources of one download, one after the other. It belongs to
// the one goroutine that runs the download.
type hunt struct {
	b      *Blobs
	digest digest.Digest
	asks   bool  // the head of the zone for a neighbour; else this node was asked as the head
	repair bool  // no client waited when it began
	cause  Cause // of a repair

	hurried atomic.Bool // one waits now

	size     int64           // of the blob, -1 until a source said
	tried    map[string]bool // in this round
	denied   map[string]bool // who said that they lack it
	vouched  map[string]bool // who sent bytes, or was first to say the size
	odd      bool            // somebody has the blob in another size
	reached  int64
	deadline time.Time // for more than reached

	grows bool // into a copy that others may follow
	spot  spot // in the line of the zone
}

func (b *Blobs) newHunt(d digest.Digest, asks bool) *hunt {
	return &hunt{
		b: b, digest: d, asks: asks, size: -1, reached: -1, grows: true, spot: spot{named: make(chan struct{})},
		tried: map[string]bool{}, denied: map[string]bool{}, vouched: map[string]bool{},
	}
}

// source is next at the pace of repairs, for one. It is what a download reads.
func (h *hunt) source(ctx context.Context, off int64) (io.ReadCloser, int64, error) {
	body, size, err := h.next(ctx, off)
	if err == nil && h.repair {
		body = pacedBody{body, pacer{ctx, body, h.b.pace, &h.hurried}}
	}
	return body, size, err
}

// why is what its bytes are for now, should they come from another zone.
func (h *hunt) why() Cause {
	if h.repair && !h.hurried.Load() {
		return h.cause
	}
	return CausePull
}

// next returns the bytes from off on of the next source that has more than
// that, and the size of the whole blob.
func (h *hunt) next(ctx context.Context, off int64) (io.ReadCloser, int64, error) {
	body, size, err := h.search(ctx, off)
	if err != nil {
		h.part()
	}
	return body, size, err
}

// search does the work of next. As long as no source has answered, one
// round decides: the blob is proved absent, or unavailable. Once a response
// has begun, rounds follow each other until one has an answer, or there was no
// progress for a long time, or the only answers contradict its size.
func (h *hunt) search(ctx context.Context, off int64) (io.ReadCloser, int64, error) {
	if h.size < 0 {
		body, err := h.round(ctx, off)
		if err != nil {
			return nil, 0, h.verdict(ctx)
		}
		return body, h.size, nil
	}
	if off > h.reached {
		h.reached, h.deadline = off, time.Now().Add(h.b.patience.Persist)
	}
	for pause := h.b.patience.Pause; ; pause = min(2*pause, 16*h.b.patience.Pause) {
		body, err := h.round(ctx, off)
		if err == nil {
			return body, h.size, nil
		}
		if h.odd {
			// After those who contradict, so that they are asked before.
			for id := range h.vouched {
				h.b.doubt(id, h.digest, "the others have the blob in another size")
			}
			return nil, 0, oci.ErrUnavailable.Because("the nodes disagree about the size of the blob")
		}
		if time.Now().After(h.deadline) {
			return nil, 0, oci.ErrUnavailable.Because("no source for the rest of the blob")
		}
		select {
		case <-ctx.Done():
			return nil, 0, context.Cause(ctx)
		case <-time.After(pause):
		}
		clear(h.tried)
	}
}

var errNobody = errors.New("nobody serves it")

// round asks everyone not tried in this round, likely holders first and one by
// one, the others together, then those that seem down: gossip may be wrong. Last
// come those that sent wrong bytes, those of long ago first.
func (h *hunt) round(ctx context.Context, off int64) (io.ReadCloser, error) {
	if h.grows {
		body, err := h.take(ctx, off)
		if err == nil || errors.Is(err, errInTurn) && h.size >= 0 {
			return body, err
		}
	}
	r := h.b.members.Ring()
	var likely, others, down, doubted []string
	gateway, doubts := "", h.b.distrust.of(h.digest)
	for _, s := range r.Sources(h.digest, h.b.id, h.b.zone) {
		if h.tried[s.ID] {
			continue
		}
		if s.Gateway && h.asks && !h.grows && h.size < 0 {
			gateway = s.ID
		}
		switch {
		case !doubts[s.ID].IsZero():
			doubted = append(doubted, s.ID)
		case s.Down || h.b.avoids(s.ID):
			down = append(down, s.ID)
		case len(likely) <= 2*r.Replicas():
			likely = append(likely, s.ID)
		default:
			others = append(others, s.ID)
		}
	}
	for _, id := range likely {
		if body, err := h.get(ctx, question{node: id, off: off, gateway: id == gateway}); err == nil {
			return body, nil
		}
	}
	for _, group := range [][]string{others, down} {
		if body, err := h.getAny(ctx, group, off); err == nil {
			return body, nil
		}
	}
	slices.SortStableFunc(doubted, func(a, b string) int { return doubts[a].Compare(doubts[b]) })
	for _, id := range doubted {
		if body, err := h.get(ctx, question{node: id, off: off}); err == nil {
			return body, nil
		}
	}
	return nil, errNobody
}

// verdict says what a round without an answer proves: absence, if every member
// denied having the blob.
func (h *hunt) verdict(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return oci.ErrUnavailable.Wrap(context.Cause(ctx))
	}
	nodes := h.b.members.Ring().Nodes()
	silent := 0
	for _, n := range nodes {
		if n.ID != h.b.id && !h.denied[n.ID] {
			silent++
		}
	}
	switch {
	case len(nodes) == 0:
		h.b.stats.unavailable.Add(1)
		return oci.ErrUnavailable.Because("the members of the mesh are not known yet")
	case silent > 0:
		h.b.stats.unavailable.Add(1)
		return oci.ErrUnavailable.Because("%d nodes that may hold the blob cannot be asked", silent)
	}
	h.b.stats.unknown.Add(1)
	return oci.ErrBlobUnknown
}

// get asks one node for the bytes from an offset on.
func (h *hunt) get(ctx context.Context, q question) (io.ReadCloser, error) {
	id := q.node
	h.tried[id] = true
	q.digest, q.cause = h.digest, h.why()
	q.repair = h.repair && q.cause != CausePull
	body, size, err := h.b.ask(ctx, http.MethodGet, q)
	if err == nil && h.size >= 0 && size != h.size {
		_ = body.Close()
		err = fmt.Errorf("it has %d bytes there and %d elsewhere", size, h.size)
		h.odd = true
		h.b.doubt(id, h.digest, err.Error())
	}
	if err == nil {
		if q.gateway {
			h.b.stats.gatewayServed.Add(1)
		}
		if h.size < 0 {
			h.size = size
			h.vouched[id] = true
		}
		y := h.deliver(h.b.across(ctx, body, id, size-q.off, h.why), id)
		if q.repair && h.hurried.Load() {
			h.press() // a client came meanwhile
		}
		return y, nil
	}
	h.note(ctx, id, err)
	return nil, err
}

// note remembers that a node did not serve.
func (h *hunt) note(ctx context.Context, id string, err error) {
	h.tried[id] = true
	if errors.Is(err, oci.ErrBlobUnknown) {
		h.denied[id] = true
		return
	}
	h.b.log.Debug("source does not serve a blob", "node", id, "digest", h.digest, "error", err, "request", oci.RequestID(ctx))
}

// getAny asks nodes which of them has the blob, and then the first that does
// for its bytes.
func (h *hunt) getAny(ctx context.Context, ids []string, off int64) (io.ReadCloser, error) {
	for len(ids) > 0 {
		id, ok := h.poll(ctx, ids, off)
		if !ok {
			break
		}
		if body, err := h.get(ctx, question{node: id, off: off}); err == nil {
			return body, nil
		}
		var rest []string
		for _, id := range ids {
			if !h.tried[id] {
				rest = append(rest, id)
			}
		}
		ids = rest
	}
	return nil, errNobody
}

// poll asks ids at once, a few at a time, and returns the first that has more
// than off bytes. Those whose answer was not needed any more stay untried.
func (h *hunt) poll(ctx context.Context, ids []string, off int64) (winner string, ok bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	var asking errgroup.Group
	asking.SetLimit(askedAtOnce)
	cause := h.why()
	for _, id := range ids {
		asking.Go(func() error {
			if ctx.Err() != nil {
				return nil
			}
			_, _, err := h.b.ask(ctx, http.MethodHead, question{node: id, digest: h.digest, off: off, repair: cause != CausePull, cause: cause})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case ok:
			case err == nil:
				winner, ok = id, true
				cancel()
			default:
				h.note(ctx, id, err)
			}
			return nil
		})
	}
	_ = asking.Wait() // always nil
	return winner, ok
}
