package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// Source opens the bytes of a blob from off on, and says how large the whole
// blob is. It must give up when ctx ends. It is called again, with the offset
// reached, when the body it returned fails, ends early or falls silent; it
// should then turn to another holder. Its own error ends the fill.
//
// A body that is a contributor is told when its blob turned out wrong. One that
// is restrained may keep a reader waiting for longer than a source may.
type Source = func(ctx context.Context, off int64) (body io.ReadCloser, size int64, err error)

// contributor is a body whose owner wants to know whom not to ask again. Where
// the blob turns out wrong, Lied is called, after Close, on each body that sent
// a part of it, and on the first, which said how large it is. Nobody can tell
// which of several it was.
type contributor interface{ Lied() }

// restrained is a body that is held back at times by whoever opened it. That
// is no silence of the source.
type restrained interface{ Held() bool }

// holdBack is how much of a blob's end no reader sees until the whole is
// verified: nobody ever holds a complete blob of wrong bytes.
const holdBack = 32 << 10

// maxBarren is how often in a row a source may answer without sending a byte.
const maxBarren = 64

// downloads is the fills that run, one per digest.
type downloads struct {
	mu       sync.Mutex
	byDigest map[digest.Digest]*fill
	stopped  bool
	running  sync.WaitGroup
}

// Fill returns the blob d. Where it is not held, Fill joins the download of it
// or starts one from src, and returns a reader that follows the growing copy
// at its own pace. The download belongs to the Store: it goes on when its
// readers leave, and ctx bounds only the wait for the first answer of src,
// whose values (not its end) src gets to see.
func (s *Store) Fill(ctx context.Context, d digest.Digest, src Source) (io.ReadSeekCloser, int64, error) {
	r, size, err := s.fill(ctx, d, src)
	if err != nil {
		return nil, 0, fmt.Errorf("fill blob: %w", err)
	}
	return r, size, nil
}

func (s *Store) fill(ctx context.Context, d digest.Digest, src Source) (io.ReadSeekCloser, int64, error) {
	if _, held := s.Touch(d); held {
		if f, size, err := s.open(d); err == nil {
			s.stats.opened.Add(1)
			return f, size, nil
		}
	}
	f, whole, err := s.join(ctx, d, src)
	if err != nil {
		return nil, 0, err
	}
	if whole != nil {
		info, err := whole.Stat()
		if err != nil {
			_ = whole.Close()
			return nil, 0, oci.ErrUnavailable.Wrap(err)
		}
		return whole, info.Size(), nil
	}
	r := f.follow()
	f.unpin()
	select {
	case <-f.ready:
	case <-ctx.Done():
		_ = r.Close()
		return nil, 0, context.Cause(ctx)
	}
	size, err := f.outcome()
	if err != nil {
		_ = r.Close()
		return nil, 0, err
	}
	return r, size, nil
}

// Obtain has d held durably when it returns nil: by the download of d that
// runs, or by one that it starts from src, as Fill does. While nobody follows
// the copy, its bytes are gathered and written in large pieces.
func (s *Store) Obtain(ctx context.Context, d digest.Digest, src Source) error {
	if _, held := s.Touch(d); held {
		return nil
	}
	f, whole, err := s.join(ctx, d, src)
	switch {
	case err != nil:
		return fmt.Errorf("obtain blob: %w", err)
	case whole != nil:
		_ = whole.Close()
		return s.vouch(d)
	}
	defer f.unpin()
	select {
	case <-f.done:
	case <-ctx.Done():
		return fmt.Errorf("obtain blob: %w", context.Cause(ctx))
	}
	if _, err := f.outcome(); err != nil {
		return fmt.Errorf("obtain blob: %w", err)
	}
	return nil
}

// vouch returns nil where d, whose file is there, is held durably: a commit may
// be between the rename and the sync of the folder.
func (s *Store) vouch(d digest.Digest) error {
	if _, held := s.Touch(d); held {
		return nil
	}
	if err := s.sound(); err != nil {
		return fmt.Errorf("obtain blob: %w", err)
	}
	return fmt.Errorf("obtain blob: %w", oci.ErrUnavailable.Because("the copy here is not durable"))
}

// join returns the running download of d, or a new one, which the caller unpins;
// or the whole blob, where it has just been completed: a fill leaves the table
// only after its blob has its name.
func (s *Store) join(ctx context.Context, d digest.Digest, src Source) (*fill, *os.File, error) {
	s.fills.mu.Lock()
	defer s.fills.mu.Unlock()
	if f := s.fills.byDigest[d]; f != nil {
		f.pin()
		return f, nil, nil
	}
	whole, _, err := s.open(d)
	if err == nil {
		return nil, whole, nil
	}
	if !errors.Is(err, oci.ErrBlobUnknown) {
		return nil, nil, err
	}
	if err := s.writable(-1); err != nil {
		return nil, nil, err
	}
	if s.fills.stopped {
		return nil, nil, oci.ErrUnavailable.Because("shutting down")
	}
	if len(s.fills.byDigest) >= s.cfg.MaxFills {
		return nil, nil, oci.ErrUnavailable.Because("too many downloads")
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := newFill(d, cancel, &s.stats)
	s.fills.byDigest[d] = f
	f.pin()
	s.stats.fillsStarted.Add(1)
	s.fills.running.Go(func() { s.run(ctx, f, src) })
	return f, nil, nil
}

// stop ends every fill and waits for it.
func (l *downloads) stop() {
	l.mu.Lock()
	l.stopped = true
	for _, f := range l.byDigest {
		f.cancel()
	}
	l.mu.Unlock()
	l.running.Wait()
}

// run is the goroutine of one fill, owned by Store.Close.
func (s *Store) run(ctx context.Context, f *fill, src Source) {
	defer f.cancel()
	err := s.download(ctx, f, src)
	// Out of the table before the readers are told: who is told of a failure
	// and asks again gets a new fill.
	s.fills.mu.Lock()
	delete(s.fills.byDigest, f.digest)
	s.fills.mu.Unlock()
	if err != nil {
		s.stats.fillsFailed.Add(1)
		level := slog.LevelWarn
		if errors.Is(err, oci.ErrBlobUnknown) {
			level = slog.LevelDebug // nobody has it: an answer, no failure
		}
		s.log.Log(ctx, level, "fill failed", "digest", f.digest, "request", oci.RequestID(ctx), "error", err)
	}
	f.end(err)
}

// download brings all bytes of f from one source after the other, verifies
// and stores them.
func (s *Store) download(ctx context.Context, f *fill, src Source) error {
	h, err := newHash(f.digest.Algorithm())
	if err != nil {
		return err
	}
	w := &inflow{hash: h, wrote: f.advance, took: f.take}
	for barren := 0; w.file == nil || w.size < f.size; {
		off := w.size
		err := s.stream(ctx, f, w, src)
		if body := (*bodyError)(nil); err != nil && !errors.As(err, &body) {
			return err
		}
		if ctx.Err() != nil {
			return oci.ErrUnavailable.Because("shutting down")
		}
		if w.size == f.size {
			break
		}
		s.stats.replaced.Add(1)
		s.log.DebugContext(ctx, "source of a fill replaced", "digest", f.digest, "request", oci.RequestID(ctx), "offset", w.size, "error", err)
		if barren++; w.size > off {
			barren = 0
		}
		if barren == maxBarren {
			return oci.ErrUnavailable.Because("no source sends anything")
		}
	}
	if digest.NewDigest(f.digest.Algorithm(), h) != f.digest {
		s.stats.lied.Add(1)
		for _, c := range f.from {
			c.Lied()
		}
		return lied(f.digest)
	}
	f.verified() // readers need the bytes to be right, not to be durable here
	return s.commit(w.file, f.digest)
}

// stream asks src for the bytes that w lacks and writes what it sends. A
// bodyError, or nil with bytes still missing, asks for another source.
func (s *Store) stream(ctx context.Context, f *fill, w *inflow, src Source) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	body, size, err := src(ctx, w.size)
	if err != nil {
		return noEOF(err)
	}
	watched := watch(ctx, cancel, body, s.cfg.SourceSilence)
	defer watched.close()
	first, off := w.file == nil, w.size
	defer func() {
		if c, ok := body.(contributor); ok && (first || w.size > off) {
			f.from = append(f.from, c)
		}
	}()
	if w.file == nil {
		if err := s.begin(f, w, size); err != nil {
			return err
		}
	} else if size != f.size {
		return oci.ErrUnavailable.Because("a source announced %d bytes, the first one %d", size, f.size)
	}
	return s.pour(ctx, w, io.LimitReader(watched, f.size-w.size))
}

// begin makes the file of f, once the first source has said how large it gets.
func (s *Store) begin(f *fill, w *inflow, size int64) error {
	if size < 0 {
		return oci.ErrUnavailable.Because("the source does not say how large the blob is")
	}
	if err := s.writable(size); err != nil {
		return err
	}
	file, err := s.temporary("fill-")
	if err != nil {
		return err
	}
	w.file = file
	f.begin(file, size)
	return nil
}

var errSilent = errors.New("the source fell silent")

// watchedBody is a source's body that is closed when its context ends, which
// the source's silence makes it do. Closing is what frees a blocked Read.
type watchedBody struct {
	io.ReadCloser
	silence time.Duration
	timer   *time.Timer
	reading atomic.Bool
	spared  func() bool   // takes the closing at the context's end back, where it has not begun
	closed  chan struct{} // closed when that closing is over
}

func watch(ctx context.Context, cancel context.CancelCauseFunc, body io.ReadCloser, silence time.Duration) *watchedBody {
	b := &watchedBody{ReadCloser: body, silence: silence, closed: make(chan struct{})}
	b.timer = time.AfterFunc(silence, func() {
		held, ok := body.(restrained)
		switch {
		case !b.reading.Load(): // it ended just now
		case ok && held.Held():
			b.timer.Reset(silence)
		default:
			cancel(errSilent)
		}
	})
	b.timer.Stop()
	b.spared = context.AfterFunc(ctx, func() {
		defer close(b.closed)
		_ = body.Close()
	})
	return b
}

// Read counts silence only while it waits: a slow disk is no fault of the source.
func (b *watchedBody) Read(p []byte) (int, error) {
	b.reading.Store(true)
	b.timer.Reset(b.silence)
	defer func() {
		b.timer.Stop()
		b.reading.Store(false)
	}()
	return b.ReadCloser.Read(p)
}

func (b *watchedBody) close() {
	if !b.spared() {
		<-b.closed
		return
	}
	_ = b.ReadCloser.Close()
}
