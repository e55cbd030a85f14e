package auth

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// maxForm bounds the body of a request for a token: a refresh token and
// maxScopes scopes of the longest names, encoded, fit well.
const maxForm = 64 << 10

// request is what somebody asks the token endpoint for.
type request struct {
	principal Principal
	grant     grant
	offline   bool   // a refresh token is wanted
	refresh   string // the one that was shown
}

// answer is what the token endpoint says: of "Token Authentication
// Specification" and "OAuth2 Token Authentication" of the distribution project.
type answer struct {
	Token     string `json:"token"`
	Access    string `json:"access_token"`
	Type      string `json:"token_type"`
	ExpiresIn int    `json:"expires_in"` // seconds
	IssuedAt  string `json:"issued_at"`  // RFC 3339
	Scope     string `json:"scope"`
	Refresh   string `json:"refresh_token,omitempty"`
}

// Token is the token endpoint, on every node alike. GET takes name and password
// by Basic authentication, POST takes them, or a refresh token, in a form (RFC
// 6749, sections 4.3 and 6). A token is made for what was asked for and is
// allowed, which may be nothing; for nobody in particular only where the policy
// lets anybody pull something.
//
// It returns who asked, for the log, also where it can tell beside an error. An
// error has not been answered yet; where it is ErrUnauthorized, the header
// WWW-Authenticate is set.
func (a *Authority) Token(w http.ResponseWriter, r *http.Request) (Principal, error) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Pragma", "no-cache")
	var req request
	var err error
	switch r.Method {
	case http.MethodGet:
		req, err = a.readGet(r)
	case http.MethodPost:
		req, err = a.readPost(w, r)
	default:
		w.Header().Set("Allow", "GET, POST")
		return Principal{}, oci.ErrMethodNotAllowed
	}
	var out answer
	if err == nil {
		out, err = a.issue(r, req)
	}
	if err != nil {
		if errors.Is(err, oci.ErrUnauthorized) {
			w.Header().Set("WWW-Authenticate", basicChallenge)
		}
		return req.principal, err
	}
	b, err := json.Marshal(out)
	if err != nil {
		return req.principal, err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.Write(b)
	return req.principal, nil
}

func (a *Authority) readGet(r *http.Request) (req request, err error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return req, oci.ErrUnsupported.Because("the query cannot be read")
	}
	scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if scheme != "" && !strings.EqualFold(scheme, "Basic") {
		return req, oci.ErrUnauthorized.Because("a token is given for name and password")
	}
	if req.principal, err = a.Identify(r); err != nil {
		return req, err
	}
	if req.principal.cert {
		return req, oci.ErrUnsupported.Because("a client certificate needs no token")
	}
	req.offline = query.Get("offline_token") == "true"
	req.grant, err = parseScopes(query["scope"])
	return req, err
}

func (a *Authority) readPost(w http.ResponseWriter, r *http.Request) (req request, err error) {
	form, err := readForm(w, r)
	if err != nil {
		return req, err
	}
	req.offline = form.Get("access_type") == "offline"
	if req.grant, err = parseScopes(form["scope"]); err != nil {
		return req, err
	}
	if a.Open() { // as Identify has it: everybody is nobody in particular
		return req, nil
	}
	switch form.Get("grant_type") {
	case "password":
		req.principal, err = a.login(r, form.Get("username"), form.Get("password"))
	case "refresh_token":
		req.refresh = form.Get("refresh_token")
		req.principal, err = a.refresh(r, req.refresh)
	default:
		err = oci.ErrUnsupported.Because("the grant type is neither password nor refresh_token")
	}
	return req, err
}

// readForm reads a body of bounded size whose fields are there once each, as
// RFC 6749, section 3.2, asks; scope alone may be repeated. The query is not
// looked at: secrets do not belong there.
func readForm(w http.ResponseWriter, r *http.Request) (url.Values, error) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/x-www-form-urlencoded" {
		return nil, oci.ErrUnsupported.Because("the body is not application/x-www-form-urlencoded")
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxForm))
	if err != nil {
		return nil, oci.ErrUnsupported.Because("the body cannot be read, or is larger than %d KiB", maxForm>>10).Wrap(err)
	}
	form, err := url.ParseQuery(string(b))
	if err != nil {
		return nil, oci.ErrUnsupported.Because("the form cannot be read")
	}
	for name, values := range form {
		if len(values) > 1 && name != "scope" {
			return nil, oci.ErrUnsupported.Because("a field of the form is there twice: %.40q", name)
		}
	}
	return form, nil
}

// refresh returns whom a refresh token was made for, while the account is as it
// was then.
func (a *Authority) refresh(r *http.Request, text string) (Principal, error) {
	v, err := a.verify(r.Context(), text, refreshType)
	if err != nil {
		return Principal{}, err
	}
	if v.subject == "" {
		return Principal{}, oci.ErrUnauthorized.Because("the token is nobody's")
	}
	p := Principal{name: v.subject, generation: v.generation}
	s, err := a.current()
	if err != nil {
		return Principal{}, err
	}
	if _, err := a.standing(s, p); err != nil {
		return Principal{}, err
	}
	return p, nil
}

// issue makes the tokens.
func (a *Authority) issue(r *http.Request, req request) (answer, error) {
	s, err := a.current()
	if err != nil {
		return answer{}, err
	}
	p := req.principal
	if p.Anonymous() && !a.open(s) && len(s.policy.anonymous) == 0 {
		return answer{}, oci.ErrUnauthorized
	}
	admin, err := a.standing(s, p)
	if err != nil {
		return answer{}, err
	}
	granted := a.granted(s, p, admin, req.grant)
	now := a.now().Truncate(time.Second)
	text, err := a.sign(r.Context(), accessType, p, granted, now, now.Add(accessLife))
	if err != nil {
		return answer{}, err
	}
	out := answer{
		Token: text, Access: text, Type: "Bearer", ExpiresIn: int(accessLife / time.Second),
		IssuedAt: now.UTC().Format(time.RFC3339), Scope: granted.String(),
	}
	if req.offline && !p.Anonymous() {
		// A refresh token is answered with itself, so that it ends some day.
		if out.Refresh = req.refresh; out.Refresh == "" {
			out.Refresh, err = a.sign(r.Context(), refreshType, p, grant{}, now, now.Add(refreshLife))
		}
	}
	return out, err
}

// granted returns what of asked is allowed.
func (a *Authority) granted(s *state, p Principal, admin bool, asked grant) grant {
	out := grant{repositories: map[string]Action{}, catalog: asked.catalog}
	for repo, act := range asked.repositories {
		if !a.open(s) {
			act &= s.policy.allowed(p.name, admin, repo)
		}
		if act != 0 {
			out.repositories[repo] = act
		}
	}
	return out
}

// String returns the grant as a list of scopes.
func (g grant) String() string {
	var out []string
	for _, one := range g.access() {
		out = append(out, one.Type+":"+one.Name+":"+strings.Join(one.Actions, ","))
	}
	return strings.Join(out, " ")
}
