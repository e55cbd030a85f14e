package metadata

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"pgregory.net/rapid"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// model is the state as plain maps: what the rules say, said once more and
// more simply. Digests are the names that sha made them of.
type model struct {
	now       int64
	sparse    bool
	founded   bool
	links     map[[2]string]link // repository, blob
	manifests map[[2]string]*wire.Manifest
	bodies    map[[2]string]string
	tags      map[[2]string]string
	members   map[string]*wire.Member
	policy    int64
	untagged  map[[2]string]int64 // manifest -> since when
	placed    map[[2]string]link  // manifests whose body is a blob
	lost      map[string]bool
	index     uint64 // of the entry at hand
	settings  map[string]Setting
	seen      map[string]modelReceipt
	ids       []string // of seen, oldest first
}

type modelReceipt struct {
	at   int64
	err  *oci.Error
	size int64
}

func newModel() *model {
	return &model{
		links: map[[2]string]link{}, manifests: map[[2]string]*wire.Manifest{}, bodies: map[[2]string]string{},
		tags: map[[2]string]string{}, members: map[string]*wire.Member{}, seen: map[string]modelReceipt{},
		untagged: map[[2]string]int64{}, placed: map[[2]string]link{}, lost: map[string]bool{}, settings: map[string]Setting{},
	}
}

func (m *model) apply(c *wire.Command) (*oci.Error, int64) {
	m.now = max(m.now, c.Now)
	if r, ok := m.seen[c.RequestId]; ok {
		return r.err, r.size
	}
	for n := 0; n < 2 && len(m.ids) > 0 && m.seen[m.ids[0]].at < m.now-requestAge; n++ {
		delete(m.seen, m.ids[0])
		m.ids = m.ids[1:]
	}
	err, size := m.decide(c)
	m.settle()
	if c.RequestId != "" {
		m.ids = append(m.ids, c.RequestId)
		m.seen[c.RequestId] = modelReceipt{m.now, err, size}
	}
	return err, size
}

func (m *model) decide(c *wire.Command) (*oci.Error, int64) {
	switch op := c.Op.(type) {
	case *wire.Command_Link:
		return m.link(op.Link)
	case *wire.Command_Unlink:
		at := [2]string{op.Unlink.Repo, op.Unlink.Digest}
		if _, ok := m.links[at]; !ok {
			return oci.ErrBlobUnknown, 0
		}
		delete(m.links, at)
	case *wire.Command_Manifest:
		return m.manifest(op.Manifest), 0
	case *wire.Command_Untag:
		at := [2]string{op.Untag.Repo, op.Untag.Tag}
		if _, ok := m.tags[at]; !ok {
			return oci.ErrManifestUnknown, 0
		}
		delete(m.tags, at)
	case *wire.Command_Unmanifest:
		at := [2]string{op.Unmanifest.Repo, op.Unmanifest.Digest}
		if m.manifests[at] == nil {
			return oci.ErrManifestUnknown, 0
		}
		m.drop(at, m.now)
	case *wire.Command_Member:
		return m.member(op.Member), 0
	case *wire.Command_Expire:
		return nil, m.expire(op.Expire)
	case *wire.Command_Lost:
		return m.lose(op.Lost), 0
	case *wire.Command_Policy:
		if !m.founded || op.Policy.UntaggedAfter < 0 {
			return oci.ErrDenied, 0
		}
		m.policy = op.Policy.UntaggedAfter
	case *wire.Command_Settings:
		return m.change(op.Settings), 0
	}
	return nil, 0
}

func (m *model) drop(at [2]string, kept int64) {
	old := m.manifests[at]
	delete(m.manifests, at)
	delete(m.bodies, at)
	maps.DeleteFunc(m.tags, func(k [2]string, d string) bool { return k[0] == at[0] && d == at[1] })
	m.release(old, nil, kept)
}

func (m *model) link(op *wire.Link) (*oci.Error, int64) {
	var repos []string // that hold it
	for k := range m.links {
		if k[1] == op.Digest {
			repos = append(repos, k[0])
		}
	}
	size := op.Size
	if len(repos) > 0 {
		size = m.links[[2]string{repos[0], op.Digest}].size
	}
	if m.late(op.NamedBy) {
		return oci.ErrOverdue, 0
	}
	if op.Mount && (len(repos) == 0 || m.lost[op.Digest] || op.From != "" && !slices.Contains(repos, op.From)) {
		return oci.ErrBlobUnknown, 0
	}
	m.links[[2]string{op.Repo, op.Digest}] = link{size, m.now}
	if !op.Mount {
		delete(m.lost, op.Digest)
	}
	return nil, size
}

func (m *model) late(namedBy int64) bool {
	return m.level() >= levelNamedBy && namedBy != 0 && namedBy < m.now
}

func (m *model) manifest(op *wire.Manifest) *oci.Error {
	if m.late(op.NamedBy) {
		return oci.ErrOverdue
	}
	for _, tag := range op.ImmutableTags {
		if d, ok := m.tags[[2]string{op.Repo, tag}]; ok && d != op.Digest {
			return oci.ErrDenied
		}
	}
	for _, b := range op.Blobs {
		if _, ok := m.links[[2]string{op.Repo, b}]; (!ok || m.lost[b]) && !m.sparse {
			return oci.ErrManifestBlobUnknown
		}
	}
	at := [2]string{op.Repo, op.Digest}
	old := m.manifests[at]
	m.manifests[at] = op
	delete(m.untagged, at) // age counts anew, if it has no tag
	delete(m.placed, at)
	if op.Body != nil {
		m.bodies[at] = string(op.Body)
	} else {
		delete(m.lost, op.Digest)
	}
	for _, tag := range op.Tags {
		m.tags[[2]string{op.Repo, tag}] = op.Digest
	}
	if old != nil {
		m.release(old, op, m.now)
	}
	return nil
}

func (m *model) uses(repo, d string) bool {
	for k, man := range m.manifests {
		if k[0] == repo && (k[1] == d || names(man, d)) {
			return true
		}
	}
	return false
}

func names(man *wire.Manifest, d string) bool {
	return man != nil && (slices.Contains(man.Blobs, d) || slices.Contains(man.Children, d))
}

func (m *model) release(old, now *wire.Manifest, kept int64) {
	for _, b := range append(slices.Clone(old.Blobs), old.Children...) {
		at := [2]string{old.Repo, b}
		if names(now, b) || b == old.Digest {
			continue
		}
		if since, ok := m.untagged[at]; ok {
			m.untagged[at] = max(since, kept)
		}
		if l, ok := m.links[at]; ok && !m.uses(old.Repo, b) {
			m.links[at] = link{l.size, m.now}
		}
	}
}

func (m *model) member(op *wire.Member) *oci.Error {
	if !op.Removed {
		if op.Level < m.level() {
			return oci.ErrDenied
		}
		for id, o := range m.members {
			same := id == op.Id
			if same && (o.Removed || string(o.Key) != string(op.Key)) || !same && !o.Removed && o.Name == op.Name {
				return oci.ErrDenied
			}
		}
	}
	if op.Cluster != nil {
		if m.founded {
			return oci.ErrDenied
		}
		m.founded, m.sparse = true, op.Cluster.AllowSparse
	}
	m.members[op.Id] = op
	return nil
}

// agree compares everything that can be asked.
func (m *model) agree(t *rapid.T, s *state) {
	if got := s.logTime.Load(); got != m.now {
		t.Fatalf("log time %d, want %d", got-epoch, m.now-epoch)
	}
	repos := map[string]bool{}
	for k, l := range m.links {
		repos[k[0]] = true
		stale := time.Duration(m.now-l.used) > linkAge/2 && !m.uses(k[0], k[1])
		want := Blob{l.size, stale}
		if m.lost[k[1]] {
			want = Blob{}
		}
		if b, ok, err := s.blob(k[0], digest.Digest(k[1])); ok == m.lost[k[1]] || err != nil || b != want {
			t.Fatalf("blob %v: %+v %v %v, want %+v stale %v", k, b, ok, err, l, stale)
		}
	}
	for k, man := range m.manifests {
		repos[k[0]] = true
		got, ok, err := s.manifest(k[0], digest.Digest(k[1]))
		if _, inline := m.bodies[k]; !inline && m.lost[k[1]] && !ok && err == nil {
			continue
		}
		if !ok || err != nil || string(got.Body) != m.bodies[k] || got.MediaType != man.MediaType || got.Size != man.Size {
			t.Fatalf("manifest %v: %+v %v %v", k, got, ok, err)
		}
	}
	for k, d := range m.tags {
		if got, ok, err := s.tag(k[0], k[1]); !ok || err != nil || string(got) != d {
			t.Fatalf("tag %v: %v %v %v, want %v", k, got, ok, err, d)
		}
	}
	m.agreeTagged(t, s)
	pages(t, slices.Sorted(maps.Keys(repos)), func(p Page) ([]string, bool, error) { return s.repositories(p, nil) })
	for _, repo := range modelRepos {
		if known, err := s.repoKnown(repo); err != nil || known != repos[repo] {
			t.Fatalf("repository %s: %v %v", repo, known, err)
		}
		var tags []string
		for k := range m.tags {
			if k[0] == repo {
				tags = append(tags, k[1])
			}
		}
		slices.Sort(tags)
		pages(t, tags, func(p Page) ([]string, bool, error) { return s.tags(repo, p) })
		for _, subject := range modelManifests {
			for _, kind := range []string{"", "sbom"} {
				m.agreeReferrers(t, s, repo, sha(subject), kind)
			}
		}
	}
	m.agreeMembers(t, s)
	m.agreeIndexes(t, s)
	m.agreeStale(t, s)
	m.agreeSettings(t, s)
}

// agreeTagged asks after every entry, so that what is held in memory is there to
// go wrong.
func (m *model) agreeTagged(t *rapid.T, s *state) {
	for _, repo := range modelRepos {
		for _, tag := range modelTags {
			d := m.tags[[2]string{repo, tag}]
			k := [2]string{repo, d}
			got, ok, err := s.tagged(repo, tag)
			if _, inline := m.bodies[k]; !inline && m.lost[d] && !ok && err == nil {
				continue // its bytes are nowhere
			}
			if ok != (d != "") || err != nil || string(got.Digest) != d || string(got.Body) != m.bodies[k] || ok && got.MediaType != m.manifests[k].MediaType {
				t.Fatalf("tag %s of %s: %+v %v %v, want %v", tag, repo, got, ok, err, d)
			}
		}
	}
}

func (m *model) agreeReferrers(t *rapid.T, s *state, repo, subject, kind string) {
	var want []string
	for k, man := range m.manifests {
		if k[0] == repo && man.Subject == subject && (kind == "" || kind == man.ArtifactType) {
			want = append(want, k[1])
		}
	}
	slices.Sort(want)
	pages(t, want, func(p Page) (all []string, more bool, err error) {
		items, more, err := s.referrers(repo, digest.Digest(subject), kind, p)
		for _, d := range items {
			man := m.manifests[[2]string{repo, string(d.Digest)}]
			if d.ArtifactType != man.ArtifactType || d.MediaType != man.MediaType || d.Size != man.Size || !maps.Equal(d.Annotations, man.Annotations) {
				t.Fatalf("referrer %+v of %v", d, man)
			}
			all = append(all, string(d.Digest))
		}
		return all, more, err
	})
}

func (m *model) agreeMembers(t *rapid.T, s *state) {
	var want, got []string
	for _, id := range slices.Sorted(maps.Keys(m.members)) {
		if o := m.members[id]; !o.Removed {
			want = append(want, fmt.Sprint(id, o.Name, string(o.Key), o.Zone, o.Weight, o.Level, o.Address))
		}
	}
	for _, o := range s.members() {
		got = append(got, fmt.Sprint(o.ID, o.Name, string(o.Key), o.Zone, o.Weight, o.Level, o.Address))
	}
	if !slices.Equal(got, want) || s.cluster().AllowSparse != m.sparse || int64(s.cluster().UntaggedAfter) != m.policy || (s.cluster().ID != "") != m.founded {
		t.Fatalf("members %v, want %v; cluster %+v", got, want, s.cluster())
	}
}

var (
	modelRepos     = []string{"a", "a/b", "a-b"} // whose order depends on what ends a name
	modelBlobs     = []string{"b0", "b1", "b2", "b3"}
	modelManifests = []string{"m0", "m1", "m2"}
	modelTags      = []string{"t0", "t1", "t10"}
)

// drawCommand draws a command for the log that m is the state of.
func drawCommand(t *rapid.T, m *model) *wire.Command {
	pick := func(name string, from ...string) string { return rapid.SampledFrom(from).Draw(t, name) }
	some := func(name string, from []string) (all []string) {
		for _, s := range from {
			if rapid.Bool().Draw(t, name) {
				all = append(all, s)
			}
		}
		return all
	}
	digests := func(names []string) (all []string) {
		for _, n := range names {
			all = append(all, sha(n))
		}
		return all
	}
	namedBy := func() int64 {
		return rapid.SampledFrom([]int64{0, m.now - 1, m.now, m.now + 1, m.now + int64(linkAge/2)}).Draw(t, "named by")
	}
	repo := pick("repo", modelRepos...)
	var op any
	switch rapid.IntRange(0, 15).Draw(t, "op") {
	case 0, 1:
		op = namedIn(namedBy(), pushed(repo, pick("blob", append(modelBlobs, "m0")...)))
	case 2:
		op = mounted(repo, pick("blob", modelBlobs...), pick("from", append(modelRepos, "")...))
	case 3:
		op = unlinked(repo, pick("blob", modelBlobs...))
	case 4, 5, 6:
		name := pick("manifest", modelManifests...)
		m := imageOf(repo, name, some("tag", modelTags), some("blob", modelBlobs)...)
		m.Children = digests(some("child", modelManifests))
		m.ImmutableTags = some("immutable", m.Tags)
		m.MediaType = pick("type", v1.MediaTypeImageManifest, "other")
		if rapid.Bool().Draw(t, "placed") {
			m.Body, m.NamedBy = nil, namedBy()
		}
		if rapid.Bool().Draw(t, "refers") {
			referring(m, pick("subject", modelManifests...), pick("artifact", "sbom", "signature"))
		}
		op = m
	case 7:
		op = untagged(repo, pick("tag", modelTags...))
	case 8:
		op = dropped(repo, pick("manifest", modelManifests...))
	case 9:
		m := joined(pick("id", "1", "2", "3"), pick("name", "n1", "n2"), pick("key", "k1", "k2"))
		m.Level = rapid.Uint32Range(1, FeatureLevel).Draw(t, "level")
		m.Removed = rapid.IntRange(0, 5).Draw(t, "removed") == 0
		if !m.Removed && rapid.Bool().Draw(t, "founds") {
			founded(m, rapid.Bool().Draw(t, "sparse"))
		}
		op = m
	case 10, 11:
		op = drawExpire(t, m.now)
	case 12, 13:
		op = &wire.Lost{
			Digest: sha(pick("lost", append(modelBlobs, modelManifests...)...)),
			Since:  m.now + rapid.Int64Range(-1, 1).Draw(t, "since"), Found: rapid.IntRange(0, 3).Draw(t, "found") == 0,
		}
	case 14:
		op = &wire.Policy{UntaggedAfter: rapid.SampledFrom([]int64{-1, 0, 1, int64(time.Hour)}).Draw(t, "policy")}
	case 15:
		op = drawChange(t, m)
	}
	c := command(rapid.SampledFrom([]int{0, 1, 5, 16, -10, 60, 60 * 13}).Draw(t, "clock"), op)
	c.RequestId = pick("request", "", "", "r1", "r2", "r3")
	return c
}

// TestModel: whatever is applied, the state is what the model says, and it is
// the same bytes however the log was cut into batches, replayed after
// restarts, and carried over by a snapshot midway.
func TestModel(t *testing.T) {
	// A new database costs ten syncs: these are used again and again.
	one, two, three := newReplica(t), newReplica(t), newReplica(t)
	rapid.Check(t, func(rt *rapid.T) {
		m := newModel()
		one.wipe()
		var log []*raft.Log
		clock := int64(0)
		for i := range rapid.IntRange(1, 60).Draw(rt, "length") {
			c := drawCommand(rt, m)
			if i == 0 && rapid.IntRange(0, 3).Draw(rt, "upgraded") > 0 {
				c = command(0, levelled(rapid.SampledFrom([]uint32{levelHealing, FeatureLevel}).Draw(rt, "to")))
			}
			if m.empties(c) {
				continue
			}
			// Clocks run on, and sometimes back.
			clock, c.Now = clock+max(0, c.Now-epoch), epoch+clock+c.Now-epoch
			l := entry(t, uint64(2*i+1), c) // raft's own entries lie between
			log = append(log, l)
			m.index = l.Index
			err, size := m.apply(c)
			got := one.Apply(l).(*applyResult)
			if (got.err == nil) != (err == nil) || err != nil && !got.err.Is(err) || got.size != size {
				rt.Fatalf("%v: got %v %d, want %v %d", c, got.err, got.size, err, size)
			}
			m.agreeTagged(rt, one.state)
		}
		m.agree(rt, one.state)
		two.inBatches(rt, log)
		if two.sum() != one.sum() {
			rt.Error("other batches and restarts made another state")
		}
		if rapid.IntRange(0, 7).Draw(rt, "snapshot") > 0 {
			return
		}
		two.carryTo(rt, three, log)
		if three.sum() != one.sum() {
			rt.Error("a snapshot midway made another state")
		}
	})
}

// inBatches applies log in random batches, restarting at times, after which
// raft sends some of it again.
func (r *replica) inBatches(rt *rapid.T, log []*raft.Log) {
	r.wipe()
	for at := 0; at < len(log); {
		to := min(len(log), at+rapid.IntRange(1, 12).Draw(rt, "batch"))
		r.ApplyBatch(log[at:to])
		at = to
		if rapid.IntRange(0, 59).Draw(rt, "restart") == 0 {
			r.restart()
			at = rapid.IntRange(0, at).Draw(rt, "again")
		}
	}
}

// carryTo applies a part of log, takes a snapshot, and has other, restored
// from it, apply the rest.
func (r *replica) carryTo(rt *rapid.T, other *replica, log []*raft.Log) {
	r.wipe()
	other.wipe()
	cut := rapid.IntRange(0, len(log)).Draw(rt, "cut")
	r.ApplyBatch(log[:cut])
	other.ApplyBatch(log[:rapid.IntRange(0, min(3, cut)).Draw(rt, "own")]) // to be replaced
	if err := other.Restore(io.NopCloser(bytes.NewReader(r.stream()))); err != nil {
		rt.Fatal(err)
	}
	other.ApplyBatch(log)
}
