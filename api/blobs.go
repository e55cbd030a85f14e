package api

import (
	"io"
	"net/http"
	"time"

	"github.com/gorilla/mux"
	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// getBlob answers GET and HEAD (end-2). The link comes first: a blob that is in
// another repository alone is unknown here. HEAD is answered from the link,
// which every node has.
func (s *server) getBlob(w http.ResponseWriter, r *http.Request) error {
	d, err := oci.ParseDigest(mux.Vars(r)["digest"])
	if err != nil {
		return err
	}
	link, err := s.Catalog.Blob(r.Context(), mux.Vars(r)["name"], d)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if r.Method == http.MethodHead {
		if link.Stale { // may expire before a manifest names it: have it offered again
			return oci.ErrBlobUnknown
		}
		return serveSize(w, r, d, link.Size)
	}
	content, _, err := s.Blobs.Open(r.Context(), d)
	if err != nil {
		return err
	}
	defer content.Close()
	return serveContent(w, r, d, content)
}

// deleteBlob answers DELETE (end-10): the repository's link goes, others' stay.
func (s *server) deleteBlob(w http.ResponseWriter, r *http.Request) error {
	d, err := oci.ParseDigest(mux.Vars(r)["digest"])
	if err != nil {
		return err
	}
	everywhere, err := s.Catalog.UnlinkBlob(r.Context(), mux.Vars(r)["name"], d)
	if err != nil {
		return err
	}
	deleted(w, everywhere)
	return nil
}

// serveContent answers with bytes whose digest is d: whole, a range, or not at
// all where the client has them. The bytes never change, so the digest is the
// strongest ETag there is.
func serveContent(w http.ResponseWriter, r *http.Request, d digest.Digest, content io.ReadSeeker) error {
	h := w.Header()
	h.Set("Docker-Content-Digest", d.String())
	h.Set("ETag", `"`+d.String()+`"`)
	if r.Method == http.MethodHead {
		r.Header.Del("Range") // RFC 9110, 14.2: for GET alone, and Content-Length must be the whole
	}
	to := &contentWriter{ResponseWriter: w}
	http.ServeContent(to, r, "", time.Time{}, content)
	if to.refused {
		return oci.ErrRangeInvalid
	}
	return nil
}

// serveSize answers HEAD where the size alone is at hand.
func serveSize(w http.ResponseWriter, r *http.Request, d digest.Digest, size int64) error {
	return serveContent(w, r, d, io.NewSectionReader(nil, 0, size)) // sought, never read
}

// contentWriter holds back the plain text with which http.ServeContent refuses a
// range: errors are written in one place.
type contentWriter struct {
	http.ResponseWriter
	refused bool
}

func (w *contentWriter) WriteHeader(status int) {
	if w.refused = status == http.StatusRequestedRangeNotSatisfiable; !w.refused {
		w.ResponseWriter.WriteHeader(status)
	}
}

func (w *contentWriter) Write(p []byte) (int, error) {
	if w.refused {
		return len(p), nil
	}
	return w.ResponseWriter.Write(p)
}

// ReadFrom keeps the way to sendfile open.
func (w *contentWriter) ReadFrom(src io.Reader) (int64, error) {
	return io.Copy(w.ResponseWriter, src)
}
