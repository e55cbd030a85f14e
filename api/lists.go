package api

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"

	"github.com/gorilla/mux"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/flotilla-registry/flotilla/api/auth"
	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata"
)

// listTags answers GET tags/list (end-8a, end-8b), in byte order.
func (s *server) listTags(w http.ResponseWriter, r *http.Request) error {
	repo := mux.Vars(r)["name"]
	p, err := page(r, oci.CheckTag)
	if err != nil {
		return err
	}
	tags, err := s.Catalog.Tags(r.Context(), repo, p)
	if err != nil {
		return err
	}
	warnAge(w, tags.Freshness)
	next(w, r, p, tags.More, last(tags.Items))
	return writeJSON(w, http.StatusOK, struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{repo, some(tags.Items)})
}

// listRepositories answers GET _catalog, which the specification reserves and
// Docker's registry defined, with the repositories that whoever asks may see.
func (s *server) listRepositories(w http.ResponseWriter, r *http.Request) error {
	p, err := page(r, oci.CheckName)
	if err != nil {
		return err
	}
	sees, err := s.Auth.Catalog(visitOf(r).who)
	if err != nil {
		return s.challenge(w, r, err, auth.Scope{})
	}
	repos, err := s.Catalog.Repositories(r.Context(), p, sees)
	if err != nil {
		return err
	}
	warnAge(w, repos.Freshness)
	next(w, r, p, repos.More, last(repos.Items))
	return writeJSON(w, http.StatusOK, struct {
		Repositories []string `json:"repositories"`
	}{some(repos.Items)})
}

// listReferrers answers GET referrers (end-12a, end-12b) with an image index. A
// subject, or a repository, that is not there has no referrers; it is never 404,
// which would tell clients that the registry has no such API.
func (s *server) listReferrers(w http.ResponseWriter, r *http.Request) error {
	d, err := oci.ParseDigest(mux.Vars(r)["digest"])
	if err != nil {
		return err
	}
	p, err := page(r, func(last string) error { _, err := oci.ParseDigest(last); return err })
	if err != nil {
		return err
	}
	artifactType := r.URL.Query().Get("artifactType")
	referrers, err := s.Catalog.Referrers(r.Context(), mux.Vars(r)["name"], d, artifactType, p)
	if err != nil && !errors.Is(err, oci.ErrNameUnknown) {
		return err
	}
	warnAge(w, referrers.Freshness)
	if artifactType != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	if n := len(referrers.Items); n > 0 {
		next(w, r, p, referrers.More, referrers.Items[n-1].Digest.String())
	}
	w.Header().Set("Content-Type", v1.MediaTypeImageIndex)
	return writeJSON(w, http.StatusOK, v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageIndex,
		Manifests: some(referrers.Items),
	})
}

// page reads n and last. Without n it is for the catalogue to say how much it
// gives at once.
func page(r *http.Request, check func(last string) error) (metadata.Page, error) {
	q := r.URL.Query()
	p := metadata.Page{Last: q.Get("last"), N: -1}
	if p.Last != "" {
		if err := check(p.Last); err != nil {
			return p, err
		}
	}
	if n := q.Get("n"); n != "" {
		v, err := strconv.ParseUint(n, 10, 31)
		if err != nil && !errors.Is(err, strconv.ErrRange) { // beyond the range it is the largest
			return p, oci.ErrUnsupported.Because("n=%.32q must be a number, 0 or more", n)
		}
		p.N = int(v)
	}
	return p, nil
}

// next points to the page after the one that ends with last, where there is one
// to point to: RFC 8288. n=0 asks for none.
func next(w http.ResponseWriter, r *http.Request, p metadata.Page, more bool, last string) {
	if !more || p.N == 0 || last == "" {
		return
	}
	q := url.Values{"last": {last}}
	for _, key := range []string{"n", "artifactType", "ns"} {
		if v := r.URL.Query().Get(key); v != "" {
			q.Set(key, v)
		}
	}
	w.Header().Set("Link", "<"+r.URL.Path+"?"+q.Encode()+`>; rel="next"`)
}

// last returns the last of items, or "".
func last(items []string) string {
	if len(items) == 0 {
		return ""
	}
	return items[len(items)-1]
}

// some returns items so that JSON shows an empty list, not null.
func some[T any](items []T) []T {
	if items == nil {
		return []T{}
	}
	return items
}
