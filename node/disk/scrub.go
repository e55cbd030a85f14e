package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/time/rate"

	"github.com/flotilla-registry/flotilla/api/oci"
)

const (
	// maxDamaged files in a row end a round of Scrub: it is then the machine
	// that fails, its disk or its memory, rather than so many files. Nothing
	// would be won by taking all of them out of service.
	maxDamaged = 8
	// cursorEvery is how often a round notes how far it is.
	cursorEvery = time.Minute
)

var (
	errWrongBytes = errors.New("the stored bytes have another digest")
	errCutShort   = errors.New("reading ended early")
)

// Check reads the blob d again, now, and compares it with its digest. What is
// not as it was stored goes into quarantine, whether its bytes are wrong or
// cannot be read, and the error says so; it is ErrBlobUnknown where d is not
// held.
func (s *Store) Check(ctx context.Context, d digest.Digest) error {
	c := s.newScrubber(rate.Inf)
	if err := c.check(ctx, d, true); err != nil {
		return fmt.Errorf("check blob: %w", err)
	}
	return nil
}

// Scrub checks every blob once, at no more than ScrubRate, and puts what is
// damaged into quarantine. A round that is cut off goes on where it was, in the
// next process too. One at a time.
//
// Wrong bytes are known to be wrong, and their file goes at once. That a file
// cannot be read may be the disk's failing as a whole: such a file goes once
// the next good one was read. After maxDamaged in a row the round ends with an
// error, and none of those that could not be read has gone.
func (s *Store) Scrub(ctx context.Context) error {
	c := s.newScrubber(rate.Limit(s.cfg.ScrubRate))
	c.done, c.noted = s.readCursor(), time.Now()
	err := c.round(ctx)
	if err == nil {
		c.done = ""
	}
	s.writeCursor(c.done)
	if err != nil {
		return fmt.Errorf("scrub: %w", err)
	}
	return nil
}

// scrubber is what one round of Scrub, or one Check, has in hand.
type scrubber struct {
	store *Store
	pace  *rate.Limiter
	buf   []byte

	done       digest.Digest   // all up to here need not be looked at again
	noted      time.Time       // when that was last written down
	row        int             // damaged files since the last good one
	unreadable []digest.Digest // of these, those that are still in place
}

func (s *Store) newScrubber(limit rate.Limit) *scrubber {
	return &scrubber{store: s, pace: rate.NewLimiter(limit, largeBuffer), buf: make([]byte, largeBuffer)}
}

func (c *scrubber) round(ctx context.Context) error {
	for d, err := range c.store.names(c.done) {
		if err != nil {
			return err
		}
		if err := c.next(ctx, d); err != nil {
			return err
		}
		if time.Since(c.noted) >= cursorEvery {
			c.store.writeCursor(c.done)
			c.noted = time.Now()
		}
	}
	return c.settle(ctx)
}

// next checks one file of a round.
func (c *scrubber) next(ctx context.Context, d digest.Digest) error {
	err := c.check(ctx, d, false)
	if over := c.over(err); over != nil {
		return over
	}
	switch {
	case err == nil:
		c.row = 0
		if err := c.settle(ctx); err != nil {
			return err
		}
	case errors.Is(err, oci.ErrBlobUnknown): // removed meanwhile
	default:
		c.row++
		if !errors.Is(err, errWrongBytes) {
			c.unreadable = append(c.unreadable, d)
		}
		if c.row == maxDamaged {
			return fmt.Errorf("%d files in a row are damaged; the disk or the memory of this machine may be failing: %w", c.row, err)
		}
	}
	if len(c.unreadable) == 0 {
		c.done = d
	}
	return nil
}

// settle ends the waiting of the files that could not be read: each gets
// another chance and goes if it fails.
func (c *scrubber) settle(ctx context.Context) error {
	for _, d := range c.unreadable {
		if over := c.over(c.check(ctx, d, true)); over != nil {
			return over
		}
	}
	c.unreadable = nil
	return nil
}

// over returns what ends the round, if the check that returned err does.
func (c *scrubber) over(err error) error {
	if errors.Is(err, errCutShort) {
		return err
	}
	return c.store.sound()
}

// check reads the file of d, and once more where that finds fault: memory and
// cables flip bits too. A file of wrong bytes goes into quarantine, one that
// cannot be read only where that is asked for. One that cannot even be opened
// stays: nobody else can open it, and it may be descriptors that are lacking.
func (c *scrubber) check(ctx context.Context, d digest.Digest, unreadableGoes bool) error {
	f, _, err := c.store.open(d)
	if err != nil {
		return err
	}
	defer f.Close()
	noReuse(f)
	err = c.read(ctx, f, d)
	if err != nil && !errors.Is(err, errCutShort) {
		dropCache(f)
		err = c.read(ctx, f, d)
	}
	switch {
	case err == nil || errors.Is(err, errCutShort):
		return err
	case errors.Is(err, errWrongBytes) || unreadableGoes:
		gone, cerr := c.store.condemn(d, f, err)
		if !gone && cerr == nil {
			_, err := c.store.held(d) // removed meanwhile, or stored anew and thus verified
			return err
		}
		err = errors.Join(err, cerr)
	default:
		c.store.log.Warn("stored blob cannot be read", "digest", d, "error", err)
	}
	return oci.ErrUnavailable.Because("the stored copy is damaged").Wrap(err)
}

// read hashes f from its start. Each piece is paid for as a whole one, as a
// file costs the disk a seek however small it is.
func (c *scrubber) read(ctx context.Context, f *os.File, d digest.Digest) error {
	h, err := newHash(d.Algorithm())
	if err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	for {
		if err := c.pace.WaitN(ctx, len(c.buf)); err != nil {
			return fmt.Errorf("%w: %w", errCutShort, err)
		}
		n, err := io.ReadFull(c.store.sys.reader(f), c.buf)
		_, _ = h.Write(c.buf[:n])
		c.store.stats.scrubbed.Add(int64(n))
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if digest.NewDigest(d.Algorithm(), h) != d {
		return errWrongBytes
	}
	return nil
}

func (s *Store) cursorPath() string { return s.cfg.Dir + string(os.PathSeparator) + "scrub.cursor" }

// readCursor returns how far the last round came, "" for a new one. The file is
// not synced: what is lost of it is read twice.
func (s *Store) readCursor() digest.Digest {
	b, err := os.ReadFile(s.cursorPath())
	if err != nil {
		return ""
	}
	d := digest.Digest(strings.TrimSpace(string(b)))
	if _, err := s.path(d); err != nil {
		return ""
	}
	return d
}

func (s *Store) writeCursor(d digest.Digest) {
	if d == "" {
		_ = os.Remove(s.cursorPath())
		return
	}
	if err := os.WriteFile(s.cursorPath(), []byte(d+"\n"), 0o600); err != nil {
		s.log.Warn("cannot note how far the scrub is", "error", err)
	}
}
