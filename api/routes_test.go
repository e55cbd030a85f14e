package api_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api"
	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata"
	"github.com/flotilla-registry/flotilla/node/disk"
)

const anyDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestMethods(t *testing.T) {
	n := newNode(t, nil)
	for path, allow := range map[string]string{
		"/healthz":                              "GET, HEAD",
		"/readyz":                               "GET, HEAD",
		"/metrics":                              "GET, HEAD",
		"/flotilla/v1/status":                   "GET, HEAD",
		"/v2":                                   "GET, HEAD",
		"/v2/":                                  "GET, HEAD",
		"/v2/_catalog":                          "GET, HEAD",
		"/v2/_oci/ext/discover":                 "GET, HEAD",
		"/v2/r/_oci/ext/discover":               "GET, HEAD",
		"/v2/r/tags/list":                       "GET, HEAD",
		"/v2/r/referrers/" + anyDigest:          "GET, HEAD",
		"/v2/r/manifests/latest":                "DELETE, GET, HEAD, PUT",
		"/v2/r/blobs/" + anyDigest:              "DELETE, GET, HEAD",
		"/v2/r/blobs/uploads":                   "POST",
		"/v2/r/blobs/uploads/":                  "POST",
		"/v2/r/blobs/uploads/some-id":           "DELETE, GET, HEAD, PATCH, PUT",
		"/v2/a/tags/list/manifests/tags/list":   "GET, HEAD",
		"/v2/a/blobs/uploads/x/manifests/blobs": "DELETE, GET, HEAD, PUT",
	} {
		for _, method := range []string{"GET", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"} {
			t.Run(method+" "+path, func(t *testing.T) {
				r := n.do(t, method, path, nil, nil)
				if strings.Contains(allow, method) {
					if r.status == http.StatusMethodNotAllowed {
						t.Errorf("got 405, but %s is allowed", method)
					}
					return
				}
				r.refused(t, 405, "UNSUPPORTED").want(t, 405, head{"Allow": allow})
			})
		}
	}
}

// TestPaths: a path that is not plain is refused, never cleaned, redirected or
// taken for another.
func TestPaths(t *testing.T) {
	n := newNode(t, nil)
	d := n.pushBlob(t, "secret/app", "secret")
	for name, row := range map[string]struct {
		path   string
		status int
		code   string
	}{
		"nothing":                    {"/", 404, "UNSUPPORTED"},
		"nothing under v2":           {"/v2/app", 404, "UNSUPPORTED"},
		"v2 of another kind":         {"/v2x", 404, "UNSUPPORTED"},
		"no name":                    {"/v2/tags/list", 404, "UNSUPPORTED"},
		"empty name":                 {"/v2//tags/list", 404, "UNSUPPORTED"},
		"trailing slash":             {"/v2/r/tags/list/", 404, "UNSUPPORTED"},
		"slash after a digest":       {"/v2/secret/app/blobs/" + d.String() + "/", 404, "UNSUPPORTED"},
		"double slash before":        {"/v2//secret/app/blobs/" + d.String(), 400, "NAME_INVALID"},
		"double slash within":        {"/v2/secret//app/blobs/" + d.String(), 400, "NAME_INVALID"},
		"double slash after":         {"/v2/secret/app//blobs/" + d.String(), 400, "NAME_INVALID"},
		"double slash at the front":  {"//v2/secret/app/blobs/" + d.String(), 404, "UNSUPPORTED"},
		"dot":                        {"/v2/./secret/app/blobs/" + d.String(), 400, "NAME_INVALID"},
		"dots":                       {"/v2/x/../secret/app/blobs/" + d.String(), 400, "NAME_INVALID"},
		"dots out of v2":             {"/v2/../healthz", 404, "UNSUPPORTED"},
		"dots into v2":               {"/x/../v2/secret/app/blobs/" + d.String(), 404, "UNSUPPORTED"},
		"dots as a tag":              {"/v2/secret/app/manifests/..", 400, "MANIFEST_INVALID"},
		"dots as a digest":           {"/v2/secret/app/blobs/..", 400, "DIGEST_INVALID"},
		"dots in a digest":           {"/v2/secret/app/blobs/sha256:..", 400, "DIGEST_INVALID"},
		"escaped slash":              {"/v2/secret%2Fapp/blobs/" + d.String(), 400, "NAME_INVALID"},
		"escaped slash, small":       {"/v2/secret%2fapp/blobs/" + d.String(), 400, "NAME_INVALID"},
		"escaped slash in a tag":     {"/v2/secret/app/manifests/a%2Fb", 400, "NAME_INVALID"},
		"escaped dots":               {"/v2/x/%2e%2e/secret/app/blobs/" + d.String(), 400, "NAME_INVALID"},
		"escaped letter":             {"/v2/%73ecret/app/blobs/" + d.String(), 400, "NAME_INVALID"},
		"escaped percent":            {"/v2/secret%252Fapp/blobs/" + d.String(), 400, "NAME_INVALID"},
		"escaped colon, twice":       {"/v2/secret/app/blobs/" + strings.Replace(d.String(), ":", "%253A", 1), 400, "NAME_INVALID"},
		"escaped colon in a name":    {"/v2/secret%3Aapp/tags/list", 400, "NAME_INVALID"},
		"escaped zero":               {"/v2/secret/app%00/tags/list", 400, "NAME_INVALID"},
		"escaped line end":           {"/v2/secret/app%0A/tags/list", 400, "NAME_INVALID"},
		"backslash":                  {`/v2/secret\app/tags/list`, 400, "NAME_INVALID"},
		"beyond ASCII":               {"/v2/sécret/tags/list", 400, "NAME_INVALID"},
		"capitals":                   {"/v2/Secret/app/tags/list", 400, "NAME_INVALID"},
		"name too long":              {"/v2/" + strings.Repeat("a", 256) + "/tags/list", 400, "NAME_INVALID"},
		"name of an extension":       {"/v2/_catalog/tags/list", 400, "NAME_INVALID"},
		"name with a host":           {"/v2/docker.io:443/app/tags/list", 400, "NAME_INVALID"},
		"escapes elsewhere":          {"/%68ealthz", 400, "NAME_INVALID"},
		"peer's path on public port": {"/blobs/" + d.String(), 404, "UNSUPPORTED"},
		"metadata's path":            {"/metadata/propose", 404, "UNSUPPORTED"},
	} {
		t.Run(name, func(t *testing.T) {
			r := n.do(t, "GET", row.path, nil, nil).refused(t, row.status, row.code)
			if r.header.Get("Location") != "" {
				t.Errorf("sent to %s", r.header.Get("Location"))
			}
		})
	}
	for _, path := range []string{"/v2/secret/app/blobs/" + d.String(), "/v2/secret/app/blobs/sha256%3a" + d.Encoded()} {
		if got := n.do(t, "GET", path, nil, nil).want(t, 200, nil).body; got != "secret" {
			t.Errorf("%s: %q", path, got)
		}
	}
}

// TestRefusals: bad input gets the specification's error and leaves nothing
// behind.
func TestRefusals(t *testing.T) {
	n := newNode(t, nil)
	image := func(extra string) string {
		return `{"schemaVersion":2,"config":` + descriptor("application/x", "c") + `,"layers":[]` + extra + `}`
	}
	d := digest.FromString(image("")).String()
	ct := func(mediaType string) head { return head{"Content-Type": mediaType} }
	for name, row := range map[string]struct {
		method, path string
		header       head
		body         any
		status       int
		code         string
	}{
		"get manifest, unknown repository": {"GET", "/v2/r/manifests/latest", nil, nil, 404, "NAME_UNKNOWN"},
		"get manifest, digest unknown":     {"GET", "/v2/r/manifests/" + anyDigest, nil, nil, 404, "NAME_UNKNOWN"},
		"get manifest, digest invalid":     {"GET", "/v2/r/manifests/sha256:baddigeststring", nil, nil, 400, "DIGEST_INVALID"},
		"get manifest, algorithm":          {"GET", "/v2/r/manifests/md5:d41d8cd98f00b204e9800998ecf8427e", nil, nil, 400, "DIGEST_INVALID"},
		"get manifest, tag invalid":        {"GET", "/v2/r/manifests/-x", nil, nil, 400, "MANIFEST_INVALID"},
		"get manifest, tag too long":       {"GET", "/v2/r/manifests/" + strings.Repeat("t", 129), nil, nil, 400, "MANIFEST_INVALID"},
		"get blob, unknown":                {"GET", "/v2/r/blobs/" + anyDigest, nil, nil, 404, "NAME_UNKNOWN"},
		"get blob, digest invalid":         {"GET", "/v2/r/blobs/sha256:ABC", nil, nil, 400, "DIGEST_INVALID"},
		"delete blob, unknown":             {"DELETE", "/v2/r/blobs/" + anyDigest, nil, nil, 404, "NAME_UNKNOWN"},
		"delete blob, digest invalid":      {"DELETE", "/v2/r/blobs/sha256", nil, nil, 400, "DIGEST_INVALID"},
		"put manifest, name invalid":       {"PUT", "/v2/R/manifests/v1", ct(oci.TypeImage), image(""), 400, "NAME_INVALID"},
		"put manifest, tag invalid":        {"PUT", "/v2/r/manifests/.v1", ct(oci.TypeImage), image(""), 400, "MANIFEST_INVALID"},
		"put manifest, digest invalid":     {"PUT", "/v2/r/manifests/sha256:baddigeststring", ct(oci.TypeImage), image(""), 400, "DIGEST_INVALID"},
		"put manifest, digest of another":  {"PUT", "/v2/r/manifests/" + d, ct(oci.TypeImage), image("") + "  ", 400, "DIGEST_INVALID"},
		"put manifest, no JSON":            {"PUT", "/v2/r/manifests/v1", ct(oci.TypeImage), "hello", 400, "MANIFEST_INVALID"},
		"put manifest, no body":            {"PUT", "/v2/r/manifests/v1", ct(oci.TypeImage), nil, 400, "MANIFEST_INVALID"},
		"put manifest, another type":       {"PUT", "/v2/r/manifests/v1", ct(oci.TypeIndex), image(`,"mediaType":"` + oci.TypeImage + `"`), 400, "MANIFEST_INVALID"},
		"put manifest, unknown type":       {"PUT", "/v2/r/manifests/v1", ct("application/vnd.cncf.x+json"), image(""), 400, "MANIFEST_INVALID"},
		"put manifest, schema 1":           {"PUT", "/v2/r/manifests/v1", ct("application/vnd.docker.distribution.manifest.v1+json"), `{"schemaVersion":1}`, 400, "MANIFEST_INVALID"},
		"put manifest, two kinds at once":  {"PUT", "/v2/r/manifests/v1", ct(oci.TypeImage), image(`,"manifests":[]`), 400, "MANIFEST_INVALID"},
		"put manifest, blobs missing":      {"PUT", "/v2/r/manifests/v1", ct(oci.TypeImage), image(""), 400, "MANIFEST_BLOB_UNKNOWN"},
		"upload, name invalid":             {"POST", "/v2/r_/blobs/uploads/", nil, nil, 400, "NAME_INVALID"},
		"upload, algorithm":                {"POST", "/v2/r/blobs/uploads/?digest-algorithm=sha384", nil, nil, 400, "DIGEST_INVALID"},
		"upload, algorithm of old":         {"POST", "/v2/r/blobs/uploads/?digest-algorithm=md5", nil, nil, 400, "DIGEST_INVALID"},
		"single POST, digest invalid":      {"POST", "/v2/r/blobs/uploads/?digest=sha256:x", nil, "hello", 400, "DIGEST_INVALID"},
		"single POST, digest empty":        {"POST", "/v2/r/blobs/uploads/?digest=", nil, "hello", 400, "DIGEST_INVALID"},
		"single POST, digest of another":   {"POST", "/v2/r/blobs/uploads/?digest=" + anyDigest, nil, "hello", 400, "DIGEST_INVALID"},
		"mount, digest invalid":            {"POST", "/v2/r/blobs/uploads/?mount=x&from=r", nil, nil, 400, "DIGEST_INVALID"},
		"mount, digest algorithm":          {"POST", "/v2/r/blobs/uploads/?mount=md5:d41d8cd98f00b204e9800998ecf8427e&from=r", nil, nil, 400, "DIGEST_INVALID"},
		"referrers, digest invalid":        {"GET", "/v2/r/referrers/latest", nil, nil, 400, "DIGEST_INVALID"},
		"tags, unknown repository":         {"GET", "/v2/r/tags/list", nil, nil, 404, "NAME_UNKNOWN"},
	} {
		t.Run(name, func(t *testing.T) {
			r := n.do(t, row.method, row.path, row.header, row.body)
			if row.code == "NAME_UNKNOWN" && strings.Contains(r.body, "_UNKNOWN") { // any kind of unknown
				r.want(t, row.status, nil)
				return
			}
			r.refused(t, row.status, row.code)
		})
	}
	if got := n.do(t, "GET", "/v2/_catalog", nil, nil).body; got != `{"repositories":[]}` {
		t.Errorf("left behind: %s", got)
	}
	if files := n.files(t); len(files) > 0 {
		t.Errorf("left behind: %v", files)
	}
}

// files lists the stored blobs.
func (n *node) files(t testing.TB) (files []string) {
	t.Helper()
	err := filepath.WalkDir(n.blobs, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			files = append(files, path)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return files
}

func TestCommonHeaders(t *testing.T) {
	n := newNode(t, nil)
	n.pushImage(t, "r", "app", "v1")
	for _, path := range []string{"/v2", "/v2/"} {
		r := n.do(t, "GET", path, nil, nil).want(t, 200, head{
			"Docker-Distribution-API-Version": "registry/2.0", "Flotilla-Node": "n1", "Content-Type": "application/json", "Content-Length": "2",
		})
		if r.body != "{}" {
			t.Errorf("%s: %q", path, r.body)
		}
	}
	for ns, want := range map[string]string{
		"docker.io": "docker.io", "localhost:5000": "localhost:5000", "": "", "a%0d%0ab": "", "%3Cscript%3E": "", "-": "",
	} {
		n.do(t, "GET", "/v2/r/manifests/v1?ns="+ns, nil, nil).want(t, 200, head{"OCI-Namespace": want})
		n.do(t, "HEAD", "/v2/r/tags/list?ns="+ns, nil, nil).want(t, 200, head{"OCI-Namespace": want})
		n.do(t, "GET", "/v2/r/manifests/v2?ns="+ns, nil, nil).want(t, 404, head{"OCI-Namespace": want})
	}
	for id, kept := range map[string]bool{
		"abc-1.2_X": true, strings.Repeat("a", 64): true,
		"": false, strings.Repeat("a", 65): false, "a b": false, `a"b`: false, "ä": false,
	} {
		got := n.do(t, "GET", "/v2/", head{"X-Request-Id": id}, nil).header.Get("X-Request-Id")
		if kept != (got == id) || len(got) < 1 {
			t.Errorf("id %q was answered with %q", id, got)
		}
	}
	ext := n.do(t, "GET", "/v2/_oci/ext/discover", nil, nil).want(t, 200, head{"Content-Type": "application/json"})
	list := decode[struct {
		Extensions []struct {
			Name, URL string
			Endpoints []string
		}
	}](t, ext.body).Extensions
	if len(list) != 2 || list[1].Name != "_flotilla" {
		t.Fatalf("extensions %s", ext.body)
	}
	for _, e := range list {
		if e.URL == "" || len(e.Endpoints) == 0 {
			t.Errorf("extension %+v lacks what the specification demands", e)
		}
		for _, endpoint := range e.Endpoints {
			n.do(t, "GET", "/v2/"+endpoint, nil, nil).want(t, 200, nil)
		}
	}
	n.do(t, "GET", "/v2/r/_oci/ext/discover", nil, nil).want(t, 200, nil)
}

func TestObserveAndLog(t *testing.T) {
	n := newNode(t, nil)
	d := n.pushBlob(t, "team/app", "12345")
	for i, row := range []struct {
		method, path string
		want         api.Served
	}{
		0: {"", "", api.Served{Route: "uploads", Method: "POST", Status: 201, In: 5}}, // pushBlob's
		1: {"GET", "/v2/team/app/blobs/" + d.String(), api.Served{Route: "blob", Method: "GET", Status: 200, Out: 5}},
		2: {"HEAD", "/v2/team/app/blobs/" + d.String(), api.Served{Route: "blob", Method: "HEAD", Status: 200}},
		3: {"GET", "/v2/team/app/manifests/nope", api.Served{Route: "manifest", Method: "GET", Status: 404, Out: -1}},
		4: {"BREW", "/coffee", api.Served{Route: "none", Method: "other", Status: 404, Out: -1}},
		5: {"GET", "/healthz", api.Served{Route: "health", Method: "GET", Status: 200, Out: -1}},
	} {
		if row.method != "" {
			n.do(t, row.method, row.path, head{"X-Request-Id": fmt.Sprintf("req-%d", i)}, nil)
		}
		got := n.observed(t, i)
		if row.want.Out < 0 && got.Out > 0 {
			got.Out = -1
		}
		if got.Duration <= 0 {
			t.Errorf("%d: took %s", i, got.Duration)
		}
		got.Duration = 0
		if got != row.want {
			t.Errorf("%d: got %+v, want %+v", i, got, row.want)
		}
	}
	var line map[string]any
	for s := bufio.NewScanner(strings.NewReader(n.log.String())); s.Scan(); {
		if strings.Contains(s.Text(), "req-3") {
			if line != nil {
				t.Error("more than one line for one request")
			}
			if err := json.Unmarshal(s.Bytes(), &line); err != nil {
				t.Fatal(err)
			}
		}
	}
	if line["route"] != "manifest" || line["status"] != 404.0 || line["path"] != "/v2/team/app/manifests/nope" || line["error"] == nil {
		t.Errorf("logged %v", line)
	}
}

func TestHealth(t *testing.T) {
	var state atomicHealth
	n := newNode(t, func(c *api.Config, _ *metadata.Cluster) { c.Health = &state })
	broken := errors.New("no quorum: 1 of 3 voters")
	for name, row := range map[string]struct {
		state       health
		read, write int
		says        string
	}{
		"all well":    {health{}, 200, 200, `"write":"ok"`},
		"reads only":  {health{nil, broken}, 200, 503, `"write":"no quorum: 1 of 3 voters"`},
		"writes only": {health{broken, nil}, 503, 503, `"read":"no quorum: 1 of 3 voters"`},
		"nothing":     {health{broken, broken}, 503, 503, `"ready":false`},
	} {
		t.Run(name, func(t *testing.T) {
			state.Store(&row.state)
			n.do(t, "GET", "/healthz", nil, nil).want(t, 200, head{"Content-Type": "application/json"})
			n.do(t, "GET", "/readyz", nil, nil).want(t, row.read, nil)
			if r := n.do(t, "GET", "/readyz?write", nil, nil).want(t, row.write, nil); !strings.Contains(r.body, row.says) {
				t.Errorf("got %s, want %s", r.body, row.says)
			}
		})
	}
	if r := n.do(t, "GET", "/flotilla/v1/status", nil, nil).want(t, 200, nil); r.body != `{"digest":"sha256:1","leader":"n1"}` {
		t.Errorf("status %s", r.body)
	}
	if r := n.do(t, "GET", "/metrics", nil, nil).want(t, 200, nil); r.body != "up 1\n" {
		t.Errorf("metrics %s", r.body)
	}
}

// TestLimits: what is full or busy says so, and when to come back.
func TestLimits(t *testing.T) {
	with := func(c disk.Config) *node {
		c.Dir = t.TempDir()
		store, err := disk.Open(c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { store.Close() })
		return newNode(t, func(cfg *api.Config, _ *metadata.Cluster) { cfg.Blobs, cfg.Uploads = store, store })
	}
	full := with(disk.Config{Reserve: math.MaxInt64})
	full.do(t, "POST", "/v2/r/blobs/uploads/?digest="+digest.FromString("x").String(), nil, "x").refused(t, 507, "DENIED")
	busy := with(disk.Config{MaxUploads: 1})
	busy.do(t, "POST", "/v2/r/blobs/uploads/", nil, nil).want(t, 202, nil)
	busy.do(t, "POST", "/v2/r/blobs/uploads/", nil, nil).refused(t, 429, "TOOMANYREQUESTS").want(t, 429, head{"Retry-After": "5"})
}

// TestNoProof: a node that cannot know does not say 404.
func TestNoProof(t *testing.T) {
	n := newNode(t, nil)
	d := n.pushImage(t, "r", "app", "v1")
	if err := n.catalog.Close(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		"/v2/r/manifests/v2", "/v2/r/manifests/" + anyDigest, "/v2/r/blobs/" + anyDigest, "/v2/r/tags/list", "/v2/_catalog", "/v2/r/referrers/" + d.String(),
	} {
		n.do(t, "GET", path, nil, nil).refused(t, 503, "UNAVAILABLE").want(t, 503, head{"Retry-After": "2"})
	}
	n.do(t, "POST", "/v2/r/blobs/uploads/?mount="+anyDigest, nil, nil).refused(t, 503, "UNAVAILABLE")
	n.do(t, "DELETE", "/v2/r/manifests/v1", nil, nil).refused(t, 503, "UNAVAILABLE")
	n.do(t, "GET", "/v2/", nil, nil).want(t, 200, nil)
	n.do(t, "GET", "/healthz", nil, nil).want(t, 200, nil)
}

func TestNewRefusesAnIncompleteConfig(t *testing.T) {
	if h, err := api.New(api.Config{}); err == nil {
		t.Errorf("got %v", h)
	}
}

// TestRawRequests: what no client library would send.
func TestRawRequests(t *testing.T) {
	n := newNode(t, nil)
	// What a node looks up at its first request, it gives up with a client that
	// hangs up, as these do.
	n.do(t, "GET", "/v2/", nil, nil).want(t, 200, nil)
	for name, row := range map[string]struct {
		request string
		status  int
	}{
		"bad escape":       {"GET /v2/%zz/tags/list HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		"absolute form":    {"GET http://other/v2/ HTTP/1.1\r\nHost: x\r\n\r\n", 200},
		"asterisk":         {"OPTIONS * HTTP/1.0\r\n\r\n", 200}, // net/http's own
		"connect":          {"CONNECT r:443 HTTP/1.1\r\nHost: r:443\r\n\r\n", 404},
		"two lengths":      {"PUT /v2/r/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400},
		"negative length":  {"PUT /v2/r/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\nabc", 400},
		"length and short": {"PUT /v2/r/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc", 400},
	} {
		t.Run(name, func(t *testing.T) {
			if resp := n.raw(t, row.request); resp.StatusCode != row.status {
				t.Errorf("got %s, want %d", resp.Status, row.status)
			}
		})
	}
}

// raw sends request as it is, says that nothing more will come, and reads the
// answer.
func (n *node) raw(t *testing.T, request string) *http.Response {
	t.Helper()
	u, err := url.Parse(n.url)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := conn.Write([]byte(request)); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// TestShortBody: of a body shorter than announced the session keeps what came,
// and where the connection still has an end that listens, it is told.
func TestShortBody(t *testing.T) {
	n := newNode(t, nil)
	at := n.do(t, "POST", "/v2/r/blobs/uploads/", nil, nil).want(t, 202, nil).header.Get("Location")
	resp := n.raw(t, "PATCH "+at+" HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n01234")
	if resp.StatusCode != 400 {
		t.Errorf("got %s, want 400", resp.Status)
	}
	n.do(t, "GET", at, nil, nil).want(t, 204, head{"Range": "0-4"})
	resp = n.raw(t, "POST /v2/r/blobs/uploads/?digest="+anyDigest+" HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n01234")
	if resp.StatusCode != 400 {
		t.Errorf("single POST: got %s, want 400", resp.Status)
	}
	d := digest.FromString("0123456789")
	n.do(t, "PUT", at+"?digest="+d.String(), head{"Content-Range": "5-9"}, "56789").want(t, 201, nil)
	if files := n.files(t); len(files) != 1 {
		t.Errorf("stored %v, want the one blob", files)
	}
}

func FuzzRequest(f *testing.F) {
	n := newNode(f, nil)
	d := n.pushBlob(f, "secret/app", "secret")
	for _, s := range [][2]string{
		{"GET", "/v2/"}, {"GET", "/v2/secret/app/blobs/" + d.String()}, {"HEAD", "/v2/a/manifests/b"},
		{"POST", "/v2/a/blobs/uploads/?mount=" + anyDigest + "&from=secret/app"}, {"PATCH", "/v2/a/blobs/uploads/b"},
		{"PUT", "/v2/a/manifests/" + anyDigest + "?tag=a"}, {"GET", "/v2/_catalog?n=1&last=a"}, {"DELETE", "/v2/a/blobs/x"},
		{"GET", "/v2/secret%2fapp/blobs/" + d.String()}, {"GET", "/v2/../v2//secret/app/tags/list"}, {"QUERY", "*"},
	} {
		f.Add(s[0], s[1], "0-5", "body")
	}
	f.Fuzz(func(t *testing.T, method, path, contentRange, body string) {
		u, err := url.ParseRequestURI(path)
		if err != nil || u.Host != "" || method == "" || strings.Trim(method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
			return // net/http refuses these before they reach us
		}
		r := httptest.NewRequest("GET", "/", strings.NewReader(body))
		r.Method, r.URL, r.RequestURI = method, u, path
		r.Header.Set("Content-Range", contentRange)
		w := httptest.NewRecorder()
		n.handler.ServeHTTP(w, r)
		if w.Code >= 300 && w.Code < 400 || w.Code == 500 || w.Code < 200 {
			t.Errorf("%s %q: %d %s", method, path, w.Code, w.Body)
		}
		plain := "/v2/secret/app/blobs/" + d.String()
		if w.Body.String() == "secret" && u.Path != plain {
			t.Errorf("%s %q reached another path's blob", method, path)
		}
	})
}
