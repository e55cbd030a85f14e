package mesh

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/time/rate"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh/ring"
)

const (
	// passOn is the header of a PUT that names further nodes of the receiver's
	// zone, which it is to send its copy to; and of the answer, which names those
	// that it sees to.
	passOn = "Flotilla-Pass-On"
	// maxPassOn bounds the nodes that one PUT may name.
	maxPassOn = 64
	// hesitation is how long the first node of another zone may take no bytes
	// until the others there are not kept waiting for it.
	hesitation = time.Second
)

// placement is one blob on its way from this disk, where it is durable, to the
// nodes that should hold it. Each lane of it is a goroutine.
type placement struct {
	b       *Blobs
	digest  digest.Digest
	cause   Cause         // should bytes cross to another zone
	pace    *rate.Limiter // nil: as fast as it goes
	wanted  int           // copies at other nodes
	lanes   [][]ring.Node // the nodes that should have them
	results chan struct{} // one for each copy made from here; closed at the end
	working atomic.Int64  // lanes
	made    atomic.Int64  // copies, those that others see to included

	mu   sync.Mutex
	next []ring.Node // candidates left, best first
}

// newPlacement returns what is to be done so that copies of d come to the nodes
// of to, with next in place of those that fail. A node of this zone has a lane
// of its own. Over a line to another one goes one copy, to the first node that
// takes it, which passes it on to the others.
func (b *Blobs) newPlacement(d digest.Digest, to, next []ring.Node) *placement {
	p := &placement{b: b, digest: d, cause: CausePush, wanted: len(to), next: next, results: make(chan struct{}, len(to))}
	abroad := map[string]int{}
	for _, n := range to {
		if i, begun := abroad[n.Zone]; begun {
			p.lanes[i] = append(p.lanes[i], n)
			continue
		}
		if n.Zone != b.zone {
			abroad[n.Zone] = len(p.lanes)
		}
		p.lanes = append(p.lanes, []ring.Node{n})
	}
	return p
}

// part gives each node a lane of its own.
func (p *placement) part() {
	var lanes [][]ring.Node
	for _, lane := range p.lanes {
		for i := range lane {
			lanes = append(lanes, lane[i:i+1:i+1])
		}
	}
	p.lanes = lanes
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
	live := slices.DeleteFunc(ranked, func(n ring.Node) bool { return n.Down })
	first := min(r.Replicas(), len(live))
	others := func(nodes []ring.Node) []ring.Node {
		return slices.DeleteFunc(slices.Clone(nodes), func(n ring.Node) bool { return n.ID == b.id })
	}
	p := b.newPlacement(d, others(live[:first]), others(live[first:]))
	copies := 1
	if self, _ := r.Node(b.id); self.Leaves {
		copies = 0
	}
	if copies+len(p.lanes) < enough {
		p.part()
	}
	return p.await(ctx, copies, enough)
}

// await starts the lanes and returns once enough copies are durable, where there
// are some already.
func (p *placement) await(ctx context.Context, copies, enough int) error {
	if p.wanted > 0 {
		select {
		case p.b.placing <- struct{}{}:
		case <-ctx.Done():
			return oci.ErrUnavailable.Wrap(context.Cause(ctx))
		}
	}
	p.start(ctx)
	for ; copies < enough; copies++ {
		select {
		case _, more := <-p.results:
			if !more {
				p.b.stats.placeShort.Add(1)
				return oci.ErrUnavailable.Because("%d of %d durable copies could be made", copies, enough)
			}
		case <-ctx.Done():
			return oci.ErrUnavailable.Wrap(context.Cause(ctx))
		}
	}
	return nil
}

// start begins sending. It takes over a token of Blobs.placing, if there is
// anything to send.
func (p *placement) start(ctx context.Context) {
	if p.wanted == 0 {
		close(p.results)
		return
	}
	p.working.Store(int64(len(p.lanes)))
	for _, nodes := range p.lanes {
		p.open(ctx, nodes)
	}
}

// open begins one lane, which is counted already.
func (p *placement) open(ctx context.Context, nodes []ring.Node) {
	send := func(ctx context.Context) {
		p.run(ctx, &lane{nodes: nodes})
		p.finish(ctx)
	}
	if !p.b.crew.run(ctx, send) {
		p.finish(ctx)
	}
}

// finish is called at the end of each lane; the last call ends the placement.
func (p *placement) finish(ctx context.Context) {
	if p.working.Add(-1) > 0 {
		return
	}
	close(p.results)
	<-p.b.placing
	if made := p.made.Load(); made < int64(p.wanted) {
		p.b.log.Warn("blob has fewer copies than it should", "digest", p.digest,
			"placed", made, "wanted", p.wanted, "request", oci.RequestID(ctx))
		p.b.Wake()
	}
}

// lane is the nodes that still lack their copy.
type lane struct {
	mu    sync.Mutex
	nodes []ring.Node
	over  bool // nobody sends in it any more
}

// pop takes the first node off, and returns the others of its zone too: it may
// pass the copy on to them.
func (l *lane) pop() (first ring.Node, others []ring.Node, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.nodes) == 0 {
		l.over = true
		return ring.Node{}, nil, false
	}
	first, l.nodes = l.nodes[0], l.nodes[1:]
	for _, n := range l.nodes {
		if n.Zone == first.Zone && len(others) < maxPassOn {
			others = append(others, n)
		}
	}
	return first, others, true
}

// put adds a node behind the others.
func (l *lane) put(n ring.Node) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nodes = append(slices.Clone(l.nodes), n)
}

// strike takes the nodes with these ids off, and returns how many they were.
func (l *lane) strike(ids []string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := len(l.nodes)
	l.nodes = slices.DeleteFunc(slices.Clone(l.nodes), func(n ring.Node) bool { return slices.Contains(ids, n.ID) })
	return before - len(l.nodes)
}

// run makes the copies of one lane: it sends the blob to the first node, and on
// to whom that one does not see to. A node that fails is replaced by the next
// rank.
func (p *placement) run(ctx context.Context, l *lane) {
	for {
		n, others, ok := l.pop()
		if !ok {
			return
		}
		o := offer{cause: p.cause, pace: p.pace, others: others}
		if p.pace == nil {
			o.slow = func() { p.split(ctx, l) }
		}
		passed, err := p.b.send(ctx, n.ID, p.digest, o)
		if err == nil {
			p.made.Add(1 + int64(l.strike(passed)))
			p.b.stats.placed.Add(1)
			p.results <- struct{}{}
			continue
		}
		p.b.stats.placeFailed.Add(1)
		p.b.log.Debug("a copy could not be placed", "node", n.ID, "digest", p.digest, "error", err, "request", oci.RequestID(ctx))
		if next, ok := p.take(); ok && ctx.Err() == nil {
			l.put(next)
		}
	}
}

// split sends to the others of a lane without waiting for its first node any
// longer: a push may wait for their copies.
func (p *placement) split(ctx context.Context, l *lane) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over && len(l.nodes) > 0 {
		p.working.Add(1)
		p.open(ctx, l.nodes)
		l.nodes = nil
	}
}

// take returns the best candidate left.
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

// offer is what goes with a copy that is sent.
type offer struct {
	cause  Cause         // should its bytes cross to another zone
	pace   *rate.Limiter // nil: as fast as it goes
	others []ring.Node   // of the receiver's zone, whom it is to pass the copy on to
	slow   func()        // nil, or called once if the receiver takes its time
}

// send offers this node's copy of d to another node, which takes it or says
// that it has it, and returns whom that node passes it on to. As long as the
// blob comes there from elsewhere, send waits for that.
func (b *Blobs) send(ctx context.Context, node string, d digest.Digest, o offer) (passed []string, err error) {
	if o.slow != nil {
		o.slow = sync.OnceFunc(o.slow)
	} else {
		o.slow = func() {}
	}
	got, deadline := int64(-1), time.Time{}
	for {
		resp, err := b.sendOnce(ctx, node, d, o)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusAccepted {
			return splitIDs(resp.Header.Get(passOn)), nil
		}
		at, _ := strconv.ParseInt(resp.Header.Get(reached), 10, 64) // none: no progress
		if at > got {
			got, deadline = at, time.Now().Add(b.patience.Durable)
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("wait for a download there: %w", errNoAnswer)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(b.patience.Pause):
		}
	}
}

// sendOnce returns the answer to one offer that was not refused; it has no body.
func (b *Blobs) sendOnce(ctx context.Context, node string, d digest.Digest, o offer) (*http.Response, error) {
	f, size, err := b.local.Open(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("open the copy to send: %w", err)
	}
	defer f.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := b.newOffer(ctx, node, d, o)
	if err != nil {
		return nil, err
	}
	var r io.Reader = f
	if o.pace != nil {
		// Where copies of one blob go to several nodes, the first to be done takes
		// the flag with it; the others keep to the pace.
		hurry, _ := b.mending.LoadOrStore(d, new(atomic.Bool))
		defer b.mending.CompareAndDelete(d, hurry)
		r = pacer{ctx, f, o.pace, hurry.(*atomic.Bool)}
	}
	body := newOutgoing(r, limits{
		stall: b.patience.Stall, answer: b.patience.Durable,
		down: func() bool { return b.members.Down(node) }, slow: o.slow,
	}, cancel)
	body.tally = b.announce(req.Header, node, o.cause)
	idle := time.AfterFunc(hesitation, func() {
		if !body.taken() {
			o.slow()
		}
	})
	defer func() {
		idle.Stop()
		sent, _ := body.end()
		b.stats.bytesTo.Add(sent)
	}()
	resp, err := b.do(req, body, size)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		b.stats.held.Add(1)
		return resp, nil
	case http.StatusCreated, http.StatusAccepted:
		return resp, nil
	}
	return nil, decode(resp)
}

// newOffer returns the request for an offer, but for its body.
func (b *Blobs) newOffer(ctx context.Context, node string, d digest.Digest, o offer) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "https://"+node+"/blobs/"+d.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set(sentBy, b.id)
	if len(o.others) > 0 {
		req.Header.Set(passOn, joinIDs(o.others))
	}
	if o.pace != nil {
		req.Header.Set(forRepair, string(o.cause))
	}
	return req, nil
}

func joinIDs(nodes []ring.Node) string {
	ids := make([]string, len(nodes))
	for i, n := range nodes {
		ids[i] = n.ID
	}
	return strings.Join(ids, ",")
}

func splitIDs(s string) []string {
	if s == "" {
		return nil
	}
	return strings.SplitN(s, ",", maxPassOn+1)
}
