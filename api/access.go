package api

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/mux"
	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/auth"
	"github.com/flotilla-registry/flotilla/api/oci"
)

// Every row of the table of routes that is not for anybody wraps its handlers in
// one of these. What they refuse has touched nothing, and the answer is the
// same whether or not the thing asked for exists.
//
//	may         who may do something to the repository that is named
//	entered     who shows an account or a token, whatever it may do
//	known       entered, as far as this node knows by itself
//	seen        whoever it is: each sees another part
//	operator    who holds the mesh's secret, or an account that may administer
//	orOperator  the operator, beside those whom another of these lets in
//	member      who is known, or the operator
//	overseer    the operator; while there are no accounts, whoever it is
//	uploading   within may, who does not send too many blobs already

// visit is what is known of whoever sent a request. It is written once, by the
// wrapper, and read when the request is over.
type visit struct {
	who     auth.Principal
	name    string // for the audit log
	action  string // "" where nobody is asked for
	subject string // whom it is about, where the path does not say

	allowed func() error // asks again whether they may; nil: whoever it is, they may
}

type visitKey struct{}

func visitOf(r *http.Request) *visit {
	v, _ := r.Context().Value(visitKey{}).(*visit)
	if v == nil {
		return &visit{}
	}
	return v
}

func (s *server) may(act auth.Action, h handler) handler {
	name := act.String()
	return func(w http.ResponseWriter, r *http.Request) error {
		v, repo := visitOf(r), mux.Vars(r)["name"]
		v.allowed = func() error {
			return s.challenge(w, r, s.Auth.Allow(v.who, repo, act), scope(repo, act))
		}
		if err := s.proven(v, w, r, name, act&(auth.Pull|auth.List) == 0); err != nil {
			return s.challenge(w, r, err, scope(repo, act))
		}
		if err := v.allowed(); err != nil {
			return err
		}
		return h(w, r)
	}
}

func (s *server) entered(h handler) handler {
	known := s.known(h)
	return func(w http.ResponseWriter, r *http.Request) error {
		if err := s.Auth.Prove(r.Context(), false); err != nil {
			return err
		}
		return known(w, r)
	}
}

// known is entered as far as this node knows, be that old or nothing.
func (s *server) known(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		v := visitOf(r)
		err := s.identify(v, w, r, "enter")
		if err == nil {
			err = s.Auth.Enter(v.who)
		}
		if err != nil {
			return s.challenge(w, r, err)
		}
		return h(w, r)
	}
}

// uploading bounds how many bodies of blobs an account sends to this node at
// once.
func (s *server) uploading(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		name := visitOf(r).name
		if s.Auth.Open() { // all are the same nobody
			return h(w, r)
		}
		if !s.bodies.enter(name, s.Auth.Limits().Uploads) {
			return oci.ErrTooManyRequests.Because("%s sends too many blobs at once", name)
		}
		defer s.bodies.leave(name)
		return h(w, r)
	}
}

// counter counts what goes on for each name; names with nothing are forgotten.
type counter struct {
	mu sync.Mutex
	n  map[string]int
}

func newCounter() counter { return counter{n: map[string]int{}} }

// enter counts one more, unless there are most already.
func (c *counter) enter(name string, most int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n[name] >= most {
		return false
	}
	c.n[name]++
	return true
}

func (c *counter) leave(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n[name]--; c.n[name] == 0 {
		delete(c.n, name)
	}
}

// member is entered, and lets the operator in too. While there are no accounts
// nobody's token is looked at, one made of another mesh's secret for instance.
// It proves nothing first: a node that has yet to hear of its mesh says so here.
func (s *server) member(h handler) handler { return s.orOperator(h, s.known(h)) }

// overseer is for what tells of every repository, which an account need not be
// allowed to see.
func (s *server) overseer(h handler) handler {
	operator, known := s.operator(h), s.known(h)
	return func(w http.ResponseWriter, r *http.Request) error {
		if s.Auth.Open() {
			return known(w, r)
		}
		return operator(w, r)
	}
}

// orOperator lets the operator in to h, and others as they are.
func (s *server) orOperator(h, others handler) handler {
	operator := s.operator(h)
	return func(w http.ResponseWriter, r *http.Request) error {
		if _, ok := operatorToken(r); ok && !s.Auth.Open() {
			return operator(w, r)
		}
		return others(w, r)
	}
}

// seen is for what shows each account another part of itself.
func (s *server) seen(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if err := s.proven(visitOf(r), w, r, auth.List.String(), false); err != nil {
			return s.challenge(w, r, err, auth.Scope{})
		}
		return h(w, r)
	}
}

// operator asks for an operator's token (RFC 6750), which holders of the secret
// make, or for an account that may administer the mesh.
func (s *server) operator(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		v := visitOf(r)
		v.action = auth.Admin.String()
		if token, ok := operatorToken(r); ok {
			if err := s.Admin.Check(token); err != nil {
				v.name = v.who.Name() // nobody's, and counted so
				return s.challenge(w, r, cmp.Or(s.admitted(v, w, r), err))
			}
			v.name = "operator"
			return h(w, r)
		}
		v.allowed = func() error { return s.challenge(w, r, s.Auth.Allow(v.who, "", auth.Admin)) }
		err := s.proven(v, w, r, v.action, true)
		if err == nil {
			err = s.Auth.Allow(v.who, "", auth.Admin)
		}
		if errors.Is(err, oci.ErrUnauthorized) && r.Header.Get("Authorization") == "" {
			err = oci.ErrUnauthorized.Because("this needs the token that flotilla makes of the mesh's secret, or an administrator's password")
		}
		if err != nil {
			return s.challenge(w, r, err)
		}
		return h(w, r)
	}
}

// operatorToken returns the bearer's token where it has the two parts of an
// operator's; those that accounts get have three.
func operatorToken(r *http.Request) (string, bool) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return token, ok && strings.Count(token, ".") == 1
}

// proven is identify by a node that may judge requests, see auth.Prove: change
// says that r asks for one.
func (s *server) proven(v *visit, w http.ResponseWriter, r *http.Request, action string, change bool) error {
	if err := s.Auth.Prove(r.Context(), change); err != nil {
		return err
	}
	return s.identify(v, w, r, action)
}

// identify finds out who sent r, and whether they ask too often.
func (s *server) identify(v *visit, w http.ResponseWriter, r *http.Request, action string) error {
	v.action = action
	who, err := s.Auth.Identify(r)
	v.who, v.name = who, who.Name()
	return cmp.Or(s.admitted(v, w, r), err)
}

// admitted counts a request of whoever v says.
func (s *server) admitted(v *visit, w http.ResponseWriter, r *http.Request) error {
	wait, err := s.Auth.Admit(r, v.who)
	if wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(wait/time.Second)+1))
	}
	return err
}

// challenge has the answer say how to show who one is, where that may help.
func (s *server) challenge(w http.ResponseWriter, r *http.Request, err error, scopes ...auth.Scope) error {
	if errors.Is(err, oci.ErrUnauthorized) {
		w.Header().Set("WWW-Authenticate", s.Auth.Challenge(r, err, scopes...))
	}
	return err
}

// scope is that of a token which does for act, and for what clients do beside it:
// whoever pushes looks at what is there first.
func scope(repo string, act auth.Action) auth.Scope {
	if act == auth.Push {
		act |= auth.Pull
	}
	return auth.Scope{Repository: repo, Actions: act}
}

// mayMount returns where d may be mounted from into repo for whoever sent r: the
// repository that they name, if they may pull from it, or one of those that
// hold d. "" with ok is wherever there is one. Where nothing but the token they
// show keeps them from the repository that they name, it is ErrUnauthorized and
// the answer names the scopes of one that would do, as other registries answer
// too. A name that they do not say is not told to a token that is not for it.
func (s *server) mayMount(w http.ResponseWriter, r *http.Request, repo, from string, d digest.Digest) (source string, ok bool, err error) {
	if s.Auth.Open() {
		return from, true, nil
	}
	const enough = 1000 // repositories to look at; beyond these the client sends the bytes
	sources := []string{from}
	if from == "" {
		if sources, err = s.Catalog.Linking(d, "", enough); err != nil {
			return "", false, err
		}
	}
	for _, one := range sources {
		why := s.Auth.Allow(visitOf(r).who, one, auth.Pull)
		if why == nil {
			return one, true, nil
		}
		if from != "" && errors.Is(why, oci.ErrUnauthorized) {
			return "", false, s.challenge(w, r, why, scope(repo, auth.Push), scope(from, auth.Pull))
		}
	}
	return "", false, nil
}

// bound returns what an upload is bound to: the repository and whoever began
// it. No name of a repository holds an @.
func bound(r *http.Request, repo string) string {
	if who := visitOf(r).who; !who.Anonymous() {
		return repo + "@" + who.Name()
	}
	return repo
}

// stillMay returns nil where whoever sent r still may do what they were let in
// for. A body may take its sender hours: what it is for is done only if they
// have lost neither account nor right meanwhile.
func stillMay(r *http.Request) error {
	if allowed := visitOf(r).allowed; allowed != nil {
		return allowed()
	}
	return nil
}

// withVisit returns the context of a request whose sender will be known.
func withVisit(ctx context.Context) (context.Context, *visit) {
	v := &visit{}
	return context.WithValue(ctx, visitKey{}, v), v
}
