package metadata

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// library holds an index of two images with a layer in common, a signature of
// one of them and what signs that, an image that names the common layer in
// another repository, and a blob that no image names.
func library(t *testing.T) *replica {
	r := newReplica(t)
	r.must(
		command(0, levelled(2)),
		command(0, pushed("a", "base")), command(0, pushed("a", "one")), command(0, pushed("a", "two")),
		command(0, pushed("a", "sig")), command(0, pushed("a", "sigsig")), command(0, pushed("a", "loose")),
		command(0, pushed("b", "base")),
		command(0, imageOf("a", "amd", nil, "base", "one")), command(0, imageOf("a", "arm", []string{"arm"}, "base", "two")),
		command(0, placed(parent("a", "index", []string{"v1", "latest"}, "amd", "arm", "absent"))),
		command(0, referring(imageOf("a", "signature", nil, "sig"), "amd", "x")),
		command(0, referring(imageOf("a", "countersign", nil, "sigsig"), "signature", "x")),
		command(0, imageOf("b", "other", []string{"prod"}, "base")),
	)
	return r
}

func TestHomes(t *testing.T) {
	r := library(t)
	for _, row := range []struct {
		blob string
		want string // repository, and then its tags in order
	}{
		{"base", "a arm latest v1 b prod"},
		{"one", "a latest v1"},
		{"two", "a arm latest v1"},
		{"index", "a latest v1"},
		{"arm", "a arm latest v1"},
		{"absent", "a latest v1"},
		{"sig", "a latest v1"},
		{"sigsig", "a latest v1"},
		{"loose", ""},
		{"never heard of", ""},
	} {
		homes := map[string][]string{}
		err := r.homes([]digest.Digest{digest.FromString(row.blob)}, func(i int, repo, tag string) Look {
			if homes[repo] = append(homes[repo], tag); i != 0 {
				t.Errorf("index %d", i)
			}
			return Further
		})
		must(t, err)
		var got []string
		for _, repo := range []string{"a", "b"} {
			tags := homes[repo]
			if len(tags) == 0 {
				continue
			}
			if tags[0] != "" {
				t.Errorf("%s: a tag of %s comes first", row.blob, repo)
			}
			slices.Sort(tags)
			got = append(append(got, repo), slices.Compact(tags)[1:]...)
		}
		if strings.Join(got, " ") != row.want {
			t.Errorf("%s: %v, want %s", row.blob, got, row.want)
		}
	}
	if err := r.homes([]digest.Digest{"sha256:x"}, nil); !errors.Is(err, oci.ErrDigestInvalid) {
		t.Error(err)
	}
}

// TestHomesAnswers: no more is told than is asked for.
func TestHomesAnswers(t *testing.T) {
	r := library(t)
	base, one := digest.FromString("base"), digest.FromString("one")
	for _, row := range []struct {
		name string
		look func(repo, tag string) Look
		want string
	}{
		{"enough of all", func(string, string) Look { return Enough }, "0 a 1 a"},
		{"not this repository", func(repo, _ string) Look {
			if repo == "a" {
				return Elsewhere
			}
			return Further
		}, "0 a 0 b 0 b:prod 1 a"},
		{"one tag of each", func(_, tag string) Look {
			if tag != "" {
				return Elsewhere
			}
			return Further
		}, "0 a 0 a:T 0 b 0 b:prod 1 a 1 a:T"},
		{"one tag at all", func(_, tag string) Look {
			if tag != "" {
				return Enough
			}
			return Further
		}, "0 a 0 a:T 1 a 1 a:T"},
	} {
		var got []string
		must(t, r.homes([]digest.Digest{base, one}, func(i int, repo, tag string) Look {
			text := fmt.Sprint(i, " ", repo)
			if tag != "" && repo == "a" {
				text += ":T" // which comes first is the digests' affair
			} else if tag != "" {
				text += ":" + tag
			}
			got = append(got, text)
			return row.look(repo, tag)
		}))
		if strings.Join(got, " ") != row.want {
			t.Errorf("%s: %v, want %s", row.name, got, row.want)
		}
	}
}

// TestHomesLetGo: whoever is to close or replace the state waits for the homes of
// one digest, not of all that are asked for.
func TestHomesLetGo(t *testing.T) {
	r := library(t)
	closed := make(chan error, 1)
	seen := 0
	err := r.homes([]digest.Digest{digest.FromString("base"), digest.FromString("one")}, func(i int, _, _ string) Look {
		if seen = i; i == 0 {
			go func() { closed <- r.close() }()
			for r.mu.TryRLock() { // until close waits
				r.mu.RUnlock()
				runtime.Gosched()
			}
		}
		return Enough
	})
	if !errors.Is(err, errStateClosed) || seen != 0 {
		t.Errorf("went on to digest %d: %v", seen, err)
	}
	must(t, <-closed)
}

// TestHomesBound: a layer that very many images share costs no more than a
// bounded look, and the answer says so. An index that refers to its own child
// is no endless way.
func TestHomesBound(t *testing.T) {
	r := newReplica(t)
	r.must(command(0, levelled(2)), command(0, pushed("a", "base")))
	for i := range maxHome + 1 {
		r.must(command(0, imageOf("a", fmt.Sprint("m", i), nil, "base")))
	}
	last := ""
	see := func(_ int, _, tag string) Look { last = tag; return Further }
	must(t, r.homes([]digest.Digest{digest.FromString("base")}, see))
	if last != AnyTag {
		t.Errorf("of %d images the last tag is %q", maxHome+1, last)
	}
	loop := referring(parent("b", "loop", []string{"v1"}, "child"), "child", "x")
	r.must(command(0, pushed("b", "layer")), command(0, imageOf("b", "child", nil, "layer")), command(0, loop))
	must(t, r.homes([]digest.Digest{digest.FromString("layer")}, see))
	if last != "v1" {
		t.Errorf("the last tag is %q", last)
	}
	whole, err := r.eachPart("b", digest.FromString("loop"), func([]digest.Digest) error { return nil })
	if !whole || err != nil {
		t.Error(whole, err)
	}
}

func TestParts(t *testing.T) {
	r := library(t)
	for _, row := range []struct{ repo, manifest, want string }{
		{"a", "index", "base index one sig sigsig two"},
		{"a", "amd", "base one sig sigsig"},
		{"a", "arm", "base two"},
		{"a", "signature", "sig sigsig"},
		{"b", "other", "base"},
		{"b", "amd", ""},
	} {
		var got []string
		whole, err := r.eachPart(row.repo, digest.FromString(row.manifest), func(blobs []digest.Digest) error {
			for _, d := range blobs {
				i := slices.IndexFunc([]string{"base", "index", "one", "sig", "sigsig", "two"}, func(s string) bool { return digest.FromString(s) == d })
				if i < 0 {
					t.Fatalf("%s is no blob that somebody must hold", d)
				}
				got = append(got, []string{"base", "index", "one", "sig", "sigsig", "two"}[i])
			}
			return nil
		})
		must(t, err)
		slices.Sort(got)
		if got = slices.Compact(got); !whole || strings.Join(got, " ") != row.want {
			t.Errorf("%s of %s: %v, want %s", row.manifest, row.repo, got, row.want)
		}
	}
	stop := errors.New("stop")
	if whole, err := r.eachPart("a", digest.FromString("index"), func([]digest.Digest) error { return stop }); whole || !errors.Is(err, stop) {
		t.Error(whole, err)
	}
	if _, err := r.eachPart("a", "x", nil); !errors.Is(err, oci.ErrDigestInvalid) {
		t.Error(err)
	}
}

func TestImages(t *testing.T) {
	r := library(t)
	tags, n := map[string]int{}, 0
	count := func(_ string, _ digest.Digest, on []string) bool {
		n++
		for _, tag := range on {
			tags[tag]++
		}
		return true
	}
	only := func(want string) func(string) bool { return func(repo string) bool { return repo == want } }
	must(t, r.images(only("a"), count))
	if n != 5 || len(tags) != 3 || tags["v1"] != 1 || tags["latest"] != 1 || tags["arm"] != 1 {
		t.Errorf("%d manifests, tags %v", n, tags)
	}
	n = 0
	must(t, r.images(nil, func(string, digest.Digest, []string) bool { n++; return false }))
	must(t, r.images(only("none"), count))
	if n != 1 {
		t.Errorf("%d manifests", n)
	}
	// More than a page.
	for i := range pageSize + 1 {
		r.must(command(0, imageOf("many", fmt.Sprint(i), nil)))
	}
	n = 0
	must(t, r.images(only("many"), count))
	if n != pageSize+1 {
		t.Errorf("%d manifests", n)
	}
	for i := range pageSize + 1 {
		r.must(command(0, imageOf(fmt.Sprint("repo", i), "m", nil)))
	}
	n = 0
	must(t, r.images(func(repo string) bool { return strings.HasPrefix(repo, "repo") }, count))
	if n != pageSize+1 {
		t.Errorf("%d manifests of as many repositories", n)
	}
}

// TestOnNamed: whoever follows what is named hears of each manifest that is
// stored or tagged, of nothing that was refused, and of changes that are more
// than manifests.
func TestOnNamed(t *testing.T) {
	r := newReplica(t)
	var heard []string
	r.onNamed = func(repo string, d digest.Digest) {
		for _, name := range []string{"m", "n"} {
			if d == digest.FromString(name) {
				repo += "@" + name
			}
		}
		heard = append(heard, repo)
	}
	r.must(command(0, levelled(3)), command(0, imageOf("a", "m", nil)), command(0, imageOf("a", "m", []string{"v1"})))
	r.do(command(0, imageOf("b", "n", nil, "missing")))
	r.do(command(0, untagged("a", "v1")), command(0, changes(setTo("k", "v"))), command(0, imageOf("c", "n", nil)))
	if want := []string{"a@m", "a@m", "c@n", ""}; !slices.Equal(heard, want) {
		t.Errorf("heard %q, want %q", heard, want)
	}
	from := newReplica(t)
	from.must(command(0, levelled(3)), command(0, imageOf("a", "m", nil)), command(0, &wire.Link{Repo: "a", Digest: sha("x")}))
	to := newReplica(t)
	told := 0
	to.onNamed = func(repo string, _ digest.Digest) {
		if repo == "" {
			told++
		}
	}
	must(t, to.restore(from.stream()))
	if told != 1 {
		t.Errorf("told %d times of a snapshot", told)
	}
}
