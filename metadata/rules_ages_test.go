package metadata

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// TestExpireRules has a row for what an Expire entry drops and leaves. All that
// comes before it happens at minute 0.
func TestExpireRules(t *testing.T) {
	all := []string{"v1"}
	links := func(before int, blobs ...string) *wire.Expire {
		return &wire.Expire{LinksBefore: minute(before), Links: namesOf("a", blobs...)}
	}
	manifests := func(before int, names ...string) *wire.Expire {
		return &wire.Expire{UntaggedBefore: minute(before), Manifests: namesOf("a", names...)}
	}
	levelUp := joined("1", "n1", "k1")
	levelUp.Level = levelHealing
	r := newReplica(t)
	for _, row := range []struct {
		name   string
		before []any
		op     any
		want   *oci.Error
		gone   int64
	}{
		{"an unused link", []any{pushed("a", "blob")}, links(1, "blob"), nil, 1},
		{"twice in one entry", []any{pushed("a", "blob")}, links(1, "blob", "blob"), nil, 1},
		{"a link used since", []any{pushed("a", "blob")}, links(0, "blob"), nil, 0},
		{"a link that a manifest names", []any{pushed("a", "blob"), imageOf("a", "m", nil, "blob")}, links(1, "blob"), nil, 0},
		{"a link whose manifest was dropped just now", []any{pushed("a", "blob"), imageOf("a", "m", nil, "blob"), dropped("a", "m")}, links(0, "blob"), nil, 0},
		{"a link that a manifest elsewhere names", []any{pushed("a", "blob"), pushed("b", "blob"), imageOf("b", "m", nil, "blob")}, links(1, "blob"), nil, 1},
		{"a link elsewhere", []any{pushed("b", "blob")}, links(1, "blob"), nil, 0},
		{"some of many", []any{pushed("a", "x"), pushed("a", "y"), imageOf("a", "m", nil, "x")}, links(1, "x", "y", "z"), nil, 1},
		{"a link of no repository", []any{pushed("a", "blob")}, &wire.Expire{LinksBefore: minute(1), Links: namesOf("", "blob")}, oci.ErrNameInvalid, 0},
		{"no digest, after one that would go", []any{pushed("a", "blob")}, &wire.Expire{
			LinksBefore: minute(1), Links: namesOf("a", "blob"), Manifests: []*wire.Name{{Repo: "a", Digest: "sha256:x"}},
		}, oci.ErrDigestInvalid, 0},

		{"a manifest without a tag", []any{levelled(2), imageOf("a", "m", nil)}, manifests(1, "m"), nil, 1},
		{"where the policy keeps them", []any{levelled(2), imageOf("a", "m", nil)}, &wire.Expire{Manifests: namesOf("a", "m")}, nil, 0},
		{"a manifest without a tag since", []any{levelled(2), imageOf("a", "m", nil)}, manifests(0, "m"), nil, 0},
		{"a manifest with a tag", []any{levelled(2), imageOf("a", "m", all)}, manifests(1, "m"), nil, 0},
		{"a manifest whose tag moved", []any{levelled(2), imageOf("a", "m", all), imageOf("a", "n", all)}, manifests(1, "m", "n"), nil, 1},
		{"a manifest of two tags, of which one moved", []any{levelled(2), imageOf("a", "m", []string{"v1", "v2"}), imageOf("a", "n", all)}, manifests(1, "m"), nil, 0},
		{"a manifest whose tag was dropped", []any{levelled(2), imageOf("a", "m", all), untagged("a", "v1")}, manifests(1, "m"), nil, 1},
		{"a manifest tagged again", []any{levelled(2), imageOf("a", "m", nil), imageOf("a", "m", all)}, manifests(1, "m"), nil, 0},
		{"a child", []any{levelled(2), imageOf("a", "m", nil), parent("a", "index", all, "m")}, manifests(1, "m"), nil, 0},
		{"a child of an index elsewhere", []any{levelled(2), imageOf("a", "m", nil), parent("b", "index", all, "m")}, manifests(1, "m"), nil, 1},
		{"an index, then its child", []any{levelled(2), imageOf("a", "m", nil), parent("a", "index", nil, "m")}, manifests(1, "index", "m"), nil, 2},
		{"a child, then its index", []any{levelled(2), imageOf("a", "m", nil), parent("a", "index", nil, "m")}, manifests(1, "m", "index"), nil, 1},
		{"a signature", []any{levelled(2), imageOf("a", "m", all), referring(imageOf("a", "s", nil), "m", "sig")}, manifests(1, "s"), nil, 0},
		{"a signature of nothing", []any{levelled(2), referring(imageOf("a", "s", nil), "m", "sig")}, manifests(1, "s"), nil, 1},
		{"before level 2", []any{levelled(1), imageOf("a", "m", nil)}, manifests(1, "m"), nil, 0},
		{"from before level 2", []any{levelled(1), imageOf("a", "m", nil), imageOf("a", "n", all), levelUp}, manifests(1, "m", "n"), nil, 1},
	} {
		t.Run(row.name, func(t *testing.T) { r.check(t, row.before, row.op, row.want, row.gone) })
	}
	t.Run("a tag outweighs the index", func(t *testing.T) {
		r.wipe()
		r.must(command(0, levelled(2)), command(0, imageOf("a", "m", all)))
		must(t, r.db.Set(untaggedKey("a", mustSum(t, sha("m"))), encodeTime(minute(0)), nil))
		if got := r.do(command(0, manifests(1, "m")))[0]; got.err != nil || got.size != 0 {
			t.Errorf("%v, %d went", got.err, got.size)
		}
	})
}

// TestUntaggedAge: from when on the age of a manifest without a tag counts.
func TestUntaggedAge(t *testing.T) {
	all := []string{"v1"}
	for _, row := range []struct {
		name string
		log  []*wire.Command
		want int // minute from which m's age counts
	}{
		{"its push", []*wire.Command{command(1, imageOf("a", "m", nil))}, 1},
		{"the same put again", []*wire.Command{command(1, imageOf("a", "m", nil)), command(2, imageOf("a", "m", nil))}, 2},
		{"its tag is dropped", []*wire.Command{command(1, imageOf("a", "m", all)), command(2, untagged("a", "v1"))}, 2},
		{"a client drops its index", []*wire.Command{
			command(1, imageOf("a", "m", nil)), command(1, parent("a", "index", nil, "m")), command(3, dropped("a", "index")),
		}, 3},
		{"its index is put under a type that names nothing", []*wire.Command{
			command(1, imageOf("a", "m", nil)), command(1, parent("a", "index", nil, "m")), command(3, imageOf("a", "index", nil)),
		}, 3},
		{"its index expires: since that kept it no more", []*wire.Command{
			command(1, imageOf("a", "m", nil)), command(2, parent("a", "index", nil, "m")),
			command(5, &wire.Expire{UntaggedBefore: minute(3), Manifests: namesOf("a", "index")}),
		}, 2},
		{"its index expires, and it is younger", []*wire.Command{
			command(1, parent("a", "index", nil, "m")), command(2, imageOf("a", "m", nil)),
			command(5, &wire.Expire{UntaggedBefore: minute(3), Manifests: namesOf("a", "index")}),
		}, 2},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newReplica(t)
			r.must(command(0, levelled(2)))
			r.must(row.log...)
			since, ok, err := untaggedSince(r.db, "a", mustSum(t, sha("m")))
			if !ok || err != nil || since != minute(row.want) {
				t.Errorf("since %d minutes, %v %v; want %d", (since-epoch)/6e10, ok, err, row.want)
			}
		})
	}
}

// TestStaleManifest: what HEAD is told of manifest m, by a policy of two days.
// All that comes before it happens at minute 0, or at the minute given.
func TestStaleManifest(t *testing.T) {
	const hour = 60
	all := []string{"v1"}
	m := command(0, imageOf("a", "m", nil))
	at := func(h int, op any) *wire.Command { return command(h*hour, op) }
	for _, row := range []struct {
		name string
		log  []*wire.Command
		at   int // hours
		want bool
	}{
		{"young", []*wire.Command{m}, 36, false},
		{"old", []*wire.Command{m}, 37, true},
		{"put again", []*wire.Command{m, at(37, imageOf("a", "m", nil))}, 72, false},
		{"with a tag", []*wire.Command{command(0, imageOf("a", "m", all))}, 500, false},
		{"its tag moved", []*wire.Command{command(0, imageOf("a", "m", all)), at(100, imageOf("a", "n", all))}, 137, true},
		{"of an index with a tag", []*wire.Command{m, command(0, parent("a", "index", all, "m"))}, 500, false},
		{"of an index elsewhere", []*wire.Command{m, command(0, parent("b", "index", all, "m"))}, 37, true},
		{"of an old index", []*wire.Command{m, command(0, parent("a", "index", nil, "m"))}, 37, true},
		{"of a young index", []*wire.Command{m, at(30, parent("a", "index", nil, "m"))}, 37, false},
		{"of an old index and one with a tag", []*wire.Command{m, command(0, parent("a", "index", nil, "m")), command(0, parent("a", "other", all, "m"))}, 500, false},
		{"of an old index of one with a tag", []*wire.Command{m, command(0, parent("a", "index", nil, "m")), command(0, parent("a", "other", all, "index"))}, 500, false},
		{"of a signature", []*wire.Command{command(0, referring(imageOf("a", "m", nil), "n", "x")), command(0, imageOf("a", "n", all))}, 500, false},
		{"of a signature of what is old", []*wire.Command{command(0, referring(imageOf("a", "m", nil), "n", "x")), command(0, imageOf("a", "n", nil))}, 37, true},
		{"of a signature of nothing", []*wire.Command{command(0, referring(imageOf("a", "m", nil), "n", "x"))}, 37, true},
		{"where the policy keeps all", []*wire.Command{m, command(0, &wire.Policy{})}, 500, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newReplica(t)
			r.must(command(0, levelled(2)), command(0, &wire.Policy{UntaggedAfter: int64(48 * time.Hour)}))
			r.must(row.log...)
			r.must(at(row.at, pushed("other", "x")))
			if got, err := r.staleManifest("a", digest.FromString("m")); err != nil || got != row.want {
				t.Errorf("stale %v %v, want %v", got, err, row.want)
			}
		})
	}
	t.Run("of more old indexes than are looked at", func(t *testing.T) {
		r := newReplica(t)
		r.must(command(0, levelled(2)), command(0, &wire.Policy{UntaggedAfter: int64(48 * time.Hour)}), m)
		for i := range maxFading + 1 {
			r.must(command(0, parent("a", fmt.Sprint("index", i), nil, "m")))
		}
		r.must(at(37, pushed("other", "x")))
		f := fading{r: r.db, repo: "a", before: minute(hour), left: maxFading}
		if got, err := f.fades(mustSum(t, sha("m"))); err != nil || !got || f.left != 0 {
			t.Errorf("fades %v %v, %d were left to look at", got, err, f.left)
		}
	})
}

// TestLostRules has a row for what a mark does, and what takes it away.
func TestLostRules(t *testing.T) {
	gone := []any{levelled(2), pushed("a", "blob"), lost("blob", 1)}
	then := func(ops ...any) []any { return append(slices.Clone(gone), ops...) }
	largeGone := []any{levelled(2), placed(imageOf("a", "m", []string{"v1"})), lost("m", 1)}
	r := newReplica(t)
	for _, row := range []struct {
		name   string
		before []any
		op     any
		want   *oci.Error
		size   int64
		marked string // "" or the one blob that is lost afterwards
	}{
		{"a blob", []any{pushed("a", "blob")}, lost("blob", 1), nil, 0, "blob"},
		{"twice", gone, lost("blob", 1), nil, 0, "blob"},
		{"a blob pushed since", []any{pushed("a", "blob")}, lost("blob", 0), oci.ErrDenied, 0, ""},
		{"a blob mounted since", []any{pushed("a", "blob"), mounted("b", "blob", "a")}, lost("blob", 0), oci.ErrDenied, 0, ""},
		{"a blob that nobody wants", []any{pushed("a", "blob"), unlinked("a", "blob")}, lost("blob", 1), oci.ErrBlobUnknown, 0, ""},
		{"a blob that only a manifest names", []any{pushed("a", "blob"), imageOf("a", "m", nil, "blob"), unlinked("a", "blob")}, lost("blob", 1), oci.ErrBlobUnknown, 0, ""},
		{"no digest", nil, &wire.Lost{Digest: "x"}, oci.ErrDigestInvalid, 0, ""},
		{"the body of a manifest", []any{levelled(2), placed(imageOf("a", "m", nil))}, lost("m", 1), nil, 0, "m"},
		{"the body of a manifest put since", []any{levelled(2), placed(imageOf("a", "m", nil))}, lost("m", 0), oci.ErrDenied, 0, ""},
		{"the body of a manifest that is in its entry", []any{levelled(2), imageOf("a", "m", nil)}, lost("m", 1), oci.ErrBlobUnknown, 0, ""},
		{"the body of a manifest from before level 2", []any{levelled(1), placed(imageOf("a", "m", nil)), func() any {
			m := joined("1", "n1", "k1")
			m.Level = levelHealing
			return m
		}()}, lost("m", 1), nil, 0, "m"},

		{"a push heals", gone, pushed("a", "blob"), nil, 4, ""},
		{"a push elsewhere heals", gone, pushed("b", "blob"), nil, 4, ""},
		{"found heals", gone, &wire.Lost{Digest: sha("blob"), Found: true}, nil, 0, ""},
		{"found what was not lost", []any{pushed("a", "blob")}, &wire.Lost{Digest: sha("blob"), Found: true}, nil, 0, ""},
		{"a mount has nothing to mount", gone, mounted("b", "blob", "a"), oci.ErrBlobUnknown, 0, "blob"},
		{"a mount in its place", gone, mounted("a", "blob", "a"), oci.ErrBlobUnknown, 0, "blob"},
		{"a manifest that needs it", gone, imageOf("a", "m", nil, "blob"), oci.ErrManifestBlobUnknown, 0, "blob"},
		{"a manifest that needs it, sparse", []any{founded(joined("1", "n", "k"), true), pushed("a", "blob"), lost("blob", 1)}, imageOf("a", "m", nil, "blob"), nil, 0, "blob"},
		{"a manifest that needs another", then(pushed("a", "x")), imageOf("a", "m", nil, "x"), nil, 0, "blob"},
		{"the last link goes", gone, unlinked("a", "blob"), nil, 0, ""},
		{"one of two links goes", []any{pushed("a", "blob"), pushed("b", "blob"), lost("blob", 1)}, unlinked("a", "blob"), nil, 0, "blob"},
		{"the last link expires", gone, &wire.Expire{LinksBefore: minute(1), Links: namesOf("a", "blob")}, nil, 1, ""},
		{"the manifest is put again", largeGone, placed(imageOf("b", "m", nil)), nil, 0, ""},
		{"the manifest is put again, in its entry", largeGone, imageOf("a", "m", nil), nil, 0, ""},
		{"the manifest is put elsewhere, in its entry", largeGone, imageOf("b", "m", nil), nil, 0, "m"},
		{"the manifest is dropped", largeGone, dropped("a", "m"), nil, 0, ""},
		{"the manifest is dropped, its digest linked", append(slices.Clone(largeGone[:2]), pushed("a", "m"), lost("m", 1)), dropped("a", "m"), nil, 0, "m"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r.check(t, row.before, row.op, row.want, row.size)
			for _, name := range []string{"blob", "m"} {
				got, err := isLost(r.db, mustSum(t, sha(name)))
				if err != nil || got != (name == row.marked) {
					t.Errorf("%s lost: %v %v", name, got, err)
				}
			}
		})
	}
}

// TestLostReads: what is lost is not there for clients, in any repository.
func TestLostReads(t *testing.T) {
	r := newReplica(t)
	r.must(
		command(0, levelled(2)),
		command(0, pushed("a", "blob")), command(0, mounted("b", "blob", "a")), command(0, pushed("a", "m")),
		command(0, placed(imageOf("a", "large", []string{"v1"}, "blob"))), command(0, imageOf("a", "m", nil)),
		command(0, lost("blob", 1)), command(0, lost("large", 1)), command(0, lost("m", 1)),
	)
	for _, repo := range []string{"a", "b"} {
		if b, ok, err := r.blob(repo, digest.FromString("blob")); ok || err != nil || b != (Blob{}) {
			t.Errorf("%s: %+v %v %v", repo, b, ok, err)
		}
	}
	if m, ok, err := r.manifest("a", digest.FromString("large")); ok || err != nil || m.Size != 0 {
		t.Errorf("manifest: %+v %v %v", m, ok, err)
	}
	if m, ok, err := r.manifest("a", digest.FromString("m")); !ok || err != nil || string(m.Body) != "m" {
		t.Errorf("a body in its entry cannot be lost: %+v %v %v", m, ok, err)
	}
}

// TestLevelOne: while a member of level 1 remains, nothing is written that it
// would not write too.
func TestLevelOne(t *testing.T) {
	r := newReplica(t)
	newer := joined("2", "two", "k2")
	newer.Level = levelHealing
	r.must(
		command(0, levelled(1)), command(0, newer), command(0, pushed("a", "blob")),
		command(0, imageOf("a", "m", []string{"v1"}, "blob")), command(0, placed(imageOf("a", "n", []string{"v1"}))),
		command(0, parent("a", "index", nil, "m")), command(0, placed(imageOf("a", "n", nil))),
		command(0, untagged("a", "v1")), command(0, dropped("a", "index")),
	)
	if got := r.indexed(t); len(got) != 0 {
		t.Errorf("written: %q", got)
	}
	// The last version of level 1 makes this of the same log.
	if want := "e25c76cf654e11edbfb036f3761afa17eb56a2bcadaec81805825bfaa04c258b"; r.sum() != want {
		t.Errorf("state %s, at level 1 %s", r.sum(), want)
	}
	r.must(command(0, &wire.Member{Id: "1", Removed: true}))
	if got := r.indexed(t); len(got) != 3 {
		t.Errorf("with the last member of level 1 gone: %q", got)
	}
}

// TestLevelTwo: while a member of level 2 remains, and later if nothing of level
// 3 is asked for, the state is what it makes of the log.
func TestLevelTwo(t *testing.T) {
	r := newReplica(t)
	newer := joined("2", "two", "k2")
	newer.Level = levelHealing
	again := command(0, imageOf("a", "m", []string{"v1"}, "blob"))
	again.RequestId = "again"
	r.must(
		command(0, levelled(2)), command(0, newer), command(0, pushed("a", "blob")), again, again,
		command(1, placed(imageOf("a", "n", []string{"v1"}))), command(2, referring(imageOf("a", "s", nil), "m", "sbom")),
		command(3, out("2", true)), command(3, &wire.Policy{UntaggedAfter: 7}), command(4, lost("n", 4)),
		command(5, pushed("b", "idle")), command(6, &wire.Expire{LinksBefore: minute(6), Links: namesOf("b", "idle")}),
	)
	// The last version of level 2 makes this of the same log.
	if want := "5686daa4f49da51884f89b0eb5088034cf39102bd257fe96eb8eb57f2a78369a"; r.sum() != want {
		t.Errorf("state %s, at level 2 %s", r.sum(), want)
	}
}

// indexed returns the keys that level 1 does not know.
func (s *state) indexed(t testing.TB) (keys []string) {
	t.Helper()
	must(t, walkRepos(s.db, nil, string(kindUntagged), func(e repoEntry) (bool, error) {
		keys = append(keys, string(e.key))
		return true, nil
	}))
	must(t, scan(s.db, []byte{keyBytes}, func(k, _ []byte) (bool, error) {
		if kind := k[sumLen(k)]; kind == kindPlaced || kind == kindLost {
			keys = append(keys, string(k))
		}
		return true, nil
	}))
	return keys
}
