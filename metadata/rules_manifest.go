package metadata

import (
	"bytes"
	"crypto/sha256"
	"io"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// manifest stores a manifest, what it names, and its tags.
func (t *tx) manifest(op *wire.Manifest) (decision, error) {
	d, n, v := checkManifest(op)
	if v != done {
		return decision{verdict: v}, nil
	}
	if t.late(op.NamedBy) {
		return decision{verdict: namedLate}, nil
	}
	tag, err := t.immutable(op, d)
	if err != nil {
		return decision{}, err
	}
	if tag != "" {
		return decision{verdict: tagImmutable, tag: tag}, nil
	}
	missing, err := t.missing(op)
	if err != nil {
		return decision{}, err
	}
	if len(missing) > 0 {
		return decision{verdict: blobsMissing, missing: missing}, nil
	}
	m := manifestRecord{
		size: op.Size, mediaType: op.MediaType,
		names: n.encode(), inline: op.Body != nil, body: op.Body,
	}
	old, known, err := t.replace(op.Repo, d, &m)
	if err != nil {
		return decision{}, err
	}
	if err := t.name(op, d, n); err != nil {
		return decision{}, err
	}
	if err := t.unname(op.Repo, d, old, n, t.at.now); err != nil {
		return decision{}, err
	}
	if err := t.b.Set(repoKey(op.Repo, kindManifest, string(d)), m.encode(), nil); err != nil {
		return decision{}, err
	}
	for _, tag := range op.Tags {
		if err := t.setTag(op.Repo, tag, d); err != nil {
			return decision{}, err
		}
	}
	if op.Body == nil { // it was placed just now, even where an earlier body stands
		if err := t.found(d); err != nil {
			return decision{}, err
		}
	}
	return decision{}, t.indexPut(op, d, m, known)
}

// checkManifest decides what needs no look at the state.
func checkManifest(op *wire.Manifest) (d sum, n naming, v verdict) {
	if !validName(op.Repo, maxRepo) {
		return d, n, badName
	}
	for _, tag := range slices.Concat(op.Tags, op.ImmutableTags) {
		if !validName(tag, maxTag) {
			return d, n, badTag
		}
	}
	if op.Size < 0 {
		return d, n, badSize
	}
	d, ok := parseSum(op.Digest)
	if op.Subject != "" && ok {
		n.subject, ok = parseSum(op.Subject)
	}
	for _, list := range [][]string{op.Blobs, op.Children} {
		for i := 0; i < len(list) && ok; i++ {
			var ref sum
			ref, ok = parseSum(list[i])
			n.refs = append(n.refs, ref)
		}
	}
	if !ok {
		return d, n, badDigest
	}
	slices.Sort(n.refs)
	n.refs = slices.Compact(n.refs)
	return d, n, done
}

// immutable returns the first tag that may not move and names another manifest
// than d, or "".
func (t *tx) immutable(op *wire.Manifest, d sum) (string, error) {
	for _, tag := range op.ImmutableTags {
		old, has, err := t.getTag(op.Repo, tag)
		if err != nil {
			return "", err
		}
		if has && old != d {
			return tag, nil
		}
	}
	return "", nil
}

// missing returns the first blobs that the manifest needs and its repository
// does not link, or that are lost. Children of an index may be absent.
func (t *tx) missing(op *wire.Manifest) (missing []sum, err error) {
	if t.cluster.AllowSparse {
		return nil, nil
	}
	for _, b := range op.Blobs {
		d, _ := parseSum(b)
		linked, err := get(t.b, repoKey(op.Repo, kindLink, string(d)), nil)
		if err != nil {
			return nil, err
		}
		if linked {
			lost, err := isLost(t.b, d)
			if err != nil {
				return nil, err
			}
			linked = !lost
		}
		if !linked && len(missing) < maxMissing && !slices.Contains(missing, d) {
			missing = append(missing, d)
		}
	}
	return missing, nil
}

// replace completes m from the manifest that is stored under its digest, if
// there is one: the same bytes put again, so that their
// body stands. It returns what that one named: under another media type the
// same bytes may name other things.
func (t *tx) replace(repo string, d sum, m *manifestRecord) (old naming, known bool, err error) {
	known, err = get(t.b, repoKey(repo, kindManifest, string(d)), func(v []byte) error {
		prev, err := decodeManifest(v)
		if err != nil {
			return err
		}
		if !m.inline && prev.inline {
			m.inline, m.body = true, slices.Clone(prev.body)
		}
		old, err = decodeNaming(prev.names)
		return err
	})
	return old, known, err
}

// name enters what a manifest names: its own bytes, blobs and children, and
// the subject that it refers to.
func (t *tx) name(op *wire.Manifest, d sum, n naming) error {
	if n.subject != "" {
		r := referrer{
			artifactType: op.ArtifactType, mediaType: op.MediaType,
			size: op.Size, annotations: op.Annotations,
		}
		key := repoKey(op.Repo, kindReferrer, string(n.subject), string(d))
		if err := t.b.Set(key, r.encode(), nil); err != nil {
			return err
		}
	}
	if err := t.b.Set(namedBy(d, op.Repo, d), nil, nil); err != nil {
		return err
	}
	for _, ref := range n.refs {
		if err := t.b.Set(namedBy(ref, op.Repo, d), nil, nil); err != nil {
			return err
		}
	}
	return nil
}

// unname drops what a manifest named as old and does not name as n. Where it
// was the last in its repository to use a blob, the link's age counts from now;
// that of a child without a tag counts from kept, until when the manifest kept
// it.
func (t *tx) unname(repo string, d sum, old, n naming, kept int64) error {
	if old.subject != "" && old.subject != n.subject {
		if err := t.delete(repoKey(repo, kindReferrer, string(old.subject), string(d))); err != nil {
			return err
		}
	}
	for _, ref := range old.refs {
		if _, still := slices.BinarySearch(n.refs, ref); still || ref == d {
			continue
		}
		if err := t.delete(namedBy(ref, repo, d)); err != nil {
			return err
		}
		if err := t.renewUntagged(repo, ref, kept); err != nil {
			return err
		}
		l, linked, err := t.getLink(repo, ref)
		if err != nil {
			return err
		}
		if !linked {
			continue
		}
		used, err := hasPrefix(t.b, namedBy(ref, repo, ""))
		if err != nil {
			return err
		}
		if used {
			continue
		}
		l.used = t.at.now
		if err := t.setLink(repo, ref, l); err != nil {
			return err
		}
	}
	return nil
}

// setTag makes tag name the manifest d.
func (t *tx) setTag(repo, tag string, d sum) error {
	old, had, err := t.getTag(repo, tag)
	if err != nil || old == d {
		return err
	}
	if had {
		if err := t.dropTag(repo, tag, old); err != nil {
			return err
		}
	}
	if err := t.b.Set(repoKey(repo, kindTag, tag), []byte(d), nil); err != nil {
		return err
	}
	return t.b.Set(repoKey(repo, kindTagOf, string(d), tag), nil, nil)
}

func (t *tx) getTag(repo, tag string) (d sum, ok bool, err error) {
	ok, err = get(t.b, repoKey(repo, kindTag, tag), func(v []byte) error {
		d = sum(v)
		return nil
	})
	return d, ok, err
}

// untag drops a tag; the manifest stays.
func (t *tx) untag(op *wire.Untag) (decision, error) {
	if !validName(op.Repo, maxRepo) {
		return decision{verdict: badName}, nil
	}
	if !validName(op.Tag, maxTag) {
		return decision{verdict: badTag}, nil
	}
	d, ok, err := t.getTag(op.Repo, op.Tag)
	if err != nil {
		return decision{}, err
	}
	if !ok {
		return decision{verdict: noManifest}, nil
	}
	return decision{}, t.dropTag(op.Repo, op.Tag, d)
}

// dropTag takes a tag from the manifest d.
func (t *tx) dropTag(repo, tag string, d sum) error {
	if err := t.delete(repoKey(repo, kindTag, tag), repoKey(repo, kindTagOf, string(d), tag)); err != nil {
		return err
	}
	return t.indexUntag(repo, d)
}

// unmanifest drops a manifest from a repository with every tag on it.
func (t *tx) unmanifest(op *wire.Unmanifest) (decision, error) {
	if !validName(op.Repo, maxRepo) {
		return decision{verdict: badName}, nil
	}
	d, ok := parseSum(op.Digest)
	if !ok {
		return decision{verdict: badDigest}, nil
	}
	old, ok, err := getStored(t.b, op.Repo, d)
	if err != nil {
		return decision{}, err
	}
	if !ok {
		return decision{verdict: noManifest}, nil
	}
	if op.Tags != nil {
		tags, err := tagsOf(t.b, op.Repo, d)
		if err != nil || !bytes.Equal(op.Tags, sumTags(tags)) {
			return decision{verdict: tagsDiffer}, err
		}
	}
	return decision{}, t.dropManifest(op.Repo, d, old, t.at.now)
}

// tagsOf lists the tags that name a manifest, in byte order.
func tagsOf(r pebble.Reader, repo string, d sum) (tags []string, err error) {
	err = scan(r, repoKey(repo, kindTagOf, string(d)), func(tag, _ []byte) (bool, error) {
		tags = append(tags, string(tag))
		return true, nil
	})
	return tags, err
}

// sumTags stands for tags in byte order, however many they are.
func sumTags(tags []string) []byte {
	h := sha256.New()
	for _, tag := range tags {
		io.WriteString(h, tag)
		h.Write([]byte{0})
	}
	return h.Sum(nil)
}

// stored is what the rules must know of a manifest.
type stored struct {
	naming
	inline bool
}

func getStored(r pebble.Reader, repo string, d sum) (s stored, ok bool, err error) {
	ok, err = get(r, repoKey(repo, kindManifest, string(d)), func(v []byte) error {
		m, err := decodeManifest(v)
		if err == nil {
			s.inline = m.inline
			s.naming, err = decodeNaming(m.names)
		}
		return err
	})
	return s, ok, err
}

// dropManifest drops a manifest, every tag on it, and what it named; for kept
// see unname.
func (t *tx) dropManifest(repo string, d sum, old stored, kept int64) error {
	tags, err := tagsOf(t.b, repo, d)
	if err != nil {
		return err
	}
	gone := [][]byte{repoKey(repo, kindManifest, string(d)), namedBy(d, repo, d)}
	for _, tag := range tags {
		gone = append(gone, repoKey(repo, kindTag, tag), repoKey(repo, kindTagOf, string(d), tag))
	}
	if err := t.delete(gone...); err != nil {
		return err
	}
	if err := t.indexDrop(repo, d, old); err != nil {
		return err
	}
	return t.unname(repo, d, old.naming, naming{}, kept)
}
