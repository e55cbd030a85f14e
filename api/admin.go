package api

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/gorilla/mux"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// Members changes who belongs to the mesh, by the names that people call nodes.
type Members interface {
	// Drain has the others take over what the member owns, after which it
	// leaves; with on false, that is called off.
	Drain(ctx context.Context, name string, on bool) error
	// Remove buries the member at once, and what only it holds with it.
	Remove(ctx context.Context, name string) error
}

// Collector drops what nothing needs any more.
type Collector interface {
	// Garbage returns, as JSON, at most n of the names and blobs that would
	// go now, and why.
	Garbage(ctx context.Context, n int) (any, error)
	// Collect begins a round at every node that can be reached.
	Collect(ctx context.Context) error
	// KeepUntagged sets how long a manifest without a tag is kept; 0 is for ever.
	KeepUntagged(ctx context.Context, d time.Duration) error
}

// Archive moves the whole registry out and in.
type Archive interface {
	// Backup writes a tar archive of all names, after the blobs where these
	// are wanted.
	Backup(ctx context.Context, w io.Writer, blobs bool) error
	// Restore takes such an archive into a mesh that holds no names yet, and
	// returns, as JSON, what it held.
	Restore(ctx context.Context, r io.Reader) (any, error)
}

// Checker compares what this node holds with what it should.
type Checker interface {
	// BeginScrub has this node read its blobs again now.
	BeginScrub()
	// StateHash returns the hash of all names as this node has them, in
	// hexadecimal, and the index of the last entry in it: nodes that are as far
	// must have the same hash.
	StateHash(ctx context.Context) (index uint64, hash string, err error)
}

// Admin is what an operator may do to the mesh, on any node.
type Admin struct {
	// Check returns nil for a token that an operator may have, else why not.
	Check func(token string) error
	Members
	Collector
	Archive
	Checker
	Pinner
}

func (a Admin) complete() bool {
	return a.Check != nil && a.Members != nil && a.Collector != nil && a.Archive != nil && a.Checker != nil && a.Pinner != nil
}

// maxGarbage bounds one answer of GET /flotilla/v1/gc.
const maxGarbage = 10_000

func (s *server) drain(w http.ResponseWriter, r *http.Request) error {
	return accepted(w, s.Admin.Drain(r.Context(), mux.Vars(r)["member"], true))
}

func (s *server) undrain(w http.ResponseWriter, r *http.Request) error {
	return accepted(w, s.Admin.Drain(r.Context(), mux.Vars(r)["member"], false))
}

func (s *server) removeMember(w http.ResponseWriter, r *http.Request) error {
	return accepted(w, s.Admin.Remove(r.Context(), mux.Vars(r)["member"]))
}

// garbage answers GET /flotilla/v1/gc?n=: what a round would drop now.
func (s *server) garbage(w http.ResponseWriter, r *http.Request) error {
	n := maxGarbage
	if text := r.URL.Query().Get("n"); text != "" {
		asked, err := strconv.Atoi(text)
		if err != nil || asked < 0 {
			return oci.ErrUnsupported.Because("n is a number of entries")
		}
		n = min(asked, maxGarbage)
	}
	list, err := s.Admin.Garbage(r.Context(), n)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, list)
}

func (s *server) collect(w http.ResponseWriter, r *http.Request) error {
	return accepted(w, s.Admin.Collect(r.Context()))
}

// keepUntagged answers PUT /flotilla/v1/gc/untagged?after=720h, or after=0.
func (s *server) keepUntagged(w http.ResponseWriter, r *http.Request) error {
	d, err := time.ParseDuration(r.URL.Query().Get("after"))
	if err != nil || d < 0 {
		return oci.ErrUnsupported.Because("after is a duration such as 720h, or 0")
	}
	return accepted(w, s.Admin.KeepUntagged(r.Context(), d))
}

// backup answers POST /flotilla/v1/backup?blobs=. What fails after the
// first byte ends the connection, and the archive has no catalogue, which is its
// last entry.
func (s *server) backup(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Content-Type", "application/x-tar")
	return s.Admin.Backup(r.Context(), w, r.URL.Query().Has("blobs"))
}

func (s *server) restore(w http.ResponseWriter, r *http.Request) error {
	held, err := s.Admin.Restore(r.Context(), r.Body)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, held)
}

// scrub answers POST /flotilla/v1/scrub: a round begins at this node.
func (s *server) scrub(w http.ResponseWriter, _ *http.Request) error {
	s.Admin.BeginScrub()
	return accepted(w, nil)
}

// stateHash answers GET /flotilla/v1/statehash with
// {"index": N, "sha256": "..."}.
func (s *server) stateHash(w http.ResponseWriter, r *http.Request) error {
	index, hash, err := s.Admin.StateHash(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, struct {
		Index  uint64 `json:"index"`
		SHA256 string `json:"sha256"`
	}{index, hash})
}

// accepted answers a change that the mesh has agreed on and goes on to act on.
func accepted(w http.ResponseWriter, err error) error {
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusAccepted, struct{}{})
}
