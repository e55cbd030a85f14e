package metadata

import (
	"crypto/sha512"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// TestWanted: each digest whose bytes are needed comes once, in the order of
// keys, however the list is cut into pages.
func TestWanted(t *testing.T) {
	r := newReplica(t)
	long := fmt.Sprintf("sha512:%x", sha512.Sum512([]byte("long")))
	r.must(
		command(0, levelled(2)),
		command(0, pushed("a", "one")), command(0, mounted("b", "one", "a")), command(0, mounted("c", "one", "a")),
		command(0, pushed("b", "four")), command(0, pushed("a", "lost")), command(0, pushed("a", "gone")),
		command(0, &wire.Link{Repo: "a", Digest: long, Size: 7}),
		command(0, imageOf("a", "small", []string{"v1"}, "one", "gone")), command(0, unlinked("a", "gone")),
		command(0, placed(imageOf("a", "large", nil, "one"))), command(0, placed(imageOf("b", "large", nil))),
		command(0, placed(imageOf("a", "both", nil))), command(0, pushed("b", "both")),
		command(0, placed(imageOf("a", "no more", nil))), command(0, dropped("a", "no more")),
		command(0, lost("lost", 1)), command(0, lost("large", 1)),
	)
	var want []Want
	for _, name := range []string{"one", "four", "lost", "large", "both"} {
		want = append(want, Want{digest.FromString(name), int64(len(name)), name == "lost" || name == "large"})
	}
	slices.SortFunc(want, func(a, b Want) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	want = append(want, Want{digest.Digest(long), 7, false}) // sha512 after sha256
	for _, size := range []int{1, 2, len(want), 100} {
		var got []Want
		for last := digest.Digest(""); ; last = got[len(got)-1].Digest {
			page, err := r.wanted(last, size)
			must(t, err)
			if len(page) > size {
				t.Fatalf("a page of %d", len(page))
			}
			if got = append(got, page...); len(page) == 0 {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("in pages of %d: %v, want %v", size, got, want)
		}
	}
	// A place to go on from need not be one that is wanted.
	if got, err := r.wanted(want[0].Digest[:len(want[0].Digest)-1]+"f", 1); err != nil || len(got) != 1 {
		t.Errorf("%v %v", got, err)
	}
	if _, err := r.wanted("sha256:x", 1); !errors.Is(err, oci.ErrDigestInvalid) {
		t.Error(err)
	}
	got, err := r.referenced([]digest.Digest{
		digest.FromString("one"), digest.FromString("never"), digest.FromString("gone"), digest.FromString("small"),
		digest.Digest(long), digest.FromString("no more"), digest.FromString("lost"),
	})
	if err != nil || !slices.Equal(got, []bool{true, false, true, true, true, false, true}) {
		t.Errorf("referenced: %v %v", got, err)
	}
	if _, err := r.referenced([]digest.Digest{"sha256:x"}); !errors.Is(err, oci.ErrDigestInvalid) {
		t.Error(err)
	}
}
