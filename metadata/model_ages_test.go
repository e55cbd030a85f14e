package metadata

import (
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// The part of the model that is about names that go by themselves, and bytes
// that are gone.

func (m *model) level() (least uint32) {
	for _, o := range m.members {
		if !o.Removed && (least == 0 || o.Level < least) {
			least = o.Level
		}
	}
	return least
}

// empties reports whether a command takes the last member of a mesh, which
// nobody is there to ask for: its level, which never falls, would be gone.
func (m *model) empties(c *wire.Command) bool {
	gone := c.GetMember()
	if gone == nil || !gone.Removed {
		return false
	}
	for id, o := range m.members {
		if !o.Removed && id != gone.Id {
			return false
		}
	}
	return true
}

// settle makes the indexes what the rest of the model says, each new entry with
// the time at hand.
func (m *model) settle() {
	if m.level() >= levelHealing {
		for at, man := range m.manifests {
			if _, known := m.untagged[at]; !known && !m.tagged(at) {
				m.untagged[at] = m.now
			}
			if _, known := m.placed[at]; !known {
				m.placed[at] = link{man.Size, m.now}
			}
		}
	}
	maps.DeleteFunc(m.untagged, func(at [2]string, _ int64) bool { return m.manifests[at] == nil || m.tagged(at) })
	maps.DeleteFunc(m.placed, func(at [2]string, _ link) bool {
		_, inline := m.bodies[at]
		return m.manifests[at] == nil || inline
	})
	maps.DeleteFunc(m.lost, func(d string, _ bool) bool { return len(m.wants(d)) == 0 })
}

func (m *model) tagged(at [2]string) bool {
	for k, d := range m.tags {
		if k[0] == at[0] && d == at[1] {
			return true
		}
	}
	return false
}

// wants returns the links on d, and on manifests that are d.
func (m *model) wants(d string) (all []link) {
	for _, from := range []map[[2]string]link{m.links, m.placed} {
		for k, l := range from {
			if k[1] == d {
				all = append(all, l)
			}
		}
	}
	return all
}

func (m *model) expire(op *wire.Expire) (gone int64) {
	for _, n := range op.Links {
		at := [2]string{n.Repo, n.Digest}
		if l, ok := m.links[at]; ok && l.used < op.LinksBefore && !m.uses(at[0], at[1]) {
			delete(m.links, at)
			gone++
		}
	}
	for _, n := range op.Manifests {
		at := [2]string{n.Repo, n.Digest}
		since, untagged := m.untagged[at]
		if man := m.manifests[at]; man != nil && untagged && since < op.UntaggedBefore && !m.kept(man) {
			m.drop(at, since)
			gone++
		}
	}
	return gone
}

func (m *model) kept(man *wire.Manifest) bool {
	for k, other := range m.manifests {
		if k[0] == man.Repo && (k[1] == man.Subject || k[1] != man.Digest && names(other, man.Digest)) {
			return true
		}
	}
	return false
}

func (m *model) lose(op *wire.Lost) *oci.Error {
	if op.Found {
		delete(m.lost, op.Digest)
		return nil
	}
	all := m.wants(op.Digest)
	if len(all) == 0 {
		return oci.ErrBlobUnknown
	}
	if slices.ContainsFunc(all, func(l link) bool { return l.used >= op.Since }) {
		return oci.ErrDenied
	}
	m.lost[op.Digest] = true
	return nil
}

// agreeIndexes compares what is kept of ages and bytes.
func (m *model) agreeIndexes(t *rapid.T, s *state) {
	got := map[[2]string]int64{}
	err := walkRepos(s.db, nil, string(kindUntagged), func(e repoEntry) (bool, error) {
		since, err := decodeTime(e.value)
		got[[2]string{e.repo, string(sumDigest([]byte(e.d)))}] = since
		return true, err
	})
	if err != nil || !maps.Equal(got, m.untagged) {
		t.Fatalf("untagged %v %v, want %v", got, err, m.untagged)
	}
	var all []digest.Digest
	var named, wanted []bool
	for _, name := range slices.Concat(modelBlobs, modelManifests, []string{"never"}) {
		d := sha(name)
		uses := len(m.wants(d)) > 0
		is := uses
		for k, man := range m.manifests {
			is = is || k[1] == d || names(man, d)
		}
		all, named, wanted = append(all, digest.Digest(d)), append(named, is), append(wanted, uses)
	}
	if got, err := s.referenced(all); err != nil || !slices.Equal(got, named) {
		t.Fatalf("referenced %v %v, want %v", got, err, named)
	}
	var want []Want
	for i, d := range all {
		if wanted[i] {
			want = append(want, Want{d, m.wants(string(d))[0].size, m.lost[string(d)]})
		}
	}
	slices.SortFunc(want, func(a, b Want) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	var list []Want
	for last := digest.Digest(""); ; {
		page, err := s.wanted(last, rapid.IntRange(1, 3).Draw(t, "page"))
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		list = append(list, page...)
		last = page[len(page)-1].Digest
	}
	if !slices.Equal(list, want) {
		t.Fatalf("wanted %v, want %v", list, want)
	}
}

// agreeStale has a client be told by HEAD that a manifest is there, and not push
// it: whatever expires before it puts an index that names it, it is there then.
func (m *model) agreeStale(t *rapid.T, s *state) {
	if m.policy == 0 {
		return
	}
	later := *m
	later.now += min(m.policy, int64(linkAge)) / 2
	later.links, later.bodies, later.tags = maps.Clone(m.links), maps.Clone(m.bodies), maps.Clone(m.tags)
	later.manifests, later.untagged = maps.Clone(m.manifests), maps.Clone(m.untagged)
	op := &wire.Expire{UntaggedBefore: later.now - m.policy}
	for at := range m.manifests {
		op.Manifests = append(op.Manifests, &wire.Name{Repo: at[0], Digest: at[1]})
	}
	for later.expire(op) > 0 {
	}
	for at := range m.manifests {
		stale, err := s.staleManifest(at[0], digest.Digest(at[1]))
		if err != nil || !stale && later.manifests[at] == nil {
			t.Fatalf("HEAD of %v says that it is there, and then it expires: %v", at, err)
		}
	}
}

func drawExpire(t *rapid.T, now int64) *wire.Expire {
	before := func(name string) int64 {
		return rapid.SampledFrom([]int64{0, now - int64(linkAge/2), now - 1, now, now + 1}).Draw(t, name)
	}
	op := &wire.Expire{LinksBefore: before("links"), UntaggedBefore: before("untagged")}
	for range rapid.IntRange(0, 6).Draw(t, "names") {
		op.Links = append(op.Links, namesOf(rapid.SampledFrom(modelRepos).Draw(t, "repo"), rapid.SampledFrom(append(modelBlobs, "m0")).Draw(t, "link"))...)
		op.Manifests = append(op.Manifests, namesOf(rapid.SampledFrom(modelRepos).Draw(t, "repo"), rapid.SampledFrom(modelManifests).Draw(t, "manifest"))...)
	}
	return op
}
