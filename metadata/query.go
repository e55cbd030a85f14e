package metadata

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// Queries answer from this replica's state, as far as it has come. A name or
// digest that could not be stored is one that is not there.

const (
	// linkAge is the age at which an unused link may expire. At half of it the
	// link is hidden from HEAD, so that clients offer the blob again before.
	linkAge = 24 * time.Hour

	// A page holds pageSize items where the client names no number, and
	// maxPage at the most.
	pageSize = 1_000
	maxPage  = 10_000
	// pageBytes ends a page too: clients take an index of 4 MiB, and a page
	// of the largest annotations would be gigabytes.
	pageBytes = 3 << 20
)

// manifest returns a manifest of a repository, unless its bytes are lost.
func (s *state) manifest(repo string, d digest.Digest) (m Manifest, ok bool, err error) {
	key, ok := repoDigestKey(repo, kindManifest, d)
	if !ok {
		return m, false, nil
	}
	db, err := s.acquire()
	if err != nil {
		return m, false, err
	}
	defer s.mu.RUnlock()
	lost := false
	ok, err = get(db, key, func(v []byte) error {
		r, err := decodeManifest(v)
		if err == nil && !r.inline {
			id, _ := parseSum(string(d))
			lost, err = isLost(db, id)
		}
		m = Manifest{Digest: d, MediaType: r.mediaType, Size: r.size}
		if r.inline {
			m.Body = append(make([]byte, 0, len(r.body)), r.body...)
		}
		return err
	})
	if err != nil {
		return Manifest{}, false, fmt.Errorf("read manifest: %w", err)
	}
	if lost {
		return Manifest{}, false, nil
	}
	return m, ok, nil
}

// staleManifest reports whether a manifest may expire soon, as Manifest.Stale
// says. Whoever is told that it is there has time to name it: half of the time
// for which the policy keeps it, or of linkAge where that is less.
func (s *state) staleManifest(repo string, d digest.Digest) (bool, error) {
	keep := s.cluster().UntaggedAfter
	if keep == 0 {
		return false, nil
	}
	id, ok := parseSum(string(d))
	if !ok {
		return false, nil
	}
	db, err := s.acquire()
	if err != nil {
		return false, err
	}
	defer s.mu.RUnlock()
	f := fading{r: db, repo: repo, before: s.now().Add(-keep + min(keep, s.linkAge)/2).UnixNano(), left: maxFading}
	stale, err := f.fades(id)
	if err != nil {
		return false, fmt.Errorf("read age of manifest: %w", err)
	}
	return stale, nil
}

// tag returns the digest of the manifest that a tag names.
func (s *state) tag(repo, tag string) (d digest.Digest, ok bool, err error) {
	db, err := s.acquire()
	if err != nil {
		return "", false, err
	}
	defer s.mu.RUnlock()
	ok, err = get(db, repoKey(repo, kindTag, tag), func(v []byte) error {
		if d = sumDigest(v); d == "" {
			return errRecord
		}
		return nil
	})
	if err != nil {
		return "", false, fmt.Errorf("read tag: %w", err)
	}
	return d, ok, nil
}

// tagged returns the manifest that a tag names. It looks twice where the tag
// moves, and what it named goes, in between.
func (s *state) tagged(repo, tag string) (m Manifest, ok bool, err error) {
	m, ok, since := s.hot.find(repo, tag)
	if ok {
		return m, true, nil
	}
	var last digest.Digest
	for {
		d, ok, err := s.tag(repo, tag)
		if !ok || err != nil || d == last {
			return Manifest{}, false, err
		}
		m, ok, err := s.manifest(repo, d)
		// Of one that is placed as a blob, the loss does not show here.
		if ok && err == nil && m.Body != nil {
			s.hot.keep(repo, tag, m, since)
		}
		if ok || err != nil {
			return m, ok, err
		}
		last = d
	}
}

// blob returns a repository's link on a blob, unless that is lost.
func (s *state) blob(repo string, d digest.Digest) (b Blob, ok bool, err error) {
	id, ok := parseSum(string(d))
	if !ok {
		return b, false, nil
	}
	db, err := s.acquire()
	if err != nil {
		return b, false, err
	}
	defer s.mu.RUnlock()
	var l link
	ok, err = get(db, repoKey(repo, kindLink, string(id)), func(v []byte) (err error) {
		l, err = decodeLink(v)
		return err
	})
	if ok && err == nil {
		var lost bool
		if lost, err = isLost(db, id); lost {
			return Blob{}, false, err
		}
	}
	b.Size = l.size
	if ok && err == nil && s.now().Sub(time.Unix(0, l.used)) > s.linkAge/2 {
		var used bool
		used, err = hasPrefix(db, namedBy(id, repo, ""))
		b.Stale = !used
	}
	if err != nil {
		return Blob{}, false, fmt.Errorf("read link: %w", err)
	}
	return b, ok, nil
}

// tagsOn lists the tags that name a manifest.
func (s *state) tagsOn(repo string, d digest.Digest) (tags []string, err error) {
	id, ok := parseSum(string(d))
	if !ok {
		return nil, nil
	}
	db, err := s.acquire()
	if err != nil {
		return nil, err
	}
	defer s.mu.RUnlock()
	return tagsOf(db, repo, id)
}

// linking lists the repositories that link d.
func (s *state) linking(d digest.Digest, p Page) (repos []string, err error) {
	id, ok := parseSum(string(d))
	if !ok {
		return nil, nil
	}
	repos, _, err = pageOf(s, linkedIn(id, ""), p.Last, limit(p), func(repo, _ []byte) (string, bool, error) {
		return string(repo), true, nil
	})
	return repos, err
}

// repoKnown reports whether a repository holds anything.
func (s *state) repoKnown(repo string) (bool, error) {
	db, err := s.acquire()
	if err != nil {
		return false, err
	}
	defer s.mu.RUnlock()
	prefix := repoPrefix(repo)
	ok, err := hasPrefix(db, prefix)
	if err != nil {
		return false, fmt.Errorf("read repository: %w", err)
	}
	return ok, nil
}

// limit returns how many items a page may have.
func limit(p Page) int {
	if p.N < 0 {
		return pageSize
	}
	return min(p.N, maxPage)
}

// tags lists the tags of a repository in byte order.
func (s *state) tags(repo string, p Page) (items []string, more bool, err error) {
	prefix := repoKey(repo, kindTag)
	items, more, err = pageOf(s, prefix, p.Last, limit(p), func(tag, _ []byte) (string, bool, error) {
		return string(tag), true, nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("list tags: %w", err)
	}
	return items, more, nil
}

// referrers lists the manifests of a repository that refer to subject, by
// digest; only those of one artifact type unless that is "".
func (s *state) referrers(repo string, subject digest.Digest, artifactType string, p Page) (items []v1.Descriptor, more bool, err error) {
	id, ok := parseSum(string(subject))
	last, lastOK := sum(""), true
	if p.Last != "" {
		last, lastOK = parseSum(p.Last)
	}
	if !ok || !lastOK {
		return nil, false, oci.ErrDigestInvalid
	}
	prefix := repoKey(repo, kindReferrer, string(id))
	items, more, err = pageOf(s, prefix, string(last), limit(p), func(d, v []byte) (v1.Descriptor, bool, error) {
		f := fields{b: v}
		if artifactType != "" && string(f.bytes()) != artifactType {
			return v1.Descriptor{}, false, f.err()
		}
		r, err := decodeReferrer(v)
		return v1.Descriptor{
			MediaType: r.mediaType, Digest: sumDigest(d), Size: r.size,
			ArtifactType: r.artifactType, Annotations: r.annotations,
		}, true, err
	})
	if err != nil {
		return nil, false, fmt.Errorf("list referrers: %w", err)
	}
	return items, more, nil
}

// pageOf makes a page of at most n items, and about pageBytes of values, out of
// the keys that start with prefix and whose rest comes after last. Item says what
// a key gives, or that it gives nothing.
func pageOf[T any](s *state, prefix []byte, last string, n int, item func(rest, value []byte) (T, bool, error)) (items []T, more bool, err error) {
	items = []T{}
	if n == 0 {
		return items, false, nil
	}
	db, err := s.acquire()
	if err != nil {
		return nil, false, err
	}
	defer s.mu.RUnlock()
	from := prefix
	if last != "" {
		from = append(append(bytes.Clone(prefix), last...), 0)
	}
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: after(prefix)})
	if err != nil {
		return nil, false, err
	}
	size := 0
	for ok := it.First(); ok && err == nil && !more; ok = it.Next() {
		var v []byte
		if v, err = it.ValueAndErr(); err != nil {
			break
		}
		one, wanted, itemErr := item(it.Key()[len(prefix):], v)
		switch {
		case itemErr != nil:
			err = itemErr
		case !wanted:
		case len(items) == n, size > pageBytes:
			more = true
		default:
			items = append(items, one)
			size += len(v)
		}
	}
	return items, more, errors.Join(err, it.Close())
}

// repositories lists the names of the repositories that pass sees (nil: all), in
// byte order, by one seek for each that there is.
func (s *state) repositories(p Page, sees func(repo string) bool) (items []string, more bool, err error) {
	items, n := []string{}, limit(p)
	if n == 0 {
		return items, false, nil
	}
	db, err := s.acquire()
	if err != nil {
		return nil, false, err
	}
	defer s.mu.RUnlock()
	it, err := newIter(db, []byte{keyRepo})
	if err != nil {
		return nil, false, fmt.Errorf("list repositories: %w", err)
	}
	from := []byte{keyRepo}
	if p.Last != "" {
		from = after(repoPrefix(p.Last))
	}
	for it.SeekGE(from) && !more {
		repo, _, found := bytes.Cut(it.Key()[1:], []byte{0})
		if !found {
			err = errRecord
			break
		}
		from = after(repoPrefix(string(repo)))
		if sees != nil && !sees(string(repo)) {
			continue
		}
		if more = len(items) == n; !more {
			items = append(items, string(repo))
		}
	}
	if err := errors.Join(err, it.Close()); err != nil {
		return nil, false, fmt.Errorf("list repositories: %w", err)
	}
	return items, more, nil
}
