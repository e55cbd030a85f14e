package metadata

import (
	"bytes"
	"errors"

	"github.com/cockroachdb/pebble/v2"
	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// Which images some bytes belong to, and which bytes come with an image. An
// image is a manifest with all that it names, the children of an index with all
// that they name, and what refers to any of these in the same repository, as
// signatures do. Neither question looks at more than it is about, however large
// the catalogue is.

// Look is what whoever asks for homes wants to hear next.
type Look uint8

// The three answers to a home.
const (
	Further   Look = iota // the tags of the repository, or the next one of them
	Elsewhere             // the next repository
	Enough                // nothing more of this digest
)

// AnyTag stands for the tags of more images than are looked at. It is no tag.
const AnyTag = "*"

const (
	maxHome  = 1000   // manifests of one repository that are looked at for one digest
	maxParts = 10_000 // manifests that come with one
)

// Homes tells which images each of ds belongs to, as this replica knows it. For
// each repository that has such images it calls see with its name and tag "";
// and where that answers Further, with the tags of these images, each perhaps
// several times. Where there are more than 1000 manifests to look at, the last
// tag is AnyTag. see is given the index of the digest, and must not call the
// Catalog.
func (c *Catalog) Homes(ds []digest.Digest, see func(i int, repo, tag string) Look) error {
	return wrapRead("images of a blob", c.state.homes(ds, see))
}

func (s *state) homes(ds []digest.Digest, see func(i int, repo, tag string) Look) error {
	for i, text := range ds {
		d, ok := parseSum(string(text))
		if !ok {
			return oci.ErrDigestInvalid
		}
		if err := s.homesOf(d, func(repo, tag string) Look { return see(i, repo, tag) }); err != nil {
			return err
		}
	}
	return nil
}

// homesOf is homes of one digest. Digests that many manifests name take long, so
// that whoever waits to close or to replace the state, and all who read behind
// it, wait for one of them at most.
func (s *state) homesOf(d sum, see func(repo, tag string) Look) error {
	db, err := s.acquire()
	if err != nil {
		return err
	}
	defer s.mu.RUnlock()
	at := db.NewSnapshot()
	defer at.Close()
	it, err := newIter(at, []byte{keyBytes})
	if err != nil {
		return err
	}
	return errors.Join(eachHome(at, it, d, see), it.Close())
}

// eachHome calls see with the homes of d; it is over the keys of bytes.
func eachHome(r pebble.Reader, it *pebble.Iterator, d sum, see func(repo, tag string) Look) error {
	all := bytesKey(d, kindManifest, "")
	for ok := it.SeekGE(all); ok && bytes.HasPrefix(it.Key(), all); {
		name, _, found := bytes.Cut(it.Key()[len(all):], []byte{0})
		if !found {
			return errRecord
		}
		repo := string(name)
		next := see(repo, "")
		if next == Further {
			var err error
			if next, err = tagsAround(r, repo, d, see); err != nil {
				return err
			}
		}
		if next == Enough {
			return nil
		}
		ok = it.SeekGE(after(namedBy(d, repo, "")))
	}
	return it.Error()
}

// tagsAround goes over the manifests of a repository that name d, those that
// name these, and those that any of them refers to.
func tagsAround(r pebble.Reader, repo string, d sum, see func(repo, tag string) Look) (Look, error) {
	seen := map[sum]bool{}
	var left []sum
	add := func(m sum) {
		if m != "" && !seen[m] {
			seen[m] = true
			left = append(left, m)
		}
	}
	addNaming := func(d sum) error {
		return scan(r, namedBy(d, repo, ""), func(m, _ []byte) (bool, error) {
			add(sum(m))
			return len(seen) <= maxHome, nil
		})
	}
	if err := addNaming(d); err != nil {
		return Enough, err
	}
	for len(left) > 0 {
		if len(seen) > maxHome {
			return see(repo, AnyTag), nil
		}
		m := left[0]
		left = left[1:]
		next := Further
		err := scan(r, repoKey(repo, kindTagOf, string(m)), func(tag, _ []byte) (bool, error) {
			next = see(repo, string(tag))
			return next == Further, nil
		})
		if err != nil || next != Further {
			return next, err
		}
		if err := addNaming(m); err != nil {
			return Enough, err
		}
		subject, err := subjectOf(r, repo, m)
		if err != nil {
			return Enough, err
		}
		add(subject)
	}
	return Elsewhere, nil
}

// subjectOf returns what a manifest refers to, "" for nothing. It leaves alone
// what the manifest names, which may be many thousands.
func subjectOf(r pebble.Reader, repo string, m sum) (subject sum, err error) {
	_, err = get(r, repoKey(repo, kindManifest, string(m)), func(v []byte) error {
		record, err := decodeManifest(v)
		if err != nil {
			return err
		}
		f := fields{b: record.names}
		subject = sum(f.bytes())
		return f.err()
	})
	return subject, err
}

// Parts calls fn with the blobs that come with a manifest of repo, as this
// replica knows it, a few at a time, each perhaps several times: those that some
// member must hold. A manifest that has gone has none. whole is false where more
// than 10,000 manifests come with this one, and not all were looked at.
func (c *Catalog) Parts(repo string, d digest.Digest, fn func(blobs []digest.Digest) error) (whole bool, err error) {
	return c.state.eachPart(repo, d, fn)
}

func (s *state) eachPart(repo string, d digest.Digest, fn func(blobs []digest.Digest) error) (whole bool, err error) {
	first, ok := parseSum(string(d))
	if !ok {
		return false, oci.ErrDigestInvalid
	}
	seen := map[sum]bool{first: true}
	for left := []sum{first}; len(left) > 0; left = left[1:] {
		blobs, more, err := s.parts(repo, left[0])
		if err != nil {
			return false, wrapRead("parts of an image", err)
		}
		if len(blobs) > 0 {
			if err := fn(blobs); err != nil {
				return false, err
			}
		}
		for _, m := range more {
			if seen[m] {
				continue
			}
			if len(seen) == maxParts {
				return false, nil
			}
			seen[m] = true
			left = append(left, m)
		}
	}
	return true, nil
}

// parts returns the blobs that one manifest names, its own body where that is
// one, and the manifests that come with it.
func (s *state) parts(repo string, m sum) (blobs []digest.Digest, manifests []sum, err error) {
	db, err := s.acquire()
	if err != nil {
		return nil, nil, err
	}
	defer s.mu.RUnlock()
	of, ok, err := getStored(db, repo, m)
	if err != nil || !ok {
		return nil, nil, err
	}
	if !of.inline {
		blobs = append(blobs, sumDigest([]byte(m)))
	}
	for _, ref := range of.refs {
		linked, err := get(db, repoKey(repo, kindLink, string(ref)), nil)
		if err != nil {
			return nil, nil, err
		}
		if linked {
			blobs = append(blobs, sumDigest([]byte(ref)))
		}
		stored, err := get(db, repoKey(repo, kindManifest, string(ref)), nil)
		if err != nil {
			return nil, nil, err
		}
		if stored {
			manifests = append(manifests, ref)
		}
	}
	err = scan(db, repoKey(repo, kindReferrer, string(m)), func(d, _ []byte) (bool, error) {
		manifests = append(manifests, sum(d))
		return len(manifests) <= maxParts, nil
	})
	return blobs, manifests, err
}

// Images calls fn with each manifest of the repositories that sees passes, and
// the tags on it, by repository and digest, as this replica knows them, until fn
// returns false.
func (c *Catalog) Images(sees func(repo string) bool, fn func(repo string, d digest.Digest, tags []string) bool) error {
	return wrapRead("images", c.state.images(sees, fn))
}

func (s *state) images(sees func(repo string) bool, fn func(repo string, d digest.Digest, tags []string) bool) error {
	for last, more := "", true; more; {
		var repos []string
		var err error
		if repos, more, err = s.repositories(Page{Last: last, N: pageSize}, sees); err != nil {
			return err
		}
		for _, repo := range repos {
			last = repo
			if on, err := s.imagesOf(repo, fn); !on || err != nil {
				return err
			}
		}
	}
	return nil
}

// imagesOf is images of one repository; on says that fn wants to hear more.
func (s *state) imagesOf(repo string, fn func(repo string, d digest.Digest, tags []string) bool) (on bool, err error) {
	for last, more := "", true; more; {
		var page []sum
		page, more, err = pageOf(s, repoKey(repo, kindManifest), last, pageSize, func(d, _ []byte) (sum, bool, error) {
			return sum(d), true, nil
		})
		if err != nil {
			return false, err
		}
		for _, m := range page {
			last = string(m)
			d := sumDigest([]byte(m))
			tags, err := s.tagsOn(repo, d)
			if err != nil || !fn(repo, d, tags) {
				return false, err
			}
		}
	}
	return true, nil
}
