package disk

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestMakeShards: what was made beforehand, a push neither makes nor syncs.
func TestMakeShards(t *testing.T) {
	synced := map[string]int{}
	counting := false
	s := newStore(t, Config{sys: system{syncFolder: func(path string) error {
		if counting {
			synced[filepath.Base(path)]++
		}
		return syncFolder(path)
	}}})
	for range 2 {
		if err := s.MakeShards(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	shards, err := os.ReadDir(s.blobs + "sha256")
	if err != nil || len(shards) != 256 {
		t.Fatalf("%d shards, %v", len(shards), err)
	}
	counting = true
	b, d := content(1000)
	if err := s.Put(t.Context(), d, int64(len(b)), bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	if shard := d.Encoded()[:2]; len(synced) != 1 || synced[shard] != 1 {
		t.Errorf("synced %v, want shard %s once", synced, shard)
	}
}
