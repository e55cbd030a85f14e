package metadata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// another makes a mesh that is not the one of newMesh.
func another(t testing.TB, n, voters int) *testMesh {
	m := newMesh(t)
	m.id = "22222222-0000-4000-8000-000000000000"
	for range n {
		m.add("y")
	}
	m.settle(voters)
	return m
}

func backup(t testing.TB, n *testNode) []byte {
	t.Helper()
	r, err := n.Backup(context.Background())
	must(t, err)
	b, err := io.ReadAll(r)
	must(t, errors.Join(err, r.Close(), r.Close()))
	if int64(len(b)) != r.Size {
		t.Errorf("%d bytes, announced were %d", len(b), r.Size)
	}
	n.nothingSpare(t)
	return b
}

// nothingSpare checks that neither backups nor restores left anything behind.
func (n *testNode) nothingSpare(t testing.TB) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(n.dir, "snapshots", "*"+tmpSuffix))
	if len(left) > 0 || err != nil {
		t.Errorf("left over: %v %v", left, err)
	}
}

// A backup is made while writes go on and holds all that was acknowledged
// before; in a fresh mesh every node then has it, and life goes on.
func TestBackupAndRestore(t *testing.T) {
	from := grow(t, 3, 3)
	var last [4]atomic.Int64 // of each writer, acknowledged
	stop := meanwhile(t, len(last), func(w int) bool {
		i := last[w].Load() + 1
		if err := from.nodes[w%3].push(fmt.Sprint("repo", w), "latest", int(i)); err != nil {
			t.Error(err)
			return false
		}
		last[w].Store(i)
		return true
	})
	eventually(t, "some writes", func() error {
		if n := last[0].Load(); n < 20 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	var before [len(last)]int64
	for w := range last {
		before[w] = last[w].Load()
	}
	b := backup(t, from.follower())
	stop()

	to := another(t, 3, 3)
	members := fmt.Sprint(to.nodes[0].Members())
	must(t, to.follower().Restore(context.Background(), bytes.NewReader(b)))
	for _, n := range to.nodes {
		for w := range before {
			got, err := n.Manifest(context.Background(), fmt.Sprint("repo", w), oci.Reference{Tag: "latest"})
			must(t, err)
			i := before[w] - 1
			for want := ""; want != got.Digest.String() && i < last[w].Load(); i++ {
				m, _ := image(int(i) + 1)
				want = m.Digest.String()
			}
			if m, _ := image(int(i)); m.Digest != got.Digest {
				t.Errorf("writer %d: %s is none of images %d to %d", w, got.Digest, before[w], last[w].Load())
			}
		}
		if n.Cluster().ID != to.id || fmt.Sprint(n.Members()) != members {
			t.Errorf("%s is of %+v, with %v", n.id, n.Cluster(), n.Members())
		}
		n.nothingSpare(t)
	}
	to.settle(3)
	to.goesOn(t)
	for _, n := range to.nodes { // each finds it again, and a newcomer too
		n.stop()
		n.start(nil)
	}
	to.settle(3)
	to.add("y")
	to.settle(3)
	to.goesOn(t)
}

// goesOn checks that writes take effect, each once, and everywhere.
func (m *testMesh) goesOn(t *testing.T) {
	t.Helper()
	for i, n := range m.running() {
		repo := "after/" + n.id
		must(t, n.push(repo, "x", i))
		for _, o := range m.running() {
			must(t, o.pull(repo, "x", i))
		}
		_, err := n.DeleteTag(context.Background(), repo, "x")
		must(t, err)
		if _, err := n.DeleteTag(context.Background(), repo, "x"); !errors.Is(err, oci.ErrManifestUnknown) {
			t.Errorf("deleted again: %v", err)
		}
	}
	m.equal(t)
}

// What is no whole backup, or would cost a name, changes nothing, at the
// leader as at another.
func TestRestoreRefused(t *testing.T) {
	from := newMesh(t)
	must(t, from.add("z").push("r", "x", 1))
	good := backup(t, from.nodes[0])
	older := newMesh(t)
	must(t, older.addLevel("z", levelHealing-1).push("r", "x", 1))
	to := another(t, 3, 3)
	flipped := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 1
		return b
	}
	full := grow(t, 1, 1)
	must(t, full.nodes[0].push("r", "y", 2))
	for _, tc := range []struct {
		name   string
		mesh   *testMesh
		stream io.Reader
		want   *oci.Error
	}{
		{"nothing", to, bytes.NewReader(nil), oci.ErrDenied},
		{"something else", to, strings.NewReader("not a backup at all"), oci.ErrDenied},
		{"cut short", to, bytes.NewReader(good[:len(good)-1]), oci.ErrDenied},
		{"cut at a half", to, bytes.NewReader(good[:len(good)/2]), oci.ErrDenied},
		{"more than a backup", to, io.MultiReader(bytes.NewReader(good), strings.NewReader("x")), oci.ErrDenied},
		{"a bit flipped in a record", to, bytes.NewReader(flipped(len(good) / 2)), oci.ErrDenied},
		{"a bit flipped in the checksum", to, bytes.NewReader(flipped(len(good) - 1)), oci.ErrDenied},
		{"of a mesh with older members", to, bytes.NewReader(backup(t, older.nodes[0])), oci.ErrDenied},
		{"into a mesh with a repository", full, bytes.NewReader(good), oci.ErrDenied},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, err := io.ReadAll(tc.stream)
			must(t, err)
			for _, n := range tc.mesh.nodes {
				before, err := n.state.hash()
				must(t, err)
				if err := n.Restore(context.Background(), bytes.NewReader(b)); !errors.Is(err, tc.want) {
					t.Errorf("at %s: %v", n.id, err)
				}
				after, err := n.state.hash()
				must(t, err)
				if !bytes.Equal(before, after) {
					t.Errorf("%s has changed", n.id)
				}
				n.nothingSpare(t)
			}
		})
	}
	broken := io.MultiReader(bytes.NewReader(good[:100]), iotest.ErrReader(os.ErrDeadlineExceeded))
	if err := to.leader().Restore(context.Background(), broken); err == nil || errors.Is(err, oci.ErrDenied) {
		t.Errorf("a line that broke: %v", err)
	}
	to.leader().nothingSpare(t)
	to.settle(3)
	must(t, to.follower().Restore(context.Background(), bytes.NewReader(good)))
	must(t, to.follower().pull("r", "x", 1))
}

// A leader that ends after it took in a backup, and before others did, comes
// back with it: nobody else could lead meanwhile.
func TestRestoreThenCrash(t *testing.T) {
	from := newMesh(t)
	must(t, from.add("z").push("r", "x", 1))
	b := backup(t, from.nodes[0])
	m := another(t, 3, 3)
	leader := m.leader()
	file, err := leader.receiveBackup(bytes.NewReader(b))
	must(t, err)
	must(t, leader.voteAlone(context.Background()))
	var others []*testNode
	for _, n := range m.nodes {
		if n != leader {
			others = append(others, n)
		}
	}
	m.part([]*testNode{leader}, others, true)
	_, err = leader.replaceState(file)
	must(t, err)
	leader.stop()
	m.part([]*testNode{leader}, others, false)
	for _, n := range others {
		if repos, _, err := n.state.repositories(Page{N: 9}, nil); len(repos) > 0 || err != nil || n.Status().State != "follower" {
			t.Errorf("%s is %s and has %v (%v)", n.id, n.Status().State, repos, err)
		}
	}
	leader.start(nil)
	m.settle(3)
	for _, n := range m.nodes {
		must(t, n.pull("r", "x", 1))
	}
	m.goesOn(t)
}

// A write under way when a backup is to be restored keeps it out, or comes
// after it; it is not lost.
func TestWritesAtRestore(t *testing.T) {
	from := newMesh(t)
	must(t, from.add("z").push("r", "x", 1))
	b := backup(t, from.nodes[0])
	m := another(t, 1, 1)
	n := m.nodes[0]
	var writers sync.WaitGroup
	for i := range 4 {
		writers.Go(func() {
			for range 20 {
				if err := n.push("w", fmt.Sprint(i), i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	err := n.Restore(context.Background(), bytes.NewReader(b))
	n.restoring.Store(true)
	if _, err := n.proposeHere(context.Background(), memberOp(n.member(), nil)); !errors.Is(err, oci.ErrUnavailable) {
		t.Errorf("a write in the middle of it: %v", err)
	}
	n.restoring.Store(false)
	writers.Wait()
	if err != nil && !errors.Is(err, oci.ErrDenied) {
		t.Error(err)
	}
	if err == nil {
		must(t, n.pull("r", "x", 1))
	}
	for i := range 4 {
		must(t, n.pull("w", fmt.Sprint(i), i))
	}
}

// Replicas that have applied the same have the same hash, one that got it from a
// snapshot too; another command makes it another.
func TestStateHash(t *testing.T) {
	m := newMesh(t)
	m.bounds.trailing = 4
	for range 2 {
		m.add("z")
	}
	for i := range 30 {
		must(t, m.leader().push("r", fmt.Sprint(i%7), i))
	}
	latest(t, m.leader())
	m.add("z")
	m.settle(3)
	same := func() (index uint64, hash string) {
		t.Helper()
		eventually(t, "the same hash everywhere", func() error {
			index, hash = 0, ""
			for _, n := range m.running() {
				i, h, err := n.StateHash(context.Background())
				must(t, err)
				if hash != "" && i == index && h != hash {
					t.Fatalf("at entry %d %s has %s, another %s", i, n.id, h, hash)
				}
				if hash != "" && i != index {
					return fmt.Errorf("%s is at entry %d, another at %d", n.id, i, index)
				}
				index, hash = i, h
			}
			return nil
		})
		return index, hash
	}
	index, hash := same()
	if index == 0 || len(hash) != 64 {
		t.Errorf("%q at entry %d", hash, index)
	}
	must(t, m.leader().push("r", "more", 31))
	if i, h := same(); i <= index || h == hash {
		t.Errorf("%s at entry %d, after %s at %d", h, i, hash, index)
	}
	for _, n := range m.running() {
		n.nothingSpare(t)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := m.leader().StateHash(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("for nobody: %v", err)
	}
}

// What a backup becomes: its names and log time, and of all else what the mesh
// has that takes it.
func TestRewrite(t *testing.T) {
	old, own := populated(t), newReplica(t)
	old.must(command(5, pushed("late", "x")))
	first := joined("9", "z", "q")
	first.Cluster = &wire.Cluster{Id: "other", Epoch: 2, Replicas: 5, AllowSparse: true}
	own.must(command(0, first), command(0, joined("8", "y", "p")), command(0, &wire.Member{Id: "8", Removed: true}))
	r, err := newRewriter(bytes.NewReader(old.stream()), own.db, progress{index: 77, term: 7})
	must(t, err)
	b, err := io.ReadAll(r)
	must(t, err)
	if len(b) == 0 {
		t.Fatal("nothing")
	}
	must(t, own.restore(b))
	if own.at != (progress{index: 77, term: 7, now: old.at.now}) || own.receipts.len() != 0 {
		t.Errorf("it stands at %+v with %d receipts", own.at, own.receipts.len())
	}
	if c := own.cluster(); c.ID != "other" || c.Epoch != 2 || c.Replicas != 5 || membersOf(own) != "9 epoch 2" {
		t.Errorf("it is %+v with %s", c, membersOf(own))
	}
	own.last = own.applied()
	if got := own.do(command(0, joined("8", "y", "p")))[0]; got.err == nil {
		t.Error("who was buried in the mesh returned")
	}
	for _, kind := range []byte{keyRepo, keyBytes} {
		if got, want := keysOf(t, own, kind), keysOf(t, old, kind); got != want || got == "" {
			t.Errorf("kind %#x: %q, want %q", kind, got, want)
		}
	}
}

func keysOf(t *testing.T, r *replica, kind byte) string {
	var b strings.Builder
	must(t, scan(r.db, []byte{kind}, func(k, v []byte) (bool, error) {
		fmt.Fprintf(&b, "%q=%q ", k, v)
		return true, nil
	}))
	return b.String()
}
