package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// readFill fills d and reads it to its end.
func readFill(t *testing.T, s *Store, d digest.Digest, src Source) ([]byte, error) {
	t.Helper()
	r, size, err := s.Fill(t.Context(), d, src)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err == nil && int64(len(b)) != size {
		t.Errorf("%d bytes announced, %d read", size, len(b))
	}
	return b, err
}

func TestFill(t *testing.T) {
	for _, size := range []int{0, 1, 1000, holdBack - 1, holdBack, holdBack + 1, 5*largeBuffer + 3} {
		for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
			t.Run(fmt.Sprint(size, " ", alg), func(t *testing.T) {
				s := newStore(t, Config{})
				b, _ := content(size)
				d := alg.FromBytes(b)
				got, err := readFill(t, s, d, bodyOf(b))
				if err != nil || !bytes.Equal(got, b) {
					t.Fatalf("read %d bytes, err %v", len(got), err)
				}
				wantBlob(t, s, d, b)
				wantFiles(t, s, 1)
			})
		}
	}
}

// A source that ends at any offset, in any way, is replaced there.
func TestFillReplacesSource(t *testing.T) {
	ends := map[string]func(int) func([]byte) io.ReadCloser{"dies": dies, "ends early": endsEarly, "falls silent": fallsSilent}
	const size = 3*holdBack + 1000
	offsets := []int{0, 1, smallBuffer, size / 2, size - holdBack - 1, size - holdBack, size - holdBack + 1, size - 1}
	for how, end := range ends {
		for _, off := range offsets {
			t.Run(fmt.Sprintf("%s at %d", how, off), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newStore(t, Config{})
					b, d := content(size)
					c := &sources{t: t, blob: b, next: []func([]byte) io.ReadCloser{end(off), goesOn}}
					began := time.Now()
					got, err := readFill(t, s, d, c.open)
					if err != nil || !bytes.Equal(got, b) {
						t.Fatalf("read %d bytes, err %v", len(got), err)
					}
					if len(c.asked) != 2 || c.asked[1] != int64(off) {
						t.Errorf("sources asked at %v, want 0 and %d", c.asked, off)
					}
					if took := time.Since(began); how == "falls silent" && took != 5*time.Second {
						t.Errorf("silence borne for %v", took)
					}
					if n := s.Stats().SourcesReplaced; n != 1 {
						t.Errorf("%d sources replaced", n)
					}
					wantBlob(t, s, d, b)
				})
			})
		}
	}
}

// Every offset in turn: each source dies after one byte.
func TestFillOverSourcesOfOneByte(t *testing.T) {
	s := newStore(t, Config{})
	b, d := content(3000)
	got, err := readFill(t, s, d, func(_ context.Context, off int64) (io.ReadCloser, int64, error) {
		return dies(1)(b[off:]), int64(len(b)), nil
	})
	if err != nil || !bytes.Equal(got, b) {
		t.Fatalf("read %d bytes, err %v", len(got), err)
	}
}

// A source that sends a byte now and then is slow, not silent.
func TestFillBearsSlowSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t, Config{})
		b, d := content(20)
		w, src := pipeSource(len(b))
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := range b {
				<-time.After(4 * time.Second)
				_, _ = w.Write(b[i : i+1])
			}
		})
		got, err := readFill(t, s, d, src)
		wg.Wait()
		if err != nil || !bytes.Equal(got, b) {
			t.Fatalf("read %d bytes, err %v", len(got), err)
		}
	})
}

// A source that is held back by whoever asked it is not silent.
func TestFillBearsRestraint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t, Config{})
		b, d := content(3 * smallBuffer)
		got, err := readFill(t, s, d, func(_ context.Context, off int64) (io.ReadCloser, int64, error) {
			return &heldBody{Reader: bytes.NewReader(b[off:])}, int64(len(b)), nil
		})
		if err != nil || !bytes.Equal(got, b) {
			t.Fatalf("read %d bytes, err %v", len(got), err)
		}
		if n := s.Stats().SourcesReplaced; n != 0 {
			t.Errorf("%d sources replaced", n)
		}
	})
}

// heldBody gives a piece and is then held back for a minute.
type heldBody struct {
	io.Reader
	held atomic.Bool
}

func (h *heldBody) Read(p []byte) (int, error) {
	n, err := h.Reader.Read(p)
	h.held.Store(true)
	defer h.held.Store(false)
	time.Sleep(time.Minute)
	return n, err
}

func (h *heldBody) Held() bool   { return h.held.Load() }
func (h *heldBody) Close() error { return nil }

func TestFillFails(t *testing.T) {
	const size = 4 * holdBack
	b, d := content(size)
	wrong := bytes.Clone(b)
	wrong[size-1] ^= 1
	sized := func(r io.Reader, size int64) Source {
		return func(context.Context, int64) (io.ReadCloser, int64, error) { return io.NopCloser(r), size, nil }
	}
	var second int
	for _, tt := range []struct {
		name string
		src  Source
		err  error
		most int // bytes that a reader may see
	}{
		{"first source errs", func(context.Context, int64) (io.ReadCloser, int64, error) { return nil, 0, oci.ErrBlobUnknown }, oci.ErrBlobUnknown, 0},
		{"second source errs", (&sources{t: t, blob: b, next: []func([]byte) io.ReadCloser{dies(100)}}).open, errDied, 100},
		{"source errs with EOF", func(context.Context, int64) (io.ReadCloser, int64, error) {
			if second++; second == 1 {
				return io.NopCloser(failing(b[:100], errDied)), size, nil
			}
			return nil, 0, io.EOF
		}, io.ErrUnexpectedEOF, 100},
		{"wrong bytes", bodyOf(wrong), oci.ErrDigestInvalid, size - holdBack},
		{"another size", func(_ context.Context, off int64) (io.ReadCloser, int64, error) {
			return dies(100)(b[off:]), size + off, nil
		}, oci.ErrUnavailable, 100},
		{"too small a size", sized(bytes.NewReader(b), size-1), oci.ErrDigestInvalid, size - holdBack},
		{"empty", sized(bytes.NewReader(nil), 0), oci.ErrDigestInvalid, 0},
		{"no size", sized(bytes.NewReader(b), -1), oci.ErrUnavailable, 0},
		{"nothing ever", sized(bytes.NewReader(nil), size), oci.ErrUnavailable, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t, Config{})
			got, err := readFill(t, s, d, tt.src)
			wantErr(t, err, tt.err)
			if len(got) > tt.most {
				t.Errorf("a reader saw %d bytes", len(got))
			}
			if code := (*oci.Error)(nil); tt.err == oci.ErrDigestInvalid && (!errors.As(err, &code) || code.Kind != oci.ErrUnavailable.Kind) {
				t.Errorf("the client is blamed: %v", err)
			}
			if n := s.Stats().FillsFailed; n != 1 {
				t.Errorf("%d fills failed", n)
			}
			wantFiles(t, s, 0)
			_, _, err = s.Open(t.Context(), d)
			wantErr(t, err, oci.ErrBlobUnknown)
			if got, err := readFill(t, s, d, bodyOf(b)); err != nil || !bytes.Equal(got, b) {
				t.Fatalf("a new fill reads %d bytes, err %v", len(got), err)
			}
		})
	}
}

// Sources that lied are not asked again, and no reader gets past what may be
// wrong, wherever it stands.
func TestFillOfWrongBytes(t *testing.T) {
	s := newStore(t, Config{})
	b, _ := content(4 * holdBack)
	_, d := content(17)
	w, pipe := pipeSource(len(b))
	asked := 0
	src := func(ctx context.Context, off int64) (io.ReadCloser, int64, error) {
		asked++
		return pipe(ctx, off)
	}
	var readers []io.ReadSeekCloser
	for _, off := range []int64{0, 1000, int64(len(b)) - holdBack, int64(len(b)) - 1, int64(len(b))} {
		r, _, err := s.Fill(t.Context(), d, src)
		must(t, err)
		defer r.Close()
		_, err = r.Seek(off, io.SeekStart)
		must(t, err)
		readers = append(readers, r)
	}
	_, err := w.Write(b)
	must(t, err)
	for i, r := range readers {
		n, err := io.Copy(io.Discard, r)
		if !errors.Is(err, oci.ErrDigestInvalid) || n > int64(len(b))-holdBack {
			t.Errorf("reader %d: %d bytes, %v", i, n, err)
		}
		if i > 0 && n > 0 {
			t.Errorf("reader %d got %d bytes that were known to be of no worth", i, n)
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	wantFiles(t, s, 0)
}

// One download serves all who want the blob.
func TestFillIsShared(t *testing.T) {
	s := newStore(t, Config{})
	b, d := content(3 * largeBuffer)
	var mu sync.Mutex
	asked := 0
	src := func(ctx context.Context, off int64) (io.ReadCloser, int64, error) {
		mu.Lock()
		asked++
		mu.Unlock()
		return bodyOf(b)(ctx, off)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if got, err := readFill(t, s, d, src); err != nil || !bytes.Equal(got, b) {
				t.Errorf("read %d bytes, err %v", len(got), err)
			}
		})
	}
	wg.Wait()
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	if st := s.Stats(); st.FillsStarted != 1 || st.FillsActive != 0 || st.Followers != 0 {
		t.Errorf("stats: %+v", st)
	}
}

// The wait for the first answer is the caller's; the download is not.
func TestFillOutlivesCaller(t *testing.T) {
	type key struct{}
	s := newStore(t, Config{})
	b, d := content(100_000)
	answer := make(chan struct{})
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "request 1"))
	src := func(ctx context.Context, off int64) (io.ReadCloser, int64, error) {
		if ctx.Value(key{}) != "request 1" {
			t.Error("the source does not know whose request it serves")
		}
		select {
		case <-answer:
			return bodyOf(b)(ctx, off)
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
	cancel()
	_, _, err := s.Fill(ctx, d, src)
	wantErr(t, err, context.Canceled)
	close(answer)
	got, err := readFill(t, s, d, func(context.Context, int64) (io.ReadCloser, int64, error) {
		t.Error("asked a second time")
		return nil, 0, errDied
	})
	if err != nil || !bytes.Equal(got, b) {
		t.Fatalf("read %d bytes, err %v", len(got), err)
	}
}

func TestFillOfHeldBlob(t *testing.T) {
	s := newStore(t, Config{})
	b, d := content(1000)
	must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
	got, err := readFill(t, s, d, func(context.Context, int64) (io.ReadCloser, int64, error) {
		t.Error("asked for a blob that is held")
		return nil, 0, errDied
	})
	if err != nil || !bytes.Equal(got, b) {
		t.Fatalf("read %d bytes, err %v", len(got), err)
	}
}

func TestTooManyFills(t *testing.T) {
	s := newStore(t, Config{MaxFills: 2})
	for i := range 2 {
		b, d := content(100 + i)
		_, src := pipeSource(len(b))
		r, _, err := s.Fill(t.Context(), d, src)
		must(t, err)
		defer r.Close()
	}
	b, d := content(200)
	_, _, err := s.Fill(t.Context(), d, bodyOf(b))
	wantErr(t, err, oci.ErrUnavailable)
	_, joined := content(100)
	r, _, err := s.Fill(t.Context(), joined, bodyOf(b))
	must(t, err)
	must(t, r.Close())
}

// Close does not leave anyone waiting, nor anything behind.
func TestCloseAmidFill(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(Config{Dir: dir})
	must(t, err)
	b, d := content(3 * holdBack)
	w, pipe := pipeSource(len(b))
	asked := 0
	src := func(ctx context.Context, off int64) (io.ReadCloser, int64, error) {
		asked++
		return pipe(ctx, off)
	}
	r, _, err := s.Fill(t.Context(), d, src)
	must(t, err)
	_, err = w.Write(b[:holdBack])
	must(t, err)
	_, unanswered := content(5)
	waited := make(chan error, 2)
	go func() {
		_, _, err := s.Fill(context.Background(), unanswered, func(ctx context.Context, _ int64) (io.ReadCloser, int64, error) {
			<-ctx.Done()
			return nil, 0, ctx.Err()
		})
		waited <- err
	}()
	eventually(t, "both run", func() bool { return s.Stats().FillsActive == 2 })
	go func() {
		_, err := io.Copy(io.Discard, r)
		waited <- err
	}()
	within(t, "Close", func() { must(t, s.Close()) })
	within(t, "readers", func() {
		for range 2 {
			if err := <-waited; err == nil {
				t.Error("no error for who waits for a closed store")
			}
		}
	})
	must(t, r.Close())
	wantFiles(t, s, 0)
	_, _, err = s.Fill(t.Context(), d, src)
	wantErr(t, err, oci.ErrUnavailable)
	if asked != 1 {
		t.Errorf("a source asked %d times", asked)
	}
}

// A fill that ends between the first look and the joining is not begun anew.
func TestJoinFindsBlobJustStored(t *testing.T) {
	s := newStore(t, Config{})
	b, d := content(1000)
	must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
	r, whole, err := s.join(t.Context(), d, nil)
	if err != nil || r != nil || whole == nil {
		t.Fatalf("join = %v, %v, %v", r, whole, err)
	}
	must(t, whole.Close())
}

// Obtain starts a download or waits for the one that runs, and what it says is
// there is held.
func TestObtain(t *testing.T) {
	s := newStore(t, Config{})
	b, d := content(3*largeBuffer + 5)
	w, src := pipeSource(len(b))
	done := make(chan error, 2)
	for range 2 {
		go func() { done <- s.Obtain(t.Context(), d, src) }()
	}
	if _, err := w.Write(b[:holdBack+1]); err != nil {
		t.Fatal(err)
	}
	// A reader that comes later has what was gathered written.
	r, _, err := s.Fill(t.Context(), d, src)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.Write(b[holdBack+1:]); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, b) {
		t.Errorf("read %d bytes, err %v", len(got), err)
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if !s.Has(d) {
		t.Error("not held")
	}
	if err := s.Obtain(t.Context(), d, nil); err != nil {
		t.Errorf("what is held: %v", err)
	}
	wantFiles(t, s, 1)
}

// Obtain says how a download failed, and that its caller waits no longer; the
// download goes on.
func TestObtainFails(t *testing.T) {
	s := newStore(t, Config{})
	b, d := content(1000)
	wantErr(t, s.Obtain(t.Context(), d, bodyOf(make([]byte, len(b)))), oci.ErrDigestInvalid)
	w, src := pipeSource(len(b))
	ctx, cancel := context.WithCancelCause(t.Context())
	left := errors.New("left")
	cancel(left)
	wantErr(t, s.Obtain(ctx, d, src), left)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := s.Obtain(t.Context(), d, src); err != nil {
		t.Error(err)
	}
	wantBlob(t, s, d, b)
}
