package metadata

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/encoding/protowire"
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

// hash returns the SHA-256 of the whole state: equal on every replica that has
// applied the same entries.
func (s *state) hash() ([]byte, error) {
	db, err := s.acquire()
	if err != nil {
		return nil, err
	}
	defer s.mu.RUnlock()
	at := db.NewSnapshot()
	defer at.Close()
	h := sha256.New()
	var frame []byte
	err = scan(at, nil, func(k, v []byte) (bool, error) {
		frame = appendString(appendString(frame[:0], k), v)
		h.Write(frame)
		return true, nil
	})
	if err != nil {
		return nil, fmt.Errorf("hash state: %w", err)
	}
	return h.Sum(nil), nil
}

func (r *replica) sum() string {
	r.t.Helper()
	h, err := r.hash()
	if err != nil {
		r.t.Fatal(err)
	}
	return fmt.Sprintf("%x", h)
}

// wipe makes r a new state.
func (r *replica) wipe() {
	r.t.Helper()
	if err := r.db.DeleteRange([]byte{0}, []byte{0xff}, nil); err != nil {
		r.t.Fatal(err)
	}
	r.hot.changing(nil)
	r.hot.changed()
	l, err := load(r.db)
	if err != nil {
		r.t.Fatal(err)
	}
	r.adopt(l)
	r.last = 0
}

// restart makes r what the next process finds.
func (r *replica) restart() {
	r.t.Helper()
	if err := r.close(); err != nil {
		r.t.Fatal(err)
	}
	r.state = openReplica(r.t, r.dir).state
}

// stream returns the state as it goes over the wire.
func (r *replica) stream() []byte {
	r.t.Helper()
	e, err := newEncoder(r.db)
	if err != nil {
		r.t.Fatal(err)
	}
	defer e.Close()
	b, err := io.ReadAll(e)
	if err != nil {
		r.t.Fatal(err)
	}
	return b
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
	case *wire.Standing:
		c.Op = &wire.Command_Standing{Standing: op}
	case *wire.Recover:
		c.Op = &wire.Command_Recover{Recover: op}
	case *wire.Expire:
		c.Op = &wire.Command_Expire{Expire: op}
	case *wire.Lost:
		c.Op = &wire.Command_Lost{Lost: op}
	case *wire.Policy:
		c.Op = &wire.Command_Policy{Policy: op}
	case *wire.Settings:
		c.Op = &wire.Command_Settings{Settings: op}
	}
	return c
}

func pushed(repo, blob string) *wire.Link {
	return &wire.Link{Repo: repo, Digest: sha(blob), Size: int64(len(blob))}
}

// namedIn makes a push one whose bytes must be named by then.
func namedIn(by int64, l *wire.Link) *wire.Link {
	l.NamedBy = by
	return l
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

func droppedWith(repo, name string, tags ...string) *wire.Unmanifest {
	return &wire.Unmanifest{Repo: repo, Digest: sha(name), Tags: sumTags(tags)}
}

func joined(id, name, key string) *wire.Member {
	return &wire.Member{Id: id, Name: name, Key: fmt.Appendf(nil, "%-32s", key), Zone: "z", Weight: 7, Level: 1, Address: "h:1"}
}

// levelled is founded with a member of that level alone.
func levelled(level uint32) *wire.Member {
	m := founded(joined("1", "n1", "k1"), false)
	m.Level = level
	return m
}

// lost marks a digest that was last used before a time, in minutes.
func lost(name string, since int) *wire.Lost {
	return &wire.Lost{Digest: sha(name), Since: minute(since)}
}

// changes is an entry that changes settings.
func changes(all ...*wire.Setting) *wire.Settings { return &wire.Settings{Changes: all} }

func setTo(key, value string) *wire.Setting { return &wire.Setting{Key: key, Value: []byte(value)} }
func unset(key string) *wire.Setting        { return &wire.Setting{Key: key} }

// ifAt makes a change hold only at a revision.
func ifAt(revision uint64, s *wire.Setting) *wire.Setting {
	s.Revision = &revision
	return s
}

// fixed is a manifest of which some tags may not move.
func fixed(m *wire.Manifest, tags ...string) *wire.Manifest {
	m.ImmutableTags = tags
	return m
}

func minute(n int) int64 { return epoch + int64(n)*int64(time.Minute) }

func namesOf(repo string, names ...string) (all []*wire.Name) {
	for _, n := range names {
		all = append(all, &wire.Name{Repo: repo, Digest: sha(n)})
	}
	return all
}

// placed is a manifest whose body is a blob.
func placed(m *wire.Manifest) *wire.Manifest {
	m.Body = nil
	return m
}

// parent is an index of other manifests.
func parent(repo, name string, tags []string, children ...string) *wire.Manifest {
	m := imageOf(repo, name, tags)
	for _, c := range children {
		m.Children = append(m.Children, sha(c))
	}
	return m
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
		"new op":       protowire.AppendBytes(protowire.AppendTag(encoded(t, &wire.Command{Version: 1}), 30, protowire.BytesType), nil), // field 30, as a later node writes it
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
