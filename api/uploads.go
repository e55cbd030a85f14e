package api

import (
	"errors"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"time"

	"github.com/gorilla/mux"
	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// startUpload answers POST, in its four forms: mount a blob that the registry
// has (end-11), take one at once (end-4b), or open a session (end-4a, end-4c).
// A mount that cannot be done opens a session.
func (s *server) startUpload(w http.ResponseWriter, r *http.Request) error {
	repo, q := mux.Vars(r)["name"], r.URL.Query()
	alg, err := oci.ParseAlgorithm(q.Get("digest-algorithm"))
	if err != nil {
		return err
	}
	switch {
	case q.Has("mount"):
		d, err := oci.ParseDigest(q.Get("mount"))
		if err != nil {
			return err
		}
		if mounted, err := s.mount(w, r, repo, d); err != nil {
			return err
		} else if mounted {
			created(w, repo, d)
			return nil
		}
		if !q.Has("digest-algorithm") {
			alg = d.Algorithm() // what the client will now send
		}
	case q.Has("digest"):
		return s.pushBlob(w, r, repo)
	}
	id, err := s.Uploads.Start(r.Context(), bound(r, repo), alg)
	if err != nil {
		return err
	}
	session(w, r, id, 0)
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// mount links d into repo from the repository that the client names, or from
// any.
func (s *server) mount(w http.ResponseWriter, r *http.Request, repo string, d digest.Digest) (bool, error) {
	from := r.URL.Query().Get("from")
	if from != "" && oci.CheckName(from) != nil {
		return false, nil
	}
	from, ok, err := s.mayMount(w, r, repo, from, d)
	if err != nil || !ok {
		return false, err
	}
	_, err = s.Catalog.MountBlob(r.Context(), repo, d, from)
	if errors.Is(err, oci.ErrBlobUnknown) || errors.Is(err, oci.ErrNameUnknown) {
		return false, nil
	}
	return err == nil, err
}

// pushBlob takes a whole blob in one POST.
func (s *server) pushBlob(w http.ResponseWriter, r *http.Request, repo string) error {
	d, err := oci.ParseDigest(r.URL.Query().Get("digest"))
	if err != nil {
		return err
	}
	body := &countingReader{r: r.Body}
	err = s.placeAndName(r, placing{
		place: func() error { return s.Blobs.Put(r.Context(), d, r.ContentLength, body) },
		again: func() error { return s.Blobs.Renew(r.Context(), d) },
		name: func(placed time.Time) error {
			size := r.ContentLength
			if size < 0 {
				size = body.n
			}
			return s.Catalog.LinkBlob(r.Context(), repo, d, size, placed)
		},
	})
	if err != nil {
		return err
	}
	created(w, repo, d)
	return nil
}

// appendUpload answers PATCH (end-5): a chunk at its place, or, without
// Content-Range, a stream at the end.
func (s *server) appendUpload(w http.ResponseWriter, r *http.Request) error {
	u, err := upload(r)
	if err != nil {
		return err
	}
	off, body, err := chunk(r)
	if err == nil {
		var size int64
		if size, err = s.Uploads.Append(r.Context(), u, off, body); err == nil {
			session(w, r, u.ID, size)
			w.WriteHeader(http.StatusAccepted)
			return nil
		}
	}
	return s.explain(w, r, u, err)
}

// finishUpload answers PUT (end-6), which may bring the last chunk. Where only
// the name fails, the client repeats the request.
func (s *server) finishUpload(w http.ResponseWriter, r *http.Request) error {
	u, err := upload(r)
	if err != nil {
		return err
	}
	d, err := oci.ParseDigest(r.URL.Query().Get("digest"))
	if err != nil {
		return err
	}
	off, body, err := chunk(r)
	if err != nil {
		return s.explain(w, r, u, err)
	}
	repo, size := mux.Vars(r)["name"], int64(0)
	err = s.placeAndName(r, placing{
		place: func() error {
			if size, err = s.Uploads.Finish(r.Context(), u, off, body, d); err != nil {
				return s.explain(w, r, u, err)
			}
			return nil
		},
		again: func() error {
			_, err := s.Uploads.Finish(r.Context(), u, -1, http.NoBody, d)
			return err
		},
		name: func(placed time.Time) error { return s.Catalog.LinkBlob(r.Context(), repo, d, size, placed) },
	})
	if err != nil {
		return err
	}
	created(w, repo, d)
	return nil
}

// getUpload answers GET (end-13) with how far the upload is.
func (s *server) getUpload(w http.ResponseWriter, r *http.Request) error {
	u, err := upload(r)
	if err != nil {
		return err
	}
	size, err := s.Uploads.Size(r.Context(), u)
	if err != nil {
		return err
	}
	session(w, r, u.ID, size)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// cancelUpload answers DELETE (end-14).
func (s *server) cancelUpload(w http.ResponseWriter, r *http.Request) error {
	u, err := upload(r)
	if err != nil {
		return err
	}
	if err := s.Uploads.Cancel(r.Context(), u); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// explain adds to err, where it says that a chunk does not fit, what would fit.
func (s *server) explain(w http.ResponseWriter, r *http.Request, u oci.Upload, err error) error {
	if errors.Is(err, oci.ErrUploadOutOfOrder) {
		if size, err := s.Uploads.Size(r.Context(), u); err == nil {
			session(w, r, u.ID, size)
		}
	}
	return err
}

var sessionGrammar = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$`)

// upload reads which session r means. The id is opaque here, but nothing that
// could pass for a path goes on to a disk.
func upload(r *http.Request) (oci.Upload, error) {
	u := oci.Upload{Repo: bound(r, mux.Vars(r)["name"]), ID: mux.Vars(r)["id"]}
	if !sessionGrammar.MatchString(u.ID) {
		return oci.Upload{}, oci.ErrUploadUnknown
	}
	return u, nil
}

// session writes the headers that tell where a session is and what it has: the
// position of its last byte. Of an empty one the specification cannot say that;
// other registries answer 0-0.
func session(w http.ResponseWriter, r *http.Request, id string, size int64) {
	h := w.Header()
	h.Set("Location", "/v2/"+mux.Vars(r)["name"]+"/blobs/uploads/"+id)
	h.Set("Range", "0-"+strconv.FormatInt(max(size-1, 0), 10))
	h.Set("Docker-Upload-UUID", id)
}

// created answers that d can be pulled from repo.
func created(w http.ResponseWriter, repo string, d digest.Digest) {
	h := w.Header()
	h.Set("Location", "/v2/"+repo+"/blobs/"+d.String())
	h.Set("Docker-Content-Digest", d.String())
	w.WriteHeader(http.StatusCreated)
}

var contentRangeGrammar = regexp.MustCompile(`^([0-9]+)-([0-9]+)$`)

// chunk returns where r's body belongs, -1 for the end, and the body held to the
// length that its Content-Range announces.
func chunk(r *http.Request) (off int64, body io.Reader, err error) {
	value := r.Header.Get("Content-Range")
	if value == "" {
		return -1, r.Body, nil
	}
	off, length, err := parseContentRange(value)
	if err != nil {
		return 0, nil, err
	}
	if r.ContentLength >= 0 && r.ContentLength != length {
		return 0, nil, oci.ErrSizeInvalid.Because("Content-Range is of %d bytes, Content-Length of %d", length, r.ContentLength)
	}
	return off, &exactReader{r: r.Body, left: length}, nil
}

// parseContentRange reads the specification's own form of the header, both ends
// inclusive. One that runs backwards, or beyond any size, is out of order.
func parseContentRange(s string) (off, length int64, err error) {
	m := contentRangeGrammar.FindStringSubmatch(s)
	if m == nil {
		return 0, 0, oci.ErrUploadInvalid.Because("Content-Range %.64q must match %s", s, contentRangeGrammar)
	}
	first, err1 := strconv.ParseInt(m[1], 10, 63)
	last, err2 := strconv.ParseInt(m[2], 10, 63)
	if err1 != nil || err2 != nil || last < first {
		return 0, 0, oci.ErrUploadOutOfOrder.Because("Content-Range %.64q", s)
	}
	return first, last - first + 1, nil
}

// exactReader fails unless r ends after left bytes. Where the body has a
// Content-Length net/http sees to that; a chunked one may be of any length.
type exactReader struct {
	r    io.Reader
	left int64
}

func (e *exactReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if e.left == 0 {
		switch n, err := e.r.Read(p[:1]); {
		case n > 0:
			return 0, oci.ErrSizeInvalid.Because("the body is longer than its Content-Range")
		default:
			return 0, err
		}
	}
	n, err := e.r.Read(p[:min(int64(len(p)), e.left)])
	e.left -= int64(n)
	if err == io.EOF && e.left > 0 {
		err = oci.ErrSizeInvalid.Because("the body is shorter than its Content-Range")
	}
	return n, err
}

// countingReader counts what is read of r.
type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
