package metadata

import (
	"crypto/ed25519"
	"slices"

	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// The rules of Apply, one operation each. A rule looks first and writes after
// it has decided.

// link makes a blob part of a repository, or marks its link used.
func (t *tx) link(op *wire.Link) (decision, error) {
	if !validName(op.Repo, maxRepo) || op.Mount && op.From != "" && !validName(op.From, maxRepo) {
		return decision{verdict: badName}, nil
	}
	d, ok := parseSum(op.Digest)
	if !ok {
		return decision{verdict: badDigest}, nil
	}
	if op.Size < 0 {
		return decision{verdict: badSize}, nil
	}
	from := ""
	if op.Mount {
		from = op.From
	}
	size, known, err := t.linkedSize(d, op.Repo, from)
	if err != nil {
		return decision{}, err
	}
	if !known {
		if op.Mount {
			return decision{verdict: noBlob}, nil
		}
		size = op.Size
	}
	if err := t.setLink(op.Repo, d, link{size: size, used: t.at.now}); err != nil {
		return decision{}, err
	}
	return decision{size: size}, t.b.Set(linkedIn(d, op.Repo), nil, nil)
}

// linkedSize returns the size that a link on d must have. A digest has one
// size, so the first link anywhere decides it for all. With from given, a link
// there is what counts.
func (t *tx) linkedSize(d sum, repo, from string) (size int64, known bool, err error) {
	if from != "" {
		repo = from
	}
	l, known, err := t.getLink(repo, d)
	if known || err != nil || from != "" {
		return l.size, known, err
	}
	prefix := linkedIn(d, "")
	err = scan(t.b, prefix, func(other, _ []byte) (bool, error) {
		repo, known = string(other), true
		return false, nil
	})
	if err != nil || !known {
		return 0, false, err
	}
	l, known, err = t.getLink(repo, d)
	return l.size, known, err
}

func (t *tx) getLink(repo string, d sum) (l link, ok bool, err error) {
	ok, err = get(t.b, repoKey(repo, kindLink, string(d)), func(v []byte) (err error) {
		l, err = decodeLink(v)
		return err
	})
	return l, ok, err
}

func (t *tx) setLink(repo string, d sum, l link) error {
	return t.b.Set(repoKey(repo, kindLink, string(d)), l.encode(), nil)
}

// unlink drops a blob from a repository, and from it alone, even where
// manifests there need it: the client asked for that.
func (t *tx) unlink(op *wire.Unlink) (decision, error) {
	d, ok := parseSum(op.Digest)
	if !ok {
		return decision{verdict: badDigest}, nil
	}
	if !validName(op.Repo, maxRepo) {
		return decision{verdict: badName}, nil
	}
	_, ok, err := t.getLink(op.Repo, d)
	if err != nil {
		return decision{}, err
	}
	if !ok {
		return decision{verdict: noBlob}, nil
	}
	return decision{}, t.delete(repoKey(op.Repo, kindLink, string(d)), linkedIn(d, op.Repo))
}

func (t *tx) delete(keys ...[]byte) error {
	for _, k := range keys {
		if err := t.b.Delete(k, nil); err != nil {
			return err
		}
	}
	return nil
}

// manifest stores a manifest, what it names, and its tags.
func (t *tx) manifest(op *wire.Manifest) (decision, error) {
	d, n, v := checkManifest(op)
	if v != done {
		return decision{verdict: v}, nil
	}
	missing, err := t.missing(op)
	if err != nil {
		return decision{}, err
	}
	if len(missing) > 0 {
		return decision{verdict: blobsMissing, missing: missing}, nil
	}
	m := manifestRecord{
		pushed: t.at.now, size: op.Size, mediaType: op.MediaType,
		names: n.encode(), inline: op.Body != nil, body: op.Body,
	}
	old, err := t.replace(op.Repo, d, &m, n)
	if err != nil {
		return decision{}, err
	}
	if err := t.name(op, d, n); err != nil {
		return decision{}, err
	}
	if err := t.unname(op.Repo, d, old, n); err != nil {
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
	return decision{}, nil
}

// checkManifest decides what needs no look at the state.
func checkManifest(op *wire.Manifest) (d sum, n naming, v verdict) {
	if !validName(op.Repo, maxRepo) {
		return d, n, badName
	}
	for _, tag := range op.Tags {
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

// missing returns the first blobs that the manifest needs and its repository
// does not link. Children of an index may be absent.
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
		if !linked && len(missing) < maxMissing && !slices.Contains(missing, d) {
			missing = append(missing, d)
		}
	}
	return missing, nil
}

// replace completes m from the manifest that is stored under its digest, if
// there is one: the same bytes put again, so that their first push and their
// body stand. It returns what that one named: under another media type the
// same bytes may name other things.
func (t *tx) replace(repo string, d sum, m *manifestRecord, n naming) (old naming, err error) {
	_, err = get(t.b, repoKey(repo, kindManifest, string(d)), func(v []byte) error {
		prev, err := decodeManifest(v)
		if err != nil {
			return err
		}
		m.pushed = prev.pushed
		if !m.inline && prev.inline {
			m.inline, m.body = true, slices.Clone(prev.body)
		}
		old, err = decodeNaming(prev.names)
		return err
	})
	return old, err
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
// was the last in its repository to use a blob, the link's age counts from now.
func (t *tx) unname(repo string, d sum, old, n naming) error {
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
		if err := t.delete(repoKey(repo, kindTagOf, string(old), tag)); err != nil {
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
	return decision{}, t.delete(repoKey(op.Repo, kindTag, op.Tag), repoKey(op.Repo, kindTagOf, string(d), op.Tag))
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
	var old naming
	key := repoKey(op.Repo, kindManifest, string(d))
	ok, err := get(t.b, key, func(v []byte) error {
		m, err := decodeManifest(v)
		if err == nil {
			old, err = decodeNaming(m.names)
		}
		return err
	})
	if err != nil {
		return decision{}, err
	}
	if !ok {
		return decision{verdict: noManifest}, nil
	}
	gone := [][]byte{key, namedBy(d, op.Repo, d)}
	err = scan(t.b, repoKey(op.Repo, kindTagOf, string(d)), func(tag, _ []byte) (bool, error) {
		gone = append(gone,
			repoKey(op.Repo, kindTag, string(tag)),
			repoKey(op.Repo, kindTagOf, string(d), string(tag)))
		return true, nil
	})
	if err != nil {
		return decision{}, err
	}
	if err := t.delete(gone...); err != nil {
		return decision{}, err
	}
	return decision{}, t.unname(op.Repo, d, old, naming{})
}

// member enters a node, updates it or buries it, and founds the mesh.
func (t *tx) member(op *wire.Member) (decision, error) {
	if !validName(op.Id, maxID) || op.Name == "" && !op.Removed || op.Removed && op.Cluster != nil {
		return decision{verdict: badRequest}, nil
	}
	v, err := t.checkMember(op)
	if v != done || err != nil {
		return decision{verdict: v}, err
	}
	if c := op.Cluster; c != nil {
		if t.cluster.ID != "" {
			return decision{verdict: alreadyFounded}, nil
		}
		if c.Id == "" || c.Replicas < 1 {
			return decision{verdict: badRequest}, nil
		}
		t.cluster = Cluster{ID: c.Id, Epoch: c.Epoch, Replicas: int(c.Replicas), AllowSparse: c.AllowSparse}
		if err := t.b.Set([]byte{keyCluster}, encodeCluster(t.cluster), nil); err != nil {
			return decision{}, err
		}
	}
	t.membersChanged = true
	m := memberRecord{buried: op.Removed}
	if !op.Removed {
		m.Member = Member{
			Name: op.Name, Key: op.Key, Zone: op.Zone,
			Weight: op.Weight, Level: op.Level, Address: op.Address,
		}
	}
	return decision{}, t.b.Set(memberKey(op.Id), m.encode(), nil)
}

// checkMember holds op against the members there are: an id belongs to one key
// for ever, a name to one member at a time.
func (t *tx) checkMember(op *wire.Member) (v verdict, err error) {
	err = scan(t.b, []byte{keyMember}, func(id, value []byte) (bool, error) {
		m, err := decodeMember(string(id), value)
		switch {
		case err != nil || op.Removed:
		case m.ID == op.Id && m.buried:
			v = idBuried
		case m.ID == op.Id && !m.Key.Equal(ed25519.PublicKey(op.Key)):
			v = keyDiffers
		case m.ID != op.Id && m.Name == op.Name: // graves have no name
			v = nameTaken
		}
		return v == done, err
	})
	return v, err
}
