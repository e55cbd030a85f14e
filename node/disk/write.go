package disk

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"os"
	"sync"

	"github.com/flotilla-registry/flotilla/api/oci"
)

const (
	// grantSize is how much all writers together may write before the free
	// space is looked at again.
	grantSize = 16 << 20
	// flushSize is how much gathers in memory before the kernel is asked to
	// begin writing it out, so that the sync at the end has little left to do:
	// a quarter less time for 64 MiB.
	flushSize = 8 << 20
	// smallBuffer is all the memory that a sender who sends nothing can hold;
	// largeBuffer is what one gets that fills the small one, while there are
	// some of largeBuffers left: two pieces, one of which is hashed while the
	// other one is read and written.
	smallBuffer  = 16 << 10
	largePiece   = 512 << 10
	largeBuffer  = 2 * largePiece
	largeBuffers = 32
)

// inflow is bytes on their way into a file. One goroutine at a time owns it.
type inflow struct {
	file  *os.File
	hash  hash.Hash
	size  int64            // bytes in the file; once settled, hash has seen exactly these, or more where the disk failed
	begun int64            // bytes that the kernel was asked to begin writing out
	wrote func(size int64) // nil, or told the size reached after every write
	// nil, or told the size reached with what is read and not written yet; true
	// has it written at once, since somebody follows, and not gathered.
	took func(size int64) bool

	hashing chan struct{} // nil, or closed once the piece at hand is hashed
}

// bodyError is an error of the reader that bytes came from; any other error of
// pour is the disk's.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return e.err.Error() }
func (e *bodyError) Unwrap() error { return e.err }

// asUpload says of a client's body what went wrong in the client's words; a
// body that knows better keeps its own.
func asUpload(err error) error {
	if body := (*bodyError)(nil); errors.As(err, &body) {
		if known := (*oci.Error)(nil); errors.As(body.err, &known) {
			return body.err
		}
		return oci.ErrUploadInvalid.Because("the body ended early").Wrap(body.err)
	}
	return err
}

// asFull turns the system's ways to say "no space" into ErrDiskFull, and any
// other trouble with the disk into ErrUnavailable: another node may serve.
func asFull(err error) error {
	if isFull(err) {
		return oci.ErrDiskFull.Wrap(err)
	}
	return oci.ErrUnavailable.Wrap(err)
}

// pour writes and hashes in one pass what r holds. Bytes that arrived before
// an error of r stay, counted and hashed.
func (s *Store) pour(ctx context.Context, w *inflow, r io.Reader) error {
	buf, give := s.buffers.small()
	other := []byte(nil) // the half of a large buffer that may still be hashed
	defer func() { w.settle(); give() }()
	for {
		if err := ctx.Err(); err != nil {
			return &bodyError{err}
		}
		n, rerr := w.read(r, buf)
		if n > 0 {
			if err := s.write(w, buf[:n]); err != nil {
				return err
			}
		}
		if rerr == io.EOF {
			return nil
		}
		if rerr != nil {
			return &bodyError{rerr}
		}
		if other != nil {
			buf, other = other, buf
		} else if n == smallBuffer {
			if big, giveBig, ok := s.buffers.large(); ok {
				give()
				buf, other, give = big[:largePiece], big[largePiece:], giveBig
			}
		}
	}
}

// read fills buf, or as much of it as is there where followers wait.
func (w *inflow) read(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
		if w.took != nil && w.took(w.size+int64(n)) && n > 0 {
			break
		}
	}
	return n, err
}

// feed has p hashed, a large piece by a goroutine of its own: the caller may
// write p meanwhile, but must not change it before the next call or settle.
func (w *inflow) feed(p []byte) {
	w.settle()
	if len(p) <= smallBuffer {
		_, _ = w.hash.Write(p) // a hash never errs
		return
	}
	done := make(chan struct{})
	w.hashing = done
	go func() {
		defer close(done)
		_, _ = w.hash.Write(p)
	}()
}

// settle waits until what was written is hashed.
func (w *inflow) settle() {
	if w.hashing != nil {
		<-w.hashing
		w.hashing = nil
	}
}

// write is for pour, which settles at its end.
func (s *Store) write(w *inflow, p []byte) error {
	if err := s.draw(int64(len(p))); err != nil {
		return err
	}
	w.feed(p)
	n, err := w.file.WriteAt(p, w.size)
	w.size += int64(n)
	s.stats.written.Add(int64(n))
	s.account.landed(int64(len(p)))
	if w.size-w.begun >= flushSize {
		beginFlush(w.file, w.begun, w.size-w.begun)
		w.begun = w.size
	}
	if w.wrote != nil {
		w.wrote(w.size)
	}
	if err != nil {
		return asFull(err)
	}
	return nil
}

// account is the space above the reserve, from which all writers draw piece by
// piece: none of them sets aside what it may never write, and together they
// cannot touch the reserve. Only what others write beside the Store is seen
// late, by at most one grant.
type account struct {
	mu     sync.Mutex
	grant  int64 // may be taken before the disk is asked again
	flying int64 // taken, but not known to be in a file yet
}

// draw takes n bytes that are about to be written; landed ends that.
func (s *Store) draw(n int64) error {
	a := &s.account
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.grant < n {
		above, err := s.above()
		if err != nil {
			return err
		}
		a.grant = min(above, grantSize)
	}
	if a.grant < n {
		return oci.ErrDiskFull
	}
	a.grant -= n
	a.flying += n
	return nil
}

// landed says that n bytes taken show in the free space, or never will.
func (a *account) landed(n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.flying -= n
}

// above measures what is left above the reserve, below zero where that is
// touched. The account is held, so that no piece starts or lands meanwhile;
// those under way may count twice, never not at all.
func (s *Store) above() (int64, error) {
	free, _, err := s.sys.space(s.cfg.Dir)
	if err != nil {
		return 0, oci.ErrUnavailable.Wrap(err)
	}
	return int64(min(free, math.MaxInt64)) - s.cfg.Reserve - s.account.flying, nil
}

// writable refuses a write before it begins: on a Store that failed or is
// closed, or where n bytes (below zero: not known, but a first piece at least)
// would reach the reserve.
func (s *Store) writable(n int64) error {
	if err := s.sound(); err != nil {
		return err
	}
	if s.closed.Load() {
		return oci.ErrUnavailable.Because("shutting down")
	}
	if n < 0 {
		n = smallBuffer
	}
	s.account.mu.Lock()
	defer s.account.mu.Unlock()
	above, err := s.above()
	if err != nil {
		return err
	}
	if above < n {
		return oci.ErrDiskFull
	}
	return nil
}

// Free returns how many bytes the store's file system can still take, the
// reserve included, and how many it has in all.
func (s *Store) Free() (free, total uint64, err error) {
	free, total, err = s.sys.space(s.cfg.Dir)
	if err != nil {
		return 0, 0, fmt.Errorf("ask for free space: %w", err)
	}
	return free, total, nil
}

// Full returns ErrDiskFull while a write that does not say how long it gets is
// refused, and an error too after a failed sync.
func (s *Store) Full() error {
	if err := s.writable(-1); err != nil {
		return fmt.Errorf("check disk: %w", err)
	}
	return nil
}

// sound says how the disk failed, if it did.
func (s *Store) sound() error {
	if err := s.failed.Load(); err != nil {
		return oci.ErrUnavailable.Because("the disk failed").Wrap(*err)
	}
	return nil
}

// fail records a failed sync, or a hang: from here on nothing is written or
// vouched for.
func (s *Store) fail(err error) error {
	if s.failed.CompareAndSwap(nil, &err) {
		s.log.Error("disk failed, refusing writes", "error", err)
		if s.cfg.Fatal != nil {
			s.cfg.Fatal(err)
		}
	}
	return s.sound()
}

// gone records that the folder of all blobs is not there any more: it was wiped
// or its file system unmounted. To go on would be to deny what may be back with
// the next mount, or to fill another disk; the next Open makes what is missing.
func (s *Store) gone(err error) error {
	return s.fail(fmt.Errorf("the folder of the blobs is gone: %w", err))
}

// buffers lends memory to copy through: plenty of small pieces and a bounded
// number of large ones, none of it held while idle.
type buffers struct {
	smalls, larges *sync.Pool
	tokens         chan struct{} // one per large buffer lent
}

func newBuffers() buffers {
	return buffers{
		smalls: &sync.Pool{New: func() any { return new([smallBuffer]byte) }},
		larges: &sync.Pool{New: func() any { return new([largeBuffer]byte) }},
		tokens: make(chan struct{}, largeBuffers),
	}
}

func (b buffers) small() (buf []byte, give func()) {
	p := b.smalls.Get().(*[smallBuffer]byte)
	return p[:], func() { b.smalls.Put(p) }
}

func (b buffers) large() (buf []byte, give func(), ok bool) {
	select {
	case b.tokens <- struct{}{}:
	default:
		return nil, nil, false
	}
	p := b.larges.Get().(*[largeBuffer]byte)
	return p[:], func() { b.larges.Put(p); <-b.tokens }, true
}
