package api_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api"
	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata"
)

func TestPushManifest(t *testing.T) {
	n := newNode(t, nil)
	const repo = "library/manifests/tags/app"
	image := n.image(t, repo, "app", "")
	subject := digest.FromString("not there yet")
	referrer := n.image(t, repo, "app", `,"artifactType":"application/x-sbom","subject":`+descriptor(oci.TypeImage, "not there yet"))
	large := n.image(t, repo, "app", `,"annotations":{"a":"`+strings.Repeat("A", 3<<20)+`"}`)
	absent := `{"schemaVersion": 2,` + "\r\n\t" + `"manifests":[` + descriptor(oci.TypeImage, "a child that is not there") + `]}` + "\n"
	for name, row := range map[string]struct {
		mediaType, sent, body string
		subject               string
	}{
		"image":                      {oci.TypeImage, oci.TypeImage, image, ""},
		"header with parameters":     {oci.TypeImage, oci.TypeImage + "; charset=utf-8", image, ""},
		"no header":                  {oci.TypeImage, "", image, ""},
		"docker image":               {oci.TypeDockerImage, oci.TypeDockerImage, strings.Replace(image, oci.TypeImage, oci.TypeDockerImage, 1), ""},
		"index with absent children": {oci.TypeIndex, oci.TypeIndex, absent, ""},
		"docker list":                {oci.TypeDockerList, oci.TypeDockerList, absent, ""},
		"referrer before subject":    {oci.TypeImage, oci.TypeImage, referrer, subject.String()},
		"larger than fits the log":   {oci.TypeImage, oci.TypeImage, large, ""},
	} {
		for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
			t.Run(name+" "+alg.String(), func(t *testing.T) {
				d := alg.FromString(row.body)
				at := "/v2/" + repo + "/manifests/" + d.String()
				references := []string{d.String()}
				if alg == digest.SHA256 {
					references = append(references, "latest")
				}
				for _, ref := range references {
					path := "/v2/" + repo + "/manifests/" + ref
					h := head{"Content-Type": row.sent}
					n.do(t, "PUT", path, h, row.body).want(t, 201, head{
						"Location": at, "Docker-Content-Digest": d.String(), "OCI-Subject": row.subject, "OCI-Tag": "", "Content-Length": "0",
					})
					want := head{
						"Content-Type": row.mediaType, "Content-Length": fmt.Sprint(len(row.body)),
						"Docker-Content-Digest": d.String(), "ETag": `"` + d.String() + `"`, "Warning": "",
					}
					for _, accept := range []string{"", "*/*", oci.TypeIndex, "application/json"} {
						if got := n.do(t, "GET", path, head{"Accept": accept}, nil).want(t, 200, want).body; got != row.body {
							t.Errorf("Accept %q: got other bytes than were pushed", accept)
						}
					}
					n.do(t, "HEAD", path, nil, nil).want(t, 200, want)
					n.do(t, "GET", path, head{"If-None-Match": `"` + d.String() + `"`}, nil).want(t, 304, nil)
				}
			})
		}
	}
}

func TestPushTags(t *testing.T) {
	n := newNode(t, nil)
	body := n.image(t, "r", "app", "")
	d := digest.FromString(body)
	at := "/v2/r/manifests/" + d.String()
	h := head{"Content-Type": oci.TypeImage}
	n.do(t, "PUT", at+"?tag=1.2.3&tag=1.2&tag=1&tag=1.2&tag=latest", h, body).
		want(t, 201, head{"OCI-Tag": "1.2.3, 1.2, 1, latest", "Location": at, "Docker-Content-Digest": d.String()})
	n.do(t, "PUT", "/v2/r/manifests/main?tag=edge", h, body).want(t, 201, head{"OCI-Tag": "edge"})
	for _, tag := range []string{"1.2.3", "1.2", "1", "latest", "main", "edge"} {
		n.do(t, "HEAD", "/v2/r/manifests/"+tag, nil, nil).want(t, 200, head{"Docker-Content-Digest": d.String()})
	}

	n.do(t, "PUT", at+"?tag=fine&tag=.not", h, body).refused(t, 400, "MANIFEST_INVALID")
	var many strings.Builder
	for i := range 101 {
		fmt.Fprintf(&many, "&tag=t%d", i)
	}
	n.do(t, "PUT", at+"?tag=fine"+many.String(), h, body).refused(t, 414, "UNSUPPORTED")
	n.do(t, "HEAD", "/v2/r/manifests/fine", nil, nil).want(t, 404, nil) // all or nothing
	n.do(t, "HEAD", "/v2/r/manifests/t1", nil, nil).want(t, 404, nil)
}

func TestManifestSize(t *testing.T) {
	n := newNode(t, nil)
	image := n.image(t, "r", "app", "")
	for name, row := range map[string]struct {
		size   int
		status int
		code   string
	}{
		"4 MiB":         {oci.MaxManifest, 201, ""},
		"a byte beyond": {oci.MaxManifest + 1, 413, "SIZE_INVALID"},
		"far beyond":    {2 * oci.MaxManifest, 413, "SIZE_INVALID"},
	} {
		body := image + strings.Repeat(" ", row.size-len(image))
		for form, sent := range map[string]any{"announced": body, "chunked": stream(body)} {
			t.Run(name+" "+form, func(t *testing.T) {
				r := n.do(t, "PUT", "/v2/r/manifests/big", head{"Content-Type": oci.TypeImage}, sent)
				if row.code != "" {
					r.refused(t, row.status, row.code)
					return
				}
				r.want(t, row.status, nil)
				if got := n.do(t, "GET", "/v2/r/manifests/big", nil, nil).want(t, 200, nil).body; got != body {
					t.Errorf("got %d bytes, want %d", len(got), len(body))
				}
			})
		}
	}
}

// TestMissingBlobs: an image is refused until its blobs are there, unless the
// mesh is told otherwise.
func TestMissingBlobs(t *testing.T) {
	strict := newNode(t, nil)
	sparse := newNode(t, func(_ *api.Config, c *metadata.Cluster) { c.AllowSparse = true })
	strict.pushBlob(t, "other", "config of app") // elsewhere does not count
	body := fmt.Sprintf(`{"schemaVersion":2,"config":%s,"layers":[]}`, descriptor("application/x", "config of app"))
	h := head{"Content-Type": oci.TypeImage}
	strict.do(t, "PUT", "/v2/r/manifests/v1", h, body).refused(t, 400, "MANIFEST_BLOB_UNKNOWN")
	strict.do(t, "GET", "/v2/r/manifests/v1", nil, nil).want(t, 404, nil)
	sparse.do(t, "PUT", "/v2/r/manifests/v1", h, body).want(t, 201, nil)
	strict.pushBlob(t, "r", "config of app")
	strict.do(t, "PUT", "/v2/r/manifests/v1", h, body).want(t, 201, nil)

	foreign := fmt.Sprintf(`{"schemaVersion":2,"config":%s,"layers":[%s,%s]}`, descriptor("application/x", "config of app"),
		descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "never pushed"),
		descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "never pushed either"))
	strict.do(t, "PUT", "/v2/r/manifests/windows", h, foreign).want(t, 201, nil)
}

// TestStaleManifest: a manifest that may expire before an index can name it is
// not there for HEAD by digest, so that clients push it again; it is for others.
func TestStaleManifest(t *testing.T) {
	n := newNode(t, nil)
	if err := n.catalog.SetPolicy(t.Context(), metadata.Policy{UntaggedAfter: 48 * time.Hour}); err != nil {
		t.Fatal(err)
	}
	body, h := n.image(t, "r", "app", ""), head{"Content-Type": oci.TypeImage}
	at := "/v2/r/manifests/" + digest.FromString(body).String()
	n.do(t, "PUT", at, h, body).want(t, 201, nil)
	n.do(t, "HEAD", at, nil, nil).want(t, 200, nil)
	n.skew.Add(int64(37 * time.Hour))
	n.do(t, "HEAD", at, nil, nil).want(t, 404, nil)
	n.do(t, "GET", at, nil, nil).want(t, 200, nil)
	n.do(t, "PUT", at, h, body).want(t, 201, nil)
	n.do(t, "HEAD", at, nil, nil).want(t, 200, nil)
	n.do(t, "PUT", "/v2/r/manifests/v1", h, body).want(t, 201, nil)
	n.skew.Add(int64(500 * time.Hour))
	n.do(t, "HEAD", at, nil, nil).want(t, 200, nil)
	n.do(t, "HEAD", "/v2/r/manifests/v1", nil, nil).want(t, 200, nil)
}

func TestDeleteManifests(t *testing.T) {
	n := newNode(t, nil)
	d := n.pushImage(t, "r", "app", "v1")
	n.pushImage(t, "r", "app", "v2")
	path := func(ref string) string { return "/v2/r/manifests/" + ref }
	n.do(t, "DELETE", path("v1"), nil, nil).want(t, 202, head{"Warning": ""})
	n.do(t, "GET", path("v1"), nil, nil).refused(t, 404, "MANIFEST_UNKNOWN")
	n.do(t, "GET", path("v2"), nil, nil).want(t, 200, nil)
	n.do(t, "DELETE", path("v1"), nil, nil).refused(t, 404, "MANIFEST_UNKNOWN")
	n.do(t, "DELETE", path(d.String()), nil, nil).want(t, 202, head{"Warning": ""})
	n.do(t, "GET", path(d.String()), nil, nil).refused(t, 404, "MANIFEST_UNKNOWN")
	n.do(t, "GET", path("v2"), nil, nil).refused(t, 404, "MANIFEST_UNKNOWN")
	n.do(t, "DELETE", path(d.String()), nil, nil).refused(t, 404, "MANIFEST_UNKNOWN")
	n.do(t, "DELETE", "/v2/nobody/manifests/v1", nil, nil).want(t, 404, nil)
}

func TestReferrers(t *testing.T) {
	n := newNode(t, nil)
	image := n.pushImage(t, "r", "app", "v1")
	subject := fmt.Sprintf(`,"subject":{"mediaType":%q,"digest":%q,"size":1}`, oci.TypeImage, image)
	push := func(extra string) digest.Digest {
		body := n.image(t, "r", "app", subject+extra)
		n.do(t, "PUT", "/v2/r/manifests/"+digest.FromString(body).String(), head{"Content-Type": oci.TypeImage}, body).
			want(t, 201, head{"OCI-Subject": image.String()})
		return digest.FromString(body)
	}
	sbom := push(`,"artifactType":"application/x-sbom","annotations":{"by":"us"}`)
	sign := push(`,"artifactType":"application/x-sign"`)
	plain := push(``) // shows its config's media type

	type index struct {
		SchemaVersion int
		MediaType     string
		Manifests     []oci.Descriptor
	}
	list := func(path string, h head) index {
		t.Helper()
		r := n.do(t, "GET", path, nil, nil).want(t, 200, head{"Content-Type": oci.TypeIndex}).want(t, 200, h)
		got := decode[index](t, r.body)
		if got.SchemaVersion != 2 || got.MediaType != oci.TypeIndex || got.Manifests == nil {
			t.Errorf("not an index: %s", r.body)
		}
		return got
	}
	at := "/v2/r/referrers/" + image.String()
	all := list(at, head{"OCI-Filters-Applied": "", "Link": ""})
	types := map[digest.Digest]string{}
	for _, m := range all.Manifests {
		types[m.Digest] = m.ArtifactType
		if m.Digest == sbom && m.Annotations["by"] != "us" {
			t.Errorf("annotations %v", m.Annotations)
		}
	}
	want := map[digest.Digest]string{sbom: "application/x-sbom", sign: "application/x-sign", plain: "application/vnd.oci.image.config.v1+json"}
	if fmt.Sprint(types) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", types, want)
	}

	some := list(at+"?artifactType=application/x-sign", head{"OCI-Filters-Applied": "artifactType"})
	if len(some.Manifests) != 1 || some.Manifests[0].Digest != sign {
		t.Errorf("filtered: %+v", some.Manifests)
	}
	none := list(at+"?artifactType=application/x%2Bother", head{"OCI-Filters-Applied": "artifactType"})
	nobody := list("/v2/nobody/referrers/"+image.String(), nil)
	if len(none.Manifests)+len(nobody.Manifests) != 0 {
		t.Errorf("of no kind %+v, of nobody %+v", none, nobody)
	}

	var paged []digest.Digest
	for path := at + "?n=1"; path != ""; {
		r := n.do(t, "GET", path, nil, nil).want(t, 200, nil)
		for _, m := range decode[index](t, r.body).Manifests {
			paged = append(paged, m.Digest)
		}
		path = nextPage(t, r)
	}
	if len(paged) != 3 || len(slices.Compact(slices.Sorted(slices.Values(paged)))) != 3 {
		t.Errorf("page by page: %v", paged)
	}
	n.do(t, "GET", "/v2/r/referrers/sha256:xyz", nil, nil).refused(t, 400, "DIGEST_INVALID")
	n.do(t, "GET", at+"?last=nothing", nil, nil).refused(t, 400, "DIGEST_INVALID")
	n.do(t, http.MethodDelete, at, nil, nil).refused(t, 405, "UNSUPPORTED")
}
