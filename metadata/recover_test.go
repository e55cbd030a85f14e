package metadata

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// wrecked is a mesh of three with some names, of which all have stopped.
func wrecked(t *testing.T) (m *testMesh, one *testNode, others []*testNode) {
	m = grow(t, 3, 3)
	one = m.follower()
	for i := range 5 {
		must(t, m.leader().push("r", fmt.Sprint(i), i))
		must(t, one.pull("r", fmt.Sprint(i), i))
	}
	for _, n := range m.nodes {
		n.stop()
		if n != one {
			others = append(others, n)
		}
	}
	return m, one, others
}

// restartAt starts a node that greets others as of an epoch.
func (n *testNode) restartAt(epoch Epoch) {
	n.mesh.mu.Lock()
	n.epoch, n.pins = epoch, nil
	n.mesh.mu.Unlock()
	n.start(nil)
}

// opens tries to open a folder as the node n of an epoch would.
func (n *testNode) opens(t *testing.T, dir string, epoch Epoch) error {
	t.Helper()
	cfg := n.cfg
	cfg.Dir, cfg.Listener, cfg.Epoch, cfg.OnMembers = dir, listen(t), epoch, func([]Member, Cluster) {}
	c, err := open(cfg, n.mesh.bounds)
	if err != nil {
		return err
	}
	return c.Close()
}

// Two of three are gone for good: the third goes on alone with all it had. When
// the two come back they are a mesh of their own, of the past, and nothing of
// it gets into this one. One that gives up its past comes back.
func TestRecover(t *testing.T) {
	m, one, others := wrecked(t)
	kept, buried := others[0], others[1]
	got, err := Recover(RecoverConfig{Dir: one.dir, ID: one.id, Keep: []string{kept.id}, Log: testLog()})
	must(t, err)
	if got.Cluster.ID != m.id || got.Cluster.Epoch.Recoveries() != 1 || len(got.Voters) != 3 || len(got.Kept) != 2 || len(got.Buried) != 1 || got.Buried[0].ID != buried.id {
		t.Errorf("recovered %+v", got)
	}
	if err := one.opens(t, one.dir, 1); err == nil {
		t.Error("a node of the old epoch opened the new one's catalogue")
	}
	one.restartAt(got.Cluster.Epoch)
	for i := range 5 {
		must(t, one.pull("r", fmt.Sprint(i), i))
	}
	must(t, one.push("r", "new", 100))
	if s := one.Status(); !slices.Equal(s.Voters, []string{one.id}) {
		t.Errorf("voters %v", s.Voters)
	}

	for _, n := range others {
		if err := n.opens(t, n.dir, got.Cluster.Epoch); err == nil {
			t.Error("a node of the new epoch opened the old one's catalogue")
		}
		n.restartAt(1)
	}
	eventually(t, "the old majority to take a write", func() error { return kept.push("r", "old", 200) })
	must(t, one.push("r", "new", 101))
	must(t, one.pull("r", "new", 101))
	if _, err := one.Manifest(context.Background(), "r", oci.Reference{Tag: "old"}); !errors.Is(err, oci.ErrManifestUnknown) {
		t.Errorf("what the old majority agreed on: %v", err)
	}
	if _, err := kept.Manifest(context.Background(), "r", oci.Reference{Tag: "new"}); !errors.Is(err, oci.ErrManifestUnknown) {
		t.Errorf("at the old majority: %v", err)
	}
	_, past := latest(t, kept)
	if err := one.state.Restore(readCloser{bytes.NewReader(past)}); !errors.Is(err, errForeign) {
		t.Errorf("a snapshot of the old epoch: %v", err)
	}

	m.drop(buried)
	kept.stop()
	to, err := SetAside(kept.dir)
	must(t, err)
	defer os.RemoveAll(to)
	kept.restartAt(0)
	kept.join()
	m.settle(1)
	must(t, kept.pull("r", "new", 101))
	must(t, kept.push("r", "newer", 102))
	if err := one.Join(context.Background(), buried.member()); !errors.Is(err, oci.ErrDenied) {
		t.Errorf("the buried joined: %v", err)
	}
	m.add("z")
	m.settle(3)
	m.goesOn(t)
}

type readCloser struct{ *bytes.Reader }

func (readCloser) Close() error { return nil }

// A dry run says what recovery would begin with, and leaves every byte as it is.
func TestRecoverDryRun(t *testing.T) {
	_, one, others := wrecked(t)
	before := hashFolder(t, one.dir)
	cfg := RecoverConfig{Dir: one.dir, ID: one.id, DryRun: true, Keep: []string{others[0].id}}
	got, err := Recover(cfg)
	must(t, err)
	if hashFolder(t, one.dir) != before {
		t.Error("the folder has changed")
	}
	if got.Cluster.Epoch != 1 || got.Index < 8 || got.Term == 0 || len(got.Voters) != 3 || len(got.Kept) != 2 || len(got.Buried) != 1 || time.Since(got.LogTime) > time.Hour {
		t.Errorf("found %+v", got)
	}
}

// hashFolder returns a hash of the names and bytes of all files under dir.
func hashFolder(t *testing.T, dir string) string {
	t.Helper()
	h := sha256.New()
	must(t, filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		fmt.Fprintf(h, "%s %x\n", name, sha256.Sum256(b))
		return err
	}))
	return fmt.Sprintf("%x", h.Sum(nil))
}

// A process that ends at any step of recovery leaves a folder that a node does
// not start with, and that recovery makes whole when it is repeated.
func TestRecoverCrash(t *testing.T) {
	m, one, _ := wrecked(t)
	images := map[string]string{} // step to copy of the folder
	_, err := Recover(RecoverConfig{Dir: one.dir, ID: one.id, atStep: func(step string) {
		images[step] = t.TempDir()
		copyDir(t, images[step], one.dir)
	}})
	must(t, err)
	for _, step := range []string{"begun", "applied", "appended", "decided", "snapshot", "emptied"} {
		t.Run(step, func(t *testing.T) {
			if images[step] == "" {
				t.Fatal("no such step")
			}
			for _, epoch := range []Epoch{0, 1, 2} {
				if err := one.opens(t, images[step], epoch); err == nil || !strings.Contains(err.Error(), "repeat it") {
					t.Fatalf("opened as of epoch %s: %v", epoch, err)
				}
			}
			var got Recovered
			for range 2 { // the second begins one epoch more
				var err error
				got, err = Recover(RecoverConfig{Dir: images[step], ID: one.id})
				must(t, err)
			}
			one.dir = images[step]
			one.restartAt(got.Cluster.Epoch)
			defer one.stop()
			for i := range 5 {
				must(t, one.pull("r", fmt.Sprint(i), i))
			}
			must(t, one.push("r", "new", 100))
			if s := one.Status(); len(s.Voters) != 1 || len(one.Members()) != 1 || got.Cluster.Epoch.Recoveries() < 2 {
				t.Errorf("%+v of %d members, epoch %s", s, len(one.Members()), got.Cluster.Epoch)
			}
			blank := m.add("z")
			defer m.drop(blank)
			eventually(t, "a newcomer", func() error { return blank.pull("r", "new", 100) })
			m.equal(t)
		})
	}
}

// All of the log counts, also what the state has not got to.
func TestRecoverReplays(t *testing.T) {
	_, one, _ := wrecked(t)
	dir := filepath.Join(one.dir, "state")
	s, err := openState(t.TempDir(), testLog(), func(error) {})
	must(t, err)
	must(t, s.close())
	must(t, os.RemoveAll(dir))
	copyDir(t, dir, s.dir)
	got, err := Recover(RecoverConfig{Dir: one.dir, ID: one.id, DryRun: true})
	must(t, err)
	if len(got.Buried) != 2 || got.Cluster.Epoch != 1 {
		t.Errorf("a dry run found %+v", got)
	}
	got, err = Recover(RecoverConfig{Dir: one.dir, ID: one.id})
	must(t, err)
	one.restartAt(got.Cluster.Epoch)
	for i := range 5 {
		must(t, one.pull("r", fmt.Sprint(i), i))
	}
}

// A snapshot that came and was not taken in yet counts too.
func TestRecoverWithSnapshot(t *testing.T) {
	m := newMesh(t)
	m.bounds.trailing = 4
	for range 4 {
		m.add("z")
	}
	m.settle(3)
	leader := m.leader()
	n := m.node(leader.Status().Replicas[0])
	must(t, leader.push("r", "x", 1))
	must(t, n.pull("r", "x", 1))
	n.stop()
	gone := m.add("z")
	for i := range 50 {
		must(t, leader.push("r", "x", i))
	}
	meta, b := latest(t, leader)
	receive(t, n.dir, meta, b, false)
	for _, o := range m.nodes {
		o.stop()
	}
	dry, err := Recover(RecoverConfig{Dir: n.dir, ID: n.id, Keep: []string{gone.id}, DryRun: true})
	must(t, err)
	got, err := Recover(RecoverConfig{Dir: n.dir, ID: n.id, Keep: []string{gone.id}})
	must(t, err)
	if len(got.Kept) != 2 || len(got.Buried) != 3 || dry.Index != got.Index || dry.Index != meta.Index || len(dry.Kept) != 2 {
		t.Errorf("found %+v, made %+v", dry, got)
	}
	n.restartAt(got.Cluster.Epoch)
	must(t, n.pull("r", "x", 49))
	must(t, n.push("r", "x", 50))
}

func TestRecoverRefused(t *testing.T) {
	_, one, others := wrecked(t)
	blank := t.TempDir()
	for _, tc := range []struct {
		name string
		cfg  RecoverConfig
	}{
		{"no folder", RecoverConfig{Dir: filepath.Join(blank, "none"), ID: one.id}},
		{"a blank folder", RecoverConfig{Dir: blank, ID: one.id}},
		{"another node's", RecoverConfig{Dir: one.dir, ID: "nobody"}},
		{"with a stranger", RecoverConfig{Dir: one.dir, ID: one.id, Keep: []string{others[0].id, "nobody"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, dry := range []bool{true, false} {
				tc.cfg.DryRun = dry
				if _, err := Recover(tc.cfg); err == nil {
					t.Errorf("recovered; dry run: %v", dry)
				}
			}
			if left, err := os.ReadDir(blank); len(left) > 0 || err != nil {
				t.Errorf("left behind: %v %v", left, err)
			}
		})
	}
	one.restartAt(1) // as if nobody had tried
	for _, n := range others {
		n.restartAt(1)
	}
	one.mesh.settle(3)
}

func TestSetAside(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "raft")
	for n := range 3 {
		must(t, os.Mkdir(dir, 0o700))
		to, err := SetAside(dir)
		must(t, err)
		if want := fmt.Sprintf("%s.aside-%d", dir, n+1); to != want {
			t.Errorf("set aside to %s, want %s", to, want)
		}
	}
	if to, err := SetAside(dir); to != "" || err != nil {
		t.Errorf("nothing to set aside: %q %v", to, err)
	}
}
