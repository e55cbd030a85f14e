package auth_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/flotilla-registry/flotilla/api/auth"
	"github.com/flotilla-registry/flotilla/api/oci"
)

var show = httptest.NewRequest // a request that shows nothing

func TestWhoMayDoWhat(t *testing.T) {
	n := house(t)
	nobody := show(http.MethodGet, "/v2/", nil)
	for name, row := range map[string]struct {
		who  *http.Request
		repo string
		act  auth.Action
		want *oci.Error
	}{
		"the administrator anything":          {basic("root", rootPassword), "team-a/x", auth.Delete, nil},
		"the administrator the mesh":          {basic("root", rootPassword), "", auth.Admin, nil},
		"by the first rule":                   {basic("ann", annPassword), "team-a/x/y", auth.Push, nil},
		"where zero components are any":       {basic("ann", annPassword), "team-a", auth.Push, nil},
		"a neighbour's prefix":                {basic("ann", annPassword), "team-ab/x", auth.Pull, oci.ErrDenied},
		"by the rule for everyone":            {basic("bob", bobPassword), "shared/x", auth.Pull, nil},
		"not what it does not name":           {basic("bob", bobPassword), "shared/x", auth.Push, oci.ErrDenied},
		"not deeper than the pattern":         {basic("bob", bobPassword), "shared/x/y", auth.Pull, oci.ErrDenied},
		"not what another may":                {basic("bob", bobPassword), "team-a/x", auth.Pull, oci.ErrDenied},
		"an account what anybody may":         {basic("bob", bobPassword), "public/x", auth.Pull, nil},
		"an account no more than anybody may": {basic("bob", bobPassword), "public/x", auth.Push, oci.ErrDenied},
		"an account not the mesh":             {basic("ann", annPassword), "", auth.Admin, oci.ErrDenied},
		"nobody what anybody may":             {nobody, "public/x", auth.Pull, nil},
		"nobody a list of it":                 {nobody, "public/x", auth.List, nil},
		"nobody what every account may":       {nobody, "shared/x", auth.Pull, oci.ErrUnauthorized},
		"nobody a push":                       {nobody, "public/x", auth.Push, oci.ErrUnauthorized},
		"nobody the mesh":                     {nobody, "", auth.Admin, oci.ErrUnauthorized},
		"no action at all":                    {basic("ann", annPassword), "team-a/x", 0, oci.ErrDenied},
		"several, one of them denied":         {basic("bob", bobPassword), "shared/x", auth.Pull | auth.Push, oci.ErrDenied},
		"an action that there is not":         {basic("root", rootPassword), "x", 1 << 7, oci.ErrDenied},
		"a wrong password":                    {basic("ann", bobPassword), "public/x", auth.Pull, oci.ErrUnauthorized},
		"an unknown name":                     {basic("eve", bobPassword), "public/x", auth.Pull, oci.ErrUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			wantErr(t, row.act.String()+" of "+row.repo, n.may(row.who, row.repo, row.act), row.want)
		})
	}
}

func TestOpenUntilSomebodyHasAnAccount(t *testing.T) {
	n := newNode(t, newAgreed(), morning(), nil)
	for _, r := range []*http.Request{show("GET", "/v2/", nil), basic("old", "password"), bearer("of another mesh")} {
		wantErr(t, "push while nobody has an account", n.may(r, "x", auth.Push), nil)
		wantErr(t, "the mesh while nobody has an account", n.may(r, "", auth.Admin), oci.ErrUnauthorized)
	}
	if !n.Open() {
		t.Error("not open")
	}
	acc, _, err := n.AddUser(ctxOf(t), "test", "root", rootPassword, false)
	if err != nil || !acc.Admin {
		t.Fatalf("the first account: %+v, %v", acc, err)
	}
	if n.Open() {
		t.Error("open although there is an account")
	}
	wantErr(t, "nobody's push", n.may(show("GET", "/v2/", nil), "x", auth.Push), oci.ErrUnauthorized)
	wantErr(t, "the first account's push", n.may(basic("root", rootPassword), "x", auth.Push), nil)
	if acc, _, err := n.AddUser(ctxOf(t), "test", "ann", annPassword, false); err != nil || acc.Admin {
		t.Errorf("the second account: %+v, %v", acc, err)
	}
}

func TestTokensOfDockersFlow(t *testing.T) {
	n := house(t)
	login, err := n.get(t, "ann", annPassword, url.Values{
		"account": {"ann"}, "client_id": {"docker"}, "offline_token": {"true"}, "service": {"flotilla"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if login.Token == "" || login.Token != login.Access || login.ExpiresIn != 300 || !login.IssuedAt.Equal(n.clock.now()) || login.Refresh == "" {
		t.Errorf("docker login got %+v", login)
	}
	p, err := n.Identify(bearer(login.Token))
	if err != nil || p.Name() != "ann" {
		t.Fatalf("the login's token is %q's, %v", p.Name(), err)
	}
	wantErr(t, "the root of the API", n.Enter(p), nil)
	wantErr(t, "a pull with a token for nothing", n.Allow(p, "team-a/x", auth.Pull), oci.ErrUnauthorized)

	push, err := n.post(t, url.Values{
		"grant_type": {"refresh_token"}, "refresh_token": {login.Refresh}, "service": {"flotilla"}, "client_id": {"docker"},
		"access_type": {"offline"}, "scope": {"repository:team-a/x:pull,push repository:team-b/y:pull"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := "repository:team-a/x:pull,push"; push.Scope != want || push.Refresh != login.Refresh {
		t.Errorf("got scope %q, want %q; refresh token the same: %v", push.Scope, want, push.Refresh == login.Refresh)
	}
	for act, want := range map[auth.Action]*oci.Error{auth.Pull: nil, auth.Push: nil, auth.List: nil, auth.Delete: oci.ErrUnauthorized} {
		wantErr(t, act.String(), n.may(bearer(push.Token), "team-a/x", act), want)
	}
	if _, err := n.post(t, url.Values{"grant_type": {"password"}, "username": {"ann"}, "password": {"no"}}); !errors.Is(err, oci.ErrUnauthorized) {
		t.Errorf("a wrong password in a form: %v", err)
	}
}
