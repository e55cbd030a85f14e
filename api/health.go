package api

import (
	"context"
	"net/http"
	"time"

	"github.com/gorilla/mux"

	"github.com/flotilla-registry/flotilla/api/auth"
	"github.com/flotilla-registry/flotilla/api/oci"
)

// probeTimeout bounds what /readyz?write waits for. Kubernetes waits a second
// unless told otherwise, and no answer says less than "no quorum".
const probeTimeout = 800 * time.Millisecond

// alive answers GET /healthz: the process takes requests.
func (s *server) alive(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

// ready answers GET /readyz: can reads be served, and with ?write, writes? It
// says why not.
func (s *server) ready(w http.ResponseWriter, r *http.Request) error {
	checks := map[string]string{"read": "ok"}
	err := s.Health.Ready()
	if err != nil {
		checks["read"] = err.Error()
	}
	if r.URL.Query().Has("write") {
		ctx, cancel := context.WithTimeout(r.Context(), probeTimeout)
		defer cancel()
		checks["write"] = "ok"
		if werr := s.Health.Writable(ctx); werr != nil {
			checks["write"], err = werr.Error(), werr
		}
	}
	status := http.StatusOK
	if err != nil {
		status = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", "2")
	}
	return writeJSON(w, status, struct {
		Ready  bool              `json:"ready"`
		Checks map[string]string `json:"checks"`
	}{err == nil, checks})
}

func (s *server) metrics(w http.ResponseWriter, r *http.Request) error {
	s.Metrics.ServeHTTP(w, r)
	return nil
}

// status answers GET /flotilla/v1/status. An account that may not administer is
// told of no digests: it may not know the repositories that they are of.
func (s *server) status(w http.ResponseWriter, r *http.Request) error {
	v := visitOf(r)
	digests := v.action == auth.Admin.String() || s.Auth.Open() || s.Auth.Allow(v.who, "", auth.Admin) == nil
	return writeJSON(w, http.StatusOK, s.Status(r.Context(), digests))
}

// where answers GET /flotilla/v1/where?repo=&ref=: which nodes hold the manifests
// and blobs of an image.
func (s *server) where(w http.ResponseWriter, r *http.Request) error {
	ref, err := oci.ParseReference(mux.Vars(r)["reference"])
	if err != nil {
		return err
	}
	found, err := s.Where(r.Context(), mux.Vars(r)["name"], ref)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, found)
}

// base answers GET /v2/ (end-1): this is a registry. It asks nobody what it
// holds, so that clients may find out during an election too.
func (s *server) base(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, struct{}{})
}

// extension is described in distribution-spec, extensions/_oci.md.
type extension struct {
	Name        string   `json:"name"`
	URL         string   `json:"url"`
	Description string   `json:"description,omitempty"`
	Endpoints   []string `json:"endpoints"`
}

// listExtensions answers GET _oci/ext/discover, for the registry or for a
// repository.
func (s *server) listExtensions(w http.ResponseWriter, r *http.Request) error {
	list := []extension{{
		Name:        "_oci",
		URL:         "https://github.com/opencontainers/distribution-spec/blob/main/extensions/_oci.md",
		Description: "which extensions there are",
		Endpoints:   []string{"_oci/ext/discover"},
	}}
	if mux.Vars(r)["name"] == "" {
		list = append(list, extension{
			Name:        "_flotilla",
			URL:         "https://github.com/flotilla-registry/flotilla",
			Description: "the mesh behind this registry",
			Endpoints:   []string{"_flotilla/mesh/status"},
		})
	}
	return writeJSON(w, http.StatusOK, map[string][]extension{"extensions": list})
}
