package api

import (
	"context"
	"net/http"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// Pin says what a zone is to hold always: the images of the repositories that a
// pattern matches. The patterns are those of the policy, see oci.Pattern.
type Pin struct {
	Zone string `json:"zone"`
	Repo string `json:"repo"`
	// Tag is a pattern of tags: of these repositories, the images that have such
	// a tag now. With "" it is all of their images, with a tag or without.
	Tag string `json:"tag,omitempty"`
}

// PinChange answers a change of the pins.
type PinChange struct {
	Everywhere bool     `json:"everywhere"` // every live node knows of it
	Warnings   []string `json:"warnings,omitempty"`
}

// Pinner keeps what zones pin, which is the same for the whole mesh.
type Pinner interface {
	// Pins returns the pins, by zone, repositories and tags.
	Pins(ctx context.Context) ([]Pin, error)
	// AddPin adds a pin, unless it is there.
	AddPin(ctx context.Context, actor string, p Pin) (PinChange, error)
	// RemovePin removes a pin; ErrNotFound where it is not there.
	RemovePin(ctx context.Context, actor string, p Pin) (PinChange, error)
	// PinStatus returns, as JSON, how far each pin holds.
	PinStatus(ctx context.Context) (any, error)
}

// listPins answers GET /flotilla/v1/pins with {"pins": [...]}.
func (s *server) listPins(w http.ResponseWriter, r *http.Request) error {
	all, err := s.Admin.Pins(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, map[string][]Pin{"pins": some(all)})
}

// addPin answers POST /flotilla/v1/pins of a Pin.
func (s *server) addPin(w http.ResponseWriter, r *http.Request) error {
	var p Pin
	if err := readJSON(r, &p); err != nil {
		return err
	}
	done, err := s.Admin.AddPin(r.Context(), visitOf(r).name, p)
	if err != nil {
		return err
	}
	visitOf(r).subject = p.String()
	return writeJSON(w, http.StatusCreated, done)
}

// removePin answers DELETE /flotilla/v1/pins?zone=&repo=&tag=.
func (s *server) removePin(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	p := Pin{Zone: q.Get("zone"), Repo: q.Get("repo"), Tag: q.Get("tag")}
	done, err := s.Admin.RemovePin(r.Context(), visitOf(r).name, p)
	if err != nil {
		return err
	}
	visitOf(r).subject = p.String()
	return writeJSON(w, http.StatusOK, done)
}

// pinStatus answers GET /flotilla/v1/pins/status.
func (s *server) pinStatus(w http.ResponseWriter, r *http.Request) error {
	status, err := s.Admin.PinStatus(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, status)
}

// String tells the pin as ZONE REPO[:TAG].
func (p Pin) String() string {
	if p.Tag == "" {
		return p.Zone + " " + p.Repo
	}
	return p.Zone + " " + p.Repo + ":" + p.Tag
}

// Check returns ErrUnsupported saying what is wrong with the patterns, or nil.
func (p Pin) Check() error {
	if _, err := oci.ParsePattern(p.Repo); err != nil {
		return oci.ErrUnsupported.Because("the repositories %.80q: %v", p.Repo, err)
	}
	if p.Tag == "" {
		return nil
	}
	if err := oci.CheckTagPattern(p.Tag); err != nil {
		return oci.ErrUnsupported.Because("the tags %.80q: %v", p.Tag, err)
	}
	return nil
}
