package api

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/gorilla/mux"

	"github.com/flotilla-registry/flotilla/api/auth"
	"github.com/flotilla-registry/flotilla/api/oci"
)

// The admin calls about accounts and policy. Their JSON is auth's: NewAccount
// and the types beside it.

// maxForm bounds the bodies of these calls; a policy document has a bound of its
// own below it.
const maxForm = 256 << 10

// token answers GET and POST of the token endpoint.
func (s *server) token(w http.ResponseWriter, r *http.Request) error {
	v := visitOf(r)
	v.action = "login"
	if err := s.admitted(v, w, r); err != nil {
		return err
	}
	keepPace(r, 0)
	who, err := s.Auth.Token(w, r)
	v.name = who.Name()
	return err
}

func (s *server) listAccounts(w http.ResponseWriter, _ *http.Request) error {
	all, err := s.Auth.Accounts()
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, auth.AccountList{Accounts: some(all)})
}

func (s *server) addAccount(w http.ResponseWriter, r *http.Request) error {
	var in auth.NewAccount
	if err := readJSON(r, &in); err != nil {
		return err
	}
	made, err := s.Auth.Add(r.Context(), visitOf(r).name, in)
	if err != nil {
		return err
	}
	visitOf(r).subject = in.Name
	return writeJSON(w, http.StatusCreated, made)
}

func (s *server) rotateAccount(w http.ResponseWriter, r *http.Request) error {
	var in auth.NewSecret
	if err := readJSON(r, &in); err != nil {
		return err
	}
	made, err := s.Auth.Rotate(r.Context(), visitOf(r).name, mux.Vars(r)["account"], in)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, made)
}

// removeAccount answers DELETE of an account; ?last= says that it may be the
// last one.
func (s *server) removeAccount(w http.ResponseWriter, r *http.Request) error {
	everywhere, err := s.Auth.RemoveAccount(r.Context(), visitOf(r).name, mux.Vars(r)["account"], r.URL.Query().Has("last"))
	return settled(w, everywhere, err)
}

// revokeTokens answers DELETE of all tokens that were given out so far.
func (s *server) revokeTokens(w http.ResponseWriter, r *http.Request) error {
	everywhere, err := s.Auth.ReplaceKeys(r.Context(), visitOf(r).name)
	return settled(w, everywhere, err)
}

// settled answers a change of who may do what.
func settled(w http.ResponseWriter, everywhere bool, err error) error {
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, auth.Done{Everywhere: everywhere})
}

// getPolicy answers GET with the document as YAML.
func (s *server) getPolicy(w http.ResponseWriter, r *http.Request) error {
	d, revision, err := s.Auth.Document()
	if err != nil {
		return err
	}
	b, err := d.YAML()
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/yaml")
	w.Header().Set("ETag", fmt.Sprintf(`"%d"`, revision))
	_, err = w.Write(b)
	return err
}

// putPolicy answers PUT of a whole document, in YAML or JSON, with what it
// changes; ?dry-run= changes nothing. A change by somebody else in between is a
// conflict, so that nobody undoes what they have not seen.
func (s *server) putPolicy(w http.ResponseWriter, r *http.Request) error {
	b, err := readBody(r)
	if err != nil {
		return err
	}
	d, err := auth.ParseDocument(b)
	if err != nil {
		return err
	}
	if err := s.Catalog.Sync(r.Context()); err != nil {
		return err
	}
	old, revision, err := s.Auth.Document()
	if err != nil {
		return err
	}
	done := auth.Applied{Changes: auth.Diff(old, d), Everywhere: true}
	if !r.URL.Query().Has("dry-run") && done.Changes != "" {
		if done.Everywhere, err = s.Auth.Apply(r.Context(), visitOf(r).name, d, revision); err != nil {
			return err
		}
	}
	return writeJSON(w, http.StatusOK, done)
}

// readBody returns the whole body, if its sender still may when it has come.
func readBody(r *http.Request) ([]byte, error) {
	keepPace(r, maxForm)
	b, err := io.ReadAll(io.LimitReader(r.Body, maxForm+1))
	switch {
	case err != nil:
		return nil, oci.ErrSizeInvalid.Because("the body ended early").Wrap(err)
	case len(b) > maxForm:
		return nil, oci.ErrUnsupported.Because("the body is larger than %d KiB", maxForm>>10)
	}
	return b, stillMay(r)
}

func readJSON(r *http.Request, into any) error {
	b, err := readBody(r)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return oci.ErrUnsupported.Because("the body is not the JSON that this call takes").Wrap(err)
	}
	return nil
}
