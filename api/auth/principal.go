package auth

import (
	"context"
	"encoding/base64"
	"net/http"
	"strings"
	"time"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// Action is something that can be done, or a set of such things.
type Action uint8

// What can be done to a repository, and, Admin, to the mesh.
const (
	Pull   Action = 1 << iota // read manifests, their referrers, and blobs
	Push                      // write them, and move tags
	Delete                    // drop tags, manifests and blobs
	List                      // see the repository in the catalogue, and its tags
	Admin                     // the mesh's admin API
)

// actionNames are the words of the policy document, in the order of the bits.
var actionNames = [...]string{"pull", "push", "delete", "list", "admin"}

const inRepository = Pull | Push | Delete | List

func (act Action) has(what Action) bool { return what != 0 && act&what == what }

// String returns the actions' names, with commas between them.
func (act Action) String() string {
	var names []string
	for i, name := range actionNames {
		if act&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// Principal is who asks. The zero value is nobody in particular. It is good for
// one request: what it may do is looked up anew each time.
type Principal struct {
	name       string // "" is anonymous
	generation string // of the account its credentials were checked against
	cert       bool   // it showed a certificate
	grant      *grant // what its token is limited to; nil: no token
}

// anonymousName is reserved: no account has it.
const anonymousName = "anonymous"

// Name returns the account's name, or "anonymous".
func (p Principal) Name() string {
	if p.name == "" {
		return anonymousName
	}
	return p.name
}

// Anonymous reports that p is nobody in particular.
func (p Principal) Anonymous() bool { return p.name == "" }

// maxBasic bounds name and password in base64: they have 64 and 72 bytes at most.
const maxBasic = 512

// Identify says who asks: from the header Authorization (RFC 7617, RFC 6750)
// where there is one, else from the client's certificate, else nobody in
// particular. Credentials that are not good are ErrUnauthorized, and never fall
// back to less. ErrTooManyRequests where passwords come faster than they can be
// checked or than this address may try them, ErrUnavailable where the mesh has
// to be asked and cannot be.
//
// While nobody has an account, everybody is anonymous.
func (a *Authority) Identify(r *http.Request) (Principal, error) {
	s, err := a.current()
	if err != nil || a.open(s) {
		return Principal{}, err
	}
	values := r.Header.Values("Authorization")
	if len(values) > 1 {
		return Principal{}, oci.ErrUnauthorized.Because("more than one Authorization header")
	}
	if len(values) == 1 && strings.ContainsAny(values[0], "\r\n") { // which base64 decoders skip
		return Principal{}, oci.ErrUnauthorized.Because("the Authorization header has several lines")
	}
	if len(values) == 0 || values[0] == "" {
		return a.identifyCertificate(s, r)
	}
	scheme, credentials, _ := strings.Cut(values[0], " ")
	credentials = strings.Trim(credentials, " ")
	switch {
	case strings.EqualFold(scheme, "Bearer"):
		return a.identifyToken(r.Context(), credentials)
	case strings.EqualFold(scheme, "Basic"):
		name, password, err := parseBasic(credentials)
		if err != nil {
			return Principal{}, err
		}
		return a.login(r, name, password)
	}
	return Principal{}, oci.ErrUnauthorized.Because("the Authorization header is neither Basic nor Bearer")
}

// parseBasic reads name and password as RFC 7617 writes them.
func parseBasic(credentials string) (name, password string, err error) {
	if len(credentials) > maxBasic {
		return "", "", oci.ErrUnauthorized.Because("name and password are too long")
	}
	b, err := base64.StdEncoding.Strict().DecodeString(credentials)
	if err != nil {
		return "", "", oci.ErrUnauthorized.Because("name and password are not in base64")
	}
	name, password, ok := strings.Cut(string(b), ":")
	if !ok {
		return "", "", oci.ErrUnauthorized.Because("no colon between name and password")
	}
	return name, password, nil
}

// identifyCertificate takes the identity of a certificate that the TLS
// handshake verified, whose common name must be fit for an account.
func (a *Authority) identifyCertificate(s *state, r *http.Request) (Principal, error) {
	if !a.certs || r.TLS == nil || len(r.TLS.VerifiedChains) == 0 || len(r.TLS.VerifiedChains[0]) == 0 {
		return Principal{}, nil
	}
	leaf := r.TLS.VerifiedChains[0][0]
	p := Principal{name: leaf.Subject.CommonName, cert: true}
	if CheckAccountName(p.name) != nil {
		return Principal{}, oci.ErrUnauthorized.Because("the client certificate's common name is no account's")
	}
	if a.now().After(leaf.NotAfter) { // a connection may live longer than the certificate
		return Principal{}, oci.ErrUnauthorized.Because("the client certificate has expired")
	}
	_, err := a.standing(s, p)
	return p, err
}

func (a *Authority) identifyToken(ctx context.Context, text string) (Principal, error) {
	v, err := a.verify(ctx, text, accessType)
	if err != nil {
		return Principal{}, err
	}
	p := Principal{name: v.subject, generation: v.generation, grant: &v.grant}
	s, err := a.current()
	if err == nil {
		_, err = a.standing(s, p)
	}
	if err != nil {
		return Principal{}, err
	}
	return p, nil
}

// account finds an account; one of the mesh hides one of the same name in the
// file, even where its record cannot be read.
func (a *Authority) account(s *state, name string) (*account, bool) {
	if acc, ok := s.accounts[name]; ok {
		return acc, true
	}
	if a.file != nil {
		acc, ok := a.file.accounts(a.now())[name]
		return acc, ok
	}
	return nil, false
}

// standing returns whether p is an administrator, or ErrUnauthorized where what
// it has shown counts no longer.
func (a *Authority) standing(s *state, p Principal) (admin bool, err error) {
	if p.Anonymous() {
		return false, nil
	}
	acc, ok := a.account(s, p.name)
	switch {
	case !ok && p.cert:
		return false, nil
	case !ok, !p.cert && acc.generation != p.generation:
		return false, oci.ErrUnauthorized.Because("the account has changed since: log in again")
	}
	if err := acc.usable(a.now()); err != nil {
		return false, err
	}
	return acc.admin, nil
}

// usable returns ErrUnauthorized for an account that is over or not understood.
func (acc *account) usable(now time.Time) error {
	switch {
	case acc.broken:
		return oci.ErrUnauthorized.Because("this node cannot read the account")
	case !acc.expires.IsZero() && !now.Before(acc.expires):
		return oci.ErrUnauthorized.Because("the account has expired")
	}
	return nil
}

// Allow returns nil where p may do act to the repository, whose name has passed
// oci.CheckName. Otherwise ErrUnauthorized where showing other credentials may
// help (nobody in particular asks, or a token covers less than its account
// may), and ErrDenied where they would not. Admin is about the mesh: repo does
// not matter, and tokens never have it.
func (a *Authority) Allow(p Principal, repo string, act Action) error {
	s, err := a.current()
	if err != nil {
		return err
	}
	if a.open(s) && inRepository.has(act) {
		return nil
	}
	admin, err := a.standing(s, p)
	if err != nil {
		return err
	}
	if !s.policy.allowed(p.name, admin, repo).has(act) {
		if p.Anonymous() {
			return oci.ErrUnauthorized.Because("%s needs an account", act).Wrap(errScope)
		}
		return oci.ErrDenied.Because("%s may not %s here", p.name, act)
	}
	if p.grant != nil && !p.grant.repositories[repo].has(act) {
		return oci.ErrUnauthorized.Because("the token is not for that").Wrap(errScope)
	}
	return nil
}

// Enter returns nil where p may be answered at the root of the API, which tells
// clients whether to log in: there must be an account or a token, even one of
// nobody in particular.
func (a *Authority) Enter(p Principal) error {
	s, err := a.current()
	if err != nil || a.open(s) {
		return err
	}
	if p.Anonymous() && p.grant == nil {
		return oci.ErrUnauthorized
	}
	_, err = a.standing(s, p)
	return err
}

// Catalog returns which repositories p sees in the catalogue, all judged by the
// same policy, or ErrUnauthorized where p needs to show other credentials.
func (a *Authority) Catalog(p Principal) (sees func(repo string) bool, err error) {
	s, err := a.current()
	if err != nil {
		return nil, err
	}
	if a.open(s) {
		return func(string) bool { return true }, nil
	}
	admin, err := a.standing(s, p)
	if err != nil {
		return nil, err
	}
	if p.grant != nil && !p.grant.catalog {
		return nil, oci.ErrUnauthorized.Because("the token is not for the catalogue").Wrap(errScope)
	}
	if p.Anonymous() && len(s.policy.anonymous) == 0 {
		return nil, oci.ErrUnauthorized.Because("the catalogue needs an account").Wrap(errScope)
	}
	mine := s.policy.about(p.name)
	return func(repo string) bool { return mine.allowed(p.name, admin, repo).has(List) }, nil
}
