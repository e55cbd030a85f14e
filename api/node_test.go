package api_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api"
	"github.com/flotilla-registry/flotilla/api/auth"
	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata"
	"github.com/flotilla-registry/flotilla/node/disk"
)

const selfID = "0b6e2a9c-3f1d-4c57-9a8e-6d2f4b7c1e50"

// node is a whole registry on one disk: real bytes, a real catalogue of a mesh
// of one, a real socket.
type node struct {
	url     string
	blobs   string // folder of stored bytes
	handler http.Handler
	catalog *metadata.Catalog
	auth    *auth.Authority
	client  *http.Client
	log     *lines
	skew    atomic.Int64 // of the catalogue's clock

	mu     sync.Mutex // guards served
	served []api.Served
}

// health is what a test says about it.
type health struct{ read, write error }

func (h health) Ready() error                   { return h.read }
func (h health) Writable(context.Context) error { return h.write }

// atomicHealth is health that changes.
type atomicHealth struct{ atomic.Pointer[health] }

func (a *atomicHealth) Ready() error                       { return a.Load().Ready() }
func (a *atomicHealth) Writable(ctx context.Context) error { return a.Load().Writable(ctx) }

// newNode starts a node; change, where not nil, alters its configuration.
func newNode(t testing.TB, change func(*api.Config, *metadata.Cluster)) *node {
	t.Helper()
	dir := t.TempDir()
	store, err := disk.Open(disk.Config{Dir: filepath.Join(dir, "bytes")})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{blobs: filepath.Join(dir, "bytes", "blobs"), log: new(lines)}
	cfg := api.Config{
		Node: "n1", Blobs: store, Uploads: store, Health: health{}, Room: func() error { return nil },
		Status: func(_ context.Context, digests bool) any {
			if digests {
				return map[string]string{"leader": "n1", "digest": "sha256:1"}
			}
			return map[string]string{"leader": "n1"}
		},
		Where:   n.where,
		Admin:   noAdmin(),
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "up 1") }),
		Observe: n.observe,
		Log:     slog.New(slog.NewJSONHandler(n.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	cluster := metadata.Cluster{ID: "4e1d7c6a-8b2f-4f0e-b9a3-5c7d9e1f2a34", Replicas: 1}
	if change != nil {
		change(&cfg, &cluster)
	}
	cfg.Catalog = newCatalog(t, filepath.Join(dir, "names"), cluster, n.now)
	n.catalog = cfg.Catalog
	if n.auth, err = auth.New(auth.Config{
		Settings: api.Settings(n.catalog), Mesh: func() string { return n.catalog.Cluster().ID }, Cost: 4, Now: n.now, Log: cfg.Log,
	}); err != nil {
		t.Fatal(err)
	}
	cfg.Auth = n.auth
	if n.handler, err = api.New(cfg); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(n.handler)
	n.url, n.client = server.URL, server.Client()
	n.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	t.Cleanup(func() {
		server.Close()
		if err := cfg.Catalog.Close(); err != nil {
			t.Error(err)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// where says of an image that it is here.
func (n *node) where(ctx context.Context, repo string, ref oci.Reference) (any, error) {
	m, err := n.catalog.Manifest(ctx, repo, ref)
	return map[string]any{"repository": repo, "digest": m.Digest}, err
}

// noSettings is a mesh that has agreed on nothing.
type noSettings struct{}

func (noSettings) Version() uint64                     { return 0 }
func (noSettings) List(string) ([]auth.Setting, error) { return nil, nil }
func (noSettings) Sync(context.Context) error          { return nil }
func (noSettings) Change(context.Context, string, ...auth.Change) (bool, error) {
	return false, oci.ErrUnavailable
}

// newCatalog founds a mesh of one.
func newCatalog(t testing.TB, dir string, cluster metadata.Cluster, now func() time.Time) *metadata.Catalog {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	key, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := metadata.Open(metadata.Config{
		Dir: dir, ID: selfID,
		Listener:  ln,
		Dial:      func(context.Context, string) (net.Conn, error) { return nil, errors.New("nobody else is here") },
		Client:    http.DefaultClient,
		Alive:     func() []string { return []string{selfID} },
		OnMembers: func([]metadata.Member, metadata.Cluster) {},
		Fatal:     func(err error) { t.Errorf("fatal: %v", err) },
		Now:       now,
	})
	if err != nil {
		t.Fatal(err)
	}
	self := metadata.Member{ID: selfID, Name: "n1", Key: key, Zone: "default", Weight: 1, Level: metadata.FeatureLevel, Address: ln.Addr().String()}
	if err := c.Found(ctx, cluster, self); err != nil {
		t.Fatal(err)
	}
	return c
}

func (n *node) now() time.Time { return time.Now().Add(time.Duration(n.skew.Load())) }

func (n *node) observe(s api.Served) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.served = append(n.served, s)
}

// observed waits for the request numbered i from 0: an answer may arrive before
// its handler has told of it.
func (n *node) observed(t testing.TB, i int) api.Served {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); runtime.Gosched() {
		n.mu.Lock()
		served := n.served
		n.mu.Unlock()
		if len(served) > i {
			return served[i]
		}
	}
	t.Fatalf("request %d was never observed", i)
	return api.Served{}
}

// lines is a log that tests read.
type lines struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// head is the header of a request, as in head{"Range": "bytes=0-1"}.
type head map[string]string

// reply is a whole answer.
type reply struct {
	status int
	header http.Header
	body   string
}

// do sends a request; body is a string, an io.Reader or nil.
func (n *node) do(t testing.TB, method, path string, h head, body any) reply {
	t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case string:
		r = strings.NewReader(b)
	case io.Reader:
		r = b
	}
	req, err := http.NewRequestWithContext(t.Context(), method, n.url+path, r)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range h {
		req.Header.Set(k, v)
	}
	resp, err := n.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, string(b)}
}

// want fails the test unless the answer has this status and these header values.
func (r reply) want(t testing.TB, status int, h head) reply {
	t.Helper()
	if r.status != status {
		t.Fatalf("got %d %s, want %d", r.status, r.body, status)
	}
	for k, v := range h {
		if got := strings.Join(r.header.Values(k), ", "); got != v {
			t.Errorf("%s: got %q, want %q", k, got, v)
		}
	}
	return r
}

// refused fails the test unless the answer is the specification's JSON with
// this status and code.
func (r reply) refused(t testing.TB, status int, code string) reply {
	t.Helper()
	r.want(t, status, head{"Content-Type": "application/json", "Content-Length": fmt.Sprint(len(r.body))})
	var body struct {
		Errors []struct{ Code, Message string }
	}
	if err := json.Unmarshal([]byte(r.body), &body); err != nil || len(body.Errors) != 1 ||
		body.Errors[0].Code != code || body.Errors[0].Message == "" {
		t.Fatalf("got %s, want one error with code %s", r.body, code)
	}
	return r
}

// pushBlob stores content in repo and returns its digest.
func (n *node) pushBlob(t testing.TB, repo, content string) digest.Digest {
	t.Helper()
	d := digest.FromString(content)
	n.do(t, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), nil, content).want(t, 201, nil)
	return d
}

// image returns an OCI image of two blobs that it pushes, plus extra fields.
func (n *node) image(t testing.TB, repo, name, extra string) string {
	t.Helper()
	config, layer := "config of "+name, "layer of "+name
	n.pushBlob(t, repo, config)
	n.pushBlob(t, repo, layer)
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]%s}`, oci.TypeImage,
		descriptor("application/vnd.oci.image.config.v1+json", config),
		descriptor("application/vnd.oci.image.layer.v1.tar", layer), extra)
}

// pushImage stores such an image under reference, "" for its digest.
func (n *node) pushImage(t testing.TB, repo, name, reference string) digest.Digest {
	t.Helper()
	body := n.image(t, repo, name, "")
	d := digest.FromString(body)
	if reference == "" {
		reference = d.String()
	}
	n.do(t, "PUT", "/v2/"+repo+"/manifests/"+reference, head{"Content-Type": oci.TypeImage}, body).
		want(t, 201, head{"Docker-Content-Digest": d.String()})
	return d
}

// descriptor is the JSON of a descriptor of content.
func descriptor(mediaType, content string) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, mediaType, digest.FromString(content), len(content))
}
