package metadata

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"pgregory.net/rapid"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// TestQueries looks at what a few pushes come to.
func TestQueries(t *testing.T) {
	r := newReplica(t)
	r.must(
		command(0, founded(joined("2", "two", "k"), false)),
		command(0, joined("1", "one", "k")),
		command(0, pushed("a", "blob")),
		command(0, imageOf("a", "m", []string{"v1", "v2"}, "blob")),
		command(0, imageOf("a", "n", []string{"v2"}, "blob")),
		command(0, &wire.Manifest{Repo: "b", Digest: sha("big"), MediaType: "t", Size: 1 << 20, Tags: []string{"v1"}}),
	)
	m, ok, err := r.manifest("a", digest.FromString("m"))
	if !ok || err != nil || string(m.Body) != "m" || m.MediaType != v1.MediaTypeImageManifest || m.Size != 1 || m.Digest != digest.FromString("m") {
		t.Errorf("manifest %+v %v %v", m, ok, err)
	}
	m, ok, err = r.manifest("b", digest.FromString("big"))
	if !ok || err != nil || m.Body != nil || m.Size != 1<<20 {
		t.Errorf("placed manifest %+v %v %v", m, ok, err)
	}
	for repo, want := range map[string]bool{"a": true, "b": true, "c": false, "": false} {
		if known, err := r.repoKnown(repo); known != want || err != nil {
			t.Errorf("repository %q: %v %v", repo, known, err)
		}
	}
	for tag, want := range map[string]string{"v1": "m", "v2": "n"} {
		if d, ok, err := r.tag("a", tag); !ok || err != nil || d != digest.FromString(want) {
			t.Errorf("tag %s: %v %v %v", tag, d, ok, err)
		}
	}
	for _, miss := range []struct{ repo, name string }{{"a", "big"}, {"b", "m"}, {"", "m"}} {
		if _, ok, err := r.manifest(miss.repo, digest.FromString(miss.name)); ok || err != nil {
			t.Errorf("%v: %v %v", miss, ok, err)
		}
	}
	if _, ok, err := r.manifest("a", "sha256:zz"); ok || err != nil {
		t.Errorf("no digest: %v %v", ok, err)
	}
	if c := r.cluster(); c != (Cluster{ID: "mesh", Epoch: 3, Replicas: 3}) {
		t.Errorf("cluster %+v", c)
	}
	if ms := r.members(); len(ms) != 2 || ms[0].ID != "1" || ms[1].Name != "two" || ms[0].Weight != 7 || ms[0].Address != "h:1" {
		t.Errorf("members %+v", ms)
	}
	old := joined("1", "one", "k")
	old.Level = 4
	r.must(command(0, old))
	if r.level() != 1 {
		t.Errorf("level %d", r.level())
	}
}

func mustSum(t testing.TB, d string) sum {
	t.Helper()
	s, ok := parseSum(d)
	if !ok {
		t.Fatalf("%q is no digest", d)
	}
	return s
}

// TestDigests: the compact form loses nothing, keeps the order, and is made of
// canonical digests alone.
func TestDigests(t *testing.T) {
	for _, d := range []digest.Digest{digest.SHA256.FromString("x"), digest.SHA512.FromString("x")} {
		if s := mustSum(t, string(d)); sumDigest([]byte(s)) != d || sumLen([]byte(s+"more")) != len(s) {
			t.Errorf("%s became %s", d, sumDigest([]byte(s)))
		}
	}
	if mustSum(t, string(digest.SHA256.FromString("x"))) >= mustSum(t, string(digest.SHA512.FromString("y"))) {
		t.Error("order differs from that of the text")
	}
	for _, bad := range []string{
		"", "sha256", "sha256:", sha("x")[:70], sha("x") + "0", "sha384:" + sha("x")[7:],
		"sha512:" + sha("x")[7:], "sha256:" + string(bytes.ToUpper([]byte(sha("x")[7:]))), "sha256:" + string(make([]byte, 64)),
	} {
		if s, ok := parseSum(bad); ok {
			t.Errorf("%q became %x", bad, s)
		}
	}
}

// pages reads a list whole and in pages.
func pages(t *rapid.T, want []string, read func(Page) ([]string, bool, error)) {
	for _, n := range []int{-1, 1, 2} {
		var got []string
		for more := true; more; {
			p := Page{N: n}
			if len(got) > 0 {
				p.Last = got[len(got)-1]
			}
			items, again, err := read(p)
			if err != nil || n > 0 && len(items) > n || again && len(items) == 0 {
				t.Fatalf("page %+v: %v %v %v", p, items, again, err)
			}
			got, more = append(got, items...), again
		}
		if !slices.Equal(got, want) {
			t.Fatalf("by %d: %v, want %v", n, got, want)
		}
	}
}

// A page ends by its bytes as well: nobody takes an index of gigabytes.
func TestReferrersPageByBytes(t *testing.T) {
	m := newMesh(t)
	n := m.add("z")
	subject := oci.Descriptor{Digest: digest.FromString("subject"), Size: 1}
	const count = 40
	for i := range count {
		body := []byte(fmt.Sprint("referrer ", i))
		must(t, n.PutManifest(t.Context(), Put{Repo: "r", Body: body, Manifest: oci.Manifest{
			MediaType: oci.TypeImage, Digest: digest.FromBytes(body), Size: int64(len(body)), Subject: &subject,
			Annotations: map[string]string{"pad": strings.Repeat("x", 200<<10)},
		}}))
	}
	seen, pages := 0, 0
	for last := ""; ; pages++ {
		l, err := n.Referrers(t.Context(), "r", subject.Digest, "", Page{Last: last, N: -1})
		must(t, err)
		size := 0
		for _, d := range l.Items {
			size += len(d.Annotations["pad"])
		}
		if size > 4<<20 {
			t.Fatalf("a page of %d bytes", size)
		}
		seen += len(l.Items)
		if !l.More {
			break
		}
		last = l.Items[len(l.Items)-1].Digest.String()
	}
	if seen != count || pages == 0 {
		t.Errorf("%d referrers on %d pages, want %d on several", seen, pages+1, count)
	}
}
