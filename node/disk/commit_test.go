package disk

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// eventually waits until ok holds, with a deadline.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not so after 10 s", what)
		}
	}
}

// Whoever asks while a sync runs is served by the next one, all by the same.
func TestFolderSyncIsShared(t *testing.T) {
	began, goOn := make(chan struct{}), make(chan struct{})
	var stats counters
	g := folders{stats: &stats, syncFolder: func(string) error {
		began <- struct{}{}
		<-goOn
		return nil
	}}
	var wg sync.WaitGroup
	ask := func() {
		if err := g.sync("folder"); err != nil {
			t.Error(err)
		}
	}
	wg.Go(ask)
	<-began
	const late = 10
	for range late {
		wg.Go(ask)
	}
	eventually(t, "the late share a round", func() bool { return stats.syncsShared.Load() == late-1 })
	goOn <- struct{}{}
	<-began // the sync of the late ones
	wg.Go(ask)
	goOn <- struct{}{}
	<-began // that of the last
	goOn <- struct{}{}
	wg.Wait()
	if n := stats.folderSyncs.Load(); n != 3 {
		t.Errorf("%d syncs for %d renames, want 3", n, late+2)
	}
}

// No rename is acknowledged by a sync that began before it: each caller counts
// itself, each sync notes at its beginning how many it covers.
func TestFolderSyncCoversTheRename(t *testing.T) {
	var renames, covered atomic.Int64
	var stats counters
	g := folders{stats: &stats, syncFolder: func(string) error {
		n := renames.Load()
		for range 100 { // so that others arrive meanwhile
			runtime.Gosched()
		}
		covered.Store(n)
		return nil
	}}
	const callers, rounds = 16, 200
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range rounds {
				me := renames.Add(1)
				if err := g.sync("folder"); err != nil {
					t.Error(err)
				}
				if covered.Load() < me {
					t.Errorf("rename %d acknowledged by a sync that covers %d", me, covered.Load())
					return
				}
			}
		})
	}
	wg.Wait()
	if n := stats.folderSyncs.Load(); n >= callers*rounds {
		t.Errorf("%d syncs for %d renames: nothing was shared", n, callers*rounds)
	}
}

// After a failed sync of a folder there is none, not even for those who waited.
func TestFolderSyncIsNotTriedAgain(t *testing.T) {
	began, goOn := make(chan struct{}), make(chan struct{})
	errDisk := errors.New("input/output error")
	var stats counters
	g := folders{stats: &stats, syncFolder: func(string) error {
		began <- struct{}{}
		<-goOn
		return errDisk
	}}
	var wg sync.WaitGroup
	ask := func() { wg.Go(func() { wantErr(t, g.sync("folder"), errDisk) }) }
	ask()
	<-began
	ask()
	ask()
	eventually(t, "two wait", func() bool { return stats.syncsShared.Load() == 1 })
	goOn <- struct{}{}
	wg.Wait()
	if n := stats.folderSyncs.Load(); n != 1 {
		t.Errorf("%d syncs", n)
	}
}

// The order of a commit: file, rename, folder; a fresh shard's parent first.
func TestCommitOrder(t *testing.T) {
	b, d := content(100)
	var s *Store
	var log []string
	note := func(what string) {
		path, _ := s.path(d)
		if _, err := os.Stat(path); err == nil {
			what += ", named"
		}
		log = append(log, what)
	}
	s = newStore(t, Config{})
	s.sys.syncFile = func(*os.File) error { note("file"); return nil }
	s.folders.syncFolder = func(path string) error { note(filepath.Base(path)); return nil }
	for range 2 {
		if err := s.Put(t.Context(), d, -1, bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		s.forget(t, d)
	}
	shard := d.Encoded()[:2]
	want := []string{"sha256", "file", shard + ", named", "file", shard + ", named"}
	if len(log) != len(want) {
		t.Fatalf("syncs: %q, want %q", log, want)
	}
	for i := range want {
		if log[i] != want[i] {
			t.Fatalf("syncs: %q, want %q", log, want)
		}
	}
}

// Nobody vouches for a name before it is durable.
func TestTouchWaitsForTheCommit(t *testing.T) {
	b, d := content(100)
	s := newStore(t, Config{})
	renamed, goOn := make(chan struct{}), make(chan struct{})
	s.folders.syncFolder = func(path string) error {
		if filepath.Base(path) == d.Encoded()[:2] {
			close(renamed)
			<-goOn
		}
		return nil
	}
	put := make(chan error, 1)
	go func() { put <- s.Put(t.Context(), d, -1, bytes.NewReader(b)) }()
	<-renamed
	touched := make(chan bool, 1)
	go func() {
		_, held := s.Touch(d)
		touched <- held
	}()
	eventually(t, "Touch waits for the lock", func() bool {
		s.locks.mu.Lock()
		defer s.locks.mu.Unlock()
		return s.locks.inUse[d].holders == 2
	})
	select {
	case <-touched:
		t.Fatal("Touch vouched for a name that was not durable")
	default:
	}
	close(goOn)
	if err := <-put; err != nil {
		t.Fatal(err)
	}
	if !<-touched {
		t.Fatal("not held after the commit")
	}
}

// A name from before the Store was opened may be of a process that was killed
// before it synced the folder.
func TestTouchSyncsOldNames(t *testing.T) {
	dir := t.TempDir()
	b, d := content(100)
	before := newStore(t, Config{Dir: dir})
	must(t, before.Put(t.Context(), d, -1, bytes.NewReader(b)))
	must(t, before.Close())
	s := newStore(t, Config{Dir: dir})
	var synced []string
	s.folders.syncFolder = func(path string) error {
		synced = append(synced, filepath.Base(path))
		return nil
	}
	for range 3 {
		if _, held := s.Touch(d); !held {
			t.Fatal("not held")
		}
	}
	if len(synced) != 1 || synced[0] != d.Encoded()[:2] {
		t.Fatalf("synced %q, want the blob's folder, once", synced)
	}
}

// A failed sync is not tried again, and nothing is written after it.
func TestFailedSync(t *testing.T) {
	errDisk := errors.New("input/output error")
	b, d := content(100)
	other, otherDigest := content(200)
	for _, tt := range []struct {
		name     string
		sabotage func(*Store, func() error)
		left     int // files: a name that may not be durable stays, and is not vouched for
	}{
		{"file", func(s *Store, fail func() error) { s.sys.syncFile = func(*os.File) error { return fail() } }, 1},
		{"folder", func(s *Store, fail func() error) { s.folders.syncFolder = func(string) error { return fail() } }, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fatal := []error{}
			s := newStore(t, Config{Fatal: func(err error) { fatal = append(fatal, err) }})
			if err := s.Put(t.Context(), otherDigest, -1, bytes.NewReader(other)); err != nil {
				t.Fatal(err)
			}
			s.shards.Store(filepath.Join(s.blobs, "sha256", d.Encoded()[:2]), true)
			if err := os.MkdirAll(filepath.Join(s.blobs, "sha256", d.Encoded()[:2]), 0o700); err != nil {
				t.Fatal(err)
			}
			syncs := 0
			tt.sabotage(s, func() error { syncs++; return errDisk })
			for range 3 {
				err := s.Put(t.Context(), d, -1, bytes.NewReader(b))
				wantErr(t, err, oci.ErrUnavailable)
				wantErr(t, err, errDisk)
			}
			if syncs != 1 || len(fatal) != 1 || !errors.Is(fatal[0], errDisk) {
				t.Fatalf("%d syncs, told %v; want one of each", syncs, fatal)
			}
			_, err := s.Start(t.Context(), "repo", digest.SHA256)
			wantErr(t, err, errDisk)
			_, missing := content(300)
			_, _, err = s.Fill(t.Context(), missing, bodyOf(b))
			wantErr(t, err, errDisk)
			wantErr(t, s.Full(), errDisk)
			if _, held := s.Touch(d); held {
				t.Error("vouches for a blob after a failed sync")
			}
			for _, d := range []digest.Digest{d, otherDigest} {
				wantErr(t, s.Obtain(t.Context(), d, bodyOf(b)), errDisk)
			}
			wantBlob(t, s, otherDigest, other)
			wantFiles(t, s, tt.left)
		})
	}
}
