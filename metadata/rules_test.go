package metadata

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// TestRules has a row for each rule of Apply: what leads up to a command, and
// what it comes to.
func TestRules(t *testing.T) {
	all := []string{"v1"}
	last := func(repo string, tags []string) *wire.Manifest {
		m := imageOf(repo, "m", tags)
		m.Digest = "sha256:" + strings.Repeat("f", 64)
		return m
	}
	misdigest := func(m *wire.Manifest) *wire.Manifest { m.Digest = "sha256:XYZ"; return m }
	r := newReplica(t)
	unlevelled, foundless := joined("2", "m", "l"), joined("1", "n", "k")
	unlevelled.Level, foundless.Cluster = 0, &wire.Cluster{Replicas: 3}
	for _, row := range []struct {
		name   string
		before []any
		op     any
		want   *oci.Error
		size   int64
	}{
		{"link", nil, pushed("a", "blob"), nil, 4},
		{"link again", []any{pushed("a", "blob")}, pushed("a", "blob"), nil, 4},
		{"link keeps its size", []any{pushed("a", "blob")}, &wire.Link{Repo: "a", Digest: sha("blob"), Size: 9}, nil, 4},
		{"link takes the size of another repository's", []any{pushed("a", "blob")}, &wire.Link{Repo: "b", Digest: sha("blob"), Size: 9}, nil, 4},
		{"link of no repository", nil, pushed("", "blob"), oci.ErrNameInvalid, 0},
		{"link of a name with a zero byte", nil, pushed("a\x00l", "blob"), oci.ErrNameInvalid, 0},
		{"link of no digest", nil, &wire.Link{Repo: "a", Digest: "sha256:abc"}, oci.ErrDigestInvalid, 0},
		{"link of less than nothing", nil, &wire.Link{Repo: "a", Digest: sha("x"), Size: -1}, oci.ErrSizeInvalid, 0},
		{"mount", []any{pushed("a", "blob")}, mounted("b", "blob", "a"), nil, 4},
		{"mount from the wrong place", []any{pushed("a", "blob")}, mounted("b", "blob", "c"), oci.ErrBlobUnknown, 0},
		{"mount from the wrong place, though it is here", []any{pushed("b", "blob"), pushed("a", "other")}, mounted("b", "blob", "a"), oci.ErrBlobUnknown, 0},
		{"mount from anywhere", []any{pushed("a", "blob")}, mounted("b", "blob", ""), nil, 4},
		{"mount of nothing", []any{pushed("a", "blob")}, mounted("b", "other", ""), oci.ErrBlobUnknown, 0},
		{"mount of what was dropped", []any{pushed("a", "blob"), unlinked("a", "blob")}, mounted("b", "blob", ""), oci.ErrBlobUnknown, 0},
		{"unlink", []any{pushed("a", "blob")}, unlinked("a", "blob"), nil, 0},
		{"unlink twice", []any{pushed("a", "blob"), unlinked("a", "blob")}, unlinked("a", "blob"), oci.ErrBlobUnknown, 0},
		{"unlink elsewhere", []any{pushed("a", "blob")}, unlinked("b", "blob"), oci.ErrBlobUnknown, 0},
		{"manifest", []any{pushed("a", "blob")}, imageOf("a", "m", all, "blob"), nil, 0},
		{"manifest without its blob", nil, imageOf("a", "m", all, "blob"), oci.ErrManifestBlobUnknown, 0},
		{"manifest with its blob elsewhere", []any{pushed("b", "blob")}, imageOf("a", "m", all, "blob"), oci.ErrManifestBlobUnknown, 0},
		{"manifest without its blob, sparse", []any{founded(joined("1", "n", "k"), true)}, imageOf("a", "m", all, "blob"), nil, 0},
		{"manifest without its child", nil, &wire.Manifest{Repo: "a", Digest: sha("m"), Children: []string{sha("c")}}, nil, 0},
		{"manifest with a bad tag", nil, imageOf("a", "m", []string{"x", ""}), oci.ErrTagInvalid, 0},
		{"manifest with a bad digest", nil, misdigest(imageOf("a", "m", all)), oci.ErrDigestInvalid, 0},
		{"manifest with a bad blob", nil, &wire.Manifest{Repo: "a", Digest: sha("m"), Blobs: []string{"md5:0"}}, oci.ErrDigestInvalid, 0},
		{"manifest with a bad subject", nil, &wire.Manifest{Repo: "a", Digest: sha("m"), Subject: "s"}, oci.ErrDigestInvalid, 0},
		{"immutable tag", nil, fixed(imageOf("a", "m", all), "v1"), nil, 0},
		{"immutable tag again", []any{imageOf("a", "m", all)}, fixed(imageOf("a", "m", all), "v1"), nil, 0},
		{"immutable tag of another", []any{imageOf("a", "m", all)}, fixed(imageOf("a", "n", all), "v1"), oci.ErrDenied, 0},
		{"immutable tag of another, beside a new one", []any{imageOf("a", "m", all)}, fixed(imageOf("a", "n", []string{"v0", "v1"}), "v0", "v1"), oci.ErrDenied, 0},
		{"immutable tag beside one that moves", []any{imageOf("a", "m", []string{"latest"})}, fixed(imageOf("a", "n", []string{"v1", "latest"}), "v1"), nil, 0},
		{"immutable tag elsewhere", []any{imageOf("b", "m", all)}, fixed(imageOf("a", "n", all), "v1"), nil, 0},
		{"immutable tag that was dropped", []any{imageOf("a", "m", all), untagged("a", "v1")}, fixed(imageOf("a", "n", all), "v1"), nil, 0},
		{"immutable tag that is none", nil, fixed(imageOf("a", "m", all), ""), oci.ErrTagInvalid, 0},
		{"untag", []any{imageOf("a", "m", all)}, untagged("a", "v1"), nil, 0},
		{"untag nothing", []any{imageOf("a", "m", all)}, untagged("a", "v2"), oci.ErrManifestUnknown, 0},
		{"untag twice", []any{imageOf("a", "m", all), untagged("a", "v1")}, untagged("a", "v1"), oci.ErrManifestUnknown, 0},
		{"unmanifest", []any{imageOf("a", "m", all)}, dropped("a", "m"), nil, 0},
		{"unmanifest with these tags", []any{imageOf("a", "m", []string{"v2", "v1"})}, droppedWith("a", "m", "v1", "v2"), nil, 0},
		{"unmanifest with no tags", []any{imageOf("a", "m", nil)}, droppedWith("a", "m"), nil, 0},
		{"unmanifest with these tags and another", []any{imageOf("a", "m", []string{"v1", "v2"})}, droppedWith("a", "m", "v1"), oci.ErrConflict, 0},
		{"unmanifest with fewer tags by now", []any{imageOf("a", "m", []string{"v1", "v2"}), untagged("a", "v2")}, droppedWith("a", "m", "v1", "v2"), oci.ErrConflict, 0},
		{"unmanifest with no tags but one by now", []any{imageOf("a", "m", all)}, droppedWith("a", "m"), oci.ErrConflict, 0},
		{"unmanifest with tags of nothing", nil, droppedWith("a", "m", "v1"), oci.ErrManifestUnknown, 0},
		{"unmanifest takes its tags", []any{imageOf("a", "m", all), dropped("a", "m")}, untagged("a", "v1"), oci.ErrManifestUnknown, 0},
		{"unmanifest leaves moved tags", []any{imageOf("a", "m", all), imageOf("a", "n", all), dropped("a", "m")}, untagged("a", "v1"), nil, 0},
		{"unmanifest takes its tags, at the end of all digests", []any{last("a", all), &wire.Unmanifest{Repo: "a", Digest: last("a", all).Digest}}, untagged("a", "v1"), oci.ErrManifestUnknown, 0},
		{"unmanifest nothing", []any{imageOf("b", "m", all)}, dropped("a", "m"), oci.ErrManifestUnknown, 0},
		{"found", nil, founded(joined("1", "n", "k"), false), nil, 0},
		{"found twice", []any{founded(joined("1", "n", "k"), false)}, founded(joined("2", "m", "k"), false), oci.ErrDenied, 0},
		{"found without an id", nil, foundless, oci.ErrDenied, 0},
		{"join", []any{founded(joined("1", "n", "k"), false)}, joined("2", "m", "l"), nil, 0},
		{"join at no level", nil, unlevelled, oci.ErrDenied, 0},
		{"update to no level", []any{joined("2", "m", "l")}, unlevelled, oci.ErrDenied, 0},
		{"join with half a key", nil, &wire.Member{Id: "2", Name: "m", Key: make([]byte, 16), Level: 1}, oci.ErrDenied, 0},
		{"join without a key", nil, &wire.Member{Id: "2", Name: "m", Level: 1}, oci.ErrDenied, 0},
		{"join without a name", nil, joined("2", "", "l"), oci.ErrDenied, 0},
		{"join under a taken name", []any{joined("1", "n", "k")}, joined("2", "n", "l"), oci.ErrDenied, 0},
		{"join with another key", []any{joined("1", "n", "k")}, joined("1", "n", "l"), oci.ErrDenied, 0},
		{"update", []any{joined("1", "n", "k")}, joined("1", "other", "k"), nil, 0},
		{"update to a taken name", []any{joined("1", "n", "k"), joined("2", "m", "l")}, joined("2", "n", "l"), oci.ErrDenied, 0},
		{"remove", []any{joined("1", "n", "k")}, &wire.Member{Id: "1", Removed: true}, nil, 0},
		{"return of the removed", []any{joined("1", "n", "k"), &wire.Member{Id: "1", Removed: true}}, joined("1", "n", "k"), oci.ErrDenied, 0},
		{"name of the removed", []any{joined("1", "n", "k"), &wire.Member{Id: "1", Removed: true}}, joined("2", "n", "k"), nil, 0},
		{"join at a level below all others'", []any{levelled(2)}, joined("2", "m", "l"), oci.ErrDenied, 0},
		{"join at a level below some others'", []any{levelled(1), joined("2", "m", "l")}, joined("3", "o", "l"), nil, 0},
		{"fall back to a level below all others'", []any{levelled(2)}, joined("1", "n1", "k1"), oci.ErrDenied, 0},
		{"policy", []any{levelled(2)}, &wire.Policy{UntaggedAfter: 1}, nil, 0},
		{"policy without a mesh", nil, &wire.Policy{UntaggedAfter: 1}, oci.ErrDenied, 0},
		{"policy of less than nothing", []any{levelled(2)}, &wire.Policy{UntaggedAfter: -1}, oci.ErrDenied, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			r.check(t, row.before, row.op, row.want, row.size)
		})
	}
}

// check applies what leads up to op, and then op, to an empty state.
func (r *replica) check(t *testing.T, before []any, op any, want *oci.Error, size int64) {
	r.wipe()
	for _, op := range before {
		r.must(command(0, op))
	}
	was := r.sum()
	got := r.do(command(0, op))[0]
	sameError(t, "result", got.err, want)
	if got.size != size {
		t.Errorf("size %d, want %d", got.size, size)
	}
	if r.applied() != r.last {
		t.Errorf("applied %d of %d", r.applied(), r.last)
	}
	if want == nil {
		return
	}
	// A refusal leaves nothing behind but its place in the log.
	r.at.index, r.at.term = r.last-1, 1+(r.last-1)/10
	if r.last == 1 {
		r.at = progress{}
		r.db.Delete([]byte{keyProgress}, nil)
	} else {
		r.db.Set([]byte{keyProgress}, r.at.encode(), nil)
	}
	if r.sum() != was {
		t.Error("a refused command has changed the state")
	}
}

// TestDenied: a node that may not join is told why.
func TestDenied(t *testing.T) {
	r := newReplica(t)
	r.must(
		command(0, founded(joined("1", "n", "k"), false)),
		command(0, joined("2", "m", "k")), command(0, &wire.Member{Id: "2", Removed: true}),
	)
	for _, row := range []struct {
		op   *wire.Member
		says string
	}{
		{joined("3", "n", "k"), "name taken"},
		{joined("1", "n", "other"), "another key"},
		{joined("2", "m", "k"), "removed"},
		{founded(joined("3", "o", "k"), false), "founded before"},
	} {
		if err := r.do(command(0, row.op))[0].err; err == nil || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%v: %v", row.op, err)
		}
	}
}

// TestDetail: a client learns which blobs are missing, and that is bounded.
func TestDetail(t *testing.T) {
	r := newReplica(t)
	r.must(command(0, pushed("a", "b")))
	got := r.do(command(0, imageOf("a", "m", nil, "b", "c", "c", "d")))[0]
	sameError(t, "result", got.err, oci.ErrManifestBlobUnknown)
	if missing, ok := got.err.Detail.([]string); !ok || !slices.Equal(missing, []string{sha("c"), sha("d")}) {
		t.Errorf("detail %v", got.err.Detail)
	}
	var many []string
	for i := range 1000 {
		many = append(many, fmt.Sprint("blob", i))
	}
	got = r.do(command(0, imageOf("a", "m", nil, many...)))[0]
	if missing, ok := got.err.Detail.([]string); !ok || len(missing) != maxMissing {
		t.Errorf("detail %v", got.err.Detail)
	}
}

// TestReceipts: a request is applied once, and remembered for its time.
func TestReceipts(t *testing.T) {
	r := newReplica(t)
	once := func(id string, minutes int, op any) *wire.Command {
		c := command(minutes, op)
		c.RequestId = id
		return c
	}
	first := r.do(
		once("a", 0, pushed("repo", "blob")),
		once("b", 0, unlinked("repo", "blob")),
		once("a", 0, pushed("repo", "blob")), // in the same batch
	)
	if first[2].err != nil || first[2].size != 4 {
		t.Errorf("the retry got %v, %d", first[2].err, first[2].size)
	}
	if _, ok, _ := r.blob("repo", digest.FromString("blob")); ok {
		t.Error("the retry was applied")
	}
	// A refusal is an answer too, even when it would go well by now.
	sameError(t, "refused", r.do(once("c", 1, mounted("repo", "x", "")))[0].err, oci.ErrBlobUnknown)
	r.must(command(1, pushed("other", "x")))
	sameError(t, "retried", r.do(once("c", 15, mounted("repo", "x", "")))[0].err, oci.ErrBlobUnknown)
	// A leader with a slow clock ages nothing, and makes nothing younger.
	sameError(t, "slow clock", r.do(once("c", -99, mounted("repo", "x", "")))[0].err, oci.ErrBlobUnknown)
	if r.receipts.len() != 3 {
		t.Errorf("%d receipts, want 3", r.receipts.len())
	}
	// Expired ones go, two at a time, and never that of the request at hand.
	r.must(once("a", 32, pushed("repo", "blob")))
	if _, ok, _ := r.blob("repo", digest.FromString("blob")); ok || r.receipts.len() != 3 {
		t.Errorf("the retry was applied after the clock jumped; %d receipts", r.receipts.len())
	}
	r.must(command(32, pushed("other", "x")))
	if r.receipts.len() != 1 {
		t.Errorf("%d receipts, want that of c", r.receipts.len())
	}
	r.must(command(32, pushed("other", "x")), once("c", 32, mounted("repo", "x", "")))
	if r.receipts.len() != 1 {
		t.Errorf("%d receipts, want the new one", r.receipts.len())
	}
	// They are part of the state.
	if err := r.close(); err != nil {
		t.Fatal(err)
	}
	again := openReplica(t, r.dir)
	again.must(command(32, unlinked("repo", "x")))
	again.must(once("c", 32, mounted("repo", "x", "")))
	if _, ok, _ := again.blob("repo", digest.FromString("x")); ok {
		t.Error("the retry was applied after a restart")
	}
	sameError(t, "long id", again.do(once(string(make([]byte, maxID+1)), 0, pushed("a", "b")))[0].err, oci.ErrDenied)
}

// TestReceiptsBounded: however many requests come in their time, the table has
// an end, and the oldest go first.
func TestReceiptsBounded(t *testing.T) {
	r := newReplica(t)
	const before, extra = 3, 5
	many := func(from, n int) {
		for i := range n {
			c := command(0, untagged("a", "x"))
			c.RequestId = fmt.Sprint(from + i)
			r.do(c)
		}
	}
	many(0, before)
	for i := range maxReceipts - before - 1 { // applying so many takes a while
		r.receipts.push(request{id: fmt.Sprint("filler", i), at: epoch})
	}
	many(before, extra)
	if r.receipts.len() != maxReceipts || r.receipts.oldest().id != "filler1" {
		t.Errorf("%d receipts, the oldest %q", r.receipts.len(), r.receipts.oldest().id)
	}
	again, err := loadReceipts(r.db)
	if err != nil {
		t.Fatal(err)
	}
	if want := r.receipts.requests[len(r.receipts.requests)-extra:]; !slices.Equal(again.requests, want) {
		t.Errorf("a restart finds %v, want %v", again.requests, want)
	}
}

// TestAges: what HEAD is told of a link that nothing uses.
func TestAges(t *testing.T) {
	const hour = 60
	r := newReplica(t)
	d := digest.FromString("blob")
	stale := func(want bool, when string) {
		t.Helper()
		b, ok, err := r.blob("a", d)
		if !ok || err != nil || b.Stale != want || b.Size != 4 {
			t.Errorf("%s: %+v %v %v", when, b, ok, err)
		}
	}
	tick := func(minutes int) { r.must(command(minutes, pushed("other", "x"))) }

	r.must(command(0, pushed("a", "blob")))
	tick(12 * hour)
	stale(false, "after 12 h")
	tick(12*hour + 1)
	stale(true, "after more than 12 h")
	r.must(command(13*hour, pushed("a", "blob")))
	stale(false, "offered again")
	r.must(command(13*hour, imageOf("a", "m", nil, "blob")), command(14*hour, imageOf("a", "n", nil, "blob")))
	tick(48 * hour)
	stale(false, "used by two manifests")
	r.must(command(49*hour, dropped("a", "m")))
	tick(72 * hour)
	stale(false, "used by one manifest")
	r.must(command(73*hour, dropped("a", "n")))
	stale(false, "just dropped")
	tick(85*hour + 1)
	stale(true, "12 h after the last drop")
}

// TestPutAgain: the same bytes put again keep the body that is there.
func TestPutAgain(t *testing.T) {
	r := newReplica(t)
	r.must(command(0, pushed("a", "blob")), command(0, imageOf("a", "m", []string{"v1"}, "blob")))
	again := imageOf("a", "m", []string{"v2"}, "blob")
	again.Body = nil
	r.must(command(5, again))
	m, ok, err := r.manifest("a", digest.FromString("m"))
	if !ok || err != nil || string(m.Body) != "m" {
		t.Errorf("manifest %+v %v %v", m, ok, err)
	}
	if tags, _, err := r.tags("a", Page{N: -1}); err != nil || !slices.Equal(tags, []string{"v1", "v2"}) {
		t.Errorf("tags %v %v", tags, err)
	}
}
