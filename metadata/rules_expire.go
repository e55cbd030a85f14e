package metadata

import (
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// expire drops names that have outlived their use. The proposer found them
// some time ago and on its own; what was used meanwhile stays.
func (t *tx) expire(op *wire.Expire) (decision, error) {
	links, v := parseNames(op.Links)
	if v != done {
		return decision{verdict: v}, nil
	}
	manifests, v := parseNames(op.Manifests)
	if v != done {
		return decision{verdict: v}, nil
	}
	var gone int64
	for _, l := range links {
		went, err := t.expireLink(l.repo, l.d, op.LinksBefore)
		if err != nil {
			return decision{}, err
		}
		gone += int64(btoi(went))
	}
	for _, m := range manifests {
		went, err := t.expireManifest(m.repo, m.d, op.UntaggedBefore)
		if err != nil {
			return decision{}, err
		}
		gone += int64(btoi(went))
	}
	return decision{size: gone}, nil
}

type name struct {
	repo string
	d    sum
}

func parseNames(all []*wire.Name) ([]name, verdict) {
	names := make([]name, len(all))
	for i, n := range all {
		d, ok := parseSum(n.Digest)
		if !ok {
			return nil, badDigest
		}
		if !validName(n.Repo, maxRepo) {
			return nil, badName
		}
		names[i] = name{n.Repo, d}
	}
	return names, done
}

func (t *tx) expireLink(repo string, d sum, before int64) (bool, error) {
	l, ok, err := t.getLink(repo, d)
	if !ok || err != nil {
		return false, err
	}
	idle, err := linkIdle(t.b, repo, d, l, before)
	if !idle || err != nil {
		return false, err
	}
	return true, t.dropLink(repo, d)
}

// linkIdle reports whether a link may go: it is unused since before, and no
// manifest of its repository names it.
func linkIdle(r pebble.Reader, repo string, d sum, l link, before int64) (bool, error) {
	if l.used >= before {
		return false, nil
	}
	named, err := hasPrefix(r, namedBy(d, repo, ""))
	return !named, err
}

func (t *tx) expireManifest(repo string, d sum, before int64) (bool, error) {
	since, ok, err := untaggedSince(t.b, repo, d)
	if !ok || err != nil {
		return false, err
	}
	m, idle, err := manifestIdle(t.b, repo, d, since, before)
	if !idle || err != nil {
		return false, err
	}
	return true, t.dropManifest(repo, d, m, since)
}

// manifestIdle reports whether a manifest may go that has had no tag since
// then: not where before is 0 or earlier, and not while it has a tag, another
// manifest of its repository names it, or it refers to a subject that is there,
// as signatures do.
func manifestIdle(r pebble.Reader, repo string, d sum, since, before int64) (m stored, idle bool, err error) {
	if before <= 0 || since >= before {
		return m, false, nil
	}
	// The index says so already; but a tag must never lose its manifest.
	tagged, err := hasPrefix(r, repoKey(repo, kindTagOf, string(d)))
	if tagged || err != nil {
		return m, false, err
	}
	parent, err := namedByOther(r, repo, d)
	if parent || err != nil {
		return m, false, err
	}
	m, ok, err := getStored(r, repo, d)
	if !ok || err != nil || m.subject == "" {
		return m, ok, err
	}
	refers, err := get(r, repoKey(repo, kindManifest, string(m.subject)), nil)
	return m, !refers, err
}

// namedByOther reports whether a manifest of repo, other than d, names d.
func namedByOther(r pebble.Reader, repo string, d sum) (other bool, err error) {
	err = scan(r, namedBy(d, repo, ""), func(manifest, _ []byte) (bool, error) {
		other = string(manifest) != string(d)
		return !other, nil
	})
	return other, err
}

// fading looks for what keeps a manifest, and what keeps that in turn: what an
// index without a tag keeps goes together with it.
type fading struct {
	r      pebble.Reader
	repo   string
	before int64 // what was without a tag since then, or has one, keeps what it names
	left   int   // how many may still be looked at
}

// maxFading bounds such a search. What it does not find is taken for absent:
// then a manifest is pushed again that need not be.
const maxFading = 100

// fades reports whether manifest d, which is there, is kept by its age, by a
// tag or by another manifest no longer than until before.
func (f *fading) fades(d sum) (bool, error) {
	since, untagged, err := untaggedSince(f.r, f.repo, d)
	if !untagged || since >= f.before || err != nil {
		return false, err
	}
	fades := true
	err = scan(f.r, namedBy(d, f.repo, ""), func(manifest, _ []byte) (bool, error) {
		if other := sum(manifest); other != d {
			kept, err := f.keeps(other)
			fades = !kept
			return fades && f.left > 0, err
		}
		return true, nil
	})
	if err != nil || !fades {
		return false, err
	}
	m, ok, err := getStored(f.r, f.repo, d)
	if !ok || err != nil || m.subject == "" {
		return ok, err
	}
	kept, err := f.keeps(m.subject)
	return !kept, err
}

// keeps reports whether manifest d is there and keeps others.
func (f *fading) keeps(d sum) (bool, error) {
	if f.left == 0 {
		return false, nil
	}
	f.left--
	there, err := get(f.r, repoKey(f.repo, kindManifest, string(d)), nil)
	if !there || err != nil {
		return false, err
	}
	fades, err := f.fades(d)
	return !fades, err
}

func untaggedKey(repo string, d sum) []byte { return repoKey(repo, kindUntagged, string(d)) }

// untaggedSince returns since when a manifest has no tag.
func untaggedSince(r pebble.Reader, repo string, d sum) (since int64, ok bool, err error) {
	ok, err = get(r, untaggedKey(repo, d), func(v []byte) (err error) {
		since, err = decodeTime(v)
		return err
	})
	return since, ok, err
}

// policy sets what the mesh does with names by itself.
func (t *tx) policy(op *wire.Policy) (decision, error) {
	if op.UntaggedAfter < 0 || t.cluster.ID == "" {
		return decision{verdict: badRequest}, nil
	}
	t.cluster.UntaggedAfter = time.Duration(op.UntaggedAfter)
	t.membersChanged = true
	return decision{}, t.b.Set([]byte{keyCluster}, encodeCluster(t.cluster), nil)
}
