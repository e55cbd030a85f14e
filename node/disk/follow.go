package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// errLied ends a fill whose bytes do not have the digest asked for.
var errLied = errors.New("the sources sent other bytes")

// lied returns that error for d. It is no fault of the client: errors.As finds
// ErrUnavailable first. errors.Is finds ErrDigestInvalid too.
func lied(d digest.Digest) error {
	return oci.ErrUnavailable.Because("the content could not be verified").Wrap(fmt.Errorf("%w: %s: %w", errLied, d, oci.ErrDigestInvalid))
}

// fill is one growing copy: its one writer, run, and its readers share it. All
// of them read the same descriptor, closed when the last has left.
type fill struct {
	digest digest.Digest
	cancel context.CancelFunc
	ready  chan struct{} // closed once file and size are known, or err is; of an empty blob at the end
	done   chan struct{} // closed at the end
	stats  *counters
	from   []contributor // to what was written; run's alone

	mu    sync.Mutex
	moved sync.Cond // bytes were released, the end came, or a reader was closed

	file     *os.File // nil until ready
	size     int64    // of the whole blob
	taken    int64    // bytes that came; what is not written yet will be as soon as somebody follows
	released int64    // bytes that readers may have: all but holdBack until verified
	ended    bool
	err      error // set, after ended: why there will be no more bytes
	readers  int   // that are open
	users    int   // they, run, and whoever pinned it
}

func newFill(d digest.Digest, cancel context.CancelFunc, stats *counters) *fill {
	f := &fill{digest: d, cancel: cancel, ready: make(chan struct{}), done: make(chan struct{}), stats: stats, users: 1}
	f.moved.L = &f.mu
	return f
}

func (f *fill) begin(file *os.File, size int64) {
	f.mu.Lock()
	f.file, f.size = file, size
	f.mu.Unlock()
	if size > 0 { // else nothing would hold readers back until it is verified
		close(f.ready)
	}
}

// take notes how many bytes came, and reports whether somebody follows.
func (f *fill) take(taken int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.taken = taken
	return f.readers > 0
}

// advance releases bytes to the readers.
func (f *fill) advance(written int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if to := min(written, f.size-holdBack); to > f.released {
		f.released = to
		f.moved.Broadcast()
	}
}

// verified releases the rest: all bytes are there and have the digest.
func (f *fill) verified() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.released = f.size
	f.moved.Broadcast()
}

// end tells the readers how the fill went. A failed one leaves nothing.
func (f *fill) end(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended, f.err = true, err
	if f.size == 0 {
		close(f.ready)
	}
	if f.file != nil && err != nil {
		_ = os.Remove(f.file.Name())
	}
	if err == nil {
		f.released = f.size
	}
	f.leave()
	close(f.done)
	f.moved.Broadcast()
}

// pin keeps f open for somebody who does not read it, or not yet.
func (f *fill) pin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.users++
}

func (f *fill) unpin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leave()
}

// leave gives up one use of the file; f.mu is held.
func (f *fill) leave() {
	if f.users--; f.users == 0 && f.file != nil {
		_ = f.file.Close()
	}
}

// outcome returns the size, or why there is none, after ready.
func (f *fill) outcome() (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size, f.err
}

// follow returns a new reader of f, which must not have been left by all.
func (f *fill) follow() *reader {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.users++
	f.readers++
	f.stats.followers.Add(1)
	return &reader{fill: f}
}

// Follow returns a reader of the growing copy of d, if there is one that has
// more than ahead bytes; or of the whole blob, for one that has just been
// completed. With ahead below 0 the copy may have none yet: Follow waits until
// its size is known, or ctx ends.
func (s *Store) Follow(ctx context.Context, d digest.Digest, ahead int64) (io.ReadSeekCloser, int64, bool) {
	s.fills.mu.Lock()
	f := s.fills.byDigest[d]
	var r *reader
	if f != nil {
		r = f.follow()
	}
	s.fills.mu.Unlock()
	if r == nil {
		file, size, err := s.open(d)
		if err != nil {
			return nil, 0, false
		}
		if size <= ahead {
			_ = file.Close()
			return nil, 0, false
		}
		return file, size, true
	}
	if ahead < 0 {
		select {
		case <-f.ready:
		case <-ctx.Done():
		}
	}
	f.mu.Lock()
	size, fit := f.size, f.err == nil && f.taken > ahead
	f.mu.Unlock()
	if !fit || ctx.Err() != nil {
		_ = r.Close()
		return nil, 0, false
	}
	return r, size, true
}

// reader follows one fill at its own pace. Read and Seek belong to one
// goroutine; Close may come from any and frees a blocked Read.
type reader struct {
	fill   *fill
	off    int64
	closed bool // guarded by fill.mu
}

// Read waits until there is a byte at the reader's offset. It reports the end
// only of a blob that was verified and stored.
func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := r.wait(int64(len(p)))
	if err != nil {
		return 0, err
	}
	got, err := r.fill.file.ReadAt(p[:n], r.off)
	r.off += int64(got)
	r.fill.stats.followed.Add(int64(got))
	if got > 0 {
		return got, nil
	}
	// The bytes were written: whatever this is, it is not the end.
	return 0, oci.ErrUnavailable.Wrap(fmt.Errorf("read growing copy: %w", noEOF(err)))
}

// noEOF keeps the end of something else from passing for the end of a blob, so
// it does not wrap err.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: %v", io.ErrUnexpectedEOF, err)
	}
	return err
}

// wait returns how many of n bytes can be read at the reader's offset, at
// least one.
func (r *reader) wait(n int64) (int64, error) {
	f := r.fill
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		switch wrong := errors.Is(f.err, errLied); {
		case r.closed:
			return 0, fs.ErrClosed
		case r.off < f.released && !wrong:
			return min(n, f.released-r.off), nil
		case f.err != nil:
			return 0, oci.ErrUnavailable.Because("the download was cut off").Wrap(f.err)
		case f.ended:
			return 0, io.EOF
		}
		f.moved.Wait()
	}
}

// Seek implements io.Seeker; it never waits.
func (r *reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += r.off
	case io.SeekEnd:
		offset += r.fill.size // fixed before there is a reader to call this
	default:
		return 0, fs.ErrInvalid
	}
	if offset < 0 {
		return 0, fs.ErrInvalid
	}
	r.off = offset
	return offset, nil
}

// Close lets go of the growing copy, which grows on.
func (r *reader) Close() error {
	f := r.fill
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.closed {
		return fs.ErrClosed
	}
	r.closed = true
	f.readers--
	f.stats.followers.Add(-1)
	f.leave()
	f.moved.Broadcast()
	return nil
}
