package metadata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// advance moves every member's clock.
func (m *testMesh) advance(by time.Duration) {
	for _, n := range m.nodes {
		n.skew.Add(int64(by))
	}
}

// link pushes a blob, whose bytes nobody looks for. Where nothing was written for
// long, log time comes up to date by the first attempt.
func (n *testNode) link(repo, blob string) (err error) {
	for range 2 {
		err = n.LinkBlob(context.Background(), repo, digest.FromString(blob), int64(len(blob)), n.LogTime())
		if !errors.Is(err, oci.ErrOverdue) {
			break
		}
	}
	return err
}

// sameState waits until all running members hold the same bytes.
func (m *testMesh) sameState() {
	m.t.Helper()
	eventually(m.t, "the same state everywhere", func() error {
		var first []byte
		for _, n := range m.running() {
			h, err := n.state.hash()
			if err != nil {
				return err
			}
			if first == nil {
				first = h
			}
			if !bytes.Equal(h, first) {
				return fmt.Errorf("%s differs", n.id)
			}
		}
		return nil
	})
}

func expire(t testing.TB, n *testNode, want Expired) {
	t.Helper()
	if got, err := n.Expire(context.Background()); err != nil || got != want {
		t.Errorf("%s: %+v, %v; want %+v", n.id, got, err, want)
	}
}

// TestExpire: names go by age, at the leader's word, and only while most
// voters' clocks say what its own does.
func TestExpire(t *testing.T) {
	ctx := context.Background()
	m := grow(t, 3, 3)
	leader := m.leader()
	others := slices.DeleteFunc(m.running(), func(n *testNode) bool { return n == leader })
	must(t, leader.link("r", "idle"))
	must(t, others[0].link("r", "used"))
	img, body := image(1)
	img.Blobs = []oci.Descriptor{{Digest: digest.FromString("used"), Size: 4}}
	must(t, leader.PutManifest(ctx, Put{Repo: "r", Tags: []string{"v1"}, Manifest: img, Body: body}))
	must(t, leader.push("r", "", 2))
	untagged, _ := image(2)
	idle, used := digest.FromString("idle"), digest.FromString("used")
	known := func(n *testNode, d digest.Digest, want bool) {
		t.Helper()
		if _, err := n.Blob(ctx, "r", d); (err == nil) != want || err != nil && !errors.Is(err, oci.ErrBlobUnknown) {
			t.Errorf("%s at %s: %v", d, n.id, err)
		}
	}

	m.advance(25 * time.Hour)
	if b, err := others[0].Blob(ctx, "r", idle); err != nil || !b.Stale {
		t.Errorf("before it goes it is hidden from HEAD: %+v %v", b, err)
	}
	t.Run("others than the leader do nothing", func(t *testing.T) {
		expire(t, others[0], Expired{})
		known(leader, idle, true)
	})
	t.Run("no majority agrees on the time", func(t *testing.T) {
		others[0].skew.Add(int64(2 * time.Minute))
		others[1].skew.Add(int64(-2 * time.Minute))
		_, err := leader.Expire(ctx)
		if !errors.Is(err, oci.ErrUnavailable) || !strings.Contains(fmt.Sprint(err), "behind") || !strings.Contains(fmt.Sprint(err), "ahead") {
			t.Error(err)
		}
		known(leader, idle, true)
		others[1].skew.Add(int64(2 * time.Minute))
	})
	t.Run("one voter is wrong", func(t *testing.T) {
		must(t, others[1].Sync(ctx)) // it may lag behind the writes
		dry, err := others[1].Expirable(ctx, others[1].cfg.Now(), 10)
		if err != nil || len(dry) != 1 || dry[0].Repo != "r" || dry[0].Digest != idle || dry[0].Kind != CandidateLink || dry[0].Since.IsZero() {
			t.Errorf("dry run: %+v %v", dry, err)
		}
		expire(t, leader, Expired{Links: 1})
		must(t, others[0].Sync(ctx))
		known(others[0], idle, false)
		known(others[0], used, true)
		expire(t, leader, Expired{})
	})
	t.Run("one voter is wrong, one is gone", func(t *testing.T) {
		must(t, leader.link("r", "idle"))
		m.advance(25 * time.Hour)
		m.part([]*testNode{others[1]}, []*testNode{leader, others[0]}, true)
		if _, err := leader.Expire(ctx); !errors.Is(err, oci.ErrUnavailable) {
			t.Error(err)
		}
		m.part([]*testNode{others[1]}, []*testNode{leader, others[0]}, false)
		others[0].skew.Add(int64(-2 * time.Minute))
		known(leader, idle, true)
	})
	t.Run("manifests go by the policy", func(t *testing.T) {
		if _, err := m.leader().Manifest(ctx, "r", oci.Reference{Digest: untagged.Digest}); err != nil {
			t.Errorf("without one: %v", err)
		}
		if err := others[0].SetPolicy(ctx, Policy{UntaggedAfter: time.Hour}); !errors.Is(err, oci.ErrUnsupported) {
			t.Errorf("shorter than a push may take: %v", err)
		}
		must(t, others[0].SetPolicy(ctx, Policy{UntaggedAfter: 24 * time.Hour}))
		if got := others[0].Cluster().UntaggedAfter; got != 24*time.Hour {
			t.Errorf("policy %v", got)
		}
		if m, err := m.leader().Manifest(ctx, "r", oci.Reference{Digest: untagged.Digest}); err != nil || !m.Stale {
			t.Errorf("before it goes it is hidden from HEAD: %+v %v", m, err)
		}
		eventually(t, "the names to go", func() error { // the leader may have changed
			leader = m.leader()
			got, err := leader.Expire(ctx)
			if err == nil && got != (Expired{Links: 1, Manifests: 1}) {
				err = fmt.Errorf("%+v went", got)
			}
			return err
		})
		if _, err := leader.Manifest(ctx, "r", oci.Reference{Digest: untagged.Digest}); !errors.Is(err, oci.ErrManifestUnknown) {
			t.Errorf("it is still there: %v", err)
		}
		must(t, m.follower().pull("r", "v1", 1))
	})
	m.sameState()
}

// TestSyncTime: log time goes on in a quiet mesh where somebody needs it, and not
// for everybody who asks.
func TestSyncTime(t *testing.T) {
	ctx := context.Background()
	m := grow(t, 3, 3)
	must(t, m.leader().link("r", "blob"))
	m.advance(30 * time.Hour)
	for _, row := range []struct {
		name  string
		later time.Duration
		moves bool
	}{
		{"after a day", 0, true},
		{"at once", 0, false},
		{"somewhat later", 50 * time.Minute, false},
		{"in the next hour", 20 * time.Minute, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			m.advance(row.later)
			for i, n := range m.nodes {
				must(t, n.Sync(ctx))
				before, now := n.LogTime(), n.cfg.Now()
				at, err := n.SyncTime(ctx)
				must(t, err)
				if moved, want := !at.Equal(before), row.moves && i == 0; moved != want {
					t.Errorf("%s: log time moved %v, by %v; want %v", n.id, moved, at.Sub(before), want)
				}
				if behind := now.Sub(at); behind > time.Hour {
					t.Errorf("%s: log time is %v behind", n.id, behind)
				}
			}
		})
	}
	m.sameState()

	old := newMesh(t).addLevel("z", 1)
	must(t, old.link("r", "blob"))
	at := old.LogTime()
	old.skew.Add(int64(30 * time.Hour))
	if got, err := old.SyncTime(ctx); err != nil || !got.Equal(at) {
		t.Errorf("at level 1 log time went on by %v, %v", got.Sub(at), err)
	}
}

// TestExpireInParts: a pass looks at a bounded number of keys and makes bounded
// entries; the next goes on where it ended, and then begins anew.
func TestExpireInParts(t *testing.T) {
	const links = expireNames + 20
	m := newMesh(t)
	m.bounds.expire = links - 10
	n := m.add("z")
	link := func(from, to int) {
		var pushing sync.WaitGroup
		for i := from; i < to; i++ {
			pushing.Go(func() {
				if err := n.link(fmt.Sprint("r/", i%7), fmt.Sprint(i)); err != nil {
					t.Error(err)
				}
			})
		}
		pushing.Wait()
	}
	link(0, links)
	m.advance(25 * time.Hour)
	link(links, links+1) // stays
	if dry, err := n.Expirable(context.Background(), n.cfg.Now(), 7); err != nil || len(dry) != 7 {
		t.Errorf("dry run of 7: %d %v", len(dry), err)
	}
	if dry, err := n.Expirable(context.Background(), n.cfg.Now(), 2*links); err != nil || len(dry) != links {
		t.Errorf("dry run of all: %d %v", len(dry), err)
	}
	before := n.Status().Proposals
	first, err := n.Expire(context.Background())
	must(t, err)
	if made := n.Status().Proposals - before; made != 2 || first.Links < links-11 || first.Links > links-10 {
		t.Errorf("first pass: %d went by %d entries", first.Links, made)
	}
	expire(t, n, Expired{Links: links - first.Links})
	m.advance(25 * time.Hour)
	expire(t, n, Expired{Links: 1})
}

// TestMixedLevels: a mesh with a member that does not know an operation does
// without it.
func TestMixedLevels(t *testing.T) {
	ctx := context.Background()
	m := newMesh(t)
	old := m.addLevel("z", 1) // founded it, long ago
	m.add("z")
	m.add("z")
	m.settle(3)
	n := m.follower()
	must(t, n.link("r", "blob"))
	must(t, n.push("r", "v1", 1))
	must(t, n.push("r", "v1", 2))
	m.advance(25 * time.Hour)
	blob := digest.FromString("blob")
	for what, refused := range map[string]func() error{
		"lost":     func() error { return n.RecordLost(ctx, blob, n.LogTime().Add(time.Hour)) },
		"found":    func() error { return n.RecordFound(ctx, blob) },
		"policy":   func() error { return n.SetPolicy(ctx, Policy{UntaggedAfter: 24 * time.Hour}) },
		"expire":   func() error { _, err := n.write(ctx, command(0, &wire.Expire{})); return err },
		"standing": func() error { _, err := n.write(ctx, &wire.Command{Op: &wire.Command_Standing{}}); return err },
		"settings": func() error { _, err := n.Change(ctx, "x", Change{Key: "k", Value: []byte("v")}); return err },
		"recover":  func() error { _, err := n.write(ctx, &wire.Command{Op: &wire.Command_Recover{}}); return err },
	} {
		if err := refused(); !errors.Is(err, oci.ErrUnsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
	expire(t, m.leader(), Expired{})
	m.sameState()
	for _, n := range m.nodes {
		if got := n.state.indexed(t); len(got) > 0 {
			t.Errorf("%s has written %q", n.id, got)
		}
	}

	old.level = FeatureLevel
	must(t, old.Join(ctx, old.member()))
	must(t, n.Sync(ctx))
	must(t, n.SetPolicy(ctx, Policy{UntaggedAfter: 24 * time.Hour}))
	m.sameState()
	for _, n := range m.nodes {
		if got := n.state.indexed(t); len(got) != 1 {
			t.Errorf("%s has written %q, want the untagged image", n.id, got)
		}
	}
	expire(t, m.leader(), Expired{Links: 1})
	old.level = 1
	if err := old.Join(ctx, old.member()); !errors.Is(err, oci.ErrDenied) {
		t.Errorf("a member fell back: %v", err)
	}
}

// TestLost: a digest is recorded as lost and found by any node, and never one
// that was pushed after the search for it began.
func TestLost(t *testing.T) {
	ctx := context.Background()
	m := grow(t, 3, 3)
	a, b := m.leader(), m.follower()
	blob := digest.FromString("blob")
	unknown := func(when string, want bool) {
		t.Helper()
		for _, n := range m.nodes {
			must(t, n.Sync(ctx))
			_, err := n.Blob(ctx, "r", blob)
			all, werr := n.Wanted("", 10)
			if errors.Is(err, oci.ErrBlobUnknown) != want || werr != nil || len(all) != 1 || all[0] != (Want{blob, 4, want}) {
				t.Errorf("%s, at %s: %v; wanted %v %v", when, n.id, err, all, werr)
			}
		}
	}
	must(t, a.link("r", "blob"))
	must(t, b.Sync(ctx))
	since := b.LogTime()
	must(t, a.link("r", "blob"))
	if err := b.RecordLost(ctx, blob, since); !errors.Is(err, oci.ErrDenied) {
		t.Errorf("pushed after the search began: %v", err)
	}
	unknown("pushed since", false)
	must(t, b.RecordLost(ctx, blob, b.LogTime()))
	unknown("lost", true)
	if _, err := a.MountBlob(ctx, "s", blob, "r"); !errors.Is(err, oci.ErrBlobUnknown) {
		t.Errorf("mounted: %v", err)
	}
	must(t, a.RecordFound(ctx, blob))
	unknown("found", false)
	must(t, b.RecordLost(ctx, blob, b.LogTime()))
	must(t, a.link("r", "blob"))
	unknown("pushed again", false)
	if got, err := b.Referenced([]digest.Digest{blob, digest.FromString("never")}); err != nil || !slices.Equal(got, []bool{true, false}) {
		t.Errorf("referenced: %v %v", got, err)
	}
	// Whichever entry comes first, a push that was made is not undone.
	for i := range 100 {
		must(t, b.Sync(ctx))
		since := b.LogTime()
		marked := make(chan error, 1)
		go func() { marked <- b.RecordLost(ctx, blob, since.Add(time.Duration(i%2))) }()
		must(t, a.link("r", "blob"))
		if err := <-marked; err != nil && !errors.Is(err, oci.ErrDenied) {
			t.Fatal(err)
		}
		must(t, a.Sync(ctx))
		if _, err := a.Blob(ctx, "r", blob); err != nil {
			t.Fatalf("after push %d: %v", i, err)
		}
	}
	m.sameState()
}

// TestSync: what was committed anywhere before is here after; where that
// cannot be proven, the caller is told.
func TestSync(t *testing.T) {
	ctx := context.Background()
	m := grow(t, 3, 3)
	leader, n := m.leader(), m.follower()
	for i := range 50 {
		blob := fmt.Sprint("blob", i)
		must(t, leader.link("r", blob))
		must(t, n.Sync(ctx))
		if got, err := n.Referenced([]digest.Digest{digest.FromString(blob)}); err != nil || !got[0] {
			t.Fatalf("%s: %v %v", blob, got, err)
		}
	}
	others := slices.DeleteFunc(m.running(), func(o *testNode) bool { return o == n })
	m.part([]*testNode{n}, others, true)
	limited, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := n.Sync(limited); !errors.Is(err, oci.ErrUnavailable) {
		t.Errorf("alone: %v", err)
	}
}
