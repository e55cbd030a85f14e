package api

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/auth"
	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata"
)

// Blobs is where bytes live: on one disk, or on all of a mesh. No method reads
// from r after it has returned.
type Blobs interface {
	// Open returns the blob's bytes and size. ErrBlobUnknown is proof that
	// there is none; where proof cannot be had, ErrUnavailable. A blob that
	// lies on this disk is a bare *os.File, so that it leaves by sendfile.
	Open(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, int64, error)
	// Put stores r as d, durably; a size below 0 is unknown. Bytes that are
	// not those of d are ErrDigestInvalid or ErrSizeInvalid and not kept.
	Put(ctx context.Context, d digest.Digest, size int64, r io.Reader) error
	// Renew has what Put stored held durably still, as Put again would; where
	// it went meanwhile, ErrOverdue.
	Renew(ctx context.Context, d digest.Digest) error
}

// Uploads are blobs on their way in, under an opaque id that is bound to the
// repository it was started in. No method reads from r after it has returned.
type Uploads interface {
	Start(ctx context.Context, repo string, alg digest.Algorithm) (id string, err error)
	// Append adds r at off, or at the end where off is below 0, and returns
	// the size reached. Another off than the present size is
	// ErrUploadOutOfOrder, before r is read. Where r fails midway, what came
	// stays.
	Append(ctx context.Context, u oci.Upload, off int64, r io.Reader) (size int64, err error)
	Size(ctx context.Context, u oci.Upload) (int64, error)
	// Finish appends r and makes the whole the blob d; it may be repeated.
	Finish(ctx context.Context, u oci.Upload, off int64, r io.Reader, d digest.Digest) (size int64, err error)
	Cancel(ctx context.Context, u oci.Upload) error
}

// Health says whether this node can serve. The texts of its errors are shown to
// whoever asks, so they name no secret and no path.
type Health interface {
	Ready() error                       // reads
	Writable(ctx context.Context) error // writes: quorum, disk
}

// Config is what the public port is made of. All fields but
// the last three are required.
type Config struct {
	Node    string // this node's name, answered in the header Flotilla-Node
	Blobs   Blobs
	Uploads Uploads
	Catalog *metadata.Catalog
	Health  Health
	Room    func() error // ErrDiskFull while this node takes no pushes
	// Status returns, as JSON, what GET /flotilla/v1/status shows: with digests,
	// those of blobs of any repository.
	Status func(ctx context.Context, digests bool) any
	// Where returns, as JSON, who holds what the reference names in the
	// repository. It errs as a pull would.
	Where   func(ctx context.Context, repo string, ref oci.Reference) (any, error)
	Admin   Admin           // what an operator may do to the mesh
	Auth    *auth.Authority // who may do what
	Metrics http.Handler    // GET /metrics
	Observe func(Served)    // told of each request once it is over
	Log     *slog.Logger

	// Audit takes a line about each change and each refusal, and with
	// AuditPulls about each read; nil takes none.
	Audit      *slog.Logger
	AuditPulls bool

	// Idle is how long a client may neither send nor take a byte that it
	// owes or is owed; 0 means a minute.
	Idle time.Duration
}

// Served is one request that is over.
type Served struct {
	Route    string // name of a row in the table of routes
	Method   string // a method of HTTP, or "other"
	Status   int    // 499 where the client left before its answer
	In, Out  int64  // bytes of the bodies
	Duration time.Duration
}

// server is the state shared by all handlers.
type server struct {
	Config
	large     chan struct{} // a token for each large manifest in memory
	parsing   chan struct{} // a token for each of them that is parsed
	bodies    counter       // blobs that accounts send now
	manifests counter       // and large manifests
}

// New returns the handler of everything on the public port. It must be mounted
// at the root of its http.Server, not under an http.ServeMux, which answers odd
// paths with redirects.
func New(cfg Config) (http.Handler, error) {
	if cfg.Blobs == nil || cfg.Uploads == nil || cfg.Catalog == nil || cfg.Health == nil || cfg.Room == nil ||
		!cfg.Admin.complete() || cfg.Status == nil || cfg.Where == nil || cfg.Metrics == nil || cfg.Auth == nil || cfg.Observe == nil || cfg.Log == nil {
		return nil, errors.New("api: incomplete Config")
	}
	if cfg.Idle <= 0 {
		cfg.Idle = time.Minute
	}
	s := &server{
		Config: cfg, large: make(chan struct{}, maxLarge), parsing: make(chan struct{}, maxParsing),
		bodies: newCounter(), manifests: newCounter(),
	}
	return s.routes(), nil
}
