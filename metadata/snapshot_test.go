package metadata

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// populated is a state with a record of every kind.
func populated(t testing.TB) *replica {
	r := newReplica(t)
	once := command(0, pushed("a/b", "blob"))
	once.RequestId = "request"
	r.must(
		command(0, founded(joined("1", "n", "k"), false)), once,
		command(0, imageOf("a/b", "m", []string{"v1", "v2"}, "blob")),
		command(0, referring(imageOf("a/b", "s", nil), "m", "sbom")),
		command(0, &wire.Member{Id: "2", Removed: true}),
	)
	return r
}

func (r *replica) restore(b []byte) error { return r.Restore(io.NopCloser(bytes.NewReader(b))) }

// TestRestoreCrash: a process that ends at any step of Restore leaves the old
// state or the new one.
func TestRestoreCrash(t *testing.T) {
	b := populated(t)
	b.must(command(0, pushed("a", "new")))
	stream, after := b.stream(), b.sum()
	r := populated(t)
	before := r.sum()
	if err := r.sync(); err != nil { // what is not synced, a crash may take
		t.Fatal(err)
	}
	images := map[string]string{} // step to copy of the folder
	r.atStep = func(step string) {
		images[step] = t.TempDir()
		copyDir(t, images[step], r.dir)
	}
	if err := r.restore(stream); err != nil {
		t.Fatal(err)
	}
	for step, want := range map[string]string{
		"opened": before, "written": before, "built": before, "switched": after, "swapped": after,
	} {
		if images[step] == "" {
			t.Errorf("no step %q", step)
			continue
		}
		found := openReplica(t, images[step])
		if found.sum() != want {
			t.Errorf("%s: neither the state before nor the state after", step)
		}
		if err := found.restore(stream); err != nil || found.sum() != after {
			t.Errorf("%s: the next attempt: %v", step, err)
		}
		if left, _ := filepath.Glob(filepath.Join(found.dir, "db-*")); len(left) != 1 {
			t.Errorf("%s: left over: %v", step, left)
		}
	}
}

// TestRestoreNoRoom: where the switch cannot be made, the old state goes on.
func TestRestoreNoRoom(t *testing.T) {
	b := populated(t)
	b.must(command(0, pushed("a", "new")))
	r := populated(t)
	before, blocker := r.sum(), filepath.Join(r.dir, currentFile+".tmp")
	if err := os.Mkdir(blocker, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := r.restore(b.stream()); err == nil || len(r.fatal) > 0 || r.sum() != before {
		t.Errorf("got %v, told %v", err, r.fatal)
	}
	if err := os.Remove(blocker); err != nil {
		t.Fatal(err)
	}
	if err := r.restore(b.stream()); err != nil || r.sum() != b.sum() {
		t.Errorf("the next attempt: %v", err)
	}
}

func copyDir(t testing.TB, to, from string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// TestReadsDuringRestore: readers see the old state or the new, and no error.
func TestReadsDuringRestore(t *testing.T) {
	r, b := populated(t), populated(t)
	stop := meanwhile(t, 2, func(int) bool {
		d, ok, err := r.tag("a/b", "v1")
		if !ok || err != nil || d != digest.FromString("m") {
			t.Errorf("tag: %v %v %v", d, ok, err)
			return false
		}
		items, more, err := r.repositories(Page{N: 1}, nil)
		if err != nil || more || len(items) != 1 {
			t.Errorf("repositories: %v %v", items, err)
			return false
		}
		return true
	})
	for range 3 {
		b.must(command(0, pushed("a/b", "blob")))
		if err := r.restore(b.stream()); err != nil || r.applied() != b.applied() {
			t.Error(err)
		}
	}
	stop()
}

// TestRestoreOlder: a snapshot that holds nothing new is proved and kept out,
// and the entries after it, which raft then sends again, change nothing.
func TestRestoreOlder(t *testing.T) {
	r := populated(t)
	older := r.stream()
	later := []*raft.Log{entry(t, 6, command(0, pushed("a", "x"))), entry(t, 7, command(0, unlinked("a", "x")))}
	r.ApplyBatch(later)
	want := r.sum()
	r.atStep = func(step string) { t.Errorf("the state was %s", step) }
	if err := r.restore(older); err != nil || r.sum() != want || r.applied() != 7 {
		t.Errorf("an older one: applied %d, %v", r.applied(), err)
	}
	if err := r.restore(r.stream()); err != nil || r.sum() != want {
		t.Errorf("the same: %v", err)
	}
	if err := r.restore(older[:len(older)-1]); !errors.Is(err, errStream) {
		t.Errorf("a damaged one: %v", err)
	}
	for _, res := range r.ApplyBatch(later) {
		if err := res.(*applyResult).err; err != nil {
			t.Error(err)
		}
	}
	if r.sum() != want {
		t.Error("entries were applied twice")
	}
}
