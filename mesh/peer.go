package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// PeerHandler serves /blobs/ and /uploads/ to other members, whom the caller
// has proved to be members.
func (b *Blobs) PeerHandler() http.Handler {
	mux := http.NewServeMux()
	for pattern, serve := range map[string]func(http.ResponseWriter, *http.Request) error{
		"GET /blobs/{digest}":       b.serveBlob, // and HEAD
		"PUT /blobs/{digest}":       b.serveCopy,
		"POST /blobs/holdings":      b.serveHoldings,
		"POST /blobs/{digest}/line": b.serveStep,
		"POST /blobs/wake":          b.serveWake,
		"POST /blobs/allowance":     b.serveAllowance,
		"GET /blobs/health":         b.serveHealth,
		"GET /blobs/transfers":      b.serveTransfers,
		"GET /blobs/garbage":        b.serveGarbage,
		"PATCH /uploads/{id}":       b.serveUpload(b.appendHere),
		"GET /uploads/{id}":         b.serveUpload(b.sizeHere),
		"PUT /uploads/{id}":         b.serveUpload(b.finishHere),
		"DELETE /uploads/{id}":      b.serveUpload(b.cancelHere),
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := serve(w, r); err != nil {
				refuse(w, err)
			}
		})
	}
	return mux
}

// callerKey is the key of the context's value that WithCaller adds.
type callerKey struct{}

// WithCaller returns a context for a request to PeerHandler that says which
// node, by its UUID, is proved to have sent it. Without that it is of no member.
func WithCaller(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, callerKey{}, id)
}

// caller returns the node that WithCaller named, or "".
func caller(ctx context.Context) string {
	id, _ := ctx.Value(callerKey{}).(string)
	return id
}

// serveBlob sends a blob, from an offset on: a whole one, or one that grows
// and has more than the offset by now. It begins a download only for a node of
// this zone that takes it for the zone's gateway.
func (b *Blobs) serveBlob(w http.ResponseWriter, r *http.Request) error {
	q, err := readQuestion(r)
	if err != nil {
		return err
	}
	if !q.repair {
		b.hurry(q.digest)
	}
	quiet := b.stayAlive(w, q)
	f, size, err := b.find(r.Context(), q)
	quiet()
	if err != nil {
		return err
	}
	// Closing frees a Read that waits for the copy to grow.
	free := context.AfterFunc(r.Context(), func() { _ = f.Close() })
	defer func() {
		if free() {
			_ = f.Close()
		}
	}()
	if q.off >= size && q.off > 0 {
		return oci.ErrSizeInvalid.Because("the blob has only %d bytes", size)
	}
	if _, err := f.Seek(q.off, io.SeekStart); err != nil {
		return err
	}
	status, length := http.StatusOK, q.last(size)+1-q.off
	if q.off > 0 || q.end > 0 {
		status = http.StatusPartialContent
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", q.off, q.last(size), size))
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(length, 10))
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return nil
	}
	_ = http.NewResponseController(w).Flush() // the asker knows the size before the first byte is here
	sent, err := b.copyOut(b.departing(w, r), f, length)
	b.stats.bytesTo.Add(sent)
	if err != nil {
		b.log.Debug("a peer did not get all of a blob", "digest", q.digest, "offset", q.off, "sent", sent, "error", err, "request", oci.RequestID(r.Context()))
	}
	return nil // the header is out: a short body tells the rest
}

// stayAlive answers a node that may have to wait for its answer with "102
// Processing" now and then, until quiet is called: a process that is stopped
// sends none, and is not waited for. A node of an earlier version bears no more
// than five of these, and waits no longer than for four.
func (b *Blobs) stayAlive(w http.ResponseWriter, q question) (quiet func()) {
	if !q.waits() {
		return func() {}
	}
	over := make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() {
		tick := time.NewTicker(b.patience.Answer / 2)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				w.WriteHeader(http.StatusProcessing)
			case <-over:
				return
			}
		}
	})
	return func() {
		close(over)
		telling.Wait()
	}
}

// find opens the blob for a peer's question.
func (b *Blobs) find(ctx context.Context, q question) (io.ReadSeekCloser, int64, error) {
	f, size, err := b.local.Open(ctx, q.digest)
	if err == nil || !errors.Is(err, oci.ErrBlobUnknown) {
		return f, size, err
	}
	if f, size, ok := b.follow(ctx, q); ok {
		return f, size, nil
	}
	if !q.gateway || q.off > 0 {
		return nil, 0, err
	}
	b.stats.gatewayFills.Add(1)
	if f, size, err = b.fillFor(ctx, q); err == nil {
		return f, size, nil
	}
	b.log.Debug("no copy for a node of this zone", "digest", q.digest, "error", err, "request", oci.RequestID(ctx))
	// What this node could not find out, the asker will: it needs to know
	// whether the blob is here, and it is not.
	return b.local.Open(ctx, q.digest)
}

// copyOut copies n bytes of f to w through a large buffer.
func (b *Blobs) copyOut(w io.Writer, f io.Reader, n int64) (int64, error) {
	buf := b.buffers.Get().(*[copyBuffer]byte)
	defer b.buffers.Put(buf)
	sent, err := io.CopyBuffer(w, struct{ io.Reader }{io.LimitReader(f, n)}, buf[:])
	if err == nil && sent < n {
		err = io.ErrUnexpectedEOF
	}
	return sent, err
}

// deadlined gives up on a receiver that takes no bytes. What does not fill a
// buffer is all that there is now: it goes out at once, else the receiver of a
// copy that grows slowly would take this node for a dead one.
type deadlined struct {
	w       io.Writer
	control *http.ResponseController
	limit   time.Duration
}

func (d deadlined) Write(p []byte) (int, error) {
	_ = d.control.SetWriteDeadline(time.Now().Add(d.limit)) // not every transport can
	n, err := d.w.Write(p)
	if err == nil && n < copyBuffer {
		err = d.control.Flush()
	}
	return n, err
}

// serveUpload makes a handler of one thing that is done to an upload here.
func (b *Blobs) serveUpload(do func(r *http.Request, u oci.Upload) (int64, error)) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		r.Body = b.arriving(w, r, r.Body, func() Cause { return CausePush })
		size, err := do(r, oci.Upload{Repo: r.URL.Query().Get("repo"), ID: r.PathValue("id")})
		if err != nil {
			return err
		}
		return b.answer(w, progress{Size: size})
	}
}

func (b *Blobs) appendHere(r *http.Request, u oci.Upload) (int64, error) {
	off, err := offset(r)
	if err != nil {
		return 0, err
	}
	return b.local.Append(r.Context(), u, off, r.Body)
}

func (b *Blobs) sizeHere(r *http.Request, u oci.Upload) (int64, error) {
	return b.local.Size(r.Context(), u)
}

func (b *Blobs) finishHere(r *http.Request, u oci.Upload) (int64, error) {
	off, err := offset(r)
	if err != nil {
		return 0, err
	}
	d, err := oci.ParseDigest(r.URL.Query().Get("digest"))
	if err != nil {
		return 0, err
	}
	return b.finish(r.Context(), u, off, r.Body, d)
}

func (b *Blobs) cancelHere(r *http.Request, u oci.Upload) (int64, error) {
	return 0, b.local.Cancel(r.Context(), u)
}

func offset(r *http.Request) (int64, error) {
	off, err := strconv.ParseInt(r.URL.Query().Get("off"), 10, 64)
	if err != nil {
		return 0, oci.ErrUploadInvalid.Because("offset %.40q", r.URL.Query().Get("off"))
	}
	return off, nil
}
