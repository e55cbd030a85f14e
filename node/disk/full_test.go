package disk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// small is a file system of limit bytes of which the store's files take some.
type small struct {
	t     *testing.T
	s     *Store
	limit int64
}

func (m *small) space(string) (free, total uint64, err error) {
	used := int64(0)
	for _, name := range files(m.t, m.s) {
		info, err := os.Stat(m.s.cfg.Dir + "/" + name)
		if err != nil {
			return 0, 0, err
		}
		used += info.Size()
	}
	return uint64(max(m.limit-used, 0)), uint64(m.limit), nil
}

// newSmall opens a Store on 40 MiB of which it must leave 8.
func newSmall(t *testing.T) (*Store, *small) {
	m := &small{t: t, limit: 40 << 20}
	m.s = newStore(t, Config{Reserve: 8 << 20})
	m.s.sys.space = m.space
	return m.s, m
}

const mib = 1 << 20

// zeros is n bytes from a client that does not say how many there will be.
func zeros(n int64) io.Reader { return io.LimitReader(zeroReader{}, n) }

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestDiskFull(t *testing.T) {
	_, other := content(10)
	sourceOf := func(announced, sent int64) Source {
		return func(context.Context, int64) (io.ReadCloser, int64, error) {
			return io.NopCloser(zeros(sent)), announced, nil
		}
	}
	for _, tt := range []struct {
		name  string
		write func(t *testing.T, s *Store) error
	}{
		{"put of a known size", func(t *testing.T, s *Store) error {
			return s.Put(t.Context(), other, 33*mib, errReader{errors.New("read although refused")})
		}},
		{"put of an unknown size", func(t *testing.T, s *Store) error {
			return s.Put(t.Context(), other, -1, zeros(100*mib))
		}},
		{"one append", func(t *testing.T, s *Store) error {
			u := start(t, s, digest.SHA256)
			_, err := s.Append(t.Context(), u, 0, zeros(100*mib))
			return errors.Join(err, wantGone(t, s, u))
		}},
		{"many appends", func(t *testing.T, s *Store) error {
			u := start(t, s, digest.SHA256)
			for {
				if _, err := s.Append(t.Context(), u, -1, zeros(mib)); err != nil {
					return errors.Join(err, wantGone(t, s, u))
				}
			}
		}},
		{"finish", func(t *testing.T, s *Store) error {
			u := start(t, s, digest.SHA256)
			_, err := s.Finish(t.Context(), u, 0, zeros(100*mib), other)
			return errors.Join(err, wantGone(t, s, u))
		}},
		{"fill", func(t *testing.T, s *Store) error {
			_, _, err := s.Fill(t.Context(), other, sourceOf(33*mib, 33*mib))
			return err
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, m := newSmall(t)
			least := uint64(m.limit)
			s.sys.space = func(dir string) (uint64, uint64, error) {
				free, total, err := m.space(dir)
				least = min(least, free)
				return free, total, err
			}
			wantErr(t, tt.write(t, s), oci.ErrDiskFull)
			if least < uint64(s.cfg.Reserve) {
				t.Errorf("%d bytes into the reserve", uint64(s.cfg.Reserve)-least)
			}
			wantFiles(t, s, 0)
			if err := s.Full(); err != nil {
				t.Errorf("full after the partial file is gone: %v", err)
			}
		})
	}
}

// wantGone is nil when the upload is unknown.
func wantGone(t *testing.T, s *Store, u oci.Upload) error {
	if _, err := s.Size(t.Context(), u); !errors.Is(err, oci.ErrUploadUnknown) {
		t.Errorf("the upload lives on: %v", err)
	}
	return nil
}

// With the reserve touched by others, nothing begins, and what is held is served.
func TestFullRefusesAtOnce(t *testing.T) {
	s := newStore(t, Config{Reserve: 8 * mib})
	b, d := content(1000)
	must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
	open := start(t, s, digest.SHA256)
	s.sys.space = func(string) (uint64, uint64, error) { return 8*mib - 1, 100 * mib, nil }
	_, other := content(10)
	wantErr(t, s.Full(), oci.ErrDiskFull)
	wantErr(t, s.Put(t.Context(), other, -1, zeros(1)), oci.ErrDiskFull)
	_, err := s.Start(t.Context(), "repo", digest.SHA256)
	wantErr(t, err, oci.ErrDiskFull)
	_, err = s.Append(t.Context(), open, 0, zeros(1))
	wantErr(t, err, oci.ErrDiskFull)
	_, _, err = s.Fill(t.Context(), other, func(context.Context, int64) (io.ReadCloser, int64, error) {
		t.Error("asked a source without room for its bytes")
		return nil, 0, io.EOF
	})
	wantErr(t, err, oci.ErrDiskFull)
	wantBlob(t, s, d, b)
	if free, total, err := s.Free(); err != nil || free != 8*mib-1 || total != 100*mib {
		t.Errorf("Free = %d, %d, %v", free, total, err)
	}
}

// Pushes are refused while reads go on, and taken again when there is space,
// without a hand: whether others gave it back or Remove did.
func TestFullRecovers(t *testing.T) {
	for _, tt := range []struct {
		name string
		free func(t *testing.T, s *Store, m *small, old digest.Digest)
	}{
		{"others gave it back", func(_ *testing.T, _ *Store, m *small, _ digest.Digest) { m.limit = 40 * mib }},
		{"a blob was removed", func(t *testing.T, s *Store, _ *small, old digest.Digest) {
			removed, err := s.Remove(old, time.Now().Add(time.Hour))
			if must(t, err); !removed {
				t.Error("not removed")
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, m := newSmall(t)
			held, heldDigest := content(mib)
			old, oldDigest := content(mib + 1)
			b, d := content(1000)
			must(t, s.Put(t.Context(), heldDigest, -1, bytes.NewReader(held)))
			must(t, s.Put(t.Context(), oldDigest, -1, bytes.NewReader(old)))
			open := start(t, s, digest.SHA256)
			_, err := s.Append(t.Context(), open, 0, bytes.NewReader(b[:500]))
			must(t, err)
			m.limit = 10*mib + 2000 // two of them are taken, eight the reserve
			s.account.grant = 0     // what was still granted before may be written in any case
			wantErr(t, s.Full(), oci.ErrDiskFull)
			wantErr(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)), oci.ErrDiskFull)
			_, err = s.Append(t.Context(), open, 500, bytes.NewReader(b[500:]))
			wantErr(t, err, oci.ErrDiskFull)
			_, err = s.Start(t.Context(), "repo", digest.SHA256)
			wantErr(t, err, oci.ErrDiskFull)
			wantBlob(t, s, heldDigest, held)
			if _, ok := s.Touch(heldDigest); !ok {
				t.Error("a full disk does not vouch for what it holds")
			}
			tt.free(t, s, m, oldDigest)
			must(t, s.Full())
			must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
			s.forget(t, d)
			_, err = s.Finish(t.Context(), open, 500, bytes.NewReader(b[500:]), d) // refused, not lost
			must(t, err)
			wantBlob(t, s, d, b)
		})
	}
}

func TestFreeIsReal(t *testing.T) {
	s := newStore(t, Config{})
	free, total, err := s.Free()
	if err != nil || free == 0 || free > total {
		t.Fatalf("Free = %d, %d, %v", free, total, err)
	}
}

// Writers at once draw from one account: however many there are, they stop
// above the reserve, and do not stop long before it.
func TestManyWritersLeaveReserve(t *testing.T) {
	const writers, above, each = 64, 24 * mib, mib
	s := newStore(t, Config{Reserve: 8 * mib})
	s.sys.space = func(string) (uint64, uint64, error) {
		return uint64(max(8*mib+above-s.Stats().BytesWritten, 0)), 1 << 40, nil
	}
	_, d := content(10)
	var all sync.WaitGroup
	begun := make(chan struct{})
	var first atomic.Int64
	for range writers {
		all.Go(func() {
			wait := readerFunc(func([]byte) (int, error) {
				if first.Add(1) == writers { // each has written its first piece
					close(begun)
				}
				<-begun
				return 0, io.EOF
			})
			err := s.Put(t.Context(), d, -1, io.MultiReader(zeros(smallBuffer), wait, zeros(each)))
			if err == nil {
				t.Error("stored zeros under another digest")
			}
		})
	}
	all.Wait()
	written := s.Stats().BytesWritten
	if written > above || written < above-writers*smallBuffer-largeBuffer {
		t.Errorf("%d bytes written where %d may be", written, above)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// Full is said exactly when a write of unknown length is refused.
func TestFullMeansRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		left uint64
		full bool
	}{
		{"nothing left", 0, true},
		{"less than a piece", smallBuffer - 1, true},
		{"a piece", smallBuffer, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t, Config{Reserve: 8 * mib})
			s.sys.space = func(string) (uint64, uint64, error) { return 8*mib + tt.left, 100 * mib, nil }
			b, d := content(smallBuffer)
			full, err := s.Full(), s.Put(t.Context(), d, -1, bytes.NewReader(b))
			if errors.Is(full, oci.ErrDiskFull) != tt.full || errors.Is(err, oci.ErrDiskFull) != tt.full {
				t.Errorf("Full = %v, Put = %v", full, err)
			}
		})
	}
}
