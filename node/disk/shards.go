package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
)

// MakeShards makes the folders that blobs with a SHA-256 digest go to. A push
// makes and syncs what it lacks itself, one by one, which the layers of a
// node's first images would wait for.
func (s *Store) MakeShards(ctx context.Context) error {
	parent := s.blobs + string(digest.SHA256)
	var made []string
	for i := range 256 {
		shard := filepath.Join(parent, fmt.Sprintf("%02x", i))
		if _, durable := s.shards.Load(shard); durable {
			continue
		}
		if err := errors.Join(ctx.Err(), s.sound()); err != nil {
			return fmt.Errorf("make shards: %w", err)
		}
		if err := os.Mkdir(shard, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make shards: %w", asFull(err))
		}
		made = append(made, shard)
	}
	if len(made) == 0 {
		return nil
	}
	if err := s.folders.sync(parent); err != nil {
		return s.fail(err)
	}
	for _, shard := range made {
		s.shards.Store(shard, true)
	}
	return nil
}
