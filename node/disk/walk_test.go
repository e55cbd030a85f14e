package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// store puts n small blobs of each algorithm and returns their digests in order.
func store(t *testing.T, s *Store, n int) []digest.Digest {
	t.Helper()
	var all []digest.Digest
	for i := range n {
		b := []byte(fmt.Sprint("blob ", i))
		for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
			d := alg.FromBytes(b)
			must(t, s.Put(t.Context(), d, int64(len(b)), bytes.NewReader(b)))
			all = append(all, d)
		}
	}
	slices.Sort(all)
	return all
}

// walked returns what Walk shows behind after.
func walked(t *testing.T, s *Store, after digest.Digest) []digest.Digest {
	t.Helper()
	seen := []digest.Digest{}
	must(t, s.Walk(t.Context(), after, func(d digest.Digest, _ int64, _ time.Time) bool {
		seen = append(seen, d)
		return true
	}))
	return seen
}

func TestWalk(t *testing.T) {
	s := newStore(t, Config{})
	all := store(t, s, 300) // more than one to a shard
	if got := walked(t, s, ""); !slices.Equal(got, all) {
		t.Fatalf("%d blobs walked, want the %d stored, in order", len(got), len(all))
	}
	for i, after := range all {
		if got := walked(t, s, after); !slices.Equal(got, all[i+1:]) {
			t.Fatalf("behind %s: %d blobs, want %d", after, len(got), len(all)-i-1)
		}
	}
	path, err := s.path(all[0])
	must(t, err)
	for _, shard := range []string{"zz", all[0].Encoded()[:1]} { // a copy in the wrong place is not seen twice
		must(t, os.Mkdir(filepath.Join(s.blobs, "sha256", shard), 0o700))
		must(t, os.Link(path, filepath.Join(s.blobs, "sha256", shard, all[0].Encoded())))
	}
	if got := walked(t, s, ""); !slices.Equal(got, all) {
		t.Fatalf("%d blobs walked, want the %d stored", len(got), len(all))
	}
	var seen []digest.Digest
	must(t, s.Walk(t.Context(), "", func(d digest.Digest, size int64, used time.Time) bool {
		if size < 6 || time.Since(used).Abs() > time.Hour {
			t.Errorf("%s: %d bytes, used %v", d, size, used)
		}
		if removed, err := s.Remove(d, time.Now().Add(time.Hour)); !removed || err != nil {
			t.Errorf("Remove within Walk = %v, %v", removed, err)
		}
		seen = append(seen, d)
		return len(seen) < 10
	}))
	if !slices.Equal(seen, all[:10]) || !slices.Equal(walked(t, s, ""), all[10:]) {
		t.Errorf("stopped after %d", len(seen))
	}
	ended, end := context.WithCancelCause(t.Context())
	end(errBody)
	wantErr(t, s.Walk(ended, "", func(digest.Digest, int64, time.Time) bool { t.Error("went on"); return true }), errBody)
}

// What is no blob is not walked, not vouched for, not served, not removed.
func TestForeignFiles(t *testing.T) {
	hex := strings.Repeat("a1", 32)
	for _, tt := range []struct{ name, path string }{
		{"beside the algorithms", "md5"},
		{"beside the shards", "sha256/readme"},
		{"in place of a shard", "sha256/a1"},
		{"folder of another name", "sha256/lost+found/" + hex},
		{"in the wrong shard", "sha256/b2/" + hex},
		{"too short", "sha256/a1/" + hex[:62]},
		{"upper case", "sha256/a1/" + strings.ToUpper(hex)},
		{"with a suffix", "sha256/a1/" + hex + ".tmp"},
		{"of the other algorithm", "sha512/a1/" + hex},
		{"folder in place of a blob", "sha256/a1/" + hex + "/file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t, Config{})
			path := filepath.Join(s.blobs, filepath.FromSlash(tt.path))
			must(t, os.MkdirAll(filepath.Dir(path), 0o700))
			must(t, os.WriteFile(path, []byte("foreign"), 0o600))
			if got := walked(t, s, ""); len(got) != 0 {
				t.Errorf("walked %q", got)
			}
			must(t, s.Scrub(t.Context()))
			d := digest.NewDigestFromEncoded(digest.SHA256, hex)
			if s.Has(d) {
				t.Error("vouched for")
			}
			if removed, _ := s.Remove(d, time.Now().Add(time.Hour)); removed {
				t.Error("removed")
			}
			if f, _, err := s.Open(t.Context(), d); err == nil {
				_ = f.Close()
				t.Error("opened")
			}
			if _, err := os.Stat(path); err != nil {
				t.Error(err)
			}
		})
	}
}

// A link to a file elsewhere is not the Store's to judge.
func TestForeignLink(t *testing.T) {
	s := newStore(t, Config{})
	_, d := content(10)
	path, err := s.path(d)
	must(t, err)
	target := filepath.Join(t.TempDir(), "target")
	must(t, os.WriteFile(target, []byte("foreign"), 0o600))
	must(t, os.MkdirAll(filepath.Dir(path), 0o700))
	must(t, os.Symlink(target, path))
	must(t, s.Scrub(t.Context()))
	wantErr(t, s.Check(t.Context(), d), oci.ErrBlobUnknown)
	if n := s.Stats().BytesScrubbed; s.Has(d) || len(walked(t, s, "")) != 0 || n > 2*int64(len("foreign")) {
		t.Errorf("held: %v, walked %q, %d bytes read", s.Has(d), walked(t, s, ""), n)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Error(err)
	}
}

// Has and Walk wait for a commit that is between its rename and its sync, and
// sync a folder once for names from before the Store was opened.
func TestOnlyDurableNamesCount(t *testing.T) {
	b, d := content(100)
	for _, tt := range []struct {
		name string
		ask  func(s *Store) bool
	}{
		{"Has", func(s *Store) bool { return s.Has(d) }},
		{"Walk", func(s *Store) bool { return len(walked(t, s, "")) == 1 }},
		{"Remove", func(s *Store) bool {
			removed, err := s.Remove(d, time.Now().Add(time.Hour))
			return removed && err == nil
		}},
	} {
		t.Run(tt.name+" during a commit", func(t *testing.T) {
			s := newStore(t, Config{})
			renamed, goOn := make(chan struct{}), make(chan struct{})
			durable := false // the race detector watches it
			s.folders.syncFolder = func(path string) error {
				if filepath.Base(path) == d.Encoded()[:2] {
					close(renamed)
					<-goOn
					durable = true
				}
				return nil
			}
			put := make(chan error, 1)
			go func() { put <- s.Put(t.Context(), d, -1, bytes.NewReader(b)) }()
			<-renamed
			asked := make(chan bool, 1)
			go func() { asked <- tt.ask(s) && durable }()
			eventually(t, "the question waits for the lock", func() bool {
				s.locks.mu.Lock()
				defer s.locks.mu.Unlock()
				return s.locks.inUse[d].holders == 2
			})
			close(goOn)
			must(t, <-put)
			if !<-asked {
				t.Error("not held after the commit, or held before")
			}
		})
		t.Run(tt.name+" of an old name", func(t *testing.T) {
			dir := t.TempDir()
			before := newStore(t, Config{Dir: dir})
			must(t, before.Put(t.Context(), d, -1, bytes.NewReader(b)))
			must(t, before.Close())
			s := newStore(t, Config{Dir: dir})
			var synced []string
			s.folders.syncFolder = func(path string) error {
				synced = append(synced, filepath.Base(path))
				return nil
			}
			held := tt.ask(s)
			tt.ask(s)
			if !held || len(synced) != 1 || synced[0] != d.Encoded()[:2] {
				t.Errorf("held %v, synced %q, want the blob's folder, once", held, synced)
			}
		})
		t.Run(tt.name+" of a failed store", func(t *testing.T) {
			s := newStore(t, Config{})
			must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
			_ = s.fail(errors.New("input/output error"))
			if err := s.Walk(t.Context(), "", func(digest.Digest, int64, time.Time) bool { return true }); err == nil {
				t.Error("Walk says that it saw all")
			}
			if tt.name != "Walk" && tt.ask(s) {
				t.Error("vouched for")
			}
			wantBlob(t, s, d, b)
		})
	}
}

// TestFolderGone: what is taken away behind a Store's back is made again where
// that is safe, and ends it where a disk may be missing.
func TestFolderGone(t *testing.T) {
	b, d := content(100)
	shard := filepath.Join("blobs", "sha256", d.Encoded()[:2])
	put := func(s *Store) error { return s.Put(t.Context(), d, int64(len(b)), bytes.NewReader(b)) }
	walk := func(s *Store) error {
		return s.Walk(t.Context(), "", func(digest.Digest, int64, time.Time) bool { return true })
	}
	for _, row := range []struct {
		name  string
		gone  string
		then  func(s *Store) error
		fatal bool
	}{
		{"a shard, not seen by a walk", shard, walk, false},
		{"a shard, seen by a commit", shard, put, false},
		{"all blobs, seen by a walk", "blobs", walk, true},
		{"all blobs, seen by a commit", "blobs", put, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			fatal := make(chan error, 1)
			s := newStore(t, Config{Fatal: func(err error) { fatal <- err }})
			must(t, put(s))
			must(t, os.RemoveAll(filepath.Join(s.cfg.Dir, row.gone)))
			if s.Has(d) {
				t.Error("it holds what is gone")
			}
			if err := row.then(s); (err != nil) != row.fatal || (len(fatal) > 0) != row.fatal {
				t.Errorf("error %v and %d fatal ones, want them %v", err, len(fatal), row.fatal)
			}
			again := s
			if row.fatal {
				again = newStore(t, Config{Dir: s.cfg.Dir})
			}
			must(t, put(again))
			wantBlob(t, again, d, b)
		})
	}
}
