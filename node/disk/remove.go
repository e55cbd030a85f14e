package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// The time of a blob's last use is that of its file. Every commit and Touch
// sets it, as others then count on the copy; reads only keep the least recently
// used ones apart, for which once an hour will do.
const readMarkEvery = time.Hour

// lastUse returns when the blob was last used. Some file systems keep whole
// seconds, one only even ones: the time may have been cut down by two.
func lastUse(info fs.FileInfo) time.Time {
	used := info.ModTime()
	if used.Nanosecond() == 0 {
		used = used.Add(2 * time.Second)
	}
	return used
}

// markRead marks the blob at path as read now. It needs no lock: Remove may
// just have decided, but the reader has the file open and loses nothing. A time
// that lies ahead is of a clock that went wrong, and is set right here.
func markRead(path string, info fs.FileInfo) {
	now := time.Now()
	if now.Sub(info.ModTime()).Abs() >= readMarkEvery {
		_ = os.Chtimes(path, time.Time{}, now)
	}
}

// Renew marks d, which Put stored, used now. ErrOverdue says that it was removed
// since.
func (s *Store) Renew(_ context.Context, d digest.Digest) error {
	if err := s.sound(); err != nil {
		return fmt.Errorf("renew blob: %w", err)
	}
	if _, held := s.Touch(d); !held {
		return fmt.Errorf("renew blob: %w", oci.ErrOverdue)
	}
	return nil
}

// Remove drops the blob d, unless it was used at or after cutoff. That is
// decided and done under the blob's lock, so whoever was told by Touch or by a
// commit that d is here has either made Remove refuse or comes after it. Open
// readers keep what they read, and a download of d under way is not concerned.
//
// No sync follows. After a power cut the blob may be back: whole, verified and
// durable, as it was before, and as long unused. The file system does not give
// its blocks to others before the removal itself is safe.
func (s *Store) Remove(d digest.Digest, cutoff time.Time) (removed bool, err error) {
	removed, err = s.remove(d, cutoff)
	if err != nil {
		return false, fmt.Errorf("remove blob: %w", err)
	}
	return removed, nil
}

func (s *Store) remove(d digest.Digest, cutoff time.Time) (bool, error) {
	path, err := s.path(d)
	if err != nil {
		return false, err
	}
	unlock := s.locks.lock(d)
	defer unlock()
	info, err := s.durable(path)
	if errors.Is(err, oci.ErrBlobUnknown) {
		return false, nil
	}
	if err != nil || !lastUse(info).Before(cutoff) {
		return false, err
	}
	if err := os.Remove(path); err != nil {
		return false, oci.ErrUnavailable.Wrap(err)
	}
	s.stats.removed.Add(1)
	s.stats.removedBytes.Add(info.Size())
	return true, nil
}
