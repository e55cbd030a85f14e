package mesh

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

const (
	// maxAllowance is how many bytes a body is allowed at once where no rate is
	// set, until it looks again whether one is.
	maxAllowance = 16 << 20
	// freeFor is how long a node relies on there being no rate.
	freeFor = 10 * time.Second
	// maxAsking bounds the requests for an allowance that wait here. Each is of a
	// body that some node reads.
	maxAsking = 4096
)

// rates is the limits of what comes into this zone, one for each other zone.
// One node of the zone, the pair's warden, has the bucket from which all nodes
// of the zone take their allowances, so that the limit holds for all of them
// together. The warden's setting is what counts. A node to which it gives no
// answer goes on with its share of the rate.
type rates struct {
	perSecond int64         // this node's setting; 0 is no limit
	asking    chan struct{} // a token for each request that waits

	mu     sync.Mutex
	quotas map[string]*quota // by the zone that they come from
}

func newRates(perSecond int64) rates {
	return rates{perSecond: perSecond, asking: make(chan struct{}, maxAsking), quotas: map[string]*quota{}}
}

// quota is what may come into this zone from one other.
type quota struct {
	kept *bucket // the zone's, for when this node is the warden

	mu    sync.Mutex
	rate  int64     // as the warden last said, at first this node's own
	heard time.Time // when it said so
	alone time.Time // until then the warden is not asked
	share *bucket   // this node's, for when the warden gives no answer
}

// quota returns that of a zone of the mesh.
func (r *rates) quota(from string) *quota {
	r.mu.Lock()
	defer r.mu.Unlock()
	q := r.quotas[from]
	if q == nil {
		q = &quota{rate: r.perSecond}
		if r.perSecond > 0 {
			q.kept = newBucket(r.perSecond)
		}
		r.quotas[from] = q
	}
	return q
}

// piece returns how much is read at once: so little that who follows the copy
// sees it grow.
func (q *quota) piece() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.rate == 0 {
		return maxAllowance
	}
	return grantOf(q.rate)
}

// wish is what a node asks of the warden: to read on.
type wish struct {
	From   string        `json:"from"` // the zone where the bytes come from
	Cause  Cause         `json:"cause"`
	Bytes  int64         `json:"bytes"`
	Waited time.Duration `json:"waited"` // nanoseconds, in requests before this one
}

// allowance is the warden's answer.
type allowance struct {
	Bytes int64 `json:"bytes"` // that may come in; 0 says to ask again
	Rate  int64 `json:"rate"`  // bytes a second for the zone; 0 is no limit
}

// warden returns the node of this zone that keeps the rate of what comes from
// another one, and how many nodes of this zone are alive.
func (b *Blobs) warden(from string) (id string, live int64) {
	pair := digest.FromString(from + " " + b.zone)
	for _, n := range b.members.Ring().Gateway(pair, b.zone) {
		if n.Down && n.ID != b.id {
			continue
		}
		if live++; id == "" {
			id = n.ID
		}
	}
	if id == "" {
		return b.id, 1
	}
	return id, live
}

// allow waits until some of n bytes may come from another zone, and returns
// how many. What they are for may change meanwhile. held is called now and then.
func (b *Blobs) allow(ctx context.Context, from string, why func() Cause, n int64, held func()) (int64, error) {
	since := time.Now()
	for {
		got, err := b.wishFor(ctx, wish{From: from, Cause: why(), Bytes: n, Waited: time.Since(since)})
		if err != nil || got > 0 {
			return got, err
		}
		held()
	}
}

// wishFor asks once: the warden, or where that gives no answer the share of
// this node.
func (b *Blobs) wishFor(ctx context.Context, w wish) (int64, error) {
	q := b.rates.quota(w.From)
	warden, live := b.warden(w.From)
	if warden == b.id {
		return b.grant(ctx, q.kept, w)
	}
	now := time.Now()
	q.mu.Lock()
	free := q.rate == 0 && now.Sub(q.heard) < freeFor
	alone := now.Before(q.alone) || b.avoids(warden)
	q.mu.Unlock()
	if free {
		return w.Bytes, nil
	}
	if !alone {
		answer, err := b.askWarden(ctx, warden, w)
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		q.mu.Lock()
		if err == nil {
			q.rate, q.heard = answer.Rate, time.Now()
			q.mu.Unlock()
			return answer.Bytes, nil
		}
		q.alone = time.Now().Add(avoidance)
		q.mu.Unlock()
		b.log.Debug("the warden of a rate does not answer: this node goes on with its share", "node", warden, "from", w.From, "error", err)
	}
	return b.grant(ctx, q.own(live), w)
}

// own returns the bucket of this node alone, one of live nodes; nil where there
// is no limit.
func (q *quota) own(live int64) *bucket {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.rate == 0 {
		return nil
	}
	share := max(1, q.rate/live)
	if q.share == nil {
		q.share = newBucket(share)
	}
	q.share.setRate(share)
	return q.share
}

// grant takes from a bucket what w asks for, waiting no longer than a node that
// asks would: by then the wish may be another one.
func (b *Blobs) grant(ctx context.Context, from *bucket, w wish) (int64, error) {
	if from == nil {
		return w.Bytes, nil
	}
	wait, cancel := context.WithTimeout(ctx, b.patience.Answer/4)
	defer cancel()
	n, err := from.take(wait, w.Cause.rank(), time.Now().Add(-w.Waited), w.Bytes)
	if err != nil && ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	return n, nil
}

func (b *Blobs) askWarden(ctx context.Context, warden string, w wish) (allowance, error) {
	var a allowance
	if err := b.query(ctx, b.patience.Answer, warden, "/blobs/allowance", w, &a); err != nil {
		return allowance{}, err
	}
	if a.Bytes < 0 || a.Bytes > w.Bytes || a.Rate < 0 {
		return allowance{}, oci.ErrUnavailable.Because("impossible answer from a peer")
	}
	return a, nil
}

// serveAllowance answers a node of this zone that takes this one for the warden.
// A request waits for a moment only, and not at all once the asker has gone.
func (b *Blobs) serveAllowance(w http.ResponseWriter, r *http.Request) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxAnswer))
	if err != nil {
		return oci.ErrSizeInvalid.Wrap(err)
	}
	var ask wish
	if err := json.Unmarshal(body, &ask); err != nil || ask.Bytes <= 0 || ask.Cause.rank() < 0 || ask.Waited < 0 {
		return oci.ErrUnsupported.Because("a wish that cannot be read")
	}
	if asker, known := b.members.Ring().Node(caller(r.Context())); !known || asker.Zone != b.zone || ask.From == b.zone || !b.knows(ask.From) {
		return oci.ErrUnsupported.Because("what comes from zone %.40q is not allowed for here", ask.From)
	}
	select {
	case b.rates.asking <- struct{}{}:
		defer func() { <-b.rates.asking }()
	default:
		return oci.ErrUnavailable.Because("too many nodes wait to be allowed bytes")
	}
	n, err := b.grant(r.Context(), b.rates.quota(ask.From).kept, ask)
	if err != nil {
		return oci.ErrUnavailable.Wrap(err)
	}
	return b.answer(w, allowance{Bytes: n, Rate: b.rates.perSecond})
}

// crossing is a body that comes from another zone. Whoever reads it waits for an
// allowance for the bytes just read, so that the next ones stay with the sender.
type crossing struct {
	body   io.ReadCloser
	b      *Blobs
	ctx    context.Context
	cancel context.CancelFunc
	from   string
	why    func() Cause
	left   int64       // to come; below 0 where nobody said
	credit int64       // allowed and not read yet; below 0, read and not allowed yet
	held   atomic.Bool // it waits for an allowance

	mu   sync.Mutex
	tell func() // nil, or tells the sender that this node is alive
	told time.Time
}

// Read implements io.Reader.
func (c *crossing) Read(p []byte) (int, error) {
	n, err := c.body.Read(p[:min(int64(len(p)), c.b.rates.quota(c.from).piece())])
	c.b.traffic.counter(c.from, c.b.zone, c.why()).Add(int64(n))
	c.credit -= int64(n)
	c.left -= int64(n)
	if late := c.pay(); late != nil && err == nil {
		err = late
	}
	return n, err
}

// pay waits until all that was read is allowed, and some of what comes next.
func (c *crossing) pay() error {
	if c.credit >= 0 {
		return nil
	}
	c.held.Store(true)
	defer c.held.Store(false)
	for c.credit < 0 {
		want := int64(maxAllowance)
		if c.left >= 0 {
			want = min(want, c.left)
		}
		got, err := c.b.allow(c.ctx, c.from, c.why, want-c.credit, c.alive)
		if err != nil {
			return err
		}
		c.credit += got
		c.alive()
	}
	return nil
}

// alive tells the sender, often enough for it not to give this node up.
func (c *crossing) alive() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tell != nil && time.Since(c.told) >= c.b.patience.Stall/4 {
		c.told = time.Now()
		c.tell()
	}
}

// Close implements io.Closer. It frees a Read that waits for an
// allowance, and tells the sender nothing any more.
func (c *crossing) Close() error {
	c.cancel()
	c.mu.Lock()
	c.tell = nil
	c.mu.Unlock()
	return c.body.Close()
}

// Held reports whether the body is held back by a rate, which is no silence of
// its source.
func (c *crossing) Held() bool { return c.held.Load() }

// across returns what node sends, held back where that is of another zone. left
// is how many bytes it is.
func (b *Blobs) across(ctx context.Context, body io.ReadCloser, node string, left int64, why func() Cause) io.ReadCloser {
	zone, other := b.zoneOf(node)
	if !other {
		return body
	}
	ctx, cancel := context.WithCancel(ctx)
	return &crossing{body: body, b: b, ctx: ctx, cancel: cancel, from: zone, why: why, left: left}
}

// arriving returns body, of the request r, held back where r is of another
// zone. The sender hears that with 102 (Processing, RFC 2518 section 10.1), until
// the body is closed.
func (b *Blobs) arriving(w http.ResponseWriter, r *http.Request, body io.ReadCloser, why func() Cause) io.ReadCloser {
	zone, _, ok := b.announced(r)
	if !ok {
		return body
	}
	ctx, cancel := context.WithCancel(r.Context())
	return &crossing{
		body: body, b: b, ctx: ctx, cancel: cancel, from: zone, why: why, left: r.ContentLength,
		tell: func() { w.WriteHeader(http.StatusProcessing) }, told: time.Now(),
	}
}
