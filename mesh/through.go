package mesh

import (
	"context"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// passThrough serves d from its sources to one client without a copy here: a
// full disk refuses pushes, not pulls. Whoever reads it from start to end does
// not get the last piece of wrong bytes; others have to check for themselves.
func (b *Blobs) passThrough(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, int64, error) {
	h := b.newHunt(d, true)
	h.grows = false
	body, size, err := h.next(ctx, 0)
	if err != nil {
		return nil, 0, err
	}
	b.stats.passed.Add(1)
	open := func(off int64, moved bool) (io.ReadCloser, error) {
		if moved { // that was no fault of the sources
			clear(h.tried)
		}
		body, _, err := h.next(ctx, off)
		return body, err
	}
	check := func(sum hash.Hash) error {
		if digest.NewDigest(d.Algorithm(), sum) == d {
			return nil
		}
		h.lied()
		return oci.ErrUnavailable.Because("the content could not be verified").Wrap(oci.ErrDigestInvalid)
	}
	return &through{open: open, check: check, sum: d.Algorithm().Hash(), body: body, size: size, silence: b.patience.Stall}, size, nil
}

// through reads a blob that lies elsewhere. Like a file, it belongs to one
// reader at a time.
type through struct {
	open    func(off int64, moved bool) (io.ReadCloser, error)
	check   func(hash.Hash) error // of the whole
	sum     hash.Hash             // of the bytes read so far without a gap
	summed  int64                 // how many these are
	body    io.ReadCloser         // nil where there is none that goes on at at
	at      int64                 // where body is
	off     int64                 // where the next Read starts
	size    int64
	silence time.Duration
}

// Read replaces a source that fails or falls silent, as a download does.
func (t *through) Read(p []byte) (int, error) {
	p = p[:max(0, min(int64(len(p)), t.size-t.off))]
	for t.off < t.size && len(p) > 0 {
		moved := t.at != t.off
		if moved {
			_ = t.Close()
		}
		if t.body == nil {
			body, err := t.open(t.off, moved)
			if err != nil {
				return 0, fmt.Errorf("fetch blob: %w", vocabulary(err))
			}
			t.body, t.at = body, t.off
		}
		body := t.body
		silent := time.AfterFunc(t.silence, func() { _ = body.Close() })
		n, _ := body.Read(p)
		silent.Stop()
		if n > 0 {
			if err := t.got(p[:n]); err != nil {
				return 0, err
			}
			return n, nil
		}
		_ = t.Close()
	}
	if t.off < t.size {
		return 0, nil
	}
	if t.size == 0 {
		if err := t.check(t.sum); err != nil {
			return 0, err
		}
	}
	return 0, io.EOF
}

// got moves on behind p.
func (t *through) got(p []byte) error {
	if t.off == t.summed {
		_, _ = t.sum.Write(p) // a hash never errs
		t.summed += int64(len(p))
		if t.summed == t.size {
			if err := t.check(t.sum); err != nil {
				return err
			}
		}
	}
	t.at += int64(len(p))
	t.off = t.at
	return nil
}

// Seek implements io.Seeker; the next Read goes there.
func (t *through) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += t.off
	case io.SeekEnd:
		offset += t.size
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek blob: %w", fs.ErrInvalid)
	}
	t.off = offset
	return offset, nil
}

// Close implements io.Closer.
func (t *through) Close() error {
	if t.body == nil {
		return nil
	}
	err := t.body.Close()
	t.body = nil
	return err
}
