package disk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// commit gives the verified bytes in f their name: sync the file, rename it,
// sync the folder, in this order. Without the first, a power cut may leave the
// name on a file of zeros; without the last, no name at all. When it returns
// nil the blob outlives a power cut.
//
// Two commits of one digest simply follow each other: the later rename puts
// the same bytes in place of the same bytes.
func (s *Store) commit(f *os.File, d digest.Digest) error {
	path, err := s.path(d)
	if err != nil {
		return err
	}
	if err := s.sound(); err != nil {
		return err
	}
	shard := filepath.Dir(path)
	if err := s.makeShard(shard); err != nil {
		return err
	}
	// The time of last use is the file's; an upload may have been written long
	// before it is finished.
	if err := os.Chtimes(f.Name(), time.Time{}, time.Now()); err != nil {
		return asFull(err)
	}
	s.sys.step("sync file")
	s.stats.fileSyncs.Add(1)
	if err := s.sys.syncFile(f); err != nil {
		if isFull(err) { // late allocation; the file goes away with its lost pages
			return asFull(err)
		}
		return s.fail(err)
	}
	unlock := s.locks.lock(d)
	defer unlock()
	// The file in whose place this one comes may have been marked used during
	// the sync: somebody was told that it stays.
	if err := os.Chtimes(f.Name(), time.Time{}, time.Now()); err != nil {
		return asFull(err)
	}
	s.sys.step("rename")
	err = s.sys.rename(s.cfg.Dir, f.Name(), path)
	if errors.Is(err, fs.ErrNotExist) { // somebody took the shard away
		s.shards.Delete(shard)
		if err := s.makeShard(shard); err != nil {
			return err
		}
		err = s.sys.rename(s.cfg.Dir, f.Name(), path)
	}
	if err != nil {
		return asFull(err)
	}
	s.sys.step("sync folder")
	if err := s.folders.sync(shard); err != nil {
		return s.fail(err)
	}
	s.sys.step("committed")
	s.stats.committed.Add(1)
	return nil
}

// makeShard makes sure that the folder of a blob exists and will exist after a
// power cut. Whoever finds it made by another still syncs the parent: the
// other's sync may not be over.
func (s *Store) makeShard(shard string) error {
	if _, durable := s.shards.Load(shard); durable {
		return nil
	}
	err := os.Mkdir(shard, 0o700)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s.gone(err)
	case err != nil && !errors.Is(err, fs.ErrExist):
		return asFull(err)
	}
	s.sys.step("sync parent")
	if err := s.folders.sync(filepath.Dir(shard)); err != nil {
		return s.fail(err)
	}
	s.shards.Store(shard, true)
	return nil
}

// locks is one mutex per digest in use. It makes what is decided about a blob
// and what is done to it one step: its rename and sync, the mark of its use.
type locks struct {
	mu    sync.Mutex
	inUse map[digest.Digest]*lock
}

type lock struct {
	sync.Mutex
	holders int // those who hold it or wait for it; guarded by locks.mu
}

func (l *locks) lock(d digest.Digest) (unlock func()) {
	l.mu.Lock()
	k := l.inUse[d]
	if k == nil {
		if l.inUse == nil {
			l.inUse = map[digest.Digest]*lock{}
		}
		k = new(lock)
		l.inUse[d] = k
	}
	k.holders++
	l.mu.Unlock()
	k.Lock()
	return func() {
		k.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.holders--; k.holders == 0 {
			delete(l.inUse, d)
		}
	}
}
