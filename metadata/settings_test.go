package metadata

import (
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
