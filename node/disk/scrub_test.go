package disk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// fast is a rate that no test waits for.
const fast = 1 << 40

// damage makes the stored file of d other bytes than it was.
func (s *Store) damage(t testing.TB, d digest.Digest) {
	t.Helper()
	path, err := s.path(d)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
}

// badDisk cannot read some files, or reads others than there are.
type badDisk struct {
	fault func(d digest.Digest) error // errFlip: other bytes
	read  []digest.Digest             // what was read, in order
}

var (
	errSector = errors.New("input/output error")
	errFlip   = errors.New("flip a bit")
)

func (m *badDisk) reader(f *os.File) io.Reader {
	d := digest.NewDigestFromEncoded(digest.SHA256, filepath.Base(f.Name()))
	m.read = append(m.read, d)
	if m.fault == nil {
		return f
	}
	switch err := m.fault(d); {
	case errors.Is(err, errFlip):
		return io.MultiReader(strings.NewReader("x"), f)
	case err != nil:
		return errReader{err}
	}
	return f
}

// scrubbed opens a Store of n blobs of sha256 on the disk m, which it returns in order.
func scrubbed(t *testing.T, m *badDisk, n int, bad func(digest.Digest)) (*Store, []digest.Digest) {
	t.Helper()
	s := newStore(t, Config{ScrubRate: fast, Bad: bad, sys: system{reader: m.reader}})
	var all []digest.Digest
	for i := range n {
		b, d := content(100 + i)
		must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
		all = append(all, d)
	}
	slices.Sort(all)
	return s, all
}

// Whatever happened to a stored file: it is found, put away, reported, counted,
// and can be had again.
func TestScrubFindsDamage(t *testing.T) {
	b, d := content(3*largeBuffer + 5)
	other, otherDigest := content(1000)
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, s *Store, path string)
	}{
		{"a flipped bit", func(t *testing.T, s *Store, _ string) { s.damage(t, d) }},
		{"cut short", func(t *testing.T, _ *Store, path string) { must(t, os.Truncate(path, 100)) }},
		{"emptied", func(t *testing.T, _ *Store, path string) { must(t, os.Truncate(path, 0)) }},
		{"grown", func(t *testing.T, _ *Store, path string) { must(t, os.Truncate(path, int64(len(b))+1)) }},
		{"another blob", func(t *testing.T, _ *Store, path string) { must(t, os.WriteFile(path, other, 0o600)) }},
	} {
		for _, check := range []bool{false, true} {
			name := tt.name + ", Scrub"
			if check {
				name = tt.name + ", Check"
			}
			t.Run(name, func(t *testing.T) {
				var told []digest.Digest
				var s *Store
				s = newStore(t, Config{ScrubRate: fast, Bad: func(d digest.Digest) {
					if told = append(told, d); s.Has(d) {
						t.Error("told before it was gone")
					}
				}})
				must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
				must(t, s.Put(t.Context(), otherDigest, -1, bytes.NewReader(other)))
				path, _ := s.path(d)
				tt.damage(t, s, path)
				damaged, err := os.ReadFile(path)
				must(t, err)
				if check {
					must(t, s.Check(t.Context(), otherDigest))
					wantErr(t, s.Check(t.Context(), d), errWrongBytes)
					wantErr(t, s.Check(t.Context(), d), oci.ErrBlobUnknown)
				} else {
					must(t, s.Scrub(t.Context()))
				}
				_, _, err = s.Open(t.Context(), d)
				wantErr(t, err, oci.ErrBlobUnknown)
				if !slices.Equal(told, []digest.Digest{d}) {
					t.Errorf("told %q", told)
				}
				if st := s.Stats(); st.BlobsBad != 1 || st.BlobsUnreadable != 0 || st.Quarantined != 1 || st.BytesScrubbed < 1000 {
					t.Errorf("counted %+v", st)
				}
				kept, err := os.ReadFile(filepath.Join(s.cfg.Dir, "quarantine", "sha256-"+d.Encoded()))
				if must(t, err); !bytes.Equal(kept, damaged) {
					t.Error("quarantine keeps other bytes")
				}
				_, err = readFill(t, s, d, bodyOf(b))
				must(t, err)
				must(t, s.Close()) // the fill is over
				must(t, s.Check(t.Context(), d))
				wantBlob(t, s, d, b)
				wantBlob(t, s, otherDigest, other)
			})
		}
	}
}

// What happens to files in a row, by what the disk does: g a good one, w one of
// wrong bytes, u an unreadable one, t one that only the first reading fails.
func TestScrubRound(t *testing.T) {
	row := func(kind string, n int) string { return strings.Repeat(kind, n) }
	for _, tt := range []struct {
		name, files     string
		bad, unreadable int64 // put away
		fails           bool
		again           int // files read by the next round, of a disk that is well again
	}{
		{"all good", row("g", 5), 0, 0, false, 5},
		{"wrong", "gwgwg", 2, 0, false, 3},
		{"unreadable", "gugug", 0, 2, false, 3},
		{"unreadable at the end", "ggguu", 0, 2, false, 3},
		{"transient", "gtgt", 0, 0, false, 4},
		{"nothing can be read", row("u", 20), 0, 0, true, 20},
		{"from some point on nothing can be read", "gg" + row("u", 20), 0, 0, true, 20},
		{"one that was followed by a good one", "ug" + row("u", 20), 0, 1, true, 20},
		{"nearly too many", row("u", maxDamaged-1) + "g" + row("u", maxDamaged-1) + "g", 0, 2 * (maxDamaged - 1), false, 2},
		{"everything is wrong", row("w", 20), maxDamaged, 0, true, 20 - maxDamaged},
		{"wrong and unreadable", "wuwuwuwu" + row("g", 5), 4, 0, true, 4 + 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := &badDisk{}
			s, all := scrubbed(t, m, len(tt.files), nil)
			tries := map[digest.Digest]int{}
			m.fault = func(d digest.Digest) error {
				tries[d]++
				switch kind := tt.files[slices.Index(all, d)]; {
				case kind == 'w', kind == 't' && tries[d] == 1:
					return errFlip
				case kind == 'u':
					return errSector
				}
				return nil
			}
			err := s.Scrub(t.Context())
			if (err != nil) != tt.fails {
				t.Errorf("err = %v", err)
			}
			if st := s.Stats(); st.BlobsBad != tt.bad || st.BlobsUnreadable != tt.unreadable || st.Quarantined != tt.bad+tt.unreadable {
				t.Errorf("%d bad, %d unreadable, %d quarantined", st.BlobsBad, st.BlobsUnreadable, st.Quarantined)
			}
			if left := len(walked(t, s, "")); left != len(all)-int(tt.bad+tt.unreadable) {
				t.Errorf("%d blobs left", left)
			}
			if err := s.Full(); err != nil {
				t.Errorf("writes refused: %v", err)
			}
			m.fault, m.read = nil, nil
			must(t, s.Scrub(t.Context()))
			if len(m.read) != tt.again {
				t.Errorf("the next round read %d files, want %d", len(m.read), tt.again)
			}
		})
	}
}

// A round that is cut off goes on where it was, in another process too.
func TestScrubGoesOn(t *testing.T) {
	for _, tt := range []struct {
		name   string
		meddle func(t *testing.T, s *Store)
		from   int // file that the next round begins with
	}{
		{"untouched", func(*testing.T, *Store) {}, 4},
		{"cursor gone", func(t *testing.T, s *Store) { must(t, os.Remove(s.cursorPath())) }, 0},
		{"cursor broken", func(t *testing.T, s *Store) { must(t, os.WriteFile(s.cursorPath(), []byte("sha256:../x"), 0o600)) }, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := &badDisk{}
			s, all := scrubbed(t, m, 10, nil)
			ctx, cancel := context.WithCancel(t.Context())
			m.fault = func(digest.Digest) error {
				if len(m.read) == 4 {
					cancel() // the fourth is read all the same, the fifth is not
				}
				return nil
			}
			wantErr(t, s.Scrub(ctx), context.Canceled)
			must(t, s.Close())
			tt.meddle(t, s)
			again := &badDisk{}
			next := newStore(t, Config{Dir: s.cfg.Dir, ScrubRate: fast, sys: system{reader: again.reader}})
			must(t, next.Scrub(t.Context()))
			if !slices.Equal(again.read, all[tt.from:]) {
				t.Errorf("read %d files, want %d", len(again.read), len(all)-tt.from)
			}
			again.read = nil
			must(t, next.Scrub(t.Context()))
			if !slices.Equal(again.read, all) {
				t.Errorf("a new round read %d files", len(again.read))
			}
		})
	}
}

// A long round notes how far it is, for a process that is killed.
func TestScrubNotesItsWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &badDisk{}
		s, all := scrubbed(t, m, 3, nil)
		m.fault = func(d digest.Digest) error {
			<-time.After(cursorEvery)
			if i := slices.Index(all, d); i > 0 && s.readCursor() != all[i-1] {
				t.Errorf("at file %d the cursor says %q", i, s.readCursor())
			}
			return nil
		}
		must(t, s.Scrub(t.Context()))
		if s.readCursor() != "" {
			t.Error("a cursor is left of a whole round")
		}
	})
}

// The rate holds, and a small file costs as much as a piece of a large one.
func TestScrubRate(t *testing.T) {
	for _, tt := range []struct {
		name   string
		sizes  []int
		pieces int
	}{
		{"small files", []int{1, 2, 3, 4, 5}, 5},
		{"a large file", []int{4*largeBuffer + 1}, 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStore(t, Config{ScrubRate: largeBuffer})
				for _, size := range tt.sizes {
					b, d := content(size)
					must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
				}
				began := time.Now()
				must(t, s.Scrub(t.Context()))
				if took, want := time.Since(began), time.Duration(tt.pieces-1)*time.Second; took != want {
					t.Errorf("took %v, want %v: the first piece is free", took, want)
				}
				began = time.Now()
				for d := range s.names("") {
					must(t, s.Check(t.Context(), d))
				}
				if took := time.Since(began); took != 0 {
					t.Errorf("Check waited %v", took)
				}
			})
		})
	}
}

// Who has no time left to read a file has found no fault in it.
func TestScrubOutOfTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t, Config{ScrubRate: 1})
		for i := range 2 * maxDamaged {
			b, d := content(10 + i)
			must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := s.Scrub(ctx); err == nil {
			t.Error("a round at one byte per second within a minute")
		}
		if left := len(walked(t, s, "")); left != 2*maxDamaged {
			t.Errorf("%d blobs left", left)
		}
	})
}

// While a damaged file is read a good copy takes its place, or it is removed:
// neither that copy nor the next is condemned for it.
func TestScrubRaces(t *testing.T) {
	b, d := content(1000)
	for _, tt := range []struct {
		name      string
		meanwhile func(t *testing.T, s *Store)
		held      bool
	}{
		{"stored anew", func(t *testing.T, s *Store) { must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b))) }, true},
		{"removed", func(t *testing.T, s *Store) {
			removed, err := s.Remove(d, time.Now().Add(time.Hour))
			if must(t, err); !removed {
				t.Error("not removed")
			}
		}, false},
		{"removed and stored anew", func(t *testing.T, s *Store) {
			_, err := s.Remove(d, time.Now().Add(time.Hour))
			must(t, err)
			must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := &badDisk{}
			s := newStore(t, Config{ScrubRate: fast, sys: system{reader: m.reader}})
			must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
			s.damage(t, d)
			m.fault = func(digest.Digest) error {
				if len(m.read) == 2 { // the second reading, of the file that is open
					tt.meanwhile(t, s)
				}
				return nil
			}
			must(t, s.Scrub(t.Context()))
			if st := s.Stats(); st.BlobsBad != 0 || st.Quarantined != 0 || s.Has(d) != tt.held {
				t.Errorf("%d bad, %d quarantined, held: %v", st.BlobsBad, st.Quarantined, s.Has(d))
			}
			if tt.held {
				wantBlob(t, s, d, b)
			}
		})
	}
}

// Whatever else goes on, no good file is found bad, and nothing is left behind.
func TestScrubAmongOthers(t *testing.T) {
	s := newStore(t, Config{ScrubRate: fast})
	const blobs = 8
	var others, scrubs sync.WaitGroup
	over := make(chan struct{})
	scrubs.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
				if err := s.Scrub(t.Context()); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for i := range blobs {
		b, d := content(1000 + i)
		for _, do := range []func() error{
			func() error { return s.Put(t.Context(), d, -1, bytes.NewReader(b)) },
			func() error { _, err := readFill(t, s, d, bodyOf(b)); return err },
			func() error { _, err := s.Remove(d, time.Now().Add(time.Hour)); return err },
			func() error { s.Touch(d); return nil },
		} {
			others.Go(func() {
				for range 50 {
					if err := do(); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	others.Wait()
	close(over)
	scrubs.Wait()
	must(t, s.Close())
	if st := s.Stats(); st.BlobsBad != 0 || st.BlobsUnreadable != 0 {
		t.Errorf("%d bad, %d unreadable", st.BlobsBad, st.BlobsUnreadable)
	}
	wantFiles(t, s, len(walked(t, s, "")))
}
