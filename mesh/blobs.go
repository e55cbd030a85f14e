package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

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
	// Follow returns a growing copy that has more than ahead bytes now.
	Follow(d digest.Digest, ahead int64) (io.ReadSeekCloser, int64, bool)
	// Touch marks d used where it is held durably.
	Touch(d digest.Digest) (size int64, held bool)
	// Full returns an error while nothing can be written.
	Full() error
}

// Membership is what Blobs asks of Members.
type Membership interface {
	Ring() *ring.Ring
	Down(id string) bool
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
	Log      *slog.Logger
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
	placing  chan struct{} // a token for each blob being placed
	silent   sync.Map      // node that gave no answer -> time of that; as many as there are members
	distrust distrust
	crew     crew
	buffers  *sync.Pool
}

// NewBlobs returns the bytes of all machines as seen from this one.
func NewBlobs(cfg BlobsConfig) *Blobs {
	return &Blobs{
		id: cfg.ID, zone: cfg.Zone, local: cfg.Local, members: cfg.Members, client: cfg.Client,
		patience: cfg.Patience.orDefaults(), log: cfg.Log,
		placing: make(chan struct{}, maxPlacing),
		buffers: &sync.Pool{New: func() any { return new([copyBuffer]byte) }},
	}
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
	f, size, err = b.local.Fill(ctx, d, b.newHunt(d, true).next)
	if errors.Is(err, oci.ErrDiskFull) {
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
