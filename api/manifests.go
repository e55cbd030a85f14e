package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/mux"
	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata"
)

// maxTags bounds the tags of one push; the specification asks for at least 10.
const maxTags = 100

// getManifest answers GET and HEAD (end-3). The manifest is sent as it was
// pushed whatever Accept says: it has one form, and its digest.
func (s *server) getManifest(w http.ResponseWriter, r *http.Request) error {
	ref, err := oci.ParseReference(mux.Vars(r)["reference"])
	if err != nil {
		return err
	}
	m, err := s.Catalog.Manifest(r.Context(), mux.Vars(r)["name"], ref)
	if err != nil {
		return err
	}
	if m.Stale && r.Method == http.MethodHead { // may expire before another names it: have it pushed again
		return oci.ErrManifestUnknown
	}
	warnAge(w, m.Freshness)
	w.Header().Set("Content-Type", m.MediaType)
	switch {
	case m.Body != nil:
		return serveContent(w, r, m.Digest, bytes.NewReader(m.Body))
	case r.Method == http.MethodHead:
		return serveSize(w, r, m.Digest, m.Size)
	}
	content, _, err := s.Blobs.Open(r.Context(), m.Digest)
	if err != nil {
		return err
	}
	defer content.Close()
	return serveContent(w, r, m.Digest, content)
}

// putManifest answers PUT (end-7a, end-7b).
func (s *server) putManifest(w http.ResponseWriter, r *http.Request) error {
	repo := mux.Vars(r)["name"]
	ref, err := oci.ParseReference(mux.Vars(r)["reference"])
	if err != nil {
		return err
	}
	tags, err := tagParameters(r)
	if err != nil {
		return err
	}
	if err := s.Room(); err != nil { // names need room too, in the part of the disk that blobs leave them
		return err
	}
	body, done, err := s.readManifest(r)
	defer done()
	if err != nil {
		return err
	}
	d := digest.FromBytes(body)
	if ref.Digest != "" {
		if d = ref.Digest.Algorithm().FromBytes(body); d != ref.Digest {
			return oci.ErrDigestInvalid.Because("the manifest sent is %s", d)
		}
	}
	m, err := s.parseManifest(r, d, body)
	if err != nil {
		return err
	}
	if err := s.storeManifest(r, m, body, withTag(tags, ref.Tag)); err != nil {
		return err
	}
	h := w.Header()
	h.Set("Location", "/v2/"+repo+"/manifests/"+d.String())
	h.Set("Docker-Content-Digest", d.String())
	if m.Subject != nil {
		h.Set("OCI-Subject", m.Subject.Digest.String())
	}
	if len(tags) > 0 {
		h.Set("OCI-Tag", strings.Join(tags, ", "))
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

// storeManifest commits m under the tags, after placing a body that is too large
// to ride in the log. The policy comes last, as it is when the bytes have come.
func (s *server) storeManifest(r *http.Request, m oci.Manifest, body []byte, tags []string) error {
	place := func() error { return nil }
	if large := body; len(large) > s.Catalog.InlineLimit() {
		place = func() error { return s.Blobs.Put(r.Context(), m.Digest, m.Size, bytes.NewReader(large)) }
		body = nil
	}
	repo := mux.Vars(r)["name"]
	return s.placeAndName(r, placing{place: place, again: place, name: func(placed time.Time) error {
		return s.Catalog.PutManifest(r.Context(), metadata.Put{
			Repo: repo, Tags: tags, Manifest: m, Body: body, Placed: placed, ImmutableTags: s.immutable(repo, tags),
		})
	}})
}

// deleteManifest answers DELETE of a tag or of a manifest with all its tags
// (end-9).
func (s *server) deleteManifest(w http.ResponseWriter, r *http.Request) error {
	repo := mux.Vars(r)["name"]
	ref, err := oci.ParseReference(mux.Vars(r)["reference"])
	if err != nil {
		return err
	}
	var everywhere bool
	switch {
	case ref.Digest == "":
		if err = s.mayGo(repo, ref.Tag); err == nil {
			everywhere, err = s.Catalog.DeleteTag(r.Context(), repo, ref.Tag)
		}
	case s.Auth.HasImmutable(repo):
		everywhere, err = s.deleteTagged(r.Context(), repo, ref.Digest)
	default:
		everywhere, err = s.Catalog.DeleteManifest(r.Context(), repo, ref.Digest)
	}
	if err != nil {
		return err
	}
	deleted(w, everywhere)
	return nil
}

// deleteTagged deletes a manifest unless one of the tags on it is immutable, be
// it one that is pushed at the same time.
func (s *server) deleteTagged(ctx context.Context, repo string, d digest.Digest) (everywhere bool, err error) {
	const tries = 10
	for range tries {
		tags, err := s.Catalog.TagsOn(ctx, repo, d)
		if err == nil {
			err = s.mayGo(repo, tags...)
		}
		if err != nil {
			return false, err
		}
		everywhere, err = s.Catalog.DeleteTagged(ctx, repo, d, tags)
		if !errors.Is(err, oci.ErrConflict) {
			return everywhere, err
		}
	}
	return false, oci.ErrConflict.Because("the tags on it keep changing")
}

// mayGo returns ErrDenied where one of the tags is immutable.
func (s *server) mayGo(repo string, tags ...string) error {
	if kept := s.immutable(repo, tags); len(kept) > 0 {
		return oci.ErrDenied.Because("the tag %s is immutable", kept[0])
	}
	return nil
}

// immutable returns those of tags that may neither move nor go.
func (s *server) immutable(repo string, tags []string) (kept []string) {
	for _, tag := range tags {
		if s.Auth.Immutable(repo, tag) {
			kept = append(kept, tag)
		}
	}
	return kept
}

// deleted answers a DELETE that has been committed.
func deleted(w http.ResponseWriter, everywhere bool) {
	if !everywhere {
		warn(w, "deleted, but some nodes have not heard of it yet and may answer for a while")
	}
	w.WriteHeader(http.StatusAccepted)
}

const (
	// smallManifest is what nearly all manifests fit in; any number of these
	// may be on their way.
	smallManifest = 256 << 10
	// maxLarge is how many larger ones may be in memory at once, of which one
	// account may have sent maxLargeOf, and maxParsing how many of them may be
	// parsed, which takes many times their size for a moment.
	maxLarge   = 64
	maxLargeOf = maxLarge / 4
	maxParsing = 2
)

// parseManifest has large bodies wait for their turn.
func (s *server) parseManifest(r *http.Request, d digest.Digest, body []byte) (oci.Manifest, error) {
	if len(body) > smallManifest {
		select {
		case s.parsing <- struct{}{}:
			defer func() { <-s.parsing }()
		case <-r.Context().Done():
			return oci.Manifest{}, context.Cause(r.Context())
		}
	}
	return oci.ParseManifest(r.Header.Get("Content-Type"), d, body)
}

// readManifest reads a body of at most oci.MaxManifest. The caller calls done
// when the body may be forgotten.
func (s *server) readManifest(r *http.Request) (body []byte, done func(), err error) {
	done = func() {}
	if r.ContentLength > oci.MaxManifest {
		return nil, done, oci.ErrManifestTooLarge
	}
	keepPace(r, oci.MaxManifest)
	body, err = io.ReadAll(io.LimitReader(r.Body, smallManifest))
	if err == nil && len(body) == smallManifest {
		if done, err = s.enterLarge(visitOf(r).name); err != nil {
			return nil, done, err
		}
		var rest []byte
		rest, err = io.ReadAll(io.LimitReader(r.Body, oci.MaxManifest-smallManifest+1))
		body = append(body, rest...)
	}
	switch {
	case err != nil:
		err = oci.ErrSizeInvalid.Because("the body ended early").Wrap(err)
	case len(body) > oci.MaxManifest:
		err = oci.ErrManifestTooLarge
	}
	return body, done, err
}

// enterLarge takes a place among the large manifests for one that the account
// sends, until leave is called. No account gets so many that others find none.
func (s *server) enterLarge(name string) (leave func(), err error) {
	most := maxLargeOf
	if s.Auth.Open() { // all are the same nobody
		most = maxLarge
	}
	if !s.manifests.enter(name, most) {
		return func() {}, oci.ErrTooManyRequests.Because("%s sends too many large manifests at once", name)
	}
	select {
	case s.large <- struct{}{}:
		return func() { <-s.large; s.manifests.leave(name) }, nil
	default:
		s.manifests.leave(name)
		return func() {}, oci.ErrTooManyRequests.Because("too many large manifests at once")
	}
}

// tagParameters returns the tags in r's query, each once.
func tagParameters(r *http.Request) ([]string, error) {
	var tags []string
	for _, tag := range r.URL.Query()["tag"] {
		if err := oci.CheckTag(tag); err != nil {
			return nil, err
		}
		tags = withTag(tags, tag)
	}
	if len(tags) > maxTags {
		return nil, oci.ErrTooManyTags.Because("%d, at most %d", len(tags), maxTags)
	}
	return tags, nil
}

// withTag returns tags and tag, unless that is empty or among them.
func withTag(tags []string, tag string) []string {
	if tag == "" || slices.Contains(tags, tag) {
		return tags
	}
	return append(slices.Clip(tags), tag)
}
