package api_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api"
	"github.com/flotilla-registry/flotilla/api/auth"
	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata"
)

// The accounts of a guarded node; each has its name three times for a password.
const (
	root  = "root"  // may do everything
	alice = "alice" // pull, push, list and delete in team-a; pull in team-b/shared
	bob   = "bob"   // pull and push in team-b
	carol = "carol" // nothing
)

const policy = `
rules:
  - who: [alice]
    repositories: ["team-a/**"]
    allow: [pull, push, list, delete]
  - who: [alice]
    repositories: ["team-b/shared"]
    allow: [pull]
  - who: [bob]
    repositories: ["team-b/**"]
    allow: [pull, push]
anonymous:
  pull: ["public/**"]
immutable:
  - repositories: ["team-a/**"]
    tags: ["v*"]
    except: ["*-rc*"]
`

// guarded is a node with these accounts, and its audit log.
func guarded(t testing.TB) (*node, *lines) {
	t.Helper()
	audit := new(lines)
	n := newNode(t, func(cfg *api.Config, _ *metadata.Cluster) {
		cfg.Audit = slog.New(slog.NewJSONHandler(audit, nil))
	})
	for _, name := range []string{root, alice, bob, carol} {
		if _, _, err := n.auth.AddUser(t.Context(), "test", name, strings.Repeat(name, 3), false); err != nil {
			t.Fatal(err)
		}
	}
	n.apply(t, policy)
	return n, audit
}

// apply puts a policy in force.
func (n *node) apply(t testing.TB, text string) {
	t.Helper()
	d, err := auth.ParseDocument([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	_, revision, err := n.auth.Document()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.auth.Apply(t.Context(), "test", d, revision); err != nil {
		t.Fatal(err)
	}
}

// as is the header that shows the account's password; "" shows nothing.
func as(name string) head {
	if name == "" {
		return head{}
	}
	return head{"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+strings.Repeat(name, 3)))}
}

// with is as, and a type for a manifest.
func with(name, mediaType string) head {
	h := as(name)
	h["Content-Type"] = mediaType
	return h
}

// token gets a token for the scopes, as a client would.
func (n *node) token(t testing.TB, name string, scopes ...string) head {
	t.Helper()
	path := "/token?service=flotilla"
	for _, s := range scopes {
		path += "&scope=" + s
	}
	var got struct{ Token string }
	if err := json.Unmarshal([]byte(n.do(t, "GET", path, as(name), nil).want(t, 200, nil).body), &got); err != nil {
		t.Fatal(err)
	}
	return head{"Authorization": "Bearer " + got.Token}
}

// stock pushes an image to repo as root, and returns its digest and its layer's.
func (n *node) stock(t testing.TB, repo, tag string) (manifest, layer digest.Digest) {
	t.Helper()
	config, content := "config of "+repo, "layer of "+repo
	for _, b := range []string{config, content} {
		n.do(t, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+digest.FromString(b).String(), as(root), b).want(t, 201, nil)
	}
	body := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, oci.TypeImage,
		descriptor("application/vnd.oci.image.config.v1+json", config),
		descriptor("application/vnd.oci.image.layer.v1.tar", content))
	n.do(t, "PUT", "/v2/"+repo+"/manifests/"+tag, with(root, oci.TypeImage), body).want(t, 201, nil)
	return digest.FromString(body), digest.FromString(content)
}

func TestWhoMayDoWhat(t *testing.T) {
	n, _ := guarded(t)
	m, layer := n.stock(t, "team-a/app", "latest")
	n.stock(t, "team-b/shared", "latest")
	n.stock(t, "public/app", "latest")
	const ok, login, denied = 0, 401, 403
	for _, row := range []struct {
		what, method, path      string
		root, alice, bob, carol int
		nobody                  int
	}{
		{"pull by tag", "GET", "/v2/team-a/app/manifests/latest", ok, ok, denied, denied, login},
		{"head by tag", "HEAD", "/v2/team-a/app/manifests/latest", ok, ok, denied, denied, login},
		{"pull by digest", "GET", "/v2/team-a/app/manifests/" + m.String(), ok, ok, denied, denied, login},
		{"pull a blob", "GET", "/v2/team-a/app/blobs/" + layer.String(), ok, ok, denied, denied, login},
		{"referrers", "GET", "/v2/team-a/app/referrers/" + m.String(), ok, ok, denied, denied, login},
		{"tags", "GET", "/v2/team-a/app/tags/list", ok, ok, denied, denied, login},
		{"what is not there", "GET", "/v2/team-b/nothing/manifests/latest", 404, denied, 404, denied, login},
		{"pull without list", "GET", "/v2/team-b/shared/manifests/latest", ok, ok, ok, denied, login},
		{"list without right", "GET", "/v2/team-b/shared/tags/list", ok, denied, denied, denied, login},
		{"public", "GET", "/v2/public/app/manifests/latest", ok, ok, ok, ok, ok},
		{"public tags", "GET", "/v2/public/app/tags/list", ok, ok, ok, ok, ok},
		{"push to public", "POST", "/v2/public/app/blobs/uploads/", ok, denied, denied, denied, login},
		{"push", "POST", "/v2/team-a/app/blobs/uploads/", ok, ok, denied, denied, login},
		{"delete unasked for", "DELETE", "/v2/team-b/shared/manifests/nothing", 404, denied, denied, denied, login},
		{"the root", "GET", "/v2/", ok, ok, ok, ok, login},
		{"status", "GET", "/flotilla/v1/status", ok, ok, ok, ok, login},
		{"accounts", "GET", "/flotilla/v1/accounts", ok, denied, denied, denied, login},
		{"the policy", "GET", "/flotilla/v1/policy", ok, denied, denied, denied, login},
		{"pins", "GET", "/flotilla/v1/pins", ok, denied, denied, denied, login},
		{"a pin", "POST", "/flotilla/v1/pins", 400, denied, denied, denied, login},
		{"a pin to remove", "DELETE", "/flotilla/v1/pins?zone=nowhere", 404, denied, denied, denied, login},
		{"whether pins hold", "GET", "/flotilla/v1/pins/status", ok, denied, denied, denied, login},
		{"where it is", "GET", "/flotilla/v1/where?repo=team-a/app&ref=latest", ok, ok, denied, denied, login},
		{"where a public one is", "GET", "/flotilla/v1/where?repo=public/app&ref=latest", ok, ok, ok, ok, ok},
		{"where nothing is", "GET", "/flotilla/v1/where?repo=team-b/nothing&ref=latest", 404, denied, 404, denied, login},
		{"where, by no name", "GET", "/flotilla/v1/where?ref=latest", 400, 400, 400, 400, 400},
		{"where, by no reference", "GET", "/flotilla/v1/where?repo=team-a/app", 400, 400, denied, denied, login},
		{"health", "GET", "/healthz", ok, ok, ok, ok, ok},
	} {
		for name, want := range map[string]int{root: row.root, alice: row.alice, bob: row.bob, carol: row.carol, "": row.nobody} {
			t.Run(row.what+" by "+name, func(t *testing.T) {
				got := n.do(t, row.method, row.path, as(name), nil)
				if want == ok && got.status/100 != 2 || want != ok && got.status != want {
					t.Errorf("got %d %s, want %d", got.status, got.body, want)
				}
				if challenge := got.header.Get("WWW-Authenticate"); (want == login) != strings.HasPrefix(challenge, "Bearer realm=\""+n.url+"/token\"") {
					t.Errorf("challenge %q", challenge)
				}
			})
		}
	}
}

// TestStatusTellsOfDigests only those who may administer: they are of blobs of
// any repository.
func TestStatusTellsOfDigests(t *testing.T) {
	open := newNode(t, nil)
	if got := open.do(t, "GET", "/flotilla/v1/status", nil, nil).want(t, 200, nil); !strings.Contains(got.body, "digest") {
		t.Errorf("without accounts: %s", got.body)
	}
	n, _ := guarded(t)
	for name, want := range map[string]bool{root: true, alice: false, carol: false} {
		for _, path := range []string{"/flotilla/v1/status", "/v2/_flotilla/mesh/status"} {
			if got := n.do(t, "GET", path, as(name), nil).want(t, 200, nil); strings.Contains(got.body, "digest") != want {
				t.Errorf("%s at %s: %s", name, path, got.body)
			}
		}
	}
}

// TestWhereTellsWhatAPullTells: to ask where an image is says no more about a
// repository than to pull it.
func TestWhereTellsWhatAPullTells(t *testing.T) {
	n, _ := guarded(t)
	m, _ := n.stock(t, "team-a/app", "latest")
	for _, name := range []string{root, alice, bob, carol, ""} {
		for _, row := range []struct{ repo, ref string }{
			{"team-a/app", "latest"}, {"team-a/app", m.String()}, {"team-a/app", "nothing"}, {"team-a/nothing", "latest"}, {"nothing", "latest"},
			{"No", "latest"}, {"team-a/app", "sha256:short"},
		} {
			pull := n.do(t, "GET", "/v2/"+row.repo+"/manifests/"+row.ref, as(name), nil)
			asked := n.do(t, "GET", "/flotilla/v1/where?repo="+row.repo+"&ref="+row.ref, as(name), nil)
			if asked.status != pull.status || asked.header.Get("WWW-Authenticate") != pull.header.Get("WWW-Authenticate") ||
				pull.status != 200 && asked.body != pull.body {
				t.Errorf("%s %v: %d %s\na pull: %d %s", name, row, asked.status, asked.body, pull.status, pull.body)
			}
		}
	}
}

// TestCatalogueShowsWhatOneMaySee: names of other repositories show neither in
// the list nor in how it is cut into pages.
func TestCatalogueShowsWhatOneMaySee(t *testing.T) {
	n, _ := guarded(t)
	for _, repo := range []string{"a-hidden", "public/app", "team-a/app", "team-a/base", "team-b/shared", "z-hidden"} {
		n.stock(t, repo, "latest")
	}
	for name, want := range map[string]string{
		root: "a-hidden public/app team-a/app team-a/base team-b/shared z-hidden", alice: "public/app team-a/app team-a/base",
		bob: "public/app", "": "public/app",
	} {
		var got []string
		for path := "/v2/_catalog?n=1"; path != ""; {
			r := n.do(t, "GET", path, as(name), nil).want(t, 200, nil)
			var page struct{ Repositories []string }
			if err := json.Unmarshal([]byte(r.body), &page); err != nil {
				t.Fatal(err)
			}
			got = append(got, page.Repositories...)
			path, _, _ = strings.Cut(strings.TrimPrefix(r.header.Get("Link"), "<"), ">")
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q sees %q, want %s", name, got, want)
		}
	}
}

func TestTokens(t *testing.T) {
	n, _ := guarded(t)
	n.stock(t, "team-a/app", "latest")
	n.stock(t, "team-a/other", "latest")
	n.stock(t, "public/app", "latest")
	const app, other = "/v2/team-a/app/manifests/latest", "/v2/team-a/other/manifests/latest"
	pull := n.token(t, alice, "repository:team-a/app:pull")
	n.do(t, "GET", app, pull, nil).want(t, 200, nil)
	n.do(t, "GET", "/v2/team-a/app/tags/list", pull, nil).want(t, 200, nil)
	n.do(t, "GET", "/v2/", pull, nil).want(t, 200, nil)

	// What it is not for: the client is told what to ask for.
	n.do(t, "GET", other, pull, nil).want(t, 401, head{
		"WWW-Authenticate": `Bearer realm="` + n.url + `/token",service="flotilla",scope="repository:team-a/other:pull",error="insufficient_scope"`,
	})
	n.do(t, "POST", "/v2/team-a/app/blobs/uploads/", pull, nil).refused(t, 401, "UNAUTHORIZED")
	n.do(t, "GET", "/flotilla/v1/accounts", n.token(t, root, "repository:team-a/app:*"), nil).refused(t, 401, "UNAUTHORIZED")

	// What is asked for beyond what is allowed is not in it.
	wide := n.token(t, bob, "repository:team-a/app:pull,push", "registry:catalog:*", "repository:**:*")
	n.do(t, "GET", app, wide, nil).refused(t, 403, "DENIED")

	nobody := n.token(t, "", "repository:public/app:pull", "repository:team-a/app:pull")
	n.do(t, "GET", "/v2/public/app/manifests/latest", nobody, nil).want(t, 200, nil)
	n.do(t, "GET", app, nobody, nil).refused(t, 401, "UNAUTHORIZED")

	// A token ends with its account's password, and with the rule behind it.
	if _, err := n.auth.SetPassword(t.Context(), "test", alice, "another one"); err != nil {
		t.Fatal(err)
	}
	n.do(t, "GET", app, pull, nil).refused(t, 401, "UNAUTHORIZED")
	bobs := n.token(t, bob, "repository:team-b/shared:pull")
	n.do(t, "GET", "/v2/team-b/shared/manifests/latest", bobs, nil).refused(t, 404, "NAME_UNKNOWN")
	_, revision, err := n.auth.Document()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.auth.Apply(t.Context(), "test", auth.Document{}, revision); err != nil {
		t.Fatal(err)
	}
	n.do(t, "GET", "/v2/team-b/shared/manifests/latest", bobs, nil).refused(t, 403, "DENIED")
}

func TestImmutableTags(t *testing.T) {
	n, _ := guarded(t)
	d, _ := n.stock(t, "team-a/app", "v1")
	body := n.do(t, "GET", "/v2/team-a/app/manifests/v1", as(alice), nil).want(t, 200, nil).body
	other := body + "\n"
	put := func(tag, body string) reply {
		return n.do(t, "PUT", "/v2/team-a/app/manifests/"+tag, with(alice, oci.TypeImage), body)
	}
	put("v1", body).want(t, 201, nil) // the same again
	put("v1", other).refused(t, 403, "DENIED")
	put("latest?tag=v1", other).refused(t, 403, "DENIED")
	n.do(t, "GET", "/v2/team-a/app/manifests/latest", as(alice), nil).refused(t, 404, "MANIFEST_UNKNOWN") // all or nothing
	n.do(t, "DELETE", "/v2/team-a/app/manifests/v1", as(alice), nil).refused(t, 403, "DENIED")
	n.do(t, "DELETE", "/v2/team-a/app/manifests/"+d.String(), as(alice), nil).refused(t, 403, "DENIED")
	n.do(t, "DELETE", "/v2/team-a/app/manifests/v1", as(root), nil).refused(t, 403, "DENIED") // nobody is above it
	put("v2-rc1", body).want(t, 201, nil)
	put("v2-rc1", other).want(t, 201, nil)
	put("latest", other).want(t, 201, nil)
	put("v3", other).want(t, 201, nil)
	n.do(t, "GET", "/v2/team-a/app/manifests/v1", as(alice), nil).want(t, 200, head{"Docker-Content-Digest": d.String()})
}

func TestAudit(t *testing.T) {
	n, audit := guarded(t)
	n.stock(t, "team-a/app", "latest")
	n.do(t, "GET", "/v2/team-a/app/manifests/latest", as(alice), nil).want(t, 200, nil)
	bearer := n.token(t, alice, "repository:team-a/app:push")
	bearer["X-Request-Id"] = "the-push"
	n.do(t, "POST", "/v2/team-a/app/blobs/uploads/", bearer, nil).want(t, 202, nil)
	n.do(t, "DELETE", "/v2/team-a/app/manifests/latest", head{"Authorization": as(bob)["Authorization"], "X-Request-Id": "the-denial"}, nil).want(t, 403, nil)
	n.do(t, "GET", "/v2/team-a/app/manifests/latest", head{"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte("alice:a guess")), "X-Request-Id": "the-guess"}, nil).want(t, 401, nil)
	made := n.do(t, "POST", "/flotilla/v1/accounts", as(root), `{"name":"ci","kind":"robot"}`).want(t, 201, nil)
	var robot auth.MadeAccount
	if err := json.Unmarshal([]byte(made.body), &robot); err != nil || robot.Secret == "" {
		t.Fatalf("%v in %s", err, made.body)
	}
	n.observed(t, 8) // the line is written before an answer is counted; the requests above are nine

	type line struct{ Account, Action, Method, Repository, Reference, Subject, Request, Remote string }
	var got []line
	for text := range strings.Lines(audit.String()) {
		var l line
		if err := json.Unmarshal([]byte(text), &l); err != nil || l.Remote == "" {
			t.Fatalf("%v in %s", err, text)
		}
		got = append(got, l)
	}
	has := func(want line) {
		t.Helper()
		for _, l := range got {
			l.Remote = ""
			if want.Request == "" {
				l.Request = ""
			}
			if l == want {
				return
			}
		}
		t.Errorf("no line %+v in %+v", want, got)
	}
	has(line{Account: alice, Action: "push", Method: "POST", Repository: "team-a/app", Request: "the-push"})
	has(line{Account: bob, Action: "delete", Method: "DELETE", Repository: "team-a/app", Reference: "latest", Request: "the-denial"})
	has(line{Account: "anonymous", Action: "pull", Method: "GET", Repository: "team-a/app", Reference: "latest", Request: "the-guess"})
	has(line{Account: root, Action: "admin", Method: "POST", Subject: "ci"})
	for _, l := range got {
		if l.Action == "pull" && l.Account == alice {
			t.Errorf("a pull has a line: %+v", l)
		}
	}
	for what, secret := range map[string]string{
		"password": strings.Repeat(alice, 3), "guess": "a guess", "Basic": strings.TrimPrefix(as(alice)["Authorization"], "Basic "),
		"token": strings.TrimPrefix(bearer["Authorization"], "Bearer "), "robot's secret": robot.Secret,
	} {
		if strings.Contains(audit.String(), secret) || strings.Contains(n.log.String(), secret) {
			t.Errorf("a log holds the %s", what)
		}
	}
}

func TestTooManyRequests(t *testing.T) {
	n, _ := guarded(t)
	_, revision, err := n.auth.Document()
	if err != nil {
		t.Fatal(err)
	}
	d := auth.Document{Limits: auth.Limits{AccountRequests: 0.5, AddressRequests: 1000}}
	if _, err := n.auth.Apply(t.Context(), "test", d, revision); err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		got := n.do(t, "GET", "/v2/", as(carol), nil)
		if got.status == http.StatusTooManyRequests {
			got.refused(t, 429, "TOOMANYREQUESTS")
			if after := got.header.Get("Retry-After"); after == "" || after == "0" {
				t.Errorf("Retry-After %q", after)
			}
			break
		}
		if got.want(t, 200, nil); i == 100 {
			t.Fatal("no request was refused")
		}
	}
	n.do(t, "GET", "/v2/", as(bob), nil).want(t, 200, nil) // another's are not counted together
}

// TestTooManyOperatorsTokens: who guesses at the operator's token is counted as
// anybody without an account.
func TestTooManyOperatorsTokens(t *testing.T) {
	n, _ := guarded(t)
	n.apply(t, "limits: {addressRequests: 0.5}")
	for i := 0; ; i++ {
		got := n.do(t, "DELETE", "/flotilla/v1/tokens", head{"Authorization": "Bearer 1.guess"}, nil)
		if got.status == http.StatusTooManyRequests {
			break
		}
		if got.refused(t, 401, "UNAUTHORIZED"); i == 100 {
			t.Fatal("no guess was refused for being one too many")
		}
	}
}

// unheard is what a process knows that has yet to hear from its mesh.
type unheard struct{ noSettings }

func (unheard) Sync(context.Context) error { return oci.ErrUnavailable }

// TestBeforeTheMeshWasHeard: a node that joins takes nobody for one who may, only
// because it knows of no accounts yet: not even at the root of the API, where
// clients try out a password.
func TestBeforeTheMeshWasHeard(t *testing.T) {
	a, err := auth.New(auth.Config{Settings: unheard{}, Mesh: func() string { return "" }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	var cfg *api.Config
	newNode(t, func(c *api.Config, _ *metadata.Cluster) { cfg = c })
	cfg.Auth = a
	h, err := api.New(*cfg)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{
		"/v2/": 503, "/v2/_catalog": 503, "/v2/_oci/ext/discover": 503, "/v2/r/tags/list": 503, "/flotilla/v1/policy": 503,
		"/healthz": 200, "/flotilla/v1/status": 200,
	} {
		w := httptest.NewRecorder()
		r := httptest.NewRequestWithContext(t.Context(), "GET", path, nil)
		r.SetBasicAuth("anybody", "anything")
		if h.ServeHTTP(w, r); w.Code != want {
			t.Errorf("%s: got %d %s, want %d", path, w.Code, w.Body, want)
		}
	}
}
