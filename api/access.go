package api

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/gorilla/mux"
	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/auth"
	"github.com/flotilla-registry/flotilla/api/oci"
)

// Every row of the table of routes that is not for anybody wraps its handlers in
// one of these. What they refuse has touched nothing, and the answer is the
// same whether or not the thing asked for exists.
//
//	may       who may do something to the repository in the path
//	entered   who shows an account or a token, whatever it may do
//	operator  who holds the mesh's secret, or an account that may administer

// visit is what is known of whoever sent a request. It is written once, by the
// wrapper, and read when the request is over.
type visit struct {
	who    auth.Principal
	name   string // for the audit log; "" until somebody was asked for
	action string
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
		err := s.identify(v, r, name)
		if err == nil {
			err = s.Auth.Allow(v.who, repo, act)
		}
		if err != nil {
			return s.challenge(w, r, err, auth.Scope{Repository: repo, Actions: act})
		}
		return s.limited(v, r, h)(w, r)
	}
}

func (s *server) entered(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		v := visitOf(r)
		err := s.identify(v, r, "enter")
		if err == nil {
			err = s.Auth.Enter(v.who)
		}
		if err != nil {
			return s.challenge(w, r, err)
		}
		return s.limited(v, r, h)(w, r)
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
				return s.challenge(w, r, err)
			}
			v.name = "operator"
			return h(w, r)
		}
		err := s.identify(v, r, v.action)
		if err == nil {
			err = s.Auth.Allow(v.who, "", auth.Admin)
		}
		if errors.Is(err, oci.ErrUnauthorized) && r.Header.Get("Authorization") == "" {
			err = oci.ErrUnauthorized.Because("this needs the token that flotilla makes of the mesh's secret, or an administrator's password")
		}
		if err != nil {
			return s.challenge(w, r, err)
		}
		return s.limited(v, r, h)(w, r)
	}
}

// operatorToken returns the bearer's token where it has the two parts of an
// operator's; those that accounts get have three.
func operatorToken(r *http.Request) (string, bool) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return token, ok && strings.Count(token, ".") == 1
}

// identify finds out who sent r.
func (s *server) identify(v *visit, r *http.Request, action string) (err error) {
	v.action = action
	v.who, err = s.Auth.Identify(r)
	v.name = v.who.Name()
	return err
}

// challenge has the answer say how to show who one is, where that may help.
func (s *server) challenge(w http.ResponseWriter, r *http.Request, err error, scopes ...auth.Scope) error {
	if errors.Is(err, oci.ErrUnauthorized) {
		w.Header().Set("WWW-Authenticate", s.Auth.Challenge(r, scopes...))
	}
	return err
}

// mayMount returns where d may be mounted from for whoever sent r: the
// repository that they name, if they may pull from it, or one of those that
// hold d. "" with ok is wherever there is one.
func (s *server) mayMount(r *http.Request, from string, d digest.Digest) (source string, ok bool, err error) {
	who := visitOf(r).who
	switch {
	case s.Auth.Open():
		return from, true, nil
	case from != "":
		return from, s.Auth.Allow(who, from, auth.Pull) == nil, nil
	}
	const looked = 1000 // beyond these the client sends the bytes
	repos, err := s.Catalog.Linking(d, "", looked)
	if err != nil {
		return "", false, err
	}
	for _, repo := range repos {
		if s.Auth.Allow(who, repo, auth.Pull) == nil {
			return repo, true, nil
		}
	}
	return "", false, nil
}

// session returns what an upload is bound to: the repository and whoever began
// it. No name of a repository holds an @.
func bound(r *http.Request, repo string) string {
	if who := visitOf(r).who; !who.Anonymous() {
		return repo + "@" + who.Name()
	}
	return repo
}

// withVisit returns the context of a request whose sender will be known.
func withVisit(ctx context.Context) (context.Context, *visit) {
	v := &visit{}
	return context.WithValue(ctx, visitKey{}, v), v
}
