package metadata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// replica is a state with a log to feed it.
type replica struct {
	*state
	t     testing.TB
	last  uint64 // index of the newest entry
	fatal []error
}

// epoch is later than any clock, so that ages depend on commands alone.
var epoch = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()

func newReplica(t testing.TB) *replica { return openReplica(t, t.TempDir()) }

func openReplica(t testing.TB, dir string) *replica {
	t.Helper()
	r := &replica{t: t}
	s, err := openState(dir, slog.New(slog.DiscardHandler), func(err error) { r.fatal = append(r.fatal, err) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close() })
	r.state, r.last = s, s.applied()
	return r
}

// entry makes a log entry of a command.
func entry(t testing.TB, index uint64, cmd *wire.Command) *raft.Log {
	t.Helper()
	b, err := proto.Marshal(cmd)
	if err != nil {
		t.Fatal(err)
	}
	return &raft.Log{Index: index, Term: 1 + index/10, Type: raft.LogCommand, Data: b}
}

// do applies commands in one batch and returns their results.
func (r *replica) do(cmds ...*wire.Command) []*applyResult {
	r.t.Helper()
	logs := make([]*raft.Log, len(cmds))
	for i, c := range cmds {
		r.last++
		logs[i] = entry(r.t, r.last, c)
	}
	results := make([]*applyResult, len(cmds))
	for i, res := range r.ApplyBatch(logs) {
		results[i] = res.(*applyResult)
	}
	return results
}

// must applies commands that no rule refuses.
func (r *replica) must(cmds ...*wire.Command) {
	r.t.Helper()
	for i, res := range r.do(cmds...) {
		if res.err != nil {
			r.t.Fatalf("%v: %v", cmds[i], res.err)
		}
	}
}

func (r *replica) sum() string {
	r.t.Helper()
	h, err := r.hash()
	if err != nil {
		r.t.Fatal(err)
	}
	return fmt.Sprintf("%x", h)
}

func sha(s string) string { return string(digest.FromString(s)) }

func command(minutes int, op any) *wire.Command {
	c := &wire.Command{Version: 1, Now: epoch + int64(minutes)*int64(time.Minute)}
	switch op := op.(type) {
	case *wire.Link:
		c.Op = &wire.Command_Link{Link: op}
	case *wire.Unlink:
		c.Op = &wire.Command_Unlink{Unlink: op}
	case *wire.Manifest:
		c.Op = &wire.Command_Manifest{Manifest: op}
	case *wire.Untag:
		c.Op = &wire.Command_Untag{Untag: op}
	case *wire.Unmanifest:
		c.Op = &wire.Command_Unmanifest{Unmanifest: op}
	case *wire.Member:
		c.Op = &wire.Command_Member{Member: op}
	}
	return c
}

func pushed(repo, blob string) *wire.Link {
	return &wire.Link{Repo: repo, Digest: sha(blob), Size: int64(len(blob))}
}

func mounted(repo, blob, from string) *wire.Link {
	return &wire.Link{Repo: repo, Digest: sha(blob), Mount: true, From: from}
}

func unlinked(repo, blob string) *wire.Unlink { return &wire.Unlink{Repo: repo, Digest: sha(blob)} }

// image is a manifest whose digest is made from its name.
func imageOf(repo, name string, tags []string, blobs ...string) *wire.Manifest {
	m := &wire.Manifest{
		Repo: repo, Tags: tags, Digest: sha(name), MediaType: v1.MediaTypeImageManifest,
		Size: int64(len(name)), Body: []byte(name),
	}
	for _, b := range blobs {
		m.Blobs = append(m.Blobs, sha(b))
	}
	return m
}

func referring(m *wire.Manifest, subject, artifactType string) *wire.Manifest {
	m.Subject, m.ArtifactType = sha(subject), artifactType
	m.Annotations = map[string]string{"b": "2", "a": "1", "c": m.Digest}
	return m
}

func untagged(repo, tag string) *wire.Untag { return &wire.Untag{Repo: repo, Tag: tag} }

func dropped(repo, name string) *wire.Unmanifest {
	return &wire.Unmanifest{Repo: repo, Digest: sha(name)}
}

func joined(id, name, key string) *wire.Member {
	return &wire.Member{Id: id, Name: name, Key: []byte(key), Zone: "z", Weight: 7, Level: 1, Address: "h:1"}
}

func founded(m *wire.Member, sparse bool) *wire.Member {
	m.Cluster = &wire.Cluster{Id: "mesh", Epoch: 3, Replicas: 3, AllowSparse: sparse}
	return m
}

func sameError(t testing.TB, what string, got, want *oci.Error) {
	t.Helper()
	if (got == nil) != (want == nil) || got != nil && !got.Is(want) {
		t.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

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
		{"untag", []any{imageOf("a", "m", all)}, untagged("a", "v1"), nil, 0},
		{"untag nothing", []any{imageOf("a", "m", all)}, untagged("a", "v2"), oci.ErrManifestUnknown, 0},
		{"untag twice", []any{imageOf("a", "m", all), untagged("a", "v1")}, untagged("a", "v1"), oci.ErrManifestUnknown, 0},
		{"unmanifest", []any{imageOf("a", "m", all)}, dropped("a", "m"), nil, 0},
		{"unmanifest takes its tags", []any{imageOf("a", "m", all), dropped("a", "m")}, untagged("a", "v1"), oci.ErrManifestUnknown, 0},
		{"unmanifest leaves moved tags", []any{imageOf("a", "m", all), imageOf("a", "n", all), dropped("a", "m")}, untagged("a", "v1"), nil, 0},
		{"unmanifest takes its tags, at the end of all digests", []any{last("a", all), &wire.Unmanifest{Repo: "a", Digest: last("a", all).Digest}}, untagged("a", "v1"), oci.ErrManifestUnknown, 0},
		{"unmanifest nothing", []any{imageOf("b", "m", all)}, dropped("a", "m"), oci.ErrManifestUnknown, 0},
		{"found", nil, founded(joined("1", "n", "k"), false), nil, 0},
		{"found twice", []any{founded(joined("1", "n", "k"), false)}, founded(joined("2", "m", "k"), false), oci.ErrDenied, 0},
		{"found without an id", nil, &wire.Member{Id: "1", Name: "n", Cluster: &wire.Cluster{Replicas: 3}}, oci.ErrDenied, 0},
		{"join", []any{founded(joined("1", "n", "k"), false)}, joined("2", "m", "l"), nil, 0},
		{"join without a name", nil, joined("2", "", "l"), oci.ErrDenied, 0},
		{"join under a taken name", []any{joined("1", "n", "k")}, joined("2", "n", "l"), oci.ErrDenied, 0},
		{"join with another key", []any{joined("1", "n", "k")}, joined("1", "n", "l"), oci.ErrDenied, 0},
		{"update", []any{joined("1", "n", "k")}, joined("1", "other", "k"), nil, 0},
		{"update to a taken name", []any{joined("1", "n", "k"), joined("2", "m", "l")}, joined("2", "n", "l"), oci.ErrDenied, 0},
		{"remove", []any{joined("1", "n", "k")}, &wire.Member{Id: "1", Removed: true}, nil, 0},
		{"return of the removed", []any{joined("1", "n", "k"), &wire.Member{Id: "1", Removed: true}}, joined("1", "n", "k"), oci.ErrDenied, 0},
		{"name of the removed", []any{joined("1", "n", "k"), &wire.Member{Id: "1", Removed: true}}, joined("2", "n", "k"), nil, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newReplica(t)
			for _, op := range row.before {
				r.must(command(0, op))
			}
			before := r.sum()
			got := r.do(command(0, row.op))[0]
			sameError(t, "result", got.err, row.want)
			if got.size != row.size {
				t.Errorf("size %d, want %d", got.size, row.size)
			}
			if r.applied() != r.last {
				t.Errorf("applied %d of %d", r.applied(), r.last)
			}
			if row.want != nil {
				// A refusal leaves nothing behind but its place in the log.
				r.at.index, r.at.term = r.last-1, 1+(r.last-1)/10
				if r.last == 1 {
					r.at = progress{}
					r.db.Delete([]byte{keyProgress}, nil)
				} else {
					r.db.Set([]byte{keyProgress}, r.at.encode(), nil)
				}
				if r.sum() != before {
					t.Error("a refused command has changed the state")
				}
			}
		})
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
	r.must(once("c", 17, mounted("repo", "x", "")))
	if r.receipts.len() != 1 {
		t.Errorf("%d receipts, want the new one", r.receipts.len())
	}
	// They are part of the state.
	if err := r.close(); err != nil {
		t.Fatal(err)
	}
	again := openReplica(t, r.dir)
	again.must(command(17, unlinked("repo", "x")))
	again.must(once("c", 17, mounted("repo", "x", "")))
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

// TestPutAgain: the same bytes put again keep the time of their first push and
// the body that is there.
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
	_, err = get(r.db, repoKey("a", kindManifest, string(mustSum(t, sha("m")))), func(v []byte) error {
		m, err := decodeManifest(v)
		if m.pushed != epoch {
			t.Errorf("pushed %d after the first push", m.pushed-epoch)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if tags, _, err := r.tags("a", Page{N: -1}); err != nil || !slices.Equal(tags, []string{"v1", "v2"}) {
		t.Errorf("tags %v %v", tags, err)
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

// TestSkip: entries that the state holds are not applied again.
func TestSkip(t *testing.T) {
	r := newReplica(t)
	logs := []*raft.Log{
		entry(t, 3, command(0, pushed("a", "blob"))),
		{Index: 4, Term: 1, Type: raft.LogConfiguration, Data: []byte("raft's own")},
		entry(t, 5, command(0, unlinked("a", "blob"))),
	}
	for _, res := range r.ApplyBatch(logs) {
		if res.(*applyResult).err != nil {
			t.Error(res.(*applyResult).err)
		}
	}
	want := r.sum()
	for _, res := range r.ApplyBatch(logs) {
		if res.(*applyResult).err != nil {
			t.Errorf("replayed: %v", res.(*applyResult).err)
		}
	}
	if r.applied() != 5 || r.sum() != want {
		t.Errorf("applied %d, changed %v", r.applied(), r.sum() != want)
	}
	r.Apply(&raft.Log{Index: 9, Type: raft.LogConfiguration})
	if r.applied() != 5 {
		t.Error("raft's own entry counts as a command")
	}
}

// TestUnknown: an entry that this version does not know ends the state at the
// entry before it, for good.
func TestUnknown(t *testing.T) {
	for name, data := range map[string][]byte{
		"no protobuf":  []byte("\xff\xff\xff"),
		"empty":        {},
		"no operation": encoded(t, &wire.Command{Version: 1}),
		"no version":   encoded(t, &wire.Command{Op: command(0, pushed("a", "b")).Op}),
		"new version":  encoded(t, &wire.Command{Version: commandVersion + 1, Op: command(0, pushed("a", "b")).Op}),
		"new op":       append(encoded(t, &wire.Command{Version: 1}), 10<<3|2, 0), // field 10, as a later node writes it
	} {
		t.Run(name, func(t *testing.T) {
			r := newReplica(t)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			waited := make(chan error, 1)
			go func() { waited <- r.waitApplied(ctx, 3) }()
			results := r.ApplyBatch([]*raft.Log{
				entry(t, 1, command(0, pushed("a", "before"))),
				{Index: 2, Type: raft.LogCommand, Data: data},
				entry(t, 3, command(0, pushed("a", "after"))),
			})
			if err := results[0].(*applyResult).err; err != nil {
				t.Errorf("the entry before: %v", err)
			}
			for _, res := range results[1:] {
				sameError(t, "unknown and after", res.(*applyResult).err, oci.ErrUnavailable)
			}
			sameError(t, "later", r.Apply(entry(t, 4, command(0, pushed("a", "later")))).(*applyResult).err, oci.ErrUnavailable)
			if len(r.fatal) != 1 || !errors.Is(r.fatal[0], errUnknownOp) {
				t.Errorf("told %v", r.fatal)
			}
			if r.applied() != 1 {
				t.Errorf("applied %d", r.applied())
			}
			if err := <-waited; !errors.Is(err, errUnknownOp) {
				t.Errorf("waiting gave %v", err)
			}
			if _, err := r.Snapshot(); err == nil {
				t.Error("a snapshot would let raft drop the entry")
			}
			if _, ok, err := r.blob("a", digest.FromString("before")); !ok || err != nil {
				t.Errorf("reads end too: %v", err)
			}
		})
	}
}

func encoded(t testing.TB, c *wire.Command) []byte {
	t.Helper()
	return entry(t, 0, c).Data
}

func TestWaitApplied(t *testing.T) {
	r := newReplica(t)
	r.must(command(0, pushed("a", "b")))
	if err := r.waitApplied(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	const waiters = 8
	got := make(chan error, waiters)
	for i := range waiters {
		go func() {
			err := r.waitApplied(t.Context(), uint64(2+i))
			if err == nil && r.applied() < uint64(2+i) {
				err = errors.New("too early")
			}
			got <- err
		}()
	}
	for range waiters {
		r.must(command(0, pushed("a", "b")))
	}
	for range waiters {
		if err := <-got; err != nil {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("client gone")
	cancel(gone)
	if err := r.waitApplied(ctx, r.last+1); !errors.Is(err, gone) {
		t.Error(err)
	}
	go func() { got <- r.waitApplied(t.Context(), r.last+1) }()
	if err := r.close(); err != nil {
		t.Error(err)
	}
	if err := <-got; !errors.Is(err, errStateClosed) {
		t.Error(err)
	}
	if _, _, err := r.tag("a", "b"); !errors.Is(err, errStateClosed) {
		t.Error(err)
	}
}

// TestOnMembers: the hook sees the change, and hears of nothing else.
func TestOnMembers(t *testing.T) {
	r := newReplica(t)
	calls, members := 0, 0
	r.onMembers(func() { calls++; members = len(r.members()) })
	r.must(command(0, founded(joined("1", "n", "k"), true)))
	if calls != 1 || members != 1 || !r.cluster().AllowSparse {
		t.Errorf("%d calls, %d members", calls, members)
	}
	r.do(command(0, pushed("a", "b")), command(0, joined("2", "n", "k")))
	if calls != 1 {
		t.Errorf("%d calls", calls)
	}
	r.must(command(0, &wire.Member{Id: "1", Removed: true}))
	if calls != 2 || members != 0 {
		t.Errorf("%d calls, %d members", calls, members)
	}
}

// TestFolder: what openState makes of what it finds.
func TestFolder(t *testing.T) {
	r := newReplica(t)
	r.must(command(0, pushed("a", "b")))
	want := r.sum()
	if _, err := openState(r.dir, r.log, nil); err == nil {
		t.Error("a folder that is in use was opened")
	}
	if err := r.close(); err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(writeFile(r.dir, "db-000009", nil)) // a leftover, if an odd one
	again := openReplica(t, r.dir)
	if again.sum() != want {
		t.Error("the state differs after a restart")
	}
	if left, _ := filepath.Glob(filepath.Join(r.dir, "db-*")); len(left) != 1 {
		t.Errorf("left over: %v", left)
	}
	must(again.close())
	must(writeFile(r.dir, currentFile, []byte("../elsewhere\n")))
	if _, err := openState(r.dir, r.log, nil); err == nil {
		t.Error("a damaged pointer was followed")
	}
}
