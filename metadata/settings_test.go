package metadata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

func settingsOf(t testing.TB, n *testNode, prefix string) (all []string) {
	t.Helper()
	list, err := n.Settings(prefix)
	must(t, err)
	for _, s := range list {
		all = append(all, fmt.Sprintf("%s=%s", s.Key, s.Value))
	}
	return all
}

// A change is known at every live node when it is answered, and each of them
// notices by the version.
func TestChangeEverywhere(t *testing.T) {
	m := grow(t, 3, 3)
	ctx := context.Background()
	for i := range 12 {
		before := make(map[*testNode]uint64)
		for _, n := range m.nodes {
			before[n] = n.SettingsVersion()
		}
		want := []string{"user/a=" + fmt.Sprint(i), "user/b="}
		everywhere, err := m.nodes[i%3].Change(ctx, "admin",
			Change{Key: "user/b", Value: []byte{}}, Change{Key: "user/a", Value: []byte(fmt.Sprint(i))},
			Change{Key: "user0", Value: []byte("x")}, Change{Key: "other"})
		if err != nil || !everywhere {
			t.Fatalf("change %d: everywhere %v, %v", i, everywhere, err)
		}
		for _, n := range m.nodes {
			if v := n.SettingsVersion(); v <= before[n] {
				t.Errorf("%s: version %d after %d", n.id, v, before[n])
			}
			if got := settingsOf(t, n, "user/"); !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", n.id, got, want)
			}
		}
	}
	m.equal(t)
}

// Of two nodes that change the same setting at once, one learns that the other
// came first; so counting by read and change loses nothing.
func TestChangeRaces(t *testing.T) {
	m := grow(t, 3, 3)
	ctx := context.Background()
	const writers, each = 4, 5
	var all sync.WaitGroup
	for w := range writers {
		n := m.nodes[w%3]
		all.Go(func() {
			for done := 0; done < each; {
				at, count := uint64(0), 0
				now, err := n.Settings("count")
				if err != nil {
					t.Error(err)
					return
				}
				if len(now) > 0 {
					at = now[0].Revision
					fmt.Sscan(string(now[0].Value), &count)
				}
				_, err = n.Change(ctx, "x", Change{Key: "count", Value: fmt.Append(nil, count+1), If: &at})
				switch {
				case err == nil:
					done++
				case !errors.Is(err, oci.ErrConflict):
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	for _, n := range m.nodes {
		must(t, n.Sync(ctx))
		if got := settingsOf(t, n, ""); !slices.Equal(got, []string{fmt.Sprint("count=", writers*each)}) {
			t.Errorf("%s: %q", n.id, got)
		}
	}
}

// Of two nodes that push different images under one immutable tag at once, one
// is refused, and told which tag it is.
func TestImmutableTag(t *testing.T) {
	m := grow(t, 3, 3)
	errs := make([]error, len(m.nodes))
	var all sync.WaitGroup
	for i, n := range m.nodes {
		img, body := image(i)
		all.Go(func() {
			errs[i] = n.PutManifest(context.Background(), Put{
				Repo: "r", Tags: []string{"v1", "latest"}, ImmutableTags: []string{"v1"}, Manifest: img, Body: body,
			})
		})
	}
	all.Wait()
	won := slices.Index(errs, nil)
	for i, err := range errs {
		var e *oci.Error
		if i != won && (!errors.As(err, &e) || !e.Is(oci.ErrDenied) || e.Message != oci.ErrDenied.Because("tag v1 is immutable").Message) {
			t.Errorf("image %d: %v", i, err)
		}
	}
	for _, n := range m.nodes {
		must(t, n.pull("r", "v1", won))
		must(t, n.pull("r", "latest", won))
	}
}

// What is deleted with the tags on it has no other tag by then.
func TestDeleteTagged(t *testing.T) {
	m := grow(t, 3, 3)
	n, ctx := m.follower(), context.Background()
	img, body := image(1)
	put := func(tag string) {
		must(t, n.PutManifest(ctx, Put{Repo: "r", Tags: []string{tag}, Manifest: img, Body: body}))
	}
	put("b")
	tags, err := n.TagsOn(ctx, "r", img.Digest)
	must(t, err)
	put("a")
	if _, err := n.DeleteTagged(ctx, "r", img.Digest, tags); !errors.Is(err, oci.ErrConflict) {
		t.Errorf("with another tag: %v", err)
	}
	must(t, n.pull("r", "a", 1))
	tags, err = n.TagsOn(ctx, "r", img.Digest)
	must(t, err)
	_, err = n.DeleteTagged(ctx, "r", img.Digest, tags)
	must(t, err)
	if err := n.pull("r", "a", 1); !errors.Is(err, oci.ErrManifestUnknown) && !errors.Is(err, oci.ErrNameUnknown) {
		t.Errorf("after that: %v", err)
	}
	m.sameState()
}

// Who links a blob is listed in pages, by name.
func TestLinking(t *testing.T) {
	m := newMesh(t)
	n := m.add("z")
	d := digest.FromString("blob")
	for _, repo := range []string{"b", "a/b", "a", "c", "gone"} {
		must(t, n.link(repo, "blob"))
	}
	must(t, n.link("a", "other"))
	_, err := n.UnlinkBlob(context.Background(), "gone", d)
	must(t, err)
	for _, row := range []struct {
		name  string
		d     digest.Digest
		after string
		n     int
		want  []string
	}{
		{"all", d, "", 9, []string{"a", "a/b", "b", "c"}},
		{"as many as there are at once", d, "", -1, []string{"a", "a/b", "b", "c"}},
		{"the first", d, "", 2, []string{"a", "a/b"}},
		{"the next", d, "a/b", 2, []string{"b", "c"}},
		{"the end", d, "c", 2, nil},
		{"after one that does not link it", d, "aa", 1, []string{"b"}},
		{"none", d, "", 0, nil},
		{"of nothing", digest.FromString("nothing"), "", 9, nil},
		{"of no digest", "sha256:x", "", 9, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got, err := n.Linking(row.d, row.after, row.n); err != nil || !slices.Equal(got, row.want) {
				t.Errorf("%q %v, want %q", got, err, row.want)
			}
		})
	}
}

// A newcomer has the settings from a snapshot, and they outlive restarts.
func TestSettingsTravel(t *testing.T) {
	m := newMesh(t)
	m.bounds.trailing = 4
	for range 2 {
		m.add("z")
	}
	ctx := context.Background()
	_, err := m.nodes[1].Change(ctx, "x", Change{Key: "k", Value: []byte("v")}, Change{Key: "gone", Value: []byte("v")})
	must(t, err)
	_, err = m.nodes[1].Change(ctx, "x", Change{Key: "gone"})
	must(t, err)
	for i := range 30 {
		must(t, m.leader().push("r", "x", i))
	}
	latest(t, m.leader())
	m.add("z")
	m.settle(3)
	for _, n := range m.nodes {
		n.stop()
		n.start(nil)
	}
	m.settle(3)
	for _, n := range m.nodes {
		must(t, n.Sync(ctx))
		if got := settingsOf(t, n, ""); !slices.Equal(got, []string{"k=v"}) || n.SettingsVersion() == 0 {
			t.Errorf("%s: %q at version %d", n.id, got, n.SettingsVersion())
		}
	}
	m.equal(t)
}

// A restored mesh has the settings of the backup at every node, and each notices
// by the version; what was read before the restore is no base for a change.
func TestSettingsBackup(t *testing.T) {
	ctx := context.Background()
	from := newMesh(t)
	must(t, from.add("z").push("r", "x", 1))
	_, err := from.nodes[0].Change(ctx, "x", Change{Key: "k", Value: []byte("theirs")})
	must(t, err)
	b := backup(t, from.nodes[0])

	m := another(t, 3, 3)
	_, err = m.nodes[1].Change(ctx, "x", Change{Key: "k", Value: []byte("ours")}, Change{Key: "l", Value: []byte("ours")})
	must(t, err)
	was, err := m.nodes[1].Settings("k")
	must(t, err)
	before := make(map[*testNode]uint64)
	for _, n := range m.nodes {
		must(t, n.Sync(ctx))
		before[n] = n.SettingsVersion()
	}
	must(t, m.follower().Restore(ctx, bytes.NewReader(b)))
	for _, n := range m.nodes {
		if got := settingsOf(t, n, ""); !slices.Equal(got, []string{"k=theirs"}) || n.SettingsVersion() <= before[n] {
			t.Errorf("%s: %q at version %d after %d", n.id, got, n.SettingsVersion(), before[n])
		}
	}
	m.settle(3)
	if _, err := m.follower().Change(ctx, "x", Change{Key: "k", Value: []byte("x"), If: &was[0].Revision}); !errors.Is(err, oci.ErrConflict) {
		t.Errorf("a change of what was there before: %v", err)
	}
	now, err := m.follower().Settings("k")
	must(t, err)
	_, err = m.leader().Change(ctx, "x", Change{Key: "k", Value: []byte("y"), If: &now[0].Revision})
	must(t, err)
	m.goesOn(t)
}

// While a member of level 2 remains there are no settings, and no tag is marked,
// since it would move it. A backup of such a mesh is good for a later one, and
// leaves that its own settings; the other way round it is refused.
func TestSettingsNeedLevel(t *testing.T) {
	ctx := context.Background()
	m := newMesh(t)
	old := m.addLevel("z", levelSettings-1)
	for range 2 {
		m.add("z")
	}
	m.settle(3)
	n := m.follower()
	img, body := image(2)
	marked := Put{Repo: "r", Tags: []string{"v1"}, ImmutableTags: []string{"v1"}, Manifest: img, Body: body}
	must(t, n.push("r", "v1", 1))
	if _, err := n.Change(ctx, "x", Change{Key: "k", Value: []byte("v")}); !errors.Is(err, oci.ErrUnsupported) {
		t.Errorf("a setting: %v", err)
	}
	if err := n.PutManifest(ctx, marked); !errors.Is(err, oci.ErrUnsupported) {
		t.Errorf("an immutable tag: %v", err)
	}
	if _, err := n.DeleteTagged(ctx, "r", img.Digest, nil); !errors.Is(err, oci.ErrUnsupported) {
		t.Errorf("a manifest with certain tags: %v", err)
	}
	m.sameState()
	earlier := backup(t, n)

	old.level = FeatureLevel
	must(t, old.Join(ctx, old.member()))
	must(t, n.Sync(ctx))
	_, err := n.Change(ctx, "x", Change{Key: "k", Value: []byte("v")})
	must(t, err)
	if err := n.PutManifest(ctx, marked); !errors.Is(err, oci.ErrDenied) {
		t.Errorf("an immutable tag that moves: %v", err)
	}
	m.sameState()
	later := backup(t, n)

	low := newMesh(t)
	if err := low.addLevel("z", levelSettings-1).Restore(ctx, bytes.NewReader(later)); !errors.Is(err, oci.ErrDenied) {
		t.Errorf("settings restored where nobody knows them: %v", err)
	}
	high := another(t, 1, 1).nodes[0]
	_, err = high.Change(ctx, "x", Change{Key: "own", Value: []byte("v")})
	must(t, err)
	must(t, high.Restore(ctx, bytes.NewReader(earlier)))
	must(t, high.pull("r", "v1", 1))
	if got := settingsOf(t, high, ""); !slices.Equal(got, []string{"own=v"}) {
		t.Errorf("settings %q", got)
	}
}

// What cannot be a change is refused by the node that is asked, and costs no
// entry.
func TestChangeRefused(t *testing.T) {
	m := newMesh(t)
	n := m.add("z")
	before := n.Status().Proposals
	many := make([]Change, 17)
	for i := range many {
		many[i] = Change{Key: fmt.Sprint(i), Value: make([]byte, maxSetting)}
	}
	for name, changes := range map[string][]Change{
		"none": nil, "no key": {{}}, "not text": {{Key: "\xff", Value: []byte("v")}}, "too large": many,
		"a key twice": {{Key: "k", Value: []byte("v")}, {Key: "k"}},
	} {
		if _, err := n.Change(context.Background(), "x", changes...); !errors.Is(err, oci.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if now := n.Status().Proposals; now != before {
		t.Errorf("%d entries", now-before)
	}
}
