package disk

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// lastUsed sets when the blob d was last used.
func (s *Store) lastUsed(t testing.TB, d digest.Digest, when time.Time) {
	t.Helper()
	path, err := s.path(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, when, when); err != nil {
		t.Fatal(err)
	}
}

func TestRemove(t *testing.T) {
	used := time.Date(2024, 5, 6, 7, 8, 9, 123_456_000, time.UTC)
	for _, tt := range []struct {
		name         string
		used, cutoff time.Time
		removed      bool
	}{
		{"used before", used, used.Add(time.Millisecond), true},
		{"used just then", used, used, false},
		{"used after", used, used.Add(-time.Hour), false},
		{"no cutoff", used, time.Time{}, false},
		{"whole seconds may be cut down", used.Truncate(time.Second), used.Truncate(time.Second).Add(2 * time.Second), false},
		{"whole seconds, long ago", used.Truncate(time.Second), used.Add(2 * time.Second), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t, Config{})
			b, d := content(1000)
			must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
			s.lastUsed(t, d, tt.used)
			removed, err := s.Remove(d, tt.cutoff)
			if removed != tt.removed || err != nil || s.Has(d) == tt.removed {
				t.Fatalf("Remove = %v, %v; held: %v", removed, err, s.Has(d))
			}
			if st := s.Stats(); tt.removed && (st.BlobsRemoved != 1 || st.BytesRemoved != 1000) || !tt.removed && st.BlobsRemoved != 0 {
				t.Errorf("counted %d blobs, %d bytes", st.BlobsRemoved, st.BytesRemoved)
			}
			if !tt.removed {
				return
			}
			if removed, err := s.Remove(d, tt.cutoff); removed || err != nil {
				t.Errorf("second Remove = %v, %v", removed, err)
			}
			must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
			wantBlob(t, s, d, b)
		})
	}
}

func TestRemoveOfNoDigest(t *testing.T) {
	s := newStore(t, Config{})
	_, err := s.Remove("sha256:../../uploads", time.Now())
	wantErr(t, err, oci.ErrDigestInvalid)
}

// A mark of use that is made during the sync of the same blob's commit outlives
// the commit, which puts its own file in place of the marked one.
func TestCommitKeepsMarks(t *testing.T) {
	b, d := content(1000)
	var s *Store
	var marked time.Time
	s = newStore(t, Config{sys: system{step: func(name string) {
		if name != "sync file" || s == nil || !s.Has(d) {
			return
		}
		marked = time.Now()
		if _, held := s.Touch(d); !held {
			t.Error("Touch finds nothing")
		}
	}}})
	must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
	must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
	if marked.IsZero() {
		t.Fatal("the second commit has no sync")
	}
	if removed, err := s.Remove(d, marked); removed || err != nil {
		t.Fatalf("Remove of what was used since = %v, %v", removed, err)
	}
}

// Each way to say that a blob is needed makes Remove refuse. What only looks at
// it does not.
func TestUseIsMarked(t *testing.T) {
	b, d := content(1000)
	for _, tt := range []struct {
		name  string
		use   func(t *testing.T, s *Store)
		marks bool
	}{
		{"Put", func(t *testing.T, s *Store) { must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b))) }, true},
		{"Touch", func(_ *testing.T, s *Store) { s.Touch(d) }, true},
		{"Open", func(t *testing.T, s *Store) { wantBlob(t, s, d, b) }, true},
		{"Fill", func(t *testing.T, s *Store) {
			_, err := readFill(t, s, d, bodyOf(b))
			must(t, err)
		}, true},
		{"Finish", func(t *testing.T, s *Store) {
			_, err := s.Finish(t.Context(), start(t, s, digest.SHA256), 0, bytes.NewReader(b), d)
			must(t, err)
		}, true},
		{"repeated Finish", func(t *testing.T, s *Store) {
			u := start(t, s, digest.SHA256)
			for range 2 {
				_, err := s.Finish(t.Context(), u, 0, bytes.NewReader(b), d)
				must(t, err)
				s.lastUsed(t, d, time.Now().Add(-47*time.Hour))
			}
			size, err := s.Finish(t.Context(), u, 0, nil, d)
			if must(t, err); size != int64(len(b)) {
				t.Errorf("%d bytes", size)
			}
		}, true},
		{"Has", func(_ *testing.T, s *Store) { s.Has(d) }, false},
		{"Walk", func(t *testing.T, s *Store) { walked(t, s, "") }, false},
		{"Check", func(t *testing.T, s *Store) { must(t, s.Check(t.Context(), d)) }, false},
		{"Scrub", func(t *testing.T, s *Store) { must(t, s.Scrub(t.Context())) }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t, Config{})
			must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
			s.lastUsed(t, d, time.Now().Add(-48*time.Hour))
			cutoff := time.Now().Add(-time.Millisecond)
			tt.use(t, s)
			removed, err := s.Remove(d, cutoff)
			if must(t, err); removed == tt.marks {
				t.Errorf("removed: %v", removed)
			}
		})
	}
}

// An upload whose blob was removed since is not confirmed again.
func TestFinishAgainAfterRemove(t *testing.T) {
	s := newStore(t, Config{})
	b, d := content(1000)
	u := start(t, s, digest.SHA256)
	_, err := s.Finish(t.Context(), u, 0, bytes.NewReader(b), d)
	must(t, err)
	s.forget(t, d)
	_, err = s.Finish(t.Context(), u, 0, bytes.NewReader(b), d)
	wantErr(t, err, oci.ErrUploadUnknown)
}

// Reads are marked once an hour, and a time that lies ahead is set right.
func TestReadsAreMarkedHourly(t *testing.T) {
	for _, tt := range []struct {
		name string
		age  time.Duration
		set  bool
	}{
		{"just used", time.Minute, false},
		{"used long ago", 61 * time.Minute, true},
		{"used tomorrow", -24 * time.Hour, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t, Config{})
			b, d := content(10)
			must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
			before := time.Now().Add(-tt.age).Truncate(time.Microsecond)
			s.lastUsed(t, d, before)
			wantBlob(t, s, d, b)
			info, err := s.held(d)
			must(t, err)
			if set := !info.ModTime().Equal(before); set != tt.set {
				t.Errorf("marked: %v", set)
			}
		})
	}
}

// A reader keeps the blob that is removed under it.
func TestRemoveUnderReaders(t *testing.T) {
	s := newStore(t, Config{})
	b, d := content(100_000)
	must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
	r, _, err := s.Open(t.Context(), d)
	must(t, err)
	defer r.Close()
	_, err = io.CopyN(io.Discard, r, 1000)
	must(t, err)
	removed, err := s.Remove(d, time.Now().Add(time.Hour))
	if must(t, err); !removed {
		t.Fatal("not removed")
	}
	rest, err := io.ReadAll(r)
	if must(t, err); !bytes.Equal(rest, b[1000:]) {
		t.Error("the reader got other bytes")
	}
	_, _, err = s.Open(t.Context(), d)
	wantErr(t, err, oci.ErrBlobUnknown)
}

// Whatever runs at once: who was told that the blob is held, or stored it, since
// the cutoff finds it held.
func TestRemoveRaces(t *testing.T) {
	s := newStore(t, Config{})
	b, d := content(1000)
	old := time.Now().Add(-48 * time.Hour)
	cutoff := old.Add(24 * time.Hour)
	for _, use := range []struct {
		name string
		held func() bool
	}{
		{"touch", func() bool { _, held := s.Touch(d); return held }},
		{"put", func() bool { return s.Put(t.Context(), d, -1, bytes.NewReader(b)) == nil }},
		{"fill", func() bool { _, err := readFill(t, s, d, bodyOf(b)); return err == nil && s.Has(d) }},
	} {
		t.Run(use.name, func(t *testing.T) {
			gone := 0
			for range 100 {
				must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
				s.lastUsed(t, d, old)
				var wg sync.WaitGroup
				var held, removed bool
				var err error
				wg.Go(func() { held = use.held() })
				wg.Go(func() { removed, err = s.Remove(d, cutoff) })
				wg.Wait()
				must(t, err)
				if held != s.Has(d) || !held && !removed {
					t.Fatalf("told held: %v, removed: %v, held: %v", held, removed, s.Has(d))
				}
				if removed {
					gone++
				}
			}
			t.Logf("removed %d times of 100", gone)
		})
	}
}

// A disk that does not let go of a file says so.
func TestRemoveFails(t *testing.T) {
	s := newStore(t, Config{})
	b, d := content(10)
	must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
	errDisk := errors.New("input/output error")
	_ = s.fail(errDisk)
	removed, err := s.Remove(d, time.Now().Add(time.Hour))
	if wantErr(t, err, errDisk); removed {
		t.Error("removed from a failed disk")
	}
	wantBlob(t, s, d, b)
}
