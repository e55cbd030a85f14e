package disk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(crashStep) != "" {
		crash() // does not return
	}
	goleak.VerifyTestMain(m)
}

// newStore opens a Store in a folder of its own and closes it with the test.
func newStore(t testing.TB, cfg Config) *Store {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// content returns n bytes that are the same in every run, and their digest.
func content(n int) ([]byte, digest.Digest) {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)}).Read(b)
	return b, digest.FromBytes(b)
}

// wantBlob fails the test unless s holds d as exactly b.
func wantBlob(t *testing.T, s *Store, d digest.Digest, b []byte) {
	t.Helper()
	r, size, err := s.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil || size != int64(len(b)) || !bytes.Equal(got, b) {
		t.Fatalf("blob: %d bytes announced, %d read, err %v; want %d", size, len(got), err, len(b))
	}
}

// wantErr fails the test unless err is of target's kind.
func wantErr(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("err = %v, want %v", err, target)
	}
}

// files returns every file below the store's folder, relative to it.
func files(t *testing.T, s *Store) []string {
	t.Helper()
	names := []string{}
	err := filepath.WalkDir(s.cfg.Dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			rel, _ := filepath.Rel(s.cfg.Dir, path)
			names = append(names, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// wantFiles fails the test unless there are n files in the store.
func wantFiles(t *testing.T, s *Store, n int) {
	t.Helper()
	if names := files(t, s); len(names) != n {
		t.Fatalf("files = %q, want %d", names, n)
	}
}

// within fails the test when f is not over after ten seconds.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	over := make(chan struct{})
	go func() {
		defer close(over)
		f()
	}()
	select {
	case <-over:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: not over after 10 s", what)
	}
}

// bodyOf is a source that has all of b.
func bodyOf(b []byte) Source {
	return func(_ context.Context, off int64) (io.ReadCloser, int64, error) {
		return io.NopCloser(bytes.NewReader(b[off:])), int64(len(b)), nil
	}
}

// pipeSource is a source whose bytes the test sends one by one.
func pipeSource(size int) (*io.PipeWriter, Source) {
	r, w := io.Pipe()
	return w, func(context.Context, int64) (io.ReadCloser, int64, error) { return r, int64(size), nil }
}

// forget removes a blob behind the store's back.
func (s *Store) forget(t testing.TB, d digest.Digest) {
	t.Helper()
	path, err := s.path(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

var errDied = errors.New("connection reset")

// sources is a list of bodies, one for each call, of one blob. It fails the
// test when it is asked at another offset than what was received.
type sources struct {
	t    *testing.T
	blob []byte
	next []func(rest []byte) io.ReadCloser

	mu    sync.Mutex
	asked []int64
}

func (c *sources) open(_ context.Context, off int64) (io.ReadCloser, int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := len(c.asked)
	c.asked = append(c.asked, off)
	if i >= len(c.next) {
		return nil, 0, errDied
	}
	return c.next[i](c.blob[off:]), int64(len(c.blob)), nil
}

// The ways in which a source can end after n bytes.
func dies(n int) func([]byte) io.ReadCloser {
	return func(rest []byte) io.ReadCloser { return io.NopCloser(failing(rest[:n], errDied)) }
}

func endsEarly(n int) func([]byte) io.ReadCloser {
	return func(rest []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(rest[:n])) }
}

func fallsSilent(n int) func([]byte) io.ReadCloser {
	return func(rest []byte) io.ReadCloser {
		r, w := io.Pipe()
		return struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(rest[:n]), r), pipeEnds{r, w}}
	}
}

type pipeEnds struct {
	r *io.PipeReader
	w *io.PipeWriter
}

func (p pipeEnds) Close() error { return errors.Join(p.r.Close(), p.w.Close()) }

func goesOn(rest []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(rest)) }

func failing(b []byte, err error) io.Reader {
	return io.MultiReader(bytes.NewReader(b), errReader{err})
}
