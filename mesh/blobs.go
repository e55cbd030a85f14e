package mesh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/time/rate"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh/ring"
)

// Local is the bytes of this machine; disk.Store is one.
type Local interface {
	Open(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, int64, error)
	Put(ctx context.Context, d digest.Digest, size int64, r io.Reader) error
	Start(ctx context.Context, repo string, alg digest.Algorithm) (string, error)
	Append(ctx context.Context, u oci.Upload, off int64, r io.Reader) (int64, error)
	Size(ctx context.Context, u oci.Upload) (int64, error)
	Finish(ctx context.Context, u oci.Upload, off int64, r io.Reader, d digest.Digest) (int64, error)
	Cancel(ctx context.Context, u oci.Upload) error

	// Fill joins the running download of d or starts one from src, which is
	// called again with the offset reached whenever a body fails. The download
	// outlives ctx, and whoever reads it. When the whole turns out wrong, it
	// calls Lied on each body that has that method and had a part in it.
	Fill(ctx context.Context, d digest.Digest, src func(ctx context.Context, off int64) (io.ReadCloser, int64, error)) (io.ReadSeekCloser, int64, error)
	// Obtain has d held durably when it returns nil: by the running download of
	// d, or by one that it starts from src as Fill does.
	Obtain(ctx context.Context, d digest.Digest, src func(ctx context.Context, off int64) (io.ReadCloser, int64, error)) error
	// Follow returns a growing copy that has more than ahead bytes now; for
	// ahead below 0 one that may have none, once its size is known.
	Follow(ctx context.Context, d digest.Digest, ahead int64) (io.ReadSeekCloser, int64, bool)
	// Touch marks d used where it is held durably.
	Touch(d digest.Digest) (size int64, held bool)
	// Full returns an error while nothing can be written.
	Full() error
	// Has reports whether d is held durably, and marks nothing.
	Has(d digest.Digest) bool
	// Walk calls fn with all that is held durably behind after, in order of the
	// digests' text, and when it was last used, until fn returns false.
	Walk(ctx context.Context, after digest.Digest, fn func(d digest.Digest, size int64, used time.Time) bool) error
	// Remove drops d unless it was used at or after cutoff, in one step with
	// the marks that Touch and every commit make.
	Remove(d digest.Digest, cutoff time.Time) (removed bool, err error)
}

// Membership is what Blobs asks of Members.
type Membership interface {
	Ring() *ring.Ring
	Down(id string) bool
	// Changed returns a channel that is closed at the next change of Ring.
	Changed() <-chan struct{}
}

// BlobsConfig is what Blobs needs from its node.
type BlobsConfig struct {
	ID      string // this node's UUID
	Zone    string
	Local   Local
	Members Membership
	// Client sends requests to https://<UUID>/..., proven both ways. Its
	// transport must wait for "100 Continue" (ExpectContinueTimeout of some
	// seconds), else every copy offered to a node that has it is sent in
	// full; and it must bound dialling.
	Client   *http.Client
	Patience Patience // fields of 0 take their defaults
	// ZoneRate is the bytes a second that all nodes of this zone together let
	// in from each other zone, as far as this node decides it, see rates; 0
	// means no limit.
	ZoneRate int64
	Log      *slog.Logger

	// What follows is for Reconcile, which without Names does nothing.
	Names      Names
	Pins       Pins          // nil: none
	CacheSize  int64         // bytes of copies that this node need not hold; 0 means no ceiling
	RepairRate int64         // bytes a second for repair and rebalancing; 0 means 64 MiB
	Grace      time.Duration // how long what nothing names stays after its last use; 0 means a day
	Settle     time.Duration // how long after the start nothing goes; 0 means 10 minutes
}

// Patience is how long Blobs waits for other nodes before it turns elsewhere.
type Patience struct {
	Answer  time.Duration // 4 s for a peer's response header, dialling included
	Gateway time.Duration // 10 s for that of a gateway, which may have to ask others
	Stall   time.Duration // 10 s for a peer that takes, or sends, no bytes
	Durable time.Duration // 2 min for a peer to make a whole blob durable
	Persist time.Duration // 5 min without progress for a response that has begun
	Pause   time.Duration // 250 ms before sources are tried again, doubling up to 16 times that
}

func (p Patience) orDefaults() Patience {
	set := func(d *time.Duration, def time.Duration) {
		if *d <= 0 {
			*d = def
		}
	}
	set(&p.Answer, 4*time.Second)
	set(&p.Gateway, 10*time.Second)
	set(&p.Stall, 10*time.Second)
	set(&p.Durable, 2*time.Minute)
	set(&p.Persist, 5*time.Minute)
	set(&p.Pause, 250*time.Millisecond)
	return p
}

// maxPlacing bounds the blobs that are on their way to their owners at once.
// Whoever pushes beyond it waits for the lines between the nodes.
const maxPlacing = 64

// Blobs is the bytes of all machines. It satisfies the same interfaces as one
// machine's Store, and its methods may be used concurrently.
type Blobs struct {
	id, zone string
	local    Local
	members  Membership
	client   *http.Client
	patience Patience
	log      *slog.Logger
	stats    counters
	traffic  traffic
	rates    rates
	placing  chan struct{} // a token for each blob being placed
	silent   sync.Map      // node that gave no answer -> time of that; as many as there are members
	distrust distrust
	crew     crew
	brigade  brigade
	inbound  inbound
	buffers  *sync.Pool

	names         Names
	pins          Pins
	cacheSize     int64
	grace, settle time.Duration
	started       time.Time
	reconciling   chan struct{} // a token for the pass that runs
	listing       chan struct{} // and one for its rehearsal
	due           chan struct{}
	nudged        atomic.Pointer[time.Time] // when another member last made a pass due
	mending       sync.Map                  // digest of a blob being sent at the pace of repairs -> *atomic.Bool: a client waits
	pace          *rate.Limiter             // of all repairs
	report        report
}

// NewBlobs returns the bytes of all machines as seen from this one.
func NewBlobs(cfg BlobsConfig) *Blobs {
	b := &Blobs{
		id: cfg.ID, zone: cfg.Zone, local: cfg.Local, members: cfg.Members, client: cfg.Client,
		patience: cfg.Patience.orDefaults(), log: cfg.Log,
		placing: make(chan struct{}, maxPlacing),
		brigade: newBrigade(cfg.ID),
		rates:   newRates(cfg.ZoneRate),
		buffers: &sync.Pool{New: func() any { return new([copyBuffer]byte) }},

		names: cfg.Names, pins: cfg.Pins, cacheSize: cfg.CacheSize, started: time.Now(),
		grace:       cmp.Or(cfg.Grace, 24*time.Hour),
		settle:      cmp.Or(cfg.Settle, 10*time.Minute),
		pace:        newPace(cmp.Or(cfg.RepairRate, 64<<20)),
		reconciling: make(chan struct{}, 1), listing: make(chan struct{}, 1), due: make(chan struct{}, 1),
	}
	b.crew.run(context.Background(), b.watch)
	return b
}

// Close gives up placing what is still being placed and waits for it; the
// bytes are on this disk. Downloads end with the Store, requests with the
// peer server.
func (b *Blobs) Close() { b.crew.close() }

// Open returns the blob d: the local file, or a copy that grows while it is
// fetched from whoever has it. ErrBlobUnknown means that every member denied
// having it, ErrUnavailable that some could not be asked.
func (b *Blobs) Open(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, int64, error) {
	f, size, err := b.local.Open(ctx, d)
	if err == nil || !errors.Is(err, oci.ErrBlobUnknown) {
		return f, size, err
	}
	f, size, err = b.local.Fill(ctx, d, b.newHunt(d, true).source)
	b.hurry(d)
	if errors.Is(err, oci.ErrDiskFull) {
		b.Wake()
		f, size, err = b.passThrough(ctx, d)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("fetch blob: %w", vocabulary(err))
	}
	return f, size, nil
}

// Put stores the blob d here and places it on its owners. After an
// ErrUnavailable the bytes are here all the same, so that a retry is cheap.
func (b *Blobs) Put(ctx context.Context, d digest.Digest, size int64, r io.Reader) error {
	if err := b.local.Put(ctx, d, size, r); err != nil {
		return err
	}
	return b.place(ctx, d)
}

// Renew marks d, which Put placed, used again here and on its owners, and sends
// it to those who lack it. ErrOverdue says that it is not here any more.
func (b *Blobs) Renew(ctx context.Context, d digest.Digest) error {
	if _, held := b.local.Touch(d); !held {
		return oci.ErrOverdue
	}
	return b.place(ctx, d)
}

// vocabulary makes an error of a wait that ended into one that clients know.
func vocabulary(err error) error {
	var known *oci.Error
	if errors.As(err, &known) {
		return err
	}
	return oci.ErrUnavailable.Wrap(err)
}

// crew is the goroutines that outlive the request they were started for.
type crew struct {
	mu      sync.Mutex
	closed  bool
	stops   map[*context.CancelFunc]struct{}
	working sync.WaitGroup
}

// run calls f in a goroutine with ctx's values but its own end, which close
// brings about. It returns false after close.
func (c *crew) run(ctx context.Context, f func(context.Context)) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	if c.stops == nil {
		c.stops = map[*context.CancelFunc]struct{}{}
	}
	c.stops[&cancel] = struct{}{}
	c.working.Go(func() {
		defer func() {
			cancel()
			c.mu.Lock()
			delete(c.stops, &cancel)
			c.mu.Unlock()
		}()
		f(ctx)
	})
	return true
}

func (c *crew) close() {
	c.mu.Lock()
	c.closed = true
	for cancel := range c.stops {
		(*cancel)()
	}
	c.mu.Unlock()
	c.working.Wait()
}
