package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
)

// Readers at every kind of offset and range of a copy that grows in pieces.
func TestFollowRanges(t *testing.T) {
	const size = 5*holdBack + 321
	type span struct{ from, to int64 }
	spans := []span{
		{0, size}, {0, 1}, {0, 0}, {1, 2}, {size - 1, size}, {size, size}, {size / 2, size},
		{size - holdBack, size}, {size - holdBack - 1, size - holdBack}, {size - holdBack - 1, size - holdBack + 1},
		{size - holdBack, size - holdBack + 1}, {1000, 2 * holdBack}, {2 * holdBack, size - 1},
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		from := rng.Int64N(size)
		spans = append(spans, span{from, from + rng.Int64N(size-from+1)})
	}
	s := newStore(t, Config{})
	b, d := content(size)
	w, src := pipeSource(size)
	last, _, err := s.Fill(t.Context(), d, src)
	must(t, err)
	defer last.Close()
	var wg sync.WaitGroup
	for _, sp := range spans {
		r, n, err := s.Fill(t.Context(), d, src)
		if err != nil || n != size {
			t.Fatalf("Fill = %d, %v", n, err)
		}
		wg.Go(func() {
			defer r.Close()
			if at, err := r.Seek(sp.from, io.SeekStart); err != nil || at != sp.from {
				t.Errorf("Seek = %d, %v", at, err)
			}
			got, err := io.ReadAll(io.LimitReader(r, sp.to-sp.from))
			if err != nil || !bytes.Equal(got, b[sp.from:sp.to]) {
				t.Errorf("%v: %d bytes, err %v", sp, len(got), err)
			}
		})
	}
	for rest := b; len(rest) > 0; {
		n := min(len(rest), 1+rng.IntN(3*smallBuffer))
		_, err := w.Write(rest[:n])
		must(t, err)
		rest = rest[n:]
	}
	wg.Wait()
	// Bytes are released once they are verified; the end is told once they
	// are stored.
	if _, err := io.Copy(io.Discard, last); err != nil {
		t.Fatal(err)
	}
	wantBlob(t, s, d, b)
}

// Bytes are handed out as they come, all but the last of them; those only once
// the blob is verified.
func TestFollowSeesBytesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t, Config{})
		b, d := content(3 * holdBack)
		w, src := pipeSource(len(b))
		r, _, err := s.Fill(t.Context(), d, src)
		must(t, err)
		defer r.Close()
		var mu sync.Mutex
		var got []byte
		var end error
		var wg sync.WaitGroup
		wg.Go(func() {
			buf := make([]byte, len(b))
			for end == nil {
				n, err := r.Read(buf)
				mu.Lock()
				got, end = append(got, buf[:n]...), err
				mu.Unlock()
			}
		})
		seen := func() int {
			synctest.Wait() // until the reader has nothing to do but wait
			mu.Lock()
			defer mu.Unlock()
			return len(got)
		}
		sent := 0
		for _, step := range []struct{ sent, seen int }{
			{1, 1}, {2, 2}, {1000, 1000}, {2*holdBack - 1, 2*holdBack - 1}, {2 * holdBack, 2 * holdBack},
			{2*holdBack + 1, 2 * holdBack}, {3*holdBack - 1, 2 * holdBack}, {3 * holdBack, 3 * holdBack},
		} {
			_, err := w.Write(b[sent:step.sent])
			must(t, err)
			sent = step.sent
			if n := seen(); n != step.seen {
				t.Fatalf("%d bytes sent, %d seen, want %d", step.sent, n, step.seen)
			}
		}
		wg.Wait()
		if end != io.EOF || !bytes.Equal(got, b) {
			t.Fatalf("%d bytes, then %v", len(got), end)
		}
	})
}

// A reader that takes nothing holds up neither the others nor the download;
// in the end it gets everything, from a file that was renamed under it.
func TestFollowSlowReader(t *testing.T) {
	s := newStore(t, Config{})
	b, d := content(4 * largeBuffer)
	slow, _, err := s.Fill(t.Context(), d, bodyOf(b))
	must(t, err)
	defer slow.Close()
	head := make([]byte, 10)
	if _, err := io.ReadFull(slow, head); err != nil {
		t.Fatal(err)
	}
	within(t, "the other reader", func() {
		got, err := readFill(t, s, d, bodyOf(b))
		if err != nil || !bytes.Equal(got, b) {
			t.Errorf("read %d bytes, err %v", len(got), err)
		}
	})
	wantBlob(t, s, d, b)
	s.forget(t, d)
	rest, err := io.ReadAll(slow)
	if err != nil || !bytes.Equal(append(head, rest...), b) {
		t.Fatalf("slow reader: %d bytes, err %v", len(head)+len(rest), err)
	}
}

// When no source is left, a reader behind the others still gets what came, so
// that its client can resume there.
func TestFollowerGetsWhatCame(t *testing.T) {
	s := newStore(t, Config{})
	b, d := content(4 * holdBack)
	c := &sources{t: t, blob: b, next: []func([]byte) io.ReadCloser{dies(1000)}}
	hold := make(chan struct{})
	src := func(ctx context.Context, off int64) (io.ReadCloser, int64, error) {
		if off > 0 {
			<-hold // until both read
		}
		return c.open(ctx, off)
	}
	first, _, err := s.Fill(t.Context(), d, src)
	must(t, err)
	defer first.Close()
	behind, _, err := s.Fill(t.Context(), d, src)
	must(t, err)
	defer behind.Close()
	close(hold)
	for _, r := range []io.Reader{first, behind} { // the second begins when all is over
		got, err := io.ReadAll(r)
		if !errors.Is(err, errDied) || !bytes.Equal(got, b[:1000]) {
			t.Errorf("%d bytes, then %v", len(got), err)
		}
	}
	wantFiles(t, s, 0)
}

// Readers leave; the download goes on.
func TestFollowerLeaves(t *testing.T) {
	s := newStore(t, Config{})
	b, d := content(3 * holdBack)
	w, src := pipeSource(len(b))
	ctx, cancel := context.WithCancel(t.Context())
	r, _, err := s.Fill(ctx, d, src)
	must(t, err)
	_, err = w.Write(b[:10])
	must(t, err)
	must(t, r.Close())
	cancel()
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Read after Close: %v", err)
	}
	if err := r.Close(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
	_, err = w.Write(b[10:])
	must(t, err)
	eventually(t, "the blob is held", func() bool {
		_, held := s.Touch(d)
		return held
	})
	wantBlob(t, s, d, b)
}

// Close frees a Read of the same reader, and no other.
func TestCloseFreesRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t, Config{})
		b, d := content(3 * holdBack)
		_, src := pipeSource(len(b))
		results := make([]chan error, 2)
		var readers []io.Closer
		for i := range results {
			r, _, err := s.Fill(t.Context(), d, src)
			must(t, err)
			readers = append(readers, r)
			results[i] = make(chan error, 1)
			go func() {
				_, err := r.Read(make([]byte, 1))
				results[i] <- err
			}()
		}
		synctest.Wait()
		must(t, readers[0].Close())
		synctest.Wait()
		select {
		case err := <-results[0]:
			if !errors.Is(err, fs.ErrClosed) {
				t.Errorf("Read of the closed reader: %v", err)
			}
		default:
			t.Error("Read of the closed reader goes on")
		}
		select {
		case err := <-results[1]:
			t.Errorf("the other was disturbed: %v", err)
		default:
		}
		must(t, s.Close())
		if err := <-results[1]; err == nil || err == io.EOF {
			t.Errorf("Read of a stopped fill: %v", err)
		}
		must(t, readers[1].Close())
	})
}

func TestSeek(t *testing.T) {
	s := newStore(t, Config{})
	b, d := content(1000)
	_, src := pipeSource(len(b))
	r, _, err := s.Fill(t.Context(), d, src)
	must(t, err)
	defer r.Close()
	for _, tt := range []struct {
		off    int64
		whence int
		want   int64 // below zero: an error
	}{
		{10, io.SeekStart, 10}, {5, io.SeekCurrent, 15}, {-15, io.SeekCurrent, 0}, {0, io.SeekEnd, 1000},
		{-1, io.SeekEnd, 999}, {7, io.SeekEnd, 1007}, {-1, io.SeekStart, -1}, {-1001, io.SeekEnd, -1}, {0, 9, -1},
		{0, io.SeekCurrent, 1007}, // errors moved nothing
	} {
		at, err := r.Seek(tt.off, tt.whence)
		if tt.want < 0 && err == nil || tt.want >= 0 && (err != nil || at != tt.want) {
			t.Errorf("Seek(%d, %d) = %d, %v; want %d", tt.off, tt.whence, at, err, tt.want)
		}
	}
}

func TestFollow(t *testing.T) {
	const size = 4 * holdBack
	s := newStore(t, Config{})
	b, d := content(size)
	_, other := content(7)
	if _, _, ok := s.Follow(t.Context(), d, 0); ok {
		t.Fatal("a copy of nothing")
	}
	answer := make(chan struct{})
	w, pipe := pipeSource(size)
	src := func(ctx context.Context, off int64) (io.ReadCloser, int64, error) {
		<-answer
		return pipe(ctx, off)
	}
	filled := make(chan error, 1)
	go func() {
		_, err := readFill(t, s, d, src)
		filled <- err
	}()
	eventually(t, "the fill runs", func() bool { return s.Stats().FillsActive == 1 })
	if _, _, ok := s.Follow(t.Context(), d, 0); ok {
		t.Fatal("a copy without a size")
	}
	close(answer)
	_, err := w.Write(b[:1000])
	must(t, err)
	eventually(t, "it has 1000 bytes", func() bool {
		r, _, ok := s.Follow(t.Context(), d, 999)
		if ok {
			must(t, r.Close())
		}
		return ok
	})
	for _, tt := range []struct {
		digest string
		ahead  int64
		want   bool
	}{
		{string(d), 0, true}, {string(d), 999, true}, {string(d), 1000, false}, {string(d), size, false},
		{string(other), 0, false}, {"sha256:x", 0, false},
	} {
		t.Run(fmt.Sprint(tt.digest[:8], " ahead of ", tt.ahead), func(t *testing.T) {
			wantFollow(t, s, tt.digest, tt.ahead, tt.want)
		})
	}
	r, n, ok := s.Follow(t.Context(), d, 0)
	if !ok || n != size {
		t.Fatalf("Follow = %d, %v", n, ok)
	}
	defer r.Close()
	_, err = w.Write(b[1000:])
	must(t, err)
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, b) {
		t.Fatalf("follower: %d bytes, err %v", len(got), err)
	}
	must(t, <-filled)
	// It is no growing copy any more, but an answer of "nothing here" to who
	// looked for a whole blob a moment too early would be a lie.
	wantFollow(t, s, string(d), size-1, true)
	wantFollow(t, s, string(d), size, false)
}

func wantFollow(t *testing.T, s *Store, d string, ahead int64, want bool) {
	t.Helper()
	r, _, ok := s.Follow(t.Context(), digest.Digest(d), ahead)
	if ok {
		must(t, r.Close())
	}
	if ok != want {
		t.Errorf("Follow(%s, %d) = %v", d, ahead, ok)
	}
}
