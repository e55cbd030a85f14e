package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// What quarantine keeps for whoever wants to see what went wrong: so many
// files, and so many bytes or the newest file alone. It also keeps bad sectors
// from being given to other files.
const (
	maxQuarantined      = 100
	maxQuarantinedBytes = 1 << 30
)

// condemn takes the blob d out of service, for the reason found in f, its open
// file, and tells the owner of the Store, who should get another copy. It does
// nothing where f is no longer the file of d.
func (s *Store) condemn(d digest.Digest, f *os.File, reason error) (gone bool, err error) {
	gone, err = s.putAway(d, f)
	if err != nil || !gone {
		return false, err
	}
	if errors.Is(reason, errWrongBytes) {
		s.stats.bad.Add(1)
	} else {
		s.stats.unreadable.Add(1)
	}
	s.log.Error("a stored blob is damaged and no longer served", "digest", d, "error", reason)
	s.trimQuarantine()
	if s.cfg.Bad != nil {
		s.cfg.Bad(d)
	}
	return true, nil
}

// putAway moves the file of d from under its name, if it still is f: a good
// copy may have taken its place, or Remove been there. As f is open, no other
// file passes for it. After a power cut the name must not be back, so the
// folder is synced.
func (s *Store) putAway(d digest.Digest, f *os.File) (gone bool, err error) {
	path, err := s.path(d)
	if err != nil {
		return false, err
	}
	unlock := s.locks.lock(d)
	defer unlock()
	if err := s.sound(); err != nil {
		return false, err
	}
	if same, err := isFile(f, path); err != nil || !same {
		return false, err
	}
	kept := s.quarantine + strings.Replace(string(d), ":", "-", 1)
	if err := s.sys.rename(s.cfg.Dir, path, kept); err != nil {
		s.log.Warn("cannot keep a damaged file", "digest", d, "error", err)
		if err := os.Remove(path); err != nil {
			// It would be served on, from a disk that takes no change.
			return false, s.fail(fmt.Errorf("take a damaged file away: %w", err))
		}
	}
	now := time.Now()
	_ = os.Chtimes(kept, now, now) // the order in which they go
	if err := s.folders.sync(filepath.Dir(path)); err != nil {
		return false, s.fail(err)
	}
	return true, nil
}

// isFile reports whether f is the file at path.
func isFile(f *os.File, path string) (bool, error) {
	opened, err := f.Stat()
	if err != nil {
		return false, err
	}
	there, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(opened, there), err
}

// trimQuarantine keeps the newest files within the bounds, and counts them.
func (s *Store) trimQuarantine() {
	s.trimming.Lock()
	defer s.trimming.Unlock()
	entries, err := os.ReadDir(s.quarantine)
	if err != nil {
		s.log.Warn("cannot look into quarantine", "error", err)
		return
	}
	var files []fs.FileInfo
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			files = append(files, info)
		}
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	kept, bytes := int64(0), int64(0)
	for i, info := range files {
		bytes += info.Size()
		if i > 0 && (i >= maxQuarantined || bytes > maxQuarantinedBytes) && os.Remove(s.quarantine+info.Name()) == nil {
			continue
		}
		kept++
	}
	s.stats.quarantined.Store(kept)
}
