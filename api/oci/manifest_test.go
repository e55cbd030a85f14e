package oci_test

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

const (
	configType = "application/vnd.oci.image.config.v1+json"
	layerType  = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// descriptor is the JSON of a descriptor of content.
func descriptor(mediaType, content string) string {
	b, _ := json.Marshal(oci.Descriptor{MediaType: mediaType, Digest: digest.FromString(content), Size: int64(len(content))})
	return string(b)
}

func digests(ds []oci.Descriptor) []digest.Digest {
	var out []digest.Digest
	for _, d := range ds {
		out = append(out, d.Digest)
	}
	return out
}

func TestParseManifest(t *testing.T) {
	config, layer := descriptor(configType, "config"), descriptor(layerType, "layer")
	child := descriptor(oci.TypeImage, "child")
	image := `"schemaVersion":2,"config":` + config + `,"layers":[` + layer + `]`
	type want struct {
		mediaType, artifactType string
		blobs, children         []string
		subject                 string
		annotations             map[string]string
	}
	for name, row := range map[string]struct {
		header, body string
		want         want
	}{
		"image": {
			oci.TypeImage, `{"mediaType":"` + oci.TypeImage + `",` + image + `}`,
			want{mediaType: oci.TypeImage, artifactType: configType, blobs: []string{"config", "layer"}},
		},
		"image, header with parameters": {
			"Application/vnd.OCI.image.manifest.v1+json ; charset=utf-8", `{"mediaType":"` + oci.TypeImage + `",` + image + `}`,
			want{mediaType: oci.TypeImage, artifactType: configType, blobs: []string{"config", "layer"}},
		},
		"image, body without media type": {
			oci.TypeImage, `{` + image + `}`,
			want{mediaType: oci.TypeImage, artifactType: configType, blobs: []string{"config", "layer"}},
		},
		"image, no header": {
			"", `{"mediaType":"` + oci.TypeImage + `",` + image + `}`,
			want{mediaType: oci.TypeImage, artifactType: configType, blobs: []string{"config", "layer"}},
		},
		"image, no media type at all": {
			"", `{` + image + `}`,
			want{mediaType: oci.TypeImage, artifactType: configType, blobs: []string{"config", "layer"}},
		},
		"docker image": {
			oci.TypeDockerImage, `{"mediaType":"` + oci.TypeDockerImage + `",` + image + `}`,
			want{mediaType: oci.TypeDockerImage, artifactType: configType, blobs: []string{"config", "layer"}},
		},
		"layers none": {
			oci.TypeImage, `{"schemaVersion":2,"config":` + config + `,"layers":[]}`,
			want{mediaType: oci.TypeImage, artifactType: configType, blobs: []string{"config"}},
		},
		"layers null": {
			oci.TypeImage, `{"schemaVersion":2,"config":` + config + `,"layers":null}`,
			want{mediaType: oci.TypeImage, artifactType: configType, blobs: []string{"config"}},
		},
		"layer repeated": {
			oci.TypeImage, `{"schemaVersion":2,"config":` + config + `,"layers":[` + layer + `,` + layer + `]}`,
			want{mediaType: oci.TypeImage, artifactType: configType, blobs: []string{"config", "layer"}},
		},
		"layers that must not be demanded": {
			oci.TypeImage, `{"schemaVersion":2,"config":` + config + `,"layers":[` +
				descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar", "a") + `,` +
				descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "b") + `,` +
				descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "c") + `,` + layer + `]}`,
			want{mediaType: oci.TypeImage, artifactType: configType, blobs: []string{"config", "layer"}},
		},
		"artifact with subject": {
			oci.TypeImage, `{"artifactType":"application/x-sbom","subject":` + child + `,"annotations":{"k":"v"},` + image + `}`,
			want{
				mediaType: oci.TypeImage, artifactType: "application/x-sbom", blobs: []string{"config", "layer"},
				subject: "child", annotations: map[string]string{"k": "v"},
			},
		},
		"unknown fields": {
			oci.TypeImage, `{"org.example":{"a":[1,2.5e999,{"b":null}]},` + image + `}`,
			want{mediaType: oci.TypeImage, artifactType: configType, blobs: []string{"config", "layer"}},
		},
		"annotations that differ by case": {
			oci.TypeImage, `{"annotations":{"k":"v","K":"w"},` + image + `}`,
			want{
				mediaType: oci.TypeImage, artifactType: configType, blobs: []string{"config", "layer"},
				annotations: map[string]string{"k": "v", "K": "w"},
			},
		},
		"index": {
			oci.TypeIndex, `{"schemaVersion":2,"mediaType":"` + oci.TypeIndex + `","manifests":[` + child + `]}`,
			want{mediaType: oci.TypeIndex, children: []string{"child"}},
		},
		"index of artifacts": {
			oci.TypeIndex, `{"schemaVersion":2,"artifactType":"application/x-a","manifests":[` + child + `,` + child + `]}`,
			want{mediaType: oci.TypeIndex, artifactType: "application/x-a", children: []string{"child"}},
		},
		"index, no media type at all": {
			"", `{"schemaVersion":2,"manifests":[]}`,
			want{mediaType: oci.TypeIndex},
		},
		"index, manifests null": {
			oci.TypeIndex, `{"schemaVersion":2,"manifests":null}`,
			want{mediaType: oci.TypeIndex},
		},
		"docker list": {
			oci.TypeDockerList, `{"schemaVersion":2,"mediaType":"` + oci.TypeDockerList + `","manifests":[` + child + `]}`,
			want{mediaType: oci.TypeDockerList, children: []string{"child"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := digest.FromString(row.body)
			m, err := oci.ParseManifest(row.header, d, []byte(row.body))
			if err != nil {
				t.Fatal(err)
			}
			if m.Digest != d || m.Size != int64(len(row.body)) {
				t.Errorf("got %s of %d bytes, want %s of %d", m.Digest, m.Size, d, len(row.body))
			}
			if m.MediaType != row.want.mediaType || m.ArtifactType != row.want.artifactType || !maps.Equal(m.Annotations, row.want.annotations) {
				t.Errorf("got %q, artifact type %q, annotations %v; want %+v", m.MediaType, m.ArtifactType, m.Annotations, row.want)
			}
			if got, want := digests(m.Blobs), digestsOf(row.want.blobs); !slices.Equal(got, want) {
				t.Errorf("blobs %v, want %v", got, want)
			}
			if got, want := digests(m.Children), digestsOf(row.want.children); !slices.Equal(got, want) {
				t.Errorf("children %v, want %v", got, want)
			}
			if (m.Subject == nil) != (row.want.subject == "") || m.Subject != nil && m.Subject.Digest != digest.FromString(row.want.subject) {
				t.Errorf("subject %v, want that of %q", m.Subject, row.want.subject)
			}
		})
	}
}

func digestsOf(contents []string) []digest.Digest {
	var out []digest.Digest
	for _, c := range contents {
		out = append(out, digest.FromString(c))
	}
	return out
}

func TestParseManifestRefuses(t *testing.T) {
	config, layer := descriptor(configType, "config"), descriptor(layerType, "layer")
	for name, row := range map[string]struct{ header, body, because string }{
		"nothing":                  {oci.TypeImage, ``, "JSON"},
		"no JSON":                  {oci.TypeImage, `hello`, "invalid character"},
		"JSON cut short":           {oci.TypeImage, `{"schemaVersion":2`, "JSON"},
		"JSON and more":            {oci.TypeImage, `{"schemaVersion":2} {}`, "after top-level"},
		"an array":                 {oci.TypeImage, `[]`, "cannot unmarshal"},
		"null":                     {oci.TypeImage, `null`, "schemaVersion"},
		"deep nesting":             {oci.TypeImage, strings.Repeat(`[`, 1<<20), "depth"},
		"header against body":      {oci.TypeDockerImage, `{"schemaVersion":2,"mediaType":"` + oci.TypeImage + `","config":` + config + `}`, "Content-Type"},
		"a browser's header":       {"application/x-www-form-urlencoded", `{"schemaVersion":2,"config":` + config + `}`, "not supported"},
		"unknown type":             {"application/vnd.cncf.x.v1+json", `{"schemaVersion":2,"mediaType":"application/vnd.cncf.x.v1+json"}`, "only application/vnd.oci"},
		"artifact manifest of RC2": {"application/vnd.oci.artifact.manifest.v1+json", `{"blobs":[]}`, "not supported"},
		"schema 1 by header":       {"application/vnd.docker.distribution.manifest.v1+prettyjws", `{"schemaVersion":1}`, "schema 1"},
		"schema 1 by version":      {"", `{"schemaVersion":1,"name":"a"}`, "schema 1"},
		"schema 1 in disguise":     {oci.TypeImage, `{"schemaVersion":2,"config":` + config + `,"fsLayers":[]}`, "schema 1"},
		"no schema version":        {oci.TypeImage, `{"config":` + config + `,"layers":[]}`, "schemaVersion"},
		"image with manifests":     {oci.TypeImage, `{"schemaVersion":2,"config":` + config + `,"layers":[],"manifests":[]}`, "must not list"},
		"image without config":     {oci.TypeImage, `{"schemaVersion":2,"layers":[` + layer + `]}`, "config"},
		"index with layers":        {oci.TypeIndex, `{"schemaVersion":2,"manifests":[],"layers":[]}`, "must not have"},
		"index with config":        {oci.TypeIndex, `{"schemaVersion":2,"manifests":[],"config":` + config + `}`, "must not have"},
		"key twice":                {oci.TypeImage, `{"schemaVersion":2,"config":` + config + `,"layers":[],"layers":[` + layer + `]}`, "twice"},
		"key twice but for case":   {oci.TypeImage, `{"schemaVersion":2,"config":` + config + `,"layers":[],"Layers":[` + layer + `]}`, "twice"},
		"key twice but for a fold": {oci.TypeImage, `{"schemaVersion":2,"config":` + config + `,"layers":[],"layerſ":[` + layer + `]}`, "twice"},
		"key twice, deeper":        {oci.TypeImage, `{"schemaVersion":2,"config":` + config + `,"layers":[` + strings.Replace(layer, "{", `{"size":1,`, 1) + `]}`, "twice"},
		"entries that are none":    {oci.TypeIndex, `{"schemaVersion":2,"manifests":[` + strings.Repeat("{},", 100_000) + `{}]}`, "without a digest"},
		"not UTF-8":                {oci.TypeImage, `{"schemaVersion":2,"artifactType":"` + "\xff" + `","config":` + config + `}`, "UTF-8"},
		"digest missing":           {oci.TypeImage, `{"schemaVersion":2,"config":{"size":1}}`, "config"},
		"digest bad":               {oci.TypeImage, `{"schemaVersion":2,"config":{"digest":"sha256:zz","size":1}}`, "config"},
		"digest a path":            {oci.TypeIndex, `{"schemaVersion":2,"manifests":[{"digest":"sha256:../../x","size":1}]}`, "manifest"},
		"digest algorithm":         {oci.TypeImage, `{"schemaVersion":2,"config":` + config + `,"layers":[{"digest":"md5:d41d8cd98f00b204e9800998ecf8427e"}]}`, "layer"},
		"foreign layer's digest":   {oci.TypeImage, `{"schemaVersion":2,"config":` + config + `,"layers":[{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar","digest":"x"}]}`, "layer"},
		"subject's digest":         {oci.TypeImage, `{"schemaVersion":2,"config":` + config + `,"subject":{}}`, "subject"},
		"size negative":            {oci.TypeImage, strings.Replace(`{"schemaVersion":2,"config":`+config+`}`, `"size":6`, `"size":-6`, 1), "negative size"},
		"size no number":           {oci.TypeImage, strings.Replace(`{"schemaVersion":2,"config":`+config+`}`, `"size":6`, `"size":"6"`, 1), "size"},
		"size beyond int64":        {oci.TypeImage, strings.Replace(`{"schemaVersion":2,"config":`+config+`}`, `"size":6`, `"size":1e30`, 1), "size"},
		"annotation no string":     {oci.TypeImage, `{"schemaVersion":2,"config":` + config + `,"annotations":{"a":1}}`, "annotations"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := oci.ParseManifest(row.header, digest.FromString(row.body), []byte(row.body))
			if !errors.Is(err, oci.ErrManifestInvalid) || !strings.Contains(err.Error(), row.because) {
				t.Errorf("got %+v, %v; want ErrManifestInvalid that says %q", m, err, row.because)
			}
		})
	}
}

func FuzzParseManifest(f *testing.F) {
	config, layer := descriptor(configType, "config"), descriptor(layerType, "layer")
	f.Add(oci.TypeImage, []byte(`{"schemaVersion":2,"config":`+config+`,"layers":[`+layer+`],"subject":`+layer+`}`))
	f.Add(oci.TypeIndex, []byte(`{"schemaVersion":2,"manifests":[`+config+`],"annotations":{"a":"b"}}`))
	f.Add("", []byte(`{"schemaVersion":1,"fsLayers":[]}`))
	f.Add(oci.TypeDockerList, []byte(`{"a":{"b":[1,{"c":1,"c":2}]}}`))
	f.Fuzz(func(t *testing.T, header string, body []byte) {
		m, err := oci.ParseManifest(header, digest.FromBytes(body), body)
		if err != nil {
			if !errors.Is(err, oci.ErrManifestInvalid) {
				t.Errorf("error of another kind: %v", err)
			}
			return
		}
		for _, d := range slices.Concat(m.Blobs, m.Children) {
			if _, err := oci.ParseDigest(d.Digest.String()); err != nil || d.Size < 0 {
				t.Errorf("let through %+v", d)
			}
		}
		isIndex := m.MediaType == oci.TypeIndex || m.MediaType == oci.TypeDockerList
		if isIndex && len(m.Blobs) > 0 || !isIndex && len(m.Children) > 0 {
			t.Errorf("both kinds at once: %+v", m)
		}
	})
}
