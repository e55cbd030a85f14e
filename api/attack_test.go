package api_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/auth"
	"github.com/flotilla-registry/flotilla/api/oci"
)

// TestAttacks: each row is an attempt to get at something through the public
// port, from somebody who is not allowed it. None may succeed. Attempts with
// forged tokens are in package auth, those on the peer port in package node.
func TestAttacks(t *testing.T) {
	n, _ := guarded(t)
	m, secret := n.stock(t, "team-a/app", "latest")
	n.stock(t, "team-b/shared", "latest")
	// What every attempt below is after: the bytes or the name of team-a/app.
	reach := func(t *testing.T, got reply) {
		t.Helper()
		if got.status/100 == 2 || strings.Contains(got.body, "layer of team-a") || strings.Contains(got.body, m.String()) {
			t.Errorf("got %d %s", got.status, got.body)
		}
	}
	unreadable := func(t *testing.T, repo string) {
		t.Helper()
		reach(t, n.do(t, "GET", "/v2/"+repo+"/blobs/"+secret.String(), as(bob), nil))
		reach(t, n.do(t, "HEAD", "/v2/"+repo+"/blobs/"+secret.String(), as(bob), nil))
	}

	t.Run("mount of an unreadable blob", func(t *testing.T) {
		for _, query := range []string{"&from=team-a/app", "", "&from=", "&from=team-a%2Fapp", "&from=team-b/shared", "&from=../team-a/app"} {
			got := n.do(t, "POST", "/v2/team-b/mine/blobs/uploads/?mount="+secret.String()+query, as(bob), nil)
			if got.status == http.StatusCreated {
				t.Errorf("mounted with %q", query)
			}
		}
		unreadable(t, "team-b/mine")
	})
	t.Run("mount with a token for the target alone", func(t *testing.T) {
		h := n.token(t, alice, "repository:team-a/new:pull,push")
		n.do(t, "POST", "/v2/team-a/new/blobs/uploads/?mount="+secret.String()+"&from=team-a/app", h, nil).want(t, 401, head{"WWW-Authenticate": `Bearer realm="` +
			n.url + `/token",service="flotilla",scope="repository:team-a/new:pull,push repository:team-a/app:pull",error="insufficient_scope"`})
		// A name that the client does not say is not told to this token.
		n.do(t, "POST", "/v2/team-a/new/blobs/uploads/?mount="+secret.String(), h, nil).want(t, 202, head{"WWW-Authenticate": ""})
		// What alice herself may not read, no token of hers would mount.
		n.do(t, "POST", "/v2/team-a/new/blobs/uploads/?mount="+secret.String()+"&from=team-b/mine", h, nil).want(t, 202, nil)
		both := n.token(t, alice, "repository:team-a/new:pull,push", "repository:team-a/app:pull")
		n.do(t, "POST", "/v2/team-a/new/blobs/uploads/?mount="+secret.String()+"&from=team-a/app", both, nil).want(t, 201, nil)
	})
	t.Run("mount from anywhere finds what one may read", func(t *testing.T) {
		n.do(t, "POST", "/v2/team-a/elsewhere/blobs/uploads/?mount="+secret.String(), as(alice), nil).want(t, 201, nil)
	})
	t.Run("linking by digest", func(t *testing.T) {
		// The digest alone, without the bytes, names nothing.
		at := "/v2/team-b/mine/blobs/uploads/?digest=" + secret.String()
		reach(t, n.do(t, "POST", at, as(bob), ""))
		reach(t, n.do(t, "POST", at, as(bob), "other bytes"))
		session := n.do(t, "POST", "/v2/team-b/mine/blobs/uploads/", as(bob), nil).want(t, 202, nil).header.Get("Location")
		reach(t, n.do(t, "PUT", session+"?digest="+secret.String(), as(bob), nil))
		manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, oci.TypeImage,
			descriptor("application/vnd.oci.image.config.v1+json", "config of team-a/app"),
			descriptor("application/vnd.oci.image.layer.v1.tar", "layer of team-a/app"))
		n.do(t, "PUT", "/v2/team-b/mine/manifests/latest", with(bob, oci.TypeImage), manifest).refused(t, 400, "MANIFEST_BLOB_UNKNOWN")
		unreadable(t, "team-b/mine")
	})
	t.Run("an index over another's manifest", func(t *testing.T) {
		index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, oci.TypeIndex, oci.TypeImage, m, 9)
		n.do(t, "PUT", "/v2/team-b/mine/manifests/index", with(bob, oci.TypeIndex), index).want(t, 201, nil)
		n.do(t, "GET", "/v2/team-b/mine/manifests/"+m.String(), as(bob), nil).refused(t, 404, "MANIFEST_UNKNOWN")
	})
	t.Run("upload id of another user's session", func(t *testing.T) {
		session := n.do(t, "POST", "/v2/team-a/app/blobs/uploads/", as(alice), nil).want(t, 202, nil).header.Get("Location")
		content := "what alice sends"
		n.do(t, "PATCH", session, as(alice), content).want(t, 202, nil)
		id := session[strings.LastIndexByte(session, '/')+1:]
		d := digest.FromString(content)
		for _, try := range []struct{ who, repo string }{{root, "team-a/app"}, {bob, "team-b/shared"}, {root, "team-b/shared"}, {alice, "team-a/other"}} {
			at := "/v2/" + try.repo + "/blobs/uploads/" + id
			for method, query := range map[string]string{"GET": "", "PATCH": "", "PUT": "?digest=" + d.String(), "DELETE": ""} {
				n.do(t, method, at+query, as(try.who), nil).refused(t, 404, "BLOB_UPLOAD_UNKNOWN")
			}
		}
		n.do(t, "PUT", session+"?digest="+d.String(), as(alice), nil).want(t, 201, nil)
	})
	t.Run("path confusion in names", func(t *testing.T) {
		for _, name := range []string{
			"team-b/%2e%2e/team-a/app", "team-b/..%2fteam-a/app", "team-b/../team-a/app", "team-b%2f..%2fteam-a%2fapp", "team-b//team-a/app",
			"TEAM-A/app", "team-a/APP", "team-a/app%00", "team-a/app%20", "team-a%2Fapp", "team-b/shared/../../team-a/app", "./team-a/app",
			"team-a/app;x", "team-\u0430/app", "team-a\u2215app", "team-a/app%EF%BC%8F", "team-b/shared/manifests/latest/../../../../team-a/app", "\uff54eam-a/app",
		} {
			for _, end := range []string{"/manifests/latest", "/blobs/" + secret.String(), "/tags/list"} {
				reach(t, n.do(t, "GET", "/v2/"+name+end, as(bob), nil))
			}
		}
	})
	t.Run("a repository named like an endpoint", func(t *testing.T) {
		for _, path := range []string{
			"/v2/team-b/shared/blobs/uploads/../../../team-a/app/manifests/latest", "/v2/team-b/shared/tags/list/../../../team-a/app/tags/list",
			"/v2/team-a/app/manifests/latest/blobs/" + secret.String(), "/v2//team-a/app/manifests/latest", "//v2/team-a/app/manifests/latest", "/V2/team-a/app/manifests/latest",
		} {
			reach(t, n.do(t, "GET", path, as(bob), nil))
		}
	})
	t.Run("methods and headers that mean another", func(t *testing.T) {
		for _, h := range []head{
			{"X-HTTP-Method-Override": "GET"}, {"X-Original-URL": "/v2/team-b/shared/manifests/latest"}, {"X-Rewrite-URL": "/healthz"},
			{"X-Forwarded-User": root}, {"Remote-User": root}, {"X-Flotilla-Account": root}, {"Flotilla-May-Fill": "1"}, {"Forwarded": "for=127.0.0.1"},
		} {
			for k, v := range as(bob) {
				h[k] = v
			}
			reach(t, n.do(t, "GET", "/v2/team-a/app/manifests/latest", h, nil))
			reach(t, n.do(t, "HEAD", "/v2/team-a/app/blobs/"+secret.String(), h, nil))
		}
	})
	t.Run("several Authorization headers", func(t *testing.T) {
		answer := n.wire(t, "GET /v2/team-a/app/manifests/latest HTTP/1.1\r\nHost: r\r\nAuthorization: "+as(bob)["Authorization"]+
			"\r\nAuthorization: "+as(alice)["Authorization"]+"\r\nConnection: close\r\n\r\n")
		if !strings.HasPrefix(answer, "HTTP/1.1 401") {
			t.Errorf("got %s", answer)
		}
	})
	t.Run("open redirect in realm", func(t *testing.T) {
		for _, host := range []string{"evil.example/x?", "evil.example\"", "user@evil.example", "a b", "evil.example#", "[::1", "x:99999", "a,scope=b"} {
			req, err := http.NewRequestWithContext(t.Context(), "GET", n.url+"/v2/", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = host
			resp, err := n.client.Do(req)
			if err != nil {
				continue // the client, or the server, refuses such a Host itself
			}
			resp.Body.Close()
			challenge := resp.Header.Get("WWW-Authenticate")
			if _, after, found := strings.Cut(challenge, `realm="`); resp.StatusCode == 401 && found && strings.HasPrefix(challenge, "Bearer") {
				realm, _, _ := strings.Cut(after, `"`)
				if u, err := url.Parse(realm); err != nil || u.Path != "/token" || u.Host != host || u.User != nil {
					t.Errorf("Host %q: %s", host, challenge)
				}
			}
		}
		for _, h := range []head{{"X-Forwarded-Host": "evil.example"}, {"X-Forwarded-Proto": "https"}, {"Forwarded": "host=evil.example;proto=https"}, {"X-Forwarded-Prefix": "/evil"}} {
			n.do(t, "GET", "/v2/", h, nil).want(t, 401, head{"WWW-Authenticate": `Bearer realm="` + n.url + `/token",service="flotilla"`})
		}
	})
	t.Run("request smuggling pairs", func(t *testing.T) {
		hidden := "GET /v2/team-a/app/manifests/latest HTTP/1.1\r\nHost: r\r\nAuthorization: " + as(bob)["Authorization"] + "\r\n\r\n"
		for what, headers := range map[string]string{
			"length and chunked":       fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: chunked\r\n", len(hidden)+5),
			"two lengths":              fmt.Sprintf("Content-Length: 0\r\nContent-Length: %d\r\n", len(hidden)),
			"chunked twice":            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
			"an unknown coding":        "Transfer-Encoding: xchunked\r\n",
			"a space before the colon": fmt.Sprintf("Content-Length : %d\r\n", len(hidden)),
			"a sign":                   "Content-Length: +0\r\n",
			"a folded header":          "X: y\r\n Content-Length: 5\r\n",
		} {
			answer := n.wire(t, "POST /token HTTP/1.1\r\nHost: r\r\nContent-Type: application/x-www-form-urlencoded\r\n"+headers+"\r\n0\r\n\r\n"+hidden)
			if strings.Contains(answer, "HTTP/1.1 200") || strings.Contains(answer, m.String()) {
				t.Errorf("%s: got %s", what, answer)
			}
		}
	})
	t.Run("header floods", func(t *testing.T) {
		var flood strings.Builder
		for i := range 20_000 {
			fmt.Fprintf(&flood, "X-%d: %s\r\n", i, strings.Repeat("a", 100))
		}
		answer := n.wire(t, "GET /v2/ HTTP/1.1\r\nHost: r\r\n"+flood.String()+"\r\n")
		if answer != "" && !strings.HasPrefix(answer, "HTTP/1.1 431") {
			t.Errorf("got %.100s", answer)
		}
		n.do(t, "GET", "/healthz", nil, nil).want(t, 200, nil)
	})
	t.Run("deeply nested JSON", func(t *testing.T) {
		deep := strings.Repeat("[", 100_000)
		n.do(t, "POST", "/flotilla/v1/accounts", as(root), deep).refused(t, 400, "UNSUPPORTED")
		n.do(t, "PUT", "/flotilla/v1/policy", as(root), `{"rules":`+deep).refused(t, 400, "UNSUPPORTED")
		n.do(t, "PUT", "/v2/team-a/app/manifests/deep", with(alice, oci.TypeImage), `{"schemaVersion":2,"x":`+deep).refused(t, 400, "MANIFEST_INVALID")
	})
	t.Run("oversized tokens", func(t *testing.T) {
		for _, size := range []int{10 << 10, 60 << 10} {
			n.do(t, "GET", "/v2/", head{"Authorization": "Bearer " + strings.Repeat("a", size)}, nil).refused(t, 401, "UNAUTHORIZED")
			n.do(t, "GET", "/v2/", head{"Authorization": "Basic " + strings.Repeat("a", size)}, nil).refused(t, 401, "UNAUTHORIZED")
		}
	})
	t.Run("a body of endless size", func(t *testing.T) {
		h := head{"Content-Type": "application/x-www-form-urlencoded"}
		n.do(t, "POST", "/token", h, io.LimitReader(endless{}, 1<<20)).refused(t, 400, "UNSUPPORTED")
		n.do(t, "PUT", "/flotilla/v1/policy", as(root), io.LimitReader(endless{}, 1<<20)).refused(t, 400, "UNSUPPORTED")
	})
	t.Run("the operator's token is a number and a guess", func(t *testing.T) {
		for _, token := range []string{"1.", ".", "9999999999.AAAA", "1.bad", "-1.good.x", "1.good\x00"} {
			if strings.ContainsRune(token, 0) {
				continue // no client can send it; wire could
			}
			n.do(t, "GET", "/flotilla/v1/accounts", head{"Authorization": "Bearer " + token}, nil).refused(t, 401, "UNAUTHORIZED")
		}
	})
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a'
	}
	return len(p), nil
}

// wire sends bytes as they are and returns all that comes back.
func (n *node) wire(t testing.TB, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(n.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(conn, request) // it may be refused before its end
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
	}
	b, _ := io.ReadAll(bufio.NewReader(conn)) // a reset ends it too
	return string(b)
}

// tardy is a body whose first byte comes only when meanwhile has happened.
type tardy struct {
	io.Reader
	meanwhile func()
}

func (s *tardy) Read(p []byte) (int, error) {
	if s.meanwhile != nil {
		s.meanwhile()
		s.meanwhile = nil
	}
	return s.Reader.Read(p)
}

// TestAttackBodiesThatOutliveARight: whoever is let in with a body and sends it
// slowly does nothing with it any more once the right, or the account, is gone.
func TestAttackBodiesThatOutliveARight(t *testing.T) {
	const index = `{"schemaVersion":2,"mediaType":"` + oci.TypeIndex + `","manifests":[]}`
	large := strings.Replace(index, `"manifests"`, `"annotations":{"a":"`+strings.Repeat("x", 400<<10)+`"},"manifests"`, 1)
	none := digest.FromString("late")
	remove := func(t *testing.T, n *node, name string) {
		if _, err := n.auth.RemoveAccount(t.Context(), "test", name, false); err != nil {
			t.Error(err)
		}
	}
	for _, row := range []struct {
		what, method, path, body, who string
		status                        int
		then                          string // root must find nothing there
		meanwhile                     func(*testing.T, *node)
	}{
		{"a manifest", "PUT", "/v2/team-a/app/manifests/late", index, alice, 401, "/v2/team-a/app/manifests/late",
			func(t *testing.T, n *node) { remove(t, n, alice) }},
		{"a large manifest", "PUT", "/v2/team-a/app/manifests/late", large, alice, 401, "/v2/team-a/app/manifests/late",
			func(t *testing.T, n *node) { remove(t, n, alice) }},
		{"a manifest, by policy", "PUT", "/v2/team-a/app/manifests/late", index, alice, 403, "/v2/team-a/app/manifests/late",
			func(t *testing.T, n *node) { n.apply(t, "{}") }},
		{"a blob", "POST", "/v2/team-a/app/blobs/uploads/?digest=" + none.String(), "late", alice, 401, "/v2/team-a/app/blobs/" + none.String(),
			func(t *testing.T, n *node) { remove(t, n, alice) }},
		{"the end of an upload", "PUT", "SESSION?digest=" + none.String(), "late", alice, 401, "/v2/team-a/app/blobs/" + none.String(),
			func(t *testing.T, n *node) { remove(t, n, alice) }},
		{"an account", "POST", "/flotilla/v1/accounts", `{"name":"back","kind":"robot","admin":true}`, root, 401, "",
			func(t *testing.T, n *node) { remove(t, n, root) }},
		{"a policy", "PUT", "/flotilla/v1/policy", `{"anonymous":{"pull":["**"]}}`, root, 401, "",
			func(t *testing.T, n *node) { remove(t, n, root) }},
	} {
		t.Run(row.what, func(t *testing.T) {
			n, _ := guarded(t)
			path := row.path
			if rest, ok := strings.CutPrefix(path, "SESSION"); ok {
				path = n.do(t, "POST", "/v2/team-a/app/blobs/uploads/", as(row.who), nil).want(t, 202, nil).header.Get("Location") + rest
			}
			r := httptest.NewRequestWithContext(t.Context(), row.method, path, &tardy{strings.NewReader(row.body), func() { row.meanwhile(t, n) }})
			for k, v := range with(row.who, oci.TypeIndex) {
				r.Header.Set(k, v)
			}
			w := httptest.NewRecorder()
			n.handler.ServeHTTP(w, r)
			if challenged := w.Header().Get("WWW-Authenticate") != ""; w.Code != row.status || challenged != (row.status == 401) {
				t.Errorf("got %d %s (challenged: %t)", w.Code, w.Body, challenged)
			}
			if row.then != "" {
				n.do(t, "GET", row.then, as(root), nil).want(t, 404, nil)
			}
			if all, err := n.auth.Accounts(); err != nil || slices.ContainsFunc(all, func(a auth.Account) bool { return a.Name == "back" }) {
				t.Errorf("accounts %v (%v)", all, err)
			}
			n.do(t, "GET", "/v2/team-a/app/tags/list", nil, nil).want(t, 401, nil)
		})
	}
}

// TestAttackMovingATagThatHasBecomeImmutable: the policy that counts is the one
// at the end of the body.
func TestAttackMovingATagThatHasBecomeImmutable(t *testing.T) {
	n, _ := guarded(t)
	n.apply(t, strings.Split(policy, "immutable:")[0])
	m, _ := n.stock(t, "team-a/app", "v1")
	body := &tardy{strings.NewReader(`{"schemaVersion":2,"mediaType":"` + oci.TypeIndex + `","manifests":[]}`), func() { n.apply(t, policy) }}
	r := httptest.NewRequestWithContext(t.Context(), "PUT", "/v2/team-a/app/manifests/v1", body)
	for k, v := range with(alice, oci.TypeIndex) {
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	n.handler.ServeHTTP(w, r)
	if w.Code != 403 {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	n.do(t, "GET", "/v2/team-a/app/manifests/v1", as(alice), nil).want(t, 200, head{"Docker-Content-Digest": m.String()})
}

// TestAttackHoldingLargeManifests: one account that begins many large manifests
// and ends none takes no place from others.
func TestAttackHoldingLargeManifests(t *testing.T) {
	n, _ := guarded(t)
	large := `{"schemaVersion":2,"mediaType":"` + oci.TypeIndex + `","annotations":{"a":"` + strings.Repeat("x", 400<<10) + `"},"manifests":[]}`
	const tries = 80
	results := make(chan int, tries)
	release := make(chan struct{})
	end := sync.OnceFunc(func() { close(release) })
	var all sync.WaitGroup
	defer all.Wait()
	defer end()
	for i := range tries {
		all.Go(func() {
			rest := &tardy{strings.NewReader(large[300<<10:]), func() { results <- 0; <-release }}
			r := httptest.NewRequestWithContext(t.Context(), "PUT", fmt.Sprintf("/v2/team-a/app/manifests/t%d", i), io.MultiReader(strings.NewReader(large[:300<<10]), rest))
			for k, v := range with(alice, oci.TypeIndex) {
				r.Header.Set(k, v)
			}
			w := httptest.NewRecorder()
			n.handler.ServeHTTP(w, r)
			results <- w.Code
		})
	}
	count := map[int]int{}
	for range tries {
		count[<-results]++
	}
	if count[0] == 0 || count[0] > 16 || count[0]+count[429] != tries {
		t.Errorf("held and refused: %v", count)
	}
	n.do(t, "PUT", "/v2/team-b/app/manifests/large", with(bob, oci.TypeIndex), large).want(t, 201, nil)
	end()
	for range count[0] {
		if status := <-results; status != 201 {
			t.Errorf("a manifest that was held: %d", status)
		}
	}
	n.do(t, "PUT", "/v2/team-a/app/manifests/large", with(alice, oci.TypeIndex), large).want(t, 201, nil)
}

// TestAttackDeletingUnderAnImmutableTag: a manifest is deleted by digest while an
// immutable tag is pushed to it. Once the push is answered, the tag stays.
func TestAttackDeletingUnderAnImmutableTag(t *testing.T) {
	n, _ := guarded(t)
	for i := range 50 {
		body := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"annotations":{"n":"%d"},"manifests":[]}`, oci.TypeIndex, i)
		at, tag := "/v2/team-a/app/manifests/"+digest.FromString(body).String(), fmt.Sprintf("/v2/team-a/app/manifests/v%d", i)
		n.do(t, "PUT", at, with(alice, oci.TypeIndex), body).want(t, 201, nil)
		var pushed, dropped reply
		var both sync.WaitGroup
		both.Go(func() { pushed = n.do(t, "PUT", tag, with(alice, oci.TypeIndex), body) })
		both.Go(func() { dropped = n.do(t, "DELETE", at, as(alice), nil) })
		both.Wait()
		pushed.want(t, 201, nil)
		if dropped.status != 202 && dropped.status != 403 {
			t.Errorf("the deletion: got %d %s", dropped.status, dropped.body)
		}
		n.do(t, "GET", tag, as(alice), nil).want(t, 200, nil)
	}
}
