package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// Walk calls fn with every blob that is held durably, its size and when it was
// last used, in the order of digests: sha256 before sha512. It begins behind
// after ("" is the start) and ends early where fn returns false. fn may call
// the Store. A blob that comes or goes meanwhile is seen or not; what lies
// among the blobs and is none is passed over. After an error more may be held
// than was seen.
func (s *Store) Walk(ctx context.Context, after digest.Digest, fn func(d digest.Digest, size int64, used time.Time) bool) error {
	for d, err := range s.names(after) {
		if err == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return fmt.Errorf("walk blobs: %w", err)
		}
		info, err := s.held(d)
		if err == nil {
			if !fn(d, info.Size(), lastUse(info)) {
				return nil
			}
		} else if err := s.sound(); err != nil {
			return fmt.Errorf("walk blobs: %w", err)
		}
	}
	return nil
}

// names yields the digest that each file under blobs/ is named by, in order,
// behind after. The last pair has an error where a folder cannot be read. A
// name is no promise: who wants more than that asks held.
func (s *Store) names(after digest.Digest) iter.Seq2[digest.Digest, error] {
	return func(yield func(digest.Digest, error) bool) {
		for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
			shards, err := os.ReadDir(s.blobs + string(alg))
			if errors.Is(err, fs.ErrNotExist) {
				err = s.gone(err)
			}
			if err != nil {
				yield("", err)
				return
			}
			for _, shard := range shards {
				// Every digest in the shard begins with this.
				begin := string(alg) + ":" + shard.Name()
				passed := begin < string(after) && !strings.HasPrefix(string(after), begin)
				if passed || !shard.IsDir() {
					continue
				}
				if !s.shardNames(alg, shard.Name(), after, yield) {
					return
				}
			}
		}
	}
}

// shardNames is names for one shard. It reports whether to go on.
func (s *Store) shardNames(alg digest.Algorithm, shard string, after digest.Digest, yield func(digest.Digest, error) bool) bool {
	dir := filepath.Join(s.blobs, string(alg), shard)
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) { // somebody took it away just now
		return true
	}
	if err != nil {
		yield("", err)
		return false
	}
	for _, f := range files {
		d := digest.NewDigestFromEncoded(alg, f.Name())
		if d <= after || !f.Type().IsRegular() {
			continue
		}
		if path, err := s.path(d); err != nil || path != filepath.Join(dir, f.Name()) {
			continue // no digest, or not in its place
		}
		if !yield(d, nil) {
			return false
		}
	}
	return true
}

// Has reports whether d is held durably. Unlike Touch it marks nothing.
func (s *Store) Has(d digest.Digest) bool {
	_, err := s.held(d)
	return err == nil
}

// held returns what durable does of d, under its lock.
func (s *Store) held(d digest.Digest) (fs.FileInfo, error) {
	path, err := s.path(d)
	if err != nil {
		return nil, err
	}
	unlock := s.locks.lock(d)
	defer unlock()
	return s.durable(path)
}

// durable returns the blob at path, if it is one that outlives a power cut. The
// caller holds the lock of its digest: no commit of it is between the rename
// and the sync of the folder. But an earlier process may have been killed
// there, and its name only looks durable until the folder is synced once. A
// Store that failed vouches for nothing.
func (s *Store) durable(path string) (fs.FileInfo, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && !info.Mode().IsRegular():
		return nil, oci.ErrBlobUnknown
	case err != nil:
		return nil, oci.ErrUnavailable.Wrap(err)
	}
	if err := s.folders.syncOnce(filepath.Dir(path)); err != nil {
		return nil, s.fail(err)
	}
	return info, s.sound()
}
